//! The memory balloon.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use devices::virtio::balloon::{Balloon, Command, Host, Options, PAGE, STATISTICS};
use tsc::Nanos;
use vm_memory::GuestAddress;

use super::{Chain, DATA, Driver, EVENT_INDEX, HIGH, HIGH_LEN, INDIRECT, LOW_END, Request};
use crate::input::decode;

const STATISTICS_QUEUE: u64 = 1 << 1;
const HINTING: u64 = 1 << 3;
const PAGE_POISON: u64 = 1 << 4;
const REPORTING: u64 = 1 << 5;

const QUEUES: usize = 5;
const CONFIG: u64 = 0x100;
/// How often statistics are asked for.
const INTERVAL: u64 = 100;
/// So many page numbers are sorted at once, and so many statistics read.
const BATCH: usize = 1024;
const MAX_STATISTICS: usize = 64;

#[derive(Arbitrary, Debug)]
enum Step {
    Ask(u8, Request),
    /// Puts numbers of pages somewhere.
    Numbers(u16, [u8; 16]),
    /// Writes into the configuration space.
    Configure(u8, u32),
    /// Another size; with the highest bit, a command about free pages instead.
    Target(u32),
    Time(u8),
    Run,
}

#[derive(Arbitrary, Debug)]
struct Input {
    features: u64,
    event_index: bool,
    steps: Vec<Step>,
}

/// Time, and what was given back: addresses and lengths.
#[derive(Default)]
struct Noted(u64, VecDeque<(u64, u64)>);

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Noted>>);

impl Host for Recorder {
    fn now(&mut self) -> Nanos {
        Nanos::new(self.0.lock().expect("whole").0)
    }

    fn give_back(&mut self, address: GuestAddress, len: u64) -> io::Result<()> {
        let mut noted = self.0.lock().expect("whole");
        noted.1.push_back((address.0, len));
        Ok(())
    }
}

fn is_memory(page: u64) -> bool {
    let address = page * PAGE;
    address < LOW_END || (HIGH..HIGH + HIGH_LEN).contains(&address)
}

/// The ranges that hold the pages of memory among those that `bytes` name.
fn ranges(bytes: &[u8]) -> Vec<(u64, u64)> {
    let numbers: Vec<u64> = (bytes.chunks_exact(4))
        .map(|number| u32::from_le_bytes(number.try_into().expect("four bytes")).into())
        .collect();
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for batch in numbers.chunks(BATCH) {
        let known: BTreeSet<u64> = batch
            .iter()
            .copied()
            .filter(|page| is_memory(*page))
            .collect();
        let before = ranges.len();
        for page in known {
            match ranges[before..].last_mut() {
                Some((begin, len)) if *begin + *len == page * PAGE => *len += PAGE,
                _ => ranges.push((page * PAGE, PAGE)),
            }
        }
    }
    ranges
}

/// What the device does with the chains, without a device.
struct Model {
    features: u64,
    /// What the driver wrote into the configuration space: how many pages there are, and what a freed one holds.
    actual: u32,
    poison: u32,
    target: u32,
    statistics: [Option<u64>; STATISTICS],
    held_until: Option<u64>,
    /// What the driver is to be asked about its free pages, and was,
    asked: Option<Command>,
    command: u32,
    acknowledges: bool,
    /// the number of the last run, and what the driver said last.
    last: u32,
    said: Option<u32>,
}

impl Model {
    /// The queue for hints: Linux counts those that are there, and here all are.
    fn is_for_hints(&self, queue: usize) -> bool {
        let statistics = usize::from(self.features & STATISTICS_QUEUE != 0);
        self.features & HINTING != 0 && queue == 2 + statistics
    }

    fn is_for_reports(&self, queue: usize) -> bool {
        let is_beside = self.features & HINTING == 0 || self.is_for_hints(queue.wrapping_sub(1));
        self.features & REPORTING != 0 && is_beside
    }

    fn obey(&mut self) {
        match self.asked.take() {
            Some(Command::Start {
                acknowledge_on_stop,
            }) if self.features & HINTING != 0 => {
                self.last = (self.last + 1).max(2);
                self.command = self.last;
                self.acknowledges = acknowledge_on_stop;
            }
            Some(Command::Stop) if self.features & HINTING != 0 => self.command = 1,
            _ => {}
        }
    }

    /// Takes a number, if there is one. Whether the pages in the chain are to be given back.
    fn take_hint(&mut self, bytes: &[u8]) -> bool {
        let is_on = |model: &Self| model.command > 1 && model.said == Some(model.command);
        if let Ok(number) = bytes.try_into() {
            let was_on = is_on(self);
            self.said = Some(u32::from_le_bytes(number));
            if was_on && self.said == Some(0) {
                if self.acknowledges {
                    self.command = 1;
                }
                return false;
            }
        }
        is_on(self)
    }

    /// The whole pages that a chain names.
    fn free_pages(&self, chain: &Chain) -> Vec<(u64, u64)> {
        if self.features & PAGE_POISON != 0 && self.poison != 0 {
            return Vec::new();
        }
        (chain.segments.iter())
            .filter(|segment| segment.writable)
            .map(|segment| {
                let begin = segment.address.next_multiple_of(PAGE);
                let end = (segment.address + segment.len) / PAGE * PAGE;
                (begin, end.saturating_sub(begin))
            })
            .filter(|(_, len)| *len > 0)
            .collect()
    }

    fn is_for_statistics(&self, queue: usize) -> bool {
        queue == 2 && self.features & STATISTICS_QUEUE != 0
    }

