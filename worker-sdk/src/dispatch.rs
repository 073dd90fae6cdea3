//! Dispatches: building, sending, awaiting. Owns what callers write; the lanes they go into are in `outbox`.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use governance::{AgentId, Capability, DispatchId, Kind, Priority, Topic};
use protocol::envelope::KEY_BYTES_MAX;
use protocol::streams::PAYLOAD_BYTES_MAX;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::context::Context;
use crate::core::Core;
use crate::error::{Error, ErrorKind};
use crate::outbox::{self, Accept, HANDED_OVER_MAX, Head, Item, Tally};
use crate::reply::{Accepted, AcceptedMany, Reply};
use crate::run::Run;
use crate::testing::Script;
use crate::waiters::Waiter;

/// Progress notes that wait for a caller who does not read them; further ones are dropped.
const PROGRESS_MAX: usize = 16;

/// Where a dispatch goes: to the mesh, or to the script of a test.
#[derive(Debug, Clone)]
pub(crate) enum Link {
    Mesh(Arc<Core>),
    Scripted(Arc<Script>),
}

/// A dispatch that is being built. Nothing is sent before one of `request`, `call`, `start`, `send`, `send_many` or
/// `request_many` is awaited.
#[derive(Debug)]
#[must_use = "nothing is sent before it is awaited"]
pub struct Dispatch {
    link: Link,
    target: Option<AgentId>,
    priority: Option<Priority>,
    head: Head,
    payload: Bytes,
    parent: Option<Context>,
    /// The first thing that was wrong; reported when it is sent.
    problem: Option<Error>,
}

impl Dispatch {
    fn new(link: Link, kind: Kind) -> Self {
        let head = Head::new(kind);
        Self { link, target: None, priority: None, head, payload: Bytes::new(), parent: None, problem: None }
    }

