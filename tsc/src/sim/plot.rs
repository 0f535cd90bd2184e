//! Guest time against true time, as a picture: above, what the guest's clock shows; below, how far
//! it is from the truth, on a scale that has room for nanoseconds and for seconds.

use core::fmt::Write;

use super::report::{Boot, Point, PolicyKind, Report};
use crate::draw::{Axis, MARKED, path, symlog};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 700.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 216.0;
const UPPER: (f64, f64) = (64.0, 330.0);
const LOWER: (f64, f64) = (392.0, 644.0);
/// Columns that points are gathered into; each keeps its lowest and highest.
const COLUMNS: usize = 200;

/// Colours that differ in hue and in lightness (Okabe and Ito's set for the colour-blind).
const fn colour(policy: PolicyKind) -> &'static str {
    match policy {
        PolicyKind::Svm2010 => "#e69f00",
        PolicyKind::Vmx2010 => "#cc79a7",
        PolicyKind::Unified2010 => "#d55e00",
        PolicyKind::UnifiedCatchup2010 => "#56b4e9",
        PolicyKind::Targeted => "#00684a",
        PolicyKind::TargetedSlew => "#0072b2",
    }
}

/// One column of one curve.
#[derive(Clone, Copy, Debug)]
struct Column {
    time: f64,
    low: f64,
    high: f64,
}

#[expect(clippy::cast_precision_loss, reason = "pixels")]
fn float(x: i128) -> f64 {
    x as f64
}

/// A report's curves: of its first vCPU, which stands for the guest's clock, and of all.
type Curves<'a> = (&'a Report, Vec<Column>, Vec<Column>);

/// Gathers points up to `end` into columns, errors in nanoseconds.
fn columns<'a>(points: impl Iterator<Item = &'a Point>, end: u64) -> Vec<Column> {
    let mut columns: Vec<Option<Column>> = vec![None; COLUMNS];
    for point in points.filter(|point| point.true_ns < end) {
        let index = u128::from(point.true_ns) * COLUMNS as u128 / u128::from(end.max(1));
        let index = usize::try_from(index).unwrap_or(0).min(COLUMNS - 1);
        let error = float(point.error.get().into());
        let column = &mut columns[index];
        *column = Some(match *column {
            None => Column {
                time: float(point.true_ns.into()),
                low: error,
                high: error,
            },
            Some(c) => Column {
                low: c.low.min(error),
                high: c.high.max(error),
                ..c
            },
        });
    }
    columns.into_iter().flatten().collect()
}

/// The reports of one scenario as a picture, in SVG. The time shown is that of the guest that was
/// watched the shortest, so that one that hangs does not squeeze the others.
#[must_use]
pub fn svg(reports: &[Report]) -> String {
    let end = reports
        .iter()
        .map(|report| report.watched.get())
        .min()
        .unwrap_or(1)
        .max(1);
    let seconds = float(end.into()) / 1e9;
    let curves: Vec<Curves<'_>> = reports
        .iter()
        .map(|report| {
            let first = report.points.iter().filter(|point| point.vcpu == 0);
            (
                report,
                columns(first, end),
                columns(report.points.iter(), end),
            )
        })
        .collect();
    let x = Axis {
        from: 0.0,
        to: seconds,
        pixels: (LEFT, WIDTH - RIGHT),
    };
    let upper = Axis {
        from: 0.0,
        to: seconds * 1.15,
        pixels: (UPPER.1, UPPER.0),
    };
    let errors = curves.iter().flat_map(|(.., all)| all);
    let reach = |low: f64, error: f64| low.max(symlog(error.abs()));
    let most = errors
        .clone()
        .map(|c| c.high)
        .filter(|e| *e > 0.0)
        .fold(2.2, reach);
    let least = errors.map(|c| c.low).filter(|e| *e < 0.0).fold(2.2, reach);
    let lower = Axis {
        from: -least - 0.2,
        to: most + 0.2,
        pixels: (LOWER.1, LOWER.0),
    };

    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = draw(&mut out, reports, &curves, (x, upper, lower), seconds);
    out
}

