//! Owns the platform's own counts, kept beside the mesh: what senders had accepted and how it ended for them, and which
//! effects handlers had. It never asks the mesh. Rule kept: every count is by dispatch id, so that it can be held against
//! the archive one by one.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How a dispatch ended in its sender's eyes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Accepted; an event, or a request whose end its sender has not learned.
    Unknown,
    /// The outcome that the reply or the error named.
    Known(&'static str),
}

/// The counts of one run of the platform. Shared by all agents of one process.
#[derive(Debug, Default)]
pub struct Ledger {
    sent: Mutex<HashMap<String, Ending>>,
    effects: Mutex<HashMap<String, u32>>,
    unconfirmed: Mutex<Vec<Option<String>>>,
}

impl Ledger {
    /// The mesh has accepted this dispatch.
    pub fn accepted(&self, id: &str) {
        lock(&self.sent).entry(id.to_owned()).or_insert(Ending::Unknown);
    }

    /// The sender has learned how this dispatch ended.
    pub fn ended(&self, id: &str, outcome: &'static str) {
        lock(&self.sent).insert(id.to_owned(), Ending::Known(outcome));
    }

    /// Whether the mesh has this dispatch, or how it ended, is not known to its sender.
    pub fn unconfirmed(&self, id: Option<String>) {
        lock(&self.unconfirmed).push(id);
    }

    /// A handler has done its work for this dispatch: called once its effect is there.
    pub fn effect(&self, id: &str) {
        *lock(&self.effects).entry(id.to_owned()).or_default() += 1;
    }

    /// How many dispatches were accepted.
    pub fn accepted_count(&self) -> usize {
        lock(&self.sent).len()
    }

    /// How many dispatches had an effect.
    pub fn effect_count(&self) -> usize {
        lock(&self.effects).len()
    }

    /// Everything counted so far.
    pub fn counts(&self) -> Counts {
        Counts {
            sent: lock(&self.sent).clone(),
            effects: lock(&self.effects).clone(),
            unconfirmed: lock(&self.unconfirmed).clone(),
        }
    }
}

/// A copy of a ledger.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// By dispatch id, how it ended for its sender.
    pub sent: HashMap<String, Ending>,
    /// By dispatch id, how often a handler did it.
    pub effects: HashMap<String, u32>,
    /// Dispatches that the mesh may have or not have, by id where there is one.
    pub unconfirmed: Vec<Option<String>>,
}

/// Locks whatever happened before: each update is one call, so that a panic elsewhere leaves whole data behind.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_kept_whatever_comes_first() {
        let ledger = Ledger::default();
        ledger.ended("d-1", "success");
        ledger.accepted("d-1");
        ledger.accepted("d-2");
        ledger.effect("d-1");
        ledger.effect("d-1");
        let counts = ledger.counts();
        assert_eq!(counts.sent["d-1"], Ending::Known("success"));
        assert_eq!(counts.sent["d-2"], Ending::Unknown);
        assert_eq!((counts.effects["d-1"], ledger.accepted_count(), ledger.effect_count()), (2, 2, 1));
    }
}
