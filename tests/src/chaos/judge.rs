//! The judge: what PostgreSQL keeps of a run, compared with what senders and handlers counted.
//!
//! The rule it keeps: nothing is copied from one side to the other, and how much was compared is part of the verdict.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use governance::{DispatchId, InstanceId, Outcome, Policy, Timestamp};
use serde::Serialize;

use super::load::Told;
use super::plan::Fault;
use crate::Stage;

/// What the archive says of each dispatch since a moment: its decisions and its ends.
const DISPATCHES: &str = "\
WITH decided AS (
    SELECT instance, sequence, slot, copy, count(*) AS decisions, min(outcome) AS outcome,
        count(outcome) AS ended, min(source) AS source, min(class) AS class, bool_or(w.name = 'admitted') AS admitted,
        min(target) AS target, (extract(epoch FROM max(decided) - min(accepted)) * 1000000)::bigint AS lane_us,
        (extract(epoch FROM min(accepted)) * 1000000)::bigint AS accepted_us
    FROM dispatch_decision d JOIN word w ON w.list = 'decision' AND w.code = d.decision
    WHERE decided >= to_timestamp($1) GROUP BY instance, sequence, slot, copy
), ended AS (
    SELECT instance, sequence, slot, copy, count(*) AS ends, min(outcome) AS outcome
    FROM dispatch_completion WHERE NOT late AND completed >= to_timestamp($1) GROUP BY instance, sequence, slot, copy
)
SELECT instance, sequence, slot, copy, coalesce(decisions, 0) AS decisions, coalesce(d.ended, 0) + coalesce(ends, 0) AS ends,
    w.name AS outcome, coalesce(class, 3)::smallint AS class, coalesce(admitted, false) AS admitted,
    coalesce(source, '') AS source, coalesce(target, '') AS target, coalesce(lane_us, 0) AS lane_us, coalesce(accepted_us, 0) AS accepted_us
FROM decided d FULL JOIN ended e USING (instance, sequence, slot, copy)
LEFT JOIN word w ON w.list = 'outcome' AND w.code = coalesce(d.outcome, e.outcome)";

/// The life of each breaker, in the order in which its homes recorded it.
const BREAKERS: &str = "\
SELECT coalesce(agent, '') AS agent, epoch, body::jsonb ->> 'from' AS was, body::jsonb ->> 'to' AS is
FROM audit_note WHERE kind = 'breaker' AND at >= to_timestamp($1) ORDER BY epoch, block, at";

/// No run is too small to say something, but for one that compared less than this.
const COMPARED_MIN: u64 = 1_000;
/// How long a person may wait for a home that was killed.
const P0_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long it may wait for one that hands over in order, where the broker is one node; and where each of the consumers that
/// move is a group of three nodes that has to elect first.
const P0_ORDERLY_WAIT_MAX: Duration = Duration::from_millis(100);
const P0_ORDERLY_WAIT_MAX_CLUSTER: Duration = Duration::from_secs(2);
/// After so long a hand-over is over, and the next fault has not come.
const HAND_OVER: Duration = Duration::from_secs(4);
/// Enough for somebody to find out what is wrong.
const EXAMPLES_MAX: usize = 10;

/// What was found. Everything that must be 0 is named in [`Judged::faults`].
#[derive(Debug, Default, Serialize)]
pub(super) struct Judged {
    accepted: u64,
    completed: u64,
    rejected: u64,
    in_flight: u64,
    lost: u64,
    duplicate_effects: u64,
    audited: u64,
    audit_missing: u64,
    quota_exceeded: u64,
    /// Dispatches with more than one decision or more than one outcome.
    decided_twice: u64,
    ended_twice: u64,
    /// Whose sender was told another outcome than the archive has.
    misreported: u64,
    /// Recorded successes of workers that no handler saw.
    unseen: u64,
    undeclared_sent: u64,
    undeclared_delivered: u64,
    breaker_trips: u64,
    /// Notes of a breaker that do not follow from the one before: a trip that was recorded twice, or by two.
    breaker_records_astray: u64,
    quotas_judged: u64,
    admissions_judged: u64,
    p0_judged: u64,
    p0_wait_max_ms: u64,
    /// The same for those that were accepted while a coordinator handed over in order.
    p0_orderly_wait_max_ms: u64,
    p0_orderly_judged: u64,
    p0_orderly_wait_allowed_ms: u64,
    p0_reply_max_ms: u64,
    unsure: u64,
    examples: Vec<String>,
}

