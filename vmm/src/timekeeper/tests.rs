//! Pauses on the model of both vendors' hosts, obedient and not.

use std::cell::{Cell, RefCell};

use hypervisor::MsrError;
use hypervisor::guest_clock::{ClockReading, ClockSetting, ClockSupport, DeadlineTimer};
use hypervisor::model::{
    Faults, ModelFixture, ModelForm, ModelHost, ModelVcpu, ModelVm, Obedience,
};
use hypervisor::tsc_control::{Claimed, TscControlError, TscOffsetControl, TscSupport, Written};
use tsc::{CpuId, GuestTsc, TscDelta};

use super::vcpu::VcpuClock;
use super::*;
use crate::config::TscRate;
use crate::doctor::OnModel;
use crate::guest_rate;

const RATE: u32 = 2_000_000;
const PAUSE: Nanos = Nanos::new(10_000_000_000);
/// A system call.
const CALL: Nanos = Nanos::new(700);
/// From the last vCPU's exit until all are known to wait.
const PARKED: Nanos = Nanos::new(1_500_000);
const HERE: CpuId = CpuId::new(0);

/// What goes wrong, beyond the model's own faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Trouble {
    #[default]
    None,
    /// The second vCPU's offset is refused.
    OffsetRefused,
    /// The kvmclock is set to nothing.
    ClockIgnored,
    ClockRefused,
    /// The kvmclock is set to [`SLOP`] more, as KVM does that reads two clocks one after the other.
    ClockSloppy,
    /// The first vCPU's timer cannot be armed.
    TimerRefused,
}

const SLOP: u64 = 13_000;

/// A vCPU of the model with a deadline timer.
pub(super) struct TimedVcpu<F: ModelForm> {
    pub(super) inner: ModelVcpu<F>,
    pub(super) deadline: GuestTsc,
    /// How often the timer was armed.
    pub(super) armed: usize,
    pub(super) refuse: bool,
    /// So many more offsets are taken.
    pub(super) takes: usize,
    pub(super) refuse_timer: bool,
    /// The timer cannot be read.
    pub(super) hide_timer: bool,
    pub(super) writes: usize,
}

impl<F: ModelForm> TimedVcpu<F> {
    pub(super) fn new(inner: ModelVcpu<F>) -> Self {
        Self {
            inner,
            deadline: GuestTsc::new(0),
            armed: 0,
            refuse: false,
            takes: usize::MAX,
            refuse_timer: false,
            hide_timer: false,
            writes: 0,
        }
    }
}

impl<F: ModelForm> TscOffsetControl for TimedVcpu<F> {
    fn tsc_support(&self) -> TscSupport {
        self.inner.tsc_support()
    }

    fn offset(&self) -> Result<Claimed<TscOffset>, TscControlError> {
        self.inner.offset()
    }

    fn write_offset(&mut self, offset: TscOffset) -> Result<Written<TscOffset>, TscControlError> {
        self.writes += 1;
        if self.refuse || self.takes == 0 {
            return Err(TscControlError::NoRate);
        }
        self.takes -= 1;
        self.inner.write_offset(offset)
    }

    fn ratio(&self) -> Result<Claimed<VendorRatio>, TscControlError> {
        self.inner.ratio()
    }

    fn rate(&self) -> Result<Claimed<Khz>, TscControlError> {
        self.inner.rate()
    }

    fn ask_rate(&mut self, rate: Khz) -> Result<Written<Khz>, TscControlError> {
        self.inner.ask_rate(rate)
    }

    fn guest_tsc(&self) -> Result<Claimed<GuestTsc>, TscControlError> {
        self.inner.guest_tsc()
    }

    fn write_guest_tsc(&mut self, tsc: GuestTsc) -> Result<Written<GuestTsc>, TscControlError> {
        self.inner.write_guest_tsc(tsc)
    }
}

impl<F: ModelForm> DeadlineTimer for TimedVcpu<F> {
    fn deadline(&self) -> Result<GuestTsc, MsrError> {
        if self.hide_timer {
            return Err(MsrError::Absent { index: 0x6e0 });
        }
        Ok(self.deadline)
    }

    fn set_deadline(&mut self, deadline: GuestTsc) -> Result<(), MsrError> {
        if self.refuse_timer && deadline.get() != 0 {
            let value = deadline.get();
            return Err(MsrError::Refused {
                index: 0x6e0,
                value,
            });
        }
        self.deadline = deadline;
        self.armed += 1;
        Ok(())
    }
}

