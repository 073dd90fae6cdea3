//! Audit blocks: packed runs of records, the commit record of a shard. Owns their bytes, hash and chain.
//!
//! The rule it keeps: a block says everything that a new home needs to replay it and an auditor to judge it, and no
//! payload. Its hash covers every byte, the hash of the block before included.
//!
//! ```text
//! 'A' 'B' version shard | epoch u64 | sequence u64 | at u64 (ns) | previous hash 32 | body u32 | body | hashes
//! ```
//! The body is zstd over three frames (decisions, completions, notes), each behind its length. Payload hashes stand raw
//! behind it, since they do not compress: 16 bytes for each dispatch of the decisions, then for each of the completions.

use std::sync::Arc;

use governance::{Decision, DispatchId, InstanceId, Kind, Outcome, Priority, Reason, Timestamp};

use crate::envelope::KEY_BYTES_MAX;
use crate::frame::{Frame, FrameError, FrameWriter};
use crate::key::{HASH_BYTES, PayloadHash};

/// The first two bytes of a block.
pub const MAGIC: [u8; 2] = *b"AB";
/// The version this code writes and reads.
pub const VERSION: u8 = 1;
/// The bytes of a block's hash.
pub const BLOCK_HASH_BYTES: usize = 32;
/// The most bytes of a body when unpacked: beyond it a block is refused, however small it is packed.
pub const BODY_BYTES_MAX: usize = 64 << 20;
/// Dispatches of one block, and rows of each kind, so that a flush stays within a broker message's size and a Redis reply's time.
pub const RECORDS_MAX: usize = 16_384;

/// The hash of a block, BLAKE3 of all its bytes.
pub type BlockHash = [u8; BLOCK_HASH_BYTES];

const HEAD_BYTES: usize = 4 + 8 * 3 + BLOCK_HASH_BYTES + 4;
/// Level 1 of zstd: the fastest; audit columns are regular enough that higher levels gain little.
const ZSTD_LEVEL: i32 = 1;
const KIND_DECISIONS: u8 = 16;
const KIND_COMPLETIONS: u8 = 17;
const KIND_NOTES: u8 = 18;
/// The column of how many consecutive slots a row is about, in decisions and completions alike.
const COUNT: u8 = 4;
/// Stands for "no outcome yet" in the column of outcomes.
const OPEN: u8 = 255;
/// Stands for "not published" in the column of envelopes.
const NO_ENVELOPE: u16 = u16::MAX;

/// Consecutive dispatches of one lane message about which the same was decided.
#[derive(Debug, Clone, PartialEq)]
pub struct DecisionRow {
    /// The first dispatch.
    pub first: DispatchId,
    /// How many consecutive slots.
    pub count: u16,
    /// The stream sequence of the lane message.
    pub lane_sequence: u64,
    /// The priority that was claimed: the lane.
    pub lane: Priority,
    /// The class that it went in.
    pub class: Priority,
    /// When the broker accepted it.
    pub accepted: Timestamp,
    /// When this was decided.
    pub decided: Timestamp,
    /// Who sent it.
    pub source: Arc<str>,
    /// Who runs it; empty where none was chosen.
    pub target: Arc<str>,
    /// What it calls, or the topic.
    pub capability: Arc<str>,
    /// Request or event.
    pub kind: Kind,
    /// What was decided.
    pub decision: Decision,
    /// Why.
    pub reason: Reason,
    /// How it ended, where it ended with the decision.
    pub outcome: Option<Outcome>,
    /// When it ends at the latest.
    pub deadline: Timestamp,
    /// Whether its children may claim P0.
    pub serves_person: bool,
    /// The top of its tree; itself for a root.
    pub root: Option<DispatchId>,
    /// The dispatch during which it was sent.
    pub parent: Option<DispatchId>,
    /// The conversation key.
    pub conversation: Arc<str>,
    /// A hash of the order key, 0 for none.
    pub order_key: u64,
    /// Which envelope of this block carries it to its inbox.
    pub envelope: Option<u16>,
    /// Hashes of the payloads, slot by slot.
    pub hashes: Vec<PayloadHash>,
    /// The token under which a JSON caller awaits the reply; empty for others.
    pub reply_token: Arc<str>,
}

