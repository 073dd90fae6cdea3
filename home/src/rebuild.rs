//! Rebuilding: what a new home knows before its first decision, from its shard's snapshot and blocks.
//!
//! The rule it keeps: a snapshot is the state at its head; blocks behind it are applied as they record, decided about by
//! nobody.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use governance::{Decision, DispatchId, Loss, Outcome, Policy, Priority, Registration};
use protocol::audit::{Block, CompletionRow, DecisionRow};
use protocol::control::Breaker;
use protocol::redis::EntryId;

use crate::permits::{self, Redelivered};
use crate::snapshot::{OpenState, State};
use crate::takeover::{TakeoverError, Waiting, World};

/// What a new home starts with.
#[derive(Debug, Default)]
pub struct Recovered {
    pub(crate) registrations: Vec<Registration>,
    pub(crate) breakers: Vec<(String, Breaker)>,
    /// Agents that operators paused.
    pub(crate) paused: Vec<String>,
    pub(crate) opens: Vec<OpenState>,
    pub(crate) quotas: BTreeMap<String, u64>,
    pub(crate) seen: Vec<(String, u64, u64, u64)>,
    /// Who had what was delivered more than once.
    pub(crate) losses: BTreeMap<DispatchId, Loss>,
    /// Lane messages of which a block decided slots or copies and that are not acknowledged, by lane priority and stream
    /// sequence: the rules are not asked whether their sequence was seen.
    pub(crate) unsettled: HashSet<(Priority, u64)>,
    /// Slots of such messages that were decided about and replayed.
    pub(crate) covered: HashMap<(Priority, u64), Vec<(u16, u16)>>,
    /// Outcomes that were recorded and perhaps not told.
    pub(crate) closed: HashMap<DispatchId, Outcome>,
    /// Topic copies that were made of events that are still held.
    pub(crate) copies: Vec<(DispatchId, u16)>,
    /// Ends that were recorded and perhaps not told.
    pub(crate) ended: Vec<DecisionRow>,
    /// Completions that waited for this home and have not been read.
    pub(crate) unread: Unread,
    /// The oldest block that was read.
    pub(crate) floor: Option<EntryId>,
}

/// Messages with completions that waited for a home and have not been read. Counted for each source and class, in whose order
/// they come: what is new of one says nothing about another.
#[derive(Debug, Default)]
pub(crate) struct Unread {
    left: BTreeMap<(Arc<str>, Priority), u64>,
    /// Those of P1 to P3 are among them.
    is_whole: bool,
    /// How often time was told since the last one was read.
    ticks: u32,
}

impl Unread {
    /// So many wait; the last ones of which this is told are those of P1 to P3.
    pub(crate) fn wait(&mut self, waiting: Vec<Waiting>, is_whole: bool) {
        let left = waiting.into_iter().filter(|w| w.messages > 0);
        self.left.extend(left.map(|w| ((w.source.as_str().into(), w.class), w.messages)));
        self.is_whole = is_whole;
    }

    /// One of this source and class has been read.
    pub(crate) fn read(&mut self, source: &Arc<str>, class: Priority) {
        self.ticks = 0;
        if let Entry::Occupied(mut left) = self.left.entry((Arc::clone(source), class)) {
            *left.get_mut() -= 1;
            if *left.get() == 0 {
                left.remove();
            }
        }
    }

    /// Time was told. As long as is not known how many there are, they come for sure: their consumers are being made.
    pub(crate) fn tick(&mut self) {
        self.ticks += u32::from(self.is_whole && !self.left.is_empty());
    }

    /// Whether more may come: a home waits no longer when none has come for so many ticks.
    pub(crate) fn is_left(&self, ticks_max: u32) -> bool {
        !self.is_whole || (!self.left.is_empty() && self.ticks <= ticks_max)
    }
}

impl Recovered {
    /// The oldest block that a further home would have to read because of this recovery: while a lane message that a former
    /// home decided about, or a completion that it recorded, may still come again.
    pub(crate) fn needed_from(&self) -> Option<EntryId> {
        let needed = !self.unsettled.is_empty() || !self.closed.is_empty();
        self.floor.filter(|_| needed)
    }
}

/// A shard as its snapshot and blocks tell.
#[derive(Debug, Default)]
pub(crate) struct Rebuilt {
    pub(crate) state: State,
    opens: BTreeMap<(u64, u64, u16, u16), OpenState>,
    /// Decisions that are perhaps not settled, with the block they are in.
    pub(crate) rows: Vec<(EntryId, DecisionRow)>,
    closed: Vec<CompletionRow>,
    losses: BTreeMap<DispatchId, Loss>,
    pub(crate) floor: Option<EntryId>,
}