impl Judged {
    /// What is wrong, in words; nothing where all holds.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (what, count) in [
            ("accepted dispatches are not in the archive", self.audit_missing),
            ("accepted dispatches have no outcome", self.lost),
            ("dispatches were decided and never ended", self.in_flight),
            ("dispatches were decided more than once", self.decided_twice),
            ("dispatches have more than one outcome", self.ended_twice),
            ("senders were told another outcome than the archive has", self.misreported),
            ("dispatches were run more than once", self.duplicate_effects),
            ("successes were seen by no handler", self.unseen),
            ("seconds held more than rate and burst", self.quota_exceeded),
            ("undeclared calls were delivered", self.undeclared_delivered),
            ("breaker records do not follow from the one before", self.breaker_records_astray),
        ] {
            if count > 0 {
                faults.push(format!("{count} {what}"));
            }
        }
        if u128::from(self.p0_wait_max_ms) > P0_WAIT_MAX.as_millis() {
            faults.push(format!("P0 waited {} ms for its home", self.p0_wait_max_ms));
        }
        if self.p0_orderly_wait_max_ms > self.p0_orderly_wait_allowed_ms {
            faults.push(format!("P0 waited {} ms in an orderly hand-over", self.p0_orderly_wait_max_ms));
        }
        for (what, count, least) in [
            ("dispatches", self.audited, COMPARED_MIN),
            ("admissions within quotas", self.admissions_judged, COMPARED_MIN),
            ("P0 dispatches", self.p0_judged, 1),
            ("P0 dispatches in orderly hand-overs", self.p0_orderly_judged, 1),
            ("undeclared calls", self.undeclared_sent, 1),
            ("breaker trips", self.breaker_trips, 1),
        ] {
            if count < least {
                faults.push(format!("too little was compared: {count} {what}"));
            }
        }
        faults
    }

    fn example(&mut self, id: DispatchId, what: &str) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(format!("{id}: {what}"));
        }
    }
}

/// What the archive has of one dispatch.
struct Archived {
    decisions: i64,
    ends: i64,
    outcome: Option<Outcome>,
    is_p0: bool,
    admitted: bool,
    source: String,
    target: String,
    accepted: Timestamp,
    lane: Duration,
}

/// Compares.
pub(super) async fn judge(
    stage: &Stage,
    policy: &Policy,
    told: &Told,
    faults: &[(Timestamp, Fault)],
) -> anyhow::Result<Judged> {
    let archived = archived(stage).await?;
    let orderly_max =
        if stage.settings.stream_replicas > 1 { P0_ORDERLY_WAIT_MAX_CLUSTER } else { P0_ORDERLY_WAIT_MAX };
    let mut judged = Judged {
        accepted: told.accepted.len() as u64,
        undeclared_sent: told.undeclared,
        unsure: told.unsure,
        undeclared_delivered: told.trespasses,
        p0_orderly_wait_allowed_ms: orderly_max.as_millis() as u64,
        p0_reply_max_ms: told.longest_wait.as_millis() as u64,
        ..Judged::default()
    };
    for id in told.seen.repeated() {
        judged.duplicate_effects += 1;
        let source = archived.get(&id).map_or("nobody", |record| record.source.as_str());
        judged.example(id, &format!("sent by {source}, and run more than once"));
    }
    compare_senders(&mut judged, &archived, told);
    compare_records(&mut judged, &archived, told);
    judge_waits(&mut judged, &archived, faults);
    let limit = |agent: &str| told.senders.iter().any(|name| name == agent).then(|| policy.quota(agent));
    let quota = stage.archive.quota_exceeded(stage.since, limit).await?;
    judged.quota_exceeded = quota.exceeded;
    judged.quotas_judged = quota.agents;
    judged.admissions_judged = quota.admitted;
    judged.examples.extend(quota.examples.iter().map(|found| format!("quota: {found:?}")));
    (judged.breaker_trips, judged.breaker_records_astray) = breakers(&changes(stage).await?);
    Ok(judged)
}

