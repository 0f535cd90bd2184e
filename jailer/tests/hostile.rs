//! Values that a jailer refuses: each time it says what is wrong and what to do, and leaves nothing behind.

mod support;

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::Command;

use support::{Place, USER, os};

#[test]
fn ids_of_other_characters_are_refused() {
    let Some(place) = Place::enter("ids_of_other_characters_are_refused") else {
        return;
    };
    let long = "a".repeat(65);
    for id in [
        "", ".", "..", "a/b", "/a", "../a", &long, "é", "𝟏", "a\nb", "a b", "a_b", "a.b", "a\u{7f}",
    ] {
        place.refuses(
            &format!("{id:?}"),
            &mut place.jailer(&[("--id", os(id))]),
            &[
                "--id",
                if id.is_empty() {
                    ""
                } else {
                    "1 to 64 letters, digits and hyphens"
                },
            ],
        );
    }
    place.refuses(
        "not UTF-8",
        &mut place.jailer(&[("--id", OsStr::from_bytes(b"a\xff"))]),
        &["UTF-8"],
    );
}

#[test]
fn exec_files_that_others_could_change_or_nobody_can_execute_are_refused() {
    let Some(place) =
        Place::enter("exec_files_that_others_could_change_or_nobody_can_execute_are_refused")
    else {
        return;
    };
    let bin = place.path("bin");
    let image = fs::read(bin.join("end")).expect("ours");
    symlink("end", bin.join("link")).expect("ours");
    symlink(&bin, place.path("link")).expect("ours");
    symlink("nowhere", bin.join("dangling")).expect("ours");
    for (name, mode) in [("set-uid", 0o4755), ("set-gid", 0o2755), ("plain", 0o644)] {
        let path = place.program(name, &image);
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("ours");
    }
    place.program("one", &image);
    fs::hard_link(bin.join("one"), bin.join("two")).expect("ours");
    fs::create_dir(bin.join("folder")).expect("ours");
    let made = Command::new("mkfifo").arg(bin.join("fifo")).status();
    assert!(made.is_ok_and(|status| status.success()));
    let _socket = UnixListener::bind(bin.join("socket")).expect("ours");
    place.program("empty", b"");
    place.program("script", b"#!/bin/sh\nexit 0\n");
    place.program("cut", image.get(..64).expect("longer"));
    place.program("dev", &image);
    place.program("run", &image);
    // The kind of the only program header, at 64: PT_INTERP
    let mut dynamic = image.clone();
    dynamic[64] = 3;
    place.program("dynamic", &dynamic);
    // e_machine, at 18: EM_AARCH64
    let mut foreign = image.clone();
    foreign[18] = 183;
    place.program("foreign", &foreign);
    for (name, parts) in [
        (
            "bin/link",
            [
                "bin/link is a symbolic link to end",
                "name the place itself",
            ],
        ),
        (
            "link/end",
            ["link is a symbolic link to /", "name the place itself"],
        ),
        (
            "bin/dangling",
            ["is a symbolic link to nowhere", "name the place itself"],
        ),
        (
            "bin/../bin/end",
            ["contains `..`", "name the place without it"],
        ),
        ("bin/one", ["has 2 hard links", "give a copy of its own"]),
        (
            "bin/folder",
            ["is not a regular file", "give the path of the program"],
        ),
        (
            "bin/fifo",
            ["is not a regular file", "give the path of the program"],
        ),
        (
            "bin/socket",
            ["is not a regular file", "give the path of the program"],
        ),
        ("bin/set-uid", ["is set-uid or set-gid", "chmod ug-s"]),
        ("bin/set-gid", ["is set-uid or set-gid", "chmod ug-s"]),
        ("bin/plain", ["is not executable", "chmod +x"]),
        (
            "bin/missing",
            ["does not exist", "make it, or name another"],
        ),
        ("bin/end/more", ["is not a directory", "choose another"]),
        (
            "bin/empty",
            ["is no ELF program for x86-64", "no interpreter"],
        ),
        (
            "bin/script",
            ["is no ELF program for x86-64", "no interpreter"],
        ),
        (
            "bin/cut",
            ["is no ELF program for x86-64", "no interpreter"],
        ),
        (
            "bin/foreign",
            ["is no ELF program for x86-64", "no interpreter"],
        ),
        (
            "bin/dynamic",
            ["is linked dynamically", "link it statically"],
        ),
        (
            "bin/dev",
            ["a name that the jail itself needs", "rename it"],
        ),
        (
            "bin/run",
            ["a name that the jail itself needs", "rename it"],
        ),
        ("bin/..", ["names no file", "give the path of the program"]),
    ] {
        let path = place.path(name);
        let mut jailer = place.jailer(&[("--exec-file", path.as_os_str())]);
        place.refuses(name, &mut jailer, &["--exec-file", parts[0], parts[1]]);
    }
    for (path, part) in [
        ("/dev/null", "is not a regular file"),
        ("/", "names no file"),
        ("", "--exec-file"),
    ] {
        let mut jailer = place.jailer(&[("--exec-file", os(path))]);
        place.refuses(path, &mut jailer, &["--exec-file", part]);
    }
}

