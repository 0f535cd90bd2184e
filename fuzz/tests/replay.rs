//! The corpora on stable: every seed, and deterministic mutations of each.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use fuzz::TARGETS;

/// Mutations of each seed.
fn mutations(target: &str) -> u64 {
    match target {
        // A millisecond each: a guest that boots.
        "tsc_simulator" => 200,
        // As long: connections; a guest's memory, compared after each step.
        "mmds_frames" | "virtio_balloon" | "virtio_block" | "virtio_entropy" | "virtio_net"
        | "virtio_pmem" | "virtio_vsock" => 200,
        _ => 2000,
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files of `folder`, sorted; empty when it does not exist.
/// The files of a folder but for the fuzzer's own finds, which git ignores too: libFuzzer names them
/// by their SHA-1.
fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let is_find = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        name.len() == 40 && name.iter().all(u8::is_ascii_hexdigit)
    };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| !is_find(path));
    files.sort();
    files
}

/// Names the input when a target panics.
struct Input<'a> {
    target: &'a str,
    file: &'a Path,
    mutation: Option<u64>,
}

impl Drop for Input<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self {
                target,
                file,
                mutation,
            } = self;
            eprintln!("target {target}, {}, mutation {mutation:?}", file.display());
        }
    }
}

/// A generator of numbers, the same for the same seed: splitmix64 (Steele, Lea, Flood, 2014).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound.max(1)).unwrap()).unwrap()
    }
}

/// Changes, mostly in the first kilobyte where headers are: flipped bits, set bytes, extreme
/// words, and sometimes an end.
fn mutate(seed: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    const EXTREMES: [u64; 8] = [
        0,
        1,
        0xFF,
        0x7FFF_FFFF,
        0xFFFF_FFFF,
        1 << 32,
        1 << 63,
        u64::MAX,
    ];
    let mut bytes = seed.to_vec();
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(bytes.len().min(1024));
        let byte = u8::try_from(numbers.below(256)).unwrap();
        match numbers.below(4) {
            0 => bytes[at] ^= 1 << (byte & 7),
            1 => bytes[at] = byte,
            2 => {
                let extreme = EXTREMES[numbers.below(EXTREMES.len())].to_le_bytes();
                let width = 1 << numbers.below(4);
                for (to, from) in bytes[at..].iter_mut().zip(&extreme[..width]) {
                    *to = *from;
                }
            }
            _ if byte < 16 && bytes.len() > 1 => {
                let length = 1 + numbers.below(bytes.len() - 1);
                bytes.truncate(length);
            }
            _ => {}
        }
    }
    bytes
}

/// Runs a target on its seeds and on mutations of each.
fn replay(name: &str) {
    let (target, run) = TARGETS
        .iter()
        .find(|(target, _)| *target == name)
        .expect("a target of this name");
    let corpus = files(&root().join("corpus").join(target));
    assert!(!corpus.is_empty(), "target {target} has no corpus");
    for file in &corpus {
        let seed = fs::read(file).unwrap();
        let mut input = Input {
            target,
            file,
            mutation: None,
        };
        run(&seed);
        run(&[]);
        if seed.is_empty() {
            continue;
        }
        let mut numbers = Numbers(0);
        for mutation in 0..mutations(target) {
            input.mutation = Some(mutation);
            run(&mutate(&seed, &mut numbers));
        }
    }
}

/// A test for each target, so that they run side by side.
macro_rules! replays {
    ($($target:ident)*) => {
        mod seeds_and_their_mutations_hold_the_invariants {
            $(
                #[test]
                fn $target() {
                    super::replay(stringify!($target));
                }
            )*
        }

        const REPLAYED: &[&str] = &[$(stringify!($target)),*];
    };
}

replays! {
    acpi api_http api_request boot_any boot_bzimage boot_elf boot_multiboot cache config cpuid mmds_frames pvclock tsc_catchup
    tsc_nested tsc_plan tsc_ratio tsc_scale tsc_simulator tsc_skew tsc_watch virtio_balloon virtio_block virtio_entropy
    virtio_mmio virtio_net virtio_pmem virtio_vsock vmclock
}

#[test]
fn targets_corpora_and_binaries_are_the_same_set() {
    let names = |folder: &str| -> BTreeSet<String> {
        files(&root().join(folder))
            .iter()
            .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
            .collect()
    };
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("corpus"), targets);
    let replayed: BTreeSet<String> = REPLAYED.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(replayed, targets);
    assert_eq!(names("fuzz_targets"), targets);
}

#[test]
fn seeds_are_small() {
    let total: u64 = TARGETS
        .iter()
        .flat_map(|(target, _)| files(&root().join("corpus").join(target)))
        .map(|file| fs::metadata(file).unwrap().len())
        .sum();
    assert!(total < 300 << 10, "{total} bytes");
}
