//! What the core is told. Owns the vocabulary of inputs; decides nothing.
//!
//! The rule it keeps: everything that can change a decision arrives as one of these, with `now` beside it.

use std::sync::Arc;
use std::time::Duration;

use crate::knowledge::{Ask, Grant, HomeId, TargetReport};
use crate::losses::{Holder, Loss};
use crate::names::{AgentIx, CapabilityIx, DispatchId, InstanceId, MessageIx, OpenIx, TopicIx};
use crate::policy::Policy;
use crate::registration::Registration;
use crate::time::Timestamp;
use crate::words::{BreakerState, Kind, Outcome, Priority, Reason};

/// One input of the core.
#[derive(Debug)]
#[expect(missing_docs, reason = "the line above each variant says what its fields are")]
pub enum Event<'a> {
    /// A new policy is in force.
    PolicyChanged { policy: Arc<Policy> },
    /// A registration that passed its check; interned and compared with what was known.
    AgentRegistered { registration: &'a Registration },
    /// An agent left for good; what waits for it is rejected.
    AgentRemoved { agent: AgentIx },
    /// A heartbeat of an instance.
    InstanceSeen { agent: AgentIx, beat: Beat },
    /// An instance said goodbye; silence is noticed by the core itself.
    InstanceLeft { agent: AgentIx, instance: InstanceId },
    /// A lane message arrived: the whole envelope is one event.
    Arrived(Arrival<'a>),
    /// A pull of a lane ended with this many messages not delivered.
    PullEnded { lane: Lane, unfilled: u32 },
    /// Decide what can go now; the in-flight window has room for this many dispatches.
    Turn { room: u32 },
    /// Completions that a target reported, read from the done lane.
    Completed { source: AgentIx, target: AgentIx, completions: &'a [Completion] },
    /// The broker refused a publish to an inbox because it is full; what it carried stays admitted and is tried again by
    /// the shell, nothing more is sent there until `InboxRoom`.
    InboxFull { target: AgentIx },
    /// An inbox takes messages again.
    InboxRoom { target: AgentIx },
    /// The caller withdraws dispatches of its own.
    Cancel { source: AgentIx, id: DispatchId },
    /// A handler asks for more time, in addition to the present deadline.
    Extend { source: AgentIx, id: DispatchId, by: Duration },
    /// An instance asks whether it may run dispatches that were delivered to it, and not for the first time.
    AskedToRun(AskedToRun),
    /// The letter of a dispatch that was condemned is stored.
    Condemned { id: DispatchId },
    /// What a former home knew of a redelivered dispatch, which is open.
    RestoreLoss { id: DispatchId, loss: Loss },
    /// An operator trips or resets a breaker.
    SetBreaker { target: AgentIx, trip: bool },
    /// An operator pauses or resumes an agent as a target.
    SetPaused { target: AgentIx, paused: bool },
    /// A dispatch that was open when the former home ended, as its snapshot and blocks tell; answered by `Opened`.
    Restore(&'a Restored),
    /// The quota state of a source as the former home left it.
    RestoreQuota { source: AgentIx, arrival: Timestamp },
    /// Copies of a topic's event that a former home decided about, whether or not they are still open: when the event's message
    /// comes, they are not made again.
    RestoreCopies { first: DispatchId, count: u16 },
    /// What a former home admitted at that moment, after the quota state that was restored: charged to the quota.
    RestoreCharge { source: AgentIx, admitted: Timestamp, count: u32 },
    /// A sequence that a former home has decided about.
    RestoreSeen { instance: InstanceId, from: u64, to: u64 },
    /// A breaker as it was left.
    RestoreBreaker { target: AgentIx, state: BreakerState, reason: Reason },
    /// At the home of a target: what another home has seen of it.
    TargetReported { target: AgentIx, from: HomeId, report: TargetReport },
    /// At the home of a target: the probe that was granted to another home ended so; none where it went unused.
    ProbeEnded { target: AgentIx, succeeded: Option<bool> },
    /// At the home of a target: another home asks; answered by exactly one `Granted`.
    GrantAsked { target: AgentIx, ask: Ask },
    /// The answer to what this home asked at that moment; none where nobody answered in time.
    GrantAnswered { target: AgentIx, ask: Ask, asked: Timestamp, grant: Option<Grant> },
    /// At homes that are not the target's: what its home says of its breaker.
    BreakerKnown { target: AgentIx, state: BreakerState, reason: Reason, since: Timestamp },
    /// Another home says that its P0 suffers.
    P0Suffered { delay: Duration },
    /// Time has passed.
    Tick,
}

/// Who wants to run what: consecutive slots of one envelope.
#[derive(Debug, Clone, Copy)]
pub struct AskedToRun {
    /// The first dispatch.
    pub first: DispatchId,
    /// How many consecutive slots.
    pub count: u16,
    /// Who asks: an instance, or one that does not say who it is.
    pub runner: Holder,
    /// Nothing else that had to be asked for alone runs there.
    pub alone: bool,
}

/// A lane: the durable queue from one source in one priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    /// Who sends.
    pub source: AgentIx,
    /// The priority of the lane, as claimed by the source.
    pub priority: Priority,
}

/// A heartbeat.
#[derive(Debug, Clone, Copy)]
pub struct Beat {
    /// Which instance.
    pub instance: InstanceId,
    /// How many dispatches it runs at once, at most.
    pub slots: u32,
    /// How many run now.
    pub running: u32,
    /// How many of them have run longer than 120 % of the SLA.
    pub running_over: u32,
}

/// A lane message with its dispatches as runs of equal attributes.
#[derive(Debug)]
pub struct Arrival<'a> {
    /// Where it waited.
    pub lane: Lane,
    /// The shell's handle, repeated in the effects.
    pub message: MessageIx,
    /// The sender's instance.
    pub instance: InstanceId,
    /// The sender's envelope sequence.
    pub sequence: u64,
    /// The broker's timestamp: the moment of acceptance, from which budgets run.
    pub accepted: Timestamp,
    /// What a former home decided is left out of `runs`, and the sequence is not checked again.
    pub resumed: bool,
    /// The dispatches; slots ascend, runs do not overlap.
    pub runs: &'a [Run],
}

/// Consecutive dispatches of one envelope that are alike in everything the rules look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first slot.
    pub first: u16,
    /// How many slots; at least one.
    pub count: u16,
    /// Request or event; other kinds are refused at the door.
    pub kind: Kind,
    /// Where it wants to go.
    pub to: Destination,
    /// The time budget; zero means the default of its kind.
    pub budget: Duration,
    /// What it inherits.
    pub lineage: Lineage,
    /// A hash of the order key, 0 for none: dispatches of one source to one target with equal keys run one after another.
    pub order_key: u64,
    /// A hash of the idempotency key, 0 for none.
    pub idempotency_key: u128,
}

