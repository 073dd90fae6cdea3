//! Circuit breakers. Owns the window of runs of each target and the three states, at the target's home; sends nothing anywhere.
//!
//! `Passing` until one of three conditions holds in the window: the error rate is above its bound, the share of runs over
//! 120 % of the SLA is above its bound (which says that the 95th percentile is), or so many failures came in a row. Then
//! `Tripped`; after the probe interval the next dispatch goes as a probe (`Probing`), or a ping where none comes. A probe that
//! succeeds passes, any other trips again.
//!
//! The rule it keeps: exact counts in one-second buckets instead of moving averages, so that the figures shown beside a
//! trip are the ones that caused it. Runs that are still going past their bound count through a gauge from the heartbeats,
//! and once only: they leave the gauge when they end and enter the window.

use crate::facts::BreakerFacts;
use crate::policy::{BreakerPolicy, WHOLE_BP};
use crate::reports::Difference;
use crate::time::Timestamp;
use crate::words::{BreakerState, Reason};

/// Runs of a target that ended alike.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ran {
    pub count: u32,
    pub failed: bool,
    pub over: bool,
}

/// The breaker of one target.
#[derive(Debug)]
pub(crate) struct Breaker {
    state: State,
    reason: Reason,
    since: Timestamp,
    window: Window,
    in_row: u32,
    /// Runs still going past their bound, from the heartbeats.
    running_over: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Passing,
    /// No probe is due where an operator tripped it: an operator resets it too.
    Tripped {
        probe_at: Option<Timestamp>,
    },
    /// A probe by dispatch, or by ping, that fails when nothing is heard until then.
    Probing {
        ping: bool,
        until: Timestamp,
    },
}

/// A change of state with the figures at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    pub from: BreakerState,
    pub to: BreakerState,
    pub reason: Reason,
    pub samples: u32,
    pub errors: u32,
    pub over: u32,
}

impl Breaker {
    pub(crate) const fn new() -> Self {
        Self {
            state: State::Passing,
            reason: Reason::Ok,
            since: Timestamp::ZERO,
            window: Window::new(),
            in_row: 0,
            running_over: 0,
        }
    }

    /// Runs ended; may trip a passing breaker. Probes have a way of their own, `on_probe`.
    pub(crate) fn on_ran(&mut self, now: Timestamp, rules: &BreakerPolicy, ran: Ran) -> Option<Change> {
        let errors = if ran.failed { ran.count } else { 0 };
        let over = if ran.over { ran.count } else { 0 };
        self.window.record(now, rules, Bucket { samples: ran.count, errors, over });
        self.in_row = if ran.failed { self.in_row.saturating_add(ran.count) } else { 0 };
        self.judge(now, rules)
    }

    /// Another home tells of runs that ended there; may trip a passing breaker. Where one of them succeeded, what is in a row is
    /// what that home saw since; where all failed, they stand behind those that failed here.
    pub(crate) fn on_reported(
        &mut self,
        now: Timestamp,
        rules: &BreakerPolicy,
        difference: Difference,
    ) -> Option<Change> {
        let Difference { finished, errors, over, streak } = difference;
        if finished == 0 {
            return None;
        }
        // A report is a snapshot of counters that are raised together; bad ones must not break the sums.
        let added = Bucket { samples: finished, errors: errors.min(finished), over: over.min(finished) };
        self.window.record(now, rules, added);
        self.in_row = if errors < finished { streak } else { self.in_row.saturating_add(errors) };
        self.judge(now, rules)
    }

    /// The heartbeats tell how many runs are past their bound now; may trip a passing breaker.
    pub(crate) fn on_running_over(
        &mut self,
        now: Timestamp,
        rules: &BreakerPolicy,
        over: u32,
    ) -> Option<Change> {
        self.running_over = over;
        self.window.advance(now, rules);
        self.judge(now, rules)
    }

    /// Instances are gone, and what they ran is no longer known to run: so many runs past their bound are left.
    pub(crate) const fn on_instances_left(&mut self, over: u32) {
        self.running_over = over;
    }

    fn judge(&mut self, now: Timestamp, rules: &BreakerPolicy) -> Option<Change> {
        if self.state != State::Passing {
            return None;
        }
        let reason = self.breach(rules)?;
        let probe_at = Some(now.after(rules.probe_interval));
        Some(self.change(now, State::Tripped { probe_at }, reason))
    }

