//! What open loops share: the pace of intended send times, the requests that are under way, and what came of them.
//!
//! The rule it keeps: the next intended time never depends on how long anything took, and a latency runs from the moment at
//! which the request was meant to be sent to its reply, so that a stall shows in every request that it held up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use governance::{DispatchId, Priority};
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use worker_sdk::{Dispatch, Reply};

use crate::books::Accepted;
use crate::course::Recent;
use crate::report::{Distributions, Percentiles};

/// Latencies are recorded up to this; what takes longer counts as this long.
const LATENCY_MAX: Duration = Duration::from_secs(600);
/// Requests without a reply at which a run is given up: the mesh does not keep up.
const OUTSTANDING_MAX: usize = 100_000;
/// A request that leaves this much after its time was sent late; its latency counts from its time all the same.
const LATE: Duration = Duration::from_millis(1);
/// Intended times that wait for the loop that sends; a loop this far behind is told when it was meant to send all the same.
const BEHIND_MAX: usize = 65_536;

/// A histogram of nanoseconds with three digits.
pub(crate) fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX.as_nanos() as u64, 3).expect("these bounds are valid")
}

/// Evenly spaced intended send times, relative to `epoch`, until `duration` is over.
pub(crate) fn pace(
    epoch: Instant,
    rate: u32,
    duration: Duration,
) -> anyhow::Result<mpsc::Receiver<Duration>> {
    let at =
        move |number| Duration::from_nanos((u128::from(number) * 1_000_000_000 / u128::from(rate)) as u64);
    let times = (0..total(rate, duration)).map(at);
    pace_at(epoch, times, |at| *at)
}

/// Hands out items at their intended times, relative to `epoch`, from a thread of its own: the timer of the runtime has a
/// grain of a millisecond, which is as long as what is to be measured.
pub(crate) fn pace_at<T: Send + 'static>(
    epoch: Instant,
    items: impl Iterator<Item = T> + Send + 'static,
    intended: impl Fn(&T) -> Duration + Send + 'static,
) -> anyhow::Result<mpsc::Receiver<T>> {
    let (due, times) = mpsc::channel(BEHIND_MAX);
    std::thread::Builder::new().name("pace".into()).spawn(move || {
        for item in items {
            if let Some(wait) = intended(&item).checked_sub(epoch.elapsed()) {
                std::thread::sleep(wait);
            }
            if due.blocking_send(item).is_err() {
                break;
            }
        }
    })?;
    Ok(times)
}

/// How many intended times fall into a duration.
pub(crate) const fn total(rate: u32, duration: Duration) -> u64 {
    (duration.as_nanos() * rate as u128 / 1_000_000_000) as u64
}

/// How one request ended.
struct Answer {
    priority: Priority,
    /// From the intended send time; none in the warm-up.
    latency: Option<Duration>,
    id: Option<DispatchId>,
    /// What it waited in the lane and in the inbox, and how long its handler ran; none for what failed.
    parts: Option<[Duration; 3]>,
}

/// What came of the requests of an open loop. All times in nanoseconds.
pub(crate) struct Asked {
    /// From intended send time to reply, by priority.
    pub(crate) latency: [Histogram<u64>; 4],
    /// The same without the time in the handler: what the mesh took, by priority.
    pub(crate) mesh: [Histogram<u64>; 4],
    /// Where P0 spent it: in the lane, in the inbox, and the rest.
    pub(crate) p0_parts: [Histogram<u64>; 3],
    /// By priority: in the lane, in the inbox, in the handler, and the rest.
    stages: [[Histogram<u64>; 4]; 4],
    /// What was accepted.
    pub(crate) accepted: Accepted,
    /// Requests that were meant to be sent.
    pub(crate) sent: u64,
    /// Those whose reply was an error, or that were not accepted.
    pub(crate) failed: u64,
    /// Measured requests that left late.
    pub(crate) late_sends: u64,
    late_max: Duration,
    recent: Option<Arc<Recent>>,
    epoch: Instant,
    warm_up: Duration,
    waiting: JoinSet<Answer>,
}

