//! `mesh report compliance`: a month for an auditor. Owns how it is shown; each figure is defined in the archive's library.

use audit_archiver::archive::{Compliance, MonthOf, Note};
use audit_archiver::verify::Verdict;
use clap::Args;
use protocol::text::rfc3339;
use serde_json::json;

use crate::answer::Answer;
use crate::mesh::Mesh;
use crate::output::{Column, Output, table};
use crate::verify;

pub(crate) const EXAMPLES: &str = concat!(
    "Completeness of a day is 100 × dispatches with a recorded outcome / those that have one or should: what is not yet a minute past ",
    "its deadline is open and counts for neither. With --verify the archive is proved as well, from the month's first day on.\n\n",
    "Examples:\n",
    "  mesh report compliance --month 2026-11\n",
    "  mesh report compliance --month 2026-11 --verify --json > 2026-11.json",
);

#[derive(Debug, Args)]
pub(crate) struct ComplianceArgs {
    /// The month, in UTC.
    #[arg(long, value_name = "YYYY-MM", value_parser = month)]
    month: (String, MonthOf),
    /// Proves the archive as well, as `mesh verify` does.
    #[arg(long)]
    verify: bool,
}

fn month(text: &str) -> Result<(String, MonthOf), String> {
    let of = MonthOf::parse(text).ok_or_else(|| format!("{text:?} is not a month; write it as 2026-11"))?;
    Ok((text.to_owned(), of))
}

pub(crate) async fn run(args: &ComplianceArgs, mesh: &Mesh, output: &Output) -> anyhow::Result<Answer> {
    let (name, month) = &args.month;
    let report = mesh.archive().await?.compliance(*month).await?;
    let verdict = if args.verify { Some(verify::since(month.from(), mesh).await?) } else { None };
    let mut value = serde_json::to_value(&report)?;
    value["month"] = json!(name);
    value["verify"] = json!(verdict);
    output.show(&value, || render(name, &report, verdict.as_ref()))?;
    let complete = report.days.iter().all(|day| day.without_outcome == 0 && day.blocks_missing == 0);
    Ok(Answer::when(complete && verdict.is_none_or(|verdict| verdict.whole)))
}

fn render(month: &str, report: &Compliance, verdict: Option<&Verdict>) -> String {
    let mut parts = vec![format!("Compliance report for {month} (UTC)"), days(report)];
    if !report.unended.is_empty() {
        let mut lines = vec!["Without an outcome a minute past their deadline:".to_owned()];
        lines.extend(
            report
                .unended
                .iter()
                .map(|one| format!("  {}  decided {}", one.dispatch_id, rfc3339(one.decided))),
        );
        if report.unended_more > 0 {
            lines.push(format!("  and {} more", report.unended_more));
        }
        parts.push(lines.join("\n"));
    }
    let violations = report.violations.iter().map(|v| vec![v.reason.clone(), v.dispatches.to_string()]);
    parts.push(section(
        "Violations",
        &[Column::Text("VIOLATION"), Column::Number("BLOCKED OR DEMOTED")],
        violations,
    ));
    parts.push(operators(&report.operators));
    parts.push(holds(report));
    parts.push(kept(report));
    parts.push(match verdict {
        Some(verdict) => format!("Proof\n{}", verify::render(verdict)),
        None => format!("Proof: mesh verify --since {month}-01, or --verify here"),
    });
    parts.join("\n\n")
}

fn days(report: &Compliance) -> String {
    let columns = [
        Column::Text("DAY"),
        Column::Number("DISPATCHES"),
        Column::Number("WITH OUTCOME"),
        Column::Number("OPEN"),
        Column::Number("WITHOUT"),
        Column::Number("COMPLETE"),
        Column::Number("BLOCKS"),
        Column::Number("MISSING"),
    ];
    let rows = report.days.iter().map(|day| {
        let complete =
            day.completeness_pct.map_or_else(|| "-".to_owned(), |pct| format!("{} %", floored(pct)));
        vec![
            day.day.clone(),
            day.dispatches.to_string(),
            day.with_outcome.to_string(),
            day.open.to_string(),
            day.without_outcome.to_string(),
            complete,
            day.blocks.to_string(),
            day.blocks_missing.to_string(),
        ]
    });
    table(&columns, rows)
}

/// A table under its title; a word where it has no row.
fn section(title: &str, columns: &[Column], rows: impl ExactSizeIterator<Item = Vec<String>>) -> String {
    if rows.len() == 0 { format!("{title}: none") } else { format!("{title}\n{}", table(columns, rows)) }
}

