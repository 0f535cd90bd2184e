use serde_json::json;

use super::*;
use crate::scenario::fault_rows::each_fails;

/// As the suite printed it on the vmx host, shortened.
fn suite() -> String {
    VMX.iter()
        .map(|(clause, kinds)| {
            let evidence = match *clause {
                "rate-same" => figures(-1_130, 1_130, 1_000_160_593),
                "rate-half" => figures(-500_000_740, -499_999_500, 1_000_160_593),
                "rate-0.999" => figures(-1_001_300, -999_100, 1_000_160_593),
                "rate-1.7" => figures(699_998_000, 700_002_000, 1_000_160_593),
                _ => "some evidence".to_owned(),
            };
            format!("{clause:<18} {:<12} {evidence}\n", kinds[0])
        })
        .collect()
}

fn figures(least: i64, most: i64, span: i64) -> String {
    format!("ratio 1; {least}..{most} ppb from the host's rate over {span} ns, 0..0 ppb predicted")
}

#[test]
fn check_contract_each_fault_fails() {
    let good = format!("# kvm\n{}# kvm: 17 clauses\n", suite());
    // what is wrong, in place of what, and a word of the message
    let rows = [
        (
            "offset-back        holds",
            "offset-back        IGNORED",
            "IGNORED",
        ),
        (
            "register-near      IGNORED",
            "register-near      holds",
            "register-near",
        ),
        (
            "rate-half          holds",
            "rate-half          UNDECIDED",
            "UNDECIDED",
        ),
        (
            "form               holds        some evidence\n",
            "",
            "clauses told",
        ),
        (
            "form               holds",
            "form               fine",
            "no kind",
        ),
        // an error of 50 ppm: of the rate asked for, not of the host's
        ("-500000740", "-500025000", "not within 50 ppm"),
        ("-499999500", "-499975000", "not within 50 ppm"),
        ("700002000", "700085000", "not within 50 ppm"),
        ("-1130..1130", "1130..-1130", "not within 50 ppm"),
        // bounds too wide to notice one
        (
            "-1001300..-999100",
            "-1050000..-949000",
            "not within 50 ppm",
        ),
        ("over 1000160593", "over 999999999", "less than a second"),
        ("ppb from the host's rate", "ppb", "no figures"),
    ];
    each_fails(&good, &rows, |text| check_contract(text, VMX));
}

#[test]
fn tables_name_the_same_clauses() {
    for rows in [SVM_STABLE, SVM_UNSTABLE] {
        assert!(rows.iter().map(|row| row.0).eq(VMX.iter().map(|row| row.0)));
    }
    // No table lets a violation pass, or a rate on a host that does not scale.
    for (clause, kinds) in SVM_STABLE.iter().chain(SVM_UNSTABLE) {
        assert!(!kinds.contains(&"VIOLATED"), "{clause}");
        let other_rate = clause.starts_with("rate-") && *clause != "rate-same";
        assert!(!(other_rate && kinds.contains(&HOLDS)), "{clause}");
    }
}

fn vmx() -> Value {
    let trial = |name: &str, near: bool, effect: &str| {
        json!({
            "name": name, "within_tolerance": near, "effect": effect,
            "error_at_least_ppb": -9_000, "error_at_most_ppb": 9_000,
        })
    };
    let in_force =
        json!({ "name": "in-force", "error_at_least_ticks": -5, "error_at_most_ticks": 7 });
    json!({
        "format": 1,
        "effects": {
            "offset": { "effect": in_force, "after_a_move": in_force },
            "rates": [
                trial("half the host's", false, "in-force"),
                trial("1.7 times the host's", false, "in-force"),
                trial("a very little above the host's", true, "ignored"),
            ],
        },
        "facts": { "offset": "in-force", "scaling": "in-force", "catch_up": "in-force" },
        "missing": [],
        "verdicts": [{ "policy": "pause-freeze", "verdict": "kept" }],
    })
}

fn judged(value: &Value, status: u8, check: fn(&Report) -> Result<()>) -> Result<()> {
    let outcome = Outcome {
        status: Some(status),
        stdout: value.to_string().into_bytes(),
        stderr: Vec::new(),
    };
    let report = Report::parse(&outcome)?;
    report.check_requirements(&outcome)?;
    check(&report)
}

#[test]
fn check_vmx_each_fault_fails() {
    judged(&vmx(), 0, check_vmx).unwrap();
    // where, what is wrong there, and a word of the message
    let rows = [
        ("/format", json!(2), "format"),
        ("/effects/offset/effect/name", json!("ignored"), "missing"),
        (
            "/effects/offset/after_a_move/name",
            json!("moved-by-kernel"),
            "after_a_move",
        ),
        (
            "/effects/offset/effect/error_at_least_ticks",
            json!(1),
            "ticks from",
        ),
        ("/facts/offset", json!("unknown"), "/facts/offset"),
        ("/effects/rates/0/effect", json!("caught-up"), "missing"),
        (
            "/effects/rates/1/error_at_most_ppb",
            json!(50_000),
            "ppb from",
        ),
        ("/effects/rates/1/error_at_least_ppb", json!(2), "ppb from"),
        (
            "/effects/rates/2/effect",
            json!("in-force"),
            "a very little",
        ),
        ("/missing", json!(["scaling"]), "missing"),
    ];
    for (place, wrong, word) in rows {
        let mut bad = vmx();
        *bad.pointer_mut(place).unwrap() = wrong;
        let error = judged(&bad, 0, check_vmx).unwrap_err().to_string();
        assert!(error.contains(word), "{place}: {error}");
    }
    assert!(judged(&vmx(), 1, check_vmx).is_err());
}

#[test]
fn check_agreement_believes_neither_alone() {
    let suite = |offset: &str, rate: &str| {
        format!(
            "# kvm\noffset-forward     {offset} so\nrate-1.7           {rate} so\n# kvm: 2 clauses\nkeeptime: a word\n"
        )
    };
    let report = |offset: &str, rate: &str| {
        let mut value = vmx();
        value["effects"]["offset"]["effect"]["name"] = json!(offset);
        value["effects"]["rates"][1]["effect"] = json!(rate);
        Report(value)
    };
    let rows = [
        ("holds", "holds", "in-force", "in-force", true),
        ("IGNORED", "IGNORED", "ignored", "ignored", true),
        ("holds", "DEGRADED", "in-force", "caught-up", true),
        ("holds", "DEGRADED", "in-force", "ignored", true),
        ("holds", "refused", "in-force", "refused", true),
        ("IGNORED", "IGNORED", "in-force", "ignored", false),
        ("IGNORED", "IGNORED", "ignored", "in-force", false),
        ("holds", "holds", "ignored", "in-force", false),
        ("holds", "DEGRADED", "in-force", "in-force", false),
        ("holds", "UNDECIDED", "in-force", "undecided", false),
        ("VIOLATED", "holds", "other", "in-force", false),
    ];
    for (offset, rate, doctors_offset, doctors_rate, agrees) in rows {
        let report = report(doctors_offset, doctors_rate);
        let judged = check_agreement(&suite(offset, rate), &report);
        assert_eq!(judged.is_ok(), agrees, "{offset} {rate}: {judged:?}");
    }
    assert!(check_agreement("# kvm\n# kvm: 0 clauses\n", &report("ignored", "ignored")).is_err());
}
