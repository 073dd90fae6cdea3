//! Lane envelopes: what a source sends. Owns their columns, in binary; JSON lives in `json`.
//!
//! The rule it keeps: reading borrows the bytes, and a dispatch that was read has been checked in full.

use std::time::Duration;

use governance::{InstanceId, Kind};

use crate::audit::RECORDS_MAX;
use crate::frame::{Frame, FrameError, FrameWriter};
use crate::lineage::LINEAGE_BYTES_MAX;
use crate::streams::PAYLOAD_BYTES_MAX;
use crate::subjects::is_reply_token;

/// The frame kind of a lane envelope.
pub const KIND_LANE: u8 = 1;

/// Column ids of lane envelopes and inbox parcels.
pub mod column {
    /// u64, same: the sender's instance.
    pub const INSTANCE: u8 = 0;
    /// u64, same: the sender's envelope sequence.
    pub const SEQUENCE: u8 = 1;
    /// u8: request or event.
    pub const KIND: u8 = 2;
    /// text: the capability; absent for topics.
    pub const CAPABILITY: u8 = 3;
    /// text: the topic.
    pub const TOPIC: u8 = 4;
    /// u32: the time budget in milliseconds; 0 or absent means the default.
    pub const BUDGET_MS: u8 = 5;
    /// text: the sealed lineage; empty or absent for a root.
    pub const LINEAGE: u8 = 6;
    /// text: the conversation key.
    pub const CONVERSATION: u8 = 7;
    /// text: the order key.
    pub const ORDER_KEY: u8 = 8;
    /// text: the idempotency key.
    pub const IDEMPOTENCY_KEY: u8 = 9;
    /// text: the W3C traceparent.
    pub const TRACE: u8 = 10;
    /// text: the content type; absent means JSON.
    pub const CONTENT_TYPE: u8 = 11;
    /// text: the payload.
    pub const PAYLOAD: u8 = 12;
    /// text, same: the token under which a JSON caller awaits replies; absent for SDK instances.
    pub const REPLY_TOKEN: u8 = 13;

    /// u16, same (inbox): the slot of the first row.
    pub const FIRST_SLOT: u8 = 16;
    /// u16, same (inbox): the topic copy.
    pub const COPY: u8 = 17;
    /// text, same (inbox): the source.
    pub const SOURCE: u8 = 18;
    /// u64 (inbox): the deadline, in nanoseconds since the epoch.
    pub const DEADLINE: u8 = 19;
    /// u64 (inbox): the seal of the lineage that the row's children carry.
    pub const SEAL: u8 = 20;
    /// u8 (inbox): whether its children may claim P0.
    pub const SERVES_PERSON: u8 = 21;
    /// u64, same (inbox): when the broker accepted it.
    pub const ACCEPTED: u8 = 22;
    /// u64, same (inbox): when its home admitted it.
    pub const ADMITTED: u8 = 23;
    /// u8, same (inbox): the priority it was claimed with, hence the lane.
    pub const LANE: u8 = 24;
    /// u8, same (inbox): why it was admitted so.
    pub const REASON: u8 = 25;
}

/// One dispatch to send; borrowed, so that packing copies each byte once.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// Request or event.
    pub kind: Kind,
    /// The capability; empty for a topic.
    pub capability: &'a str,
    /// The topic; empty for none.
    pub topic: &'a str,
    /// Zero for the default.
    pub budget: Duration,
    /// Sealed lineage, empty for a root.
    pub lineage: &'a [u8],
    /// Empty for none.
    pub conversation: &'a str,
    /// Empty for none.
    pub order_key: &'a str,
    /// Empty for none.
    pub idempotency_key: &'a str,
    /// W3C traceparent, empty for none.
    pub trace: &'a str,
    /// Empty for JSON.
    pub content_type: &'a str,
    /// The payload.
    pub payload: &'a [u8],
}

