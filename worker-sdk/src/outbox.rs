//! The outbox: from a caller's dispatch to its lane on the broker. Owns packing, sequences and retries.
//!
//! The rule it keeps: sequences are dense. An envelope that the broker refused gives its sequence to the next one; one
//! whose fate is unknown keeps it, and is published under it again and again until the broker confirms. In each lane
//! subject one envelope is on its way at a time, and what arrives meanwhile is packed into the next: one dispatch goes at
//! once, many go together, in their order.

mod item;
mod tally;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use broker::PublishError;
use bytes::Bytes;
use governance::{AgentId, DispatchId, Priority};
use protocol::{envelope, subjects};
use tokio::sync::{Notify, Semaphore};

pub(crate) use self::item::{Accept, Head, Item, weight};
pub(crate) use self::tally::{Share, Tally};

use self::item::Load;
use crate::core::Core;
use crate::error::{Error, ErrorKind};
use crate::retry::Backoff;
use crate::waiters;

/// An envelope is closed at this size: bigger ones gain little on the broker and cost latency.
const ENVELOPE_BYTES_MAX: usize = 64 * 1024;
/// Dispatches of one envelope: what a small one costs on its way is then the envelope's cost by the thousand.
const ENVELOPE_DISPATCHES_MAX: usize = 4_096;
/// An envelope holds no more than the quota gives in this time, so that it never waits long for itself.
const ENVELOPE_QUOTA: Duration = Duration::from_millis(50);
/// What may wait in the process for one lane subject, in units of [`ROOM_UNIT`] bytes or one dispatch: 16,384 small
/// dispatches, or 32 MiB of large ones.
const LANE_ROOM: usize = 16_384;
pub(crate) const ROOM_UNIT: usize = 2 * 1024;
/// What one caller hands over at once, in the same units: never so much that it waits for itself.
pub(crate) const HANDED_OVER_MAX: u32 = 4_096;
/// Lane subjects remembered while idle.
const LANES_IDLE_MAX: usize = 4_096;
/// How long the broker may leave a publish unconfirmed before its callers are told that nobody knows.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(60);

/// How many dispatches these are.
fn count(batch: &[Item]) -> usize {
    batch.iter().map(Item::count).sum()
}

/// The bytes of an envelope. What was handed over together differs in its payloads alone, and nothing else is looked at for each.
fn pack(core: &Core, sequence: u64, batch: &[Item]) -> Vec<u8> {
    let rows = batch.iter().flat_map(|item| (0..item.count()).map(move |nth| item.outgoing(nth)));
    match batch {
        [item @ Item { load: Load::Many(payloads), .. }] => {
            let payloads = payloads.iter().map(|payload| &payload[..]);
            envelope::write_alike(core.instance, sequence, &item.outgoing(0), payloads)
        }
        _ => envelope::write(core.instance, sequence, "", &rows.collect::<Vec<_>>()),
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
        let (mut batch, mut dispatches, mut bytes) = (Vec::new(), 0, 0);
        while let Some(item) = queue.items.front_mut() {
            if item.is_abandoned() {
                self.room.add_permits(item.weight() as usize);
                queue.items.pop_front();
                continue;
            }
            let (fit, more) = item.fits(dispatches_max - dispatches, ENVELOPE_BYTES_MAX - bytes);
            // One that is larger than an envelope goes alone.
            let alone = fit == 0 && batch.is_empty();
            let count = if alone { 1 } else { fit };
            if count < item.count() {
                batch.extend(if count > 0 { item.split_front(count) } else { None });
                break;
            }
            (dispatches, bytes) = (dispatches + count, bytes + more);
            batch.extend(queue.items.pop_front());
            if alone {
                break;
            }
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
        let count = count(&batch);
        core.signals.pace(lane.priority, count).await;
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
    let payload = Bytes::from(pack(core, sequence, &batch));
    let budget = batch.iter().map(|item| waiters::budget(item.head.budget)).max().unwrap_or_default();
    if batch.iter().any(|item| item.waiter.is_some()) {
        let slots = batch.iter_mut().flat_map(|item| {
            let others = item.count() - 1;
            std::iter::once(item.waiter.take()).chain(std::iter::repeat_with(|| None).take(others))
        });
        core.waiters.enter(sequence, slots.collect(), budget);
    }

    let mut batch = Some(batch);
    match publish(core, lane, sequence, payload, &mut batch).await {
        Ok(()) => {
            core.waiters.accepted(sequence, budget);
            for (id, item) in numbered(core, sequence, batch.unwrap_or_default()) {
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
            let mut waiters = core.waiters.withdraw(sequence);
            core.outbox.sequences().unused.insert(sequence);
            let is_full = refusal.kind() == ErrorKind::LaneFull;
            let mut again = Vec::new();
            for (id, mut item) in numbered(core, sequence, batch.unwrap_or_default()) {
                item.waiter = waiters.get_mut(usize::from(id.slot)).and_then(Option::take);
                if is_full && item.head.wait_for_room {
                    again.push(item);
                } else {
                    item.fail(refusal.clone());
                }
            }
            again
        }
    }
}

/// What is in an envelope, with the first id of each.
fn numbered(
    core: &Core,
    sequence: u64,
    batch: Vec<Item>,
) -> impl Iterator<Item = (DispatchId, Item)> + use<> {
    let instance = core.instance;
    let mut slot = 0;
    batch.into_iter().map(move |item| {
        let id = DispatchId { instance, sequence, slot: slot as u16, copy: 0 };
        slot += item.count();
        (id, item)
    })
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
    let mut waiters = core.waiters.withdraw(sequence);
    for (id, mut item) in numbered(core, sequence, items) {
        item.waiter = waiters.get_mut(usize::from(id.slot)).and_then(Option::take);
        item.fail(Error::new(ErrorKind::Unknown, "the broker does not confirm the dispatch").with_id(id));
    }
}

#[cfg(test)]
mod tests;
