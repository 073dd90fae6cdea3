//! The load: agents that always have more to send than they may, people who wait, one that calls what it did not declare,
//! and one that is called and fails from time to time.
//!
//! Owns what senders and handlers count; believes nothing that the mesh says of itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use worker_sdk::{Agent, Context, Dispatch, DispatchId, ErrorKind, Failure, Outcome, Priority};

use crate::{PATIENCE, Sightings, Stage, until};

const WORKERS: usize = 3;
/// Instances of each worker.
const INSTANCES: u32 = 2;
const HURRIED: usize = 6;
/// Requests that each hurried agent keeps outstanding: more than a second's quota, so that its lanes are never empty.
const OUTSTANDING: usize = 48;
const PEOPLE: usize = 3;
/// Between two messages of a person, whether the first was answered or not.
const PERSON_EVERY: Duration = Duration::from_millis(200);
/// Between two calls of what fails from time to time, and of what was not declared.
const SOMETIMES: Duration = Duration::from_millis(50);
/// The failing agent fails for this long, and is well for as long.
const ILL_FOR: Duration = Duration::from_secs(6);
/// Longer than anything that a fault delays.
const BUDGET: Duration = Duration::from_secs(90);
/// What must have been answered before faults begin.
const WARM_UP: u64 = 200;

/// What senders and handlers have counted.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// How each accepted dispatch ended, as its sender was told; none where it was told nothing.
    pub(super) accepted: BTreeMap<DispatchId, Option<Outcome>>,
    /// Sends that were not accepted, or not surely.
    pub(super) unsure: u64,
    /// Calls of what was not declared.
    pub(super) undeclared: u64,
    /// The longest that a person waited, from when the message was due.
    pub(super) longest_wait: Duration,
    /// What workers saw.
    pub(super) seen: Sightings,
    /// What came to the agent that nobody may call.
    pub(super) trespasses: u64,
    /// Who sent: the agents whose quotas are judged.
    pub(super) senders: Vec<String>,
}

