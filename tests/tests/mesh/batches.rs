//! Batches: bulk through the whole mesh, also where the instance that runs a batch is lost in the middle of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_tests::{PATIENCE, Stage, until};
use tokio::sync::Semaphore;
use worker_sdk::{Agent, AgentBuilder, Answers, Batch, DispatchId, Failure, Response};

/// How often each dispatch was run, and the batches in which.
#[derive(Default, Clone)]
struct Ran(Arc<Mutex<Vec<(DispatchId, u16)>>>);

impl Ran {
    fn note(&self, batch: &Batch) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(batch.runs());
    }

    fn batches(&self) -> Vec<(DispatchId, u16)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn each(&self) -> BTreeMap<DispatchId, u32> {
        let mut each = BTreeMap::new();
        for (first, count) in self.batches() {
            for nth in 0..count {
                *each.entry(DispatchId { slot: first.slot + nth, ..first }).or_default() += 1;
            }
        }
        each
    }
}

/// What is stored so soon after an instance connected is asked about, and runs one by one.
const NEW: Duration = Duration::from_millis(1_250);

/// Registers, and waits until what comes is surely newer than the connection, so that it comes together.
async fn registered(agent: AgentBuilder) -> anyhow::Result<Agent> {
    let agent = agent.register().await?;
    let connected = Instant::now();
    until("the connection is older than what comes", PATIENCE, || async { connected.elapsed() > NEW }).await;
    Ok(agent)
}

/// An agent that answers each batch with what it brought.
fn mirror(stage: &Stage, name: &str, ran: &Ran) -> AgentBuilder {
    let ran = ran.clone();
    let answer = move |batch: Batch| {
        ran.note(&batch);
        let each = batch.payloads().map(|p| Ok(Response::bytes(Bytes::copy_from_slice(p), "")));
        let answers = Answers::each(each.collect::<Vec<_>>());
        async move { Ok(answers) }
    };
    stage.mesh.agent(name).capability_batch("mirror", answer).max_concurrent(256).instances(1, 2)
}

fn numbers(count: u32) -> impl Iterator<Item = Bytes> + Send {
    (0..count).map(|n| Bytes::from(n.to_string()))
}

#[tokio::test]
async fn a_bulk_of_requests_is_answered_one_for_one_and_recorded_one_by_one() -> anyhow::Result<()> {
    /// Within the burst of the quota: beyond it they would be admitted, and come, one after the other.
    const CALLS: u32 = 200;
    let stage = Stage::set().await;
    let (name, ran) = (stage.name("mirror"), Ran::default());
    let mirror = registered(mirror(&stage, &name, &ran)).await?;
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(&name).register().await?;
    let replies = caller.dispatch(&name, "mirror").budget(PATIENCE).request_many(numbers(CALLS)).await?;
    for (n, reply) in (0..CALLS).zip(&replies) {
        assert_eq!(reply.as_ref().expect("it is answered").json::<u32>()?, n);
    }
    let each = ran.each();
    assert_eq!((each.len(), each.values().max()), (CALLS as usize, Some(&1)));
    assert!(ran.batches().len() < CALLS as usize / 4, "they came together: {:?}", ran.batches());
    for id in each.keys().step_by(37) {
        let record = stage.record(*id).await;
        assert_eq!((record.outcome.as_deref(), record.attempt), (Some("success"), Some(1)));
    }
    mirror.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_is_lost_within_a_batch_costs_no_dispatch_and_each_has_one_outcome()
-> anyhow::Result<()> {
    const CALLS: u32 = 300;
    let stage = Stage::set().await;
    let (name, ran) = (stage.name("mirror"), Ran::default());
    let begun = Arc::new(Semaphore::new(0));
    let noted = Arc::clone(&begun);
    let hangs = move |batch: Batch| {
        noted.add_permits(batch.len());
        std::future::pending::<Result<Answers, Failure>>()
    };
    let doomed = stage.mesh.agent(&name).capability_batch("mirror", hangs).max_concurrent(128);
    let doomed = registered(doomed.instances(1, 2)).await?;
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(&name).register().await?;
    let calls = caller.dispatch(&name, "mirror").budget(PATIENCE * 2).request_many(numbers(CALLS));
    let calls = tokio::spawn(calls);
    begun.acquire_many(50).await?.forget();

    // Dropped, not stopped: no goodbye, as when its process is killed.
    drop(doomed);
    let heir = mirror(&stage, &name, &ran).register().await?;
    let replies = tokio::time::timeout(PATIENCE * 2, calls).await???;
    for (n, reply) in (0..CALLS).zip(&replies) {
        assert_eq!(reply.as_ref().expect("the heir answers").json::<u32>()?, n);
    }
    let each = ran.each();
    assert_eq!((each.len(), each.values().max()), (CALLS as usize, Some(&1)), "the heir ran each once");
    let mut again = 0;
    for reply in replies.iter().flatten().step_by(7) {
        let record = stage.record(reply.id()).await;
        assert_eq!(record.outcome.as_deref(), Some("success"));
        assert_eq!(record.runner, Some(heir.instance().to_string()));
        if record.attempt == Some(2) {
            again += 1;
            assert!(ran.batches().contains(&(reply.id(), 1)), "what comes again runs by itself");
        }
    }
    assert!(again > 0, "some were held by the lost instance, and the record says so");
    heir.stop().await?;
    Ok(())
}

#[tokio::test]
async fn events_of_a_batch_that_fails_are_tried_again_one_by_one() -> anyhow::Result<()> {
    /// Fewer than the failures in a row that trip a breaker.
    const EVENTS: usize = 4;
    let stage = Stage::set().await;
    let (name, ran) = (stage.name("shaky"), Ran::default());
    let noted = ran.clone();
    let handler = move |batch: Batch| {
        noted.note(&batch);
        async move {
            // One of them cannot be borne in company.
            let fails = batch.len() > 1 && batch.payloads().any(|p| p == b"2");
            if fails { Err(Failure::new("not in company")) } else { Ok(Answers::empty()) }
        }
    };
    let shaky = registered(stage.mesh.agent(&name).capability_batch("bear", handler)).await?;
    let sender = stage.mesh.agent(&stage.name("sender")).depends_on(&name).register().await?;
    let accepted = sender.publish_event(&name, "bear").send_many(numbers(EVENTS as u32)).await?;
    until("each has succeeded", PATIENCE, || async { ran.each().len() == EVENTS }).await;
    for id in accepted.ids() {
        let record = stage.record(id).await;
        assert_eq!(record.outcome.as_deref(), Some("success"), "{id}");
    }
    tokio::time::timeout(Duration::from_secs(30), shaky.stop()).await??;
    Ok(())
}
