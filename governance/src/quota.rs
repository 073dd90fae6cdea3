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
//! length W the arrival time moves by at most W + (burst − 1) · T + T, so at most ⌊W / T⌋ + burst dispatches fit; and
//! since T is rounded up, one second over T is at most the rate.
//!
//! A hard rate is given out by its target's home, and what was given may go a little later, by at most the life of a grant, L.
//! What goes in a window of one second was then taken in a window of 1 s + L, so at most ⌊(1 s + L) / T⌋ + burst go.
//! Where L < T this is no more than before: one second over T is at most the rate, L over T is less than one, and what is
//! rounded down is at most the rate. Else the period is stretched to T' = T · (1 + L / 1 s), rounded up, and (1 s + L) / T' is at
//! most 1 s / T, hence at most the rate. With L = 50 ms rates below 20 per second are given out whole, and others lose 5 %.

use std::time::Duration;

use crate::policy::Rate;
use crate::time::{Timestamp, nanos};

/// The state of one rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gcra {
    rate: Rate,
    /// So much later than it was taken a dispatch may go, in nanoseconds.
    lag: u64,
    period: u64,
    arrival: Timestamp,
}

impl Gcra {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, lag: 0, period: period(rate), arrival: Timestamp::ZERO }
    }

    /// A rate whose former use is unknown, hence counted as used up. Whatever a former home admitted by `now`, its arrival time was
    /// not later than this, so no second sees too many; the price is one burst's time without a dispatch. What is taken of it may go
    /// up to `lag` later.
    pub(crate) fn used_up(now: Timestamp, rate: Rate, lag: Duration) -> Self {
        let lag = nanos(lag);
        let mut unknown = Self { rate, lag, period: stretched(period(rate), lag), arrival: Timestamp::ZERO };
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
        self.period = stretched(period(rate), self.lag);
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

/// The period of a rate whose dispatches may go up to `lag` later than they were taken; see the top of this file.
fn stretched(period: u64, lag: u64) -> u64 {
    if lag < period {
        return period;
    }
    let more = u128::from(period) * u128::from(lag);
    period.saturating_add(u64::try_from(more.div_ceil(u128::from(NANOS_PER_S))).unwrap_or(u64::MAX))
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

    /// Numbers that are the same in each run.
    struct Draws(u64);

    impl Draws {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % bound
        }
    }

    /// The most that went in a second, wherever it begins.
    fn most_in_a_second(mut went: Vec<u64>) -> usize {
        went.sort_unstable();
        let (mut first, mut most) = (0, 0);
        for (last, at) in went.iter().enumerate() {
            while at - went[first] > NANOS_PER_S {
                first += 1;
            }
            most = most.max(last + 1 - first);
        }
        most
    }

    #[test]
    fn whatever_goes_later_than_it_was_taken_no_second_sees_more_than_rate_and_burst() {
        let mut draws = Draws(20_260_214);
        let mut full = 0;
        for _ in 0..300 {
            let rate = Rate { per_s: 1 + draws.below(300) as u32, burst: 1 + draws.below(30) as u32 };
            let start = Timestamp::from_millis(1_000_000);
            let mut hard = Gcra::used_up(start, rate, Duration::from_nanos(LAG));
            let (mut now, mut went) = (start, Vec::new());
            let greedy = draws.below(2) == 0;
            while now.since(start) < Duration::from_secs(4) {
                let taken = hard.check(now, 1 + draws.below(40) as u32);
                hard.secure(now, taken);
                hard.check_invariants(now);
                for _ in 0..taken {
                    // At once, as late as may be, or between. The worst is a second that begins when what came before it went
                    // as late as may be, and all of its own at once.
                    let lag = [0, LAG, draws.below(LAG)][draws.below(3) as usize];
                    let worst = if now.since(start) < Duration::from_secs(1) { LAG } else { 0 };
                    went.push(now.0 + if greedy { worst } else { lag });
                }
                let pause = [0, draws.below(MS), draws.below(300 * MS)][draws.below(3) as usize];
                now = Timestamp(hard.next().0.max(now.0) + if greedy { 0 } else { pause });
            }
            let (most, bound) = (most_in_a_second(went), (rate.per_s + rate.burst) as usize);
            assert!(most <= bound, "{most} in a second at {rate:?}");
            full += usize::from(most * 100 >= bound * 95);
        }
        assert!(full > 10, "the bound was hardly reached: {full} times");
    }

    #[test]
    fn a_slow_rate_is_given_out_whole_and_a_fast_one_loses_a_twentieth() {
        let per_second = |per_s| {
            let rate = Rate { per_s, burst: 1 };
            let mut hard = Gcra::used_up(Timestamp::from_millis(1_000), rate, Duration::from_nanos(LAG));
            let first = hard.next();
            let mut count = 0;
            while hard.next().since(first) < Duration::from_secs(10) {
                let now = hard.next();
                hard.secure(now, 1);
                count += 1;
            }
            count / 10
        };
        assert_eq!([10, 19, 20, 1_000].map(per_second), [10, 19, 19, 952]);
    }

    /// The life of a grant.
    const LAG: u64 = 50 * MS;
}
