//! The conservation checker: what senders were told, what handlers did and what PostgreSQL keeps, compared by dispatch id.
//!
//! Owns the comparison and its figures; who sent, what was done to the mesh and which repeated effects that excuses is its
//! caller's. The rule it keeps: nothing is copied from one side to another, and how much was compared is part of the verdict.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::Context as _;
use audit_archiver::chain;
use governance::{DispatchId, InstanceId, Outcome, SHARDS, Timestamp};
use protocol::redis::{EntryId, Head};
use serde::{Serialize, Serializer};
use tokio_postgres::{Client, Row};

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

/// The blocks of one shard in the order of its chain.
const BLOCKS: &str =
    "SELECT epoch, sequence, data FROM audit_block WHERE shard = $1 ORDER BY epoch, sequence";

/// Enough for somebody to find out what is wrong.
const FINDINGS_MAX: usize = 40;

/// How each accepted dispatch ended, as its sender was told; none where it was told nothing.
pub type Told = BTreeMap<DispatchId, Option<Outcome>>;

/// One run of a handler, as the handler noted it before it answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Effect {
    /// Which attempt its context said this is.
    pub attempt: u8,
    /// When the handler began.
    #[serde(serialize_with = "seconds")]
    pub at: Timestamp,
    /// The process that ran it, and its id in the system: `crew-0`, 4711.
    pub process: String,
    /// See above.
    pub pid: u32,
    /// The agent whose handler it was.
    pub agent: String,
    /// Whether the handler failed on purpose, so that an event comes again.
    pub failed: bool,
}

/// In seconds since the epoch, as everything that people read side by side.
fn seconds<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(at.0 as f64 / 1e9)
}

/// All runs of each dispatch.
pub type Effects = HashMap<DispatchId, Vec<Effect>>;

/// What the archive has of one dispatch.
#[derive(Debug, Clone)]
pub struct Archived {
    /// How many decisions there are about it.
    pub decisions: i64,
    /// How many outcomes.
    pub ends: i64,
    /// The outcome; none where it has not ended.
    pub outcome: Option<Outcome>,
    /// Whether it went in as P0.
    pub is_p0: bool,
    /// Whether it was admitted.
    pub admitted: bool,
    /// Who sent it.
    pub source: String,
    /// Whom it went to; empty for nobody.
    pub target: String,
    /// When its lane had it.
    pub accepted: Timestamp,
    /// How long it waited there.
    pub lane: Duration,
}

/// What the archive has of each.
pub type Records = HashMap<DispatchId, Archived>;

/// Something that must not be.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// The dispatch.
    pub id: String,
    /// What is wrong with it.
    pub what: String,
}

/// An effect that came twice, and what of promise 2 excuses it.
#[derive(Debug, Clone, Serialize)]
pub struct Excused {
    /// The dispatch.
    pub id: String,
    /// The run before, and the one that repeats it.
    pub runs: [Effect; 2],
    /// What was done to whom.
    pub cause: String,
}

/// The figures, under the names of all reports.
#[derive(Debug, Default, Serialize)]
pub struct Books {
    /// Dispatches whose sender was told that the mesh has them.
    pub accepted: u64,
    /// Recorded outcomes other than rejected.
    pub completed: u64,
    /// Recorded refusals.
    pub rejected: u64,
    /// Decided, and without an outcome.
    pub in_flight: u64,
    /// Accepted, and without an outcome.
    pub lost: u64,
    /// Repeated effects that nothing excuses.
    pub duplicate_effects: u64,
    /// Repeated effects within the exceptions of promise 2; listed one by one.
    pub excused_duplicates: u64,
    /// Attempts at events whose handler had failed: promised, and no duplicates.
    pub retried_effects: u64,
    /// Accepted, and in the archive.
    pub audited: u64,
    /// Accepted, and not in the archive.
    pub audit_missing: u64,
    /// Dispatches with more than one decision, or none.
    pub decided_twice: u64,
    /// Dispatches with more than one outcome.
    pub ended_twice: u64,
    /// Whose sender was told another outcome than the archive has.
    pub misreported: u64,
    /// Recorded successes that no handler saw.
    pub unseen: u64,
    /// Runs of what the archive does not know, or did not admit.
    pub unrecorded_effects: u64,
    /// Outcomes that senders were told, and that were held against the archive.
    pub told: u64,
    /// Runs of handlers that were held against the archive.
    pub effects: u64,
    /// Dispatches in the archive, those that topics made included.
    pub compared: u64,
    /// Blocks whose place in their chain was checked.
    pub blocks: u64,
    /// Shards whose chain is not whole.
    pub chains_broken: u64,
    /// What is wrong, by id.
    #[serde(skip)]
    pub findings: Vec<Finding>,
    /// The exceptions of promise 2, one by one.
    pub excused: Vec<Excused>,
}

