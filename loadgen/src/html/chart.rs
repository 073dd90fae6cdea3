//! Charts as inline SVG: lines over time, over percentiles or over sizes, and ranges in rows.
//!
//! Owns geometry and ticks. The rule it keeps: each chart says in words what it shows, for those who do not see it, and its
//! colours are names that the style sheet fills in for light and dark.

use std::fmt::Write as _;

use super::words::escaped;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 270.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 40.0;
/// What stands in front of the rows of a range chart.
const ROW_LABEL: f64 = 104.0;
const ROW: f64 = 21.0;
/// Points of a line beyond which neighbours are folded into one: a chart has no more pixels to show them.
const POINTS_MAX: usize = 420;

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    /// One of the colours in their order.
    Colour(usize),
    /// The same, drawn thin: what accompanies a line.
    Faint(usize),
    /// What stands beside the mesh for comparison.
    Bare,
}

impl Ink {
    fn stroke(self) -> String {
        match self {
            Self::Colour(n) => format!("k{}", n % 8),
            Self::Faint(n) => format!("k{} faint", n % 8),
            Self::Bare => "kb".to_owned(),
        }
    }

    fn fill(self) -> String {
        match self {
            Self::Colour(n) | Self::Faint(n) => format!("f{}", n % 8),
            Self::Bare => "fb".to_owned(),
        }
    }
}

/// What becomes of neighbours that share a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fold {
    Mean,
    /// For what must not be hidden: the longest wait.
    Max,
}

#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) ink: Ink,
    pub(super) fold: Fold,
    /// Where nothing was measured the line has a gap.
    pub(super) points: Vec<(f64, Option<f64>)>,
}

#[derive(Debug, Clone)]
pub(super) struct Axis {
    pub(super) label: &'static str,
    pub(super) log: bool,
    pub(super) write: fn(f64) -> String,
    /// Ticks of its own, in place of round numbers.
    pub(super) ticks: Option<Vec<(f64, String)>>,
}

/// Lines in a frame.
#[derive(Debug, Clone)]
pub(super) struct Chart {
    pub(super) title: String,
    /// One sentence on what is shown.
    pub(super) about: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) lines: Vec<Line>,
    /// Moments with a name.
    pub(super) marks: Vec<(f64, String)>,
    /// Whether a single line has its area filled.
    pub(super) filled: bool,
}

/// A value and a higher one in a row.
#[derive(Debug, Clone)]
pub(super) struct Range {
    pub(super) row: String,
    pub(super) ink: Ink,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// Ranges in rows, on a logarithmic axis.
#[derive(Debug, Clone)]
pub(super) struct Ranges {
    pub(super) title: String,
    pub(super) about: String,
    pub(super) write: fn(f64) -> String,
    pub(super) ranges: Vec<Range>,
}

/// From values to pixels.
struct Scale {
    from: f64,
    to: f64,
    log: bool,
    start: f64,
    end: f64,
}

impl Scale {
    fn at(&self, value: f64) -> f64 {
        let of = |v: f64| if self.log { v.max(self.from).log10() } else { v };
        let span = of(self.to) - of(self.from);
        let share = if span > 0.0 { (of(value) - of(self.from)) / span } else { 0.5 };
        self.start + share.clamp(0.0, 1.0) * (self.end - self.start)
    }
}

impl Chart {
    /// The figure: title, sentence, legend and chart.
    pub(super) fn figure(&self, id: &str) -> String {
        let lines: Vec<Line> = self.lines.iter().map(Line::folded).collect();
        let mut out = opened(id, &self.title, &self.about);
        if lines.len() > 1 {
            legend(&mut out, lines.iter().map(|l| (l.name.as_str(), l.ink)));
        }
        self.svg(&mut out, id, &lines);
        out.push_str("</figure>\n");
        out
    }

