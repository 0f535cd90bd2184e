//! `--cpuset-tsc-domain`: the jail's CPUs are within one set of CPUs whose TSCs agree, as root's file tells.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

mod support;
use support::{Place, USER, os};

/// A file that is measured now and has these domains.
fn text(domains: &[&str]) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("Linux");
    let clock = |id| {
        let time = rustix::time::clock_gettime(id);
        time.tv_sec * 1_000_000_000 + time.tv_nsec
    };
    let (monotonic, since_boot) = (
        clock(rustix::time::ClockId::Monotonic),
        clock(rustix::time::ClockId::Boottime),
    );
    format!(
        "tsc-domains 1\nboot {}\nslept-ns {}\n{}\n",
        boot.trim(),
        since_boot - monotonic,
        domains.join("\n")
    )
}

/// Writes it where only root can write.
fn file(place: &Place, name: &str, text: &str) -> PathBuf {
    let path = place.path("outside").join(name);
    fs::write(&path, text).expect("room");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("ours");
    path
}

/// A jailer with the flag, and others.
fn jailer(place: &Place, file: &Path, others: &[(&str, &OsStr)]) -> Command {
    let flag = ("--cpuset-tsc-domain", file.as_os_str());
    let flags: Vec<_> = others.iter().copied().chain([flag]).collect();
    place.jailer(&flags)
}

/// The first and the last CPU of a list of the kernel's.
fn ends(list: &str) -> (u32, u32) {
    let number = |text: Option<&str>| text.and_then(|text| text.parse().ok()).expect("a list");
    let mut numbers = list.trim().split([',', '-']);
    let first = number(numbers.next());
    (
        first,
        number(numbers.next_back().or(Some(&first.to_string()))),
    )
}

#[test]
fn files_that_others_could_have_written_or_that_tell_nothing_are_refused() {
    let Some(place) =
        Place::enter("files_that_others_could_have_written_or_that_tell_nothing_are_refused")
    else {
        return;
    };
    let good = text(&["0"]);
    let others = file(&place, "others", &good);
    chown(&others, Some(USER), None).expect("root");
    let writable = file(&place, "writable", &good);
    fs::set_permissions(&writable, fs::Permissions::from_mode(0o664)).expect("ours");
    let folder = place.path("outside/tmp");
    fs::create_dir(&folder).expect("ours");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777)).expect("ours");
    let link = folder.join("link");
    symlink(file(&place, "good", &good), &link).expect("ours");
    let pipe = place.path("outside/pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .is_ok_and(|status| status.success())
    );
    let roots = "that root alone can write to";
    let anew = "write it anew";
    for (path, parts) in [
        (
            place.path("outside/none"),
            ["is not there", "have root write it"],
        ),
        (others, [roots, "chown"]),
        (writable, [roots, "chmod"]),
        (pipe, [roots, "plain file"]),
        (place.path("outside"), [roots, "plain file"]),
        (link, ["is a symbolic link to", "name the place itself"]),
        (
            place.path("outside/../outside/good"),
            ["contains `..`", "name the place without it"],
        ),
        (
            file(&place, "boot", &good.replace("boot ", "boot 0")),
            ["before the host was booted", anew],
        ),
        (
            file(
                &place,
                "slept",
                &good.replace("slept-ns ", "slept-ns 99999999999"),
            ),
            ["the host has slept since", anew],
        ),
        (file(&place, "empty", ""), ["its first line", anew]),
        (
            file(&place, "twice", &text(&["0-1", "1"])),
            ["a CPU of line 5 is in another line", anew],
        ),
        (
            file(&place, "huge", &text(&["0-4294967295"])),
            ["line 4 is no list", anew],
        ),
        (
            file(&place, "long", &"\n".repeat(1 << 20)),
            ["longer than", anew],
        ),
        (PathBuf::from("/dev/zero"), [roots, "plain file"]),
    ] {
        let what = path.display().to_string();
        let mut jailer = jailer(&place, &path, &[]);
        place.refuses(
            &what,
            &mut jailer,
            &["--cpuset-tsc-domain", parts[0], parts[1]],
        );
    }
    // Where there are no cpusets, nothing is promised.
    let good = place.path("outside/good");
    for version in ["1", "2"] {
        let mut jailer = jailer(&place, &good, &[("--cgroup-version", os(version))]);
        place.refuses(version, &mut jailer, &["no cgroup hierarchy of version"]);
    }
}

