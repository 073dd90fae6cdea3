//! Streams, buckets and consumers: making the broker agree with what `protocol::streams` says.
//!
//! The rule it keeps: idempotent; what exists is updated, never deleted, but for consumers of former epochs.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::context::{
    CreateKeyValueError, CreateKeyValueErrorKind, CreateStreamError, CreateStreamErrorKind,
};
use async_nats::jetstream::stream::{
    self, ConsumerError, ConsumerErrorKind, DiscardPolicy, RetentionPolicy, StorageType,
};
use async_nats::jetstream::{Context, ErrorCode, kv};
use futures::TryStreamExt;
use governance::{AgentId, Priority};
use protocol::streams::{self, Retention};
use protocol::subjects;

use crate::{Error, api};

/// Where the broker keeps the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// On disk.
    File,
    /// In memory: gone with the server.
    Memory,
}

impl Storage {
    const fn native(self) -> StorageType {
        match self {
            Self::File => StorageType::File,
            Self::Memory => StorageType::Memory,
        }
    }
}

/// How long an entry of the bucket of replicas lives without renewal.
const REPLICA_TTL: Duration = Duration::from_secs(3);

/// How long the broker may take to make one thing: an election, and those that asked at the same moment.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it is given to answer once. What is asked for is made within a fraction of it, or the answer is lost.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const PAUSE_MS_MAX: u64 = 400;

/// Makes sure that every stream and bucket of the mesh exists with the settings of this build.
///
/// # Errors
/// When the broker refuses one or does not answer.
pub async fn ensure(js: &Context, storage: Storage, replicas: usize) -> Result<(), Error> {
    let mut js = js.clone();
    js.set_timeout(ANSWER_WITHIN);
    for s in streams::all() {
        let config = stream::Config {
            name: s.name.clone(),
            subjects: s.subjects,
            retention: match s.retention {
                Retention::WorkQueue => RetentionPolicy::WorkQueue,
                Retention::Limits => RetentionPolicy::Limits,
            },
            max_messages_per_subject: s.messages_per_subject_max,
            discard: DiscardPolicy::New,
            discard_new_per_subject: true,
            max_bytes: streams::STREAM_BYTES_MAX,
            max_message_size: i32::try_from(streams::MESSAGE_BYTES_MAX).unwrap_or(i32::MAX),
            duplicate_window: streams::DUPLICATE_WINDOW,
            max_consumers: streams::CONSUMERS_MAX,
            storage: storage.native(),
            num_replicas: replicas,
            ..Default::default()
        };
        patiently(|| js.create_or_update_stream(config.clone()))
            .await
            .map_err(api(format!("create the stream {}", s.name)))?;
    }
    for (bucket, max_age) in [
        (streams::AGENTS_BUCKET, None),
        (streams::POLICY_BUCKET, None),
        (streams::OWNERS_BUCKET, None),
        (streams::BREAKERS_BUCKET, None),
        (streams::SCALE_BUCKET, None),
        (streams::REPLICAS_BUCKET, Some(REPLICA_TTL)),
    ] {
        let config = kv::Config {
            bucket: bucket.into(),
            history: 1,
            max_age: max_age.unwrap_or_default(),
            storage: storage.native(),
            num_replicas: replicas,
            ..Default::default()
        };
        patiently(|| js.create_or_update_key_value(config.clone()))
            .await
            .map_err(api(format!("create the bucket {bucket}")))?;
    }
    Ok(())
}

/// Tries until the broker has an answer. A cluster that elects a leader has none, nor has one of which several replicas ask
/// the same at the same moment: it makes what was asked for, and tells nobody.
async fn patiently<T, E: Passing, F: Future<Output = Result<T, E>>>(
    mut attempt: impl FnMut() -> F,
) -> Result<T, E> {
    let started = Instant::now();
    loop {
        match attempt().await {
            Err(e) if e.passes() && started.elapsed() < PATIENCE => {
                tracing::info!(error = %e, "the broker is asked again");
                tokio::time::sleep(pause()).await;
            }
            end => return end,
        }
    }
}

/// Another one each time, so that replicas which start together do not ask together again.
fn pause() -> Duration {
    let random = RandomState::new().build_hasher().finish();
    Duration::from_millis(random % PAUSE_MS_MAX)
}

/// Whether an error may pass by itself.
trait Passing: std::fmt::Display {
    fn passes(&self) -> bool;
}

impl Passing for CreateStreamError {
    fn passes(&self) -> bool {
        matches!(self.kind(), CreateStreamErrorKind::TimedOut | CreateStreamErrorKind::JetStreamUnavailable)
    }
}

impl Passing for CreateKeyValueError {
    fn passes(&self) -> bool {
        // What the stream below it was refused for is not told apart.
        matches!(self.kind(), CreateKeyValueErrorKind::TimedOut | CreateKeyValueErrorKind::JetStream)
    }
}

impl Passing for ConsumerError {
    fn passes(&self) -> bool {
        matches!(self.kind(), ConsumerErrorKind::TimedOut)
    }
}

/// Makes a consumer; how many messages wait for it.
async fn consumer(js: &Context, stream: &str, config: pull::Config) -> Result<u64, Error> {
    let name = config.durable_name.clone().unwrap_or_default();
    patiently(|| js.create_consumer_on_stream(config.clone(), stream))
        .await
        .map(|consumer| consumer.cached_info().num_pending)
        .map_err(api(format!("create the consumer {name} on {stream}")))
}

