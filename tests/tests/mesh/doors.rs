//! The open door: agents without the SDK, and messages that nobody can read.

use std::path::PathBuf;
use std::process::Stdio;

use futures::StreamExt;
use governance::{AgentId, InstanceId};
use mesh_tests::{Door, PATIENCE, SOON, Sightings, Stage, until};
use protocol::control::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use worker_sdk::{Context, Failure, Priority};

fn python(script: &str) -> Command {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/python")).join(script);
    let mut command = Command::new("python3");
    command.arg(path).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    command
}

/// The agent of `examples/python` as a process, once it is registered.
struct PythonAgent {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl PythonAgent {
    async fn start(name: &str, may_call: &str) -> anyhow::Result<Self> {
        let mut process = python("agent.py").args(["--name", name, "--depends-on", may_call]).spawn()?;
        let lines = BufReader::new(process.stdout.take().expect("it is piped")).lines();
        let mut agent = Self { process, lines };
        let first = agent.line().await?;
        assert!(first.contains("is registered"), "{first}");
        Ok(agent)
    }

    async fn line(&mut self) -> anyhow::Result<String> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await??;
        Ok(line.expect("the agent goes on"))
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.process.id().expect("it runs");
        mesh_tests::stack::signal(pid, mesh_tests::stack::Signal::Terminate).await;
        let status = tokio::time::timeout(PATIENCE, self.process.wait()).await??;
        assert!(status.success(), "it ends in order: {status}");
        Ok(())
    }
}

#[tokio::test]
async fn an_agent_in_plain_python_serves_calls_and_makes_them() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let parrot = stage
        .mesh
        .agent(&stage.name("parrot"))
        .capability("echo", |_: Context, text: Value| async move { Ok::<_, Failure>(text) })
        .register()
        .await?;
    let name = stage.name("python");
    let mut agent = PythonAgent::start(&name, parrot.name()).await?;
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(&name).register().await?;

    let reversed: String = caller.dispatch(&name, "reverse").json(&json!({"text": "mesh"}))?.call().await?;
    assert_eq!(reversed, "hsem");
    let urgent = caller.dispatch(&name, "reverse").priority(Priority::P1).json(&json!({"text": "ab"}))?;
    assert_eq!(urgent.call::<String>().await?, "ba");

    let wish = json!({"target": parrot.name(), "capability": "echo", "payload": {"say": "hi"}});
    let reply = caller.dispatch(&name, "delegate").conversation("birds").json(&wish)?.request().await?;
    assert_eq!(reply.json::<Value>()?, json!({"say": "hi"}));
    stage.archived().await;
    let tree = stage.archive.tree(&reply.id().to_string()).await?.expect("it is in the archive");
    assert_eq!(tree.hops.len(), 2, "the call it made is a child: {tree:?}");

    let error = caller.dispatch(&name, "reverse").json(&json!({}))?.request().await.unwrap_err();
    assert!(error.message().contains("KeyError"), "{error}");

    caller.emit("example_leads").json(&json!({"lead": 7}))?.send().await?;
    assert_eq!(agent.line().await?, "event: {'lead': 7}");
    agent.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_caller_in_plain_python_gets_its_reply() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let teller = stage
        .mesh
        .agent(&stage.name("teller"))
        .capability("add", |_: Context, (a, b): (i64, i64)| async move { Ok::<_, Failure>(a + b) })
        .register()
        .await?;
    let name = stage.name("caller");
    let mut command = python("caller.py");
    command.args([teller.name(), "add", "[20, 22]", "--priority", "p1", "--name", &name]);
    let output = tokio::time::timeout(PATIENCE, command.output()).await??;
    assert!(output.status.success(), "{output:?}");
    let reply: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!((&reply["payload"], &reply["outcome"]), (&json!(42), &json!("success")));
    let record = stage.record(reply["id"].as_str().expect("an id").parse()?).await;
    assert_eq!((record.source, record.lane.as_str()), (name, "P1"));
    Ok(())
}

#[tokio::test]
async fn what_nobody_can_read_is_told_recorded_and_passed_by() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let seen = Sightings::default();
    let noted = seen.clone();
    let teller = stage
        .mesh
        .agent(&stage.name("teller"))
        .capability("tell", move |ctx: Context, (): ()| {
            noted.note(ctx.id());
            async { Ok::<_, Failure>("told") }
        })
        .register()
        .await?;
    let sender = stage.mesh.agent(&stage.name("sender")).depends_on(teller.name()).register().await?;
    let door = Door::open(&stage).await;
    let mut signals = door.nats.subscribe(format!("mesh.signal.{}", sender.name())).await?;
    door.nats.flush().await?;

    let subject = format!("mesh.in.p2.{}.{}", sender.name(), teller.name());
    let unreadable: [&[u8]; 5] = [
        b"",
        b"\x00\xff\x00\xff",
        b"{\"capability\": ",
        b"{\"capability\": \"tell\", \"payload_\": 1}",
        b"MESH",
    ];
    for body in unreadable {
        let sequence = door.publish(&subject, body).await?;
        let signal = tokio::time::timeout(SOON, signals.next()).await?.expect("the connection is open");
        let Signal::Refused { stream, sequence: told, message } = serde_json::from_slice(&signal.payload)?
        else {
            panic!("another signal: {signal:?}")
        };
        assert_eq!((stream.as_str(), told), ("MESH_IN_P2", sequence));
        assert!(!message.is_empty());
    }
    assert_eq!(
        sender.dispatch(teller.name(), "tell").json(&())?.call::<String>().await?,
        "told",
        "the lane goes on"
    );
    let rows = "SELECT count(*) FROM dispatch_log WHERE source = $1 AND type = 'error' \
                AND reason = 'malformed' AND outcome = 'rejected'";
    until("each has its record", SOON, || async {
        stage.number(rows, &[&sender.name()]).await == unreadable.len() as i64
    })
    .await;
    assert_eq!(seen.count(), 1);
    Ok(())
}

