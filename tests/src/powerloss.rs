//! `./dev powerloss`: what senders and handlers write down before everything is killed, and the judge of what came back.
//!
//! Owns the load, its books and the comparison; the cut itself is `scripts/powerloss.sh`. The rule it keeps: a line is in the
//! books as soon as the mesh has said so and not before, in a file that is not on the disk that is cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_postgres::Row;
use worker_sdk::{Agent, Context, DispatchId, Failure, InstanceId, Outcome};

use crate::settings::Conditions;
use crate::{PATIENCE, Stage, until};

/// Its quota, 100 a second, is below what it sends.
const QUEUED: &str = "quota-bot";
const CALLER: &str = "powerloss-caller";
const WORKER: &str = "powerloss-worker";
/// Paused by an operator: all that is sent to it waits in its lane when the power goes.
const HELD: &str = "powerloss-held";
/// Events that are sent to the one that is paused, and by the one with a quota.
const EVENTS_HELD: usize = 600;
const EVENTS_QUEUED: usize = 400;
/// Events in one `send_many`: each is accepted as a whole.
const BATCH: usize = 40;
/// Requests that the caller keeps outstanding.
const OUTSTANDING: usize = 8;
/// A cut that left less to compare says little.
const COMPARED_MIN: usize = 1_000;
const WAITING_MIN: usize = 200;
/// Enough for somebody to find out what is wrong.
const EXAMPLES_MAX: usize = 10;

/// What the archive says of each dispatch of these agents: how often it was decided, and how it ended how often.
const DISPATCHES: &str = "\
WITH decided AS (
    SELECT instance, sequence, slot, count(*) AS decisions, count(outcome) AS ended, min(outcome) AS outcome
    FROM dispatch_decision WHERE source = ANY($1) AND copy = 0 GROUP BY instance, sequence, slot
), ends AS (
    SELECT instance, sequence, slot, count(*) AS ended, min(outcome) AS outcome
    FROM dispatch_completion WHERE source = ANY($1) AND copy = 0 AND NOT late GROUP BY instance, sequence, slot
)
SELECT instance, sequence, slot, coalesce(d.decisions, 0) AS decisions,
    coalesce(d.ended, 0) + coalesce(e.ended, 0) AS ends, w.name AS outcome
FROM decided d FULL JOIN ends e USING (instance, sequence, slot)
LEFT JOIN word w ON w.list = 'outcome' AND w.code = coalesce(d.outcome, e.outcome)";

/// The books: one line for each thing that was told or done. Clones write to the same file.
#[derive(Debug, Clone)]
struct Books(Arc<Mutex<File>>);

impl Books {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path);
        Ok(Self(Arc::new(Mutex::new(file.with_context(|| format!("failed to open {}", path.display()))?))))
    }

    /// In the hands of the operating system when this returns.
    fn note(&self, lines: &str) {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(lines.as_bytes()).expect("the disk of the books has room");
    }
}

async fn worker(stage: &Stage, name: &str, books: &Books) -> anyhow::Result<Agent> {
    let books = books.clone();
    let agent = stage.mesh.agent(name).max_concurrent(64).capability("work", move |ctx: Context, n: u64| {
        books.note(&format!("ran {}\n", ctx.id()));
        async move { Ok::<_, Failure>(n + 1) }
    });
    Ok(agent.register().await?)
}

/// Sends until it is killed: events that wait, events beyond a quota, and requests in a closed loop.
///
/// # Errors
/// When the mesh refuses a registration or a first send.
///
/// # Panics
/// When nobody answers an operator.
pub async fn load(path: &Path) -> anyhow::Result<()> {
    let (stage, books) = (Stage::set().await, Books::open(path)?);
    let _workers = (worker(&stage, WORKER, &books).await?, worker(&stage, HELD, &books).await?);
    let queued = stage.mesh.agent(QUEUED).depends_on(WORKER).register().await?;
    let caller = stage.mesh.agent(CALLER).depends_on(WORKER).depends_on(HELD).register().await?;
    stage.operate("pause", HELD).await;
    let mut sending = JoinSet::new();
    sending.spawn(send(caller.clone(), HELD, EVENTS_HELD, books.clone()));
    sending.spawn(send(queued, WORKER, EVENTS_QUEUED, books.clone()));
    for _ in 0..OUTSTANDING {
        sending.spawn(call(caller.clone(), books.clone()));
    }
    while let Some(ended) = sending.join_next().await {
        ended??;
    }
    Ok(())
}

