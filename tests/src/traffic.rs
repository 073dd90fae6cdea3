//! Traffic for tests that end processes under it: callers in a closed loop, workers that answer, and the books at the end.
//!
//! Owns what callers and handlers count; believes nothing that the mesh says of itself. The rule it keeps: callers, handlers
//! and archive are compared by id, and a comparison of too little is a failure.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as Turn, MutexGuard};
use tokio::task::JoinSet;
use worker_sdk::{Agent, Context, DispatchId, Failure, InstanceId, Outcome};

use crate::{Machine, PATIENCE, Sightings, Stage, stack, until};

const CALLERS: usize = 3;
const WORKERS: usize = 2;
/// Requests that each caller keeps outstanding.
const OUTSTANDING: usize = 8;
/// Requests outstanding at any time.
pub const OUTSTANDING_TOTAL: usize = CALLERS * OUTSTANDING;
/// Less would say little.
const COMPARED_MIN: usize = 100;

/// How long each reply took, in the order in which they came.
type Replies = Arc<Mutex<Vec<Duration>>>;

fn took(replies: &Replies) -> std::sync::MutexGuard<'_, Vec<Duration>> {
    replies.lock().unwrap_or_else(PoisonError::into_inner)
}

static ALONE: Turn<()> = Turn::const_new(());

/// The turn of one test among those that end processes which all others of its program need.
pub async fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().await
}

/// Callers and workers while they run.
#[derive(Debug)]
pub struct Traffic {
    /// The mesh that they use.
    pub stage: Stage,
    seen: Sightings,
    machine: Machine,
    stop: Arc<AtomicBool>,
    replies: Replies,
    workers: Vec<Agent>,
    callers: Vec<Agent>,
    running: JoinSet<anyhow::Result<Vec<(DispatchId, Outcome)>>>,
    _alone: MutexGuard<'static, ()>,
}

impl Traffic {
    /// Registers agents with names of their own, and begins to call.
    ///
    /// # Errors
    /// When a registration is refused.
    pub async fn start() -> anyhow::Result<Self> {
        let alone = alone().await;
        let stage = Stage::set().await;
        let (seen, replies) = (Sightings::default(), Replies::default());
        let stop = Arc::new(AtomicBool::new(false));
        let name = stage.name("worker");
        let mut workers = Vec::new();
        for _ in 0..WORKERS {
            let seen = seen.clone();
            let worker =
                stage.mesh.agent(&name).instances(1, 4).capability("work", move |ctx: Context, n: u64| {
                    seen.note(ctx.id());
                    async move { Ok::<_, Failure>(n + 1) }
                });
            workers.push(worker.register().await?);
        }
        let mut callers = Vec::new();
        let mut running = JoinSet::new();
        for nth in 0..CALLERS {
            let caller =
                stage.mesh.agent(&stage.name(&format!("caller{nth}"))).depends_on(&name).register().await?;
            for _ in 0..OUTSTANDING {
                running.spawn(call(caller.clone(), name.clone(), Arc::clone(&stop), Arc::clone(&replies)));
            }
            callers.push(caller);
        }
        Ok(Self {
            stage,
            seen,
            machine: Machine::watch(),
            stop,
            replies,
            workers,
            callers,
            running,
            _alone: alone,
        })
    }

    /// The agent that is called.
    #[must_use]
    pub fn worker(&self) -> &str {
        self.workers[0].name()
    }

    /// How many replies have come.
    #[must_use]
    pub fn answered(&self) -> usize {
        took(&self.replies).len()
    }

    /// Waits until so many more replies have come; the median of how long they took.
    ///
    /// # Panics
    /// When they do not come.
    pub async fn replies(&self, more: usize) -> Duration {
        let before = self.answered();
        until(&format!("{more} more replies"), PATIENCE, || async { self.answered() >= before + more }).await;
        let mut took = took(&self.replies)[before..].to_vec();
        took.sort_unstable();
        took[took.len() / 2]
    }

    /// The process that is home of the first caller: its name and id.
    ///
    /// # Panics
    /// When no coordinator says that it is.
    pub async fn home(&self) -> (String, u32) {
        stack::home(&self.stage, self.callers[0].name()).await
    }

    /// Ends the traffic and compares callers, handlers and archive by id. Gives the dispatches that a handler saw again although
    /// the machine was there all along: workers that stood still with it were lost, and what they had ran elsewhere.
    ///
    /// # Errors
    /// When a call was not answered by its handler.
    ///
    /// # Panics
    /// When the books do not balance.
    pub async fn balance(self) -> anyhow::Result<Vec<DispatchId>> {
        self.balance_beside(&[]).await
    }

