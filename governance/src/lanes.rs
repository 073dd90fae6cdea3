//! Lanes: the messages that a home holds, in their queues. Owns holding, order and pull credits; decides nothing.
//!
//! A message is held until each of its dispatches is decided. Its runs wait in queues, one for each (lane,
//! destination, class), in the order of arrival. A queue that cannot go on because of its target is passed by: its
//! messages leave the bound of what is held ready and count against a wider one.
//!
//! The rule it keeps, for pulls: asked for and not yet delivered, plus held ready, is at most what the quota gives
//! in 50 ms. So what is over quota waits in the broker, where it is durable, and not here.

use std::collections::VecDeque;

use crate::event::Lane;
use crate::facts::Waiting;
use crate::hash::FastMap;
use crate::names::{AgentIx, CapabilityIx, InstanceId, MessageIx};
use crate::policy::{LanePolicy, Rate};
use crate::slab::Slab;
use crate::time::{Timestamp, nanos};
use crate::words::{Kind, Priority};

/// A queue: dense from 0, never removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct QueueIx(pub u32);

/// A held message: a place in a slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HeldIx(pub u32);

/// Where a queue leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Agent(AgentIx),
    Capability(CapabilityIx),
}

/// Consecutive dispatches that wait and are alike.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeldRun {
    pub held: HeldIx,
    pub first: u16,
    pub count: u16,
    /// It is the first run of its message in its queue, and so the one by which the message counts there.
    pub counts: bool,
    /// The topic copy, 0 for none; `fan` then counts the copies.
    pub copy: u16,
    pub fan: Option<u32>,
    pub kind: Kind,
    pub capability: Option<CapabilityIx>,
    pub order_key: u64,
    /// The target at which this run holds its order key.
    pub handed: Option<AgentIx>,
    pub deadline: Timestamp,
    pub deadline_max: Timestamp,
    /// From when the mesh's own delay counts.
    pub since: Timestamp,
    pub serves_person: bool,
    pub demoted: bool,
}

/// A message with what is left to decide.
#[derive(Debug)]
pub(crate) struct Held {
    pub message: MessageIx,
    pub lane: Lane,
    pub instance: InstanceId,
    pub sequence: u64,
    pub accepted: Timestamp,
    /// Undecided dispatches, each copy of a topic counted.
    pub left: u32,
}

/// An event to a topic, until all its copies are decided.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fan {
    pub held: HeldIx,
    pub first: u16,
    pub count: u16,
    pub class: Priority,
    pub left: u32,
}

/// Where a queue stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing is in it, or nobody has looked since.
    Idle,
    /// It is in the list of its flow.
    Active,
    /// Its source is over quota.
    Quota,
    /// Its target does not take more; it is in the list of the targets named in `waiting_at`.
    Blocked,
}

/// One queue.
#[derive(Debug)]
pub(crate) struct Queue {
    pub lane: Lane,
    pub key: Key,
    /// The class of what is in it: the lane's priority, or P1 for what was demoted.
    pub class: Priority,
    /// One class higher than `class` once its head has waited for its whole budget.
    pub raised: bool,
    pub runs: VecDeque<HeldRun>,
    /// Runs passed by since their order key is busy at this target.
    pub parked: VecDeque<(AgentIx, HeldRun)>,
    pub standing: Standing,
    pub waiting: Option<Waiting>,
    pub waiting_at: Vec<AgentIx>,
    /// Dispatches in it.
    pub queued: u32,
    /// Messages with something in it.
    pub messages: u32,
    pub deadline_armed: Option<Timestamp>,
    /// When it was last let go by quota or target: until then the wait was not the mesh's.
    pub released: Timestamp,
    /// When it was last let go by the quota: until then the wait does not age.
    pub quota_released: Timestamp,
}

#[derive(Debug, Default)]
struct LaneState {
    queues: Vec<(Key, Priority, QueueIx)>,
    /// Messages asked for and not delivered.
    asked: u32,
    /// Messages of all queues; one with something in two queues counts twice.
    held: u32,
    /// Messages of blocked queues.
    blocked: u32,
    /// Messages that count by a run which is passed by for its order key.
    parked: u32,
    changed: bool,
    pulling: bool,
}

/// All lanes, queues and held messages.
#[derive(Debug)]
pub(crate) struct Lanes {
    pub messages: Slab<Held>,
    pub fans: Slab<Fan>,
    pub queues: Vec<Queue>,
    by_envelope: FastMap<(InstanceId, u64), HeldIx>,
    lanes: Vec<LaneState>,
    changed: Vec<Lane>,
}

