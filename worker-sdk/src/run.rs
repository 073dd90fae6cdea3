//! A run: one dispatch in its handler, or a batch of them. Owns its deadline, its cancellation and its slots.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use governance::{Priority, Timestamp};
use tokio::sync::Notify;

use crate::clock;
use crate::slots::Slots;

/// What a handler is given to end by itself after it was cancelled, before its future is dropped.
pub(crate) const CANCEL_GRACE: Duration = Duration::from_secs(1);

/// One dispatch in its handler, or a batch of them.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) started: Instant,
    /// The inbox that it came from, and the class of its slots.
    class: Priority,
    deadline: AtomicU64,
    /// How many dispatches there are in it, with a slot each.
    count: u32,
    /// Those of them that the mesh has not ended.
    wanted: AtomicU32,
    changed: Notify,
    slots: Arc<Slots>,
    taken: Mutex<Taken>,
}

/// What became of the slots that were taken for a run.
#[derive(Debug, Default)]
struct Taken {
    children_awaited: u32,
    given_back: bool,
}

impl Run {
    /// A run of so many dispatches in slots that were taken for them.
    pub(crate) fn new(class: Priority, deadline: Timestamp, slots: Arc<Slots>, count: u32) -> Self {
        Self {
            started: Instant::now(),
            class,
            deadline: AtomicU64::new(deadline.0),
            count,
            wanted: AtomicU32::new(count),
            changed: Notify::new(),
            slots,
            taken: Mutex::default(),
        }
    }

    /// How many dispatches there are in it.
    pub(crate) const fn count(&self) -> u32 {
        self.count
    }

    pub(crate) fn deadline(&self) -> Timestamp {
        Timestamp(self.deadline.load(Ordering::Relaxed))
    }

    /// Moves the deadline.
    pub(crate) fn extend(&self, deadline: Timestamp) {
        self.deadline.store(deadline.0, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// The mesh has ended so many of its dispatches. With the last of them, what the handler makes is of no use any more.
    pub(crate) fn revoke(&self, dispatches: u32) {
        let less = |wanted: u32| Some(wanted.saturating_sub(dispatches));
        // The closure always gives a value.
        let _ = self.wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        self.changed.notify_waiters();
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) == 0 || clock::until(self.deadline()).is_zero()
    }

    /// Waits for the deadline, however it is moved, or for the end of the dispatch by other means.
    pub(crate) async fn cancelled(&self) {
        loop {
            let mut changed = pin!(self.changed.notified());
            // From here on a change is noticed even before the first poll.
            changed.as_mut().enable();
            if self.is_cancelled() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(clock::until(self.deadline())) => {}
                () = changed => {}
            }
        }
    }

    /// Polls a handler to its end; none where it was cancelled and did not end within the grace.
    pub(crate) async fn bound<T>(&self, handler: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            output = handler => Some(output),
            () = async {
                self.cancelled().await;
                tokio::time::sleep(CANCEL_GRACE).await;
            } => None,
        }
    }

    /// Gives the slots back until the guard is dropped: the handler waits for a child.
    pub(crate) fn park(self: &Arc<Self>) -> Parked {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.children_awaited += 1;
        if taken.children_awaited == 1 && !taken.given_back {
            self.slots.park(self.class, self.count);
        }
        Parked(Arc::clone(self))
    }

    fn unpark(&self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.children_awaited -= 1;
        if taken.children_awaited == 0 && !taken.given_back {
            self.slots.unpark(self.class, self.count);
        }
    }

    /// It does not begin: its slots are taken over by runs of its dispatches one by one.
    pub(crate) fn hand_over(&self) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).given_back = true;
    }

    /// The handler has ended: its slots are free, whatever its context is still used for.
    pub(crate) fn end(&self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut taken.given_back, true) {
            if taken.children_awaited > 0 {
                self.slots.unpark(self.class, self.count);
            }
            self.slots.give_back(self.class, self.count);
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.end();
    }
}

/// While it lives, the slots are free for others.
#[derive(Debug)]
pub(crate) struct Parked(Arc<Run>);

impl Drop for Parked {
    fn drop(&mut self) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(slots: &Arc<Slots>, budget: Duration) -> Arc<Run> {
        assert_eq!(slots.take(Priority::P2, 1), 1);
        Arc::new(Run::new(Priority::P2, clock::now().after(budget), Arc::clone(slots), 1))
    }

    #[tokio::test]
    async fn a_run_that_is_revoked_is_cancelled_at_once() {
        let run = run(&Arc::new(Slots::new(4)), Duration::from_secs(60));
        let waiting = tokio::spawn({
            let run = Arc::clone(&run);
            async move { run.cancelled().await }
        });
        tokio::task::yield_now().await;
        run.revoke(1);
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn an_extended_run_outlives_its_first_deadline() {
        let run = run(&Arc::new(Slots::new(4)), Duration::from_millis(30));
        let begun = Instant::now();
        run.extend(clock::now().after(Duration::from_millis(120)));
        run.cancelled().await;
        assert!(begun.elapsed() >= Duration::from_millis(100));
    }

    #[tokio::test]
    async fn two_children_at_once_free_one_slot() {
        let slots = Arc::new(Slots::new(4));
        let run = run(&slots, Duration::from_secs(60));
        let (first, second) = (run.park(), run.park());
        assert_eq!(slots.running(), 0);
        drop(first);
        assert_eq!(slots.running(), 0);
        drop(second);
        assert_eq!(slots.running(), 1);
        drop(run);
        assert_eq!(slots.running(), 0);
    }

    #[tokio::test]
    async fn a_handler_that_ended_frees_its_slot_even_while_a_child_is_awaited_elsewhere() {
        let slots = Arc::new(Slots::new(1));
        let run = run(&slots, Duration::from_secs(60));
        let parked = run.park();
        run.end();
        drop((parked, run));
        assert_eq!(slots.running(), 0);
        assert_eq!(slots.room(Priority::P2), 1);
    }

    #[tokio::test]
    async fn a_handler_that_ignores_its_cancellation_is_dropped() {
        let run = run(&Arc::new(Slots::new(4)), Duration::ZERO);
        assert_eq!(run.bound(std::future::pending::<()>()).await, None);
    }

    #[tokio::test]
    async fn a_batch_is_cancelled_when_all_of_it_has_ended() {
        let slots = Arc::new(Slots::new(8));
        assert_eq!(slots.take(Priority::P2, 3), 3);
        let deadline = clock::now().after(Duration::from_secs(60));
        let run = Run::new(Priority::P2, deadline, Arc::clone(&slots), 3);
        run.revoke(2);
        assert!(!run.is_cancelled());
        run.revoke(1);
        run.cancelled().await;
        run.end();
        assert_eq!(slots.running(), 0);
    }
}
