//! Bad input: one line on standard error that names the culprit and the cure, status 1, nothing on
//! standard output, and nothing left behind.

use anyhow::{Result, ensure};

use crate::guest::{MULTIBOOT, RESET};
use crate::host::image::{Files, Source};
use crate::kernels::Kernel;
use crate::scenario::{LAUNCHER, Needs, Outcome, Place, Scenario, file};

/// `e_machine` in an ELF header and AArch64's number there (ELF gABI, figure 4-3; registry 183).
const ELF_MACHINE: usize = 18;
const ELF_AARCH64: u16 = 183;
/// `p_memsz` of an ELF64's first program header, which follows the 64 bytes of the file header.
const ELF64_FIRST_MEMORY_SIZE: usize = 64 + 40;

/// Where the fields of a bzImage begin (Documentation/x86/boot.rst), and a few bytes beyond.
const BZIMAGE_FIELDS: &[u32] = &[
    0x1f1, 0x1f2, 0x1f4, 0x1f8, 0x1fa, 0x1fc, 0x1fe, 0x200, 0x202, 0x206, 0x208, 0x20c, 0x20e,
    0x210, 0x211, 0x212, 0x214, 0x218, 0x21c, 0x220, 0x224, 0x226, 0x227, 0x228, 0x22c, 0x230,
    0x234, 0x235, 0x236, 0x238, 0x23c, 0x240, 0x248, 0x24c, 0x250, 0x258, 0x260, 0x264, 0x268,
    0x26c, 0x400, 0x8000, 0x10_0000,
];
/// Where the fields of an ELF64 begin, then those of its first program header, then its segment of code
/// (which `ld` puts at the second page), and the last size that lacks a byte of it.
const ELF64_FIELDS: &[u32] = &[
    1, 4, 5, 6, 7, 16, 18, 20, 24, 32, 40, 48, 52, 54, 56, 58, 60, 62, 64, 68, 72, 80, 88, 96, 104,
    112, 120, 0x1000, 0x1001, 0x1027,
];
/// The same of an ELF32.
const ELF32_FIELDS: &[u32] = &[
    1, 4, 5, 6, 7, 16, 18, 20, 24, 28, 32, 36, 40, 42, 44, 46, 48, 50, 52, 56, 60, 64, 68, 72, 76,
    80, 84, 0x1000, 0x1001, 0x2001,
];

/// The scenarios.
pub(super) fn all() -> Vec<Scenario> {
    let mut scenarios = vec![
        truncated("error-bzimage-truncated", BZIMAGE_FIELDS, Victim::BzImage),
        truncated("error-elf64-truncated", ELF64_FIELDS, Victim::Elf64),
        truncated("error-elf32-truncated", ELF32_FIELDS, Victim::Elf32),
    ];
    scenarios.extend(rows().into_iter().map(|row| {
        Scenario::new(
            Place::Native,
            format!("error-{}", row.name),
            guarded(&row.command),
        )
        .files(bad_files)
        .check(move |outcome| check(outcome, row.parts))
        .needs(row.needs)
    }));
    scenarios
}

/// One bad command.
struct Row {
    name: &'static str,
    /// The shell's command; `L` stands for the launcher.
    command: String,
    /// What the message must hold: the culprit's name, and a word of the cure or of the reason that no
    /// other message about this culprit has.
    parts: &'static [&'static str],
    needs: Needs,
}