impl Lanes {
    pub(crate) fn new() -> Self {
        Self {
            messages: Slab::new(),
            fans: Slab::new(),
            queues: Vec::new(),
            by_envelope: FastMap::default(),
            lanes: Vec::new(),
            changed: Vec::new(),
        }
    }

    /// Makes room for one more agent.
    pub(crate) fn add_agent(&mut self) {
        self.lanes.resize_with(self.lanes.len() + 4, LaneState::default);
    }

    /// Messages of this lane are wanted from now on.
    pub(crate) fn start_pulling(&mut self, lane: Lane) {
        self.lanes[place(lane)].pulling = true;
        self.mark_changed(lane);
    }

    /// The queue of a destination, made when first needed.
    pub(crate) fn queue_for(&mut self, lane: Lane, key: Key, class: Priority) -> QueueIx {
        let state = &mut self.lanes[place(lane)];
        match state.queues.binary_search_by_key(&(key, class), |(k, c, _)| (*k, *c)) {
            Ok(found) => state.queues[found].2,
            Err(gap) => {
                let ix = QueueIx(self.queues.len() as u32);
                state.queues.insert(gap, (key, class, ix));
                self.queues.push(Queue::new(lane, key, class));
                ix
            }
        }
    }

    /// Takes a message into its lane; its runs follow by `push`.
    pub(crate) fn hold(&mut self, held: Held) -> HeldIx {
        let envelope = (held.instance, held.sequence);
        let ix = HeldIx(self.messages.insert(held));
        self.by_envelope.insert(envelope, ix);
        ix
    }

    /// Appends a run to a queue.
    pub(crate) fn push(&mut self, queue: QueueIx, mut run: HeldRun) {
        self.messages.at_mut(run.held.0).left += u32::from(run.count);
        let queue = &mut self.queues[queue.0 as usize];
        queue.queued += u32::from(run.count);
        run.counts = queue.runs.back().is_none_or(|last| last.held != run.held);
        if run.counts {
            queue.messages += 1;
            let state = &mut self.lanes[place(queue.lane)];
            state.held += 1;
            state.blocked += u32::from(queue.standing == Standing::Blocked);
        }
        queue.runs.push_back(run);
    }

    /// The first `count` dispatches of a run of this queue were decided; the caller has taken them out of the run, and the run
    /// out of the queue where nothing is left of it. The message leaves with its last dispatch, and is then handed back.
    pub(crate) fn decided(&mut self, queue: QueueIx, run: &HeldRun, count: u16) -> Option<Held> {
        let queue = &mut self.queues[queue.0 as usize];
        queue.queued -= u32::from(count);
        if run.counts && count == run.count {
            queue.messages -= 1;
            let lane = queue.lane;
            let state = &mut self.lanes[place(lane)];
            state.held -= 1;
            state.blocked -= u32::from(queue.standing == Standing::Blocked);
            self.mark_changed(lane);
        }
        let message = self.messages.at_mut(run.held.0);
        message.left -= u32::from(count);
        (message.left == 0).then(|| self.release_decided(run.held))
    }

    /// Lets a message go that nothing was pushed for.
    pub(crate) fn release_decided(&mut self, ix: HeldIx) -> Held {
        let held = self.messages.remove(ix.0);
        self.by_envelope.remove(&(held.instance, held.sequence));
        self.mark_changed(held.lane);
        held
    }

    pub(crate) fn set_standing(&mut self, queue: QueueIx, standing: Standing) {
        let queue = &mut self.queues[queue.0 as usize];
        let before = std::mem::replace(&mut queue.standing, standing);
        let (messages, lane) = (queue.messages, queue.lane);
        let state = &mut self.lanes[place(lane)];
        match (before == Standing::Blocked, standing == Standing::Blocked) {
            (false, true) => state.blocked += messages,
            (true, false) => state.blocked -= messages,
            (true, true) | (false, false) => return,
        }
        self.mark_changed(lane);
    }

    /// Passes the head of a queue by until its order key is free at this target, behind or before the others that wait.
    pub(crate) fn park_head(&mut self, ix: QueueIx, target: AgentIx, first: bool) {
        let queue = &mut self.queues[ix.0 as usize];
        if let Some(mut run) = queue.runs.pop_front() {
            run.handed = None;
            if first {
                // Behind an earlier part of the same run, where a cancellation cut the run in two.
                let earlier =
                    |(_, other): &(AgentIx, HeldRun)| other.held == run.held && other.first < run.first;
                let place = queue.parked.iter().rposition(earlier).map_or(0, |before| before + 1);
                queue.parked.insert(place, (target, run));
            } else {
                queue.parked.push_back((target, run));
            }
            let lane = queue.lane;
            self.lanes[place(lane)].parked += u32::from(run.counts);
            self.mark_changed(lane);
        }
    }

