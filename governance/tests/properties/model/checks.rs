//! What must hold when everything has come to its end: nothing is left, and no rate was exceeded in any second.

use std::collections::VecDeque;
use std::time::Duration;

use governance::{Admission, Policy, Timestamp};

use super::{AGENTS, Fate, Model, POLICY};

impl Model {
    pub(crate) fn check_the_end(&self) {
        for (id, fate) in &self.fates {
            assert_eq!(*fate, Fate::Ended, "{id} is left");
        }
        assert_eq!(self.world.governor.open_dispatches(), 0);
        for lane in self.world.governor.lane_facts(self.world.now) {
            assert_eq!((lane.queued, lane.messages), (0, 0), "{lane:?}");
        }
        self.check_rates();
    }

    /// In no second, wherever it begins, more than rate and burst: for sources, and for targets with a hard rate.
    fn check_rates(&self) {
        let policy = Policy::parse(POLICY).expect("the policy is good");
        for name in AGENTS {
            let ix = self.world.ix(name);
            let by_source = |a: &Admission| a.source == ix;
            let by_target = |a: &Admission| a.target == ix;
            let rate = policy.quota(name);
            if name != "backup" || !self.rates_changed {
                self.check_rate(name, rate.per_s + rate.burst, by_source);
            }
            if let Some(rate) = policy.max_rate(name) {
                self.check_rate(name, rate.per_s + rate.burst, by_target);
            }
        }
    }

    fn check_rate(&self, name: &str, bound: u32, counts: impl Fn(&Admission) -> bool) {
        let mut window: VecDeque<(Timestamp, u32)> = VecDeque::new();
        let mut sum = 0;
        for (at, admission) in self.admitted.iter().filter(|(_, a)| counts(a)) {
            window.push_back((*at, u32::from(admission.count)));
            sum += u32::from(admission.count);
            while window.front().is_some_and(|(first, _)| at.since(*first) > Duration::from_secs(1)) {
                sum -= window.pop_front().map_or(0, |(_, count)| count);
            }
            assert!(sum <= bound, "{name}: {sum} within a second, {bound} allowed");
        }
    }
}
