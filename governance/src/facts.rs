//! What operators are shown: plain facts about lanes and targets. Owns their form; decides nothing.

use crate::event::Lane;
use crate::governor::Governor;
use crate::lanes::{Queue, Standing};
use crate::names::AgentIx;
use crate::policy::Rate;
use crate::quota::Gcra;
use crate::scaling::utilisation_bp;
use crate::time::Timestamp;
use crate::words::{BreakerState, Priority, Reason};

/// One lane as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneFacts {
    /// Which lane.
    pub lane: Lane,
    /// Messages held of it.
    pub messages: u32,
    /// Those of the messages that are passed by.
    pub passed_by: u32,
    /// Dispatches in them that wait.
    pub queued: u32,
    /// Those of the dispatches that wait for their target and are passed by.
    pub blocked: u32,
    /// The quota of its source.
    pub quota: Rate,
    /// Since when its oldest dispatch is accepted.
    pub oldest: Option<Timestamp>,
    /// Why the first that waits does so, for whom, and until when it will at least.
    pub waiting: Option<Waiting>,
}

/// Why a lane waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Why.
    pub reason: Reason,
    /// The target, where the reason lies with one.
    pub target: Option<AgentIx>,
    /// Until when at least, where that is known.
    pub until: Option<Timestamp>,
}

/// One agent as it stands, as a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetFacts {
    /// Which agent.
    pub agent: AgentIx,
    /// Its role, from the policy.
    pub role: String,
    /// Its quota as a source.
    pub quota: Rate,
    /// Its hard rate as a target.
    pub max_rate: Option<Rate>,
    /// Its breaker.
    pub breaker: BreakerFacts,
    /// Live instances.
    pub instances: u32,
    /// Their slots.
    pub slots: u32,
    /// What runs in them.
    pub running: u32,
    /// Dispatches that wait for it: in lanes, the wait for their own quota apart, and in its inbox.
    pub depth: u32,
    /// Admitted and not ended, by class.
    pub in_flight: [u32; 4],
    /// How many may be.
    pub in_flight_max: u32,
    /// Running over slots, in basis points.
    pub utilisation_bp: u32,
    /// Whether an operator or the policy paused it.
    pub paused: bool,
    /// Whether its inbox refused the last publish.
    pub inbox_full: bool,
}

/// A breaker as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerFacts {
    /// Its state.
    pub state: BreakerState,
    /// Why it is in this state.
    pub reason: Reason,
    /// Since when.
    pub since: Timestamp,
    /// When the next probe is due.
    pub probe_at: Option<Timestamp>,
    /// Runs in the window.
    pub samples: u32,
    /// Errors among them.
    pub errors: u32,
    /// Runs over the bound among them.
    pub over: u32,
    /// Failures in a row.
    pub in_row: u32,
}

impl Governor {
    /// Every lane of every registered agent that holds something, in the order of names and priorities.
    #[must_use]
    pub fn lane_facts(&self, now: Timestamp) -> Vec<LaneFacts> {
        let lanes = self.agents().flat_map(crate::sources::lanes_of);
        lanes.map(|lane| self.lane(now, lane)).collect()
    }

    fn lane(&self, now: Timestamp, lane: Lane) -> LaneFacts {
        let queues = || self.lanes.queues_of(lane).map(|ix| self.lanes.queue(ix)).filter(|q| q.queued > 0);
        let (messages, passed_by) = self.lanes.messages_of(lane);
        let blocked =
            queues().map(|q| if q.standing == Standing::Blocked { q.queued } else { parked(q) }).sum();
        let heads = queues().filter_map(|q| q.runs.front().or_else(|| q.parked.front().map(|(_, run)| run)));
        let oldest = heads.map(|run| self.lanes.held(run.held).accepted).min();
        let waiting = queues().find_map(|q| q.waiting.or_else(|| self.waiting_apart(now, q)));
        LaneFacts {
            lane,
            messages,
            passed_by,
            queued: queues().map(|q| q.queued).sum(),
            blocked,
            quota: self.source(lane.source).quota.rate(),
            oldest,
            waiting,
        }
    }

    /// Why a queue waits that neither its quota nor its target holds up.
    fn waiting_apart(&self, now: Timestamp, queue: &Queue) -> Option<Waiting> {
        if let Some((target, _)) = queue.parked.front() {
            return Some(Waiting { reason: Reason::OrderKeyBusy, target: Some(*target), until: None });
        }
        if queue.effective_class() == Priority::P3 && self.deferral.is_on() {
            let until = Some(self.deferral.next(now));
            return Some(Waiting { reason: Reason::Deferred, target: None, until });
        }
        self.window_full.then_some(Waiting { reason: Reason::WindowFull, target: None, until: None })
    }

    /// Every registered agent as a target, in the order of names.
    #[must_use]
    pub fn target_facts(&self, now: Timestamp) -> Vec<TargetFacts> {
        let held = self.held_depths();
        self.agents().map(|agent| self.target(agent, self.depth(now, agent, held[agent.ix()]))).collect()
    }

    fn target(&self, agent: AgentIx, depth: u32) -> TargetFacts {
        let target = self.targets.at(agent);
        TargetFacts {
            agent,
            role: self.policy.role_name(self.agent_name(agent).as_str()).to_owned(),
            quota: self.source(agent).quota.rate(),
            max_rate: target.max_rate.as_ref().map(Gcra::rate),
            breaker: target.breaker_facts(),
            instances: target.instances(),
            slots: target.slots,
            running: target.running,
            depth,
            in_flight: target.in_flight,
            in_flight_max: target.in_flight_max(&self.policy.in_flight),
            utilisation_bp: utilisation_bp(u64::from(target.running), u64::from(target.slots)),
            paused: target.paused || target.paused_by_operator,
            inbox_full: target.inbox_full,
        }
    }
}

fn parked(queue: &Queue) -> u32 {
    queue.parked.iter().map(|(_, run)| u32::from(run.count)).sum()
}

/// The classes of one lane or target in order, for callers that iterate.
pub const CLASSES: [Priority; 4] = [Priority::P0, Priority::P1, Priority::P2, Priority::P3];
