//! What the Debian package brings besides the binaries: manual pages, units, and entries for systemd's tools.

use anyhow::{Context, Result, ensure};

use crate::apt;
use crate::guest::POWER_OFF;
use crate::host::image::{Files, Source};
use crate::packaging;
use crate::scenario::{Needs, Outcome, Place, Scenario, file};
use crate::workshop::Workshop;

/// Files of `packaging/`, by their names in the scenario's folder.
const SOURCES: [(&str, &str); 4] = [
    ("keeptime@.service", "systemd/keeptime@.service"),
    (
        "keeptime-tsc-domains.service",
        "systemd/keeptime-tsc-domains.service",
    ),
    ("sysusers.conf", "sysusers.d/keeptime.conf"),
    ("tmpfiles.conf", "tmpfiles.d/keeptime.conf"),
];

/// The scenarios.
pub(super) fn all() -> Vec<Scenario> {
    vec![
        Scenario::new(Place::Native, "package", include_str!("packaging.sh"))
            .seconds(45, 120)
            .needs(Needs::Root)
            .files(files)
            .check(check),
    ]
}

fn files(workshop: &Workshop) -> Result<Files> {
    apt::install(packaging::TOOLS)?;
    let mut files = Files::from([
        ("jailer".to_owned(), file(workshop.jailer()?)),
        ("guest".to_owned(), Source::Bytes(POWER_OFF.build()?)),
    ]);
    for (name, path) in SOURCES {
        let path = workshop.paths.workspace.join("packaging").join(path);
        files.insert(name.to_owned(), file(&path));
    }
    let folder = workshop.paths.folder("scenario-man")?;
    for page in packaging::pages(&workshop.paths, &folder)? {
        let name = page.file_name().context("a page without a name")?;
        files.insert(name.to_string_lossy().into_owned(), file(&page));
    }
    Ok(files)
}

fn check(outcome: &Outcome) -> Result<()> {
    let output = outcome.stdout_text();
    let faults: Vec<&str> = output
        .lines()
        .filter(|line| line.starts_with("fault: "))
        .collect();
    ensure!(faults.is_empty(), "{}", faults.join("; "));
    for line in [
        "page keeptime.1",
        "page keeptime-run.1",
        "page jailer.1",
        "unit keeptime@.service",
        "unit keeptime-tsc-domains.service",
        "group kvm",
        "user keeptime",
        "folder /run/keeptime 711",
        "power-off guest",
    ] {
        outcome.expect_line(line)?;
    }
    outcome.expect_status(0)
}