/// A kvmclock that counts the model's time.
pub(super) struct ModelClock<'a, F: ModelForm> {
    vm: &'a ModelVm<F>,
    ahead: Cell<u64>,
    trouble: Cell<Trouble>,
    settings: Cell<usize>,
    /// The kernel knows of instants.
    instants: Cell<bool>,
}

impl<'a, F: ModelForm> ModelClock<'a, F> {
    pub(super) fn new(vm: &'a ModelVm<F>) -> Self {
        Self {
            vm,
            ahead: Cell::new(77),
            trouble: Cell::default(),
            settings: Cell::new(0),
            instants: Cell::new(true),
        }
    }
}

const EPOCH: u64 = 1_700_000_000_000_000_000;

impl<F: ModelForm> VmClock for ModelClock<'_, F> {
    fn clock_support(&self) -> ClockSupport {
        ClockSupport {
            adjustable: true,
            tsc_stable: true,
            real_time: true,
            host_tsc: true,
        }
    }

    fn clock(&self) -> Result<ClockReading, IoctlError> {
        self.vm.pass(CALL);
        let now = self.vm.host(|host| host.now().get());
        Ok(ClockReading {
            clock: Nanos::new(now.wrapping_add(self.ahead.get())),
            tsc_stable: self.vm.master_clock(),
            host_tsc: Some(self.vm.host(|host| host.tsc(HERE))),
            real_time: (self.instants.get()).then(|| Nanos::new(EPOCH + now)),
        })
    }

    fn set_clock(&self, setting: ClockSetting) -> Result<(), IoctlError> {
        self.vm.pass(CALL);
        self.settings.set(self.settings.get() + 1);
        let (clock, then) = match setting {
            ClockSetting::AtRealTime { clock, real_time } => (clock, real_time.get() - EPOCH),
            ClockSetting::Now(clock) => {
                assert!(!self.instants.get(), "the kernel knows of instants");
                (clock, self.vm.host(|host| host.now().get()))
            }
        };
        match self.trouble.get() {
            Trouble::ClockRefused => Err(IoctlError {
                call: "KVM_SET_CLOCK",
                source: std::io::Error::from_raw_os_error(libc::EINVAL),
            }),
            Trouble::ClockIgnored => Ok(()),
            _ => {
                let sloppy = self.trouble.get() == Trouble::ClockSloppy;
                let slop = if sloppy { SLOP } else { 0 };
                self.ahead.set(clock.get().wrapping_sub(then) + slop);
                Ok(())
            }
        }
    }
}

/// A machine of two vCPUs, with timers armed 3 s ahead and not at all.
struct Machine<'a, F: ModelForm> {
    vm: &'a ModelVm<F>,
    clock: ModelClock<'a, F>,
    vcpus: RefCell<Vec<(TimedVcpu<F>, VcpuClock)>>,
    /// What it takes until all vCPUs have been asked and have answered.
    round: Cell<Nanos>,
    keeper: Timekeeper,
}

const THREE_SECONDS: u64 = 6_000_000_000;

impl<'a, F: ModelForm> Machine<'a, F> {
    fn new(vm: &'a ModelVm<F>) -> Self {
        Self::at(vm, GuestRate::Host)
    }

    /// Whose guest has this rate.
    fn at(vm: &'a ModelVm<F>, rate: GuestRate) -> Self {
        vm.pass(Nanos::new(5_000_000));
        let mut inners: Vec<_> = (0..2).map(|_| vm.create_vcpu()).collect();
        rate.give(&mut inners).expect("a host that has the rate");
        let rates = Rates::new(F::VENDOR, rate, Khz::new(RATE));
        let mut vcpus = Vec::new();
        for mut inner in inners {
            // The same for both, as a VMM's start has it.
            let offset = TscOffset::new(0_u64.wrapping_sub(1 << 40));
            let _: Written<TscOffset> = inner.write_offset(offset).expect("accepted");
            vcpus.push((TimedVcpu::new(inner), VcpuClock::default()));
        }
        let now = vcpus[0].0.inner.guest_tsc().expect("readable").claim();
        vcpus[0].0.deadline = now.wrapping_advance(Ticks::new(THREE_SECONDS));
        let machine = Self {
            vm,
            clock: ModelClock::new(vm),
            vcpus: RefCell::new(vcpus),
            round: Cell::new(Nanos::new(60_000)),
            keeper: Timekeeper::new(rates),
        };
        machine.run_a_little();
        machine
    }

