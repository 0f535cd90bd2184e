//! A memory balloon (5.5): the guest's driver takes pages out of its use, and the host has them.
//!
//! # Which page is given back
//!
//! The driver names pages by their numbers, in any order, as often as it likes, and with any numbers. What is not
//! guest memory is left out; the others are sorted and joined, so that what is given back are ranges, each once.
//! A page that is given back reads as zeros, and takes the host's memory again when it is touched: a driver that
//! names a page which is in use loses its contents, and nobody else does.
//!
//! Pages that the guest has freed are reported as buffers (5.5.6.7), and given back at once. Where the driver says
//! that a freed page is to keep another pattern than zeros, they are kept.
//!
//! # Hints
//!
//! Free pages are named, too, when the host asks for them (5.5.6.6): in a run with a number, which the driver repeats
//! before its pages, and ends by a zero. It keeps the pages until it is told that the run is done. Only pages of the
//! run that is on are given back; those of others, and those that come when it was said to be done, may be in use
//! again. One thing cannot be told: a driver whose guest runs out of memory may take pages back that it has named and
//! that were not yet looked at. They are lost to the guest then, as with any other launcher.
//!
//! # Which queue is which
//!
//! By the specification each queue has its number, whether those before it are there or not (5.5.2). Linux counts
//! the ones that are there. Both can be told apart: see `role`.

mod hints;
mod told;

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use tsc::Nanos;
use vm_memory::GuestAddress;

use super::{Buffers, Chain, ConfigSpace, Device, Kind, Served, Violation};
pub use hints::{Command, Hinting};
use hints::{Hints, Taken};
pub use told::{STATISTICS, Told};

/// The size of a page, whatever the guest's own is (5.5.6).
pub const PAGE: u64 = 4096;
const PAGE_LEN: usize = 4096;
/// So many of them are a MiB.
pub const PAGES_PER_MIB: u32 = 256;

/// The driver gives statistics (5.5.3).
const STATISTICS_QUEUE: u64 = 1 << 1;
/// It takes pages back when it has no others.
const DEFLATE_ON_OUT_OF_MEMORY: u64 = 1 << 2;
/// It names free pages when it is asked.
const HINTING: u64 = 1 << 3;
/// It says what a freed page holds.
const PAGE_POISON: u64 = 1 << 4;
/// It reports the pages that are freed.
const REPORTING: u64 = 1 << 5;

/// Where the driver tells how many pages the balloon has.
const ACTUAL: Range<usize> = 4..8;
/// And what a freed page holds.
const POISON: Range<usize> = 12..16;

/// The most pages that are taken out of one request; Linux gives 256 at once. Who gives more keeps the others.
/// Otherwise a driver could have one request last for minutes, and with it a pause, which waits for its end.
pub const MAX_PAGES: u64 = 16 * 1024;

/// So many are sorted at once.
const BATCH: usize = 1024;

/// The most statistics that one buffer is read for, of which there are 16 kinds.
const MAX_STATISTICS: usize = 64;
/// A statistic: a tag and a value (5.5.6.3).
const STATISTIC: usize = 10;

/// What of the host is behind a balloon.
pub trait Host: Send {
    /// The time, which never goes back.
    fn now(&mut self) -> Nanos;

    /// Takes pages of guest memory from the guest: `len` bytes from `address` on, both multiples of [`PAGE`], all of
    /// them guest memory. They read as zeros afterwards.
    ///
    /// # Errors
    /// What the host refused. The pages are the guest's still.
    fn give_back(&mut self, address: GuestAddress, len: u64) -> io::Result<()>;
}

/// Told of pages that the host did not take, once.
pub type Report = Box<dyn FnMut(&io::Error) + Send>;

/// What a balloon is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// How many pages it is to have.
    pub pages: u32,
    /// Whether the driver takes pages back when the guest has no others.
    pub deflate_on_out_of_memory: bool,
    /// How often statistics are asked for, if at all.
    pub statistics: Option<Nanos>,
    /// Whether the driver reports the pages that the guest frees,
    pub reporting: bool,
    /// and names those that are free when it is asked.
    pub hinting: bool,
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Statistics,
    Hint,
    Report,
}

