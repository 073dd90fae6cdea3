//! Broker, audit ledger and what is known, as a take-over needs them. Does what it is asked, and tries again what got no
//! answer.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::RawMessageErrorKind;
use broker::{PublishError, Publisher};
use bytes::Bytes;
use governance::{AgentId, Priority, Registration, Timestamp, shard_of};
use home::Appended;
use home::Fence;
use home::takeover::{Stored, World, WorldError};
use protocol::control::Breaker;
use protocol::redis::{EntryId, Head};
use protocol::{streams, subjects};

use crate::clock;
use crate::io::ledger::Ledger;
use crate::known::Known;

/// How long the ack of a fence is waited for: P0 stands still meanwhile, and a fence that was moved twice fences all the same.
const FENCE_ACK_MAX: Duration = Duration::from_secs(1);
/// How long a short answer of the ledger is waited for: P0 stands still meanwhile.
const LEDGER_ANSWER_MAX: Duration = Duration::from_secs(1);
/// The pause before a publish that was not confirmed is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// When each lane stream was made, and over the how manyth connection this was read.
type LanesMade = (u64, [u64; 4]);

/// The servers that a take-over works with.
#[derive(Debug, Clone)]
pub(crate) struct Servers {
    pub(crate) js: Context,
    pub(crate) ledger: Ledger,
    pub(crate) publisher: Publisher,
    pub(crate) known: Arc<Known>,
    lanes_made: Arc<Mutex<Option<LanesMade>>>,
}

fn failed<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> WorldError {
    move |e| WorldError(format!("failed to {what}: {e}"))
}

/// An error with its causes, in one line.
fn chain(e: &anyhow::Error) -> WorldError {
    WorldError(format!("{e:#}"))
}

/// A short answer of the ledger, or none in time: then the shard is claimed anew a moment later.
async fn in_time<T>(answer: impl Future<Output = anyhow::Result<T>>) -> Result<T, WorldError> {
    let late = |_| WorldError("the audit ledger did not answer in time".to_owned());
    tokio::time::timeout(LEDGER_ANSWER_MAX, answer).await.map_err(late)?.map_err(|e| chain(&e))
}

impl Servers {
    pub(crate) fn new(js: Context, ledger: Ledger, publisher: Publisher, known: Arc<Known>) -> Self {
        Self { js, ledger, publisher, known, lanes_made: Arc::default() }
    }

    /// What the newest fence message of a shard says; zero for none.
    pub(crate) async fn fence_epoch(&self, shard: u8) -> Result<u64, WorldError> {
        let stream = self
            .js
            .get_stream_no_info(streams::inboxes(Priority::P0))
            .await
            .map_err(failed("look up a stream"))?;
        match stream.get_last_raw_message_by_subject(&subjects::fence(Priority::P0, shard)).await {
            Ok(message) => {
                Ok(std::str::from_utf8(&message.payload).ok().and_then(|t| t.parse().ok()).unwrap_or(0))
            }
            Err(e) if e.kind() == async_nats::jetstream::stream::LastRawMessageErrorKind::NoMessageFound => {
                Ok(0)
            }
            Err(e) => Err(failed("read a fence")(e)),
        }
    }
}

impl World for Servers {
    async fn move_fence(&self, priority: Priority, shard: u8, epoch: u64) -> Result<u64, WorldError> {
        let subject = subjects::fence(priority, shard);
        let body = Bytes::from(epoch.to_string());
        let sequence = loop {
            let ack = self.publisher.publish(subject.clone(), None, None, body.clone()).await;
            match tokio::time::timeout(FENCE_ACK_MAX, ack).await {
                Ok(Ok(ack)) => break ack.sequence,
                Ok(Err(PublishError::Unconfirmed(why))) => {
                    tracing::debug!(shard, why, "a fence is not moved yet")
                }
                Ok(Err(e)) => return Err(failed("move a fence")(e)),
                Err(_) => tracing::debug!(shard, "a fence is not known to be moved"),
            }
            tokio::time::sleep(RETRY).await;
        };
        let stream = self
            .js
            .get_stream_no_info(streams::inboxes(priority))
            .await
            .map_err(failed("look up a stream"))?;
        // Only the newest fence message counts; the older ones would fill the subject in the end.
        stream.purge().filter(subject).keep(1).await.map_err(failed("drop former fences"))?;
        Ok(sequence)
    }

    async fn head(&self, shard: u8) -> Result<Head, WorldError> {
        in_time(self.ledger.head(shard)).await
    }

    async fn append(
        &self,
        shard: u8,
        expected: Head,
        new: Head,
        block: &[u8],
    ) -> Result<Appended, WorldError> {
        Ok(self.ledger.append(shard, expected, new, block).await)
    }

