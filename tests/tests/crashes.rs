//! Coordinators that are killed or stopped under load. These tests end processes that all others need: they have a
//! program of their own, and run one after the other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mesh_tests::stack::{self, Signal};
use mesh_tests::{PATIENCE, Sightings, Stage, until};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinSet;
use worker_sdk::{Agent, Context, DispatchId, ErrorKind, Failure, Outcome, Reason};

const CALLERS: usize = 3;
const WORKERS: usize = 2;
/// Requests that each caller keeps outstanding.
const OUTSTANDING: usize = 8;

static ALONE: Mutex<()> = Mutex::const_new(());

/// What callers and handlers count for themselves, to be compared with what the archive says.
struct Traffic {
    stage: Stage,
    seen: Sightings,
    stop: Arc<AtomicBool>,
    replies: Arc<AtomicU64>,
    workers: Vec<Agent>,
    callers: Vec<Agent>,
    running: JoinSet<anyhow::Result<Vec<(DispatchId, Outcome)>>>,
    _alone: MutexGuard<'static, ()>,
}

impl Traffic {
    async fn start() -> anyhow::Result<Self> {
        let alone = ALONE.lock().await;
        let stage = Stage::set().await;
        let (seen, replies) = (Sightings::default(), Arc::new(AtomicU64::new(0)));
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
        Ok(Self { stage, seen, stop, replies, workers, callers, running, _alone: alone })
    }

    /// Waits until so many more replies have come.
    async fn replies(&self, more: u64) {
        let before = self.replies.load(Ordering::Relaxed);
        until(&format!("{more} more replies"), PATIENCE, || async {
            self.replies.load(Ordering::Relaxed) >= before + more
        })
        .await;
    }

    /// The process that is home of the first caller: its name and id.
    async fn home(&self) -> (String, u32) {
        stack::home(&self.stage, self.callers[0].name()).await
    }

    /// Ends the traffic and compares callers, handlers and archive. Gives the dispatches that a handler saw again.
    async fn balance(mut self) -> anyhow::Result<Vec<DispatchId>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut accepted = BTreeSet::new();
        let mut succeeded = 0;
        while let Some(calls) = self.running.join_next().await {
            for (id, outcome) in calls?? {
                assert!(accepted.insert(id), "{id} was given twice");
                succeeded += usize::from(outcome == Outcome::Success);
            }
        }
        assert!(accepted.len() > 100, "too little was compared: {}", accepted.len());
        assert_eq!(succeeded, accepted.len(), "each call was answered by its handler");
        assert_eq!(self.seen.count(), accepted.len(), "handlers saw what was accepted, and nothing else");

        self.stage.archived().await;
        let names: Vec<String> = self.callers.iter().map(|caller| caller.name().to_owned()).collect();
        let count = |query: &'static str| {
            let (stage, names) = (self.stage.clone(), names.clone());
            async move { stage.number(query, &[&names]).await }
        };
        let expected = accepted.len() as i64;
        assert_eq!(count("SELECT count(*) FROM dispatch_decision WHERE source = ANY($1)").await, expected);
        let distinct = "SELECT count(*) FROM (SELECT DISTINCT instance, sequence, slot FROM dispatch_decision \
                        WHERE source = ANY($1)) ids";
        assert_eq!(count(distinct).await, expected, "each was decided once");
        let ends = "SELECT count(*) FROM dispatch_completion WHERE source = ANY($1) AND NOT late";
        assert_eq!(count(ends).await, expected, "each has one outcome");
        let ended = "SELECT count(*) FROM (SELECT DISTINCT instance, sequence, slot FROM dispatch_completion \
                     WHERE source = ANY($1) AND NOT late) ids";
        assert_eq!(count(ended).await, expected);
        let stopped =
            "SELECT count(*) FROM archive_cursor WHERE stopped IS NOT NULL AND $1::text[] IS NOT NULL";
        assert_eq!(count(stopped).await, 0, "the chain is whole: the archiver checks it link by link");
        for agent in self.workers.iter().chain(&self.callers) {
            agent.stop().await?;
        }
        Ok(self.seen.repeated())
    }
}

