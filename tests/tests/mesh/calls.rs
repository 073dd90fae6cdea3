//! Requests and replies: what a caller gets, from whom, and what is refused.

use std::sync::Arc;

use mesh_tests::chaos::proxy::{self, State};
use mesh_tests::{SOON, Stage, until};
use serde_json::json;
use tokio::sync::{Semaphore, watch};
use worker_sdk::{Context, ErrorKind, Failure, Mesh, Outcome, Reason};

async fn double(_: Context, n: u64) -> Result<u64, Failure> {
    Ok(n * 2)
}

#[tokio::test]
async fn a_request_is_answered_and_recorded() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let (teller, asker) = (stage.name("teller"), stage.name("asker"));
    let teller = stage.mesh.agent(&teller).capability("double", double).register().await?;
    let asker = stage.mesh.agent(&asker).depends_on(teller.name()).register().await?;

    let reply = asker.dispatch(teller.name(), "double").conversation("about 21").json(&21)?.request().await?;
    assert_eq!(reply.json::<u64>()?, 42);
    assert_eq!(
        (reply.outcome(), reply.reason(), reply.target()),
        (Outcome::Success, Reason::Ok, teller.name())
    );

    let record = stage.record(reply.id()).await;
    assert_eq!(record.source, asker.name());
    assert_eq!(record.target.as_deref(), Some(teller.name()));
    assert_eq!(record.capability.as_deref(), Some("double"));
    assert_eq!(record.conversation.as_deref(), Some("about 21"));
    assert_eq!((record.kind.as_str(), record.lane.as_str(), record.class.as_str()), ("request", "P2", "P2"));
    assert_eq!((record.decision.as_str(), record.outcome.as_deref()), ("admitted", Some("success")));
    assert_eq!(record.policy_version, 7, "the policy of these tests is in force");
    assert_eq!(record.runner, Some(teller.instance().to_string()));
    assert!(record.response_hash.is_some_and(|hash| hash != record.payload_hash));

    let log = "SELECT count(*) FROM dispatch_log_of($1) WHERE type IN ('request', 'response')";
    assert_eq!(
        stage.number(log, &[&reply.id().to_string()]).await,
        2,
        "a request has a row, its response another"
    );
    Ok(())
}

#[tokio::test]
async fn a_caller_that_was_cut_off_is_told_what_ended_meanwhile() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let (way, _) = watch::channel(State::Open);
    let url = proxy::led_through(&stage.settings.nats_url, &way).await?;
    let may_end = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&may_end);
    let slow = move |_: Context, n: u64| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await?.forget();
            Ok::<_, Failure>(n)
        }
    };
    let teller = stage.mesh.agent(&stage.name("teller")).capability("tell", slow).register().await?;
    let mesh = Mesh::connect(&url).await?;
    let asker = mesh.agent(&stage.name("asker")).depends_on(teller.name()).register().await?;
    let pending = asker.dispatch(teller.name(), "tell").json(&21)?.start().await?;

    way.send_replace(State::Cut);
    may_end.add_permits(1);
    assert_eq!(stage.record(pending.id()).await.outcome.as_deref(), Some("success"), "it ends all the same");
    way.send_replace(State::Open);
    let reply = tokio::time::timeout(SOON, pending.reply()).await??;
    assert_eq!(reply.json::<u64>()?, 21);
    Ok(())
}

#[tokio::test]
async fn a_failure_comes_back_with_the_handlers_words_and_code() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let clerk = stage.name("clerk");
    let clerk = stage
        .mesh
        .agent(&clerk)
        .capability("sell", |_: Context, _: u32| async {
            Err::<(), _>(Failure::new("nothing is left").with_code("sold_out"))
        })
        .register()
        .await?;
    let buyer = stage.mesh.agent(&stage.name("buyer")).depends_on(clerk.name()).register().await?;

    let error = buyer.dispatch(clerk.name(), "sell").json(&1)?.request().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed(Reason::HandlerFailed));
    assert_eq!((error.message(), error.code()), ("nothing is left", Some("sold_out")));
    assert_eq!(error.target(), clerk.name());
    let record = stage.record(error.id().expect("it was accepted")).await;
    assert_eq!((record.outcome.as_deref(), record.reason.as_str()), (Some("failure"), "handler_failed"));

    let error = buyer.dispatch(clerk.name(), "sell").json(&"one")?.request().await.unwrap_err();
    assert_eq!(
        error.code(),
        Some("bad_payload"),
        "a payload of another type is the caller's mistake: {error}"
    );
    Ok(())
}

