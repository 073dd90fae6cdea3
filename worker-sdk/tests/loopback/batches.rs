//! Handlers of batches: what comes together runs together, ends as a run, and falls apart when it fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use governance::Reason;
use protocol::envelope::LaneEnvelope;
use tokio::sync::{Semaphore, mpsc};
use worker_sdk::{Agent, AgentBuilder, Answers, Batch, Failure, Response};

use crate::home::{Home, event, eventually, id, request};
use crate::mesh;

/// By how much the SDK takes the broker's clock to be apart from its own at the most: what is stored so soon after an instance
/// connected is asked about, and runs one by one.
const CLOCKS_APART: Duration = Duration::from_secs(1);

/// Registers, and waits until what is stored from now on is surely newer than the connection.
async fn registered(worker: AgentBuilder) -> Agent {
    let worker = worker.register().await.unwrap();
    let connected = Instant::now();
    let is_old = || std::future::ready(connected.elapsed() > CLOCKS_APART + CLOCKS_APART / 4);
    eventually("the connection is older than what comes", is_old).await;
    worker
}

/// An agent that answers each batch with its length, and tells of each: its first slot, its length, its attempt.
async fn counter(home: &Home, slots: u32, told: mpsc::UnboundedSender<(u16, usize, u8)>) -> Agent {
    let handler = move |batch: Batch| {
        let told = told.send((batch.id(0).slot, batch.len(), batch.context(0).attempt()));
        async move {
            told?;
            Ok(Answers::same(Response::bytes(batch.len().to_string(), "")))
        }
    };
    let agent = mesh(home).await.agent("worker").capability_batch("count", handler).max_concurrent(slots);
    registered(agent).await
}

#[tokio::test]
async fn what_came_together_runs_together_and_ends_as_one_row() {
    let home = home!();
    let (told, mut heard) = mpsc::unbounded_channel();
    let _worker = counter(&home, 16, told).await;
    home.deliver("worker", 1, &[request("count", "1"), request("count", "2"), request("count", "3")]).await;
    let done = home.completions().await;
    assert_eq!((done.len(), done[0].id, done[0].count, done[0].payload.as_str()), (1, id(1, 0), 3, "3"));
    assert_eq!(heard.recv().await, Some((0, 3, 1)));
    home.left_in_inboxes(0).await;
}

#[tokio::test]
async fn a_batch_is_no_larger_than_the_slots_that_are_free() {
    let home = home!();
    let (told, mut heard) = mpsc::unbounded_channel();
    let _worker = counter(&home, 4, told).await;
    let seven: Vec<_> = (0..7).map(|_| request("count", "0")).collect();
    home.deliver("worker", 1, &seven).await;
    let mut from = 0;
    while from < 7 {
        let (first, count, _) = heard.recv().await.unwrap();
        assert_eq!(first, from, "in their order");
        assert!(count <= 3, "one of four slots waits for P0: {count}");
        from += count as u16;
    }
    home.left_in_inboxes(0).await;
}

#[tokio::test]
async fn each_of_a_batch_can_be_answered_by_itself() {
    let home = home!();
    let double = |batch: Batch| async move {
        let answers = (0..batch.len()).map(|nth| Response::json(&(batch.payload_json::<u32>(nth)? * 2)));
        Ok(Answers::each(answers.collect::<Vec<_>>()))
    };
    let worker = mesh(&home).await.agent("worker").capability_batch("double", double);
    let _worker = registered(worker).await;
    home.deliver("worker", 1, &[request("double", "1"), request("double", "x"), request("double", "3")])
        .await;
    let done = home.completions_of(3).await;
    let ends: Vec<_> = done.iter().map(|c| (c.id.slot, c.reason)).collect();
    assert_eq!(ends, [(0, Reason::Ok), (1, Reason::HandlerFailed), (2, Reason::Ok)]);
    assert_eq!((done[0].payload.as_str(), done[2].payload.as_str()), ("2", "6"));
    assert!(done[1].payload.contains("bad_payload"), "{}", done[1].payload);
    home.left_in_inboxes(0).await;
}

