//! Rows: the dispatches of an inbox message, read once. Owns the step from the wire to what a handler is told.
//!
//! The rule it keeps: payloads are borrowed from the message, and what rows have in common is stored once. What goes to a
//! handler of batches is not taken apart into rows at all.

use std::sync::Arc;

use bytes::Bytes;
use governance::{AgentId, DispatchId, Kind, Priority, Timestamp};
use protocol::envelope::column;
use protocol::inbox::{self, Parcel};

/// One dispatch as it came in.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) id: DispatchId,
    pub(crate) kind: Kind,
    pub(crate) lane: Priority,
    pub(crate) source: Arc<AgentId>,
    pub(crate) capability: Arc<str>,
    pub(crate) topic: Arc<str>,
    pub(crate) conversation: Arc<str>,
    pub(crate) trace: Arc<str>,
    pub(crate) content_type: Arc<str>,
    pub(crate) payload: Bytes,
    pub(crate) deadline: Timestamp,
    pub(crate) admitted: Timestamp,
    /// The parcel and the row in it, from which the lineage of children is made when the first is sent.
    pub(crate) parcel: Option<(Bytes, usize)>,
}

/// Consecutive dispatches of one parcel that are alike in all that decides how they run: what a handler of batches is given.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) first: DispatchId,
    pub(crate) count: u16,
    pub(crate) kind: Kind,
    pub(crate) lane: Priority,
    pub(crate) source: Arc<AgentId>,
    pub(crate) capability: Arc<str>,
    pub(crate) topic: Arc<str>,
    pub(crate) deadline: Timestamp,
    pub(crate) admitted: Timestamp,
    parcel: Bytes,
    /// The place of the first one in the parcel.
    at: usize,
    payloads: Payloads,
}

/// The payloads of a parcel, each of them found at once.
#[derive(Debug, Clone)]
enum Payloads {
    Same(Bytes),
    Uniform { data: Bytes, width: usize },
    Each(Arc<[Bytes]>),
}

impl Piece {
    /// A parcel as one piece; none where its rows differ in how they run.
    fn of(parcel: &Parcel<'_>, bytes: &Bytes, source: &Arc<AgentId>) -> Option<Self> {
        let frame = &parcel.frame;
        let alike = [column::KIND, column::CAPABILITY, column::TOPIC, column::DEADLINE];
        if !alike.iter().all(|id| frame.is_same(*id)) {
            return None;
        }
        let payloads = match frame.uniform(column::PAYLOAD) {
            Some((data, width)) if width > 0 => Payloads::Uniform { data: bytes.slice_ref(data), width },
            Some(_) => Payloads::Same(Bytes::new()),
            None if frame.is_same(column::PAYLOAD) => Payloads::Same(bytes.slice_ref(parcel.payload(0))),
            None => {
                let each = (0..frame.rows()).map(|row| bytes.slice_ref(parcel.payload(row)));
                Payloads::Each(each.collect())
            }
        };
        Some(Self {
            first: parcel.first,
            count: u16::try_from(frame.rows()).ok()?,
            kind: parcel.kind(0),
            lane: parcel.lane,
            source: Arc::clone(source),
            capability: parcel.text(column::CAPABILITY, 0).into(),
            topic: parcel.text(column::TOPIC, 0).into(),
            deadline: parcel.deadline(0),
            admitted: parcel.admitted(),
            parcel: bytes.clone(),
            at: 0,
            payloads,
        })
    }

    /// The first `count` of them, which are taken out of it.
    pub(crate) fn split_front(&mut self, count: u16) -> Self {
        let front = Self { count, ..self.clone() };
        self.first.slot += count;
        self.at += usize::from(count);
        self.count -= count;
        front
    }

    /// The id of one of them.
    pub(crate) const fn id(&self, nth: u16) -> DispatchId {
        DispatchId { slot: self.first.slot + nth, ..self.first }
    }

    /// The payload of one of them; empty where there are not so many.
    pub(crate) fn payload(&self, nth: usize) -> &[u8] {
        if nth >= usize::from(self.count) {
            return &[];
        }
        let at = self.at + nth;
        match &self.payloads {
            Payloads::Same(payload) => payload,
            Payloads::Uniform { data, width } => &data[at * width..(at + 1) * width],
            Payloads::Each(payloads) => &payloads[at],
        }
    }