/// What the queue of this number is for, with a driver that takes these features, and uses the third queue or not.
fn role(queue: usize, features: u64, uses_third: bool) -> Option<Role> {
    let has = |feature| features & feature != 0;
    match queue {
        0 => Some(Role::Inflate),
        1 => Some(Role::Deflate),
        2 if has(STATISTICS_QUEUE) => Some(Role::Statistics),
        // The numbers 3 and 4, or one less where the queue for statistics is neither there nor counted.
        _ if has(HINTING) => {
            let is_counted = !has(STATISTICS_QUEUE) && uses_third;
            match queue + usize::from(is_counted) {
                3 => Some(Role::Hint),
                4 if has(REPORTING) => Some(Role::Report),
                _ => None,
            }
        }
        // The number 4, less those that are not there where they are not counted.
        2..=4 if has(REPORTING) => Some(Role::Report),
        _ => None,
    }
}

/// The device.
pub struct Balloon<H> {
    host: H,
    options: Options,
    told: Arc<Told>,
    report: Option<Report>,
    /// What the driver took.
    features: u64,
    /// The driver uses the third queue.
    uses_third: bool,
    /// What a freed page holds, if the driver says so.
    poison: u32,
    hints: Hints,
    /// When the buffer for statistics, which was read, goes back to the driver for the next.
    held_until: Option<Nanos>,
}

impl<H: Host> Balloon<H> {
    /// A balloon of which the driver has put nothing into so far.
    #[must_use]
    pub fn new(host: H, options: Options, report: Report) -> Self {
        Self {
            host,
            options,
            told: Arc::default(),
            report: Some(report),
            features: 0,
            uses_third: false,
            poison: 0,
            hints: Hints::default(),
            held_until: None,
        }
    }

    /// What it tells of itself and of its guest, now and later.
    #[must_use]
    pub fn told(&self) -> Arc<Told> {
        self.told.clone()
    }

    fn give_back(&mut self, address: u64, len: u64) -> bool {
        let Err(error) = self.host.give_back(GuestAddress(address), len) else {
            return true;
        };
        if let Some(mut report) = self.report.take() {
            report(&error);
        }
        false
    }

    /// Gives the pages back whose numbers are in `numbers`. Whether all of them were guest memory, and taken.
    fn inflate(&mut self, numbers: Buffers<'_>) -> Result<bool, Violation> {
        let count = numbers.len() / 4;
        let (mut rest, mut left) = (numbers, count.min(MAX_PAGES));
        let mut all = count <= MAX_PAGES && numbers.len().is_multiple_of(4);
        let mut bytes = [0; 4 * BATCH];
        while left > 0 {
            let here = left.min(BATCH as u64);
            let (now, later) = rest.split_at(4 * here).ok_or(Violation::Buffer)?;
            // OK because it is at most the room that there is.
            let bytes = usize::try_from(4 * here)
                .ok()
                .and_then(|len| bytes.get_mut(..len))
                .ok_or(Violation::Buffer)?;
            now.read(bytes)?;
            all &= self.give_back_pages(bytes, numbers);
            rest = later;
            left -= here;
        }
        Ok(all)
    }

    /// The same of one batch; `memory` says what guest memory is.
    fn give_back_pages(&mut self, numbers: &[u8], memory: Buffers<'_>) -> bool {
        let mut pages = [0; BATCH];
        let (mut count, mut all) = (0, true);
        for number in numbers.as_chunks().0 {
            let page = u32::from_le_bytes(*number);
            let address = GuestAddress(u64::from(page) * PAGE);
            if memory.has_in_memory(address, PAGE_LEN)
                && let Some(place) = pages.get_mut(count)
            {
                *place = page;
                count += 1;
            } else {
                all = false;
            }
        }
        let known = pages.get_mut(..count).unwrap_or_default();
        known.sort_unstable();
        // A run of pages, of which some may be there twice.
        for run in known.chunk_by(|page, next| next - page <= 1) {
            if let (Some(first), Some(last)) = (run.first(), run.last()) {
                let len = (u64::from(last - first) + 1) * PAGE;
                all &= self.give_back(u64::from(*first) * PAGE, len);
            }
        }
        all
    }

