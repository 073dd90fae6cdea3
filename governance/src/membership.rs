//! Who takes part: registrations, policies, pauses, what a former home left; and what time alone changes.
//!
//! The rule it keeps: a change of the rules or of a target wakes everything it may let go, so that nothing waits on a rule that
//! is no longer in force.

use std::sync::Arc;
use std::time::Duration;

use crate::effect::Effect;
use crate::event::{Lane, Restored};
use crate::governor::Governor;
use crate::knowledge::{GRANT_LIFE, Shards};
use crate::lanes::Held;
use crate::names::AgentIx;
use crate::open::OpenRun;
use crate::policy::{Policy, Rate};
use crate::quota::Gcra;
use crate::registration::{Encoding, Registration};
use crate::reports::Urgency;
use crate::sources::{DRAINED_FOR, Source, lanes_of};
use crate::time::Timestamp;
use crate::timers::Timer;
use crate::words::Kind;

impl Governor {
    /// An agent joins, or joins again with another registration.
    pub(crate) fn on_registered(&mut self, now: Timestamp, registration: &Registration) {
        let Some(agent) = self.registry.register(registration) else { return };
        self.add_agents(now);
        self.targets.at_mut(agent).pack_max = pack_max(registration);
        self.apply_policy_to(now, agent);
        self.targets.mark_changed(agent);
        if !self.is_home(agent) {
            return;
        }
        for lane in lanes_of(agent) {
            self.lanes.start_pulling(lane);
        }
    }

    /// Gives every interned agent its place in each concern.
    fn add_agents(&mut self, now: Timestamp) {
        while self.sources.len() < self.registry.agents_len() {
            let agent = AgentIx(self.sources.len() as u32);
            let name = self.registry.agent_name(agent).as_str();
            self.sources.push(Source::new(Gcra::new(self.policy.quota(name))));
            let here = self.shards.are_home_of(name);
            let rate = self.policy.max_rate(name).map(|rate| hard_rate(now, self.shards, rate));
            self.targets.add(here, rate);
            self.lanes.add_agent();
            self.scheduler.add_agent();
        }
        for agent in 0..self.sources.len() {
            if self.sources[agent].p0_unknown {
                self.resolve_p0(AgentIx(agent as u32));
            }
        }
    }

    /// An agent left for good. Its own lanes are read on, so that what it sent gets its outcome.
    pub(crate) fn on_removed(&mut self, now: Timestamp, agent: AgentIx, effects: &mut Vec<Effect>) {
        self.registry.withdraw(agent);
        self.targets.at_mut(agent).clear_instances();
        self.refuse_waiting(now, agent, effects);
        self.targets.mark_changed(agent);
    }

    /// Other rules are in force.
    pub(crate) fn on_policy(&mut self, now: Timestamp, policy: Arc<Policy>) {
        self.policy = policy;
        self.deferral.set_rules(now, &self.policy.deferral);
        for agent in 0..self.sources.len() {
            let agent = AgentIx(agent as u32);
            self.apply_policy_to(now, agent);
            self.targets.mark_changed(agent);
            self.on_quota(now, agent);
            for lane in lanes_of(agent) {
                self.lanes.mark_changed(lane);
            }
        }
    }

    fn apply_policy_to(&mut self, now: Timestamp, agent: AgentIx) {
        let name = self.registry.agent_name(agent).as_str();
        let quota = self.policy.quota(name);
        let max_rate = self.policy.max_rate(name);
        self.sources[agent.ix()].quota.set_rate(now, quota);
        let target = self.targets.at_mut(agent);
        target.paused = self.policy.agents.get(name).is_some_and(|a| a.paused);
        match (&mut target.max_rate, max_rate) {
            (Some(rate), Some(limit)) => rate.set_rate(now, limit),
            (rate, limit) => *rate = limit.map(|limit| hard_rate(now, self.shards, limit)),
        }
        self.resolve_p0(agent);
    }

    /// Interns the names in an agent's rights to P0. A name that no agent has mentioned yet is looked up again later.
    fn resolve_p0(&mut self, agent: AgentIx) {
        let name = self.registry.agent_name(agent).as_str();
        let mut unknown = false;
        let mut calls = Vec::new();
        for call in self.policy.p0_calls(name) {
            let target = call.agent.as_deref().map(|name| self.registry.agent(name));
            let capability = self.registry.capability(&call.capability);
            match (capability, target) {
                (Some(capability), None) => calls.push((capability, None)),
                (Some(capability), Some(Some(target))) => calls.push((capability, Some(target))),
                (None, _) | (_, Some(None)) => unknown = true,
            }
        }
        calls.sort_unstable();
        let source = &mut self.sources[agent.ix()];
        source.p0 = calls;
        source.p0_unknown = unknown;
    }

    pub(crate) fn on_set_paused(&mut self, target: AgentIx, paused: bool) {
        self.targets.at_mut(target).paused_by_operator = paused;
        self.targets.mark_changed(target);
    }

    pub(crate) fn on_inbox(&mut self, target: AgentIx, full: bool) {
        self.targets.at_mut(target).inbox_full = full;
        self.targets.mark_changed(target);
    }

