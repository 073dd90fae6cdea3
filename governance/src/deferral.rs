//! Deferral of P3 while P0 suffers. Owns the measure of P0's delay, the hysteresis and the trickle.
//!
//! P0's delay is what the mesh itself adds, from acceptance to admission, the waits for a quota or a target apart; the measure
//! is the greatest of the last second, here or as another home tells. Above half of P0's budget, or when the in-flight window is full while something more
//! urgent than P3 waits, P3 is deferred. It goes on when the delay has stayed below a quarter for a while: two bounds and a
//! pause, so that it does not flap.
//!
//! The rule it keeps: P3 is never stopped. It gets a hundredth of what is admitted meanwhile, and some each second whatever
//! is admitted.

use std::time::Duration;

use crate::policy::{DeferralPolicy, Rate, WHOLE_BP};
use crate::quota::Gcra;
use crate::time::{Timestamp, nanos};

/// The state of the deferral.
#[derive(Debug)]
pub(crate) struct Deferral {
    on: bool,
    /// It began because of what this home saw itself.
    own: bool,
    /// When P0 last suffered: delay above the lower bound, or window full.
    disturbed: Timestamp,
    delays: Delays,
    /// What other homes told of theirs; kept apart, so that it never goes back to them.
    told: Delays,
    /// When the others were last told.
    telling: Timestamp,
    /// P3's share of what was admitted, in basis points of one dispatch.
    credit: u64,
    floor: Gcra,
}

/// The longest delay of the last second.
#[derive(Debug, Clone, Copy)]
struct Delays([HalfSecond; 2]);

#[derive(Debug, Clone, Copy)]
struct HalfSecond {
    number: u64,
    longest: Duration,
}

impl Delays {
    const NONE: Self = Self([HalfSecond { number: 0, longest: Duration::ZERO }; 2]);

    fn note(&mut self, now: Timestamp, delay: Duration) {
        let number = now.0 / HALF_SECOND;
        let place = &mut self.0[(number % 2) as usize];
        if place.number == number {
            place.longest = place.longest.max(delay);
        } else {
            *place = HalfSecond { number, longest: delay };
        }
    }

    fn longest(&self, now: Timestamp) -> Duration {
        let number = now.0 / HALF_SECOND;
        let recent = self.0.iter().filter(|half| half.number + 1 >= number);
        recent.map(|half| half.longest).max().unwrap_or(Duration::ZERO)
    }
}

impl Deferral {
    pub(crate) fn new(rules: &DeferralPolicy) -> Self {
        Self {
            on: false,
            own: false,
            disturbed: Timestamp::ZERO,
            delays: Delays::NONE,
            told: Delays::NONE,
            telling: Timestamp::ZERO,
            credit: 0,
            floor: Gcra::new(floor(rules)),
        }
    }

    pub(crate) fn set_rules(&mut self, now: Timestamp, rules: &DeferralPolicy) {
        self.floor.set_rate(now, floor(rules));
    }

    /// A P0 dispatch was admitted after this delay.
    pub(crate) fn on_p0(&mut self, now: Timestamp, delay: Duration) {
        self.delays.note(now, delay);
    }

    /// Another home says how long its P0 waits.
    pub(crate) fn on_told(&mut self, now: Timestamp, delay: Duration) {
        self.told.note(now, delay);
    }

    /// The in-flight window is full and something more urgent than P3 waits. Whether the deferral begins now.
    pub(crate) fn on_window_full(&mut self, now: Timestamp) -> bool {
        self.disturbed = now;
        let begins = !std::mem::replace(&mut self.on, true);
        self.own |= begins;
        begins
    }

    /// P0's greatest delay in the last second, anywhere.
    pub(crate) fn p0_delay(&self, now: Timestamp) -> Duration {
        self.delays.longest(now).max(self.told.longest(now))
    }

    /// What the other homes are to know of this one's P0, now and then. A full window counts as a delay of the whole budget: there
    /// something urgent waits that was not admitted, so that nothing was measured.
    pub(crate) fn suffers(
        &mut self,
        now: Timestamp,
        rules: &DeferralPolicy,
        budget: Duration,
        window_full: bool,
    ) -> Option<Duration> {
        let own = self.delays.longest(now);
        let above = is_above(own, budget, rules.end_bp);
        if !above && !window_full || now.since(self.telling) < TELL_PAUSE {
            return None;
        }
        self.telling = now;
        Some(if window_full { own.max(budget) } else { own })
    }

    /// Whether the present deferral, or the one that just ended, began because of what this home saw itself.
    pub(crate) const fn is_own(&self) -> bool {
        self.own
    }