    /// The same where these dispatches of others went to the worker as well.
    ///
    /// # Errors
    /// When a call was not answered by its handler.
    ///
    /// # Panics
    /// When the books do not balance.
    #[expect(clippy::print_stderr, reason = "says why it shows less")]
    pub async fn balance_beside(mut self, beside: &[DispatchId]) -> anyhow::Result<Vec<DispatchId>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut accepted = BTreeSet::new();
        while let Some(calls) = self.running.join_next().await {
            for (id, outcome) in calls?? {
                assert!(accepted.insert(id), "{id} was given twice");
                assert_eq!(outcome, Outcome::Success, "{id} was answered by its handler");
                assert!(self.seen.has(id), "{id} was answered, and no handler saw it");
            }
        }
        assert!(accepted.len() > COMPARED_MIN, "too little was compared: {}", accepted.len());
        for id in beside {
            until(&format!("{id} was accepted, and a handler sees it"), PATIENCE, || async {
                self.seen.has(*id)
            })
            .await;
        }
        self.stage.archived().await;
        let expected = accepted.len() + beside.len();
        assert_eq!(self.seen.count(), expected, "handlers saw what was accepted, and nothing else");
        let decided =
            self.archived("SELECT instance, sequence, slot FROM dispatch_decision WHERE source = ANY($1)");
        assert_same(&accepted, &decided.await, "decision");
        let ended =
            "SELECT instance, sequence, slot FROM dispatch_completion WHERE source = ANY($1) AND NOT late";
        assert_same(&accepted, &self.archived(ended).await, "outcome");
        let stopped = "SELECT count(*) FROM archive_cursor WHERE stopped IS NOT NULL";
        assert_eq!(
            self.stage.number(stopped, &[]).await,
            0,
            "the chain is whole: the archiver checks it link by link"
        );
        for agent in self.workers.iter().chain(&self.callers) {
            agent.stop().await?;
        }
        if !self.machine.was_there() {
            let (pause, repeated) = (self.machine.longest_pause(), self.seen.repeated().len());
            eprintln!(
                "this machine stood still for {pause:?}; that handlers saw {repeated} again is its doing"
            );
            return Ok(Vec::new());
        }
        Ok(self.seen.repeated())
    }

    /// The ids that the archive has of these callers' dispatches, as often as it has them.
    async fn archived(&self, query: &str) -> Vec<DispatchId> {
        let names: Vec<&str> = self.callers.iter().map(Agent::name).collect();
        let url = &self.stage.settings.postgres_url;
        let client =
            audit_archiver::connect(url, "mesh-tests").await.expect("the archive under test answers");
        let rows = client.query(query, &[&names]).await.expect("the query is right");
        let id = |row: &tokio_postgres::Row| DispatchId {
            instance: InstanceId(row.get::<_, i64>(0).cast_unsigned()),
            sequence: row.get::<_, i64>(1).cast_unsigned(),
            slot: u16::try_from(row.get::<_, i32>(2)).expect("a slot is small"),
            copy: 0,
        };
        rows.iter().map(id).collect()
    }
}

/// Each of these dispatches has exactly one of them, and no other has any.
fn assert_same(accepted: &BTreeSet<DispatchId>, archived: &[DispatchId], what: &str) {
    let distinct: BTreeSet<DispatchId> = archived.iter().copied().collect();
    let missing: Vec<&DispatchId> = accepted.difference(&distinct).collect();
    let surplus: Vec<&DispatchId> = distinct.difference(accepted).collect();
    assert!(missing.is_empty(), "without a recorded {what}: {missing:?}");
    assert!(surplus.is_empty(), "with a recorded {what}, and accepted by nobody: {surplus:?}");
    assert_eq!(archived.len(), distinct.len(), "each has one {what}");
}

/// One caller in a closed loop: the outcome of each call it made.
async fn call(
    caller: Agent,
    worker: String,
    stop: Arc<AtomicBool>,
    replies: Replies,
) -> anyhow::Result<Vec<(DispatchId, Outcome)>> {
    let mut calls = Vec::new();
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let reply = caller.dispatch(&worker, "work").budget(PATIENCE).json(&n)?.request().await?;
        calls.push((reply.id(), reply.outcome()));
        n = reply.json()?;
        took(&replies).push(began.elapsed());
    }
    Ok(calls)
}