fn rows() -> Vec<Row> {
    let row = |name, command: &str, parts| Row {
        name,
        command: command.to_owned(),
        parts,
        needs: Needs::Kvm,
    };
    let long = |letters: usize| format!("L run --kernel KERNEL --cmdline {}", "x".repeat(letters));
    let in_namespace = |name, prepare: &str, parts| Row {
        name,
        // As root of a namespace of its own, which may mount; without capabilities, so that the
        // permissions of files hold for root too.
        command: format!(
            "unshare --map-root-user --mount sh -ec '{prepare}; \
             exec setpriv --bounding-set=-all --inh-caps=-all ./{LAUNCHER} run --kernel guest'"
        ),
        parts,
        needs: Needs::MountNamespace,
    };
    vec![
        row(
            "kernel-missing",
            "L run --kernel missing",
            &["kernel", "missing", "check its path"],
        ),
        row(
            "kernel-folder",
            "L run --kernel /proc",
            &["/proc", "plain file"],
        ),
        row(
            "kernel-empty",
            "L run --kernel empty",
            &["empty", "one with content"],
        ),
        row(
            "kernel-text",
            "L run --kernel text",
            &["text", "known format"],
        ),
        row(
            "kernel-aarch64",
            "L run --kernel aarch64",
            &["aarch64", "built for x86"],
        ),
        row(
            "kernel-elf-too-large",
            "L run --kernel huge --memory 128",
            &["huge", "at least 1025 MiB"],
        ),
        row(
            "kernel-bzimage-too-large",
            "L run --kernel bzimage --memory 16",
            &["bzimage", "at least"],
        ),
        row(
            "initrd-missing",
            "L run --kernel guest --initrd missing",
            &["initrd", "missing", "check its path"],
        ),
        // It fits into the memory, but not beside the kernel.
        row(
            "initrd-too-large",
            "truncate -s 100M large; L run --kernel bzimage --initrd large --memory 128",
            &["large", "more memory"],
        ),
        row(
            "cmdline-too-long",
            &long(3000).replace("KERNEL", "bzimage"),
            &["command line", "2047", "shorten"],
        ),
        // More than any kernel takes: than the room between the boot tables.
        row(
            "cmdline-beyond-room",
            &long(70_000).replace("KERNEL", "guest"),
            &["command line", "65535", "shorten"],
        ),
        row(
            "disk-missing",
            "L run --kernel guest --disk missing",
            &["disk image", "missing", "check its path", "no such file"],
        ),
        row(
            "disk-folder",
            "L run --kernel guest --disk /proc",
            &["/proc", "is a directory", "plain file or a block device"],
        ),
        row(
            "disk-locked",
            "flock text L run --kernel guest --disk text",
            &["text", "locked by another", "read-only"],
        ),
        row(
            "cpus-0",
            "L run --kernel guest --cpus 0",
            &["--cpus", "0 vCPUs", "1 to 32"],
        ),
        row(
            "cpus-1000",
            "L run --kernel guest --cpus 1000",
            &["--cpus", "1000 vCPUs", "1 to 32"],
        ),
        row(
            "memory-0",
            "L run --kernel guest --memory 0",
            &["--memory", " 0 MiB", "between 1 and"],
        ),
        row(
            "memory-beyond-address-space",
            "L run --kernel guest --memory 100000000",
            &["--memory", "100000000 MiB", "between 1 and"],
        ),
        // The least that is more than the host has.
        row(
            "memory-beyond-host",
            "L run --kernel guest \
             --memory $(awk '/^MemTotal:/ { print int($2 / 1024) + 1 }' /proc/meminfo)",
            &["MiB of guest memory", "this host has", "ask for less"],
        ),
        row("kernel-option-missing", "L run", &["--kernel", "--help"]),
        row(
            "config-missing",
            "L --no-api --config-file missing",
            &["configuration file", "missing", "check its path"],
        ),
        row(
            "config-malformed",
            "L --no-api --config-file malformed.json",
            &["malformed.json", "line 2", "column"],
        ),
        row(
            "config-unknown-key",
            "L --no-api --config-file unknown.json",
            &["unknown.json", "boots", "line 1", "column"],
        ),
        // These hide /dev alone: the working folder and the launcher may lie anywhere else.
        in_namespace(
            "kvm-missing",
            "mount -t tmpfs none /dev",
            &["/dev/kvm", "kvm_intel or kvm_amd"],
        ),
        in_namespace(
            "kvm-forbidden",
            "mount -t tmpfs none /dev; touch /dev/kvm; chmod 0 /dev/kvm",
            &["/dev/kvm", "permission", "group"],
        ),
    ]
}

/// `command`, with a look at the folder before and after.
fn guarded(command: &str) -> String {
    let command = command.replace("L ", &format!("./{LAUNCHER} "));
    // A file that the command itself makes comes before the look.
    let (prepare, command) = command.split_once("; ./").map_or_else(
        || (String::new(), command.clone()),
        |(prepare, rest)| (format!("{prepare}\n"), format!("./{rest}")),
    );
    format!(
        "{prepare}before=$(ls -A)\n{command}\nstatus=$?\n\
         [ \"$before\" = \"$(ls -A)\" ] || ls -A\nexit $status\n"
    )
}

fn bad_files(workshop: &crate::workshop::Workshop) -> Result<Files> {
    let guest = RESET.build()?;
    let patched = |at: usize, bytes: &[u8]| {
        let mut patched = guest.clone();
        patched[at..at + bytes.len()].copy_from_slice(bytes);
        Source::Bytes(patched)
    };
    let text = |text: &str| Source::Bytes(text.into());
    let files = [
        ("aarch64", patched(ELF_MACHINE, &ELF_AARCH64.to_le_bytes())),
        (
            "huge",
            patched(ELF64_FIRST_MEMORY_SIZE, &(1_u64 << 30).to_le_bytes()),
        ),
        ("empty", text("")),
        ("text", text("This is no kernel, whatever its name says.\n")),
        ("malformed.json", text("{\n  \"boot-source\" 1\n}\n")),
        (
            "unknown.json",
            text("{\"boot-source\": {\"kernel_image_path\": \"guest\"}, \"boots\": 1}\n"),
        ),
        ("bzimage", file(&workshop.stock(Kernel::Amd64)?.image)),
        ("guest", Source::Bytes(guest.clone())),
    ];
    Ok(files.map(|(name, source)| (name.to_owned(), source)).into())
}

