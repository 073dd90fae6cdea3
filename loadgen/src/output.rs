//! What people and scripts see: figures on stdout, progress on the terminal, JSON and HTML in files.
//!
//! The rule it keeps: a bar is drawn only where somebody looks; elsewhere progress is a plain line every few seconds, and data
//! never mixes with either.
#![expect(clippy::print_stdout, reason = "the figures for people are this program's output")]
#![expect(clippy::print_stderr, reason = "so is progress where no terminal is")]

use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::Value;

use crate::args::Args;
use crate::html;
use crate::report::Common;

/// How often progress is a line of its own where no terminal is.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// What is for charts, and too long to be read.
const SERIES: [&str; 2] = ["course", "distributions"];

/// What is counted in all books.
pub(crate) const BOOKS: [&str; 9] = [
    "accepted",
    "completed",
    "rejected",
    "in_flight",
    "lost",
    "duplicate_effects",
    "audited",
    "audit_missing",
    "quota_exceeded",
];

/// How far a run is: a bar on a terminal, lines elsewhere.
pub(crate) struct Progress {
    bar: ProgressBar,
    /// The length in seconds, where it is known, and when the last line was written; none on a terminal.
    lines: Option<Mutex<Lines>>,
}

struct Lines {
    message: String,
    seconds: Option<u64>,
    position: u64,
    last: Instant,
}

impl Lines {
    fn text(&self, prefix: &str) -> String {
        match self.seconds {
            Some(seconds) => format!("{} {}/{seconds} s {prefix}", self.message, self.position),
            None => self.message.clone(),
        }
    }
}

impl Progress {
    fn new(bar: ProgressBar, seconds: Option<u64>, message: &str) -> Self {
        let lines = (!std::io::stderr().is_terminal()).then(|| {
            eprintln!("{message}");
            Mutex::new(Lines { message: message.to_owned(), seconds, position: 0, last: Instant::now() })
        });
        Self { bar, lines }
    }

    fn line(&self, change: impl FnOnce(&mut Lines), prefix: &str) {
        let Some(lines) = &self.lines else { return };
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut lines);
        if lines.last.elapsed() >= LINE_EVERY {
            eprintln!("{}", lines.text(prefix).trim_end());
            lines.last = Instant::now();
        }
    }

    pub(crate) fn set_message(&self, message: impl Into<String>) {
        let message = message.into();
        self.line(|lines| lines.message.clone_from(&message), "");
        self.bar.set_message(message);
    }

    /// Seconds that have passed; a line comes with the next prefix.
    pub(crate) fn set_position(&self, seconds: u64) {
        if let Some(lines) = &self.lines {
            lines.lock().unwrap_or_else(PoisonError::into_inner).position = seconds;
        }
        self.bar.set_position(seconds);
    }

    /// What is seen at the moment.
    pub(crate) fn set_prefix(&self, prefix: impl Into<String>) {
        let prefix = prefix.into();
        self.line(|_| {}, &prefix);
        self.bar.set_prefix(prefix);
    }

    pub(crate) fn finish_and_clear(&self) {
        self.bar.finish_and_clear();
    }
}

fn target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}

/// Says what is going on while nobody knows how long it takes.
pub(crate) fn spinner(message: &'static str) -> Progress {
    let bar = ProgressBar::with_draw_target(None, target()).with_message(message);
    bar.enable_steady_tick(Duration::from_millis(200));
    Progress::new(bar, None, message)
}

/// Shows how much of a known time has passed, and what is seen meanwhile.
pub(crate) fn clock(duration: Duration, message: &'static str) -> Progress {
    let style = ProgressStyle::with_template("{msg} [{bar:30.cyan/dim}] {pos}/{len} s  {prefix}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─");
    let bar = ProgressBar::with_draw_target(Some(duration.as_secs()), target());
    Progress::new(bar.with_style(style).with_message(message), Some(duration.as_secs()), message)
}

/// Prints the figures and writes them where `--json` and `--html` say.
pub(crate) fn finish(args: &Args, common: &Common, figures: Value) -> anyhow::Result<()> {
    let mut report = serde_json::to_value(common).context("failed to write the report")?;
    merge(&mut report, figures);
    emit(args, &report)
}