    /// A run that a former home admitted is open again.
    pub(crate) fn on_restore(&mut self, restored: &Restored) {
        let max = match restored.kind {
            Kind::Event => self.policy.deadlines.event_max,
            Kind::Request | Kind::Response | Kind::Error => self.policy.deadlines.request_max,
        };
        let capability = (restored.capability != crate::open::NO_CAPABILITY).then_some(restored.capability);
        let before = self.open.slots();
        self.open.restore(
            restored,
            OpenRun {
                source: restored.source,
                target: restored.target,
                capability,
                kind: restored.kind,
                class: restored.class,
                serves_person: restored.serves_person,
                probe: None,
                stands_in: restored.stands_in,
                first: restored.first,
                count: restored.count,
                deadline: restored.deadline,
                deadline_max: restored.admitted.after(max).max(restored.deadline),
                admitted: restored.admitted,
                order_key: restored.order_key,
            },
        );
        let left = (self.open.slots() - before) as u32;
        self.targets.at_mut(restored.target).in_flight[restored.class as usize] += left;
        self.report_soon(self.now, restored.target, Urgency::Soon);
        if restored.order_key != 0 {
            self.order_keys.open(restored.source, restored.target, restored.order_key);
        }
    }

    /// Everything that is due by now, deadlines of open runs apart.
    pub(crate) fn fire_timers(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        while let Some(timer) = self.timers.pop(now) {
            match timer {
                Timer::Quota(source) => self.on_quota(now, source),
                Timer::TargetRate(target) => self.targets.mark_changed(target),
                Timer::HeldDeadline(queue) => self.on_held_deadline(now, queue, effects),
                Timer::Probe(target) => self.on_probe_timer(now, target, effects),
                Timer::Ping(target) => self.on_ping_timer(now, target, effects),
                Timer::Silence(agent) => self.on_silence(now, agent, effects),
                Timer::Trickle => self.on_trickle(now, effects),
                Timer::Resume(source) => self.on_drained(source, effects),
                Timer::Report(target) => self.on_report_timer(now, target),
                Timer::Grant(target) => self.on_grant_timer(now, target, effects),
                Timer::Sweep => self.on_sweep(now, effects),
            }
        }
    }

    /// A message left its lane: its sequence is decided.
    pub(crate) fn on_message_decided(&mut self, now: Timestamp, message: &Held) {
        self.seen.insert(now, message.instance, message.sequence, message.sequence);
    }

    /// A source has fewer dispatches held.
    pub(crate) fn on_held_less(&mut self, now: Timestamp, source: AgentIx, count: u32) {
        let state = self.source_mut(source);
        state.held -= count;
        if state.held == 0 && state.slowed {
            self.timers.arm(now.after(DRAINED_FOR), Timer::Resume(source));
        }
    }

    fn on_drained(&mut self, source: AgentIx, effects: &mut Vec<Effect>) {
        let state = self.source_mut(source);
        if state.held == 0 && std::mem::take(&mut state.slowed) {
            effects.push(Effect::Resume { source });
        }
    }

    /// A source is over its quota with something waiting: tell it, now and then.
    pub(crate) fn signal_slow_down(
        &mut self,
        now: Timestamp,
        source: AgentIx,
        until: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let state = self.source_mut(source);
        if !state.signal_due(now) {
            return;
        }
        let wait = until.since(now) + state.quota.duration_of(state.held.saturating_sub(1));
        let rate_per_s = state.quota.rate().per_s;
        effects.push(Effect::SlowDown { source, rate_per_s, queued: state.held, wait });
    }

    /// Pulls for the lanes whose credits changed.
    pub(crate) fn pull(&mut self, effects: &mut Vec<Effect>) {
        let sources = &self.sources;
        let quota = |source: AgentIx| sources[source.ix()].quota.rate();
        while let Some((lane, messages)) = self.lanes.next_pull(&self.policy.lanes, quota) {
            if messages > 0 {
                effects.push(Effect::Pull { lane, messages });
            }
        }
    }

    pub(crate) fn on_pull_ended(&mut self, lane: Lane, unfilled: u32) {
        self.lanes.returned(lane, unfilled);
    }

    pub(crate) fn source(&self, agent: AgentIx) -> &Source {
        &self.sources[agent.ix()]
    }

    pub(crate) fn source_mut(&mut self, agent: AgentIx) -> &mut Source {
        &mut self.sources[agent.ix()]
    }
}

/// The hard rate of a target, of which it is not known what a former home gave out. Grants to other homes stretch it; a core that is
/// home of all grants none.
fn hard_rate(now: Timestamp, shards: Shards, rate: Rate) -> Gcra {
    Gcra::used_up(now, rate, if shards.has_others() { GRANT_LIFE } else { Duration::ZERO })
}

/// How many slots of an admission to this agent may share one inbox message.
fn pack_max(registration: &Registration) -> u32 {
    match registration.encoding {
        Encoding::Json => 1,
        Encoding::Binary => (registration.max_concurrent / 2).max(1),
    }
}