#[tokio::test]
async fn events_of_a_batch_that_failed_come_again_one_by_one() {
    let home = home!();
    let (told, mut heard) = mpsc::unbounded_channel();
    let handler = move |batch: Batch| {
        let told = told.send((batch.len(), batch.context(0).attempt()));
        async move {
            told?;
            if batch.len() > 1 { Err(Failure::new("not together")) } else { Ok(Answers::empty()) }
        }
    };
    let worker = mesh(&home).await.agent("worker").capability_batch("note", handler);
    let _worker = registered(worker).await;
    home.deliver("worker", 1, &[event("note", "1"), event("note", "2")]).await;
    let failed = home.completions_of(2).await;
    assert!(failed.iter().all(|c| c.count == 1 && c.reason == Reason::HandlerFailed), "{failed:?}");
    assert_eq!(failed[0].inbox_ack, failed[1].inbox_ack);
    assert_eq!(heard.recv().await, Some((2, 1)));
    broker::nak(&home.client, &failed[0].inbox_ack, Duration::ZERO).await.unwrap();
    let again = home.completions_of(1).await;
    assert!(again.iter().all(|c| c.reason == Reason::Ok && c.attempt == 2), "{again:?}");
    assert_eq!((heard.recv().await, heard.recv().await), (Some((1, 2)), Some((1, 2))));
    home.left_in_inboxes(0).await;
}

#[tokio::test]
async fn a_batch_that_was_lost_with_its_instance_runs_one_by_one_as_far_as_it_is_open() {
    let home = home!();
    let begun = Arc::new(Semaphore::new(0));
    let noted = Arc::clone(&begun);
    let hangs = move |_: Batch| {
        noted.add_permits(1);
        std::future::pending::<Result<Answers, Failure>>()
    };
    let doomed = mesh(&home).await.agent("worker").capability_batch("count", hangs);
    let doomed = registered(doomed).await;
    home.deliver("worker", 1, &[request("count", "1"), request("count", "2"), request("count", "3")]).await;
    begun.acquire().await.unwrap().forget();
    // Dropped, not stopped: no goodbye, as when its process is killed.
    drop(doomed);
    home.end([id(1, 1)]);
    let (told, mut heard) = mpsc::unbounded_channel();
    let _heir = counter(&home, 16, told).await;
    let mut ran = [heard.recv().await.unwrap(), heard.recv().await.unwrap()];
    ran.sort_unstable();
    assert_eq!(ran, [(0, 1, 2), (2, 1, 2)], "slot 1 had ended, and nobody runs beside another");
    home.left_in_inboxes(0).await;
    assert!(heard.try_recv().is_err());
}

#[tokio::test]
async fn what_was_withdrawn_while_it_waited_does_not_begin_and_a_batch_ends_when_all_of_it_is() {
    let home = home!();
    let (told, mut heard) = mpsc::unbounded_channel();
    let handler = move |batch: Batch| {
        let told = told.send((batch.id(0), batch.len()));
        async move {
            told?;
            if batch.len() == 3 {
                batch.cancelled().await;
            }
            Ok(Answers::empty())
        }
    };
    let worker = mesh(&home).await.agent("worker").capability_batch("wait", handler).max_concurrent(4);
    let _worker = registered(worker).await;
    let six: Vec<_> = (0..6).map(|_| request("wait", "0")).collect();
    home.deliver("worker", 1, &six).await;
    assert_eq!(heard.recv().await, Some((id(1, 0), 3)));
    home.revoke("worker", id(1, 4), 1).await;
    // Heard after the one before, and lets the batch that runs end.
    home.revoke("worker", id(1, 0), 3).await;
    let mut ran = [heard.recv().await.unwrap(), heard.recv().await.unwrap()];
    ran.sort_unstable();
    assert_eq!(ran, [(id(1, 3), 1), (id(1, 5), 1)]);
    home.left_in_inboxes(0).await;
}

#[tokio::test]
async fn many_are_accepted_as_runs_and_keep_their_order() {
    let home = home!();
    let caller = mesh(&home).await.agent("caller").register().await.unwrap();
    let payloads = (0..12).map(|n| Bytes::from(format!("{n:02}")));
    let accepted = caller.publish_event("worker", "note").send_many(payloads).await.unwrap();
    assert_eq!(accepted.count(), 12);
    assert_eq!(accepted.runs().iter().map(|(_, count)| *count).collect::<Vec<_>>(), [5, 5, 2]);
    let mut seen = Vec::new();
    for (first, count) in accepted.runs() {
        let bytes = home.lane().await;
        let lane = LaneEnvelope::parse(&bytes).unwrap();
        assert_eq!((lane.sequence, lane.frame.rows()), (first.sequence, usize::from(*count)));
        seen.extend((0..lane.frame.rows()).map(|row| lane.payload(row).to_vec()));
    }
    assert_eq!(seen, (0..12).map(|n| format!("{n:02}").into_bytes()).collect::<Vec<_>>());
}
