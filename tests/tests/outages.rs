//! Servers that are away for a while under load: what waits, what goes on, what agents and operators see, and the books
//! afterwards. These tests end processes that all others need: they have a program of their own, and run one after the other.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::{FutureExt, StreamExt};
use mesh_tests::operator::{doctor_fails, until_archiver, until_archiver_shows, until_readiness, until_up};
use mesh_tests::stack::{self, Signal};
use mesh_tests::{OUTSTANDING_TOTAL, PATIENCE, SOON, Traffic, until};
use protocol::subjects;
use worker_sdk::{Agent, ErrorKind, Reason};

/// How long a server stays away that was killed, and one that was stopped in order: it shows less.
const AWAY: Duration = Duration::from_secs(10);
const AWAY_IN_ORDER: Duration = Duration::from_secs(4);
/// A budget that ends during an outage.
const SHORT: Duration = Duration::from_secs(1);

/// A caller beside the traffic, whose calls may end otherwise than well.
async fn onlooker(traffic: &Traffic) -> anyhow::Result<Agent> {
    let stage = &traffic.stage;
    Ok(stage.mesh.agent(&stage.name("onlooker")).depends_on(traffic.worker()).register().await?)
}

/// Waits until the outage has lasted for its time. What was on its way when it began may be answered meanwhile; whoever was asks
/// anew at once, and is not answered again.
async fn nothing_is_answered(traffic: &Traffic, before: usize, begun: Instant, away: Duration) {
    until("the server was away for its time", PATIENCE, || async { begun.elapsed() >= away }).await;
    let answered = traffic.answered() - before;
    assert!(
        answered <= OUTSTANDING_TOTAL,
        "nothing is decided without a place to record it: {answered} replies"
    );
}

/// Waits for an alert that says this; every coordinator tells.
async fn until_told(alerts: &mut async_nats::Subscriber, words: &str) -> anyhow::Result<()> {
    let told = async {
        while let Some(alert) = alerts.next().await {
            if String::from_utf8_lossy(&alert.payload).contains(words) {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, told).await.with_context(|| format!("nobody is told: {words}"))
}

async fn postgresql_is_away(signal: Signal, away: Duration) -> anyhow::Result<()> {
    let traffic = Traffic::start().await?;
    traffic.replies(50).await;
    stack::stop(&traffic.stage, "postgres", signal).await;
    let begun = Instant::now();
    until_archiver(&traffic.stage, "503", "PostgreSQL does not answer").await;
    until_archiver_shows(&traffic.stage, "postgres_up 0").await;
    doctor_fails(&traffic.stage, "postgres", "the mesh goes on without it").await;
    until_readiness(&traffic.stage, "200", "ready").await;
    while begun.elapsed() < away {
        traffic.replies(50).await;
    }
    stack::start(&traffic.stage, "postgres").await;
    until_archiver(&traffic.stage, "200", "ready").await;
    assert_eq!(traffic.balance().await?, [], "no handler saw a dispatch twice");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_postgresql_is_killed_everything_runs_and_the_trail_waits() -> anyhow::Result<()> {
    postgresql_is_away(Signal::Kill, AWAY).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_postgresql_is_stopped_everything_runs_and_the_trail_waits() -> anyhow::Result<()> {
    postgresql_is_away(Signal::Interrupt, AWAY_IN_ORDER).await
}

async fn redis_is_away(signal: Signal, away: Duration) -> anyhow::Result<()> {
    let traffic = Traffic::start().await?;
    let stage = traffic.stage.clone();
    let onlooker = onlooker(&traffic).await?;
    let mut signals = onlooker.signals();
    let mut alerts = stage.mesh.nats().subscribe(subjects::alert("outage")).await?;
    traffic.replies(100).await;
    stack::stop(&stage, "redis", signal).await;
    let (before, begun) = (traffic.answered(), Instant::now());
    // It is accepted, since lanes are the broker's; it is decided when there is a place to record it.
    let waits = onlooker.dispatch(traffic.worker(), "work").budget(SHORT).json(&1)?.start().await?;
    let event = onlooker.publish_event(traffic.worker(), "work").json(&1)?.send().await?;
    until_readiness(&stage, "503", "the audit ledger is away").await;
    until_up(&stage, "redis", false).await;
    until_archiver(&stage, "503", "Redis does not answer").await;
    doctor_fails(&stage, "redis", "start it").await;
    until_told(&mut alerts, "redis: the audit ledger is away; dispatches wait").await?;
    nothing_is_answered(&traffic, before, begun, away).await;
    assert!(signals.next().now_or_never().is_none(), "a signal follows a decision, and none is made");

    stack::start(&stage, "redis").await;
    until_readiness(&stage, "200", "ready").await;
    until_up(&stage, "redis", true).await;
    until_told(&mut alerts, "redis works again after").await?;
    let late = waits.reply().await.expect_err("its time was over before it was decided");
    let reasons = [Reason::ExpiredInLane, Reason::ExpiredUnknown];
    assert!(reasons.map(ErrorKind::TimedOut).contains(&late.kind()), "{late}");
    traffic.replies(100).await;
    assert!(traffic.balance_beside(&[event.id()]).await?.is_empty(), "no handler saw a dispatch twice");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_killed_dispatches_wait_and_none_is_lost() -> anyhow::Result<()> {
    redis_is_away(Signal::Kill, AWAY).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_stopped_dispatches_wait_and_none_is_lost() -> anyhow::Result<()> {
    redis_is_away(Signal::Terminate, AWAY_IN_ORDER).await
}

async fn the_broker_is_away(signal: Signal, away: Duration) -> anyhow::Result<()> {
    let traffic = Traffic::start().await?;
    let stage = traffic.stage.clone();
    let onlooker = onlooker(&traffic).await?;
    let nodes = stack::broker_nodes(&stage);
    traffic.replies(100).await;
    for node in &nodes {
        stack::stop(&stage, node, signal).await;
    }
    let (before, begun) = (traffic.answered(), Instant::now());
    // Its budget counts from its acceptance, which waits for the broker.
    let call = onlooker.dispatch(traffic.worker(), "work").budget(PATIENCE).json(&1)?;
    let waits = tokio::spawn(call.request());
    until_readiness(&stage, "503", "the broker is away").await;
    until_up(&stage, "nats", false).await;
    doctor_fails(&stage, "broker", "start it").await;
    nothing_is_answered(&traffic, before, begun, away).await;
    assert!(!waits.is_finished(), "a caller waits for the broker");

    stack::start_all(&stage, &nodes).await;
    until_readiness(&stage, "200", "ready").await;
    until_up(&stage, "nats", true).await;
    let answered = waits.await??;
    traffic.replies(100).await;
    // What was stored and not yet acknowledged may have been published again; what ran twice ended once all the same.
    traffic.balance_beside(&[answered.id()]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_broker_is_killed_dispatches_wait_and_none_is_lost() -> anyhow::Result<()> {
    the_broker_is_away(Signal::Kill, AWAY).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_broker_is_stopped_dispatches_wait_and_none_is_lost() -> anyhow::Result<()> {
    the_broker_is_away(Signal::Terminate, AWAY_IN_ORDER).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_and_started_has_all_it_acknowledged() -> anyhow::Result<()> {
    let traffic = Traffic::start().await?;
    for node in stack::broker_nodes(&traffic.stage) {
        traffic.replies(100).await;
        stack::stop(&traffic.stage, &node, Signal::Kill).await;
        stack::start(&traffic.stage, &node).await;
    }
    traffic.replies(100).await;
    traffic.balance().await?;
    Ok(())
}
