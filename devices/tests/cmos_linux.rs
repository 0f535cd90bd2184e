//! The clock as Linux reads and sets it: the accesses of `drivers/rtc/rtc-mc146818-lib.c` (6.1)
//! and of the probe in `drivers/rtc/rtc-cmos.c`.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use devices::bus::{Bus, Reaction};
use devices::cmos::{CENTURY, Cmos, PORTS};
use tsc::Nanos;

const INDEX: u64 = 0x70;
// include/linux/mc146818rtc.h
const CONTROL: u8 = 11;
const SET: u8 = 0x80;
const FREQ_SELECT: u8 = 10;
const UIP: u8 = 0x80;
const DIV_RESET2: u8 = 0x70;

struct Machine {
    ports: Bus,
    wall: Arc<AtomicU64>,
    /// What every access costs of the wall clock's time.
    access: u64,
}

impl Machine {
    fn new(now: u64, access: u64) -> Self {
        let wall = Arc::new(AtomicU64::new(now));
        let clock = Arc::clone(&wall);
        let cmos = Cmos::new(Box::new(move || Nanos::new(clock.load(Ordering::Relaxed))));
        let mut ports = Bus::new();
        ports
            .insert(INDEX, PORTS, Arc::new(Mutex::new(cmos)), "cmos")
            .unwrap();
        Self {
            ports,
            wall,
            access,
        }
    }

    /// `CMOS_READ`
    fn read(&self, register: u8) -> u8 {
        self.wall.fetch_add(self.access, Ordering::Relaxed);
        assert_eq!(self.ports.write(INDEX, &[register]), Reaction::None);
        let mut data = [0];
        self.ports.read(INDEX + 1, &mut data);
        data[0]
    }

    /// `CMOS_WRITE`
    fn write(&self, register: u8, value: u8) {
        self.wall.fetch_add(self.access, Ordering::Relaxed);
        assert_eq!(self.ports.write(INDEX, &[register]), Reaction::None);
        assert_eq!(self.ports.write(INDEX + 1, &[value]), Reaction::None);
    }

    /// `mc146818_get_time`: century, year, month, day, hour, minute, second in BCD, and how often it
    /// had to begin anew.
    fn get_time(&self) -> ([u8; 7], u32) {
        for tries in 0..10 {
            let second = self.read(0);
            assert_eq!(
                self.read(FREQ_SELECT) & UIP,
                0,
                "Linux would wait a millisecond"
            );
            if second != self.read(0) {
                continue;
            }
            let [minute, hour, day, month, year, century] =
                [2, 4, 7, 8, 9, CENTURY].map(|register| self.read(register));
            assert_eq!(self.read(CONTROL) & 0x06, 0x02, "BCD and 24 hours");
            if self.read(FREQ_SELECT) & UIP != 0 || second != self.read(0) {
                continue;
            }
            return ([century, year, month, day, hour, minute, second], tries);
        }
        panic!("the seconds never hold still");
    }

    /// `mc146818_set_time`
    fn set_time(&self, [century, year, month, day, hour, minute, second]: [u8; 7]) {
        let control = self.read(CONTROL);
        self.write(CONTROL, control | SET);
        let freq_select = self.read(FREQ_SELECT);
        self.write(FREQ_SELECT, freq_select | DIV_RESET2);
        let values = [year, month, day, hour, minute, second];
        for (register, value) in [9, 8, 7, 4, 2, 0].into_iter().zip(values) {
            self.write(register, value);
        }
        self.write(CENTURY, century);
        self.write(CONTROL, control);
        self.write(FREQ_SELECT, freq_select);
    }
}

/// 2026-11-22 19:05:09 UTC (`date -u -d @1795374309`).
const NOW: u64 = 1_795_374_309;
const SECOND: u64 = 1_000_000_000;

#[test]
fn probe_finds_a_working_clock() {
    let m = Machine::new(NOW * SECOND, 0);
    // cmos_do_probe: register D's lower bits are no clock's date alarm; mc146818_does_rtc_work.
    assert_eq!(m.read(13) & 0x7f, 0);
    assert_eq!(m.read(FREQ_SELECT) & UIP, 0);
    m.write(FREQ_SELECT, 0x26);
    assert_eq!(m.read(CONTROL) & 0x02, 0x02, "only 24-hr supported");
    // cmos_irq_disable, cmos_checkintr
    let control = m.read(CONTROL);
    m.write(CONTROL, control & !0x70);
    assert_eq!(m.read(12) & 0xf0, 0, "no interrupt is pending");
}

#[test]
fn time_is_read_as_the_host_has_it() {
    let m = Machine::new(NOW * SECOND, 1000);
    assert_eq!(
        m.get_time(),
        ([0x20, 0x26, 0x11, 0x22, 0x19, 0x05, 0x09], 0)
    );
}

/// Whenever in the second a read begins, and however slow the guest, the result is one moment: never
/// the new minute with the old hour.
#[test]
fn time_read_across_a_turn_of_the_year_is_not_torn() {
    let new_year = 946_684_800 * SECOND; // 2000-01-01
    let old = [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59];
    let new = [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00];
    for access in [1_000, 50_000, 200_000] {
        for begin in (0..40).map(|step| new_year - step * 50_000) {
            let (time, tries) = Machine::new(begin, access).get_time();
            assert!(time == old || time == new, "{time:x?}");
            assert!(tries <= 1);
        }
    }
}

/// Old kernels and small ones only wait for UIP to be 0 and then read.
#[test]
fn time_read_after_uip_alone_is_not_torn() {
    let new_year = 946_684_800 * SECOND;
    for begin in (0..40).map(|step| new_year - step * 50_000) {
        let m = Machine::new(begin, 20_000);
        assert_eq!(m.read(FREQ_SELECT) & UIP, 0);
        let time = [CENTURY, 9, 8, 7, 4, 2, 0].map(|register| m.read(register));
        let old = [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59];
        let new = [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00];
        assert!(time == old || time == new, "{time:x?}");
    }
}

/// `hwclock -w` writes a second's number half a second after that second began, because the chip
/// needs another half until it counts on.
#[test]
fn time_that_hwclock_sets_is_kept_to_the_fraction() {
    let m = Machine::new(NOW * SECOND + SECOND / 2, 0);
    let target = [0x20, 0x31, 0x01, 0x01, 0x00, 0x00, 0x00];
    m.set_time(target);
    assert_eq!(m.get_time().0, target);
    m.wall.fetch_add(SECOND / 2 - 1, Ordering::Relaxed);
    assert_eq!(m.read(0), 0x00);
    m.wall.fetch_add(1 + SECOND / 100, Ordering::Relaxed);
    assert_eq!(m.read(0), 0x01);
    m.wall.fetch_add(3600 * SECOND, Ordering::Relaxed);
    assert_eq!(m.get_time().0, [0x20, 0x31, 0x01, 0x01, 0x01, 0x00, 0x01]);
}