    fn breach(&self, rules: &BreakerPolicy) -> Option<Reason> {
        if self.in_row >= rules.failures_in_row {
            return Some(Reason::FailuresInRow);
        }
        let (samples, errors, over) = self.figures();
        if samples < rules.samples_min {
            return None;
        }
        let above =
            |part: u32, bound_bp: u32| u64::from(part) * WHOLE_BP > u64::from(samples) * u64::from(bound_bp);
        if above(errors, rules.error_rate_bp) {
            return Some(Reason::ErrorRate);
        }
        above(over, rules.over_share_bp).then_some(Reason::SlaExceeded)
    }

    /// Whether dispatches may go, as far as the breaker is concerned.
    pub(crate) fn passes(&self) -> bool {
        self.state == State::Passing
    }

    /// Whether the next dispatch may go as a probe.
    pub(crate) fn probe_is_due(&self, now: Timestamp) -> bool {
        matches!(self.state, State::Tripped { probe_at: Some(at) } if at <= now)
    }

    /// The moment of the next probe, or the one at which the present probe has failed.
    pub(crate) const fn next_due(&self) -> Option<Timestamp> {
        match self.state {
            State::Passing => None,
            State::Tripped { probe_at } => probe_at,
            State::Probing { until, .. } => Some(until),
        }
    }

    /// A probe goes out.
    pub(crate) fn begin_probe(&mut self, now: Timestamp, rules: &BreakerPolicy, ping: bool) -> Change {
        assert!(self.probe_is_due(now), "a probe is granted only when it is due");
        let until = now.after(rules.probe_interval);
        self.change(now, State::Probing { ping, until }, Reason::ProbeDue)
    }

    /// The dispatch that served as the probe ended.
    pub(crate) fn on_probe(
        &mut self,
        now: Timestamp,
        rules: &BreakerPolicy,
        succeeded: bool,
    ) -> Option<Change> {
        matches!(self.state, State::Probing { ping: false, .. })
            .then(|| self.end_probe(now, rules, succeeded))
    }

    /// The dispatch that served as the probe was withdrawn: the next one may serve at once.
    pub(crate) fn on_probe_withdrawn(&mut self, now: Timestamp) {
        if matches!(self.state, State::Probing { ping: false, .. }) {
            self.state = State::Tripped { probe_at: Some(now) };
        }
    }

    /// A heartbeat came, which answers a ping unless runs are still past their bound.
    pub(crate) fn on_sign_of_life(&mut self, now: Timestamp, rules: &BreakerPolicy) -> Option<Change> {
        let answered = matches!(self.state, State::Probing { ping: true, .. }) && self.running_over == 0;
        answered.then(|| self.end_probe(now, rules, true))
    }

    /// A probe that nothing was heard of has failed.
    pub(crate) fn on_probe_overdue(&mut self, now: Timestamp, rules: &BreakerPolicy) -> Option<Change> {
        let overdue = matches!(self.state, State::Probing { until, .. } if until <= now);
        overdue.then(|| self.end_probe(now, rules, false))
    }

    fn end_probe(&mut self, now: Timestamp, rules: &BreakerPolicy, succeeded: bool) -> Change {
        if succeeded {
            self.pass(now, Reason::ProbeSucceeded)
        } else {
            let probe_at = Some(now.after(rules.probe_interval));
            self.change(now, State::Tripped { probe_at }, Reason::ProbeFailed)
        }
    }

    /// An operator decides. None where the state is that already.
    pub(crate) fn on_operator(&mut self, now: Timestamp, trip: bool) -> Option<Change> {
        let tripped = State::Tripped { probe_at: None };
        if trip {
            return (self.state != tripped).then(|| self.change(now, tripped, Reason::Operator));
        }
        (self.state != State::Passing).then(|| self.pass(now, Reason::Operator))
    }

    /// Takes over the state that a former home left; a probe under way is repeated, and what an operator tripped stays so.
    pub(crate) fn restore(
        &mut self,
        now: Timestamp,
        rules: &BreakerPolicy,
        state: BreakerState,
        reason: Reason,
    ) {
        self.since = now;
        self.reason = reason;
        self.state = match state {
            BreakerState::Passing => State::Passing,
            BreakerState::Tripped | BreakerState::Probing => {
                let probed = reason != Reason::Operator;
                State::Tripped { probe_at: probed.then(|| now.after(rules.probe_interval)) }
            }
        };
    }