    fn note<T, E: std::error::Error + Send + Sync + 'static>(&mut self, result: Result<T, E>) -> Option<T> {
        result
            .map_err(|e| {
                self.problem.get_or_insert_with(|| Error::caused(ErrorKind::Encoding, "a name is wrong", e))
            })
            .ok()
    }

    fn to(mut self, target: &str, capability: &str) -> Self {
        self.target = self.note(AgentId::new(target));
        self.calling(capability)
    }

    fn calling(mut self, capability: &str) -> Self {
        if self.note(Capability::new(capability)).is_some() {
            capability.clone_into(&mut self.head.capability);
        }
        self
    }

    pub(crate) fn request_to(link: Link, target: &str, capability: &str) -> Self {
        Self::new(link, Kind::Request).to(target, capability)
    }

    pub(crate) fn request_to_any(link: Link, capability: &str) -> Self {
        Self::new(link, Kind::Request).calling(capability)
    }

    pub(crate) fn event_to(link: Link, target: &str, capability: &str) -> Self {
        Self::new(link, Kind::Event).to(target, capability)
    }

    pub(crate) fn event_of(link: Link, topic: &str) -> Self {
        let mut event = Self::new(link, Kind::Event);
        if event.note(Topic::new(topic)).is_some() {
            topic.clone_into(&mut event.head.topic);
        }
        event
    }

    /// Makes it a child of the dispatch that a handler runs.
    pub(crate) fn within(mut self, parent: &Context) -> Self {
        self.head.lineage = parent.lineage();
        parent.conversation().clone_into(&mut self.head.conversation);
        parent.trace().clone_into(&mut self.head.trace);
        self.parent = Some(parent.clone());
        self
    }

    /// How urgent it is; P2 where nothing is said. A child's default is its parent's priority (an event's at most P2),
    /// and it is never more urgent than its parent. P0 is for what a person waits for, and needs a right in the policy.
    pub const fn priority(mut self, priority: Priority) -> Self {
        self.priority = Some(priority);
        self
    }

    /// How long it may take, from acceptance to outcome: 30 s for a request and 24 h for an event by default.
    pub const fn budget(mut self, budget: Duration) -> Self {
        self.head.budget = budget;
        self
    }

    fn key(&mut self, what: &'static str, key: &str) -> String {
        if key.len() > KEY_BYTES_MAX {
            let words = format!("the {what} has {} bytes; at most {KEY_BYTES_MAX} are allowed", key.len());
            self.problem.get_or_insert_with(|| Error::new(ErrorKind::Encoding, words));
        }
        key.to_owned()
    }

    /// The conversation it belongs to: the audit finds it by this key.
    pub fn conversation(mut self, key: &str) -> Self {
        self.head.conversation = self.key("conversation key", key);
        self
    }

    /// Dispatches of one source to one target with the same order key run one after the other.
    pub fn order_key(mut self, key: &str) -> Self {
        self.head.order_key = self.key("order key", key);
        self
    }

    /// A second dispatch with the same key within the policy's window is refused as a duplicate.
    pub fn idempotency_key(mut self, key: &str) -> Self {
        self.head.idempotency_key = self.key("idempotency key", key);
        self
    }

    /// A W3C `traceparent`.
    pub fn trace(mut self, traceparent: &str) -> Self {
        self.head.trace = self.key("trace context", traceparent);
        self
    }

    /// When its lane for this target is full, give `LaneFull` back at once; the default is to wait for room.
    pub const fn fail_when_full(mut self) -> Self {
        self.head.wait_for_room = false;
        self
    }

    /// The payload, as JSON.
    ///
    /// # Errors
    /// When the value cannot be written as JSON.
    pub fn json(mut self, value: &impl Serialize) -> Result<Self, Error> {
        self.payload = serde_json::to_vec(value)
            .map_err(|e| Error::caused(ErrorKind::Encoding, "the payload cannot be written as JSON", e))?
            .into();
        self.head.content_type.clear();
        Ok(self)
    }

    /// The payload, of any content type.
    pub fn bytes(mut self, payload: impl Into<Bytes>, content_type: &str) -> Self {
        self.payload = payload.into();
        self.head.content_type = self.key("content type", content_type);
        self
    }

    /// Sends a request and waits for its reply, or a fallback's.
    ///
    /// # Errors
    /// Any [`ErrorKind`]; what it means stands there. When the future is dropped early, the dispatch goes on.
    pub async fn request(self) -> Result<Reply, Error> {
        let ready = self.ready(Kind::Request)?;
        let _parked = ready.parent.as_ref().map(Run::park);
        match ready.link {
            Link::Mesh(core) => {
                let (reply, replied) = oneshot::channel();
                let waiter = Waiter { reply, progress: None };
                let item = Item::new(Arc::new(ready.head), ready.payload, Accept::Nobody, Some(waiter));
                core.enqueue(ready.priority, ready.target.as_ref(), item).await?;
                replied.await.unwrap_or_else(|_| Err(Error::closed()))
            }
            Link::Scripted(script) => script.request(ready.target.as_ref(), &ready.head, &ready.payload),
        }
    }

    /// Sends a request and reads its reply as JSON.
    ///
    /// # Errors
    /// As [`Dispatch::request`], and when the reply is not JSON of this type.
    pub async fn call<T: DeserializeOwned>(self) -> Result<T, Error> {
        self.request().await?.json()
    }

    /// Sends a request and gives it back once the mesh has accepted it, to be awaited or withdrawn later.
    ///
    /// # Errors
    /// When it was not accepted.
    pub async fn start(self) -> Result<Pending, Error> {
        let ready = self.ready(Kind::Request)?;
        let (reply, replied) = oneshot::channel();
        let (progress, notes) = mpsc::channel(PROGRESS_MAX);
        let id = match &ready.link {
            Link::Mesh(core) => {
                let (accept, accepted) = oneshot::channel();
                let waiter = Waiter { reply, progress: Some(progress) };
                let item = Item::new(Arc::new(ready.head), ready.payload, Accept::One(accept), Some(waiter));
                core.enqueue(ready.priority, ready.target.as_ref(), item).await?;
                accepted.await.unwrap_or_else(|_| Err(Error::closed()))?
            }
            Link::Scripted(script) => {
                let result = script.request(ready.target.as_ref(), &ready.head, &ready.payload);
                // The receiver is a line below.
                drop(reply.send(result));
                script.last_id()
            }
        };
        Ok(Pending { id, link: ready.link, run: ready.parent, replied, notes })
    }

    /// Sends it and waits only until the mesh has accepted it. This is the way to send events; the reply of a request
    /// that is sent so is not waited for.
    ///
    /// # Errors
    /// When it was not accepted, or that is unknown.
    pub async fn send(self) -> Result<Accepted, Error> {
        let ready = self.ready_any()?;
        match ready.link {
            Link::Mesh(core) => {
                let (accept, accepted) = oneshot::channel();
                let item = Item::new(Arc::new(ready.head), ready.payload, Accept::One(accept), None);
                core.enqueue(ready.priority, ready.target.as_ref(), item).await?;
                let id = accepted.await.unwrap_or_else(|_| Err(Error::closed()))?;
                Ok(Accepted { id })
            }
            Link::Scripted(script) => {
                script.record(ready.target.as_ref(), &ready.head, &ready.payload);
                Ok(Accepted { id: script.last_id() })
            }
        }
    }

    /// Sends one dispatch for each payload, packed as tightly as the quota allows, and waits until all are accepted.
    /// Everything else is the same for all of them.
    ///
    /// # Errors
    /// The first error, once each of them is accepted or is not.
    pub async fn send_many(
        self,
        payloads: impl IntoIterator<Item = Bytes, IntoIter: Send>,
    ) -> Result<AcceptedMany, Error> {
        let ready = self.ready_any()?;
        let (head, tally) = (Arc::new(ready.head), Arc::new(Tally::default()));
        let mut payloads = payloads.into_iter().peekable();
        while payloads.peek().is_some() {
            // Handed over by the thousand: nothing in the outbox is done for each.
            let (mut chunk, mut room) = (VecDeque::new(), 0);
            while room < HANDED_OVER_MAX
                && let Some(payload) = payloads.next()
            {
                check_payload(&payload)?;
                room += outbox::weight(payload.len() + head.lineage.len());
                chunk.push_back(payload);
            }
            match &ready.link {
                Link::Mesh(core) => {
                    let share = tally.more(chunk.len());
                    let item = Item::many(Arc::clone(&head), chunk, share);
                    core.enqueue(ready.priority, ready.target.as_ref(), item).await?;
                }
                Link::Scripted(script) => {
                    for payload in chunk {
                        script.record(ready.target.as_ref(), &head, &payload);
                        tally.more(1).settle(Ok(script.last_id()));
                    }
                }
            }
        }
        tally.finish().await
    }

    /// Sends one request for each payload and waits for all replies, which come in the order of the payloads.
    ///
    /// # Errors
    /// When one of them cannot be sent at all; how each one ended is in its place.
    pub async fn request_many(
        self,
        payloads: impl IntoIterator<Item = Bytes, IntoIter: Send>,
    ) -> Result<Vec<Result<Reply, Error>>, Error> {
        let ready = self.ready(Kind::Request)?;
        let _parked = ready.parent.as_ref().map(Run::park);
        let head = Arc::new(ready.head);
        let mut waiting = Vec::new();
        for payload in payloads {
            check_payload(&payload)?;
            let (reply, replied) = oneshot::channel();
            match &ready.link {
                Link::Mesh(core) => {
                    let waiter = Waiter { reply, progress: None };
                    let item = Item::new(Arc::clone(&head), payload, Accept::Nobody, Some(waiter));
                    core.enqueue(ready.priority, ready.target.as_ref(), item).await?;
                }
                // The receiver is a line below.
                Link::Scripted(s) => drop(reply.send(s.request(ready.target.as_ref(), &head, &payload))),
            }
            waiting.push(replied);
        }
        let mut replies = Vec::with_capacity(waiting.len());
        for replied in waiting {
            replies.push(replied.await.unwrap_or_else(|_| Err(Error::closed())));
        }
        Ok(replies)
    }

    fn ready(self, kind: Kind) -> Result<Ready, Error> {
        if self.head.kind != kind {
            return Err(Error::new(ErrorKind::Encoding, "an event has no reply to wait for; use send"));
        }
        self.ready_any()
    }

    fn ready_any(mut self) -> Result<Ready, Error> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        check_payload(&self.payload)?;
        let ceiling = self.parent.as_ref().map(Context::priority);
        let priority = match (self.priority, ceiling) {
            (Some(wished), Some(ceiling)) => wished.max(ceiling),
            (Some(wished), None) => wished,
            (None, Some(ceiling)) if self.head.kind == Kind::Request => ceiling,
            (None, Some(ceiling)) => ceiling.max(Priority::P2),
            (None, None) => Priority::P2,
        };
        if let Some(parent) = &self.parent
            && !self.head.budget.is_zero()
        {
            self.head.budget = self.head.budget.min(parent.time_left().max(Duration::from_millis(1)));
        }
        Ok(Ready {
            link: self.link,
            target: self.target,
            priority,
            head: self.head,
            payload: self.payload,
            parent: self.parent.map(|parent| Arc::clone(&parent.0.run)),
        })
    }
}

