//! The archive's servers slow, gone or full under a mesh at work: what goes on, what waits, and what people are told. These
//! tests change servers that all others need: they have a program of their own, and run one after the other.

use std::time::Duration;

use futures::StreamExt;
use mesh_tests::operator::{doctor_says, until_one_says, until_readiness};
use mesh_tests::stack::{self, Signal};
use mesh_tests::{Machine, OUTSTANDING_TOTAL, PATIENCE, Stage, Traffic};
use protocol::control::Alert;

/// Dispatches are as quick as ever, in the order of magnitude that a busy machine lets one judge. Each may have met the longest
/// pause of the machine.
fn assert_as_quick(during: Duration, before: Duration, machine: &Machine) {
    const NOISE: Duration = Duration::from_millis(20);
    let noise = NOISE + machine.longest_pause();
    assert!(during < before * 10 + noise, "the median went from {before:?} to {during:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_transaction_that_locks_the_archive_slows_no_dispatch() -> anyhow::Result<()> {
    let traffic = Traffic::start().await?;
    let before = traffic.replies(300).await;
    let machine = Machine::watch();
    let mut client = audit_archiver::connect(&traffic.stage.settings.postgres_url, "test").await?;
    let transaction = client.transaction().await?;
    transaction.batch_execute("LOCK TABLE archive_cursor IN EXCLUSIVE MODE").await?;
    let blocks = "SELECT count(*) FROM audit_block";
    let archived = traffic.stage.number(blocks, &[]).await;
    let during = traffic.replies(1_000).await;
    assert_eq!(traffic.stage.number(blocks, &[]).await, archived, "nothing could be archived meanwhile");
    transaction.rollback().await?;
    assert_as_quick(during, before, &machine);
    assert_eq!(traffic.balance().await?, [], "no handler saw a dispatch twice");
    Ok(())
}

/// All processes of the stack's PostgreSQL: each connection has one of its own.
async fn signal_postgres(stage: &Stage, signal: Signal) {
    let pid = stack::process(&stage.settings.stack.join("run"), "postgres").expect("PostgreSQL runs");
    for child in stack::children(pid) {
        // One may have ended meanwhile.
        stack::try_signal(child, signal).await;
    }
    stack::signal(pid, signal).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgresql_that_stands_still_slows_no_dispatch_and_is_caught_up_with() -> anyhow::Result<()> {
    let traffic = Traffic::start().await?;
    let before = traffic.replies(300).await;
    let machine = Machine::watch();
    signal_postgres(&traffic.stage, Signal::Stop).await;
    let during = traffic.replies(3_000).await;
    signal_postgres(&traffic.stage, Signal::Continue).await;
    assert_as_quick(during, before, &machine);
    traffic.replies(100).await;
    assert_eq!(traffic.balance().await?, [], "no handler saw a dispatch twice");
    Ok(())
}

/// Redis with another limit while this lives; without one after that, however the test ends.
struct Limit {
    redis: redis::Client,
}

impl Limit {
    fn of(stage: &Stage) -> anyhow::Result<Self> {
        Ok(Self { redis: redis::Client::open(stage.settings.redis_url.as_str())? })
    }

    /// Sets the limit so many bytes above what is used at this moment.
    fn above_used(&self, bytes: u64) -> anyhow::Result<()> {
        let info: String = redis::cmd("INFO").arg("memory").query(&mut self.redis.get_connection()?)?;
        self.set(protocol::room::Memory::parse(&info).used + bytes)
    }

    fn set(&self, bytes: u64) -> anyhow::Result<()> {
        let mut connection = self.redis.get_connection()?;
        redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(bytes).query::<()>(&mut connection)?;
        Ok(())
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        self.set(0).expect("Redis takes its limit back");
    }
}

/// Waits for an alert whose text says this.
async fn alert(alerts: &mut async_nats::Subscriber, says: &str) -> Alert {
    let found = async {
        loop {
            let message = alerts.next().await.expect("the subscription lives");
            let alert: Alert = serde_json::from_slice(&message.payload).expect("an alert is JSON");
            if alert.text.contains(says) {
                return alert;
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("no alert says {says:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_fills_is_told_in_time_and_a_full_one_makes_dispatches_wait() -> anyhow::Result<()> {
    let traffic = Traffic::start().await?;
    let stage = traffic.stage.clone();
    let mut alerts = stage.mesh.nats().subscribe(protocol::subjects::alert("redis_full")).await?;
    stage.mesh.nats().flush().await?;
    let limit = Limit::of(&stage)?;
    // Far above what is used, and yet not an hour away at the pace of this traffic.
    limit.above_used(100 << 20)?;
    let filling = alert(&mut alerts, "is full in").await;
    assert!((1..3_600).contains(&filling.figures["seconds_left"]), "{filling:?}");
    doctor_says(&stage, "memory", "warn", "is full in").await;

    traffic.replies(100).await;
    // Less than an empty Redis needs, so that nothing that is trimmed makes room.
    limit.set(1)?;
    alert(&mut alerts, "Redis is full").await;
    // A coordinator without a block to write does not meet it.
    until_one_says(&stage, "503", "the audit ledger takes no blocks").await;
    let before = traffic.answered();
    doctor_says(&stage, "memory", "fail", "dispatches wait").await;
    // A dispatch is accepted all the same: its lane is in the broker.
    let onlooker = stage.mesh.agent(&stage.name("onlooker")).depends_on(traffic.worker()).register().await?;
    let event = onlooker.publish_event(traffic.worker(), "work").json(&7)?.send().await?;
    let answered = traffic.answered() - before;
    assert!(answered <= OUTSTANDING_TOTAL, "what was on its way may still end, and nothing else: {answered}");

    limit.set(0)?;
    until_readiness(&stage, "200", "ready").await;
    traffic.replies(200).await;
    assert!(traffic.balance_beside(&[event.id()]).await?.is_empty(), "no handler saw a dispatch twice");
    assert_eq!(stage.record(event.id()).await.outcome.as_deref(), Some("success"));
    Ok(())
}
