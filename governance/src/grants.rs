//! What a target has only one of, and whoever wants it asks for: the probe of its breaker, and its hard rate. Owns the asking at
//! other homes and the giving at the target's.
//!
//! The rule it keeps: what was granted is used in time or not at all, and never more than once. A grant that is lost on the way
//! is used by nobody; its home counts it as used.

use std::time::Duration;

use crate::effect::Effect;
use crate::governor::Governor;
use crate::knowledge::{Ask, GRANT_LIFE, GRANT_WAIT, Grant};
use crate::lanes::{HeldRun, QueueIx, Standing};
use crate::mirror::{Answer, Mirror};
use crate::names::AgentIx;
use crate::policy::Rate;
use crate::quota::Gcra;
use crate::reports::Reporter;
use crate::time::{Timestamp, nanos};
use crate::timers::Timer;
use crate::words::{BreakerState, Reason};

/// What a core keeps of a target whose home is elsewhere.
#[derive(Debug)]
pub(crate) struct Away {
    pub mirror: Mirror,
    pub rate: RateGrant,
    pub reporter: Reporter,
}

impl Away {
    pub(crate) const fn new() -> Self {
        Self { mirror: Mirror::new(), rate: RateGrant::new(), reporter: Reporter::new() }
    }
}

/// What the home of a target granted of its hard rate.
#[derive(Debug)]
pub(crate) struct RateGrant {
    asked: Option<Timestamp>,
    left: u32,
    /// The last moment at which `left` may be used.
    until: Timestamp,
    /// Asking earlier makes no sense.
    not_before: Timestamp,
    /// In the list of those that are asked for at the end of the turn.
    wanted: bool,
}

impl RateGrant {
    const fn new() -> Self {
        Self { asked: None, left: 0, until: Timestamp::ZERO, not_before: Timestamp::ZERO, wanted: false }
    }

    /// How many may go now; else the moment before which asking makes no sense, where there is one.
    pub(crate) fn check(&self, now: Timestamp) -> Result<u32, Option<Timestamp>> {
        if self.left > 0 && now <= self.until {
            return Ok(self.left);
        }
        Err((self.not_before > now).then_some(self.not_before))
    }

    pub(crate) fn secure(&mut self, count: u32) {
        assert!(count <= self.left, "no more goes than was granted");
        self.left -= count;
    }

    const fn ask(&mut self, now: Timestamp) {
        self.asked = Some(now);
    }

    /// The answer to what was asked at `asked`. One that comes late is worth nothing.
    fn on_answer(&mut self, now: Timestamp, asked: Timestamp, grant: Option<Grant>) {
        if self.asked != Some(asked) {
            return;
        }
        self.asked = None;
        let Some(Grant { count, wait }) = grant else { return self.not_before = now.after(GRANT_WAIT) };
        (self.left, self.until) = (count, asked.after(GRANT_LIFE));
        self.not_before = now.after(wait);
    }

    /// Gives up an ask that nobody answered. Whether there was one.
    fn on_time(&mut self, now: Timestamp) -> bool {
        let overdue = self.asked.is_some_and(|at| at.after(GRANT_WAIT) <= now);
        if overdue {
            self.asked = None;
        }
        overdue
    }
}

/// How the hard rate of a target is shared between its own home, which is always there first, and the others.
#[derive(Debug)]
pub(crate) struct Turns {
    /// Another home was refused and is back before this.
    others_until: Timestamp,
    /// The last that went was of this home.
    own_last: bool,
}

impl Turns {
    pub(crate) const fn new() -> Self {
        Self { others_until: Timestamp::ZERO, own_last: false }
    }

    /// How many of this home's own dispatches may go now, or when there are some.
    pub(crate) fn check(&self, now: Timestamp, rate: &Gcra, wanted: u32) -> Result<u32, Timestamp> {
        match rate.check(now, wanted) {
            0 => Err(rate.next()),
            _ if self.own_last && now < self.others_until => Err(self.others_until),
            conforming => Ok(conforming),
        }
    }

