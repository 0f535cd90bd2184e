use super::*;

fn refusal(name: &str, message: &str) -> String {
    format!(
        "refusal {name} 1 0 1 keeptime: tsc_khz: the guest's TSC rate {message}; leave it out\n"
    )
}

fn below() -> String {
    refusal(
        "below",
        "is below the host's 2000000 kHz, and the host cannot scale",
    )
}

fn judged(
    check: fn(&Outcome) -> Result<()>,
    stdout: &str,
    stderr: &str,
) -> std::result::Result<(), String> {
    let outcome = Outcome {
        status: Some(0),
        stdout: stdout.as_bytes().to_vec(),
        stderr: stderr.as_bytes().to_vec(),
    };
    check(&outcome).map_err(|error| format!("{error:#}"))
}

/// Each replacement makes the check fail with a message that has the word.
fn each_fails(
    check: fn(&Outcome) -> Result<()>,
    stdout: &str,
    stderr: &str,
    rows: &[(&str, &str, &str)],
) {
    judged(check, stdout, stderr).expect("good");
    for (good, bad, word) in rows {
        let changed = (stdout.replace(good, bad), stderr.replace(good, bad));
        assert_ne!(changed, (stdout.to_owned(), stderr.to_owned()), "{good}");
        let message = judged(check, &changed.0, &changed.1).expect_err(bad);
        assert!(message.contains(word), "{bad}: {message}");
    }
}

#[test]
fn check_stable_wants_each_refusal_with_its_reason() {
    let unseen = |name| refusal(name, "cannot be: it accepts such a rate without an effect");
    let stderr = format!(
        "host 2000000\n{}{}{}",
        below(),
        unseen("above"),
        unseen("allowed")
    );
    each_fails(
        check_stable,
        "",
        &stderr,
        &[
            ("refusal above 1 0 1", "refusal above 0 9 1", "0 9 1"),
            ("refusal below 1 0 1", "refusal below 1 0 2", "1 0 2"),
            ("host 2000000", "host 2023000", "2023000"),
            ("refusal allowed", "refusal", "allowed"),
            ("without an effect", "with steps", "without an effect"),
            ("leave it out", "", "leave it out"),
        ],
    );
}

#[test]
fn check_unstable_wants_a_guest_and_a_report_that_is_degraded() {
    let above =
        "would be wrong: KVM would push the clock forward in steps, with --allow-tsc-catchup";
    let report = r#"report 3400000 {"guest":{"tsc_khz_asked":3400000,"tsc_khz_in_force":3400000,
        "how":"catch-up"},"degradations":[{"name":"catch-up","consequence":"steps"}]}"#
        .replace('\n', "");
    let stderr = format!(
        "host 2000000\n{}{}[a:main:WARN] degraded: catch-up: x\n{report}\n",
        below(),
        refusal("above", above)
    );
    let stdout = "--- user space ---\nprocessors online: 2\n--- power off ---\n";
    each_fails(
        check_unstable,
        stdout,
        &stderr,
        &[
            ("refusal above 1", "refusal above 0", "0 0 1"),
            ("in steps", "", "in steps"),
            ("WARN] degraded", "WARN] fine", "does not warn"),
            ("\"catch-up\"}", "\"scaled\"}", "kept by"),
            (
                "\"name\":\"catch-up\"",
                "\"name\":\"none\"",
                "does not name",
            ),
            ("force\":3400000", "force\":2000000", "in_force"),
            ("online: 2", "online: 1", "online: 1"),
            ("--- power off ---", "", "not its end"),
        ],
    );
}
