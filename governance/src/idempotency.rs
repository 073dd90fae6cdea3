//! Idempotency keys. Owns the memory of the keys that a source used lately.
//!
//! The rule it keeps: the memory is bounded in time and number for each source, so one source's keys never push out another's.

use std::collections::VecDeque;

use crate::hash::FastMap;
use crate::names::{AgentIx, DispatchId};
use crate::policy::IdempotencyPolicy;
use crate::time::Timestamp;

/// The keys of all sources.
#[derive(Debug, Default)]
pub(crate) struct Idempotency {
    first: FastMap<(AgentIx, u128), DispatchId>,
    by_age: Vec<VecDeque<(Timestamp, u128)>>,
}

impl Idempotency {
    /// Whether another dispatch of this source used the key within the window; if not, the key is this one's.
    pub(crate) fn is_taken(
        &mut self,
        now: Timestamp,
        rules: &IdempotencyPolicy,
        source: AgentIx,
        key: u128,
        id: DispatchId,
    ) -> bool {
        self.expire(now, rules, source);
        if let Some(first) = self.first.get(&(source, key)) {
            return *first != id;
        }
        if self.by_age.len() <= source.ix() {
            self.by_age.resize_with(source.ix() + 1, VecDeque::new);
        }
        self.first.insert((source, key), id);
        self.by_age[source.ix()].push_back((now, key));
        false
    }

    fn expire(&mut self, now: Timestamp, rules: &IdempotencyPolicy, source: AgentIx) {
        let Some(keys) = self.by_age.get_mut(source.ix()) else { return };
        while let Some((at, key)) = keys.front().copied()
            && (now.since(at) >= rules.window || keys.len() >= rules.entries_max as usize)
        {
            keys.pop_front();
            self.first.remove(&(source, key));
        }
    }

    /// Drops what is too old, for sources that have fallen silent.
    pub(crate) fn sweep(&mut self, now: Timestamp, rules: &IdempotencyPolicy) {
        for source in 0..self.by_age.len() {
            self.expire(now, rules, AgentIx(source as u32));
        }
    }

    pub(crate) fn check_invariants(&self) {
        let listed: usize = self.by_age.iter().map(VecDeque::len).sum();
        assert_eq!(listed, self.first.len(), "each key is listed once by age");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::InstanceId;
    use std::time::Duration;

    const RULES: IdempotencyPolicy = IdempotencyPolicy { window: Duration::from_secs(600), entries_max: 3 };

    fn id(sequence: u64) -> DispatchId {
        DispatchId { instance: InstanceId(1), sequence, slot: 0, copy: 0 }
    }

    #[test]
    fn a_key_is_taken_for_ten_minutes() {
        let mut keys = Idempotency::default();
        let at = |s| Timestamp::ZERO.after(Duration::from_secs(s));
        assert!(!keys.is_taken(at(0), &RULES, AgentIx(0), 7, id(1)));
        assert!(keys.is_taken(at(599), &RULES, AgentIx(0), 7, id(2)));
        assert!(
            !keys.is_taken(at(599), &RULES, AgentIx(0), 7, id(1)),
            "the same dispatch again is no duplicate"
        );
        assert!(!keys.is_taken(at(599), &RULES, AgentIx(1), 7, id(3)), "another source has its own keys");
        assert!(!keys.is_taken(at(600), &RULES, AgentIx(0), 7, id(4)));
        keys.check_invariants();
    }

    #[test]
    fn the_oldest_key_of_a_source_makes_room() {
        let mut keys = Idempotency::default();
        for key in 1..=4 {
            assert!(!keys.is_taken(Timestamp::ZERO, &RULES, AgentIx(0), key, id(key as u64)));
        }
        assert!(!keys.is_taken(Timestamp::ZERO, &RULES, AgentIx(0), 1, id(9)));
        assert!(keys.is_taken(Timestamp::ZERO, &RULES, AgentIx(0), 4, id(10)));
        keys.check_invariants();
    }
}