    /// The window begins anew, or what tripped it would trip it again.
    fn pass(&mut self, now: Timestamp, reason: Reason) -> Change {
        let change = self.change(now, State::Passing, reason);
        self.window = Window::new();
        self.in_row = 0;
        change
    }

    fn change(&mut self, now: Timestamp, to: State, reason: Reason) -> Change {
        let from = self.state();
        self.state = to;
        self.reason = reason;
        self.since = now;
        let (samples, errors, over) = self.figures();
        Change { from, to: self.state(), reason, samples, errors, over }
    }

    fn figures(&self) -> (u32, u32, u32) {
        let Bucket { samples, errors, over } = self.window.total;
        (samples.saturating_add(self.running_over), errors, over.saturating_add(self.running_over))
    }

    pub(crate) const fn state(&self) -> BreakerState {
        match self.state {
            State::Passing => BreakerState::Passing,
            State::Tripped { .. } => BreakerState::Tripped,
            State::Probing { .. } => BreakerState::Probing,
        }
    }

    pub(crate) fn facts(&self) -> BreakerFacts {
        let (samples, errors, over) = self.figures();
        let probe_at = match self.state {
            State::Tripped { probe_at } => probe_at,
            State::Passing | State::Probing { .. } => None,
        };
        BreakerFacts {
            state: self.state(),
            reason: self.reason,
            since: self.since,
            probe_at,
            samples,
            errors,
            over,
            in_row: self.in_row,
        }
    }

    pub(crate) fn check_invariants(&self) {
        let sum = self.window.buckets.iter().fold(Bucket::ZERO, |a, b| a.plus(*b));
        assert_eq!(sum, self.window.total, "the totals are the sum of the buckets");
        assert!(sum.errors <= sum.samples && sum.over <= sum.samples, "errors and slow runs are samples too");
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bucket {
    samples: u32,
    errors: u32,
    over: u32,
}

impl Bucket {
    const ZERO: Self = Self { samples: 0, errors: 0, over: 0 };

    const fn plus(self, other: Self) -> Self {
        Self {
            samples: self.samples.saturating_add(other.samples),
            errors: self.errors.saturating_add(other.errors),
            over: self.over.saturating_add(other.over),
        }
    }

    const fn minus(self, other: Self) -> Self {
        Self {
            samples: self.samples.saturating_sub(other.samples),
            errors: self.errors.saturating_sub(other.errors),
            over: self.over.saturating_sub(other.over),
        }
    }
}

/// Runs by second. A bucket is emptied when its second leaves the window.
#[derive(Debug)]
struct Window {
    buckets: Vec<Bucket>,
    total: Bucket,
    second: u64,
}

impl Window {
    const fn new() -> Self {
        Self { buckets: Vec::new(), total: Bucket::ZERO, second: 0 }
    }

    fn advance(&mut self, now: Timestamp, rules: &BreakerPolicy) {
        let second = now.0 / NANOS_PER_S;
        let length = rules.window.as_secs().max(1) as usize;
        if self.buckets.len() != length {
            // The policy changed the window, or this is the first run: begin anew.
            *self = Self { buckets: vec![Bucket::ZERO; length], total: Bucket::ZERO, second };
        }
        let passed = second.saturating_sub(self.second).min(length as u64);
        for step in 1..=passed {
            let place = ((self.second + step) % length as u64) as usize;
            self.total = self.total.minus(std::mem::replace(&mut self.buckets[place], Bucket::ZERO));
        }
        if passed == length as u64 {
            self.buckets.fill(Bucket::ZERO);
            self.total = Bucket::ZERO;
        }
        self.second = self.second.max(second);
    }

    fn record(&mut self, now: Timestamp, rules: &BreakerPolicy, added: Bucket) {
        self.advance(now, rules);
        let place = (self.second % self.buckets.len() as u64) as usize;
        self.buckets[place] = self.buckets[place].plus(added);
        self.total = self.total.plus(added);
    }
}

const NANOS_PER_S: u64 = 1_000_000_000;

#[cfg(test)]
mod tests;
