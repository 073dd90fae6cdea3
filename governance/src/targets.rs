//! Agents as targets. Owns their instances, what is open to them, their hard rate, and which queues wait for them.
//!
//! The rule it keeps: whatever may let a waiting queue go on marks its target as changed, and the next turn looks at the
//! waiting queues of changed targets; so a queue that waits for a target need not be looked at before.

use std::collections::VecDeque;

use crate::breaker::Breaker;
use crate::event::Beat;
use crate::lanes::QueueIx;
use crate::names::{AgentIx, InstanceId};
use crate::policy::InFlightPolicy;
use crate::quota::Gcra;
use crate::scaling::Scaling;
use crate::time::Timestamp;
use crate::words::Priority;

/// One agent as a target.
#[derive(Debug)]
pub(crate) struct Target {
    pub breaker: Breaker,
    pub scaling: Scaling,
    instances: Vec<Instance>,
    pub slots: u32,
    pub running: u32,
    pub running_over: u32,
    /// Admitted and not ended, by class.
    pub in_flight: [u32; 4],
    /// As the policy says, unless an operator says otherwise.
    pub paused: bool,
    pub paused_by_operator: bool,
    pub inbox_full: bool,
    pub max_rate: Option<Gcra>,
    pub waiters: VecDeque<QueueIx>,
    changed: bool,
    /// Whether a timer for silence is armed.
    pub silence_armed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Instance {
    id: InstanceId,
    slots: u32,
    running: u32,
    running_over: u32,
    seen: Timestamp,
}

impl Target {
    const fn new(rate: Option<Gcra>) -> Self {
        Self {
            breaker: Breaker::new(),
            scaling: Scaling::new(),
            instances: Vec::new(),
            slots: 0,
            running: 0,
            running_over: 0,
            in_flight: [0; 4],
            paused: false,
            paused_by_operator: false,
            inbox_full: false,
            max_rate: rate,
            waiters: VecDeque::new(),
            changed: false,
            silence_armed: false,
        }
    }

    /// A heartbeat. Whether the slots changed.
    pub(crate) fn on_beat(&mut self, now: Timestamp, beat: Beat) -> bool {
        let Beat { instance: id, slots, running, running_over } = beat;
        let fresh = Instance { id, slots, running, running_over, seen: now };
        match self.instances.iter_mut().find(|i| i.id == id) {
            Some(known) => *known = fresh,
            None => self.instances.push(fresh),
        }
        self.sum()
    }

    /// An instance is gone. Whether it was known.
    pub(crate) fn on_left(&mut self, instance: InstanceId) -> bool {
        let before = self.instances.len();
        self.instances.retain(|i| i.id != instance);
        self.sum();
        self.instances.len() < before
    }

    pub(crate) fn clear_instances(&mut self) {
        self.instances.clear();
        self.sum();
    }

    /// An instance that has been silent since `since` or longer.
    pub(crate) fn silent(&self, since: Timestamp) -> Option<InstanceId> {
        self.instances.iter().find(|i| i.seen <= since).map(|i| i.id)
    }

    pub(crate) fn oldest_beat(&self) -> Option<Timestamp> {
        self.instances.iter().map(|i| i.seen).min()
    }

    pub(crate) fn instances(&self) -> u32 {
        self.instances.len() as u32
    }

    fn sum(&mut self) -> bool {
        let sum =
            |part: fn(&Instance) -> u32| self.instances.iter().fold(0_u32, |s, i| s.saturating_add(part(i)));
        let slots = sum(|i| i.slots);
        self.running = sum(|i| i.running);
        self.running_over = sum(|i| i.running_over);
        std::mem::replace(&mut self.slots, slots) != slots
    }

    pub(crate) fn in_flight_total(&self) -> u32 {
        self.in_flight.iter().sum()
    }

    /// How many may be open to this target, P0 apart.
    pub(crate) fn in_flight_max(&self, rules: &InFlightPolicy) -> u32 {
        self.slots.saturating_mul(rules.per_slot).max(rules.min).max(1)
    }

    /// How many more may go in this class. P0 has a quarter of the bound for itself, so that a full inbox never stops it;
    /// P3 gets at most half.
    pub(crate) fn room(&self, rules: &InFlightPolicy, class: Priority) -> u32 {
        let max = self.in_flight_max(rules);
        let [p0, p1, p2, p3] = self.in_flight;
        let shared = max.saturating_sub(p1 + p2 + p3);
        match class {
            Priority::P0 => (max + max.div_ceil(4)).saturating_sub(p0 + p1 + p2 + p3),
            Priority::P1 | Priority::P2 => shared,
            Priority::P3 => shared.min(max.div_ceil(2).saturating_sub(p3)),
        }
    }
}

/// All targets by agent.
#[derive(Debug, Default)]
pub(crate) struct Targets {
    targets: Vec<Target>,
    changed: Vec<AgentIx>,
}

impl Targets {
    pub(crate) fn add(&mut self, max_rate: Option<Gcra>) {
        self.targets.push(Target::new(max_rate));
    }

    pub(crate) const fn len(&self) -> usize {
        self.targets.len()
    }

    pub(crate) fn at(&self, agent: AgentIx) -> &Target {
        &self.targets[agent.ix()]
    }

    pub(crate) fn at_mut(&mut self, agent: AgentIx) -> &mut Target {
        &mut self.targets[agent.ix()]
    }

    /// Something changed that may let a waiting queue go on.
    pub(crate) fn mark_changed(&mut self, agent: AgentIx) {
        let target = &mut self.targets[agent.ix()];
        if !target.changed && !target.waiters.is_empty() {
            target.changed = true;
            self.changed.push(agent);
        }
    }

    /// A changed target whose waiting queues are to be looked at.
    pub(crate) fn take_changed(&mut self) -> Option<AgentIx> {
        let agent = self.changed.pop()?;
        self.targets[agent.ix()].changed = false;
        Some(agent)
    }

    pub(crate) fn check_invariants(&self) {
        for target in &self.targets {
            target.breaker.check_invariants();
            let slots = target.instances.iter().fold(0_u32, |s, i| s.saturating_add(i.slots));
            assert_eq!(slots, target.slots, "the slots of a target are those of its instances");
        }
    }
}
