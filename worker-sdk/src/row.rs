//! Rows: the dispatches of an inbox message, read once. Owns the step from the wire to what a handler is told.
//!
//! The rule it keeps: payloads are borrowed from the message, and what rows have in common is stored once.

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

/// Reads the dispatches of an inbox message.
///
/// # Errors
/// When the bytes are not an inbox envelope of this version.
pub(crate) fn read(message: &Bytes) -> Result<Vec<Row>, RowError> {
    let mut rows = Vec::new();
    for bytes in inbox::split(message)? {
        let parcel = Parcel::parse(&bytes)?;
        let source = Arc::new(AgentId::new(parcel.source)?);
        let nothing: Arc<str> = "".into();
        let mut texts =
            [column::CAPABILITY, column::TOPIC, column::CONVERSATION, column::TRACE, column::CONTENT_TYPE]
                .map(|column| (column, Shared(Arc::clone(&nothing))));
        for row in 0..parcel.frame.rows() {
            let [capability, topic, conversation, trace, content_type] =
                texts.each_mut().map(|(column, shared)| shared.get(parcel.text(*column, row)));
            rows.push(Row {
                id: parcel.id(row),
                kind: parcel.kind(row),
                lane: parcel.lane,
                source: Arc::clone(&source),
                capability,
                topic,
                conversation,
                trace,
                content_type,
                payload: bytes.slice_ref(parcel.payload(row)),
                deadline: parcel.deadline(row),
                admitted: parcel.admitted(),
                parcel: Some((bytes.clone(), row)),
            });
        }
    }
    Ok(rows)
}
