//! What people and scripts see: figures on stdout, progress on the terminal, JSON in a file.
//!
//! The rule it keeps: progress is drawn only where somebody looks, and data never mixes with it.
#![expect(clippy::print_stdout, reason = "the figures for people are this program's output")]

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::Value;

use crate::args::Args;
use crate::report::Common;

fn target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}

/// Says what is going on while nobody knows how long it takes.
pub(crate) fn spinner(message: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, target()).with_message(message);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Shows how much of a known time has passed.
pub(crate) fn clock(duration: Duration, message: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} s {prefix}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(duration.as_secs()), target()).with_style(style).with_message(message)
}

/// Prints the figures and writes them where `--json` says.
pub(crate) fn finish(args: &Args, common: &Common, figures: Value) -> anyhow::Result<()> {
    let mut report = serde_json::to_value(common).context("failed to write the report")?;
    merge(&mut report, figures);
    print("", &report);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report).context("failed to write the report")? + "\n";
        std::fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

/// Adds the fields of one object to another.
pub(crate) fn add(into: &mut Value, fields: &impl Serialize) -> anyhow::Result<()> {
    merge(into, serde_json::to_value(fields).context("failed to write the report")?);
    Ok(())
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
            for (name, value) in fields {
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
