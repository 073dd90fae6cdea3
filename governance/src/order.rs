//! Order keys. Owns which keys are busy and who waits for them.
//!
//! The rule it keeps: of the dispatches of one source to one target with one key, one at a time is open; those that wait get
//! the key in the order in which they came to wait.

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
    /// The queues of runs that wait; a queue stands here once for each run.
    waiting: VecDeque<QueueIx>,
}

impl OrderKeys {
    /// Whether a run that was not handed the key has to wait.
    pub(crate) fn is_busy(&self, source: AgentIx, target: AgentIx, key: u64) -> bool {
        self.keys.get(&(source, target, key)).is_some_and(|u| u.open > 0 || !u.waiting.is_empty())
    }

    /// Whether a dispatch with the key is open.
    pub(crate) fn is_open(&self, source: AgentIx, target: AgentIx, key: u64) -> bool {
        self.keys.get(&(source, target, key)).is_some_and(|u| u.open > 0)
    }

    pub(crate) fn open(&mut self, source: AgentIx, target: AgentIx, key: u64) {
        self.keys.entry((source, target, key)).or_default().open += 1;
    }

    pub(crate) fn close(&mut self, source: AgentIx, target: AgentIx, key: u64) {
        if let Some(used) = self.keys.get_mut(&(source, target, key)) {
            used.open = used.open.saturating_sub(1);
        }
    }

    pub(crate) fn wait(&mut self, source: AgentIx, target: AgentIx, key: u64, queue: QueueIx) {
        self.keys.entry((source, target, key)).or_default().waiting.push_back(queue);
    }

    /// The next queue that waits for a key which is free; the key is forgotten when none does.
    pub(crate) fn next_waiting(&mut self, source: AgentIx, target: AgentIx, key: u64) -> Option<QueueIx> {
        let used = self.keys.get_mut(&(source, target, key))?;
        if used.open > 0 {
            return None;
        }
        let next = used.waiting.pop_front();
        if next.is_none() {
            self.keys.remove(&(source, target, key));
        }
        next
    }
}