#[tokio::test]
async fn a_handler_that_panics_fails_its_dispatch_and_nothing_else() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let shaky = stage
        .mesh
        .agent(&stage.name("shaky"))
        .capability("divide", |_: Context, by: u32| async move { Ok::<_, Failure>(12 / by) })
        .register()
        .await?;
    let asker = stage.mesh.agent(&stage.name("asker")).depends_on(shaky.name()).register().await?;
    let error = asker.dispatch(shaky.name(), "divide").json(&0)?.request().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed(Reason::HandlerCrashed));
    assert_eq!(asker.dispatch(shaky.name(), "divide").json(&3)?.call::<u32>().await?, 4);
    Ok(())
}

#[tokio::test]
async fn an_undeclared_call_is_refused_by_name_recorded_and_counted() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let vault = stage.mesh.agent(&stage.name("vault")).capability("open", double).register().await?;
    let guest = stage.mesh.agent(&stage.name("guest")).register().await?;
    let counted = stage.metric("mesh_governance_violations_total").await;

    let error = guest.dispatch(vault.name(), "open").json(&1)?.request().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected(Reason::UndeclaredDependency));
    let missing = format!("{} did not declare {}/open", guest.name(), vault.name());
    assert!(error.message().contains(&missing), "{error}");

    let id = error.id().expect("it was accepted").to_string();
    let rows = "SELECT count(*) FROM dispatch_log_of($1) WHERE decision = 'rejected' AND outcome = 'rejected' \
                AND reason = 'undeclared_dependency'";
    stage.record(error.id().expect("it was accepted")).await;
    assert_eq!(stage.number(rows, &[&id]).await, 2, "the request and the error that answered it");
    assert!(stage.metric("mesh_governance_violations_total").await > counted);
    Ok(())
}

#[tokio::test]
async fn calls_of_what_does_not_exist_say_what_does_not() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let known = stage.mesh.agent(&stage.name("known")).capability("double", double).register().await?;
    let nobody = stage.name("nobody");
    let asker = stage
        .mesh
        .agent(&stage.name("asker"))
        .depends_on(known.name())
        .depends_on(&nobody)
        .depends_on("*/levitate")
        .register()
        .await?;
    let warned: Vec<&str> = asker.warnings().iter().map(|w| w.field.as_str()).collect();
    assert!(
        warned.starts_with(&["dependencies[1]", "dependencies[2]"]),
        "what nobody offers yet: {warned:?}"
    );

    let error = asker.dispatch(&nobody, "double").request().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected(Reason::UnknownTarget));
    let error = asker.dispatch(known.name(), "halve").request().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected(Reason::UnknownCapability));
    let error = asker.dispatch_to_any("levitate").request().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected(Reason::NoProvider));
    Ok(())
}

#[tokio::test]
async fn a_call_by_capability_reaches_an_agent_that_offers_it() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let capability = stage.name("geocode");
    let offer = |who: &str| stage.mesh.agent(&stage.name(who)).capability(&capability, double).register();
    let (first, second) = tokio::try_join!(offer("north"), offer("south"))?;
    let asker =
        stage.mesh.agent(&stage.name("asker")).depends_on(&format!("*/{capability}")).register().await?;

    let reply = asker.dispatch_to_any(&capability).json(&4)?.request().await?;
    assert_eq!(reply.json::<u64>()?, 8);
    assert!([first.name(), second.name()].contains(&reply.target()), "{}", reply.target());
    assert_eq!(stage.record(reply.id()).await.decision_reason, "routed_by_capability");

    let left = if reply.target() == first.name() { &second } else { &first };
    let gone = if reply.target() == first.name() { &first } else { &second };
    stage.operate("trip", gone.name()).await;
    // The home of the asker hears of the trip a moment after the home of the tripped one.
    until("a tripped agent is passed over", SOON, || async {
        let call = asker.dispatch_to_any(&capability).json(&5).expect("a number is JSON");
        call.request().await.is_ok_and(|reply| reply.target() == left.name())
    })
    .await;
    for n in 0..8_u64 {
        let reply = asker.dispatch_to_any(&capability).json(&n)?.request().await?;
        assert_eq!(reply.target(), left.name(), "and stays so");
    }
    stage.operate("reset", gone.name()).await;
    Ok(())
}

