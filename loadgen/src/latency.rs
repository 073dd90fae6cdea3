//! `latency`: an open loop of requests over all priorities at a fixed rate, beside a bare chain under the same loop. With a
//! flood there are two phases, one without it and one with it.
//!
//! The rule it keeps: the flood and the requests are sent by clocks of their own, whatever becomes of either.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use governance::Priority;

use crate::args::{Args, Flood, Latency};
use crate::bare::Broker;
use crate::books::{self, Accepted};
use crate::course::{Recent, Recording, Watched};
use crate::flood;
use crate::load::{Asked, interleaved, pace};
use crate::mesh::{self, CAPABILITY, OCTETS, Pair};
use crate::output;
use crate::payload::Payloads;
use crate::report::{Common, Percentiles, ratio};

/// What is sent before measuring.
const WARM_UP: Duration = Duration::from_secs(1);
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
    let flood = scenario.flood.unwrap_or(Flood::None);
    let pairs = mesh::pairs(&args.nats_url, "lat", scenario.agents, CONCURRENT).await?;
    let flooders = if flood == Flood::None { 0 } else { scenario.agents };
    let flooded = mesh::pairs(&args.nats_url, "flood", flooders, CONCURRENT).await?;
    let since = SystemTime::now();

    let recent = Recent::new();
    let each = WARM_UP + Duration::from_secs(scenario.seconds);
    let phases = if flood == Flood::None { 1 } else { 2 };
    let watched = Watched::pairs(&pairs).loops(&recent).shown(output::clock(each * phases, "asking"));
    let mut recording = Recording::start(args, watched).await;
    let load = Load { scenario, pairs: &pairs, order: &order, recent: &recent };
    let calm = if flood == Flood::None { None } else { Some(load.ask().await?) };
    if calm.is_some() {
        recording.mark("the flood begins");
    }
    let (ran_before, end) = (done(&flooded), Instant::now() + each);
    let source = flood::Source { flood, pairs: &flooded, payload: scenario.payload as usize };
    let (asked, flood) = tokio::join!(load.ask(), async {
        let accepted = source.until(end).await?;
        Ok::<_, anyhow::Error>((accepted, done(&flooded)))
    });
    let (asked, (flood, ran)) = (asked?, flood?);
    let course = recording.end().await?;
    let flood = Flooding {
        per_s: flood.dispatches() as f64 / each.as_secs_f64(),
        ran_per_s: (ran - ran_before) as f64 / each.as_secs_f64(),
        accepted: flood,
    };
    let all: Vec<Pair> = pairs.into_iter().chain(flooded).collect();
    let (mut report, accepted) = figures(scenario, asked, calm, flood, &bare.latency)?;
    let books = books::close(&args.postgres_url, since, &accepted, &all).await?;
    mesh::stop(&all).await?;
    output::add(&mut report, &books)?;
    output::add(&mut report, &serde_json::json!({ "course": course }))?;
    let failed =
        report["failed"].as_u64().unwrap_or(0) + report["without_flood"]["failed"].as_u64().unwrap_or(0);
    output::finish(args, &Common::gather("latency", args), report)?;
    Ok(books.balance() && failed == 0)
}

fn done(pairs: &[Pair]) -> u64 {
    pairs.iter().map(|pair| pair.effects.done()).sum()
}

/// What became of the flood.
struct Flooding {
    accepted: Accepted,
    per_s: f64,
    /// What of it was run meanwhile.
    ran_per_s: f64,
}

/// The report without its books, and what was accepted in all.
fn figures(
    scenario: &Latency,
    asked: Asked,
    calm: Option<Asked>,
    flood: Flooding,
    bare: &hdrhistogram::Histogram<u64>,
) -> anyhow::Result<(serde_json::Value, Accepted)> {
    let of_bare = Percentiles::of(bare);
    let own = Percentiles::of(&asked.latency[Priority::P0 as usize]);
    let over = |mesh: Option<f64>, bare: Option<f64>| ratio(mesh?, bare?);
    let mut report = serde_json::json!({
        "rate": scenario.rate,
        "flood_per_s": flood.per_s.round(),
        "payload_bytes": scenario.payload,
        "agents": scenario.agents * 2,
        "seconds": scenario.seconds,
        "bare": of_bare,
        "ratio_p50": over(own.p50_us, of_bare.p50_us),
        "ratio_p99": over(own.p99_us, of_bare.p99_us),
    });
    output::add(&mut report, &asked.told())?;
    let mut others = vec![("bare", bare)];
    if let Some(calm) = &calm {
        let without = Percentiles::of(&calm.latency[Priority::P0 as usize]);
        others.push(("P0 without the flood", &calm.latency[Priority::P0 as usize]));
        let flooded = serde_json::json!({
            "without_flood": calm.told(),
            "p3_flood_per_s": flood.ran_per_s.round(),
            "flood_ratio_p0_p50": over(own.p50_us, without.p50_us),
            "flood_ratio_p0_p99": over(own.p99_us, without.p99_us),
        });
        output::add(&mut report, &flooded)?;
    }
    output::add(&mut report, &serde_json::json!({ "distributions": asked.distributions(others) }))?;
    let mut accepted = asked.accepted;
    accepted.merge(flood.accepted);
    if let Some(calm) = calm {
        accepted.merge(calm.accepted);
    }
    Ok((report, accepted))
}

/// The requests of one phase.
struct Load<'a> {
    scenario: &'a Latency,
    pairs: &'a [Pair],
    order: &'a [Priority],
    recent: &'a Arc<Recent>,
}

impl Load<'_> {
    /// Sends requests by the clock and waits for all replies.
    async fn ask(&self) -> anyhow::Result<Asked> {
        let payloads = Payloads::new(self.scenario.payload as usize);
        let duration = WARM_UP + Duration::from_secs(self.scenario.seconds);
        let epoch = Instant::now();
        let mut times = pace(epoch, self.scenario.rate, duration)?;
        let mut asked = Asked::new(epoch, WARM_UP).watched(self.recent);
        while let Some(intended) = times.recv().await {
            let number = asked.sent as usize;
            let pair = &self.pairs[number / self.order.len() % self.pairs.len()];
            let request = pair.source.dispatch(pair.target.name(), CAPABILITY).bytes(payloads.next(), OCTETS);
            asked.ask(intended, self.order[number % self.order.len()], request)?;
        }
        asked.finish().await?;
        Ok(asked)
    }
}
