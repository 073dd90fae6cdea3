//! `latency`: an open loop of requests over all priorities at a fixed rate, beside a bare chain under the same loop.
//!
//! The rule it keeps: a latency runs from the moment at which the request was meant to be sent to its reply, so that a
//! stall shows in every request that it held up.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use governance::Priority;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use crate::args::{Args, Latency};
use crate::bare::Broker;
use crate::books::{self, Accepted};
use crate::load::{new_histogram, pace};
use crate::mesh::{self, CAPABILITY, OCTETS, Pair};
use crate::output;
use crate::payload::Payloads;
use crate::report::{Common, Percentiles, ratio};

/// What is sent before measuring.
const WARM_UP: Duration = Duration::from_secs(1);
/// Requests without a reply at which the run is given up: the mesh does not keep up with the rate.
const OUTSTANDING_MAX: usize = 100_000;
/// Events of a flood go out this often, all that are due at once.
const FLOOD_STEP: Duration = Duration::from_millis(10);
/// What a target runs at once.
const CONCURRENT: u32 = 256;

/// What came of the requests.
struct Asked {
    /// By priority, in nanoseconds.
    latency: [Histogram<u64>; 4],
    /// Where P0 spent it: in the lane, in the inbox, and the rest, in nanoseconds.
    p0_parts: [Histogram<u64>; 3],
    accepted: Accepted,
    sent: u64,
    /// Requests whose reply was an error, or that were not accepted.
    failed: u64,
}

/// Runs the scenario; whether the books balance.
pub(crate) async fn run(scenario: &Latency, args: &Args) -> anyhow::Result<bool> {
    ensure!(
        scenario.mix.len() == 4 && scenario.mix.iter().sum::<u32>() == 100,
        "--mix names four shares that add up to 100"
    );
    let bar = output::spinner("bare: request, hop and reply at the same rate");
    let bare = Broker::of(args)
        .paced(scenario.rate, scenario.payload as usize, Duration::from_secs(scenario.seconds.min(10)))
        .await?;
    bar.finish_and_clear();
    let pairs = mesh::pairs(&args.nats_url, "lat", scenario.agents, CONCURRENT).await?;
    let flooded = mesh::pairs(&args.nats_url, "flood", u32::from(scenario.flood > 0), CONCURRENT).await?;
    let since = SystemTime::now();
    let end = Instant::now() + WARM_UP + Duration::from_secs(scenario.seconds);
    let (asked, flood) = tokio::join!(ask(scenario, &pairs), flood(scenario, flooded.first(), end));
    let (mut asked, flood) = (asked?, flood?);
    let flood_per_s =
        flood.dispatches() as f64 / (WARM_UP + Duration::from_secs(scenario.seconds)).as_secs_f64();
    asked.accepted.merge(flood);
    let all: Vec<Pair> = pairs.into_iter().chain(flooded).collect();
    let books = books::close(&args.postgres_url, since, &asked.accepted, &all).await?;
    mesh::stop(&all).await?;

    let [p0, p1, p2, p3] = asked.latency.each_ref().map(Percentiles::of);
    let [lane, inbox, rest] = asked.p0_parts.each_ref().map(Percentiles::of);
    let bare = Percentiles::of(&bare.latency);
    let over = |mesh: Option<f64>, bare: Option<f64>| ratio(mesh?, bare?);
    let mut report = serde_json::json!({
        "rate": scenario.rate,
        "flood_per_s": flood_per_s.round(),
        "payload_bytes": scenario.payload,
        "seconds": scenario.seconds,
        "requests": asked.sent,
        "failed": asked.failed,
        "p0": p0, "p1": p1, "p2": p2, "p3": p3,
        "p0_parts": { "lane": lane, "inbox": inbox, "rest": rest },
        "bare": bare,
        "ratio_p50": over(p0.p50_us, bare.p50_us),
        "ratio_p99": over(p0.p99_us, bare.p99_us),
    });
    output::add(&mut report, &books)?;
    output::finish(args, &Common::gather("latency", args), report)?;
    Ok(books.balance() && asked.failed == 0)
}

/// One request: its priority, and how it ended.
struct Answer {
    priority: Priority,
    /// From the intended send time; none in the warm-up.
    latency: Option<Duration>,
    id: Option<governance::DispatchId>,
    /// What it waited in the lane and in the inbox; none for what failed.
    waited: Option<(Duration, Duration)>,
}

