//! `mesh report`: the performance table. Owns how it is shown; each figure is defined beside its query in the archive.

use std::time::Duration;

use audit_archiver::archive::{Percentiles, Report};
use clap::{Args, Subcommand};
use governance::Timestamp;
use protocol::text::rfc3339;
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::compliance;
use crate::mesh::Mesh;
use crate::moment;
use crate::output::{Column, Output, table};

/// How long to wait for the archive to have everything.
const ARCHIVE_PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ReportArgs {
    /// Over everything decided since then: a time back, as 15m or 24h, a moment, or `all`.
    #[arg(long, default_value = "24h", value_parser = moment::parse_since, value_name = "TIME")]
    since: Timestamp,
    #[command(subcommand)]
    about: Option<About>,
}

#[derive(Debug, Subcommand)]
enum About {
    /// A month for an auditor: completeness by day, violations, what operators did, what is kept.
    #[command(after_help = compliance::EXAMPLES)]
    Compliance(compliance::ComplianceArgs),
}

pub(crate) async fn run(args: &ReportArgs, mesh: &Mesh, output: &Output) -> anyhow::Result<Answer> {
    if let Some(About::Compliance(args)) = &args.about {
        return compliance::run(args, mesh, output).await;
    }
    let archive = mesh.archive().await?;
    if let Err(error) = archive.until_archived(&mesh.redis_url, ARCHIVE_PATIENCE).await {
        output.note(&format!("mesh: {error}; the newest is not in the figures"));
    }
    let report = archive.report(args.since).await?;
    output.show(&for_scripts(args.since, &report), || render(&report))?;
    let since = if args.since == Timestamp::ZERO { "the beginning".to_owned() } else { rfc3339(args.since) };
    output.note(&format!("since {since}; how each row is computed: mesh report --help"));
    Ok(Answer::Yes)
}

fn render(report: &Report) -> String {
    let rows = report.rows().into_iter().map(|row| vec![row.metric, row.value]);
    table(&[Column::Text("METRIC"), Column::Number("VALUE")], rows)
}

/// The table under the names that scripts know from the demo's report.
fn for_scripts(since: Timestamp, report: &Report) -> Value {
    let percentiles = |p: &Percentiles| json!({"samples": p.samples, "p50_ms": moment::rounded(p.p50_ms), "p95_ms": moment::rounded(p.p95_ms), "p99_ms": moment::rounded(p.p99_ms)});
    let by_priority: serde_json::Map<String, Value> =
        report.own_by_priority.iter().map(|(p, of)| (p.name().to_lowercase(), percentiles(of))).collect();
    json!({
        "since": (since > Timestamp::ZERO).then(|| rfc3339(since)),
        "p50_ms": report.own.map(|p| moment::rounded(p.p50_ms)),
        "p95_ms": report.own.map(|p| moment::rounded(p.p95_ms)),
        "p99_ms": report.own.map(|p| moment::rounded(p.p99_ms)),
        "samples": report.own.map_or(0, |p| p.samples),
        "by_priority": by_priority,
        "peak_per_s": report.peak_per_s,
        "breaker_trips": report.breaker_trips,
        "auto_recovery_pct": report.auto_recovery_pct,
        "violations_blocked": report.violations_blocked,
        "audit_completeness_pct": report.audit_completeness_pct,
        "audit_missing": report.audit_missing,
    })
}

/// The formula of each row, for the help: rows with the same one together.
pub(crate) fn formulas() -> String {
    let mut groups: Vec<(Vec<String>, &'static str)> = Vec::new();
    for row in Report::default().rows() {
        match groups.last_mut() {
            Some((metrics, formula)) if *formula == row.formula => metrics.push(row.metric),
            Some(_) | None => groups.push((vec![row.metric], row.formula)),
        }
    }
    let mut text = "How each row is computed, from the tables of the archive:".to_owned();
    for (metrics, formula) in groups {
        let name = match metrics.as_slice() {
            [first, .., last] => format!("{first} … {last}"),
            metrics => metrics.join(""),
        };
        text.push_str(&format!("\n\n  {name}\n    {formula}"));
    }
    text.push_str("\n\nExamples:\n  mesh report --since 15m\n  mesh report --since all --json | jq .p99_ms");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use governance::Priority;
    use std::collections::BTreeMap;

    #[test]
    fn the_help_has_the_formula_of_each_row() {
        let help = formulas();
        for name in
            ["Peak throughput", "Circuit breaker trips", "Auto-recovery", "violations", "completeness"]
        {
            assert!(help.contains(name), "{name} is missing in {help}");
        }
        assert_eq!(help.matches("percentile of").count(), 1, "one formula for all percentiles: {help}");
    }

    #[test]
    fn scripts_find_the_names_of_the_demo_s_report() {
        let p0 = Percentiles { samples: 10, p50_ms: 0.8, p95_ms: 2.0, p99_ms: 5.499_999_9 };
        let report = Report {
            own: Some(p0),
            own_by_priority: BTreeMap::from([(Priority::P0, p0)]),
            breaker_trips: 1,
            auto_recovery_pct: Some(100.0),
            ..Report::default()
        };
        let value = for_scripts(Timestamp::ZERO, &report);
        assert_eq!(value["p99_ms"], 5.5);
        assert_eq!(value["by_priority"]["p0"]["p50_ms"], 0.8);
        assert_eq!(value["auto_recovery_pct"], 100.0);
        assert_eq!(value["audit_completeness_pct"], Value::Null);
    }
}
