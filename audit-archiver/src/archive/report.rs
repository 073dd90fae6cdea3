//! The article's performance table, computed from the archive. Owns the definition of each row.

use std::collections::BTreeMap;

use governance::{Priority, Reason, Timestamp};
use serde::Serialize;
use tokio_postgres::Client;

use super::{Archive, Error, Note, count, moment};

/// Percentiles in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// How many dispatches they are of.
    pub samples: u64,
    /// The median.
    pub p50_ms: f64,
    /// The 95th.
    pub p95_ms: f64,
    /// The 99th.
    pub p99_ms: f64,
}

/// The table. What nothing can be said about is none.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// The most dispatches decided in one calendar second.
    pub peak_per_s: u64,
    /// The mesh's own share of the latency, all priorities.
    pub own: Option<Percentiles>,
    /// The same, by the priority that dispatches went in.
    pub own_by_priority: BTreeMap<Priority, Percentiles>,
    /// Times a breaker went from passing to tripped.
    pub breaker_trips: u64,
    /// Of these, the share that came back by a successful probe, in percent.
    pub auto_recovery_pct: Option<f64>,
    /// Dispatches that tried what their source may not.
    pub violations_blocked: u64,
    /// Records there are, of those that should be, in percent.
    pub audit_completeness_pct: Option<f64>,
    /// Records that should be there and are not.
    pub audit_missing: u64,
}

/// One row of the table for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReportRow {
    /// The name of the figure.
    pub metric: String,
    /// The figure with its unit; a dash where nothing can be said.
    pub value: String,
    /// How it is computed.
    pub formula: &'static str,
}

