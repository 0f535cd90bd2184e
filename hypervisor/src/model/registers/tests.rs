use super::*;

const CLOCK: HostTsc = HostTsc::new(1_000_000);

#[test]
fn vmcs_fields_are_where_the_manual_has_them() {
    let mut vmcs = Vmcs::fresh();
    vmcs.write(0x2010, 0x1122_3344_5566_7788)
        .expect("TSC offset");
    vmcs.write(0x2032, 0x0002_0000_0000_0001)
        .expect("TSC multiplier");
    assert_eq!(vmcs.read(0x2010), Ok(0x1122_3344_5566_7788));
    assert_eq!(vmcs.read(0x2011), Ok(0x1122_3344));
    assert_eq!(vmcs.read(0x2033), Ok(0x0002_0000));
    // the high half alone, as a 32-bit kernel writes it
    vmcs.write(0x2011, 0xFFFF_FFFF_AABB_CCDD)
        .expect("high half");
    assert_eq!(vmcs.read(0x2010), Ok(0xAABB_CCDD_5566_7788));
    vmcs.write(0x2033, 1).expect("high half");
    assert_eq!(vmcs.read(0x2032), Ok(0x0000_0001_0000_0001));
    for field in [0, 0x2012, 0x2034, 0x4000] {
        assert_eq!(vmcs.read(field), Err(UnsupportedField(field)));
        assert_eq!(vmcs.write(field, 1), Err(UnsupportedField(field)));
    }
}

#[test]
fn vmcs_controls_switch_the_fields_on() {
    let mut vmcs = Vmcs::fresh();
    vmcs.write(Vmcs::TSC_OFFSET, 7).expect("field");
    vmcs.write(Vmcs::TSC_MULTIPLIER, 1 << 47).expect("field");
    let offsetting = u64::from(Vmcs::USE_TSC_OFFSETTING);
    let secondary = u64::from(Vmcs::ACTIVATE_SECONDARY);
    let scaling = u64::from(Vmcs::USE_TSC_SCALING);
    let table = [
        // primary, secondary, reading at 1,000,000
        (offsetting | secondary, scaling, 500_007),
        // secondary controls count only when activated
        (offsetting, scaling, 1_000_007),
        (offsetting | secondary, 0, 1_000_007),
        // scaling without offsetting does nothing (SDM vol. 3, 25.3)
        (secondary, scaling, 1_000_000),
        (0, 0, 1_000_000),
    ];
    for (primary, secondary, expected) in table {
        vmcs.write(Vmcs::PRIMARY_CONTROLS, primary).expect("field");
        vmcs.write(Vmcs::SECONDARY_CONTROLS, secondary)
            .expect("field");
        let guest = vmcs.transform().expect("valid").guest_at(CLOCK);
        assert_eq!(
            guest,
            GuestTsc::new(expected),
            "{primary:#x} {secondary:#x}"
        );
    }
}

#[test]
fn vmx_entry_with_a_multiplier_of_zero_fails() {
    let mut registers = VmxRegisters::default();
    registers
        .vmcs01
        .write(Vmcs::TSC_MULTIPLIER, 0)
        .expect("field");
    assert!(registers.enter().is_err());
    // and is nothing to the processor without the control
    registers
        .vmcs01
        .write(Vmcs::SECONDARY_CONTROLS, 0)
        .expect("field");
    assert_eq!(registers.enter(), Ok(()));
}

#[test]
fn vmcb_fields_are_where_the_manual_has_them() {
    let mut vmcb = Vmcb::default();
    vmcb.set_offset(TscOffset::new(0x1122_3344_5566_7788), true);
    vmcb.clean = 0x0000_0301;
    let bytes = vmcb.bytes();
    assert_eq!(
        bytes[0x50..0x58],
        [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]
    );
    assert_eq!(bytes[0xC0..0xC4], [0x01, 0x03, 0, 0]);
    assert!(bytes[..0x50].iter().all(|byte| *byte == 0));
    assert_eq!(Vmcb::from_bytes(&bytes), vmcb);
}

#[test]
fn svm_ratio_register_faults_on_reserved_bits() {
    let mut registers = SvmRegisters::default();
    assert_eq!(registers.ratio_msr(), 1 << 32);
    for bits in [1 << 40, 1 << 63, u64::MAX] {
        let fault = GeneralProtection {
            index: 0xC000_0104,
            value: bits,
        };
        assert_eq!(registers.write_ratio_msr(bits), Err(fault));
        assert_eq!(registers.ratio_msr(), 1 << 32);
    }
    assert_eq!(registers.write_ratio_msr(0xFF_FFFF_FFFF), Ok(()));
    assert_eq!(registers.ratio_msr(), 0xFF_FFFF_FFFF);
}

