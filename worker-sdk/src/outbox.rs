//! The outbox: from a caller's dispatch to its lane on the broker. Owns packing, sequences and retries.
//!
//! The rule it keeps: sequences are dense. An envelope that the broker refused gives its sequence to the next one; one
//! whose fate is unknown keeps it, and is published under it again and again until the broker confirms. In each lane
//! subject one envelope is on its way at a time, and what arrives meanwhile is packed into the next: one dispatch goes at
//! once, many go together, in their order.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use broker::PublishError;
use bytes::Bytes;
use governance::{AgentId, DispatchId, Kind, Priority};
use protocol::envelope::{self, Outgoing};
use protocol::subjects;
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::core::Core;
use crate::error::{Error, ErrorKind};
use crate::retry::Backoff;
use crate::waiters::{self, Waiter};

/// An envelope is closed at this size: bigger ones gain little on the broker and cost latency.
const ENVELOPE_BYTES_MAX: usize = 64 * 1024;
/// Dispatches of one envelope.
const ENVELOPE_DISPATCHES_MAX: usize = 512;
/// An envelope holds no more than the quota gives in this time, so that it never waits long for itself.
const ENVELOPE_QUOTA: Duration = Duration::from_millis(50);
/// What may wait in the process for one lane subject, in units of [`ROOM_UNIT`] bytes or one dispatch: 8,192 small
/// dispatches, or 32 MiB of large ones.
const LANE_ROOM: usize = 8_192;
const ROOM_UNIT: usize = 4 * 1024;
/// Lane subjects remembered while idle.
const LANES_IDLE_MAX: usize = 4_096;
/// How long the broker may leave a publish unconfirmed before its callers are told that nobody knows.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(60);

/// What dispatches of one `send_many` have in common.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) capability: String,
    pub(crate) topic: String,
    pub(crate) budget: Duration,
    pub(crate) lineage: Bytes,
    pub(crate) conversation: String,
    pub(crate) order_key: String,
    pub(crate) idempotency_key: String,
    pub(crate) trace: String,
    pub(crate) content_type: String,
    pub(crate) wait_for_room: bool,
}

impl Head {
    pub(crate) const fn new(kind: Kind) -> Self {
        Self {
            kind,
            capability: String::new(),
            topic: String::new(),
            budget: Duration::ZERO,
            lineage: Bytes::new(),
            conversation: String::new(),
            order_key: String::new(),
            idempotency_key: String::new(),
            trace: String::new(),
            content_type: String::new(),
            wait_for_room: true,
        }
    }
}

/// Who wants to know whether it was accepted.
#[derive(Debug)]
pub(crate) enum Accept {
    /// Nobody: the reply tells all. A failure to send goes to the waiter.
    Nobody,
    /// One caller.
    One(oneshot::Sender<Result<DispatchId, Error>>),
    /// A caller of many.
    Many(Share),
}

/// One dispatch in the outbox.
#[derive(Debug)]
pub(crate) struct Item {
    head: Arc<Head>,
    payload: Bytes,
    accept: Accept,
    waiter: Option<Waiter>,
}

impl Item {
    pub(crate) const fn new(head: Arc<Head>, payload: Bytes, accept: Accept, waiter: Option<Waiter>) -> Self {
        Self { head, payload, accept, waiter }
    }

    fn bytes(&self) -> usize {
        self.payload.len() + self.head.lineage.len()
    }

    fn weight(&self) -> u32 {
        (1 + self.bytes() / ROOM_UNIT) as u32
    }

    /// Whether nobody is interested any more, so that it need not be sent.
    fn is_abandoned(&self) -> bool {
        match (&self.accept, &self.waiter) {
            (Accept::One(accept), _) => accept.is_closed(),
            (Accept::Nobody, Some(waiter)) => waiter.reply.is_closed(),
            (Accept::Nobody, None) | (Accept::Many(_), _) => false,
        }
    }

    fn fail(self, error: Error) {
        // A caller may have gone meanwhile; then nobody is left to be told.
        match (self.accept, self.waiter) {
            (Accept::One(accept), _) => drop(accept.send(Err(error))),
            (Accept::Many(share), _) => share.settle(Err(error)),
            (Accept::Nobody, Some(waiter)) => drop(waiter.reply.send(Err(error))),
            (Accept::Nobody, None) => {}
        }
    }

