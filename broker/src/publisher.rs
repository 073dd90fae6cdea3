//! Publishing with acknowledgements: one subscription awaits the acks of any number of publishes in flight.
//!
//! Owns the map from ack to publish; retries nothing. The rule it keeps: a publish ends as stored, refused with the
//! broker's reason, or unconfirmed, and the three are never confused.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap, HeaderValue, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{Error, api};

/// How long an ack may take before the publish counts as unconfirmed. A broker that fsyncs each message under full load
/// was seen to take hundreds of milliseconds.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// How often overdue acks are looked for.
const SWEEP: Duration = Duration::from_millis(500);

/// The stream did not store it. For want of room by the stream's own bounds, which the words tell; or because its disk failed.
const NOT_STORED: u64 = 10_077;
/// How the words begin that tell of a bound of the stream: of messages, of bytes, or of messages per subject.
const BOUND_REACHED: &str = "maximum ";
const STREAM_BYTES_EXCEEDED: u64 = 10_047;
/// The broker compared the fence with what was expected, and tells where it lies.
const FENCE_MOVED: u64 = 10_071;
/// The broker did not compare: with three replicas it has one conditional publish of a fence under way at a time.
const FENCE_BUSY: u64 = 10_164;
/// A publish under the same message id is under way between the replicas.
const ID_BUSY: u64 = 10_158;

/// The broker has stored it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PubAck {
    /// In which stream.
    pub stream: String,
    /// Under which sequence.
    pub sequence: u64,
    /// It was stored before, under the same message id.
    pub duplicate: bool,
}

/// A publish that was not stored, or not surely.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The subject holds as many messages as it may: wait and try again.
    #[error("the subject is full")]
    Full,
    /// The fence does not stand where it was expected: this publisher was deposed.
    #[error("the fence was moved: another home publishes now")]
    Fenced,
    /// Whether it was stored is unknown: publish again under the same message id.
    #[error("the broker did not confirm: {0}")]
    Unconfirmed(String),
    /// The broker will not store this, however often it is tried.
    #[error("the broker refused: {0}")]
    Refused(String),
}

/// The fence of a home in one stream: its publishes carry the sequence at which its fence message lies.
///
/// A broker with one replica compares it for any number of publishes in flight. With three it takes one of each fence at a
/// time and turns the others away undecided, so that whoever publishes much keeps at most one under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The fence subject.
    pub subject: String,
    /// The sequence of the fence message.
    pub sequence: u64,
}

struct Waiting {
    tell: oneshot::Sender<Result<PubAck, PublishError>>,
    since: Instant,
    /// How often the client had connected when it was sent: an ack does not outlive its connection.
    connection: u64,
}

type Pending = Arc<Mutex<HashMap<u64, Waiting>>>;

/// Publishes on one connection. Cheap to clone.
#[derive(Clone)]
pub struct Publisher {
    client: Client,
    inbox: Arc<str>,
    next: Arc<AtomicU64>,
    pending: Pending,
    _stop: Arc<DropGuard>,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("inbox", &self.inbox).finish_non_exhaustive()
    }
}

impl Publisher {
    /// Begins to listen for acks on this connection.
    ///
    /// # Errors
    /// When the subscription cannot be made.
    pub async fn start(client: Client) -> Result<Self, Error> {
        let inbox: Arc<str> = client.new_inbox().into();
        let acks = client.subscribe(format!("{inbox}.*")).await.map_err(api("subscribe to publish acks"))?;
        let pending = Pending::default();
        let stop = CancellationToken::new();
        tokio::spawn(listen(client.clone(), acks, Arc::clone(&pending), stop.clone()));
        Ok(Self { client, inbox, next: Arc::default(), pending, _stop: Arc::new(stop.drop_guard()) })
    }

