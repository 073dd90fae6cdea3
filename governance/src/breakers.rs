//! Breakers in the midst of the rest: what a change of one means for what waits, its probes here and elsewhere, and the hand of an
//! operator. The three states are in `breaker.rs`, what is known of another home's breaker in `mirror.rs`.
//!
//! The rule it keeps: a breaker changes at its target's home only, and whoever waits for the target is looked at when it does.

use crate::breaker::Change;
use crate::effect::{BreakerChange, Effect};
use crate::governor::Governor;
use crate::names::AgentIx;
use crate::time::Timestamp;
use crate::timers::Timer;
use crate::words::{BreakerState, Reason};

impl Governor {
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

    /// Until when the end of a probe that goes now means something: then its breaker gives it up.
    pub(crate) fn probe_until(&self, now: Timestamp, target: AgentIx) -> Timestamp {
        // The home of the target counts from its grant, which is not earlier than the ask.
        let away = self.targets.at(target).away.as_ref();
        let from = away.map_or(now, |away| away.mirror.asked_for_grant().unwrap_or(now));
        from.after(self.policy.breaker.probe_interval)
    }

    /// The dispatch that just went serves as the probe.
    pub(crate) fn send_probe(&mut self, now: Timestamp, target: AgentIx, effects: &mut Vec<Effect>) {
        match &mut self.targets.at_mut(target).away {
            Some(away) => away.mirror.use_grant(now, &self.policy.breaker),
            None => self.begin_probe(now, target, false, effects),
        }
    }

    /// The dispatch that served as the probe ended.
    pub(crate) fn end_probe(
        &mut self,
        now: Timestamp,
        target: AgentIx,
        succeeded: bool,
        effects: &mut Vec<Effect>,
    ) {
        let state = self.targets.at_mut(target);
        if !state.is_here() {
            return effects.push(Effect::ProbeEnded { target, succeeded: Some(succeeded) });
        }
        let change = state.breaker.on_probe(now, &self.policy.breaker, succeeded);
        self.on_breaker(target, change, effects);
    }

    /// The dispatch that was to serve as the probe was withdrawn, or none came.
    pub(crate) fn withdraw_probe(&mut self, now: Timestamp, target: AgentIx, effects: &mut Vec<Effect>) {
        let state = self.targets.at_mut(target);
        if !state.is_here() {
            return effects.push(Effect::ProbeEnded { target, succeeded: None });
        }
        state.breaker.on_probe_withdrawn(now);
        self.on_probe_due(now, target);
    }

    /// A probe is due, or was not heard of in time.
    pub(crate) fn on_probe_timer(&mut self, now: Timestamp, target: AgentIx, effects: &mut Vec<Effect>) {
        if let Some(away) = &self.targets.at(target).away {
            if away.mirror.may_ask(now) {
                self.targets.mark_changed(target);
            }
            return;
        }
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

    pub(crate) fn on_ping_timer(&mut self, now: Timestamp, target: AgentIx, effects: &mut Vec<Effect>) {
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
        if !self.is_home(target) {
            return;
        }
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
        if !self.is_home(target) {
            return self.on_breaker_known(target, state, reason, now);
        }
        let breaker = &mut self.targets.at_mut(target).breaker;
        breaker.restore(now, &self.policy.breaker, state, reason);
        if let Some(at) = breaker.next_due() {
            self.timers.arm(at, Timer::Probe(target));
        }
        self.targets.mark_changed(target);
    }
}