/// The same for a report that is whole.
pub(crate) fn emit(args: &Args, report: &Value) -> anyhow::Result<()> {
    print("", report);
    ensure!(args.json.len() <= 1, "a run writes one --json FILE");
    if let Some(path) = args.json.first() {
        std::fs::write(path, lines(report)?)
            .with_context(|| format!("failed to write {}", path.display()))?;
    }
    if let Some(path) = &args.html {
        html::write(std::slice::from_ref(report), path)?;
    }
    Ok(())
}

/// One JSON object with a line for each field, so that neither figures nor series are spread over pages.
fn lines(report: &Value) -> anyhow::Result<String> {
    let fields = report.as_object().context("a report is an object")?;
    let line = |(name, value): (&String, &Value)| format!("  {}: {value}", Value::from(name.as_str()));
    Ok(format!("{{\n{}\n}}\n", fields.iter().map(line).collect::<Vec<_>>().join(",\n")))
}

/// A table of like objects: headings, and the dotted names of what stands under them.
pub(crate) fn table(rows: &[Value], columns: &[(&str, &str)]) {
    let heads: Vec<String> = columns.iter().map(|(head, _)| (*head).to_owned()).collect();
    let cell = |row: &Value, name: &str| {
        let value = name.split('.').fold(row, |value, part| &value[part]);
        if value.is_null() { "-".to_owned() } else { value.to_string() }
    };
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| columns.iter().map(|(_, name)| cell(row, name)).collect()).collect();
    for line in std::iter::once(&heads).chain(&rows) {
        let padded: Vec<String> = line.iter().map(|text| format!("{text:>16}")).collect();
        println!("{}", padded.concat());
    }
    println!();
}

/// Adds the fields of one object to another.
pub(crate) fn add(into: &mut Value, fields: &impl Serialize) -> anyhow::Result<()> {
    merge(into, serde_json::to_value(fields).context("failed to write the report")?);
    Ok(())
}

/// One report of several runs of a scenario: the figures on top are those of the first, the books are those of all, and each
/// run is listed.
pub(crate) fn several(mut runs: Vec<Value>) -> anyhow::Result<Value> {
    let mut report = runs.first().cloned().context("nothing was measured")?;
    if runs.len() > 1 {
        for name in BOOKS {
            report[name] = runs.iter().filter_map(|run| run[name].as_u64()).sum::<u64>().into();
        }
        for run in runs.iter_mut().filter_map(Value::as_object_mut) {
            run.retain(|name, _| !SERIES.contains(&name.as_str()));
        }
        report["runs"] = runs.into();
    }
    Ok(report)
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

/// One line for each figure; nested ones under a dotted name.
fn print(prefix: &str, value: &Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields.iter().filter(|(name, _)| !SERIES.contains(&name.as_str())) {
                let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                print(&name, value);
            }
        }
        Value::Array(items) => {
            for (at, value) in items.iter().enumerate() {
                print(&format!("{prefix}[{at}]"), value);
            }
        }
        Value::String(text) => println!("{prefix:<32} {text}"),
        Value::Null | Value::Bool(_) | Value::Number(_) => println!("{prefix:<32} {value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_json_with_a_line_for_each_field() {
        let report =
            serde_json::json!({ "scenario": "x", "p0": { "p50_us": null }, "course": { "at_s": [1, 2] } });
        let text = lines(&report).unwrap();
        assert_eq!(text.lines().count(), 5);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), report);
    }

    #[test]
    fn several_runs_share_their_books() {
        let run = |payload: u32, accepted: u64| serde_json::json!({ "payload_bytes": payload, "accepted": accepted, "lost": 1, "course": {} });
        let report = several(vec![run(16, 5), run(128, 7)]).unwrap();
        assert_eq!((report["payload_bytes"].as_u64(), report["accepted"].as_u64()), (Some(16), Some(12)));
        assert_eq!(report["lost"], 2);
        assert_eq!(report["runs"][1]["payload_bytes"], 128);
        assert!(report["runs"][1]["course"].is_null() && report["course"].is_object());
        assert_eq!(several(vec![run(16, 5)]).unwrap(), run(16, 5));
    }

    #[test]
    fn a_plain_line_says_how_far_it_is() {
        let lines = Lines { message: "asking".into(), seconds: Some(10), position: 4, last: Instant::now() };
        assert_eq!(lines.text("99/s"), "asking 4/10 s 99/s");
    }
}