fn draw(
    out: &mut String,
    reports: &[Report],
    curves: &[Curves<'_>],
    (x, upper, lower): (Axis, Axis, Axis),
    seconds: f64,
) -> core::fmt::Result {
    let name = reports.first().map_or("", |report| report.scenario);
    let seed = reports.first().map_or(0, |report| report.seed);
    write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"Helvetica,Arial,sans-serif\" font-size=\"13\" fill=\"#222\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"28\" font-size=\"19\" font-weight=\"bold\">Guest time against true \
         time: {name}</text>\n\
         <text x=\"{LEFT}\" y=\"48\" fill=\"#666\">what the guest's TSC shows, in seconds (seed \
         {seed})</text>\n\
         <text x=\"{LEFT}\" y=\"{}\" fill=\"#666\">the same less the truth; above 0 the guest is \
         ahead, below it time is missing</text>\n",
        LOWER.0 - 14.0
    )?;
    grid(out, x, upper, lower, seconds)?;
    writeln!(
        out,
        "<path d=\"M{:.1} {:.1}L{:.1} {:.1}\" stroke=\"#999\" stroke-dasharray=\"3 4\"/>",
        x.at(0.0),
        upper.at(0.0),
        x.at(seconds),
        upper.at(seconds)
    )?;
    for (report, first, all) in curves {
        let colour = colour(report.policy);
        let width = if report.policy.is_targeted() {
            3.0
        } else {
            2.0
        };
        let line = format!(
            "fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" stroke-linejoin=\"round\""
        );
        let shown = |c: &Column| (c.time + f64::midpoint(c.low, c.high)) / 1e9;
        path(
            out,
            &line,
            first
                .iter()
                .map(|c| (x.at(c.time / 1e9), upper.at(shown(c)))),
        )?;
        // Between the lowest and the highest error of each column: a line where they agree.
        let band = format!(
            "fill=\"{colour}\" fill-opacity=\"0.3\" stroke=\"{colour}\" stroke-width=\"1.5\" \
             stroke-linejoin=\"round\""
        );
        let edge = |c: &Column, error: f64| (x.at(c.time / 1e9), lower.at(symlog(error)));
        let above = all.iter().map(|c| edge(c, c.high));
        let below = all.iter().rev().map(|c| edge(c, c.low));
        path(out, &band, above.chain(below))?;
    }
    legend(out, reports)?;
    out.push_str("</svg>\n");
    Ok(())
}

fn grid(out: &mut String, x: Axis, upper: Axis, lower: Axis, seconds: f64) -> core::fmt::Result {
    let step = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|s| seconds / s <= 8.0);
    let step = step.unwrap_or(60.0);
    let (left, right) = x.pixels;
    let mut line = |y: f64, label: &str, strong: bool| {
        writeln!(
            out,
            "<path d=\"M{left:.1} {y:.1}H{right:.1}\" stroke=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            if strong { "#888" } else { "#e4e4e4" },
            left - 8.0,
            y + 4.5
        )
    };
    let mut value = 0.0;
    while value <= seconds {
        line(upper.at(value), &trim(value), value == 0.0)?;
        value += step;
    }
    for (nanos, label) in MARKED {
        for sign in [1.0, -1.0] {
            let at = sign * symlog(nanos);
            if (at == 0.0 && sign > 0.0) || (at != 0.0 && at > lower.from && at < lower.to) {
                let label = if sign < 0.0 {
                    format!("\u{2212}{label}")
                } else {
                    label.to_owned()
                };
                line(lower.at(at), &label, at == 0.0)?;
            }
        }
    }
    let mut value = 0.0;
    while value <= seconds {
        let at = x.at(value);
        for (_, bottom) in [UPPER, LOWER] {
            writeln!(
                out,
                "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 19.0,
                trim(value)
            )?;
        }
        value += step;
    }
    writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#666\">true time in \
         seconds</text>",
        f64::midpoint(left, right),
        LOWER.1 + 40.0
    )
}

fn trim(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

fn legend(out: &mut String, reports: &[Report]) -> core::fmt::Result {
    let left = WIDTH - RIGHT + 22.0;
    let mut y = UPPER.0 + 10.0;
    for report in reports {
        let colour = colour(report.policy);
        let steps = match report.backwards_steps() {
            0 => "no step back".to_owned(),
            1 => "1 step back".to_owned(),
            steps => format!("{steps} steps back"),
        };
        let boot = match report.boot {
            Boot::Booted { .. } => format!("boots {}", report.boot),
            Boot::Failed { at } => format!("gives up at {at:?}"),
            Boot::Hung { at } => format!("hangs at {at:?}"),
        };
        let host = match (report.host_mark, report.marks.len()) {
            (Some(_), _) => "host condemned",
            (None, 0) => "nobody condemned",
            (None, _) => "pairs condemned",
        };
        let text = left + 30.0;
        write!(
            out,
            "<path d=\"M{left:.1} {:.1}h22\" stroke=\"{colour}\" stroke-width=\"3\"/>\n\
             <text x=\"{text:.1}\" y=\"{y:.1}\" font-weight=\"bold\">{}</text>\n",
            y - 4.0,
            report.policy.name(),
        )?;
        for (line, said) in [boot.as_str(), steps.as_str(), host]
            .into_iter()
            .enumerate()
        {
            let y = y + [16.0, 31.0, 46.0][line];
            writeln!(
                out,
                "<text x=\"{text:.1}\" y=\"{y:.1}\" fill=\"#555\" font-size=\"12\">{said}</text>"
            )?;
        }
        y += 74.0;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{run_all, scenario};

    #[test]
    fn picture_is_well_formed_and_shows_every_policy() {
        let reports = run_all(&scenario("seed").unwrap(), 1);
        let svg = svg(&reports);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        for kind in PolicyKind::ALL {
            assert!(svg.contains(kind.name()));
        }
        assert!(svg.len() < 200_000, "{} bytes", svg.len());
        assert!(super::svg(&[]).contains("</svg>"));
    }
}