/// Packs dispatches of one lane subject into an envelope. Slots are the places in `dispatches`.
#[must_use]
pub fn write(instance: InstanceId, sequence: u64, reply_token: &str, dispatches: &[Outgoing<'_>]) -> Vec<u8> {
    let mut w = FrameWriter::new(KIND_LANE, dispatches.len());
    w.same(column::INSTANCE, instance.0.to_le_bytes());
    w.same(column::SEQUENCE, sequence.to_le_bytes());
    w.fixed(column::KIND, dispatches.iter().map(|d| [d.kind.code()]));
    let mut text = |id: u8, get: for<'d> fn(&'d Outgoing<'d>) -> &'d [u8]| {
        if dispatches.iter().any(|d| !get(d).is_empty()) {
            w.text(id, dispatches.iter().map(get));
        }
    };
    text(column::CAPABILITY, |d| d.capability.as_bytes());
    text(column::TOPIC, |d| d.topic.as_bytes());
    text(column::LINEAGE, |d| d.lineage);
    text(column::CONVERSATION, |d| d.conversation.as_bytes());
    text(column::ORDER_KEY, |d| d.order_key.as_bytes());
    text(column::IDEMPOTENCY_KEY, |d| d.idempotency_key.as_bytes());
    text(column::TRACE, |d| d.trace.as_bytes());
    text(column::CONTENT_TYPE, |d| d.content_type.as_bytes());
    if dispatches.iter().any(|d| !d.budget.is_zero()) {
        w.fixed(column::BUDGET_MS, dispatches.iter().map(|d| budget_ms(d.budget).to_le_bytes()));
    }
    if !reply_token.is_empty() {
        w.text_same(column::REPLY_TOKEN, reply_token.as_bytes());
    }
    w.text(column::PAYLOAD, dispatches.iter().map(|d| d.payload));
    w.finish()
}

/// Packs dispatches that differ in their payloads alone: the bytes that [`write`] makes of them, without a look at each for
/// what is the same in all. The payload of `alike` counts for nothing.
#[must_use]
pub fn write_alike<'p>(
    instance: InstanceId,
    sequence: u64,
    alike: &Outgoing<'_>,
    payloads: impl ExactSizeIterator<Item = &'p [u8]> + Clone,
) -> Vec<u8> {
    let mut w = FrameWriter::new(KIND_LANE, payloads.len());
    w.same(column::INSTANCE, instance.0.to_le_bytes());
    w.same(column::SEQUENCE, sequence.to_le_bytes());
    w.same(column::KIND, [alike.kind.code()]);
    for (id, text) in [
        (column::CAPABILITY, alike.capability.as_bytes()),
        (column::TOPIC, alike.topic.as_bytes()),
        (column::LINEAGE, alike.lineage),
        (column::CONVERSATION, alike.conversation.as_bytes()),
        (column::ORDER_KEY, alike.order_key.as_bytes()),
        (column::IDEMPOTENCY_KEY, alike.idempotency_key.as_bytes()),
        (column::TRACE, alike.trace.as_bytes()),
        (column::CONTENT_TYPE, alike.content_type.as_bytes()),
    ] {
        if !text.is_empty() {
            w.text_same(id, text);
        }
    }
    if !alike.budget.is_zero() {
        w.same(column::BUDGET_MS, budget_ms(alike.budget).to_le_bytes());
    }
    w.text(column::PAYLOAD, payloads);
    w.finish()
}

/// A budget in whole milliseconds, at least one where it is not zero.
fn budget_ms(d: Duration) -> u32 {
    let ms = u32::try_from(d.as_millis()).unwrap_or(u32::MAX);
    if d.is_zero() { 0 } else { ms.max(1) }
}

/// A lane envelope that was read and checked.
#[derive(Debug, Clone)]
pub struct LaneEnvelope<'a> {
    /// The columns.
    pub frame: Frame<'a>,
    /// The sender's instance.
    pub instance: InstanceId,
    /// The sender's envelope sequence.
    pub sequence: u64,
}

