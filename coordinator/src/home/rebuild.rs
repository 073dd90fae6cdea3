//! Rebuilding: what a new home knows before its first decision, from snapshots and blocks, and the replay of what the
//! former home recorded and perhaps did not publish.
//!
//! The rule it keeps: what a block records is replayed as recorded, under the same message ids, never decided again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_nats::jetstream::Context;
use broker::{Fence, Publisher};
use bytes::Bytes;
use futures::StreamExt;
use governance::{
    AgentIx, Decision, DispatchId, Encoding, Event, InstanceId, Kind, OpenIx, Outcome, Policy, Priority,
    Reason, Registration, Restored, Timestamp, shard_of,
};
use protocol::audit::{Block, CompletionRow, DecisionRow};
use protocol::control::Breaker;
use protocol::envelope::LaneEnvelope;
use protocol::redis::{EntryId, Head};
use protocol::{AuditKey, inbox, json, streams, subjects};
use serde::{Deserialize, Serialize};

use super::perform::{as_json, parcel};
use super::settle::{Origin, OwnedReply, message_id};
use super::{Home, OpenShell};
use crate::clock;
use crate::explain;
use crate::io::ledger::Ledger;

/// Messages looked up at the broker at once while replaying.
const LOOKUPS: usize = 64;

/// An open run as a snapshot keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OpenState {
    source: String,
    target: String,
    capability: String,
    kind: Kind,
    class: Priority,
    lane: Priority,
    serves_person: bool,
    first: String,
    count: u16,
    ended: Vec<u64>,
    deadline: u64,
    admitted: u64,
    accepted: u64,
    reason: Reason,
    order_key: u64,
    reply_token: String,
}

/// What a snapshot keeps of a shard.
#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    opens: Vec<OpenState>,
    /// Theoretical arrival times by source.
    quotas: BTreeMap<String, u64>,
    /// Source, instance, first and last sequence decided about.
    seen: Vec<(String, u64, u64, u64)>,
}

/// What a new home starts with.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    pub(crate) registrations: Vec<Registration>,
    pub(crate) breakers: Vec<(String, Breaker)>,
    /// Agents that operators paused.
    pub(crate) paused: Vec<String>,
    opens: Vec<OpenState>,
    quotas: BTreeMap<String, u64>,
    seen: Vec<(String, u64, u64, u64)>,
    /// Slots of lane messages that were decided about and replayed, by lane priority and stream sequence.
    pub(super) covered: HashMap<(Priority, u64), Vec<(u16, u16)>>,
    /// Outcomes that were recorded and perhaps not told.
    pub(super) closed: HashMap<DispatchId, Outcome>,
    /// Topic copies that were made of events that are still held.
    copies: Vec<(DispatchId, u16)>,
    /// Ends that were recorded and perhaps not told.
    ended: Vec<DecisionRow>,
    /// Completions that waited for this home and have not been read.
    pub(super) completions_unread: u64,
    /// The oldest block of each shard that a further home may still need because of this recovery.
    floors: HashMap<u8, EntryId>,
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