#[test]
fn cpus_of_a_jail_are_within_one_domain() {
    let Some(place) = Place::enter_with_cpuset("cpus_of_a_jail_are_within_one_domain") else {
        return;
    };
    let Some((version, cgroups)) = place.cgroups.first().cloned() else {
        println!("skipped here: no cpusets are to be had here");
        return;
    };
    let effective = match version {
        1 => "cpuset.effective_cpus",
        _ => "cpuset.cpus.effective",
    };
    let all = fs::read_to_string(cgroups.join(effective)).expect("mounted");
    let (first, last) = ends(&all);
    if first == last {
        println!("skipped here: one CPU has no domains");
        return;
    }
    let (one, other) = (first.to_string(), last.to_string());
    let number = version.to_string();
    let base = ("--cgroup-version", os(&number));
    let cpus_of = |id: &str| {
        let folder = cgroups.join("end").join(id);
        let text = fs::read_to_string(folder.join("cpuset.cpus")).expect("the jail's");
        text.trim().to_owned()
    };
    let run = |id: &str, file: &Path, others: &[(&str, &OsStr)]| {
        let own = [base, ("--id", os(id))];
        let flags: Vec<_> = own.into_iter().chain(others.iter().copied()).collect();
        place.succeeds(id, &mut jailer(&place, file, &flags));
        cpus_of(id)
    };

    // Two of one CPU each: ids that follow each other take turns.
    let two = file(&place, "two", &text(&[&one, &other]));
    let mut chosen = [run("vm-1", &two, &[]), run("vm-2", &two, &[])];
    chosen.sort_unstable();
    let mut expected = [one.clone(), other.clone()];
    expected.sort_unstable();
    assert_eq!(chosen, expected);

    // The operator's are kept, or refused.
    let pick = format!("cpuset.cpus={other}");
    assert_eq!(run("picked", &two, &[("--cgroup", os(&pick))]), other);
    let both = format!("cpuset.cpus={one},{other}");
    let apart = [base, ("--cgroup", os(&both))];
    let parts = [
        "cpuset.cpus",
        "is not within one TSC domain",
        "choose CPUs of one",
    ];
    place.refuses("both", &mut jailer(&place, &two, &apart), &parts);
    let together = file(&place, "together", &text(&[all.trim()]));
    assert_eq!(
        ends(&run("both", &together, &[("--cgroup", os(&both))])),
        (first, last)
    );

    // Nothing is proven of the CPUs that are allowed.
    let elsewhere = file(&place, "elsewhere", &text(&["8191"]));
    let parts = [
        "none of them is in a TSC domain",
        "choose another --parent-cgroup",
    ];
    place.refuses(
        "elsewhere",
        &mut jailer(&place, &elsewhere, &[base]),
        &parts,
    );

    // A parent that allows one CPU alone
    let parent = cgroups.join("narrow");
    fs::create_dir(&parent).expect("ours");
    fs::write(parent.join("cpuset.cpus"), &other).expect("ours");
    if version == 1 {
        let mems = fs::read_to_string(cgroups.join("cpuset.mems")).expect("ours");
        fs::write(parent.join("cpuset.mems"), mems.trim()).expect("ours");
    }
    let narrow = [base, ("--parent-cgroup", os("narrow"))];
    place.succeeds("narrow", &mut jailer(&place, &together, &narrow));
    let got = fs::read_to_string(parent.join("vm/cpuset.cpus")).expect("the jail's");
    assert_eq!(got.trim(), other);
}
