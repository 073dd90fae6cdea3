//! The course of a run: what was done, what waited, how long it took and what each process used, moment by moment.
//!
//! Owns the series of the reports and the live line. The rule it keeps: it looks from outside, at counters and at the broker,
//! and a look that fails leaves a gap and disturbs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use futures::future::join_all;
use governance::{Priority, SHARDS};
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::args::Args;
use crate::mesh::Pair;
use crate::output::Progress;
use crate::process::{Processes, Usage};
use crate::report::Percentiles;

/// How often is looked, in runs that last minutes at most.
pub(crate) const STEP: Duration = Duration::from_secs(1);
/// The broker may take so long to tell of its queues before there is a gap.
const PATIENCE: Duration = Duration::from_millis(500);
/// Longer latencies count as this long in the course; the figures on top know better.
const LATENCY_MAX: Duration = Duration::from_secs(600);
const MEGABYTE: f64 = 1e6;

/// What an open loop tells while it runs: how much it has sent, and the latencies since the last look, by priority.
#[derive(Debug)]
pub(crate) struct Recent {
    sent: AtomicU64,
    latency: Mutex<[Histogram<u64>; 4]>,
}

impl Recent {
    pub(crate) fn new() -> Arc<Self> {
        let histogram = |_| {
            Histogram::new_with_bounds(1_000, LATENCY_MAX.as_nanos() as u64, 2)
                .expect("these bounds are valid")
        };
        Arc::new(Self { sent: AtomicU64::new(0), latency: Mutex::new(std::array::from_fn(histogram)) })
    }

    /// One more is on its way.
    pub(crate) fn sent(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn note(&self, priority: Priority, latency: Duration) {
        let mut all = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        all[priority as usize].saturating_record(latency.as_nanos() as u64);
    }

    fn take(&self) -> [Percentiles; 4] {
        let mut all = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        let percentiles = all.each_ref().map(Percentiles::of);
        all.iter_mut().for_each(Histogram::reset);
        percentiles
    }
}

type Counter = Box<dyn Fn() -> u64 + Send + Sync>;

/// What is watched.
pub(crate) struct Watched {
    /// Dispatches that were sent so far; none where nobody counts them.
    pub(crate) sent: Option<Counter>,
    /// Dispatches that handlers ran so far.
    pub(crate) done: Counter,
    pub(crate) recent: Option<Arc<Recent>>,
    /// Where the live line goes.
    pub(crate) progress: Option<Progress>,
    pub(crate) step: Duration,
}

impl Watched {
    /// What the handlers of some pairs run.
    pub(crate) fn pairs<'p>(pairs: impl IntoIterator<Item = &'p Pair>) -> Self {
        let effects: Vec<_> = pairs.into_iter().map(|pair| Arc::clone(&pair.effects)).collect();
        Self {
            sent: None,
            done: Box::new(move || effects.iter().map(|e| e.done()).sum()),
            recent: None,
            progress: None,
            step: STEP,
        }
    }

    /// What an open loop sends to them, and how long it takes.
    pub(crate) fn loops(mut self, recent: &Arc<Recent>) -> Self {
        let of = Arc::clone(recent);
        self.sent = Some(Box::new(move || of.sent.load(Ordering::Relaxed)));
        self.recent = Some(Arc::clone(recent));
        self
    }

    /// Shows a live line for so long.
    pub(crate) fn shown(mut self, progress: Progress) -> Self {
        self.progress = Some(progress);
        self
    }
}

/// What was seen, each list as long as the moments.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Course {
    at_s: Vec<f64>,
    completed_per_s: Vec<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    in_flight: Vec<u64>,
    /// Messages in each of the broker's queues.
    queues: BTreeMap<String, Vec<Option<u64>>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    latency: BTreeMap<&'static str, Tail>,
    processes: BTreeMap<String, Used>,
    marks: Vec<Mark>,
}

