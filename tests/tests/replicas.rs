//! Replicas that come and go: who owns which shard, how long P0 waits for a hand-over, and who may join. These tests move shards
//! that all others need: they have a program of their own, and run one after the other.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::jetstream::{self, kv::Store};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mesh_tests::stack::{self, Signal};
use mesh_tests::{Machine, PATIENCE, Stage, eventually, until};
use protocol::control::{Owner, Replica};
use protocol::{PROTOCOL_VERSION, streams};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, watch};
use worker_sdk::{Agent, Context, Failure, Priority};

/// What P0 may wait for a home that was killed.
const WAIT_MAX_KILLED: Duration = Duration::from_secs(5);

static ALONE: Mutex<()> = Mutex::const_new(());

async fn bucket(stage: &Stage, name: &str) -> anyhow::Result<Store> {
    Ok(jetstream::new(stage.mesh.nats().clone()).get_key_value(name).await?)
}

/// The owner of each shard, once the replicas of the stack and so many newcomers live, each is home of its share, and nothing
/// moves any more.
async fn owners(stage: &Stage, newcomers: usize) -> anyhow::Result<BTreeMap<u8, Owner>> {
    let owners = bucket(stage, streams::OWNERS_BUCKET).await?;
    let replicas = bucket(stage, streams::REPLICAS_BUCKET).await?;
    Ok(eventually("each live replica is home of its share", PATIENCE, || async {
        let mut live = Vec::new();
        let mut names = replicas.keys().await.ok()?;
        while let Some(name) = names.next().await {
            let name = name.ok()?;
            // One whose announcement expired between the two reads is no replica any more.
            let Some(entry) = replicas.get(&name).await.ok()? else { continue };
            let replica: Replica = serde_json::from_slice(&entry).ok()?;
            live.extend((!replica.leaving).then_some(name));
        }
        if live.len() != stage.settings.coordinators.len() + newcomers {
            return None;
        }
        let mut found = BTreeMap::new();
        for shard in 0..governance::SHARDS {
            let entry = owners.get(shard.to_string()).await.ok()??;
            let owner: Owner = serde_json::from_slice(&entry).ok()?;
            let should = home::ownership::assign(shard, live.iter().map(String::as_str));
            if !owner.ready || should != Some(owner.replica.as_str()) {
                return None;
            }
            found.insert(shard, owner);
        }
        Some(found)
    })
    .await)
}

