//! A report to look at: one HTML file made of the JSON of runs, with charts drawn here. Owns which figure is shown where.
//!
//! The rule it keeps: the file needs nothing but itself, neither network nor script, and says nothing that is not in the JSON.

mod chart;
mod figures;
mod words;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::output::BOOKS;
use words::escaped;

const STYLE: &str = include_str!("html/style.css");
/// Why writing does not fail.
const STRING: &str = "a string takes what is written";

/// How a number is written.
type Write = fn(f64) -> String;

/// The figures that stand on top of a run, each where a run has it.
const CARDS: &[(&str, &str, Write)] = &[
    ("dispatches_per_s", "governed dispatches per second", words::full),
    ("per_s", "replies per second", words::full),
    ("decisions_per_s_per_core", "decisions per second and core", words::full),
    ("archived_records_per_s", "records archived per second", words::full),
    ("p0.p50_us", "P0, median", words::latency),
    ("p0.p99_us", "P0, P99", words::latency),
    ("p50_us", "median", words::latency),
    ("p99_us", "P99", words::latency),
    ("without_flood.p0.p99_us", "P0, P99, without the flood", words::latency),
    ("p3_flood_per_s", "of the flood, run per second", words::full),
    ("bare.p50_us", "bare chain, median", words::latency),
    ("bare_single_per_s", "bare single messages per second", words::full),
    ("ratio_vs_bare_single", "times the bare rate of single messages", words::digits),
    ("ratio_vs_bare_envelope", "times the bare rate of envelopes, in bytes", words::digits),
    ("ratio_per_s", "times the bare rate", words::digits),
    ("ratio_p50", "times the bare median", words::digits),
    ("overhead_pct", "slower for being audited", words::percent),
    ("growth_pct_max", "most that a process of the mesh grew", words::percent),
    ("cpu_s_per_million.total", "CPU seconds per million dispatches", words::digits),
    ("ns_per_decision", "nanoseconds per decision", words::digits),
    ("allocations_per_decision", "allocations per decision", words::digits),
    ("late_sends", "sent later than meant", words::full),
];

/// Under what a run was measured, in the order of reading.
const SETTINGS: &[(&str, &str)] = &[
    ("payload_bytes", "payload bytes"),
    ("agents", "agents"),
    ("rate", "per second, meant"),
    ("flood_per_s", "flood per second"),
    ("outstanding", "outstanding"),
    ("priority", "priority"),
    ("seconds", "seconds"),
    ("minutes", "minutes"),
    ("dispatches_per_envelope", "dispatches per envelope"),
    ("replicas", "coordinators"),
    ("stream_replicas", "stream copies"),
    ("storage", "streams in"),
    ("nats_sync", "broker sync"),
    ("redis_fsync", "redis fsync"),
    ("servers.nats", "nats-server"),
    ("servers.redis", "redis"),
    ("servers.postgres", "postgresql"),
    ("cpus", "cores"),
    ("machine.cpu", ""),
    ("machine.memory_gb", "GB of memory"),
    ("machine.load", "load before the run"),
    ("version", "version"),
    ("commit", "commit"),
    ("measured_at", "at"),
];

/// Reads the reports of runs and writes one page of them.
pub(crate) fn run(files: &[impl AsRef<Path>], out: &Path) -> anyhow::Result<bool> {
    ensure!(!files.is_empty(), "report needs at least one --json FILE");
    let mut runs = Vec::new();
    for path in files.iter().map(AsRef::as_ref) {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
        let run: Value = serde_json::from_str(&text)
            .with_context(|| format!("{} is not the JSON of a run", path.display()))?;
        ensure!(
            run["scenario"].is_string(),
            "{} is not the JSON of a run: it has no \"scenario\"",
            path.display()
        );
        runs.push(run);
    }
    write(&runs, out)?;
    Ok(true)
}

/// Writes the page of some runs.
pub(crate) fn write(runs: &[Value], out: &Path) -> anyhow::Result<()> {
    std::fs::write(out, page(runs)).with_context(|| format!("failed to write {}", out.display()))
}

/// The whole page.
fn page(runs: &[Value]) -> String {
    let mut names: Vec<&str> = runs.iter().filter_map(|run| run["scenario"].as_str()).collect();
    names.dedup();
    let title = escaped(&format!("Agent Mesh: {}", names.join(", ")));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n\
         <p>Latencies run from the moment at which a request was meant to be sent. <i>Bare</i> is the same two durable hops through \
         the same broker in the same run, with no mesh. Times are on logarithmic axes.</p>\n</header>\n<main>\n",
    );
    for (number, run) in runs.iter().enumerate() {
        section(&mut page, number, run);
    }
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