/// A percentile's name and how to take it out.
type Pick = (&'static str, fn(&Percentiles) -> f64);

const PEAK: &str = "max over calendar seconds of count(dispatch_decision) by decided";
const OWN: &str = "percentile of latency_us - ran_us over dispatch_completion where a handler ran to its end (outcome success or \
     failure, first attempt, not late): acceptance to recorded outcome, without the handler's own time; waiting for \
     the source's own quota is part of it";
const TRIPS: &str = "count(audit_note of kind breaker with from = passing and to = tripped)";
const RECOVERY: &str = "100 * trips whose breaker next passed with reason probe_succeeded / trips";
const VIOLATIONS: &str = "count(dispatch_decision whose reason is a violation: unknown source, target or capability, undeclared \
     dependency, too many hops, loop, invalid lineage, demoted from P0)";
const COMPLETENESS: &str = "100 * (records - missing) / records that should be; missing: sequences of an instance that are not there \
     though later ones are, slots of an envelope likewise, and admitted dispatches with no end a minute past their deadline";

impl Report {
    /// The table for people, in the article's order.
    #[must_use]
    pub fn rows(&self) -> Vec<ReportRow> {
        let row = |metric: &str, value: String, formula| ReportRow { metric: metric.into(), value, formula };
        let dash = || "-".to_owned();
        let ms = |p: Option<&Percentiles>, pick: fn(&Percentiles) -> f64| {
            p.map_or_else(dash, |p| format!("{:.2} ms", pick(p)))
        };
        let pct = |value: Option<f64>| value.map_or_else(dash, |v| format!("{} %", two_decimals_at_most(v)));
        let mut rows = vec![row("Peak throughput", format!("{} dispatches/s", self.peak_per_s), PEAK)];
        let picks: [Pick; 3] = [("P50", |p| p.p50_ms), ("P95", |p| p.p95_ms), ("P99", |p| p.p99_ms)];
        for (name, pick) in picks {
            rows.push(row(&format!("{name} dispatch latency"), ms(self.own.as_ref(), pick), OWN));
        }
        for priority in Priority::ALL {
            let of = self.own_by_priority.get(priority);
            for (name, pick) in picks {
                rows.push(row(&format!("{name} dispatch latency, {priority}"), ms(of, pick), OWN));
            }
        }
        rows.push(row("Circuit breaker trips", self.breaker_trips.to_string(), TRIPS));
        rows.push(row("Auto-recovery success rate", pct(self.auto_recovery_pct), RECOVERY));
        rows.push(row("Governance violations blocked", self.violations_blocked.to_string(), VIOLATIONS));
        rows.push(row("Audit log completeness", pct(self.audit_completeness_pct), COMPLETENESS));
        rows
    }
}

/// 100 for a whole, else with decimals; never rounded up to a whole that it is not.
fn two_decimals_at_most(value: f64) -> String {
    if value >= 100.0 { "100".to_owned() } else { format!("{:.2}", (value * 100.0).floor() / 100.0) }
}

impl Archive {
    /// The table of everything decided at or after a moment; `Timestamp::ZERO` for all there is.
    ///
    /// # Errors
    /// When a query fails.
    pub async fn report(&self, since: Timestamp) -> Result<Report, Error> {
        let client = self.client().await?;
        let mut report = Report::default();
        let peak = "SELECT coalesce(max(n), 0) AS peak FROM (SELECT sum(count) AS n FROM decision_run \
             WHERE decided >= $1 GROUP BY date_trunc('second', decided)) seconds";
        report.peak_per_s = count(&client.query_one(peak, &[&moment(since)]).await?, "peak");
        latencies(&client, since, &mut report).await?;
        let violations: Vec<i16> =
            Reason::ALL.iter().filter(|r| r.is_violation()).map(|r| r.code().into()).collect();
        let query =
            "SELECT coalesce(sum(count), 0) AS n FROM decision_run WHERE decided >= $1 AND reason = ANY($2)";
        let blocked = client.query_one(query, &[&moment(since), &violations]).await?;
        report.violations_blocked = count(&blocked, "n");
        completeness(&client, since, &mut report).await?;
        drop(client);
        let recoveries;
        (report.breaker_trips, recoveries) = trips(&self.notes(Some("breaker"), since).await?);
        report.auto_recovery_pct =
            (report.breaker_trips > 0).then(|| recoveries as f64 * 100.0 / report.breaker_trips as f64);
        Ok(report)
    }
}

async fn latencies(client: &Client, since: Timestamp, report: &mut Report) -> Result<(), Error> {
    let query = "SELECT class.name AS class, count(*) AS samples, \
             percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY greatest(c.latency_us - c.ran_us, 0)) AS us \
         FROM dispatch_completion c \
         JOIN decision_run d USING (instance, sequence, copy) \
         JOIN word class ON class.list = 'priority' AND class.code = d.class \
         JOIN word outcome ON outcome.list = 'outcome' AND outcome.code = c.outcome AND outcome.name IN ('success', 'failure') \
         WHERE c.slot >= d.slot AND c.slot < d.slot + d.count \
             AND d.decided >= $1 AND c.completed >= $1 AND NOT c.late AND c.attempt = 1 AND c.runner IS NOT NULL \
         GROUP BY GROUPING SETS ((), (class.name))";
    for row in client.query(query, &[&moment(since)]).await? {
        let Some(us) = row.get::<_, Option<Vec<f64>>>("us") else { continue };
        let at = |i: usize| us.get(i).copied().unwrap_or_default() / 1_000.0;
        let found =
            Percentiles { samples: count(&row, "samples"), p50_ms: at(0), p95_ms: at(1), p99_ms: at(2) };
        match row.get::<_, Option<&str>>("class").and_then(|name| name.parse().ok()) {
            Some(priority) => {
                report.own_by_priority.insert(priority, found);
            }
            None => report.own = Some(found),
        }
    }
    Ok(())
}

/// Instances that were derived at the JSON door have the top bit set, hence are negative here; their sequences are those
/// of a stream and have gaps. Where everything there is was asked for, an instance begins with 1.
async fn completeness(client: &Client, since: Timestamp, report: &mut Report) -> Result<(), Error> {
    let query = "\
WITH held AS (
    SELECT instance, sequence, range_agg(int4range(slot, slot + count)) AS stretches
    FROM decision_run WHERE decided >= $1 GROUP BY instance, sequence
), envelopes AS (
    SELECT instance, sequence, slots, upper(stretches) - slots AS missing
    FROM held, LATERAL (SELECT sum(upper(s) - lower(s)) AS slots FROM unnest(stretches) s) of
), instances AS (
    SELECT sum(slots)::bigint AS recorded,
        CASE WHEN instance < 0 THEN 0 ELSE sum(missing)::bigint
            + max(sequence) - CASE WHEN $2 THEN 0 ELSE min(sequence) - 1 END - count(*) END AS missing
    FROM envelopes GROUP BY instance
), unended AS (
    SELECT count(*) AS n FROM dispatch_decision d
    WHERE d.decided >= $1 AND d.outcome IS NULL AND d.deadline < now() - interval '1 minute'
        AND NOT EXISTS (SELECT FROM completion_run c WHERE c.completed >= $1 AND NOT c.late
            AND c.instance = d.instance AND c.sequence = d.sequence AND c.copy = d.copy
            AND run_place(c.slot, c.count, c.slots, d.slot) IS NOT NULL)
)
SELECT coalesce(sum(recorded), 0)::bigint AS recorded, coalesce(sum(missing), 0)::bigint AS missing,
    (SELECT n FROM unended) AS unended
FROM instances";
    let row = client.query_one(query, &[&moment(since), &(since == Timestamp::ZERO)]).await?;
    let (recorded, missing) = (count(&row, "recorded"), count(&row, "missing"));
    let unended = count(&row, "unended");
    report.audit_missing = missing + unended;
    let expected = recorded + missing;
    report.audit_completeness_pct =
        (expected > 0).then(|| recorded.saturating_sub(unended) as f64 * 100.0 / expected as f64);
    Ok(())
}

