//! All decoders over one piece of bytes, and what must hold of whatever they accept. Shared by tests and fuzz targets.
//!
//! The rule it keeps: no decoder panics on any bytes, and what one accepts, the next one on its way accepts as well.

use std::str::FromStr;

use bytes::Bytes;
use governance::{AgentId, Capability, DispatchId, InstanceId, Priority, Reason, Timestamp, Topic};
use protocol::audit::{self, Block};
use protocol::completion::{Completions, Replies};
use protocol::envelope::{LaneEnvelope, column};
use protocol::inbox::{self, Parcel, Stamp};
use protocol::{AuditKey, Frame, Lineage, control, json, redis, streams, subjects, text};

/// Rows that are read one by one; a frame may claim 65,535 of them in a few bytes, and the next ones are like them.
const ROWS_READ_MAX: usize = 64;

/// Runs every decoder.
pub(crate) fn decode_all(bytes: &[u8]) {
    frames(bytes);
    lane(bytes);
    inbox(bytes);
    completions(bytes);
    replies(bytes);
    door(bytes);
    lineage(bytes);
    block(bytes);
    texts(bytes);
    controls(bytes);
}

/// The column frame itself, under every kind, with every accessor on every column.
pub(crate) fn frames(bytes: &[u8]) {
    for kind in [1, 2, 3, 4, 16, 17, 18] {
        let Ok(frame) = Frame::parse(bytes, kind) else { continue };
        assert_eq!(frame.bytes(), bytes);
        assert_eq!(frame.kind(), kind);
        for id in 0..=u8::MAX {
            let _ = (frame.has(id), frame.is_same(id), frame.spread(id));
            for row in (0..frame.rows().min(ROWS_READ_MAX)).chain([frame.rows(), usize::MAX]) {
                let _ = (frame.u8(id, row), frame.u16(id, row), frame.u32(id, row), frame.u64(id, row));
                let _ = (frame.text(id, row), frame.str(id, row));
            }
        }
    }
}

/// A lane envelope; any cut of one that is accepted is an acceptable parcel with the same values.
pub(crate) fn lane(bytes: &[u8]) {
    let Ok(lane) = LaneEnvelope::parse(bytes) else { return };
    let rows = lane.frame.rows();
    for row in 0..rows.min(ROWS_READ_MAX) {
        let _ = (lane.kind(row), lane.budget(row), lane.lineage(row));
    }
    for cut in [0..rows, rows / 2..rows, rows - 1..rows] {
        let deadlines = vec![Timestamp(7); cut.len()];
        let seals = vec![9; cut.len()];
        let stamp = Stamp {
            source: "source",
            copy: 3,
            lane: Priority::P1,
            accepted: Timestamp(1),
            admitted: Timestamp(2),
            reason: Reason::Ok,
            deadlines: &deadlines,
            serves_person: true,
            seals: &seals,
        };
        let bytes = inbox::parcel(&lane, cut.clone(), &stamp);
        let parcel = Parcel::parse(&bytes).expect("a cut of an accepted envelope is a parcel");
        assert_eq!(parcel.frame.rows(), cut.len());
        for (row, above) in cut.enumerate().take(ROWS_READ_MAX) {
            assert_eq!(parcel.payload(row), lane.payload(above));
            assert_eq!(parcel.kind(row), lane.kind(above));
            assert_eq!(parcel.text(column::CAPABILITY, row), lane.text(column::CAPABILITY, above));
            assert_eq!(usize::from(parcel.id(row).slot), above);
            assert_eq!(parcel.id(row).instance, lane.instance);
        }
        read_parcel(&parcel);
    }
}

fn read_parcel(parcel: &Parcel<'_>) {
    for row in 0..parcel.frame.rows().min(ROWS_READ_MAX) {
        let _ = (parcel.id(row), parcel.deadline(row), parcel.accepted(), parcel.admitted());
        let _ = (parcel.callee(row), parcel.root(row), parcel.child_lineage(row, "target"));
        let shown = json::inbox(parcel, row, "target");
        serde_json::from_slice::<serde_json::Value>(&shown)
            .map_or_else(|error| assert!(error.to_string().contains("recursion"), "{error}"), drop);
    }
}

/// An inbox envelope with its parcels, and a parcel by itself.
pub(crate) fn inbox(bytes: &[u8]) {
    if let Ok(parcel) = Parcel::parse(bytes) {
        read_parcel(&parcel);
    }
    let Ok(parcels) = inbox::split(&Bytes::copy_from_slice(bytes)) else { return };
    for parcel in parcels {
        if let Ok(parcel) = Parcel::parse(&parcel) {
            read_parcel(&parcel);
        }
    }
}