#[test]
fn program_that_the_kernel_does_not_execute_leaves_no_jail() {
    let Some(place) =
        Place::enter_with_cgroups("program_that_the_kernel_does_not_execute_leaves_no_jail")
    else {
        return;
    };
    /// Whether a process has left its cgroup in time is a race.
    const ROUNDS: usize = 5;
    let unfit = place.path("bin/unfit");
    for cgroup in [
        None,
        Some((1, "pids.max=100")),
        Some((2, "cgroup.max.depth=7")),
    ] {
        let mut settings = vec![("--exec-file", unfit.as_os_str())];
        let version = cgroup.map_or(1, |(version, _)| version).to_string();
        if let Some((number, setting)) = cgroup {
            if place.hierarchy(number).is_none() {
                continue;
            }
            settings.extend([
                ("--cgroup-version", os(&version)),
                ("--cgroup", os(setting)),
                ("--parent-cgroup", os("one/two")),
            ]);
        }
        for flags in [
            &[][..],
            &["--new-pid-ns"],
            &["--daemonize"],
            &["--daemonize", "--new-pid-ns"],
        ]
        .repeat(ROUNDS)
        {
            place.refuses(
                &format!("{cgroup:?}, {flags:?}"),
                place.jailer(&settings).args(flags),
                &["cannot execute /unfit in the jail", "Exec format error"],
            );
        }
    }
}

#[test]
fn start_without_a_capability_is_refused_at_once() {
    let Some(place) = Place::enter("start_without_a_capability_is_refused_at_once") else {
        return;
    };
    for capability in [
        "chown",
        "dac_override",
        "fowner",
        "mknod",
        "setgid",
        "setpcap",
        "setuid",
        "sys_admin",
        "sys_chroot",
    ] {
        let mut without = Command::new("setpriv");
        without
            .arg(format!("--bounding-set=-{capability}"))
            .arg(env!("CARGO_BIN_EXE_jailer"))
            .args(place.arguments(&[]));
        let name = format!("CAP_{}", capability.to_uppercase());
        place.refuses(&name, &mut without, &["lacks", &name, "run it as root"]);
    }
}

#[test]
fn users_groups_and_limits_out_of_range_are_refused() {
    let Some(place) = Place::enter("users_groups_and_limits_out_of_range_are_refused") else {
        return;
    };
    for flag in ["--uid", "--gid"] {
        for value in [
            "-1",
            "4294967295",
            "4294967296",
            "18446744073709551616",
            "root",
            "1e3",
            " 1",
        ] {
            let mut jailer = place.jailer(&[(flag, os(value))]);
            place.refuses(value, &mut jailer, &[flag, "choose 0 to 4294967294"]);
        }
        place.refuses("empty", &mut place.jailer(&[(flag, os(""))]), &[flag]);
    }
    for (value, cure) in [
        ("nofile=7", "choose fsize or no-file"),
        ("cpu=7", "choose fsize or no-file"),
        ("=7", "choose fsize or no-file"),
        ("no-file", "give fsize=BYTES or no-file=COUNT"),
        ("no-file=", "give fsize=BYTES or no-file=COUNT"),
        ("no-file=-1", "give fsize=BYTES or no-file=COUNT"),
        ("no-file=0x10", "give fsize=BYTES or no-file=COUNT"),
        ("fsize=1k", "give fsize=BYTES or no-file=COUNT"),
        (
            "fsize=18446744073709551616",
            "give fsize=BYTES or no-file=COUNT",
        ),
        ("no-file=18446744073709551615", "ask for less"),
        ("no-file=1073741824000", "ask for less"),
    ] {
        let mut jailer = place.jailer(&[("--resource-limit", os(value))]);
        place.refuses(value, &mut jailer, &["--resource-limit", cure]);
    }
    let mut jailer = Command::new("setpriv");
    jailer
        .args([
            "--bounding-set=-sys_resource",
            "prlimit",
            "--nofile=1000:1000",
        ])
        .arg(env!("CARGO_BIN_EXE_jailer"))
        .args(place.arguments(&[("--resource-limit", os("no-file=1001"))]));
    let parts = [
        "--resource-limit no-file=1001",
        "own limit of 1000",
        "ask for less",
    ];
    place.refuses("its own limit", &mut jailer, &parts);
}

