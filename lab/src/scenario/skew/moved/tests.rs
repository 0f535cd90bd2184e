use super::*;

/// What the two guests said, and what the first one would have said had it been asked once for each skew at the end.
const SAID: &str = "\
phase ahead kept w sum 251f44146 f9406 0 0 1f78 50 0 0 7030eb 230f54f 78 0 1239d6f at 36.96
phase ahead bare w sum 24c8cd11b f8238 0 0 258e 50 0 0 68b131 20b24e3 79 0 9ef4a5 at 37.06
phase behind kept w sum 2c8ec63dc 1741dd 0 0 2ccc 5a 0 0 52415d 19b4770 c9 0 d93096 at 38.97
phase behind bare w sum 2c53b0833 1758b0 0 0 3424 5a 0 0 7b4bc5 2680fa1 ca 0 1ee2fdc at 39.07
phase apart kept w sum 37d4f7153 243733 0 0 8eca 4e11 61f4 17dbe 552850 1a9ca35 147 0 dc51fa at 42.02
phase apart bare w sum 3779f7f0d 2454e7 0 0 28645 4e11 251c6 17dd7 6bb318 21a8041 148 0 aeabb2 at 42.12
phase later kept w sum 3b8308c4d 2937c6 0 0 8eca 4e11 61f4 17dbe 692a49 20d67fe 170 0 1565d54 at 43.04
phase later bare w sum 3b1da7597 296898 0 0 3e5a0 4e11 3b0f7 17dd7 5a77dd 1c39ddc 16e 0 15dd02d at 43.14
phase far kept w sum 4d6bc07c4 3450ec 0 0 8eca 4e11 61f4 17dbe 7af391 266c285 235 0 176e806 at 48.07
phase far bare w sum 4ceee7f96 2f2e84 0 0 4fb20 23c345f6 4c61c 2631053 23f93e6d ef218cb6 234 0 eca5863f at 48.17
phase back kept w sum 588a0a1eb 444622 0 0 8eca 4e11 61f4 17dbe 349c0c 1070cab 2b0 0 704368 at 50.76
phase by600000000 kept w sum 5c43b7bea 4b30d8 0 0 8eca 4e11 61f4 17dbe 346c68 1061e5d 2da 0 70b07a at 51.73
phase by-600000000 kept w sum 600743cf3 511b8e 0 0 8eca 4e11 61f4 17dbe 346c68 1061e5d 302 0 70b07a at 52.77
phase by20000 kept w sum 63d5aaffc 570644 0 0 8eca 4e11 61f4 17dbe 346c68 1061e5d 32a 0 70b07a at 53.80
phase by-20000 kept w sum 67a412305 5cf0fa 0 0 8eca 4e11 61f4 17dbe 346c68 1061e5d 352 0 70b07a at 54.82
";

const REPORT: &str = r#"{"host":{"clocksource":"hpet"},"placement":{"mode":"off"},
    "events":{"kernel_compensations":6,"latest":[
    {"at_ns":23680216210,"what":"skew","cpu":1,"home_cpu":0,"at_least_ticks":19985,"at_most_ticks":20015},
    {"at_ns":23683113450,"what":"restart","cause":"skew","forward_ticks":[0,20000],"seen_in_force":true},
    {"at_ns":29824142523,"what":"skew","cpu":1,"at_least_ticks":-600000015,"at_most_ticks":-599999985},
    {"at_ns":29857685066,"what":"restart","cause":"skew","forward_ticks":[20000,600000000],"seen_in_force":true},
    {"at_ns":32755218386,"what":"restart","cause":"skew","forward_ticks":[548095,496865],"seen_in_force":false},
    {"at_ns":32755537756,"what":"kernel_mark","clocksource":"hpet"},
    {"at_ns":34873158436,"what":"restart","cause":"lead","forward_ticks":[0,572378123],"seen_in_force":false}]}}"#;

/// The report while the CPUs were half a microsecond apart.
const NEAR: &str = r#"{"host":{"clocksource":"tsc"},"guest":{"master_clock":true,
    "error":{"at_least_ns":-71347,"at_most_ns":71462,"largest_ns":0}},
    "events":{"restarts":0,"kernel_compensations":0,"latest":[
    {"at_ns":36096199791,"what":"skew","cpu":1,"home_cpu":0,"at_least_ticks":85,"at_most_ticks":115},
    {"at_ns":38179959699,"what":"skew","cpu":1,"home_cpu":0,"at_least_ticks":-115,"at_most_ticks":-85}]},
    "vcpus":[{"backwards_steps":0,"leaps":0,"lags":0,"offset_moves":0},
    {"backwards_steps":0,"leaps":0,"lags":0,"offset_moves":0}]}"#;

fn judged(change: impl Fn(String) -> String) -> Result<()> {
    let [near, report] = [NEAR, REPORT].map(|report| report.replace('\n', ""));
    let stderr = change(format!("near {near}\n{SAID}report {report}\n"));
    check(&Outcome {
        status: Some(0),
        stdout: Vec::new(),
        stderr: stderr.into_bytes(),
    })
}

/// Each row: what is replaced by what, and a word of what is said then.
fn each_fails(rows: &[(&str, &str, &str)]) {
    for (good, bad, word) in rows {
        let error = judged(|text| {
            assert!(text.contains(good), "{good}");
            text.replace(good, bad)
        });
        let error = format!("{:#}", error.expect_err(bad));
        assert!(error.contains(word), "{bad}: {error}");
    }
}

