//! Handlers: what an agent author writes, and the one shape it is called in. Owns the translation between the two.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::batch::{Answers, Batch};
use crate::context::Context;
use crate::error::Failure;

/// What a handler of raw payloads returns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Response {
    pub(crate) payload: Bytes,
    pub(crate) content_type: String,
}

impl Response {
    /// A payload of any content type.
    #[must_use]
    pub fn bytes(payload: impl Into<Bytes>, content_type: impl Into<String>) -> Self {
        Self { payload: payload.into(), content_type: content_type.into() }
    }

    /// A value as JSON.
    ///
    /// # Errors
    /// When the value cannot be written as JSON, such as a map with keys that are no strings.
    pub fn json(value: &impl Serialize) -> Result<Self, Failure> {
        Ok(Self { payload: serde_json::to_vec(value)?.into(), content_type: String::new() })
    }

    /// Nothing: for handlers of events, whose response nobody reads.
    #[must_use]
    pub const fn empty() -> Self {
        Self { payload: Bytes::new(), content_type: String::new() }
    }

    /// The payload.
    #[must_use]
    pub const fn payload(&self) -> &Bytes {
        &self.payload
    }
}

pub(crate) type Running = Pin<Box<dyn Future<Output = Result<Response, Failure>> + Send>>;
pub(crate) type Handler = Arc<dyn Fn(Context) -> Running + Send + Sync>;

/// A handler of JSON in the common shape.
pub(crate) fn typed<In, Out, F, Fut>(handler: F) -> Handler
where
    In: DeserializeOwned + Send + 'static,
    Out: Serialize + Send + 'static,
    F: Fn(Context, In) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Out, Failure>> + Send + 'static,
{
    Arc::new(move |context: Context| match context.payload_json::<In>() {
        Ok(input) => {
            let running = handler(context, input);
            Box::pin(async move { Response::json(&running.await?) })
        }
        Err(failure) => Box::pin(std::future::ready(Err(failure))),
    })
}

/// A handler of raw payloads in the common shape.
pub(crate) fn raw<F, Fut>(handler: F) -> Handler
where
    F: Fn(Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Response, Failure>> + Send + 'static,
{
    Arc::new(move |context| Box::pin(handler(context)))
}

pub(crate) type RunningMany = Pin<Box<dyn Future<Output = Result<Answers, Failure>> + Send>>;
pub(crate) type ManyHandler = Arc<dyn Fn(Batch) -> RunningMany + Send + Sync>;

/// A handler of batches in the common shape.
pub(crate) fn many<F, Fut>(handler: F) -> ManyHandler
where
    F: Fn(Batch) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Answers, Failure>> + Send + 'static,
{
    Arc::new(move |batch| Box::pin(handler(batch)))
}

/// A handler of batches, for a dispatch that runs by itself: a batch of one.
fn one_of(many: &ManyHandler) -> Handler {
    let many = Arc::clone(many);
    Arc::new(move |context| {
        let running = many(Batch::of(vec![context]));
        Box::pin(async move { running.await?.only() })
    })
}

/// What is called for a capability or a topic.
#[derive(Clone)]
pub(crate) struct Entry {
    one: Handler,
    many: Option<ManyHandler>,
}

impl From<Handler> for Entry {
    fn from(one: Handler) -> Self {
        Self { one, many: None }
    }
}

impl From<ManyHandler> for Entry {
    fn from(many: ManyHandler) -> Self {
        Self { one: one_of(&many), many: Some(many) }
    }
}

/// The handlers of one agent.
#[derive(Default, Clone)]
pub(crate) struct Handlers {
    pub(crate) capabilities: HashMap<String, Entry>,
    pub(crate) topics: HashMap<String, Entry>,
}

impl Handlers {
    pub(crate) fn is_empty(&self) -> bool {
        self.capabilities.is_empty() && self.topics.is_empty()
    }

    fn entry(&self, capability: &str, topic: &str) -> Option<&Entry> {
        if topic.is_empty() { self.capabilities.get(capability) } else { self.topics.get(topic) }
    }

    /// The handler for a dispatch: by its topic where it has one, otherwise by its capability.
    pub(crate) fn find(&self, capability: &str, topic: &str) -> Option<&Handler> {
        self.entry(capability, topic).map(|entry| &entry.one)
    }

    /// The handler for many at once, where there is one.
    pub(crate) fn find_many(&self, capability: &str, topic: &str) -> Option<&ManyHandler> {
        self.entry(capability, topic)?.many.as_ref()
    }
}

impl std::fmt::Debug for Handlers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handlers")
            .field("capabilities", &self.capabilities.keys())
            .field("topics", &self.topics.keys())
            .finish()
    }
}
