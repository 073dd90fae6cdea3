//! Replies: what a request was answered. Owns the types that callers see.

use std::time::Duration;

use bytes::Bytes;
use governance::{DispatchId, Outcome, Reason};
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind};

/// The answer to a request: by its target, or by a fallback.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    pub(crate) id: DispatchId,
    pub(crate) outcome: Outcome,
    pub(crate) reason: Reason,
    pub(crate) target: String,
    pub(crate) lane: Duration,
    pub(crate) inbox: Duration,
    pub(crate) ran: Duration,
    pub(crate) payload: Bytes,
    pub(crate) content_type: String,
}

impl Reply {
    /// The dispatch that was answered: what `mesh trace` takes.
    #[must_use]
    pub const fn id(&self) -> DispatchId {
        self.id
    }

    /// How it ended: `success`, or `circuit_broken` where a static fallback answered.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Why it ended so.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        self.reason
    }

    /// Who answered.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Whether a fallback answered in the place of a tripped target: a static one, or another agent.
    #[must_use]
    pub fn is_fallback(&self) -> bool {
        matches!(self.reason, Reason::FallbackStatic | Reason::FallbackAgent)
            || self.outcome == Outcome::CircuitBroken
    }

    /// The payload as JSON.
    ///
    /// # Errors
    /// When it is not JSON of this type.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let bytes = if self.payload.is_empty() { b"null" } else { &self.payload[..] };
        serde_json::from_slice(bytes).map_err(|e| {
            let what = format!("the reply of {} cannot be read", self.target);
            Error::caused(ErrorKind::Encoding, what, e).with_id(self.id)
        })
    }

    /// The payload as it came.
    #[must_use]
    pub const fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// What the payload is; empty for JSON.
    #[must_use]
    pub fn content_type(&self) -> &str {
        &self.content_type
    }

    /// How long it waited in its lane, for quota and room.
    #[must_use]
    pub const fn waited_in_lane(&self) -> Duration {
        self.lane
    }

    /// How long it waited in the inbox for a handler.
    #[must_use]
    pub const fn waited_in_inbox(&self) -> Duration {
        self.inbox
    }

    /// How long the handler ran.
    #[must_use]
    pub const fn ran(&self) -> Duration {
        self.ran
    }

    /// The reply, or the error where the outcome is one.
    pub(crate) fn into_result(self) -> Result<Self, Error> {
        match self.outcome {
            Outcome::Success => Ok(self),
            Outcome::CircuitBroken if self.reason == Reason::FallbackStatic => Ok(self),
            Outcome::CircuitBroken
            | Outcome::Failure
            | Outcome::Timeout
            | Outcome::Rejected
            | Outcome::Cancelled => Err(Error::ended(
                self.id,
                self.outcome,
                self.reason,
                &self.target,
                &self.payload,
                &self.content_type,
            )),
        }
    }
}

/// The mesh has stored a dispatch: it will reach exactly one recorded outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    pub(crate) id: DispatchId,
}

impl Accepted {
    /// The dispatch: what `mesh trace` takes.
    #[must_use]
    pub const fn id(&self) -> DispatchId {
        self.id
    }
}

/// The mesh has stored many dispatches; how they are numbered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AcceptedMany {
    pub(crate) runs: Vec<(DispatchId, u16)>,
}

impl AcceptedMany {
    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.runs.iter().map(|(_, count)| usize::from(*count)).sum()
    }

    /// The first dispatch and the number of consecutive slots of each envelope they went into.
    #[must_use]
    pub fn runs(&self) -> &[(DispatchId, u16)] {
        &self.runs
    }

    /// Each of them.
    pub fn ids(&self) -> impl Iterator<Item = DispatchId> + '_ {
        self.runs
            .iter()
            .flat_map(|(first, count)| (0..*count).map(|i| DispatchId { slot: first.slot + i, ..*first }))
    }
}
