//! The SDK on a real nats-server, against a home that does what each test tells it: what is said on the wire when things
//! go wrong between instance and home. Skipped, with a message, where there is no nats-server.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says why it is skipped")]

/// Starts a home, or ends the test where there is no server.
macro_rules! home {
    () => {
        match Home::start().await {
            Some(home) => home,
            None => return,
        }
    };
}

mod batches;
mod holding;
mod home;
mod pulse;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use bytes::Bytes;
use futures::StreamExt;
use governance::{AgentId, Outcome, Priority, Reason};
use home::{Completed, Home, PATIENCE, event, eventually, id, request};
use protocol::completion::{self, Reply};
use protocol::envelope::LaneEnvelope;
use protocol::{Lineage, streams, subjects};
use tokio::sync::{Notify, mpsc};
use worker_sdk::{Agent, Context, ErrorKind, Failure, Mesh, Response};

async fn mesh(home: &Home) -> Mesh {
    Mesh::connect(&home.url).await.unwrap()
}

/// An agent that doubles numbers, and counts how often it does.
async fn doubler(home: &Home, runs: &Arc<AtomicU32>) -> Agent {
    let runs = Arc::clone(runs);
    let handler = move |_: Context, n: u32| {
        runs.fetch_add(1, Ordering::SeqCst);
        async move { Ok::<_, Failure>(n * 2) }
    };
    mesh(home).await.agent("worker").capability("double", handler).register().await.unwrap()
}

fn payloads(completions: &[Completed]) -> Vec<(&str, Reason)> {
    completions.iter().map(|c| (c.payload.as_str(), c.reason)).collect()
}

#[tokio::test]
async fn dispatches_of_a_message_run_and_it_goes_when_all_are_completed() {
    let home = home!();
    let runs = Arc::default();
    let _worker = doubler(&home, &runs).await;
    home.deliver("worker", 1, &[request("double", "1"), request("double", "x"), request("triple", "3")])
        .await;
    let done = home.completions_of(3).await;
    assert_eq!(done[0].payload, "2");
    assert_eq!((done[1].reason, done[2].reason), (Reason::HandlerFailed, Reason::NotHandled));
    assert!(done[1].payload.contains("bad_payload"), "{}", done[1].payload);
    home.left_in_inboxes(0).await;
}

