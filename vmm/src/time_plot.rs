//! A guest's time as a picture: how far its clock was off the line that it should follow, over its whole
//! life, and what happened meanwhile. Drawn from the answer to `GET /time`, which is not trusted.

use std::fmt::{self, Write};

use serde_json::Value;
use tsc::draw::{Axis, MARKED, path, symlog};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 28.0;
const PLOT: (f64, f64) = (86.0, 372.0);
/// So many events are told below; the others have a line in the picture alone.
const TOLD: usize = 12;
/// What is told of one is no longer than this.
const WORDS: usize = 110;
/// Where the list of them begins, and how far its lines are apart.
const LIST: f64 = 446.0;
const LINE: f64 = 21.0;

const INK: &str = "#222";
const FAINT: &str = "#666";
const CLOCK: &str = "#0072b2";
const EVENT: &str = "#d55e00";
const PAUSE: &str = "#009e73";

/// There is nothing to be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is nothing to draw: the guest's time has not been looked at yet; start the guest, and wait for a second"
)]
pub(crate) struct NothingToDraw;

/// A stretch of the report's, in nanoseconds since the first.
struct Stretch {
    from: f64,
    to: f64,
    /// The bounds,
    least: f64,
    most: f64,
    /// and what is proven.
    lowest: f64,
    highest: f64,
}

/// Something that happened.
struct Happening {
    at: f64,
    colour: &'static str,
    words: String,
}

/// Draws `report` as SVG.
///
/// # Errors
/// It has no history.
pub(crate) fn svg(report: &Value) -> Result<String, NothingToDraw> {
    let origin = member(&report["error_history"][0], "from_ns").ok_or(NothingToDraw)?;
    let stretches: Vec<_> = list(&report["error_history"])
        .filter_map(|value| stretch(value, origin))
        .collect();
    let end = stretches.last().map_or(0.0, |last| last.to);
    let mut happenings = happenings(report, origin);
    happenings.retain(|happening| (0.0..=end + 2e9).contains(&happening.at));
    happenings.sort_by(|a, b| a.at.total_cmp(&b.at));
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = draw(&mut out, report, &stretches, &happenings, end.max(1e9));
    Ok(out)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn member(value: &Value, name: &str) -> Option<f64> {
    value[name].as_f64().filter(|number| number.is_finite())
}

fn stretch(value: &Value, origin: f64) -> Option<Stretch> {
    Some(Stretch {
        from: (member(value, "from_ns")? - origin).max(0.0),
        to: (member(value, "to_ns")? - origin).max(0.0),
        least: member(value, "at_least_ns")?,
        most: member(value, "at_most_ns")?,
        lowest: member(value, "lowest_ns")?,
        highest: member(value, "highest_ns")?,
    })
}

fn happenings(report: &Value, origin: f64) -> Vec<Happening> {
    let happening = |value: &Value, colour, words| {
        Some(Happening {
            at: member(value, "at_ns")? - origin,
            colour,
            words,
        })
    };
    let pauses = list(&report["stops"]).filter_map(|stop| {
        let policy = stop["policy"].as_str().unwrap_or("?");
        let length = member(stop, "elapsed_ns").map_or_else(String::new, span);
        happening(stop, PAUSE, format!("pause of {length} ({policy})"))
    });
    let events =
        list(&report["events"]["latest"]).filter_map(|event| happening(event, EVENT, words(event)));
    // Those of the start come before the first look, and are not drawn.
    let marks = list(&report["marks"]).filter_map(|mark| {
        let told = mark["told"].as_str().unwrap_or("?");
        happening(mark, EVENT, format!("mark: {told}"))
    });
    pauses.chain(events).chain(marks).collect()
}

/// An event in a few words.
fn words(event: &Value) -> String {
    let number = |name: &str| event[name].as_i64().unwrap_or(0);
    match event["what"].as_str().unwrap_or("?") {
        "unplanned_stop" => {
            let length = member(event, "at_most_ns").map_or_else(String::new, span);
            let how = match event["by_signal"].as_bool() {
                Some(true) => " by a signal",
                _ => "",
            };
            format!("stopped for up to {length}{how}")
        }
        "skew" => format!(
            "CPU {} is apart from CPU {}",
            number("cpu"),
            number("home_cpu")
        ),
        "kernel_mark" => "the kernel gives the TSC up".to_owned(),
        "confined" => "threads confined to CPUs that agree".to_owned(),
        "restart" => {
            let forward = list(&event["forward_ns"]).filter_map(Value::as_f64);
            let most = forward.fold(0.0, f64::max);
            format!("all go on together, up to {} later", span(most))
        }
        "restart_failed" => "could not go on together".to_owned(),
        other => other.replace('_', " "),
    }
}

/// A length of time for people.
fn span(nanos: f64) -> String {
    let (value, unit) = match nanos {
        n if n < 1e3 => (n, "ns"),
        n if n < 1e6 => (n / 1e3, "us"),
        n if n < 1e9 => (n / 1e6, "ms"),
        n if n < 60e9 => (n / 1e9, "s"),
        n if n < 3_600e9 => (n / 60e9, "min"),
        n if n < 86_400e9 => (n / 3_600e9, "h"),
        n => (n / 86_400e9, "d"),
    };
    let text = format!("{value:.1}");
    format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text))
}

