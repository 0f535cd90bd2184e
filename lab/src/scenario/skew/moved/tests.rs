use super::*;
use crate::scenario::fault_rows;

/// What the two guests said.
const SAID: &str = "\
phase ahead kept w sum 28c6290e2 1261e4 0 0 1215 50 0 0 955e52 2ead876 a3 0 12a7f66 at 25.50
phase ahead bare w sum 254a6bed0 f2ce8 0 0 1943 55 0 0 651f21 1f99c4a 7a 0 10ca2c5 at 25.53
phase behind kept w sum 30241c9d3 19bd6e 0 0 1b0e 55 0 0 93302d 2df3364 f3 0 29a31bc at 27.44
phase behind bare w sum 2ca7e6897 1690f5 0 0 2981 55 0 0 584751 1b9653f ca 0 bcb7a0 at 27.48
phase apart kept w sum 37a80dee0 23b793 0 0 664b 4e11 4b30 17dbe 60cd0e 1e401fd 147 0 1152c93 at 29.66
phase apart bare w sum 37d0368af 2398e1 0 0 29224 4e11 26842 17dbe 4a7f9f 1747e95 146 0 d47ad9 at 29.78
phase later kept w sum 3b6d23d84 28ea82 0 0 664b 4e11 4b30 17dbe 71297e 235d049 170 0 1324c66 at 30.51
phase later bare w sum 3b86f7063 289328 0 0 3b306 4e11 388fd 17dbe 6b840b 2199500 16e 0 1f2f757 at 30.81
phase far kept w sum 4ddf4f543 2fc0c1 0 0 664b 4e11 4b30 17dbe e176a7 46752cd 23d 0 3977af0 at 35.62
phase far bare w sum 4da7459f6 30549e 0 0 71f13 23c345f6 6f49c b2d08f74 7deb91 40d9900 237 0 35b3cd8 at 35.77
phase back kept w sum 590b966a0 3db7a3 0 0 664b 4e11 4b30 17dbe 34b3c2 1078339 2b7 0 7c36b1 at 38.42
phase by600000000 kept w sum 5cdd5c9b2 43f518 0 0 664b 4e11 4b30 17dbe 3491c1 1073c53 2e3 0 d8a1d8 at 39.42
phase by-600000000 kept w sum 6083f837c 49f253 0 0 664b 4e11 4b30 17dbe 3fa608 13e3eaa 309 0 9ec56e at 40.41
phase by20000 kept w sum 6450a438c 5019b8 0 0 664b 4e11 4b30 17dbe 3d8c97 133bf58 335 0 e8c9a5 at 41.40
phase by-20000 kept w sum 67f38c27c 560a18 0 0 664b 4e11 4b30 17dbe 264072 bf4260 35d 0 710567 at 42.40
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

fn each_fails(rows: &[(&str, &str, &str)]) {
    let [near, report] = [NEAR, REPORT].map(|report| report.replace('\n', ""));
    let good = format!("near {near}\n{SAID}report {report}\n");
    fault_rows::each_fails(&good, rows, |stderr| {
        check(&Outcome {
            status: Some(0),
            stdout: Vec::new(),
            stderr: stderr.as_bytes().to_vec(),
        })
    });
}

#[test]
fn check_at_half_a_microsecond_fails_by_each_fault() {
    // A guest that was left apart by 100 us, and by 3 s.
    let apart = "cb9f 4e11 cb83 17dbe 5143d9 1954491 a3 0 146ac63";
    let far = "7d5e0 23c345f6 7d101 50c366 a4681b 3197500 196 0 12e7e5c";
    let event = r#"{"at_ns":38179959699,"what":"skew","cpu":1,"home_cpu":0,"at_least_ticks":-115,"at_most_ticks":-85}"#;
    let marked = r#"{"at_ns":38179959699,"what":"kernel_mark","clocksource":"hpet"}"#;
    let more = format!("{event},{marked}");
    each_fails(&[
        (
            "1215 50 0 0 955e52 2ead876 a3 0 12a7f66",
            apart,
            "more than the skew",
        ),
        (
            "2981 55 0 0 584751 1b9653f ca 0 bcb7a0",
            far,
            "more than the skew",
        ),
        ("1b0e 55 ", "1b0e 65 ", "more than the skew"),
        ("1b0e 55 0 0", "1b0e 55 1 1f5", "more than the skew"),
        ("1261e4 0 0", "1261e4 1 0", "stood still"),
        ("1690f5 0 0", "1690f5 0 1", "backwards"),
        ("93302d", "2625a00", "leapt"),
        // The CPUs agree, or nobody was moved.
        ("1943 55", "0 0", "to read less than each other"),
        ("2981 55", "1943 55", "to read less than each other"),
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
    each_fails(&[
        ("phase later bare", "phase late bare", "the phases"),
        // The guest without a timekeeper is none the worse: nobody was moved.
        ("3b306 4e11", "3b306 0", "up to 20000 ticks"),
        ("3b306 4e11", "29224 4e11", "stay apart"),
        ("71f13 23c345f6", "71f13 4e11", "leap"),
        ("71f13 ", "3b306 ", "apart again"),
        // The other one is no better.
        ("28ea82 0 0 664b", "28ea82 0 0 1c64b", "apart again"),
        (
            "3db7a3 0 0 664b",
            "3db7a3 0 0 1664b",
            "left its vCPUs apart",
        ),
        (
            "43f518 0 0 664b",
            "43f518 0 0 1664b",
            "left its vCPUs apart",
        ),
        (
            "560a18 0 0 664b",
            "560a18 0 0 1664b",
            "left its vCPUs apart",
        ),
        (
            "43f518 0 0 664b 4e11 4b30",
            "43f518 0 0 664b 4e11 14b30",
            "left its vCPUs apart",
        ),
        ("43f518 0 0", "43f518 0 1", "backwards"),
        ("3db7a3 0 0", "3db7a3 1 0", "stood still"),
        (
            "664b 4e11 4b30 17dbe e176a7",
            "664b 33c2f7d1 4b30 17dbe e176a7",
            "more than the skew",
        ),
        // One that stood still, leapt, or stopped.
        ("at 30.51", "at 33.51", "departed from the host's"),
        ("at 30.81", "at 33.81", "departed from the host's"),
        ("at 39.42", "at 42.42", "departed from the host's"),
        ("67f38c27c", "727c24e00", "departed from the host's"),
        ("at 35.62", "at 40.62", "departed from the host's"),
        ("5cdd5c9b2 43f518", "5cdd5c9b2 3db7a3", "did not go on"),
        ("3b6d23d84 28ea82", "37a80dee0 28ea82", "did not go on"),
        ("at 30.51", "at 30", "no sum"),
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