    /// Hands an order key that came free to the first run of a queue that waits for it; false where none does any more.
    pub(crate) fn unpark(&mut self, ix: QueueIx, target: AgentIx, order_key: u64) -> bool {
        let queue = &mut self.queues[ix.0 as usize];
        let waits = |(t, run): &(AgentIx, HeldRun)| *t == target && run.order_key == order_key;
        let Some(found) = queue.parked.iter().position(waits) else { return false };
        let Some((_, mut run)) = queue.parked.remove(found) else { return false };
        run.handed = Some(target);
        queue.runs.push_front(run);
        let lane = queue.lane;
        self.lanes[place(lane)].parked -= u32::from(run.counts);
        true
    }

    /// A run left the parked ones without being handed its key.
    pub(crate) fn unparked(&mut self, lane: Lane, run: &HeldRun) {
        self.lanes[place(lane)].parked -= u32::from(run.counts);
    }

    /// Cuts the run that a slot is in so that the slot has a run of its own. Handed back is what this means for order keys.
    pub(crate) fn isolate(
        &mut self,
        ix: QueueIx,
        is_it: impl Fn(&HeldRun) -> bool,
        slot: u16,
    ) -> Option<Cut> {
        let queue = &mut self.queues[ix.0 as usize];
        if let Some(nth) = queue.runs.iter().position(&is_it) {
            let run = queue.runs[nth];
            let parts = run.around(slot);
            queue.runs.remove(nth);
            for part in parts.into_iter().rev().flatten() {
                queue.runs.insert(nth, part);
            }
            let holders = parts.iter().flatten().filter(|part| part.handed.is_some()).count();
            let more = run.handed.filter(|_| holders > 1);
            more.map(|target| Cut::Holds(target, run.order_key))
        } else if let Some(nth) = queue.parked.iter().position(|(_, run)| is_it(run)) {
            let (target, run) = queue.parked[nth];
            queue.parked.remove(nth);
            for part in run.around(slot).into_iter().rev().flatten() {
                queue.parked.insert(nth, (target, part));
            }
            Some(Cut::Waits(target, run.order_key))
        } else {
            None
        }
    }

    pub(crate) fn queue(&self, ix: QueueIx) -> &Queue {
        &self.queues[ix.0 as usize]
    }

    pub(crate) fn queue_mut(&mut self, ix: QueueIx) -> &mut Queue {
        &mut self.queues[ix.0 as usize]
    }

    pub(crate) fn held(&self, ix: HeldIx) -> &Held {
        self.messages.at(ix.0)
    }

    /// The held message of an envelope.
    pub(crate) fn find(&self, instance: InstanceId, sequence: u64) -> Option<HeldIx> {
        self.by_envelope.get(&(instance, sequence)).copied()
    }

    /// The queues of a lane, in the order of their keys.
    pub(crate) fn queues_of(&self, lane: Lane) -> impl Iterator<Item = QueueIx> {
        self.lanes[place(lane)].queues.iter().map(|(_, _, ix)| *ix)
    }

    pub(crate) fn queue_count(&self, lane: Lane) -> usize {
        self.lanes[place(lane)].queues.len()
    }

    pub(crate) fn queue_at(&self, lane: Lane, nth: usize) -> QueueIx {
        self.lanes[place(lane)].queues[nth].2
    }

    /// A message that was asked for was delivered, or the pull for it ended.
    pub(crate) fn returned(&mut self, lane: Lane, messages: u32) {
        let state = &mut self.lanes[place(lane)];
        state.asked = state.asked.saturating_sub(messages);
        self.mark_changed(lane);
    }

    pub(crate) fn mark_changed(&mut self, lane: Lane) {
        let state = &mut self.lanes[place(lane)];
        if state.pulling && !std::mem::replace(&mut state.changed, true) {
            self.changed.push(lane);
        }
    }

    /// The next lane whose credits changed, with how many messages to pull; zero for none.
    pub(crate) fn next_pull(
        &mut self,
        rules: &LanePolicy,
        quota: impl Fn(AgentIx) -> Rate,
    ) -> Option<(Lane, u32)> {
        let lane = self.changed.pop()?;
        let state = &mut self.lanes[place(lane)];
        state.changed = false;
        let bound = ready_bound(rules, quota(lane.source));
        let passed_by = (state.blocked + state.parked).min(state.held);
        let ready = state.held - passed_by;
        // A pull for each message that leaves would double the traffic: ask again when half is used.
        if state.asked + ready > bound / 2 || passed_by >= rules.blocked_max {
            return Some((lane, 0));
        }
        let messages = bound - state.asked - ready;
        state.asked += messages;
        Some((lane, messages))
    }