    /// Whether the deferral begins or ends now.
    pub(crate) fn judge(&mut self, now: Timestamp, rules: &DeferralPolicy, budget: Duration) -> Option<bool> {
        let delay = self.p0_delay(now);
        if is_above(delay, budget, rules.end_bp) {
            self.disturbed = now;
        }
        let wanted = if self.on {
            now.since(self.disturbed) < rules.hold
        } else {
            self.own = is_above(self.delays.longest(now), budget, rules.begin_bp);
            is_above(delay, budget, rules.begin_bp)
        };
        (std::mem::replace(&mut self.on, wanted) != wanted).then_some(wanted)
    }

    pub(crate) const fn is_on(&self) -> bool {
        self.on
    }

    /// How many P3 dispatches may go now.
    pub(crate) fn allowance(&self, now: Timestamp) -> u32 {
        let share = u32::try_from(self.credit / WHOLE_BP).unwrap_or(u32::MAX);
        if share > 0 { share } else { self.floor.check(now, 1) }
    }

    /// So many were admitted, of P3 or of something else.
    pub(crate) fn on_admitted(&mut self, now: Timestamp, rules: &DeferralPolicy, p3: bool, count: u32) {
        if !self.on {
            self.credit = 0;
        } else if !p3 {
            let earned = u64::from(count) * u64::from(rules.trickle_bp);
            self.credit = (self.credit + earned).min(CREDIT_MAX);
        } else {
            let owed = u64::from(count) * WHOLE_BP;
            if self.credit >= owed {
                self.credit -= owed;
            } else {
                self.floor.charge(now, count);
            }
        }
    }

    /// When P3 gets something again, or the deferral may end.
    pub(crate) fn next(&self, now: Timestamp) -> Timestamp {
        Timestamp(self.floor.next().0.max(now.0 + RECHECK))
    }
}

fn is_above(delay: Duration, budget: Duration, bound_bp: u32) -> bool {
    u128::from(nanos(delay)) * u128::from(WHOLE_BP) > u128::from(nanos(budget)) * u128::from(bound_bp)
}

const fn floor(rules: &DeferralPolicy) -> Rate {
    Rate { per_s: rules.trickle_per_s, burst: 1 }
}

const HALF_SECOND: u64 = 500_000_000;

/// The others are told at most so often: well within the second for which a delay is remembered, so that one may be lost.
const TELL_PAUSE: Duration = Duration::from_millis(250);

/// A long deferral under full load must not save up a burst of P3: at most so much of a share is kept.
const CREDIT_MAX: u64 = 100 * WHOLE_BP;

/// Deferred P3 is looked at no more often than this.
const RECHECK: u64 = 10_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Duration = Duration::from_millis(200);

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + ms)
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_delay_above_half_the_budget_begins_and_a_calm_second_ends_it() {
        let rules = DeferralPolicy::default();
        let mut deferral = Deferral::new(&rules);
        deferral.on_p0(at(0), ms(100));
        assert_eq!(deferral.judge(at(0), &rules, BUDGET), None);
        deferral.on_p0(at(1), ms(101));
        assert_eq!(deferral.judge(at(1), &rules, BUDGET), Some(true));
        deferral.on_p0(at(900), ms(10));
        assert_eq!(deferral.judge(at(999), &rules, BUDGET), None, "the long delay is still in the measure");
        assert_eq!(deferral.judge(at(1_998), &rules, BUDGET), None, "calm, but not for long enough");
        assert_eq!(deferral.judge(at(1_999), &rules, BUDGET), Some(false));
    }

    #[test]
    fn between_the_two_bounds_it_stays_as_it_is() {
        let rules = DeferralPolicy::default();
        let mut deferral = Deferral::new(&rules);
        deferral.on_p0(at(0), ms(150));
        assert_eq!(deferral.judge(at(0), &rules, BUDGET), Some(true));
        for step in 1..20 {
            deferral.on_p0(at(step * 400), ms(80));
            assert_eq!(deferral.judge(at(step * 400), &rules, BUDGET), None);
        }
        assert!(deferral.is_on());
    }

    #[test]
    fn p3_gets_a_hundredth_and_never_nothing() {
        let rules = DeferralPolicy::default();
        let mut deferral = Deferral::new(&rules);
        assert!(deferral.on_window_full(at(0)));
        assert_eq!(deferral.allowance(at(0)), 1, "the floor");
        deferral.on_admitted(at(0), &rules, true, 1);
        assert_eq!(deferral.allowance(at(99)), 0);
        assert_eq!(deferral.allowance(at(100)), 1);
        deferral.on_admitted(at(50), &rules, false, 300);
        assert_eq!(deferral.allowance(at(50)), 3, "one of a hundred");
    }
}
