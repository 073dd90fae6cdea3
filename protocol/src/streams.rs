//! Streams, consumers and buckets as data. Owns their names, subjects, bounds; talks to no broker.
//!
//! The rule it keeps: whoever creates one creates it from here, so that all parts agree on every setting.

use std::time::Duration;

use governance::{AgentId, Priority};

use crate::subjects::token;

/// Messages waiting for one subject of a lane: beyond it the broker refuses further ones to that publisher alone.
pub const LANE_MESSAGES_MAX: i64 = 1_024;
/// Messages waiting in one inbox.
pub const INBOX_MESSAGES_MAX: i64 = 4_096;
/// Completions waiting for one pair of source and target.
pub const DONE_MESSAGES_MAX: i64 = 65_536;
/// Dead letters kept for one agent.
pub const DLQ_MESSAGES_MAX: i64 = 100_000;
/// The bytes of one message: the broker's default `max_payload`.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// The payload of one dispatch; the rest of a message is for its head.
pub const PAYLOAD_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 16 * 1024;
/// The bytes that the broker may keep of one stream. Far above what the bounds by subject allow in practice, and there
/// so that a full disk is met by a refusal and not by a crash.
pub const STREAM_BYTES_MAX: i64 = 16 << 30;
/// How long the broker remembers message ids: longer than any retry and any take-over of ours.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// For how long after its decision a message is taken to be remembered. What is older is not published again before the inbox
/// was looked at, nor run before its home was asked, even where it is delivered for the first time. The rest of the window is
/// what the clocks of two machines may differ by.
pub const DUPLICATE_ASSUMED: Duration = Duration::from_secs(60);
/// Consumers of one stream: four per agent at most, for ten thousand agents. The server's own default is 1,000.
pub const CONSUMERS_MAX: i32 = 40_000;
/// How long an instance may be silent about a message it holds before others get it: as long as it may miss heartbeats. It
/// renews every third of this, so that one renewal may be lost or late.
pub const INBOX_ACK_WAIT: Duration = Duration::from_secs(3);
/// A lane message is held by its home as long as the rules say. A new home makes a new consumer, so this only bounds
/// what a stuck home can do.
pub const LANE_ACK_WAIT: Duration = Duration::from_secs(3_600);
/// Messages of one lane that a home may hold: ready ones and those passed by because their target is blocked.
pub const LANE_ACK_PENDING_MAX: i64 = 8_192;
/// Inbox messages that all instances of one agent may hold together.
pub const INBOX_ACK_PENDING_MAX: i64 = 16_384;

/// Whether acknowledged messages go, or all stay until a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// A message goes when its consumer acknowledged it.
    WorkQueue,
    /// A message goes when a limit is reached.
    Limits,
}

/// One stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Its name.
    pub name: String,
    /// What it stores.
    pub subjects: Vec<String>,
    /// When messages go.
    pub retention: Retention,
    /// The most messages of one subject; the next one is refused.
    pub messages_per_subject_max: i64,
}

/// The stream of the lanes of one priority.
#[must_use]
pub fn lanes(p: Priority) -> String {
    format!("MESH_IN_{p}")
}

/// The stream of the inboxes of one priority.
#[must_use]
pub fn inboxes(p: Priority) -> String {
    format!("MESH_OUT_{p}")
}

/// The stream of completions.
pub const DONE: &str = "MESH_DONE";
/// The stream of dead letters.
pub const DLQ: &str = "MESH_DLQ";

/// Every stream of the mesh.
#[must_use]
pub fn all() -> Vec<Stream> {
    let mut streams = Vec::new();
    for p in Priority::ALL.iter().copied() {
        let t = token(p);
        streams.push(Stream {
            name: lanes(p),
            subjects: vec![format!("mesh.in.{t}.*.*")],
            retention: Retention::WorkQueue,
            messages_per_subject_max: LANE_MESSAGES_MAX,
        });
        streams.push(Stream {
            name: inboxes(p),
            subjects: vec![format!("mesh.out.{t}.*"), format!("mesh.fence.{t}.*")],
            retention: Retention::WorkQueue,
            messages_per_subject_max: INBOX_MESSAGES_MAX,
        });
    }
    streams.push(Stream {
        name: DONE.into(),
        subjects: vec!["mesh.done.*.*.*".into()],
        retention: Retention::WorkQueue,
        messages_per_subject_max: DONE_MESSAGES_MAX,
    });
    streams.push(Stream {
        name: DLQ.into(),
        subjects: vec!["mesh.dlq.*".into()],
        retention: Retention::Limits,
        messages_per_subject_max: DLQ_MESSAGES_MAX,
    });
    streams
}

/// The name of a lane's consumer: it carries the epoch, so that a former home's pulls and acknowledgements meet nothing.
#[must_use]
pub fn lane_consumer(source: &AgentId, epoch: u64) -> String {
    format!("{source}@{epoch}")
}

/// The name of the consumer that reads the completions for one source in one priority.
#[must_use]
pub fn done_consumer(p: Priority, source: &AgentId, epoch: u64) -> String {
    format!("{source}@{epoch}_{}", token(p))
}

/// The agent and epoch in the name of a lane's or done consumer.
#[must_use]
pub fn consumer_epoch(name: &str) -> Option<(&str, u64)> {
    let (agent, rest) = name.rsplit_once('@')?;
    let epoch = rest.split('_').next()?;
    Some((agent, epoch.parse().ok()?))
}

/// The name of the consumer that all instances of an agent share, in the stream of one priority.
#[must_use]
pub fn inbox_consumer(target: &AgentId) -> String {
    target.to_string()
}

/// The key in the policy's bucket under which an operator's order to pause an agent stands.
#[must_use]
pub fn pause_key(agent: &str) -> String {
    format!("paused.{agent}")
}

/// The agent that such a key pauses.
#[must_use]
pub fn paused_agent(key: &str) -> Option<&str> {
    key.strip_prefix("paused.")
}

/// Registrations by agent.
pub const AGENTS_BUCKET: &str = "mesh_agents";
/// The policy in force, and what operators order beside it.
pub const POLICY_BUCKET: &str = "mesh_policy";
/// Owners by shard.
pub const OWNERS_BUCKET: &str = "mesh_owners";
/// Live replicas; entries expire.
pub const REPLICAS_BUCKET: &str = "mesh_replicas";
/// Breakers by agent.
pub const BREAKERS_BUCKET: &str = "mesh_breakers";
/// How many instances are wanted, by agent.
pub const SCALE_BUCKET: &str = "mesh_scale";
