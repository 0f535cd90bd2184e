//! Places that are prepared for a jailer, or changed while it runs: it is led nowhere, overwrites nothing, and
//! leaves nothing behind.

mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use support::{Place, USER, mount, os, processes_called, reap};

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
    let (no_folder, occupied) = ("is not a directory", "the id is occupied");
    for (number, (name, part)) in [
        ("a", no_folder),
        ("a/b/c", no_folder),
        ("a/b/c/end", no_folder),
        ("a/b/c/end/vm", no_folder),
        ("a/b/c/end/vm/root", no_folder),
        ("a/b/c/end/vm/root/dev", no_folder),
        ("a/b/c/end/vm/root/dev/net", no_folder),
        ("a/b/c/end/vm/root/run", no_folder),
        ("a/b/c/end/vm/root/end", occupied),
        ("a/b/c/end/vm/root/end.pid", "is the id occupied?"),
        ("a/b/c/end/vm/root/dev/urandom", occupied),
        ("a/b/c/end/vm/root/dev/kvm", occupied),
        ("a/b/c/end/vm/root/dev/net/tun", occupied),
        ("a/b/c/end/vm/root/dev/userfaultfd", occupied),
    ]
    .into_iter()
    .enumerate()
    {
        if let Some(device) = missing_device(name) {
            println!("skipped here: this kernel has no device {device}");
            continue;
        }
        for kind in ["file", "link"] {
            if (kind, part) == ("link", no_folder) {
                // Another test's
                continue;
            }
            let top = place.path("base").join(format!("{number}-{kind}"));
            let path = top.join(name);
            fs::create_dir_all(path.parent().expect("below")).expect("ours");
            if kind == "link" {
                symlink(place.path("outside/secret"), &path).expect("ours");
            } else {
                fs::write(&path, "in the way").expect("ours");
            }
            let base = top.join("a/b/c");
            let mut jailer = place.jailer(&[("--chroot-base-dir", base.as_os_str())]);
            let says = path.display().to_string();
            place.refuses(
                &format!("{name}, a {kind}"),
                jailer.arg("--new-pid-ns"),
                &[&says, part],
            );
        }
    }
}

