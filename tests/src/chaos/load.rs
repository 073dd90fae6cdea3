//! The load: agents that always have more to send than they may, others that send in bulk, people who wait, one that calls
//! what it did not declare, and callers of agents that fail and of agents that are slow.
//!
//! Owns what senders count; believes nothing that the mesh says of itself. It is an open loop where it can be: what is due is
//! sent, whether the mesh answers or not, up to a bound that holds an outage of ten seconds.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval};
use worker_sdk::{Agent, Dispatch, ErrorKind, Mesh, Outcome, Priority};

use super::cast;
use crate::conservation::Told;
use crate::{PATIENCE, until};

/// Agents that send events in bulk, well within their quota, so that they catch up after an outage.
const BULKS: usize = 4;
/// Between two batches of one of them.
const BULK_EVERY: Duration = Duration::from_millis(50);
/// Events in a batch: with all of them 2,000 a second.
const BULK_BATCH: u64 = 25;
/// Batches of one of them that may wait for the mesh: ten seconds of them.
const BULK_WAITING_MAX: usize = 200;
/// Agents that always have more to send than they may, one dispatch after the other.
const HURRIED: usize = 6;
/// Requests that each of them keeps outstanding: more than a second's quota, so that its lanes are never empty.
const HURRIED_OUTSTANDING: usize = 48;
/// The same, with requests that go out together and wait for each other.
const EAGER: usize = 2;
/// How many requests go out together, and how often at the same time.
const EAGER_BATCH: usize = 50;
const EAGER_BATCHES: usize = 6;
const PEOPLE: usize = 3;
/// Between two messages of a person, whether the first was answered or not.
const PERSON_EVERY: Duration = Duration::from_millis(200);
/// Between two calls of what fails or is slow, and of what was not declared.
const SOMETIMES: Duration = Duration::from_millis(50);
/// Requests of one agent that are made now and then and may wait for an answer.
const SOMETIMES_WAITING_MAX: usize = 400;
/// Between two pieces of news.
const NEWS_EVERY: Duration = Duration::from_millis(100);
/// Longer than anything that a fault delays.
const BUDGET: Duration = Duration::from_secs(90);
/// What must have been answered before faults begin.
const WARM_UP: u64 = 500;

/// What senders have counted.
#[derive(Debug, Default)]
pub(super) struct Counted {
    /// How each accepted dispatch ended, as its sender was told; none where it was told nothing.
    pub(super) told: Told,
    /// Sends that were not accepted, or not surely.
    pub(super) unsure: u64,
    /// Requests whose sender was told that the outcome is unknown.
    pub(super) untold: u64,
    /// Events that were due while too many waited to be accepted, and that were never sent.
    pub(super) withheld: u64,
    /// Calls of what was not declared.
    pub(super) undeclared: u64,
    /// The longest that a person waited, from when the message was due.
    pub(super) longest_wait: Duration,
    /// Who sent: the agents whose quotas are judged.
    pub(super) senders: Vec<String>,
}

/// What the tasks of the load share.
#[derive(Debug, Clone, Default)]
struct Shared {
    counted: Arc<Mutex<Counted>>,
    answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request, waits for its end, and keeps both.
    async fn ask(&self, dispatch: Dispatch) -> Option<Outcome> {
        let Ok(pending) = dispatch.start().await else {
            self.counted().unsure += 1;
            return None;
        };
        let id = pending.id();
        self.counted().told.insert(id, None);
        let outcome = match pending.reply().await {
            Ok(reply) => Some(reply.outcome()),
            Err(error) => outcome_of(error.kind()),
        };
        let mut counted = self.counted();
        counted.untold += u64::from(outcome.is_none());
        counted.told.insert(id, outcome);
        drop(counted);
        self.answered.fetch_add(1, Ordering::Relaxed);
        outcome
    }