    /// Whether pages that the guest does not use may be given back: they hold zeros afterwards.
    fn may_take_free_pages(&self) -> bool {
        self.features & PAGE_POISON == 0 || self.poison == 0
    }

    /// A number of a run, or pages of it.
    fn take_hint(&mut self, chain: &Chain<'_>) -> Result<(), Violation> {
        let taken = self.hints.take(&chain.readable)?;
        self.told.hinting.tell(&self.hints);
        if taken == Taken::Ended {
            return Ok(());
        }
        if !chain.writable.is_empty() {
            let told = self.told.clone();
            told.hints.add(1);
            if self.hints.is_on() && self.may_take_free_pages() {
                let (bytes, all) = self.take_report(chain.writable);
                told.hinted.add(bytes);
                if !all {
                    told.hint_failures.add(1);
                }
            }
        }
        Ok(())
    }

    /// Gives back what is in `freed`, as far as it is whole pages. How many bytes, and whether all were taken.
    fn take_report(&mut self, freed: Buffers<'_>) -> (u64, bool) {
        let (mut bytes, mut all) = (0, true);
        for (address, len) in freed.places() {
            let end = (address.0 + len) / PAGE * PAGE;
            let begin = address.0.div_ceil(PAGE) * PAGE;
            if begin >= end {
                continue;
            }
            if self.give_back(begin, end - begin) {
                bytes += end - begin;
            } else {
                all = false;
            }
        }
        (bytes, all)
    }

    /// Reads a buffer of statistics.
    fn read_statistics(&self, buffer: Buffers<'_>) -> Result<(), Violation> {
        let mut bytes = [0; MAX_STATISTICS * STATISTIC];
        let len = buffer.len().min(bytes.len() as u64);
        let (buffer, _) = buffer.split_at(len).ok_or(Violation::Buffer)?;
        let bytes = usize::try_from(len)
            .ok()
            .and_then(|len| bytes.get_mut(..len))
            .ok_or(Violation::Buffer)?;
        buffer.read(bytes)?;
        let (statistics, rest) = bytes.as_chunks::<STATISTIC>();
        self.told.take_statistics(statistics);
        if !rest.is_empty() {
            self.told.statistics_failures.add(1);
        }
        Ok(())
    }

    /// Holds a buffer of statistics until the next ones are wanted.
    fn serve_statistics(&mut self, buffer: Buffers<'_>) -> Result<Served, Violation> {
        // A driver cannot take a feature that is not on offer.
        let interval = self.options.statistics.unwrap_or(Nanos::new(u64::MAX));
        let now = self.host.now();
        let until = match self.held_until {
            Some(until) => until,
            None => {
                self.read_statistics(buffer)?;
                let until = now.saturating_add(interval);
                *self.held_until.insert(until)
            }
        };
        Ok(match until.checked_sub(now).filter(|left| left.get() > 0) {
            Some(left) => Served::Later(left),
            None => {
                self.held_until = None;
                Served::Done { written: 0 }
            }
        })
    }
}

/// What of it can be changed.
#[derive(Debug, Default)]
pub struct Update {
    /// How many pages it is to have.
    pub pages: Option<u32>,
    /// How often statistics are asked for, where they are.
    pub statistics: Option<Nanos>,
    /// What the driver is to do about its free pages.
    pub hinting: Option<Command>,
}

impl<H: Host> Device for Balloon<H> {
    type Update = Update;

    const KIND: Kind = Kind::Balloon;

    const QUEUES: &'static [u16] = &[128; 5];

    const WRITABLE: &'static [Range<usize>] = &[ACTUAL, POISON];

    fn features(&self) -> u64 {
        let Options {
            deflate_on_out_of_memory,
            statistics,
            reporting,
            hinting,
            ..
        } = self.options;
        [
            (deflate_on_out_of_memory, DEFLATE_ON_OUT_OF_MEMORY),
            (statistics.is_some(), STATISTICS_QUEUE),
            // A guest that fills its freed pages reports none to a device that does not hear of it.
            (reporting, REPORTING | PAGE_POISON),
            (hinting, HINTING | PAGE_POISON),
        ]
        .into_iter()
        .filter(|(is_wanted, _)| *is_wanted)
        .fold(0, |features, (_, feature)| features | feature)
    }

