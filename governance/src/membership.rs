//! Who takes part: registrations, policies, instances, breakers, pauses; and what time alone changes.
//!
//! The rule it keeps: a change of the rules or of a target wakes everything it may let go, so that nothing waits on a rule that
//! is no longer in force.

use std::sync::Arc;

use crate::breaker::Change;
use crate::effect::{BreakerChange, Effect, ScaleChange};
use crate::event::{Beat, Lane, Restored};
use crate::governor::Governor;
use crate::lanes::{Held, Key, Standing};
use crate::names::{AgentIx, InstanceId};
use crate::open::OpenRun;
use crate::policy::Policy;
use crate::quota::Gcra;
use crate::registration::Registration;
use crate::scaling::Sample;
use crate::sources::{DRAINED_FOR, Source, lanes_of};
use crate::time::Timestamp;
use crate::timers::Timer;
use crate::words::{BreakerState, Kind, Reason};

impl Governor {
    /// An agent joins, or joins again with another registration.
    pub(crate) fn on_registered(&mut self, now: Timestamp, registration: &Registration) {
        let Some(agent) = self.registry.register(registration) else { return };
        self.add_agents(now);
        self.apply_policy_to(now, agent);
        self.targets.mark_changed(agent);
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
            self.targets.add(self.policy.max_rate(name).map(|rate| Gcra::used_up(now, rate)));
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
            (rate, limit) => *rate = limit.map(|limit| Gcra::used_up(now, limit)),
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

    /// A heartbeat.
    pub(crate) fn on_beat(&mut self, now: Timestamp, agent: AgentIx, beat: Beat, effects: &mut Vec<Effect>) {
        let target = self.targets.at_mut(agent);
        let slots_changed = target.on_beat(now, beat);
        let over = target.running_over;
        let tripped = target.breaker.on_running_over(now, &self.policy.breaker, over);
        let answered = target.breaker.on_sign_of_life(now, &self.policy.breaker);
        if !std::mem::replace(&mut target.silence_armed, true) {
            self.timers.arm(now.after(self.policy.scaling.silence), Timer::Silence(agent));
        }
        if slots_changed {
            self.targets.mark_changed(agent);
        }
        self.on_breaker(agent, tripped, effects);
        self.on_breaker(agent, answered, effects);
    }

    /// An instance said goodbye.
    pub(crate) fn on_left(&mut self, agent: AgentIx, instance: InstanceId) {
        let target = self.targets.at_mut(agent);
        target.on_left(instance);
        target.breaker.on_instances_left(target.running_over);
    }

    /// Instances that have been silent for too long are lost.
    pub(crate) fn on_silence(&mut self, now: Timestamp, agent: AgentIx, effects: &mut Vec<Effect>) {
        let silence = self.policy.scaling.silence;
        let since = Timestamp(now.0.saturating_sub(crate::time::nanos(silence)));
        let target = self.targets.at_mut(agent);
        while let Some(instance) = target.silent(since) {
            target.on_left(instance);
            effects.push(Effect::InstanceLost { agent, instance });
        }
        target.breaker.on_instances_left(target.running_over);
        target.silence_armed = false;
        if let Some(oldest) = target.oldest_beat() {
            target.silence_armed = true;
            self.timers.arm(oldest.after(silence), Timer::Silence(agent));
        }
    }

    /// A breaker may have changed: tell, arm, wake.
    pub(crate) fn on_breaker(&mut self, target: AgentIx, change: Option<Change>, effects: &mut Vec<Effect>) {
        let Some(Change { from, to, reason, samples, errors, over }) = change else { return };
        effects.push(Effect::Breaker(BreakerChange { target, from, to, reason, samples, errors, over }));
        if let Some(at) = self.targets.at(target).breaker.next_due() {
            self.timers.arm(at, Timer::Probe(target));
        }
        if to == BreakerState::Tripped {
            self.wake_on_trip(target);
        }
        self.targets.mark_changed(target);
    }

    pub(crate) fn begin_probe(
        &mut self,
        now: Timestamp,
        target: AgentIx,
        ping: bool,
        effects: &mut Vec<Effect>,
    ) {
        let change = self.targets.at_mut(target).breaker.begin_probe(now, &self.policy.breaker, ping);
        self.on_breaker(target, Some(change), effects);
        if ping {
            effects.push(Effect::Ping { target });
        }
    }

    pub(crate) fn end_probe(
        &mut self,
        now: Timestamp,
        target: AgentIx,
        succeeded: bool,
        effects: &mut Vec<Effect>,
    ) {
        let change = self.targets.at_mut(target).breaker.on_probe(now, &self.policy.breaker, succeeded);
        self.on_breaker(target, change, effects);
    }

    /// A probe is due, or was not heard of in time.
    fn on_probe_timer(&mut self, now: Timestamp, target: AgentIx, effects: &mut Vec<Effect>) {
        let change = self.targets.at_mut(target).breaker.on_probe_overdue(now, &self.policy.breaker);
        self.on_breaker(target, change, effects);
        self.on_probe_due(now, target);
    }

    /// Where a probe is due the next dispatch goes as the probe; where none comes in time, a ping.
    pub(crate) fn on_probe_due(&mut self, now: Timestamp, target: AgentIx) {
        if self.targets.at(target).breaker.probe_is_due(now) {
            self.timers.arm(now.after(self.policy.breaker.ping_after), Timer::Ping(target));
            self.targets.mark_changed(target);
        }
    }

    fn on_ping_timer(&mut self, now: Timestamp, target: AgentIx, effects: &mut Vec<Effect>) {
        if self.targets.at(target).breaker.probe_is_due(now) {
            self.begin_probe(now, target, true, effects);
        }
    }

    pub(crate) fn on_set_breaker(
        &mut self,
        now: Timestamp,
        target: AgentIx,
        trip: bool,
        effects: &mut Vec<Effect>,
    ) {
        let change = self.targets.at_mut(target).breaker.on_operator(now, trip);
        self.on_breaker(target, change, effects);
    }

    pub(crate) fn on_restore_breaker(
        &mut self,
        now: Timestamp,
        target: AgentIx,
        state: BreakerState,
        reason: Reason,
    ) {
        let breaker = &mut self.targets.at_mut(target).breaker;
        breaker.restore(now, &self.policy.breaker, state, reason);
        if let Some(at) = breaker.next_due() {
            self.timers.arm(at, Timer::Probe(target));
        }
        self.targets.mark_changed(target);
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
                probe: false,
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
                Timer::Sweep => self.on_sweep(now, effects),
            }
        }
    }

    /// Housekeeping and scaling, each second.
    fn on_sweep(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        self.timers.arm(now.after(SWEEP), Timer::Sweep);
        self.judge_deferral(now, effects);
        let depths = self.depths();
        for (agent, depth) in depths.into_iter().enumerate() {
            self.on_sample(now, AgentIx(agent as u32), depth, effects);
        }
        self.sweeps += 1;
        if self.sweeps.is_multiple_of(SWEEPS_PER_CLEANING) {
            self.seen.sweep(now);
            self.idempotency.sweep(now, &self.policy.idempotency);
        }
    }

    /// Dispatches that wait for each agent: in lanes, what waits for a quota apart, and in inboxes.
    pub(crate) fn depths(&self) -> Vec<u32> {
        let mut depths = vec![0_u32; self.targets.len()];
        for queue in &self.lanes.queues {
            let target = match queue.key {
                Key::Agent(target) => Some(target),
                Key::Capability(capability) => self.registry.providers(capability).first().copied(),
            };
            if let Some(target) = target
                && queue.standing != Standing::Quota
            {
                depths[target.ix()] = depths[target.ix()].saturating_add(queue.queued);
            }
        }
        for (agent, depth) in depths.iter_mut().enumerate() {
            let target = self.targets.at(AgentIx(agent as u32));
            *depth = depth.saturating_add(target.in_flight_total().saturating_sub(target.running));
        }
        depths
    }

    fn on_sample(&mut self, now: Timestamp, agent: AgentIx, depth: u32, effects: &mut Vec<Effect>) {
        let Some(registration) = self.registry.registration(agent) else { return };
        let target = self.targets.at_mut(agent);
        let instances = target.instances();
        let sample = Sample {
            depth,
            running: target.running,
            slots: target.slots,
            instances,
            instances_min: registration.min_instances,
            instances_max: registration.max_instances,
        };
        if let Some(step) = target.scaling.on_sample(now, &self.policy.scaling, sample) {
            effects.push(Effect::Scale(ScaleChange {
                agent,
                from: instances,
                to: step.to,
                reason: step.reason,
                depth,
                utilisation_bp: step.utilisation_bp,
            }));
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

/// The time between two looks at depths and utilisation; the triggers count in seconds.
const SWEEP: std::time::Duration = std::time::Duration::from_secs(1);

/// Old sequences and keys are dropped once a minute.
const SWEEPS_PER_CLEANING: u64 = 60;