    fn outgoing(&self) -> Outgoing<'_> {
        Outgoing {
            kind: self.head.kind,
            capability: &self.head.capability,
            topic: &self.head.topic,
            budget: self.head.budget,
            lineage: &self.head.lineage,
            conversation: &self.head.conversation,
            order_key: &self.head.order_key,
            idempotency_key: &self.head.idempotency_key,
            trace: &self.head.trace,
            content_type: &self.head.content_type,
            payload: &self.payload,
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Item>,
    /// Whether a task is sending from it.
    driven: bool,
}

/// One lane subject: what waits for it in this process.
#[derive(Debug)]
struct Lane {
    priority: Priority,
    subject: String,
    queue: Mutex<Queue>,
    room: Semaphore,
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what fits into one envelope; none, and the lane counts as not driven, where nothing waits.
    fn take(&self, dispatches_max: usize) -> Option<Vec<Item>> {
        let mut queue = self.lock();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(item) = queue.items.pop_front() {
            if item.is_abandoned() {
                self.room.add_permits(item.weight() as usize);
                continue;
            }
            bytes += item.bytes();
            if !batch.is_empty() && (batch.len() >= dispatches_max || bytes > ENVELOPE_BYTES_MAX) {
                queue.items.push_front(item);
                break;
            }
            batch.push(item);
        }
        queue.driven = !batch.is_empty();
        queue.driven.then_some(batch)
    }

    /// Puts items back in front, in their order.
    fn put_back(&self, items: Vec<Item>) {
        let mut queue = self.lock();
        for item in items.into_iter().rev() {
            queue.items.push_front(item);
        }
    }
}

/// Dense envelope sequences of one instance, from 1.
#[derive(Debug, Default)]
struct Sequences {
    last: u64,
    /// Sequences of envelopes that were refused.
    unused: BTreeSet<u64>,
}

impl Sequences {
    fn draw(&mut self) -> u64 {
        self.unused.pop_first().unwrap_or_else(|| {
            self.last += 1;
            self.last
        })
    }
}

type LaneKey = (Priority, Option<AgentId>);

/// Everything that one instance is about to send.
#[derive(Debug)]
pub(crate) struct Outbox {
    lanes: Mutex<HashMap<LaneKey, Arc<Lane>>>,
    sequences: Mutex<Sequences>,
    dispatches_max: AtomicUsize,
    driven: AtomicUsize,
    settled: Notify,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self {
            lanes: Mutex::default(),
            sequences: Mutex::default(),
            dispatches_max: AtomicUsize::new(1),
            driven: AtomicUsize::new(0),
            settled: Notify::new(),
        }
    }

    /// Sizes envelopes for a quota.
    pub(crate) fn set_rate(&self, rate_per_s: u32) {
        let share = u64::from(rate_per_s) * ENVELOPE_QUOTA.as_millis() as u64 / 1_000;
        self.dispatches_max.store((share as usize).clamp(1, ENVELOPE_DISPATCHES_MAX), Ordering::Relaxed);
    }

    fn lane(&self, source: &AgentId, priority: Priority, target: Option<&AgentId>) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (priority, target.cloned());
        if let Some(lane) = lanes.get(&key) {
            return Arc::clone(lane);
        }
        if lanes.len() >= LANES_IDLE_MAX {
            lanes.retain(|_, lane| Arc::strong_count(lane) > 1 || lane.lock().driven);
        }
        let lane = Arc::new(Lane {
            priority,
            subject: subjects::lane(priority, source, target),
            queue: Mutex::default(),
            room: Semaphore::new(LANE_ROOM),
        });
        lanes.insert(key, Arc::clone(&lane));
        lane
    }

    fn sequences(&self) -> MutexGuard<'_, Sequences> {
        self.sequences.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nothing is on its way any more.
    pub(crate) async fn sent(&self) {
        loop {
            let settled = self.settled.notified();
            if self.driven.load(Ordering::Acquire) == 0 {
                return;
            }
            settled.await;
        }
    }
}

