//! Limits: quotas, hard rates, priorities, full lanes. What is over a limit waits; nothing is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use governance::policy::Rate;
use mesh_tests::{Door, PATIENCE, SOON, Sightings, Stage, until};
use protocol::streams::LANE_MESSAGES_MAX;
use serde_json::json;
use worker_sdk::{Agent, Context, ErrorKind, Failure, Priority, Reason, Signal};

async fn counter(stage: &Stage, who: &str) -> anyhow::Result<(Agent, Sightings)> {
    let seen = Sightings::default();
    let noted = seen.clone();
    let agent = stage
        .mesh
        .agent(&stage.name(who))
        .capability("count", move |ctx: Context, n: u32| {
            noted.note(ctx.id());
            async move { Ok::<_, Failure>(n) }
        })
        .register()
        .await?;
    Ok((agent, seen))
}

fn numbers(count: u32) -> impl Iterator<Item = Bytes> {
    (0..count).map(|n| Bytes::from(n.to_string()))
}

#[tokio::test]
async fn a_burst_beyond_the_quota_waits_and_all_of_it_completes() -> anyhow::Result<()> {
    const BURST: u32 = 300;
    let stage = Stage::set().await;
    let (counter, seen) = counter(&stage, "counter").await?;
    let hasty = stage.mesh.agent("quota-bot").depends_on(counter.name()).register().await?;
    let mut signals = hasty.signals();

    let begun = Instant::now();
    let sending = hasty.dispatch(counter.name(), "count").budget(PATIENCE).request_many(numbers(BURST));
    let told = tokio::time::timeout(PATIENCE, signals.next());
    let (replies, told) = tokio::join!(sending, told);
    let took = begun.elapsed();

    let Some(Signal::SlowDown { rate_per_s, .. }) = told? else { panic!("it was told to slow down") };
    assert_eq!(rate_per_s, 100);
    let replies = replies?;
    assert_eq!(replies.iter().filter(|reply| reply.is_ok()).count(), BURST as usize, "nothing is dropped");
    assert_eq!((seen.count(), seen.repeated().len()), (BURST as usize, 0));
    assert!(took >= Duration::from_millis(2_850), "300 at 100/s with a burst of 10 take 2.9 s, not {took:?}");

    stage.archived().await;
    let limit = |agent: &str| (agent == "quota-bot").then_some(Rate { per_s: 100, burst: 10 });
    let check = stage.archive.quota_exceeded(stage.since, limit).await?;
    assert_eq!((check.agents, check.admitted), (1, u64::from(BURST)), "the archive shows them all");
    assert_eq!(check.exceeded, 0, "{:?}", check.examples);
    let violations = "SELECT count(*) FROM dispatch WHERE source = 'quota-bot' AND outcome <> 'success'";
    assert_eq!(stage.number(violations, &[]).await, 0);
    Ok(())
}

#[tokio::test]
async fn a_hard_rate_holds_for_all_callers_together() -> anyhow::Result<()> {
    const EACH: u32 = 10;
    let stage = Stage::set().await;
    let crm = stage
        .mesh
        .agent("kept-at-ten")
        .capability("write", |_: Context, n: u32| async move { Ok::<_, Failure>(n) })
        .register()
        .await?;
    let mut callers = Vec::new();
    for who in ["one", "two", "three"] {
        callers.push(stage.mesh.agent(&stage.name(who)).depends_on(crm.name()).register().await?);
    }
    let begun = Instant::now();
    let all = join_all(
        callers
            .iter()
            .map(|caller| caller.dispatch(crm.name(), "write").budget(PATIENCE).request_many(numbers(EACH))),
    );
    for replies in all.await {
        assert!(replies?.iter().all(Result::is_ok), "what waits is not refused");
    }
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(2_800), "30 at 10/s take 2.9 s, not {took:?}");

    stage.archived().await;
    let busiest = "SELECT max(n) FROM (SELECT count(*) OVER (ORDER BY decided \
                   RANGE BETWEEN interval '999999 microseconds' PRECEDING AND CURRENT ROW) AS n \
                   FROM dispatch WHERE target = 'kept-at-ten') seconds";
    let busiest = stage.number(busiest, &[]).await;
    assert!((1..=11).contains(&busiest), "{busiest} in one second");
    Ok(())
}

#[tokio::test]
async fn p0_without_the_right_goes_as_p1_and_is_recorded_as_a_violation() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let (counter, _) = counter(&stage, "counter").await?;
    let pushy = stage.mesh.agent(&stage.name("pushy")).depends_on(counter.name()).register().await?;
    let demoted = stage.metric("mesh_priority_demotions_total").await;
    let ask = pushy.dispatch(counter.name(), "count").priority(Priority::P0).json(&1)?;
    let reply = ask.request().await?;
    let record = stage.record(reply.id()).await;
    assert_eq!((record.lane.as_str(), record.class.as_str()), ("P0", "P1"));
    assert_eq!(record.decision_reason, "demoted_from_p0");
    assert!(stage.metric("mesh_priority_demotions_total").await > demoted);
    Ok(())
}

