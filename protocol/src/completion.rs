//! Completions and replies: what a target reports and what a waiting instance gets. Owns their columns.
//!
//! The rule it keeps: one row stands for consecutive slots that ended alike, so that a bulk of equal ends costs one row.

use governance::{DispatchId, InstanceId, Outcome, Reason};

use crate::envelope::KEY_BYTES_MAX;
use crate::frame::{Frame, FrameError, FrameWriter};
use crate::streams::PAYLOAD_BYTES_MAX;
use crate::subjects::acknowledges;

/// The frame kind of completions.
pub const KIND_COMPLETIONS: u8 = 3;
/// The frame kind of replies.
pub const KIND_REPLIES: u8 = 4;

mod column {
    pub(super) const INSTANCE: u8 = 0;
    pub(super) const SEQUENCE: u8 = 1;
    pub(super) const SLOT: u8 = 2;
    pub(super) const COPY: u8 = 3;
    pub(super) const COUNT: u8 = 4;
    pub(super) const OUTCOME: u8 = 5;
    pub(super) const REASON: u8 = 6;
    pub(super) const RAN_US: u8 = 7;
    pub(super) const INBOX_US: u8 = 8;
    pub(super) const ATTEMPT: u8 = 9;
    pub(super) const PAYLOAD: u8 = 10;
    pub(super) const CONTENT_TYPE: u8 = 11;
    pub(super) const INBOX_ACK: u8 = 12;
    pub(super) const RUNNER: u8 = 13;
    pub(super) const TARGET: u8 = 14;
    pub(super) const LANE_US: u8 = 15;
}

/// One row of a completion: consecutive slots that ended alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion<'a> {
    /// The first dispatch.
    pub first: DispatchId,
    /// How many consecutive slots.
    pub count: u16,
    /// Success or failure.
    pub outcome: Outcome,
    /// `ok`, or why it failed.
    pub reason: Reason,
    /// Microseconds in the handler.
    pub ran_us: u32,
    /// Microseconds from admission to the start of the handler.
    pub inbox_us: u32,
    /// Which attempt it was, from 1.
    pub attempt: u8,
    /// The response, or the text of the error.
    pub payload: &'a [u8],
    /// Empty for JSON.
    pub content_type: &'a str,
    /// Where to acknowledge the inbox message: given for failed events only, whose home decides about it.
    pub inbox_ack: &'a str,
}

/// Writes completions; `runner` is the instance that ran them.
#[must_use]
pub fn write(runner: InstanceId, rows: &[Completion<'_>]) -> Vec<u8> {
    let mut w = FrameWriter::new(KIND_COMPLETIONS, rows.len());
    w.same(column::RUNNER, runner.0.to_le_bytes());
    w.fixed(column::INSTANCE, rows.iter().map(|r| r.first.instance.0.to_le_bytes()));
    w.fixed(column::SEQUENCE, rows.iter().map(|r| r.first.sequence.to_le_bytes()));
    w.fixed(column::SLOT, rows.iter().map(|r| r.first.slot.to_le_bytes()));
    w.fixed(column::COPY, rows.iter().map(|r| r.first.copy.to_le_bytes()));
    w.fixed(column::COUNT, rows.iter().map(|r| r.count.to_le_bytes()));
    w.fixed(column::OUTCOME, rows.iter().map(|r| [r.outcome.code()]));
    w.fixed(column::REASON, rows.iter().map(|r| [r.reason.code()]));
    w.fixed(column::RAN_US, rows.iter().map(|r| r.ran_us.to_le_bytes()));
    w.fixed(column::INBOX_US, rows.iter().map(|r| r.inbox_us.to_le_bytes()));
    w.fixed(column::ATTEMPT, rows.iter().map(|r| [r.attempt]));
    w.text(column::PAYLOAD, rows.iter().map(|r| r.payload));
    if rows.iter().any(|r| !r.content_type.is_empty()) {
        w.text(column::CONTENT_TYPE, rows.iter().map(|r| r.content_type.as_bytes()));
    }
    if rows.iter().any(|r| !r.inbox_ack.is_empty()) {
        w.text(column::INBOX_ACK, rows.iter().map(|r| r.inbox_ack.as_bytes()));
    }
    w.finish()
}

/// Completions that were read and checked.
#[derive(Debug, Clone)]
pub struct Completions<'a> {
    frame: Frame<'a>,
    /// The instance that ran them.
    pub runner: InstanceId,
}