    /// The guest runs on all vCPUs, and leaves.
    fn run_a_little(&self) {
        for (vcpu, _) in &*self.vcpus.borrow() {
            self.vm.enter(&vcpu.inner).expect("sane registers");
            self.vm.pass(Nanos::new(50_000));
            self.vm.leave(&vcpu.inner);
        }
    }

    fn ask(&self, order: Order) -> Vec<Answer> {
        self.vm.pass(self.round.get());
        let mut vcpus = self.vcpus.borrow_mut();
        let answers = vcpus.iter_mut().enumerate().map(|(index, (vcpu, clock))| {
            let host_tsc = || {
                self.vm.pass(CALL);
                self.vm.host(|host| host.tsc(HERE))
            };
            let Order::Clock(order) = order else {
                panic!("a pause asks for nothing else");
            };
            Answer {
                vcpu: VcpuId::new(u32::try_from(index).expect("few")),
                outcome: clock.carry_out(vcpu, order, host_tsc).map(Done::Clock),
            }
        });
        // The order in which they answer is nobody's to rely on.
        let mut answers: Vec<_> = answers.collect();
        answers.reverse();
        answers
    }

    fn with_keeper<R>(
        &mut self,
        act: impl FnOnce(
            &mut Timekeeper,
            &Clocks<'_, ModelClock<'_, F>>,
            &dyn Fn(Order) -> Vec<Answer>,
        ) -> R,
    ) -> R {
        let mut keeper = std::mem::replace(&mut self.keeper, Timekeeper::new(None));
        let clocks = Clocks {
            vm: &self.clock,
            boottime: &|| self.vm.host(ModelHost::now),
            host_tsc: &|| self.vm.host(|host| host.tsc(HERE)),
        };
        let result = act(&mut keeper, &clocks, &|order| self.ask(order));
        self.keeper = keeper;
        result
    }

    /// The vCPUs leave one after the other, and the keeper is told when all wait, some calls later.
    fn pause(&mut self, policy: TimePolicy) {
        for (_, clock) in self.vcpus.get_mut() {
            self.vm.pass(CALL);
            clock.leave(self.vm.host(|host| host.tsc(HERE)));
        }
        self.vm.pass(PARKED);
        self.with_keeper(|keeper, clocks, ask| keeper.stop(policy, Nanos::ZERO, clocks, ask));
    }

    fn resume(&mut self, policy: TimePolicy) -> Result<(), ResumeError> {
        self.with_keeper(|keeper, clocks, ask| keeper.go_on(policy, clocks, ask))?;
        let vm = self.vm;
        for (_, clock) in self.vcpus.get_mut() {
            clock.wait_for_start(|| {
                vm.pass(CALL);
                vm.host(|host| host.tsc(HERE))
            });
        }
        Ok(())
    }

    fn offsets(&self) -> Vec<TscOffset> {
        let vcpus = self.vcpus.borrow();
        let offset = |(vcpu, _): &(TimedVcpu<F>, _)| vcpu.offset().expect("readable").claim();
        vcpus.iter().map(offset).collect()
    }

    fn deadlines(&self) -> Vec<u64> {
        let vcpus = self.vcpus.borrow();
        vcpus.iter().map(|(vcpu, _)| vcpu.deadline.get()).collect()
    }

    fn writes(&self) -> usize {
        self.vcpus
            .borrow()
            .iter()
            .map(|(vcpu, _)| vcpu.writes)
            .sum()
    }

    /// What each vCPU's RDTSC gives, less what the guest clock was when the model began.
    fn guest_tscs(&self) -> Vec<u64> {
        let vcpus = self.vcpus.borrow();
        let read = |(vcpu, _): &(TimedVcpu<F>, _)| {
            self.vm.enter(&vcpu.inner).expect("sane registers");
            let tsc = self.vm.rdtsc(&vcpu.inner).get();
            self.vm.leave(&vcpu.inner);
            tsc
        };
        vcpus.iter().map(read).collect()
    }

    fn kvmclock(&self) -> u64 {
        self.clock.clock().expect("readable").clock.get()
    }
}

fn host(faults: Faults) -> ModelHost {
    ModelHost::uniform(2, Khz::new(RATE).expect("not 0"), faults)
}

/// Runs a test on both vendors' models.
macro_rules! on_both {
    ($test:ident, $host:expr) => {{
        $test(&ModelVm::<Vmx>::new($host));
        $test(&ModelVm::<Svm>::new($host));
    }};
}

