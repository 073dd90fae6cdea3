//! Held messages: an inbox message from its delivery to its acknowledgement. Owns the count of what is open in it.
//!
//! The rule it keeps: a message is acknowledged when each of its dispatches has been completed and the broker has confirmed
//! the completion, or it needs none. A failed event is reported last, with the acknowledgement left to its home, which
//! then decides about the whole message while nothing of it runs here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_nats::Subject;
use governance::Priority;

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
    fn renewable(&self) -> Option<Subject> {
        let state = self.lock();
        (state.phase != Phase::Closed).then(|| state.ack.clone())
    }

    /// Whether it is done with here, finished or not.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().phase == Phase::Closed
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

/// All messages that an instance holds, by the place they have in their inbox: those whose dispatches run, those whose
/// dispatches wait for a slot, and those that their homes are asked about.
#[derive(Debug, Default)]
pub(crate) struct Holding(Mutex<HashMap<(Priority, u64), Arc<Held>>>);

impl Holding {
    fn lock(&self) -> MutexGuard<'_, HashMap<(Priority, u64), Arc<Held>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds a message from here on.
    pub(crate) fn insert(&self, key: (Priority, u64), held: Arc<Held>) {
        self.lock().insert(key, held);
    }

    /// Whether a message that came is held already, and is acknowledged where it came last from here on.
    pub(crate) fn delivered_again(&self, key: (Priority, u64), ack: &Subject) -> bool {
        self.lock().get(&key).is_some_and(|held| held.delivered_again(ack))
    }

    /// Where to say that they are worked on; forgets those that are done with.
    pub(crate) fn renewable(&self) -> Vec<Subject> {
        let mut all = self.lock();
        let mut acks = Vec::with_capacity(all.len());
        all.retain(|_, held| held.renewable().map(|ack| acks.push(ack)).is_some());
        acks
    }

    /// Lets go of everything without a word: the broker gives it to others once it has not been renewed for long. Returns how
    /// many there were.
    pub(crate) fn give_up(&self) -> usize {
        let all = std::mem::take(&mut *self.lock());
        all.values().filter(|held| held.give_back().is_some()).count()
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
        core.ledger.forget(done.first, done.count);
        done.inbox_ack.clone_from(&ack);
        core.complete(done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_up_is_neither_renewed_nor_counted_and_its_rows_can_be_told() {
        let (holding, total) = (Holding::default(), Arc::new(AtomicUsize::new(0)));
        let held = |sequence: u64, rows| {
            let held = Arc::new(Held::new(format!("ack-{sequence}").into(), rows, Arc::clone(&total)));
            holding.insert((Priority::P2, sequence), Arc::clone(&held));
            held
        };
        let (first, second) = (held(1, 3), held(2, 2));
        assert_eq!((holding.renewable().len(), total.load(Ordering::Relaxed)), (2, 5));
        assert!(holding.delivered_again((Priority::P2, 1), &"ack-again".into()));
        assert!(holding.renewable().contains(&"ack-again".into()));
        assert_eq!(holding.give_up(), 2);
        assert!(first.is_closed() && second.is_closed());
        assert_eq!((holding.renewable().len(), total.load(Ordering::Relaxed)), (0, 0));
        assert!(!holding.delivered_again((Priority::P2, 1), &"ack-third".into()));
    }

    #[test]
    fn what_is_done_with_is_forgotten_at_the_next_renewal() {
        let holding = Holding::default();
        let held = Arc::new(Held::new("ack".into(), 1, Arc::default()));
        holding.insert((Priority::P0, 7), Arc::clone(&held));
        assert!(held.give_back().is_some());
        assert!(holding.renewable().is_empty());
        assert!(holding.lock().is_empty());
    }
}
