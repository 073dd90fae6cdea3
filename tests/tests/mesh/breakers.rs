//! Breakers: a target that fails is cut off, fallbacks answer for it, and a probe brings it back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use governance::BreakerState;
use mesh_tests::{PATIENCE, SOON, Stage, until};
use serde_json::json;
use worker_sdk::{Agent, AgentBuilder, Context, ErrorKind, Failure, Outcome, Reason};

/// What trips a breaker at once, by the policy of these tests.
const FAILURES_IN_ROW: u32 = 5;

/// A service that is well or ill.
struct Patient {
    agent: Agent,
    ill: Arc<AtomicBool>,
    runs: Arc<AtomicU32>,
}

impl Patient {
    async fn admit(
        stage: &Stage,
        who: &str,
        describe: impl FnOnce(AgentBuilder) -> AgentBuilder,
    ) -> anyhow::Result<Self> {
        let (ill, runs) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU32::new(0)));
        let (is_ill, ran) = (Arc::clone(&ill), Arc::clone(&runs));
        let builder = stage.mesh.agent(&stage.name(who)).capability("treat", move |_: Context, n: u32| {
            let (is_ill, ran) = (Arc::clone(&is_ill), Arc::clone(&ran));
            async move {
                ran.fetch_add(1, Ordering::SeqCst);
                if is_ill.load(Ordering::SeqCst) { Err(Failure::new("fever")) } else { Ok(n) }
            }
        });
        Ok(Self { agent: describe(builder).register().await?, ill, runs })
    }

    /// Fails until the breaker trips and the caller's home knows it: that may be another home than the patient's.
    async fn trip(&self, caller: &Agent) -> anyhow::Result<()> {
        for nth in 0..FAILURES_IN_ROW {
            let error = caller.dispatch(self.agent.name(), "treat").json(&nth)?.request().await;
            let error = error.expect_err("it is ill");
            assert_eq!(error.kind(), ErrorKind::Failed(Reason::HandlerFailed), "failure {nth}");
        }
        let told = Instant::now();
        while let Err(error) = caller.dispatch(self.agent.name(), "treat").json(&0)?.request().await {
            if error.kind() == ErrorKind::CircuitBroken {
                break;
            }
            assert_eq!(error.kind(), ErrorKind::Failed(Reason::HandlerFailed));
            assert!(told.elapsed() < SOON, "the caller's home does not learn of the trip");
        }
        Ok(())
    }

    /// Waits until the patient's home says so.
    async fn until(&self, stage: &Stage, state: BreakerState) {
        until(&format!("the breaker is {state}"), PATIENCE, || async {
            stage.view(self.agent.name()).await.breaker == state
        })
        .await;
    }

    /// Calls until it answers itself: the caller's home hears a moment after the patient's that its breaker passes.
    async fn answers(&self, caller: &Agent, n: u32) -> anyhow::Result<u32> {
        let asked = Instant::now();
        loop {
            match caller.dispatch(self.agent.name(), "treat").json(&n)?.request().await {
                Ok(reply) if !reply.is_fallback() => return Ok(reply.json()?),
                Err(error) if error.kind() != ErrorKind::CircuitBroken => return Err(error.into()),
                _ => assert!(asked.elapsed() < SOON, "the caller's home does not learn that it passes"),
            }
        }
    }
}

#[tokio::test]
async fn failures_in_a_row_trip_it_and_calls_are_answered_at_once() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let patient = Patient::admit(&stage, "patient", |agent| agent).await?;
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(patient.agent.name()).register().await?;
    let mut alerts = stage.mesh.nats().subscribe("mesh.alert.breaker").await?;
    stage.mesh.nats().flush().await?;
    patient.trip(&caller).await?;
    let runs = patient.runs.load(Ordering::SeqCst);

    let error = caller.dispatch(patient.agent.name(), "treat").json(&9)?.request().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CircuitBroken, "{error}");
    assert_eq!(patient.runs.load(Ordering::SeqCst), runs, "no handler was troubled");
    let record = stage.record(error.id().expect("it was accepted")).await;
    assert_eq!(
        (record.outcome.as_deref(), record.reason.as_str()),
        (Some("circuit_broken"), "breaker_tripped")
    );

    let view = stage.view(patient.agent.name()).await;
    assert_eq!(view.breaker_reason, Reason::FailuresInRow);
    let name = patient.agent.name().to_owned();
    let alerted = tokio::time::timeout(SOON, async {
        while let Some(alert) = futures::StreamExt::next(&mut alerts).await {
            let alert: protocol::control::Alert = serde_json::from_slice(&alert.payload)?;
            if alert.agent == name {
                return Ok::<_, anyhow::Error>(alert.text);
            }
        }
        anyhow::bail!("the subscription ended")
    });
    assert!(alerted.await??.contains("tripped"));
    let trips = format!("mesh_breaker_trips_total{{agent=\"{}\"}}", patient.agent.name());
    assert_eq!(stage.metric(&trips).await, 1.0);
    Ok(())
}