/// Consecutive dispatches that ended alike after they had been admitted.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRow {
    /// The first dispatch.
    pub first: DispatchId,
    /// How many consecutive slots.
    pub count: u16,
    /// When the outcome was decided.
    pub completed: Timestamp,
    /// Who sent it.
    pub source: Arc<str>,
    /// Who ran it.
    pub target: Arc<str>,
    /// How it ended.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// It came after an outcome had been recorded, and changes nothing.
    pub late: bool,
    /// Microseconds from acceptance to admission.
    pub lane_us: u32,
    /// Microseconds from admission to the start of the handler.
    pub inbox_us: u32,
    /// Microseconds in the handler.
    pub ran_us: u32,
    /// Microseconds from acceptance to this record.
    pub latency_us: u64,
    /// Which attempt it was.
    pub attempt: u8,
    /// The instance that ran it; 0 where none did or it is unknown.
    pub runner: InstanceId,
    /// The hash of the response; all zero for none.
    pub response: PayloadHash,
}

/// Something else worth keeping: a registration, a breaker or scale change, a policy, an operator's action, a take-over.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// What it is: `registration`, `breaker`, `scale`, `policy`, `operator`, `takeover`, `demotion`, `deferral`,
    /// `retry`, `dead_letter`, `instance_lost`.
    pub kind: Arc<str>,
    /// When.
    pub at: Timestamp,
    /// Who it is about; empty for the mesh.
    pub agent: Arc<str>,
    /// The facts, as JSON.
    pub body: String,
}

/// One block.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// Whose records.
    pub shard: u8,
    /// The ownership under which it was written.
    pub epoch: u64,
    /// Dense from 1 within an epoch.
    pub sequence: u64,
    /// When it was written.
    pub at: Timestamp,
    /// The hash of the block before; all zero for the first of a shard.
    pub previous: BlockHash,
    /// The version of the policy under which was decided.
    pub policy_version: u32,
    /// What was decided.
    pub decisions: Vec<DecisionRow>,
    /// What ended.
    pub completions: Vec<CompletionRow>,
    /// What else happened.
    pub notes: Vec<Note>,
}

/// Why bytes are not a block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The head is wrong.
    #[error("the bytes are not an audit block of version {VERSION}")]
    NotABlock,
    /// The body does not unpack.
    #[error("the body of the block cannot be unpacked")]
    Packed,
    /// A frame in it is wrong.
    #[error("a frame of the block is damaged")]
    Frame(#[from] FrameError),
    /// There are more or fewer hashes than records.
    #[error("the block holds {found} bytes of hashes where {expected} belong")]
    Hashes {
        /// Bytes there are.
        found: usize,
        /// Bytes there should be.
        expected: usize,
    },
}

/// The hash of a block's bytes.
#[must_use]
pub fn hash(block: &[u8]) -> BlockHash {
    *blake3::hash(block).as_bytes()
}

impl Block {
    /// How many dispatches the decisions are about.
    #[must_use]
    pub fn decided(&self) -> usize {
        self.decisions.iter().map(|d| usize::from(d.count)).sum()
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.decisions.is_empty() && self.completions.is_empty() && self.notes.is_empty()
    }

