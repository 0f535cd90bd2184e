use super::*;
use crate::model::Faults;
use crate::tsc_control::{DefaultTscRate, TscControlError, TscOffsetControl};
use tsc::{HostTsc, Svm, TscDelta, Vmx};

fn khz(khz: u32) -> Khz {
    Khz::new(khz).expect("not zero")
}

const HOST: u32 = 3_000_000;

fn linux() -> ModelHost {
    ModelHost::uniform(2, khz(HOST), Faults::LINUX)
}

fn vm<F: ModelForm>(host: ModelHost) -> (ModelVm<F>, ModelVcpu<F>) {
    let vm = ModelVm::new(host);
    let vcpu = vm.create_vcpu();
    (vm, vcpu)
}

/// Enters, reads and leaves.
fn read<F: ModelForm>(vm: &ModelVm<F>, vcpu: &ModelVcpu<F>) -> GuestTsc {
    vm.enter(vcpu).expect("valid registers");
    let guest = vm.rdtsc(vcpu);
    vm.leave(vcpu);
    guest
}

const SECOND: Nanos = Nanos::new(1_000_000_000);

#[test]
fn fresh_vcpus_share_one_clock_that_began_at_zero() {
    let (vm, first) = vm::<Vmx>(linux());
    vm.pass(SECOND);
    let second = vm.create_vcpu();
    assert_eq!(read(&vm, &first), GuestTsc::new(u64::from(HOST) * 1_000));
    assert_eq!(read(&vm, &second), read(&vm, &first));
    assert!(vm.master_clock());
}

#[test]
fn one_offset_for_all_keeps_the_master_clock_and_two_do_not() {
    let (vm, mut first) = vm::<Svm>(linux());
    let mut second = vm.create_vcpu();
    let offset = TscOffset::new(12_345);
    let write = |vcpu: &mut ModelVcpu<Svm>, offset| {
        assert_eq!(vcpu.write_offset(offset).expect("accepted").asked(), offset);
    };
    write(&mut first, offset);
    // a new generation, which the other has not joined yet
    assert!(!vm.master_clock());
    write(&mut second, offset);
    assert!(vm.master_clock());
    write(&mut second, TscOffset::new(12_346));
    assert!(!vm.master_clock());
    write(&mut first, TscOffset::new(12_346));
    assert!(vm.master_clock());
}

#[test]
fn a_tsc_within_a_second_of_the_others_takes_their_offset() {
    let (vm, mut first) = vm::<Vmx>(linux());
    let mut second = vm.create_vcpu();
    let minute = u64::from(HOST) * 60_000;
    let write = |vcpu: &mut ModelVcpu<Vmx>, tsc| {
        let tsc = GuestTsc::new(tsc);
        assert_eq!(vcpu.write_guest_tsc(tsc).expect("accepted").asked(), tsc);
    };
    write(&mut first, minute);
    vm.pass(SECOND);
    // expected is minute + 3e9 by now; 2,999,999,999 less than that is still within the second
    write(&mut second, minute + 1);
    assert_eq!(read(&vm, &second), read(&vm, &first));
    assert!(vm.master_clock());
    // one second and more away: a clock of its own
    let present = read(&vm, &first).get();
    write(&mut second, present + 3_000_000_000);
    let apart = read(&vm, &second).wrapping_since(read(&vm, &first));
    assert_eq!(apart, TscDelta::new(3_000_000_000));
    assert!(!vm.master_clock());
}

#[test]
fn rates_are_tolerated_scaled_or_refused_as_kvm_decides() {
    let tolerated = khz(HOST + HOST / 1_000_000 * 250);
    let beyond = khz(tolerated.get() + 1);
    let (vm, mut vcpu) = vm::<Vmx>(linux());
    let register = |vcpu: &ModelVcpu<Vmx>| vcpu.ratio().expect("readable").claim().bits();
    for (rate, ratio) in [
        (tolerated, 1 << 48),
        // floor(2^48 x 3000751 / 3000000)
        (beyond, 281_545_439_279_825_u64),
        (khz(HOST / 2), 1 << 47),
        (khz(HOST), 1 << 48),
    ] {
        let written = vcpu.ask_rate(rate).expect("accepted");
        assert!(written.read_back(vcpu.rate().expect("known")).agrees());
        assert_eq!(register(&vcpu), ratio, "{rate}");
    }
    drop(vm);
}

