//! Inbox envelopes: what a target receives. Owns the parcels in them: rows of one lane envelope with what its home adds.
//!
//! The rule it keeps: payloads and other columns of the source are copied as they are, never decoded.

use std::ops::Range;

use bytes::Bytes;
use governance::{AgentId, DispatchId, Kind, Priority, Reason, Timestamp};

use crate::envelope::{KEY_BYTES_MAX, LaneEnvelope, check_columns, column, sender};
use crate::frame::{Frame, FrameError, FrameWriter};
use crate::key::AuditKey;
use crate::lineage::{Lineage, hop};

/// The frame kind of a parcel.
pub const KIND_PARCEL: u8 = 2;
/// The first two bytes of an inbox envelope.
pub const MAGIC: [u8; 2] = *b"AX";
/// The version this code writes and reads.
pub const VERSION: u8 = 1;
/// Parcels of one envelope; a home packs at most what one instance has slots for.
pub const PARCELS_MAX: usize = 4_096;

/// What the home adds to the rows it forwards.
#[derive(Debug, Clone)]
pub struct Stamp<'a> {
    /// Who sent them.
    pub source: &'a str,
    /// The topic copy, 0 for none.
    pub copy: u16,
    /// The lane they came through.
    pub lane: Priority,
    /// When the broker accepted them.
    pub accepted: Timestamp,
    /// When their home admitted them.
    pub admitted: Timestamp,
    /// Why they go there and so.
    pub reason: Reason,
    /// When each row ends at the latest.
    pub deadlines: &'a [Timestamp],
    /// Whether their children may claim P0.
    pub serves_person: bool,
    /// The seal of each row's lineage.
    pub seals: &'a [u64],
}

/// Columns that travel unchanged from lane to inbox.
const FORWARDED: [u8; 13] = [
    column::INSTANCE,
    column::SEQUENCE,
    column::KIND,
    column::CAPABILITY,
    column::TOPIC,
    column::LINEAGE,
    column::CONVERSATION,
    column::ORDER_KEY,
    column::IDEMPOTENCY_KEY,
    column::TRACE,
    column::CONTENT_TYPE,
    column::REPLY_TOKEN,
    column::PAYLOAD,
];

/// Cuts rows out of a lane envelope and stamps them.
#[must_use]
pub fn parcel(lane: &LaneEnvelope<'_>, rows: Range<usize>, stamp: &Stamp<'_>) -> Vec<u8> {
    let mut w = FrameWriter::new(KIND_PARCEL, rows.len());
    for id in FORWARDED {
        w.copy(&lane.frame, id, rows.clone());
    }
    w.same(column::FIRST_SLOT, (rows.start as u16).to_le_bytes());
    w.same(column::COPY, stamp.copy.to_le_bytes());
    w.text_same(column::SOURCE, stamp.source.as_bytes());
    w.fixed(column::DEADLINE, stamp.deadlines.iter().map(|d| d.0.to_le_bytes()));
    w.fixed(column::SEAL, stamp.seals.iter().map(|s| s.to_le_bytes()));
    w.same(column::SERVES_PERSON, [u8::from(stamp.serves_person)]);
    w.same(column::ACCEPTED, stamp.accepted.0.to_le_bytes());
    w.same(column::ADMITTED, stamp.admitted.0.to_le_bytes());
    w.same(column::LANE, [stamp.lane.code()]);
    w.same(column::REASON, [stamp.reason.code()]);
    w.finish()
}

/// Lays parcels end to end as one inbox envelope.
#[must_use]
pub fn write(parcels: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + parcels.iter().map(|p| p.len() + 4).sum::<usize>());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, 0]);
    out.extend_from_slice(&(parcels.len() as u32).to_le_bytes());
    for p in parcels {
        out.extend_from_slice(&(p.len() as u32).to_le_bytes());
        out.extend_from_slice(p);
    }
    out
}

/// Splits an inbox envelope into its parcels' bytes, without copying.
///
/// # Errors
/// When the bytes are not an inbox envelope of this version. The parcels themselves are checked by [`Parcel::parse`].
pub fn split(bytes: &Bytes) -> Result<Vec<Bytes>, FrameError> {
    if bytes.len() < 8 || bytes[..2] != MAGIC {
        return Err(FrameError::NotAFrame);
    }
    if bytes[2] != VERSION {
        return Err(FrameError::UnknownVersion(bytes[2]));
    }
    if bytes[3] != 0 {
        return Err(FrameError::NotAFrame);
    }
    let u32_at =
        |at: usize| bytes.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize);
    let count = u32_at(4).unwrap_or(0);
    if count > PARCELS_MAX {
        return Err(FrameError::TooManyRows(count));
    }
    let mut parcels = Vec::with_capacity(count);
    let mut at = 8;
    for _ in 0..count {
        let truncated = |need| FrameError::Truncated { need, have: bytes.len() };
        let len = u32_at(at).ok_or_else(|| truncated(at + 4))?;
        at += 4;
        if bytes.len() - at < len {
            return Err(truncated(at + len));
        }
        parcels.push(bytes.slice(at..at + len));
        at += len;
    }
    if at != bytes.len() {
        return Err(FrameError::Truncated { need: at, have: bytes.len() });
    }
    Ok(parcels)
}

/// A parcel that was read and checked.
#[derive(Debug, Clone)]
pub struct Parcel<'a> {
    /// The columns.
    pub frame: Frame<'a>,
    /// The first dispatch; the others follow slot by slot.
    pub first: DispatchId,
    /// Who sent them.
    pub source: &'a str,
    /// The lane they came through.
    pub lane: Priority,
}