/// One caller in a closed loop: the outcome of each call it made.
async fn call(
    caller: Agent,
    worker: String,
    stop: Arc<AtomicBool>,
    replies: Arc<AtomicU64>,
) -> anyhow::Result<Vec<(DispatchId, Outcome)>> {
    let mut calls = Vec::new();
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        let reply = caller.dispatch(&worker, "work").budget(PATIENCE).json(&n)?.request().await?;
        calls.push((reply.id(), reply.outcome()));
        n = reply.json()?;
        replies.fetch_add(1, Ordering::Relaxed);
    }
    Ok(calls)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_coordinator_loses_nothing_and_repeats_nothing() -> anyhow::Result<()> {
    let traffic = Traffic::start().await?;
    for _ in 0..3 {
        traffic.replies(150).await;
        let (_, pid) = traffic.home().await;
        stack::signal(pid, Signal::Kill).await;
        stack::ended(pid, PATIENCE).await;
        traffic.replies(50).await;
    }
    assert_eq!(traffic.balance().await?, [], "no handler saw a dispatch twice");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stderr, reason = "says why it shows nothing")]
async fn a_coordinator_that_is_asked_to_stop_hands_its_shards_over() -> anyhow::Result<()> {
    /// A release is seen at once; the rest is taking over. A killed home takes longer, until it is missed.
    const HANDOVER: Duration = Duration::from_secs(5);
    let traffic = Traffic::start().await?;
    if traffic.stage.settings.coordinators.len() < 2 {
        eprintln!("skipped: nobody stands by, the stack has one coordinator");
        return Ok(());
    }
    traffic.replies(150).await;
    let (name, pid) = traffic.home().await;
    let mut asked = Instant::now();
    stack::signal(pid, Signal::Terminate).await;
    // A shard stands still in its own turn only, so that replies go on while others have theirs; and after the last one.
    for end in ["signal", "end"] {
        traffic.replies(50).await;
        let took = asked.elapsed();
        assert!(took < HANDOVER, "from the {end} to fifty further replies: {took:?}");
        stack::ended(pid, PATIENCE).await;
        asked = Instant::now();
    }
    let log = std::fs::read_to_string(traffic.stage.settings.stack.join(format!("logs/{name}.log")))?;
    assert!(log.contains(&format!("{name} ended with status 0")), "it ended in order");
    let (_, heir) = traffic.home().await;
    assert_ne!(heir, pid);
    assert_eq!(traffic.balance().await?, [], "no handler saw a dispatch twice");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stderr, reason = "says why it shows nothing")]
