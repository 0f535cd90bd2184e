use super::*;
use crate::scenario::fault_rows::each_fails;

/// What a guest on CPU 0 said at each skew.
const SUMS: [&str; 6] = [
    "202243d8b 9c3f4 0 0 0 0 0 0 86ce00 2a20619 4f 0 1e61e18",
    "23dbe7942 d6fcb 0 0 0 0 0 0 8f4c8d 2cc7eda 78 0 f0d8a4",
    "27959cd0d 112171 0 0 0 0 0 0 7db0bd 27473ca a1 0 19a8ce1",
    "2b7127bf4 14e85f 0 0 0 0 0 0 83b60c 2928e3c cb 0 2227142",
    "32d028804 1ff04e 0 0 0 0 0 0 1ec6a2 99e12a f7 0 17606",
    "3df5c76f9 30fab1 0 0 0 0 0 0 1eb770 999530 134 0 4600ff",
];

/// And after a pause under `freeze`.
const FROZEN: &str = "36a5c46db 23b7ee 0 0 0 0 0 0 13436cb 5f57210 147 0 5f343ff";

const REPORT: &str = r#"{"host":{"clocksource":"tsc","skew":{"known_by":"measurement","domains":[[0],[1]],
    "largest":{"a":0,"b":1,"at_least_ns":99925,"at_most_ns":100075}}},"guest":{"master_clock":true},
    "placement":{"mode":"auto","cpus":[0],"vcpus":[[0],[0]]},
    "stops":[{"policy":"freeze","advanced_ns":0}],
    "events":{"restarts":0,"kernel_compensations":0,"latest":[{"what":"unplanned_stop"},
    {"what":"skew","cpu":1,"home_cpu":0,"at_least_ticks":599999985,"at_most_ticks":600000015}]},
    "vcpus":[{"moves":0,"backwards_steps":0,"offset_moves":0,"offset":-2970427445},
    {"moves":0,"backwards_steps":0,"offset_moves":0,"offset":-2970427445}]}"#;

fn good() -> String {
    let phases = SKEWS.iter().zip(SUMS);
    let phases: String = phases
        .map(|(skew, sum)| format!("phase {skew} w sum {sum}\n"))
        .collect();
    let report = REPORT.replace('\n', "");
    format!("home 0\n{phases}frozen w sum {FROZEN}\nreport {report}\n")
}

fn judged(stderr: &str) -> Result<()> {
    check_placed(&Outcome {
        status: Some(0),
        stdout: Vec::new(),
        stderr: stderr.as_bytes().to_vec(),
    })
}

#[test]
fn check_placed_guest_passes_and_each_fault_fails() {
    // The host's own clock had it not run for 3.2 s.
    let stopped = "45479150f 3cc155 0 0 0 0 0 0 26d008bf c1eb12f4 1e9 0 c0546bbb";
    judged(&good().replace(SUMS[5], stopped)).unwrap();
    // A guest whose threads were moved while one CPU was 100 ticks ahead, and one 3 s, without its timekeeper.
    let behind = "24fa9f127 c0b40 0 0 10f 50 0 0 b98ed5 39fca42 79 0 396b3e4";
    let leapt = "374ff1ec4 1129d6 0 0 c75 243a0cc2 c75 6eb856 243f2fef b4b41973 142 0 b18ab29d";
    let rows = [
        (SUMS[0], behind, "skew of 100 ticks: the guest saw"),
        (SUMS[4], leapt, "skew of 600000000 ticks: the guest saw"),
        ("83b60c ", "23e6fb9f ", "leapt"),
        (FROZEN, behind, "after a freeze: the guest saw"),
        ("advanced_ns\":0", "advanced_ns\":7", "/advanced_ns"),
        ("\"freeze\"", "\"advance\"", "/policy"),
        ("phase 20000", "phase 20001", "the phases"),
        ("phase 100 ", "fase 100 ", "the phases"),
        ("home 0", "home 1", "/placement/cpus"),
        ("\"auto\"", "\"off\"", "/placement/mode"),
        ("\"measurement\"", "\"cache\"", "/host/skew/known_by"),
        ("[[0],[1]],", "[[0,1]],", "/host/skew/domains"),
        ("\"tsc\"", "\"hpet\"", "/host/clocksource"),
        ("clock\":true", "clock\":false", "master_clock"),
        ("restarts\":0", "restarts\":1", "restarts"),
        ("compensations\":0", "compensations\":16", "compensations"),
        ("\"moves\":0", "\"moves\":7", "moves"),
        ("offset_moves\":0", "offset_moves\":8", "offset_moves"),
        ("-2970427445}]", "-2970427446}]", "offset"),
        ("99925", "100001", "at first"),
        ("599999985", "600000001", "nobody made"),
    ];
    each_fails(&good(), &rows, judged);
}
