//! Items: what waits in the outbox. One dispatch with who waits for it, or the payloads of many that differ in nothing else.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use governance::{DispatchId, Kind};
use protocol::envelope::Outgoing;
use tokio::sync::oneshot;

use super::{ROOM_UNIT, Share};
use crate::error::Error;
use crate::waiters::Waiter;

/// What dispatches of one `send_many` have in common.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) capability: String,
    pub(crate) topic: String,
    pub(crate) budget: Duration,
    pub(crate) lineage: Bytes,
    pub(crate) conversation: String,
    pub(crate) order_key: String,
    pub(crate) idempotency_key: String,
    pub(crate) trace: String,
    pub(crate) content_type: String,
    pub(crate) wait_for_room: bool,
}

impl Head {
    pub(crate) const fn new(kind: Kind) -> Self {
        Self {
            kind,
            capability: String::new(),
            topic: String::new(),
            budget: Duration::ZERO,
            lineage: Bytes::new(),
            conversation: String::new(),
            order_key: String::new(),
            idempotency_key: String::new(),
            trace: String::new(),
            content_type: String::new(),
            wait_for_room: true,
        }
    }
}

/// Who wants to know whether it was accepted.
#[derive(Debug)]
pub(crate) enum Accept {
    /// Nobody: the reply tells all. A failure to send goes to the waiter.
    Nobody,
    /// One caller.
    One(oneshot::Sender<Result<DispatchId, Error>>),
    /// A caller of many.
    Many(Share),
}

/// One dispatch in the outbox, or the payloads of many that are alike in everything else.
#[derive(Debug)]
pub(crate) struct Item {
    pub(super) head: Arc<Head>,
    pub(super) load: Load,
    pub(super) accept: Accept,
    pub(super) waiter: Option<Waiter>,
}

#[derive(Debug)]
pub(super) enum Load {
    One(Bytes),
    /// At least one.
    Many(VecDeque<Bytes>),
}

impl Item {
    pub(crate) const fn new(head: Arc<Head>, payload: Bytes, accept: Accept, waiter: Option<Waiter>) -> Self {
        Self { head, load: Load::One(payload), accept, waiter }
    }

    /// Many dispatches at once, at least one, whose share counts as many.
    pub(crate) const fn many(head: Arc<Head>, payloads: VecDeque<Bytes>, share: Share) -> Self {
        Self { head, load: Load::Many(payloads), accept: Accept::Many(share), waiter: None }
    }

    /// How many dispatches it is.
    pub(super) fn count(&self) -> usize {
        match &self.load {
            Load::One(_) => 1,
            Load::Many(payloads) => payloads.len(),
        }
    }

    pub(super) fn payload(&self, nth: usize) -> &Bytes {
        match &self.load {
            Load::One(payload) => payload,
            Load::Many(payloads) => &payloads[nth],
        }
    }

    /// The bytes of one of its dispatches.
    pub(super) fn bytes(&self, nth: usize) -> usize {
        self.payload(nth).len() + self.head.lineage.len()
    }

    /// The room that it takes in the process.
    pub(super) fn weight(&self) -> u32 {
        (0..self.count()).map(|nth| weight(self.bytes(nth))).sum()
    }

    /// How many of its dispatches fit into what is left of an envelope, and their bytes.
    pub(super) fn fits(&self, dispatches_max: usize, bytes_max: usize) -> (usize, usize) {
        let (mut count, mut bytes) = (0, 0);
        while count < self.count().min(dispatches_max) && bytes + self.bytes(count) <= bytes_max {
            bytes += self.bytes(count);
            count += 1;
        }
        (count, bytes)
    }

    /// Takes the first `count` of its dispatches out of it, which has more than these.
    pub(super) fn split_front(&mut self, count: usize) -> Option<Self> {
        let (Load::Many(payloads), Accept::Many(share)) = (&mut self.load, &mut self.accept) else {
            return None;
        };
        let front = payloads.drain(..count).collect();
        Some(Self::many(Arc::clone(&self.head), front, share.split(count)))
    }

    /// Whether nobody is interested any more, so that it need not be sent.
    pub(super) fn is_abandoned(&self) -> bool {
        match (&self.accept, &self.waiter) {
            (Accept::One(accept), _) => accept.is_closed(),
            (Accept::Nobody, Some(waiter)) => waiter.reply.is_closed(),
            (Accept::Nobody, None) | (Accept::Many(_), _) => false,
        }
    }

    pub(super) fn fail(self, error: Error) {
        // A caller may have gone meanwhile; then nobody is left to be told.
        match (self.accept, self.waiter) {
            (Accept::One(accept), _) => drop(accept.send(Err(error))),
            (Accept::Many(share), _) => share.settle(Err(error)),
            (Accept::Nobody, Some(waiter)) => drop(waiter.reply.send(Err(error))),
            (Accept::Nobody, None) => {}
        }
    }

    pub(super) fn outgoing(&self, nth: usize) -> Outgoing<'_> {
        Outgoing {
            kind: self.head.kind,
            capability: &self.head.capability,
            topic: &self.head.topic,
            budget: self.head.budget,
            lineage: &self.head.lineage,
            conversation: &self.head.conversation,
            order_key: &self.head.order_key,
            idempotency_key: &self.head.idempotency_key,
            trace: &self.head.trace,
            content_type: &self.head.content_type,
            payload: self.payload(nth),
        }
    }
}

/// The room that a dispatch of so many bytes takes in the process.
pub(crate) const fn weight(bytes: usize) -> u32 {
    (1 + bytes / ROOM_UNIT) as u32
}