#[test]
fn svm_processor_keeps_its_cached_offset_while_the_clean_bit_says_so() {
    let transform = |offset| Transform {
        ratio: TscRatio::<Svm>::ONE,
        offset: TscOffset::new(offset),
    };
    let mut registers = SvmRegisters::default();
    registers
        .write(transform(5), Faults::default())
        .expect("fits");
    registers.enter().expect("valid");
    assert_eq!(registers.rdtsc(CLOCK), GuestTsc::new(1_000_005));
    let stale = Faults {
        stale_clean_bit: true,
        ..Faults::default()
    };
    registers.write(transform(9), stale).expect("fits");
    registers.enter().expect("valid");
    assert_eq!(registers.rdtsc(CLOCK), GuestTsc::new(1_000_005));
    // another CPU has nothing cached
    registers.moved();
    registers.enter().expect("valid");
    assert_eq!(registers.rdtsc(CLOCK), GuestTsc::new(1_000_009));
    // and marked dirty, it is read again
    registers
        .write(transform(11), Faults::default())
        .expect("fits");
    registers.enter().expect("valid");
    assert_eq!(registers.rdtsc(CLOCK), GuestTsc::new(1_000_011));
}

/// L1 at offset 1000 and ratio 1; L2 at half its rate and 7 on top; L1 corrected by 100 meanwhile.
fn correction_while_l2_runs<F: ModelForm>(
    inner: <F::Registers as TscRegisters<F>>::Inner,
    faults: Faults,
) -> (GuestTsc, GuestTsc) {
    let l1 = |offset| Transform {
        ratio: TscRatio::<F>::ONE,
        offset: TscOffset::new(offset),
    };
    let mut registers = F::Registers::default();
    registers.write(l1(1000), faults).expect("fits");
    registers.enter().expect("valid");
    registers.enter_l2(inner).expect("valid");
    // (1,000,000 + 1000) / 2 + 7
    assert_eq!(registers.rdtsc(CLOCK), GuestTsc::new(500_507));
    registers.write(l1(1100), faults).expect("fits");
    registers.enter().expect("valid");
    let l2 = registers.rdtsc(CLOCK);
    registers.leave_l2();
    registers.enter().expect("valid");
    (l2, registers.rdtsc(CLOCK))
}

fn vmcs12() -> Vmcs {
    let mut vmcs = Vmcs::fresh();
    vmcs.write(Vmcs::TSC_OFFSET, 7).expect("field");
    vmcs.write(Vmcs::TSC_MULTIPLIER, 1 << 47).expect("field");
    vmcs
}

const VMCB12: Vmcb12Tsc = Vmcb12Tsc {
    offset: TscOffset::new(7),
    ratio: Some(1 << 31),
};

#[test]
fn correction_of_l1_while_l2_runs_reaches_both_copies() {
    // L2: (1,000,000 + 1100) / 2 + 7; L1: 1,000,000 + 1100
    let right = (GuestTsc::new(500_557), GuestTsc::new(1_001_100));
    let faults = Faults::default();
    assert_eq!(correction_while_l2_runs::<Vmx>(vmcs12(), faults), right);
    assert_eq!(correction_while_l2_runs::<Svm>(VMCB12, faults), right);
}

#[test]
fn correction_as_in_2010_gives_l2_the_whole_delta() {
    // L2: 500,507 + 100 instead of + 50
    let wrong = (GuestTsc::new(500_607), GuestTsc::new(1_001_100));
    let faults = Faults {
        nested_delta_unscaled: true,
        ..Faults::default()
    };
    assert_eq!(correction_while_l2_runs::<Vmx>(vmcs12(), faults), wrong);
    assert_eq!(correction_while_l2_runs::<Svm>(VMCB12, faults), wrong);
}

#[test]
fn correction_that_forgets_the_copy_is_lost_to_l1() {
    let lost = (GuestTsc::new(500_557), GuestTsc::new(1_001_000));
    let faults = Faults {
        nested_copy_forgotten: true,
        ..Faults::default()
    };
    assert_eq!(correction_while_l2_runs::<Vmx>(vmcs12(), faults), lost);
    assert_eq!(correction_while_l2_runs::<Svm>(VMCB12, faults), lost);
}

#[test]
fn entry_of_l2_with_an_invalid_ratio_leaves_l1_running() {
    let mut svm = SvmRegisters::default();
    let invalid = Vmcb12Tsc {
        ratio: Some(1 << 40),
        ..VMCB12
    };
    assert!(svm.enter_l2(invalid).is_err());
    assert!(svm.vmcb02.is_none());
    let mut vmx = VmxRegisters::default();
    let mut invalid = vmcs12();
    invalid.write(Vmcs::TSC_MULTIPLIER, 0).expect("field");
    assert!(vmx.enter_l2(invalid).is_err());
    assert!(vmx.vmcs02.is_none());
}
