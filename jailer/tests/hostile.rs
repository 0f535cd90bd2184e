//! What a jailer refuses: each time it says what is wrong and what to do, and leaves nothing behind.

mod support;

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use support::{Place, USER, mount, os, processes_called, reap};

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
    let unfit = place.path("bin/unfit");
    for version in [1, 2] {
        let setting = match (version, place.hierarchy(version)) {
            (_, None) => continue,
            (1, _) => "pids.max=100",
            _ => "cgroup.max.descendants=7",
        };
        for flags in [
            &[][..],
            &["--new-pid-ns"],
            &["--daemonize"],
            &["--daemonize", "--new-pid-ns"],
        ] {
            let version = version.to_string();
            let mut jailer = place.jailer(&[
                ("--exec-file", unfit.as_os_str()),
                ("--cgroup-version", os(&version)),
                ("--cgroup", os(setting)),
                ("--parent-cgroup", os("one/two")),
            ]);
            place.refuses(
                &format!("cgroups of version {version}, {flags:?}"),
                jailer.args(flags),
                &["cannot execute /unfit in the jail", "Exec format error"],
            );
        }
    }
}

/// The folders of a jail, the base `a/b/c` included.
const COMPONENTS: [&str; 9] = [
    "a",
    "a/b",
    "a/b/c",
    "a/b/c/end",
    "a/b/c/end/vm",
    "a/b/c/end/vm/root",
    "a/b/c/end/vm/root/dev",
    "a/b/c/end/vm/root/dev/net",
    "a/b/c/end/vm/root/run",
];

#[test]
fn links_in_the_way_are_refused_at_every_component() {
    let Some(place) = Place::enter("links_in_the_way_are_refused_at_every_component") else {
        return;
    };
    let outside = place.path("outside");
    for (number, component) in COMPONENTS.into_iter().enumerate() {
        for (kind, target) in [
            ("absolute", outside.clone()),
            (
                "relative",
                Path::new(&"../".repeat(40)).join(outside.strip_prefix("/").expect("absolute")),
            ),
            ("dangling", outside.join("new")),
            ("of procfs", "/proc/self/cwd".into()),
        ] {
            let top = place.path("base").join(format!("{number}-{kind}"));
            let planted = top.join(component);
            fs::create_dir_all(planted.parent().expect("below")).expect("ours");
            symlink(&target, &planted).expect("ours");
            let base = top.join("a/b/c");
            let mut jailer = place.jailer(&[("--chroot-base-dir", base.as_os_str())]);
            let says = format!(
                "{} is a symbolic link to {}",
                planted.display(),
                target.display()
            );
            jailer.current_dir(&outside);
            // Within the jail, what is named is where the jail is.
            place.refuses(
                &format!("{component}, {kind}"),
                &mut jailer,
                &[&says, "name the place itself"],
            );
        }
    }
}

#[test]
fn files_in_the_way_are_refused() {
    let Some(place) = Place::enter("files_in_the_way_are_refused") else {
        return;
    };
    let devices = ["dev/urandom", "dev/kvm", "dev/net/tun", "dev/userfaultfd"];
    let misc = fs::read_to_string("/proc/misc").expect("mounted");
    for (number, (name, part)) in [
        ("a", "is not a directory"),
        ("a/b/c", "is not a directory"),
        ("a/b/c/end", "is not a directory"),
        ("a/b/c/end/vm", "is not a directory"),
        ("a/b/c/end/vm/root", "is not a directory"),
        ("a/b/c/end/vm/root/dev", "is not a directory"),
        ("a/b/c/end/vm/root/dev/net", "is not a directory"),
        ("a/b/c/end/vm/root/run", "is not a directory"),
        ("a/b/c/end/vm/root/end", "the id is occupied"),
        ("a/b/c/end/vm/root/end.pid", "is the id occupied?"),
    ]
    .into_iter()
    .chain(devices.map(|device| (device, "the id is occupied")))
    .enumerate()
    {
        let top = place.path("base").join(number.to_string());
        let in_root = top.join("a/b/c/end/vm/root").join(name);
        let path = if part == "the id is occupied" && devices.contains(&name) {
            in_root
        } else {
            top.join(name)
        };
        let last = Path::new(name)
            .file_name()
            .and_then(OsStr::to_str)
            .expect("ours");
        if devices.contains(&name) && last != "urandom" && !misc.contains(&format!(" {last}\n")) {
            println!("skipped: this kernel has no device {last}");
            continue;
        }
        fs::create_dir_all(path.parent().expect("below")).expect("ours");
        for kind in ["file", "link"] {
            if kind == "link" {
                if part == "is not a directory" {
                    continue;
                }
                fs::remove_file(&path).expect("ours");
                symlink(place.path("outside/secret"), &path).expect("ours");
            } else {
                fs::write(&path, "in the way").expect("ours");
            }
            let base = top.join("a/b/c");
            let mut jailer = place.jailer(&[("--chroot-base-dir", base.as_os_str())]);
            let says = format!("{}", path.display());
            place.refuses(
                &format!("{name}, a {kind}"),
                jailer.arg("--new-pid-ns"),
                &[&says, part],
            );
        }
    }
}

