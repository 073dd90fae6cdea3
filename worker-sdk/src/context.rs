//! The context of a handler: what it is told about its dispatch, and what it may ask for. Owns no I/O.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use governance::{DispatchId, Kind, Priority, Timestamp};
use protocol::inbox::Parcel;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::dispatch::{Dispatch, Link};
use crate::error::{Error, ErrorKind, Failure};
use crate::row::Row;
use crate::run::Run;

/// The dispatch that a handler runs. Cheap to clone; may outlive the handler, but is then of little use.
#[derive(Debug, Clone)]
pub struct Context(pub(crate) Arc<Facts>);

/// What is known of the dispatch.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) link: Link,
    pub(crate) run: Arc<Run>,
    pub(crate) ceiling: Priority,
    pub(crate) row: Row,
    pub(crate) attempt: u8,
}

impl Context {
    /// The dispatch: what `mesh trace` takes.
    #[must_use]
    pub fn id(&self) -> DispatchId {
        self.0.row.id
    }

    /// The top of the tree that it belongs to; itself for a root.
    #[must_use]
    pub fn root(&self) -> DispatchId {
        self.parcel(|parcel, row| parcel.root(row)).unwrap_or(self.0.row.id)
    }

    /// Request or event.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.row.kind
    }

    /// Who sent it.
    #[must_use]
    pub fn source(&self) -> &str {
        self.0.row.source.as_str()
    }

    /// The capability that is called; empty for an event of a topic.
    #[must_use]
    pub fn capability(&self) -> &str {
        &self.0.row.capability
    }

    /// The topic; empty where the dispatch named its target.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.0.row.topic
    }

    /// Its priority, and the ceiling of its children's: as it was sent, or as it was demoted to.
    #[must_use]
    pub fn priority(&self) -> Priority {
        self.0.ceiling
    }

    /// The conversation key; empty for none.
    #[must_use]
    pub fn conversation(&self) -> &str {
        &self.0.row.conversation
    }

    /// The W3C trace context; empty for none.
    #[must_use]
    pub fn trace(&self) -> &str {
        &self.0.row.trace
    }

    /// What the payload is; empty for JSON.
    #[must_use]
    pub fn content_type(&self) -> &str {
        &self.0.row.content_type
    }

    /// Which attempt this is, from 1. More than 1 for an event that failed before, or after contact was lost with the
    /// instance that ran it.
    #[must_use]
    pub fn attempt(&self) -> u8 {
        self.0.attempt
    }

    /// The payload as it came.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.0.row.payload
    }

    /// The payload as JSON.
    ///
    /// # Errors
    /// When it is not JSON of this type; returned from a handler as it is, it tells the caller so.
    pub fn payload_json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        read_json(&self.0.row.payload, self.callee())
    }

    fn callee(&self) -> &str {
        if self.0.row.topic.is_empty() { &self.0.row.capability } else { &self.0.row.topic }
    }

    /// When it ends at the latest, as far as granted yet.
    #[must_use]
    pub fn deadline(&self) -> Timestamp {
        self.0.run.deadline()
    }

    /// How much time is left.
    #[must_use]
    pub fn time_left(&self) -> Duration {
        crate::clock::until(self.deadline())
    }

    /// Whether the dispatch has ended, by its deadline or because it was withdrawn.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.run.is_cancelled()
    }

    /// Waits until the dispatch ends by its deadline or is withdrawn. One second later the handler is dropped.
    pub async fn cancelled(&self) {
        self.0.run.cancelled().await;
    }

    /// Asks for more time and gives the deadline now in force, which the rules may have set earlier than wished.
    ///
    /// # Errors
    /// `Cancelled` when the dispatch has ended already; `Connection` when nobody answered.
    pub async fn extend(&self, by: Duration) -> Result<Timestamp, Error> {
        let granted = match &self.0.link {
            Link::Mesh(core) => core.ask_for_time(self, by).await?,
            Link::Scripted(_) => Some(self.deadline().after(by)),
        };
        let deadline = granted.ok_or_else(|| {
            Error::new(ErrorKind::Cancelled, "the dispatch has ended").with_id(self.0.row.id)
        })?;
        self.0.run.extend(deadline);
        Ok(deadline)
    }

    /// Tells the waiting caller how it goes. Nobody hears it where the caller does not listen; nothing is recorded.
    ///
    /// # Errors
    /// When the note cannot be written as JSON, or the connection is closed.
    pub async fn progress(&self, note: &impl Serialize) -> Result<(), Error> {
        let note = serde_json::to_value(note)
            .map_err(|e| Error::caused(ErrorKind::Encoding, "the note cannot be written as JSON", e))?;
        match &self.0.link {
            Link::Mesh(core) => core.tell_progress(self, note).await,
            Link::Scripted(script) => {
                script.note_progress(note);
                Ok(())
            }
        }
    }

    /// A request for a capability of an agent. It inherits root, parent, conversation key, trace context and priority
    /// of this dispatch, and ends no later; while its reply is awaited, this handler's slot is free for others.
    pub fn dispatch(&self, target: &str, capability: &str) -> Dispatch {
        Dispatch::request_to(self.0.link.clone(), target, capability).within(self)
    }

    /// A request for a capability of whichever agent offers it: passing, then least loaded.
    pub fn dispatch_to_any(&self, capability: &str) -> Dispatch {
        Dispatch::request_to_any(self.0.link.clone(), capability).within(self)
    }

    /// An event for a capability of an agent: no reply comes, and it is tried again where it fails.
    pub fn publish_event(&self, target: &str, capability: &str) -> Dispatch {
        Dispatch::event_to(self.0.link.clone(), target, capability).within(self)
    }

    /// An event for each agent that is registered for a topic.
    pub fn emit(&self, topic: &str) -> Dispatch {
        Dispatch::event_of(self.0.link.clone(), topic).within(self)
    }

    fn parcel<T>(&self, read: impl FnOnce(&Parcel<'_>, usize) -> T) -> Option<T> {
        let (bytes, row) = self.0.row.parcel.as_ref()?;
        let parcel = Parcel::parse(bytes).ok()?;
        Some(read(&parcel, *row))
    }

    /// The sealed lineage that children carry.
    pub(crate) fn lineage(&self) -> Bytes {
        let Link::Mesh(core) = &self.0.link else { return Bytes::new() };
        self.parcel(|parcel, row| parcel.child_lineage(row, core.name.as_str()).into()).unwrap_or_default()
    }
}

/// A payload as JSON; an empty one is `null`.
pub(crate) fn read_json<T: DeserializeOwned>(payload: &[u8], callee: &str) -> Result<T, Failure> {
    let bytes = if payload.is_empty() { b"null" } else { payload };
    serde_json::from_slice(bytes).map_err(|e| {
        Failure::new(format!("the payload is not what {callee} takes: {e}")).with_code("bad_payload")
    })
}