    /// The bytes of the block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut plain = Vec::new();
        for frame in [write_decisions(self), write_completions(&self.completions), write_notes(&self.notes)] {
            plain.extend_from_slice(&(frame.len() as u32).to_le_bytes());
            plain.extend_from_slice(&frame);
        }
        let body =
            zstd::bulk::compress(&plain, ZSTD_LEVEL).expect("compressing memory into memory cannot fail");
        let mut out = Vec::with_capacity(
            HEAD_BYTES + body.len() + (self.decided() + self.completions.len()) * HASH_BYTES,
        );
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, self.shard]);
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.at.0.to_le_bytes());
        out.extend_from_slice(&self.previous);
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(&body);
        for d in &self.decisions {
            debug_assert_eq!(d.hashes.len(), usize::from(d.count), "one hash for each dispatch");
            d.hashes.iter().for_each(|h| out.extend_from_slice(h));
        }
        self.completions.iter().for_each(|c| out.extend_from_slice(&c.response));
        out
    }

    /// Reads a block.
    ///
    /// # Errors
    /// When the bytes are not exactly one block of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, BlockError> {
        let head = Head::decode(bytes)?;
        let body = bytes.get(HEAD_BYTES..HEAD_BYTES + head.body).ok_or(BlockError::NotABlock)?;
        let plain = unpack(body)?;
        let mut rest = plain.as_slice();
        let mut next = || -> Result<&[u8], BlockError> {
            let (len, tail) = rest.split_at_checked(4).ok_or(BlockError::Packed)?;
            let len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]) as usize;
            let (frame, tail) = tail.split_at_checked(len).ok_or(BlockError::Packed)?;
            rest = tail;
            Ok(frame)
        };
        let (policy_version, mut decisions) = read_decisions(next()?)?;
        let mut completions = read_completions(next()?)?;
        let notes = read_notes(next()?)?;
        if !rest.is_empty() {
            return Err(BlockError::Packed);
        }
        let hashes = &bytes[HEAD_BYTES + head.body..];
        let expected =
            (decisions.iter().map(|d| usize::from(d.count)).sum::<usize>() + completions.len()) * HASH_BYTES;
        if hashes.len() != expected {
            return Err(BlockError::Hashes { found: hashes.len(), expected });
        }
        let mut hashes =
            hashes.chunks_exact(HASH_BYTES).map(|h| PayloadHash::try_from(h).expect("of that length"));
        for d in &mut decisions {
            d.hashes = hashes.by_ref().take(d.count.into()).collect();
        }
        for c in &mut completions {
            c.response = hashes.next().expect("counted above");
        }
        let Head { shard, epoch, sequence, at, previous, .. } = head;
        Ok(Self { shard, epoch, sequence, at, previous, policy_version, decisions, completions, notes })
    }
}

/// Unpacks a body into exactly the memory that its head asks for, and at most [`BODY_BYTES_MAX`]. A body without a size
/// in its head is none of ours; one that lies about it does not unpack.
fn unpack(body: &[u8]) -> Result<Vec<u8>, BlockError> {
    let size = zstd::zstd_safe::get_frame_content_size(body).ok().flatten().ok_or(BlockError::Packed)?;
    match usize::try_from(size) {
        Ok(size) if size <= BODY_BYTES_MAX => {
            zstd::bulk::decompress(body, size).map_err(|_| BlockError::Packed)
        }
        Ok(_) | Err(_) => Err(BlockError::Packed),
    }
}

/// The fixed part in front of a block: enough to check chain and density without unpacking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Whose records.
    pub shard: u8,
    /// The ownership under which it was written.
    pub epoch: u64,
    /// Dense from 1 within an epoch.
    pub sequence: u64,
    /// When it was written.
    pub at: Timestamp,
    /// The hash of the block before.
    pub previous: BlockHash,
    body: usize,
}

impl Head {
    /// Reads the head of a block.
    ///
    /// # Errors
    /// When the bytes do not begin as a block of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, BlockError> {
        if bytes.len() < HEAD_BYTES || bytes[..2] != MAGIC || bytes[2] != VERSION {
            return Err(BlockError::NotABlock);
        }
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        Ok(Self {
            shard: bytes[3],
            epoch: u64_at(4),
            sequence: u64_at(12),
            at: Timestamp(u64_at(20)),
            previous: bytes[28..60].try_into().expect("thirty-two bytes"),
            body: u32::from_le_bytes(bytes[60..64].try_into().expect("four bytes")) as usize,
        })
    }
}

fn id_columns(w: &mut FrameWriter, ids: impl ExactSizeIterator<Item = DispatchId> + Clone) {
    w.fixed(0, ids.clone().map(|id| id.instance.0.to_le_bytes()));
    w.fixed(1, ids.clone().map(|id| id.sequence.to_le_bytes()));
    w.fixed(2, ids.clone().map(|id| id.slot.to_le_bytes()));
    w.fixed(3, ids.map(|id| id.copy.to_le_bytes()));
}

