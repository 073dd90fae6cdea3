//! What handlers saw: which dispatch ran how often. Counted by the handlers themselves, apart from what the mesh says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use worker_sdk::DispatchId;

/// How often each dispatch was seen. Clones share the counts.
#[derive(Debug, Clone, Default)]
pub struct Sightings(Arc<Mutex<BTreeMap<DispatchId, u32>>>);

impl Sightings {
    /// A handler has begun with a dispatch.
    pub fn note(&self, id: DispatchId) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default() += 1;
    }

    /// How many dispatches were seen.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether a dispatch was seen.
    #[must_use]
    pub fn has(&self, id: DispatchId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&id)
    }

    /// Those that were seen more than once.
    #[must_use]
    pub fn repeated(&self) -> Vec<DispatchId> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|(_, times)| **times > 1).map(|(id, _)| *id).collect()
    }
}
