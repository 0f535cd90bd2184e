//! Holds the tables of `docs/compatibility.md` against the program.

use std::collections::{BTreeMap, BTreeSet};

use clap::CommandFactory;

use super::Cli;
use crate::api::http::Method;
use crate::api::request::{self, ROUTES};

const DOCUMENT: &str = include_str!("../../../docs/compatibility.md");

/// The cells of the rows of the section with this title, without the two rows of the head.
fn rows(title: &str) -> Vec<Vec<&'static str>> {
    let section = DOCUMENT
        .split("\n## ")
        .find(|section| section.starts_with(title))
        .expect(title);
    section
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix('|'))
        .skip(2)
        .map(|line| line.split('|').map(str::trim).collect())
        .collect()
}

/// What stands between backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn first(row: &[&'static str]) -> &'static str {
    quoted(row[0])[0]
}

#[test]
fn every_status_is_one_of_the_four() {
    for (title, column) in [("Endpoints", 1), ("Fields of bodies", 2), ("Flags", 1)] {
        let rows = rows(title);
        assert!(rows.len() > 20, "{title}: {} rows", rows.len());
        for row in rows {
            let status = row[column];
            assert!(
                ["same", "differs", "not yet", "own"].contains(&status),
                "{title}: {row:?}"
            );
        }
    }
}

#[test]
fn endpoints_are_those_of_the_router() {
    let documented: BTreeSet<String> = rows("Endpoints")
        .iter()
        .map(|row| first(row).to_owned())
        .collect();
    let routed: BTreeSet<String> = ROUTES
        .iter()
        .map(|route| format!("{} {}", route.method.name(), route.path))
        .collect();
    assert_eq!(documented, routed);
}

#[test]
fn fields_are_those_that_the_bodies_know() {
    let mut documented: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for row in rows("Fields of bodies") {
        let fields = documented.entry(first(&row)).or_default();
        fields.extend(quoted(row[1]));
    }
    for route in ROUTES {
        let endpoint = format!("{} {}", route.method.name(), route.path);
        // These take nothing, or any object.
        let free = matches!(route.method, Method::Get | Method::Delete)
            || matches!(route.path, "/mmds" | "/balloon/hinting/stop");
        if free {
            assert!(!documented.contains_key(endpoint.as_str()), "{endpoint}");
            continue;
        }
        // A field that nobody has makes serde list those that it knows.
        let path = route.path.replace("{id}", "a");
        let fault = request::parse(route.method, &path, br#"{"no field":0}"#);
        let message = fault.expect_err("unknown").to_string();
        let known: BTreeSet<&str> = quoted(message.split("expected").nth(1).expect(&message))
            .into_iter()
            .collect();
        assert_eq!(
            documented.remove(endpoint.as_str()),
            Some(known),
            "{endpoint}"
        );
    }
    assert!(documented.is_empty(), "{documented:?}");
}

#[test]
fn flags_are_those_of_the_command_line() {
    let documented: BTreeSet<String> = rows("Flags")
        .iter()
        .map(|row| first(row).to_owned())
        .collect();
    let mut command = Cli::command();
    command.build();
    let known: BTreeSet<String> = command
        .get_arguments()
        .filter_map(|argument| argument.get_long())
        .map(|name| format!("--{name}"))
        .collect();
    assert_eq!(documented, known);
}

#[test]
fn flags_that_are_not_there_yet_are_refused() {
    for row in rows("Flags") {
        let flag = first(&row);
        let refused = flag == "--enable-pci" || flag.contains("snapshot");
        assert_eq!(row[1] == "not yet", refused, "{flag}");
    }
}