/// A change of a breaker, as one of its homes recorded it.
struct Change {
    agent: String,
    epoch: i64,
    from: String,
    to: String,
}

async fn changes(stage: &Stage) -> anyhow::Result<Vec<Change>> {
    let client = audit_archiver::connect(&stage.settings.postgres_url, "chaos").await?;
    let rows = client.query(BREAKERS, &[&(stage.since.0 as f64 / 1e9)]).await?;
    let change = |row: &tokio_postgres::Row| Change {
        agent: row.get("agent"),
        epoch: row.get("epoch"),
        from: row.get::<_, Option<String>>("was").unwrap_or_default(),
        to: row.get::<_, Option<String>>("is").unwrap_or_default(),
    };
    Ok(rows.iter().map(change).collect())
}

async fn archived(stage: &Stage) -> anyhow::Result<HashMap<DispatchId, Archived>> {
    let client = audit_archiver::connect(&stage.settings.postgres_url, "chaos").await?;
    let since = stage.since.0 as f64 / 1e9;
    let mut all = HashMap::new();
    for row in client.query(DISPATCHES, &[&since]).await? {
        let id = DispatchId {
            instance: InstanceId(row.get::<_, i64>("instance").cast_unsigned()),
            sequence: row.get::<_, i64>("sequence").cast_unsigned(),
            slot: u16::try_from(row.get::<_, i32>("slot"))?,
            copy: u16::try_from(row.get::<_, i32>("copy"))?,
        };
        let record = Archived {
            decisions: row.get("decisions"),
            ends: row.get("ends"),
            outcome: row.get::<_, Option<&str>>("outcome").and_then(|name| name.parse().ok()),
            is_p0: row.get::<_, i16>("class") == 0,
            admitted: row.get("admitted"),
            source: row.get("source"),
            target: row.get("target"),
            accepted: Timestamp(
                u64::try_from(row.get::<_, i64>("accepted_us")).unwrap_or(0).saturating_mul(1_000),
            ),
            lane: Duration::from_micros(u64::try_from(row.get::<_, i64>("lane_us")).unwrap_or(0)),
        };
        all.insert(id, record);
    }
    Ok(all)
}

/// What senders were told against what is recorded.
fn compare_senders(judged: &mut Judged, archived: &HashMap<DispatchId, Archived>, told: &Told) {
    for (id, outcome) in &told.accepted {
        let Some(record) = archived.get(id) else {
            judged.audit_missing += 1;
            judged.example(*id, &format!("accepted, told {outcome:?}, and not in the archive"));
            continue;
        };
        judged.audited += 1;
        if record.ends == 0 {
            judged.lost += 1;
            judged.example(*id, &format!("accepted, told {outcome:?}, and without an outcome"));
        }
        if outcome.is_some() && record.outcome != *outcome {
            judged.misreported += 1;
            judged.example(*id, &format!("told {outcome:?}, recorded {:?}", record.outcome));
        }
    }
}