/// Where a dispatch wants to go; names were interned at the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// A named agent and one of its capabilities.
    Agent(AgentIx, CapabilityIx),
    /// Whoever offers the capability.
    Capability(CapabilityIx),
    /// Each subscriber of the topic.
    Topic(TopicIx),
    /// A name that nobody registered; the reason says which.
    Nowhere(Reason),
}

/// What a dispatch inherits from the one during which it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lineage {
    /// It has no parent.
    Root,
    /// The parent's seal was verified by the shell.
    Child {
        /// How many hops lie behind it; a root's child has 1.
        hops: u8,
        /// How often its own agent and capability stand in the ancestry already.
        repeats: u8,
        /// The parent ran with a right to P0.
        serves_person: bool,
        /// The parent's deadline; a child's is never later.
        deadline: Timestamp,
    },
    /// The seal does not fit.
    Invalid,
}

/// Consecutive dispatches of one envelope that ended alike.
#[derive(Debug, Clone, Copy)]
pub struct Completion {
    /// The first dispatch.
    pub first: DispatchId,
    /// How many consecutive slots.
    pub count: u16,
    /// Success or failure, as the handler says.
    pub outcome: Outcome,
    /// `Ok`, or why it failed.
    pub reason: Reason,
    /// The time in the handler, for each of them.
    pub ran: Duration,
    /// Which attempt this was, from 1.
    pub attempt: u8,
    /// When the broker stored the report: what is read again after a take-over ends as it did the first time.
    pub reported: Timestamp,
    /// The shell's number of the first row, repeated in the effects.
    pub row: u32,
}

/// A dispatch or run that a former home admitted and that has not ended.
#[derive(Debug, Clone)]
pub struct Restored {
    /// Who sent it.
    pub source: AgentIx,
    /// Who runs it.
    pub target: AgentIx,
    /// What it calls.
    pub capability: CapabilityIx,
    /// Request or event.
    pub kind: Kind,
    /// The class it was admitted in.
    pub class: Priority,
    /// Whether it ran with a right to P0.
    pub serves_person: bool,
    /// Whether its target stands in for a tripped one: the reason of its admission was `FallbackAgent`.
    pub stands_in: bool,
    /// The first dispatch of the run.
    pub first: DispatchId,
    /// How many consecutive slots.
    pub count: u16,
    /// When it ends at the latest.
    pub deadline: Timestamp,
    /// When it was admitted.
    pub admitted: Timestamp,
    /// The order key's hash.
    pub order_key: u64,
    /// Slots of the run that have ended already, as bits counted from the first; empty for none.
    pub ended: Vec<u64>,
    /// The handle it is to have; handles of restored runs are dense from 0.
    pub open: OpenIx,
}