impl<'a> Parcel<'a> {
    /// Reads a parcel.
    ///
    /// # Errors
    /// When the bytes are not a parcel of this version with at least one dispatch and sane values in each.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let frame = Frame::parse(bytes, KIND_PARCEL)?;
        check_columns(&frame)?;
        let (instance, sequence) = sender(&frame)?;
        let first = DispatchId {
            instance,
            sequence,
            slot: frame.u16(column::FIRST_SLOT, 0).ok_or(FrameError::MissingColumn(column::FIRST_SLOT))?,
            copy: frame.u16(column::COPY, 0).ok_or(FrameError::MissingColumn(column::COPY))?,
        };
        if frame.rows() == 0 || usize::from(first.slot) + frame.rows() > usize::from(u16::MAX) + 1 {
            return Err(FrameError::TooManyRows(frame.rows()));
        }
        frame.expect_text(column::SOURCE, KEY_BYTES_MAX)?;
        let source = frame.str(column::SOURCE, 0)?.ok_or(FrameError::MissingColumn(column::SOURCE))?;
        // It becomes part of the subject that the completion goes to.
        let named = AgentId::new(source).is_ok();
        for id in [column::FIRST_SLOT, column::COPY, column::SOURCE, column::LANE] {
            if !frame.is_same(id) || !named {
                return Err(FrameError::BadValue { column: if named { id } else { column::SOURCE }, row: 0 });
            }
        }
        let lane = frame
            .u8(column::LANE, 0)
            .and_then(Priority::from_code)
            .ok_or(FrameError::BadValue { column: column::LANE, row: 0 })?;
        for id in [column::DEADLINE, column::SEAL, column::ACCEPTED, column::ADMITTED] {
            frame.expect_fixed::<8>(id)?;
        }
        for id in [column::SERVES_PERSON, column::REASON] {
            frame.expect_fixed::<1>(id)?;
        }
        Ok(Self { frame, first, source, lane })
    }

    /// The id of a row.
    #[must_use]
    pub const fn id(&self, row: usize) -> DispatchId {
        DispatchId { slot: self.first.slot + row as u16, ..self.first }
    }

    /// Request or event.
    #[must_use]
    pub fn kind(&self, row: usize) -> Kind {
        self.frame.u8(column::KIND, row).and_then(Kind::from_code).unwrap_or(Kind::Request)
    }

    /// A text column of a row, empty where absent.
    #[must_use]
    pub fn text(&self, id: u8, row: usize) -> &'a str {
        self.frame.str(id, row).ok().flatten().unwrap_or_default()
    }

    /// The payload of a row.
    #[must_use]
    pub fn payload(&self, row: usize) -> &'a [u8] {
        self.frame.text(column::PAYLOAD, row).unwrap_or_default()
    }

    /// When a row ends at the latest.
    #[must_use]
    pub fn deadline(&self, row: usize) -> Timestamp {
        Timestamp(self.frame.u64(column::DEADLINE, row).unwrap_or(u64::MAX))
    }

    /// When its home admitted it.
    #[must_use]
    pub fn admitted(&self) -> Timestamp {
        Timestamp(self.frame.u64(column::ADMITTED, 0).unwrap_or(0))
    }

    /// When the broker accepted it.
    #[must_use]
    pub fn accepted(&self) -> Timestamp {
        Timestamp(self.frame.u64(column::ACCEPTED, 0).unwrap_or(0))
    }

    /// The sealed lineage that dispatches sent while `target` runs this row carry.
    #[must_use]
    pub fn child_lineage(&self, row: usize, target: &str) -> Vec<u8> {
        let serves = self.frame.u8(column::SERVES_PERSON, row).unwrap_or(0) == 1;
        let above = self.frame.text(column::LINEAGE, row).unwrap_or_default();
        child_lineage(above, self.id(row), self.callee(row), target, self.deadline(row), serves)
            .with_seal(self.frame.u64(column::SEAL, row).unwrap_or(0))
    }

    /// The capability or, for an event of a topic, the topic.
    #[must_use]
    pub fn callee(&self, row: usize) -> &'a str {
        let capability = self.text(column::CAPABILITY, row);
        if capability.is_empty() { self.text(column::TOPIC, row) } else { capability }
    }

    /// The root of the tree that a row belongs to.
    #[must_use]
    pub fn root(&self, row: usize) -> DispatchId {
        let above = self.frame.text(column::LINEAGE, row).unwrap_or_default();
        Lineage::decode(above).map_or_else(|| self.id(row), |(l, _)| l.root)
    }
}

/// The seals of the lineages of consecutive dispatches that are alike but for their slot: what [`Lineage::seal`] gives for the
/// lineage of the children of each, made from the bytes of the first.
#[must_use]
pub fn child_seals(first: &Lineage, count: usize, is_root: bool, key: &AuditKey, holder: &str) -> Vec<u64> {
    let mut seals = first.sealing(key, holder);
    (0..count)
        .map(|nth| {
            let parent = DispatchId { slot: first.parent.slot + nth as u16, ..first.parent };
            seals.seal_for(if is_root { parent } else { first.root }, parent)
        })
        .collect()
}

/// The lineage of the children of dispatch `id`, which runs `callee` at `target` and itself carries `above`.
#[must_use]
pub fn child_lineage(
    above: &[u8],
    id: DispatchId,
    callee: &str,
    target: &str,
    deadline: Timestamp,
    serves_person: bool,
) -> Lineage {
    let (root, mut ancestry) = Lineage::decode(above).map_or((id, Vec::new()), |(l, _)| (l.root, l.ancestry));
    ancestry.push(hop(target, callee));
    Lineage { root, parent: id, deadline, serves_person, ancestry }
}
