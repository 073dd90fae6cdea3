//! Moments at which something is due. Owns the order of wake-ups; what is done then belongs to the concerns.
//!
//! The rule it keeps: few timers. One for each source over its quota, each target at its rate, each queue with something
//! held, each agent with instances, each target of another home of which something is to be told or was asked; the deadlines of open runs are buckets in `open.rs` and never timers of their own.

use std::collections::BTreeSet;

use crate::governor::WakeReason;
use crate::lanes::QueueIx;
use crate::names::AgentIx;
use crate::time::Timestamp;

/// Something that is due at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// A source's quota gives again.
    Quota(AgentIx),
    /// A target's hard rate gives again.
    TargetRate(AgentIx),
    /// The first deadline in a queue of held runs.
    HeldDeadline(QueueIx),
    /// A tripped breaker may be probed, or its probe takes too long.
    Probe(AgentIx),
    /// No dispatch came to serve as the probe.
    Ping(AgentIx),
    /// An instance may be silent for too long.
    Silence(AgentIx),
    /// Deferred P3 gets its trickle, or goes on.
    Trickle,
    /// A source that was slowed down may have drained.
    Resume(AgentIx),
    /// A report about a target of another home is due.
    Report(AgentIx),
    /// A grant of another home went unused, or an ask for one unanswered.
    Grant(AgentIx),
    /// Housekeeping and scaling, each second.
    Sweep,
}

impl Timer {
    pub(crate) const fn reason(self) -> WakeReason {
        match self {
            Self::Quota(_) => WakeReason::Quota,
            Self::TargetRate(_) => WakeReason::TargetRate,
            Self::HeldDeadline(_) => WakeReason::HeldDeadline,
            Self::Probe(_) => WakeReason::Probe,
            Self::Ping(_) => WakeReason::Ping,
            Self::Silence(_) => WakeReason::Silence,
            Self::Trickle => WakeReason::Trickle,
            Self::Resume(_) => WakeReason::Resume,
            Self::Report(_) => WakeReason::Report,
            Self::Grant(_) => WakeReason::Grant,
            Self::Sweep => WakeReason::Sweep,
        }
    }
}

/// All timers, by time; equal times fire in the order of [`Timer`].
#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: BTreeSet<(Timestamp, Timer)>,
}

impl Timers {
    /// Adds a timer. One that is armed twice fires twice: whoever handles it looks at the state, not at the timer.
    pub(crate) fn arm(&mut self, at: Timestamp, timer: Timer) {
        self.due.insert((at, timer));
    }

    pub(crate) fn disarm(&mut self, at: Timestamp, timer: Timer) {
        self.due.remove(&(at, timer));
    }

    /// Takes out the first timer that is due.
    pub(crate) fn pop(&mut self, now: Timestamp) -> Option<Timer> {
        let (at, _) = self.due.first()?;
        if *at > now {
            return None;
        }
        self.due.pop_first().map(|(_, timer)| timer)
    }

    pub(crate) fn first(&self) -> Option<(Timestamp, Timer)> {
        self.due.first().copied()
    }
}