async fn send(sender: Agent, target: &str, events: usize, books: Books) -> anyhow::Result<()> {
    for batch in 0..events / BATCH {
        let payloads = (0..BATCH).map(|n| bytes::Bytes::from((batch * BATCH + n).to_string()));
        let accepted = sender.publish_event(target, "work").send_many(payloads).await?;
        books.note(&accepted.ids().map(|id| format!("accepted {id}\n")).collect::<String>());
    }
    Ok(())
}

async fn call(caller: Agent, books: Books) -> anyhow::Result<()> {
    loop {
        let pending = caller.dispatch(WORKER, "work").budget(PATIENCE).json(&1)?.start().await?;
        let id = pending.id();
        books.note(&format!("accepted {id}\n"));
        let reply = pending.reply().await?;
        books.note(&format!("told {id} {}\n", reply.outcome().name()));
    }
}

/// What the books say.
#[derive(Debug, Default)]
struct Read {
    accepted: BTreeSet<DispatchId>,
    told: BTreeMap<DispatchId, Outcome>,
    ran: BTreeMap<DispatchId, u64>,
}

fn read(path: &Path) -> anyhow::Result<Read> {
    let text = std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
    let mut books = Read::default();
    // The last line may have been cut off with its writer.
    for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        let mut words = line.split(' ');
        let (what, id) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let id: DispatchId = id.parse().with_context(|| format!("the books say {line:?}"))?;
        match (what, words.next()) {
            ("accepted", None) => drop(books.accepted.insert(id)),
            ("told", Some(outcome)) => {
                let outcome = outcome.parse().map_err(|_| anyhow::anyhow!("the books say {line:?}"))?;
                books.told.insert(id, outcome);
            }
            ("ran", None) => *books.ran.entry(id).or_default() += 1,
            (_, _) => anyhow::bail!("the books say {line:?}"),
        }
    }
    Ok(books)
}

/// What was found. For scripts as JSON.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    #[serde(flatten)]
    conditions: Conditions,
    /// Dispatches that a sender saw accepted before the cut.
    accepted: usize,
    /// Of these, how many ended, in the end.
    completed: usize,
    rejected: usize,
    in_flight: usize,
    /// Accepted, and without an outcome.
    lost: usize,
    /// Seen by a handler again after the cut: what had run and was not yet reported.
    ran_again: usize,
    /// Of these, how many had been told an outcome before.
    duplicate_effects: usize,
    audited: usize,
    /// Accepted, and without a record.
    audit_missing: usize,
    quota_exceeded: u64,
    decided_twice: usize,
    ended_twice: usize,
    /// Told an outcome before the cut, and another one is recorded.
    misreported: usize,
    /// Shards whose chain the archiver found broken.
    broken_chains: i64,
    /// Accepted, and not run before the cut.
    waiting_at_cut: usize,
    /// The operator's pause from before the cut was still in force after it.
    pause_kept: bool,
    examples: Vec<String>,
    /// What must hold and did not; empty where all is well.
    faults: Vec<String>,
}