#[test]
fn bases_that_are_no_place_for_a_jail_are_refused() {
    let Some(place) = Place::enter("bases_that_are_no_place_for_a_jail_are_refused") else {
        return;
    };
    for (name, options) in [
        ("nodev", "nodev"),
        ("noexec", "noexec"),
        ("read-only", "ro"),
    ] {
        let folder = place.path("base").join(name);
        fs::create_dir(&folder).expect("ours");
        mount(&["-t", "tmpfs", "-o", options, "none"], &folder);
    }
    let long = "a".repeat(256);
    for (name, parts) in [
        ("base/nodev", ["without nodev and noexec", "choose a base"]),
        ("base/noexec", ["without nodev and noexec", "choose a base"]),
        (
            "base/read-only",
            ["base/read-only/end", "Read-only file system"],
        ),
        (
            "base/../outside",
            ["contains `..`", "name the place without it"],
        ),
        (&long, ["--chroot-base-dir", "File name too long"]),
        (
            "bin/end",
            ["bin/end is not a directory", "choose another place"],
        ),
    ] {
        let base = place.path(name);
        let mut jailer = place.jailer(&[("--chroot-base-dir", base.as_os_str())]);
        place.refuses(name, &mut jailer, &parts);
    }
    let mut jailer = place.jailer(&[("--chroot-base-dir", os(""))]);
    place.refuses("empty", &mut jailer, &["--chroot-base-dir"]);
}

/// Exchanges two names until told to stop, and tells how often.
fn exchange(one: &Path, two: &Path, stop: &AtomicBool) -> u64 {
    let mut times = 0;
    while !stop.load(Ordering::Relaxed) {
        renameat_with(CWD, one, CWD, two, RenameFlags::EXCHANGE).expect("both are there");
        times += 1;
    }
    times
}

#[test]
fn folders_exchanged_for_links_meanwhile_lead_nowhere() {
    let Some(place) = Place::enter("folders_exchanged_for_links_meanwhile_lead_nowhere") else {
        return;
    };
    /// At least as many starts are tried for each component, and until one was refused and one was not.
    const STARTS: u32 = 40;
    /// Both are to have happened by then: each start is as good as a toss of a few coins.
    const ENOUGH: u32 = 2000;
    let outside = place.path("outside");
    let before = place.state();
    for component in COMPONENTS {
        let (mut refused, mut made, mut times) = (0, 0, 0);
        for start in 0.. {
            if start >= STARTS && refused > 0 && made > 0 {
                break;
            }
            assert!(
                start < ENOUGH,
                "{component}: {refused} refused, {made} made"
            );
            let top = place.path("base/top");
            for folder in COMPONENTS {
                fs::create_dir_all(top.join(folder)).expect("ours");
            }
            let (folder, link) = (top.join(component), top.join("link"));
            symlink(&outside, &link).expect("ours");
            let base = top.join("a/b/c");
            let mut jailer = place.jailer(&[("--chroot-base-dir", base.as_os_str())]);
            let stop = AtomicBool::new(false);
            let output = thread::scope(|scope| {
                let exchanger = scope.spawn(|| exchange(&folder, &link, &stop));
                let output = jailer.output().expect("the jailer");
                stop.store(true, Ordering::Relaxed);
                times += exchanger.join().expect("no panic");
                output
            });
            if output.status.success() {
                made += 1;
            } else {
                place.is_refusal(component, &output, &[]);
                refused += 1;
            }
            fs::remove_dir_all(&top).expect("ours");
            let left = place.state().difference(&before);
            assert!(left.is_empty(), "{component}: {left:#?}");
        }
        println!("{component}: {refused} refused, {made} made, {times} exchanges");
    }
}