    async fn snapshot(&self, shard: u8) -> Result<Option<(Head, EntryId, String)>, WorldError> {
        in_time(self.ledger.snapshot(shard)).await
    }

    async fn blocks(&self, shard: u8, from: EntryId) -> Result<Vec<(EntryId, Vec<u8>)>, WorldError> {
        self.ledger.blocks(shard, from).await.map_err(|e| chain(&e))
    }

    async fn registrations(&self) -> Result<Vec<Registration>, WorldError> {
        Ok(self.known.registrations())
    }

    async fn breakers(&self) -> Result<Vec<(String, Breaker)>, WorldError> {
        Ok(self.known.breakers())
    }

    async fn paused(&self) -> Result<Vec<String>, WorldError> {
        Ok(self.known.paused())
    }

    async fn delete_former_consumers(&self, shard: u8, epoch: u64) -> Result<(), WorldError> {
        let former = |agent: &str| (shard_of(agent) == shard).then_some(epoch);
        broker::delete_former_consumers(&self.js, former).await.map(drop).map_err(failed("drop consumers"))
    }

    async fn delete_consumers(
        &self,
        agent: &AgentId,
        epoch: u64,
        classes: &[Priority],
    ) -> Result<(), WorldError> {
        broker::delete_source_consumers(&self.js, agent, epoch, classes)
            .await
            .map_err(failed("drop consumers"))
    }

    async fn make_consumers(
        &self,
        agent: &AgentId,
        epoch: u64,
        classes: &[Priority],
    ) -> Result<Option<Vec<(Priority, u64)>>, WorldError> {
        broker::ensure_source_consumers(&self.js, agent, epoch, classes)
            .await
            .map_err(failed("make consumers"))
    }

    async fn lane_message(
        &self,
        lane: Priority,
        source: &AgentId,
        from: u64,
    ) -> Result<Option<(u64, Bytes)>, WorldError> {
        let stream =
            self.js.get_stream_no_info(streams::lanes(lane)).await.map_err(failed("look up a stream"))?;
        let message =
            stream.get_first_raw_message_by_subject(&subjects::lane_filter(lane, source), from).await;
        match message {
            Ok(message) => Ok(Some((message.sequence, message.payload))),
            Err(e) if e.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(e) => Err(failed("read a lane")(e)),
        }
    }

    async fn holds(&self, class: Priority, target: &AgentId, message_id: &str) -> Result<bool, WorldError> {
        let stream = self.js.get_stream_no_info(streams::inboxes(class)).await;
        let stream = stream.map_err(failed("look up a stream"))?;
        let subject = subjects::inbox(class, target);
        let mut next = 1;
        loop {
            match stream.get_first_raw_message_by_subject(&subject, next).await {
                Ok(m) if m.headers.get("Nats-Msg-Id").is_some_and(|id| id.as_str() == message_id) => {
                    return Ok(true);
                }
                Ok(message) => next = message.sequence + 1,
                Err(e) if e.kind() == RawMessageErrorKind::NoMessageFound => return Ok(false),
                Err(e) => return Err(failed("read an inbox")(e)),
            }
        }
    }

    async fn publish(
        &self,
        subject: String,
        message_id: String,
        fence: Fence,
        payload: Bytes,
    ) -> Result<Stored, WorldError> {
        let fence = broker::Fence { subject: fence.subject, sequence: fence.sequence };
        loop {
            let ack =
                self.publisher.publish(subject.clone(), Some(&message_id), Some(&fence), payload.clone());
            match ack.await.await {
                Ok(ack) if ack.duplicate => return Ok(Stored::Already),
                Ok(_) => return Ok(Stored::New),
                Err(PublishError::Fenced) => return Ok(Stored::Fenced),
                Err(e) => tracing::debug!(message_id, error = %e, "an inbox message is not replayed yet"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn lanes_made(&self) -> Result<[u64; 4], WorldError> {
        // A stream that was made anew was gone with its broker, and so was the connection.
        let connections = self.js.client().statistics().connects.load(Ordering::Relaxed);
        let known = *self.lanes_made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, made)) = known.filter(|(then, _)| *then == connections) {
            return Ok(made);
        }
        let mut made = [0; 4];
        for p in Priority::ALL {
            let stream =
                self.js.get_stream(streams::lanes(*p)).await.map_err(failed("look up a lane stream"))?;
            made[usize::from(p.code())] = stream.cached_info().created.unix_timestamp_nanos() as u64;
        }
        *self.lanes_made.lock().unwrap_or_else(PoisonError::into_inner) = Some((connections, made));
        Ok(made)
    }

    fn now(&self) -> Timestamp {
        clock::now()
    }
}