/// Lets what came back run to its end, and compares it with the books.
///
/// # Errors
/// When the mesh does not come to rest, or cannot be asked. What is lost is in the report.
///
/// # Panics
/// When the trail is not archived in time.
pub async fn judge(path: &Path) -> anyhow::Result<Report> {
    let before = read(path)?;
    let (stage, books) = (Stage::set().await, Books::open(path)?);
    let _workers = (worker(&stage, WORKER, &books).await?, worker(&stage, HELD, &books).await?);
    let paused = stage.view(HELD).await.paused;
    stage.operate("resume", HELD).await;
    at_rest(&stage, &before.accepted).await?;
    stage.archived().await;
    let records = archived(&stage).await?;
    let after = read(path)?;
    let mut report = Report {
        conditions: Conditions::of("powerloss", &stage.settings),
        accepted: before.accepted.len(),
        waiting_at_cut: before.accepted.iter().filter(|id| !before.ran.contains_key(id)).count(),
        pause_kept: paused,
        ..Report::default()
    };
    let stopped = "SELECT count(*) FROM archive_cursor WHERE stopped IS NOT NULL";
    report.broken_chains = stage.number(stopped, &[]).await;
    let limit = |agent: &str| (agent == QUEUED).then_some(governance::policy::Rate { per_s: 100, burst: 10 });
    report.quota_exceeded = stage.archive.quota_exceeded(stage.since, limit).await?.exceeded;
    report.compare(&before, &after, &records);
    report.find_faults();
    Ok(report)
}

/// Waits until each accepted dispatch has an outcome, or nothing changes any more.
async fn at_rest(stage: &Stage, accepted: &BTreeSet<DispatchId>) -> anyhow::Result<()> {
    let mut last = (usize::MAX, std::time::Instant::now());
    loop {
        stage.archived().await;
        let records = archived(stage).await?;
        let open = accepted.iter().filter(|id| records.get(id).is_none_or(|r| r.ends == 0)).count();
        if open != last.0 {
            last = (open, std::time::Instant::now());
        }
        if open == 0 || last.1.elapsed() > PATIENCE {
            return Ok(());
        }
        let now = std::time::Instant::now();
        until("a moment has passed", PATIENCE, || async { now.elapsed().as_millis() >= 500 }).await;
    }
}

/// What the archive has of one dispatch.
#[derive(Debug)]
struct Record {
    decisions: i64,
    ends: i64,
    outcome: Option<Outcome>,
}

async fn archived(stage: &Stage) -> anyhow::Result<BTreeMap<DispatchId, Record>> {
    let client = audit_archiver::connect(&stage.settings.postgres_url, "powerloss").await?;
    let record = |row: &Row| -> anyhow::Result<(DispatchId, Record)> {
        let id = DispatchId {
            instance: InstanceId(row.get::<_, i64>("instance").cast_unsigned()),
            sequence: row.get::<_, i64>("sequence").cast_unsigned(),
            slot: u16::try_from(row.get::<_, i32>("slot"))?,
            copy: 0,
        };
        let outcome = row.get::<_, Option<&str>>("outcome").and_then(|name| name.parse().ok());
        Ok((id, Record { decisions: row.get("decisions"), ends: row.get("ends"), outcome }))
    };
    client.query(DISPATCHES, &[&vec![QUEUED, CALLER]]).await?.iter().map(record).collect()
}

impl Report {
    fn compare(&mut self, before: &Read, after: &Read, records: &BTreeMap<DispatchId, Record>) {
        for id in &before.accepted {
            let Some(record) = records.get(id) else {
                self.audit_missing += 1;
                self.lost += 1;
                self.example(*id, "accepted, and not in the archive");
                continue;
            };
            self.audited += 1;
            match record.outcome {
                None => {
                    self.lost += 1;
                    self.example(*id, "accepted, recorded, and without an outcome");
                }
                Some(Outcome::Rejected) => self.rejected += 1,
                Some(_) => self.completed += 1,
            }
            if before.told.get(id).is_some_and(|told| record.outcome != Some(*told)) {
                self.misreported += 1;
                self.example(*id, &format!("told {:?}, recorded {:?}", before.told[id], record.outcome));
            }
        }
        for record in records.values() {
            self.in_flight += usize::from(record.ends == 0);
            self.decided_twice += usize::from(record.decisions != 1);
            self.ended_twice += usize::from(record.ends > 1);
        }
        for (id, ran) in &before.ran {
            let again = after.ran.get(id).is_some_and(|times| times > ran);
            self.ran_again += usize::from(again);
            if again && before.told.contains_key(id) {
                self.duplicate_effects += 1;
                self.example(*id, "told before the cut, and run again after it");
            }
        }
    }