#[test]
fn start_that_fails_at_any_step_for_want_of_room_leaves_nothing() {
    let Some(place) = Place::enter("start_that_fails_at_any_step_for_want_of_room_leaves_nothing")
    else {
        return;
    };
    // A file system for one thing more each time: a folder, a file, a device; then for one page more each time.
    for (what, first) in [("nr_inodes", 1_u32), ("nr_blocks", 1)] {
        let mut refused = 0;
        for most in first.. {
            assert!(most < 100, "it never succeeds");
            let base = place.path("base").join(format!("{what}-{most}"));
            fs::create_dir(&base).expect("ours");
            mount(
                &[
                    "-t",
                    "tmpfs",
                    "-o",
                    &format!("mode=755,{what}={most}"),
                    "none",
                ],
                &base,
            );
            let mut jailer = place.jailer(&[("--chroot-base-dir", base.as_os_str())]);
            let before = place.state();
            let output = jailer.arg("--new-pid-ns").output().expect("the jailer");
            if output.status.success() {
                reap();
                break;
            }
            refused += 1;
            place.is_refusal(
                &format!("{what} {most}"),
                &output,
                &["No space left on device"],
            );
            let left = place.state().difference(&before);
            assert!(left.is_empty(), "{what} {most}: {left:#?}");
        }
        println!("{what}: {refused} refused");
        // end, vm, root, the program, dev, net, run, urandom and the PID file, at least; two files with a page.
        assert!(
            refused >= if what == "nr_inodes" { 9 } else { 1 },
            "{what}: {refused}"
        );
    }
}

#[test]
fn start_with_too_few_descriptors_leaves_nothing() {
    let Some(place) = Place::enter("start_with_too_few_descriptors_leaves_nothing") else {
        return;
    };
    let mut refused = 0;
    for most in 3_u32.. {
        assert!(most < 1000, "it never succeeds");
        let before = place.state();
        let arguments = place.arguments(&[]);
        let output = Command::new("prlimit")
            .arg(format!("--nofile={most}:{most}"))
            .arg(env!("CARGO_BIN_EXE_jailer"))
            .args(&arguments)
            .arg("--resource-limit=no-file=3")
            .stdin(Stdio::null())
            .output()
            .expect("prlimit");
        if output.status.success() {
            break;
        }
        refused += 1;
        place.is_refusal(&format!("{most} descriptors"), &output, &[]);
        let left = place.state().difference(&before);
        assert!(left.is_empty(), "{most} descriptors: {left:#?}");
    }
    assert!(refused > 0);
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

#[test]
fn occupied_ids_are_refused_and_what_is_there_stays() {
    let Some(place) = Place::enter_with_cgroups("occupied_ids_are_refused_and_what_is_there_stays")
    else {
        return;
    };
    let pause = place.path("bin/pause");
    let other = place.program("other", &fs::read(&pause).expect("ours"));
    let cgroups = place.hierarchy(1).map(|_| ("--cgroup", os("pids.max=9")));
    let mut settings = vec![("--exec-file", pause.as_os_str())];
    settings.extend(cgroups);
    // Executed in the jail before the jailer returns.
    place.succeeds("first", place.jailer(&settings).arg("--daemonize"));
    let occupied = ["root/pause exists", "the id is occupied", "choose another"];
    place.refuses("chroot", &mut place.jailer(&settings), &occupied);
    place.refuses(
        "chroot",
        place.jailer(&settings).arg("--daemonize"),
        &occupied,
    );
    if cgroups.is_some() {
        settings[0].1 = other.as_os_str();
        settings.push(("--parent-cgroup", os("pause")));
        let mut jailer = place.jailer(&settings);
        let parts = ["pause/vm has processes", "the id is occupied", "end them"];
        place.refuses("cgroup", &mut jailer, &parts);
    }
    // When it has ended, the jail is still there.
    let running = processes_called("pause");
    assert_eq!(running.len(), 1, "{running:?}");
    assert!(
        Command::new("kill")
            .arg("-KILL")
            .args(&running)
            .status()
            .is_ok_and(|status| status.success())
    );
    reap();
    let mut jailer = place.jailer(&[("--exec-file", pause.as_os_str())]);
    place.refuses("ended", &mut jailer, &occupied);
}

#[test]
fn of_jailers_that_want_one_id_at_once_one_gets_it() {
    let Some(place) = Place::enter("of_jailers_that_want_one_id_at_once_one_gets_it") else {
        return;
    };
    for round in 0..50 {
        let base = place.path("base").join(round.to_string());
        let start = || {
            place
                .jailer(&[("--chroot-base-dir", base.as_os_str())])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the jailer")
        };
        let outputs =
            [start(), start(), start()].map(|child| child.wait_with_output().expect("ours"));
        let made = outputs
            .iter()
            .filter(|output| output.status.success())
            .count();
        assert_eq!(made, 1, "{outputs:?}");
        for output in outputs.iter().filter(|output| !output.status.success()) {
            place.is_refusal("another", output, &["the id is occupied"]);
        }
        assert!(base.join("end/vm/root/dev/urandom").exists());
    }
}
