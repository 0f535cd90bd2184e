//! The API, driven by other people's clients: none of them is changed for us.

use crate::clients;
use crate::guest::{FOR_EVER, KEYBOARD, Small};
use crate::host::image::{Files, Source};
use crate::scenario::{LAUNCHER, Needs, Outcome, Place, Scenario, file};
use crate::workshop::Workshop;

use anyhow::Result;

/// The name by which Firecracker's clients know the launcher.
const FIRECRACKER: &str = "firecracker";

/// Requests that the property-based client makes at least.
const REQUESTS: u32 = 5000;
/// Of these, for each operation and each state of the microVM.
const EXAMPLES: u32 = 30;

/// The scenarios. All of them run here: on an emulated host there is no Python, and nothing to gain.
pub(super) fn all() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for client in ["fctools", "sdk"] {
        let script = format!("exec ./clients {client} {FIRECRACKER} kernel\n");
        scenarios.push(
            Scenario::new(Place::Native, format!("client-{client}"), script)
                .seconds(30, 120)
                .files(|workshop| {
                    let mut files = named(workshop, KEYBOARD)?;
                    let program = clients::program(&workshop.paths)?;
                    files.insert("clients".to_owned(), file(&program));
                    Ok(files)
                })
                .check(check),
        );
    }
    let script = format!("exec ./clients fctools-jailed {FIRECRACKER} kernel ./jailer\n");
    scenarios.push(
        Scenario::new(Place::Native, "client-fctools-jailed", script)
            .seconds(5, 120)
            .needs(Needs::Root)
            .files(|workshop| {
                let mut files = named(workshop, KEYBOARD)?;
                let program = clients::program(&workshop.paths)?;
                files.insert("clients".to_owned(), file(&program));
                files.insert("jailer".to_owned(), file(workshop.jailer()?));
                Ok(files)
            })
            .check(check),
    );
    scenarios.push(python(
        "client-python",
        "life.py",
        KEYBOARD,
        &format!("{FIRECRACKER} kernel"),
    ));
    scenarios.push(
        python(
            "api-document",
            "openapi.py",
            FOR_EVER,
            &format!("{LAUNCHER} kernel venv/bin/schemathesis {EXAMPLES} {REQUESTS}"),
        )
        .seconds(30, 600),
    );
    scenarios
}

fn python(name: &str, script: &'static str, guest: Small, arguments: &str) -> Scenario {
    let command = format!("exec venv/bin/python {script} {arguments}\n");
    Scenario::new(Place::Native, name, command)
        .seconds(30, 120)
        .files(move |workshop| {
            let mut files = named(workshop, guest)?;
            let environment = clients::environment(&workshop.paths)?;
            files.insert("venv".to_owned(), file(&environment));
            let folder = workshop.paths.workspace.join("lab/clients");
            files.insert(script.to_owned(), file(&folder.join(script)));
            Ok(files)
        })
        .check(check)
}

/// The launcher under Firecracker's name, and a kernel.
fn named(workshop: &Workshop, guest: Small) -> Result<Files> {
    Ok(Files::from([
        (FIRECRACKER.to_owned(), file(workshop.launcher()?)),
        ("kernel".to_owned(), Source::Bytes(guest.build()?)),
    ]))
}

/// Each client says so when it has come to its end.
fn check(outcome: &Outcome) -> Result<()> {
    outcome.expect_status(0)?;
    outcome.expect_line("all done")
}