/// Text of bounded length that is neither markup nor a command to a terminal.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    let long = text.chars().count() > WORDS;
    for c in text.chars().take(WORDS) {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    if long {
        safe.push('\u{2026}');
    }
    safe
}

fn draw(
    out: &mut String,
    report: &Value,
    stretches: &[Stretch],
    happenings: &[Happening],
    end: f64,
) -> fmt::Result {
    let rows = happenings.len().min(TOLD) + usize::from(happenings.len() > TOLD);
    let height = (0..rows).fold(LIST, |height, _| height + LINE) + 12.0;
    let x = Axis {
        from: 0.0,
        to: end,
        pixels: (LEFT, WIDTH - RIGHT),
    };
    let reach = |low: f64, error: f64| low.max(symlog(error.abs()));
    let most = stretches.iter().map(|s| s.most.max(0.0)).fold(2.2, reach);
    let least = stretches.iter().map(|s| s.least.min(0.0)).fold(2.2, reach);
    let y = Axis {
        from: -least - 0.2,
        to: most + 0.2,
        pixels: (PLOT.1, PLOT.0),
    };
    let largest = member(&report["guest"]["error"], "largest_ns").unwrap_or(0.0);
    let largest = match largest.abs() {
        n if n < 1.0 => "no error was proven".to_owned(),
        n => format!("the largest error that was proven: {}", span(n)),
    };
    write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"Helvetica,Arial,sans-serif\" font-size=\"13\" fill=\"{INK}\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"28\" font-size=\"19\" font-weight=\"bold\">How far the guest's clock was \
         off its line</text>\n\
         <text x=\"{LEFT}\" y=\"50\" fill=\"{FAINT}\">over {}; {largest}; above 0 the guest is \
         ahead</text>\n",
        span(end),
    )?;
    grid(out, x, y)?;
    let band = |out: &mut String,
                style: String,
                above: fn(&Stretch) -> f64,
                below: fn(&Stretch) -> f64| {
        let edge = |at: f64, error: f64| (x.at(at), y.at(symlog(error)));
        let forth = stretches
            .iter()
            .flat_map(|s| [edge(s.from, above(s)), edge(s.to, above(s))]);
        let back = stretches
            .iter()
            .rev()
            .flat_map(|s| [edge(s.to, below(s)), edge(s.from, below(s))]);
        path(out, &style, forth.chain(back))
    };
    let possible = format!("fill=\"{CLOCK}\" fill-opacity=\"0.16\" stroke=\"none\"");
    band(out, possible, |s| s.most, |s| s.least)?;
    let proven = format!(
        "fill=\"{CLOCK}\" fill-opacity=\"0.7\" stroke=\"{CLOCK}\" stroke-width=\"2\" stroke-linejoin=\"round\""
    );
    band(out, proven, |s| s.highest, |s| s.lowest)?;
    events(out, x, happenings)?;
    legend(out)?;
    out.push_str("</svg>\n");
    Ok(())
}

fn grid(out: &mut String, x: Axis, y: Axis) -> fmt::Result {
    let (left, right) = x.pixels;
    for (nanos, label) in MARKED {
        for sign in [1.0, -1.0] {
            let at = sign * symlog(nanos);
            let zero = nanos == 0.0;
            if zero && sign < 0.0 || at <= y.from || at >= y.to {
                continue;
            }
            let minus = if sign < 0.0 { "\u{2212}" } else { "" };
            let stroke = if zero { "#888" } else { "#e4e4e4" };
            let at = y.at(at);
            writeln!(
                out,
                "<path d=\"M{left:.1} {at:.1}H{right:.1}\" stroke=\"{stroke}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{minus}{label}</text>",
                left - 8.0,
                at + 4.5
            )?;
        }
    }
    const STEPS: [f64; 22] = [
        1.0,
        2.0,
        5.0,
        10.0,
        20.0,
        60.0,
        120.0,
        300.0,
        600.0,
        1_200.0,
        3_600.0,
        7_200.0,
        14_400.0,
        28_800.0,
        86_400.0,
        172_800.0,
        432_000.0,
        864_000.0,
        2_592_000.0,
        8_640_000.0,
        31_536_000.0,
        315_360_000.0,
    ];
    let steps = STEPS.map(|step| step * 1e9);
    let step = steps.into_iter().find(|step| x.to / step <= 8.0);
    let step = step.unwrap_or(x.to);
    let mut value = 0.0;
    while value <= x.to {
        let at = x.at(value);
        let label = if value == 0.0 {
            "0".to_owned()
        } else {
            span(value)
        };
        writeln!(
            out,
            "<path d=\"M{at:.1} {:.1}v5\" stroke=\"#888\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
            PLOT.1,
            PLOT.1 + 21.0
        )?;
        value += step;
    }
    writeln!(
        out,
        "<text x=\"{right:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"{FAINT}\">since the guest's time is \
         watched</text>",
        PLOT.1 + 42.0
    )
}