fn id_at(frame: &Frame<'_>, row: usize) -> Result<(DispatchId, u16), FrameError> {
    let id = DispatchId {
        instance: InstanceId(
            frame.u64(column::INSTANCE, row).ok_or(FrameError::MissingColumn(column::INSTANCE))?,
        ),
        sequence: frame.u64(column::SEQUENCE, row).ok_or(FrameError::MissingColumn(column::SEQUENCE))?,
        slot: frame.u16(column::SLOT, row).ok_or(FrameError::MissingColumn(column::SLOT))?,
        copy: frame.u16(column::COPY, row).ok_or(FrameError::MissingColumn(column::COPY))?,
    };
    let count = frame.u16(column::COUNT, row).ok_or(FrameError::MissingColumn(column::COUNT))?;
    if count == 0 || id.slot.checked_add(count - 1).is_none() {
        return Err(FrameError::BadValue { column: column::COUNT, row });
    }
    Ok((id, count))
}

fn words_at(frame: &Frame<'_>, row: usize) -> Result<(Outcome, Reason), FrameError> {
    let bad = |column| FrameError::BadValue { column, row };
    let outcome =
        frame.u8(column::OUTCOME, row).and_then(Outcome::from_code).ok_or_else(|| bad(column::OUTCOME))?;
    let reason = frame.u8(column::REASON, row).map(Reason::from_code).ok_or_else(|| bad(column::REASON))?;
    Ok((outcome, reason))
}

/// Checks every column that completions and replies have a default for.
fn check_columns(frame: &Frame<'_>) -> Result<(), FrameError> {
    for id in [column::RAN_US, column::INBOX_US, column::LANE_US] {
        frame.expect_fixed::<4>(id)?;
    }
    frame.expect_fixed::<1>(column::ATTEMPT)?;
    frame.expect_fixed::<8>(column::RUNNER)?;
    frame.expect_text(column::CONTENT_TYPE, KEY_BYTES_MAX)?;
    // What a target answers becomes a message to the caller, with a head of its own.
    frame.expect_bytes(column::PAYLOAD, PAYLOAD_BYTES_MAX)
}

impl<'a> Completions<'a> {
    /// Reads completions.
    ///
    /// # Errors
    /// When the bytes are not completions of this version, or a row says something other than success or failure, or
    /// asks for an acknowledgement on a subject that is none.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let frame = Frame::parse(bytes, KIND_COMPLETIONS)?;
        let runner = InstanceId(frame.u64(column::RUNNER, 0).unwrap_or(0));
        for row in 0..frame.rows() {
            id_at(&frame, row)?;
            let (outcome, _) = words_at(&frame, row)?;
            if !matches!(outcome, Outcome::Success | Outcome::Failure) {
                return Err(FrameError::BadValue { column: column::OUTCOME, row });
            }
        }
        check_columns(&frame)?;
        frame.expect_text(column::INBOX_ACK, KEY_BYTES_MAX)?;
        for row in 0..if frame.is_same(column::INBOX_ACK) { 1 } else { frame.rows() } {
            // The home publishes to this subject in the target's place, so it must be nothing but an acknowledgement.
            let ack = frame.str(column::INBOX_ACK, row)?.unwrap_or_default();
            if !ack.is_empty() && acknowledges(ack).is_none() {
                return Err(FrameError::BadValue { column: column::INBOX_ACK, row });
            }
        }
        Ok(Self { frame, runner })
    }

    /// How many rows.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.frame.rows()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.frame.rows() == 0
    }

    /// One row.
    #[must_use]
    pub fn row(&self, row: usize) -> Completion<'a> {
        let (first, count) = id_at(&self.frame, row).expect("checked when parsed");
        let (outcome, reason) = words_at(&self.frame, row).expect("checked when parsed");
        Completion {
            first,
            count,
            outcome,
            reason,
            ran_us: self.frame.u32(column::RAN_US, row).unwrap_or(0),
            inbox_us: self.frame.u32(column::INBOX_US, row).unwrap_or(0),
            attempt: self.frame.u8(column::ATTEMPT, row).unwrap_or(1),
            payload: self.frame.text(column::PAYLOAD, row).unwrap_or_default(),
            content_type: self.frame.str(column::CONTENT_TYPE, row).ok().flatten().unwrap_or_default(),
            inbox_ack: self.frame.str(column::INBOX_ACK, row).ok().flatten().unwrap_or_default(),
        }
    }
}

