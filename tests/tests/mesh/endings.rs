//! How dispatches end otherwise than by an answer: deadlines, withdrawals, spent attempts. And how they get more time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_tests::{Door, PATIENCE, SOON, Sightings, Stage, eventually, until};
use protocol::control::DeadLetter;
use protocol::streams;
use serde_json::{Value, json};
use tokio::sync::Notify;
use worker_sdk::{Agent, Context, ErrorKind, Failure, Reason};

/// An agent whose handler notes that it was told to stop, and does not.
async fn idler(stage: &Stage) -> anyhow::Result<(Agent, Arc<AtomicBool>)> {
    let stopped = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&stopped);
    let agent = stage
        .mesh
        .agent(&stage.name("idler"))
        .capability("idle", move |ctx: Context, (): ()| {
            let noted = Arc::clone(&noted);
            async move {
                ctx.progress(&"begun").await?;
                ctx.cancelled().await;
                noted.store(true, Ordering::SeqCst);
                std::future::pending::<Result<(), Failure>>().await
            }
        })
        .sla_p95(Duration::from_secs(60))
        .register()
        .await?;
    Ok((agent, stopped))
}

#[tokio::test]
async fn a_request_that_runs_past_its_deadline_times_out_and_its_handler_is_told() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let (idler, stopped) = idler(&stage).await?;
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(idler.name()).register().await?;
    let asked = caller.dispatch(idler.name(), "idle").budget(Duration::from_secs(3)).json(&())?;
    let error = asked.request().await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::TimedOut(Reason::ExpiredRunning | Reason::ExpiredUnknown)),
        "{error}"
    );
    until("the handler is told", SOON, || async { stopped.load(Ordering::SeqCst) }).await;
    let record = stage.record(error.id().expect("it was accepted")).await;
    assert_eq!(record.outcome.as_deref(), Some("timeout"));
    assert!(record.completed.expect("it ended") >= record.deadline);
    Ok(())
}

#[tokio::test]
async fn of_a_handler_that_gives_up_at_its_deadline_is_known_that_it_ran() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let quitter =
        stage.mesh.agent(&stage.name("quitter")).capability("try", |ctx: Context, (): ()| async move {
            ctx.cancelled().await;
            Err::<(), _>(Failure::new("no time left"))
        });
    let quitter = quitter.register().await?;
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(quitter.name()).register().await?;
    // Where its word comes after the home's own look at the clock, the home does not know, and says so.
    let error = eventually("its word comes in time", SOON, || async {
        let asked = caller.dispatch(quitter.name(), "try").budget(Duration::from_secs(2));
        let error = asked.json(&()).expect("nothing is JSON").request().await.unwrap_err();
        let ErrorKind::TimedOut(reason) = error.kind() else { panic!("{error}") };
        assert!(matches!(reason, Reason::ExpiredRunning | Reason::ExpiredUnknown), "{error}");
        (reason == Reason::ExpiredRunning).then_some(error)
    })
    .await;
    let record = stage.record(error.id().expect("it was accepted")).await;
    assert_eq!((record.outcome.as_deref(), record.reason.as_str()), (Some("timeout"), "expired_running"));
    assert!(record.runner.is_some(), "and by whom");
    Ok(())
}

#[tokio::test]
async fn what_lies_in_its_inbox_past_its_deadline_is_not_run_afterwards() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let (seen, may_end) = (Sightings::default(), Arc::new(Notify::new()));
    let (noted, gate) = (seen.clone(), Arc::clone(&may_end));
    let busy = stage.mesh.agent(&stage.name("busy")).capability("work", move |ctx: Context, long: bool| {
        noted.note(ctx.id());
        let gate = Arc::clone(&gate);
        async move {
            if long {
                gate.notified().await;
            }
            Ok::<_, Failure>(())
        }
    });
    let busy = busy.max_concurrent(1).register().await?;
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(busy.name()).register().await?;
    let first = caller.dispatch(busy.name(), "work").budget(PATIENCE).json(&true)?.start().await?;
    until("the only slot is taken", SOON, || async { seen.has(first.id()) }).await;
    let second = caller.dispatch(busy.name(), "work").budget(Duration::from_secs(3)).json(&false)?;
    let error = second.request().await.unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::TimedOut(Reason::ExpiredUnknown),
        "an instance might just have begun it"
    );

    may_end.notify_one();
    first.reply().await?;
    caller.dispatch(busy.name(), "work").json(&false)?.request().await?;
    let id = error.id().expect("it was accepted");
    assert!(!seen.has(id), "what came after it has run, and it has not");
    assert_eq!(stage.record(id).await.reason, "expired_unknown");
    Ok(())
}

#[tokio::test]
async fn a_request_that_waits_past_its_deadline_times_out_in_its_lane() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let door = Door::open(&stage).await;
    let absent = stage.name("absent");
    assert!(door.register(&json!({"agent": absent, "capabilities": ["work"]})).await.accepted);
    stage.operate("pause", &absent).await;
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(&absent).register().await?;
    // The home of the caller hears of the pause a moment after the home of the paused one; until then dispatches go to its inbox.
    let error = eventually("a dispatch waits in its lane", SOON, || async {
        let asked = caller.dispatch(&absent, "work").budget(Duration::from_millis(300));
        let error = asked.json(&()).expect("nothing is JSON").request().await.unwrap_err();
        (error.kind() == ErrorKind::TimedOut(Reason::ExpiredInLane)).then_some(error)
    })
    .await;
    let record = stage.record(error.id().expect("it was accepted")).await;
    assert_eq!((record.decision.as_str(), record.outcome.as_deref()), ("expired", Some("timeout")));
    Ok(())
}