async fn a_home_that_stood_still_wakes_up_deposed_and_does_no_harm() -> anyhow::Result<()> {
    const STANDS_STILL: Duration = Duration::from_secs(20);
    let traffic = Traffic::start().await?;
    if traffic.stage.settings.coordinators.len() < 2 {
        eprintln!("skipped: nobody takes over, the stack has one coordinator");
        return Ok(());
    }
    traffic.replies(150).await;
    let (name, pid) = traffic.home().await;
    let log = traffic.stage.settings.stack.join(format!("logs/{name}.log"));
    let before = std::fs::read_to_string(&log)?.len();
    let stopped = Instant::now();
    stack::signal(pid, Signal::Stop).await;
    while stopped.elapsed() < STANDS_STILL {
        traffic.replies(50).await;
    }
    let (heir, _) = traffic.home().await;
    assert_ne!(heir, name, "another replica has taken over");
    stack::signal(pid, Signal::Continue).await;

    // What it had in flight it tries to finish, and each try is refused by the audit's head or by the fence of an inbox.
    let refused = mesh_tests::eventually("a refusal in its log", PATIENCE, || async {
        let text = std::fs::read_to_string(&log).ok()?.split_off(before);
        let refused: Vec<String> =
            text.lines().filter(|line| line.contains("deposed: ")).map(str::to_owned).collect();
        (!refused.is_empty()).then_some(refused)
    })
    .await;
    for line in &refused {
        let by = ["written by another home", "refused the fence"].iter().find(|by| line.contains(**by));
        assert!(by.is_some(), "refused by something else: {line}");
    }
    traffic.replies(150).await;
    assert_eq!(traffic.balance().await?, [], "no handler saw a dispatch twice");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_coordinator_forgets_no_quota() -> anyhow::Result<()> {
    const BURST: u32 = 500;
    let _alone = ALONE.lock().await;
    let stage = Stage::set().await;
    let seen = Sightings::default();
    let noted = seen.clone();
    let worker = stage
        .mesh
        .agent(&stage.name("worker"))
        .capability("work", move |ctx: Context, n: u32| {
            noted.note(ctx.id());
            async move { Ok::<_, Failure>(n) }
        })
        .register()
        .await?;
    let hasty = stage.mesh.agent("quota-bot").depends_on(worker.name()).register().await?;
    let payloads = (0..BURST).map(|n| bytes::Bytes::from(n.to_string()));
    let calls = tokio::spawn(hasty.dispatch(worker.name(), "work").budget(PATIENCE).request_many(payloads));
    for kills in 1..=2 {
        until("some of it has run", PATIENCE, || async { seen.count() >= kills * 120 }).await;
        let (_, pid) = stack::home(&stage, hasty.name()).await;
        stack::signal(pid, Signal::Kill).await;
        stack::ended(pid, PATIENCE).await;
    }
    let replies = calls.await??;
    assert_eq!(replies.iter().filter(|reply| reply.is_ok()).count(), BURST as usize);
    stage.archived().await;
    let limit =
        |agent: &str| (agent == "quota-bot").then_some(governance::policy::Rate { per_s: 100, burst: 10 });
    let check = stage.archive.quota_exceeded(stage.since, limit).await?;
    assert_eq!((check.admitted, check.exceeded), (u64::from(BURST), 0), "{:?}", check.examples);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_postgresql_is_away_everything_runs_and_the_trail_waits() -> anyhow::Result<()> {
    let traffic = Traffic::start().await?;
    traffic.replies(50).await;
    stack::dev("stack-stop", &traffic.stage, "postgres").await;
    traffic.replies(200).await;
    stack::dev("stack-start", &traffic.stage, "postgres").await;
    assert_eq!(traffic.balance().await?, [], "no handler saw a dispatch twice");
    Ok(())
}

/// Waits until each coordinator says of itself whether it can work.
async fn until_readiness(stage: &Stage, status: &str) {
    for address in &stage.settings.coordinators {
        until(&format!("{address} answers {status}"), PATIENCE, || async {
            let answer = stage.http(address, "/readyz").await.unwrap_or_default();
            answer.starts_with(&format!("HTTP/1.1 {status} "))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_dispatches_wait_and_none_is_lost() -> anyhow::Result<()> {
    let traffic = Traffic::start().await?;
    traffic.replies(100).await;
    stack::dev("stack-stop", &traffic.stage, "redis").await;
    until_readiness(&traffic.stage, "503").await;
    stack::dev("stack-start", &traffic.stage, "redis").await;
    until_readiness(&traffic.stage, "200").await;
    traffic.replies(100).await;
    assert_eq!(traffic.balance().await?, [], "no handler saw a dispatch twice");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_comes_back_with_all_it_acknowledged() -> anyhow::Result<()> {
    let traffic = Traffic::start().await?;
    for node in stack::broker_nodes(&traffic.stage) {
        traffic.replies(100).await;
        stack::dev("stack-restart", &traffic.stage, &node).await;
    }
    traffic.replies(100).await;
    // What was stored and not yet acknowledged may have been published again; what ran twice ended once all the same.
    traffic.balance().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_operators_did_outlives_the_home_they_told() -> anyhow::Result<()> {
    let _alone = ALONE.lock().await;
    let stage = Stage::set().await;
    let work = |_: Context, n: u32| async move { Ok::<_, Failure>(n) };
    let tripped = stage.mesh.agent(&stage.name("tripped")).capability("work", work).register().await?;
    let paused = stage.mesh.agent(&stage.name("paused")).capability("work", work).register().await?;
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(tripped.name()).depends_on(paused.name());
    let caller = caller.register().await?;
    stage.operate("trip", tripped.name()).await;
    stage.operate("pause", paused.name()).await;
    stage.archived().await;
    let (_, pid) = stack::home(&stage, tripped.name()).await;
    stack::signal(pid, Signal::Kill).await;
    stack::ended(pid, PATIENCE).await;

    let refused = caller.dispatch(tripped.name(), "work").json(&1)?.request().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::CircuitBroken, "{refused}");
    assert!(stage.view(paused.name()).await.paused);
    let waits = caller.dispatch(paused.name(), "work").budget(Duration::from_millis(500)).json(&1)?;
    assert_eq!(waits.request().await.unwrap_err().kind(), ErrorKind::TimedOut(Reason::ExpiredInLane));
    stage.operate("reset", tripped.name()).await;
    // The caller's home may be another one, which hears of it a moment later.
    until("calls go through", PATIENCE, || async {
        let call = caller.dispatch(tripped.name(), "work").json(&2).expect("a number is JSON");
        call.call::<u32>().await.is_ok_and(|n| n == 2)
    })
    .await;
    stage.operate("resume", paused.name()).await;
    assert_eq!(caller.dispatch(paused.name(), "work").json(&3)?.call::<u32>().await?, 3);
    Ok(())
}

/// One of sixteen events fails at first and is sent again: too few to trip the breaker.
async fn forgetful(stage: &Stage, seen: Sightings) -> anyhow::Result<Agent> {
    let note = move |ctx: Context, n: u32| {
        let seen = seen.clone();
        async move {
            if n % 16 == 3 && ctx.attempt() == 1 {
                return Err(Failure::new("not yet"));
            }
            seen.note(ctx.id());
            Ok(())
        }
    };
    Ok(stage.mesh.agent(&stage.name("worker")).capability("note", note).register().await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_topics_and_retries_balance_when_coordinators_are_killed() -> anyhow::Result<()> {
    const ROUNDS: usize = 30;
    const BATCH: usize = 40;
    let _alone = ALONE.lock().await;
    let stage = Stage::set().await;
    let (topic, seen) = (stage.name("news"), Sightings::default());
    let worker = forgetful(&stage, seen.clone()).await?;
    let heard = seen.clone();
    let reader = stage.mesh.agent(&stage.name("reader")).on_topic(&topic, move |ctx: Context, _: u32| {
        heard.note(ctx.id());
        async { Ok(()) }
    });
    let reader = reader.register().await?;
    let sender = stage.mesh.agent(&stage.name("sender")).depends_on(worker.name()).register().await?;

    let sending = async {
        let mut accepted = BTreeSet::new();
        for round in 0..ROUNDS {
            let batch = (0..BATCH).map(|n| bytes::Bytes::from(n.to_string()));
            let events = sender.publish_event(worker.name(), "note").send_many(batch).await?;
            accepted.extend(events.ids());
            accepted.insert(sender.emit(&topic).json(&round)?.send().await?.id());
            until("the mesh keeps up", PATIENCE, || async { seen.count() + 200 >= round * BATCH }).await;
        }
        anyhow::Ok(accepted)
    };
    let killing = async {
        for kill in 1..=3 {
            until("it goes on", PATIENCE, || async { seen.count() >= kill * 200 }).await;
            let (_, pid) = stack::home(&stage, sender.name()).await;
            stack::signal(pid, Signal::Kill).await;
            stack::ended(pid, PATIENCE).await;
        }
    };
    let (accepted, ()) = tokio::join!(sending, killing);
    let accepted = accepted?;
    assert_eq!(accepted.len(), ROUNDS * (BATCH + 1));

    let ends = "SELECT count(*) FROM dispatch_completion WHERE source = $1 AND NOT late";
    // A topic's event ends with its decision; its one copy ends like any other dispatch.
    let expected = accepted.len() as i64;
    until("each has its outcome", PATIENCE, || async {
        stage.number(ends, &[&sender.name()]).await >= expected
    })
    .await;
    stage.archived().await;
    assert_eq!(stage.number(ends, &[&sender.name()]).await, expected, "each has one outcome");
    let successes = "SELECT count(*) FROM dispatch WHERE source = $1 AND outcome = 'success'";
    assert_eq!(stage.number(successes, &[&sender.name()]).await, expected + ROUNDS as i64);
    let decisions = "SELECT count(*) FROM dispatch_decision WHERE source = $1";
    assert_eq!(
        stage.number(decisions, &[&sender.name()]).await,
        expected + ROUNDS as i64,
        "each was decided once"
    );
    assert_eq!(seen.repeated(), [], "none succeeded twice");
    assert_eq!(seen.count(), accepted.len());
    drop(reader);
    Ok(())
}
