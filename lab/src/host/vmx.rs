//! The vmx host: Bochs with Intel's VMX, EPT and TSC scaling, under Debian's kernel and its
//! `kvm-intel`. Its TSC is stable, and can be skewed per CPU through `/dev/cpu/N/msr`. Slow to start:
//! a minute, most of it firmware and the compact disc that the kernel comes on. A second of its clock is 7 to 12 s of one
//! processor's work.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;

use crate::host::image::Load;
use crate::process::{capture, tied};

/// Debian packages that the host needs.
pub(crate) const PACKAGES: &[&str] = &[
    "bochs",
    "bochsbios",
    "vgabios",
    "bochs-term",
    "isolinux",
    "syslinux-common",
    "xorriso",
];

/// The kernel's options, with nothing that an emulated PC is slow or wrong at. The rate is that of `ips` below, at which all
/// clocks of this PC tick: its processor claims 3.5 GHz, by which a second would be a minute and more of work. A kernel
/// that knows `IA32_TSC_ADJUST` sets it back when a CPU is idle (`tsc_verify_tsc_adjust` in arch/x86/kernel/tsc_sync.c), so
/// that no skew would last. No CPU leaves out its ticks when it is idle: else timers are late now and then (a
/// `sleep 10` took 13.9 s, and the kernel 25 s longer to take its TSC for good), and whoever comes back to work may set the
/// host's clock by a TSC that is skewed. So it is CPU 0 that keeps it.
pub(crate) const OPTIONS: &str = "tsc=reliable tsc_early_khz=200000 clearcpuid=tsc_adjust nohz=off \
    no_timer_check lpj=1000000 ima=off nokaslr mitigations=off";

/// Bochs's configuration. It has no serial port to a pipe, but to a file, which here is a FIFO.
const CONFIGURATION: &str = "\
plugin_ctrl: speaker=0, parallel=0, gameport=0, extfpuirq=0
megs: 1024
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
cpu: model=corei7_skylake_x, count=2, ips=200000000, reset_on_triple_fault=0, ignore_bad_msrs=1
clock: sync=none
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=host.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=serial
log: bochs.log
panic: action=fatal
error: action=report
info: action=ignore
debug: action=ignore
display_library: term
sound: driver=dummy, waveoutdrv=dummy
";

/// The modules to load.
pub(crate) fn loads() -> Vec<Load> {
    vec![
        Load {
            module: "kvm-intel",
            parameters: "",
        },
        // For taps.
        Load {
            module: "tun",
            parameters: "",
        },
        Load {
            module: "msr",
            parameters: "allow_writes=on",
        },
    ]
}

/// Writes the disc and the configuration into `folder`.
pub(crate) fn prepare(folder: &Path, kernel: &Path, initramfs: &Path, options: &str) -> Result<()> {
    let disc = folder.join("disc");
    let isolinux = disc.join("isolinux");
    fs::create_dir_all(&isolinux).context("cannot make the disc's folder")?;
    let copies = [
        (
            Path::new("/usr/lib/ISOLINUX/isolinux.bin"),
            isolinux.join("isolinux.bin"),
        ),
        (
            Path::new("/usr/lib/syslinux/modules/bios/ldlinux.c32"),
            isolinux.join("ldlinux.c32"),
        ),
        (kernel, disc.join("vmlinuz")),
        (initramfs, disc.join("initrd")),
    ];
    for (from, to) in copies {
        fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let menu = format!(
        "DEFAULT host\nPROMPT 0\nLABEL host\n  KERNEL /vmlinuz\n  INITRD /initrd\n  APPEND {options}\n"
    );
    let write = |name: &Path, text: &str| {
        fs::write(name, text).with_context(|| format!("cannot write {}", name.display()))
    };
    write(&isolinux.join("isolinux.cfg"), &menu)?;
    capture(
        Command::new("xorriso")
            .current_dir(folder)
            .args([
                "-as",
                "mkisofs",
                "-quiet",
                "-o",
                "host.iso",
                "-b",
                "isolinux/isolinux.bin",
            ])
            .args([
                "-c",
                "isolinux/boot.cat",
                "-no-emul-boot",
                "-boot-load-size",
                "4",
            ])
            .args(["-boot-info-table", "disc"]),
    )?;
    write(&folder.join("bochsrc"), CONFIGURATION)?;
    // Debian's build has the debugger on, which waits for this command: continue.
    write(&folder.join("commands"), "c\n")
}

/// The emulator's command. The `term` display is the only one that works in Debian's build, and it needs
/// a terminal.
pub(crate) fn command(folder: &Path) -> Command {
    // It has what nobody else wants of the processors: it waits without harm, since its clock counts instructions.
    let mut command = tied("chrt");
    command
        .args(["--idle", "0", "bochs"])
        .current_dir(folder)
        .env("TERM", "linux")
        .args(["-q", "-f", "bochsrc", "-rc", "commands"]);
    command
}

/// A terminal that nobody looks at: what is drawn on it is dropped.
pub(crate) fn blind_terminal() -> Result<File> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags).context("cannot open a pseudoterminal")?;
    rustix::pty::grantpt(&master).context("cannot set up a pseudoterminal")?;
    rustix::pty::unlockpt(&master).context("cannot unlock a pseudoterminal")?;
    let name = rustix::pty::ptsname(&master, Vec::new()).context("a pseudoterminal has no name")?;
    let terminal = open_terminal(&name.to_string_lossy())?;
    thread::spawn(move || drop_input(File::from(master)));
    Ok(terminal)
}

/// Reads `words`, Bochs's standard error, to its end, and empties the terminal that it names. With the
/// debugger built in, the display is not drawn on Bochs's own terminal but on a new one, for somebody
/// to look at; when nobody reads what is drawn, Bochs stops as soon as the terminal is full.
pub(crate) fn empty_screen(words: impl Read) {
    for line in BufReader::new(words).lines().map_while(Result::ok) {
        let Some(name) = screen(&line) else { continue };
        let Ok(terminal) = open_terminal(name) else {
            continue;
        };
        // As it is, the terminal would hold back what is not a whole line, and answer with an echo.
        if let Ok(mut modes) = rustix::termios::tcgetattr(&terminal) {
            modes.make_raw();
            let now = rustix::termios::OptionalActions::Now;
            if rustix::termios::tcsetattr(&terminal, now, &modes).is_ok() {
                thread::spawn(move || drop_input(terminal));
            }
        }
    }
}

/// The terminal that a line of Bochs's names.
fn screen(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("/dev/pts/")?;
    let digits = rest
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(rest.len());
    let start = line.len() - rest.len() - "/dev/pts/".len();
    (digits > 0).then(|| &line[start..line.len() - rest.len() + digits])
}

fn open_terminal(name: &str) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let terminal = rustix::fs::open(name, flags, Mode::empty());
    Ok(terminal
        .with_context(|| format!("cannot open the terminal {name}"))?
        .into())
}

/// Reads until the other end is closed everywhere, which is told as EIO.
fn drop_input(mut terminal: File) {
    let _ = io::copy(&mut terminal, &mut io::sink());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn screen_in_bochs_message_is_found() {
        assert_eq!(
            screen("Bochs connected to screen \"/dev/pts/12\""),
            Some("/dev/pts/12")
        );
        assert_eq!(screen("/dev/pts/3"), Some("/dev/pts/3"));
        assert_eq!(screen("/dev/pts/x"), None);
        assert_eq!(screen("<bochs:1>"), None);
    }
}