    fn example(&mut self, id: DispatchId, what: &str) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(format!("{id}: {what}"));
        }
    }

    fn find_faults(&mut self) {
        for (what, count) in [
            ("accepted dispatches have no outcome", self.lost),
            ("accepted dispatches have no record", self.audit_missing),
            ("dispatches were decided and never ended", self.in_flight),
            ("dispatches were not decided once", self.decided_twice),
            ("dispatches have more than one outcome", self.ended_twice),
            ("senders were told another outcome than is recorded", self.misreported),
            ("dispatches had been told their outcome and ran again", self.duplicate_effects),
            ("shards have a broken chain", usize::try_from(self.broken_chains).unwrap_or(usize::MAX)),
            (
                "seconds held more than rate and burst",
                usize::try_from(self.quota_exceeded).unwrap_or(usize::MAX),
            ),
        ] {
            if count > 0 {
                self.faults.push(format!("{count} {what}"));
            }
        }
        if self.accepted < COMPARED_MIN {
            self.faults.push(format!("too little was compared: {} dispatches", self.accepted));
        }
        if self.waiting_at_cut < WAITING_MIN {
            self.faults.push(format!("too little waited when the power went: {}", self.waiting_at_cut));
        }
        if !self.pause_kept {
            self.faults.push("an operator's pause is forgotten".to_owned());
        }
    }

    /// Whether everything that must hold did.
    #[must_use]
    pub const fn holds(&self) -> bool {
        self.faults.is_empty()
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or_default();
        let fields = value.as_object().into_iter().flatten().filter(|(_, value)| !value.is_array());
        let mut text: String = fields
            .map(|(name, value)| format!("{name:<24} {}\n", value.to_string().trim_matches('"')))
            .collect();
        text.extend(self.examples.iter().map(|example| format!("for example: {example}\n")));
        text.extend(self.faults.iter().map(|fault| format!("FAILED: {fault}\n")));
        if self.holds() {
            text.push_str("everything that was accepted came back\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(sequence: u64) -> DispatchId {
        DispatchId { instance: InstanceId(7), sequence, slot: 0, copy: 0 }
    }

    #[test]
    fn what_did_not_come_back_is_found() {
        let before = Read {
            accepted: [1, 2, 3].map(id).into(),
            told: [(id(1), Outcome::Success)].into(),
            ran: [(id(1), 1)].into(),
        };
        let after = Read { ran: [(id(1), 2)].into(), ..Read::default() };
        let ended =
            |outcome: Option<Outcome>| Record { decisions: 1, ends: i64::from(outcome.is_some()), outcome };
        let records = [(id(1), ended(Some(Outcome::Timeout))), (id(2), ended(None))].into();
        let mut report = Report::default();
        report.compare(&before, &after, &records);
        assert_eq!((report.lost, report.audit_missing, report.in_flight), (2, 1, 1));
        assert_eq!((report.misreported, report.ran_again, report.duplicate_effects), (1, 1, 1));
        report.find_faults();
        assert!(!report.holds());
    }

    #[test]
    fn a_line_that_was_cut_off_is_not_read() {
        let path = std::env::temp_dir().join(format!("books-{}", std::process::id()));
        std::fs::write(&path, format!("accepted {}\nran {}\naccepted d-00", id(1), id(1)))
            .expect("a temporary file");
        let books = read(&path).expect("the rest can be read");
        std::fs::remove_file(&path).expect("it is there");
        assert_eq!((books.accepted.len(), books.ran[&id(1)]), (1, 1));
    }
}