impl<'a> LaneEnvelope<'a> {
    /// Reads an envelope.
    ///
    /// # Errors
    /// When the bytes are not a lane envelope of this version with one to [`RECORDS_MAX`] dispatches and sane values in
    /// each.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let frame = Frame::parse(bytes, KIND_LANE)?;
        if frame.rows() > RECORDS_MAX {
            return Err(FrameError::TooManyRows(frame.rows()));
        }
        check_columns(&frame)?;
        if frame.rows() == 0 || !frame.has(column::PAYLOAD) {
            return Err(FrameError::MissingColumn(column::PAYLOAD));
        }
        if !frame.is_same(column::REPLY_TOKEN)
            || !is_reply_token(frame.str(column::REPLY_TOKEN, 0)?.unwrap_or_default())
        {
            return Err(FrameError::BadValue { column: column::REPLY_TOKEN, row: 0 });
        }
        let (instance, sequence) = sender(&frame)?;
        Ok(Self { frame, instance, sequence })
    }

    /// The kind of a row.
    #[must_use]
    pub fn kind(&self, row: usize) -> Kind {
        self.frame.u8(column::KIND, row).and_then(Kind::from_code).unwrap_or(Kind::Request)
    }

    /// A text column of a row, empty where absent.
    #[must_use]
    pub fn text(&self, id: u8, row: usize) -> &'a str {
        self.frame.str(id, row).ok().flatten().unwrap_or_default()
    }

    /// The budget of a row; zero for the default.
    #[must_use]
    pub fn budget(&self, row: usize) -> Duration {
        Duration::from_millis(self.frame.u32(column::BUDGET_MS, row).unwrap_or(0).into())
    }

    /// The payload of a row.
    #[must_use]
    pub fn payload(&self, row: usize) -> &'a [u8] {
        self.frame.text(column::PAYLOAD, row).unwrap_or_default()
    }

    /// The sealed lineage of a row; empty for a root.
    #[must_use]
    pub fn lineage(&self, row: usize) -> &'a [u8] {
        self.frame.text(column::LINEAGE, row).unwrap_or_default()
    }
}

/// Who packed a frame of dispatches, and which of its envelopes it is.
pub(crate) fn sender(frame: &Frame<'_>) -> Result<(InstanceId, u64), FrameError> {
    for id in [column::INSTANCE, column::SEQUENCE] {
        // One envelope has one sender: were these to vary from row to row, a row cut out of it would change its id.
        if !frame.is_same(id) {
            return Err(FrameError::BadColumn(id));
        }
    }
    let instance = frame.u64(column::INSTANCE, 0).ok_or(FrameError::MissingColumn(column::INSTANCE))?;
    let sequence = frame.u64(column::SEQUENCE, 0).ok_or(FrameError::MissingColumn(column::SEQUENCE))?;
    if sequence == 0 {
        return Err(FrameError::BadValue { column: column::SEQUENCE, row: 0 });
    }
    Ok((InstanceId(instance), sequence))
}

/// Checks every column that lane envelopes and parcels share.
///
/// Capabilities and topics are bounded here but are not judged as names: a dispatch that names nothing known is refused
/// by the rules, with an answer to its own sender, and does not take its whole envelope with it.
pub(crate) fn check_columns(frame: &Frame<'_>) -> Result<(), FrameError> {
    for row in 0..if frame.is_same(column::KIND) { 1 } else { frame.rows() } {
        match frame.u8(column::KIND, row).and_then(Kind::from_code) {
            Some(Kind::Request | Kind::Event) => {}
            Some(Kind::Response | Kind::Error) | None => {
                return Err(FrameError::BadValue { column: column::KIND, row });
            }
        }
    }
    for id in [
        column::CAPABILITY,
        column::TOPIC,
        column::CONVERSATION,
        column::ORDER_KEY,
        column::IDEMPOTENCY_KEY,
        column::TRACE,
        column::CONTENT_TYPE,
        column::REPLY_TOKEN,
    ] {
        frame.expect_text(id, KEY_BYTES_MAX)?;
    }
    frame.expect_fixed::<4>(column::BUDGET_MS)?;
    frame.expect_bytes(column::LINEAGE, LINEAGE_BYTES_MAX)?;
    frame.expect_bytes(column::PAYLOAD, PAYLOAD_BYTES_MAX)?;
    // A payload that stands in the bytes once may count for every row; hashing it for each must stay affordable.
    if frame.spread(column::PAYLOAD) > SPREAD_BYTES_MAX {
        return Err(FrameError::BadColumn(column::PAYLOAD));
    }
    Ok(())
}

/// The payloads of one envelope, counted row by row: sixteen full messages. Whoever packs by bytes stays far below.
pub const SPREAD_BYTES_MAX: usize = 16 << 20;

/// The longest conversation, order or idempotency key, trace context, content type or reply token, in bytes. They are kept
/// per dispatch in the audit, so a generous bound is still a bound.
pub const KEY_BYTES_MAX: usize = 512;