/// Completions.
pub(crate) fn completions(bytes: &[u8]) {
    let Ok(rows) = Completions::parse(bytes) else { return };
    for row in 0..rows.len().min(ROWS_READ_MAX) {
        let row = rows.row(row);
        assert!(row.count > 0 && row.first.slot.checked_add(row.count - 1).is_some());
        assert!(row.inbox_ack.is_empty() || subjects::acknowledges(row.inbox_ack).is_some());
    }
}

/// Replies.
pub(crate) fn replies(bytes: &[u8]) {
    let Ok(rows) = Replies::parse(bytes) else { return };
    for row in 0..rows.len().min(ROWS_READ_MAX) {
        let view = json::reply_view(&rows.row(row));
        serde_json::to_vec(&view).expect("a reply can be shown");
    }
}

/// The JSON door: what it accepts is binary that the next decoder accepts.
pub(crate) fn door(bytes: &[u8]) {
    let _ = (json::is_json(bytes), json::value(bytes));
    if let Ok(lane) = json::to_lane(bytes, InstanceId(InstanceId::DERIVED | 1), 1) {
        LaneEnvelope::parse(&lane).expect("the door writes envelopes that can be read");
    }
    if let Ok(done) = json::to_completions(bytes) {
        let rows = Completions::parse(&done).expect("the door writes completions that can be read");
        assert_eq!(rows.len(), 1);
    }
}

/// A lineage; without the key nothing passes as sealed.
pub(crate) fn lineage(bytes: &[u8]) {
    let key = AuditKey::new(&[0xA5; 32]);
    let Some((lineage, seal)) = Lineage::decode(bytes) else {
        assert_eq!(Lineage::verify(bytes, &key, "holder"), None);
        return;
    };
    assert_eq!(lineage.with_seal(seal), bytes, "a lineage has one form");
}

/// An audit block; what is accepted can be written again and says the same.
pub(crate) fn block(bytes: &[u8]) {
    let head = audit::Head::decode(bytes);
    let Ok(block) = Block::decode(bytes) else { return };
    let head = head.expect("a block begins with its head");
    assert_eq!((head.epoch, head.sequence, head.shard), (block.epoch, block.sequence, block.shard));
    assert_eq!(block.decisions.iter().map(|d| d.hashes.len()).sum::<usize>(), block.decided());
    if block.notes.iter().map(|n| n.body.len()).sum::<usize>() < 1 << 20 {
        assert_eq!(Block::decode(&block.encode()).as_ref(), Ok(&block));
    }
}

/// Everything that is read from a text.
pub(crate) fn texts(bytes: &[u8]) {
    let Ok(said) = std::str::from_utf8(bytes) else { return };
    let _ = (subjects::route(said), subjects::acknowledges(said), subjects::last_token(said));
    let _ = (streams::consumer_epoch(said), AuditKey::parse(said), subjects::is_reply_token(said));
    let _ = (InstanceId::from_str(said), AgentId::new(said), Capability::new(said), Topic::new(said));
    if let Some(read) = text::unhex(said) {
        assert_eq!(text::hex(&read), said.to_ascii_lowercase());
    }
    if let Ok(id) = DispatchId::from_str(said) {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    if let Some(id) = redis::EntryId::parse(said) {
        assert_eq!(id.to_string(), said);
        let _ = (id.follows(id), id.follows(redis::EntryId::default()));
    }
    if let Some(head) = redis::Head::parse(said) {
        assert_eq!(head.to_string(), said.to_ascii_lowercase());
    }
}

/// Every control message.
pub(crate) fn controls(bytes: &[u8]) {
    fn read<T: serde::de::DeserializeOwned + serde::Serialize>(bytes: &[u8]) {
        if let Ok(message) = serde_json::from_slice::<T>(bytes) {
            serde_json::to_vec(&message).expect("what was read can be written");
        }
    }
    read::<control::Beat>(bytes);
    read::<control::Verdict>(bytes);
    read::<control::Signal>(bytes);
    read::<control::Revoke>(bytes);
    read::<control::OpenQuestion>(bytes);
    read::<control::OpenAnswer>(bytes);
    read::<control::Cancel>(bytes);
    read::<control::Extend>(bytes);
    read::<control::Extended>(bytes);
    read::<control::Progress>(bytes);
    read::<control::Alert>(bytes);
    read::<control::Breaker>(bytes);
    read::<control::Owner>(bytes);
    read::<control::Replica>(bytes);
    read::<control::DeadLetter>(bytes);
    read::<control::Operation>(bytes);
    read::<control::LaneView>(bytes);
    read::<control::AgentView>(bytes);
    read::<control::ReplyView>(bytes);
    read::<governance::Registration>(bytes);
}