#[test]
fn network_namespaces_that_are_none_are_refused() {
    let Some(place) = Place::enter("network_namespaces_that_are_none_are_refused") else {
        return;
    };
    let others = place.path("outside/others");
    fs::create_dir(&others).expect("ours");
    symlink("/proc/self/ns/net", others.join("link")).expect("ours");
    symlink("/proc/self/ns", others.join("folder")).expect("ours");
    std::os::unix::fs::lchown(others.join("link"), Some(USER), Some(USER)).expect("ours");
    std::os::unix::fs::chown(&others, Some(USER), Some(USER)).expect("ours");
    let made = Command::new("mkfifo")
        .arg(place.path("outside/fifo"))
        .status();
    assert!(made.is_ok_and(|status| status.success()));
    let up = format!("{}/../secret", others.display());
    let within = |name: &str| {
        place
            .path(name)
            .into_os_string()
            .into_string()
            .expect("ours")
    };
    for (netns, parts) in [
        (
            within("outside/missing"),
            ["does not exist", "name another"],
        ),
        (
            within("outside/secret"),
            ["is no network namespace", "ip netns add"],
        ),
        (
            within("outside/fifo"),
            ["is no network namespace", "ip netns add"],
        ),
        (
            within("outside"),
            ["is no network namespace", "ip netns add"],
        ),
        (
            "/proc/self/ns/mnt".to_owned(),
            ["is no network namespace", "ip netns add"],
        ),
        (
            "/proc/self/ns/user".to_owned(),
            ["is no network namespace", "ip netns add"],
        ),
        ("/proc/self/cwd".to_owned(), ["--netns", "ip netns add"]),
        (
            within("outside/others/link"),
            ["is a symbolic link to", "name the place itself"],
        ),
        (
            within("outside/others/folder/net"),
            ["is a symbolic link to", "name the place itself"],
        ),
        (up, ["contains `..`", "name the place without it"]),
        (String::new(), ["--netns", ""]),
    ] {
        let mut jailer = place.jailer(&[("--netns", os(&netns))]);
        place.refuses(&netns, &mut jailer, &["--netns", parts[0], parts[1]]);
    }
}

#[test]
fn cgroup_settings_that_are_not_one_line_for_one_file_are_refused() {
    let Some(place) =
        Place::enter_with_cgroups("cgroup_settings_that_are_not_one_line_for_one_file_are_refused")
    else {
        return;
    };
    let long = format!("pids.max={}", "1".repeat(4096));
    for version in ["1", "2"] {
        let file = "CONTROLLER.FILE";
        let line = "give one line";
        for (setting, cure) in [
            ("pids.max=1\n2", line),
            ("pids.max=1\n", line),
            ("pids.max=\n", line),
            ("pids.max=1\r2", line),
            ("pids.max=1\u{1b}[2J", line),
            ("pids.max=", line),
            (&long, line),
            ("pids.max", "FILE=VALUE"),
            ("", ""),
            ("=1", file),
            ("pids=1", file),
            (".=1", file),
            ("..=1", file),
            ("../cgroup.procs=1", file),
            ("pids.max/../cgroup.procs=1", file),
            ("/pids.max=1", file),
            ("vm/pids.max=1", file),
            ("pids..max=1", file),
            ("pids.max\n=1", file),
            ("pïds.max=1", file),
        ] {
            let mut jailer =
                place.jailer(&[("--cgroup-version", os(version)), ("--cgroup", os(setting))]);
            place.refuses(&format!("{setting:?}"), &mut jailer, &["--cgroup", cure]);
        }
        for parent in ["/", "/a", "..", "a/..", "a/../b", "../a", "a\nb"] {
            let mut jailer = place.jailer(&[
                ("--cgroup-version", os(version)),
                ("--cgroup", os("pids.max=1")),
                ("--parent-cgroup", os(parent)),
            ]);
            let parts = [
                "--parent-cgroup",
                "not a path below the root of the cgroups",
            ];
            place.refuses(&format!("{parent:?}"), &mut jailer, &parts);
        }
    }
    let mut jailer = place.jailer(&[("--cgroup-version", os("3"))]);
    place.refuses("version 3", &mut jailer, &["--cgroup-version", "1, 2"]);
}