    /// One of them by itself; none where there are not so many.
    pub(crate) fn row(&self, nth: u16) -> Option<Row> {
        let parcel = Parcel::parse(&self.parcel).ok()?;
        let at = self.at + usize::from(nth);
        (nth < self.count).then(|| Reader::new(&self.parcel, Arc::clone(&self.source)).row(&parcel, at))
    }
}

/// What waits for slots: a dispatch, or a piece that is taken together.
#[derive(Debug)]
pub(crate) enum Part {
    One(Row),
    Many(Piece),
}

impl Part {
    pub(crate) const fn first(&self) -> DispatchId {
        match self {
            Self::One(row) => row.id,
            Self::Many(piece) => piece.first,
        }
    }

    pub(crate) const fn count(&self) -> u16 {
        match self {
            Self::One(_) => 1,
            Self::Many(piece) => piece.count,
        }
    }

    pub(crate) const fn admitted(&self) -> Timestamp {
        match self {
            Self::One(row) => row.admitted,
            Self::Many(piece) => piece.admitted,
        }
    }

    /// The dispatches one by one.
    pub(crate) fn rows(self) -> Vec<Row> {
        match self {
            Self::One(row) => vec![row],
            Self::Many(piece) => (0..piece.count).filter_map(|nth| piece.row(nth)).collect(),
        }
    }
}

/// Why a message cannot be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RowError {
    /// Its bytes are not an inbox envelope that this build reads.
    #[error("the inbox message cannot be read")]
    Frame(#[from] protocol::FrameError),
    /// It names a source that cannot exist.
    #[error("the inbox message names an impossible source")]
    Source(#[from] governance::names::NameError),
}

/// Texts of consecutive rows that are mostly the same: an equal one is shared.
struct Shared(Arc<str>);

impl Shared {
    fn get(&mut self, text: &str) -> Arc<str> {
        if *self.0 != *text {
            self.0 = text.into();
        }
        Arc::clone(&self.0)
    }
}

/// Reads rows of one parcel.
struct Reader<'a> {
    bytes: &'a Bytes,
    source: Arc<AgentId>,
    texts: [(u8, Shared); 5],
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a Bytes, source: Arc<AgentId>) -> Self {
        let nothing: Arc<str> = "".into();
        let texts =
            [column::CAPABILITY, column::TOPIC, column::CONVERSATION, column::TRACE, column::CONTENT_TYPE]
                .map(|column| (column, Shared(Arc::clone(&nothing))));
        Self { bytes, source, texts }
    }

    fn row(&mut self, parcel: &Parcel<'_>, row: usize) -> Row {
        let [capability, topic, conversation, trace, content_type] =
            self.texts.each_mut().map(|(column, shared)| shared.get(parcel.text(*column, row)));
        Row {
            id: parcel.id(row),
            kind: parcel.kind(row),
            lane: parcel.lane,
            source: Arc::clone(&self.source),
            capability,
            topic,
            conversation,
            trace,
            content_type,
            payload: self.bytes.slice_ref(parcel.payload(row)),
            deadline: parcel.deadline(row),
            admitted: parcel.admitted(),
            parcel: Some((self.bytes.clone(), row)),
        }
    }
}

/// Reads the dispatches of an inbox message. Those of a capability or topic that `takes_many` stay together, as far as they
/// are alike.
///
/// # Errors
/// When the bytes are not an inbox envelope of this version.
pub(crate) fn read(message: &Bytes, takes_many: impl Fn(&str, &str) -> bool) -> Result<Vec<Part>, RowError> {
    let mut parts = Vec::new();
    for bytes in inbox::split(message)? {
        let parcel = Parcel::parse(&bytes)?;
        let source = Arc::new(AgentId::new(parcel.source)?);
        let rows = parcel.frame.rows();
        if rows > 1
            && takes_many(parcel.text(column::CAPABILITY, 0), parcel.text(column::TOPIC, 0))
            && let Some(piece) = Piece::of(&parcel, &bytes, &source)
        {
            parts.push(Part::Many(piece));
            continue;
        }
        let mut reader = Reader::new(&bytes, source);
        parts.extend((0..rows).map(|row| Part::One(reader.row(&parcel, row))));
    }
    Ok(parts)
}