    fn svg(&self, out: &mut String, id: &str, lines: &[Line]) {
        let seen = || lines.iter().flat_map(|l| l.points.iter().filter_map(|(x, y)| y.map(|y| (*x, y))));
        let (x_from, x_to) = bounds(seen().map(|(x, _)| x), self.x.log, false);
        let (y_from, y_to) = bounds(seen().map(|(_, y)| y), self.y.log, true);
        let x = Scale { from: x_from, to: x_to, log: self.x.log, start: LEFT, end: WIDTH - RIGHT };
        let y = Scale { from: y_from, to: y_to, log: self.y.log, start: HEIGHT - BOTTOM, end: TOP };
        begin(out, id, HEIGHT, &self.title, &format!("{} {}", self.about, told(lines, self.y.write)));
        for (value, label) in self.y.ticks(&y) {
            let at = y.at(value);
            write!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 7.0,
                at + 4.0,
                escaped(&label),
            )
            .expect(STRING);
        }
        for (value, label) in self.x.ticks(&x) {
            text(out, x.at(value), HEIGHT - BOTTOM + 16.0, "middle", &label);
        }
        text(out, WIDTH - RIGHT, HEIGHT - 6.0, "end", self.x.label);
        let base = HEIGHT - BOTTOM;
        write!(
            out,
            "<line class=\"axis\" x1=\"{LEFT}\" y1=\"{base}\" x2=\"{:.1}\" y2=\"{base}\"/>",
            WIDTH - RIGHT
        )
        .expect(STRING);
        for (at, name) in &self.marks {
            let at = x.at(*at);
            write!(out, "<line class=\"mark\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{base}\"/>")
                .expect(STRING);
            let anchor = if at > WIDTH * 0.75 { "end" } else { "start" };
            text(out, if anchor == "end" { at - 4.0 } else { at + 4.0 }, TOP + 9.0, anchor, name);
        }
        for line in lines {
            line.draw(out, &x, &y, self.filled && lines.len() == 1);
        }
        out.push_str("</svg>\n");
    }
}

impl Line {
    fn folded(&self) -> Self {
        let per = self.points.len().div_ceil(POINTS_MAX).max(1);
        let fold = |points: &[(f64, Option<f64>)]| {
            let values: Vec<f64> = points.iter().filter_map(|(_, y)| *y).collect();
            let y = match self.fold {
                _ if values.is_empty() => None,
                Fold::Mean => Some(values.iter().sum::<f64>() / values.len() as f64),
                Fold::Max => values.iter().copied().reduce(f64::max),
            };
            (points[points.len() / 2].0, y)
        };
        let points = if per == 1 { self.points.clone() } else { self.points.chunks(per).map(fold).collect() };
        Self { points, ..self.clone() }
    }

    fn draw(&self, out: &mut String, x: &Scale, y: &Scale, filled: bool) {
        let (mut path, mut area, mut last) = (String::new(), String::new(), None);
        let base = HEIGHT - BOTTOM;
        for (at, value) in &self.points {
            let Some(value) = value else {
                close_area(&mut area, &mut last, base);
                continue;
            };
            let (px, py) = (x.at(*at), y.at(*value));
            let verb = if last.is_none() { 'M' } else { 'L' };
            write!(path, "{verb}{px:.1} {py:.1}").expect(STRING);
            let start = if last.is_none() { format!("M{px:.1} {base}") } else { String::new() };
            write!(area, "{start}L{px:.1} {py:.1}").expect(STRING);
            last = Some(px);
        }
        close_area(&mut area, &mut last, base);
        let name = escaped(&self.name);
        if filled {
            write!(out, "<path class=\"area {}\" d=\"{area}\"/>", self.ink.fill()).expect(STRING);
        }
        write!(out, "<path class=\"path {}\" d=\"{path}\"><title>{name}</title></path>", self.ink.stroke())
            .expect(STRING);
        if let [(at, Some(value))] = self.points[..] {
            let (px, py) = (x.at(at), y.at(value));
            write!(out, "<circle class=\"{}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"3.5\"/>", self.ink.fill())
                .expect(STRING);
        }
    }
}

