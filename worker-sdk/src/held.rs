//! Held messages: an inbox message from its delivery to its acknowledgement. Owns the count of what is open in it.
//!
//! The rule it keeps: a message is acknowledged when each of its dispatches has been completed and the broker has confirmed
//! the completion, or it needs none. A failed event is reported last, with the acknowledgement left to its home, which
//! then decides about the whole message while nothing of it runs here.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_nats::Subject;

use crate::completer::Done;
use crate::core::Core;

/// An inbox message that this instance holds.
#[derive(Debug)]
pub(crate) struct Held {
    state: Mutex<State>,
    /// Open dispatches of all messages of the instance.
    total: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct State {
    ack: Subject,
    open: usize,
    failed_events: Vec<Done>,
    begun: bool,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Something in it is open, and it is acknowledged here.
    Ours,
    /// An event in it failed and was reported: its home acknowledges it.
    LeftToHome,
    /// Done with.
    Closed,
}

impl Held {
    pub(crate) fn new(ack: Subject, rows: usize, total: Arc<AtomicUsize>) -> Self {
        total.fetch_add(rows, Ordering::Relaxed);
        let state = State { ack, open: rows, failed_events: Vec::new(), begun: false, phase: Phase::Ours };
        Self { state: Mutex::new(state), total }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where to say that it is worked on; none once it is done with.
    pub(crate) fn renewable(&self) -> Option<Subject> {
        let state = self.lock();
        (state.phase != Phase::Closed).then(|| state.ack.clone())
    }

    /// It was delivered once more, and is acknowledged there from here on; false where that delivery is a new attempt.
    pub(crate) fn delivered_again(&self, ack: &Subject) -> bool {
        let mut state = self.lock();
        let ours = state.phase == Phase::Ours;
        if ours {
            state.ack = ack.clone();
        }
        ours
    }

    /// A dispatch in it begins to run.
    pub(crate) fn begin(&self) {
        self.lock().begun = true;
    }

    /// Whether any dispatch in it has begun to run.
    pub(crate) fn has_begun(&self) -> bool {
        self.lock().begun
    }

    /// An event in it failed: it is reported when nothing else of the message is open.
    pub(crate) fn defer(&self, core: &Arc<Core>, failed: Done) {
        let mut state = self.lock();
        state.failed_events.push(failed);
        report_failed(core, state);
    }

    /// So many of its dispatches are done with.
    pub(crate) async fn settle(&self, core: &Arc<Core>, rows: usize) {
        let Some(ack) = self.count_off(core, rows) else { return };
        // One that is lost leads to a redelivery, which is recognised.
        if let Err(error) = broker::ack(&core.client, &ack).await {
            tracing::debug!(%error, "not acknowledged; it comes again");
        }
    }

    /// Counts dispatches off; where to acknowledge the message where these were the last and that is ours to do.
    fn count_off(&self, core: &Arc<Core>, rows: usize) -> Option<Subject> {
        let mut state = self.lock();
        if state.phase == Phase::Closed {
            return None;
        }
        state.open -= rows;
        self.total.fetch_sub(rows, Ordering::Relaxed);
        if state.open > 0 {
            report_failed(core, state);
            return None;
        }
        let ours = state.phase == Phase::Ours;
        state.phase = Phase::Closed;
        ours.then(|| state.ack.clone())
    }

    /// It is given back unfinished: where to say so; none where that is not ours to say.
    pub(crate) fn give_back(&self) -> Option<Subject> {
        let mut state = self.lock();
        let ours = state.phase == Phase::Ours;
        self.total.fetch_sub(state.open, Ordering::Relaxed);
        state.open = 0;
        state.phase = Phase::Closed;
        ours.then(|| state.ack.clone())
    }
}

/// Reports the failed events of a message once nothing else of it is open.
fn report_failed(core: &Arc<Core>, mut state: MutexGuard<'_, State>) {
    if state.phase != Phase::Ours || state.open != state.failed_events.len() {
        return;
    }
    state.phase = Phase::LeftToHome;
    let (failed, ack) = (std::mem::take(&mut state.failed_events), state.ack.to_string());
    drop(state);
    for mut done in failed {
        core.ledger.forget(done.id);
        done.inbox_ack.clone_from(&ack);
        core.complete(done);
    }
}
