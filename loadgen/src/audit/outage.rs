//! The archive's catching up: PostgreSQL is killed under load, the trail piles up in Redis, PostgreSQL comes back, and the
//! archiver catches up while dispatches go on.
//!
//! The rule it keeps: what was archived is counted in PostgreSQL's own rows, and time runs from the moment at which
//! PostgreSQL answers again to the moment at which everything that piled up can be queried.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use audit_archiver::archive::{Archive, Cursor};
use bytes::Bytes;
use protocol::audit::Block;
use serde::Serialize;
use tokio::task::JoinSet;

use super::stack::Stack;
use super::{CATCH_UP, tenths};
use crate::args::{Args, Audit};
use crate::books::Accepted;
use crate::mesh::{self, CAPABILITY, OCTETS, Pair};
use crate::output;
use crate::payload::Payloads;
use crate::throughput;

const POSTGRES: &str = "postgres";
/// The load that piles the trail up goes on in steps of this many seconds.
const STEP_SECONDS: u64 = 4;
/// How often live traffic sends what is due.
const LIVE_STEP: Duration = Duration::from_millis(50);
/// How often the cursors are looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What catching up showed.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Figures {
    /// Records archived per second, from the first commit that was seen to the archive's being level. A record is a dispatch with
    /// its completion; what that first commit held is not counted.
    archived_records_per_s: f64,
    /// The rows of the archive that took: a run of dispatches is one, and a run of completions.
    archived_rows_per_s: f64,
    /// Dispatches in a row of decisions.
    dispatches_per_row: f64,
    /// Completions in a row of completions.
    completions_per_row: f64,
    /// Completions in a row of an audit block, where those of other times are other rows.
    completions_per_block_row: f64,
    /// Dispatches that had piled up when PostgreSQL was back.
    piled_up: u64,
    /// Dispatches that were archived in that time: those, and what came meanwhile.
    caught_up: u64,
    /// From PostgreSQL's return to the archiver's first commit.
    reconnected_after_s: f64,
    /// From PostgreSQL's return to the archive's being level with what had piled up.
    caught_up_after_s: f64,
    /// Dispatches per second that handlers ran meanwhile.
    live_per_s: f64,
    /// What handlers ran per second while PostgreSQL was away.
    outage_per_s: f64,
}

/// What the outage leaves for the books.
pub(super) struct Outage {
    pub(super) figures: Figures,
    pub(super) accepted: Accepted,
    pub(super) pairs: Vec<Pair>,
}

pub(super) async fn run(
    scenario: &Audit,
    args: &Args,
    stack: &Stack,
    archive: &Archive,
) -> anyhow::Result<Outage> {
    let before = held(args).await?;
    let pairs = mesh::pairs(&args.nats_url, "lg", scenario.agents, 1_024).await?;
    stack.kill(POSTGRES).await?;
    let mut accepted = Accepted::default();
    let (mut rates, mut piled_up) = (Vec::new(), 0);
    while piled_up < scenario.pile {
        let (more, per_s) = throughput::load(&scenario.load(STEP_SECONDS), &pairs).await?;
        accepted.merge(more);
        rates.push(per_s);
        piled_up = accepted.dispatches();
    }
    stack.start(POSTGRES).await?;
    let stop = AtomicBool::new(false);
    let live = live(scenario, &pairs, &stop);
    let (caught, live) = tokio::join!(catch_up(scenario, args, archive, &pairs, &stop), live);
    let (caught, live) = (caught?, live?);
    accepted.merge(live);
    throughput::drain(&pairs, accepted.dispatches()).await;
    mesh::stop(&pairs).await?;

    let seconds = caught.level.saturating_sub(caught.first).as_secs_f64().max(f64::EPSILON);
    let of = caught.held.since(before);
    let timed = caught.held.since(caught.at_first);
    let each = |records: u64, rows: u64| tenths(records as f64 / rows.max(1) as f64);
    let figures = Figures {
        // As many as have both: at any moment, of what comes later, one may be ahead of the other.
        archived_records_per_s: (timed.dispatches.min(timed.completions) as f64 / seconds).round(),
        archived_rows_per_s: ((timed.decision_rows + timed.completion_rows) as f64 / seconds).round(),
        dispatches_per_row: each(of.dispatches, of.decision_rows),
        completions_per_row: each(of.completions, of.completion_rows),
        completions_per_block_row: tenths(per_block_row(args).await?),
        piled_up,
        caught_up: of.dispatches,
        reconnected_after_s: tenths(caught.first.as_secs_f64()),
        caught_up_after_s: tenths(caught.level.as_secs_f64()),
        live_per_s: (caught.ran as f64 / caught.level.as_secs_f64().max(f64::EPSILON)).round(),
        outage_per_s: super::median(&rates).round(),
    };
    Ok(Outage { figures, accepted, pairs })
}