/// A dispatch that was checked.
struct Ready {
    link: Link,
    target: Option<AgentId>,
    priority: Priority,
    head: Head,
    payload: Bytes,
    parent: Option<Arc<Run>>,
}

fn check_payload(payload: &Bytes) -> Result<(), Error> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        let words =
            format!("the payload has {} bytes; at most {PAYLOAD_BYTES_MAX} are allowed", payload.len());
        return Err(Error::new(ErrorKind::Encoding, words));
    }
    Ok(())
}

/// A request that the mesh has accepted and whose reply may still come.
#[derive(Debug)]
pub struct Pending {
    id: DispatchId,
    link: Link,
    run: Option<Arc<Run>>,
    replied: oneshot::Receiver<Result<Reply, Error>>,
    notes: mpsc::Receiver<Value>,
}

impl Pending {
    /// The dispatch: what `mesh trace` takes.
    #[must_use]
    pub const fn id(&self) -> DispatchId {
        self.id
    }

    /// Waits for the reply.
    ///
    /// # Errors
    /// As [`Dispatch::request`].
    pub async fn reply(self) -> Result<Reply, Error> {
        let _parked = self.run.as_ref().map(Run::park);
        self.replied.await.unwrap_or_else(|_| Err(Error::closed()))
    }

    /// Waits for the handler's next word on how it goes; none once the request has ended.
    pub async fn progress(&mut self) -> Option<Value> {
        let _parked = self.run.as_ref().map(Run::park);
        self.notes.recv().await
    }

    /// Withdraws the request: it ends as `cancelled` where it has not ended yet, and its handler is told to stop.
    ///
    /// # Errors
    /// `Connection` when no coordinator answered; whether it was withdrawn is unknown then.
    pub fn cancel(&self) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let (link, id) = (self.link.clone(), self.id);
        async move {
            match link {
                Link::Mesh(core) => core.withdraw(id).await,
                Link::Scripted(_) => Ok(()),
            }
        }
    }
}
