//! What other C libraries may call instead of what this one calls: the table of docs/seccomp.md, held against the
//! rules.

use std::collections::{BTreeMap, BTreeSet};

use vmm::seccomp::Role;

use crate::support::rules::rules;

const DOCUMENT: &str = include_str!("../../../docs/seccomp.md");
const HEADING: &str = "| called | may be instead | held |";

/// The words of a cell that are code.
fn code(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn calls_of_other_c_libraries_have_rules_or_cannot_come() {
    let rules = rules();
    let filters: BTreeMap<&str, BTreeSet<&str>> = Role::ALL
        .iter()
        .map(|role| {
            let filter = rules[role.name()]["filter"].as_array().expect("rules");
            let calls = filter
                .iter()
                .map(|rule| rule["syscall"].as_str().expect("a name"));
            (role.name(), calls.collect())
        })
        .collect();
    let table = DOCUMENT.split_once(HEADING).expect("the table").1;
    let rows = table.trim_start().lines().skip(1);
    let mut told = BTreeSet::new();
    for row in rows.take_while(|row| row.starts_with('|')) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, called, instead, held, _] = cells[..] else {
            panic!("{row}");
        };
        let (called, instead) = (code(called), code(instead));
        told.extend(called.iter().copied());
        let Some(rest) = held.strip_prefix("by a rule") else {
            assert!(!held.is_empty(), "{row}: why not?");
            for (name, calls) in &filters {
                let has = instead.iter().find(|call| calls.contains(*call));
                assert!(has.is_none(), "{name} has a rule for {has:?}: {row}");
            }
            continue;
        };
        told.extend(instead.iter().copied());
        let elsewhere = code(rest);
        for (name, calls) in &filters {
            if elsewhere.contains(name) || !called.iter().any(|call| calls.contains(call)) {
                continue;
            }
            let lacks = instead.iter().find(|call| !calls.contains(*call));
            assert!(lacks.is_none(), "{name} has no rule for {lacks:?}: {row}");
        }
    }
    let all: BTreeSet<&str> = filters.into_values().flatten().collect();
    let missing: Vec<_> = all.symmetric_difference(&told).collect();
    assert!(
        missing.is_empty(),
        "not in the table, or in no filter: {missing:?}"
    );
}