/// Never rounded up to a whole that it is not.
fn floored(pct: f64) -> String {
    if pct >= 100.0 { "100".to_owned() } else { format!("{:.3}", (pct * 1_000.0).floor() / 1_000.0) }
}

fn operators(notes: &[Note]) -> String {
    let columns = [
        Column::Text("WHEN"),
        Column::Text("WHO"),
        Column::Text("DID"),
        Column::Text("ABOUT"),
        Column::Text("WHY"),
    ];
    let rows = notes.iter().map(|note| {
        let field = |name: &str| note.body.get(name).and_then(|v| v.as_str()).unwrap_or("-").to_owned();
        let did = if note.kind == "operator" { field("verb") } else { note.kind.clone() };
        let about = note.agent.clone().unwrap_or_else(|| "the mesh".into());
        vec![rfc3339(note.at), field("operator"), did, about, field("reason")]
    });
    section("What operators did", &columns, rows)
}

fn holds(report: &Compliance) -> String {
    let columns = [
        Column::Number("HOLD"),
        Column::Text("DAYS"),
        Column::Text("ONLY"),
        Column::Text("PLACED"),
        Column::Text("RELEASED"),
        Column::Text("WHY"),
    ];
    let rows = report.holds.iter().map(|hold| {
        let end = |day: &Option<String>| day.clone().unwrap_or_else(|| "…".into());
        let only =
            [&hold.conversation, &hold.agent].into_iter().flatten().cloned().collect::<Vec<_>>().join(", ");
        let released = match (&hold.released_by, hold.released_at) {
            (Some(by), Some(at)) => format!("{by}, {}", rfc3339(at)),
            (Some(_) | None, _) => "in force".to_owned(),
        };
        vec![
            hold.id.to_string(),
            format!("{} to {}", end(&hold.from), end(&hold.to)),
            only,
            format!("{}, {}", hold.placed_by, rfc3339(hold.placed_at)),
            released,
            hold.reason.clone(),
        ]
    });
    section("Legal holds", &columns, rows)
}

fn kept(report: &Compliance) -> String {
    let kept = &report.kept;
    let day = |day: &Option<String>| day.clone().unwrap_or_else(|| "none".into());
    let setting = kept
        .retention_days
        .map_or_else(|| "no day was dropped yet".into(), |days| format!("retention of {days} days"));
    let mut lines =
        vec![format!("Kept: {} days from {} to {}; {setting}", kept.days, day(&kept.first), day(&kept.last))];
    if !kept.dropped.is_empty() {
        lines.push(format!("Dropped in this month: {}", kept.dropped.join(", ")));
    }
    lines.push(format!("Archive stops: {}", report.archive_stops.len()));
    lines.extend(report.archive_stops.iter().map(|note| format!("  {}  {}", rfc3339(note.at), note.body)));
    let stopped =
        report.stopped.iter().filter_map(|c| Some(format!("  shard {}: {}", c.shard, c.stopped.as_ref()?)));
    let stopped: Vec<String> = stopped.collect();
    if !stopped.is_empty() {
        lines.push("Stopped at this moment:".to_owned());
        lines.extend(stopped);
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use audit_archiver::archive::{DayOf, Kept, Unended, Violation};
    use governance::Timestamp;

    #[test]
    fn a_month_shows_what_is_missing_and_who_did_what() {
        let at = Timestamp::from_millis(1_771_060_995_482);
        let day = DayOf {
            day: "2026-02-14".into(),
            dispatches: 1_000_000,
            with_outcome: 999_998,
            open: 1,
            without_outcome: 1,
            completeness_pct: Some(99.999_9),
            blocks: 12,
            blocks_missing: 0,
        };
        let body = json!({"verb": "trip", "operator": "ann", "reason": "drill"});
        let report = Compliance {
            days: vec![day],
            unended: vec![Unended { dispatch_id: "d-7-1-0".into(), decided: at }],
            unended_more: 4,
            violations: vec![Violation { reason: "loop".into(), dispatches: 3 }],
            operators: vec![Note { at, kind: "operator".into(), agent: Some("crm".into()), body }],
            holds: Vec::new(),
            kept: Kept { days: 366, retention_days: Some(365), ..Kept::default() },
            archive_stops: Vec::new(),
            stopped: Vec::new(),
        };
        let text = render("2026-02", &report, None);
        for part in
            ["99.999 %", "d-7-1-0", "and 4 more", "ann", "trip", "drill", "loop", "365 days", "mesh verify"]
        {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }

    #[test]
    fn a_month_is_read_or_explained() {
        assert!(month("2026-11").is_ok());
        assert!(month("november").unwrap_err().contains("2026-11"));
    }
}