impl Books {
    /// What is wrong, in words; nothing where all holds.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        [
            ("accepted dispatches are not in the archive", self.audit_missing),
            ("accepted dispatches have no outcome", self.lost),
            ("dispatches were decided and never ended", self.in_flight),
            ("dispatches were not decided exactly once", self.decided_twice),
            ("dispatches have more than one outcome", self.ended_twice),
            ("senders were told another outcome than the archive has", self.misreported),
            ("effects came twice and nothing excuses it", self.duplicate_effects),
            ("successes were seen by no handler", self.unseen),
            ("effects are of dispatches that nobody admitted", self.unrecorded_effects),
            ("shards have a chain that is not whole", self.chains_broken),
        ]
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(what, count)| format!("{count} {what}"))
        .collect()
    }

    /// Notes what is wrong with a dispatch, as long as there is room.
    pub fn find(&mut self, id: impl ToString, what: impl Into<String>) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding { id: id.to_string(), what: what.into() });
        }
    }
}

/// Compares the three sides. `excuse` says what excuses that the second run follows the first; `ours` whether the handlers of
/// an agent note their effects.
#[must_use]
pub fn compare(
    told: &Told,
    effects: &Effects,
    records: &Records,
    ours: impl Fn(&str) -> bool,
    excuse: impl Fn(&Effect, &Effect) -> Option<String>,
) -> Books {
    let mut books = Books { accepted: told.len() as u64, ..Books::default() };
    compare_senders(&mut books, told, records);
    compare_records(&mut books, effects, records, ours);
    // In the order of ids, so that the same run reads the same.
    let mut ids: Vec<&DispatchId> = effects.keys().collect();
    ids.sort_unstable();
    for id in ids {
        compare_effects(&mut books, *id, &effects[id], records.get(id), &excuse);
    }
    books
}

/// What senders were told against what is recorded.
fn compare_senders(books: &mut Books, told: &Told, records: &Records) {
    for (id, outcome) in told {
        books.told += u64::from(outcome.is_some());
        let Some(record) = records.get(id) else {
            books.audit_missing += 1;
            books.lost += 1;
            books.find(id, format!("accepted, told {outcome:?}, and not in the archive"));
            continue;
        };
        books.audited += 1;
        if record.ends == 0 {
            books.lost += 1;
            books.find(id, format!("accepted, told {outcome:?}, and without an outcome"));
        }
        if outcome.is_some() && record.outcome != *outcome {
            books.misreported += 1;
            books.find(id, format!("told {outcome:?}, recorded {:?}", record.outcome));
        }
    }
}

/// What must hold of each record, and of the handlers' side.
fn compare_records(books: &mut Books, effects: &Effects, records: &Records, ours: impl Fn(&str) -> bool) {
    books.compared = records.len() as u64;
    for (id, record) in records {
        match record.outcome {
            None => books.in_flight += 1,
            Some(Outcome::Rejected) => books.rejected += 1,
            Some(_) => books.completed += 1,
        }
        books.decided_twice += u64::from(record.decisions != 1);
        books.ended_twice += u64::from(record.ends > 1);
        if record.decisions != 1 || record.ends > 1 {
            books.find(id, format!("{} decisions, {} ends", record.decisions, record.ends));
        } else if record.outcome.is_none() {
            books.find(
                id,
                format!("from {} to {}: decided, and without an outcome", record.source, record.target),
            );
        }
        let ran = record.admitted && record.outcome == Some(Outcome::Success) && ours(&record.target);
        if ran && !effects.contains_key(id) {
            books.unseen += 1;
            books.find(id, "a success that no handler saw");
        }
    }
}