/// Makes the consumers that all instances of an agent share: one for each priority.
///
/// # Errors
/// When the broker refuses one or does not answer.
pub async fn ensure_inbox_consumers(js: &Context, agent: &AgentId) -> Result<(), Error> {
    futures::future::try_join_all(Priority::ALL.iter().map(|p| async move {
        let config = pull::Config {
            durable_name: Some(streams::inbox_consumer(agent)),
            filter_subject: subjects::inbox(*p, agent),
            ack_policy: AckPolicy::Explicit,
            deliver_policy: DeliverPolicy::All,
            ack_wait: streams::INBOX_ACK_WAIT,
            max_deliver: -1,
            max_ack_pending: streams::INBOX_ACK_PENDING_MAX,
            ..Default::default()
        };
        consumer(js, &streams::inboxes(*p), config).await
    }))
    .await
    .map(drop)
}

/// Makes the consumers by which the home of a source reads its lanes and its completions of these classes, under its epoch. How many
/// messages with completions wait in each class; none where a consumer of another epoch stands in the way.
///
/// # Errors
/// When the broker refuses one or does not answer.
pub async fn ensure_source_consumers(
    js: &Context,
    agent: &AgentId,
    epoch: u64,
    classes: &[Priority],
) -> Result<Option<Vec<(Priority, u64)>>, Error> {
    let made = futures::future::try_join_all(classes.iter().map(|p| async move {
        let lane = pull::Config {
            durable_name: Some(streams::lane_consumer(agent, epoch)),
            filter_subject: subjects::lane_filter(*p, agent),
            ..held_by_home()
        };
        let done = pull::Config {
            durable_name: Some(streams::done_consumer(*p, agent, epoch)),
            filter_subject: subjects::done_filter(*p, agent),
            ..held_by_home()
        };
        consumer(js, &streams::lanes(*p), lane).await?;
        Ok((*p, consumer(js, streams::DONE, done).await?))
    }))
    .await;
    match made {
        Ok(waiting) => Ok(Some(waiting)),
        Err(e) if is_in_the_way(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether a work queue has another consumer of the same subjects: it takes one at a time.
fn is_in_the_way(e: &Error) -> bool {
    let Error::Api { source, .. } = e else { return false };
    let kind = source.downcast_ref::<ConsumerError>().map(ConsumerError::kind);
    matches!(kind, Some(ConsumerErrorKind::JetStream(e)) if e.error_code() == ErrorCode::CONSUMER_WQ_CONSUMER_NOT_UNIQUE)
}

/// Deletes the consumers by which the home of a source read these classes under this epoch, where there are any: what they held comes
/// back at once, and their acknowledgements meet nothing.
///
/// # Errors
/// When the broker does not answer.
pub async fn delete_source_consumers(
    js: &Context,
    agent: &AgentId,
    epoch: u64,
    classes: &[Priority],
) -> Result<(), Error> {
    futures::future::try_join_all(classes.iter().map(|p| async move {
        delete(js, &streams::lanes(*p), &streams::lane_consumer(agent, epoch)).await?;
        delete(js, streams::DONE, &streams::done_consumer(*p, agent, epoch)).await
    }))
    .await
    .map(drop)
}

async fn delete(js: &Context, stream: &str, consumer: &str) -> Result<(), Error> {
    match js.delete_consumer_from_stream(consumer, stream).await {
        Ok(_) => Ok(()),
        Err(e) if matches!(e.kind(), ConsumerErrorKind::JetStream(e) if e.error_code() == ErrorCode::CONSUMER_NOT_FOUND) => {
            Ok(())
        }
        Err(e) => Err(api(format!("delete the consumer {consumer} of {stream}"))(e)),
    }
}

/// A consumer of one home. What it holds is worth nothing without its home, which makes it anew after every loss of the
/// broker: kept in memory, hundreds are made in the time of a hand-over, and an acknowledgement costs no write.
fn held_by_home() -> pull::Config {
    pull::Config {
        memory_storage: true,
        ack_policy: AckPolicy::Explicit,
        deliver_policy: DeliverPolicy::All,
        ack_wait: streams::LANE_ACK_WAIT,
        max_deliver: -1,
        max_ack_pending: streams::LANE_ACK_PENDING_MAX,
        ..Default::default()
    }
}

/// Deletes the consumers of all former homes of these agents, whatever their epochs: reads the names of all consumers there
/// are. `epoch_of` gives the epoch in force for an agent, or none where this home does not own it.
///
/// # Errors
/// When the broker does not answer.
pub async fn delete_former_consumers(
    js: &Context,
    epoch_of: impl Fn(&str) -> Option<u64>,
) -> Result<usize, Error> {
    let names = Priority::ALL.iter().map(|p| streams::lanes(*p)).chain([streams::DONE.to_owned()]);
    let epoch_of = &epoch_of;
    let deletions = names.map(|name| async move {
        let stream = js.get_stream_no_info(&name).await.map_err(api(format!("look up the stream {name}")))?;
        let consumers: Vec<String> = stream
            .consumer_names()
            .try_collect()
            .await
            .map_err(api(format!("list the consumers of {name}")))?;
        let former = consumers.into_iter().filter(|consumer| {
            streams::consumer_epoch(consumer)
                .is_some_and(|(agent, epoch)| epoch_of(agent).is_some_and(|now| epoch < now))
        });
        let stream = &stream;
        let deletions = former.map(|consumer| async move {
            let deleted = stream.delete_consumer(&consumer).await;
            deleted.map(drop).map_err(api(format!("delete the consumer {consumer}")))
        });
        futures::future::try_join_all(deletions).await.map(|deleted| deleted.len())
    });
    Ok(futures::future::try_join_all(deletions).await?.into_iter().sum())
}
