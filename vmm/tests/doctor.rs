//! `keeptime doctor` on this machine, whatever it is: the report agrees with itself, tells the truth
//! about what was hidden from it, and its status is what scripts rely on.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const LAUNCHER: &str = env!("CARGO_BIN_EXE_keeptime");

const REQUIREMENTS: [&str; 8] = [
    "kvm",
    "invariant-tsc",
    "stable-clocksource",
    "single-domain",
    "offset",
    "scaling",
    "tsc-deadline",
    "clock-realtime",
];

fn output(command: &mut Command) -> Output {
    command.output().expect("the program runs")
}

fn doctor(arguments: &[&str]) -> Output {
    output(Command::new(LAUNCHER).arg("doctor").args(arguments))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", text(&output.stdout), text(&output.stderr)))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn word(value: &Value) -> &str {
    value.as_str().expect("a word")
}

fn number(value: &Value) -> i64 {
    value.as_i64().expect("a number")
}

/// Whether a report says that the host has what `requirement` names.
fn has(report: &Value, requirement: &str) -> bool {
    let claims = |name: &str| {
        is_there(&report["kvm"])
            && list(&report["kvm"]["capabilities"])
                .iter()
                .any(|capability| capability["name"] == name && capability["present"] == true)
    };
    match requirement {
        "kvm" => is_there(&report["kvm"]),
        "invariant-tsc" => report["processor"]["invariant_tsc"] == true,
        "stable-clocksource" => word(&report["kernel"]["clocksource"]).starts_with("tsc"),
        "single-domain" => report["cpus"]["agree"] == "proven",
        "offset" => report["facts"]["offset"] == "in-force",
        "scaling" => report["facts"]["scaling"] == "in-force",
        "tsc-deadline" => claims("KVM_CAP_TSC_DEADLINE_TIMER"),
        "clock-realtime" => claims("KVM_CLOCK_REALTIME"),
        other => panic!("{other} is no requirement"),
    }
}

/// Whether there is a part, and not the reason why it could not be had.
fn is_there(value: &Value) -> bool {
    value.get("error").is_none()
}

#[test]
fn text_says_what_json_says() {
    let page = doctor(&[]);
    assert_eq!(page.status.code(), Some(0), "{}", text(&page.stderr));
    let page = text(&page.stdout);
    let report = json(&doctor(&["--json"]));
    assert_eq!(number(&report["format"]), 1);
    let mut said = vec![
        word(&report["processor"]["vendor"]),
        word(&report["kernel"]["clocksource"]),
    ];
    if is_there(&report["kvm"]) {
        for capability in list(&report["kvm"]["capabilities"]) {
            let present = if capability["present"] == true {
                "yes"
            } else {
                "no"
            };
            let name = word(&capability["name"]);
            let line = page.lines().find(|line| line.contains(name)).expect(name);
            assert_eq!(line.split_whitespace().next(), Some(present), "{line}");
        }
    } else {
        said.push(word(&report["kvm"]["error"]));
    }
    for part in said {
        assert!(page.contains(part), "{part}: {page}");
    }
    // What is kept does not depend on the moment, but for moves on a host too busy to tell.
    for verdict in list(&report["verdicts"]) {
        let (policy, verdict) = (word(&verdict["policy"]), word(&verdict["verdict"]));
        let title = match policy {
            "pause-advance" => "pause, time goes on",
            "pause-freeze" => "pause, time stands still",
            "restore-advance" => "restore, time went on",
            "restore-freeze" => "restore, time stood still",
            _ => continue,
        };
        let line = page
            .lines()
            .find(|line| line.ends_with(title))
            .expect(title);
        assert_eq!(line.split_whitespace().next(), Some(verdict), "{page}");
    }
}

#[test]
fn status_is_that_of_the_requirements() {
    for requirement in REQUIREMENTS {
        let output = doctor(&["--json", "--require", requirement]);
        let report = json(&output);
        assert_eq!(list(&report["required"]), [requirement]);
        let missing = list(&report["missing"]);
        assert_eq!(
            missing.is_empty(),
            has(&report, requirement),
            "{requirement}"
        );
        let errors = text(&output.stderr);
        if missing.is_empty() {
            assert_eq!(output.status.code(), Some(0), "{errors}");
        } else {
            assert_eq!(missing, [requirement]);
            assert_eq!(output.status.code(), Some(1));
            let last = errors.lines().last().expect("a reason");
            assert!(
                last.starts_with("keeptime: ") && last.ends_with(requirement),
                "{errors}"
            );
        }
    }
    // The whole list at once, in the order given.
    let all = doctor(&["--json", "--require", &REQUIREMENTS.join(",")]);
    let report = json(&all);
    assert_eq!(list(&report["required"]), REQUIREMENTS);
    let met = list(&report["missing"]).is_empty();
    assert_eq!(all.status.code(), Some(if met { 0 } else { 1 }));
}

