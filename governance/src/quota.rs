//! Rates. Owns the generic cell rate algorithm, for sources (quota) and for targets (hard rate).
//!
//! The state of a rate is one number, the theoretical arrival time `arrival`. Each dispatch moves it by the period
//! `T = ceil(1 s / rate)`; a dispatch conforms when `arrival` lies at most `(burst − 1) · T` ahead of `now`.
//!
//! Example: 10 per second, burst 1, so T = 100 ms and nothing may lie ahead. At 0 ms one goes, `arrival` = 100 ms.
//! At 60 ms `arrival` is 40 ms ahead: wait until 100 ms. After a long pause `arrival` lies in the past and counts
//! as `now`.
//!
//! The rule it keeps: any window of one second, wherever it begins, sees at most `rate + burst`. In a window of
//! length W the arrival time moves by at most W + (burst − 1) · T + T, so at most W / T + burst dispatches fit; and
//! since T is rounded up, one second over T is at most the rate.

use std::time::Duration;

use crate::policy::Rate;
use crate::time::Timestamp;

/// The state of one rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gcra {
    rate: Rate,
    period: u64,
    arrival: Timestamp,
}

impl Gcra {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, period: period(rate), arrival: Timestamp::ZERO }
    }

    /// A rate whose former use is unknown, hence counted as used up. Whatever a former home admitted by `now`, its arrival time was
    /// not later than this, so no second sees too many; the price is one burst's time without a dispatch.
    pub(crate) fn used_up(now: Timestamp, rate: Rate) -> Self {
        let mut unknown = Self::new(rate);
        unknown.arrival = Timestamp(now.0.saturating_add(unknown.tolerance() + unknown.period));
        unknown
    }

    pub(crate) const fn rate(&self) -> Rate {
        self.rate
    }

    /// Another rate applies from now on. What was used stays used, but an arrival time further ahead than the new burst
    /// and one period would punish a source for its former rate.
    pub(crate) fn set_rate(&mut self, now: Timestamp, rate: Rate) {
        if rate == self.rate {
            return;
        }
        self.rate = rate;
        self.period = period(rate);
        self.arrival = self.arrival.min(Timestamp(now.0.saturating_add(self.tolerance() + self.period)));
    }

    /// How many of `wanted` conform now; takes nothing.
    pub(crate) fn check(&self, now: Timestamp, wanted: u32) -> u32 {
        let arrival = self.arrival.max(now).0;
        let limit = now.0.saturating_add(self.tolerance());
        if arrival > limit {
            return 0;
        }
        let conforming = (limit - arrival) / self.period + 1;
        u32::try_from(conforming).unwrap_or(u32::MAX).min(wanted)
    }

    /// Takes so many; the caller has checked.
    pub(crate) fn secure(&mut self, now: Timestamp, count: u32) {
        debug_assert!(self.check(now, count) == count, "a rate was secured beyond what it gives");
        self.charge(now, count);
    }

    /// Takes so many without asking, for what a former home admitted.
    pub(crate) fn charge(&mut self, at: Timestamp, count: u32) {
        let used = self.period.saturating_mul(u64::from(count));
        self.arrival = Timestamp(self.arrival.max(at).0.saturating_add(used));
    }

    /// When the next one conforms.
    pub(crate) fn next(&self) -> Timestamp {
        Timestamp(self.arrival.0.saturating_sub(self.tolerance()))
    }

    /// How long `count` more take at the rate, from the moment the next one conforms.
    pub(crate) fn duration_of(&self, count: u32) -> Duration {
        Duration::from_nanos(self.period.saturating_mul(u64::from(count)))
    }

    /// The state, for a snapshot.
    pub(crate) const fn arrival(&self) -> Timestamp {
        self.arrival
    }

    /// Takes over the state of a former home; never goes back.
    pub(crate) fn restore(&mut self, arrival: Timestamp) {
        self.arrival = self.arrival.max(arrival);
    }

    fn tolerance(&self) -> u64 {
        self.period.saturating_mul(u64::from(self.rate.burst.max(1) - 1))
    }

    pub(crate) fn check_invariants(&self, now: Timestamp) {
        let furthest = now.0.saturating_add(self.tolerance()).saturating_add(self.period);
        assert!(self.arrival.0 <= furthest, "a rate was used beyond its burst");
    }
}

/// Nanoseconds from one dispatch to the next, rounded up so that the rate is never exceeded.
pub(crate) fn period(rate: Rate) -> u64 {
    NANOS_PER_S.div_ceil(u64::from(rate.per_s.max(1)))
}

const NANOS_PER_S: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn ten_per_second_with_burst_one_is_one_each_hundred_milliseconds() {
        let mut crm = Gcra::new(Rate { per_s: 10, burst: 1 });
        let start = Timestamp::from_millis(1_000);
        assert_eq!(crm.check(start, 5), 1);
        crm.secure(start, 1);
        assert_eq!(crm.check(Timestamp(start.0 + 99 * MS), 1), 0);
        assert_eq!(crm.next(), Timestamp(start.0 + 100 * MS));
        assert_eq!(crm.check(Timestamp(start.0 + 100 * MS), 1), 1);
    }

    #[test]
    fn a_batch_takes_as_many_as_conform() {
        let mut bot = Gcra::new(Rate { per_s: 100, burst: 10 });
        let start = Timestamp::from_millis(5_000);
        assert_eq!(bot.check(start, 500), 10);
        bot.secure(start, 10);
        assert_eq!(bot.check(start, 500), 0);
        assert_eq!(bot.check(Timestamp(start.0 + 30 * MS), 500), 3);
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing_extra() {
        let mut bot = Gcra::new(Rate { per_s: 100, burst: 1 });
        bot.secure(Timestamp::from_millis(2_000), 1);
        assert_eq!(bot.check(Timestamp::from_millis(1_000), 10), 0);
    }

    #[test]
    fn a_rate_that_does_not_divide_a_second_is_never_exceeded() {
        let mut odd = Gcra::new(Rate { per_s: 7, burst: 1 });
        let mut now = Timestamp::from_millis(1_000);
        let end = Timestamp(now.0 + 1_000 * MS);
        let mut sent = 0;
        while now < end {
            odd.secure(now, 1);
            sent += 1;
            now = odd.next();
        }
        assert_eq!(sent, 7);
    }

    #[test]
    fn what_a_former_home_used_stays_used() {
        let mut bot = Gcra::new(Rate { per_s: 10, burst: 1 });
        bot.restore(Timestamp::from_millis(1_500));
        assert_eq!(bot.check(Timestamp::from_millis(1_499), 1), 0);
        assert_eq!(bot.check(Timestamp::from_millis(1_500), 1), 1);
    }
}
