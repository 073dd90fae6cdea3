//! Handlers without servers: a script answers what they send. Owns the stand-in for the mesh in an author's unit tests.
//!
//! ```
//! use worker_sdk::testing::Script;
//! use worker_sdk::{Context, Failure};
//!
//! async fn greet(ctx: Context, name: String) -> Result<String, Failure> {
//!     let title: String = ctx.dispatch("registry", "title_of").json(&name)?.call().await?;
//!     Ok(format!("Good day, {title} {name}"))
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let script = Script::new().answer("registry", "title_of", &"Dr");
//! let greeting = script.call(greet, "Ada".to_owned()).await.unwrap();
//! assert_eq!(greeting, "Good day, Dr Ada");
//! assert_eq!(script.sent()[0].payload, "Ada");
//! # });
//! ```

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use governance::{AgentId, DispatchId, InstanceId, Kind, Outcome, Priority, Reason};
use protocol::json;
use serde::Serialize;
use serde_json::Value;

use crate::batch::Batch;
use crate::clock;
use crate::context::{Context, Facts};
use crate::dispatch::Link;
use crate::error::{Error, ErrorKind, Failure};
use crate::outbox::Head;
use crate::reply::Reply;
use crate::row::Row;
use crate::run::Run;
use crate::slots::Slots;

/// The budget of a handler's run in a test, where none is given.
const BUDGET: Duration = Duration::from_secs(30);

/// Runs a handler whose dispatches nobody answers.
///
/// # Errors
/// What the handler reports.
pub async fn call<In, Out, Fut>(handler: impl FnOnce(Context, In) -> Fut, input: In) -> Result<Out, Failure>
where
    Fut: Future<Output = Result<Out, Failure>>,
{
    Script::new().call(handler, input).await
}

/// What a handler sent in a test.
#[derive(Debug, Clone, PartialEq)]
pub struct Sent {
    /// Request or event.
    pub kind: Kind,
    /// The named target; empty for none.
    pub target: String,
    /// The capability; empty for a topic.
    pub capability: String,
    /// The topic; empty for none.
    pub topic: String,
    /// The conversation key.
    pub conversation: String,
    /// The payload: itself where it is JSON, a string where it is text.
    pub payload: Value,
}

#[derive(Debug, Default)]
struct State {
    answers: HashMap<(String, String), VecDeque<Result<Reply, Error>>>,
    sent: Vec<Sent>,
    progress: Vec<Value>,
}

/// Answers for what a handler sends, and a record of it.
#[derive(Debug, Clone)]
pub struct Script {
    state: Arc<Mutex<State>>,
    conversation: String,
    budget: Duration,
    priority: Priority,
}

impl Default for Script {
    fn default() -> Self {
        Self { state: Arc::default(), conversation: String::new(), budget: BUDGET, priority: Priority::P2 }
    }
}

