//! `throughput`: as many dispatches as go through the mesh, beside the same bytes through two bare durable hops.
//!
//! The rule it keeps: what counts is what handlers ran, in a steady state: senders wait for their targets, so that no
//! backlog is mistaken for throughput.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use bytes::Bytes;
use tokio::task::JoinSet;

use crate::args::{Args, Handlers, Throughput};
use crate::bare::{Baselines, Broker};
use crate::books::{self, Accepted};
use crate::cost::Meter;
use crate::course::{Recording, Watched};
use crate::mesh::{self, CAPABILITY, OCTETS, Pair};
use crate::output;
use crate::payload::Payloads;
use crate::report::{Common, ratio};

/// Dispatches that a sender hands over at once, at most, as an agent does that has a lot to send.
const BATCH: u32 = 4_096;
/// Dispatches that a sender may be ahead of its target, for each that may be on its way to acceptance: enough to keep
/// every stage of the mesh busy.
const AHEAD: u64 = 8;
/// Dispatches that all senders together may be ahead, however many they are.
const AHEAD_TOTAL: u64 = 131_072;
/// Bytes that a sender may be ahead of its target, so that large payloads fill neither the broker nor this process.
const AHEAD_BYTES: u64 = 64 << 20;
/// Bytes that a sender hands over at once.
const BATCH_BYTES: u32 = 1 << 20;
/// What is sent before measuring, at most a quarter of the run.
const WARM_UP: Duration = Duration::from_secs(2);
/// How often a sender that is far ahead looks again.
const LOOK: Duration = Duration::from_millis(1);
/// How long targets may take to run what was accepted.
const DRAIN: Duration = Duration::from_secs(120);

/// Runs the scenario for each size of payload; whether all books balance.
pub(crate) async fn run(scenario: &Throughput, args: &Args) -> anyhow::Result<bool> {
    let (mut runs, mut balance) = (Vec::new(), true);
    for payload in &scenario.payloads {
        let (report, good) = one(&Throughput { payload: *payload, ..scenario.clone() }, args).await?;
        runs.push(report);
        balance &= good;
    }
    output::finish(args, &Common::gather("throughput", args), output::several(runs)?)?;
    Ok(balance)
}

/// One size of payload: its figures, and whether the books balance.
async fn one(scenario: &Throughput, args: &Args) -> anyhow::Result<(serde_json::Value, bool)> {
    let payload = scenario.payload as usize;
    let baselines =
        Baselines::measure(&Broker::of(args), payload, Duration::from_secs(scenario.bare_seconds)).await?;
    let (url, agents, concurrent) = (&args.nats_url, scenario.agents, scenario.concurrent);
    let pairs = match scenario.handlers {
        Handlers::Batch => mesh::pairs_of_batches(url, "lg", agents, concurrent).await?,
        Handlers::Single => mesh::pairs(url, "lg", agents, concurrent).await?,
    };
    let since = SystemTime::now();
    let (meter, recording) = (Meter::begin(args).await, Recording::start(args, watched(&pairs)).await);
    let (accepted, per_s) = load(scenario, &pairs).await?;
    let course = recording.end().await?;
    let cost = meter.end(args, accepted.dispatches()).await;
    tracing::info!(dispatches_per_s = per_s.round(), "all of it was run; closing the books");
    let books = books::close(&args.postgres_url, since, &accepted, &pairs).await?;
    let quota = pairs.iter().filter_map(|p| p.source.terms()).map(|t| t.rate_per_s).max();
    mesh::stop(&pairs).await?;
    let governed_mb_per_s = per_s * payload as f64 / 1e6;
    let mut report = serde_json::json!({
        "payload_bytes": payload,
        "agents": scenario.agents * 2,
        "quota_per_agent": quota,
        "seconds": scenario.seconds,
        "handlers": scenario.handlers,
        "dispatches_per_call_of_the_sender": batch(scenario),
        "dispatches_per_envelope": ratio(accepted.dispatches() as f64, accepted.envelopes() as f64),
        "dispatches_per_s": per_s.round(),
        "governed_mb_per_s": (governed_mb_per_s * 100.0).round() / 100.0,
        "bare_single_per_s": baselines.single_per_s.round(),
        "bare_envelope_mb_per_s": (baselines.envelope_mb_per_s * 10.0).round() / 10.0,
        "ratio_vs_bare_single": ratio(per_s, baselines.single_per_s),
        "ratio_vs_bare_envelope": ratio(governed_mb_per_s, baselines.envelope_mb_per_s),
        "course": course,
    });
    output::add(&mut report, &cost)?;
    output::add(&mut report, &books)?;
    Ok((report, books.balance()))
}