/// What must hold of the runs of one dispatch.
fn compare_effects(
    books: &mut Books,
    id: DispatchId,
    runs: &[Effect],
    record: Option<&Archived>,
    excuse: &impl Fn(&Effect, &Effect) -> Option<String>,
) {
    books.effects += runs.len() as u64;
    if !record.is_some_and(|record| record.admitted) {
        books.unrecorded_effects += 1;
        books.find(id, format!("{} ran what the archive does not have as admitted", runs[0].agent));
    }
    let mut runs: Vec<&Effect> = runs.iter().collect();
    runs.sort_by_key(|run| run.at);
    for pair in runs.windows(2) {
        let [former, latter] = [pair[0], pair[1]];
        if former.failed && latter.attempt > former.attempt {
            books.retried_effects += 1;
        } else if let Some(cause) = excuse(former, latter) {
            books.excused_duplicates += 1;
            let runs = [former.clone(), latter.clone()];
            books.excused.push(Excused { id: id.to_string(), runs, cause });
        } else {
            books.duplicate_effects += 1;
            let seconds =
                |run: &Effect| format!("{} {} at {:.3}", run.process, run.pid, run.at.0 as f64 / 1e9);
            books.find(id, format!("ran twice: in {}, and again in {}", seconds(former), seconds(latter)));
        }
    }
}

/// Reads what the archive has of all that was decided or ended since a moment.
///
/// # Errors
/// When PostgreSQL does not answer.
pub async fn records(client: &Client, since: Timestamp) -> anyhow::Result<Records> {
    let mut all = HashMap::new();
    for row in
        client.query(DISPATCHES, &[&(since.0 as f64 / 1e9)]).await.context("failed to read dispatches")?
    {
        let id = DispatchId {
            instance: InstanceId(row.get::<_, i64>("instance").cast_unsigned()),
            sequence: row.get::<_, i64>("sequence").cast_unsigned(),
            slot: u16::try_from(row.get::<_, i32>("slot"))?,
            copy: u16::try_from(row.get::<_, i32>("copy"))?,
        };
        all.insert(id, archived(&row));
    }
    Ok(all)
}

fn archived(row: &Row) -> Archived {
    let micros = |column| u64::try_from(row.get::<_, i64>(column)).unwrap_or(0);
    Archived {
        decisions: row.get("decisions"),
        ends: row.get("ends"),
        outcome: row.get::<_, Option<&str>>("outcome").and_then(|name| name.parse().ok()),
        is_p0: row.get::<_, i16>("class") == 0,
        admitted: row.get("admitted"),
        source: row.get("source"),
        target: row.get("target"),
        accepted: Timestamp(micros("accepted_us").saturating_mul(1_000)),
        lane: Duration::from_micros(micros("lane_us")),
    }
}