#[derive(Debug, Default, Serialize)]
struct Tail {
    p50_us: Vec<Option<f64>>,
    p99_us: Vec<Option<f64>>,
}

/// What a process used at each moment; gaps where it was down.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Used {
    cpu_pct: Vec<Option<f64>>,
    pub(crate) rss_mb: Vec<Option<f64>>,
}

#[derive(Debug, Clone, Serialize)]
struct Mark {
    at_s: f64,
    name: &'static str,
}

impl Course {
    /// What each process held, moment by moment.
    pub(crate) fn memory(&self) -> impl Iterator<Item = (&str, &[Option<f64>])> {
        self.processes.iter().map(|(name, used)| (name.as_str(), used.rss_mb.as_slice()))
    }
}

/// A course that is being recorded.
pub(crate) struct Recording {
    begin: Instant,
    marks: Vec<Mark>,
    end: CancellationToken,
    task: JoinHandle<Course>,
}

impl Recording {
    /// Looks from now on. Where the broker cannot be asked, its queues are left out.
    pub(crate) async fn start(args: &Args, watched: Watched) -> Self {
        let queues = match broker::connect(&args.nats_url, "loadgen course").await {
            Ok(client) => Some(jetstream::new(client)),
            Err(error) => {
                tracing::warn!(%error, "the queues are not watched");
                None
            }
        };
        let (begin, end) = (Instant::now(), CancellationToken::new());
        let recorder = Recorder {
            queues,
            processes: Processes::of(args),
            begin,
            before: Looked::default(),
            course: Course::default(),
            names: BTreeSet::new(),
            watched,
        };
        let task = tokio::spawn(recorder.run(end.clone()));
        Self { begin, marks: Vec::new(), end, task }
    }

    /// Names this moment.
    pub(crate) fn mark(&mut self, name: &'static str) {
        self.marks.push(Mark { at_s: hundredths(self.begin.elapsed().as_secs_f64()), name });
    }

    /// Stops looking.
    pub(crate) async fn end(self) -> anyhow::Result<Course> {
        self.end.cancel();
        let mut course = self.task.await?;
        course.marks = self.marks;
        Ok(course)
    }
}

/// What the last look found.
#[derive(Default)]
struct Looked {
    at: Duration,
    done: u64,
    usage: BTreeMap<String, Usage>,
}

struct Recorder {
    queues: Option<jetstream::Context>,
    processes: Processes,
    begin: Instant,
    before: Looked,
    course: Course,
    /// Processes that were seen at any time.
    names: BTreeSet<String>,
    watched: Watched,
}