/// Sends requests by the clock and waits for all replies.
async fn ask(scenario: &Latency, pairs: &[Pair]) -> anyhow::Result<Asked> {
    let payloads = Payloads::new(scenario.payload as usize);
    let duration = Duration::from_secs(scenario.seconds);
    let epoch = Instant::now();
    let mut times = pace(epoch, scenario.rate, WARM_UP + duration)?;
    let bar = output::clock(WARM_UP + duration, "asking");
    let order = Arc::new(interleaved(&scenario.mix));
    let mut waiting: JoinSet<Answer> = JoinSet::new();
    let mut asked = Asked {
        latency: std::array::from_fn(|_| new_histogram()),
        p0_parts: std::array::from_fn(|_| new_histogram()),
        accepted: Accepted::default(),
        sent: 0,
        failed: 0,
    };
    while let Some(intended) = times.recv().await {
        let number = asked.sent as usize;
        asked.sent += 1;
        let pair = &pairs[number / order.len() % pairs.len()];
        let priority = order[number % order.len()];
        let request = pair
            .source
            .dispatch(pair.target.name(), CAPABILITY)
            .priority(priority)
            .bytes(payloads.next(), OCTETS);
        waiting.spawn(async move {
            let pending = request.start().await;
            let id = pending.as_ref().ok().map(worker_sdk::Pending::id);
            let reply = match pending {
                Ok(pending) => pending.reply().await.ok(),
                Err(_) => None,
            };
            let waited = reply.map(|r| (r.waited_in_lane(), r.waited_in_inbox()));
            let latency = epoch.elapsed().saturating_sub(intended);
            Answer { priority, latency: (intended >= WARM_UP).then_some(latency), id, waited }
        });
        while let Some(answer) = waiting.try_join_next() {
            asked.note(&answer.context("a request panicked")?);
        }
        ensure!(
            waiting.len() < OUTSTANDING_MAX,
            "the mesh does not keep up with {} requests per second",
            scenario.rate
        );
        bar.set_position(intended.as_secs());
    }
    while let Some(answer) = waiting.join_next().await {
        asked.note(&answer.context("a request panicked")?);
    }
    bar.finish_and_clear();
    Ok(asked)
}

impl Asked {
    fn note(&mut self, answer: &Answer) {
        if let Some(latency) = answer.latency {
            self.latency[answer.priority as usize].saturating_record(latency.as_nanos() as u64);
            if let (Priority::P0, Some((lane, inbox))) = (answer.priority, answer.waited) {
                let parts = [lane, inbox, latency.saturating_sub(lane + inbox)];
                for (part, took) in self.p0_parts.iter_mut().zip(parts) {
                    part.saturating_record(took.as_nanos() as u64);
                }
            }
        }
        if let Some(id) = answer.id {
            self.accepted.add(id, 1);
        }
        self.failed += u64::from(answer.waited.is_none());
    }
}

/// A hundred priorities in the shares of the mix, each spread as evenly as the others allow.
fn interleaved(mix: &[u32]) -> Vec<Priority> {
    let mut owed = [0_i64; 4];
    (0..100)
        .map(|_| {
            for (owed, share) in owed.iter_mut().zip(mix) {
                *owed += i64::from(*share);
            }
            let most = (0..4).max_by_key(|i| (owed[*i], std::cmp::Reverse(*i))).expect("there are four");
            owed[most] -= 100;
            Priority::ALL[most]
        })
        .collect()
}

/// Floods P3 with events at a rate until `end`.
async fn flood(scenario: &Latency, pair: Option<&Pair>, end: Instant) -> anyhow::Result<Accepted> {
    let mut accepted = Accepted::default();
    let Some(pair) = pair else { return Ok(accepted) };
    let payloads = Payloads::new(scenario.payload as usize);
    let (begin, mut sent) = (Instant::now(), 0_u64);
    let mut step = tokio::time::interval(FLOOD_STEP);
    while Instant::now() < end {
        step.tick().await;
        let due = (begin.elapsed().as_secs_f64() * f64::from(scenario.flood)) as u64 - sent;
        sent += due;
        let event = pair.source.publish_event(pair.target.name(), CAPABILITY);
        let event = event.priority(Priority::P3).bytes(Bytes::new(), OCTETS);
        let many =
            event.send_many((0..due).map(|_| payloads.next())).await.context("failed to send the flood")?;
        for (first, count) in many.runs() {
            accepted.add(*first, (*count).into());
        }
    }
    Ok(accepted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_is_spread_evenly_in_its_shares() {
        let order = interleaved(&[10, 20, 30, 40]);
        for (priority, share) in Priority::ALL.iter().zip([10, 20, 30, 40]) {
            assert_eq!(order.iter().filter(|p| *p == priority).count(), share, "{priority}");
        }
        assert!(order[..10].contains(&Priority::P0), "the rarest comes within each ten");
        assert!(!order.windows(3).any(|w| w.iter().all(|p| *p == Priority::P3)), "none comes in a clump");
        assert_eq!(interleaved(&[100, 0, 0, 0]), [Priority::P0; 100]);
    }
}