/// What the tasks of the load share.
#[derive(Debug, Clone, Default)]
struct Shared {
    told: Arc<Mutex<Told>>,
    answered: Arc<AtomicU64>,
    trespasses: Arc<AtomicU64>,
    ill: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    seen: Sightings,
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request, waits for its end, and keeps both.
    async fn ask(&self, dispatch: Dispatch) -> Option<Outcome> {
        let Ok(pending) = dispatch.start().await else {
            self.told().unsure += 1;
            return None;
        };
        let id = pending.id();
        self.told().accepted.insert(id, None);
        let outcome = match pending.reply().await {
            Ok(reply) => Some(reply.outcome()),
            Err(error) => outcome_of(error.kind()),
        };
        self.told().accepted.insert(id, outcome);
        self.answered.fetch_add(1, Ordering::Relaxed);
        outcome
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
    agents: Vec<Agent>,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Load {
    /// Registers all agents and begins to send.
    pub(super) async fn start(stage: &Stage) -> anyhow::Result<Self> {
        let mut load = Self { shared: Shared::default(), agents: Vec::new(), tasks: JoinSet::new() };
        load.start_targets(stage).await?;
        for index in 0..HURRIED {
            let worker = format!("worker-{}", index % WORKERS);
            let agent = load.sender(stage, &format!("hurried-{index}"), &worker).await?;
            for nth in 0..OUTSTANDING {
                load.tasks.spawn(hurry(load.shared.clone(), agent.clone(), worker.clone(), nth));
            }
        }
        for index in 0..PEOPLE {
            let worker = format!("worker-{index}");
            let agent = load.sender(stage, &format!("person-{index}"), &worker).await?;
            load.tasks.spawn(wait_as_a_person(load.shared.clone(), agent, worker));
        }
        let agent = load.sender(stage, "steady", "fragile").await?;
        load.tasks.spawn(now_and_then(load.shared.clone(), agent, "fragile"));
        let agent = load.sender(stage, "trespasser", "worker-0").await?;
        load.tasks.spawn(now_and_then(load.shared.clone(), agent, "secret"));
        load.tasks.spawn(fall_ill(load.shared.clone()));
        Ok(load)
    }

    async fn start_targets(&mut self, stage: &Stage) -> anyhow::Result<()> {
        for index in 0..WORKERS {
            for _ in 0..INSTANCES {
                let (work, urgent) = (self.shared.seen.clone(), self.shared.seen.clone());
                let agent = stage.mesh.agent(&format!("worker-{index}")).instances(1, INSTANCES);
                let agent = agent.max_concurrent(32).capability("work", move |ctx: Context, n: u64| {
                    work.note(ctx.id());
                    async move { Ok::<_, Failure>(n + 1) }
                });
                let agent = agent.capability("urgent", move |ctx: Context, n: u64| {
                    urgent.note(ctx.id());
                    async move { Ok::<_, Failure>(n + 1) }
                });
                self.agents.push(agent.register().await?);
            }
        }
        let ill = Arc::clone(&self.shared.ill);
        let fragile = stage.mesh.agent("fragile").capability("work", move |_: Context, n: u64| {
            let ill = ill.load(Ordering::Relaxed);
            async move { if ill { Err(Failure::new("ill")) } else { Ok(n + 1) } }
        });
        self.agents.push(fragile.register().await?);
        let trespasses = Arc::clone(&self.shared.trespasses);
        let secret = stage.mesh.agent("secret").capability("work", move |_: Context, n: u64| {
            trespasses.fetch_add(1, Ordering::Relaxed);
            async move { Ok::<_, Failure>(n) }
        });
        self.agents.push(secret.register().await?);
        Ok(())
    }

    async fn sender(&mut self, stage: &Stage, name: &str, target: &str) -> anyhow::Result<Agent> {
        let agent = stage.mesh.agent(name).depends_on(target).register().await?;
        self.shared.told().senders.push(name.to_owned());
        self.agents.push(agent.clone());
        Ok(agent)
    }

    /// Waits until the mesh is at work.
    pub(super) async fn flows(&self) -> anyhow::Result<()> {
        until("the load flows", PATIENCE, || async {
            self.shared.answered.load(Ordering::Relaxed) >= WARM_UP
        })
        .await;
        Ok(())
    }

    /// Sends nothing more, waits for every end, and gives what was counted.
    pub(super) async fn end(mut self) -> anyhow::Result<Told> {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        for agent in &self.agents {
            agent.stop().await?;
        }
        let mut told = std::mem::take(&mut *self.shared.told());
        told.seen = self.shared.seen.clone();
        told.trespasses = self.shared.trespasses.load(Ordering::Relaxed);
        Ok(told)
    }
}

async fn hurry(shared: Shared, agent: Agent, worker: String, nth: usize) -> anyhow::Result<()> {
    let priority = [Priority::P1, Priority::P2, Priority::P3][nth % 3];
    while shared.goes_on() {
        let dispatch = agent.dispatch(&worker, "work").priority(priority).budget(BUDGET).json(&nth)?;
        if shared.ask(dispatch).await.is_none() {
            tokio::time::sleep(SOMETIMES).await;
        }
    }
    Ok(())
}

async fn wait_as_a_person(shared: Shared, agent: Agent, worker: String) -> anyhow::Result<()> {
    let mut due = tokio::time::interval(PERSON_EVERY);
    let mut asked = JoinSet::new();
    while shared.goes_on() {
        let at: Instant = due.tick().await.into_std();
        let dispatch = agent.dispatch(&worker, "urgent").priority(Priority::P0).budget(BUDGET).json(&1)?;
        let shared = shared.clone();
        asked.spawn(async move {
            shared.ask(dispatch).await;
            let waited = at.elapsed();
            let mut told = shared.told();
            told.longest_wait = told.longest_wait.max(waited);
        });
    }
    while let Some(ended) = asked.join_next().await {
        ended?;
    }
    Ok(())
}

async fn now_and_then(shared: Shared, agent: Agent, target: &'static str) -> anyhow::Result<()> {
    let mut due = tokio::time::interval(SOMETIMES);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while shared.goes_on() {
        due.tick().await;
        if target == "secret" {
            shared.told().undeclared += 1;
        }
        shared.ask(agent.dispatch(target, "work").budget(BUDGET).json(&1)?).await;
    }
    Ok(())
}

async fn fall_ill(shared: Shared) -> anyhow::Result<()> {
    let mut turns = tokio::time::interval(ILL_FOR);
    while shared.goes_on() {
        turns.tick().await;
        shared.ill.fetch_xor(true, Ordering::Relaxed);
    }
    shared.ill.store(false, Ordering::Relaxed);
    Ok(())
}
