//! The timer of the guest's clock chip: it interrupts when the chip says, by the host's wall clock.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use devices::cmos::Cmos;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tsc::Nanos;
use vmm_sys_util::eventfd::EventFd;

use super::{MachineError, host};

/// What waits for the chip's next interrupt. Nothing runs before the guest enables one.
#[derive(Debug)]
pub(super) struct AlarmTimer {
    chip: Arc<Mutex<Cmos>>,
    /// Pressed by the chip when another time is due.
    changed: EventFd,
    timer: OwnedFd,
}

impl AlarmTimer {
    /// A timer for `chip`, which presses `changed`.
    pub(super) fn new(chip: Arc<Mutex<Cmos>>, changed: EventFd) -> Result<Self, MachineError> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Realtime, flags)
            .map_err(|error| host("create a timer")(error.into()))?;
        Ok(Self {
            chip,
            changed,
            timer,
        })
    }

    /// Looks what the chip has to interrupt for, and waits for what is due next.
    fn go_on(&self) {
        // When somebody sets the host's clock the timer ends, and the chip is asked again (timerfd_create(2)).
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        let mut chip = self.chip.lock().unwrap_or_else(PoisonError::into_inner);
        let (due, error) = loop {
            let due = chip.tick();
            // With the chip in use: a timer that is set is the one for what the chip has told last.
            let set = Itimerspec {
                it_interval: Timespec::default(),
                it_value: due.map_or(Timespec::default(), timespec),
            };
            match timerfd_settime(&self.timer, flags, &set) {
                Ok(_) => return,
                // Somebody has set the clock since the timer was read, perhaps after the chip was asked. That is told
                // here and by no event, and once for each time it happens (`timerfd_setup` in fs/timerfd.c).
                Err(Errno::CANCELED) => {}
                Err(error) => break (due, error),
            }
        };
        drop(chip);
        tracing::warn!("the guest's clock chip does not interrupt at {due:?}: {error}");
    }
}

/// Never zero, which would be no time but none.
fn timespec(at: Nanos) -> Timespec {
    const SECOND: u64 = 1_000_000_000;
    let at = at.get().max(1);
    Timespec {
        // OK because 2^64 ns are 584 years.
        tv_sec: (at / SECOND).cast_signed(),
        tv_nsec: (at % SECOND).cast_signed(),
    }
}

impl MutEventSubscriber for AlarmTimer {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for added in [
            ops.add(Events::new(&self.timer, EventSet::IN)),
            ops.add(Events::new(&self.changed, EventSet::IN)),
        ] {
            if let Err(error) = added {
                tracing::warn!("the guest's clock chip does not interrupt: {error:?}");
            }
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        // How often, and whether the host's clock was set, does not matter: both only have the chip asked.
        let _ = rustix::io::read(&self.timer, &mut [0_u8; 8]);
        let _ = self.changed.read();
        self.go_on();
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use devices::bus::BusDevice;
    use event_manager::{EventManager, SubscriberOps};
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;
    use crate::host_clock;
    use crate::machine::devices::press;

    /// Register B's interrupt at the end of each second, and register C (MC146818A data sheet).
    const ENABLE_UPDATES: [u8; 2] = [0x0b, 0x12];
    const DISABLE: [u8; 2] = [0x0b, 0x02];
    const REGISTER_C: u8 = 0x0c;

    #[test]
    fn chip_interrupts_when_a_second_of_the_hosts_clock_ends() {
        let changed = EventFd::new(EFD_NONBLOCK).unwrap();
        let pressed = changed.try_clone().unwrap();
        let (sender, interrupts) = std::sync::mpsc::channel();
        let chip = Cmos::new(Box::new(host_clock::real_time)).with_interrupt(
            Box::new(move || sender.send(host_clock::real_time()).unwrap()),
            Box::new(move || press(&pressed)),
        );
        let chip = Arc::new(Mutex::new(chip));
        let timer = AlarmTimer::new(chip.clone(), changed).unwrap();
        let mut events = EventManager::<AlarmTimer>::new().unwrap();
        events.add_subscriber(timer);

        let _ = chip.lock().unwrap().write(0, &ENABLE_UPDATES);
        let mut last = 0;
        for _ in 0..2 {
            let at = loop {
                // Two turns at most: that it is due, and that it has come.
                events.run_with_timeout(5_000).unwrap();
                if let Ok(at) = interrupts.try_recv() {
                    break at.get();
                }
            };
            let second = at / 1_000_000_000;
            assert!(second > last, "one for each second: {second} after {last}");
            last = second;
            let mut data = [0];
            let _ = chip.lock().unwrap().write(0, &[REGISTER_C]);
            chip.lock().unwrap().read(1, &mut data);
            assert_eq!(data[0] & 0x90, 0x90);
        }
        // Who waits for nothing more is not woken.
        let _ = chip.lock().unwrap().write(0, &DISABLE);
        events.run_with_timeout(0).unwrap();
        let begin = Instant::now();
        assert_eq!(events.run_with_timeout(1_200).unwrap(), 0);
        assert!(begin.elapsed() >= Duration::from_millis(1_200));
        assert!(interrupts.try_recv().is_err());
    }
}