fn close_area(area: &mut String, last: &mut Option<f64>, base: f64) {
    if let Some(px) = last.take() {
        write!(area, "L{px:.1} {base}Z").expect(STRING);
    }
}

impl Ranges {
    pub(super) fn figure(&self, id: &str) -> String {
        let mut out = opened(id, &self.title, &self.about);
        let height = TOP + self.ranges.len() as f64 * ROW + BOTTOM;
        let values = self.ranges.iter().flat_map(|r| [r.low, r.high]);
        let (from, to) = bounds(values, true, true);
        let x = Scale { from, to, log: true, start: ROW_LABEL, end: WIDTH - RIGHT - 12.0 };
        let told: Vec<String> = self
            .ranges
            .iter()
            .map(|r| format!("{}: {} to {}.", r.row, (self.write)(r.low), (self.write)(r.high)))
            .collect();
        begin(&mut out, id, height, &self.title, &format!("{} {}", self.about, told.join(" ")));
        let axis = Axis { label: "", log: true, write: self.write, ticks: None };
        let base = height - BOTTOM;
        for (value, label) in axis.ticks(&x) {
            let at = x.at(value);
            write!(out, "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{base:.1}\"/>")
                .expect(STRING);
            text(&mut out, at, base + 16.0, "middle", &label);
        }
        for (number, range) in self.ranges.iter().enumerate() {
            range.draw(&mut out, &x, TOP + (number as f64 + 0.5) * ROW, self.write);
        }
        out.push_str("</svg>\n</figure>\n");
        out
    }
}

impl Range {
    fn draw(&self, out: &mut String, x: &Scale, y: f64, write: fn(f64) -> String) {
        let (low, high) = (x.at(self.low), x.at(self.high));
        write!(
            out,
            "<text class=\"row\" x=\"0\" y=\"{:.1}\">{}</text>\
             <line class=\"range {}\" x1=\"{low:.1}\" y1=\"{y:.1}\" x2=\"{high:.1}\" y2=\"{y:.1}\"/>\
             <circle class=\"{}\" cx=\"{low:.1}\" cy=\"{y:.1}\" r=\"4\"><title>{}: {} to {}</title></circle>",
            y + 4.0,
            escaped(&self.row),
            self.ink.stroke(),
            self.ink.fill(),
            escaped(&self.row),
            escaped(&write(self.low)),
            escaped(&write(self.high)),
        )
        .expect(STRING);
    }
}

impl Axis {
    fn ticks(&self, scale: &Scale) -> Vec<(f64, String)> {
        if let Some(ticks) = &self.ticks {
            return ticks.iter().filter(|(at, _)| (scale.from..=scale.to).contains(at)).cloned().collect();
        }
        let at = if scale.log { log_ticks(scale.from, scale.to) } else { round_ticks(scale.from, scale.to) };
        at.into_iter().map(|value| (value, (self.write)(value))).collect()
    }
}

/// From the least to the most; a linear axis of amounts begins at nought, a logarithmic one at a round place.
fn bounds(values: impl Iterator<Item = f64>, log: bool, amounts: bool) -> (f64, f64) {
    let usable = values.filter(|v| v.is_finite() && (!log || *v > 0.0));
    let (low, high) = usable.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        return if log { (1.0, 10.0) } else { (0.0, 1.0) };
    }
    match (log, amounts) {
        (true, true) => {
            let from = 10_f64.powf(low.log10().floor());
            (from, round_up(high * 1.02).max(from * 10.0))
        }
        (false, true) => (low.min(0.0), if high > 0.0 { high * 1.06 } else { 1.0 }),
        (_, false) if low < high => (low, high),
        (_, false) => (low * 0.9, (high * 1.1).max(f64::EPSILON)),
    }
}

/// The next of 1, 2, 5, 10, 20…
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|n| *n >= value).unwrap_or(value)
}

fn round_ticks(from: f64, to: f64) -> Vec<f64> {
    let step = round_up((to - from) / 5.0);
    let first = (from / step).ceil() as i64;
    let last = (to / step).floor() as i64;
    (first..=last).map(|n| n as f64 * step).collect()
}

