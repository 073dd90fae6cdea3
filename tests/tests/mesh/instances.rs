//! Instances that vanish: what they held is run by others, once more and only if it is still open.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mesh_tests::{Door, PATIENCE, SOON, Stage, until};
use protocol::inbox::{self, Parcel};
use serde_json::json;
use tokio::sync::Semaphore;
use worker_sdk::{AgentBuilder, Context, Failure, Outcome, Priority};

#[tokio::test]
async fn what_a_lost_instance_held_runs_on_another() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let name = stage.name("worker");
    let begun = Arc::new(Semaphore::new(0));
    let noted = Arc::clone(&begun);
    let doomed = stage
        .mesh
        .agent(&name)
        .capability("work", move |_: Context, (): ()| {
            noted.add_permits(1);
            std::future::pending::<Result<String, Failure>>()
        })
        .instances(1, 2)
        .register()
        .await?;
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(&name).register().await?;
    let pending = caller.dispatch(&name, "work").budget(PATIENCE).json(&())?.start().await?;
    let id = pending.id();
    begun.acquire().await?.forget();

    // Dropped, not stopped: no goodbye, as when its process is killed.
    drop(doomed);
    let heir = stage
        .mesh
        .agent(&name)
        .capability("work", |ctx: Context, (): ()| async move {
            Ok::<_, Failure>(format!("attempt {}", ctx.attempt()))
        })
        .instances(1, 2)
        .register()
        .await?;
    let reply = tokio::time::timeout(PATIENCE, pending.reply()).await??;
    assert_eq!(reply.json::<String>()?, "attempt 2");
    let record = stage.record(id).await;
    assert_eq!(record.runner, Some(heir.instance().to_string()), "the record says who ran it in the end");
    assert_eq!(record.attempt, Some(2), "and that it was not the first");
    Ok(())
}

#[tokio::test]
async fn an_instance_that_stops_finishes_what_it_runs_and_the_rest_goes_to_others() -> anyhow::Result<()> {
    const CALLS: u32 = 40;
    let stage = Stage::set().await;
    let name = stage.name("worker");
    let ran = Arc::new(AtomicU32::new(0));
    let worker = || -> AgentBuilder {
        let ran = Arc::clone(&ran);
        stage.mesh.agent(&name).max_concurrent(2).instances(1, 2).capability(
            "work",
            move |_: Context, _: u32| {
                let ran = Arc::clone(&ran);
                async move {
                    tokio::time::sleep(Duration::from_millis(40)).await;
                    ran.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, Failure>(())
                }
            },
        )
    };
    let (first, second) = (worker().register().await?, worker().register().await?);
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(&name).register().await?;
    let calls = (0..CALLS).map(|n| bytes::Bytes::from(n.to_string()));
    let calls = tokio::spawn(caller.dispatch(&name, "work").budget(PATIENCE).request_many(calls));
    until("they work", SOON, || async { ran.load(Ordering::SeqCst) >= 4 }).await;
    first.stop().await?;
    let replies = calls.await??;
    assert!(replies.iter().all(Result::is_ok), "{replies:?}");
    assert_eq!(ran.load(Ordering::SeqCst), CALLS, "none of them twice");
    second.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_message_that_comes_again_after_its_dispatch_has_ended_does_not_run_again() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let door = Door::open(&stage).await;
    let name = stage.name("worker");
    let ran = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&ran);
    let worker = stage.mesh.agent(&name).capability("work", move |_: Context, (): ()| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, Failure>("by the agent") }
    });
    // The first instance is this test: it does the work, says so, and dies before it acknowledges the message.
    assert!(door.register(&serde_json::to_value(worker.registration())?).await.accepted);
    door.beat(&name, 4).await;
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(&name).register().await?;
    let pending = caller.dispatch(&name, "work").json(&())?.start().await?;
    let message = door.take(&name, Priority::P2).await;
    let parcels = inbox::split(&message.payload)?;
    let parcel = Parcel::parse(&parcels[0])?;
    assert_eq!(parcel.source, caller.name());
    let completion = json!({"id": pending.id().to_string(), "outcome": "success", "payload": "by hand"});
    let done = format!("mesh.done.p2.{}.{name}", caller.name());
    door.publish(&done, serde_json::to_vec(&completion)?).await?;
    let reply = pending.reply().await?;
    assert_eq!((reply.json::<String>()?.as_str(), reply.outcome()), ("by hand", Outcome::Success));

    message.ack_with(async_nats::jetstream::AckKind::Nak(None)).await.expect("the broker answers");
    let agent = worker.register().await?;
    until("the message is gone", PATIENCE, || async { door.inbox(&name, Priority::P2).await == (0, 0) })
        .await;
    assert_eq!(ran.load(Ordering::SeqCst), 0, "it asked first, and did not run");
    assert_eq!(caller.dispatch(&name, "work").json(&())?.call::<String>().await?, "by the agent");
    agent.stop().await?;
    Ok(())
}

#[tokio::test]
async fn losing_an_instance_under_load_costs_time_and_no_dispatch() -> anyhow::Result<()> {
    const CALLS: u32 = 200;
    let stage = Stage::set().await;
    let name = stage.name("worker");
    let ran = Arc::new(AtomicU32::new(0));
    let worker = || {
        let ran = Arc::clone(&ran);
        stage.mesh.agent(&name).max_concurrent(4).instances(1, 2).capability(
            "work",
            move |_: Context, n: u32| {
                let ran = Arc::clone(&ran);
                async move {
                    ran.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    Ok::<_, Failure>(n)
                }
            },
        )
    };
    let (doomed, heir) = (worker().register().await?, worker().register().await?);
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(&name).register().await?;
    let calls = (0..CALLS).map(|n| bytes::Bytes::from(n.to_string()));
    let calls = tokio::spawn(caller.dispatch(&name, "work").budget(PATIENCE).request_many(calls));
    until("they work", SOON, || async { ran.load(Ordering::SeqCst) >= 20 }).await;
    drop(doomed);
    let replies = calls.await??;
    assert_eq!(replies.iter().filter(|reply| reply.is_ok()).count(), CALLS as usize, "{replies:?}");
    stage.archived().await;
    let ends = "SELECT count(*) FROM dispatch_completion WHERE source = $1 AND NOT late";
    assert_eq!(stage.number(ends, &[&caller.name()]).await, i64::from(CALLS), "each has one outcome");
    let again = "SELECT count(*) FROM dispatch_completion WHERE source = $1 AND NOT late AND attempt > 1";
    let again = stage.number(again, &[&caller.name()]).await;
    assert!((1..=64).contains(&again), "{again} were held by the lost instance, and the record says so");
    drop(heir);
    Ok(())
}