impl Asked {
    /// Nothing was asked; intended times count from `epoch`, and what is meant to be sent in the warm-up is not measured.
    pub(crate) fn new(epoch: Instant, warm_up: Duration) -> Self {
        Self {
            latency: std::array::from_fn(|_| new_histogram()),
            mesh: std::array::from_fn(|_| new_histogram()),
            p0_parts: std::array::from_fn(|_| new_histogram()),
            stages: std::array::from_fn(|_| std::array::from_fn(|_| new_histogram())),
            accepted: Accepted::default(),
            sent: 0,
            failed: 0,
            late_sends: 0,
            late_max: Duration::ZERO,
            recent: None,
            epoch,
            warm_up,
            waiting: JoinSet::new(),
        }
    }

    /// Tells what happens while it happens.
    pub(crate) fn watched(mut self, recent: &Arc<Recent>) -> Self {
        self.recent = Some(Arc::clone(recent));
        self
    }

    /// Sends a request that was meant to go at `intended`, and goes on.
    ///
    /// # Errors
    /// When too many are under way: the mesh does not keep up.
    pub(crate) fn ask(
        &mut self,
        intended: Duration,
        priority: Priority,
        request: Dispatch,
    ) -> anyhow::Result<()> {
        let (epoch, measured) = (self.epoch, intended >= self.warm_up);
        self.sent += 1;
        if let Some(recent) = &self.recent {
            recent.sent();
        }
        let late = epoch.elapsed().saturating_sub(intended);
        if measured && late > LATE {
            self.late_sends += 1;
            self.late_max = self.late_max.max(late);
        }
        self.waiting.spawn(async move {
            let pending = request.priority(priority).start().await;
            let id = pending.as_ref().ok().map(worker_sdk::Pending::id);
            let reply = match pending {
                Ok(pending) => pending.reply().await.ok(),
                Err(_) => None,
            };
            let parts = |r: &Reply| [r.waited_in_lane(), r.waited_in_inbox(), r.ran()];
            let latency = epoch.elapsed().saturating_sub(intended);
            Answer { priority, latency: measured.then_some(latency), id, parts: reply.as_ref().map(parts) }
        });
        while let Some(answer) = self.waiting.try_join_next() {
            self.note(&answer.context("a request panicked")?);
        }
        ensure!(
            self.waiting.len() < OUTSTANDING_MAX,
            "{OUTSTANDING_MAX} requests wait for a reply: the mesh does not keep up with the load"
        );
        Ok(())
    }

    /// Waits for the end of all that was asked.
    pub(crate) async fn finish(&mut self) -> anyhow::Result<()> {
        while let Some(answer) = self.waiting.join_next().await {
            self.note(&answer.context("a request panicked")?);
        }
        Ok(())
    }

    fn note(&mut self, answer: &Answer) {
        if let Some(id) = answer.id {
            self.accepted.add(id, 1);
        }
        self.failed += u64::from(answer.parts.is_none());
        let Some(latency) = answer.latency else { return };
        if let Some(recent) = &self.recent {
            recent.note(answer.priority, latency);
        }
        let record =
            |into: &mut Histogram<u64>, took: Duration| into.saturating_record(took.as_nanos() as u64);
        record(&mut self.latency[answer.priority as usize], latency);
        let Some([lane, inbox, ran]) = answer.parts else { return };
        record(&mut self.mesh[answer.priority as usize], latency.saturating_sub(ran));
        let stages = [lane, inbox, ran, latency.saturating_sub(lane + inbox + ran)];
        for (stage, took) in self.stages[answer.priority as usize].iter_mut().zip(stages) {
            record(stage, took);
        }
        if answer.priority == Priority::P0 {
            let parts = [lane, inbox, latency.saturating_sub(lane + inbox)];
            for (part, took) in self.p0_parts.iter_mut().zip(parts) {
                record(part, took);
            }
        }
    }
}

/// The figures that all open loops report.
#[derive(Serialize)]
pub(crate) struct Told {
    /// Requests that were meant to be sent, in the warm-up as well.
    requests: u64,
    failed: u64,
    late_sends: u64,
    late_max_us: u64,
    p0: Percentiles,
    p1: Percentiles,
    p2: Percentiles,
    p3: Percentiles,
    p0_parts: Parts,
    stages: Stages,
}

#[derive(Serialize)]
struct Parts {
    lane: Percentiles,
    inbox: Percentiles,
    rest: Percentiles,
}