/// Powers of ten, with twos and fives between them where there are few.
fn log_ticks(from: f64, to: f64) -> Vec<f64> {
    let decades = to.log10() - from.log10();
    let steps: &[f64] = if decades < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let powers = from.log10().floor() as i32..=to.log10().ceil() as i32;
    let all = powers.flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power)));
    all.filter(|value| (from * 0.999..=to * 1.001).contains(value)).collect()
}

fn opened(id: &str, title: &str, about: &str) -> String {
    format!("<figure id=\"{id}\"><h3>{}</h3><p>{}</p>\n", escaped(title), escaped(about))
}

fn begin(out: &mut String, id: &str, height: f64, title: &str, about: &str) {
    writeln!(
        out,
        "<svg class=\"chart\" role=\"img\" viewBox=\"0 0 {WIDTH} {height}\" aria-labelledby=\"{id}-t {id}-d\">\
         <title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>",
        escaped(title),
        escaped(about),
    )
    .expect(STRING);
}

fn legend<'a>(out: &mut String, entries: impl Iterator<Item = (&'a str, Ink)>) {
    out.push_str("<ul class=\"legend\">");
    for (name, ink) in entries {
        write!(
            out,
            "<li><svg viewBox=\"0 0 22 8\" aria-hidden=\"true\"><path class=\"path {}\" d=\"M1 4L21 4\"/></svg>{}</li>",
            ink.stroke(),
            escaped(name),
        )
        .expect(STRING);
    }
    out.push_str("</ul>\n");
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    write!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", escaped(text))
        .expect(STRING);
}

/// The lines in words.
fn told(lines: &[Line], write: fn(f64) -> String) -> String {
    let each = lines.iter().filter_map(|line| {
        let values = || line.points.iter().filter_map(|(_, y)| *y);
        let (low, high) = (values().reduce(f64::min)?, values().reduce(f64::max)?);
        Some(format!("{}: from {} to {}.", line.name, write(low), write(high)))
    });
    each.collect::<Vec<_>>().join(" ")
}

/// Why writing does not fail.
const STRING: &str = "a string takes what is written";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(round_ticks(0.0, 10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(log_ticks(100.0, 1_000.0), [100.0, 200.0, 500.0, 1_000.0]);
        assert_eq!(log_ticks(10.0, 100_000.0), [10.0, 100.0, 1_000.0, 10_000.0, 100_000.0]);
        assert_eq!(bounds([3.0, 180.0].into_iter(), true, true), (1.0, 200.0));
        assert_eq!(bounds(std::iter::empty(), false, true), (0.0, 1.0));
    }

    #[test]
    fn a_long_line_is_folded_without_losing_its_worst() {
        let points: Vec<_> =
            (0..2_000).map(|n| (f64::from(n), Some(if n == 777 { 99.0 } else { 1.0 }))).collect();
        let line = Line { name: "p99".into(), ink: Ink::Colour(0), fold: Fold::Max, points };
        let folded = line.folded();
        assert!(folded.points.len() <= POINTS_MAX);
        assert!(folded.points.iter().any(|(_, y)| *y == Some(99.0)));
    }

    #[test]
    fn a_gap_is_not_bridged() {
        let points = vec![(0.0, Some(1.0)), (1.0, None), (2.0, Some(3.0)), (3.0, Some(3.0))];
        let line = Line { name: "x".into(), ink: Ink::Colour(1), fold: Fold::Mean, points };
        let axis = Axis { label: "s", log: false, write: super::super::words::digits, ticks: None };
        let chart = Chart {
            title: "T".into(),
            about: "A.".into(),
            x: axis.clone(),
            y: axis,
            lines: vec![line],
            marks: vec![(2.0, "here".into())],
            filled: true,
        };
        let figure = chart.figure("c");
        let path = figure.split("class=\"path k1\" d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(path.matches('M').count(), 2, "{path}");
        assert!(figure.contains("<title id=\"c-t\">T</title>") && figure.contains("here"));
    }
}