/// Walks the blocks of every shard: dense, whole, each with the hash of the one before, up to where the archive says it is.
///
/// # Errors
/// When PostgreSQL does not answer.
pub async fn walk_chains(client: &Client, books: &mut Books) -> anyhow::Result<()> {
    // Shards may still move, and their markers be archived: blocks and cursors are read as of one moment.
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    for shard in 0..SHARDS {
        let key = i16::from(shard);
        let mut head = Head::default();
        let mut broken = None;
        for row in client.query(BLOCKS, &[&key]).await.context("failed to read blocks")? {
            let number = |column| row.get::<_, i64>(column).cast_unsigned();
            let id = EntryId { epoch: number("epoch"), sequence: number("sequence") };
            match chain::check(shard, head, id, row.get("data")) {
                Ok(checked) => head = checked.head,
                Err(reason) => {
                    broken = Some(reason.to_string());
                    break;
                }
            }
            books.blocks += 1;
        }
        let cursor = "SELECT epoch, sequence, hash, stopped FROM archive_cursor WHERE shard = $1";
        let cursor = client.query_one(cursor, &[&key]).await.context("failed to read a cursor")?;
        let number = |column| cursor.get::<_, i64>(column).cast_unsigned();
        let end = EntryId { epoch: number("epoch"), sequence: number("sequence") };
        if broken.is_none() && (end != head.id || cursor.get::<_, &[u8]>("hash") != head.hash) {
            broken = Some(format!("the archive says it ends at {end}, and its blocks end at {}", head.id));
        }
        if let Some(reason) = broken.or_else(|| cursor.get("stopped")) {
            books.chains_broken += 1;
            books.find(format!("shard {shard}"), reason);
        }
    }
    Ok(client.batch_execute("COMMIT").await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(sequence: u64) -> DispatchId {
        DispatchId { instance: InstanceId(7), sequence, slot: 0, copy: 0 }
    }

    fn record(outcome: Option<Outcome>) -> Archived {
        Archived {
            decisions: 1,
            ends: i64::from(outcome.is_some()),
            outcome,
            is_p0: false,
            admitted: true,
            source: "sender".to_owned(),
            target: "worker".to_owned(),
            accepted: Timestamp::from_millis(1),
            lane: Duration::ZERO,
        }
    }

    fn run(at: u64, attempt: u8, failed: bool) -> Effect {
        let (process, agent) = ("crew-0".to_owned(), "worker".to_owned());
        Effect { attempt, at: Timestamp::from_millis(at), process, pid: 1, agent, failed }
    }

    fn judged(told: &Told, effects: &Effects, records: &Records) -> Books {
        compare(told, effects, records, |agent| agent == "worker", |_, _| None)
    }

    #[test]
    fn what_three_sides_agree_on_holds() {
        let told = Told::from([(id(1), Some(Outcome::Success))]);
        let effects = Effects::from([(id(1), vec![run(2, 1, false)])]);
        let records = Records::from([(id(1), record(Some(Outcome::Success)))]);
        let books = judged(&told, &effects, &records);
        assert!(books.faults().is_empty(), "{:?}", books.findings);
        assert_eq!((books.accepted, books.audited, books.effects, books.told), (1, 1, 1, 1));
    }

    #[test]
    fn each_side_that_differs_is_found() {
        let good = (
            Told::from([(id(1), Some(Outcome::Success))]),
            Effects::from([(id(1), vec![run(2, 1, false)])]),
            Records::from([(id(1), record(Some(Outcome::Success)))]),
        );
        let silent = judged(&good.0, &Effects::new(), &good.2);
        assert_eq!(silent.unseen, 1);
        let lost = judged(&good.0, &Effects::new(), &Records::new());
        assert_eq!((lost.lost, lost.audit_missing), (1, 1));
        assert_eq!(judged(&good.0, &good.1, &Records::new()).unrecorded_effects, 1);
        let open = Records::from([(id(1), record(None))]);
        let open = judged(&good.0, &good.1, &open);
        assert_eq!((open.in_flight, open.lost, open.misreported), (1, 1, 1));
        let twice =
            Records::from([(id(1), Archived { decisions: 2, ends: 2, ..record(Some(Outcome::Success)) })]);
        let twice = judged(&good.0, &good.1, &twice);
        assert_eq!((twice.decided_twice, twice.ended_twice), (1, 1));
        assert_eq!(twice.faults().len(), 2);
    }

    #[test]
    fn a_repeated_effect_needs_a_failure_before_it_or_an_excuse() {
        let records = Records::from([(id(1), record(Some(Outcome::Success)))]);
        let effects = Effects::from([(id(1), vec![run(9, 2, false), run(2, 1, false)])]);
        assert_eq!(judged(&Told::new(), &effects, &records).duplicate_effects, 1);
        let excused = compare(
            &Told::new(),
            &effects,
            &records,
            |_| true,
            |former, latter| Some(format!("killed between {} and {}", former.attempt, latter.attempt)),
        );
        assert_eq!((excused.duplicate_effects, excused.excused_duplicates), (0, 1));
        assert_eq!(excused.excused[0].cause, "killed between 1 and 2");
        let retried = Effects::from([(id(1), vec![run(2, 1, true), run(9, 2, false)])]);
        let retried = judged(&Told::new(), &retried, &records);
        assert_eq!((retried.duplicate_effects, retried.retried_effects), (0, 1));
    }
}
