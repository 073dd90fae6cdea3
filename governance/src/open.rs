//! Open runs: what was admitted and has not ended. Owns their slots, their lookup by id and their deadlines.
//!
//! One entry for each admitted run, whatever its length; slots that ended alone are bits. Deadlines are buckets: a
//! run hangs in the list of the first bucket boundary at or after its deadline, so that admitting and ending cost
//! no timer. Near deadlines have fine buckets, far ones coarse: a timeout is late by at most 8 ms, 128 ms or 4 s,
//! each a small part of the time that passed.
//!
//! In an envelope of many runs each slot names its run, in a row that is used again for another envelope: opening, finding
//! and ending cost no tree and no allocation. Only an envelope with copies for topics, which share slots, is kept in a tree.
//!
//! The rule it keeps: a slot ends once. Whoever ends slots asks `segment` first and marks what it ends.

use std::collections::BTreeMap;

use crate::event::Restored;
use crate::hash::FastMap;
use crate::names::{AgentIx, CapabilityIx, DispatchId, InstanceId, OpenIx};
use crate::slab::Slab;
use crate::time::Timestamp;
use crate::words::{Kind, Priority};

/// One admitted run.
#[derive(Debug, Clone)]
pub(crate) struct OpenRun {
    pub source: AgentIx,
    pub target: AgentIx,
    pub capability: Option<CapabilityIx>,
    pub kind: Kind,
    pub class: Priority,
    pub serves_person: bool,
    /// It serves as a probe, if it ends before this; later its breaker has given it up, and may have another.
    pub probe: Option<Timestamp>,
    /// Its target takes the place of a tripped one.
    pub stands_in: bool,
    pub first: DispatchId,
    pub count: u16,
    pub deadline: Timestamp,
    /// No extension goes beyond this.
    pub deadline_max: Timestamp,
    pub admitted: Timestamp,
    pub order_key: u64,
}

#[derive(Debug)]
struct Entry {
    run: OpenRun,
    left: u16,
    /// Bits of the slots that ended, counted from the first; empty while none ended alone.
    ended: Vec<u64>,
    /// Slots with a later deadline of their own.
    extended: Vec<(u16, Timestamp)>,
    bucket: u64,
    earlier: u32,
    later: u32,
}

/// All open runs.
#[derive(Debug)]
pub(crate) struct Open {
    entries: Slab<Entry>,
    by_envelope: FastMap<(InstanceId, u64), Runs>,
    /// Rows of envelopes that are closed.
    spare: Vec<Vec<u32>>,
    /// The first run of each bucket, by the moment at which the bucket is due.
    buckets: BTreeMap<u64, u32>,
    slots: u64,
}

/// The open runs of one envelope.
#[derive(Debug)]
enum Runs {
    One(u32),
    Many(Row),
    /// By copy and first slot.
    Copies(BTreeMap<(u16, u16), u32>),
}

/// The open runs of an envelope without copies.
#[derive(Debug)]
struct Row {
    /// The run of each slot, or `NONE`.
    slots: Vec<u32>,
    /// How many runs are in it.
    runs: u32,
}

impl Row {
    fn insert(&mut self, first: u16, count: u16, ix: u32) {
        let (from, to) = (usize::from(first), usize::from(first) + usize::from(count));
        if self.slots.len() < to {
            self.slots.resize(to, NONE);
        }
        self.slots[from..to].fill(ix);
        self.runs += 1;
    }

    /// Removes a run; whether it was the last.
    fn remove(&mut self, first: u16, count: u16) -> bool {
        let from = usize::from(first);
        self.slots[from..from + usize::from(count)].fill(NONE);
        self.runs -= 1;
        self.runs == 0
    }

    fn at(&self, slot: u16) -> Option<u32> {
        self.slots.get(usize::from(slot)).copied().filter(|ix| *ix != NONE)
    }
}

/// Consecutive slots of a run that have either all ended or all not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub count: u16,
    pub ended: bool,
}

const NONE: u32 = u32::MAX;

impl Open {
    pub(crate) fn new() -> Self {
        Self {
            entries: Slab::new(),
            by_envelope: FastMap::default(),
            spare: Vec::new(),
            buckets: BTreeMap::new(),
            slots: 0,
        }
    }