#[test]
fn freeze_goes_on_where_the_guest_was() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        let mut machine = Machine::new(vm);
        let armed = machine.deadlines();
        let (tsc, clock) = (machine.guest_tscs(), machine.kvmclock());
        machine.pause(TimePolicy::Freeze);
        assert_eq!(machine.deadlines(), [0, 0], "held");
        vm.pass(PAUSE);
        machine
            .resume(TimePolicy::Freeze)
            .expect("an obedient host");
        let (tsc_then, clock_then) = (machine.guest_tscs(), machine.kvmclock());
        // Three calls of 700 ns before the last vCPU left, a part of one until the instant from which the guest
        // was to go on was seen to have come, and one since; neither 10 s, nor any of what the keeper did.
        for (now, before) in tsc_then.iter().zip(&tsc) {
            assert!((1..=5 * 1_400).contains(&(now - before)), "{before} {now}");
        }
        assert_eq!(tsc_then[0], tsc_then[1]);
        // One microsecond of the kvmclock is 2,000 ticks, to within the one tick of a nanosecond.
        let (ticks, nanos) = (tsc_then[0] - tsc[0], clock_then - clock);
        let apart = i128::from(ticks) - i128::from(nanos) * 2;
        assert!(apart.unsigned_abs() <= 4_000, "{ticks} ticks in {nanos} ns");
        assert_eq!(machine.deadlines(), armed, "armed again");
        assert!(vm.master_clock());
        assert_eq!(machine.writes(), 2, "each offset once");
        let report = machine.keeper.stops().pop().expect("a report");
        assert_eq!((report.advanced_ns, report.kvmclock_error_ns), (0, Some(0)));
        assert!(report.withheld_ns >= PAUSE.get());
        assert_eq!(report.error_ns, Some(0));
        // What it tells of the pause's length may be off what its TSC was moved by: it says by how much at most.
        let moved = report.adjusted_ns.expect("moved").unsigned_abs();
        let error = report.elapsed_error_ns.expect("read one after the other");
        let off = report.withheld_ns.abs_diff(moved);
        assert!(off <= error && error <= 8 * CALL.get(), "{off} {error}");
    }
    on_both!(test, host(Faults::LINUX));
}

/// The host's rates that a guest is given here, in tenths of the host's.
const TENTHS: [u32; 2] = [5, 17];

fn rate_of<F: ModelForm>(tenths: u32) -> GuestRate {
    let wish = TscRate {
        khz: Khz::new(RATE / 10 * tenths),
        allow_catch_up: false,
    };
    let model = OnModel(ModelFixture::<F>::new(host(Faults::LINUX)));
    guest_rate::settle(wish, &model).expect("a host that scales")
}

#[test]
fn freeze_goes_on_where_the_guest_was_at_a_rate_of_its_own() {
    fn test<F: ModelForm>(vm: &ModelVm<F>, tenths: u32) {
        // What an offset is taken for at the wrong ratio grows with the host's TSC.
        vm.pass(Nanos::new(3_600_000_000_000));
        let mut machine = Machine::at(vm, rate_of::<F>(tenths));
        let armed = machine.deadlines();
        let (tsc, clock) = (machine.guest_tscs(), machine.kvmclock());
        machine.pause(TimePolicy::Freeze);
        vm.pass(PAUSE);
        machine
            .resume(TimePolicy::Freeze)
            .expect("an obedient host");
        let (tsc_then, clock_then) = (machine.guest_tscs(), machine.kvmclock());
        assert_eq!(tsc_then[0], tsc_then[1]);
        // The calls between the two looks take less than 20 us, the pause 10 s.
        let (ticks, nanos) = (tsc_then[0].wrapping_sub(tsc[0]), clock_then - clock);
        assert!(nanos < 20_000, "{nanos}");
        // 2 ticks of the host's a nanosecond: at 0.5 and 1.7 times that, 1.0 and 3.4. The two looks at
        // the two clocks are 2 us apart at most.
        let apart = i128::from(ticks) * 10 - i128::from(nanos) * 2 * i128::from(tenths);
        let allowed = 2_000 * 2 * u128::from(tenths);
        assert!(
            apart.unsigned_abs() <= allowed,
            "{ticks} ticks in {nanos} ns"
        );
        assert_eq!(machine.deadlines(), armed, "armed again");
        assert!(vm.master_clock());
        let report = machine.keeper.stops().pop().expect("a report");
        assert_eq!((report.advanced_ns, report.kvmclock_error_ns), (0, Some(0)));
        assert_eq!((report.error_ns, report.spread_ticks), (Some(0), Some(0)));
        // And it goes on at its rate.
        let before = machine.guest_tscs()[0];
        vm.pass(Nanos::new(1_000_000_000));
        let ticks = machine.guest_tscs()[0] - before;
        let second = u64::from(RATE) * 100 * u64::from(tenths);
        assert!(ticks.abs_diff(second) <= 1, "{ticks} ticks in a second");
    }
    for tenths in TENTHS {
        test(&ModelVm::<Vmx>::new(host(Faults::LINUX)), tenths);
        test(&ModelVm::<Svm>::new(host(Faults::LINUX)), tenths);
    }
}