/// One row of a reply: consecutive slots of one instance that ended alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply<'a> {
    /// The first dispatch.
    pub first: DispatchId,
    /// How many consecutive slots.
    pub count: u16,
    /// How they ended.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// Who ran them, or would have; empty where none was chosen.
    pub target: &'a str,
    /// Microseconds in the lane.
    pub lane_us: u32,
    /// Microseconds in the inbox.
    pub inbox_us: u32,
    /// Microseconds in the handler.
    pub ran_us: u32,
    /// The response, the fallback's payload, or the text of the error.
    pub payload: &'a [u8],
    /// Empty for JSON.
    pub content_type: &'a str,
}

/// Writes replies for one instance.
#[must_use]
pub fn write_replies(rows: &[Reply<'_>]) -> Vec<u8> {
    let mut w = FrameWriter::new(KIND_REPLIES, rows.len());
    w.fixed(column::INSTANCE, rows.iter().map(|r| r.first.instance.0.to_le_bytes()));
    w.fixed(column::SEQUENCE, rows.iter().map(|r| r.first.sequence.to_le_bytes()));
    w.fixed(column::SLOT, rows.iter().map(|r| r.first.slot.to_le_bytes()));
    w.fixed(column::COPY, rows.iter().map(|r| r.first.copy.to_le_bytes()));
    w.fixed(column::COUNT, rows.iter().map(|r| r.count.to_le_bytes()));
    w.fixed(column::OUTCOME, rows.iter().map(|r| [r.outcome.code()]));
    w.fixed(column::REASON, rows.iter().map(|r| [r.reason.code()]));
    w.text(column::TARGET, rows.iter().map(|r| r.target.as_bytes()));
    w.fixed(column::LANE_US, rows.iter().map(|r| r.lane_us.to_le_bytes()));
    w.fixed(column::INBOX_US, rows.iter().map(|r| r.inbox_us.to_le_bytes()));
    w.fixed(column::RAN_US, rows.iter().map(|r| r.ran_us.to_le_bytes()));
    w.text(column::PAYLOAD, rows.iter().map(|r| r.payload));
    if rows.iter().any(|r| !r.content_type.is_empty()) {
        w.text(column::CONTENT_TYPE, rows.iter().map(|r| r.content_type.as_bytes()));
    }
    w.finish()
}

/// Replies that were read and checked.
#[derive(Debug, Clone)]
pub struct Replies<'a> {
    frame: Frame<'a>,
}

impl<'a> Replies<'a> {
    /// Reads replies.
    ///
    /// # Errors
    /// When the bytes are not replies of this version.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let frame = Frame::parse(bytes, KIND_REPLIES)?;
        for row in 0..frame.rows() {
            id_at(&frame, row)?;
            words_at(&frame, row)?;
        }
        check_columns(&frame)?;
        frame.expect_text(column::TARGET, KEY_BYTES_MAX)?;
        Ok(Self { frame })
    }

    /// How many rows.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.frame.rows()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.frame.rows() == 0
    }

    /// One row.
    #[must_use]
    pub fn row(&self, row: usize) -> Reply<'a> {
        let (first, count) = id_at(&self.frame, row).expect("checked when parsed");
        let (outcome, reason) = words_at(&self.frame, row).expect("checked when parsed");
        let u32_at = |id| self.frame.u32(id, row).unwrap_or(0);
        Reply {
            first,
            count,
            outcome,
            reason,
            target: self.frame.str(column::TARGET, row).ok().flatten().unwrap_or_default(),
            lane_us: u32_at(column::LANE_US),
            inbox_us: u32_at(column::INBOX_US),
            ran_us: u32_at(column::RAN_US),
            payload: self.frame.text(column::PAYLOAD, row).unwrap_or_default(),
            content_type: self.frame.str(column::CONTENT_TYPE, row).ok().flatten().unwrap_or_default(),
        }
    }
}