impl Rebuilt {
    /// Whether every slot of an envelope was decided when the snapshot was taken, as it says.
    pub(crate) fn was_decided(&self, id: DispatchId) -> bool {
        let covers = |(_, instance, from, to): &(String, u64, u64, u64)| {
            *instance == id.instance.0 && (*from..=*to).contains(&id.sequence)
        };
        self.state.seen.iter().any(covers)
    }

    /// Whether any slot of a decision waits for its end, as far as is recorded.
    pub(crate) fn is_open(&self, row: &DecisionRow) -> bool {
        let slots = row.first.slot..=row.first.slot.saturating_add(row.count.saturating_sub(1));
        slots.into_iter().any(|slot| {
            let upto = key(DispatchId { slot, ..row.first });
            let from = (upto.0, upto.1, upto.2, 0);
            self.opens.range(from..=upto).next_back().is_some_and(|(at, open)| open.is_open(slot - at.3))
        })
    }

    /// Hands over what the rules are told.
    pub(crate) fn recover(self, recovered: &mut Recovered) {
        for c in self.closed.iter().filter(|c| !c.late) {
            for i in 0..c.count {
                recovered.closed.insert(DispatchId { slot: c.first.slot + i, ..c.first }, c.outcome);
            }
        }
        recovered.opens = self.opens.into_values().collect();
        recovered.losses = self.losses;
        recovered.quotas = self.state.quotas;
        recovered.seen.extend(self.state.seen);
        recovered.floor = self.floor;
    }
}

/// Reads the snapshot of a shard and the blocks behind it.
pub(crate) async fn rebuild(
    world: &impl World,
    shard: u8,
    policy: &Policy,
) -> Result<Rebuilt, TakeoverError> {
    let damaged = |what: String| TakeoverError::Damaged { shard, what };
    let (taken_at, floor, mut rebuilt) = match world.snapshot(shard).await? {
        None => (EntryId::default(), EntryId::default(), Rebuilt::default()),
        Some((head, oldest, text)) => {
            let mut state: State =
                serde_json::from_str(&text).map_err(|e| damaged(format!("its snapshot: {e}")))?;
            let mut opens = BTreeMap::new();
            for open in state.opens.drain(..) {
                let id: DispatchId = open.first.parse().map_err(|e| damaged(format!("its snapshot: {e}")))?;
                opens.insert(key(id), open);
            }
            let losses = state.redelivered.iter().flat_map(Redelivered::each).collect();
            (head.id, oldest, Rebuilt { state, opens, losses, ..Rebuilt::default() })
        }
    };
    for (id, bytes) in world.blocks(shard, floor).await? {
        let block = Block::decode(&bytes).map_err(|e| damaged(format!("its block {id}: {e}")))?;
        rebuilt.floor.get_or_insert(id);
        if id > taken_at {
            apply_block(policy, &block, &mut rebuilt);
        }
        rebuilt.rows.extend(block.decisions.into_iter().map(|row| (id, row)));
        rebuilt.closed.extend(block.completions);
    }
    Ok(rebuilt)
}

const fn key(id: DispatchId) -> (u64, u64, u16, u16) {
    (id.instance.0, id.sequence, id.copy, id.slot)
}

fn apply_block(policy: &Policy, block: &Block, rebuilt: &mut Rebuilt) {
    for row in &block.decisions {
        let first = row.first;
        if row.decision == Decision::Admitted {
            let period = policy.quota(&row.source).period_ns();
            let arrival = rebuilt.state.quotas.entry(row.source.to_string()).or_default();
            *arrival = (*arrival).max(row.decided.0) + period * u64::from(row.count);
            rebuilt.opens.insert(key(first), open_state(row));
        }
    }
    for note in block.notes.iter().filter(|note| &*note.kind == permits::NOTE) {
        if let Ok(redelivered) = serde_json::from_str::<Redelivered>(&note.body) {
            rebuilt.losses.extend(redelivered.each());
        }
    }
    for c in block.completions.iter().filter(|c| !c.late) {
        rebuilt.losses.retain(|id, _| !is_in(c, *id));
        close_slots(&mut rebuilt.opens, c);
    }
}

