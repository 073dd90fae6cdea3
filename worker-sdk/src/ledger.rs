//! The ledger: which dispatches this instance has taken lately, and which of them run. Owns the window of remembered ids.
//!
//! The rule it keeps: within the window a dispatch that was taken is not taken again, unless it was an event that failed,
//! which its home sends again under the same id. One entry stands for an envelope, not for a dispatch.

use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governance::{DispatchId, InstanceId};

use crate::run::Run;

/// Envelopes that are remembered: redeliveries come within seconds, and this many seldom do.
const ENVELOPES_MAX: usize = 16_384;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    instance: InstanceId,
    sequence: u64,
    copy: u16,
}

impl Key {
    const fn of(id: DispatchId) -> Self {
        Self { instance: id.instance, sequence: id.sequence, copy: id.copy }
    }
}

/// A set of slots.
#[derive(Debug, Default)]
struct Slots(Vec<u64>);

impl Slots {
    fn insert(&mut self, slot: u16) -> bool {
        let (word, bit) = (usize::from(slot / 64), 1 << (slot % 64));
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        let fresh = self.0[word] & bit == 0;
        self.0[word] |= bit;
        fresh
    }

    /// Inserts consecutive slots; how many of them were not there.
    fn insert_all(&mut self, slots: RangeInclusive<u16>) -> u32 {
        slots.map(|slot| u32::from(self.insert(slot))).sum()
    }

    fn remove(&mut self, slot: u16) {
        if let Some(word) = self.0.get_mut(usize::from(slot / 64)) {
            *word &= !(1 << (slot % 64));
        }
    }

    fn contains(&self, slot: u16) -> bool {
        self.0.get(usize::from(slot / 64)).is_some_and(|word| word & (1 << (slot % 64)) != 0)
    }
}

#[derive(Debug, Default)]
struct Entry {
    taken: Slots,
    revoked: Slots,
    /// By the first slot.
    running: Vec<(u16, Arc<Run>)>,
}

/// The slots of consecutive dispatches; there is at least one.
const fn slots(first: DispatchId, count: u16) -> RangeInclusive<u16> {
    first.slot..=first.slot.saturating_add(count.saturating_sub(1))
}

/// What two stretches share.
fn overlap(a: &RangeInclusive<u16>, b: &RangeInclusive<u16>) -> RangeInclusive<u16> {
    *a.start().max(b.start())..=*a.end().min(b.end())
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Key, Entry>,
    order: VecDeque<Key>,
}

impl State {
    /// Forgets the oldest envelopes of which nothing runs.
    fn trim(&mut self) {
        let mut looked_at = 0;
        while self.order.len() > ENVELOPES_MAX && looked_at < self.order.len() {
            let Some(key) = self.order.pop_front() else { break };
            if self.entries.get(&key).is_some_and(|e| !e.running.is_empty()) {
                self.order.push_back(key);
                looked_at += 1;
            } else {
                self.entries.remove(&key);
            }
        }
    }
}

/// What one instance has taken lately.
#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<State>);

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes consecutive dispatches; false, and none is taken, where one of them was taken before.
    pub(crate) fn take(&self, first: DispatchId, count: u16) -> bool {
        let mut state = self.lock();
        let key = Key::of(first);
        let known = state.entries.len();
        let taken = &mut state.entries.entry(key).or_default().taken;
        let fresh = !slots(first, count).any(|slot| taken.contains(slot));
        if fresh {
            taken.insert_all(slots(first, count));
        }
        if state.entries.len() > known {
            state.order.push_back(key);
            state.trim();
        }
        fresh
    }

    /// Lets them be taken again.
    pub(crate) fn forget(&self, first: DispatchId, count: u16) {
        if let Some(entry) = self.lock().entries.get_mut(&Key::of(first)) {
            slots(first, count).for_each(|slot| entry.taken.remove(slot));
        }
    }

    /// Whether any of consecutive dispatches was revoked.
    pub(crate) fn is_revoked(&self, first: DispatchId, count: u16) -> bool {
        let state = self.lock();
        let entry = state.entries.get(&Key::of(first));
        entry.is_some_and(|entry| slots(first, count).any(|slot| entry.revoked.contains(slot)))
    }

    /// Consecutive dispatches that were taken run now, together; false where one of them was revoked before.
    pub(crate) fn start(&self, first: DispatchId, run: &Arc<Run>) -> bool {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(&Key::of(first)) else { return true };
        let wanted = !slots(first, run.count() as u16).any(|slot| entry.revoked.contains(slot));
        if wanted {
            entry.running.push((first.slot, Arc::clone(run)));
        }
        wanted
    }

    /// The handler of what began with this dispatch has ended.
    pub(crate) fn end(&self, id: DispatchId) {
        if let Some(entry) = self.lock().entries.get_mut(&Key::of(id))
            && let Some(at) = entry.running.iter().position(|(slot, _)| *slot == id.slot)
        {
            entry.running.swap_remove(at);
        }
    }

    /// The mesh has ended consecutive dispatches: those that run are cancelled, those that wait do not begin.
    pub(crate) fn revoke(&self, first: DispatchId, count: u16) {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(&Key::of(first)) else { return };
        let ended = slots(first, count);
        for (slot, run) in &entry.running {
            let own = slots(DispatchId { slot: *slot, ..first }, run.count() as u16);
            let fresh = overlap(&own, &ended).filter(|slot| !entry.revoked.contains(*slot)).count();
            if fresh > 0 {
                run.revoke(fresh as u32);
            }
        }
        entry.revoked.insert_all(ended);
    }

    /// How many have been running for longer than `limit`.
    pub(crate) fn running_over(&self, limit: Duration) -> u32 {
        let state = self.lock();
        let running = state.entries.values().flat_map(|e| &e.running);
        running.filter(|(_, r)| r.started.elapsed() > limit).map(|(_, r)| r.count()).sum()
    }
}

