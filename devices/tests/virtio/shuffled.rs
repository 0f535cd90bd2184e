//! A host that carries out a disk's transfers in any order, in pieces, and when it likes.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use devices::virtio::Buffers;
use devices::virtio::block::{DEPTH, Image, Ring, Transfer};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Chooses a number less than the one it is given, which is not 0.
pub(crate) type Choice = Box<dyn FnMut(u64) -> u64 + Send>;

/// What a test sees of it.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Transfers that were pushed and whose end was not told.
    pub(crate) under_way: Vec<u16>,
    /// So many of these were pushed and not submitted.
    pub(crate) noted: usize,
    /// The most of them at once.
    pub(crate) most: usize,
    /// What would be left of the image without power.
    pub(crate) durable: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Work {
    Read {
        at: u64,
        into: Vec<(GuestAddress, u64)>,
    },
    Write {
        at: u64,
        from: Vec<(GuestAddress, u64)>,
        through: bool,
    },
    Zeros {
        at: u64,
        len: u64,
        by_file_system: bool,
    },
    Flush,
}

pub(crate) struct Shuffled {
    file: File,
    memory: Arc<GuestMemoryMmap>,
    choose: Choice,
    noted: Vec<(u16, Work)>,
    submitted: Vec<(u16, Work)>,
    ended: Vec<(u16, io::Result<u32>)>,
    seen: Arc<Mutex<Seen>>,
}

fn pieces(buffers: &Buffers<'_>) -> Vec<(GuestAddress, u64)> {
    let pieces: Vec<_> = buffers.places().collect();
    assert!((1..=256).contains(&pieces.len()), "{} pieces", pieces.len());
    pieces
}

impl Shuffled {
    pub(crate) fn new(image: &Image, memory: Arc<GuestMemoryMmap>, choose: Choice) -> Self {
        let file = image.as_fd().try_clone_to_owned().expect("a descriptor");
        let file = File::from(file);
        let mut durable =
            vec![0; usize::try_from(file.metadata().expect("a file").len()).expect("small")];
        file.read_exact_at(&mut durable, 0).expect("a file");
        let seen = Arc::new(Mutex::new(Seen {
            durable,
            ..Seen::default()
        }));
        Self {
            file,
            memory,
            choose,
            noted: Vec::new(),
            submitted: Vec::new(),
            ended: Vec::new(),
            seen,
        }
    }

    pub(crate) fn seen(&self) -> Arc<Mutex<Seen>> {
        self.seen.clone()
    }

    /// Carries out one that was submitted, whichever.
    fn carry_one_out(&mut self) {
        let which = (self.choose)(self.submitted.len() as u64);
        let (name, work) = self
            .submitted
            .swap_remove(usize::try_from(which).expect("few"));
        let done = match (self.choose)(8) {
            0 => Err(ErrorKind::Interrupted.into()),
            _ => self.carry_out(&work),
        };
        self.ended.push((name, done));
    }

    /// How much is done at once of so much.
    fn part(&mut self, all: u64) -> u64 {
        if all > 1 && (self.choose)(3) == 0 {
            1 + (self.choose)(all - 1)
        } else {
            all
        }
    }

    fn carry_out(&mut self, work: &Work) -> io::Result<u32> {
        let done = match work {
            Work::Read { at, into } => {
                let part = self.part(into.iter().map(|(_, len)| len).sum());
                let mut bytes = vec![0; usize::try_from(part).expect("small")];
                let count = self.file.read_at(&mut bytes, *at)?;
                let mut rest = &bytes[..count];
                for (address, len) in into {
                    let here = rest.len().min(usize::try_from(*len).expect("small"));
                    let (now, later) = rest.split_at(here);
                    self.memory.write_slice(now, *address).expect("in memory");
                    rest = later;
                }
                count as u64
            }
            Work::Write { at, from, through } => {
                let mut bytes = Vec::new();
                for (address, len) in from {
                    let mut here = vec![0; usize::try_from(*len).expect("small")];
                    self.memory
                        .read_slice(&mut here, *address)
                        .expect("in memory");
                    bytes.extend(here);
                }
                let part = self.part(bytes.len() as u64);
                let part = usize::try_from(part).expect("small");
                self.file.write_all_at(&bytes[..part], *at)?;
                if *through {
                    let at = usize::try_from(*at).expect("small");
                    let durable = &mut self.seen.lock().expect("whole").durable;
                    durable[at..at + part].copy_from_slice(&bytes[..part]);
                }
                part as u64
            }
            Work::Zeros {
                by_file_system: true,
                ..
            } if (self.choose)(2) == 0 => {
                return Err(ErrorKind::Unsupported.into());
            }
            Work::Zeros {
                at,
                len,
                by_file_system,
            } => {
                let part = if *by_file_system {
                    *len
                } else {
                    self.part(*len)
                };
                let zeros = vec![0; usize::try_from(part).expect("small")];
                self.file.write_all_at(&zeros, *at)?;
                if *by_file_system { 0 } else { part }
            }
            Work::Flush => {
                let durable = &mut self.seen.lock().expect("whole").durable;
                self.file.read_exact_at(durable, 0)?;
                0
            }
        };
        Ok(u32::try_from(done).expect("small"))
    }
}

impl Ring for Shuffled {
    fn push(&mut self, name: u16, transfer: Transfer<'_>) {
        let work = match transfer {
            Transfer::Read { at, into } => Work::Read {
                at,
                into: pieces(&into),
            },
            Transfer::Write { at, from, through } => {
                let from = pieces(&from);
                Work::Write { at, from, through }
            }
            Transfer::Zero { at, len, .. } => Work::Zeros {
                at,
                len,
                by_file_system: true,
            },
            Transfer::WriteZeros { at, len } => Work::Zeros {
                at,
                len,
                by_file_system: false,
            },
            Transfer::Flush => Work::Flush,
        };
        let mut seen = self.seen.lock().expect("whole");
        assert!(!seen.under_way.contains(&name), "{name} twice");
        seen.under_way.push(name);
        seen.most = seen.most.max(seen.under_way.len());
        assert!(seen.most <= usize::from(DEPTH), "more than there may be");
        seen.noted += 1;
        drop(seen);
        self.noted.push((name, work));
    }

    fn submit(&mut self) {
        self.submitted.append(&mut self.noted);
        self.seen.lock().expect("whole").noted = 0;
        // Some end at once.
        while !self.submitted.is_empty() && (self.choose)(3) == 0 {
            self.carry_one_out();
        }
    }

    fn ended(&mut self) -> Option<(u16, io::Result<u32>)> {
        let count = self.ended.len() as u64;
        if count == 0 {
            return None;
        }
        let which = usize::try_from((self.choose)(count)).expect("few");
        let (name, result) = self.ended.swap_remove(which);
        let under_way = &mut self.seen.lock().expect("whole").under_way;
        under_way.retain(|other| *other != name);
        Some((name, result))
    }

    fn wait(&mut self) {
        if self.ended.is_empty() {
            assert!(!self.submitted.is_empty(), "nothing to wait for");
            self.carry_one_out();
        }
    }

    fn change(&mut self, image: &Image) -> io::Result<()> {
        assert!(self.seen.lock().expect("whole").under_way.is_empty());
        self.file = image.as_fd().try_clone_to_owned()?.into();
        Ok(())
    }
}