#[test]
fn controllers_that_are_missing_are_named() {
    // Without hierarchies
    let Some(place) = Place::enter("controllers_that_are_missing_are_named") else {
        return;
    };
    let mut jailer = place.jailer(&[("--cgroup", os("pids.max=1"))]);
    let parts = [
        "pids.max",
        "no cgroup hierarchy of version 1",
        "try --cgroup-version 2",
    ];
    place.refuses("version 1", &mut jailer, &parts);
    let mut jailer = place.jailer(&[
        ("--cgroup", os("pids.max=1")),
        ("--cgroup-version", os("2")),
    ]);
    let parts = ["no cgroup hierarchy of version 2", "try --cgroup-version 1"];
    place.refuses("version 2", &mut jailer, &parts);
}

#[test]
fn values_that_the_kernel_refuses_leave_no_cgroup() {
    let Some(place) = Place::enter_with_cgroups("values_that_the_kernel_refuses_leave_no_cgroup")
    else {
        return;
    };
    if place.hierarchy(1).is_some() {
        for (setting, parts) in [
            // What a mount's options hold besides controllers is none.
            (
                "rw.max=1",
                [
                    "rw.max",
                    "no cgroup hierarchy of version 1 with the controller rw",
                ],
            ),
            (
                "nothing.max=1",
                ["nothing.max", "with the controller nothing"],
            ),
            (
                "pids.max=many",
                ["pids.max=many", "see the controller's documentation"],
            ),
            (
                "pids.current=1",
                ["pids.current", "see the controller's documentation"],
            ),
            (
                "pids.least=1",
                ["pids.least", "see the controller's documentation"],
            ),
        ] {
            let mut jailer = place.jailer(&[("--cgroup", os(setting))]);
            place.refuses(setting, &mut jailer, &parts);
        }
    }
    if let Some(unified) = place.hierarchy(2) {
        for (setting, parts) in [
            (
                "nothing.max=1",
                ["nothing.max", "have no controller nothing, but these:"],
            ),
            (
                "cgroup.freeze=perhaps",
                [
                    "cgroup.freeze=perhaps",
                    "see the controller's documentation",
                ],
            ),
            (
                "cgroup.controllers=pids",
                ["cgroup.controllers", "see the controller's documentation"],
            ),
            (
                "cgroup.nothing=1",
                ["cgroup.nothing", "see the controller's documentation"],
            ),
        ] {
            let mut jailer =
                place.jailer(&[("--cgroup-version", os("2")), ("--cgroup", os(setting))]);
            place.refuses(setting, &mut jailer, &parts);
        }
        let mut jailer = place.jailer(&[
            ("--cgroup-version", os("2")),
            ("--parent-cgroup", os("none")),
        ]);
        place.refuses(
            "parent",
            &mut jailer,
            &["--parent-cgroup", "does not exist", "make it"],
        );
        // Beside a threaded cgroup, others can be made and not entered: "Threads" of cgroup-v2.rst.
        fs::create_dir_all(unified.join("threads/one")).expect("ours");
        fs::write(unified.join("threads/one/cgroup.type"), "threaded").expect("ours");
        for flags in [&[][..], &["--new-pid-ns"]] {
            let mut jailer = place.jailer(&[
                ("--cgroup-version", os("2")),
                ("--cgroup", os("cgroup.max.depth=1")),
                ("--parent-cgroup", os("threads")),
            ]);
            let parts = [
                "cannot enter the cgroup",
                "threads/vm: choose another parent",
            ];
            place.refuses("threads", jailer.args(flags), &parts);
        }
    }
}