    /// Messages held, and those of them that are passed by.
    pub(crate) fn messages_of(&self, lane: Lane) -> (u32, u32) {
        let state = &self.lanes[place(lane)];
        (state.held, (state.blocked + state.parked).min(state.held))
    }

    pub(crate) fn check_invariants(&self, rules: &LanePolicy) {
        for (_, message) in self.messages.iter() {
            assert!(message.left > 0, "a message with nothing left to decide is released");
        }
        for state in &self.lanes {
            let queues = || state.queues.iter().map(|(_, _, ix)| self.queue(*ix));
            let held: u32 = queues().map(|q| q.messages).sum();
            assert_eq!(state.held, held, "the messages of a lane are counted");
            let blocked: u32 = queues().filter(|q| q.standing == Standing::Blocked).map(|q| q.messages).sum();
            assert_eq!(state.blocked, blocked, "the messages of blocked queues are counted");
            let parked = queues().flat_map(|q| &q.parked).filter(|(_, run)| run.counts).count();
            assert_eq!(state.parked as usize, parked, "parked runs are counted");
            assert!(state.asked <= rules.ready_max, "no more is asked for than is held ready");
        }
        for queue in &self.queues {
            let runs = || queue.runs.iter().chain(queue.parked.iter().map(|(_, run)| run));
            let queued: u32 = runs().map(|run| u32::from(run.count)).sum();
            assert_eq!(
                queue.messages as usize,
                runs().filter(|r| r.counts).count(),
                "messages count by one run"
            );
            assert_eq!(queue.queued, queued, "the dispatches of a queue are counted");
            assert!(queue.standing != Standing::Idle || queue.runs.is_empty(), "what waits is looked at");
        }
    }
}

/// What cutting a run means for its order key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// One more part holds the key.
    Holds(AgentIx, u64),
    /// More parts wait for the key.
    Waits(AgentIx, u64),
}

impl HeldRun {
    /// The slots before one, the slot, and those behind it. The part that is left longest counts for the message; both parts
    /// around the slot hold the order key that the whole held.
    fn around(&self, slot: u16) -> [Option<Self>; 3] {
        let before = slot - self.first;
        let behind = self.count - before - 1;
        let mut parts = [
            Self { count: before, ..*self },
            Self { first: slot, count: 1, ..*self },
            Self { first: slot.wrapping_add(1), count: behind, ..*self },
        ];
        let keeper = if behind > 0 { 2 } else { usize::from(before == 0) };
        for (nth, part) in parts.iter_mut().enumerate() {
            part.counts = self.counts && nth == keeper;
            part.handed = self.handed.filter(|_| nth != 1 || self.count == 1);
        }
        parts.map(|part| (part.count > 0).then_some(part))
    }
}

impl Queue {
    const fn new(lane: Lane, key: Key, class: Priority) -> Self {
        Self {
            lane,
            key,
            class,
            raised: false,
            runs: VecDeque::new(),
            parked: VecDeque::new(),
            standing: Standing::Idle,
            waiting: None,
            waiting_at: Vec::new(),
            queued: 0,
            messages: 0,
            deadline_armed: None,
            released: Timestamp::ZERO,
            quota_released: Timestamp::ZERO,
        }
    }

    /// The class in which its head goes.
    pub(crate) const fn effective_class(&self) -> Priority {
        if self.raised { raised(self.class) } else { self.class }
    }
}

/// One class higher, at most P1: only a right leads to P0.
pub(crate) const fn raised(class: Priority) -> Priority {
    match class {
        Priority::P0 => Priority::P0,
        Priority::P1 | Priority::P2 => Priority::P1,
        Priority::P3 => Priority::P2,
    }
}

/// The messages that a lane holds ready: what its quota gives in the policy's time, one dispatch each, within bounds.
fn ready_bound(rules: &LanePolicy, quota: Rate) -> u32 {
    let given = u64::from(quota.per_s).saturating_mul(nanos(rules.ready_for)) / 1_000_000_000;
    u32::try_from(given).unwrap_or(u32::MAX).clamp(rules.ready_min, rules.ready_max)
}

const fn place(lane: Lane) -> usize {
    lane.source.ix() * 4 + lane.priority as usize
}