fn id_at(f: &Frame<'_>, row: usize) -> Result<DispatchId, FrameError> {
    Ok(DispatchId {
        instance: InstanceId(f.u64(0, row).ok_or(FrameError::MissingColumn(0))?),
        sequence: f.u64(1, row).ok_or(FrameError::MissingColumn(1))?,
        slot: f.u16(2, row).ok_or(FrameError::MissingColumn(2))?,
        copy: f.u16(3, row).ok_or(FrameError::MissingColumn(3))?,
    })
}

/// Ids that may be absent, as texts of 20 bytes or none.
fn optional_ids(w: &mut FrameWriter, column: u8, ids: &[Option<[u8; DispatchId::BYTES]>]) {
    if ids.iter().any(Option::is_some) {
        w.text(column, ids.iter().map(|id| id.as_ref().map_or(&[][..], |b| &b[..])));
    }
}

fn optional_id(f: &Frame<'_>, column: u8, row: usize) -> Result<Option<DispatchId>, FrameError> {
    match f.text(column, row).unwrap_or_default() {
        [] => Ok(None),
        bytes => match bytes.try_into() {
            Ok(bytes) => Ok(Some(DispatchId::from_bytes(bytes))),
            Err(_) => Err(FrameError::BadValue { column, row }),
        },
    }
}

/// How many consecutive slots a row is about: at least one, and none beyond the last slot there can be.
fn count_at(f: &Frame<'_>, row: usize) -> Result<u16, FrameError> {
    let count = f.u16(COUNT, row).ok_or(FrameError::MissingColumn(COUNT))?;
    let first = f.u16(2, row).ok_or(FrameError::MissingColumn(2))?;
    if count == 0 || first.checked_add(count - 1).is_none() {
        return Err(FrameError::BadValue { column: COUNT, row });
    }
    Ok(count)
}

fn texts<'a>(w: &mut FrameWriter, column: u8, texts: impl ExactSizeIterator<Item = &'a [u8]> + Clone) {
    if texts.clone().any(|t| !t.is_empty()) {
        w.text(column, texts);
    }
}

fn write_decisions(block: &Block) -> Vec<u8> {
    let rows = &block.decisions;
    let mut w = FrameWriter::new(KIND_DECISIONS, rows.len());
    id_columns(&mut w, rows.iter().map(|r| r.first));
    w.fixed(COUNT, rows.iter().map(|r| r.count.to_le_bytes()));
    w.fixed(5, rows.iter().map(|r| r.lane_sequence.to_le_bytes()));
    w.fixed(6, rows.iter().map(|r| [r.lane.code()]));
    w.fixed(7, rows.iter().map(|r| [r.class.code()]));
    w.fixed(8, rows.iter().map(|r| r.accepted.0.to_le_bytes()));
    w.fixed(9, rows.iter().map(|r| r.decided.0.to_le_bytes()));
    w.text(10, rows.iter().map(|r| r.source.as_bytes()));
    w.text(11, rows.iter().map(|r| r.target.as_bytes()));
    w.text(12, rows.iter().map(|r| r.capability.as_bytes()));
    w.fixed(13, rows.iter().map(|r| [r.kind.code()]));
    w.fixed(14, rows.iter().map(|r| [r.decision.code()]));
    w.fixed(15, rows.iter().map(|r| [r.reason.code()]));
    w.fixed(16, rows.iter().map(|r| [r.outcome.map_or(OPEN, Outcome::code)]));
    w.fixed(17, rows.iter().map(|r| r.deadline.0.to_le_bytes()));
    w.fixed(18, rows.iter().map(|r| [u8::from(r.serves_person)]));
    let roots: Vec<_> = rows.iter().map(|r| r.root.map(DispatchId::to_bytes)).collect();
    optional_ids(&mut w, 19, &roots);
    let parents: Vec<_> = rows.iter().map(|r| r.parent.map(DispatchId::to_bytes)).collect();
    optional_ids(&mut w, 20, &parents);
    texts(&mut w, 21, rows.iter().map(|r| r.conversation.as_bytes()));
    w.fixed(22, rows.iter().map(|r| r.order_key.to_le_bytes()));
    w.fixed(23, rows.iter().map(|r| r.envelope.unwrap_or(NO_ENVELOPE).to_le_bytes()));
    texts(&mut w, 24, rows.iter().map(|r| r.reply_token.as_bytes()));
    w.same(25, block.policy_version.to_le_bytes());
    w.finish()
}

