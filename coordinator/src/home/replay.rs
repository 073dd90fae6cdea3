//! Replaying: what the former home recorded and perhaps did not publish goes out again.
//!
//! The rule it keeps: what a block records is replayed as recorded, under the same message ids, never decided again.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use futures::StreamExt;
use governance::{Encoding, InstanceId, Priority};
use protocol::audit::DecisionRow;
use protocol::envelope::LaneEnvelope;
use protocol::redis::EntryId;
use protocol::{inbox, json, streams, subjects};

use super::perform::{as_json, parcel};
use super::rebuild::{Recovered, Recovery};
use super::settle::message_id;

/// Messages looked up at the broker at once while replaying.
const LOOKUPS: usize = 64;

/// Publishes again what was recorded and whose lane message is still there; the broker drops what it has already.
pub(super) async fn replay(
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
