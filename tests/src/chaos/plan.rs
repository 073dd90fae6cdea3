//! The plan of a run: which coordinator suffers what, for how long, and how long the mesh has until the next one.
//!
//! The rule it keeps: the same seed gives the same plan, whatever the mesh does.

use std::fmt;
use std::time::Duration;

/// A stop shorter than this is missed by nobody; a replica counts as lost after as long.
const FREEZE_MIN: Duration = Duration::from_secs(3);
/// Far longer than any patience that the mesh has with a replica.
const FREEZE_MAX: Duration = Duration::from_secs(20);
/// What a take-over may take: a person waits for one of them, not for two.
const PAUSE_MIN: Duration = Duration::from_secs(5);
/// Long enough for a replica to be back and to have its shards.
const PAUSE_MAX: Duration = Duration::from_secs(8);

/// What is done to a coordinator, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Killed.
    Kill(usize),
    /// Asked to end.
    End(usize),
    /// Stopped for a time, and continued as if nothing had been.
    Freeze(usize, Duration),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(victim) => write!(f, "kill -9 coordinator-{victim}"),
            Self::End(victim) => write!(f, "kill -TERM coordinator-{victim}"),
            Self::Freeze(victim, time) => write!(f, "stop coordinator-{victim} for {time:.1?}"),
        }
    }
}

/// One step of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What is done.
    pub fault: Fault,
    /// How long the mesh is left alone after it.
    pub pause: Duration,
}

/// The steps, one after the other, without an end.
#[derive(Debug, Clone)]
pub struct Plan {
    random: u64,
    coordinators: usize,
    victim: usize,
    /// Each kind comes once in every three steps, so that a short run has them all.
    kinds: Vec<u64>,
}

impl Plan {
    /// The plan of a seed for so many coordinators.
    #[must_use]
    pub fn new(seed: u64, coordinators: usize) -> Self {
        Self { random: seed, coordinators: coordinators.max(1), victim: 0, kinds: Vec::new() }
    }

    /// What comes next.
    pub fn next_step(&mut self) -> Step {
        if self.kinds.is_empty() {
            self.kinds = vec![0, 1, 2];
        }
        let kind = self.below(self.kinds.len() as u64) as usize;
        let kind = self.kinds.swap_remove(kind);
        let freeze = self.between(FREEZE_MIN, FREEZE_MAX);
        let victim = self.victim;
        self.victim =
            (victim + 1 + self.below(self.coordinators as u64 / 2 + 1) as usize) % self.coordinators;
        let fault = match kind {
            0 => Fault::Kill(victim),
            1 => Fault::End(victim),
            _ => Fault::Freeze(victim, freeze),
        };
        Step { fault, pause: self.between(PAUSE_MIN, PAUSE_MAX) }
    }

    fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let span = (most - least).as_millis() as u64;
        least + Duration::from_millis(self.below(span + 1))
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next_random() % bound
    }

    /// The splitmix64 generator: small, and the same everywhere.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(seed: u64) -> Vec<Step> {
        let mut plan = Plan::new(seed, 3);
        (0..60).map(|_| plan.next_step()).collect()
    }

    #[test]
    fn a_seed_is_a_plan() {
        assert_eq!(steps(7), steps(7));
        assert_ne!(steps(7), steps(8));
    }

    #[test]
    fn every_three_steps_have_each_kind_of_fault_and_each_coordinator_has_its_turn() {
        let steps = steps(1);
        let mut victims = [0; 3];
        for three in steps.chunks(3) {
            let mut kinds = [0; 3];
            for step in three {
                let (kind, victim) = match step.fault {
                    Fault::Kill(victim) => (0, victim),
                    Fault::End(victim) => (1, victim),
                    Fault::Freeze(victim, time) => {
                        assert!((FREEZE_MIN..=FREEZE_MAX).contains(&time));
                        (2, victim)
                    }
                };
                kinds[kind] += 1;
                victims[victim] += 1;
                assert!((PAUSE_MIN..=PAUSE_MAX).contains(&step.pause));
            }
            assert_eq!(kinds, [1, 1, 1]);
        }
        assert!(victims.iter().all(|times| *times >= 10), "{victims:?}");
    }
}
