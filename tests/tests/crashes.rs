//! Coordinators that are killed or stopped under load. These tests end processes that all others need: they have a
//! program of their own, and run one after the other.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mesh_tests::stack::{self, Signal};
use mesh_tests::{Door, Machine, PATIENCE, Sightings, Stage, Traffic, alone, until};
use serde_json::json;
use worker_sdk::{Agent, Context, ErrorKind, Failure, Priority, Reason};

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
    let mut machine = Machine::watch();
    let mut asked = Instant::now();
    stack::signal(pid, Signal::Terminate).await;
    // A shard stands still in its own turn only, so that replies go on while others have theirs; and after the last one.
    for end in ["signal", "end"] {
        traffic.replies(50).await;
        let took = asked.elapsed();
        assert!(took < machine.allow(HANDOVER), "from the {end} to fifty further replies: {took:?}");
        stack::ended(pid, PATIENCE).await;
        (machine, asked) = (Machine::watch(), Instant::now());
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
    let _alone = alone().await;
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
async fn what_operators_did_outlives_the_home_they_told() -> anyhow::Result<()> {
    let _alone = alone().await;
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
    let _alone = alone().await;
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

/// Kills the home of an agent, and waits until the process is gone.
async fn kill_home_of(stage: &Stage, agent: &str) {
    let (_, pid) = stack::home(stage, agent).await;
    stack::signal(pid, Signal::Kill).await;
    stack::ended(pid, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_fire_across_a_take_over_and_late_words_change_nothing() -> anyhow::Result<()> {
    /// Long enough for the way to the inbox, as it is to be taken before its end.
    const BUDGET: Duration = Duration::from_secs(5);
    let _alone = alone().await;
    let stage = Stage::set().await;
    let door = Door::open(&stage).await;
    let silent = stage.name("silent");
    assert!(
        door.register(&json!({"agent": silent, "capabilities": ["work"], "encoding": "json"})).await.accepted
    );
    door.beat(&silent, 4).await;
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(&silent).register().await?;
    let ask = async |budget: Duration| -> anyhow::Result<_> {
        door.beat(&silent, 4).await;
        let pending = caller.dispatch(&silent, "work").budget(budget).json(&())?.start().await?;
        // It is taken, so that it may run; what became of it nobody says.
        let message = door.take(&silent, Priority::P2).await;
        Ok((pending, message))
    };
    let timed_out = ErrorKind::TimedOut(Reason::ExpiredUnknown);

    let (first, _held) = ask(BUDGET).await?;
    let first_id = first.id();
    kill_home_of(&stage, caller.name()).await;
    let error = tokio::time::timeout(PATIENCE, first.reply()).await?.unwrap_err();
    assert_eq!(error.kind(), timed_out, "the home that took over tells the caller");
    let (second, _held) = ask(BUDGET).await?;
    let second_id = second.id();
    assert_eq!(tokio::time::timeout(PATIENCE, second.reply()).await?.unwrap_err().kind(), timed_out);
    for id in [first_id, second_id] {
        let record = stage.record(id).await;
        assert_eq!((record.outcome.as_deref(), record.reason.as_str()), (Some("timeout"), "expired_unknown"));
        assert!(record.completed.expect("it ended") >= record.deadline);
    }

    // One was ended by the home that is killed now, and both are reported to the one after it.
    kill_home_of(&stage, caller.name()).await;
    for id in [first_id, second_id] {
        let late = json!({"id": id.to_string(), "outcome": "success", "payload": "too late"});
        let done = format!("mesh.done.p2.{}.{silent}", caller.name());
        door.publish(&done, serde_json::to_vec(&late)?).await?;
    }
    let rows = |late: bool| {
        let (stage, source) = (stage.clone(), caller.name().to_owned());
        let query = "SELECT count(*) FROM dispatch_completion WHERE source = $1 AND late = $2";
        async move { stage.number(query, &[&source, &late]).await }
    };
    until("both late words are on record", PATIENCE, || async { rows(true).await == 2 }).await;
    assert_eq!(rows(false).await, 2, "each has the outcome that it had");
    for id in [first_id, second_id] {
        assert_eq!(stage.record(id).await.outcome.as_deref(), Some("timeout"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_instances_are_counted_on_by_the_home_that_takes_over() -> anyhow::Result<()> {
    /// As the policy says, and one that a home which has just taken over may not know of.
    const MOST: usize = 4;
    let _alone = alone().await;
    let stage = Stage::set().await;
    let name = stage.name("taster");
    let (began, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let taster = || {
        let began = began.clone();
        stage.mesh.agent(&name).instances(1, 8).capability("taste", move |ctx: Context, (): ()| {
            let told = began.send(ctx.attempt());
            async move {
                told?;
                std::future::pending::<Result<(), Failure>>().await
            }
        })
    };
    let mut living = taster().register().await?;
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(&name).register().await?;
    let call = caller.dispatch(&name, "taste").budget(PATIENCE * 2).json(&())?.request();
    let mut call = std::pin::pin!(call);
    let mut died = 0;
    let error = loop {
        tokio::select! {
            ended = &mut call => break ended.unwrap_err(),
            Some(_) = heard.recv() => {
                drop(living);
                died += 1;
                if died == 2 {
                    kill_home_of(&stage, caller.name()).await;
                }
                assert!(died <= MOST, "{died} instances died of it");
                living = taster().register().await?;
            }
        }
    };
    assert_eq!(error.kind(), ErrorKind::Failed(Reason::RunnerLost), "{error}");
    assert!((3..=MOST).contains(&died), "{died}");
    drop(living);
    Ok(())
}