#[derive(Serialize)]
struct Stages {
    p0: Stage,
    p1: Stage,
    p2: Stage,
    p3: Stage,
}

/// Where requests of one priority spent their time.
#[derive(Serialize)]
struct Stage {
    lane: Percentiles,
    inbox: Percentiles,
    ran: Percentiles,
    /// Sending and the way of the reply.
    reply: Percentiles,
}

impl Asked {
    /// From the intended send time to the reply.
    pub(crate) fn told(&self) -> Told {
        self.told_of(&self.latency)
    }

    /// The same without the time in the handler.
    pub(crate) fn told_of_mesh(&self) -> Told {
        self.told_of(&self.mesh)
    }

    fn told_of(&self, latency: &[Histogram<u64>; 4]) -> Told {
        let [p0, p1, p2, p3] = latency.each_ref().map(Percentiles::of);
        let [lane, inbox, rest] = self.p0_parts.each_ref().map(Percentiles::of);
        let stage = |of: &[Histogram<u64>; 4]| {
            let [lane, inbox, ran, reply] = of.each_ref().map(Percentiles::of);
            Stage { lane, inbox, ran, reply }
        };
        let [s0, s1, s2, s3] = self.stages.each_ref().map(stage);
        Told {
            requests: self.sent,
            failed: self.failed,
            late_sends: self.late_sends,
            late_max_us: self.late_max.as_micros() as u64,
            p0,
            p1,
            p2,
            p3,
            p0_parts: Parts { lane, inbox, rest },
            stages: Stages { p0: s0, p1: s1, p2: s2, p3: s3 },
        }
    }

    /// The whole distributions by priority, beside others.
    pub(crate) fn distributions<'h>(
        &'h self,
        others: impl IntoIterator<Item = (&'h str, &'h Histogram<u64>)>,
    ) -> Distributions {
        Distributions::of(["P0", "P1", "P2", "P3"].into_iter().zip(&self.latency).chain(others))
    }
}

/// A hundred priorities in the shares of a mix, each spread as evenly as the others allow.
///
/// # Errors
/// When the mix is not four shares that add up to 100.
pub(crate) fn interleaved(mix: &[u32]) -> anyhow::Result<Vec<Priority>> {
    ensure!(
        mix.len() == 4 && mix.iter().sum::<u32>() == 100,
        "--mix names four shares, of P0 to P3, that add up to 100"
    );
    let mut owed = [0_i64; 4];
    let next = |_| {
        for (owed, share) in owed.iter_mut().zip(mix) {
            *owed += i64::from(*share);
        }
        let most = (0..4).max_by_key(|i| (owed[*i], std::cmp::Reverse(*i))).expect("there are four");
        owed[most] -= 100;
        Priority::ALL[most]
    };
    Ok((0..100).map(next).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_is_spread_evenly_in_its_shares() {
        let order = interleaved(&[10, 20, 30, 40]).unwrap();
        for (priority, share) in Priority::ALL.iter().zip([10, 20, 30, 40]) {
            assert_eq!(order.iter().filter(|p| *p == priority).count(), share, "{priority}");
        }
        assert!(order[..10].contains(&Priority::P0), "the rarest comes within each ten");
        assert!(!order.windows(3).any(|w| w.iter().all(|p| *p == Priority::P3)), "none comes in a clump");
        assert_eq!(interleaved(&[100, 0, 0, 0]).unwrap(), [Priority::P0; 100]);
    }

    #[test]
    fn a_mix_that_does_not_add_up_is_refused() {
        for mix in [&[50, 50][..], &[10, 20, 30, 41], &[]] {
            assert!(interleaved(mix).unwrap_err().to_string().contains("add up to 100"), "{mix:?}");
        }
    }

    #[tokio::test]
    async fn items_come_at_their_times_and_in_their_order() {
        let epoch = Instant::now();
        let at = [0, 5, 20].map(Duration::from_millis);
        let mut times = pace_at(epoch, at.into_iter(), |at| *at).unwrap();
        for expected in at {
            assert_eq!(times.recv().await, Some(expected));
            assert!(epoch.elapsed() >= expected);
        }
        assert_eq!(times.recv().await, None);
    }
}
