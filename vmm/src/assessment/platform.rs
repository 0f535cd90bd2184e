//! What the processor and the kernel say of themselves. All of it is claims.

use std::path::Path;

use arch::cpuid::CpuidEntry;
use tsc::stability::PlatformReport;
use tsc::{Hz, Khz, Ppm, assess};

use super::rate::Claim;

/// Where to read.
pub(crate) struct Sources<'a> {
    /// CPUID.
    pub(crate) cpuid: &'a dyn Fn(u32, u32) -> Option<CpuidEntry>,
    /// The folder that has `sys`.
    pub(crate) root: &'a Path,
}

/// What a host says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Platform {
    /// The twelve letters of CPUID leaf 0.
    pub(crate) vendor: String,
    /// CPUID 8000_0002H to 8000_0004H.
    pub(crate) model: Option<String>,
    /// Whether the host is a guest itself (CPUID 1, ECX bit 31), and of whom (4000_0000H).
    pub(crate) hypervisor: Option<String>,
    /// CPUID 8000_0007H, EDX bit 8.
    pub(crate) invariant_tsc: bool,
    /// CPUID 8000_0001H, EDX bit 27.
    pub(crate) rdtscp: bool,
    /// What the TSC's rate is said to be.
    pub(crate) rates: Vec<Claim>,
    /// What the kernel keeps time by.
    pub(crate) clocksource: Option<String>,
    /// What it could keep time by.
    pub(crate) clocksources: Vec<String>,
    /// `tsc_tolerance_ppm` of the `kvm` module.
    pub(crate) tolerance: Option<Ppm>,
}

impl Platform {
    /// Reads all of it.
    pub(crate) fn read(sources: &Sources<'_>) -> Self {
        let leaf = |function| (sources.cpuid)(function, 0);
        let bit = |register: Option<u32>, bit: u32| {
            register.is_some_and(|register| register & (1 << bit) != 0)
        };
        let guest = bit(leaf(1).map(|leaf| leaf.ecx), 31);
        let clocksource = |name| {
            let folder = "sys/devices/system/clocksource/clocksource0";
            line(&sources.root.join(folder).join(name))
        };
        Self {
            vendor: leaf(0)
                .map(|leaf| text(&[leaf.ebx, leaf.edx, leaf.ecx]))
                .unwrap_or_default(),
            model: model(sources.cpuid),
            hypervisor: guest.then(|| {
                leaf(0x4000_0000)
                    .map(|leaf| text(&[leaf.ebx, leaf.ecx, leaf.edx]))
                    .unwrap_or_default()
            }),
            invariant_tsc: bit(leaf(0x8000_0007).map(|leaf| leaf.edx), 8),
            rdtscp: bit(leaf(0x8000_0001).map(|leaf| leaf.edx), 27),
            rates: rates(sources, guest),
            clocksource: clocksource("current_clocksource"),
            clocksources: clocksource("available_clocksource")
                .map(|names| names.split_whitespace().map(str::to_owned).collect())
                .unwrap_or_default(),
            tolerance: tolerance(sources.root),
        }
    }

    /// Whether the kernel keeps time by the TSC. `tsc-early` is the same clock before its second
    /// calibration (arch/x86/kernel/tsc.c).
    pub(crate) fn has_tsc_clocksource(&self) -> bool {
        self.clocksource.as_deref().is_some_and(is_tsc)
    }

    /// What it says against its TSC.
    pub(crate) fn report(&self) -> Option<PlatformReport> {
        if !self.invariant_tsc {
            Some(PlatformReport::NotInvariant)
        } else if self.has_tsc_clocksource() {
            None
        } else if self.clocksources.iter().any(|name| is_tsc(name)) {
            Some(PlatformReport::OtherClocksource)
        } else {
            // A TSC that the kernel marked unstable is no longer offered while ticks are needed
            // (clocksource_mark_unstable in kernel/time/clocksource.c).
            Some(PlatformReport::KernelMark)
        }
    }
}

fn is_tsc(clocksource: &str) -> bool {
    matches!(clocksource, "tsc" | "tsc-early")
}

/// Within what KVM does not scale; `root` is the folder that has `sys`.
pub(crate) fn tolerance(root: &Path) -> Option<Ppm> {
    line(&root.join("sys/module/kvm/parameters/tsc_tolerance_ppm"))
        .and_then(|text| Ppm::new(text.parse().ok()?))
}

