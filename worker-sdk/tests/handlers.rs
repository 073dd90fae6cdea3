//! Handlers without servers: what an agent author's own tests look like.

use std::time::Duration;

use serde_json::json;
use worker_sdk::testing::{Script, call};
use worker_sdk::{Context, Error, ErrorKind, Failure, Kind, Priority, Reply};

/// Answers a person: asks for a score, falls back to a plain answer, and tells the dashboard.
async fn answer(ctx: Context, text: String) -> Result<String, Failure> {
    if text.trim().is_empty() {
        return Err(Failure::new("there is nothing to answer").with_code("empty"));
    }
    let score = match ctx.dispatch("scoring_engine", "score").json(&text)?.request().await {
        Ok(reply) if reply.is_fallback() => "unknown".to_owned(),
        Ok(reply) => reply.json()?,
        Err(e) if e.kind() == ErrorKind::CircuitBroken => "unknown".to_owned(),
        Err(e) => return Err(e.into()),
    };
    ctx.progress(&json!({ "scored": score })).await?;
    ctx.emit("lead_events").priority(Priority::P3).json(&json!({ "score": score }))?.send().await?;
    Ok(format!("a {score} lead: {text}"))
}

#[tokio::test]
async fn a_scripted_reply_reaches_the_handler_and_what_it_sends_is_seen() {
    let script = Script::new().conversation("talk-1").answer("scoring_engine", "score", &"hot");
    let reply = script.call(answer, "two bedrooms".to_owned()).await.unwrap();
    assert_eq!(reply, "a hot lead: two bedrooms");

    let [score, event] = script.sent().try_into().unwrap();
    assert_eq!((score.target.as_str(), score.payload), ("scoring_engine", json!("two bedrooms")));
    assert_eq!((event.kind, event.topic.as_str()), (Kind::Event, "lead_events"));
    assert_eq!(event.conversation, "talk-1", "children belong to the conversation");
    assert_eq!(script.progress(), [json!({ "scored": "hot" })]);
}

#[tokio::test]
async fn a_fallback_or_a_tripped_breaker_can_be_scripted() {
    let script = Script::new().fall_back("scoring_engine", "score", &"tepid");
    assert_eq!(script.call(answer, "hello".to_owned()).await.unwrap(), "a unknown lead: hello");
    let script = Script::new().fail("scoring_engine", "score", ErrorKind::CircuitBroken, "tripped");
    assert_eq!(script.call(answer, "hello".to_owned()).await.unwrap(), "a unknown lead: hello");
}

#[tokio::test]
async fn answers_are_given_in_turn_and_the_last_one_stays() {
    let script =
        Script::new().answer("scoring_engine", "score", &"hot").answer("scoring_engine", "score", &"cold");
    for expected in ["a hot lead: hm", "a cold lead: hm", "a cold lead: hm"] {
        assert_eq!(script.call(answer, "hm".to_owned()).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn a_failure_carries_its_code_and_a_child_without_an_answer_is_rejected() {
    assert_eq!(call(answer, " ".to_owned()).await.unwrap_err().code(), Some("empty"));
    let failure = call(answer, "hello".to_owned()).await.unwrap_err();
    assert!(failure.message().contains("the script has no answer for scoring_engine/score"), "{failure}");
}

#[tokio::test]
async fn a_handler_sees_its_deadline_and_may_move_it() {
    async fn patient(ctx: Context, extend: bool) -> Result<&'static str, Failure> {
        if extend {
            ctx.extend(Duration::from_secs(60)).await?;
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(300)) => Ok("finished"),
            () = ctx.cancelled() => Err(Failure::new("stopped")),
        }
    }
    let script = Script::new().budget(Duration::from_millis(50));
    assert_eq!(script.call(patient, false).await.unwrap_err().message(), "stopped");
    assert_eq!(script.call(patient, true).await.unwrap(), "finished");
}

#[tokio::test]
async fn bad_names_and_payloads_are_told_when_the_dispatch_is_sent() {
    async fn careless(ctx: Context, name: String) -> Result<(), Failure> {
        let kind = |result: Result<Reply, Error>| result.map_err(|e| e.kind()).map(drop);
        let refused = Err(ErrorKind::Encoding);
        assert_eq!(kind(ctx.dispatch(&name, "score").request().await), refused);
        assert_eq!(kind(ctx.emit("lead_events").request().await), refused, "an event has no reply");
        let picture = ctx.dispatch("a", "b").bytes(vec![0; 2 << 20], "image/png");
        assert_eq!(kind(picture.request().await), refused);
        Ok(())
    }
    for name in ["", "Lead Bot", "lead.bot", "*", &"x".repeat(65)] {
        call(careless, name.to_owned()).await.unwrap();
    }
}
