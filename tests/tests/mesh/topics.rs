//! Topics: one event, a copy for each agent that wants it.

use mesh_tests::{SOON, Sightings, Stage, until};
use worker_sdk::{Agent, Context, Outcome};

async fn subscriber(stage: &Stage, who: &str, topic: &str) -> anyhow::Result<(Agent, Sightings)> {
    let seen = Sightings::default();
    let noted = seen.clone();
    let agent = stage
        .mesh
        .agent(&stage.name(who))
        .on_topic(topic, move |ctx: Context, _: String| {
            noted.note(ctx.id());
            async { Ok(()) }
        })
        .register()
        .await?;
    Ok((agent, seen))
}

#[tokio::test]
async fn each_subscriber_gets_its_own_copy_under_the_same_root() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let topic = stage.name("leads");
    let (_crm, at_crm) = subscriber(&stage, "crm", &topic).await?;
    let (_scores, at_scores) = subscriber(&stage, "scores", &topic).await?;
    let herald = stage.mesh.agent(&stage.name("herald")).register().await?;

    let event = herald.emit(&topic).json(&"a lead came in")?.send().await?;
    until("both have it", SOON, || async { at_crm.count() == 1 && at_scores.count() == 1 }).await;

    let whole = stage.record(event.id()).await;
    assert_eq!(
        (whole.decision.as_str(), whole.outcome.as_deref()),
        ("fanned_out", Some(Outcome::Success.name()))
    );
    let copies = "SELECT count(*) FROM dispatch WHERE instance = $1 AND sequence = $2 AND copy > 0 \
                  AND root = $3 AND decision_reason = 'topic_copy' AND outcome = 'success'";
    let (instance, sequence) = (event.id().instance.0.cast_signed(), event.id().sequence.cast_signed());
    until("both copies are archived", SOON, || async {
        stage.number(copies, &[&instance, &sequence, &event.id().to_string()]).await == 2
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn an_event_that_nobody_wants_ends_as_delivered_to_nobody() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let herald = stage.mesh.agent(&stage.name("herald")).register().await?;
    let event = herald.emit(&stage.name("silence")).json(&"hello?")?.send().await?;
    let record = stage.record(event.id()).await;
    assert_eq!(record.reason, "no_subscriber");
    Ok(())
}