/// Publishes again what was recorded and whose lane message is still there; the broker drops what it has already.
async fn replay(
    r: &Recovery<'_>,
    shard: u8,
    rows: &[(EntryId, DecisionRow)],
    recovered: &mut Recovered,
) -> anyhow::Result<()> {
    let mut wanted: Vec<(Priority, u64, &str)> =
        rows.iter().map(|(_, row)| (row.lane, row.lane_sequence, &*row.source)).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let found: HashMap<(Priority, u64), Bytes> = futures::stream::iter(wanted)
        .map(|(lane, sequence, source)| lane_message(r, lane, sequence, source))
        .buffer_unordered(LOOKUPS)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect::<anyhow::Result<Vec<_>>>()?
        .into_iter()
        .flatten()
        .collect();
    let mut envelopes: BTreeMap<(EntryId, u16), Vec<&DecisionRow>> = BTreeMap::new();
    for (block, row) in rows {
        if !found.contains_key(&(row.lane, row.lane_sequence)) {
            // Acknowledged: everything in it was published or told.
            if let Some(envelope) = row.envelope {
                envelopes.entry((*block, envelope)).or_default();
            }
            continue;
        }
        if row.first.copy == 0 {
            let slots = recovered.covered.entry((row.lane, row.lane_sequence)).or_default();
            slots.push((row.first.slot, row.count));
        } else {
            recovered.copies.push((row.first, row.count));
        }
        match row.envelope {
            Some(envelope) => envelopes.entry((*block, envelope)).or_default().push(row),
            None => recovered.ended.push(row.clone()),
        }
    }
    for ((block, index), rows) in envelopes {
        republish(r, shard, block, index, &rows, &found, recovered).await?;
    }
    Ok(())
}

type Found = Option<((Priority, u64), Bytes)>;

async fn lane_message(
    r: &Recovery<'_>,
    lane: Priority,
    sequence: u64,
    source: &str,
) -> anyhow::Result<Found> {
    let stream = r.js.get_stream_no_info(streams::lanes(lane)).await?;
    let message = match stream.get_raw_message(sequence).await {
        Ok(message) => message,
        Err(e) if e.kind() == async_nats::jetstream::stream::RawMessageErrorKind::NoMessageFound => {
            return Ok(None);
        }
        Err(e) => return Err(e.into()),
    };
    let bytes = if json::is_json(&message.payload) {
        let instance = derived_instance(source, lane, r.lanes_made);
        json::to_lane(&message.payload, instance, sequence).unwrap_or_default().into()
    } else {
        message.payload
    };
    Ok(Some(((lane, sequence), bytes)))
}