    /// Sends events, and keeps which of them were accepted.
    async fn publish(&self, event: Dispatch, count: u64) {
        let payloads = (0..count).map(|n| Bytes::from(n.to_string()));
        match event.send_many(payloads).await {
            Ok(many) => self.counted().told.extend(many.ids().map(|id| (id, None))),
            Err(_) => self.counted().unsure += count,
        }
    }
}

/// The outcome that an error tells; none where it says that it does not know.
#[expect(clippy::wildcard_enum_match_arm, reason = "a further kind tells no outcome either")]
fn outcome_of(kind: ErrorKind) -> Option<Outcome> {
    match kind {
        ErrorKind::Rejected(_) => Some(Outcome::Rejected),
        ErrorKind::TimedOut(_) => Some(Outcome::Timeout),
        ErrorKind::CircuitBroken => Some(Outcome::CircuitBroken),
        ErrorKind::Cancelled => Some(Outcome::Cancelled),
        ErrorKind::Failed(_) => Some(Outcome::Failure),
        _ => None,
    }
}

/// The load, while it runs.
pub(super) struct Load {
    shared: Shared,
    mesh: Mesh,
    agents: Vec<Agent>,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Load {
    /// Registers all senders and begins to send.
    pub(super) async fn start(mesh: Mesh) -> anyhow::Result<Self> {
        let (shared, agents, tasks) = (Shared::default(), Vec::new(), JoinSet::new());
        let mut load = Self { shared, mesh, agents, tasks };
        let worker = |index: usize| cast::WORKERS[index % cast::WORKERS.len()];
        for index in 0..BULKS {
            let agent = load.sender(&format!("bulk-{index}"), worker(index)).await?;
            load.tasks.spawn(send_in_bulk(load.shared.clone(), agent, worker(index), index));
        }
        for index in 0..HURRIED {
            let agent = load.sender(&format!("hurried-{index}"), worker(index)).await?;
            for nth in 0..HURRIED_OUTSTANDING {
                load.tasks.spawn(hurry(load.shared.clone(), agent.clone(), worker(index), nth, 1));
            }
        }
        for index in 0..EAGER {
            let agent = load.sender(&format!("eager-{index}"), worker(index)).await?;
            for nth in 0..EAGER_BATCHES {
                load.tasks.spawn(hurry(load.shared.clone(), agent.clone(), worker(index), nth, EAGER_BATCH));
            }
        }
        for index in 0..PEOPLE {
            let agent = load.sender(&format!("person-{index}"), worker(index)).await?;
            load.tasks.spawn(wait_as_a_person(load.shared.clone(), agent, worker(index)));
        }
        load.start_the_others().await?;
        Ok(load)
    }

    async fn start_the_others(&mut self) -> anyhow::Result<()> {
        for (name, target) in
            [("steady", cast::FRAGILE), ("patient", cast::SLUGGISH), ("trespasser", cast::SECRET)]
        {
            // What is not declared is what the trespasser calls.
            let declared = if target == cast::SECRET { cast::WORKERS[0] } else { target };
            let agent = self.sender(name, declared).await?;
            self.tasks.spawn(now_and_then(self.shared.clone(), agent, target));
        }
        let agent = self.sender("herald", cast::FRAGILE).await?;
        self.tasks.spawn(tell_news(self.shared.clone(), agent));
        Ok(())
    }

    async fn sender(&mut self, name: &str, target: &str) -> anyhow::Result<Agent> {
        let agent = self.mesh.agent(name).depends_on(target).register().await?;
        self.shared.counted().senders.push(name.to_owned());
        self.agents.push(agent.clone());
        Ok(agent)
    }

    /// Waits until the mesh is at work.
    pub(super) async fn flows(&self) {
        until("the load flows", PATIENCE, || async {
            self.shared.answered.load(Ordering::Relaxed) >= WARM_UP
        })
        .await;
    }

    /// Sends nothing more, waits for every answer, and gives what was counted.
    pub(super) async fn end(mut self) -> anyhow::Result<Counted> {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        for agent in &self.agents {
            agent.stop().await?;
        }
        let counted = std::mem::take(&mut *self.shared.counted());
        Ok(counted)
    }
}

/// Ticks that are missed are not made up for.
fn every(time: Duration) -> Interval {
    let mut due = interval(time);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    due
}

async fn send_in_bulk(shared: Shared, agent: Agent, worker: &'static str, nth: usize) -> anyhow::Result<()> {
    let priority = [Priority::P2, Priority::P3, Priority::P2, Priority::P1][nth % 4];
    let waiting = Arc::new(Semaphore::new(BULK_WAITING_MAX));
    let mut due = every(BULK_EVERY);
    let mut sending = JoinSet::new();
    while shared.goes_on() {
        due.tick().await;
        while sending.try_join_next().is_some() {}
        let Ok(turn) = Arc::clone(&waiting).try_acquire_owned() else {
            shared.counted().withheld += BULK_BATCH;
            continue;
        };
        let event = agent.publish_event(worker, cast::WORK).priority(priority).bytes(Bytes::new(), "");
        let shared = shared.clone();
        sending.spawn(async move {
            shared.publish(event, BULK_BATCH).await;
            drop(turn);
        });
    }
    while let Some(sent) = sending.join_next().await {
        sent?;
    }
    Ok(())
}

async fn hurry(
    shared: Shared,
    agent: Agent,
    worker: &'static str,
    nth: usize,
    together: usize,
) -> anyhow::Result<()> {
    let priority = [Priority::P1, Priority::P2, Priority::P3][nth % 3];
    while shared.goes_on() {
        let mut asked = Vec::with_capacity(together);
        for n in 0..together {
            let dispatch = agent.dispatch(worker, cast::WORK).priority(priority).budget(BUDGET).json(&n)?;
            asked.push(shared.ask(dispatch));
        }
        if join_all(asked).await.contains(&None) {
            tokio::time::sleep(SOMETIMES).await;
        }
    }
    Ok(())
}

async fn wait_as_a_person(shared: Shared, agent: Agent, worker: &'static str) -> anyhow::Result<()> {
    let mut due = interval(PERSON_EVERY);
    let mut asked = JoinSet::new();
    while shared.goes_on() {
        let at: Instant = due.tick().await.into_std();
        let dispatch = agent.dispatch(worker, cast::URGENT).priority(Priority::P0).budget(BUDGET).json(&1)?;
        let shared = shared.clone();
        asked.spawn(async move {
            shared.ask(dispatch).await;
            let waited = at.elapsed();
            let mut counted = shared.counted();
            counted.longest_wait = counted.longest_wait.max(waited);
        });
    }
    while let Some(ended) = asked.join_next().await {
        ended?;
    }
    Ok(())
}

async fn now_and_then(shared: Shared, agent: Agent, target: &'static str) -> anyhow::Result<()> {
    let mut due = every(SOMETIMES);
    let mut asked = JoinSet::new();
    while shared.goes_on() {
        due.tick().await;
        while asked.try_join_next().is_some() {}
        if asked.len() >= SOMETIMES_WAITING_MAX {
            continue;
        }
        if target == cast::SECRET {
            shared.counted().undeclared += 1;
        }
        let dispatch = agent.dispatch(target, cast::WORK).budget(BUDGET).json(&1)?;
        let shared = shared.clone();
        asked.spawn(async move { shared.ask(dispatch).await });
    }
    while let Some(ended) = asked.join_next().await {
        ended?;
    }
    Ok(())
}

/// News for whoever wants them, and an event for one that may fail, which comes again then.
async fn tell_news(shared: Shared, agent: Agent) -> anyhow::Result<()> {
    let mut due = every(NEWS_EVERY);
    while shared.goes_on() {
        due.tick().await;
        let news = agent.emit(cast::NEWS).priority(Priority::P2);
        let order = agent.publish_event(cast::FRAGILE, cast::WORK).priority(Priority::P2);
        tokio::join!(shared.publish(news, 1), shared.publish(order, 1));
    }
    Ok(())
}
