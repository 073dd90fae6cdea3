//! Rebuilding: what a new home knows before its first decision, from snapshots and blocks.
//!
//! The rule it keeps: a snapshot is the state at its head; blocks behind it are applied as they record, decided about by
//! nobody.

use std::collections::{BTreeMap, HashMap};

use async_nats::jetstream::Context;
use broker::{Fence, Publisher};
use governance::{Decision, DispatchId, Outcome, Policy, Priority, Registration};
use protocol::audit::{Block, CompletionRow, DecisionRow};
use protocol::control::Breaker;
use protocol::redis::EntryId;
use protocol::{AuditKey, streams};

use super::replay::replay;
use super::snapshot::{OpenState, State};
use crate::io::ledger::Ledger;

/// What a new home starts with.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    pub(crate) registrations: Vec<Registration>,
    pub(crate) breakers: Vec<(String, Breaker)>,
    /// Agents that operators paused.
    pub(crate) paused: Vec<String>,
    pub(super) opens: Vec<OpenState>,
    pub(super) quotas: BTreeMap<String, u64>,
    pub(super) seen: Vec<(String, u64, u64, u64)>,
    /// Slots of lane messages that were decided about and replayed, by lane priority and stream sequence.
    pub(super) covered: HashMap<(Priority, u64), Vec<(u16, u16)>>,
    /// Outcomes that were recorded and perhaps not told.
    pub(super) closed: HashMap<DispatchId, Outcome>,
    /// Topic copies that were made of events that are still held.
    pub(super) copies: Vec<(DispatchId, u16)>,
    /// Ends that were recorded and perhaps not told.
    pub(super) ended: Vec<DecisionRow>,
    /// Completions that waited for this home and have not been read.
    pub(super) completions_unread: u64,
    /// The oldest block of each shard that a further home may still need because of this recovery.
    pub(super) floors: HashMap<u8, EntryId>,
}

/// Everything that recovering needs.
#[derive(Debug)]
pub(crate) struct Recovery<'a> {
    pub(crate) js: &'a Context,
    pub(crate) ledger: &'a Ledger,
    pub(crate) publisher: &'a Publisher,
    pub(crate) key: &'a AuditKey,
    pub(crate) policy: &'a Policy,
    pub(crate) lanes_made: [u64; 4],
    pub(crate) fences: &'a [[Fence; 4]],
}

/// One shard as its snapshot and blocks tell.
#[derive(Debug, Default)]
struct Rebuilt {
    state: State,
    opens: BTreeMap<(u64, u64, u16, u16), OpenState>,
    /// Decisions that are perhaps not settled, with the block they are in.
    rows: Vec<(EntryId, DecisionRow)>,
    closed: Vec<CompletionRow>,
}

/// Reads all shards and replays what may be unpublished.
pub(crate) async fn recover(
    r: &Recovery<'_>,
    registrations: Vec<Registration>,
    breakers: Vec<(String, Breaker)>,
    paused: Vec<String>,
) -> anyhow::Result<Recovered> {
    let mut recovered = Recovered { registrations, breakers, paused, ..Recovered::default() };
    for shard in 0..governance::SHARDS {
        let Some(rebuilt) = rebuild_shard(r, shard, &mut recovered).await? else { continue };
        replay(r, shard, &rebuilt.rows, &mut recovered).await?;
        for c in rebuilt.closed.iter().filter(|c| !c.late) {
            for i in 0..c.count {
                recovered.closed.insert(DispatchId { slot: c.first.slot + i, ..c.first }, c.outcome);
            }
        }
        recovered.opens.extend(rebuilt.opens.into_values());
        recovered.quotas.extend(rebuilt.state.quotas);
        recovered.seen.extend(rebuilt.state.seen);
    }
    let mut done = r.js.get_stream(streams::DONE).await?;
    recovered.completions_unread = done.info().await?.state.messages;
    Ok(recovered)
}

async fn rebuild_shard(
    r: &Recovery<'_>,
    shard: u8,
    recovered: &mut Recovered,
) -> anyhow::Result<Option<Rebuilt>> {
    let (taken_at, floor, mut rebuilt) = match r.ledger.snapshot(shard).await? {
        None => (EntryId::default(), EntryId::default(), Rebuilt::default()),
        Some((head, oldest, text)) => {
            let mut state: State = serde_json::from_str(&text)?;
            let mut opens = BTreeMap::new();
            for open in state.opens.drain(..) {
                let id: DispatchId = open.first.parse()?;
                opens.insert(key(id), open);
            }
            (head.id, oldest, Rebuilt { state, opens, ..Rebuilt::default() })
        }
    };
    let blocks = r.ledger.blocks(shard, floor).await?;
    if blocks.is_empty() && rebuilt.opens.is_empty() && rebuilt.state.seen.is_empty() {
        return Ok(None);
    }
    if let Some((first, _)) = blocks.first() {
        recovered.floors.insert(shard, *first);
    }
    for (id, bytes) in blocks {
        let block = Block::decode(&bytes).map_err(|e| anyhow::anyhow!("block {id} of shard {shard}: {e}"))?;
        if id > taken_at {
            apply_block(r.policy, &block, &mut rebuilt);
        }
        rebuilt.rows.extend(block.decisions.into_iter().map(|row| (id, row)));
        rebuilt.closed.extend(block.completions);
    }
    Ok(Some(rebuilt))
}

const fn key(id: DispatchId) -> (u64, u64, u16, u16) {
    (id.instance.0, id.sequence, id.copy, id.slot)
}

fn apply_block(policy: &Policy, block: &Block, rebuilt: &mut Rebuilt) {
    for row in &block.decisions {
        let first = row.first;
        rebuilt.state.seen.push((row.source.to_string(), first.instance.0, first.sequence, first.sequence));
        if row.decision == Decision::Admitted {
            let period = policy.quota(&row.source).period_ns();
            let arrival = rebuilt.state.quotas.entry(row.source.to_string()).or_default();
            *arrival = (*arrival).max(row.decided.0) + period * u64::from(row.count);
            rebuilt.opens.insert(key(first), open_state(row));
        }
    }
    for c in block.completions.iter().filter(|c| !c.late) {
        close_slots(&mut rebuilt.opens, c);
    }
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
        let offset = usize::from(slot - at.3);
        if offset >= usize::from(open.count) {
            continue;
        }
        open.ended.resize(usize::from(open.count).div_ceil(64), 0);
        open.ended[offset / 64] |= 1 << (offset % 64);
        let ended: u32 = open.ended.iter().map(|w| w.count_ones()).sum();
        if ended == u32::from(open.count) {
            let at = *at;
            opens.remove(&at);
        }
    }
}
