//! `soak`: mixed requests at a fixed rate for long, and whether any process of the mesh grows meanwhile.
//!
//! Owns the verdict on growth. The rule it keeps: what this process itself remembers for the books has its room from the
//! beginning, so that what grows in it is the worker SDK.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use bytes::{BufMut as _, Bytes, BytesMut};
use serde::Serialize;
use worker_sdk::{Mesh, Response};

use crate::args::{Args, Soak};
use crate::books;
use crate::course::{Course, Recent, Recording, STEP, Watched};
use crate::load::{Asked, interleaved, pace, total};
use crate::mesh::{self, CAPABILITY, Effects, OCTETS, Pair};
use crate::output;
use crate::payload::Payloads;
use crate::process::OWN;
use crate::report::Common;

/// What is sent before latencies are measured.
const WARM_UP: Duration = Duration::from_secs(2);
/// What a target runs at once.
const CONCURRENT: u32 = 256;
/// Longer runs are looked at less often, so that the course stays as long as that of an hour.
const STEPS_MAX: u64 = 3_600;
/// A process that holds so much more at the end of the last two thirds than at their beginning grows.
const GROWTH_MAX_PCT: f64 = 5.0;
/// The number of a request stands in front of its payload.
const NUMBER_BYTES: usize = 8;

/// Which requests were run, by their numbers.
#[derive(Debug)]
struct Ran(Vec<AtomicU64>);

impl Ran {
    fn new(requests: u64) -> Self {
        Self((0..=requests / 64).map(|_| AtomicU64::new(0)).collect())
    }

    /// Notes a run; whether it is the first.
    fn note(&self, number: u64) -> bool {
        let bit = 1 << (number % 64);
        self.0
            .get((number / 64) as usize)
            .is_some_and(|word| word.fetch_or(bit, Ordering::Relaxed) & bit == 0)
    }
}

/// What a process held, and by how much that grew over the last two thirds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Held {
    begin_mb: f64,
    end_mb: f64,
    max_mb: f64,
    growth_pct: f64,
}

/// The verdict, under the names of the report.
#[derive(Debug, Serialize)]
struct Verdict {
    /// The most that a coordinator, an archiver or this process grew.
    growth_pct_max: Option<f64>,
    growth_limit_pct: f64,
    steady: bool,
    growth_pct: BTreeMap<String, f64>,
    memory: BTreeMap<String, Held>,
}

/// Runs the scenario; whether the books balance and nothing grows.
pub(crate) async fn run(scenario: &Soak, args: &Args) -> anyhow::Result<bool> {
    let order = interleaved(&scenario.mix)?;
    let duration = WARM_UP + Duration::from_secs(scenario.minutes * 60);
    let requests = total(scenario.rate, duration);
    let ran = Arc::new(Ran::new(requests));
    let pairs = pairs(args, scenario.agents, &ran).await?;
    let since = SystemTime::now();
    let recent = Recent::new();
    let watched = Watched {
        step: STEP * duration.as_secs().div_ceil(STEPS_MAX) as u32,
        ..Watched::pairs(&pairs).loops(&recent).shown(output::clock(duration, "soaking"))
    };
    let recording = Recording::start(args, watched).await;

    let epoch = Instant::now();
    let (mut times, noise) =
        (pace(epoch, scenario.rate, duration)?, Payloads::new(scenario.payload as usize));
    let mut asked = Asked::new(epoch, WARM_UP).watched(&recent);
    asked.accepted.reserve(requests as usize);
    while let Some(intended) = times.recv().await {
        let number = asked.sent as usize;
        let pair = &pairs[number / order.len() % pairs.len()];
        let payload = numbered(asked.sent, &noise.next());
        let request = pair.source.dispatch(pair.target.name(), CAPABILITY).bytes(payload, OCTETS);
        asked.ask(intended, order[number % order.len()], request)?;
    }
    asked.finish().await?;
    let course = recording.end().await?;
    let books = books::close(&args.postgres_url, since, &asked.accepted, &pairs).await?;
    mesh::stop(&pairs).await?;

    let verdict = Verdict::of(&course);
    let mut report = serde_json::json!({
        "minutes": scenario.minutes,
        "rate": scenario.rate,
        "payload_bytes": scenario.payload,
        "agents": scenario.agents * 2,
        "distributions": asked.distributions([]),
        "course": course,
    });
    output::add(&mut report, &asked.told())?;
    output::add(&mut report, &verdict)?;
    output::add(&mut report, &books)?;
    output::finish(args, &Common::gather("soak", args), report)?;
    Ok(books.balance() && asked.failed == 0 && verdict.steady)
}

impl Verdict {
    fn of(course: &Course) -> Self {
        let held = course.memory().filter_map(|(name, samples)| Some((name.to_owned(), Held::of(samples)?)));
        let memory: BTreeMap<String, Held> = held.collect();
        let judged = memory.iter().filter(|(name, _)| is_judged(name)).map(|(_, held)| held.growth_pct);
        let growth_pct_max = judged.reduce(f64::max);
        Self {
            growth_pct_max,
            growth_limit_pct: GROWTH_MAX_PCT,
            // Nothing measured is nothing shown.
            steady: growth_pct_max.is_some_and(|growth| growth < GROWTH_MAX_PCT),
            growth_pct: memory.iter().map(|(name, held)| (name.clone(), held.growth_pct)).collect(),
            memory,
        }
    }
}