#[test]
fn a_refused_rate_reads_back_and_changes_nothing() {
    let (vm, mut vcpu) = vm::<Svm>(linux().without_scaling());
    let before = read(&vm, &vcpu);
    let half = khz(HOST / 2);
    let refusal = vcpu.ask_rate(half).expect_err("below the host's");
    assert!(matches!(refusal, TscControlError::Rate { asked, .. } if asked == half));
    assert_eq!(vcpu.rate().expect("known").claim(), half);
    vm.pass(SECOND);
    let elapsed = read(&vm, &vcpu).wrapping_elapsed(before);
    assert_eq!(elapsed, Ticks::new(u64::from(HOST) * 1_000));
}

#[test]
fn svm_refuses_what_its_eight_integer_bits_cannot_hold() {
    // max_guest_tsc_khz of a host of 1 MHz: (0xFF_FFFF_FFFF x 1000) >> 32 = 255,999 kHz
    let host = || ModelHost::uniform(1, khz(1_000), Faults::LINUX);
    let (_vm, mut svm) = vm::<Svm>(host());
    assert!(svm.ask_rate(khz(255_999)).is_err());
    assert!(svm.ask_rate(khz(255_998)).is_ok());
    let (_vm, mut vmx) = vm::<Vmx>(host());
    assert!(vmx.ask_rate(khz(255_999)).is_ok());
    assert!(vmx.ask_rate(khz(0x7FFF_FFFF)).is_err());
}

#[test]
fn a_default_rate_is_that_of_vcpus_to_come() {
    let vm = ModelVm::<Svm>::new(linux());
    let first = vm.create_vcpu();
    let half = khz(HOST / 2);
    assert!(vm.ask_default_rate(half).is_ok());
    let second = vm.create_vcpu();
    assert_eq!(first.rate().expect("known").claim(), khz(HOST));
    assert_eq!(second.rate().expect("known").claim(), half);
    assert_eq!(second.ratio().expect("readable").claim().bits(), 1 << 31);
    let poor = ModelVm::<Svm>::new(linux().without_scaling());
    assert!(matches!(
        poor.ask_default_rate(half),
        Err(TscControlError::Absent { .. })
    ));
}

#[test]
fn catch_up_keeps_the_rate_across_entries_and_the_hosts_within_one() {
    // Without the master clock, that is on a host whose clocksource is not the TSC; here because the
    // fault of the other case is switched off.
    let faults = Faults {
        catch_up_by_master_clock: false,
        ..Faults::LINUX
    };
    let host = ModelHost::uniform(1, khz(HOST), faults).without_scaling();
    let (vm, mut vcpu) = vm::<Svm>(host);
    let double = khz(HOST * 2);
    assert!(vcpu.ask_rate(double).is_ok());
    vm.pass(SECOND);
    assert_eq!(read(&vm, &vcpu), GuestTsc::new(u64::from(HOST) * 2_000));
    vm.enter(&vcpu).expect("valid registers");
    vm.pass(SECOND);
    let late = vm.rdtsc(&vcpu);
    assert_eq!(late, GuestTsc::new(u64::from(HOST) * 3_000));
    vm.leave(&vcpu);
    assert_eq!(read(&vm, &vcpu), GuestTsc::new(u64::from(HOST) * 4_000));
}

/// Seen on Linux 6.1 with kvm-amd on a processor without TSC scaling: KVM_SET_TSC_KHZ at 1.7 times the
/// host's rate succeeds and reads back, and the guest ticks at the host's rate.
#[test]
fn catch_up_under_the_master_clock_does_nothing() {
    let (vm, mut vcpu) = vm::<Svm>(linux().without_scaling());
    let double = khz(HOST * 2);
    let written = vcpu.ask_rate(double).expect("accepted");
    assert!(written.read_back(vcpu.rate().expect("known")).agrees());
    assert!(vm.master_clock());
    for seconds in 1..4 {
        vm.pass(SECOND);
        let expected = u64::from(HOST) * 1_000 * seconds;
        assert_eq!(read(&vm, &vcpu), GuestTsc::new(expected));
    }
}