    pub(crate) const fn own_went(&mut self) {
        self.own_last = true;
    }

    /// Gives another home what there is.
    fn grant(&mut self, now: Timestamp, rate: &mut Gcra, wanted: u32) -> Grant {
        let count = rate.check(now, wanted);
        rate.secure(now, count);
        if count > 0 {
            self.own_last = false;
        }
        if count < wanted {
            self.others_until = rate.next().max(now).after(COMES_BACK_WITHIN);
        }
        Grant { count, wait: rate.next().since(now) }
    }
}

/// A home that was told when to ask again is back this long after that moment, or its turn is over: twice the way between two homes
/// of a healthy mesh, with room to spare.
const COMES_BACK_WITHIN: Duration = Duration::from_millis(20);

/// So much is asked for at once: what a rate gives while a grant lives, and its burst. More would go unused.
fn ask_max(rate: Rate) -> u32 {
    let given = u64::from(rate.per_s) * nanos(GRANT_LIFE) / 1_000_000_000;
    u32::try_from(given).unwrap_or(u32::MAX).saturating_add(rate.burst.max(1))
}

impl Governor {
    /// The head of a queue asks for the probe of its target, and waits for the answer.
    pub(crate) fn ask_probe(
        &mut self,
        now: Timestamp,
        queue: QueueIx,
        head: &HeldRun,
        target: AgentIx,
        effects: &mut Vec<Effect>,
    ) {
        let Some(away) = &mut self.targets.at_mut(target).away else { return };
        away.mirror.ask(now, queue);
        effects.push(Effect::AskGrant { target, ask: Ask::Probe });
        let until = now.after(GRANT_WAIT);
        self.timers.arm(until, Timer::Grant(target));
        let waiting = crate::facts::Waiting {
            reason: Reason::AwaitsRecovery,
            target: Some(target),
            until: Some(until),
        };
        self.block(queue, head, waiting);
    }

    /// Something waits for the hard rate of a target of another home: it is asked for when the turn has shown how much.
    pub(crate) fn want_rate(&mut self, target: AgentIx) {
        if let Some(away) = &mut self.targets.at_mut(target).away
            && !std::mem::replace(&mut away.rate.wanted, true)
        {
            self.rates_wanted.push(target);
        }
    }

    /// Asks for the rates that the turn found wanting.
    pub(crate) fn ask_rates(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        while let Some(target) = self.rates_wanted.pop() {
            let waits = self.waits_for_rate(target);
            let state = self.targets.at_mut(target);
            let (Some(away), Some(limit)) = (&mut state.away, &state.max_rate) else { continue };
            away.rate.wanted = false;
            let count = waits.min(ask_max(limit.rate()));
            if count > 0 && away.rate.asked.is_none() {
                away.rate.ask(now);
                effects.push(Effect::AskGrant { target, ask: Ask::Rate { count } });
                self.timers.arm(now.after(GRANT_WAIT), Timer::Grant(target));
            }
        }
    }

    fn waits_for_rate(&self, target: AgentIx) -> u32 {
        let queues = self.targets.at(target).waiters.iter().map(|queue| self.lanes.queue(*queue));
        let waits = |reason, t| reason == Reason::TargetRate && t == Some(target);
        queues
            .filter(|queue| queue.standing == Standing::Blocked)
            .filter(|queue| queue.waiting.is_some_and(|w| waits(w.reason, w.target)))
            .fold(0_u32, |sum, queue| sum.saturating_add(queue.queued))
    }

    /// Another home asks for what this target has.
    pub(crate) fn on_grant_asked(
        &mut self,
        now: Timestamp,
        target: AgentIx,
        ask: Ask,
        effects: &mut Vec<Effect>,
    ) {
        let grant = match ask {
            // It asked the wrong home: the right one is known to it soon.
            Ask::Probe | Ask::Rate { .. } if !self.is_home(target) => Grant { count: 0, wait: GRANT_WAIT },
            Ask::Probe => self.grant_probe(now, target, effects),
            Ask::Rate { count } => self.grant_rate(now, target, count),
        };
        effects.push(Effect::Granted(grant));
    }