/// When the archiver did what, from PostgreSQL's return on.
struct Caught {
    first: Duration,
    level: Duration,
    /// What the archive held at these moments.
    at_first: Held,
    held: Held,
    /// What handlers ran meanwhile.
    ran: u64,
}

async fn catch_up(
    scenario: &Audit,
    args: &Args,
    archive: &Archive,
    pairs: &[Pair],
    stop: &AtomicBool,
) -> anyhow::Result<Caught> {
    let bar = output::spinner("the archive catches up");
    let done = || pairs.iter().map(|p| p.effects.done()).sum::<u64>();
    let (began, ran) = (Instant::now(), done());
    // Live traffic stops when the archive is level, however this ends.
    let caught = async {
        let piled = archive.heads(&scenario.redis_url).await?;
        let (stood, before) = (archive.cursors().await?, held(args).await?);
        let mut first = None;
        loop {
            let cursors = archive.cursors().await?;
            if first.is_none() && cursors != stood {
                // The moment first: what is archived while the rows are counted is left out, and its time is not.
                first = Some((began.elapsed(), held(args).await?));
            }
            if cursors.iter().all(|cursor| is_level(cursor, &piled)) {
                let level = began.elapsed();
                let ran = done() - ran;
                let held = held(args).await?;
                let (first, at_first) = first.unwrap_or((Duration::ZERO, before));
                return Ok(Caught { first, level, at_first, held, ran });
            }
            anyhow::ensure!(began.elapsed() < CATCH_UP, "the archive does not catch up");
            tokio::time::sleep(LOOK).await;
        }
    }
    .await;
    stop.store(true, Ordering::Relaxed);
    bar.finish_and_clear();
    caught
}

fn is_level(cursor: &Cursor, heads: &std::collections::BTreeMap<u8, (u64, u64)>) -> bool {
    heads.get(&cursor.shard).is_none_or(|head| (cursor.epoch, cursor.sequence) >= *head)
}

/// What the archive holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    dispatches: u64,
    decision_rows: u64,
    completions: u64,
    completion_rows: u64,
}

impl Held {
    const fn since(self, before: Self) -> Self {
        Self {
            dispatches: self.dispatches - before.dispatches,
            decision_rows: self.decision_rows - before.decision_rows,
            completions: self.completions - before.completions,
            completion_rows: self.completion_rows - before.completion_rows,
        }
    }
}

async fn held(args: &Args) -> anyhow::Result<Held> {
    let client = audit_archiver::connect(&args.postgres_url, "loadgen").await.context("the archive")?;
    let query =
        "SELECT * FROM (SELECT coalesce(sum(count), 0)::bigint, count(*) FROM decision_run) decisions,
            (SELECT coalesce(sum(count), 0)::bigint, count(*) FROM completion_run) completions";
    let row = client.query_one(query, &[]).await?;
    let number = |column: usize| row.get::<_, i64>(column).cast_unsigned();
    Ok(Held {
        dispatches: number(0),
        decision_rows: number(1),
        completions: number(2),
        completion_rows: number(3),
    })
}

/// How many completions a row of a block holds, in the newest blocks that have many.
async fn per_block_row(args: &Args) -> anyhow::Result<f64> {
    let client = audit_archiver::connect(&args.postgres_url, "loadgen").await.context("the archive")?;
    let query = "SELECT data FROM audit_block WHERE records > 1000 ORDER BY at DESC LIMIT 50";
    let (mut completions, mut rows) = (0_u64, 0_u64);
    for row in client.query(query, &[]).await? {
        let block = Block::decode(row.get(0)).context("a block of the archive")?;
        rows += block.completions.len() as u64;
        completions += block.completions.iter().map(|row| u64::from(row.count)).sum::<u64>();
    }
    Ok(completions as f64 / rows.max(1) as f64)
}

/// Dispatches at a steady rate until told to stop.
async fn live(scenario: &Audit, pairs: &[Pair], stop: &AtomicBool) -> anyhow::Result<Accepted> {
    let mut accepted = Accepted::default();
    let payloads = Payloads::new(scenario.payload as usize);
    let steps = 1_000 / LIVE_STEP.as_millis() as u32;
    let batch = (scenario.live / steps / scenario.agents).max(u32::from(scenario.live > 0));
    let mut tick = tokio::time::interval(LIVE_STEP);
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        let mut sending = JoinSet::new();
        for pair in pairs.iter().filter(|_| batch > 0) {
            let event = pair.source.publish_event(pair.target.name(), CAPABILITY).bytes(Bytes::new(), OCTETS);
            let batch: Vec<Bytes> = (0..batch).map(|_| payloads.next()).collect();
            sending.spawn(event.send_many(batch));
        }
        while let Some(sent) = sending.join_next().await {
            let many = sent.context("a sender panicked")?.context("failed to send")?;
            for (first, count) in many.runs() {
                accepted.add(*first, (*count).into());
            }
        }
    }
    Ok(accepted)
}