fn word<T>(f: &Frame<'_>, column: u8, row: usize, read: fn(u8) -> Option<T>) -> Result<T, FrameError> {
    f.u8(column, row).and_then(read).ok_or(FrameError::BadValue { column, row })
}

/// Every number is a reason: one that a newer build gave stays what it is.
fn reason(f: &Frame<'_>, column: u8, row: usize) -> Result<Reason, FrameError> {
    f.u8(column, row).map(Reason::from_code).ok_or(FrameError::BadValue { column, row })
}

/// Bounds rows and texts before anything is copied: a short block may spell out to a great many equal long texts.
fn bounded(f: &Frame<'_>, texts: &[u8]) -> Result<(), FrameError> {
    if f.rows() > RECORDS_MAX {
        return Err(FrameError::TooManyRows(f.rows()));
    }
    texts.iter().try_for_each(|id| f.expect_text(*id, KEY_BYTES_MAX))
}

/// Interns equal neighbours, as names repeat from row to row.
fn name(f: &Frame<'_>, column: u8, row: usize, last: &mut Arc<str>) -> Result<Arc<str>, FrameError> {
    let text = f.str(column, row)?.unwrap_or_default();
    if **last != *text {
        *last = text.into();
    }
    Ok(Arc::clone(last))
}

fn read_decisions(bytes: &[u8]) -> Result<(u32, Vec<DecisionRow>), FrameError> {
    let f = Frame::parse(bytes, KIND_DECISIONS)?;
    bounded(&f, &[10, 11, 12, 21, 24])?;
    let mut last: [Arc<str>; 5] = std::array::from_fn(|_| "".into());
    let mut rows = Vec::with_capacity(f.rows());
    for row in 0..f.rows() {
        let u64_at = |column| f.u64(column, row).ok_or(FrameError::MissingColumn(column));
        let outcome = f.u8(16, row).ok_or(FrameError::MissingColumn(16))?;
        let envelope = f.u16(23, row).ok_or(FrameError::MissingColumn(23))?;
        rows.push(DecisionRow {
            first: id_at(&f, row)?,
            count: count_at(&f, row)?,
            lane_sequence: u64_at(5)?,
            lane: word(&f, 6, row, Priority::from_code)?,
            class: word(&f, 7, row, Priority::from_code)?,
            accepted: Timestamp(u64_at(8)?),
            decided: Timestamp(u64_at(9)?),
            source: name(&f, 10, row, &mut last[0])?,
            target: name(&f, 11, row, &mut last[1])?,
            capability: name(&f, 12, row, &mut last[2])?,
            kind: word(&f, 13, row, Kind::from_code)?,
            decision: word(&f, 14, row, Decision::from_code)?,
            reason: reason(&f, 15, row)?,
            outcome: match outcome {
                OPEN => None,
                code => Some(Outcome::from_code(code).ok_or(FrameError::BadValue { column: 16, row })?),
            },
            deadline: Timestamp(u64_at(17)?),
            serves_person: f.u8(18, row) == Some(1),
            root: optional_id(&f, 19, row)?,
            parent: optional_id(&f, 20, row)?,
            conversation: name(&f, 21, row, &mut last[3])?,
            order_key: u64_at(22)?,
            envelope: (envelope != NO_ENVELOPE).then_some(envelope),
            hashes: Vec::new(),
            reply_token: name(&f, 24, row, &mut last[4])?,
        });
    }
    Ok((f.u32(25, 0).unwrap_or(0), rows))
}

