//! Scaling. Owns the two triggers of one agent: a deep queue for long, and idle instances for long.
//!
//! The rule it keeps: one step per decision and a pause between steps, so that a step shows its effect before the next.

use crate::policy::{ScalingPolicy, WHOLE_BP};
use crate::time::{Timestamp, nanos};
use crate::words::Reason;

/// What one agent's scaling remembers.
#[derive(Debug)]
pub(crate) struct Scaling {
    deep_since: Option<Timestamp>,
    stepped: Option<Timestamp>,
    /// Running and slots summed over the samples of each tenth of the averaging time.
    tenths: [Tenth; TENTHS],
    observed_since: Option<Timestamp>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Tenth {
    number: u64,
    running: u64,
    slots: u64,
}

/// One look at an agent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub depth: u32,
    pub running: u32,
    pub slots: u32,
    pub instances: u32,
    pub instances_min: u32,
    pub instances_max: u32,
}

/// A step that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub to: u32,
    pub reason: Reason,
    pub utilisation_bp: u32,
}

impl Scaling {
    pub(crate) const fn new() -> Self {
        let none = Tenth { number: 0, running: 0, slots: 0 };
        Self { deep_since: None, stepped: None, tenths: [none; TENTHS], observed_since: None }
    }

    /// Looks at the agent, once a second; may ask for one step.
    pub(crate) fn on_sample(
        &mut self,
        now: Timestamp,
        rules: &ScalingPolicy,
        sample: Sample,
    ) -> Option<Step> {
        self.note(now, rules, sample);
        let step = self.wanted(now, rules, sample)?;
        self.stepped = Some(now);
        self.deep_since = None;
        // The average of the former number says nothing about the new one.
        self.observed_since = None;
        Some(step)
    }

    fn note(&mut self, now: Timestamp, rules: &ScalingPolicy, sample: Sample) {
        if sample.depth <= rules.depth {
            self.deep_since = None;
        } else if self.deep_since.is_none() {
            self.deep_since = Some(now);
        }
        if sample.slots == 0 {
            self.observed_since = None;
            return;
        }
        if self.observed_since.is_none() {
            self.observed_since = Some(now);
            self.tenths = [Tenth::default(); TENTHS];
        }
        let number = now.0 / tenth(rules);
        let place = &mut self.tenths[(number % TENTHS as u64) as usize];
        if place.number != number {
            *place = Tenth { number, running: 0, slots: 0 };
        }
        place.running += u64::from(sample.running);
        place.slots += u64::from(sample.slots);
    }

    fn wanted(&self, now: Timestamp, rules: &ScalingPolicy, sample: Sample) -> Option<Step> {
        if self.stepped.is_some_and(|at| now.since(at) < rules.pause) {
            return None;
        }
        let utilisation_bp = self.utilisation_bp(now, rules);
        let for_long = |since: Option<Timestamp>, long| since.is_some_and(|since| now.since(since) >= long);
        if for_long(self.deep_since, rules.depth_for) && sample.instances < sample.instances_max {
            let to = sample.instances + 1;
            return Some(Step { to, reason: Reason::DepthSustained, utilisation_bp });
        }
        let idle =
            for_long(self.observed_since, rules.utilisation_for) && utilisation_bp < rules.utilisation_bp;
        if idle && self.deep_since.is_none() && sample.instances > sample.instances_min.max(1) {
            let to = sample.instances - 1;
            return Some(Step { to, reason: Reason::UtilisationLow, utilisation_bp });
        }
        None
    }

    fn utilisation_bp(&self, now: Timestamp, rules: &ScalingPolicy) -> u32 {
        let number = now.0 / tenth(rules);
        let recent = self.tenths.iter().filter(|t| t.number + TENTHS as u64 > number);
        let (running, slots) = recent.fold((0, 0), |(r, s), t| (r + t.running, s + t.slots));
        utilisation_bp(running, slots)
    }
}

/// Running over slots in basis points; nothing runs where there are no slots.
pub(crate) fn utilisation_bp(running: u64, slots: u64) -> u32 {
    (running * WHOLE_BP).checked_div(slots).map_or(0, |bp| u32::try_from(bp).unwrap_or(u32::MAX))
}

fn tenth(rules: &ScalingPolicy) -> u64 {
    (nanos(rules.utilisation_for) / TENTHS as u64).max(1)
}

const TENTHS: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Sample =
        Sample { depth: 0, running: 50, slots: 100, instances: 2, instances_min: 2, instances_max: 6 };

    fn at(s: u64) -> Timestamp {
        Timestamp::from_millis(10_000_000 + s * 1_000)
    }

    /// Samples each second; the steps with their second.
    fn steps(seconds: std::ops::Range<u64>, sample: impl Fn(u64) -> Sample) -> Vec<(u64, u32, Reason)> {
        let rules = ScalingPolicy::default();
        let mut scaling = Scaling::new();
        seconds
            .filter_map(|s| scaling.on_sample(at(s), &rules, sample(s)).map(|step| (s, step.to, step.reason)))
            .collect()
    }

    #[test]
    fn a_depth_above_a_hundred_for_thirty_seconds_adds_one_each_minute() {
        let deep = |_| Sample { depth: 101, ..CALM };
        assert_eq!(steps(0..95, deep), [(30, 3, Reason::DepthSustained), (90, 3, Reason::DepthSustained)]);
    }

    #[test]
    fn a_break_in_the_depth_begins_the_count_anew() {
        let dips = |s| Sample { depth: if s % 29 == 0 { 100 } else { 5_000 }, ..CALM };
        assert_eq!(steps(0..300, dips), []);
    }

    #[test]
    fn under_thirty_percent_for_five_minutes_removes_one() {
        let idle = |_| Sample { running: 29, instances: 6, ..CALM };
        assert_eq!(steps(0..301, idle), [(300, 5, Reason::UtilisationLow)]);
        let busy = |_| Sample { running: 30, instances: 6, ..CALM };
        assert_eq!(steps(0..900, busy), []);
    }

    #[test]
    fn the_number_stays_within_its_bounds() {
        assert_eq!(steps(0..900, |_| Sample { depth: 500, instances: 6, ..CALM }), []);
        assert_eq!(steps(0..900, |_| Sample { running: 0, ..CALM }), []);
    }
}