#[tokio::test]
async fn a_redelivered_message_runs_only_what_its_home_says_is_open() {
    let home = home!();
    let agent = AgentId::new("worker").unwrap();
    broker::ensure_inbox_consumers(&home.js, &agent).await.unwrap();
    home.deliver("worker", 1, &[request("double", "1"), request("double", "2"), request("double", "3")])
        .await;
    // Another instance took it, did the first, and was lost.
    let inbox = streams::inboxes(Priority::P2);
    let other: PullConsumer = home.js.get_consumer_from_stream("worker", inbox).await.unwrap();
    let lost = other.fetch().max_messages(1).messages().await.unwrap().next().await.unwrap().unwrap();
    home.end([id(1, 0)]);
    broker::nak(&home.client, lost.reply.as_ref().unwrap(), Duration::ZERO).await.unwrap();

    let runs = Arc::default();
    let _worker = doubler(&home, &runs).await;
    let done = home.completions_of(2).await;
    assert_eq!(payloads(&done), [("4", Reason::Ok), ("6", Reason::Ok)]);
    assert!(done.iter().all(|c| c.attempt == 2));
    home.left_in_inboxes(0).await;
    assert_eq!(runs.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn what_was_stored_before_an_instance_came_runs_only_if_its_home_says_it_is_open() {
    let home = home!();
    broker::ensure_inbox_consumers(&home.js, &AgentId::new("worker").unwrap()).await.unwrap();
    // A broker that lost its power has forgotten that the first was run and acknowledged, and delivers it as if it were new.
    for sequence in 1..=2 {
        home.deliver("worker", sequence, &[request("double", "21")]).await;
    }
    home.end([id(1, 0)]);
    let runs = Arc::default();
    let _worker = doubler(&home, &runs).await;
    let [done] = home.completions_of(1).await.try_into().unwrap();
    assert_eq!((done.id, done.reason, done.attempt), (id(2, 0), Reason::Ok, 1));
    home.left_in_inboxes(0).await;
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_message_that_was_stored_twice_runs_once() {
    let home = home!();
    let runs = Arc::default();
    let _worker = doubler(&home, &runs).await;
    for _ in 0..2 {
        home.deliver("worker", 5, &[request("double", "21")]).await;
    }
    assert_eq!(payloads(&home.completions().await), [("42", Reason::Ok)]);
    home.left_in_inboxes(0).await;
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_failed_event_is_left_to_its_home_and_runs_again_when_that_gives_it_back() {
    let home = home!();
    let handler = |ctx: Context, _: u32| async move {
        if ctx.attempt() == 1 { Err(Failure::new("not yet")) } else { Ok(()) }
    };
    let double = |_: Context, n: u32| async move { Ok::<_, Failure>(n * 2) };
    let worker = mesh(&home).await.agent("worker").capability("note", handler).capability("double", double);
    let _worker = worker.register().await.unwrap();
    home.deliver("worker", 1, &[event("note", "1"), request("double", "2")]).await;

    let done = home.completions_of(2).await;
    assert_eq!(payloads(&done), [("not yet", Reason::HandlerFailed), ("4", Reason::Ok)]);
    assert!(done[1].inbox_ack.is_empty());
    home.left_in_inboxes(1).await;
    home.end([id(1, 1)]);
    broker::nak(&home.client, &done[0].inbox_ack, Duration::ZERO).await.unwrap();

    let [again] = home.completions_of(1).await.try_into().unwrap();
    assert_eq!((again.id, again.reason, again.attempt), (id(1, 0), Reason::Ok, 2));
    home.left_in_inboxes(0).await;
}

#[tokio::test]
async fn a_handler_that_panics_has_failed_and_the_instance_works_on() {
    let home = home!();
    let handler = |_: Context, n: u32| async move {
        assert!(n != 13, "thirteen is not handled");
        Ok::<_, Failure>(n)
    };
    let worker = mesh(&home).await.agent("worker").capability("count", handler).max_concurrent(1);
    let _worker = worker.register().await.unwrap();
    home.deliver("worker", 1, &[request("count", "13"), request("count", "14")]).await;
    let done = home.completions_of(2).await;
    assert_eq!(done[0].reason, Reason::HandlerCrashed);
    assert!(done[0].payload.contains("thirteen is not handled"), "{}", done[0].payload);
    assert_eq!((done[1].reason, done[1].payload.as_str()), (Reason::Ok, "14"));
}

#[tokio::test]
async fn a_revoked_dispatch_is_cancelled_and_one_that_waits_never_begins() {
    let home = home!();
    let (began, mut begun) = mpsc::channel(8);
    let handler = move |ctx: Context, n: u32| {
        let began = began.clone();
        async move {
            began.send(n).await?;
            ctx.cancelled().await;
            Err::<(), _>(Failure::new("stopped"))
        }
    };
    let worker = mesh(&home).await.agent("worker").capability("wait", handler).max_concurrent(1);
    let _worker = worker.register().await.unwrap();
    home.deliver("worker", 1, &[request("wait", "1"), request("wait", "2")]).await;
    assert_eq!(begun.recv().await, Some(1));
    home.revoke("worker", id(1, 0), 2).await;
    assert_eq!(payloads(&home.completions().await), [("stopped", Reason::HandlerFailed)]);
    home.left_in_inboxes(0).await;
    assert!(begun.try_recv().is_err(), "the second did not begin");
}

#[tokio::test]
async fn a_stopping_agent_finishes_what_runs_and_gives_back_what_has_not_begun() {
    let home = home!();
    let (began, mut begun) = mpsc::channel(8);
    let finish = Arc::new(Notify::new());
    let handler = {
        let finish = Arc::clone(&finish);
        move |ctx: Context| {
            let (began, finish) = (began.clone(), Arc::clone(&finish));
            async move {
                began.send(()).await?;
                finish.notified().await;
                Ok(Response::bytes(ctx.payload().clone(), ""))
            }
        }
    };
    let worker = mesh(&home).await.agent("worker").capability_raw("work", handler).max_concurrent(1);
    let worker = worker.register().await.unwrap();
    for sequence in 1..=4 {
        home.deliver("worker", sequence, &[request("work", "\"result\"")]).await;
    }
    begun.recv().await.unwrap();
    let stopping = tokio::spawn({
        let worker = worker.clone();
        async move { worker.stop().await }
    });
    finish.notify_one();
    stopping.await.unwrap().unwrap();
    let done = home.completions().await;
    assert_eq!(payloads(&done), [("\"result\"", Reason::Ok)]);
    home.left_in_inboxes(3).await;
    let refused = worker.dispatch("other", "work").request().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn a_handler_that_waits_for_a_child_gives_its_slot_to_it() {
    let home = home!();
    let outer = |ctx: Context, n: u32| async move {
        let n: u32 = ctx.dispatch("worker", "inner").json(&n)?.call().await?;
        Ok::<_, Failure>(n + 1)
    };
    let inner = |_: Context, n: u32| async move { Ok::<_, Failure>(n * 10) };
    let worker = mesh(&home).await.agent("worker").capability("outer", outer).capability("inner", inner);
    let worker = worker.max_concurrent(1).register().await.unwrap();
    home.deliver("worker", 1, &[request("outer", "4")]).await;

    let bytes = home.lane().await;
    let lane = LaneEnvelope::parse(&bytes).unwrap();
    assert_eq!((lane.instance, lane.sequence), (worker.instance(), 1));
    let (lineage, seal) = Lineage::decode(lane.lineage(0)).unwrap();
    assert_eq!((lineage.root, lineage.parent, seal), (id(1, 0), id(1, 0), 42));
    assert_eq!(lane.text(protocol::envelope::column::CONVERSATION, 0), "talk");
    home.forward("worker", "worker", &lane).await;
    let [inner] = home.completions_of(1).await.try_into().unwrap();
    assert_eq!((inner.id.instance, inner.payload.as_str()), (worker.instance(), "40"));
    reply(&home, &worker, inner.id.sequence, 1, b"40").await;
    assert_eq!(payloads(&home.completions().await), [("41", Reason::Ok)]);
}

/// Replies to dispatches of an envelope; gives back once that is confirmed.
async fn reply(home: &Home, to: &Agent, sequence: u64, count: u16, payload: &[u8]) {
    let first = worker_sdk::DispatchId { instance: to.instance(), sequence, slot: 0, copy: 0 };
    let replies = completion::write_replies(&[Reply {
        first,
        count,
        outcome: Outcome::Success,
        reason: Reason::Ok,
        target: "worker",
        lane_us: 1,
        inbox_us: 2,
        ran_us: 3,
        payload,
        content_type: "",
    }]);
    let subject = subjects::reply(&AgentId::new(to.name()).unwrap(), to.instance());
    let confirmed = home.client.request(subject, replies.into()).await.unwrap();
    assert!(confirmed.payload.is_empty());
}

#[tokio::test]
async fn a_reply_that_comes_twice_is_confirmed_twice_and_handed_over_once() {
    let home = home!();
    let caller = mesh(&home).await.agent("caller").register().await.unwrap();
    let pending = caller.dispatch("worker", "double").json(&1).unwrap().start().await.unwrap();
    assert_eq!(pending.id().sequence, 1);
    for _ in 0..2 {
        reply(&home, &caller, 1, 1, b"2").await;
    }
    let reply = pending.reply().await.unwrap();
    assert_eq!(
        (reply.json::<u32>().unwrap(), reply.target(), reply.ran()),
        (2, "worker", Duration::from_micros(3))
    );
}

#[tokio::test]
async fn many_dispatches_share_envelopes_up_to_what_the_quota_gives_in_50_ms() {
    let home = home!();
    let caller = mesh(&home).await.agent("caller").register().await.unwrap();
    let accepted =
        caller.publish_event("worker", "note").send_many((0..23).map(|_| Bytes::from("1"))).await.unwrap();
    assert_eq!(accepted.count(), 23);
    let mut rows = Vec::new();
    while rows.iter().sum::<usize>() < 23 {
        let bytes = home.lane().await;
        let lane = LaneEnvelope::parse(&bytes).unwrap();
        assert_eq!(lane.sequence, rows.len() as u64 + 1, "sequences are dense and in order");
        rows.push(lane.frame.rows());
    }
    assert!(rows.iter().all(|r| *r <= 5), "at 100/s: {rows:?}");
    assert!(rows.len() < 23, "they share: {rows:?}");
}

#[tokio::test]
async fn a_full_lane_refuses_who_will_not_wait_and_leaves_no_gap_in_the_sequences() {
    let home = home!();
    let caller = mesh(&home).await.agent("caller").register().await.unwrap();
    let source = AgentId::new("caller").unwrap();
    let full = subjects::lane(Priority::P1, &source, Some(&AgentId::new("full").unwrap()));
    for _ in 0..streams::LANE_MESSAGES_MAX {
        home.js.publish(full.clone(), Bytes::new()).await.unwrap().await.unwrap();
    }
    let to = |target: &str| caller.publish_event(target, "note").priority(Priority::P1);
    let refused = to("full").fail_when_full().send().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::LaneFull);
    // Its sequence, and message id, are those of the next envelope.
    assert_eq!(to("other").send().await.unwrap().id().sequence, 1);
    let stream = home.js.get_stream(streams::lanes(Priority::P1)).await.unwrap();
    assert_eq!(stream.cached_info().state.messages as i64, streams::LANE_MESSAGES_MAX + 1);

    let waiting = tokio::spawn(to("full").send());
    let later = to("other").send().await.unwrap().id().sequence;
    assert!(!waiting.is_finished());
    stream.purge().filter(full).await.unwrap();
    let waited = waiting.await.unwrap().unwrap().id().sequence;
    assert_eq!(later.min(waited)..=later.max(waited), 2..=3);
}

#[tokio::test]
async fn an_agent_that_is_dropped_stops_and_what_it_held_goes_to_another_instance() {
    let home = home!();
    let (began, mut begun) = mpsc::channel(8);
    let handler = move |_: Context, ()| {
        let began = began.clone();
        async move {
            began.send(()).await?;
            std::future::pending::<Result<(), Failure>>().await
        }
    };
    let first = mesh(&home).await.agent("worker").capability("work", handler).register().await.unwrap();
    home.deliver("worker", 1, &[request("work", "null")]).await;
    begun.recv().await.unwrap();
    drop(first);
    eventually("its handler is gone", || std::future::ready(begun.is_closed())).await;

    let handler = |ctx: Context, ()| async move { Ok::<_, Failure>(ctx.attempt()) };
    let second = mesh(&home).await.agent("worker").capability("work", handler);
    let _second = second.register().await.unwrap();
    let [done] = tokio::time::timeout(PATIENCE, home.completions_of(1)).await.unwrap().try_into().unwrap();
    assert_eq!((done.payload.as_str(), done.attempt), ("2", 2));
}