impl Core {
    /// Puts a dispatch into the outbox, once there is room for it, and sees to it that it is sent.
    pub(crate) async fn enqueue(
        self: &Arc<Self>,
        priority: Priority,
        target: Option<&AgentId>,
        item: Item,
    ) -> Result<(), Error> {
        if self.is_closed() {
            return Err(Error::closed());
        }
        let lane = self.outbox.lane(&self.name, priority, target);
        let room = if item.head.wait_for_room {
            lane.room.acquire_many(item.weight()).await.map_err(|_| Error::closed())?
        } else {
            lane.room
                .try_acquire_many(item.weight())
                .map_err(|_| Error::new(ErrorKind::LaneFull, "too much waits to be sent already"))?
        };
        // It is given back when the envelope is settled.
        room.forget();
        let mut queue = lane.lock();
        queue.items.push_back(item);
        if !queue.driven {
            queue.driven = true;
            self.outbox.driven.fetch_add(1, Ordering::AcqRel);
            self.supervisor.spawn(drive(Arc::clone(self), Arc::clone(&lane)));
        }
        Ok(())
    }
}

/// Sends what waits for a lane subject until nothing is left.
async fn drive(core: Arc<Core>, lane: Arc<Lane>) {
    let mut backoff = Backoff::default();
    while let Some(batch) = lane.take(core.outbox.dispatches_max.load(Ordering::Relaxed)) {
        core.signals.pace(lane.priority, batch.len()).await;
        let count = batch.len();
        let weight: usize = batch.iter().map(|i| i.weight() as usize).sum();
        let returned = send(&core, &lane, batch).await;
        if returned.is_empty() {
            tracing::trace!(subject = lane.subject, count, "envelope settled");
            lane.room.add_permits(weight);
            backoff.reset();
        } else {
            let kept: usize = returned.iter().map(|i| i.weight() as usize).sum();
            lane.room.add_permits(weight - kept);
            lane.put_back(returned);
            backoff.wait().await;
        }
    }
    core.outbox.driven.fetch_sub(1, Ordering::AcqRel);
    core.outbox.settled.notify_waiters();
}

/// Sends one envelope; gives back what is to be tried again because the lane is full.
async fn send(core: &Arc<Core>, lane: &Lane, mut batch: Vec<Item>) -> Vec<Item> {
    let sequence = core.outbox.sequences().draw();
    let rows: Vec<Outgoing<'_>> = batch.iter().map(Item::outgoing).collect();
    let payload = Bytes::from(envelope::write(core.instance, sequence, "", &rows));
    let budget = rows.iter().map(|r| waiters::budget(r.budget)).max().unwrap_or_default();
    let slots = batch.iter_mut().map(|i| i.waiter.take()).collect();
    core.waiters.enter(sequence, slots, budget);

    let mut batch = Some(batch);
    match publish(core, lane, sequence, payload, &mut batch).await {
        Ok(()) => {
            core.waiters.accepted(sequence, budget);
            for (slot, item) in batch.into_iter().flatten().enumerate() {
                let id = DispatchId { instance: core.instance, sequence, slot: slot as u16, copy: 0 };
                match item.accept {
                    Accept::Nobody => {}
                    // A caller may have gone meanwhile; the dispatch goes on.
                    Accept::One(accept) => drop(accept.send(Ok(id))),
                    Accept::Many(share) => share.settle(Ok(id)),
                }
            }
            Vec::new()
        }
        Err(refusal) => {
            let waiters = core.waiters.withdraw(sequence);
            core.outbox.sequences().unused.insert(sequence);
            let mut batch = batch.unwrap_or_default();
            for (item, waiter) in batch.iter_mut().zip(waiters) {
                item.waiter = waiter;
            }
            let is_full = refusal.kind() == ErrorKind::LaneFull;
            let (again, failed): (Vec<_>, Vec<_>) =
                batch.into_iter().partition(|item| is_full && item.head.wait_for_room);
            failed.into_iter().for_each(|item| item.fail(refusal.clone()));
            again
        }
    }
}

