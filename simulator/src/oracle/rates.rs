//! Rates: in no second more than rate + burst, for sources and for targets with a hard rate.
//!
//! Which second? A source's quota is judged by the stamps of its decisions. All of them are taken by the one home that the
//! source has at a time, and the state that a take-over hands on is a stamp as well; so the bound holds exactly in stamps,
//! whatever the clocks show, and a second burst after a take-over would show. In true time two homes' clocks may differ, and
//! the later home cannot know by how much: each hand-over inside the second may then cost one burst more, which is judged
//! too. A target's hard rate is used by homes with different clocks at once, so that only true time makes sense: the stamp
//! without the writer's skew. Grants live for a span of the asking home's own clock, which no constant skew changes.

use std::collections::BTreeMap;

use governance::policy::Rate;

use super::Oracle;

const SECOND: u64 = 1_000_000_000;

/// When what was admitted.
#[derive(Debug, Default)]
pub(super) struct Rates {
    /// By source: stamp and true time.
    sources: BTreeMap<String, Vec<(u64, u64)>>,
    /// By target: true time.
    targets: BTreeMap<String, Vec<u64>>,
    /// By source: true times of hand-overs.
    handovers: BTreeMap<u8, Vec<u64>>,
}

impl Rates {
    pub(super) fn admitted(&mut self, source: &str, target: &str, stamp: u64, true_time: u64) {
        self.sources.entry(source.to_owned()).or_default().push((stamp, true_time));
        self.targets.entry(target.to_owned()).or_default().push(true_time);
    }

    pub(super) fn handed_over(&mut self, shard: u8, now: u64) {
        self.handovers.entry(shard).or_default().push(now);
    }
}

/// The greatest number in any second, and where that second begins; `extra` is allowed on top for each of these moments in it.
fn worst(times: &mut [u64], limit: u64, extra: u64, moments: &[u64]) -> Option<(u64, u64, u64)> {
    times.sort_unstable();
    let mut first = 0;
    for (at, time) in times.iter().enumerate() {
        while *time - times[first] >= SECOND {
            first += 1;
        }
        let count = (at - first + 1) as u64;
        if count > limit {
            // A hand-over shortly before the second may have brought its burst into it.
            let within = |m: &&u64| **m + SECOND >= times[first] && **m <= *time;
            let allowed = limit + extra * moments.iter().filter(within).count() as u64;
            if count > allowed {
                return Some((times[first], count, allowed));
            }
        }
    }
    None
}

impl Oracle {
    /// Judges all seconds of the run.
    pub(super) fn judge_rates(&mut self) {
        let rates = std::mem::take(&mut self.rates);
        for (source, admitted) in &rates.sources {
            let Rate { per_s, burst } = self.cast.policy.quota(source);
            let limit = u64::from(per_s) + u64::from(burst);
            let mut stamps: Vec<u64> = admitted.iter().map(|(stamp, _)| *stamp).collect();
            let mut true_times: Vec<u64> = admitted.iter().map(|(_, time)| *time).collect();
            *self.compared.entry("quota windows").or_default() += admitted.len() as u64;
            if let Some((at, count, allowed)) = worst(&mut stamps, limit, 0, &[]) {
                self.fail(format!(
                    "{source}: {count} dispatches in the second from {at} on, {allowed} are allowed"
                ));
            }
            let none = Vec::new();
            let handovers = rates.handovers.get(&governance::shard_of(source)).unwrap_or(&none);
            if let Some((at, count, allowed)) = worst(&mut true_times, limit, u64::from(burst), handovers) {
                self.fail(format!(
                    "{source}: {count} dispatches in the true second from {at} on, {allowed} are allowed"
                ));
            }
        }
        for (target, mut times) in rates.targets {
            let Some(Rate { per_s, burst }) = self.cast.policy.max_rate(&target) else { continue };
            *self.compared.entry("hard rate windows").or_default() += times.len() as u64;
            let limit = u64::from(per_s) + u64::from(burst);
            if let Some((at, count, allowed)) = worst(&mut times, limit, 0, &[]) {
                self.fail(format!(
                    "{count} dispatches reached {target} in the second from {at} on, {allowed} may"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_second_is_found_wherever_it_begins() {
        let mut times = [0, 400_000_000, 900_000_000, 1_100_000_000, 1_300_000_000];
        assert_eq!(worst(&mut times, 4, 0, &[]), None);
        assert_eq!(worst(&mut times, 3, 0, &[]), Some((400_000_000, 4, 3)));
        assert_eq!(worst(&mut times, 3, 1, &[1_000_000_000]), None);
    }
}