/// How often breakers tripped, and how many of these trips ended by a successful probe.
fn trips(notes: &[Note]) -> (u64, u64) {
    let (mut trips, mut recoveries) = (0, 0);
    let mut tripped: BTreeMap<&str, bool> = BTreeMap::new();
    for note in notes {
        let field = |name: &str| note.body.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
        let agent = tripped.entry(note.agent.as_deref().unwrap_or_default()).or_default();
        match (field("from"), field("to")) {
            ("passing", "tripped") => {
                trips += 1;
                *agent = true;
            }
            (_, "passing") => {
                let recovered = std::mem::take(agent) && field("reason") == Reason::ProbeSucceeded.name();
                recoveries += u64::from(recovered);
            }
            _ => {}
        }
    }
    (trips, recoveries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(agent: &str, from: &str, to: &str, reason: &str) -> Note {
        Note {
            at: Timestamp::ZERO,
            kind: "breaker".into(),
            agent: Some(agent.into()),
            body: serde_json::json!({ "from": from, "to": to, "reason": reason }),
        }
    }

    #[test]
    fn a_trip_ends_well_only_by_a_probe() {
        let notes = [
            note("handoff", "passing", "tripped", "error_rate_exceeded"),
            note("handoff", "tripped", "probing", "probe_due"),
            note("handoff", "probing", "tripped", "probe_failed"),
            note("crm", "passing", "tripped", "operator"),
            note("handoff", "tripped", "probing", "probe_due"),
            note("handoff", "probing", "passing", "probe_succeeded"),
            note("crm", "tripped", "passing", "operator"),
        ];
        assert_eq!(trips(&notes), (2, 1));
        assert_eq!(trips(&[]), (0, 0));
    }

    #[test]
    fn completeness_is_never_rounded_up_to_a_whole() {
        assert_eq!(two_decimals_at_most(100.0), "100");
        assert_eq!(two_decimals_at_most(99.999), "99.99");
        assert_eq!(two_decimals_at_most(99.97), "99.97");
    }

    #[test]
    fn the_table_has_a_formula_for_each_row() {
        let rows = Report::default().rows();
        assert_eq!(rows.len(), 20);
        assert!(rows.iter().all(|row| !row.formula.is_empty()));
    }
}
