//! Order keys. Owns which keys are busy and who waits for them.
//!
//! A key is free, or open, or held: a run that was handed the key, or whose first dispatches went with it, holds it
//! until its last dispatch went, however long its quota or its target makes it wait.
//!
//! The rule it keeps: of the dispatches of one source to one target with one key, one at a time is open; those that
//! wait get the key in the order in which they came to wait.

use std::collections::VecDeque;

use crate::hash::FastMap;
use crate::lanes::QueueIx;
use crate::names::AgentIx;

/// The keys in use.
#[derive(Debug, Default)]
pub(crate) struct OrderKeys {
    keys: FastMap<(AgentIx, AgentIx, u64), Use>,
}

#[derive(Debug, Default)]
struct Use {
    open: u32,
    /// Runs in their queues that hold the key.
    holders: u32,
    /// The queues of runs that wait; a queue stands here once for each run.
    waiting: VecDeque<QueueIx>,
}

impl OrderKeys {
    /// Whether a run has to wait: a holder for what is open, any other for those before it as well.
    pub(crate) fn is_busy(&self, source: AgentIx, target: AgentIx, key: u64, holder: bool) -> bool {
        let Some(used) = self.keys.get(&(source, target, key)) else { return false };
        used.open > 0 || !holder && (used.holders > 0 || !used.waiting.is_empty())
    }

    pub(crate) fn open(&mut self, source: AgentIx, target: AgentIx, key: u64) {
        self.keys.entry((source, target, key)).or_default().open += 1;
    }

    pub(crate) fn close(&mut self, source: AgentIx, target: AgentIx, key: u64) {
        if let Some(used) = self.keys.get_mut(&(source, target, key)) {
            used.open = used.open.saturating_sub(1);
        }
    }

    /// A run in its queue holds the key.
    pub(crate) fn hold(&mut self, source: AgentIx, target: AgentIx, key: u64) {
        self.keys.entry((source, target, key)).or_default().holders += 1;
    }

    /// A run that held the key does so no longer.
    pub(crate) fn release(&mut self, source: AgentIx, target: AgentIx, key: u64) {
        if let Some(used) = self.keys.get_mut(&(source, target, key)) {
            used.holders = used.holders.saturating_sub(1);
        }
    }

    /// A run waits for a key: behind all others, or before them where it is the rest of a run that has had the key.
    pub(crate) fn wait(&mut self, source: AgentIx, target: AgentIx, key: u64, queue: QueueIx, first: bool) {
        let waiting = &mut self.keys.entry((source, target, key)).or_default().waiting;
        if first {
            waiting.push_front(queue);
        } else {
            waiting.push_back(queue);
        }
    }

    /// The next queue that waits for a key which is free; the key is forgotten when none does.
    pub(crate) fn next_waiting(&mut self, source: AgentIx, target: AgentIx, key: u64) -> Option<QueueIx> {
        let used = self.keys.get_mut(&(source, target, key))?;
        if used.open > 0 || used.holders > 0 {
            return None;
        }
        let next = used.waiting.pop_front();
        if next.is_none() {
            self.keys.remove(&(source, target, key));
        }
        next
    }
}
