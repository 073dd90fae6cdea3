//! What a home wants done. Owns the forms; does nothing.
//!
//! The rule it keeps: within one queue order matters; a publish or reply is handed back by its handle when it is confirmed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use governance::{AgentIx, Ask, DispatchId, Priority, Timestamp};
use protocol::control::{Alert, Breaker, DeadLetter, Operation, Scale};
use protocol::redis::Head;
use tokio::sync::oneshot;

use crate::input::Source;

/// Ways out of a home, emptied by whoever hosts it.
#[derive(Debug, Default)]
pub struct Out {
    /// Pulls to make.
    pub pulls: VecDeque<Pull>,
    /// What goes to the audit ledger. One block is under way at a time.
    pub writes: VecDeque<Write>,
    /// What goes to inboxes.
    pub publishes: VecDeque<Publish>,
    /// What goes to waiting instances.
    pub replies: VecDeque<Reply>,
    /// What people should hear of.
    pub alerts: VecDeque<Alert>,
    /// The rest.
    pub side: VecDeque<Side>,
}

/// A pull to make.
#[derive(Debug, Clone)]
pub struct Pull {
    /// What for; handed back with what it brings.
    pub source: Source,
    /// P0 is pulled on a connection of its own.
    pub priority: Priority,
    /// From which stream.
    pub stream: String,
    /// By which consumer.
    pub consumer: String,
    /// How many messages.
    pub messages: u32,
}

/// Something for the audit ledger of this home's shard.
#[derive(Debug, Clone)]
pub enum Write {
    /// A block.
    Append {
        /// The head it may be appended to.
        expected: Head,
        /// The head it makes.
        new: Head,
        /// Its bytes.
        block: Vec<u8>,
    },
    /// A snapshot, taken under this epoch.
    Snapshot {
        /// The epoch.
        epoch: u64,
        /// Its text.
        snapshot: String,
    },
}

/// The place of a home in one stream of inboxes: its publishes carry the sequence at which its fence message lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The fence subject.
    pub subject: String,
    /// The sequence of the fence message.
    pub sequence: u64,
}

/// One inbox message to publish.
#[derive(Debug, Clone)]
pub struct Publish {
    /// Handed back when it is stored.
    pub handle: usize,
    /// Whose inbox.
    pub target: AgentIx,
    /// In which class.
    pub class: Priority,
    /// The subject.
    pub subject: String,
    /// The same whenever it is published.
    pub message_id: String,
    /// Refused where the fence stands elsewhere.
    pub fence: Fence,
    /// Its bytes.
    pub payload: Bytes,
}

/// One reply message to a waiting instance.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Handed back when it is confirmed or given up.
    pub handle: usize,
    /// The subject.
    pub subject: String,
    /// Its bytes.
    pub payload: Bytes,
}

/// A message for a stream.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The subject.
    pub subject: String,
    /// The same whenever it is published.
    pub message_id: String,
    /// Its bytes.
    pub payload: Bytes,
}

/// Small messages that need no confirmation, and the work that needs the broker's API.
#[derive(Debug)]
pub enum Side {
    /// Publish on a core subject.
    Tell {
        /// The subject.
        subject: String,
        /// Its bytes.
        payload: Bytes,
    },
    /// Acknowledge.
    Ack(String),
    /// Give an inbox message back.
    Nak {
        /// Where.
        ack: String,
        /// When it may come again.
        delay: Duration,
    },
    /// Move a dispatch from its inbox message to the dead-letter queue.
    DeadLetter {
        /// What is known of it; the payload is taken from the inbox message.
        letter: Box<DeadLetter>,
        /// Which dispatch.
        id: DispatchId,
        /// The inbox message it is in; empty for none.
        inbox_ack: String,
        /// The completions that reported it, handed back when it is stored; none where its runners were lost.
        done: Option<usize>,
    },
    /// Store a dead letter's dispatch in its lane, where it is sent again; then remove the letter, and say so.
    Letter {
        /// What is sent; none where it is dropped.
        send: Option<Stored>,
        /// The letter's place in its stream.
        sequence: u64,
        /// What is answered when it is done.
        done: serde_json::Value,
        /// Whom.
        respond: oneshot::Sender<Result<serde_json::Value, String>>,
    },
    /// Store a breaker, unless a later home has stored one.
    StoreBreaker {
        /// Whose.
        agent: Arc<str>,
        /// As it is.
        breaker: Breaker,
    },
    /// Store how many instances an agent should have, unless a later home has said so.
    StoreScale {
        /// Which agent.
        agent: Arc<str>,
        /// How many and why.
        scale: Scale,
    },
    /// Store an operator's order to pause an agent, or take it back.
    StorePause {
        /// Which agent.
        agent: String,
        /// The order; none to take it back.
        order: Option<Operation>,
    },
    /// Ask a target's home for a share of what it limits; answered by `Input::GrantAnswered`.
    AskGrant {
        /// The target.
        target: AgentIx,
        /// Its name.
        name: Arc<str>,
        /// For what.
        ask: Ask,
        /// When this was asked.
        asked: Timestamp,
    },
}