#[test]
fn unknown_requirement_is_a_usage_error_that_lists_the_known() {
    let output = doctor(&["--require", "offset,warp"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "");
    let errors = text(&output.stderr);
    assert_eq!(errors.lines().count(), 1, "{errors}");
    for part in ["warp", "--help"].into_iter().chain(REQUIREMENTS) {
        assert!(errors.contains(part), "{part}: {errors}");
    }
    let help = text(&doctor(&["--help"]).stdout);
    for requirement in REQUIREMENTS {
        assert!(help.contains(requirement), "{requirement}: {help}");
    }
}

#[test]
fn without_kvm_the_rest_is_measured() {
    // A mount namespace of its own, whose /dev is empty.
    let hidden = |arguments: &[&str]| {
        output(
            Command::new("unshare")
                .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
                .arg("mount -t tmpfs none /dev && exec \"$@\"")
                .args(["sh", LAUNCHER, "doctor"])
                .args(arguments),
        )
    };
    let output = hidden(&["--json"]);
    let errors = text(&output.stderr);
    if let Some(reason) = errors.lines().find(|line| line.starts_with("unshare: ")) {
        return println!("skipped here: no namespaces for this user: {reason}");
    }
    assert_eq!(output.status.code(), Some(0), "{errors}");
    let report = json(&output);
    assert!(word(&report["kvm"]["error"]).contains("/dev/kvm"));
    assert!(word(&report["effects"]["error"]).contains("/dev/kvm"));
    assert!(is_there(&report["cpus"]) && is_there(&report["tsc_rate"]["measured"]));
    assert_eq!(word(&report["facts"]["offset"]), "unknown");
    for verdict in list(&report["verdicts"]) {
        assert_eq!(word(&verdict["verdict"]), "refused", "{verdict}");
    }
    let page = text(&hidden(&[]).stdout);
    assert!(page.contains("no guest runs here without KVM"), "{page}");
    assert_eq!(hidden(&["--require", "kvm"]).status.code(), Some(1));
}

#[test]
fn with_one_cpu_there_is_one_domain_and_nothing_is_waited_for() {
    let allowed = number(&list(&json(&doctor(&["--json"]))["cpus"]["measured"])[0]);
    let output = output(
        Command::new("taskset")
            .args(["--cpu-list", &allowed.to_string(), LAUNCHER, "doctor"])
            .args(["--json", "--require", "single-domain"]),
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report = json(&output);
    let cpus = &report["cpus"];
    assert_eq!(list(&cpus["measured"]), [allowed]);
    assert_eq!(list(&cpus["skews"]), [] as [Value; 0]);
    assert_eq!(list(&cpus["domains"]).len(), 1);
    assert_eq!(word(&cpus["agree"]), "proven");
    let effects = &report["effects"];
    if is_there(effects) && is_there(&effects["offset"]) {
        assert!(effects["offset"]["after_a_move"].is_null(), "{effects}");
        // Without a second CPU nobody can tell scaling from catch-up, and nobody claims to.
        for rate in list(&effects["rates"]) {
            assert_ne!(word(&rate["effect"]), "in-force", "{rate}");
        }
    }
}

#[test]
fn measurements_do_not_contradict_each_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tsc-domains");
    let path = file.to_str().expect("text");
    let output = doctor(&["--json", "--tsc-domains", path]);
    let report = json(&output);
    if report["cpus"]["agree"] == "unproven" {
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(
            !file.exists() && text(&output.stderr).contains("again when the host is less busy")
        );
    } else {
        let written = std::fs::read_to_string(&file).expect("the domains");
        // The format, the boot and the sleep come first.
        let lists: Vec<&str> = written.lines().skip(3).collect();
        let domains = list(&report["cpus"]["domains"]);
        assert_eq!(lists.len(), domains.len(), "{written}");
        for (line, domain) in lists.iter().zip(domains) {
            let first = number(&list(domain)[0]).to_string();
            assert!(line.starts_with(&first), "{written}: {domain}");
        }
    }
    let rate = &report["tsc_rate"]["measured"];
    assert!(number(&rate["at_least_hz"]) <= number(&rate["at_most_hz"]));
    for skew in list(&report["cpus"]["skews"]) {
        assert!(
            number(&skew["at_least_ticks"]) <= number(&skew["at_most_ticks"]),
            "{skew}"
        );
        assert!(number(&skew["at_least_ns"]) <= number(&skew["at_most_ns"]));
    }
    let effects = &report["effects"];
    if !is_there(effects) {
        let error = word(&effects["error"]);
        if Path::new("/dev/kvm").exists() {
            return println!("skipped: no guest: {error}");
        }
        return println!("skipped here: no guest: {error}");
    }
    let offset = &effects["offset"];
    let error = (
        offset["effect"]["error_at_least_ticks"].as_i64(),
        offset["effect"]["error_at_most_ticks"].as_i64(),
    );
    match (word(&offset["effect"]["name"]), error) {
        ("in-force", (Some(least), Some(most))) => {
            assert!(least <= 0 && 0 <= most, "{offset}");
            assert_eq!(word(&report["facts"]["offset"]), "in-force");
        }
        ("ignored", (Some(least), Some(_))) => {
            // The guest reads on where it was: 2^40 ticks ahead of what was asked for.
            assert!(least > 1 << 39, "{offset}");
            assert_eq!(word(&report["facts"]["offset"]), "no-effect");
        }
        ("moved-by-kernel", _) => {
            assert_eq!(word(&report["facts"]["offset"]), "overridden");
        }
        (other, _) => {
            assert_eq!(word(&report["facts"]["offset"]), "unknown", "{other}");
        }
    }
    for trial in list(&effects["rates"]) {
        match word(&trial["effect"]) {
            "in-force" => {
                assert!(number(&trial["error_at_least_ppb"]) <= 0, "{trial}");
                assert!(number(&trial["error_at_most_ppb"]) >= 0, "{trial}");
            }
            // The guest's rate is the host's.
            "ignored" => {
                assert!(number(&trial["from_host_at_least_ppb"]) <= 0, "{trial}");
                assert!(number(&trial["from_host_at_most_ppb"]) >= 0, "{trial}");
            }
            "refused" => assert!(!word(&trial["reason"]).is_empty()),
            _ => {}
        }
    }
    let beyond = || {
        list(&effects["rates"])
            .iter()
            .filter(|trial| trial["within_tolerance"] == false)
    };
    let in_force = beyond().all(|trial| trial["effect"] == "in-force");
    assert_eq!(word(&report["facts"]["scaling"]) == "in-force", in_force);
}