#[test]
fn the_first_write_of_a_young_vm_is_lost_before_linux_6_8() {
    for (faults, counts) in [(Faults::LINUX, true), (Faults::LINUX_6_1, false)] {
        let (vm, mut vcpu) = vm::<Vmx>(ModelHost::uniform(1, khz(HOST), faults));
        let tsc = GuestTsc::new(1_000_000_000);
        assert_eq!(vcpu.write_guest_tsc(tsc).expect("accepted").asked(), tsc);
        let expected = if counts { tsc } else { GuestTsc::new(0) };
        assert_eq!(read(&vm, &vcpu), expected);
    }
}

/// Seen on the laboratory's VMX host, whose VMs are some ten thousand ticks old when their register is
/// written: 12 million ticks back is beyond 0, and so it counts.
#[test]
fn a_write_beyond_zero_is_far_from_a_young_clock() {
    let (vm, mut vcpu) = vm::<Vmx>(ModelHost::uniform(1, khz(HOST), Faults::LINUX_6_1));
    let beyond = GuestTsc::new(0).wrapping_add(TscDelta::new(-12_345_678));
    assert_eq!(
        vcpu.write_guest_tsc(beyond).expect("accepted").asked(),
        beyond
    );
    assert_eq!(read(&vm, &vcpu), beyond);
}

/// The 2011 mail in small, as lab hosts with Linux 6.1 show it too.
#[test]
fn a_skewed_cpu_makes_the_guest_leap_then_stand_still() {
    let three_seconds = TscDelta::new(9_000_000_000);
    let (vm, vcpu) = vm::<Vmx>(linux().with_skew(CpuId::new(1), three_seconds));
    vm.pass(SECOND);
    assert_eq!(read(&vm, &vcpu), GuestTsc::new(3_000_000_000));
    vm.pin(&vcpu, CpuId::new(1));
    // the guest leaps, and nobody has noticed
    assert_eq!(read(&vm, &vcpu), GuestTsc::new(12_000_000_000));
    assert!(!vm.host(ModelHost::is_unstable));
    vm.pin(&vcpu, CpuId::new(0));
    vm.pass(SECOND);
    // back: a backwards step, and the host is condemned; the guest is 2 s ahead of the line
    let stands = read(&vm, &vcpu);
    assert_eq!(stands, GuestTsc::new(12_000_000_000));
    assert!(vm.host(ModelHost::is_unstable) && !vm.master_clock());
    vm.pass(SECOND);
    assert_eq!(read(&vm, &vcpu), stands);
    vm.pass(SECOND);
    assert_eq!(read(&vm, &vcpu), stands);
    // real time has caught up with it after 4 s, at 12e9 ticks; from then on it follows
    vm.pass(SECOND);
    assert_eq!(read(&vm, &vcpu), GuestTsc::new(15_000_000_000));
}

#[test]
fn registers_can_be_probed_at_any_host_reading() {
    let (vm, mut vcpu) = vm::<Svm>(linux());
    assert!(vcpu.ask_rate(khz(HOST / 2)).is_ok());
    assert!(vcpu.write_offset(TscOffset::new(5)).is_ok());
    vm.enter(&vcpu).expect("valid registers");
    // 21 / 2 + 5
    assert_eq!(vm.rdtsc_at(&vcpu, HostTsc::new(21)), GuestTsc::new(15));
}

#[test]
fn adjusting_moves_the_guest_by_the_delta() {
    let (vm, mut vcpu) = vm::<Vmx>(linux());
    vm.pass(SECOND);
    let before = read(&vm, &vcpu);
    let written = vcpu.adjust_offset(TscDelta::new(-77)).expect("accepted");
    assert!(written.read_back(vcpu.offset().expect("readable")).agrees());
    assert_eq!(read(&vm, &vcpu).wrapping_since(before), TscDelta::new(-77));
}
