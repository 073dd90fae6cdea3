//! Instances of agents as targets: heartbeats, silence, how much waits for them, and the steps of scaling.
//!
//! Every home hears the heartbeats, since slots bound what it admits. What follows from silence, and scaling, is for the agent's
//! home alone.
//!
//! The rule it keeps: what waits is counted once, by the home of its source.

use crate::effect::{Effect, ScaleChange};
use crate::event::Beat;
use crate::governor::Governor;
use crate::lanes::{Key, Standing};
use crate::names::{AgentIx, InstanceId};
use crate::scaling::{Advice, Sample};
use crate::time::{Timestamp, nanos};
use crate::timers::Timer;

impl Governor {
    /// A heartbeat.
    pub(crate) fn on_beat(&mut self, now: Timestamp, agent: AgentIx, beat: Beat, effects: &mut Vec<Effect>) {
        let target = self.targets.at_mut(agent);
        let slots_changed = target.on_beat(now, beat);
        if slots_changed {
            self.targets.mark_changed(agent);
        }
        let target = self.targets.at_mut(agent);
        if !target.is_here() {
            return;
        }
        let over = target.running_over;
        let tripped = target.breaker.on_running_over(now, &self.policy.breaker, over);
        let answered = target.breaker.on_sign_of_life(now, &self.policy.breaker);
        if !std::mem::replace(&mut target.silence_armed, true) {
            self.timers.arm(now.after(self.policy.scaling.silence), Timer::Silence(agent));
        }
        self.on_breaker(agent, tripped, effects);
        self.on_breaker(agent, answered, effects);
    }

    /// An instance said goodbye.
    pub(crate) fn on_left(&mut self, agent: AgentIx, instance: InstanceId) {
        let target = self.targets.at_mut(agent);
        target.on_left(instance);
        target.breaker.on_instances_left(target.running_over);
        self.losses.on_left(instance);
    }

    /// Instances that have been silent for too long are lost.
    pub(crate) fn on_silence(&mut self, now: Timestamp, agent: AgentIx, effects: &mut Vec<Effect>) {
        let silence = self.policy.scaling.silence;
        let since = Timestamp(now.0.saturating_sub(nanos(silence)));
        let target = self.targets.at_mut(agent);
        while let Some(instance) = target.silent(since) {
            target.on_lost(instance);
            effects.push(Effect::InstanceLost { agent, instance });
        }
        target.breaker.on_instances_left(target.running_over);
        target.silence_armed = false;
        if let Some(oldest) = target.oldest_beat() {
            target.silence_armed = true;
            self.timers.arm(oldest.after(silence), Timer::Silence(agent));
        }
    }

    /// Housekeeping and scaling, each second.
    pub(crate) fn on_sweep(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        self.timers.arm(now.after(SWEEP), Timer::Sweep);
        self.judge_deferral(now, effects);
        let held = self.held_depths();
        for (agent, held) in held.into_iter().enumerate() {
            let agent = AgentIx(agent as u32);
            if self.is_home(agent) {
                self.on_sample(now, agent, self.depth(now, agent, held), effects);
            } else {
                self.forget_silent(now, agent);
                self.refresh_report(now, agent, held);
            }
        }
        self.sweeps += 1;
        if self.sweeps.is_multiple_of(SWEEPS_PER_CLEANING) {
            self.seen.sweep(now);
            self.idempotency.sweep(now, &self.policy.idempotency);
        }
    }

    /// Instances of an agent of another home are gone when they have been silent for long; that they are lost is told there.
    fn forget_silent(&mut self, now: Timestamp, agent: AgentIx) {
        let since = Timestamp(now.0.saturating_sub(nanos(self.policy.scaling.silence)));
        if self.targets.at_mut(agent).forget_silent(since) {
            self.targets.mark_changed(agent);
        }
    }

    /// Dispatches that wait for each agent in the lanes of this core, what waits for a quota apart.
    pub(crate) fn held_depths(&self) -> Vec<u32> {
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
        depths
    }

    /// Dispatches that wait for an agent anywhere: in lanes and in its inbox.
    pub(crate) fn depth(&self, now: Timestamp, agent: AgentIx, held: u32) -> u32 {
        let target = self.targets.at(agent);
        let elsewhere = target.reports.elsewhere(now);
        let in_flight = target.in_flight_total().saturating_add(elsewhere.in_flight);
        held.saturating_add(elsewhere.depth).saturating_add(in_flight.saturating_sub(target.running))
    }

    fn on_sample(&mut self, now: Timestamp, agent: AgentIx, depth: u32, effects: &mut Vec<Effect>) {
        let Some(registration) = self.registry.registration(agent) else { return };
        let target = self.targets.at_mut(agent);
        let instances = target.instances();
        let sample = Sample {
            depth,
            in_flight: target.in_flight_total().saturating_add(target.reports.elsewhere(now).in_flight),
            succeeded: target.succeeded,
            running: target.running,
            slots: target.slots,
            instances,
            instances_min: registration.min_instances,
            instances_max: registration.max_instances,
        };
        match target.scaling.on_sample(now, &self.policy.scaling, sample) {
            None => {}
            Some(Advice::Step { to, reason, utilisation_bp }) => effects.push(Effect::Scale(ScaleChange {
                agent,
                from: instances,
                to,
                reason,
                depth,
                utilisation_bp,
            })),
            Some(Advice::Hold { reason, utilisation_bp }) => {
                effects.push(Effect::ScaleHeld { agent, instances, reason, depth, utilisation_bp });
            }
        }
    }
}

/// The time between two looks at depths and utilisation; the triggers count in seconds.
const SWEEP: std::time::Duration = std::time::Duration::from_secs(1);

/// Old sequences and keys are dropped once a minute.
const SWEEPS_PER_CLEANING: u64 = 60;
