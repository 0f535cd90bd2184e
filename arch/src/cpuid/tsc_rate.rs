//! Leaf 0x15: the TSC's rate as a ratio to a crystal's.
//!
//! EAX is the denominator, EBX the numerator, ECX the crystal's rate in hertz (SDM vol. 2A):
//! TSC rate = ECX × EBX / EAX. The crystal also clocks the local APIC's timer (SDM vol. 3,
//! 11.5.4), and Linux takes the timer's rate from here instead of measuring it. KVM's timer ticks
//! once per nanosecond, so a truthful crystal has 1 GHz.
//!
//! Linux computes `crystal_khz * numerator / denominator` with 32-bit operands
//! (arch/x86/kernel/tsc.c, `native_calibrate_tsc`, which before 2026 looks at Intel processors
//! only): with 1,000,000 kHz the numerator can be at most 4294, or the product wraps and the guest
//! believes in a rate that is far off. So the ratio must be small, and must give the rate exactly
//! after Linux's division, which rounds down to whole kilohertz.

use tsc::Khz;

use super::{APIC_BUS_KHZ, CpuidEntry, TSC_RATE};

/// How far the crystal told may be from the one there is: 100 parts per million, less than a
/// guest's own measurement errs.
const MAX_CRYSTAL_ERROR_KHZ: u32 = APIC_BUS_KHZ / 10_000;

/// The leaf for a TSC of this `rate`, or `None` when there is no ratio for it, in which case the
/// guest measures it or asks elsewhere.
///
/// With a crystal of exactly 1 GHz, more than half of all rates have a ratio that Linux computes right.
/// For the others a crystal a few kilohertz off is told, which makes the TSC's rate exact and the
/// local APIC's timer (of guests that do not use its TSC-deadline mode) wrong by millionths.
pub(super) fn leaf(rate: Khz) -> Option<CpuidEntry> {
    let crystals =
        (0..=MAX_CRYSTAL_ERROR_KHZ).flat_map(|error| [APIC_BUS_KHZ - error, APIC_BUS_KHZ + error]);
    crystals.into_iter().find_map(|crystal_khz| {
        let (numerator, denominator) = smallest_ratio(crystal_khz, rate.get())?;
        Some(CpuidEntry {
            function: TSC_RATE,
            eax: denominator,
            ebx: numerator,
            // OK because 1.0001 GHz is below 2^32 Hz.
            ecx: crystal_khz * 1000,
            ..CpuidEntry::default()
        })
    })
}

/// The numerator and denominator with floor(crystal × numerator / denominator) = `khz`, the
/// smallest that there are, if the product has 32 bits.
fn smallest_ratio(crystal_khz: u32, khz: u32) -> Option<(u32, u32)> {
    let (crystal, khz) = (u64::from(crystal_khz), u64::from(khz));
    let from = Bound {
        numerator: khz,
        denominator: crystal,
        closed: true,
    };
    let to = Bound {
        numerator: khz + 1,
        denominator: crystal,
        closed: false,
    };
    let (numerator, denominator) = simplest_between(from, to);
    let numerator = u32::try_from(numerator).ok()?;
    crystal_khz.checked_mul(numerator)?;
    Some((numerator, u32::try_from(denominator).ok()?))
}

/// An end of an interval of fractions, which belongs to it when `closed`. A denominator of 0 is
/// infinity.
#[derive(Clone, Copy)]
struct Bound {
    numerator: u64,
    denominator: u64,
    closed: bool,
}

/// The fraction from `from` to `to`, which is greater, whose numerator and denominator are the
/// smallest: the continued fraction of both as far as they agree, and then the next integer.
///
/// All numbers stay below 2^33: remainders shrink as in Euclid's algorithm, and the result is no
/// greater than the ends in lowest terms.
fn simplest_between(from: Bound, to: Bound) -> (u64, u64) {
    let whole = from.numerator / from.denominator;
    let rest = from.numerator % from.denominator;
    if rest == 0 && from.closed {
        return (whole, 1);
    }
    let next = (whole + 1) * to.denominator;
    if next < to.numerator || (next == to.numerator && to.closed) {
        return (whole + 1, 1);
    }
    // Both ends are between `whole` and the next integer: whole + 1/x, where x is between the
    // reciprocals of what remains.
    let (numerator, denominator) = simplest_between(
        Bound {
            numerator: to.denominator,
            denominator: to.numerator - whole * to.denominator,
            closed: to.closed,
        },
        Bound {
            numerator: from.denominator,
            denominator: rest,
            closed: from.closed,
        },
    );
    (whole * numerator + denominator, numerator)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Linux 6.1 computes: kilohertz of the TSC, and of the crystal for the local APIC.
    fn linux(leaf: &CpuidEntry) -> (u32, u32) {
        let crystal_khz = leaf.ecx / 1000;
        (crystal_khz.wrapping_mul(leaf.ebx) / leaf.eax, crystal_khz)
    }

    fn khz(khz: u32) -> Khz {
        Khz::new(khz).unwrap()
    }

    #[test]
    fn leaf_of_round_rates_is_exact_with_the_bus_as_crystal() {
        // (kHz, denominator, numerator): 10^6 kHz x 5 / 2 = 2,500,000; x 3 / 1; x 12 / 5.
        for (rate, eax, ebx) in [(2_500_000, 2, 5), (3_000_000, 1, 3), (2_400_000, 5, 12)] {
            let leaf = leaf(khz(rate)).unwrap();
            assert_eq!(
                (leaf.eax, leaf.ebx, leaf.ecx),
                (eax, ebx, 1_000_000_000),
                "{rate}"
            );
        }
    }

    #[test]
    fn leaf_makes_linux_compute_every_rate() {
        // Steps of a prime, from 0.4 to 6 GHz: 1,454 rates.
        let mut true_crystals = 0;
        let mut worst = 0;
        for rate in (400_003..6_000_000).step_by(3_853) {
            let (tsc, crystal) = linux(&leaf(khz(rate)).unwrap());
            assert_eq!(tsc, rate);
            true_crystals += u32::from(crystal == 1_000_000);
            worst = worst.max(crystal.abs_diff(1_000_000));
        }
        // Counted; a worse search for ratios would show here.
        assert_eq!((true_crystals, worst), (798, 97));
    }

    #[test]
    fn leaf_of_an_absurd_rate_is_absent() {
        // 4,294,967,295 kHz would need the numerator 4295.
        assert_eq!(leaf(khz(u32::MAX)), None);
        // 1 kHz is 1 GHz / 1,000,000: no rate, but a ratio.
        assert_eq!(linux(&leaf(khz(1)).unwrap()), (1, 1_000_000));
    }

    #[test]
    fn smallest_ratio_agrees_with_a_search() {
        // The oracle tries every numerator up to 4294.
        let search = |crystal: u32, khz: u32| {
            (1..=u32::MAX / crystal).find_map(|numerator| {
                let product = crystal * numerator;
                let denominator = product / khz;
                let right = product.checked_div(denominator)? == khz;
                right.then_some(numerator)
            })
        };
        for rate in (400_003..6_000_000).step_by(38_561) {
            for crystal in [1_000_000, 999_983, 1_000_100] {
                let found = smallest_ratio(crystal, rate).map(|(numerator, _)| numerator);
                assert_eq!(found, search(crystal, rate), "{rate} kHz from {crystal}");
            }
        }
    }
}
