//! What must hold of several cores together: windows at the targets' homes, hard rates over all of them, an end for everything.

use std::collections::VecDeque;
use std::time::Duration;

use governance::{Policy, Timestamp};

use super::{AGENTS, Mesh, POLICY};

impl Mesh {
    /// No home has more in its window than ended there and elsewhere: nothing counts twice. Where reports are lost, what they told
    /// comes with a later one, and so later than it ended.
    pub(super) fn check_windows(&mut self) {
        for home in 0..self.worlds.len() {
            let world = &self.worlds[home];
            for facts in world.governor.target_facts(world.now) {
                if self.home(facts.agent) != home {
                    assert_eq!(facts.breaker.samples, 0, "runs are judged at home");
                    continue;
                }
                let ran = self.ran.entry(facts.agent).or_default();
                let (count, failed) = if self.wire.loss_percent == 0 { ran.peak } else { ran.total };
                let (samples, errors) = (facts.breaker.samples, facts.breaker.errors);
                assert!(samples <= count && errors <= failed, "{samples} of {count}, {errors} of {failed}");
                self.counted.windows += usize::from(samples > 0);
            }
        }
    }

    /// How many each core let go to a target with a hard rate, while more waited.
    pub(crate) fn passed_by_home(&self) -> Vec<usize> {
        let mut passed = vec![0; self.worlds.len()];
        for (_, admission) in &self.admitted {
            passed[self.home(admission.source)] += usize::from(admission.count);
        }
        passed
    }

    pub(crate) fn check_the_end(&mut self) {
        for world in &self.worlds {
            for lane in world.governor.lane_facts(world.now) {
                assert_eq!(lane.queued, 0, "{} waits: {lane:?}", world.name(lane.lane.source));
            }
        }
        self.check_rates();
    }

    /// In no second, wherever it begins, a target gets more than its hard rate and burst, from all homes together.
    pub(crate) fn check_rates(&mut self) {
        let policy = Policy::parse(POLICY).expect("the policy is good");
        for (nth, name) in AGENTS.iter().enumerate() {
            let Some(rate) = policy.max_rate(name) else { continue };
            let mut window: VecDeque<(Timestamp, u32)> = VecDeque::new();
            let mut sum = 0;
            for (at, admission) in self.admitted.iter().filter(|(_, a)| a.target.ix() == nth) {
                window.push_back((*at, u32::from(admission.count)));
                sum += u32::from(admission.count);
                self.counted.limited += usize::from(admission.count);
                while window.front().is_some_and(|(first, _)| at.since(*first) > Duration::from_secs(1)) {
                    sum -= window.pop_front().map_or(0, |(_, count)| count);
                }
                assert!(sum <= rate.per_s + rate.burst, "{name}: {sum} within a second");
            }
        }
    }
}
