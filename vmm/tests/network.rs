//! Taps that can be had and taps that cannot, in a network namespace of the test's own.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

use support::{FOR_EVER, RESET, elf};

/// Why taps cannot be tried here, if they cannot.
fn lacking() -> Option<&'static str> {
    if !Path::new("/dev/net/tun").exists() {
        return Some("there is no /dev/net/tun");
    }
    let made = Command::new("unshare").args(["--net", "true"]).output();
    match made {
        Ok(output) if output.status.success() => None,
        _ => Some("no network namespace can be made (unshare, root)"),
    }
}

/// A guest that does nothing, in a network namespace of its own, with a card on `tap`.
struct Holder(
    Child,
    #[expect(dead_code, reason = "kept until it is loaded")] NamedTempFile,
);

impl Holder {
    fn of(tap: &str) -> Self {
        let guest = elf(&FOR_EVER);
        let child = Command::new("unshare")
            .args(["--net", env!("CARGO_BIN_EXE_keeptime"), "run", "--net", tap])
            .arg("--kernel")
            .arg(guest.path())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("unshare");
        let holder = Self(child, guest);
        // `unshare` becomes the launcher, which makes the tap before the guest is there.
        let devices = format!("/proc/{}/net/dev", holder.0.id());
        let begin = Instant::now();
        while !fs::read_to_string(&devices).is_ok_and(|text| text.contains(&format!("{tap}:"))) {
            assert!(begin.elapsed() < Duration::from_secs(60), "no {tap}");
            std::thread::yield_now();
        }
        holder
    }

    /// Another launcher in the same namespace.
    fn beside(&self, before: &[&str], net: &str) -> Output {
        let guest = elf(&RESET);
        Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", self.0.id()))
            .args(before)
            .args([env!("CARGO_BIN_EXE_keeptime"), "run", "--net", net])
            .arg("--kernel")
            .arg(guest.path())
            .stdin(Stdio::null())
            .output()
            .expect("nsenter")
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn tap_that_cannot_be_had_is_told_with_the_cure() {
    if let Some(lacking) = lacking() {
        return println!("skipped here: {lacking}");
    }
    let holder = Holder::of("kt0");
    let without_right = ["setpriv", "--bounding-set=-net_admin", "--"];
    for (before, net, status, parts) in [
        (&[][..], "kt0", 1, ["\"kt0\" is in use", "give another"]),
        (
            &[],
            "lo",
            1,
            ["\"lo\" is not a tap", "ip tuntap add dev lo"],
        ),
        (
            &without_right,
            "kt1",
            1,
            [
                "\"kt1\" may not be had",
                "ip tuntap add dev kt1 mode tap user 0",
            ],
        ),
        (&[], "a/b", 2, ["host_dev_name: ", "1 to 15 bytes"]),
    ] {
        let output = holder.beside(before, net);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let last = told.lines().last().unwrap_or_default();
        for part in parts {
            assert!(told.contains(part), "{net}: {told}");
        }
        assert!(status == 2 || last.contains(parts[0]), "{net}: {told}");
        assert!(!output.status.success(), "{net}: {told}");
    }
    // One that nobody has is made, and goes with its guest.
    let output = holder.beside(&[], "kt2,mac=aa:fc:00:00:00:01,mtu=1400");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let devices = format!("/proc/{}/net/dev", holder.0.id());
    let devices = fs::read_to_string(devices).expect("our child");
    assert!(
        devices.contains("kt0:") && !devices.contains("kt2:"),
        "{devices}"
    );
}