impl Script {
    /// An empty script: every request ends as if nobody offered the capability.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(self, target: &str, capability: &str, answer: Result<Reply, Error>) -> Self {
        let key = (target.to_owned(), capability.to_owned());
        self.lock().answers.entry(key).or_default().push_back(answer);
        self
    }

    /// Answers a request with JSON. Several answers are given one after the other; the last one stays. The target `*`
    /// stands for requests that name only the capability.
    ///
    /// # Panics
    /// When the value cannot be written as JSON.
    #[must_use]
    pub fn answer(self, target: &str, capability: &str, reply: &impl Serialize) -> Self {
        let payload = serde_json::to_vec(reply).expect("a scripted reply can be written as JSON");
        let reply = scripted(target, Outcome::Success, Reason::Ok, payload);
        self.put(target, capability, Ok(reply))
    }

    /// Answers a request as a fallback does.
    ///
    /// # Panics
    /// When the value cannot be written as JSON.
    #[must_use]
    pub fn fall_back(self, target: &str, capability: &str, reply: &impl Serialize) -> Self {
        let payload = serde_json::to_vec(reply).expect("a scripted reply can be written as JSON");
        let reply = scripted(target, Outcome::CircuitBroken, Reason::FallbackStatic, payload);
        self.put(target, capability, Ok(reply))
    }

    /// Ends a request with an error.
    #[must_use]
    pub fn fail(self, target: &str, capability: &str, kind: ErrorKind, message: &'static str) -> Self {
        self.put(target, capability, Err(Error::new(kind, message)))
    }

    /// The conversation key of the dispatch that the handler runs.
    #[must_use]
    pub fn conversation(mut self, key: &str) -> Self {
        key.clone_into(&mut self.conversation);
        self
    }

    /// The time that the handler has.
    #[must_use]
    pub const fn budget(mut self, budget: Duration) -> Self {
        self.budget = budget;
        self
    }

    /// The priority of the dispatch that the handler runs.
    #[must_use]
    pub const fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Runs a handler under this script. When it ignores its deadline, it is dropped as in the mesh.
    ///
    /// # Errors
    /// What the handler reports, or that its deadline passed.
    pub async fn call<In, Out, Fut>(
        &self,
        handler: impl FnOnce(Context, In) -> Fut,
        input: In,
    ) -> Result<Out, Failure>
    where
        Fut: Future<Output = Result<Out, Failure>>,
    {
        let context = self.context(Bytes::new());
        let run = Arc::clone(&context.0.run);
        run.bound(handler(context, input))
            .await
            .unwrap_or_else(|| Err(Failure::because(Reason::ExpiredRunning, "the deadline passed")))
    }

    /// A context under this script, with a payload of its own: for handlers of raw payloads.
    #[must_use]
    pub fn context(&self, payload: Bytes) -> Context {
        self.context_at(0, payload)
    }

    /// A batch under this script, one dispatch for each payload: for handlers of batches.
    ///
    /// # Panics
    /// When there is no payload: no handler is given an empty batch.
    #[must_use]
    pub fn batch(&self, payloads: impl IntoIterator<Item = Bytes>) -> Batch {
        let contexts: Vec<Context> =
            (0..=u16::MAX).zip(payloads).map(|(slot, payload)| self.context_at(slot, payload)).collect();
        assert!(!contexts.is_empty(), "a batch has at least one dispatch");
        Batch::of(contexts)
    }

    fn context_at(&self, slot: u16, payload: Bytes) -> Context {
        let slots = Arc::new(Slots::new(1));
        // A slot of its own is always free.
        let _ = slots.take(self.priority, 1);
        let deadline = clock::now().after(self.budget);
        let nothing: Arc<str> = "".into();
        let row = Row {
            id: DispatchId { slot, ..self.last_id() },
            kind: Kind::Request,
            lane: self.priority,
            source: Arc::new(AgentId::new("test").expect("a name in the alphabet")),
            capability: "tested".into(),
            topic: Arc::clone(&nothing),
            conversation: self.conversation.as_str().into(),
            trace: Arc::clone(&nothing),
            content_type: nothing,
            payload,
            deadline,
            admitted: clock::now(),
            parcel: None,
        };
        let run = Arc::new(Run::new(self.priority, deadline, slots, 1));
        Context(Arc::new(Facts {
            link: Link::Scripted(Arc::new(self.clone())),
            run,
            ceiling: self.priority,
            row,
            attempt: 1,
        }))
    }

    /// What the handler has sent, in order.
    #[must_use]
    pub fn sent(&self) -> Vec<Sent> {
        self.lock().sent.clone()
    }

    /// What the handler has reported about its progress.
    #[must_use]
    pub fn progress(&self) -> Vec<Value> {
        self.lock().progress.clone()
    }

    pub(crate) fn note_progress(&self, note: Value) {
        self.lock().progress.push(note);
    }

    /// The id of what was sent last.
    pub(crate) fn last_id(&self) -> DispatchId {
        DispatchId { instance: InstanceId(0), sequence: self.lock().sent.len() as u64, slot: 0, copy: 0 }
    }

    pub(crate) fn record(&self, target: Option<&AgentId>, head: &Head, payload: &Bytes) {
        self.lock().sent.push(Sent {
            kind: head.kind,
            target: target.map(AgentId::to_string).unwrap_or_default(),
            capability: head.capability.clone(),
            topic: head.topic.clone(),
            conversation: head.conversation.clone(),
            payload: json::value(payload),
        });
    }

    pub(crate) fn request(
        &self,
        target: Option<&AgentId>,
        head: &Head,
        payload: &Bytes,
    ) -> Result<Reply, Error> {
        self.record(target, head, payload);
        let target = target.map_or("*", AgentId::as_str);
        let mut state = self.lock();
        let Some(answers) = state.answers.get_mut(&(target.to_owned(), head.capability.clone())) else {
            let words = format!("the script has no answer for {target}/{}", head.capability);
            return Err(Error::new(ErrorKind::Rejected(Reason::NoProvider), words));
        };
        let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
        answer.unwrap_or_else(|| Err(Error::closed()))
    }
}

fn scripted(target: &str, outcome: Outcome, reason: Reason, payload: Vec<u8>) -> Reply {
    Reply {
        id: DispatchId { instance: InstanceId(0), sequence: 1, slot: 0, copy: 0 },
        outcome,
        reason,
        target: target.to_owned(),
        lane: Duration::ZERO,
        inbox: Duration::ZERO,
        ran: Duration::ZERO,
        payload: payload.into(),
        content_type: String::new(),
    }
}
