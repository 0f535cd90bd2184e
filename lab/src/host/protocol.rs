//! What an emulated host tells us over its serial console.
//!
//! Marks and ordinary output share one console. A mark is a line whose last part begins with a word
//! drawn at random for the run, so nothing that a guest prints can be taken for one; output that did
//! not end its line before a mark is given back as output. Files are compressed with gzip, whose
//! checksum finds a line that the console damaged, and encoded in base64.

use std::collections::BTreeMap;
use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use thiserror::Error;

/// The most that one file may hold, compressed and not: a log, not a disk.
const FILE_LIMIT: u64 = 64 << 20;

/// Something that the host said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Output that is no mark, without the end of its line.
    Text(Vec<u8>),
    /// KVM is loaded and the steps begin: what the host found out about itself.
    Ready(BTreeMap<String, String>),
    /// A step begins.
    Begin {
        /// The step.
        step: String,
    },
    /// A file that a step left: `stdout`, `stderr`; or the step `host`'s `dmesg`.
    File {
        /// The step.
        step: String,
        /// What it is.
        name: String,
        /// What it holds.
        contents: Vec<u8>,
    },
    /// A step has ended.
    Exit {
        /// The step.
        step: String,
        /// Its status, or `None` when its time was up.
        status: Option<u8>,
    },
    /// The host reports that something of its own went wrong.
    Problem(String),
    /// All steps have ended.
    Done,
}

/// Why a mark cannot be understood: the console lost or added bytes.
#[derive(Debug, Error)]
pub(crate) enum Damaged {
    /// A mark of no known form.
    #[error("the host sent the mark {mark:?}, which is none of the protocol's")]
    Mark {
        /// The mark, without the run's word.
        mark: String,
    },
    /// A line of a file outside of a file, or a file in a file.
    #[error("the host sent {mark:?} where it does not belong")]
    Order {
        /// The mark, without the run's word.
        mark: String,
    },
    /// A file that does not decode.
    #[error("the file {name} of the step {step} arrived damaged: {reason}")]
    File {
        /// The step.
        step: String,
        /// What it is.
        name: String,
        /// What the decoder says.
        reason: String,
    },
}

/// Turns the console's lines into events.
#[derive(Debug)]
pub(crate) struct Receiver {
    word: String,
    file: Option<Incoming>,
}

#[derive(Debug)]
struct Incoming {
    step: String,
    name: String,
    encoded: Vec<u8>,
}

impl Receiver {
    /// A receiver of marks that begin with `word`.
    pub(crate) fn new(word: &str) -> Self {
        Self {
            word: word.to_owned(),
            file: None,
        }
    }

    /// Takes one line, with or without its end, and gives the events in it to `emit`.
    pub(crate) fn line(
        &mut self,
        line: &[u8],
        emit: &mut impl FnMut(Event),
    ) -> Result<(), Damaged> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let word = self.word.as_bytes();
        let Some(at) = line.windows(word.len()).position(|window| window == word) else {
            emit(Event::Text(line.to_vec()));
            return Ok(());
        };
        if at > 0 {
            emit(Event::Text(line[..at].to_vec()));
        }
        let mark = String::from_utf8_lossy(&line[at + word.len()..]);
        if let Some(event) = self.mark(mark.trim_start())? {
            emit(event);
        }
        Ok(())
    }

    fn mark(&mut self, mark: &str) -> Result<Option<Event>, Damaged> {
        let unknown = || Damaged::Mark {
            mark: mark.to_owned(),
        };
        let order = || Damaged::Order {
            mark: mark.to_owned(),
        };
        let (verb, rest) = mark.split_once(' ').unwrap_or((mark, ""));
        if self.file.is_some() != matches!(verb, "=" | "end") {
            return Err(order());
        }
        match verb {
            // The host lives: that there was a line is all that it says.
            "beat" => Ok(None),
            "=" => {
                let file = self.file.as_mut().ok_or_else(order)?;
                file.encoded.extend_from_slice(rest.trim_end().as_bytes());
                Ok(None)
            }
            "end" => self.file.take().ok_or_else(order)?.decode().map(Some),
            "file" => {
                let (step, name) = rest.split_once(' ').ok_or_else(unknown)?;
                let (step, name) = (step.to_owned(), name.to_owned());
                self.file = Some(Incoming {
                    step,
                    name,
                    encoded: Vec::new(),
                });
                Ok(None)
            }
            "ready" => {
                let pairs = rest.split_whitespace().map(|pair| pair.split_once('='));
                let facts =
                    pairs.map(|pair| pair.map(|(key, value)| (key.to_owned(), value.to_owned())));
                facts
                    .collect::<Option<_>>()
                    .map(Event::Ready)
                    .map(Some)
                    .ok_or_else(unknown)
            }
            "begin" => Ok(Some(Event::Begin {
                step: rest.to_owned(),
            })),
            "exit" => {
                let (step, status) = rest.split_once(' ').ok_or_else(unknown)?;
                let status = match status {
                    "late" => None,
                    number => Some(number.parse().map_err(|_| unknown())?),
                };
                Ok(Some(Event::Exit {
                    step: step.to_owned(),
                    status,
                }))
            }
            "problem" => Ok(Some(Event::Problem(rest.to_owned()))),
            "done" => Ok(Some(Event::Done)),
            _ => Err(unknown()),
        }
    }
}