/// The device that a path in a jail names, if this kernel lacks it.
fn missing_device(path: &str) -> Option<&str> {
    let (_, name) = path.rsplit_once('/')?;
    let misc = fs::read_to_string("/proc/misc").expect("mounted");
    (name == "userfaultfd" && !misc.contains(" userfaultfd\n")).then_some(name)
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
fn occupied_ids_are_refused_and_what_is_there_stays() {
    let Some(place) = Place::enter_with_cgroups("occupied_ids_are_refused_and_what_is_there_stays")
    else {
        return;
    };
    let pause = place.path("bin/pause");
    // What would end at once, were it executed: of the same name, and of another.
    let end = fs::read(place.path("bin/end")).expect("ours");
    fs::create_dir(place.path("bin/short")).expect("ours");
    let short = place.program("short/pause", &end);
    let other = place.program("other", &end);
    let cgroup = place.hierarchy(1).map(|_| ("--cgroup", os("pids.max=9")));
    let start = |program: &Path| {
        let mut settings = vec![
            ("--exec-file", program.as_os_str()),
            ("--parent-cgroup", os("some")),
        ];
        settings.extend(cgroup);
        place.jailer(&settings)
    };
    // Executed in the jail before the jailer returns.
    let mut first = start(&pause);
    let first = first.arg("--daemonize").stdout(Stdio::null()).status();
    assert!(first.is_ok_and(|status| status.success()));
    let occupied = ["root/pause exists", "the id is occupied", "choose another"];
    place.refuses("chroot", &mut start(&short), &occupied);
    place.refuses("chroot", start(&short).arg("--daemonize"), &occupied);
    if cgroup.is_some() {
        let parts = ["some/vm has processes", "the id is occupied", "end them"];
        place.refuses("cgroup", &mut start(&other), &parts);
    }
    // When it has ended, the jail is still there.
    let running = processes_called("pause");
    assert_eq!(running.len(), 1, "{running:?}");
    let killed = Command::new("kill").arg("-KILL").args(&running).status();
    assert!(killed.is_ok_and(|status| status.success()));
    reap();
    place.refuses("ended", &mut start(&short), &occupied);
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

#[test]
fn start_beside_others_that_fail_succeeds() {
    let Some(place) = Place::enter_with_cgroups("start_beside_others_that_fail_succeeds") else {
        return;
    };
    // Each fails only when what it shares with others is made.
    let netns = ("--netns", os("/proc/self/ns/mnt"));
    let first = ("--cgroup", os("pids.max=many"));
    let second = ("--cgroup", os("cgroup.max.depth=many"));
    for (version, failing, good, part) in [
        (None, netns, None, "is no network namespace"),
        (Some(1), first, Some("pids.max=9"), "the kernel refuses"),
        (
            Some(2),
            second,
            Some("cgroup.max.depth=9"),
            "the kernel refuses",
        ),
    ] {
        if version.is_some_and(|version| place.hierarchy(version).is_none()) {
            continue;
        }
        let number = version.unwrap_or(1).to_string();
        for round in 0..50 {
            let parent = format!("parent/{round}");
            let base = place.path("base").join(format!("{version:?}/{round}"));
            let start = |id: &str, other: Option<(&str, &OsStr)>| {
                let mut settings = vec![("--chroot-base-dir", base.as_os_str()), ("--id", os(id))];
                settings.extend([
                    ("--cgroup-version", os(&number)),
                    ("--parent-cgroup", os(&parent)),
                ]);
                settings.retain(|(flag, _)| version.is_some() || !flag.contains("cgroup"));
                settings.extend(other);
                let mut jailer = place.jailer(&settings);
                let jailer = jailer.stdout(Stdio::piped()).stderr(Stdio::piped());
                jailer.spawn().expect("the jailer")
            };
            let others = ["a", "b", "c"].map(|id| start(id, Some(failing)));
            let own = start("good", good.map(|setting| ("--cgroup", os(setting))));
            let output = own.wait_with_output().expect("ours");
            assert!(output.status.success(), "{version:?} {round}: {output:?}");
            for child in others {
                let output = child.wait_with_output().expect("ours");
                place.is_refusal(&format!("{version:?} {round}"), &output, &[part]);
            }
            let names = fs::read_dir(base.join("end")).expect("made").count();
            assert_eq!(names, 1, "{version:?} {round}");
        }
    }
}

/// As a supervisor starts a jailer: in a mount namespace that nobody else is in, with folders bound into the jail.
#[test]
fn what_is_mounted_in_a_jail_beforehand_is_the_jails() {
    let Some(place) = Place::enter("what_is_mounted_in_a_jail_beforehand_is_the_jails") else {
        return;
    };
    let root = place.path("base/pause/vm/root");
    let run = place.path("outside/run");
    fs::create_dir_all(root.join("run")).expect("ours");
    fs::create_dir(&run).expect("ours");
    let pause = place.path("bin/pause");
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "sh",
            "-ec",
            "mount --bind \"$0\" \"$1\"; shift; exec \"$@\"",
        ])
        .args([&run, &root.join("run")])
        .arg(env!("CARGO_BIN_EXE_jailer"))
        .args(place.arguments(&[("--exec-file", pause.as_os_str())]))
        .args(["--daemonize", "--new-pid-ns"]);
    place.succeeds("bound", &mut command);
    let facts = fs::metadata(&run).expect("ours");
    assert_eq!((facts.uid(), facts.mode() & 0o777), (USER, 0o700));
    // What lies below the mount is not what the jail has.
    let below = fs::metadata(root.join("run")).expect("ours");
    assert_eq!(below.uid(), 0);
    let running = processes_called("pause");
    assert!(!running.is_empty());
    for id in &running {
        let mounts = fs::read_to_string(format!("/proc/{id}/mountinfo")).expect("running");
        assert!(
            mounts.lines().any(|line| line.contains(" /run ")),
            "{mounts}"
        );
    }
    let killed = Command::new("kill").arg("-KILL").args(&running).status();
    assert!(killed.is_ok_and(|status| status.success()));
}
