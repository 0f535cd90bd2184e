use super::*;

/// What a guest at `khz` says, and its launcher, when the guest's TSC ticks at `ticks_khz` and its clock is `behind` the
/// host's at the second of two looks.
fn guest(name: &str, khz: i64, ticks_khz: i64, behind: i64) -> (String, String) {
    // Looks eleven seconds apart, each of 20 us; the TSC is read at their ends.
    let look = |at: i64, behind: i64| {
        let tsc = |ns: i64| ns * ticks_khz / 1_000_000;
        format!(
            "{name} w between {:x} {at:x} {:x} {:x} {:x} {:x}\n",
            at - behind - 10_000,
            at - behind + 10_000,
            tsc(at + 10_000),
            at - behind + 10_000,
            tsc(at + 10_000) + 1
        )
    };
    let looks = look(20_000_000_000, 0) + &look(31_000_000_000, behind);
    let stdout = format!(
        "{name} --- user space ---\n{name} clocksource: tsc\n\
         {name} log: [    0.0] tsc: Detected {}.{:03} MHz processor\n\
         {name} w begin 2\n{looks}{name} w sum 1 2 0 0 0 0 0 0 9 a b 0 d\n{name} w end\n\
         {name} --- power off ---\n",
        khz / 1_000,
        khz % 1_000
    );
    let stderr = format!(
        "{name} rate {khz}\n{name} report {{\"guest\":{{\"tsc_khz_asked\":{khz},\
         \"tsc_khz_in_force\":{khz},\"how\":\"scaled\",\"error\":{{\"largest_ns\":-3}}}},\
         \"error_history\":[{{\"from_ns\":1,\"to_ns\":2}},{{\"from_ns\":3,\"to_ns\":10000000001}}]}}\n"
    );
    (stdout, stderr)
}

fn judged(guests: [(String, String); 2], change: impl Fn(String) -> String) -> Result<()> {
    let [half, fast] = guests;
    check(&Outcome {
        status: Some(0),
        stdout: change(half.0 + &fast.0).into_bytes(),
        stderr: change(format!("host 200000\n{}{}", half.1, fast.1)).into_bytes(),
    })
}

fn good() -> [(String, String); 2] {
    [
        guest("half", 100_000, 100_000, 0),
        guest("fast", 340_000, 340_000, 0),
    ]
}

#[test]
fn check_good_guests_pass_and_each_fault_fails() {
    judged(good(), |text| text).unwrap();
    let rows = [
        ("Detected 340.000", "Detected 339.998", "found 339998"),
        ("host 200000", "host 200023", "on a host of 200023"),
        ("\"scaled\"", "\"catch-up\"", "kept by"),
        ("force\":340000", "force\":200000", "in_force"),
        ("10000000001", "9999999999", "watched"),
        ("ns\":-3", "ns\":-100001", "off its line"),
        ("2 0 0 0 0 0 0 9", "2 0 0 1 5 0 0 9", "backwards"),
        ("clocksource: tsc", "clocksource: kvm-clock", "kvm-clock"),
    ];
    for (good_part, bad, word) in rows {
        let error = judged(good(), |text| text.replace(good_part, bad));
        let error = format!("{:#}", error.expect_err(bad));
        assert!(error.contains(word), "{bad}: {error}");
    }
}

#[test]
fn check_host_at_an_odd_rate_passes() {
    let guests = [
        guest("half", 99_999, 99_999, 0),
        guest("fast", 339_983, 339_983, 0),
    ];
    judged(guests, |text| text.replace("host 200000", "host 199999")).unwrap();
}

#[test]
fn check_clock_at_the_rate_that_its_kernel_has_found_passes() {
    // Of guests that were seen: the kernel found a kHz less than there was, and its clock gained 2.9 us a second by it.
    let [half, _] = good();
    let fast = guest("fast", 340_000, 340_000, -32_353);
    let less = |text: String| text.replace("Detected 340.000", "Detected 339.999");
    judged([half, fast], less).unwrap();
    let error = judged(good(), less).expect_err("a clock at another rate");
    assert!(format!("{error:#}").contains("its clock lost"), "{error:#}");
}

#[test]
fn check_looks_that_are_less_than_ten_seconds_apart_fail() {
    let sooner = |text: String| {
        let [at, soon] = [31_000_000_000_i64, 29_999_000_000].map(|at| format!(" {at:x} "));
        text.replace(&at, &soon)
            .replace(
                &format!(" {:x} ", 31_000_010_000_i64),
                &format!(" {:x} ", 29_999_010_000_i64),
            )
            .replace(
                &format!(" {:x} ", 30_999_990_000_i64),
                &format!(" {:x} ", 29_998_990_000_i64),
            )
    };
    let error = judged(good(), sooner).expect_err("9.999 s");
    assert!(format!("{error:#}").contains("only between"), "{error:#}");
}

#[test]
fn check_another_rate_and_a_clock_that_drifts_fail() {
    // The brackets of 20 us each in 11 s are 3.6 ppm, and so half a kHz to either side.
    let rows = [
        (guest("fast", 340_000, 340_002, 0), "its TSC ticked at"),
        (guest("fast", 340_000, 339_998, 0), "its TSC ticked at"),
        (guest("fast", 340_000, 200_000, 0), "its TSC ticked at"),
        (guest("fast", 340_000, 340_000, 20_000), "its clock lost"),
        (guest("fast", 340_000, 340_000, -20_000), "its clock lost"),
    ];
    for (fast, word) in rows {
        let [half, _] = good();
        let error = judged([half, fast], |text| text).expect_err(word);
        let error = format!("{error:#}");
        assert!(error.contains(word), "{word}: {error}");
    }
}