#[test]
fn vcpus_found_apart_at_a_rate_of_their_own_go_on_together() {
    fn test<F: ModelForm>(vm: &ModelVm<F>, tenths: u32) {
        let mut machine = Machine::at(vm, rate_of::<F>(tenths));
        let further = TscDelta::new(5_000);
        let mut vcpus = machine.vcpus.take();
        let _: Written<_> = vcpus[1].0.inner.adjust_offset(further).expect("accepted");
        machine.vcpus.replace(vcpus);
        machine.pause(TimePolicy::Freeze);
        machine
            .resume(TimePolicy::Freeze)
            .expect("an obedient host");
        let offsets = machine.offsets();
        assert_eq!(offsets[0], offsets[1]);
        let report = machine.keeper.stops().pop().expect("a report");
        assert_eq!(report.spread_ticks, Some(5_000));
    }
    for tenths in TENTHS {
        test(&ModelVm::<Vmx>::new(host(Faults::LINUX)), tenths);
        test(&ModelVm::<Svm>::new(host(Faults::LINUX)), tenths);
    }
}

#[test]
fn kvmclock_that_is_set_with_an_error_is_set_again_without() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        let mut machine = Machine::new(vm);
        machine.pause(TimePolicy::Freeze);
        machine.clock.trouble.set(Trouble::ClockSloppy);
        machine
            .resume(TimePolicy::Freeze)
            .expect("an obedient host");
        assert_eq!(machine.clock.settings.get(), 2);
        let report = machine.keeper.stops().pop().expect("a report");
        assert_eq!(report.kvmclock_error_ns, Some(0));
    }
    on_both!(test, host(Faults::LINUX));
}

#[test]
fn freeze_that_takes_longer_than_planned_tells_by_how_much() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        let mut machine = Machine::new(vm);
        let tsc = machine.guest_tscs();
        machine.pause(TimePolicy::Freeze);
        vm.pass(PAUSE);
        // Twice a millisecond, where the reading at the pause lets expect twice 60 µs.
        machine.round.set(Nanos::new(1_000_000));
        machine
            .resume(TimePolicy::Freeze)
            .expect("an obedient host");
        let moved = (machine.guest_tscs()[0] - tsc[0]) / 2;
        let report = machine.keeper.stops().pop().expect("a report");
        let error = report.error_ns.expect("known");
        assert!((1_700_000..1_800_000).contains(&error), "{error}");
        // Some calls are outside of what the keeper can know of.
        assert!((error..error + 10_000).contains(&moved), "{error} {moved}");
    }
    on_both!(test, host(Faults::LINUX));
}

/// The vCPUs get a CPU later than was planned, of which the keeper learns afterwards.
#[test]
fn stop_tells_by_how_much_its_guest_went_on_late() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        let mut machine = Machine::new(vm);
        let error = |machine: &Machine<'_, F>, index: usize| machine.keeper.stops()[index].error_ns;
        for _ in 0..2 {
            machine.pause(TimePolicy::Freeze);
            vm.pass(PAUSE);
            machine
                .resume(TimePolicy::Freeze)
                .expect("an obedient host");
            machine.keeper.went_on(Ticks::ZERO);
        }
        assert_eq!(error(&machine, 1), Some(0));
        for _ in 0..2 {
            // 8 ms, at 2 ticks in a nanosecond.
            machine.keeper.went_on(Ticks::new(16_000_000));
            assert_eq!(error(&machine, 1), Some(8_000_000));
        }
        assert_eq!(error(&machine, 0), Some(0), "that of the latest alone");
        // Of the pause before, which is over.
        machine.pause(TimePolicy::Freeze);
        machine.keeper.went_on(Ticks::new(32_000_000));
        assert_eq!(error(&machine, 1), Some(8_000_000));
    }
    on_both!(test, host(Faults::LINUX));
}

