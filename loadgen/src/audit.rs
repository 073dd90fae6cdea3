//! `audit`: what the audit costs in throughput and in bytes, and how fast the archive catches up after an outage.
//!
//! The same load is measured in turns, three ways: without an audit, with the trail appended to Redis and the archiver held,
//! and with the archiver at work on the same cores. Turns go there and back, so that whatever drifts hits all ways alike; an
//! overhead is the median of what each round shows for itself, since neighbours share what else the machine does. The rule it keeps: what is measured without an audit is never part of the books, and said apart.

mod outage;
mod stack;

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use audit_archiver::archive::Archive;
use serde::Serialize;

use crate::args::{Args, Audit};
use crate::books::{self, Accepted};
use crate::mesh::{self, Pair};
use crate::output;
use crate::report::Common;
use crate::throughput;
use stack::Stack;

/// How long the archive may take to catch up with whatever was measured.
const CATCH_UP: Duration = Duration::from_secs(600);

/// How a turn is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Nothing is recorded.
    Unrecorded,
    /// The trail is appended to Redis; the archiver stands still.
    Trail,
    /// The archiver moves it to PostgreSQL meanwhile.
    Archiving,
}

/// What one turn showed.
struct Turn {
    per_s: f64,
    accepted: Accepted,
    pairs: Vec<Pair>,
    /// Bytes by which Redis grew.
    grown: u64,
}

/// Everything that was measured.
#[derive(Default)]
struct Measured {
    unrecorded: Vec<f64>,
    trail: Vec<f64>,
    archiving: Vec<f64>,
    unrecorded_dispatches: u64,
    unrecorded_missed: u64,
    accepted: Accepted,
    pairs: Vec<Pair>,
    /// Bytes and dispatches of the turns in which nothing was trimmed or read meanwhile.
    trail_bytes: u64,
    trail_dispatches: u64,
}

#[derive(Serialize)]
struct Figures {
    payload_bytes: u32,
    agents: u32,
    rounds: u32,
    seconds: u64,
    /// By how much the trail slows the mesh, the archiver being held: the median of the rounds.
    overhead_pct: f64,
    overhead_rounds_pct: Vec<f64>,
    /// By how much trail and archiver slow it, on the cores that all share.
    overhead_archiving_pct: f64,
    unrecorded_per_s: f64,
    recorded_per_s: f64,
    archiving_per_s: f64,
    unrecorded_turns: Vec<f64>,
    recorded_turns: Vec<f64>,
    archiving_turns: Vec<f64>,
    /// Not in the books, for nothing tells of them but senders and handlers.
    unrecorded_dispatches: u64,
    /// Of these, accepted and not run.
    unrecorded_missed: u64,
    bytes_per_record_redis: f64,
    bytes_per_record_postgres: f64,
    #[serde(flatten)]
    outage: outage::Figures,
}

/// Runs the scenario; whether the books balance.
pub(crate) async fn run(scenario: &Audit, args: &Args) -> anyhow::Result<bool> {
    ensure!(scenario.live == 0 || scenario.live >= scenario.agents, "--live is 0, or at least --agents");
    let mut stack = Stack::open(scenario, args).await?;
    let archive = Archive::connect(&args.postgres_url).await.context("the archive does not answer")?;
    let since = SystemTime::now();
    let mut measured = Measured::default();
    for round in 0..scenario.rounds {
        let mut ways = [Way::Unrecorded, Way::Trail, Way::Archiving];
        if round % 2 == 1 {
            ways.reverse();
        }
        for way in ways {
            let turn = turn(scenario, args, &mut stack, &archive, way).await?;
            measured.add(way, turn);
        }
    }
    stack.record(true).await?;
    stack.archive(true).await?;
    archive.until_archived(&scenario.redis_url, CATCH_UP).await.context("the archive does not catch up")?;
    let storage = archive.storage().await?;
    let postgres_bytes = (storage.block_bytes + storage.row_bytes) as f64;
    let per_record_postgres = postgres_bytes / (measured.accepted.dispatches().max(1) as f64);

    let mut out = outage::run(scenario, args, &stack, &archive).await?;
    measured.accepted.merge(std::mem::take(&mut out.accepted));
    measured.pairs.append(&mut out.pairs);
    let books = books::close(&args.postgres_url, since, &measured.accepted, &measured.pairs).await?;
    let mut report = serde_json::to_value(measured.figures(scenario, per_record_postgres, out.figures))?;
    output::add(&mut report, &books)?;
    output::finish(args, &Common::gather("audit", args), report)?;
    Ok(books.balance() && measured.unrecorded_missed == 0)
}