fn write_completions(rows: &[CompletionRow]) -> Vec<u8> {
    let mut w = FrameWriter::new(KIND_COMPLETIONS, rows.len());
    id_columns(&mut w, rows.iter().map(|r| r.first));
    w.fixed(COUNT, rows.iter().map(|r| r.count.to_le_bytes()));
    w.fixed(5, rows.iter().map(|r| r.completed.0.to_le_bytes()));
    w.text(6, rows.iter().map(|r| r.source.as_bytes()));
    w.text(7, rows.iter().map(|r| r.target.as_bytes()));
    w.fixed(8, rows.iter().map(|r| [r.outcome.code()]));
    w.fixed(9, rows.iter().map(|r| [r.reason.code()]));
    w.fixed(10, rows.iter().map(|r| [u8::from(r.late)]));
    w.fixed(11, rows.iter().map(|r| r.lane_us.to_le_bytes()));
    w.fixed(12, rows.iter().map(|r| r.inbox_us.to_le_bytes()));
    w.fixed(13, rows.iter().map(|r| r.ran_us.to_le_bytes()));
    w.fixed(14, rows.iter().map(|r| r.latency_us.to_le_bytes()));
    w.fixed(15, rows.iter().map(|r| [r.attempt]));
    w.fixed(16, rows.iter().map(|r| r.runner.0.to_le_bytes()));
    w.finish()
}

fn read_completions(bytes: &[u8]) -> Result<Vec<CompletionRow>, FrameError> {
    let f = Frame::parse(bytes, KIND_COMPLETIONS)?;
    bounded(&f, &[6, 7])?;
    let mut last: [Arc<str>; 2] = std::array::from_fn(|_| "".into());
    let mut rows = Vec::with_capacity(f.rows());
    for row in 0..f.rows() {
        let u32_at = |column| f.u32(column, row).ok_or(FrameError::MissingColumn(column));
        let u64_at = |column| f.u64(column, row).ok_or(FrameError::MissingColumn(column));
        rows.push(CompletionRow {
            first: id_at(&f, row)?,
            count: count_at(&f, row)?,
            completed: Timestamp(u64_at(5)?),
            source: name(&f, 6, row, &mut last[0])?,
            target: name(&f, 7, row, &mut last[1])?,
            outcome: word(&f, 8, row, Outcome::from_code)?,
            reason: reason(&f, 9, row)?,
            late: f.u8(10, row) == Some(1),
            lane_us: u32_at(11)?,
            inbox_us: u32_at(12)?,
            ran_us: u32_at(13)?,
            latency_us: u64_at(14)?,
            attempt: f.u8(15, row).unwrap_or(1),
            runner: InstanceId(u64_at(16)?),
            response: [0; HASH_BYTES],
        });
    }
    Ok(rows)
}

fn write_notes(rows: &[Note]) -> Vec<u8> {
    let mut w = FrameWriter::new(KIND_NOTES, rows.len());
    w.text(0, rows.iter().map(|r| r.kind.as_bytes()));
    w.fixed(1, rows.iter().map(|r| r.at.0.to_le_bytes()));
    w.text(2, rows.iter().map(|r| r.agent.as_bytes()));
    w.text(3, rows.iter().map(|r| r.body.as_bytes()));
    w.finish()
}

fn read_notes(bytes: &[u8]) -> Result<Vec<Note>, FrameError> {
    let f = Frame::parse(bytes, KIND_NOTES)?;
    bounded(&f, &[0, 2])?;
    // A note that stands in the bytes once may count for many rows.
    if f.spread(3) > BODY_BYTES_MAX {
        return Err(FrameError::BadColumn(3));
    }
    (0..f.rows())
        .map(|row| {
            Ok(Note {
                kind: f.str(0, row)?.unwrap_or_default().into(),
                at: Timestamp(f.u64(1, row).ok_or(FrameError::MissingColumn(1))?),
                agent: f.str(2, row)?.unwrap_or_default().into(),
                body: f.str(3, row)?.unwrap_or_default().to_owned(),
            })
        })
        .collect()
}