    /// How many pages it is to have and how many it has, a command for free page hinting, and what a freed page
    /// holds (5.5.4).
    fn config(&self) -> ConfigSpace {
        ConfigSpace::EMPTY
            .with(&self.options.pages.to_le_bytes())
            .with(&[0; 4])
            .with(&self.hints.command().to_le_bytes())
            .with(&[0; 4])
    }

    fn uses(&mut self, queue: usize) {
        self.uses_third |= queue == 2;
    }

    fn start(&mut self, features: u64) {
        self.features = features;
    }

    fn stop(&mut self) {
        self.features = 0;
        self.uses_third = false;
        self.held_until = None;
        self.hints.forget();
        self.told.hinting.tell(&self.hints);
        self.told.forget_statistics();
    }

    fn configured(&mut self, config: &ConfigSpace) {
        let mut poison = [0; 4];
        config.read(POISON.start as u64, &mut poison);
        self.poison = u32::from_le_bytes(poison);
    }

    fn take_config_change(&mut self) -> bool {
        self.hints.take_change()
    }

    fn serve(&mut self, queue: usize, chain: &Chain<'_>) -> Result<Served, Violation> {
        let told = self.told.clone();
        let role = role(queue, self.features, self.uses_third);
        match role.ok_or(Violation::Queue { queue })? {
            Role::Inflate => {
                told.inflations.add(1);
                if !self.inflate(chain.readable)? {
                    told.failures.add(1);
                }
            }
            // A page comes back by being touched.
            Role::Deflate => told.deflations.add(1),
            Role::Statistics => return self.serve_statistics(chain.readable),
            Role::Hint => self.take_hint(chain)?,
            Role::Report => {
                told.reports.add(1);
                if self.may_take_free_pages() {
                    let (bytes, all) = self.take_report(chain.writable);
                    told.reported.add(bytes);
                    if !all {
                        told.report_failures.add(1);
                    }
                }
            }
        }
        Ok(Served::Done { written: 0 })
    }

    fn update(&mut self, update: Update) {
        if let Some(pages) = update.pages {
            self.options.pages = pages;
        }
        if let Some(command) = update.hinting.filter(|_| self.options.hinting) {
            self.hints.ask(command);
            self.told.hinting.tell(&self.hints);
        }
        // The same interval is no change: who changes the balloon's size all the time would have none again.
        if let (Some(known), Some(interval)) = (&mut self.options.statistics, update.statistics)
            && *known != interval
        {
            *known = interval;
            if let Some(until) = &mut self.held_until {
                *until = self.host.now().saturating_add(interval);
            }
        }
    }
}

impl<H> fmt::Debug for Balloon<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balloon")
            .field("options", &self.options)
            .field("features", &self.features)
            .field("poison", &self.poison)
            .field("held_until", &self.held_until)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_told_apart_counted_or_not() {
        let (inflate, deflate) = (Some(Role::Inflate), Some(Role::Deflate));
        let (statistics, report) = (Some(Role::Statistics), Some(Role::Report));
        let hint = Some(Role::Hint);
        for (features, uses_third, roles) in [
            (0, false, [inflate, deflate, None, None, None]),
            (
                STATISTICS_QUEUE,
                true,
                [inflate, deflate, statistics, None, None],
            ),
            (REPORTING, true, [inflate, deflate, report, report, report]),
            (REPORTING, false, [inflate, deflate, report, report, report]),
            (
                STATISTICS_QUEUE | REPORTING,
                true,
                [inflate, deflate, statistics, report, report],
            ),
            (HINTING, true, [inflate, deflate, hint, None, None]),
            (HINTING, false, [inflate, deflate, None, hint, None]),
            (
                HINTING | REPORTING,
                true,
                [inflate, deflate, hint, report, None],
            ),
            (
                HINTING | REPORTING,
                false,
                [inflate, deflate, None, hint, report],
            ),
            (
                STATISTICS_QUEUE | HINTING | REPORTING,
                true,
                [inflate, deflate, statistics, hint, report],
            ),
        ] {
            let found = [0, 1, 2, 3, 4].map(|queue| role(queue, features, uses_third));
            assert_eq!(found, roles, "{features:#x} {uses_third}");
        }
    }
}
