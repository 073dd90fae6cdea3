//! Replaying: what the former home recorded and perhaps did not publish goes out again.
//!
//! The rule it keeps: what a block records is replayed as recorded, under the same message ids, never decided again; what
//! has ended is not published again, however long ago the broker forgot its message id.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use governance::{AgentId, DispatchId, Encoding, InstanceId, Priority};
use protocol::audit::DecisionRow;
use protocol::envelope::LaneEnvelope;
use protocol::redis::EntryId;
use protocol::streams::DUPLICATE_ASSUMED;
use protocol::{AuditKey, inbox, json, subjects};

use crate::out::Fence;
use crate::perform::{as_json, parcel};
use crate::rebuild::{Rebuilt, Recovered};
use crate::settle::message_id;
use crate::takeover::{Stored, TakeoverError, World};

/// Lanes looked through at the broker at once while replaying.
const LOOKUPS: usize = 64;

/// Everything that replaying needs.
#[derive(Debug)]
pub(crate) struct Replay<'a, W> {
    pub(crate) world: &'a W,
    pub(crate) shard: u8,
    pub(crate) key: &'a AuditKey,
    pub(crate) lanes_made: [u64; 4],
    pub(crate) fences: &'a [Fence; 4],
}

/// Publishes again what was recorded and whose lane message is still there; the broker drops what it has already.
pub(crate) async fn replay<W: World>(
    r: &Replay<'_, W>,
    rebuilt: &Rebuilt,
    recovered: &mut Recovered,
) -> Result<(), TakeoverError> {
    let rows = &rebuilt.rows;
    let mut wanted: BTreeMap<(Priority, Arc<str>), BTreeSet<u64>> = BTreeMap::new();
    for (_, row) in rows {
        wanted.entry((row.lane, Arc::clone(&row.source))).or_default().insert(row.lane_sequence);
    }
    let found: Vec<Vec<Found>> = futures::stream::iter(wanted)
        .map(|((lane, source), sequences)| lane_messages(r, lane, source, sequences))
        .buffer_unordered(LOOKUPS)
        .try_collect()
        .await?;
    let found: HashMap<(Priority, u64), Bytes> = found.into_iter().flatten().collect();
    let mut envelopes: BTreeMap<(EntryId, u16), Vec<&DecisionRow>> = BTreeMap::new();
    for (block, row) in rows {
        if !found.contains_key(&(row.lane, row.lane_sequence)) {
            // Acknowledged: everything in it was decided, and published or told.
            let DispatchId { instance, sequence, .. } = row.first;
            recovered.seen.push((row.source.to_string(), instance.0, sequence, sequence));
            if let Some(envelope) = row.envelope {
                envelopes.entry((*block, envelope)).or_default();
            }
            continue;
        }
        // An acknowledgement that was lost brings back what needs nothing more; blocks that decided some of it may be too old
        // to be read, so that only the snapshot knows.
        if !rebuilt.was_decided(row.first) {
            recovered.unsettled.insert((row.lane, row.lane_sequence));
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
        // A lane message with slots that wait for their quota stays for long after its first slots have run.
        if rows.iter().any(|row| rebuilt.is_open(row)) {
            republish(r, block, index, &rows, &found, recovered).await?;
        }
    }
    Ok(())
}

/// A lane message that is still there.
type Found = ((Priority, u64), Bytes);

/// Those of these messages that are still in a lane. What is gone costs no question: of seconds of work a few are left.
async fn lane_messages<W: World>(
    r: &Replay<'_, W>,
    lane: Priority,
    source: Arc<str>,
    sequences: BTreeSet<u64>,
) -> Result<Vec<Found>, TakeoverError> {
    let mut found = Vec::new();
    let Ok(agent) = AgentId::new(&source) else { return Ok(found) };
    let mut next = sequences.first().copied();
    while let Some(from) = next {
        let Some((sequence, payload)) = r.world.lane_message(lane, &agent, from).await? else { break };
        if sequences.contains(&sequence) {
            let bytes = if json::is_json(&payload) {
                let instance = derived_instance(&source, lane, r.lanes_made);
                json::to_lane(&payload, instance, sequence).unwrap_or_default().into()
            } else {
                payload
            };
            found.push(((lane, sequence), bytes));
        }
        next = sequences.range(sequence + 1..).next().copied();
    }
    Ok(found)
}

async fn republish<W: World>(
    r: &Replay<'_, W>,
    block: EntryId,
    index: u16,
    rows: &[&DecisionRow],
    found: &HashMap<(Priority, u64), Bytes>,
    recovered: &Recovered,
) -> Result<(), TakeoverError> {
    let Some(first) = rows.first() else { return Ok(()) };
    let Ok(target) = AgentId::new(&first.target) else { return Ok(()) };
    let id = message_id(r.shard, block, index.into());
    let is_old = r.world.now().since(first.decided) > DUPLICATE_ASSUMED;
    if is_old && r.world.holds(first.class, &target, &id).await? {
        tracing::debug!(id, "an inbox message is worked on");
        return Ok(());
    }
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
    let subject = subjects::inbox(first.class, &target);
    let fence = r.fences[usize::from(first.class.code())].clone();
    match r.world.publish(subject, id.clone(), fence, payload).await? {
        Stored::New => tracing::debug!(id, "replayed an inbox message"),
        Stored::Already => tracing::debug!(id, "an inbox message was there already"),
        Stored::Fenced => return Err(TakeoverError::Deposed("an inbox stream refused the fence".into())),
    }
    Ok(())
}

/// The instance of dispatches that came without one: the same for a stream as long as it lives.
pub(crate) fn derived_instance(source: &str, lane: Priority, lanes_made: [u64; 4]) -> InstanceId {
    let made = lanes_made[usize::from(lane.code())];
    let hash =
        u64::from(governance::names::fnv1a(source.as_bytes())) << 24 | ((made / 1_000_000) & 0x3f_ffff) << 2;
    InstanceId(InstanceId::DERIVED | hash | u64::from(lane.code()))
}
