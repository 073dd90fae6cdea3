//! Building an agent: what it offers and needs, up to its registration. Owns the start of its tasks.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use governance::{AgentId, Encoding, Fallback, Policy, Registration};
use protocol::control::Problem;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::agent::{Agent, beats};
use crate::batch::{Answers, Batch};
use crate::context::Context;
use crate::core::Core;
use crate::error::{Error, ErrorKind, Failure};
use crate::handler::{self, Handlers, Response};
use crate::intake::Intake;
use crate::listen;
use crate::mesh::{Mesh, new_instance};

/// How long a registration waits for a coordinator: longer than a whole mesh needs to start.
const REGISTRATION_PATIENCE: Duration = Duration::from_secs(30);
/// How long a stopping agent waits for what runs.
const DRAIN_PATIENCE: Duration = Duration::from_secs(30);

/// An agent that is being described.
#[derive(Debug)]
#[must_use = "an agent exists only once it is registered"]
pub struct AgentBuilder {
    mesh: Mesh,
    registration: Registration,
    handlers: Handlers,
    problems: Vec<Problem>,
    patience: Duration,
    drain_patience: Duration,
}

impl AgentBuilder {
    pub(crate) fn new(mesh: Mesh, name: &str) -> Self {
        let registration = Registration {
            agent: name.to_owned(),
            capabilities: Vec::new(),
            topics: Vec::new(),
            dependencies: Vec::new(),
            max_concurrent: 16,
            sla_p95_ms: 1_000,
            fallbacks: BTreeMap::new(),
            min_instances: 1,
            max_instances: 1,
            encoding: Encoding::Binary,
        };
        Self {
            mesh,
            registration,
            handlers: Handlers::default(),
            problems: Vec::new(),
            patience: REGISTRATION_PATIENCE,
            drain_patience: DRAIN_PATIENCE,
        }
    }

    /// Offers a capability: the payload is read as JSON, and what the handler gives is the reply, as JSON.
    pub fn capability<In, Out, F, Fut>(self, name: &str, handler: F) -> Self
    where
        In: DeserializeOwned + Send + 'static,
        Out: Serialize + Send + 'static,
        F: Fn(Context, In) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Out, Failure>> + Send + 'static,
    {
        self.offer(name, handler::typed(handler).into())
    }

    /// Offers a capability whose payloads are not JSON, or are not to be read: see [`Context::payload`].
    pub fn capability_raw<F, Fut>(self, name: &str, handler: F) -> Self
    where
        F: Fn(Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Response, Failure>> + Send + 'static,
    {
        self.offer(name, handler::raw(handler).into())
    }

    /// Offers a capability for bulk: the handler is given many dispatches at once, such as came together and as there are slots
    /// for. See [`Batch`]; when it fails, so has each of them.
    pub fn capability_batch<F, Fut>(self, name: &str, handler: F) -> Self
    where
        F: Fn(Batch) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Answers, Failure>> + Send + 'static,
    {
        self.offer(name, handler::many(handler).into())
    }

    fn offer(mut self, name: &str, handler: handler::Entry) -> Self {
        if self.handlers.capabilities.insert(name.to_owned(), handler).is_some() {
            self.note("capabilities", format!("`{name}` is offered twice"), "offer each capability once");
        } else {
            self.registration.capabilities.push(name.to_owned());
        }
        self
    }

    /// Wants the events of a topic, read as JSON. One that fails is sent again, and in the end becomes a dead letter.
    pub fn on_topic<In, F, Fut>(self, topic: &str, handler: F) -> Self
    where
        In: DeserializeOwned + Send + 'static,
        F: Fn(Context, In) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        self.want(topic, handler::typed(handler).into())
    }

    /// Wants the events of a topic as they come: see [`Context::payload`].
    pub fn on_topic_raw<F, Fut>(self, topic: &str, handler: F) -> Self
    where
        F: Fn(Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let handler = handler::raw(move |context| {
            let running = handler(context);
            async move { running.await.map(|()| Response::empty()) }
        });
        self.want(topic, handler.into())
    }