/// Servers fill their caches and keep what is not trimmed yet; they are shown and not judged.
fn is_judged(name: &str) -> bool {
    name == OWN || name.starts_with("coordinator") || name.starts_with("audit-archiver")
}

impl Held {
    /// Of samples in the order of time; none where there are too few.
    fn of(samples: &[Option<f64>]) -> Option<Self> {
        let known: Vec<f64> = samples.iter().flatten().copied().collect();
        let last = &known[known.len() / 3..];
        let fifth = last.len() / 5;
        let (begin, end) = (median(last.get(..fifth)?)?, median(&last[last.len() - fifth..])?);
        let hundredths = |value: f64| (value * 100.0).round() / 100.0;
        Some(Self {
            begin_mb: begin,
            end_mb: end,
            max_mb: known.iter().copied().reduce(f64::max)?,
            growth_pct: hundredths((end - begin) / begin.max(f64::EPSILON) * 100.0),
        })
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// A payload that begins with the number of its request.
fn numbered(number: u64, noise: &Bytes) -> Bytes {
    let mut payload = BytesMut::with_capacity(noise.len());
    payload.put_u64_le(number);
    payload.put_slice(&noise[NUMBER_BYTES..]);
    payload.freeze()
}

fn number_of(payload: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(payload.get(..NUMBER_BYTES)?.try_into().ok()?))
}

/// Pairs whose targets note the numbers of what they run.
async fn pairs(args: &Args, count: u32, ran: &Arc<Ran>) -> anyhow::Result<Vec<Pair>> {
    let sources = Mesh::connect(&args.nats_url).await.context("failed to connect the sources")?;
    let targets = Mesh::connect(&args.nats_url).await.context("failed to connect the targets")?;
    let mut pairs = Vec::new();
    for i in 0..count {
        let effects = Arc::new(Effects::default());
        let (noted, ran) = (Arc::clone(&effects), Arc::clone(ran));
        let target = targets
            .agent(&format!("soak-dst-{i}"))
            .capability_raw(CAPABILITY, move |context| {
                let payload = context.payload().clone();
                noted.tally(number_of(&payload).is_some_and(|number| ran.note(number)));
                std::future::ready(Ok(Response::bytes(payload, OCTETS)))
            })
            .max_concurrent(CONCURRENT)
            .register()
            .await
            .context("failed to register a target")?;
        let source = sources.agent(&format!("soak-src-{i}")).depends_on(target.name());
        let source = source.register().await.context("failed to register a source")?;
        pairs.push(Pair { source, target, effects, sent: Arc::default() });
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growth(samples: impl IntoIterator<Item = f64>) -> Option<f64> {
        let samples: Vec<Option<f64>> = samples.into_iter().map(Some).collect();
        Held::of(&samples).map(|held| held.growth_pct)
    }

    fn is(growth: Option<f64>, expected: f64) -> bool {
        growth.is_some_and(|growth| (growth - expected).abs() < 0.01)
    }

    #[test]
    fn what_grows_before_the_last_two_thirds_is_warming_up() {
        assert!(is(growth((0..30).map(|n| if n < 10 { f64::from(n) } else { 50.0 })), 0.0));
    }

    #[test]
    fn a_leak_is_seen_and_a_peak_is_not() {
        // From the median of 20..24 MB to that of 36..40 MB.
        assert!(is(growth((0..30).map(|n| 10.0 + f64::from(n))), (38.0 - 22.0) / 22.0 * 100.0));
        assert!(is(growth((0..30).map(|n| if n == 29 || n == 12 { 500.0 } else { 50.0 })), 0.0));
        assert!(is(growth((0..30).map(|n| if n < 20 { 50.0 } else { 40.0 })), -20.0));
    }

    #[test]
    fn too_few_samples_show_nothing() {
        assert_eq!(growth([1.0, 2.0, 3.0]), None);
        assert_eq!(Held::of(&[None; 40]), None);
    }

    #[test]
    fn a_mesh_is_judged_and_its_servers_are_not() {
        let judged = ["nats", "postgres", "redis", "coordinator-1", "audit-archiver", OWN].map(is_judged);
        assert_eq!(judged, [false, false, false, true, true, true]);
    }

    #[test]
    fn each_request_is_run_once_by_its_number() {
        let ran = Ran::new(100);
        let noise = Bytes::from_static(&[7; 32]);
        let payload = numbered(77, &noise);
        assert_eq!((payload.len(), number_of(&payload)), (32, Some(77)));
        assert!(ran.note(77) && ran.note(100));
        assert!(!ran.note(77), "a second run");
        assert!(!ran.note(1_000_000), "a number that nobody gave");
    }
}
