//! Agents as targets. Owns their instances, what is open to them, their hard rate, and which queues wait for them.
//!
//! The rule it keeps: whatever may let a waiting queue go on marks its target as changed, and the next turn looks at the
//! waiting queues of changed targets; so a queue that waits for a target need not be looked at before.

use std::collections::VecDeque;
use std::time::Duration;

use crate::breaker::Breaker;
use crate::event::Beat;
use crate::facts::BreakerFacts;
use crate::grants::{Away, Turns};
use crate::lanes::QueueIx;
use crate::mirror::Stand;
use crate::names::{AgentIx, InstanceId};
use crate::policy::InFlightPolicy;
use crate::quota::Gcra;
use crate::reports::Reports;
use crate::scaling::Scaling;
use crate::time::Timestamp;
use crate::words::Priority;

/// How often an instance says that it lives.
pub(crate) const BEAT: Duration = Duration::from_secs(1);
/// An instance that has missed two heartbeats is lost where another one has what it had: the broker gives nothing to others before
/// the holder has been silent for three, or has given it back.
pub(crate) const QUIET: Duration = Duration::from_secs(2);

/// One agent as a target.
#[derive(Debug)]
pub(crate) struct Target {
    /// What is known, counted and granted of a target of another home; none at its own home.
    pub away: Option<Box<Away>>,
    /// How many slots of one admission may share an inbox message.
    pub pack_max: u32,
    /// At its home, as are the reports, the turns and scaling.
    pub breaker: Breaker,
    pub reports: Reports,
    pub turns: Turns,
    /// Runs that succeeded, wherever they were sent from.
    pub succeeded: u64,
    pub scaling: Scaling,
    instances: Vec<Instance>,
    /// The last heartbeat of the instance that was lost last.
    lost_beat: Timestamp,
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
    fn new(here: bool, rate: Option<Gcra>) -> Self {
        Self {
            away: (!here).then(|| Box::new(Away::new())),
            pack_max: 1,
            reports: Reports::new(),
            turns: Turns::new(),
            succeeded: 0,
            breaker: Breaker::new(),
            scaling: Scaling::new(),
            instances: Vec::new(),
            lost_beat: Timestamp::ZERO,
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

    pub(crate) const fn is_here(&self) -> bool {
        self.away.is_none()
    }

    /// What the breaker lets the head of a queue do, here or as its home tells.
    pub(crate) fn stand(&self, now: Timestamp, queue: QueueIx) -> Stand {
        match &self.away {
            Some(away) => away.mirror.stand(now, queue),
            None if self.breaker.passes() => Stand::Passes,
            None if self.breaker.probe_is_due(now) => Stand::MayProbe,
            None => Stand::Bars(self.breaker.facts().probe_at),
        }
    }

    pub(crate) fn passes(&self) -> bool {
        self.away.as_ref().map_or_else(|| self.breaker.passes(), |away| away.mirror.passes())
    }

    pub(crate) fn breaker_facts(&self) -> BreakerFacts {
        self.away.as_ref().map_or_else(|| self.breaker.facts(), |away| away.mirror.facts())
    }

    /// How many of `room` the hard rate lets go now, here or as it was granted; else when that may change, where it is known.
    pub(crate) fn rate_room(&self, now: Timestamp, room: u32) -> Result<u32, Option<Timestamp>> {
        match (&self.max_rate, &self.away) {
            (None, _) => Ok(room),
            (Some(rate), None) => self.turns.check(now, rate, room).map_err(Some),
            (Some(_), Some(away)) => away.rate.check(now).map(|granted| granted.min(room)),
        }
    }

    /// Takes so many of the hard rate; the caller has checked.
    pub(crate) fn secure_rate(&mut self, now: Timestamp, count: u32) {
        match (&mut self.max_rate, &mut self.away) {
            (None, _) => {}
            (Some(rate), None) => {
                rate.secure(now, count);
                self.turns.own_went();
            }
            (Some(_), Some(away)) => away.rate.secure(count),
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

    /// An instance was silent for too long.
    pub(crate) fn on_lost(&mut self, instance: InstanceId) {
        let seen = self.instances.iter().find(|i| i.id == instance).map(|i| i.seen);
        self.lost_beat = self.lost_beat.max(seen.unwrap_or_default());
        self.on_left(instance);
    }

    /// Whether an instance has missed its heartbeats; none where it is not known.
    pub(crate) fn is_quiet(&self, now: Timestamp, instance: InstanceId) -> Option<bool> {
        self.instances.iter().find(|i| i.id == instance).map(|i| now.since(i.seen) >= QUIET)
    }

    /// Whether an instance that lived at some time since `since` is lost.
    pub(crate) fn lost_one_since(&self, now: Timestamp, since: Timestamp) -> bool {
        let quiet = self.instances.iter().map(|i| i.seen).filter(|seen| now.since(*seen) >= QUIET);
        let last = quiet.max().unwrap_or_default().max(self.lost_beat);
        last > Timestamp::ZERO && last.after(BEAT) >= since
    }

    /// Forgets the instances that have been silent since `since` or longer. Whether there were any.
    pub(crate) fn forget_silent(&mut self, since: Timestamp) -> bool {
        let before = self.instances.len();
        let lost = self.instances.iter().map(|i| i.seen).filter(|seen| *seen <= since).max();
        self.lost_beat = self.lost_beat.max(lost.unwrap_or_default());
        self.instances.retain(|i| i.seen > since);
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
    pub(crate) fn add(&mut self, here: bool, max_rate: Option<Gcra>) {
        self.targets.push(Target::new(here, max_rate));
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
            target.reports.check_invariants();
            if let Some(away) = &target.away {
                away.mirror.check_invariants();
                assert!(target.breaker.passes(), "a breaker is judged at its target's home only");
            }
            let slots = target.instances.iter().fold(0_u32, |s, i| s.saturating_add(i.slots));
            assert_eq!(slots, target.slots, "the slots of a target are those of its instances");
        }
    }
}