/// A line for each at its time, and a list of the first of them.
fn events(out: &mut String, x: Axis, happenings: &[Happening]) -> fmt::Result {
    let mut free = f64::MIN;
    for (number, happening) in (1..).zip(happenings) {
        let (at, colour) = (x.at(happening.at), happening.colour);
        writeln!(
            out,
            "<path d=\"M{at:.1} {:.1}V{:.1}\" stroke=\"{colour}\" stroke-dasharray=\"4 3\"/>",
            PLOT.0, PLOT.1
        )?;
        // Numbers that would stand on each other are in the list alone.
        if at >= free && number <= TOLD {
            free = at + 18.0;
            badge(out, at, PLOT.0 - 9.0, number, colour)?;
        }
    }
    let mut down = LIST;
    for (number, happening) in (1..=TOLD).zip(happenings) {
        badge(out, LEFT + 8.0, down - 4.5, number, happening.colour)?;
        writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{down:.1}\">{}: {}</text>",
            LEFT + 24.0,
            span(happening.at),
            escaped(&happening.words)
        )?;
        down += LINE;
    }
    let more = happenings.len().saturating_sub(TOLD);
    if more > 0 {
        writeln!(
            out,
            "<text x=\"{LEFT}\" y=\"{down:.1}\" fill=\"{FAINT}\">and {more} more</text>"
        )?;
    }
    Ok(())
}

fn badge(out: &mut String, x: f64, y: f64, number: usize, colour: &str) -> fmt::Result {
    writeln!(
        out,
        "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"8\" fill=\"{colour}\"/>\
         <text x=\"{x:.1}\" y=\"{:.1}\" font-size=\"10.5\" font-weight=\"bold\" fill=\"#fff\" \
         text-anchor=\"middle\">{number}</text>",
        y + 3.8
    )
}

fn legend(out: &mut String) -> fmt::Result {
    let y = PLOT.1 + 42.0;
    let mut x = LEFT;
    for (opacity, words) in [
        (0.85, "proven error"),
        (
            0.16,
            "where the clock can be, by what the readings leave open",
        ),
    ] {
        writeln!(
            out,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"22\" height=\"10\" fill=\"{CLOCK}\" \
             fill-opacity=\"{opacity}\"/>\
             <text x=\"{:.1}\" y=\"{y:.1}\" fill=\"{FAINT}\">{words}</text>",
            y - 9.0,
            x + 29.0
        )?;
        x += 126.0;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(count: u64) -> Value {
        let history: Vec<_> = (0..count)
            .map(|index| {
                let late = i64::from(index > count / 2) * 3_000_000;
                json!({
                    "from_ns": index * 1_000_000_000, "to_ns": index * 1_000_000_000 + 500_000_000,
                    "at_least_ns": late - 300, "at_most_ns": late + 400,
                    "lowest_ns": 0, "highest_ns": late,
                })
            })
            .collect();
        json!({
            "error_history": history,
            "guest": {"error": {"largest_ns": 3_000_000}},
            "stops": [{"at_ns": 2_000_000_000_u64, "policy": "freeze", "elapsed_ns": 10_000_000_000_u64}],
            "events": {"latest": [
                {"at_ns": 6_000_000_000_u64, "what": "restart", "forward_ns": [0, 3_000_000]},
                {"at_ns": 5_900_000_000_u64, "what": "<script>&\u{1b}"},
            ]},
            "marks": [{"at_ns": 5_000_000_000_u64, "told": "CPU 1 is ahead of CPU 0"}],
        })
    }

    #[test]
    fn picture_is_well_formed_and_tells_what_happened() {
        let svg = svg(&report(20)).expect("a history");
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
        assert!(!svg.contains("NaN") && !svg.contains("inf") && !svg.contains("<script"));
        for words in [
            "3 ms",
            "pause of 10 s (freeze)",
            "all go on together, up to 3 ms later",
            "mark: CPU 1 is ahead of CPU 0",
            "&lt;script&gt;&amp;",
        ] {
            assert!(svg.contains(words), "{words} is not in {svg}");
        }
    }

    #[test]
    fn report_of_somebody_else_draws_nothing_or_something_and_never_panics() {
        for nothing in [
            json!(null),
            json!({}),
            json!({"error_history": []}),
            json!([1]),
        ] {
            assert_eq!(svg(&nothing), Err(NothingToDraw));
        }
        let mut odd = report(1);
        odd["events"]["latest"] = json!(vec![json!({"at_ns": 0, "what": 7}); 300]);
        odd["error_history"][0]["at_most_ns"] = json!(1e300);
        odd["error_history"][0]["to_ns"] = json!(-5);
        let svg = svg(&odd).expect("one stretch");
        assert!(svg.contains("and 289 more"), "{svg}");
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn lengths_are_told_in_fitting_units() {
        for (nanos, told) in [
            (7.0, "7 ns"),
            (1_500.0, "1.5 us"),
            (3e6, "3 ms"),
            (9e9, "9 s"),
            (90e9, "1.5 min"),
            (600e9, "10 min"),
            (36_000e9, "10 h"),
            (8_640_000e9, "100 d"),
        ] {
            assert_eq!(span(nanos), told);
        }
    }
}