    /// Wants the events of a topic for bulk: many at once, as with [`AgentBuilder::capability_batch`].
    pub fn on_topic_batch<F, Fut>(self, topic: &str, handler: F) -> Self
    where
        F: Fn(Batch) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let handler = handler::many(move |batch| {
            let running = handler(batch);
            async move { running.await.map(|()| Answers::empty()) }
        });
        self.want(topic, handler.into())
    }

    fn want(mut self, topic: &str, handler: handler::Entry) -> Self {
        if self.handlers.topics.insert(topic.to_owned(), handler).is_some() {
            self.note("topics", format!("`{topic}` is wanted twice"), "register one handler for each topic");
        } else {
            self.registration.topics.push(topic.to_owned());
        }
        self
    }

    fn note(&mut self, field: &str, message: String, fix: &str) {
        self.problems.push(Problem { field: field.to_owned(), message, fix: fix.to_owned() });
    }

    /// Declares that this agent calls another: `agent`, `agent/capability`, or `*/capability` for whoever offers it. What
    /// is not declared is rejected.
    pub fn depends_on(mut self, dependency: &str) -> Self {
        self.registration.dependencies.push(dependency.to_owned());
        self
    }

    /// How many dispatches one instance runs at once; 16 where nothing is said.
    pub const fn max_concurrent(mut self, dispatches: u32) -> Self {
        self.registration.max_concurrent = dispatches;
        self
    }

    /// The 95th percentile of its run time that it promises; one second where nothing is said. Its breaker trips when it
    /// is exceeded by a fifth.
    pub fn sla_p95(mut self, sla: Duration) -> Self {
        self.registration.sla_p95_ms = u32::try_from(sla.as_millis()).unwrap_or(u32::MAX);
        self
    }

    /// While this agent's breaker is tripped, a capability is answered with this, as JSON.
    pub fn fallback_static(mut self, capability: &str, reply: &impl Serialize) -> Self {
        match serde_json::to_string(reply) {
            Ok(text) => {
                self.registration.fallbacks.insert(capability.to_owned(), Fallback::Static(text));
            }
            Err(e) => {
                let field = format!("fallbacks.{capability}");
                self.note(&field, format!("it cannot be written as JSON: {e}"), "give a value that can");
            }
        }
        self
    }

    /// While this agent's breaker is tripped, another agent that offers the capability takes its place.
    pub fn fallback_agent(mut self, capability: &str, agent: &str) -> Self {
        self.registration.fallbacks.insert(capability.to_owned(), Fallback::Agent(agent.to_owned()));
        self
    }

    /// Between how many instances scaling may choose; one and one where nothing is said.
    pub const fn instances(mut self, min: u32, max: u32) -> Self {
        self.registration.min_instances = min;
        self.registration.max_instances = max;
        self
    }

    /// How long the registration waits for a coordinator; 30 s where nothing is said.
    pub const fn register_within(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// How long a stopping agent waits for what runs, before it is given back to the mesh; 30 s where nothing is said.
    pub const fn drain_within(mut self, patience: Duration) -> Self {
        self.drain_patience = patience;
        self
    }

    /// What is wrong with a registration that cannot even be sent: what was noted, and what its form shows.
    fn all_problems(mut self) -> Vec<Problem> {
        let nobody = BTreeMap::new();
        let judged = governance::registration::check(&self.registration, &nobody, &Policy::default());
        self.problems.extend(judged.problems.into_iter().map(|p| Problem {
            field: p.field,
            message: p.message,
            fix: p.fix,
        }));
        self.problems
    }

    /// What is going to be registered.
    #[must_use]
    pub const fn registration(&self) -> &Registration {
        &self.registration
    }

    /// Registers the agent and starts this instance of it.
    ///
    /// # Errors
    /// `Registration` with every problem that was found; `Connection` when no coordinator answered in time.
    pub async fn register(self) -> Result<Agent, Error> {
        let (Ok(name), true) = (AgentId::new(&self.registration.agent), self.problems.is_empty()) else {
            return Err(Error::refused(self.all_problems()));
        };
        let (client, publisher) = (self.mesh.client.clone(), self.mesh.publisher.clone());
        let instance = new_instance(&name);
        let core = Core::new(name, instance, client, publisher, self.registration, self.handlers);
        let core = Arc::new(core);
        // Everything is heard from the moment the registration is in force.
        let messages = listen::subscribe(&core).await?;
        let verdict = core.register(self.patience).await?;
        // From here on its tasks stop with it, also when the rest fails.
        let agent = Agent::new(Arc::clone(&core), verdict, self.drain_patience);
        core.supervisor.spawn(listen::listen(Arc::clone(&core), messages));
        core.beat(false).await?;
        core.supervisor.spawn(beats(Arc::clone(&core)));
        if core.handlers.is_empty() {
            core.drained.cancel();
        } else {
            self.mesh.keeper().await?.adopt(&core).await;
            let intake = Intake::new(Arc::clone(&core)).await;
            let intake =
                intake.map_err(|e| Error::caused(ErrorKind::Connection, "the inbox cannot be read", e))?;
            core.supervisor.spawn(intake.run());
        }
        Ok(agent)
    }
}
