//! Agents as sources. Owns their quotas, who waits for one, and the signals to slow down and to resume.
//!
//! The rule it keeps: a signal is advice and costs nothing to ignore; what is over quota waits whether or not it is heard.

use std::time::Duration;

use crate::event::Lane;
use crate::lanes::QueueIx;
use crate::names::{AgentIx, CapabilityIx};
use crate::quota::Gcra;
use crate::time::Timestamp;

/// One agent as a source.
#[derive(Debug)]
pub(crate) struct Source {
    pub quota: Gcra,
    /// Queues that wait for the quota.
    pub waiting: Vec<QueueIx>,
    pub timer: Option<Timestamp>,
    /// When the quota last held something up: what was accepted before that moment waited for the quota in the broker.
    pub last_over: Option<Timestamp>,
    /// Dispatches held of all its lanes.
    pub held: u32,
    pub slowed: bool,
    pub signalled: Option<Timestamp>,
    /// The calls by which it may claim P0, sorted; none as agent means any.
    pub p0: Vec<(CapabilityIx, Option<AgentIx>)>,
    /// One of these calls has a name that no registration has mentioned yet.
    pub p0_unknown: bool,
}

impl Source {
    pub(crate) const fn new(quota: Gcra) -> Self {
        Self {
            quota,
            waiting: Vec::new(),
            timer: None,
            last_over: None,
            held: 0,
            slowed: false,
            signalled: None,
            p0: Vec::new(),
            p0_unknown: true,
        }
    }

    /// Whether a signal is due; if so it counts as given.
    pub(crate) fn signal_due(&mut self, now: Timestamp) -> bool {
        if self.signalled.is_some_and(|at| now.since(at) < SIGNAL_PAUSE) {
            return false;
        }
        self.signalled = Some(now);
        self.slowed = true;
        true
    }

    /// Whether a call may be made at P0; without a target, whether it may be to any.
    pub(crate) fn may_claim_p0(&self, capability: CapabilityIx, target: Option<AgentIx>) -> bool {
        self.p0.binary_search(&(capability, None)).is_ok()
            || target.is_some() && self.p0.binary_search(&(capability, target)).is_ok()
    }
}

/// The four lanes of a source.
pub(crate) fn lanes_of(source: AgentIx) -> impl Iterator<Item = Lane> {
    crate::facts::CLASSES.into_iter().map(move |priority| Lane { source, priority })
}

/// A source is told to slow down at most this often.
const SIGNAL_PAUSE: Duration = Duration::from_secs(1);

/// How long a source must have nothing held before it is told to go on: what waits in the broker arrives within this.
pub(crate) const DRAINED_FOR: Duration = Duration::from_millis(100);