    /// Opens a run.
    pub(crate) fn insert(&mut self, run: OpenRun) -> OpenIx {
        let entry = Entry::new(run);
        let ix = self.entries.insert(entry);
        self.link(ix);
        OpenIx(ix)
    }

    /// Opens a run that a former home admitted, under the handle that the shell gave it.
    pub(crate) fn restore(&mut self, restored: &Restored, run: OpenRun) {
        let mut entry = Entry::new(run);
        entry.ended.clone_from(&restored.ended);
        if !entry.ended.is_empty() {
            entry.ended.resize(words(entry.run.count), 0);
            entry.left = (0..entry.run.count).filter(|offset| !entry.is_ended(*offset)).count() as u16;
        }
        self.entries.insert_at(restored.open.0, entry);
        self.link(restored.open.0);
    }

    fn link(&mut self, ix: u32) {
        let entry = self.entries.at_mut(ix);
        self.slots += u64::from(entry.left);
        let first = entry.run.first;
        let (now, deadline) = (entry.run.admitted, entry.run.deadline);
        self.hang(ix, bucket_of(now, deadline));
        let count = self.entries.at(ix).run.count;
        let Some(runs) = self.by_envelope.get_mut(&(first.instance, first.sequence)) else {
            self.by_envelope.insert((first.instance, first.sequence), Runs::One(ix));
            return;
        };
        if let Runs::One(other) = *runs {
            let run = &self.entries.at(other).run;
            *runs = if run.first.copy == 0 {
                let mut row = Row { slots: self.spare.pop().unwrap_or_default(), runs: 0 };
                row.insert(run.first.slot, run.count, other);
                Runs::Many(row)
            } else {
                Runs::Copies(BTreeMap::from([((run.first.copy, run.first.slot), other)]))
            };
        }
        if let Runs::Many(row) = runs
            && first.copy != 0
        {
            let mut tree = BTreeMap::new();
            for ix in row.slots.iter().copied().filter(|ix| *ix != NONE) {
                tree.insert((0, self.entries.at(ix).run.first.slot), ix);
            }
            *runs = Runs::Copies(tree);
        }
        match runs {
            Runs::Many(row) => row.insert(first.slot, count, ix),
            Runs::Copies(tree) => drop(tree.insert((first.copy, first.slot), ix)),
            Runs::One(_) => unreachable!("it became one of many"),
        }
    }

    /// Hangs a run into a bucket.
    fn hang(&mut self, ix: u32, bucket: u64) {
        let head = self.buckets.insert(bucket, ix).unwrap_or(NONE);
        if head != NONE {
            self.entries.at_mut(head).earlier = ix;
        }
        let entry = self.entries.at_mut(ix);
        (entry.bucket, entry.earlier, entry.later) = (bucket, NONE, head);
    }

    fn unhang(&mut self, ix: u32) {
        let entry = self.entries.at(ix);
        let (bucket, earlier, later) = (entry.bucket, entry.earlier, entry.later);
        if later != NONE {
            self.entries.at_mut(later).earlier = earlier;
        }
        if earlier != NONE {
            self.entries.at_mut(earlier).later = later;
        } else if later != NONE {
            self.buckets.insert(bucket, later);
        } else {
            self.buckets.remove(&bucket);
        }
    }

    /// Removes a run whose slots have all ended.
    pub(crate) fn forget(&mut self, open: OpenIx) -> OpenRun {
        self.unhang(open.0);
        let entry = self.entries.remove(open.0);
        assert!(entry.left == 0, "a run is forgotten when all its slots have ended");
        let first = entry.run.first;
        let envelope = (first.instance, first.sequence);
        let last = match self.by_envelope.get_mut(&envelope) {
            Some(Runs::Many(row)) => row.remove(first.slot, entry.run.count),
            Some(Runs::Copies(tree)) => {
                tree.remove(&(first.copy, first.slot));
                tree.is_empty()
            }
            Some(Runs::One(_)) | None => true,
        };
        if last && let Some(Runs::Many(row)) = self.by_envelope.remove(&envelope) {
            self.keep_spare(row.slots);
        }
        entry.run
    }

    fn keep_spare(&mut self, mut slots: Vec<u32>) {
        if self.spare.len() < SPARE_MAX && slots.capacity() <= SPARE_SLOTS_MAX {
            slots.clear();
            self.spare.push(slots);
        }
    }

