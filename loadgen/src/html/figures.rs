//! From the JSON of a run to what is drawn. Owns which charts a run gets: each for which it has the series.

use std::collections::BTreeMap;

use serde_json::Value;

use super::chart::{Axis, Chart, Fold, Ink, Line, Range, Ranges};
use super::words;

/// What is drawn and not listed.
const SERIES: [&str; 3] = ["course", "distributions", "stages"];
const PRIORITIES: [(&str, &str); 4] = [("p0", "P0"), ("p1", "P1"), ("p2", "P2"), ("p3", "P3")];
const STAGES: [&str; 4] = ["lane", "inbox", "ran", "reply"];
/// The shares of a distribution that are written at its axis.
const SHARES: [(f64, &str); 5] =
    [(0.0, "0"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %")];
/// As far to the right as a distribution is drawn.
const SHARE_MAX: f64 = 0.9999;

/// A figure of either kind.
pub(super) enum Figure {
    Lines(Chart),
    Ranges(Ranges),
}

impl Figure {
    pub(super) fn draw(&self, id: &str) -> String {
        match self {
            Self::Lines(chart) => chart.figure(id),
            Self::Ranges(ranges) => ranges.figure(id),
        }
    }
}

/// The value at a dotted path.
fn at<'v>(run: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(run, |value, name| value.get(name))
}

pub(super) fn number(run: &Value, path: &str) -> Option<f64> {
    at(run, path)?.as_f64()
}

/// What is neither a list nor an object, as text.
pub(super) fn scalar(run: &Value, path: &str) -> Option<String> {
    written(at(run, path)?)
}

fn written(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(yes) => Some(yes.to_string()),
        Value::Number(number) => {
            let text = number.to_string();
            Some(text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned))
        }
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Whether the books balance; none for a run without books.
pub(super) fn balance(run: &Value) -> Option<bool> {
    let of = |name| number(run, name);
    let nothing = ["in_flight", "lost", "duplicate_effects", "audit_missing", "quota_exceeded"];
    let ended = of("completed")? + of("rejected")?;
    Some((of("accepted")? - ended).abs() < 0.5 && nothing.iter().all(|name| of(name) == Some(0.0)))
}

/// The lists of like objects that a run has.
pub(super) fn lists(run: &Value) -> Vec<(&str, &[Value])> {
    let Some(fields) = run.as_object() else { return Vec::new() };
    let objects =
        |value: &Value| value.as_array().is_some_and(|all| all.first().is_some_and(Value::is_object));
    let lists = fields.iter().filter(|(_, value)| objects(value));
    lists.filter_map(|(name, value)| Some((name.as_str(), value.as_array()?.as_slice()))).collect()
}

/// Every scalar under its dotted name, but for what is drawn or has a table of its own.
pub(super) fn flat(value: &Value) -> Vec<(String, String)> {
    fn walk(prefix: &str, value: &Value, into: &mut Vec<(String, String)>) {
        if let Some(text) = written(value) {
            into.push((prefix.to_owned(), text));
        } else if let Value::Array(items) = value {
            let texts: Option<Vec<String>> = items.iter().map(written).collect();
            into.extend(texts.map(|texts| (prefix.to_owned(), texts.join(", "))));
        } else if let Value::Object(fields) = value {
            for (name, value) in fields.iter().filter(|(name, _)| !SERIES.contains(&name.as_str())) {
                let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                walk(&name, value, into);
            }
        }
    }
    let mut all = Vec::new();
    walk("", value, &mut all);
    all
}

/// All charts for which a run has the series.
pub(super) fn charts(run: &Value) -> Vec<Figure> {
    let course = &run["course"];
    let charts = [
        throughput(run, course),
        distribution(run),
        latency(course),
        stages(run),
        queues(course),
        in_flight(course),
        processes(course, "cpu_pct", "Processors", "What each process took of one core.", words::percent),
        processes(
            course,
            "rss_mb",
            "Memory",
            "What each process holds, in memory of its own.",
            words::megabytes,
        ),
        scale(run, "dispatches_per_s", "Throughput by size", "agents", words::count),
        scale(run, "p0.p99_us", "P0, P99, by size", "agents", words::latency),
    ];
    charts.into_iter().flatten().collect()
}

fn axis(label: &'static str, log: bool, write: fn(f64) -> String) -> Axis {
    Axis { label, log, write, ticks: None }
}

fn over_time(course: &Value, title: &str, about: &str, y: Axis, lines: Vec<Line>) -> Option<Figure> {
    let measured = lines.iter().any(|line| line.points.iter().filter(|(_, y)| y.is_some()).count() > 1);
    measured.then(|| {
        Figure::Lines(Chart {
            title: title.to_owned(),
            about: about.to_owned(),
            x: axis("seconds", false, words::digits),
            y,
            lines,
            marks: marks(course),
            filled: true,
        })
    })
}

fn marks(course: &Value) -> Vec<(f64, String)> {
    let marks = course["marks"].as_array().into_iter().flatten();
    marks.filter_map(|mark| Some((mark["at_s"].as_f64()?, mark["name"].as_str()?.to_owned()))).collect()
}

/// One series of a course, beside its moments.
fn series(course: &Value, values: &Value, name: &str, ink: Ink, fold: Fold) -> Option<Line> {
    let (times, values) = (course["at_s"].as_array()?, values.as_array()?);
    let points = times.iter().zip(values).filter_map(|(at, value)| Some((at.as_f64()?, value.as_f64())));
    Some(Line { name: name.to_owned(), ink, fold, points: points.collect() })
}

fn throughput(run: &Value, course: &Value) -> Option<Figure> {
    let own = series(course, &course["completed_per_s"], "the mesh", Ink::Colour(0), Fold::Mean)?;
    let (first, last) = (own.points.first()?.0, own.points.last()?.0);
    let mut lines = vec![own];
    if let Some(bare) = number(run, "bare_single_per_s") {
        let points = vec![(first, Some(bare)), (last, Some(bare))];
        lines.push(Line { name: "bare, single messages".into(), ink: Ink::Bare, fold: Fold::Mean, points });
    }
    let about = "Dispatches that handlers ran, per second.";
    over_time(course, "Throughput", about, axis("", false, words::count), lines)
}

fn latency(course: &Value) -> Option<Figure> {
    let mut lines = Vec::new();
    for (number, (key, name)) in PRIORITIES.iter().enumerate() {
        let of = &course["latency"][key];
        let p99 = series(course, &of["p99_us"], &format!("{name} P99"), Ink::Colour(number), Fold::Max);
        let p50 = series(course, &of["p50_us"], &format!("{name} P50"), Ink::Faint(number), Fold::Mean);
        lines.extend([p99, p50].into_iter().flatten());
    }
    lines.retain(|line| line.points.iter().any(|(_, y)| y.is_some()));
    let about = "Replies of each second: from the intended send time to the reply.";
    over_time(course, "Latency over time", about, axis("", true, words::latency), lines)
}

fn queues(course: &Value) -> Option<Figure> {
    let all = course["queues"].as_object()?;
    let busy = all.iter().filter(|(_, depths)| {
        depths.as_array().is_some_and(|depths| depths.iter().any(|depth| depth.as_f64() > Some(0.0)))
    });
    let lines = busy.filter_map(|(name, depths)| {
        let priority = PRIORITIES.iter().position(|(_, priority)| name.ends_with(priority));
        let ink = match priority {
            Some(priority) if name.starts_with("inbox") => Ink::Faint(priority),
            Some(priority) => Ink::Colour(priority),
            None => Ink::Bare,
        };
        series(course, depths, name, ink, Fold::Max)
    });
    let about = "Messages in the broker's queues, each an envelope of one or many dispatches.";
    over_time(course, "Queues", about, axis("", false, words::count), lines.collect())
}

fn in_flight(course: &Value) -> Option<Figure> {
    let line = series(course, &course["in_flight"], "in flight", Ink::Colour(1), Fold::Max)?;
    let about = "Dispatches that were sent and have not been run.";
    over_time(course, "In flight", about, axis("", false, words::count), vec![line])
}

fn processes(
    course: &Value,
    key: &str,
    title: &str,
    about: &str,
    write: fn(f64) -> String,
) -> Option<Figure> {
    let all = course["processes"].as_object()?.iter().enumerate();
    let lines = all
        .filter_map(|(number, (name, of))| series(course, &of[key], name, Ink::Colour(number), Fold::Mean));
    over_time(course, title, about, axis("", false, write), lines.collect())
}

/// Latency by the share of requests that were as fast.
fn distribution(run: &Value) -> Option<Figure> {
    let quantiles = at(run, "distributions.quantiles")?.as_array()?;
    let all = at(run, "distributions.series")?.as_object()?;
    let mut others = PRIORITIES.len();
    let lines = all.iter().filter_map(|(name, values)| {
        let ink = ink_of(name, &mut others);
        let points = quantiles.iter().zip(values.as_array()?).filter_map(|(share, us)| {
            let share = share.as_f64()?;
            (share <= SHARE_MAX).then(|| (nines(share), us.as_f64().filter(|us| *us > 0.0)))
        });
        Some(Line { name: name.clone(), ink, fold: Fold::Max, points: points.collect() })
    });
    let lines: Vec<Line> = lines.filter(|l| l.points.iter().any(|(_, y)| y.is_some())).collect();
    let ticks = SHARES.iter().map(|(share, label)| (nines(*share), (*label).to_owned())).collect();
    (!lines.is_empty()).then(|| {
        Figure::Lines(Chart {
            title: "Latency by percentile".into(),
            about: "From the intended send time to the reply: this share of requests was as fast.".into(),
            x: Axis { ticks: Some(ticks), ..axis("of requests", false, words::digits) },
            y: axis("", true, words::latency),
            lines,
            marks: Vec::new(),
            filled: false,
        })
    })
}

/// A priority has its colour in each chart; what else there is takes those that are left.
fn ink_of(name: &str, others: &mut usize) -> Ink {
    if name == "bare" {
        return Ink::Bare;
    }
    let priority = PRIORITIES.iter().position(|(_, priority)| *priority == name);
    Ink::Colour(priority.unwrap_or_else(|| {
        *others += 1;
        *others - 1
    }))
}

/// How many nines a share has: 0.9 has one, 0.99 two.
fn nines(share: f64) -> f64 {
    -(1.0 - share).log10()
}

/// Where the time goes, by priority and stage.
fn stages(run: &Value) -> Option<Figure> {
    let mut ranges = Vec::new();
    for (number, (key, name)) in PRIORITIES.iter().enumerate() {
        for stage in STAGES {
            let of = |quantile| number_above(&run["stages"][key][stage][quantile]);
            if let (Some(low), Some(high)) = (of("p50_us"), of("p99_us")) {
                ranges.push(Range { row: format!("{name} {stage}"), ink: Ink::Colour(number), low, high });
            }
        }
    }
    (!ranges.is_empty()).then(|| {
        Figure::Ranges(Ranges {
            title: "Where the time goes".into(),
            about: "The dot is the median, the bar ends at P99: waiting in the lane, waiting in the inbox, \
                    running in the handler, and the rest, which is sending and the way of the reply."
                .into(),
            write: words::latency,
            ranges,
        })
    })
}

/// On a logarithmic axis nothing is nought; a microsecond is as little as is told apart.
fn number_above(value: &Value) -> Option<f64> {
    value.as_f64().map(|us| us.max(1.0))
}

/// A figure of each cell over the number of agents, a line for each number of coordinators.
fn scale(
    run: &Value,
    path: &str,
    title: &str,
    label: &'static str,
    write: fn(f64) -> String,
) -> Option<Figure> {
    let mut by_coordinators: BTreeMap<u64, Vec<(f64, Option<f64>)>> = BTreeMap::new();
    for cell in run["cells"].as_array()? {
        let coordinators = cell["coordinators"].as_u64()?;
        by_coordinators.entry(coordinators).or_default().push((number(cell, "agents")?, number(cell, path)));
    }
    let lines = by_coordinators.into_iter().enumerate().map(|(number, (coordinators, points))| Line {
        name: if coordinators == 1 { "1 coordinator".into() } else { format!("{coordinators} coordinators") },
        ink: Ink::Colour(number),
        fold: Fold::Mean,
        points,
    });
    let log = path.ends_with("_us");
    Some(Figure::Lines(Chart {
        title: title.to_owned(),
        about: "By the number of agents, for each number of coordinators.".into(),
        x: axis(label, true, words::count),
        y: axis("", log, write),
        lines: lines.collect(),
        marks: Vec::new(),
        filled: false,
    }))
}