#[cfg(test)]
mod tests {
    use governance::{Priority, Timestamp};

    use super::*;
    use crate::slots::Slots as RunSlots;

    fn id(sequence: u64, slot: u16) -> DispatchId {
        DispatchId { instance: InstanceId(1), sequence, slot, copy: 0 }
    }

    fn run() -> Arc<Run> {
        let slots = Arc::new(RunSlots::new(1));
        assert_eq!(slots.take(Priority::P2, 1), 1);
        Arc::new(Run::new(Priority::P2, Timestamp::MAX, slots, 1))
    }

    #[test]
    fn a_dispatch_is_taken_once() {
        let ledger = Ledger::default();
        assert!(ledger.take(id(1, 0), 1));
        assert!(ledger.take(id(1, 200), 1));
        assert!(
            ledger.take(DispatchId { copy: 1, ..id(1, 0) }, 1),
            "the copy of a topic is another dispatch"
        );
        assert!(!ledger.take(id(1, 0), 1));
        assert!(!ledger.take(id(1, 200), 1));
    }

    #[test]
    fn a_failed_event_can_be_taken_again() {
        let ledger = Ledger::default();
        assert!(ledger.take(id(1, 3), 1));
        ledger.forget(id(1, 3), 1);
        assert!(ledger.take(id(1, 3), 1));
    }

    #[test]
    fn revoking_cancels_what_runs_and_keeps_the_rest_from_beginning() {
        let ledger = Ledger::default();
        let (first, second) = (run(), run());
        assert!(ledger.take(id(1, 0), 1) && ledger.take(id(1, 1), 1) && ledger.take(id(1, 2), 1));
        assert!(ledger.start(id(1, 0), &first));
        ledger.revoke(id(1, 0), 2);
        assert!(first.is_cancelled());
        assert!(!ledger.start(id(1, 1), &second));
        assert!(ledger.start(id(1, 2), &second));
    }

    #[test]
    fn the_window_is_bounded_and_keeps_what_runs() {
        let ledger = Ledger::default();
        assert!(ledger.take(id(0, 0), 1));
        assert!(ledger.start(id(0, 0), &run()));
        for sequence in 1..=(ENVELOPES_MAX as u64 + 10) {
            assert!(ledger.take(id(sequence, 0), 1));
        }
        assert!(ledger.lock().entries.len() <= ENVELOPES_MAX);
        assert!(!ledger.take(id(0, 0), 1), "it runs");
        assert!(ledger.take(id(1, 0), 1), "it was forgotten");
    }

    #[test]
    fn a_batch_is_taken_as_a_whole_or_not_at_all() {
        let ledger = Ledger::default();
        assert!(ledger.take(id(1, 70), 1));
        assert!(!ledger.take(id(1, 60), 20));
        assert!(ledger.take(id(1, 60), 10));
        ledger.forget(id(1, 60), 11);
        assert!(ledger.take(id(1, 60), 20));
    }

    #[test]
    fn a_batch_runs_until_all_of_it_is_revoked_and_begins_only_whole() {
        let ledger = Ledger::default();
        let slots = Arc::new(RunSlots::new(8));
        assert_eq!(slots.take(Priority::P2, 4), 4);
        let batch = Arc::new(Run::new(Priority::P2, Timestamp::MAX, slots, 4));
        assert!(ledger.take(id(1, 4), 4));
        assert!(ledger.start(id(1, 4), &batch));
        for (first, count) in [(0, 6), (5, 2), (4, 1)] {
            ledger.revoke(id(1, first), count);
            assert!(!batch.is_cancelled(), "slot 7 is left");
        }
        assert!(ledger.is_revoked(id(1, 4), 4) && !ledger.is_revoked(id(1, 7), 1));
        assert!(!ledger.start(id(1, 4), &batch), "what ended does not begin");
        ledger.revoke(id(1, 7), 1);
        assert!(batch.is_cancelled());
    }
}