    /// Whether a run of this envelope is open.
    pub(crate) fn has_envelope(&self, instance: InstanceId, sequence: u64) -> bool {
        self.by_envelope.contains_key(&(instance, sequence))
    }

    /// The run of a dispatch, and the place of the dispatch in it.
    pub(crate) fn find(&self, id: DispatchId) -> Option<(OpenIx, u16)> {
        let ix = match self.by_envelope.get(&(id.instance, id.sequence))? {
            Runs::One(ix) => *ix,
            Runs::Many(row) => row.at(id.slot)?,
            Runs::Copies(tree) => *tree.range(..=(id.copy, id.slot)).next_back()?.1,
        };
        let run = &self.entries.at(ix).run;
        let is_it = run.first.copy == id.copy && (run.first.slot..=last_slot(run)).contains(&id.slot);
        is_it.then(|| (OpenIx(ix), id.slot - run.first.slot))
    }

    /// How many slots from `id` on are in no run: up to the next run of this envelope, at most `count`.
    pub(crate) fn gap(&self, id: DispatchId, count: u16) -> u16 {
        let next = match self.by_envelope.get(&(id.instance, id.sequence)) {
            None => None,
            Some(Runs::One(ix)) => Some(self.entries.at(*ix).run.first),
            Some(Runs::Many(row)) => {
                let after = row.slots.iter().skip(usize::from(id.slot) + 1).take(usize::from(count));
                after.copied().find(|ix| *ix != NONE).map(|ix| self.entries.at(ix).run.first)
            }
            Some(Runs::Copies(tree)) => {
                tree.range((id.copy, id.slot)..).next().map(|(_, ix)| self.entries.at(*ix).run.first)
            }
        };
        let next = next.filter(|next| next.copy == id.copy && next.slot > id.slot);
        next.map_or(count, |next| count.min(next.slot - id.slot))
    }

    /// The slots from `offset` on, at most `count`, that are alike.
    pub(crate) fn segment(&self, open: OpenIx, offset: u16, count: u16) -> Segment {
        let entry = self.entries.at(open.0);
        let end = offset.saturating_add(count).min(entry.run.count);
        if entry.ended.is_empty() {
            return Segment { count: end - offset, ended: false };
        }
        let ended = entry.is_ended(offset);
        let alike = (offset..end).take_while(|o| entry.is_ended(*o) == ended).count();
        Segment { count: alike as u16, ended }
    }

    /// Ends slots that have not; whether they were the last of their run.
    pub(crate) fn end(&mut self, open: OpenIx, offset: u16, count: u16) -> bool {
        let entry = self.entries.at_mut(open.0);
        assert!(count <= entry.left, "a slot ends once");
        entry.left -= count;
        self.slots -= u64::from(count);
        if entry.left > 0 {
            entry.ended.resize(words(entry.run.count), 0);
            for o in offset..offset + count {
                entry.ended[usize::from(o / 64)] |= 1 << (o % 64);
            }
        }
        entry.left == 0
    }

    pub(crate) fn run(&self, open: OpenIx) -> &OpenRun {
        &self.entries.at(open.0).run
    }

    /// The run no longer serves as a probe; whether it did until now.
    pub(crate) fn take_probe(&mut self, now: Timestamp, open: OpenIx) -> bool {
        self.entries.at_mut(open.0).run.probe.take().is_some_and(|until| now < until)
    }

    pub(crate) fn is_open(&self, id: DispatchId) -> bool {
        self.find(id).is_some_and(|(open, offset)| !self.segment(open, offset, 1).ended)
    }

    /// The deadline of one slot.
    pub(crate) fn deadline(&self, open: OpenIx, offset: u16) -> Timestamp {
        let entry = self.entries.at(open.0);
        let own = entry.extended.iter().find(|(o, _)| *o == offset);
        own.map_or(entry.run.deadline, |(_, at)| *at)
    }

    /// Gives one slot a later deadline.
    pub(crate) fn extend(&mut self, open: OpenIx, offset: u16, deadline: Timestamp) {
        let entry = self.entries.at_mut(open.0);
        if entry.run.count == 1 {
            entry.run.deadline = deadline;
        } else if let Some(own) = entry.extended.iter_mut().find(|(o, _)| *o == offset) {
            own.1 = deadline;
        } else {
            entry.extended.push((offset, deadline));
        }
    }