async fn republish(
    r: &Recovery<'_>,
    shard: u8,
    block: EntryId,
    index: u16,
    rows: &[&DecisionRow],
    found: &HashMap<(Priority, u64), Bytes>,
    recovered: &Recovered,
) -> anyhow::Result<()> {
    let Some(first) = rows.first() else { return Ok(()) };
    let is_json =
        recovered.registrations.iter().any(|a| *a.agent == *first.target && a.encoding == Encoding::Json);
    let mut parcels = Vec::with_capacity(rows.len());
    for row in rows {
        let Ok(lane) = LaneEnvelope::parse(&found[&(row.lane, row.lane_sequence)]) else { continue };
        let slots = usize::from(row.first.slot)..usize::from(row.first.slot) + usize::from(row.count);
        let parcel = parcel(r.key, &lane, slots, row);
        parcels.push(if is_json { as_json(&parcel, &row.target) } else { parcel });
    }
    let payload: Bytes =
        if is_json { parcels.pop().unwrap_or_default().into() } else { inbox::write(&parcels).into() };
    let target = governance::AgentId::new(&first.target)?;
    let subject = subjects::inbox(first.class, &target);
    let fence = &r.fences[usize::from(shard)][usize::from(first.class.code())];
    let id = message_id(shard, block, index.into());
    loop {
        match r.publisher.publish(subject.clone(), Some(&id), Some(fence), payload.clone()).await.await {
            Ok(ack) => {
                tracing::debug!(id, duplicate = ack.duplicate, "replayed an inbox message");
                return Ok(());
            }
            Err(broker::PublishError::Fenced) => anyhow::bail!("deposed while replaying"),
            Err(e) => {
                tracing::warn!(id, error = %e, "an inbox message is not replayed yet");
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
        }
    }
}

/// The instance of dispatches that came without one: the same for a stream as long as it lives.
pub(super) fn derived_instance(source: &str, lane: Priority, lanes_made: [u64; 4]) -> InstanceId {
    let made = lanes_made[usize::from(lane.code())];
    let hash =
        u64::from(governance::names::fnv1a(source.as_bytes())) << 24 | ((made / 1_000_000) & 0x3f_ffff) << 2;
    InstanceId(InstanceId::DERIVED | hash | u64::from(lane.code()))
}

impl Home {
    /// Tells the rules what was recovered, then asks for what waits.
    pub(super) fn begin(&mut self) {
        let now = clock::now();
        let recovered = std::mem::take(&mut self.recovered);
        for registration in &recovered.registrations {
            self.introduce(registration);
        }
        for (index, open) in recovered.opens.iter().enumerate() {
            self.restore(index, open);
        }
        for (source, arrival) in &recovered.quotas {
            if let Some(source) = self.governor.agent(source) {
                self.apply(Event::RestoreQuota { source, arrival: Timestamp(*arrival) });
            }
        }
        for (source, instance, from, to) in &recovered.seen {
            let instance = InstanceId(*instance);
            if let Some(source) = self.governor.agent(source) {
                self.sources_of_instances.insert(instance, source);
            }
            self.apply(Event::RestoreSeen { instance, from: *from, to: *to });
        }
        for (first, count) in &recovered.copies {
            self.apply(Event::RestoreCopies { first: *first, count: *count });
        }
        for (agent, breaker) in &recovered.breakers {
            if let Some(target) = self.governor.agent(agent) {
                let Breaker { state, reason, .. } = *breaker;
                self.apply(Event::RestoreBreaker { target, state, reason });
            }
        }
        for agent in &recovered.paused {
            if let Some(target) = self.governor.agent(agent) {
                self.apply(Event::SetPaused { target, paused: true });
            }
        }
        self.tell_ended(&recovered.ended);
        tracing::info!(
            epoch = self.epoch,
            agents = recovered.registrations.len(),
            open = recovered.opens.len(),
            replayed = recovered.covered.len(),
            unread = recovered.completions_unread,
            "this replica is home of all shards"
        );
        self.recovered = recovered;
        let body = serde_json::json!({"replica": self.replica, "epoch": self.epoch});
        self.mesh_note(now, "takeover", &body);
    }

    /// Makes an agent known to the rules and to the shell, and reads its completions.
    pub(super) fn introduce(&mut self, registration: &Registration) {
        let Ok(id) = governance::AgentId::new(&registration.agent) else { return };
        let now = clock::now();
        let mut effects = std::mem::take(&mut self.effects);
        self.governor.apply(now, Event::AgentRegistered { registration }, &mut effects);
        if let Some(ix) = self.governor.agent(&registration.agent) {
            let shell = super::AgentShell {
                name: registration.agent.as_str().into(),
                shard: shard_of(&registration.agent),
                id,
                slots: registration.max_concurrent,
                json: registration.encoding == Encoding::Json,
            };
            self.agents.insert(ix, shell);
            for priority in Priority::ALL {
                self.pull_done(ix, *priority);
            }
        }
        for effect in effects.drain(..) {
            self.perform(now, effect, None);
        }
        self.effects = effects;
    }

    fn restore(&mut self, index: usize, open: &OpenState) {
        let agent = |name: &str| self.governor.agent(name);
        let (Some(source), Some(target), Ok(first)) =
            (agent(&open.source), agent(&open.target), open.first.parse())
        else {
            return tracing::error!(
                id = open.first,
                "an open dispatch names an agent that nobody registered"
            );
        };
        let capability = self.governor.capability(&open.capability).unwrap_or(governance::NO_CAPABILITY);
        let restored = Restored {
            source,
            target,
            capability,
            kind: open.kind,
            class: open.class,
            serves_person: open.serves_person,
            first,
            count: open.count,
            deadline: Timestamp(open.deadline),
            admitted: Timestamp(open.admitted),
            order_key: open.order_key,
            ended: open.ended.clone(),
            open: OpenIx(index as u32),
        };
        self.opens.put(
            index,
            OpenShell {
                source,
                target,
                capability: open.capability.as_str().into(),
                kind: open.kind,
                class: open.class,
                lane: open.lane,
                accepted: Timestamp(open.accepted),
                admitted: Timestamp(open.admitted),
                reason: open.reason,
                reply_token: open.reply_token.as_str().into(),
            },
        );
        self.apply(Event::Restore(&restored));
    }

    /// Tells ends that the former home recorded and perhaps did not get to tell.
    fn tell_ended(&mut self, rows: &[DecisionRow]) {
        for row in rows.iter().filter(|r| r.kind == Kind::Request) {
            let (Some(outcome), Some(source)) = (row.outcome, self.governor.agent(&row.source)) else {
                continue;
            };
            let text = self
                .governor
                .agent(&row.target)
                .and_then(|t| self.governor.registration(t))
                .and_then(|r| r.fallbacks.get(&*row.capability))
                .filter(|_| row.decision == Decision::Fallback)
                .and_then(|f| match f {
                    governance::Fallback::Static(text) => Some(text.clone()),
                    governance::Fallback::Agent(_) => None,
                })
                .unwrap_or_else(|| explain::refusal(row.reason, &row.source, &row.target, &row.capability));
            self.ready_replies.push(OwnedReply {
                source,
                instance: row.first.instance,
                token: Arc::clone(&row.reply_token),
                first: row.first,
                count: row.count,
                outcome,
                reason: row.reason,
                target: Arc::clone(&row.target),
                lane_us: 0,
                inbox_us: 0,
                ran_us: 0,
                payload: text.into(),
                content_type: String::new(),
                origin: Origin::Nothing,
            });
        }
    }

    /// The state of a shard as it is when the block `head` is durable.
    pub(super) fn snapshot(&self, shard: u8, head: Head) -> String {
        let mine = |agent: AgentIx| self.agents.get(&agent).is_some_and(|a| a.shard == shard);
        let name = |agent: AgentIx| self.name(agent).to_string();
        let opens = self
            .governor
            .open_runs()
            .filter(|(_, run)| mine(run.source))
            .filter_map(|(ix, run)| self.opens.get(ix.ix()).map(|open| (run, open)))
            .map(|(run, open)| OpenState {
                source: name(run.source),
                target: name(run.target),
                capability: open.capability.to_string(),
                kind: run.kind,
                class: run.class,
                lane: open.lane,
                serves_person: run.serves_person,
                first: run.first.to_string(),
                count: run.count,
                ended: run.ended,
                deadline: run.deadline.0,
                admitted: open.admitted.0,
                accepted: open.accepted.0,
                reason: open.reason,
                order_key: run.order_key,
                reply_token: open.reply_token.to_string(),
            })
            .collect();
        let quotas =
            self.governor.quota_arrivals().filter(|(a, _)| mine(*a)).map(|(a, at)| (name(a), at.0)).collect();
        let state = State { opens, quotas, seen: self.decided_ranges(shard) };
        let s = &self.shards[usize::from(shard)];
        let own = s
            .unsettled
            .keys()
            .next()
            .map_or(head.id, |sequence| EntryId { epoch: self.epoch, sequence: *sequence });
        let oldest = self
            .recovered
            .floors
            .get(&shard)
            .filter(|_| !self.recovered.covered.is_empty())
            .map_or(own, |f| own.min(*f));
        let state = serde_json::to_string(&state).expect("plain data serialises");
        format!("{head}\n{oldest}\n{state}")
    }

    /// Sequences about which everything is decided: one of which a slot is still held must come again after a crash.
    fn decided_ranges(&self, shard: u8) -> Vec<(String, u64, u64, u64)> {
        self.governor
            .seen_ranges()
            .filter_map(|(instance, from, to)| {
                let source = self.sources_of_instances.get(&instance)?;
                let agent = self.agents.get(source).filter(|a| a.shard == shard)?;
                Some((agent.name.to_string(), instance.0, from, to))
            })
            .collect()
    }
}