#[test]
fn check_at_half_a_microsecond_fails_by_each_fault() {
    judged(|text| text).unwrap();
    // A guest that was left apart by 100 us, and by 3 s.
    let apart = "cb9f 4e11 cb83 17dbe 5143d9 1954491 a3 0 146ac63";
    let far = "7d5e0 23c345f6 7d101 50c366 a4681b 3197500 196 0 12e7e5c";
    let event = r#"{"at_ns":38179959699,"what":"skew","cpu":1,"home_cpu":0,"at_least_ticks":-115,"at_most_ticks":-85}"#;
    let marked = r#"{"at_ns":38179959699,"what":"kernel_mark","clocksource":"hpet"}"#;
    let more = format!("{event},{marked}");
    each_fails(&[
        (
            "1f78 50 0 0 7030eb 230f54f 78 0 1239d6f",
            apart,
            "more than the skew",
        ),
        (
            "3424 5a 0 0 7b4bc5 2680fa1 ca 0 1ee2fdc",
            far,
            "more than the skew",
        ),
        ("2ccc 5a ", "2ccc 65 ", "more than the skew"),
        ("2ccc 5a 0 0", "2ccc 5a 1 1f5", "more than the skew"),
        ("f9406 0 0", "f9406 1 0", "stood still"),
        ("1758b0 0 0", "1758b0 0 1", "backwards"),
        ("52415d", "2625a00", "leapt"),
        // The CPUs agree, or nobody was moved.
        ("258e 50", "0 0", "to read less than each other"),
        ("3424 5a", "258e 5a", "to read less than each other"),
        (&format!(",    {event}"), "", "no more than"),
        (event, &more, "no more than"),
        (event, marked, "a skew of -100 ticks is not told"),
        ("36096199791", "0", "a skew of 100 ticks is not told"),
        ("\":85,", "\":101,", "a skew of 100 ticks is not told"),
        ("\":85,", "\":-85,", "a skew of 100 ticks is not told"),
        ("\":115}", "\":20015}", "a skew of 100 ticks is not told"),
        ("\"tsc\"", "\"hpet\"", "/host/clocksource"),
        ("clock\":true", "clock\":false", "/guest/master_clock"),
        ("restarts\":0", "restarts\":1", "/events/restarts"),
        (
            "compensations\":0",
            "compensations\":6",
            "/events/kernel_compensations",
        ),
        ("steps\":0", "steps\":1", "backwards_steps"),
        ("\"leaps\":0", "\"leaps\":1", "leaps"),
        ("\"lags\":0", "\"lags\":1", "lags"),
        ("moves\":0}]", "moves\":1}]", "/vcpus/1/offset_moves"),
        ("largest_ns\":0", "largest_ns\":-501", "off by -501 ns"),
    ]);
}

#[test]
fn check_of_moved_guests_passes_and_each_fault_fails() {
    judged(|text| text).unwrap();
    each_fails(&[
        ("phase later bare", "phase late bare", "the phases"),
        // The guest without a timekeeper is none the worse: nobody was moved.
        ("3e5a0 4e11", "3e5a0 0", "up to 20000 ticks"),
        ("3e5a0 4e11", "28645 4e11", "stay apart"),
        ("4fb20 23c345f6", "4fb20 4e11", "leap"),
        ("4fb20 ", "3e5a0 ", "apart again"),
        // The other one is no better.
        ("2937c6 0 0 8eca", "2937c6 0 0 1ceca", "apart again"),
        (
            "444622 0 0 8eca",
            "444622 0 0 18eca",
            "left its vCPUs apart",
        ),
        (
            "4b30d8 0 0 8eca",
            "4b30d8 0 0 18eca",
            "left its vCPUs apart",
        ),
        (
            "5cf0fa 0 0 8eca",
            "5cf0fa 0 0 18eca",
            "left its vCPUs apart",
        ),
        (
            "4b30d8 0 0 8eca 4e11 61f4",
            "4b30d8 0 0 8eca 4e11 161f4",
            "left its vCPUs apart",
        ),
        ("4b30d8 0 0", "4b30d8 0 1", "backwards"),
        ("444622 0 0", "444622 1 0", "stood still"),
        (
            "8eca 4e11 61f4 17dbe 7af391",
            "8eca 33c2f7d1 61f4 17dbe 7af391",
            "more than the skew",
        ),
        // One that stood still, leapt, or stopped.
        ("3b8308c4d ", "37d4f7154 ", "departed from the host's"),
        ("3b1da7597 ", "37a97f0d0 ", "departed from the host's"),
        ("at 51.73", "at 54.73", "departed from the host's"),
        ("at 48.07", "at 52.07", "departed from the host's"),
        ("5c43b7bea 4b30d8", "5c43b7bea 444622", "did not go on"),
        ("3b8308c4d 2937c6", "37d4f7153 2937c6", "did not go on"),
        ("at 43.04", "at 43", "no sum"),
        (
            "at_least_ticks\":19985",
            "at_least_ticks\":9985",
            "is not told",
        ),
        (
            "at_most_ticks\":-599999985",
            "at_most_ticks\":-5",
            "is not told",
        ),
        ("[0,20000]", "[0,0]", "taken forward by 20000"),
        (
            "[20000,600000000],\"seen_in_force\":true",
            "[20000,600000000]",
            "by 600000000 ticks",
        ),
        ("[548095,", "[1199999999,", "for each vCPU"),
        ("kernel_mark", "mark", "kernel's mark"),
        ("compensations\":6", "compensations\":0", "not noticed"),
        ("\"off\"", "\"auto\"", "/placement/mode"),
        ("\"hpet\"},\"pl", "\"tsc\"},\"pl", "/host/clocksource"),
        ("23680216210", "0", "without a time"),
    ]);
}