/// Another coordinator of the build under test, beside those of the stack.
fn coordinator(stage: &Stage, name: &str) -> anyhow::Result<Child> {
    let pid = stack::process(&stage.settings.stack.join("run"), "coordinator-0").context("it runs")?;
    let binary = std::fs::read_link(format!("/proc/{pid}/exe"))?;
    Ok(Command::new(binary)
        .env("MESH_HTTP", "127.0.0.1:0")
        .env("MESH_REPLICA", name)
        .env_remove("MESH_HTTP_ADDR_FILE")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_moves_only_what_it_takes_and_a_leave_gives_it_back() -> anyhow::Result<()> {
    let _alone = ALONE.lock().await;
    let stage = Stage::set().await;
    let name = stage.name("newcomer");
    let before = owners(&stage, 0).await?;
    let mut newcomer = coordinator(&stage, &name)?;
    let replicas = before.values().map(|o| o.replica.as_str()).chain([name.as_str()]);
    let replicas: std::collections::BTreeSet<&str> = replicas.collect();
    let expected = (0..governance::SHARDS).filter(|shard| {
        let weigh = home::ownership::assign(*shard, replicas.iter().copied());
        weigh == Some(name.as_str())
    });
    let expected: Vec<u8> = expected.collect();
    assert!(!expected.is_empty(), "it takes something");

    let now = owners(&stage, 1).await?;
    let taken: Vec<u8> = now.iter().filter(|(_, o)| o.replica == name).map(|(s, _)| *s).collect();
    assert_eq!(taken, expected);
    for (shard, owner) in &before {
        let now = &now[shard];
        let stayed = (&now.replica, now.epoch) == (&owner.replica, owner.epoch);
        assert!(
            stayed || now.replica == name,
            "shard {shard} moved from {} to {}",
            owner.replica,
            now.replica
        );
        assert!(now.epoch >= owner.epoch, "an epoch never goes back");
    }

    stack::signal(newcomer.id().context("it runs")?, Signal::Terminate).await;
    assert!(newcomer.wait().await?.success(), "it ends in order");
    let after = owners(&stage, 0).await?;
    assert!(after.iter().all(|(shard, owner)| owner.replica == before[shard].replica), "its shards are back");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_two_protocol_versions_apart_does_not_start_and_says_why() -> anyhow::Result<()> {
    let _alone = ALONE.lock().await;
    let stage = Stage::set().await;
    let replicas = bucket(&stage, streams::REPLICAS_BUCKET).await?;
    // One that a test before this one ended starts again, and must not meet the strange one.
    owners(&stage, 0).await?;
    let other = stage.name("other");
    let announce = async |apart: u8| {
        // It takes part in nothing else: one that leaves gets no shards.
        let replica =
            Replica { protocol: PROTOCOL_VERSION + apart, http: String::new(), since_ns: 0, leaving: true };
        replicas.put(&other, serde_json::to_vec(&replica)?.into()).await?;
        anyhow::Ok(())
    };
    announce(2).await?;
    let refused = coordinator(&stage, &stage.name("late"))?.wait_with_output().await?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(said.contains(&other) && said.contains("speaks protocol"), "{said}");

    announce(1).await?;
    let name = stage.name("neighbour");
    let mut neighbour = coordinator(&stage, &name)?;
    let joined = owners(&stage, 1).await?;
    assert!(joined.values().any(|owner| owner.replica == name), "a neighbour of one version joins");
    stack::signal(neighbour.id().context("it runs")?, Signal::Terminate).await;
    assert!(neighbour.wait().await?.success());
    owners(&stage, 0).await?;
    Ok(())
}

/// A person who asks again and again, and does not wait for the last answer before asking anew.
struct Person {
    caller: Agent,
    desk: Agent,
}

impl Person {
    async fn arrive(stage: &Stage) -> anyhow::Result<Self> {
        let answer = |_: Context, n: u32| async move { Ok::<_, Failure>(n) };
        let desk = stage.mesh.agent(&stage.name("desk")).capability("urgent", answer).register().await?;
        let caller = stage.mesh.agent(&stage.name("person")).depends_on(desk.name()).register().await?;
        Ok(Self { caller, desk })
    }

    /// Asks every few milliseconds until told to stop; the longest wait for an answer.
    async fn ask_on(&self, stop: watch::Receiver<bool>) -> anyhow::Result<Duration> {
        const EVERY: Duration = Duration::from_millis(10);
        let mut waiting = FuturesUnordered::new();
        let (mut longest, mut answers) = (Duration::ZERO, 0_u32);
        let mut tick = tokio::time::interval(EVERY);
        loop {
            tokio::select! {
                at = tick.tick(), if !*stop.borrow() => {
                    let call = self.caller.dispatch(self.desk.name(), "urgent").priority(Priority::P0).budget(PATIENCE);
                    let call = call.json(&1)?;
                    waiting.push(async move { (call.call::<u32>().await, at.elapsed()) });
                }
                Some((answer, waited)) = waiting.next() => {
                    assert_eq!(answer?, 1);
                    answers += 1;
                    longest = longest.max(waited);
                }
                else => break,
            }
        }
        assert!(answers > 50, "too little was compared: {answers}");
        Ok(longest)
    }
}

/// The longest wait of P0 while the home of the person is told to end in this way.
async fn longest_wait(how: Signal) -> anyhow::Result<Option<Duration>> {
    let stage = Stage::set().await;
    if stage.settings.coordinators.len() < 2 {
        return Ok(None);
    }
    owners(&stage, 0).await?;
    let person = Person::arrive(&stage).await?;
    let (stop, stopped) = watch::channel(false);
    let handing_over = async {
        let (_, pid) = stack::home(&stage, person.caller.name()).await;
        let former = stage.home(person.caller.name()).await;
        let asked = Instant::now();
        stack::signal(pid, how).await;
        until("another replica is home", PATIENCE, || async {
            stage.home(person.caller.name()).await != former
        })
        .await;
        stack::ended(pid, PATIENCE).await;
        // Whoever waited has been answered when a second has passed without news.
        until("calls go on", PATIENCE, || async { asked.elapsed() > Duration::from_secs(1) }).await;
        stop.send_replace(true);
    };
    let (longest, ()) = tokio::join!(person.ask_on(stopped), handing_over);
    Ok(Some(longest?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stderr, reason = "says how long it was, or why it shows nothing")]
async fn p0_waits_under_a_tenth_of_a_second_for_an_orderly_hand_over() -> anyhow::Result<()> {
    const WAIT_MAX: Duration = Duration::from_millis(100);
    let _alone = ALONE.lock().await;
    let machine = Machine::watch();
    match longest_wait(Signal::Terminate).await? {
        None => eprintln!("skipped: nobody takes over, the stack has one coordinator"),
        Some(longest) => {
            let (stolen, pause) = (machine.stolen_percent(), machine.longest_pause());
            eprintln!(
                "P0 waited {longest:?} at most; the host stole {stolen} %, the longest pause was {pause:?}"
            );
            // The promise of a tenth of a second is for a machine that is there. Where its host takes it away, all that can be
            // asked is that nobody waits as long as for a home that was killed.
            let allowed = if machine.keeps_time() { WAIT_MAX } else { machine.allow(WAIT_MAX_KILLED) };
            assert!(longest < allowed, "P0 waited {longest:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stderr, reason = "says how long it was, or why it shows nothing")]
async fn p0_waits_five_seconds_at_most_when_its_home_is_killed() -> anyhow::Result<()> {
    let _alone = ALONE.lock().await;
    let machine = Machine::watch();
    match longest_wait(Signal::Kill).await? {
        None => eprintln!("skipped: nobody takes over, the stack has one coordinator"),
        Some(longest) => {
            eprintln!("P0 waited {longest:?} at most; the longest pause was {:?}", machine.longest_pause());
            assert!(longest < machine.allow(WAIT_MAX_KILLED), "P0 waited {longest:?}");
        }
    }
    Ok(())
}