/// The only line of a file of the kernel's.
fn line(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// The letters in registers, without what pads them and what would command a terminal.
fn text(registers: &[u32]) -> String {
    let bytes: Vec<_> = registers
        .iter()
        .flat_map(|register| register.to_le_bytes())
        .collect();
    String::from_utf8_lossy(&bytes)
        .chars()
        .filter(|c| !c.is_control())
        .collect::<String>()
        .trim()
        .to_owned()
}

fn model(cpuid: &dyn Fn(u32, u32) -> Option<CpuidEntry>) -> Option<String> {
    let mut registers = Vec::with_capacity(12);
    for function in 0x8000_0002..=0x8000_0004 {
        let leaf = cpuid(function, 0)?;
        registers.extend([leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]);
    }
    Some(text(&registers)).filter(|model| !model.is_empty())
}

/// All rates that are told without asking KVM.
fn rates(sources: &Sources<'_>, guest: bool) -> Vec<Claim> {
    let leaf = |function| (sources.cpuid)(function, 0);
    let claim = |source, khz: Option<Khz>| khz.map(|khz| Claim { source, khz });
    // SDM vol. 2, CPUID: 15H is crystal (ECX) x EBX / EAX; 16H the base rate in MHz, which is the
    // TSC's nominal one.
    let crystal = leaf(0x15)
        .and_then(|leaf| assess::rate_by_crystal(Hz::new(leaf.ecx.into())?, leaf.ebx, leaf.eax));
    let base = leaf(0x16).and_then(|leaf| {
        let mhz = leaf.eax & 0xffff;
        // OK because 16 bits times 1000 fit 32.
        Khz::new(mhz * 1_000)
    });
    // The generic hypervisor leaf: the virtual TSC's rate in kHz (Documentation/virt/kvm/x86/cpuid.rst
    // does not have it; arch/x86/kernel/cpu/vmware.c reads it).
    let told = leaf(0x4000_0010)
        .filter(|_| guest)
        .and_then(|leaf| Khz::new(leaf.eax));
    // Kernels with the out-of-tree file tell what they calibrated.
    let kernel = line(
        &sources
            .root
            .join("sys/devices/system/cpu/cpu0/tsc_freq_khz"),
    )
    .and_then(|text| Khz::new(text.parse().ok()?));
    [
        claim("CPUID leaf 15H", crystal),
        claim("CPUID leaf 16H", base),
        claim("CPUID leaf 40000010H", told),
        claim("kernel, tsc_freq_khz", kernel),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn letters(text: &str) -> [u32; 3] {
        let word = |index: usize| {
            u32::from_le_bytes(
                text.as_bytes()[index * 4..][..4]
                    .try_into()
                    .expect("4 bytes"),
            )
        };
        [word(0), word(1), word(2)]
    }

    /// A processor of Intel's at 24 MHz x 176 / 2, inside of KVM.
    fn intel(function: u32, _: u32) -> Option<CpuidEntry> {
        let mut leaf = CpuidEntry {
            function,
            ..CpuidEntry::default()
        };
        match function {
            0 => [leaf.ebx, leaf.edx, leaf.ecx] = letters("GenuineIntel"),
            1 => leaf.ecx = 1 << 31,
            0x15 => (leaf.eax, leaf.ebx, leaf.ecx) = (2, 176, 24_000_000),
            0x16 => leaf.eax = 0xabcd_0000 | 2_100,
            0x4000_0000 => [leaf.ebx, leaf.ecx, leaf.edx] = letters("KVMKVMKVM\0\0\0"),
            0x4000_0010 => leaf.eax = 2_112_001,
            0x8000_0001 => leaf.edx = 1 << 27,
            0x8000_0002 => leaf.eax = u32::from_le_bytes(*b"  A\x1b"),
            0x8000_0003 | 0x8000_0004 => {}
            0x8000_0007 => leaf.edx = 1 << 8,
            _ => return None,
        }
        Some(leaf)
    }

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("in a folder")).expect("made");
            fs::write(path, text).expect("written");
        }
        root
    }

    const CURRENT: &str = "sys/devices/system/clocksource/clocksource0/current_clocksource";
    const AVAILABLE: &str = "sys/devices/system/clocksource/clocksource0/available_clocksource";

    #[test]
    fn platform_that_tells_everything_is_read() {
        let root = root(&[
            (CURRENT, "tsc\n"),
            (AVAILABLE, "tsc hpet acpi_pm \n"),
            ("sys/module/kvm/parameters/tsc_tolerance_ppm", "100\n"),
            ("sys/devices/system/cpu/cpu0/tsc_freq_khz", "2111999\n"),
        ]);
        let platform = Platform::read(&Sources {
            cpuid: &intel,
            root: root.path(),
        });
        let claim = |source, khz| Claim {
            source,
            khz: Khz::new(khz).expect("a rate"),
        };
        assert_eq!(
            platform,
            Platform {
                vendor: "GenuineIntel".to_owned(),
                model: Some("A".to_owned()),
                hypervisor: Some("KVMKVMKVM".to_owned()),
                invariant_tsc: true,
                rdtscp: true,
                rates: vec![
                    claim("CPUID leaf 15H", 2_112_000),
                    claim("CPUID leaf 16H", 2_100_000),
                    claim("CPUID leaf 40000010H", 2_112_001),
                    claim("kernel, tsc_freq_khz", 2_111_999),
                ],
                clocksource: Some("tsc".to_owned()),
                clocksources: ["tsc", "hpet", "acpi_pm"].map(str::to_owned).to_vec(),
                tolerance: Ppm::new(100),
            }
        );
        assert_eq!(platform.report(), None);
    }

    #[test]
    fn platform_that_tells_nothing_is_not_trusted() {
        let root = root(&[("sys/module/kvm/parameters/tsc_tolerance_ppm", "many\n")]);
        let platform = Platform::read(&Sources {
            cpuid: &|_, _| None,
            root: root.path(),
        });
        assert_eq!(
            (platform.vendor.as_str(), platform.model.clone()),
            ("", None)
        );
        assert_eq!((platform.rates.len(), platform.tolerance), (0, None));
        assert_eq!(platform.report(), Some(PlatformReport::NotInvariant));
    }

    #[test]
    fn reports_against_the_tsc_are_told_apart() {
        // (current, available, report)
        let rows = [
            ("tsc", "tsc hpet", None),
            ("tsc-early", "tsc-early hpet", None),
            (
                "kvm-clock",
                "tsc kvm-clock",
                Some(PlatformReport::OtherClocksource),
            ),
            ("hpet", "hpet acpi_pm", Some(PlatformReport::KernelMark)),
        ];
        for (current, available, report) in rows {
            let root = root(&[(CURRENT, current), (AVAILABLE, available)]);
            let platform = Platform::read(&Sources {
                cpuid: &intel,
                root: root.path(),
            });
            assert_eq!(platform.report(), report, "{current}");
        }
    }
}
