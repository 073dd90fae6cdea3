//! The agent: a registered instance. Owns its lifetime, from registration to the goodbye.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::BoxStream;
use governance::InstanceId;
use protocol::control::{Problem, Terms, Verdict};

use crate::core::Core;
use crate::dispatch::{Dispatch, Link};
use crate::error::{Error, ErrorKind};
use crate::signals::Signal;

/// How often an instance says that it lives.
const BEAT: Duration = Duration::from_secs(1);

/// A registered agent; one running instance of it. Cheap to clone. When the last clone is dropped, its tasks stop without a
/// goodbye: what ran is given to other instances; end it with [`Agent::run_until`] or [`Agent::stop`] instead.
#[derive(Debug, Clone)]
pub struct Agent(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    core: Arc<Core>,
    verdict: Verdict,
    drain_patience: Duration,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.close();
    }
}

impl Agent {
    pub(crate) fn new(core: Arc<Core>, verdict: Verdict, drain_patience: Duration) -> Self {
        Self(Arc::new(Handle { core, verdict, drain_patience }))
    }

    fn link(&self) -> Link {
        Link::Mesh(Arc::clone(&self.0.core))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.core.name.as_str()
    }

    /// The number of this instance, which stands in the ids of what it sends.
    #[must_use]
    pub fn instance(&self) -> InstanceId {
        self.0.core.instance
    }

    /// The rules that hold for it: role, quota, policy version.
    #[must_use]
    pub fn terms(&self) -> Option<&Terms> {
        self.0.verdict.terms.as_ref()
    }

    /// What the mesh found suspicious in its registration, and allowed.
    #[must_use]
    pub fn warnings(&self) -> &[Problem] {
        &self.0.verdict.warnings
    }

    /// A request for a capability of an agent.
    pub fn dispatch(&self, target: &str, capability: &str) -> Dispatch {
        Dispatch::request_to(self.link(), target, capability)
    }

    /// A request for a capability of whichever agent offers it: passing, then least loaded.
    pub fn dispatch_to_any(&self, capability: &str) -> Dispatch {
        Dispatch::request_to_any(self.link(), capability)
    }

    /// An event for a capability of an agent: no reply comes, and it is tried again where it fails.
    pub fn publish_event(&self, target: &str, capability: &str) -> Dispatch {
        Dispatch::event_to(self.link(), target, capability)
    }

    /// An event for each agent that is registered for a topic.
    pub fn emit(&self, topic: &str) -> Dispatch {
        Dispatch::event_of(self.link(), topic)
    }

    /// The mesh's signals from here on: slow down, or go on. They are obeyed in any case; this is to know.
    #[must_use]
    pub fn signals(&self) -> BoxStream<'static, Signal> {
        self.0.core.signals.listen()
    }

    /// Works until `shutdown` is ready, then drains: takes nothing new, finishes what runs, confirms what it did, says
    /// goodbye.
    ///
    /// # Errors
    /// As [`Agent::stop`].
    pub async fn run_until(&self, shutdown: impl Future) -> Result<(), Error> {
        shutdown.await;
        self.stop().await
    }

    /// Drains and ends: takes nothing new, finishes what runs, confirms what it did, says goodbye.
    ///
    /// # Errors
    /// `Unknown` when not all of it was finished and confirmed in time; what was not is given to other instances.
    pub async fn stop(&self) -> Result<(), Error> {
        let core = &self.0.core;
        core.draining.cancel();
        let drained = tokio::time::timeout(self.0.drain_patience, async {
            core.drained.cancelled().await;
            core.outbox.sent().await;
        })
        .await;
        let goodbye = core.beat(true).await;
        core.close();
        core.supervisor.ended().await;
        if let Err(error) = core.client.flush().await {
            tracing::debug!(%error, "the goodbye was not flushed");
        }
        match drained {
            Ok(()) => goodbye,
            Err(_) => {
                Err(Error::new(ErrorKind::Unknown, "not everything was finished and confirmed in time"))
            }
        }
    }
}

/// Shows that the runtime is at work, and looks after callers who wait too long. The heartbeats of an agent that takes work
/// come from its keeper; of others nobody needs to know while their runtime is blocked.
pub(crate) async fn beats(core: Arc<Core>) {
    let mut interval = tokio::time::interval(BEAT);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        core.waiters.sweep(core.instance, Instant::now());
        core.pulse.beat();
        if core.handlers.is_empty()
            && let Err(error) = core.beat(false).await
        {
            tracing::debug!(%error, "no heartbeat");
        }
    }
}
