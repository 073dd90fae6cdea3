//! `latency`: an open loop of requests over all priorities at a fixed rate, beside a bare chain under the same loop.
//!
//! The rule it keeps: the flood and the requests are sent by clocks of their own, whatever becomes of either.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use bytes::Bytes;
use governance::Priority;

use crate::args::{Args, Latency};
use crate::bare::Broker;
use crate::books::{self, Accepted};
use crate::load::{Asked, interleaved, pace};
use crate::mesh::{self, CAPABILITY, OCTETS, Pair};
use crate::output;
use crate::payload::Payloads;
use crate::report::{Common, Percentiles, ratio};

/// What is sent before measuring.
const WARM_UP: Duration = Duration::from_secs(1);
/// Events of a flood go out this often, all that are due at once.
const FLOOD_STEP: Duration = Duration::from_millis(10);
/// What a target runs at once.
const CONCURRENT: u32 = 256;

/// Runs the scenario; whether the books balance.
pub(crate) async fn run(scenario: &Latency, args: &Args) -> anyhow::Result<bool> {
    let order = interleaved(&scenario.mix)?;
    let bar = output::spinner("bare: request, hop and reply at the same rate");
    let bare = Broker::of(args)
        .paced(scenario.rate, scenario.payload as usize, Duration::from_secs(scenario.seconds.min(10)))
        .await?;
    bar.finish_and_clear();
    let pairs = mesh::pairs(&args.nats_url, "lat", scenario.agents, CONCURRENT).await?;
    let flooded = mesh::pairs(&args.nats_url, "flood", u32::from(scenario.flood > 0), CONCURRENT).await?;
    let since = SystemTime::now();
    let end = Instant::now() + WARM_UP + Duration::from_secs(scenario.seconds);
    let (asked, flood) = tokio::join!(ask(scenario, &pairs, &order), flood(scenario, flooded.first(), end));
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

/// Sends requests by the clock and waits for all replies.
async fn ask(scenario: &Latency, pairs: &[Pair], order: &[Priority]) -> anyhow::Result<Asked> {
    let payloads = Payloads::new(scenario.payload as usize);
    let duration = WARM_UP + Duration::from_secs(scenario.seconds);
    let epoch = Instant::now();
    let mut times = pace(epoch, scenario.rate, duration)?;
    let bar = output::clock(duration, "asking");
    let mut asked = Asked::new(epoch, WARM_UP);
    while let Some(intended) = times.recv().await {
        let number = asked.sent as usize;
        let pair = &pairs[number / order.len() % pairs.len()];
        let request = pair.source.dispatch(pair.target.name(), CAPABILITY).bytes(payloads.next(), OCTETS);
        asked.ask(intended, order[number % order.len()], request)?;
        bar.set_position(intended.as_secs());
    }
    asked.finish().await?;
    bar.finish_and_clear();
    Ok(asked)
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