/// Measures one turn with agents of its own.
async fn turn(
    scenario: &Audit,
    args: &Args,
    stack: &mut Stack,
    archive: &Archive,
    way: Way,
) -> anyhow::Result<Turn> {
    stack.record(way != Way::Unrecorded).await?;
    if way == Way::Archiving {
        stack.archive(true).await?;
        // What other turns left is archived first, so that the archiver does the work of this turn and no other.
        archive
            .until_archived(&scenario.redis_url, CATCH_UP)
            .await
            .context("the archive does not catch up")?;
    } else {
        stack.archive(false).await?;
    }
    let pairs = mesh::pairs(&args.nats_url, "lg", scenario.agents, 1_024).await?;
    let before = stack.redis_bytes().await?;
    let (accepted, per_s) = throughput::load(&scenario.load(scenario.seconds), &pairs).await?;
    mesh::stop(&pairs).await?;
    let grown = stack.redis_bytes().await?.saturating_sub(before);
    tracing::info!(?way, per_s, "measured");
    Ok(Turn { per_s, accepted, pairs, grown })
}

impl Measured {
    fn add(&mut self, way: Way, turn: Turn) {
        if way == Way::Unrecorded {
            let done: u64 = turn.pairs.iter().map(|p| p.effects.done()).sum();
            self.unrecorded.push(turn.per_s);
            self.unrecorded_dispatches += turn.accepted.dispatches();
            self.unrecorded_missed += turn.accepted.dispatches().saturating_sub(done);
            return;
        }
        if way == Way::Trail {
            self.trail.push(turn.per_s);
            self.trail_bytes += turn.grown;
            self.trail_dispatches += turn.accepted.dispatches();
        } else {
            self.archiving.push(turn.per_s);
        }
        self.accepted.merge(turn.accepted);
        self.pairs.extend(turn.pairs);
    }

    fn figures(&self, scenario: &Audit, postgres: f64, outage: outage::Figures) -> Figures {
        let (without, trail) = (median(&self.unrecorded), median(&self.trail));
        let archiving = median(&self.archiving);
        let of_rounds = overheads(&self.unrecorded, &self.trail);
        let rounded = |turns: &[f64]| turns.iter().map(|per_s| per_s.round()).collect();
        Figures {
            payload_bytes: scenario.payload,
            agents: scenario.agents * 2,
            rounds: scenario.rounds,
            seconds: scenario.seconds,
            overhead_pct: median(&of_rounds),
            overhead_rounds_pct: of_rounds,
            overhead_archiving_pct: median(&overheads(&self.unrecorded, &self.archiving)),
            unrecorded_per_s: without.round(),
            recorded_per_s: trail.round(),
            archiving_per_s: archiving.round(),
            unrecorded_turns: rounded(&self.unrecorded),
            recorded_turns: rounded(&self.trail),
            archiving_turns: rounded(&self.archiving),
            unrecorded_dispatches: self.unrecorded_dispatches,
            unrecorded_missed: self.unrecorded_missed,
            bytes_per_record_redis: tenths(self.trail_bytes as f64 / self.trail_dispatches.max(1) as f64),
            bytes_per_record_postgres: tenths(postgres),
            outage,
        }
    }
}

/// By how many percent the second rate is below the first; negative where it is above, which is noise.
fn overhead(without: f64, with: f64) -> f64 {
    tenths((without - with) / without.max(f64::EPSILON) * 100.0)
}

/// The same for each round.
fn overheads(without: &[f64], with: &[f64]) -> Vec<f64> {
    without.iter().zip(with).map(|(without, with)| overhead(*without, *with)).collect()
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// The middle one; the mean of the two in the middle where there is none; 0 of none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        assert_eq!(median(&[3.0, 1.0, 2.0]).to_bits(), 2.0_f64.to_bits());
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]).to_bits(), 2.5_f64.to_bits());
        assert_eq!(median(&[]).to_bits(), 0.0_f64.to_bits());
    }

    #[test]
    fn overhead_is_what_is_lost_of_the_rate_without_an_audit() {
        assert_eq!(overhead(1_000.0, 960.0).to_bits(), 4.0_f64.to_bits());
        assert_eq!(overhead(1_000.0, 1_010.0).to_bits(), (-1.0_f64).to_bits());
        // A machine that is twice as busy in one round changes nothing.
        assert_eq!(median(&overheads(&[1_000.0, 500.0], &[960.0, 480.0])).to_bits(), 4.0_f64.to_bits());
    }
}