impl Recorder {
    async fn run(mut self, end: CancellationToken) -> Course {
        self.before =
            Looked { at: Duration::ZERO, done: (self.watched.done)(), usage: self.processes.sample() };
        self.names.extend(self.before.usage.keys().cloned());
        let mut steps = tokio::time::interval_at((self.begin + self.watched.step).into(), self.watched.step);
        steps.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = steps.tick() => self.look().await,
                () = end.cancelled() => break,
            }
        }
        if let Some(progress) = &self.watched.progress {
            progress.finish_and_clear();
        }
        self.course
    }

    async fn look(&mut self) {
        let depths = self.depths().await;
        let (at, done, usage) = (self.begin.elapsed(), (self.watched.done)(), self.processes.sample());
        let passed = (at - self.before.at).as_secs_f64().max(f64::EPSILON);
        let per_s = done.saturating_sub(self.before.done) as f64 / passed;
        let moments = self.course.at_s.len();
        self.course.at_s.push(hundredths(at.as_secs_f64()));
        self.course.completed_per_s.push(per_s.round());
        let sent = self.watched.sent.as_ref().map(|sent| sent());
        self.course.in_flight.extend(sent.map(|sent| sent.saturating_sub(done)));
        for (name, depth) in depths {
            series(&mut self.course.queues, name, moments).push(depth);
        }
        self.names.extend(usage.keys().cloned());
        for name in &self.names {
            let used = self.course.processes.entry(name.clone()).or_default();
            used.cpu_pct.resize(moments, None);
            used.rss_mb.resize(moments, None);
            let (now, then) = (usage.get(name), self.before.usage.get(name));
            let cpu =
                now.zip(then).map(|(now, then)| now.cpu.saturating_sub(then.cpu).as_secs_f64() / passed);
            used.cpu_pct.push(cpu.map(|share| (share * 100.0).round()));
            used.rss_mb.push(now.map(|now| hundredths(now.resident as f64 / MEGABYTE)));
        }
        let p0_p99 = self.latency(moments);
        if let Some(progress) = &self.watched.progress {
            progress.set_position(at.as_secs());
            progress.set_prefix(live(per_s, self.course.in_flight.last().copied(), p0_p99));
        }
        self.before = Looked { at, done, usage };
    }

    /// Notes the latencies since the last look; P99 of P0 among them.
    fn latency(&mut self, moments: usize) -> Option<f64> {
        let recent = self.watched.recent.as_ref()?.take();
        for (key, percentiles) in ["p0", "p1", "p2", "p3"].into_iter().zip(&recent) {
            let tail = self.course.latency.entry(key).or_default();
            tail.p50_us.resize(moments, None);
            tail.p99_us.resize(moments, None);
            tail.p50_us.push(percentiles.p50_us);
            tail.p99_us.push(percentiles.p99_us);
        }
        recent[0].p99_us
    }

    /// Messages in each queue, under its name for people. Each shard has a fence message in each stream of inboxes, which waits
    /// for nobody.
    async fn depths(&self) -> Vec<(String, Option<u64>)> {
        let Some(context) = &self.queues else { return Vec::new() };
        let lanes = Priority::ALL.iter().map(|p| (format!("lane {p}"), protocol::streams::lanes(*p)));
        let inboxes = Priority::ALL.iter().map(|p| (format!("inbox {p}"), protocol::streams::inboxes(*p)));
        let done = [("done".to_owned(), protocol::streams::DONE.to_owned())];
        let each = lanes.chain(inboxes).chain(done).map(|(name, stream)| async move {
            let asked = tokio::time::timeout(PATIENCE, context.get_stream(stream)).await;
            let messages = asked.ok().and_then(Result::ok).map(|stream| stream.cached_info().state.messages);
            let fences = if name.starts_with("inbox") { u64::from(SHARDS) } else { 0 };
            (name, messages.map(|messages| messages.saturating_sub(fences)))
        });
        join_all(each).await
    }
}

fn series<T: Clone>(
    all: &mut BTreeMap<String, Vec<Option<T>>>,
    name: String,
    moments: usize,
) -> &mut Vec<Option<T>> {
    let values = all.entry(name).or_default();
    values.resize(moments, None);
    values
}

/// One line on how it goes.
fn live(per_s: f64, in_flight: Option<u64>, p0_p99: Option<f64>) -> String {
    let mut line = format!("{per_s:.0}/s");
    if let Some(in_flight) = in_flight {
        line += &format!(", {in_flight} in flight");
    }
    if let Some(us) = p0_p99 {
        line += &format!(", P0 P99 {:.1} ms", us / 1_000.0);
    }
    line
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_look_takes_the_latencies_since_the_last() {
        let recent = Recent::new();
        recent.note(Priority::P0, Duration::from_millis(2));
        let taken = recent.take();
        assert!(taken[0].p50_us.is_some_and(|us| (1_980.0..=2_030.0).contains(&us)), "{taken:?}");
        assert_eq!(taken[1].p50_us, None);
        assert_eq!(recent.take()[0].p50_us, None);
    }

    #[test]
    fn the_live_line_says_what_is_known() {
        assert_eq!(live(1234.4, None, None), "1234/s");
        assert_eq!(live(10.0, Some(3), Some(2_500.0)), "10/s, 3 in flight, P0 P99 2.5 ms");
    }
}