    /// A run with a slot whose deadline has passed. Runs whose deadlines all moved hang elsewhere from now on.
    pub(crate) fn overdue(&mut self, now: Timestamp) -> Option<OpenIx> {
        loop {
            let (due, ix) = self.buckets.first_key_value().map(|(due, ix)| (*due, *ix))?;
            if due > now.0 {
                return None;
            }
            let next = self.next_deadline(OpenIx(ix));
            if next <= now {
                return Some(OpenIx(ix));
            }
            self.unhang(ix);
            self.hang(ix, bucket_of(now, next));
        }
    }

    /// The first deadline among the slots that have not ended.
    fn next_deadline(&self, open: OpenIx) -> Timestamp {
        let entry = self.entries.at(open.0);
        if entry.extended.is_empty() {
            return entry.run.deadline;
        }
        let slots = (0..entry.run.count).filter(|o| !entry.is_ended(*o));
        slots.map(|o| self.deadline(open, o)).min().unwrap_or(entry.run.deadline)
    }

    /// When the first bucket is due.
    pub(crate) fn next_wakeup(&self) -> Option<Timestamp> {
        self.buckets.first_key_value().map(|(due, _)| Timestamp(*due))
    }

    /// All runs as a snapshot keeps them.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (OpenIx, Restored)> {
        self.entries.iter().map(|(ix, entry)| {
            let run = &entry.run;
            let restored = Restored {
                source: run.source,
                target: run.target,
                capability: run.capability.unwrap_or(NO_CAPABILITY),
                kind: run.kind,
                class: run.class,
                serves_person: run.serves_person,
                stands_in: run.stands_in,
                first: run.first,
                count: run.count,
                deadline: run.deadline,
                admitted: run.admitted,
                order_key: run.order_key,
                ended: entry.ended.clone(),
                open: OpenIx(ix),
            };
            (OpenIx(ix), restored)
        })
    }

    /// How many slots are open.
    pub(crate) const fn slots(&self) -> u64 {
        self.slots
    }

    pub(crate) fn check_invariants(&self) {
        let mut slots = 0;
        for (ix, entry) in self.entries.iter() {
            let open = (0..entry.run.count).filter(|o| !entry.is_ended(*o)).count();
            assert_eq!(open, usize::from(entry.left), "the open slots are those whose bit is not set");
            assert!(entry.left > 0, "a run without open slots is forgotten");
            assert!(entry.bucket >= self.buckets.first_key_value().map_or(0, |(due, _)| *due));
            assert_eq!(
                self.find(entry.run.first).map(|(open, _)| open.0),
                Some(ix),
                "a run is found by its id"
            );
            slots += u64::from(entry.left);
        }
        assert_eq!(slots, self.slots, "the sum of open slots is kept");
    }
}

impl Entry {
    const fn new(run: OpenRun) -> Self {
        let left = run.count;
        Self { run, left, ended: Vec::new(), extended: Vec::new(), bucket: 0, earlier: NONE, later: NONE }
    }

    fn is_ended(&self, offset: u16) -> bool {
        self.ended.get(usize::from(offset / 64)).is_some_and(|word| word & (1 << (offset % 64)) != 0)
    }
}

const fn last_slot(run: &OpenRun) -> u16 {
    run.first.slot + (run.count - 1)
}

fn words(count: u16) -> usize {
    usize::from(count).div_ceil(64)
}

/// The end of the bucket of a deadline.
const fn bucket_of(now: Timestamp, deadline: Timestamp) -> u64 {
    let ahead = deadline.0.saturating_sub(now.0);
    let width = if ahead < 10 * SECOND {
        8 * MILLISECOND
    } else if ahead < 600 * SECOND {
        128 * MILLISECOND
    } else {
        4 * SECOND
    };
    deadline.0.div_ceil(width).saturating_mul(width)
}

/// Rows that are kept for other envelopes: as many as are open at a time when an agent is busy.
const SPARE_MAX: usize = 64;

/// Longer rows, of 64 KB, are given back, so that all that are kept are a few megabytes at most.
const SPARE_SLOTS_MAX: usize = 16_384;

/// Stands for "no capability" where the form has no room for none: in the copies of topics.
pub const NO_CAPABILITY: CapabilityIx = CapabilityIx(u32::MAX);

const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

#[cfg(test)]
mod tests;