    /// Serves what waits. Whether the driver was lawful.
    fn run(&mut self, driver: &mut Driver<Balloon<Recorder>>, host: &Recorder) -> bool {
        self.obey();
        let now = host.0.lock().expect("whole").0;
        for queue in 0..QUEUES {
            while let Some(chain) = driver.queues[queue].waiting.front().cloned() {
                let has_role = queue < 2
                    || self.is_for_statistics(queue)
                    || self.is_for_hints(queue)
                    || self.is_for_reports(queue);
                if !chain.is_lawful() || !has_role {
                    return false;
                }
                if self.is_for_statistics(queue) {
                    if self.held_until.is_none() {
                        self.read_statistics(&driver.model.read(&chain));
                    }
                    let until = *self.held_until.get_or_insert(now + INTERVAL);
                    if until > now {
                        break;
                    }
                    self.held_until = None;
                }
                let given: Vec<(u64, u64)> = match queue {
                    0 => ranges(&driver.model.read(&chain)),
                    1 => Vec::new(),
                    _ if self.is_for_statistics(queue) => Vec::new(),
                    _ if self.is_for_hints(queue)
                        && !self.take_hint(&driver.model.read(&chain)) =>
                    {
                        Vec::new()
                    }
                    _ => self.free_pages(&chain),
                };
                for range in given {
                    let found = host.0.lock().expect("whole").1.pop_front();
                    assert_eq!(found, Some(range), "queue {queue}");
                }
                driver.queues[queue].waiting.pop_front();
                driver.expect_used(queue, chain.head, 0);
            }
        }
        true
    }

    fn read_statistics(&mut self, bytes: &[u8]) {
        self.statistics = [None; STATISTICS];
        for statistic in bytes.chunks_exact(10).take(MAX_STATISTICS) {
            let tag = usize::from(u16::from_le_bytes([statistic[0], statistic[1]]));
            let value = statistic[2..].try_into().expect("eight bytes");
            if let Some(place) = self.statistics.get_mut(tag) {
                *place = Some(u64::from_le_bytes(value));
            }
        }
    }
}

/// Requests of any shape, into all queues: exactly the pages that are named and memory are given back, statistics
/// are read once and held for their time, and nothing is written; or the device wants a reset.
///
/// # Panics
/// When it is otherwise.
pub fn virtio_balloon(data: &[u8]) {
    let Some(input) = decode::<Input>(data) else {
        return;
    };
    let host = Recorder::default();
    let has = |feature: u64| input.features & feature != 0;
    let options = Options {
        pages: 7,
        statistics: has(STATISTICS_QUEUE).then(|| Nanos::new(INTERVAL)),
        reporting: has(REPORTING),
        hinting: has(HINTING),
        deflate_on_out_of_memory: true,
    };
    let device = Balloon::new(host.clone(), options, Box::new(|_| {}));
    let told = device.told();
    let events = if input.event_index { EVENT_INDEX } else { 0 };
    let wanted = INDIRECT | events | input.features & 0xff;
    let (mut driver, features) = Driver::with_queues(device, wanted, QUEUES);
    let mut model = Model {
        features,
        actual: 0,
        poison: 0,
        target: 7,
        statistics: [None; STATISTICS],
        held_until: None,
        asked: None,
        command: 0,
        acknowledges: false,
        last: 0,
        said: None,
    };
    for step in input.steps.iter().take(64) {
        match step {
            Step::Ask(queue, request) => driver.ask(usize::from(*queue) % QUEUES, request),
            Step::Numbers(at, numbers) => {
                let at = DATA + u64::from(*at) % (LOW_END - DATA - 64);
                let bytes: Vec<u8> = (numbers.iter())
                    .map(|number| match number {
                        0..200 => u32::from(number % 20),
                        _ => (1 << 20) + u32::from(number % 3),
                    })
                    .flat_map(u32::to_le_bytes)
                    .collect();
                driver.put(at, &bytes);
            }
            Step::Configure(field, value) => {
                let field = u64::from(field % 8) * 4;
                driver.write(CONFIG + field, *value);
                match field {
                    4 => model.actual = *value,
                    12 => model.poison = *value,
                    _ => {}
                }
            }
            Step::Target(command) if command >> 31 != 0 => {
                let command = match command >> 30 & 1 {
                    0 => Command::Start {
                        acknowledge_on_stop: command >> 29 & 1 != 0,
                    },
                    _ => Command::Stop,
                };
                (driver.engine).change(|update| update.hinting = Some(command));
                model.asked = Some(command);
            }
            Step::Target(pages) => {
                driver.engine.change(|update| update.pages = Some(*pages));
                model.target = *pages;
            }
            Step::Time(more) => host.0.lock().expect("whole").0 += u64::from(*more),
            Step::Run => {
                driver.engine.run();
                let lawful = model.run(&mut driver, &host);
                driver.expect_nothing_else();
                let rest = std::mem::take(&mut host.0.lock().expect("whole").1);
                assert!(rest.is_empty(), "{rest:?} was given back");
                assert_eq!(driver.needs_reset(), !lawful);
                if !lawful {
                    return;
                }
                let known = std::array::from_fn(|tag| told.statistic(tag));
                assert_eq!(known, model.statistics);
                let space = [model.target, model.actual, model.command, model.poison, 0];
                for (at, value) in (CONFIG..).step_by(4).zip(space) {
                    assert_eq!(driver.read(at), value, "{at:#x}");
                }
            }
        }
    }
}
