//! The dependency directions of ARCHITECTURE.md, held against what cargo resolves.

use std::collections::BTreeSet;
use std::process::Command;

/// The crates that `package` reaches through normal dependencies, itself included.
fn reached_from(package: &str) -> BTreeSet<String> {
    reached_within(package, u32::MAX)
}

/// The same, with no more than so many steps.
fn reached_within(package: &str, steps: u32) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--package",
            package,
            "--depth",
            &steps.to_string(),
        ])
        .args(["--format", "{p}"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .expect("crate names are text")
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// The workspace's own crates among `reached`, but for `package` itself.
fn own(package: &str, reached: &BTreeSet<String>) -> Vec<String> {
    [
        "arch",
        "devices",
        "fuzz",
        "hypervisor",
        "jailer",
        "lab",
        "tsc",
        "vmm",
    ]
    .into_iter()
    .filter(|name| *name != package && reached.contains(*name))
    .map(str::to_owned)
    .collect()
}

/// Each line of the diagram names the crates of ours that are a crate's direct dependencies, and no others.
#[test]
fn diagram_of_the_architecture_is_what_cargo_resolves() {
    let document = include_str!("../../ARCHITECTURE.md");
    for package in [
        "fuzz",
        "jailer",
        "vmm",
        "hypervisor",
        "devices",
        "arch",
        "tsc",
    ] {
        let drawn = document
            .lines()
            .filter_map(|line| line.split_once('►'))
            .find(|(from, _)| from.split_whitespace().next() == Some(package))
            .map(|(_, to)| to)
            .expect(package);
        let named: BTreeSet<String> = drawn
            .split("  ")
            .next()
            .unwrap_or_default()
            .split(|c: char| !c.is_alphanumeric() && c != '-' && c != '_')
            .map(str::to_owned)
            .collect();
        let direct = reached_within(package, 1);
        assert_eq!(own(package, &named), own(package, &direct), "{package}");
    }
}

#[test]
fn crates_reach_only_what_lies_below_them() {
    // (crate, its own crates that it may reach)
    let rows: [(&str, &[&str]); 6] = [
        ("tsc", &[]),
        ("arch", &["tsc"]),
        ("devices", &["arch", "tsc"]),
        ("hypervisor", &["arch", "tsc"]),
        ("vmm", &["arch", "devices", "hypervisor", "tsc"]),
        ("jailer", &[]),
    ];
    for (package, allowed) in rows {
        for reached in own(package, &reached_from(package)) {
            assert!(
                allowed.contains(&reached.as_str()),
                "{package} must not reach {reached}"
            );
        }
    }
}

#[test]
fn tsc_depends_on_nothing() {
    assert_eq!(reached_from("tsc"), BTreeSet::from(["tsc".to_owned()]));
}

#[test]
fn kvm_is_reached_through_the_hypervisor_alone() {
    for package in ["tsc", "arch", "devices", "jailer"] {
        for reached in reached_from(package) {
            assert!(
                !reached.starts_with("kvm-"),
                "{package} must not reach {reached}"
            );
        }
    }
    // and the test can tell: the hypervisor does reach it
    assert!(reached_from("hypervisor").contains("kvm-bindings"));
}

#[test]
fn rust_vmm_crates_are_of_one_version_each() {
    let lock = include_str!("../../Cargo.lock");
    for name in [
        "event-manager",
        "kvm-bindings",
        "kvm-ioctls",
        "linux-loader",
        "vm-memory",
        "vmm-sys-util",
    ] {
        let versions = lock.matches(&format!("name = \"{name}\"\n")).count();
        assert_eq!(versions, 1, "{name}");
    }
}
