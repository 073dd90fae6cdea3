//! The ledger: which dispatches this instance has taken lately, and which of them run. Owns the window of remembered ids.
//!
//! The rule it keeps: within the window a dispatch that was taken is not taken again, unless it was an event that failed,
//! which its home sends again under the same id. One entry stands for an envelope, not for a dispatch.

use std::collections::{HashMap, VecDeque};
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
    running: Vec<(u16, Arc<Run>)>,
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

    /// Takes a dispatch; false where it was taken before.
    pub(crate) fn take(&self, id: DispatchId) -> bool {
        let mut state = self.lock();
        let key = Key::of(id);
        let known = state.entries.len();
        let fresh = state.entries.entry(key).or_default().taken.insert(id.slot);
        if state.entries.len() > known {
            state.order.push_back(key);
            state.trim();
        }
        fresh
    }

    /// Lets it be taken again.
    pub(crate) fn forget(&self, id: DispatchId) {
        if let Some(entry) = self.lock().entries.get_mut(&Key::of(id)) {
            entry.taken.remove(id.slot);
        }
    }

    /// A dispatch that was taken runs now; false where it was revoked before.
    pub(crate) fn start(&self, id: DispatchId, run: &Arc<Run>) -> bool {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(&Key::of(id)) else { return true };
        let wanted = !entry.revoked.contains(id.slot);
        if wanted {
            entry.running.push((id.slot, Arc::clone(run)));
        }
        wanted
    }

    /// Its handler has ended.
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
        let slots = first.slot..=first.slot.saturating_add(count.saturating_sub(1));
        for slot in slots.clone() {
            entry.revoked.insert(slot);
        }
        entry.running.iter().filter(|(slot, _)| slots.contains(slot)).for_each(|(_, run)| run.revoke());
    }

    /// How many have been running for longer than `limit`.
    pub(crate) fn running_over(&self, limit: Duration) -> u32 {
        let state = self.lock();
        let over =
            state.entries.values().flat_map(|e| &e.running).filter(|(_, r)| r.started.elapsed() > limit);
        u32::try_from(over.count()).unwrap_or(u32::MAX)
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
        assert!(slots.try_take(Priority::P2));
        Arc::new(Run::new(Priority::P2, Timestamp::MAX, slots))
    }

    #[test]
    fn a_dispatch_is_taken_once() {
        let ledger = Ledger::default();
        assert!(ledger.take(id(1, 0)));
        assert!(ledger.take(id(1, 200)));
        assert!(ledger.take(DispatchId { copy: 1, ..id(1, 0) }), "the copy of a topic is another dispatch");
        assert!(!ledger.take(id(1, 0)));
        assert!(!ledger.take(id(1, 200)));
    }

    #[test]
    fn a_failed_event_can_be_taken_again() {
        let ledger = Ledger::default();
        assert!(ledger.take(id(1, 3)));
        ledger.forget(id(1, 3));
        assert!(ledger.take(id(1, 3)));
    }

    #[test]
    fn revoking_cancels_what_runs_and_keeps_the_rest_from_beginning() {
        let ledger = Ledger::default();
        let (first, second) = (run(), run());
        assert!(ledger.take(id(1, 0)) && ledger.take(id(1, 1)) && ledger.take(id(1, 2)));
        assert!(ledger.start(id(1, 0), &first));
        ledger.revoke(id(1, 0), 2);
        assert!(first.is_cancelled());
        assert!(!ledger.start(id(1, 1), &second));
        assert!(ledger.start(id(1, 2), &second));
    }

    #[test]
    fn the_window_is_bounded_and_keeps_what_runs() {
        let ledger = Ledger::default();
        assert!(ledger.take(id(0, 0)));
        assert!(ledger.start(id(0, 0), &run()));
        for sequence in 1..=(ENVELOPES_MAX as u64 + 10) {
            assert!(ledger.take(id(sequence, 0)));
        }
        assert!(ledger.lock().entries.len() <= ENVELOPES_MAX);
        assert!(!ledger.take(id(0, 0)), "it runs");
        assert!(ledger.take(id(1, 0)), "it was forgotten");
    }
}
