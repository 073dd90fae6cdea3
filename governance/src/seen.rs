//! Envelope sequences that were decided about. Owns the memory against double delivery by the broker.
//!
//! The sequences of an instance of the SDK are dense from 1 over all its lanes, so that what was decided is soon a floor
//! ("all up to here") and a few ranges above it; a lane that waits leaves gaps that close later. The sequences of a derived
//! instance are those of a stream, hence full of gaps that never close: there only the latest ranges are kept.
//!
//! The rule it keeps: a sequence is noted when all its dispatches are decided, never when it is merely held; else a
//! snapshot would call a message decided that a new home has still to decide.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::names::InstanceId;
use crate::time::Timestamp;

/// What was decided of all instances.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    instances: BTreeMap<InstanceId, Ranges>,
}

#[derive(Debug)]
struct Ranges {
    /// First and last sequence of each range; they neither touch nor overlap.
    ranges: BTreeMap<u64, u64>,
    touched: Timestamp,
}

impl Seen {
    pub(crate) fn contains(&self, instance: InstanceId, sequence: u64) -> bool {
        let Some(known) = self.instances.get(&instance) else { return false };
        known.ranges.range(..=sequence).next_back().is_some_and(|(_, to)| sequence <= *to)
    }

    /// Notes sequences from `from` to `to`.
    pub(crate) fn insert(&mut self, now: Timestamp, instance: InstanceId, from: u64, to: u64) {
        let known = self
            .instances
            .entry(instance)
            .or_insert_with(|| Ranges { ranges: BTreeMap::new(), touched: now });
        known.touched = known.touched.max(now);
        known.insert(from, to);
        let bound = if instance.is_derived() { DERIVED_RANGES_MAX } else { RANGES_MAX };
        while known.ranges.len() > bound {
            known.close_lowest_gap(instance.is_derived());
        }
    }

    /// Forgets instances that have sent nothing for a day: they ended long ago, since an instance is one process.
    pub(crate) fn sweep(&mut self, now: Timestamp) {
        self.instances.retain(|_, known| now.since(known.touched) < FORGOTTEN_AFTER);
    }

    /// All ranges, for a snapshot.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (InstanceId, u64, u64)> {
        self.instances.iter().flat_map(|(id, known)| known.ranges.iter().map(|(from, to)| (*id, *from, *to)))
    }

    pub(crate) fn check_invariants(&self) {
        for known in self.instances.values() {
            let mut end = None;
            for (from, to) in &known.ranges {
                assert!(from <= to, "a range of sequences is not empty");
                assert!(
                    end.is_none_or(|end| end + 1 < *from),
                    "ranges of sequences neither touch nor overlap"
                );
                end = Some(*to);
            }
        }
    }
}

impl Ranges {
    fn insert(&mut self, mut from: u64, mut to: u64) {
        // The common case: the next sequence after the last one.
        if let Some(mut last) = self.ranges.last_entry()
            && *last.get() + 1 == from
        {
            *last.get_mut() = to;
            return;
        }
        if let Some((before, end)) = self.ranges.range(..=from).next_back().map(|(a, b)| (*a, *b))
            && from <= end.saturating_add(1)
        {
            from = before;
            to = to.max(end);
            self.ranges.remove(&before);
        }
        while let Some((next, end)) = self.ranges.range(from..).next().map(|(a, b)| (*a, *b))
            && next <= to.saturating_add(1)
        {
            to = to.max(end);
            self.ranges.remove(&next);
        }
        self.ranges.insert(from, to);
    }

    fn close_lowest_gap(&mut self, derived: bool) {
        let Some((first, end)) = self.ranges.pop_first() else { return };
        if derived {
            // Forgotten, not taken as decided: whatever comes from there is decided (again) rather than lost.
            return;
        }
        if let Some((_, to)) = self.ranges.pop_first() {
            self.ranges.insert(first, to.max(end));
        }
    }
}

/// A gap is a message that waits in a lane or was never stored; the lanes hold fewer than this.
const RANGES_MAX: usize = 65_536;

/// Stream sequences of the JSON door: what is decided and not yet acknowledged may come again, and a home holds fewer
/// messages of one lane than this. They are rewritten with each snapshot, so no more than that is kept.
const DERIVED_RANGES_MAX: usize = 2_048;

/// An instance that sent nothing for so long is gone: the broker's own redelivery ends within minutes.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: InstanceId = InstanceId(1);

    fn ranges(seen: &Seen) -> Vec<(u64, u64)> {
        seen.check_invariants();
        seen.ranges().map(|(_, from, to)| (from, to)).collect()
    }

    #[test]
    fn gaps_close_when_what_was_missing_arrives() {
        let mut seen = Seen::default();
        for sequence in [1, 2, 5, 7, 6, 3] {
            assert!(!seen.contains(ONE, sequence));
            seen.insert(Timestamp::ZERO, ONE, sequence, sequence);
            assert!(seen.contains(ONE, sequence));
        }
        assert_eq!(ranges(&seen), [(1, 3), (5, 7)]);
        assert!(!seen.contains(ONE, 4));
        seen.insert(Timestamp::ZERO, ONE, 4, 4);
        assert_eq!(ranges(&seen), [(1, 7)]);
    }

    #[test]
    fn restored_ranges_that_overlap_become_one() {
        let mut seen = Seen::default();
        seen.insert(Timestamp::ZERO, ONE, 10, 20);
        seen.insert(Timestamp::ZERO, ONE, 1, 5);
        seen.insert(Timestamp::ZERO, ONE, 4, 12);
        assert_eq!(ranges(&seen), [(1, 20)]);
    }

    #[test]
    fn a_derived_instance_keeps_its_latest_ranges_only() {
        let derived = InstanceId(InstanceId::DERIVED | 1);
        let mut seen = Seen::default();
        for sequence in 1..=5_000 {
            seen.insert(Timestamp::ZERO, derived, sequence * 3, sequence * 3);
        }
        assert_eq!(ranges(&seen).len(), DERIVED_RANGES_MAX);
        assert!(seen.contains(derived, 15_000));
        assert!(!seen.contains(derived, 14_999));
    }

    #[test]
    fn an_instance_silent_for_a_day_is_forgotten() {
        let mut seen = Seen::default();
        seen.insert(Timestamp::ZERO, ONE, 1, 1);
        seen.sweep(Timestamp::ZERO.after(Duration::from_secs(86_399)));
        assert!(seen.contains(ONE, 1));
        seen.sweep(Timestamp::ZERO.after(Duration::from_secs(86_400)));
        assert!(!seen.contains(ONE, 1));
    }
}
