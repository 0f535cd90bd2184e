use super::*;

const fn within(at_least: i128, at_most: i128) -> Within {
    Within { at_least, at_most }
}

const fn lost(clock: (i128, i128), tsc: (i128, i128)) -> Lost {
    Lost {
        clock: within(clock.0, clock.1),
        tsc: within(tsc.0, tsc.1),
    }
}

/// What was seen of pauses under `advance`: by the kvmclock and by the TSC on `svm-tsc`, and by the TSC on `vmx`.
const BY_KVMCLOCK: Lost = lost((1_038, 1_038), (-5_307, 7_543));
const BY_TSC: Lost = lost((-49_385, 36_051), (-47_480, 46_702));
const BY_TSC_ON_VMX: Lost = lost((-7_650, 7_650), (-39_728, 39_729));

fn moved(lost: Lost, by: i128) -> Lost {
    let moved = |clock: Within| within(clock.at_least + by, clock.at_most + by);
    Lost {
        clock: moved(lost.clock),
        tsc: moved(lost.tsc),
    }
}

#[test]
fn clocks_that_are_off_by_more_than_the_error_fail_however_they_were_read() {
    let close = Terms::close("tsc").error_ns;
    let slow = Terms::close("tsc").with_slow_readings().error_ns;
    // (what was seen, the error allowed, by how much more it may be and may not be)
    let rows = [
        (BY_KVMCLOCK, close, 42_000, 43_000),
        (BY_TSC, slow, 53_000, 54_000),
        (BY_TSC_ON_VMX, close, 10_000, 11_000),
    ];
    for (seen, error, good, bad) in rows {
        for sign in [1, -1] {
            expect_lost("advance", &moved(seen, sign * 1_000), NOTHING, error).unwrap();
            let off = moved(seen, sign * bad * 2);
            let message = expect_lost("advance", &off, NOTHING, error).unwrap_err();
            assert!(message.to_string().contains("as it should"), "{message}");
        }
        expect_lost("advance", &moved(seen, good), NOTHING, error).unwrap();
        expect_lost("advance", &moved(seen, bad), NOTHING, error).unwrap_err();
        // As was frozen, to within what the report says of itself.
        let frozen = moved(seen, 10_113_618_364);
        let told = within(10_113_597_815 - 346_367, 10_113_597_815 + 346_367);
        expect_lost("freeze", &frozen, told, error).unwrap();
        expect_lost("freeze", &moved(frozen, 700_000), told, error).unwrap_err();
    }
    // Readings that touch what is allowed prove nothing.
    let wide = lost((-10_000, 290_000), (-10_000, 290_000));
    expect_lost("advance", &wide, NOTHING, close).unwrap_err();
    expect_lost("advance", &wide, NOTHING, slow).unwrap_err();
}

fn sum(at_ns: u64, latest_ns: u64) -> Sum {
    let zero = "0 ".repeat(11);
    Sum::parse(&format!("{at_ns:x} {zero}{latest_ns:x}")).unwrap()
}

/// The sums of a guest on `svm-tsc`, and how long its two stops were in which time passed.
fn slept() -> (Vec<Sum>, Vec<Within>) {
    let mut at = 0;
    let mut sums = Vec::new();
    for latest_ms in [13, 29, 17, 8, 24, 10_127, 5, 7, 9, 10_037, 21] {
        at += 1_000_000_000 + u64::from(latest_ms > 1_000) * 10_000_000_000;
        sums.push(sum(at, latest_ms * 1_000_000));
    }
    let stops = vec![
        within(10_080_000_000, 10_160_000_000),
        within(10_010_000_000, 10_060_000_000),
    ];
    (sums, stops)
}

#[test]
fn sleepers_are_late_by_a_stop_in_which_time_passed_and_by_nothing_else() {
    let (sums, stops) = slept();
    sleepers(&sums, 0, &stops).unwrap();
    // Heard of a sum later.
    let mut later = sums.clone();
    (later[5].latest_ns, later[6].latest_ns) = (0, 10_127_000_000);
    sleepers(&later, 0, &stops).unwrap();

    let fault = |change: &dyn Fn(&mut Vec<Sum>), lost: u64, word: &str| {
        let (mut sums, stops) = slept();
        change(&mut sums);
        let error = sleepers(&sums, lost, &stops).expect_err(word).to_string();
        assert!(error.contains(word), "{word}: {error}");
    };
    fault(&|_| {}, 1, "1 never");
    fault(&|sums| sums[10].early = 1, 0, "1 sleepers woke early");
    // In the freeze, by a second: what its timers must not be.
    fault(
        &|sums| sums[3].latest_ns = 1_100_000_000,
        0,
        "before a stop",
    );
    for (stop, after) in [(5, "10080000000"), (9, "10010000000")] {
        fault(&|sums| sums[stop].latest_ns = 9_800_000_000, 0, after);
        fault(&|sums| sums[stop].latest_ns = 11_300_000_000, 0, after);
        fault(&|sums| sums[stop].latest_ns = 0, 0, after);
    }
    fault(&|sums| sums.truncate(9), 0, "time passed in 1 stops, not 2");
}

#[test]
fn unplanned_stops_are_told_once_each_by_what_stopped() {
    let event = |by_signal: bool, at_least: i64, at_most: i64| {
        serde_json::json!({"at_ns": 1, "what": "unplanned_stop", "at_least_ns": at_least,
            "at_most_ns": at_most, "host_slept_ns": 0, "by_signal": by_signal})
    };
    let events = |latest: &[Value]| serde_json::json!({"latest": latest});
    let signal = event(true, 9_299_296_093, 10_299_296_093);
    let seen = within(10_010_000_000, 10_060_000_000);
    let told = |latest: &[Value]| unplanned_stop(&SIGSTOP, seen, &events(latest));
    told(&[event(false, 0, 1_100_000_000), signal.clone()]).unwrap();
    for bad in [
        vec![],
        vec![event(false, 9_299_296_093, 10_299_296_093)],
        vec![signal.clone(), signal],
        vec![event(true, 8_900_000_000, 9_900_000_000)],
        vec![event(true, 10_100_000_000, 11_100_000_000)],
    ] {
        told(&bad).unwrap_err();
    }

    // A host without a CPU for its guest is told besides; the cgroup's stop of six seconds is another than the signal's.
    let frozen = event(false, 5_681_199_199, 6_681_199_199);
    let seen = within(6_115_000_000, 6_290_000_000);
    let told = |latest: &[Value]| unplanned_stop(&FROZEN_CGROUP, seen, &events(latest));
    let signal = event(true, 9_299_296_093, 10_299_296_093);
    let late = event(false, 983_995_239, 1_983_995_239);
    told(&[late.clone(), signal.clone(), frozen.clone()]).unwrap();
    for bad in [
        vec![late, signal],
        vec![event(true, 5_681_199_199, 6_681_199_199)],
        vec![frozen.clone(), frozen],
        vec![event(false, 4_681_199_199, 5_681_199_199)],
    ] {
        told(&bad).unwrap_err();
    }
}
