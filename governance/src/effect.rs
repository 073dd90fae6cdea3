//! What the core wants done. Owns the vocabulary of outputs; does nothing.
//!
//! The rule it keeps: an effect is complete, so that whoever performs it has no choice left.

use std::sync::Arc;
use std::time::Duration;

use crate::event::Lane;
use crate::knowledge::{Ask, Grant, TargetReport};
use crate::losses::{Loss, Permit};
use crate::names::{AgentIx, CapabilityIx, DispatchId, InstanceId, MessageIx, OpenIx};
use crate::time::Timestamp;
use crate::words::{BreakerState, Kind, Outcome, Priority, Reason};

/// One output of the core. Order matters within one call.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the line above each variant says what its fields are")]
pub enum Effect {
    /// Pull so many messages from this lane.
    Pull { lane: Lane, messages: u32 },
    /// Slots of a held message go to a target: record them, then publish.
    Admit(Admission),
    /// Slots of a held message end without reaching a target: record them, then answer.
    End(Ending),
    /// A held message was decided about before, as a whole: acknowledge it, nothing more.
    Duplicate { message: MessageIx },
    /// Admitted slots ended: record it, then answer.
    Close(Closing),
    /// All slots of this handle have ended; it may be used again.
    Forget { open: OpenIx },
    /// A completion came after the outcome: note it, do not answer.
    Late { row: u32, id: DispatchId, count: u16 },
    /// A failed event runs again after a delay: give its inbox message back.
    Retry { row: u32, open: OpenIx, id: DispatchId, attempt: u8, delay: Duration },
    /// A failed event has no attempts left: move it to the dead-letter queue. Its `Close` stands beside it.
    DeadLetter { row: u32, open: OpenIx, id: DispatchId, attempts: u8 },
    /// Who has a redelivered dispatch, and how many were lost with it, has changed: record it before anybody is told.
    Runner { open: OpenIx, id: DispatchId, loss: Loss },
    /// As many instances were lost with it as the policy allows: move it to the dead-letter queue, then say `Condemned`.
    Condemn { open: OpenIx, id: DispatchId, lost: u8 },
    /// The answer to what an instance asked about one slot.
    Permit(Permit),
    /// Tell the instances of a target to stop working on these.
    Revoke { target: AgentIx, first: DispatchId, count: u16 },
    /// More time was granted for a dispatch: its deadline is now this. Also the answer to a refused wish: unchanged.
    Extended { id: DispatchId, deadline: Timestamp },
    /// Tell a source to slow down.
    SlowDown { source: AgentIx, rate_per_s: u32, queued: u32, wait: Duration },
    /// Tell a source that it may go on.
    Resume { source: AgentIx },
    /// A breaker changed: record, store, alert.
    Breaker(BreakerChange),
    /// Ask a tripped target for a sign of life, since no dispatch can serve as the probe.
    Ping { target: AgentIx },
    /// The number of instances should change: record, act.
    Scale(ScaleChange),
    /// An instance is silent for too long.
    InstanceLost { agent: AgentIx, instance: InstanceId },
    /// P3 is deferred, or no longer, because of P0's delay. Where that is not this home's own but what another one told, it is
    /// counted and not recorded, since the other one records it.
    Deferral { on: bool, p0_delay: Duration, own: bool },
    /// P0 was claimed without the right to it.
    Demoted { message: MessageIx, first: u16, count: u16, source: AgentIx },
    /// An instance more is due and not taken, since it would not help: told once for each such time.
    ScaleHeld { agent: AgentIx, instances: u32, reason: Reason, depth: u32, utilisation_bp: u32 },
    /// Tell the home of a target what was seen of it.
    Report { target: AgentIx, report: TargetReport },
    /// Tell the home of a target how the probe that it granted ended; none where it went unused.
    ProbeEnded { target: AgentIx, succeeded: Option<bool> },
    /// Ask the home of a target; the answer is told with the moment of this effect.
    AskGrant { target: AgentIx, ask: Ask },
    /// Answer the home that asked.
    Granted(Grant),
    /// Tell the other homes that P0 suffers here.
    P0Suffers { delay: Duration },
}

/// Slots that go to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// The lane message they are in.
    pub message: MessageIx,
    /// The first slot.
    pub first: u16,
    /// How many consecutive slots.
    pub count: u16,
    /// The topic copy, 0 for none.
    pub copy: u16,
    /// Who sends.
    pub source: AgentIx,
    /// Who runs it.
    pub target: AgentIx,
    /// What it calls; for a topic copy the capability index is unused and `topic_copy` is the reason.
    pub capability: Option<CapabilityIx>,
    /// Request or event.
    pub kind: Kind,
    /// The class it goes in: its inbox's priority.
    pub class: Priority,
    /// Whether it carries the right to P0 to its children.
    pub serves_person: bool,
    /// Why it goes there and so.
    pub reason: Reason,
    /// When it ends at the latest.
    pub deadline: Timestamp,
    /// The handle of this run.
    pub open: OpenIx,
    /// How many slots of it may share one inbox message: one for a target that speaks JSON, else half of one instance's slots,
    /// since more at once would keep other instances idle and P0 out.
    pub pack_max: u32,
}

/// Slots that end without reaching a target.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    /// The lane message they are in.
    pub message: MessageIx,
    /// The first slot.
    pub first: u16,
    /// How many consecutive slots.
    pub count: u16,
    /// The topic copy, 0 for none.
    pub copy: u16,
    /// Who sends.
    pub source: AgentIx,
    /// Who would have run it, where one was chosen.
    pub target: Option<AgentIx>,
    /// What it calls.
    pub capability: Option<CapabilityIx>,
    /// Request or event.
    pub kind: Kind,
    /// The class it would have gone in.
    pub class: Priority,
    /// Rejected, timeout, circuit broken, cancelled; or success for an event that was fanned out.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// The static payload of the fallback, where one answers.
    pub fallback: Option<Arc<str>>,
}

/// Admitted slots that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closing {
    /// The handle of the run.
    pub open: OpenIx,
    /// The first dispatch.
    pub id: DispatchId,
    /// How many consecutive slots.
    pub count: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// Why; `FallbackAgent` where an agent that stands in answered with success.
    pub reason: Reason,
    /// The row of the completion that ended it; none for timeouts and cancellations.
    pub row: Option<u32>,
}

/// A breaker that changed its state, with the figures behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerChange {
    /// Whose breaker.
    pub target: AgentIx,
    /// Before.
    pub from: BreakerState,
    /// After.
    pub to: BreakerState,
    /// Why.
    pub reason: Reason,
    /// Runs in the window.
    pub samples: u32,
    /// Failures and timeouts among them.
    pub errors: u32,
    /// Runs over 120 % of the SLA among them.
    pub over: u32,
}

/// A change of the number of instances, with the figures behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScaleChange {
    /// Which agent.
    pub agent: AgentIx,
    /// Instances now.
    pub from: u32,
    /// Instances wanted.
    pub to: u32,
    /// Why.
    pub reason: Reason,
    /// Dispatches waiting for it.
    pub depth: u32,
    /// Running over slots, in hundredths of a percent.
    pub utilisation_bp: u32,
}