/// The course of load by these pairs.
fn watched(pairs: &[Pair]) -> Watched {
    let counts: Vec<_> = pairs.iter().map(|pair| Arc::clone(&pair.sent)).collect();
    let sent = move || counts.iter().map(|sent| sent.load(Ordering::Relaxed)).sum();
    Watched { sent: Some(Box::new(sent)), ..Watched::pairs(pairs) }
}

/// Sends from all sources at once; what was accepted, and how many per second were run.
pub(crate) async fn load(scenario: &Throughput, pairs: &[Pair]) -> anyhow::Result<(Accepted, f64)> {
    let (begin, before) = (Instant::now(), done(pairs));
    let end = begin + scenario.duration();
    let mut senders = JoinSet::new();
    for pair in pairs {
        for accepted in send(scenario, pair, end) {
            senders.spawn(accepted);
        }
    }
    let warm = begin + WARM_UP.min(scenario.duration() / 4);
    let measured = measure(pairs, scenario.duration(), warm, end);
    let (per_s, sent) = tokio::join!(measured, async {
        let mut all = Accepted::default();
        while let Some(accepted) = senders.join_next().await {
            all.merge(accepted.context("a sender panicked")??);
        }
        Ok::<_, anyhow::Error>(all)
    });
    let accepted = sent?;
    drain(pairs, before + accepted.dispatches()).await;
    Ok((accepted, per_s))
}

/// Waits until targets have run so many, as long as that may take.
pub(crate) async fn drain(pairs: &[Pair], accepted: u64) {
    let until = Instant::now() + DRAIN;
    while done(pairs) < accepted && Instant::now() < until {
        tokio::time::sleep(LOOK * 10).await;
    }
}

fn done(pairs: &[Pair]) -> u64 {
    pairs.iter().map(|p| p.effects.done()).sum()
}

/// What handlers ran per second between the warm-up and the end.
async fn measure(pairs: &[Pair], duration: Duration, warm: Instant, end: Instant) -> f64 {
    let bar = output::clock(duration, "sending");
    tokio::time::sleep_until(warm.into()).await;
    let (since, before) = (Instant::now(), done(pairs));
    loop {
        let now = Instant::now();
        let rate = (done(pairs) - before) as f64 / (now - since).as_secs_f64().max(f64::EPSILON);
        if now >= end {
            bar.finish_and_clear();
            return rate;
        }
        bar.set_position(duration.saturating_sub(end - now).as_secs());
        bar.set_prefix(format!("{rate:.0}/s"));
        tokio::time::sleep((end - now).min(Duration::from_millis(250))).await;
    }
}

/// How many dispatches a sender hands over at once.
fn batch(scenario: &Throughput) -> u32 {
    scenario.window.min(BATCH).min((BATCH_BYTES / scenario.payload).max(1))
}

/// The senders of one source: as many as it takes to keep its window full with batches.
fn send<'p>(
    scenario: &Throughput,
    pair: &'p Pair,
    end: Instant,
) -> impl Iterator<Item = impl Future<Output = anyhow::Result<Accepted>> + Send + use<>> + use<'p> {
    let batch = batch(scenario);
    let ahead_max = (u64::from(scenario.window) * AHEAD)
        .min(AHEAD_BYTES / u64::from(scenario.payload))
        .min(AHEAD_TOTAL / u64::from(scenario.agents))
        .max(batch.into());
    let lanes = (u64::from(scenario.window.div_ceil(batch)).min(ahead_max / u64::from(batch))).max(1);
    let payloads = Arc::new(Payloads::new(scenario.payload as usize));
    // Counted on from what the target ran before, for load that follows load.
    pair.sent.store(pair.effects.done(), Ordering::Relaxed);
    let sent = Arc::clone(&pair.sent);
    (0..lanes).map(move |_| {
        let (source, target) = (pair.source.clone(), pair.target.name().to_owned());
        let (effects, payloads, sent) = (Arc::clone(&pair.effects), Arc::clone(&payloads), Arc::clone(&sent));
        async move {
            let mut accepted = Accepted::default();
            while Instant::now() < end {
                if sent.load(Ordering::Relaxed).saturating_sub(effects.done()) >= ahead_max {
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
                sent.fetch_add(batch.into(), Ordering::Relaxed);
                let event = source.publish_event(&target, CAPABILITY).bytes(Bytes::new(), OCTETS);
                let many =
                    event.send_many((0..batch).map(|_| payloads.next())).await.context("failed to send")?;
                for (first, count) in many.runs() {
                    accepted.add(*first, (*count).into());
                }
            }
            Ok(accepted)
        }
    })
}