fn check(outcome: &Outcome, parts: &[&str]) -> Result<()> {
    outcome.expect_status(1)?;
    let printed = outcome.stdout_text();
    ensure!(
        printed.is_empty(),
        "printed, or left behind in its folder: {printed:?}"
    );
    check_message(&outcome.stderr_text(), parts)
}

fn check_message(message: &str, parts: &[&str]) -> Result<()> {
    ensure!(message.lines().count() == 1, "not one line: {message:?}");
    let lower = message.to_lowercase();
    for part in parts {
        ensure!(
            lower.contains(&part.to_lowercase()),
            "{message:?} does not say {part:?}"
        );
    }
    Ok(())
}

/// What is cut off.
#[derive(Debug, Clone, Copy)]
enum Victim {
    BzImage,
    Elf64,
    Elf32,
}

/// What the messages about the pieces of a kernel say: the file's name, and what is wrong with it.
const PIECE: &str = "stump";
const CUT_SHORT: &str = "cut short";

/// Cuts a kernel at each of `sizes` and tries to boot each piece.
fn truncated(name: &str, sizes: &'static [u32], victim: Victim) -> Scenario {
    let list: Vec<String> = sizes.iter().map(u32::to_string).collect();
    let script = format!(
        "for size in {}; do\n  head -c $size whole >{PIECE}\n  \
         ./{LAUNCHER} run --kernel {PIECE} >out 2>err\n  \
         echo \"$size $? $(wc -l <err) $(wc -c <out) $(cat err)\"\ndone\n",
        list.join(" ")
    );
    Scenario::new(Place::Native, name, script)
        .files(move |workshop| {
            let whole = match victim {
                Victim::BzImage => file(&workshop.stock(Kernel::Amd64)?.image),
                Victim::Elf64 => Source::Bytes(RESET.build()?),
                Victim::Elf32 => Source::Bytes(MULTIBOOT.build()?),
            };
            Ok(Files::from([("whole".to_owned(), whole)]))
        })
        .check(move |outcome| check_truncated(outcome, sizes))
        .seconds(2, 120)
}

fn check_truncated(outcome: &Outcome, sizes: &[u32]) -> Result<()> {
    outcome.expect_status(0)?;
    let text = outcome.stdout_text();
    let mut lines = text.lines();
    for size in sizes {
        let wanted = format!("{size} 1 1 0 ");
        let line = lines.next().unwrap_or_default();
        let message = line.strip_prefix(&wanted);
        ensure!(
            message.is_some_and(|message| [PIECE, CUT_SHORT]
                .iter()
                .all(|part| message.contains(part))),
            "{size} bytes: {line:?} is not {wanted:?} (size, status, lines, output) and a message with \
             {PIECE:?} and {CUT_SHORT:?}"
        );
    }
    ensure!(lines.next().is_none(), "more output than sizes");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_message_each_fault_fails() {
        check_message("keeptime: cannot open Missing\n", &["missing"]).unwrap();
        for message in [
            "",
            "keeptime: cannot open it\n",
            "keeptime: missing\nand more\n",
        ] {
            assert!(check_message(message, &["missing"]).is_err(), "{message:?}");
        }
    }

    #[test]
    fn check_truncated_wrong_status_or_a_second_line_fails() {
        let judged = |text: &str| {
            let stdout = text.as_bytes().to_vec();
            check_truncated(
                &Outcome {
                    status: Some(0),
                    stdout,
                    stderr: Vec::new(),
                },
                &[7],
            )
        };
        judged("7 1 1 0 stump is cut short\n").unwrap();
        for text in [
            "7 2 1 0 stump is cut short\n",
            "7 1 2 0 stump is cut short\n",
            "7 1 1 3 stump is cut short\n",
            "7 1 1 0 the kernel is cut short\n",
            "7 1 1 0 cannot read stump\n",
            "7 1 1 0 \n",
            "",
        ] {
            assert!(judged(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn guarded_command_that_leaves_a_file_prints_it() {
        let folder = tempfile::tempdir().unwrap();
        let run = |command: &str| {
            let script = guarded(command);
            let mut shell = std::process::Command::new("sh");
            let output = shell
                .current_dir(folder.path())
                .args(["-c", &script])
                .output()
                .unwrap();
            (
                output.status.code(),
                String::from_utf8(output.stdout).unwrap(),
            )
        };
        assert_eq!(run("(exit 1)"), (Some(1), String::new()));
        assert_eq!(run("touch left; (exit 1)"), (Some(1), "left\n".to_owned()));
    }
}
