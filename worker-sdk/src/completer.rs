//! Completions: from the end of a handler to the durable report of it. Owns packing and retries.
//!
//! The rule it keeps: a dispatch counts as settled only when the broker has confirmed its completion. For each source and
//! priority one report is on its way at a time, and what ends meanwhile is packed into the next.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use governance::{AgentId, DispatchId, Outcome, Priority, Reason};
use protocol::completion::{self, Completion};
use protocol::subjects;

use crate::core::Core;
use crate::held::Held;
use crate::retry::Backoff;

/// A report is closed at this size.
const REPORT_BYTES_MAX: usize = 64 * 1024;
/// Rows of one report.
const REPORT_ROWS_MAX: usize = 4_096;
/// Subjects remembered while idle.
const LANES_IDLE_MAX: usize = 4_096;

/// Consecutive dispatches that have ended here alike.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) first: DispatchId,
    pub(crate) count: u16,
    pub(crate) lane: Priority,
    pub(crate) source: Arc<AgentId>,
    pub(crate) outcome: Outcome,
    pub(crate) reason: Reason,
    pub(crate) ran_us: u32,
    pub(crate) inbox_us: u32,
    pub(crate) attempt: u8,
    pub(crate) payload: Bytes,
    pub(crate) content_type: String,
    pub(crate) inbox_ack: String,
    pub(crate) held: Arc<Held>,
    /// Of one that ran alone: the next of its kind waits until this end is confirmed.
    pub(crate) alone: Option<Alone>,
}

impl Done {
    fn completion(&self) -> Completion<'_> {
        Completion {
            first: self.first,
            count: self.count,
            outcome: self.outcome,
            reason: self.reason,
            ran_us: self.ran_us,
            inbox_us: self.inbox_us,
            attempt: self.attempt,
            payload: &self.payload,
            content_type: &self.content_type,
            inbox_ack: &self.inbox_ack,
        }
    }
}

/// The turn of a dispatch that is run with no other of its kind beside it.
pub(crate) type Alone = tokio::sync::OwnedMutexGuard<()>;

#[derive(Debug, Default)]
struct Queue {
    rows: VecDeque<Done>,
    driven: bool,
}

#[derive(Debug)]
struct Lane {
    subject: String,
    queue: Mutex<Queue>,
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Vec<Done>> {
        let mut queue = self.lock();
        let (mut fits, mut bytes) = (0, 0);
        for done in queue.rows.iter().take(REPORT_ROWS_MAX) {
            bytes += done.payload.len() + done.inbox_ack.len();
            if fits > 0 && bytes > REPORT_BYTES_MAX {
                break;
            }
            fits += 1;
        }
        queue.driven = fits > 0;
        queue.driven.then(|| queue.rows.drain(..fits).collect())
    }
}

type LaneKey = (Priority, Arc<AgentId>);

/// The completions of one instance that are not confirmed. As many at most as it may hold dispatches.
#[derive(Debug, Default)]
pub(crate) struct Completer {
    lanes: Mutex<HashMap<LaneKey, Arc<Lane>>>,
    reports: AtomicU64,
}

impl Completer {
    fn lane(&self, target: &AgentId, done: &Done) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (done.lane, Arc::clone(&done.source));
        if let Some(lane) = lanes.get(&key) {
            return Arc::clone(lane);
        }
        if lanes.len() >= LANES_IDLE_MAX {
            lanes.retain(|_, lane| Arc::strong_count(lane) > 1 || lane.lock().driven);
        }
        let subject = subjects::done(done.lane, &done.source, target);
        let lane = Arc::new(Lane { subject, queue: Mutex::default() });
        lanes.insert(key, Arc::clone(&lane));
        lane
    }
}

impl Core {
    /// Reports dispatches that have ended, and settles them in their message once that is confirmed.
    pub(crate) fn complete(self: &Arc<Self>, done: Done) {
        let lane = self.completer.lane(&self.name, &done);
        let mut queue = lane.lock();
        queue.rows.push_back(done);
        if !queue.driven {
            queue.driven = true;
            self.supervisor.spawn(drive(Arc::clone(self), Arc::clone(&lane)));
        }
    }
}

async fn drive(core: Arc<Core>, lane: Arc<Lane>) {
    while let Some(batch) = lane.take() {
        let payload = Bytes::from(completion::write(core.instance, &rows(&batch)));
        let number = core.completer.reports.fetch_add(1, Ordering::Relaxed);
        let message_id = format!("{}:c{number}", core.instance);
        let mut backoff = Backoff::default();
        loop {
            let subject = lane.subject.clone();
            let ack = core.publisher.publish(subject, Some(&message_id), None, payload.clone()).await;
            let Err(error) = ack.await else { break };
            tracing::debug!(subject = lane.subject, %error, "completion unconfirmed; publishing again");
            backoff.wait().await;
        }
        for done in batch {
            done.held.settle(&core, done.count.into()).await;
            drop(done.alone);
        }
    }
}

/// The rows of a report; consecutive slots that ended alike are one.
fn rows(batch: &[Done]) -> Vec<Completion<'_>> {
    let mut rows: Vec<Completion<'_>> = Vec::with_capacity(batch.len());
    for done in batch {
        let next = done.completion();
        match rows.last_mut() {
            Some(last) if continues(last, &next) => last.count += next.count,
            Some(_) | None => rows.push(next),
        }
    }
    rows
}

fn continues(last: &Completion<'_>, next: &Completion<'_>) -> bool {
    let follows = DispatchId { slot: 0, ..last.first } == DispatchId { slot: 0, ..next.first }
        && last.first.slot.checked_add(last.count) == Some(next.first.slot)
        && last.count.checked_add(next.count).is_some();
    // Failed events are told apart by their acknowledgement, and latencies are exact.
    follows
        && next.inbox_ack.is_empty()
        && Completion { first: last.first, count: last.count, ..*next } == *last
}

#[cfg(test)]
mod tests {
    use governance::InstanceId;

    use super::*;

    fn completion(slot: u16, payload: &'static [u8]) -> Completion<'static> {
        Completion {
            first: DispatchId { instance: InstanceId(1), sequence: 2, slot, copy: 0 },
            count: 1,
            outcome: Outcome::Success,
            reason: Reason::Ok,
            ran_us: 5,
            inbox_us: 6,
            attempt: 1,
            payload,
            content_type: "",
            inbox_ack: "",
        }
    }

    #[test]
    fn consecutive_slots_that_ended_alike_continue_a_row() {
        let first = Completion { count: 3, ..completion(0, b"") };
        assert!(continues(&first, &completion(3, b"")));
        assert!(continues(&first, &Completion { count: 9, ..completion(3, b"") }), "a batch goes on");
        assert!(!continues(&first, &completion(4, b"")), "a slot is missing");
        assert!(!continues(&first, &completion(3, b"other")));
        assert!(!continues(&first, &Completion { ran_us: 9, ..completion(3, b"") }));
        let other = DispatchId { sequence: 3, ..completion(3, b"").first };
        assert!(!continues(&first, &Completion { first: other, ..completion(3, b"") }));
    }
}
