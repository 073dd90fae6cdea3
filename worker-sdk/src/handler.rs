//! Handlers: what an agent author writes, and the one shape it is called in. Owns the translation between the two.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

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

/// The handlers of one agent.
#[derive(Default, Clone)]
pub(crate) struct Handlers {
    pub(crate) capabilities: HashMap<String, Handler>,
    pub(crate) topics: HashMap<String, Handler>,
}

impl Handlers {
    pub(crate) fn is_empty(&self) -> bool {
        self.capabilities.is_empty() && self.topics.is_empty()
    }

    /// The handler for a dispatch: by its topic where it has one, otherwise by its capability.
    pub(crate) fn find(&self, capability: &str, topic: &str) -> Option<&Handler> {
        if topic.is_empty() { self.capabilities.get(capability) } else { self.topics.get(topic) }
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
