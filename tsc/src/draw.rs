//! What pictures of clocks have in common: axes, lines, and a scale with room for nanoseconds and for
//! seconds. SVG, as text.

use core::fmt::{self, Write};

/// Errors below this are drawn on a straight scale, above it on a logarithmic one.
const LINEAR_NS: f64 = 10.0;

/// Straight near zero, logarithmic beyond: for nanoseconds, of either sign.
///
/// ```
/// # use tsc::draw::symlog;
/// assert!(symlog(0.0).abs() < 1e-12);
/// assert!((symlog(90.0) - 1.0).abs() < 1e-12);
/// ```
#[must_use]
pub fn symlog(nanos: f64) -> f64 {
    nanos.signum() * (1.0 + nanos.abs() / LINEAR_NS).log10()
}

/// Values that a scale of [`symlog`] is marked at, in nanoseconds, and what is written there.
pub const MARKED: [(f64, &str); 6] = [
    (0.0, "0"),
    (1e2, "100 ns"),
    (1e4, "10 us"),
    (1e6, "1 ms"),
    (1e8, "0.1 s"),
    (1e10, "10 s"),
];

/// An axis: from values to pixels.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    /// The value at its beginning,
    pub from: f64,
    /// and at its end.
    pub to: f64,
    /// Where these are.
    pub pixels: (f64, f64),
}

impl Axis {
    /// Where a value is; at an end when it is beyond that.
    #[must_use]
    pub fn at(self, value: f64) -> f64 {
        let share = (value - self.from) / (self.to - self.from);
        self.pixels.0 + share.clamp(0.0, 1.0) * (self.pixels.1 - self.pixels.0)
    }
}

/// Draws a line through `points`, with the attributes `stroke`.
///
/// # Errors
/// Those of `out`.
pub fn path(
    out: &mut impl Write,
    stroke: &str,
    points: impl Iterator<Item = (f64, f64)>,
) -> fmt::Result {
    write!(out, "<path {stroke} d=\"")?;
    for (index, (px, py)) in points.enumerate() {
        write!(out, "{}{px:.1} {py:.1}", if index == 0 { 'M' } else { 'L' })?;
    }
    writeln!(out, "\"/>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_has_room_for_both_ends_and_a_sign() {
        assert!(symlog(0.0).abs() < 1e-12);
        assert!((symlog(90.0) - 1.0).abs() < 1e-12);
        assert!((symlog(-1e9) + symlog(1e9)).abs() < 1e-12);
    }

    #[test]
    fn axis_ends_where_it_ends() {
        let axis = Axis {
            from: -1.0,
            to: 3.0,
            pixels: (100.0, 20.0),
        };
        for (value, pixel) in [(-1.0, 100.0), (1.0, 60.0), (9.0, 20.0), (-9.0, 100.0)] {
            assert!((axis.at(value) - pixel).abs() < 1e-9, "{value}");
        }
    }
}