fn is_in(c: &CompletionRow, id: DispatchId) -> bool {
    let slots = c.first.slot..=c.first.slot.saturating_add(c.count - 1);
    DispatchId { slot: c.first.slot, ..id } == c.first && slots.contains(&id.slot)
}

fn open_state(row: &DecisionRow) -> OpenState {
    OpenState {
        source: row.source.to_string(),
        target: row.target.to_string(),
        capability: row.capability.to_string(),
        kind: row.kind,
        class: row.class,
        lane: row.lane,
        serves_person: row.serves_person,
        first: row.first.to_string(),
        count: row.count,
        ended: vec![0; usize::from(row.count).div_ceil(64)],
        deadline: row.deadline.0,
        admitted: row.decided.0,
        accepted: row.accepted.0,
        reason: row.reason,
        order_key: row.order_key,
        reply_token: row.reply_token.to_string(),
    }
}

/// Marks slots as ended, in as many open runs as they lie in; a run that ended as a whole goes.
fn close_slots(opens: &mut BTreeMap<(u64, u64, u16, u16), OpenState>, c: &CompletionRow) {
    for slot in c.first.slot..=c.first.slot.saturating_add(c.count - 1) {
        let upto = key(DispatchId { slot, ..c.first });
        let from = (upto.0, upto.1, upto.2, 0);
        let Some((at, open)) = opens.range_mut(from..=upto).next_back() else { continue };
        let offset = slot - at.3;
        if offset >= open.count {
            continue;
        }
        open.ended.resize(usize::from(open.count).div_ceil(64), 0);
        open.ended[usize::from(offset) / 64] |= 1 << (offset % 64);
        let ended: u32 = open.ended.iter().map(|w| w.count_ones()).sum();
        if ended == u32::from(open.count) {
            let at = *at;
            opens.remove(&at);
        }
    }
}

#[cfg(test)]
mod tests {
    use governance::{InstanceId, Kind, Reason, Timestamp};

    use super::*;

    fn id(slot: u16) -> DispatchId {
        DispatchId { instance: InstanceId(7), sequence: 3, slot, copy: 0 }
    }

    fn admitted(slot: u16, count: u16) -> DecisionRow {
        DecisionRow {
            first: id(slot),
            count,
            lane_sequence: 1,
            lane: Priority::P2,
            class: Priority::P2,
            accepted: Timestamp::ZERO,
            decided: Timestamp::ZERO,
            source: "bot".into(),
            target: "desk".into(),
            capability: "work".into(),
            kind: Kind::Request,
            decision: Decision::Admitted,
            reason: Reason::Ok,
            outcome: None,
            deadline: Timestamp::MAX,
            serves_person: false,
            root: None,
            parent: None,
            conversation: "".into(),
            order_key: 0,
            envelope: Some(0),
            hashes: Vec::new(),
            reply_token: "".into(),
        }
    }

    fn ended(slot: u16, count: u16) -> CompletionRow {
        CompletionRow {
            first: id(slot),
            count,
            completed: Timestamp::ZERO,
            source: "bot".into(),
            target: "desk".into(),
            outcome: Outcome::Success,
            reason: Reason::Ok,
            late: false,
            lane_us: 0,
            inbox_us: 0,
            ran_us: 0,
            latency_us: 0,
            attempt: 1,
            runner: InstanceId(0),
            response: Default::default(),
        }
    }

    #[test]
    fn a_decision_is_open_until_each_of_its_slots_has_ended() {
        let mut rebuilt = Rebuilt::default();
        let block = |decisions, completions| Block {
            shard: 0,
            epoch: 1,
            sequence: 1,
            at: Timestamp::ZERO,
            previous: protocol::audit::BlockHash::default(),
            policy_version: 1,
            decisions,
            completions,
            notes: Vec::new(),
        };
        let (first, second) = (admitted(0, 2), admitted(2, 70));
        let policy = Policy::default();
        apply_block(&policy, &block(vec![first.clone(), second.clone()], vec![ended(0, 1)]), &mut rebuilt);
        assert!(rebuilt.is_open(&first) && rebuilt.is_open(&second));
        apply_block(&policy, &block(Vec::new(), vec![ended(1, 1), ended(2, 69)]), &mut rebuilt);
        assert!(!rebuilt.is_open(&first), "both slots have ended");
        assert!(rebuilt.is_open(&second), "slot 71 has not");
        apply_block(&policy, &block(Vec::new(), vec![ended(71, 1)]), &mut rebuilt);
        assert!(!rebuilt.is_open(&second));
    }
}