#[test]
fn advance_writes_nothing() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        let mut machine = Machine::new(vm);
        let (armed, offsets) = (machine.deadlines(), machine.offsets());
        machine.pause(TimePolicy::ADVANCE);
        vm.pass(PAUSE);
        machine
            .resume(TimePolicy::ADVANCE)
            .expect("nothing to fail");
        assert_eq!(machine.offsets(), offsets);
        assert_eq!(machine.deadlines(), armed);
        assert_eq!((machine.writes(), machine.clock.settings.get()), (0, 0));
        let report = machine.keeper.stops().pop().expect("a report");
        assert_eq!((report.withheld_ns, report.error_ns), (0, None));
        assert!(report.advanced_ns >= PAUSE.get());
    }
    on_both!(test, host(Faults::LINUX));
}

#[test]
fn advance_with_a_cap_goes_on_by_no_more() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        const CAP: Nanos = Nanos::new(3_000_000_000);
        let policy = TimePolicy::Advance { cap: Some(CAP) };
        let mut machine = Machine::new(vm);
        let armed = machine.deadlines();
        // One that is shorter.
        machine.pause(policy);
        assert_eq!(machine.deadlines(), [0, 0], "held");
        vm.pass(Nanos::new(CAP.get() / 2));
        machine.resume(policy).expect("nothing to fail");
        assert_eq!(machine.deadlines(), armed);
        assert_eq!((machine.writes(), machine.clock.settings.get()), (0, 0));
        let report = machine.keeper.stops().pop().expect("a report");
        assert_eq!((report.withheld_ns, report.error_ns), (0, None));
        // One that is longer.
        let (tsc, clock) = (machine.guest_tscs(), machine.kvmclock());
        machine.pause(policy);
        vm.pass(PAUSE);
        machine.resume(policy).expect("an obedient host");
        let (tsc_then, clock_then) = (machine.guest_tscs(), machine.kvmclock());
        // And the few calls that are outside of the pause, as under freeze.
        let cap = CAP.get();
        for (now, before) in tsc_then.iter().zip(&tsc) {
            let more = (now - before).checked_sub(2 * cap);
            assert!(more.is_some_and(|more| more <= 5 * 1_400), "{before} {now}");
        }
        assert_eq!(tsc_then[0], tsc_then[1]);
        let more = (clock_then - clock).checked_sub(cap);
        assert!(
            more.is_some_and(|more| more <= 3_500),
            "{clock} {clock_then}"
        );
        assert_eq!(machine.deadlines(), armed, "armed again");
        let report = machine.keeper.stops().pop().expect("a report");
        assert_eq!((report.policy, report.advanced_ns), (policy, cap));
        assert!(report.withheld_ns >= PAUSE.get() - cap);
        assert_eq!(report.error_ns, Some(0));
    }
    on_both!(test, host(Faults::LINUX));
}

#[test]
fn timers_held_under_freeze_are_armed_under_advance() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        let mut machine = Machine::new(vm);
        let armed = machine.deadlines();
        machine.pause(TimePolicy::Freeze);
        machine
            .resume(TimePolicy::ADVANCE)
            .expect("nothing to fail");
        assert_eq!(machine.deadlines(), armed);
        assert_eq!(machine.writes(), 0);
    }
    on_both!(test, host(Faults::LINUX));
}

#[test]
fn vcpus_found_apart_go_on_together_from_the_latest() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        let mut machine = Machine::new(vm);
        {
            let mut vcpus = machine.vcpus.borrow_mut();
            let further = TscDelta::new(5_000);
            let _: Written<_> = vcpus[1].0.inner.adjust_offset(further).expect("accepted");
        }
        let latest = machine.guest_tscs()[1];
        machine.pause(TimePolicy::Freeze);
        machine
            .resume(TimePolicy::Freeze)
            .expect("an obedient host");
        let offsets = machine.offsets();
        assert_eq!(offsets[0], offsets[1]);
        assert!(machine.guest_tscs()[0] > latest);
        let report = machine.keeper.stops().pop().expect("a report");
        assert_eq!(report.spread_ticks, Some(5_000));
    }
    on_both!(test, host(Faults::LINUX));
}