    /// Publishes a message and gives a future of its ack. The message is on its way when this returns, in the order of the
    /// calls; a dropped future loses the ack, not the message.
    pub async fn publish(
        &self,
        subject: String,
        message_id: Option<&str>,
        fence: Option<&Fence>,
        payload: Bytes,
    ) -> impl Future<Output = Result<PubAck, PublishError>> + Send + use<> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (tell, told) = oneshot::channel();
        let connection = crate::connection(&self.client);
        self.lock().insert(id, Waiting { tell, since: Instant::now(), connection });
        let mut headers = HeaderMap::new();
        if let Some(message_id) = message_id {
            headers.insert("Nats-Msg-Id", message_id);
        }
        if let Some(fence) = fence {
            headers.insert("Nats-Expected-Last-Subject-Sequence", HeaderValue::from(fence.sequence));
            headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", fence.subject.as_str());
        }
        let reply = format!("{}.{id}", self.inbox);
        let sent = if headers.is_empty() {
            self.client.publish_with_reply(subject, reply, payload).await
        } else {
            self.client.publish_with_reply_and_headers(subject, reply, headers, payload).await
        };
        if let Err(e) = sent {
            let error = match e.kind() {
                async_nats::client::PublishErrorKind::MaxPayloadExceeded
                | async_nats::client::PublishErrorKind::InvalidSubject => {
                    PublishError::Refused(e.to_string())
                }
                async_nats::client::PublishErrorKind::Send => PublishError::Unconfirmed(e.to_string()),
            };
            settle(&self.pending, id, Err(error));
        }
        async move {
            told.await.unwrap_or_else(|_| Err(PublishError::Unconfirmed("the publisher stopped".into())))
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Waiting>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn settle(pending: &Pending, id: u64, result: Result<PubAck, PublishError>) {
    let waiting = pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    if let Some(waiting) = waiting {
        // The caller may have lost interest; the message is stored or not all the same.
        drop(waiting.tell.send(result));
    }
}

async fn listen(client: Client, mut acks: Subscriber, pending: Pending, stop: CancellationToken) {
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // Both arms are cancellation-safe: a subscriber keeps what it has not yielded.
        tokio::select! {
            () = stop.cancelled() => break,
            ack = acks.next() => {
                let Some(ack) = ack else { break };
                let id = ack.subject.rsplit('.').next().and_then(|t| t.parse().ok());
                if let Some(id) = id {
                    settle(&pending, id, judge(&ack));
                }
            }
            _ = sweep.tick() => time_out(&pending, crate::connection(&client)),
        }
    }
    for (_, waiting) in pending.lock().unwrap_or_else(PoisonError::into_inner).drain() {
        drop(waiting.tell.send(Err(PublishError::Unconfirmed("the publisher stopped".into()))));
    }
}

/// Gives up acks that are overdue, or were lost with their connection.
fn time_out(pending: &Pending, connection: u64) {
    let mut pending = pending.lock().unwrap_or_else(PoisonError::into_inner);
    let overdue: Vec<u64> = pending
        .iter()
        .filter(|(_, w)| w.since.elapsed() > ACK_TIMEOUT || w.connection < connection)
        .map(|(id, _)| *id)
        .collect();
    for id in overdue {
        if let Some(waiting) = pending.remove(&id) {
            drop(waiting.tell.send(Err(PublishError::Unconfirmed("no ack in time".into()))));
        }
    }
}

#[derive(Deserialize)]
struct AckIn {
    #[serde(default)]
    stream: String,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    #[serde(default)]
    error: Option<AckErrorIn>,
}

#[derive(Deserialize)]
struct AckErrorIn {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

fn judge(ack: &async_nats::Message) -> Result<PubAck, PublishError> {
    if ack.status.is_some() {
        // No stream listens: it is being created, or its leader elected.
        return Err(PublishError::Unconfirmed("no stream answers for this subject".into()));
    }
    let ack: AckIn =
        serde_json::from_slice(&ack.payload).map_err(|e| PublishError::Unconfirmed(e.to_string()))?;
    match ack.error {
        None => Ok(PubAck { stream: ack.stream, sequence: ack.seq, duplicate: ack.duplicate }),
        Some(e) if e.err_code == STREAM_BYTES_EXCEEDED => Err(PublishError::Full),
        Some(e) if e.err_code == NOT_STORED && e.description.starts_with(BOUND_REACHED) => {
            Err(PublishError::Full)
        }
        // A fence that lies nowhere was not read: a leader that is stopping has closed its store.
        Some(e) if e.err_code == FENCE_MOVED && !e.description.ends_with(": 0") => Err(PublishError::Fenced),
        Some(e) if passes(e.err_code) => Err(PublishError::Unconfirmed(e.description)),
        Some(e) => Err(PublishError::Refused(e.description)),
    }
}

/// Whether a refusal is no decision. Without a code of its own, the server is busy or short of something that may come back.
fn passes(code: u64) -> bool {
    [0, 10_008, 10_023, 10_167, NOT_STORED, FENCE_BUSY, FENCE_MOVED, ID_BUSY].contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(body: &str) -> Result<PubAck, PublishError> {
        judge(&async_nats::Message {
            subject: "_INBOX.x.1".into(),
            reply: None,
            payload: Bytes::from(body.to_owned()),
            headers: None,
            status: None,
            description: None,
            length: 0,
        })
    }

    fn refused(code: u64, why: &str) -> Result<PubAck, PublishError> {
        told(&format!(r#"{{"error":{{"code":400,"err_code":{code},"description":"{why}"}}}}"#))
    }

    #[test]
    fn only_a_fence_that_lies_elsewhere_tells_that_a_home_was_deposed() {
        assert_eq!(refused(10_071, "wrong last sequence: 215"), Err(PublishError::Fenced));
        for (code, why) in [
            (10_071, "wrong last sequence: 0"),
            (10_164, "wrong last sequence"),
            (10_158, "duplicate message id is in process"),
            (10_008, "JetStream system temporarily unavailable"),
        ] {
            assert_eq!(refused(code, why), Err(PublishError::Unconfirmed(why.to_owned())));
        }
    }

    #[test]
    fn a_disk_that_fails_is_no_full_subject() {
        for why in ["write /data/1.blk: no space left on device", "store is closed"] {
            assert_eq!(refused(10_077, why), Err(PublishError::Unconfirmed(why.to_owned())));
        }
    }

    #[test]
    fn what_will_never_be_stored_is_told_apart_from_what_has_no_room_yet() {
        assert_eq!(refused(10_077, "maximum messages per subject exceeded"), Err(PublishError::Full));
        let refused = refused(10_054, "message size exceeds maximum allowed");
        assert!(matches!(refused, Err(PublishError::Refused(_))));
    }
}