#[tokio::test]
async fn a_static_fallback_answers_and_a_ping_brings_the_target_back() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let calm = json!({"advice": "rest"});
    let patient = Patient::admit(&stage, "patient", |agent| agent.fallback_static("treat", &calm)).await?;
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(patient.agent.name()).register().await?;
    patient.trip(&caller).await?;

    let reply = caller.dispatch(patient.agent.name(), "treat").json(&1)?.request().await?;
    assert_eq!(reply.json::<serde_json::Value>()?, calm);
    assert!(reply.is_fallback());
    assert_eq!((reply.outcome(), reply.reason()), (Outcome::CircuitBroken, Reason::FallbackStatic));
    let record = stage.record(reply.id()).await;
    assert_eq!((record.decision.as_str(), record.decision_reason.as_str()), ("fallback", "fallback_static"));

    patient.ill.store(false, Ordering::SeqCst);
    patient.until(&stage, BreakerState::Passing).await;
    assert_eq!(patient.answers(&caller, 2).await?, 2);
    stage.archived().await;
    let recovered = "SELECT count(*) FROM audit_note WHERE kind = 'breaker' AND agent = $1 \
                     AND body::jsonb @> '{\"to\": \"passing\", \"reason\": \"probe_succeeded\"}'";
    assert_eq!(stage.number(recovered, &[&patient.agent.name()]).await, 1);
    Ok(())
}

#[tokio::test]
async fn a_fallback_agent_takes_the_place_of_a_tripped_one() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let locum = stage
        .mesh
        .agent(&stage.name("locum"))
        .capability("treat", |_: Context, n: u32| async move { Ok::<_, Failure>(n + 100) })
        .register()
        .await?;
    let patient =
        Patient::admit(&stage, "patient", |agent| agent.fallback_agent("treat", locum.name())).await?;
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(patient.agent.name()).register().await?;
    patient.trip(&caller).await?;
    let reply = caller.dispatch(patient.agent.name(), "treat").json(&1)?.request().await?;
    assert_eq!((reply.json::<u32>()?, reply.target()), (101, locum.name()));
    assert!(reply.is_fallback(), "{reply:?}");
    Ok(())
}

#[tokio::test]
async fn events_wait_for_a_tripped_target_and_the_first_of_them_is_its_probe() -> anyhow::Result<()> {
    const EVENTS: u32 = 4;
    let stage = Stage::set().await;
    let patient = Patient::admit(&stage, "patient", |agent| agent).await?;
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(patient.agent.name()).register().await?;
    patient.trip(&caller).await?;
    let runs = patient.runs.load(Ordering::SeqCst);
    patient.ill.store(false, Ordering::SeqCst);

    let mut events = Vec::new();
    for n in 0..EVENTS {
        let event = caller.publish_event(patient.agent.name(), "treat").json(&n)?;
        events.push(event.send().await?.id());
    }
    assert_eq!(patient.runs.load(Ordering::SeqCst), runs, "they wait");
    patient.until(&stage, BreakerState::Passing).await;
    for id in &events {
        let record = stage.record(*id).await;
        assert_eq!(record.outcome.as_deref(), Some("success"), "{record:?}");
    }
    let probes = "SELECT count(*) FROM dispatch WHERE source = $1 AND decision_reason = 'probe'";
    assert_eq!(stage.number(probes, &[&caller.name()]).await, 1);
    assert_eq!(patient.runs.load(Ordering::SeqCst), runs + EVENTS);
    Ok(())
}

#[tokio::test]
async fn runs_longer_than_the_promise_trip_it_although_they_succeed() -> anyhow::Result<()> {
    const RUNS: u32 = 24;
    let stage = Stage::set().await;
    let sleepy = stage
        .mesh
        .agent(&stage.name("sleepy"))
        .capability("nap", |_: Context, _: u32| async {
            tokio::time::sleep(Duration::from_millis(60)).await;
            Ok::<_, Failure>(())
        })
        .sla_p95(Duration::from_millis(20))
        .register()
        .await?;
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(sleepy.name()).register().await?;
    let naps = (0..RUNS).map(|n| bytes::Bytes::from(n.to_string()));
    caller.dispatch(sleepy.name(), "nap").request_many(naps).await?;
    until("the breaker trips", SOON, || async {
        stage.view(sleepy.name()).await.breaker != BreakerState::Passing
    })
    .await;
    stage.archived().await;
    let why = "SELECT count(*) FROM audit_note WHERE kind = 'breaker' AND agent = $1 \
               AND body::jsonb @> '{\"to\": \"tripped\", \"reason\": \"sla_exceeded\"}'";
    assert!(stage.number(why, &[&sleepy.name()]).await >= 1);
    Ok(())
}

#[tokio::test]
async fn an_operator_trips_and_resets_it_and_both_are_recorded() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let patient = Patient::admit(&stage, "patient", |agent| agent).await?;
    patient.ill.store(false, Ordering::SeqCst);
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(patient.agent.name()).register().await?;
    let ask = || caller.dispatch(patient.agent.name(), "treat").json(&1).expect("a number is JSON");

    // The home of the caller is told by the home of the patient.
    stage.operate("trip", patient.agent.name()).await;
    until("calls are answered at once", SOON, || async {
        ask().request().await.is_err_and(|e| e.kind() == ErrorKind::CircuitBroken)
    })
    .await;
    stage.operate("reset", patient.agent.name()).await;
    until("calls go through", SOON, || async { ask().call::<u32>().await.is_ok_and(|n| n == 1) }).await;
    stage.archived().await;
    let notes = "SELECT count(*) FROM audit_note WHERE kind = 'operator' AND agent = $1 \
                 AND body::jsonb @> '{\"operator\": \"mesh-tests\", \"reason\": \"a test\"}'";
    assert_eq!(stage.number(notes, &[&patient.agent.name()]).await, 2);
    Ok(())
}