/// The guest stays paused with the clocks that it had, and can go on under `advance`.
fn fails<F: ModelForm>(vm: &ModelVm<F>, trouble: Trouble, reason: &str) {
    let mut machine = Machine::new(vm);
    let armed = machine.deadlines();
    machine.pause(TimePolicy::Freeze);
    let offsets = machine.offsets();
    vm.pass(PAUSE);
    machine.clock.trouble.set(trouble);
    machine.vcpus.borrow_mut()[1].0.refuse = trouble == Trouble::OffsetRefused;
    machine.vcpus.borrow_mut()[0].0.refuse_timer = trouble == Trouble::TimerRefused;
    let ahead = machine.clock.ahead.get();
    let error = machine.resume(TimePolicy::Freeze).expect_err("a fault");
    let message = crate::error::one_line(&error);
    assert!(message.contains(reason), "{message}");
    assert_eq!(machine.clock.ahead.get(), ahead, "the kvmclock goes on");
    if !vm.host(ModelHost::is_unstable) {
        assert_eq!(machine.offsets(), offsets);
    }
    assert!(machine.keeper.stops().is_empty(), "nothing is claimed");
    machine.vcpus.borrow_mut()[0].0.refuse_timer = false;
    machine
        .resume(TimePolicy::ADVANCE)
        .expect("nothing to fail");
    assert_eq!(machine.deadlines(), armed, "armed again");
    assert_eq!(machine.keeper.stops().len(), 1);
}

fn each_fails(host: &ModelHost, trouble: Trouble, reason: &str) {
    fails(&ModelVm::<Vmx>::new(host.clone()), trouble, reason);
    fails(&ModelVm::<Svm>::new(host.clone()), trouble, reason);
}

#[test]
fn each_fault_of_the_host_is_found_and_the_guest_stays_paused() {
    let with = |offset_writes| {
        host(Faults {
            offset_writes,
            ..Faults::LINUX
        })
    };
    each_fails(&with(Obedience::Ignored), Trouble::None, "moves or ignores");
    each_fails(
        &with(Obedience::IgnoredAndReadBack),
        Trouble::None,
        "does not explain",
    );
    let unstable = host(Faults::LINUX).unstable();
    each_fails(&unstable, Trouble::None, "does not explain");
    let fine = host(Faults::LINUX);
    each_fails(&fine, Trouble::OffsetRefused, "vCPU 1");
    each_fails(&fine, Trouble::ClockRefused, "KVM_SET_CLOCK");
    each_fails(&fine, Trouble::ClockIgnored, "off by");
    each_fails(&fine, Trouble::TimerRefused, "timer");
}

/// One vCPU's clock was set, the other one's is refused, and then the first one's as well.
#[test]
fn clocks_that_cannot_be_set_back_keep_the_guest_paused() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        for policy in [TimePolicy::ADVANCE, TimePolicy::Freeze] {
            let mut machine = Machine::new(vm);
            machine.pause(TimePolicy::Freeze);
            let (offsets, ahead) = (machine.offsets(), machine.clock.ahead.get());
            vm.pass(PAUSE);
            machine.vcpus.borrow_mut()[0].0.takes = 1;
            machine.vcpus.borrow_mut()[1].0.refuse = true;
            let error = machine.resume(TimePolicy::Freeze).expect_err("a fault");
            assert!(crate::error::one_line(&error).contains("vCPU 1"));
            assert_ne!(machine.offsets(), offsets);
            // It would run on a clock that is wrong, and be told that it was not written.
            let error = machine.resume(TimePolicy::ADVANCE).expect_err("no clock");
            assert!(matches!(error, ResumeError::NotSetBack), "{error}");
            assert!(machine.keeper.stops().is_empty(), "nothing is claimed");
            machine.vcpus.borrow_mut()[0].0.takes = usize::MAX;
            machine.vcpus.borrow_mut()[1].0.refuse = false;
            machine.resume(policy).expect("nothing to fail");
            if policy == TimePolicy::ADVANCE {
                assert_eq!(machine.offsets(), offsets);
                assert_eq!(machine.clock.ahead.get(), ahead);
            } else {
                let report = machine.keeper.stops().pop().expect("a report");
                assert!(report.error_ns < Some(1_000_000), "{report:?}");
            }
        }
    }
    on_both!(test, host(Faults::LINUX));
}