fn section(page: &mut String, number: usize, run: &Value) {
    let name = escaped(run["scenario"].as_str().unwrap_or("run"));
    write!(
        page,
        "<section aria-labelledby=\"r{number}\">\n<div class=\"head\"><h2 id=\"r{number}\">{name}</h2>"
    )
    .expect(STRING);
    if let Some(balance) = figures::balance(run) {
        let (class, verdict) =
            if balance { ("good", "the books balance") } else { ("bad", "the books do not balance") };
        write!(page, "<span class=\"verdict {class}\">{verdict}</span>").expect(STRING);
    }
    page.push_str("</div>\n");
    let settings = SETTINGS.iter().filter_map(|(path, label)| {
        let gap = if label.is_empty() { "" } else { " " };
        Some(format!("<li>{}{gap}<span>{label}</span></li>", escaped(&figures::scalar(run, path)?)))
    });
    list(page, "chips", settings);
    let cards = CARDS.iter().filter_map(|(path, label, write)| {
        let value = write(figures::number(run, path)?);
        Some(format!("<li><b>{}</b><span>{label}</span></li>", escaped(&value)))
    });
    list(page, "cards", cards);
    page.push_str("<div class=\"charts\">\n");
    for (at, figure) in figures::charts(run).into_iter().enumerate() {
        page.push_str(&figure.draw(&format!("r{number}c{at}")));
    }
    page.push_str("</div>\n");
    for (name, rows) in figures::lists(run) {
        table(page, name, rows);
    }
    books(page, run);
    everything(page, run);
    page.push_str("</section>\n");
}

/// A list of a class, where it has entries.
fn list(page: &mut String, class: &str, entries: impl Iterator<Item = String>) {
    let entries: String = entries.collect();
    if !entries.is_empty() {
        writeln!(page, "<ul class=\"{class}\">{entries}</ul>").expect(STRING);
    }
}

fn books(page: &mut String, run: &Value) {
    if figures::balance(run).is_none() {
        return;
    }
    page.push_str("<div class=\"scroll\"><table><caption>Books</caption><thead><tr>");
    for name in BOOKS {
        write!(page, "<th scope=\"col\">{}</th>", name.replace('_', " ")).expect(STRING);
    }
    page.push_str("</tr></thead><tbody><tr>");
    for name in BOOKS {
        let value = figures::number(run, name).map_or_else(String::new, words::full);
        write!(page, "<td>{value}</td>").expect(STRING);
    }
    page.push_str("</tr></tbody></table></div>\n");
}

/// A list of like objects, one in a row.
fn table(page: &mut String, name: &str, rows: &[Value]) {
    let rows: Vec<Vec<(String, String)>> = rows.iter().map(figures::flat).collect();
    let mut columns: Vec<&str> = Vec::new();
    for (column, _) in rows.iter().flatten() {
        if !columns.contains(&column.as_str()) {
            columns.push(column);
        }
    }
    write!(page, "<div class=\"scroll\"><table><caption>{}</caption><thead><tr>", escaped(name))
        .expect(STRING);
    for column in &columns {
        write!(page, "<th scope=\"col\">{}</th>", escaped(&column.replace('_', " "))).expect(STRING);
    }
    page.push_str("</tr></thead><tbody>");
    for row in &rows {
        page.push_str("<tr>");
        for column in &columns {
            let value = row.iter().find(|(name, _)| name == column).map_or("", |(_, value)| value);
            write!(page, "<td>{}</td>", escaped(value)).expect(STRING);
        }
        page.push_str("</tr>");
    }
    page.push_str("</tbody></table></div>\n");
}

/// Every figure under its name in the JSON.
fn everything(page: &mut String, run: &Value) {
    page.push_str("<details><summary>Every figure, under its name in the JSON</summary>\n<table><tbody>");
    for (name, value) in figures::flat(run) {
        write!(
            page,
            "<tr><th scope=\"row\">{}</th><td class=\"value\">{}</td></tr>",
            escaped(&name),
            escaped(&value)
        )
        .expect(STRING);
    }
    page.push_str("</tbody></table></details>\n");
}

#[cfg(test)]
mod tests;
