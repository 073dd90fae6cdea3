//! Tallies: how many dispatches of one `send_many` are still on their way to acceptance, and as what the others were accepted.
//!
//! The rule it keeps: each dispatch is counted off once; what is dropped on its way counts as not sent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use governance::DispatchId;
use tokio::sync::Notify;

use crate::error::Error;
use crate::reply::AcceptedMany;

/// Counts the dispatches of one `send_many`.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    state: Mutex<TallyState>,
    settled: Notify,
}

#[derive(Debug, Default)]
struct TallyState {
    open: usize,
    runs: Vec<(DispatchId, u16)>,
    error: Option<Error>,
}

/// The share of consecutive dispatches in a tally; one that is dropped counts as not sent.
#[derive(Debug)]
pub(crate) struct Share {
    tally: Option<Arc<Tally>>,
    count: usize,
}

impl Tally {
    fn lock(&self) -> MutexGuard<'_, TallyState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many dispatches more.
    pub(crate) fn more(self: &Arc<Self>, count: usize) -> Share {
        self.lock().open += count;
        Share { tally: Some(Arc::clone(self)), count }
    }

    fn settle(&self, count: usize, result: Result<DispatchId, Error>) {
        let mut state = self.lock();
        state.open -= count;
        // An envelope numbers its dispatches by 16 bits, and a share goes into one.
        let more = u16::try_from(count).unwrap_or(u16::MAX);
        match (result, state.runs.last_mut()) {
            (Ok(id), Some((first, count)))
                if (id.instance, id.sequence) == (first.instance, first.sequence)
                    && first.slot.checked_add(*count) == Some(id.slot)
                    && count.checked_add(more).is_some() =>
            {
                *count += more;
            }
            (Ok(id), _) => state.runs.push((id, more)),
            (Err(error), _) => drop(state.error.get_or_insert(error)),
        }
        if state.open == 0 {
            self.settled.notify_one();
        }
    }

    /// Waits until each has been accepted or was not.
    pub(crate) async fn finish(&self) -> Result<AcceptedMany, Error> {
        loop {
            {
                let mut state = self.lock();
                if state.open == 0 {
                    let runs = std::mem::take(&mut state.runs);
                    return state.error.take().map_or(Ok(AcceptedMany { runs }), Err);
                }
            }
            self.settled.notified().await;
        }
    }
}

impl Share {
    /// The share of the first `count` of its dispatches, which are taken out of it.
    pub(crate) fn split(&mut self, count: usize) -> Self {
        self.count -= count;
        Self { tally: self.tally.clone(), count }
    }

    pub(crate) fn settle(mut self, result: Result<DispatchId, Error>) {
        if let Some(tally) = self.tally.take() {
            tally.settle(self.count, result);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(tally) = self.tally.take() {
            tally.settle(self.count, Err(Error::closed()));
        }
    }
}