/// A kernel without instants sets it at once: to what it has come to by then.
#[test]
fn kvmclock_is_set_back_with_the_time_that_has_passed() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        let mut machine = Machine::new(vm);
        machine.clock.instants.set(false);
        machine.pause(TimePolicy::Freeze);
        vm.pass(PAUSE);
        let ahead = machine.clock.ahead.get();
        machine.vcpus.borrow_mut()[0].0.refuse_timer = true;
        machine.resume(TimePolicy::Freeze).expect_err("a fault");
        assert!(machine.clock.settings.get() > 1, "it was set, and back");
        let off = machine.clock.ahead.get().abs_diff(ahead);
        assert!(off <= 3 * CALL.get(), "{off}");
        machine.vcpus.borrow_mut()[0].0.refuse_timer = false;
        machine.resume(TimePolicy::ADVANCE).expect("it is back");
    }
    on_both!(test, host(Faults::LINUX));
}

#[test]
fn guest_that_is_stopped_before_it_goes_on_goes_on_from_there() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        let mut machine = Machine::new(vm);
        let (tsc, clock) = (machine.guest_tscs(), machine.kvmclock());
        machine.pause(TimePolicy::Freeze);
        vm.pass(PAUSE);
        let freeze = TimePolicy::Freeze;
        // No vCPU gets a CPU meanwhile.
        machine.with_keeper(|keeper, clocks, ask| {
            keeper.go_on(freeze, clocks, ask).expect("an obedient host");
            keeper.stop(freeze, Nanos::ZERO, clocks, ask);
        });
        vm.pass(PAUSE);
        machine.resume(freeze).expect("an obedient host");
        for (now, before) in machine.guest_tscs().iter().zip(&tsc) {
            assert!(now > before, "{} ticks back", before - now);
        }
        assert!(machine.kvmclock() > clock);
    }
    on_both!(test, host(Faults::LINUX));
}

/// They were not held, but one was armed by a clock that was set back.
#[test]
fn timers_armed_for_a_resumption_that_failed_are_armed_again() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        let mut machine = Machine::new(vm);
        let armed = machine.vcpus.borrow()[0].0.deadline;
        machine.vcpus.borrow_mut()[1].0.deadline = armed;
        machine.pause(TimePolicy::ADVANCE);
        machine.vcpus.borrow_mut()[1].0.refuse_timer = true;
        let error = machine.resume(TimePolicy::Freeze).expect_err("a fault");
        assert!(crate::error::one_line(&error).contains("timer"));
        machine.vcpus.borrow_mut()[1].0.refuse_timer = false;
        let before = machine.vcpus.borrow()[0].0.armed;
        machine
            .resume(TimePolicy::ADVANCE)
            .expect("nothing to fail");
        assert_eq!(machine.vcpus.borrow()[0].0.armed, before + 1);
        assert_eq!(machine.deadlines(), [armed.get(); 2]);
    }
    on_both!(test, host(Faults::LINUX));
}

#[test]
fn guest_whose_clock_could_not_be_noted_goes_on_under_advance() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        let mut machine = Machine::new(vm);
        let armed = machine.deadlines();
        machine.vcpus.borrow_mut()[1].0.hide_timer = true;
        machine.pause(TimePolicy::Freeze);
        let error = machine.resume(TimePolicy::Freeze).expect_err("not noted");
        assert!(matches!(error, ResumeError::NotNoted(_)), "{error}");
        machine
            .resume(TimePolicy::ADVANCE)
            .expect("nothing to fail");
        assert_eq!(machine.deadlines(), armed, "armed again");
    }
    on_both!(test, host(Faults::LINUX));
}

#[test]
fn a_host_without_a_rate_is_told_and_advance_works() {
    let vm = ModelVm::<Vmx>::new(host(Faults::LINUX));
    let mut machine = Machine::new(&vm);
    machine.keeper = Timekeeper::new(None);
    machine.pause(TimePolicy::Freeze);
    let error = machine.resume(TimePolicy::Freeze).expect_err("no rate");
    assert!(crate::error::one_line(&error).contains("rate"));
    machine
        .resume(TimePolicy::ADVANCE)
        .expect("nothing to fail");
}

#[test]
fn old_pauses_are_forgotten() {
    let vm = ModelVm::<Vmx>::new(host(Faults::LINUX));
    let mut machine = Machine::new(&vm);
    for _ in 0..=REMEMBERED {
        machine.pause(TimePolicy::ADVANCE);
        machine
            .resume(TimePolicy::ADVANCE)
            .expect("nothing to fail");
    }
    assert_eq!(machine.keeper.stops().len(), REMEMBERED);
}