#[tokio::test]
async fn children_belong_to_the_tree_of_their_parent_and_end_no_later() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let leaf = stage
        .mesh
        .agent(&stage.name("leaf"))
        .capability("left_ms", |ctx: Context, (): ()| async move {
            Ok::<_, Failure>(ctx.time_left().as_millis() as u64)
        })
        .register()
        .await?;
    let leaf_name = leaf.name().to_owned();
    let branch = stage
        .mesh
        .agent(&stage.name("branch"))
        .capability("ask", move |ctx: Context, (): ()| {
            let leaf = leaf_name.clone();
            async move {
                let child = ctx.dispatch(&leaf, "left_ms").budget(std::time::Duration::from_secs(600));
                let reply = child.json(&())?.request().await?;
                Ok::<_, Failure>(json!({"child": reply.id().to_string(), "left_ms": reply.json::<u64>()?}))
            }
        })
        .depends_on(leaf.name())
        .register()
        .await?;
    let root = stage.mesh.agent(&stage.name("root")).depends_on(branch.name()).register().await?;
    let budget = std::time::Duration::from_secs(15);
    let reply =
        root.dispatch(branch.name(), "ask").conversation("tree").budget(budget).json(&())?.request().await?;
    let answer: serde_json::Value = reply.json()?;
    assert!(answer["left_ms"].as_u64().expect("a number") <= 15_000, "{answer}");

    let child: worker_sdk::DispatchId = answer["child"].as_str().expect("an id").parse()?;
    let (parent, child) = (stage.record(reply.id()).await, stage.record(child).await);
    assert_eq!(child.root, parent.dispatch_id);
    assert_eq!(child.parent.as_deref(), Some(parent.dispatch_id.as_str()));
    assert_eq!(child.conversation.as_deref(), Some("tree"));
    assert!(child.deadline <= parent.deadline);
    let tree = stage.archive.tree(&child.dispatch_id).await?.expect("it is in the archive");
    assert_eq!(tree.hops.len(), 2, "{tree:?}");
    Ok(())
}

#[tokio::test]
async fn agents_that_call_in_a_circle_are_stopped() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let me = stage.name("ouroboros");
    let own = me.clone();
    let snake =
        stage
            .mesh
            .agent(&me)
            .capability("bite", move |ctx: Context, depth: u32| {
                let own = own.clone();
                async move {
                    Ok::<_, Failure>(ctx.dispatch(&own, "bite").json(&(depth + 1))?.call::<u32>().await?)
                }
            })
            .depends_on(&me)
            .register()
            .await?;
    let person = stage.mesh.agent(&stage.name("person")).depends_on(&me).register().await?;
    let error = person.dispatch(snake.name(), "bite").json(&0)?.request().await.unwrap_err();
    assert!(error.message().contains("circle"), "{error}");
    let stopped = "SELECT count(*) FROM dispatch_decision d JOIN word w ON w.list = 'reason' AND w.code = d.reason \
                   WHERE d.source = $1 AND w.name = 'loop'";
    stage.record(error.id().expect("it was accepted")).await;
    stage.archived().await;
    assert_eq!(stage.number(stopped, &[&me]).await, 1);
    Ok(())
}

#[tokio::test]
async fn a_payload_of_nearly_a_mebibyte_passes_and_a_larger_one_is_refused_at_the_door() -> anyhow::Result<()>
{
    let stage = Stage::set().await;
    let mirror = stage
        .mesh
        .agent(&stage.name("mirror"))
        .capability_raw("reflect", |ctx: Context| async move {
            Ok(described(ctx.payload().len(), ctx.content_type()))
        })
        .register()
        .await?;
    let asker = stage.mesh.agent(&stage.name("asker")).depends_on(mirror.name()).register().await?;
    let most = protocol::streams::PAYLOAD_BYTES_MAX;
    let reply = asker.dispatch(mirror.name(), "reflect").bytes(vec![7; most], "image/png").request().await?;
    assert_eq!(reply.payload(), format!("{most} bytes of image/png").as_bytes());
    let refused =
        asker.dispatch(mirror.name(), "reflect").bytes(vec![7; most + 1], "image/png").request().await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Encoding);
    Ok(())
}

fn described(bytes: usize, content_type: &str) -> worker_sdk::Response {
    worker_sdk::Response::bytes(format!("{bytes} bytes of {content_type}"), "text/plain")
}

#[tokio::test]
async fn a_second_dispatch_with_the_same_idempotency_key_is_refused() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let teller = stage.mesh.agent(&stage.name("teller")).capability("double", double).register().await?;
    let asker = stage.mesh.agent(&stage.name("asker")).depends_on(teller.name()).register().await?;
    let ask = || asker.dispatch(teller.name(), "double").idempotency_key("order 66").json(&1);
    assert_eq!(ask()?.call::<u64>().await?, 2);
    assert_eq!(ask()?.request().await.unwrap_err().kind(), ErrorKind::Rejected(Reason::DuplicateKey));
    Ok(())
}
