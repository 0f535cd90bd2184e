use super::*;

/// What the two guests said.
const SAID: &str = "phase ahead kept w sum 251f44146 f9406 0 0 1f78 50 0 0 7030eb 230f54f 78 0 1239d6f
phase ahead bare w sum 24c8cd11b f8238 0 0 258e 50 0 0 68b131 20b24e3 79 0 9ef4a5
phase behind kept w sum 2c8ec63dc 1741dd 0 0 2ccc 5a 0 0 52415d 19b4770 c9 0 d93096
phase behind bare w sum 2c53b0833 1758b0 0 0 3424 5a 0 0 7b4bc5 2680fa1 ca 0 1ee2fdc
phase apart kept w sum 28a7a96bb 14cf81 0 0 cb9f 4e11 cb83 17dbe 5143d9 1954491 a3 0 146ac63
phase apart bare w sum 2515de23c f7742 0 0 20dd0 4e11 20d8a 17dbe 8ab9e8 2b5a26c 7a 0 c802c1
phase later kept w sum 2c5a3dec1 19f2d7 0 0 cb9f 4e11 cb83 17dbe 549a98 1a70583 c9 0 1390632
phase later bare w sum 2c7a8f1aa 19e3ac 0 0 44c44 4e11 44ba1 17dbe 4fa7ae 18e4653 c9 0 124e1ee
phase far kept w sum 3ef445a1c 212e9a 0 0 d5fb 23c2f7d1 d5dd b2cf08d4 1015f08 505fbff 198 0 4adf1b7
phase far bare w sum 3ed1877de 21cc97 0 0 7d5e0 23c345f6 7d101 50c366 a4681b 3197500 196 0 12e7e5c
phase back kept w sum 4a1e872fc 2f3757 0 0 d5fb 23c2f7d1 d5dd b2cf08d4 393afd 11e274f 213 0 939c59
phase distrusted kept w sum 57a7a6ff1 3461aa 0 0 d5fb 23c2f7d1 d5dd b2cf08d4 393afe 11e274f 2aa 0 939c59
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
        ("44c44 4e11", "44c44 0", "up to 20000 ticks"),
        ("44c44 4e11", "20dd0 4e11", "stay apart"),
        ("7d5e0 23c345f6", "7d5e0 4e11", "leap"),
        ("7d5e0 ", "44c44 ", "apart again"),
        // The other one is no better.
        ("19f2d7 0 0 cb9f", "19f2d7 0 0 1cb9f", "apart again"),
        (
            "2f3757 0 0 d5fb",
            "2f3757 0 0 1d5fb",
            "left its vCPUs apart",
        ),
        (
            "3461aa 0 0 d5fb",
            "3461aa 0 0 1d5fb",
            "left its vCPUs apart",
        ),
        (
            "3461aa 0 0 d5fb 23c2f7d1 d5dd",
            "3461aa 0 0 d5fb 23c2f7d1 1d5dd",
            "left its vCPUs apart",
        ),
        ("3461aa 0 0", "3461aa 0 1", "backwards"),
        ("2f3757 0 0", "2f3757 1 0", "stood still"),
        ("d5fb 23c2f7d1", "d5fb 33c2f7d1", "more than the skew"),
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