/// What must hold of each record, and of the handlers' side.
fn compare_records(judged: &mut Judged, archived: &HashMap<DispatchId, Archived>, told: &Told) {
    for (id, record) in archived {
        match record.outcome {
            None => judged.in_flight += 1,
            Some(Outcome::Rejected) => judged.rejected += 1,
            Some(_) => judged.completed += 1,
        }
        judged.decided_twice += u64::from(record.decisions != 1);
        judged.ended_twice += u64::from(record.ends > 1);
        if record.decisions != 1 || record.ends > 1 {
            judged.example(*id, &format!("{} decisions, {} ends", record.decisions, record.ends));
        }
        if record.source == "trespasser" && record.admitted {
            judged.undeclared_delivered += 1;
            judged.example(*id, "undeclared, and admitted");
        }
        let ran = record.outcome == Some(Outcome::Success) && record.target.starts_with("worker-");
        if ran && !told.seen.has(*id) {
            judged.unseen += 1;
            judged.example(*id, "a success that no handler saw");
        }
    }
}

/// How long P0 waited for its home, in all and while one handed over in order.
fn judge_waits(judged: &mut Judged, archived: &HashMap<DispatchId, Archived>, faults: &[(Timestamp, Fault)]) {
    let orderly = faults.iter().filter(|(_, fault)| matches!(fault, Fault::End(_)));
    let orderly: Vec<Timestamp> = orderly.map(|(at, _)| *at).collect();
    for (id, record) in archived.iter().filter(|(_, record)| record.is_p0 && record.admitted) {
        let waited = record.lane.as_millis() as u64;
        judged.p0_judged += 1;
        judged.p0_wait_max_ms = judged.p0_wait_max_ms.max(waited);
        if orderly.iter().any(|at| *at <= record.accepted && record.accepted < at.after(HAND_OVER)) {
            judged.p0_orderly_judged += 1;
            judged.p0_orderly_wait_max_ms = judged.p0_orderly_wait_max_ms.max(waited);
            if waited > judged.p0_orderly_wait_allowed_ms {
                judged.example(*id, &format!("P0, and waited {waited} ms in an orderly hand-over"));
            }
        }
    }
}

/// How often breakers tripped, and how many records do not begin where the one before them ended. A probe is lost with the
/// home that granted it: the next home begins with a tripped breaker where the former one left a probing one.
fn breakers(changes: &[Change]) -> (u64, u64) {
    let mut states: BTreeMap<&str, (i64, &str)> = BTreeMap::new();
    let (mut trips, mut astray) = (0, 0);
    for Change { agent, epoch, from, to } in changes {
        let (before, state) = states.get(agent.as_str()).copied().unwrap_or((*epoch, "passing"));
        let lost_probe = before != *epoch && state == "probing" && from == "tripped";
        astray += u64::from(from == to || (state != from && !lost_probe));
        trips += u64::from(from == "passing" && to == "tripped");
        states.insert(agent, (*epoch, to));
    }
    (trips, astray)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(epoch: i64, from: &str, to: &str) -> Change {
        Change { agent: "fragile".to_owned(), epoch, from: from.to_owned(), to: to.to_owned() }
    }

    #[test]
    fn a_trip_that_is_recorded_by_two_is_found() {
        let life = [
            change(1, "passing", "tripped"),
            change(1, "tripped", "probing"),
            change(1, "probing", "tripped"),
            change(1, "tripped", "probing"),
            change(1, "probing", "passing"),
        ];
        assert_eq!(breakers(&life), (1, 0));
        let twice = [change(1, "passing", "tripped"), change(2, "passing", "tripped")];
        assert_eq!(breakers(&twice), (2, 1));
    }

    #[test]
    fn a_probe_may_be_lost_with_its_home_and_only_with_it() {
        let life = |epoch| {
            [
                change(1, "passing", "tripped"),
                change(1, "tripped", "probing"),
                change(epoch, "tripped", "probing"),
            ]
        };
        assert_eq!(breakers(&life(2)), (1, 0));
        assert_eq!(breakers(&life(1)), (1, 1));
    }

    #[test]
    fn a_run_that_compared_nothing_is_no_success() {
        let empty = Judged::default();
        assert_eq!(empty.faults().len(), 6, "{:?}", empty.faults());
    }
}