    fn grant_probe(&mut self, now: Timestamp, target: AgentIx, effects: &mut Vec<Effect>) -> Grant {
        let breaker = &self.targets.at(target).breaker;
        if breaker.probe_is_due(now) {
            self.begin_probe(now, target, false, effects);
            return Grant { count: 1, wait: Duration::ZERO };
        }
        let wait = match (breaker.state(), breaker.next_due()) {
            (BreakerState::Passing, _) => Duration::ZERO,
            (BreakerState::Tripped | BreakerState::Probing, Some(due)) => due.since(now),
            (BreakerState::Tripped | BreakerState::Probing, None) => self.policy.breaker.probe_interval,
        };
        Grant { count: 0, wait }
    }

    fn grant_rate(&mut self, now: Timestamp, target: AgentIx, wanted: u32) -> Grant {
        let state = self.targets.at_mut(target);
        let Some(rate) = &mut state.max_rate else {
            // The asking home knows a limit that this one's policy does not have.
            return Grant { count: wanted, wait: Duration::ZERO };
        };
        let grant = state.turns.grant(now, rate, wanted);
        // What waits here may have its turn now.
        self.targets.mark_changed(target);
        grant
    }

    /// The home of a target answered, or nobody did.
    pub(crate) fn on_grant_answered(
        &mut self,
        now: Timestamp,
        target: AgentIx,
        ask: Ask,
        asked: Timestamp,
        grant: Option<Grant>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(away) = &mut self.targets.at_mut(target).away else { return };
        match ask {
            Ask::Rate { .. } => away.rate.on_answer(now, asked, grant),
            Ask::Probe => match away.mirror.on_answer(now, &self.policy.breaker, asked, grant) {
                Answer::Granted(until) => self.timers.arm(until, Timer::Grant(target)),
                Answer::Refused(again) => self.timers.arm(again, Timer::Probe(target)),
                Answer::GiveBack => effects.push(Effect::ProbeEnded { target, succeeded: None }),
            },
        }
        self.targets.mark_changed(target);
    }

    /// A grant went unused, or an ask unanswered.
    pub(crate) fn on_grant_timer(&mut self, now: Timestamp, target: AgentIx, effects: &mut Vec<Effect>) {
        let Some(away) = &mut self.targets.at_mut(target).away else { return };
        _ = away.rate.on_time(now);
        if away.mirror.on_time(now) {
            effects.push(Effect::ProbeEnded { target, succeeded: None });
        }
        if let Some(at) = away.mirror.ask_at() {
            self.timers.arm(at, Timer::Probe(target));
        }
        self.targets.mark_changed(target);
    }

    /// The home of a target says how its breaker stands.
    pub(crate) fn on_breaker_known(
        &mut self,
        target: AgentIx,
        state: BreakerState,
        reason: Reason,
        since: Timestamp,
    ) {
        let Some(away) = &mut self.targets.at_mut(target).away else { return };
        if !away.mirror.on_known(&self.policy.breaker, state, reason, since) {
            return;
        }
        if let Some(at) = away.mirror.ask_at() {
            self.timers.arm(at, Timer::Probe(target));
        }
        if state != BreakerState::Passing {
            self.wake_on_trip(target);
        }
        self.targets.mark_changed(target);
    }

    /// The probe that another home was granted ended.
    pub(crate) fn on_probe_ended(
        &mut self,
        now: Timestamp,
        target: AgentIx,
        succeeded: Option<bool>,
        effects: &mut Vec<Effect>,
    ) {
        if !self.is_home(target) {
            return;
        }
        match succeeded {
            Some(succeeded) => self.end_probe(now, target, succeeded, effects),
            None => self.withdraw_probe(now, target, effects),
        }
    }
}