#[tokio::test]
async fn what_is_sent_while_a_person_waits_may_claim_p0_as_well() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let (counter, _) = counter(&stage, "counter").await?;
    let counting = counter.name().to_owned();
    let desk = stage
        .mesh
        .agent(&stage.name("desk"))
        .capability("urgent", move |ctx: Context, n: u32| {
            let counting = counting.clone();
            async move {
                let child = ctx.dispatch(&counting, "count").json(&n)?.request().await?;
                Ok::<_, Failure>(child.id().to_string())
            }
        })
        .depends_on(counter.name())
        .register()
        .await?;
    let person = stage.mesh.agent(&stage.name("person")).depends_on(desk.name()).register().await?;
    let ask = |priority| person.dispatch(desk.name(), "urgent").priority(priority).json(&1);
    for (priority, class) in [(Priority::P0, "P0"), (Priority::P2, "P2")] {
        let child: String = ask(priority)?.call().await?;
        let record = stage.record(child.parse()?).await;
        assert_eq!((record.lane.as_str(), record.class.as_str()), (class, class), "{record:?}");
    }
    Ok(())
}

#[tokio::test]
async fn p0_passes_a_queue_of_reports() -> anyhow::Result<()> {
    const REPORTS: u32 = 60;
    let stage = Stage::set().await;
    let done = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&done);
    let desk = stage
        .mesh
        .agent(&stage.name("desk"))
        .capability("report", move |_: Context, _: u32| {
            let counted = Arc::clone(&counted);
            async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                counted.fetch_add(1, Ordering::Relaxed);
                Ok::<_, Failure>(())
            }
        })
        .capability("urgent", |_: Context, (): ()| async { Ok::<_, Failure>(()) })
        .max_concurrent(2)
        .register()
        .await?;
    let boss = stage.mesh.agent(&stage.name("boss")).depends_on(desk.name()).register().await?;
    let reports = boss.dispatch(desk.name(), "report").priority(Priority::P3).budget(PATIENCE);
    let reports = tokio::spawn(reports.request_many(numbers(REPORTS)));
    until("the reports have begun", SOON, || async { done.load(Ordering::Relaxed) > 0 }).await;

    let urgent = boss.dispatch(desk.name(), "urgent").priority(Priority::P0).json(&())?;
    let reply = urgent.request().await?;
    let before = done.load(Ordering::Relaxed);
    assert!(before < REPORTS / 2, "{before} of {REPORTS} reports were done before the person was answered");
    let record = stage.record(reply.id()).await;
    assert_eq!((record.lane.as_str(), record.class.as_str()), ("P0", "P0"));
    assert!(reports.await??.iter().all(Result::is_ok), "P3 waits, and is not refused");
    Ok(())
}

#[tokio::test]
async fn dispatches_with_one_order_key_run_one_after_the_other() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let (at_once, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (running, seen) = (Arc::clone(&at_once), Arc::clone(&most));
    let till = stage
        .mesh
        .agent(&stage.name("till"))
        .capability("book", move |_: Context, _: u32| {
            let (running, seen) = (Arc::clone(&running), Arc::clone(&seen));
            async move {
                seen.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(30)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, Failure>(())
            }
        })
        .register()
        .await?;
    let clerk = stage.mesh.agent(&stage.name("clerk")).depends_on(till.name()).register().await?;
    let replies = clerk.dispatch(till.name(), "book").order_key("account 7").request_many(numbers(8)).await?;
    assert!(replies.iter().all(Result::is_ok), "{replies:?}");
    assert_eq!(most.load(Ordering::SeqCst), 1);
    Ok(())
}

#[tokio::test]
async fn a_full_lane_refuses_its_sender_alone_and_has_room_again() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let (slow, at_slow) = counter(&stage, "slow").await?;
    let (other, _) = counter(&stage, "other").await?;
    let sender = stage
        .mesh
        .agent(&stage.name("sender"))
        .depends_on(slow.name())
        .depends_on(other.name())
        .register()
        .await?;
    stage.operate("pause", slow.name()).await;
    // The home of the sender hears of the pause a moment after the home of the paused one.
    until("dispatches wait", PATIENCE, || async {
        let call = sender.dispatch(slow.name(), "count").budget(Duration::from_millis(300));
        let call = call.json(&0).expect("a number is JSON").call::<u32>();
        call.await.is_err_and(|e| e.kind() == ErrorKind::TimedOut(Reason::ExpiredInLane))
    })
    .await;
    let before = at_slow.count();

    let door = Door::open(&stage).await;
    let subject = format!("mesh.in.p2.{}.{}", sender.name(), slow.name());
    let body = serde_json::to_vec(&json!({"capability": "count", "payload": 1, "kind": "event"}))?;
    let most = usize::try_from(LANE_MESSAGES_MAX)?;
    let sent =
        futures::stream::iter(0..most).map(|_| door.publish(&subject, body.clone())).buffer_unordered(64);
    assert_eq!(sent.filter(|sent| std::future::ready(sent.is_ok())).count().await, most);

    let refused = sender.dispatch(slow.name(), "count").json(&1)?.fail_when_full().send().await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::LaneFull);
    assert_eq!(
        sender.dispatch(other.name(), "count").json(&5)?.call::<u32>().await?,
        5,
        "others are passed by"
    );

    let waiting = sender.dispatch(slow.name(), "count").budget(PATIENCE).json(&6)?.call::<u32>();
    let resume = stage.operate("resume", slow.name());
    let (answer, _) = tokio::join!(waiting, resume);
    assert_eq!(answer?, 6, "it waited for room");
    until("all that was accepted has run", PATIENCE, || async { at_slow.count() == before + most + 1 }).await;
    assert_eq!(at_slow.repeated(), []);
    Ok(())
}
