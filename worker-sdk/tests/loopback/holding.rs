//! Who holds a message, and for how long: instances that are lost, that drain, that are blocked, that stood still.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::PullConsumer;
use futures::StreamExt;
use governance::{AgentId, Priority, Reason};
use protocol::streams::{self, INBOX_ACK_WAIT};
use tokio::sync::{Semaphore, mpsc};
use worker_sdk::{Agent, Context, Failure};

use crate::home::{Completed, Home, PATIENCE, event, eventually, request};
use crate::pulse::Pulse;
use crate::{mesh, payloads};

/// Rows that an instance with sixteen slots runs at once: one slot waits for P0.
const ROWS: usize = 15;
/// The broker looks after what was not renewed a little later than it might.
const MARGIN: Duration = Duration::from_secs(1);

/// An instance that says its name, once it may.
async fn worker(home: &Home, name: &'static str, may_end: &Arc<Semaphore>, began: &Arc<AtomicU32>) -> Agent {
    let (may_end, began) = (Arc::clone(may_end), Arc::clone(began));
    let handler = move |_: Context, ()| {
        let may_end = Arc::clone(&may_end);
        began.fetch_add(1, Ordering::SeqCst);
        async move {
            may_end.acquire().await?.forget();
            Ok::<_, Failure>(name)
        }
    };
    mesh(home).await.agent("worker").capability("work", handler).register().await.unwrap()
}

/// Two messages with as many rows as an instance runs at once, in the hands of one that runs the first of them.
async fn one_runs_and_one_waits(home: &Home, may_end: &Arc<Semaphore>) -> Agent {
    let agent = AgentId::new("worker").unwrap();
    broker::ensure_inbox_consumers(&home.js, &agent).await.unwrap();
    for sequence in 1..=2 {
        let rows: Vec<_> = (0..ROWS).map(|_| request("work", "null")).collect();
        home.deliver("worker", sequence, &rows).await;
    }
    let began = Arc::default();
    let first = worker(home, "first", may_end, &began).await;
    eventually("all slots are taken", || async { began.load(Ordering::SeqCst) == ROWS as u32 }).await;
    eventually("it holds both", || async { inbox(home).await.0 == 2 }).await;
    first
}

/// Messages that are held, and those of them that were delivered more than once.
async fn inbox(home: &Home) -> (usize, usize) {
    let inbox = streams::inboxes(Priority::P2);
    let mut consumer: PullConsumer = home.js.get_consumer_from_stream("worker", inbox).await.unwrap();
    let info = consumer.info().await.unwrap();
    (info.num_ack_pending, info.num_redelivered)
}

/// Words about one message in the time after which the broker gives it to somebody else.
const WORDS: u32 = 3;

/// Waits until so many messages were each renewed so often, as the broker hears it.
async fn renewed(home: &Home, messages: usize, times: u32) {
    let mut words = home.client.subscribe("$JS.ACK.>").await.unwrap();
    let mut heard: HashMap<String, u32> = HashMap::new();
    let enough = async {
        while heard.values().filter(|n| **n >= times).count() < messages {
            let word = words.next().await.unwrap();
            if word.payload.as_ref() == b"+WPI" {
                *heard.entry(word.subject.to_string()).or_default() += 1;
            }
        }
    };
    tokio::time::timeout(PATIENCE, enough).await.expect("what is held is renewed");
}

#[tokio::test]
async fn what_a_lost_instance_held_is_with_another_within_four_seconds() {
    let home = home!();
    let pulse = Pulse::start();
    let first = one_runs_and_one_waits(&home, &Arc::new(Semaphore::new(0))).await;
    let lost = Instant::now();
    drop(first);
    let plenty = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
    let _second = worker(&home, "second", &plenty, &Arc::default()).await;
    let done = home.completions_of(2).await;
    assert!(lost.elapsed() < pulse.allow(INBOX_ACK_WAIT + MARGIN), "it took {:?}", lost.elapsed());
    assert!(done.iter().all(|c| c.payload == "\"second\"" && (c.attempt == 2 || pulse.stood_still())));
    home.left_in_inboxes(0).await;
}

#[tokio::test]
async fn what_waits_for_a_slot_is_renewed_like_what_runs() {
    let home = home!();
    let pulse = Pulse::start();
    let may_end = Arc::new(Semaphore::new(0));
    let _first = one_runs_and_one_waits(&home, &may_end).await;
    let second_began = Arc::default();
    let _second = worker(&home, "second", &may_end, &second_began).await;
    // Twice the time that the broker waits.
    renewed(&home, 2, WORDS * 2 + 1).await;
    let (held, again) = inbox(&home).await;
    assert!((held, again) == (2, 0) || pulse.stood_still(), "{again} of {held} were delivered again");
    // Enough for rows that run twice where the process stood still.
    may_end.add_permits(8 * ROWS);
    home.left_in_inboxes(0).await;
    assert!(second_began.load(Ordering::SeqCst) == 0 || pulse.stood_still());
}

