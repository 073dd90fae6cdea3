//! What reaches a home. Owns the forms; decides nothing.

use std::time::Duration;

use bytes::Bytes;
use governance::{
    AgentIx, Ask, Beat, BreakerState, DispatchId, Grant, HomeId, Priority, Reason, Registration,
    TargetReport, Timestamp,
};
use protocol::control::{Extended, OpenAnswer, Operation};
use tokio::sync::oneshot;

use crate::letters::LetterOrder;
use crate::permits::Asking;
use crate::takeover::Waiting;

/// Everything that reaches a home.
#[derive(Debug)]
pub enum Input {
    /// A lane message or completions.
    Message(Source, Delivered),
    /// A pull ended with this many messages not delivered.
    PullEnded(Source, u32, Ended),
    /// The block under way was appended, or refused.
    Appended(Appended),
    /// An inbox message is stored.
    Published {
        /// The handle of the publish.
        handle: usize,
        /// Whose inbox.
        target: AgentIx,
        /// It had to wait for room.
        was_full: bool,
    },
    /// An inbox is full; its publish is being tried again.
    InboxFull(AgentIx),
    /// A reply was confirmed, or was not after a few tries.
    Replied {
        /// The handle of the reply.
        handle: usize,
        /// Its receiver has it.
        confirmed: bool,
    },
    /// The consumers of P1 to P3 are this home's: its take-over is complete.
    BulkReady {
        /// Messages with completions that wait there.
        waiting: Vec<Waiting>,
    },
    /// Another home has taken over; the text says who refused what.
    Deposed(String),
    /// A dead letter is stored; its inbox message may go.
    DeadLettered {
        /// Which dispatch.
        id: DispatchId,
        /// Where to acknowledge the inbox message; empty for nowhere.
        inbox_ack: String,
        /// The completions that reported it; none where nobody did, since its runners were lost.
        done: Option<usize>,
    },
    /// The connection to the broker was lost, or is there again, which ends the home.
    Broker {
        /// It is there.
        connected: bool,
    },
    /// A target's home answered, or nobody did.
    GrantAnswered {
        /// Whose limit.
        target: AgentIx,
        /// What was asked for.
        ask: Ask,
        /// When.
        asked: Timestamp,
        /// The answer.
        grant: Option<Grant>,
    },
    /// A control message.
    Command(Command),
}

/// What a pull is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// A lane of this agent.
    Lane(AgentIx, Priority),
    /// The completions for this agent.
    Done(AgentIx, Priority),
}

/// A message that was pulled.
#[derive(Debug, Clone)]
pub struct Delivered {
    /// The subject it was published on.
    pub subject: String,
    /// Its bytes.
    pub payload: Bytes,
    /// Where to acknowledge it.
    pub ack: String,
    /// Its place in the stream.
    pub stream_sequence: u64,
    /// When the broker stored it.
    pub published: Timestamp,
    /// How many more wait for this consumer.
    pub pending: u64,
}

/// Why a pull ended unfilled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Its time was up: nothing, or not enough, was there.
    Expired,
    /// The broker refused it, or its consumer is not there: asked again with the next tick, so that it is no storm.
    Refused,
}

/// What became of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    /// It is durable.
    Durable,
    /// Another home has written since; this is the head it left.
    Deposed(String),
}

/// Why a home is over: whoever hosts it drops it, and acknowledges nothing more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Over {
    /// Another home has taken over; the text says who refused what.
    #[error("deposed: {0}")]
    Deposed(String),
    /// The connection to the broker was lost and is there again. What the broker delivered into it meanwhile would stay
    /// unacknowledged for long; under a new epoch it comes back at once. Take over anew.
    #[error("cut off: what was delivered meanwhile comes back under a new epoch")]
    CutOff,
}

/// What people, agents and other homes ask or tell beside dispatches.
#[derive(Debug)]
pub enum Command {
    /// A registration that passed its check; where it is an agent of this shard its consumers exist.
    Register {
        /// What is registered.
        registration: Box<Registration>,
        /// Told when the rules know it.
        respond: Option<oneshot::Sender<()>>,
    },
    /// A heartbeat.
    Beat {
        /// Of an instance of this agent.
        agent: String,
        /// What it says.
        beat: Beat,
        /// It takes no more work and goes.
        leaving: bool,
    },
    /// A caller withdraws a dispatch.
    Cancel {
        /// The caller.
        source: String,
        /// Which dispatch.
        id: DispatchId,
    },
    /// A handler asks for more time.
    Extend {
        /// Whose dispatch it runs.
        source: String,
        /// Which.
        id: DispatchId,
        /// How much more.
        by: Duration,
        /// Told the deadline in force.
        respond: oneshot::Sender<Extended>,
    },
    /// An instance asks what is still open.
    Open {
        /// About which, and for whom.
        asking: Asking,
        /// Told which are, and may be run.
        respond: oneshot::Sender<OpenAnswer>,
    },
    /// An operator's command; the answer is its body as JSON, or what is wrong with it.
    Operate {
        /// What to do.
        verb: String,
        /// To whom, by whom and why.
        operation: Operation,
        /// Told what came of it.
        respond: oneshot::Sender<Result<serde_json::Value, String>>,
    },
    /// An operator's order about a dead letter of a source of this shard.
    Letter(LetterOrder),
    /// A source's home says what it saw of a target of this shard.
    Reported {
        /// The target.
        agent: String,
        /// Who says so.
        from: HomeId,
        /// What it saw.
        report: TargetReport,
    },
    /// A source's home says how a probe that was granted ended; none where it was not used.
    ProbeEnded {
        /// The target.
        agent: String,
        /// Whether it succeeded.
        succeeded: Option<bool>,
    },
    /// A source's home asks for a share of what this shard's home limits.
    Grant {
        /// The target.
        agent: String,
        /// For what.
        ask: Ask,
        /// Told what is granted.
        respond: oneshot::Sender<Grant>,
    },
    /// The breaker of an agent of another shard, as its home stored it.
    BreakerKnown {
        /// The target.
        agent: String,
        /// Its state.
        state: BreakerState,
        /// Why it is in it.
        reason: Reason,
        /// Since when, by its home's clock.
        since: Timestamp,
    },
    /// An operator's order to pause an agent, or that it was taken back.
    Paused {
        /// Whom.
        agent: String,
        /// Whether it is paused.
        paused: bool,
    },
    /// Another home's P0 waits.
    P0Suffered {
        /// How long.
        delay: Duration,
    },
}
