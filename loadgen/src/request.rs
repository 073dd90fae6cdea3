//! `request`: one caller and one agent in a closed loop with a fixed number of requests outstanding, beside a bare chain
//! under the same loop.
//!
//! The rule it keeps: each reply is checked, and the next request goes out only then.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use worker_sdk::Agent;

use crate::args::{Args, Request};
use crate::bare::Broker;
use crate::books::{self, Accepted};
use crate::course::{Recent, Recording, Watched};
use crate::load::new_histogram;
use crate::mesh::{self, CAPABILITY, OCTETS, Pair};
use crate::output;
use crate::payload::Payloads;
use crate::report::{Common, Distributions, Percentiles, ratio};

/// What is sent before measuring.
const WARM_UP: Duration = Duration::from_secs(1);
/// Slots of the target for each request outstanding: two, since slots are kept for other priorities.
const SLOTS: u32 = 2;

/// What came of the requests.
struct Asked {
    /// In nanoseconds.
    latency: Histogram<u64>,
    accepted: Accepted,
}

/// Runs the scenario; whether the books balance.
pub(crate) async fn run(scenario: &Request, args: &Args) -> anyhow::Result<bool> {
    let duration = Duration::from_secs(scenario.seconds);
    let bar = output::spinner("bare: request, hop and reply in the same loop");
    let bare = Broker::of(args).closed(scenario.outstanding, scenario.payload as usize, duration).await?;
    bar.finish_and_clear();
    let pairs = mesh::pairs(&args.nats_url, "req", 1, scenario.outstanding * SLOTS).await?;
    let since = SystemTime::now();
    let recent = Recent::new();
    let watched = Watched::pairs(&pairs).loops(&recent).shown(output::clock(WARM_UP + duration, "asking"));
    let recording = Recording::start(args, watched).await;
    let asked = ask(scenario, &pairs[0], &recent).await?;
    let course = recording.end().await?;
    let books = books::close(&args.postgres_url, since, &asked.accepted, &pairs).await?;
    mesh::stop(&pairs).await?;

    let per_s = asked.latency.len() as f64 / duration.as_secs_f64();
    let (own, chain) = (Percentiles::of(&asked.latency), Percentiles::of(&bare.latency));
    let mut of_chain = serde_json::json!({ "per_s": bare.per_s.round() });
    output::add(&mut of_chain, &chain)?;
    let mut report = serde_json::json!({
        "outstanding": scenario.outstanding,
        "payload_bytes": scenario.payload,
        "priority": scenario.priority,
        "seconds": scenario.seconds,
        "per_s": per_s.round(),
        "bare": of_chain,
        "ratio_per_s": ratio(per_s, bare.per_s),
        "ratio_p50": own.p50_us.zip(chain.p50_us).and_then(|(own, bare)| ratio(own, bare)),
        "distributions": Distributions::of([("requests", &asked.latency), ("bare", &bare.latency)]),
        "course": course,
    });
    output::add(&mut report, &own)?;
    output::add(&mut report, &books)?;
    output::finish(args, &Common::gather("request", args), report)?;
    Ok(books.balance())
}

async fn ask(scenario: &Request, pair: &Pair, recent: &Arc<Recent>) -> anyhow::Result<Asked> {
    let begin = Instant::now() + WARM_UP;
    let end = begin + Duration::from_secs(scenario.seconds);
    let caller = Arc::new(Caller {
        source: pair.source.clone(),
        target: pair.target.name().to_owned(),
        priority: scenario.priority,
        payloads: Payloads::new(scenario.payload as usize),
        asked: Mutex::new(Asked { latency: new_histogram(), accepted: Accepted::default() }),
        recent: Arc::clone(recent),
    });
    let mut callers = JoinSet::new();
    for _ in 0..scenario.outstanding {
        let caller = Arc::clone(&caller);
        callers.spawn(async move { caller.run(begin, end).await });
    }
    while let Some(one) = callers.join_next().await {
        one.context("a caller panicked")??;
    }
    let caller = Arc::into_inner(caller).context("all callers have ended")?;
    Ok(caller.asked.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// The caller; each of its requests outstanding is a loop over it.
struct Caller {
    source: Agent,
    target: String,
    priority: governance::Priority,
    payloads: Payloads,
    asked: Mutex<Asked>,
    recent: Arc<Recent>,
}

impl Caller {
    async fn run(&self, begin: Instant, end: Instant) -> anyhow::Result<()> {
        loop {
            let sent = Instant::now();
            if sent >= end {
                return Ok(());
            }
            let request = self.source.dispatch(&self.target, CAPABILITY).priority(self.priority);
            let payload = self.payloads.next();
            self.recent.sent();
            let reply = request.bytes(payload.clone(), OCTETS).request().await.context("a request failed")?;
            ensure!(*reply.payload() == payload, "a reply is not what was sent");
            let latency = sent.elapsed();
            self.recent.note(self.priority, latency);
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.accepted.add(reply.id(), 1);
            if sent >= begin {
                asked.latency.saturating_record(latency.as_nanos() as u64);
            }
        }
    }
}
