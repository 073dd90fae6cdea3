//! Waiting callers: who waits for which slot of which envelope. Owns the table; receives nothing itself.
//!
//! The rule it keeps: one entry for each envelope, not for each dispatch; and nobody waits for ever: what was answered by
//! nobody long after its time is reported as unknown.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use governance::{DispatchId, InstanceId};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, ErrorKind};
use crate::reply::Reply;

/// The default budget of a request, which its home applies.
const BUDGET_DEFAULT: Duration = Duration::from_secs(30);
/// How long after its budget a reply may come: a home that fell silent is replaced, and its work replayed, well within.
const GRACE: Duration = Duration::from_secs(60);

/// The budget of a request that gives none, or its own.
pub(crate) const fn budget(given: Duration) -> Duration {
    if given.is_zero() { BUDGET_DEFAULT } else { given }
}

/// A caller that waits for a reply, and for progress if it listens.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) reply: oneshot::Sender<Result<Reply, Error>>,
    pub(crate) progress: Option<mpsc::Sender<Value>>,
}

#[derive(Debug)]
struct Envelope {
    slots: Vec<Option<Waiter>>,
    waiting: usize,
    overdue_at: Instant,
}

/// All waiting callers of one instance, by envelope sequence.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<HashMap<u64, Envelope>>);

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Envelope>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters the callers of an envelope, slot by slot; `budget` is the longest of theirs.
    pub(crate) fn enter(&self, sequence: u64, slots: Vec<Option<Waiter>>, budget: Duration) {
        let waiting = slots.iter().flatten().count();
        if waiting > 0 {
            let overdue_at = Instant::now() + budget + GRACE;
            self.lock().insert(sequence, Envelope { slots, waiting, overdue_at });
        }
    }

    /// Takes the callers of an envelope out again, which was not sent, or of which nobody knows.
    pub(crate) fn withdraw(&self, sequence: u64) -> Vec<Option<Waiter>> {
        self.lock().remove(&sequence).map(|e| e.slots).unwrap_or_default()
    }

    /// Begins their time anew: the envelope was accepted only now.
    pub(crate) fn accepted(&self, sequence: u64, budget: Duration) {
        if let Some(envelope) = self.lock().get_mut(&sequence) {
            envelope.overdue_at = Instant::now() + budget + GRACE;
        }
    }

    /// Takes the caller of one slot.
    pub(crate) fn take(&self, sequence: u64, slot: u16) -> Option<Waiter> {
        let mut table = self.lock();
        let envelope = table.get_mut(&sequence)?;
        let waiter = envelope.slots.get_mut(usize::from(slot))?.take()?;
        envelope.waiting -= 1;
        if envelope.waiting == 0 {
            table.remove(&sequence);
        }
        Some(waiter)
    }

    /// Hands a progress note to the caller of a slot, unless it does not listen or is behind.
    pub(crate) fn note(&self, sequence: u64, slot: u16, note: Value) {
        let table = self.lock();
        let waiter = table.get(&sequence).and_then(|e| e.slots.get(usize::from(slot))?.as_ref());
        if let Some(progress) = waiter.and_then(|w| w.progress.as_ref()) {
            // A caller that does not keep up misses notes; they are not results.
            drop(progress.try_send(note));
        }
    }

    /// The handler of an envelope's dispatch was given more time: so is its reply.
    pub(crate) fn extend(&self, sequence: u64, left: Duration) {
        if let Some(envelope) = self.lock().get_mut(&sequence) {
            envelope.overdue_at = envelope.overdue_at.max(Instant::now() + left + GRACE);
        }
    }

    /// Tells those who waited too long that the outcome is unknown.
    pub(crate) fn sweep(&self, instance: InstanceId, now: Instant) {
        let overdue: Vec<(u64, Envelope)> = {
            let mut table = self.lock();
            let sequences: Vec<u64> =
                table.iter().filter(|(_, e)| e.overdue_at <= now).map(|(s, _)| *s).collect();
            sequences.into_iter().filter_map(|s| table.remove(&s).map(|e| (s, e))).collect()
        };
        for (sequence, envelope) in overdue {
            for (slot, waiter) in envelope.slots.into_iter().enumerate() {
                let Some(waiter) = waiter else { continue };
                let id = DispatchId { instance, sequence, slot: slot as u16, copy: 0 };
                let error = Error::new(ErrorKind::Unknown, "no reply came in time").with_id(id);
                // The caller may be gone.
                drop(waiter.reply.send(Err(error)));
            }
        }
    }

    /// Drops all: the callers learn that the agent stopped.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    /// Envelopes with waiting callers.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiter() -> (Waiter, oneshot::Receiver<Result<Reply, Error>>) {
        let (reply, replied) = oneshot::channel();
        (Waiter { reply, progress: None }, replied)
    }

    #[test]
    fn an_envelope_leaves_the_table_with_its_last_caller() {
        let waiters = Waiters::default();
        let ((first, _a), (third, _b)) = (waiter(), waiter());
        waiters.enter(7, vec![Some(first), None, Some(third)], Duration::ZERO);
        assert!(waiters.take(7, 1).is_none(), "nobody waits for slot 1");
        assert!(waiters.take(7, 0).is_some());
        assert!(waiters.take(7, 0).is_none(), "a reply is handed over once");
        assert!(waiters.take(7, 2).is_some());
        assert_eq!(waiters.len(), 0);
    }

    #[test]
    fn who_waits_far_beyond_the_deadline_learns_that_the_outcome_is_unknown() {
        let waiters = Waiters::default();
        let (waiter, mut replied) = waiter();
        waiters.enter(3, vec![Some(waiter)], Duration::from_secs(1));
        waiters.sweep(InstanceId(9), Instant::now());
        assert!(replied.try_recv().is_err(), "not yet");
        waiters.sweep(InstanceId(9), Instant::now() + Duration::from_secs(2) + GRACE);
        let error = replied.try_recv().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unknown);
        assert_eq!(error.id().unwrap().sequence, 3);
    }

    #[test]
    fn an_envelope_without_callers_is_not_kept() {
        let waiters = Waiters::default();
        waiters.enter(1, vec![None, None], Duration::ZERO);
        assert_eq!(waiters.len(), 0);
    }
}
