//! Pictures as inline SVG: bars on a common scale, and steps under a cap. Colours come from the page's styles.

use std::fmt::Write as _;

/// Width of a picture, and of the column with names.
const WIDTH: u64 = 900;
const NAMES: u64 = 220;
/// Room for the number behind a bar.
const NUMBERS: u64 = 150;
const ROW: u64 = 26;

/// One bar: a solid part, a pale part up to `to`, and what it says.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) from: u64,
    pub(super) solid_to: u64,
    pub(super) to: u64,
    pub(super) says: String,
}

impl Bar {
    /// A bar from zero.
    pub(super) fn of(name: String, solid: u64, whole: u64, says: String) -> Self {
        Self {
            name,
            from: 0,
            solid_to: solid,
            to: whole,
            says,
        }
    }
}

/// Bars below each other, as long as `most` of them at full width.
pub(super) fn bars(label: &str, bars: &[Bar], most: u64) -> String {
    let height = bars.len() as u64 * ROW + 4;
    let mut svg = open(label, height);
    let x = |value: u64| NAMES + scaled(value, most, WIDTH - NAMES - NUMBERS);
    for (row, bar) in (0..).zip(bars) {
        let (y, from) = (row * ROW + 4, x(bar.from));
        let rect = |class: &str, from: u64, to: u64| {
            let width = to.saturating_sub(from).max(1);
            format!("<rect class=\"{class}\" x=\"{from}\" y=\"{y}\" width=\"{width}\" height=\"18\" rx=\"3\"/>")
        };
        if bar.to > bar.from {
            svg += &rect("pale", from, x(bar.to));
        }
        if bar.solid_to > bar.from {
            svg += &rect("solid", from, x(bar.solid_to));
        }
        svg += &text("name", NAMES - 8, y + 14, &bar.name);
        svg += &text("", x(bar.to.max(bar.solid_to)) + 8, y + 14, &bar.says);
    }
    svg + "</svg>"
}

/// How many there are over time, and the line that they must not cross.
pub(super) fn steps(label: &str, points: &[(u64, u32)], cap: u32, (first, last): (&str, &str)) -> String {
    let (height, ends) = (220, points.last().map_or(1, |(at, _)| *at).max(1));
    let most = points
        .iter()
        .map(|(_, count)| *count)
        .chain([cap.min(1_000_000)])
        .max()
        .unwrap_or(1)
        .max(1);
    // A cap far above everything would flatten the picture to nothing.
    let peak = points.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
    let (most, shows_cap) = if u64::from(most) > u64::from(peak) * 8 {
        (peak, false)
    } else {
        (most, true)
    };
    let x = |at: u64| 40 + scaled(at, ends, WIDTH - 60);
    let y = |count: u32| height - 30 - scaled(count.into(), most.into(), height - 50);
    let mut path = format!("M{} {}", x(0), y(0));
    for (at, count) in points {
        // Writing to a text cannot fail.
        let _ = write!(path, "H{}V{}", x(*at), y(*count));
    }
    let mut svg = open(label, height);
    let _ = write!(svg, "<path class=\"area\" d=\"{path}V{}Z\"/>", y(0));
    if shows_cap {
        let at = y(cap);
        let _ = write!(svg, "<path class=\"cap\" d=\"M40 {at}H{}\"/>", WIDTH - 20);
        svg += &text("", 44, at - 4, &format!("cap {cap}"));
    } else {
        svg += &text("", 44, 12, &format!("cap {cap}, far above"));
    }
    svg += &text("name", 34, y(peak) + 5, &peak.to_string());
    svg += &text("name", 34, y(0) + 5, "0");
    svg += &text("", 40, height - 8, first);
    svg += &text("name", WIDTH - 20, height - 8, last);
    svg + "</svg>"
}

fn open(label: &str, height: u64) -> String {
    format!(
        "<svg role=\"img\" aria-label=\"{}\" viewBox=\"0 0 {WIDTH} {height}\">",
        escaped(label)
    )
}

fn text(class: &str, x: u64, y: u64, says: &str) -> String {
    format!("<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{}</text>", escaped(says))
}

fn scaled(value: u64, most: u64, width: u64) -> u64 {
    let scaled = u128::from(value.min(most)) * u128::from(width) / u128::from(most.max(1));
    u64::try_from(scaled).unwrap_or(width)
}

/// A text that is nothing but text, in content and in attributes.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '&' => safe += "&amp;",
            '"' => safe += "&quot;",
            '\'' => safe += "&#39;",
            c if c.is_control() => safe.extend(c.escape_unicode()),
            c => safe.push(c),
        }
    }
    safe
}