impl Incoming {
    fn decode(self) -> Result<Event, Damaged> {
        let Self {
            step,
            name,
            encoded,
        } = self;
        let unpack = || -> Result<Vec<u8>, String> {
            let packed = STANDARD
                .decode(&encoded)
                .map_err(|error| error.to_string())?;
            let mut contents = Vec::new();
            let mut reader = GzDecoder::new(packed.as_slice()).take(FILE_LIMIT);
            reader
                .read_to_end(&mut contents)
                .map_err(|error| error.to_string())?;
            Ok(contents)
        };
        match unpack() {
            Ok(contents) => Ok(Event::File {
                step,
                name,
                contents,
            }),
            Err(reason) => Err(Damaged::File { step, name, reason }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn receive(lines: &[&str]) -> Result<Vec<Event>, Damaged> {
        let mut receiver = Receiver::new("@@W");
        let mut events = Vec::new();
        for line in lines {
            receiver.line(line.as_bytes(), &mut |event| events.push(event))?;
        }
        Ok(events)
    }

    fn encoded(contents: &[u8]) -> String {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(contents).unwrap();
        STANDARD.encode(encoder.finish().unwrap())
    }

    #[test]
    fn receiver_whole_run_gives_each_event() {
        let file = encoded(b"boots\n");
        let (first, second) = file.split_at(7);
        let events = receive(&[
            "[    0.1] a kernel's line\r\n",
            "@@W ready kvm=yes clocksource=hpet\r\n",
            "@@W begin a\n",
            "no end of line@@W file a stdout\n",
            &format!("@@W = {first}\r\n"),
            &format!("@@W = {second}\r\n"),
            "@@W end\n",
            "@@W exit a 0\n",
            "@@W exit b late\n",
            "@@W problem no module\n",
            "@@W done\n",
        ])
        .unwrap();
        let facts = [("kvm", "yes"), ("clocksource", "hpet")];
        assert_eq!(
            events,
            [
                Event::Text(b"[    0.1] a kernel's line".to_vec()),
                Event::Ready(facts.map(|(key, value)| (key.into(), value.into())).into()),
                Event::Begin { step: "a".into() },
                Event::Text(b"no end of line".to_vec()),
                Event::File {
                    step: "a".into(),
                    name: "stdout".into(),
                    contents: b"boots\n".to_vec()
                },
                Event::Exit {
                    step: "a".into(),
                    status: Some(0)
                },
                Event::Exit {
                    step: "b".into(),
                    status: None
                },
                Event::Problem("no module".into()),
                Event::Done,
            ]
        );
    }

    #[test]
    fn receiver_marks_of_another_run_are_text() {
        let events = receive(&["@@V done\n"]).unwrap();
        assert_eq!(events, [Event::Text(b"@@V done".to_vec())]);
    }

    #[test]
    fn receiver_file_with_a_changed_letter_is_damaged() {
        let file = encoded(b"a line of a log, long enough to have a middle\n");
        let middle = file.len() / 2;
        let other = if &file[middle..=middle] == "A" {
            "B"
        } else {
            "A"
        };
        let damaged = format!("@@W = {}{other}{}", &file[..middle], &file[middle + 1..]);
        let result = receive(&["@@W file a stdout", &damaged, "@@W end"]);
        assert!(matches!(result, Err(Damaged::File { .. })), "{result:?}");
    }

    #[test]
    fn receiver_marks_out_of_order_are_errors() {
        for lines in [
            &["@@W = abcd"][..],
            &["@@W end"],
            &["@@W file a b", "@@W done"],
        ] {
            assert!(
                matches!(receive(lines), Err(Damaged::Order { .. })),
                "{lines:?}"
            );
        }
    }

    #[test]
    fn receiver_unknown_or_incomplete_marks_are_errors() {
        for line in [
            "@@W",
            "@@W finished",
            "@@W exit a",
            "@@W exit a 256",
            "@@W ready kvm",
            "@@W file a",
        ] {
            assert!(
                matches!(receive(&[line]), Err(Damaged::Mark { .. })),
                "{line}"
            );
        }
    }
}