/// Publishes an envelope until the broker has either stored or refused it. Callers who would wait too long for that are
/// told that the outcome is unknown, and are then no longer in the batch.
async fn publish(
    core: &Arc<Core>,
    lane: &Lane,
    sequence: u64,
    payload: Bytes,
    batch: &mut Option<Vec<Item>>,
) -> Result<(), Error> {
    let message_id = format!("{}:{sequence}", core.instance);
    let begun = tokio::time::Instant::now();
    let mut backoff = Backoff::default();
    // Once a publish went unconfirmed, the envelope may lie in the lane, whatever is said about later attempts.
    let mut may_be_stored = false;
    loop {
        let ack =
            core.publisher.publish(lane.subject.clone(), Some(&message_id), None, payload.clone()).await;
        match ack.await {
            Ok(_) => return Ok(()),
            Err(PublishError::Full) if !may_be_stored => {
                return Err(Error::new(ErrorKind::LaneFull, "the lane for this target is full"));
            }
            Err(PublishError::Refused(why)) if !may_be_stored => {
                return Err(Error::new(
                    ErrorKind::Connection,
                    format!("the broker refused the dispatch: {why}"),
                ));
            }
            Err(PublishError::Unconfirmed(why)) => {
                tracing::debug!(subject = lane.subject, sequence, why, "unconfirmed; publishing again");
                may_be_stored = true;
            }
            Err(error @ (PublishError::Full | PublishError::Refused(_) | PublishError::Fenced)) => {
                tracing::debug!(subject = lane.subject, sequence, %error, "publishing again");
            }
        }
        if begun.elapsed() > UNCONFIRMED_MAX
            && let Some(items) = batch.take()
        {
            tracing::warn!(
                subject = lane.subject,
                sequence,
                "the broker does not confirm; the outcome is unknown"
            );
            tell_unknown(core, sequence, items);
        }
        backoff.wait().await;
    }
}

fn tell_unknown(core: &Core, sequence: u64, items: Vec<Item>) {
    let mut waiters = core.waiters.withdraw(sequence).into_iter();
    for (slot, mut item) in items.into_iter().enumerate() {
        item.waiter = waiters.next().flatten();
        let id = DispatchId { instance: core.instance, sequence, slot: slot as u16, copy: 0 };
        item.fail(Error::new(ErrorKind::Unknown, "the broker does not confirm the dispatch").with_id(id));
    }
}

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

/// The share of one dispatch in a tally; one that is dropped counts as not sent.
#[derive(Debug)]
pub(crate) struct Share(Option<Arc<Tally>>);

impl Tally {
    fn lock(&self) -> MutexGuard<'_, TallyState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn one_more(self: &Arc<Self>) -> Share {
        self.lock().open += 1;
        Share(Some(Arc::clone(self)))
    }

    fn settle(&self, result: Result<DispatchId, Error>) {
        let mut state = self.lock();
        state.open -= 1;
        match (result, state.runs.last_mut()) {
            (Ok(id), Some((first, count)))
                if (id.instance, id.sequence) == (first.instance, first.sequence)
                    && first.slot.checked_add(*count) == Some(id.slot) =>
            {
                *count += 1;
            }
            (Ok(id), _) => state.runs.push((id, 1)),
            (Err(error), _) => drop(state.error.get_or_insert(error)),
        }
        if state.open == 0 {
            self.settled.notify_one();
        }
    }

    /// Waits until each has been accepted or was not.
    pub(crate) async fn finish(&self) -> Result<crate::reply::AcceptedMany, Error> {
        loop {
            {
                let mut state = self.lock();
                if state.open == 0 {
                    let runs = std::mem::take(&mut state.runs);
                    return state.error.take().map_or(Ok(crate::reply::AcceptedMany { runs }), Err);
                }
            }
            self.settled.notified().await;
        }
    }
}

impl Share {
    pub(crate) fn settle(mut self, result: Result<DispatchId, Error>) {
        if let Some(tally) = self.0.take() {
            tally.settle(result);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(tally) = self.0.take() {
            tally.settle(Err(Error::closed()));
        }
    }
}

#[cfg(test)]
mod tests;