#[tokio::test]
async fn a_draining_instance_finishes_what_runs_and_hands_back_the_rest_at_once() {
    let home = home!();
    let pulse = Pulse::start();
    let may_end = Arc::new(Semaphore::new(0));
    let first = one_runs_and_one_waits(&home, &may_end).await;
    let plenty = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
    let _second = worker(&home, "second", &plenty, &Arc::default()).await;
    let told = Instant::now();
    let stopping = tokio::spawn(async move { first.stop().await });
    // What the other one does with the rest comes while the first still runs what it began.
    let mut handed_back = 0;
    while handed_back < ROWS {
        let done = home.completions().await;
        let waited = |c: &Completed| c.id.sequence == 2 || pulse.stood_still();
        assert!(done.iter().all(|c| c.payload == "\"second\"" && waited(c)), "{done:?}");
        handed_back += done.iter().map(|c| usize::from(c.count)).sum::<usize>();
    }
    assert!(told.elapsed() < pulse.allow(MARGIN), "it took {:?}", told.elapsed());
    assert!(!stopping.is_finished());
    may_end.add_permits(ROWS);
    stopping.await.unwrap().unwrap();
    home.left_in_inboxes(0).await;
}

/// An instance on a runtime with one thread, whose handler blocks that thread with the first message until it is told to go on.
/// Says when it begins, and ends with the test.
fn blocking_worker(home: &Home) -> (mpsc::UnboundedReceiver<u64>, std::sync::mpsc::Sender<()>) {
    let (began, begun) = mpsc::unbounded_channel();
    let (go_on, told) = std::sync::mpsc::channel();
    let told = Arc::new(Mutex::new(told));
    let url = home.url.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let (tells, may_go_on) = (began.clone(), Arc::clone(&told));
            let handler = move |ctx: Context, ()| {
                let sent = tells.send(ctx.id().sequence);
                if ctx.id().sequence == 1 {
                    // As a call into a library that does not know of tasks. It ends with the test at the latest.
                    let _ended = may_go_on.lock().unwrap().recv();
                }
                async move { sent.map(|()| "blocked").map_err(|_| Failure::new("the test has ended")) }
            };
            let mesh = worker_sdk::Mesh::connect(&url).await.unwrap();
            let _worker = mesh.agent("worker").capability("work", handler).register().await.unwrap();
            began.send(0).unwrap();
            began.closed().await;
        });
    });
    (begun, go_on)
}

#[tokio::test]
async fn a_handler_that_blocks_the_only_thread_for_seconds_keeps_its_message() {
    let home = home!();
    let pulse = Pulse::start();
    let (mut begun, go_on) = blocking_worker(&home);
    assert_eq!(begun.recv().await, Some(0));
    home.deliver("worker", 1, &[event("work", "null")]).await;
    assert_eq!(begun.recv().await, Some(1));
    let second_began = Arc::new(AtomicU32::new(0));
    let plenty = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
    let _second = worker(&home, "second", &plenty, &second_began).await;
    // Longer than the broker waits.
    renewed(&home, 1, WORDS + 2).await;
    let (held, again) = inbox(&home).await;
    assert!((held, again) == (1, 0) || pulse.stood_still(), "{again} of {held} were delivered again");
    go_on.send(()).unwrap();
    let [done] = home.completions_of(1).await.try_into().unwrap();
    assert_eq!(done.reason, Reason::Ok);
    assert!(done.attempt == 1 || pulse.stood_still(), "{done:?}");
    home.left_in_inboxes(0).await;
    assert!(second_began.load(Ordering::SeqCst) == 0 || pulse.stood_still());
}

/// Completions, until one of this envelope is among them.
async fn completed(home: &Home, sequence: u64, mut done: Vec<Completed>) -> Vec<Completed> {
    while !done.iter().any(|c| c.id.sequence == sequence) {
        done.extend(home.completions().await);
    }
    done
}

#[tokio::test]
async fn what_reached_a_blocked_instance_unread_runs_once_and_elsewhere() {
    let home = home!();
    let pulse = Pulse::start();
    let (mut begun, go_on) = blocking_worker(&home);
    assert_eq!(begun.recv().await, Some(0));
    home.deliver("worker", 1, &[request("work", "null")]).await;
    assert_eq!(begun.recv().await, Some(1));
    // The blocked one asked for more than one message; this one lies in its connection.
    home.deliver("worker", 2, &[request("work", "null")]).await;
    eventually("it is delivered", || async { inbox(&home).await.0 == 2 }).await;
    let plenty = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
    let _second = worker(&home, "second", &plenty, &Arc::default()).await;
    let mut done = completed(&home, 2, Vec::new()).await;
    go_on.send(()).unwrap();
    done = completed(&home, 1, done).await;
    home.left_in_inboxes(0).await;
    done.sort_by_key(|c| c.id.sequence);
    let unread = |c: &Completed| c.id.sequence == 2 && c.attempt == 1;
    assert!(!done.iter().any(unread), "what lay unread ran when it had come once more: {done:?}");
    let elsewhere = payloads(&done) == [("\"blocked\"", Reason::Ok), ("\"second\"", Reason::Ok)];
    assert!(elsewhere || pulse.stood_still(), "{done:?}");
    assert!(begun.try_recv().is_err() || pulse.stood_still(), "the second message ran in one instance only");
}
