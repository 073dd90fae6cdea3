//! Dispatches that instances die of: bounded, told, kept as letters, and sent again or dropped by operators.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use governance::{AgentId, InstanceId};
use mesh_tests::{Door, Machine, PATIENCE, SOON, Stage, eventually, stack, until};
use protocol::control::{Beat, DeadLetter, OpenAnswer};
use protocol::{streams, text};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::mpsc;
use worker_sdk::{Agent, Context, ErrorKind, Failure, Kind, Priority, Reason};

/// The text of the payload that no instance survives.
const POISON: &str = "poison";

/// An instance that tells of each run; with poison it never ends, with anything else after a moment.
async fn taster(stage: &Stage, name: &str, runs: mpsc::UnboundedSender<String>) -> anyhow::Result<Agent> {
    let taste = move |_: Context, dish: String| {
        let told = runs.send(dish.clone());
        async move {
            told?;
            if dish == POISON {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            Ok::<_, Failure>(dish)
        }
    };
    Ok(stage.mesh.agent(name).capability("taste", taste).instances(1, 8).register().await?)
}

/// Lets instance after instance die as soon as it runs poison, until `calls` has its end; how many died.
async fn die_of_it<T>(
    stage: &Stage,
    name: &str,
    calls: impl Future<Output = T>,
) -> anyhow::Result<(T, usize)> {
    let (runs, mut heard) = mpsc::unbounded_channel();
    let mut calls = std::pin::pin!(calls);
    let mut died = 0;
    let mut living = taster(stage, name, runs.clone()).await?;
    loop {
        tokio::select! {
            ended = &mut calls => return Ok((ended, died)),
            Some(dish) = heard.recv() => if dish == POISON {
                // Dropped, not stopped: no goodbye, as when its process is killed.
                drop(living);
                died += 1;
                living = taster(stage, name, runs.clone()).await?;
            }
        }
    }
}

async fn letter(stage: &Stage, agent: &str) -> Option<DeadLetter> {
    let stream = Door::open(stage).await.js.get_stream(streams::DLQ).await.ok()?;
    let message = stream.get_last_raw_message_by_subject(&format!("mesh.dlq.{agent}")).await.ok()?;
    serde_json::from_slice(&message.payload).ok()
}

/// What `mesh` prints as JSON, and whether it says that all is well.
async fn mesh(stage: &Stage, args: &[&str]) -> anyhow::Result<(Value, bool)> {
    let pid = stack::process(&stage.settings.stack.join("run"), "coordinator-0");
    let coordinator = std::fs::read_link(format!("/proc/{}/exe", pid.expect("it runs")))?;
    let binary: PathBuf = coordinator.with_file_name("mesh");
    let run = Command::new(binary).arg("--json").args(args).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, run).await??;
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code().is_some_and(|code| code < 2), "{args:?}: {words}");
    Ok((serde_json::from_slice(&output.stdout).unwrap_or_default(), output.status.success()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_kills_its_instances_ends_after_the_third_and_its_neighbours_are_answered()
-> anyhow::Result<()> {
    let stage = Stage::set().await;
    let name = stage.name("taster");
    let (none, _unheard) = mpsc::unbounded_channel();
    drop(taster(&stage, &name, none).await?.stop().await);
    let cook = stage.mesh.agent(&stage.name("cook")).depends_on(&name).register().await?;
    let dishes = [POISON, "soup", "bread"].map(|d| bytes::Bytes::from(json!(d).to_string()));
    let machine = Machine::watch();
    let calls = cook.dispatch(&name, "taste").budget(PATIENCE * 2).request_many(dishes);
    let (replies, died) = die_of_it(&stage, &name, calls).await?;
    let replies = replies?;
    let error = replies[0].as_ref().expect_err("nobody survives it");
    assert_eq!(error.kind(), ErrorKind::Failed(Reason::RunnerLost), "{error}");
    // Where the whole machine stood still, instances were lost with it that nobody let die here, or a home was, and the next one
    // does not know of the first.
    let there = machine.was_there();
    assert!(died == 3 || (died <= 4 && !there), "as many as the policy allows, not {died}");
    for (reply, dish) in replies[1..].iter().zip(["soup", "bread"]) {
        match reply {
            Ok(reply) => assert_eq!(reply.json::<String>()?, dish),
            Err(error) => assert!(!there && error.kind() == ErrorKind::Failed(Reason::RunnerLost), "{error}"),
        }
    }

    let id = error.id().expect("it was accepted");
    let record = stage.record(id).await;
    assert_eq!((record.outcome.as_deref(), record.reason.as_str()), (Some("failure"), "runner_lost"));
    let letter = letter(&stage, &name).await.expect("the letter is stored before the outcome");
    assert_eq!((letter.id, letter.attempts, letter.kind), (id.to_string(), 3, Kind::Request));
    assert_eq!(letter.reason, Reason::RunnerLost);
    assert_eq!(text::unhex(&letter.payload_hex), Some(json!(POISON).to_string().into_bytes()));
    stage.archived().await;
    let notes = "SELECT count(*) FROM audit_note WHERE kind = 'redelivery' AND agent = $1";
    assert!(stage.number(notes, &[&name]).await >= 3, "who had it is on record");
    Ok(())
}

/// An agent on plain NATS, one message after the other, each taken by another instance that then falls silent.
#[tokio::test]
async fn what_instances_on_plain_nats_die_of_is_bounded_as_well() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let door = Door::open(&stage).await;
    let name = stage.name("plain");
    let registration = json!({"agent": name, "capabilities": ["taste"], "encoding": "json"});
    assert!(door.register(&registration).await.accepted);
    let cook = stage.mesh.agent(&stage.name("cook")).depends_on(&name).register().await?;
    let beat = async |instance: InstanceId| {
        let beat =
            Beat { instance: instance.to_string(), slots: 1, running: 0, running_over: 0, leaving: false };
        let body = serde_json::to_vec(&beat).expect("plain data serialises");
        door.nats.publish(format!("mesh.beat.{name}"), body.into()).await.expect("the connection is open");
        door.nats.flush().await.expect("the connection is open");
    };
    let agent = AgentId::new(&name)?;
    beat(InstanceId::of(&agent, 1)).await;
    let event = cook.publish_event(&name, "taste").json(&POISON)?.send().await?;
    let mut runs = 0;
    for number in 1..=6 {
        let instance = InstanceId::of(&agent, number);
        let message = door.take(&name, Priority::P2).await;
        let delivered = message.info().expect("a delivery").delivered;
        let question = json!({
            "runs": [[event.id().to_string(), 1]], "delivered": delivered, "runner": instance.to_string(),
            "alone": true, "inbox": message.reply.as_ref().map(ToString::to_string),
        });
        let may_run = delivered == 1
            || eventually("an answer", PATIENCE, || async {
                beat(instance).await;
                let body = serde_json::to_vec(&question).expect("plain data serialises");
                let answer =
                    door.nats.request(format!("mesh.open.{}", cook.name()), body.into()).await.ok()?;
                let answer: OpenAnswer = serde_json::from_slice(&answer.payload).ok()?;
                Some(answer.open[0][0])
            })
            .await;
        if !may_run {
            message.ack().await.expect("the broker answers");
            break;
        }
        beat(instance).await;
        runs += 1;
    }
    assert_eq!(runs, 3);
    let record = stage.record(event.id()).await;
    assert_eq!((record.outcome.as_deref(), record.reason.as_str()), (Some("failure"), "runner_lost"));
    let letter = letter(&stage, &name).await.expect("a letter");
    assert_eq!(text::unhex(&letter.payload_hex), Some(json!(POISON).to_string().into_bytes()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_are_sent_again_once_or_dropped_and_both_are_on_record() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let (name, healed) = (stage.name("patient"), Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let well = Arc::clone(&healed);
    let patient = stage.mesh.agent(&name).capability("walk", move |_: Context, _: Value| {
        let well = well.load(std::sync::atomic::Ordering::SeqCst);
        async move { if well { Ok(()) } else { Err(Failure::new("it hurts")) } }
    });
    let patient = patient.register().await?;
    let nurse = stage.mesh.agent(&stage.name("nurse")).depends_on(&name).register().await?;
    let mut died = Vec::new();
    for step in 1..=2 {
        let event = nurse.publish_event(&name, "walk").conversation("ward-3").json(&step)?.send().await?;
        let record = stage.record(event.id()).await;
        assert_eq!(record.reason, "attempts_exhausted");
        died.push(event.id().to_string());
    }
    healed.store(true, std::sync::atomic::Ordering::SeqCst);
    // So many failures in a row have tripped its breaker.
    stage.operate("reset", &name).await;

    let by = ["--reason", "the knee is mended", "--operator", "ann"];
    let dlq =
        async |verb: &str, rest: &[&str]| mesh(&stage, &[&["dlq", verb][..], &by[..], rest].concat()).await;
    let (would, _) = dlq("redrive", &["--target", &name, "--dry-run"]).await?;
    assert_eq!((would.as_array().map(Vec::len), &would[0]["done"]), (Some(2), &json!(false)));
    let (again, good) = dlq("redrive", &[&died[0]]).await?;
    assert!(good, "{again}");
    let new = again[0]["as"].as_str().expect("the id it has from now on").to_owned();
    let record = stage.record(new.parse()?).await;
    assert_eq!((record.outcome.as_deref(), record.source.as_str()), (Some("success"), nurse.name()));
    assert_eq!(record.parent.as_deref(), Some(died[0].as_str()), "the tree shows where it comes from");
    let (_, twice) = dlq("redrive", &[&died[0]]).await?;
    assert!(!twice, "there is nothing to send a second time");
    let (shown, _) = mesh(&stage, &["dlq", "show", &died[0]]).await?;
    assert_eq!((&shown["body"]["as"], &shown["body"]["operator"]), (&json!(new), &json!("ann")));

    let (dropped, good) = dlq("drop", &["--target", &name, "--failed-as", "handler_failed"]).await?;
    assert!(good, "{dropped}");
    until("no letter is left", SOON, || async { letter(&stage, &name).await.is_none() }).await;
    stage.archived().await;
    let notes = "SELECT count(*) FROM audit_note WHERE kind = 'operator' AND agent = $1 \
                 AND body::jsonb @> '{\"operator\": \"ann\", \"reason\": \"the knee is mended\"}'";
    assert_eq!(stage.number(notes, &[&nurse.name()]).await, 2, "one sent again, one dropped");
    patient.stop().await?;
    Ok(())
}
