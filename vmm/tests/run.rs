//! Guests of a few bytes on this machine's KVM: how they end, and what the launcher says of it.

mod support;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

use support::{RESET, elf, print};
use tempfile::NamedTempFile;

fn launch(arguments: &[&str], kernel: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_keeptime"))
        .args(arguments)
        .arg("--kernel")
        .arg(kernel)
        .stdin(std::process::Stdio::null())
        .output()
        .expect("the launcher runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn guest_of_a_configuration_file_runs_and_resets() {
    let guest = elf(&[print("from a file"), RESET.to_vec()].concat());
    let config = |cpus: u32| {
        let mut file = NamedTempFile::new().expect("a temporary file");
        write!(
            file,
            r#"{{"boot-source": {{"kernel_image_path": {:?}}},
                "machine-config": {{"vcpu_count": {cpus}, "mem_size_mib": 64}}}}"#,
            guest.path()
        )
        .expect("room");
        file
    };
    // The processors beyond the first wait for a start-up interrupt that never comes, and must be
    // stopped all the same.
    for cpus in [1, 4] {
        let output = Command::new(env!("CARGO_BIN_EXE_keeptime"))
            .args(["--level", "error", "--no-api", "--config-file"])
            .arg(config(cpus).path())
            .stdin(std::process::Stdio::null())
            .output()
            .expect("the launcher runs");
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "from a file");
        assert_eq!(text(&output.stderr), "");
    }
}

#[test]
fn boot_timer_logs_the_time_once_for_each_byte_and_only_if_asked_for() {
    // mov eax, 0xc0000000; mov byte [rax], 123; mov byte [rax], 122
    let mut code = vec![0xb8, 0, 0, 0, 0xc0, 0xc6, 0x00, 123, 0xc6, 0x00, 122];
    code.extend(RESET);
    let guest = elf(&code);
    for (arguments, lines) in [(&["run"][..], 0), (&["run", "--boot-timer"], 1)] {
        let output = launch(arguments, guest.path());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let seen = text(&output.stderr).matches("Guest-boot-time = ").count();
        assert_eq!(seen, lines, "{}", text(&output.stderr));
    }
}

/// A guest that says its command line, as the 64-bit boot protocol hands it over (`cmd_line_ptr` at 0x228,
/// Documentation/arch/x86/zero-page.rst).
fn saying_its_command_line() -> NamedTempFile {
    // mov esi, [rsi + 0x228]; mov dx, 0x3f8; cld
    let mut code = vec![0x8b, 0xb6, 0x28, 0x02, 0, 0, 0x66, 0xba, 0xf8, 0x03, 0xfc];
    // lodsb; test al, al; je +3; out dx, al; jmp -8
    code.extend([0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8]);
    code.extend(RESET);
    elf(&code)
}

#[test]
fn places_of_devices_are_on_the_command_line_of_those_who_ask() {
    const WORDS: &str = "virtio_mmio.device=4K@0xc0001000:5 virtio_mmio.device=4K@0xc0002000:6";
    let guest = saying_its_command_line();
    let disk = NamedTempFile::new().expect("a temporary file");
    disk.as_file().set_len(1 << 20).expect("room");
    let path = disk.path().to_str().expect("a name in UTF-8");
    let root = format!("{path},root");
    let line = ["run", "--entropy", "--disk", &root, "--cmdline", "a -- b"];
    for (flags, told) in [(&[][..], ""), (&["--virtio-mmio-args"], WORDS)] {
        let output = launch(&[&line[..], flags].concat(), guest.path());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let expected = format!("a root=/dev/vda rw {told}").trim_end().to_owned() + " -- b";
        assert_eq!(text(&output.stdout), expected);
    }
    for (field, flags, told) in [
        ("", &[][..], ""),
        (r#","virtio_mmio_args":true"#, &[], WORDS),
        ("", &["--virtio-mmio-args"], WORDS),
    ] {
        let mut file = NamedTempFile::new().expect("a temporary file");
        write!(
            file,
            r#"{{"boot-source": {{"kernel_image_path": {:?},"boot_args":""{field}}}, "entropy": {{}},
                "drives": [{{"drive_id": "d", "path_on_host": {path:?}, "is_root_device": false}}]}}"#,
            guest.path()
        )
        .expect("room");
        let output = Command::new(env!("CARGO_BIN_EXE_keeptime"))
            .args(flags)
            .args(["--no-api", "--config-file"])
            .arg(file.path())
            .stdin(std::process::Stdio::null())
            .output()
            .expect("the launcher runs");
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), told, "{field} {flags:?}");
    }
}