#[tokio::test]
async fn a_withdrawn_request_ends_as_cancelled_and_its_handler_is_told() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let (idler, stopped) = idler(&stage).await?;
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(idler.name()).register().await?;
    let mut pending = caller.dispatch(idler.name(), "idle").json(&())?.start().await?;
    assert_eq!(pending.progress().await, Some(json!("begun")));
    pending.cancel().await?;
    let id = pending.id();
    let error = pending.reply().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    until("the handler is told", SOON, || async { stopped.load(Ordering::SeqCst) }).await;
    let record = stage.record(id).await;
    assert_eq!(
        (record.outcome.as_deref(), record.reason.as_str()),
        (Some("cancelled"), "cancelled_by_caller")
    );
    Ok(())
}

#[tokio::test]
async fn a_handler_gets_more_time_and_tells_how_it_goes() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let surveyor = stage
        .mesh
        .agent(&stage.name("surveyor"))
        .capability("survey", |ctx: Context, rooms: u32| async move {
            ctx.extend(Duration::from_secs(20)).await?;
            for room in 1..=rooms {
                tokio::time::sleep(Duration::from_secs(2)).await;
                ctx.progress(&room).await?;
            }
            Ok::<_, Failure>(rooms)
        })
        .sla_p95(Duration::from_secs(30))
        .register()
        .await?;
    let person = stage.mesh.agent(&stage.name("person")).depends_on(surveyor.name()).register().await?;
    let asked = person.dispatch(surveyor.name(), "survey").budget(Duration::from_secs(5)).json(&3)?;
    let mut pending = asked.start().await?;
    let mut notes = Vec::new();
    while let Some(note) = pending.progress().await {
        notes.push(note);
    }
    assert_eq!(notes, [1, 2, 3]);
    assert_eq!(pending.reply().await?.json::<u32>()?, 3, "a budget of five seconds, and more on request");
    Ok(())
}

#[tokio::test]
async fn an_event_that_fails_is_tried_again_and_becomes_a_dead_letter_with_its_payload() -> anyhow::Result<()>
{
    let stage = Stage::set().await;
    let (attempts, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let hopeless = stage
        .mesh
        .agent(&stage.name("hopeless"))
        .capability("digest", move |ctx: Context, _: Value| {
            let told = attempts.send(ctx.attempt());
            async move {
                told?;
                Err::<(), _>(Failure::new("indigestible"))
            }
        })
        .register()
        .await?;
    let cook = stage.mesh.agent(&stage.name("cook")).depends_on(hopeless.name()).register().await?;
    let letter = json!({"dish": "gravel"});
    let event =
        cook.publish_event(hopeless.name(), "digest").conversation("dinner").json(&letter)?.send().await?;
    for attempt in 1..=3 {
        assert_eq!(tokio::time::timeout(SOON, heard.recv()).await?, Some(attempt));
    }
    let record = stage.record(event.id()).await;
    assert_eq!((record.outcome.as_deref(), record.reason.as_str()), (Some("failure"), "attempts_exhausted"));
    assert_eq!(record.attempt, Some(3));

    let found = dead_letter(&stage, hopeless.name()).await;
    assert_eq!((found.id, found.attempts), (event.id().to_string(), 3));
    assert_eq!((found.source.as_str(), found.conversation.as_str()), (cook.name(), "dinner"));
    assert_eq!((found.error.as_str(), found.reason), ("indigestible", Reason::HandlerFailed));
    let payload = protocol::text::unhex(&found.payload_hex).expect("base 16");
    assert_eq!(serde_json::from_slice::<Value>(&payload)?, letter);
    Ok(())
}

#[tokio::test]
async fn an_event_that_fails_once_runs_again_and_succeeds() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let stubborn = stage
        .mesh
        .agent(&stage.name("stubborn"))
        .capability("open", |ctx: Context, (): ()| async move {
            if ctx.attempt() < 2 { Err(Failure::new("it jams")) } else { Ok(()) }
        })
        .register()
        .await?;
    let visitor = stage.mesh.agent(&stage.name("visitor")).depends_on(stubborn.name()).register().await?;
    let event = visitor.publish_event(stubborn.name(), "open").json(&())?.send().await?;
    let record = stage.record(event.id()).await;
    assert_eq!((record.outcome.as_deref(), record.attempt), (Some("success"), Some(2)));
    Ok(())
}

async fn dead_letter(stage: &Stage, agent: &str) -> DeadLetter {
    let door = Door::open(stage).await;
    let stream = door.js.get_stream(streams::DLQ).await.expect("the dead letters are there");
    let subject = format!("mesh.dlq.{agent}");
    let message = eventually("a dead letter", SOON, || async {
        stream.get_last_raw_message_by_subject(&subject).await.ok()
    })
    .await;
    serde_json::from_slice(&message.payload).expect("a dead letter is JSON")
}