#[tokio::test]
async fn completions_that_nobody_can_read_are_counted_and_passed_by() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let teller = stage
        .mesh
        .agent(&stage.name("teller"))
        .capability("tell", |_: Context, (): ()| async { Ok::<_, Failure>("told") })
        .register()
        .await?;
    let sender = stage.mesh.agent(&stage.name("sender")).depends_on(teller.name()).register().await?;
    let door = Door::open(&stage).await;
    let counted = stage.metric("mesh_completions_malformed_total").await;
    let subject = format!("mesh.done.p2.{}.{}", sender.name(), teller.name());
    for body in [b"\x00\x01\x02".as_slice(), b"{\"id\": \"d-1\"}", b"{}"] {
        door.publish(&subject, body).await?;
    }
    assert_eq!(sender.dispatch(teller.name(), "tell").json(&())?.call::<String>().await?, "told");
    until("they are counted", SOON, || async {
        stage.metric("mesh_completions_malformed_total").await >= counted + 3.0
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn a_reply_comes_again_until_it_is_confirmed() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let teller = stage
        .mesh
        .agent(&stage.name("teller"))
        .capability("tell", |_: Context, (): ()| async { Ok::<_, Failure>("told") })
        .register()
        .await?;
    let door = Door::open(&stage).await;
    let asker = stage.name("asker");
    let registration = json!({"agent": asker, "dependencies": [teller.name()], "encoding": "json"});
    assert!(door.register(&registration).await.accepted);
    let mut replies = door.nats.subscribe(format!("mesh.reply.{asker}.token")).await?;
    door.nats.flush().await?;
    let request = json!({"capability": "tell", "payload": null, "reply": "token"});
    door.publish(&format!("mesh.in.p2.{asker}.{}", teller.name()), serde_json::to_vec(&request)?).await?;
    let first = tokio::time::timeout(SOON, replies.next()).await?.expect("the connection is open");
    let again = tokio::time::timeout(SOON, replies.next()).await?.expect("the connection is open");
    assert_eq!(first.payload, again.payload);
    door.nats.publish(again.reply.expect("a reply wants to be confirmed"), "".into()).await?;
    let reply: Value = serde_json::from_slice(&again.payload)?;
    assert_eq!(reply["payload"], "told");
    Ok(())
}

#[tokio::test]
async fn nobody_can_use_the_instance_of_another() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let teller = stage
        .mesh
        .agent(&stage.name("teller"))
        .capability("tell", |_: Context, (): ()| async { Ok::<_, Failure>("told") })
        .register()
        .await?;
    let victim = stage.mesh.agent(&stage.name("victim")).depends_on(teller.name()).register().await?;
    let thief = stage.mesh.agent(&stage.name("thief")).depends_on(teller.name()).register().await?;
    assert_eq!(victim.dispatch(teller.name(), "tell").json(&())?.call::<String>().await?, "told");

    let door = Door::open(&stage).await;
    let mut signals = door.nats.subscribe(format!("mesh.signal.{}", thief.name())).await?;
    door.nats.flush().await?;
    let dispatch = json!({"capability": "tell", "payload": null});
    let stolen = json!({"dispatches": [dispatch], "instance": victim.instance().to_string(), "sequence": 2});
    door.publish(&format!("mesh.in.p2.{}.{}", thief.name(), teller.name()), serde_json::to_vec(&stolen)?)
        .await?;
    let refused = tokio::time::timeout(SOON, signals.next()).await?.expect("the connection is open");
    assert!(matches!(serde_json::from_slice(&refused.payload)?, Signal::Refused { .. }));

    let own = victim.dispatch(teller.name(), "tell").budget(SOON).json(&())?.call::<String>();
    assert_eq!(own.await?, "told", "it is not taken for a repeated one");
    Ok(())
}

#[tokio::test]
async fn a_message_that_is_published_again_is_one_dispatch() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let seen = Sightings::default();
    let noted = seen.clone();
    let teller = stage
        .mesh
        .agent(&stage.name("teller"))
        .capability("tell", move |ctx: Context, (): ()| {
            noted.note(ctx.id());
            async { Ok::<_, Failure>("told") }
        })
        .register()
        .await?;
    let door = Door::open(&stage).await;
    let sender = stage.name("sender");
    assert!(door.register(&json!({"agent": sender, "dependencies": [teller.name()]})).await.accepted);
    let subject = format!("mesh.in.p2.{sender}.{}", teller.name());
    let dispatch = json!({"capability": "tell", "payload": null, "kind": "event"});
    let instance =
        InstanceId::of(&AgentId::new(&sender)?, u64::from(std::process::id()) << 16 | 0xd0).to_string();
    let envelope = |sequence: u64| {
        let dispatches = [&dispatch, &dispatch];
        serde_json::to_vec(&json!({"dispatches": dispatches, "instance": instance, "sequence": sequence}))
    };
    // Each publish has a message id of its own, so that the broker does not recognise the repetition.
    for sequence in [1, 1, 2, 1, 2, 3] {
        door.publish(&subject, envelope(sequence)?).await?;
    }
    let rows = "SELECT count(*) FROM dispatch WHERE source = $1 AND outcome = 'success'";
    until("three envelopes of two are done", SOON, || async { stage.number(rows, &[&sender]).await == 6 })
        .await;
    assert_eq!((seen.count(), seen.repeated().len()), (6, 0));
    let decisions = "SELECT count(*) FROM dispatch_decision WHERE source = $1";
    assert_eq!(stage.number(decisions, &[&sender]).await, 6);
    Ok(())
}