#[test]
fn command_line_without_room_for_the_places_of_devices_is_refused() {
    let guest = saying_its_command_line();
    // (bytes of the user's, whether it fits): 34 more, with a space between, in 2,047 (`COMMAND_LINE_SIZE`).
    for (len, fits) in [(2_012, true), (2_013, false)] {
        let line = "x".repeat(len);
        let arguments = ["run", "--entropy", "--virtio-mmio-args", "--cmdline", &line];
        let output = launch(&arguments, guest.path());
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(i32::from(!fits)), "{told}");
        if !fits {
            assert!(
                told.contains(
                    "the command line has 2048 bytes, but this kernel takes 2047 at most"
                ),
                "{told}"
            );
        }
    }
}

#[test]
fn string_output_arrives_byte_for_byte() {
    // lea rsi, [rip + text]; mov ecx, length; mov dx, 0x3f8; cld; rep outsb; then reset; text
    let message = b"a whole string by one instruction";
    let mut code = vec![0x48, 0x8d, 0x35, 0x12, 0, 0, 0];
    code.extend([0xb9, u8::try_from(message.len()).expect("short"), 0, 0, 0]);
    code.extend([0x66, 0xba, 0xf8, 0x03, 0xfc, 0xf3, 0x6e]);
    // 5 + 7 + 6 bytes lie between the end of lea and the text
    code.extend(RESET);
    code.extend(message);
    let output = launch(&["run"], elf(&code).path());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).as_bytes(), message);
}

#[test]
fn vcpu_that_cannot_go_on_is_reported_with_its_registers() {
    // mov ebx, 0x12345678; mov eax, 0xd0000000; jmp rax: no memory there to take instructions from
    let guest = elf(&[
        0xbb, 0x78, 0x56, 0x34, 0x12, 0xb8, 0, 0, 0, 0xd0, 0xff, 0xe0, 0xeb, 0xfe,
    ]);
    let output = launch(&["run"], guest.path());
    let report = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{report}");
    for part in [
        "vCPU 0: ",
        "rip 00000000d0000000",
        "rbx 0000000012345678",
        "64-bit",
    ] {
        assert!(report.contains(part), "{part} is not in {report}");
    }
}

#[test]
fn debug_exit_port_is_there_only_if_asked_for() {
    // mov al, 0x2a; out 0xf4, al; then reset
    let guest = elf(&[&[0xb0, 0x2a, 0xe6, 0xf4][..], &RESET].concat());
    // (0x2a << 1) | 1 = 0x55
    for (arguments, status) in [(&["run"][..], 0), (&["run", "--debug-exit"], 0x55)] {
        let output = launch(arguments, guest.path());
        assert_eq!(
            output.status.code(),
            Some(status),
            "{}",
            text(&output.stderr)
        );
    }
}

#[test]
fn guest_output_to_a_full_device_is_lost_and_the_guest_goes_on() {
    let guest = elf(&[print("nobody takes this"), RESET.to_vec()].concat());
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .expect("Linux has it");
    let status = Command::new(env!("CARGO_BIN_EXE_keeptime"))
        .args(["run", "--kernel"])
        .arg(guest.path())
        .stdin(std::process::Stdio::null())
        .stdout(full)
        .status()
        .expect("the launcher runs");
    assert_eq!(status.code(), Some(0));
}
