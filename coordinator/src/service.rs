//! The control door: registrations, heartbeats, withdrawals, wishes for time, questions, operators' commands.
//!
//! Parses what comes and hands it to the home; makes the consumers of an agent before it is told that it may begin. A
//! request that cannot be read is answered with what is wrong with it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::Store;
use async_nats::{Client, Message};
use futures::StreamExt;
use governance::{AgentId, Beat, DispatchId, InstanceId, Policy, Registration, registration};
use protocol::control::{self, Answer, Operation, Problem, Terms, Verdict};
use protocol::{streams, subjects};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use crate::home::{Command, Input};
use crate::ownership::Membership;

/// Everything that answering needs.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) client: Client,
    pub(crate) js: Context,
    pub(crate) agents: Store,
    pub(crate) policy: Arc<Policy>,
    pub(crate) home: mpsc::Sender<Input>,
    pub(crate) membership: Membership,
    pub(crate) replica: String,
    pub(crate) epoch: u64,
}

impl Service {
    /// Registers agents, one after the other: a check sees every registration before it.
    pub(crate) async fn run_registrar(self) -> anyhow::Result<()> {
        let mut requests =
            self.client.queue_subscribe(subjects::REGISTER, subjects::REGISTER_GROUP.into()).await?;
        while let Some(message) = requests.next().await {
            let verdict = match parse::<Registration>(&message) {
                Ok(registration) => self.register(registration).await,
                Err(why) => refused("registration", why, "send the JSON of docs/protocol.md"),
            };
            respond(&self.client, &message, &verdict).await;
        }
        anyhow::bail!("the subscription to registrations ended")
    }

    async fn register(&self, registration: Registration) -> Verdict {
        let known = match known_registrations(&self.agents).await {
            Ok(known) => known,
            Err(e) => return refused("mesh", format!("the registrations cannot be read: {e}"), "try again"),
        };
        let judged = registration::check(&registration, &known, &self.policy);
        let problems = |list: Vec<registration::Problem>| -> Vec<Problem> {
            list.into_iter().map(|p| Problem { field: p.field, message: p.message, fix: p.fix }).collect()
        };
        if !judged.is_good() {
            return Verdict {
                accepted: false,
                problems: problems(judged.problems),
                warnings: problems(judged.warnings),
                terms: None,
            };
        }
        if let Err(e) = self.store(&registration).await {
            return refused("mesh", format!("the registration cannot be stored: {e:#}"), "try again");
        }
        let (respond, registered) = oneshot::channel();
        let quota = self.policy.quota(&registration.agent);
        let role = self.policy.role_name(&registration.agent).to_owned();
        let command = Command::Register { registration: Box::new(registration), respond };
        if self.home.send(Input::Command(command)).await.is_err() || registered.await.is_err() {
            return refused(
                "mesh",
                "the coordinator is starting or stopping".to_owned(),
                "try again in a moment",
            );
        }
        Verdict {
            accepted: true,
            problems: Vec::new(),
            warnings: problems(judged.warnings),
            terms: Some(Terms {
                role,
                rate_per_s: quota.per_s,
                burst: quota.burst,
                inbox_ack_wait_ms: u64::try_from(streams::INBOX_ACK_WAIT.as_millis()).unwrap_or(u64::MAX),
                policy_version: self.policy.version,
            }),
        }
    }

    async fn store(&self, registration: &Registration) -> anyhow::Result<()> {
        let id = AgentId::new(&registration.agent)?;
        broker::ensure_inbox_consumers(&self.js, &id).await?;
        broker::ensure_source_consumers(&self.js, &id, self.epoch).await?;
        self.agents.put(&registration.agent, serde_json::to_vec(registration)?.into()).await?;
        Ok(())
    }

    /// Heartbeats.
    pub(crate) async fn run_beats(self) -> anyhow::Result<()> {
        let mut beats = self.client.subscribe(subjects::BEATS).await?;
        while let Some(message) = beats.next().await {
            let Ok(beat) = parse::<control::Beat>(&message) else { continue };
            let Ok(instance) = beat.instance.parse::<InstanceId>() else { continue };
            let agent = subjects::last_token(&message.subject).to_owned();
            let leaving = beat.leaving;
            let beat =
                Beat { instance, slots: beat.slots, running: beat.running, running_over: beat.running_over };
            self.home.send(Input::Command(Command::Beat { agent, beat, leaving })).await?;
        }
        anyhow::bail!("the subscription to heartbeats ended")
    }

    /// Withdrawals, wishes for more time, and questions about redelivered dispatches.
    pub(crate) async fn run_requests(self) -> anyhow::Result<()> {
        let cancels = self.client.subscribe(subjects::CANCELS).await?;
        let extends = self.client.subscribe(subjects::EXTENDS).await?;
        let opens = self.client.subscribe(subjects::OPENS).await?;
        let mut requests = futures::stream::select_all([cancels, extends, opens]);
        while let Some(message) = requests.next().await {
            let verb = message.subject.split('.').nth(1).unwrap_or_default();
            let answer = match verb {
                "cancel" => self.cancel(&message).await,
                "extend" => self.extend(&message).await,
                _ => self.open(&message).await,
            };
            match answer {
                Ok(answer) => respond(&self.client, &message, &answer).await,
                Err(why) => respond(&self.client, &message, &serde_json::json!({"error": why})).await,
            }
        }
        anyhow::bail!("the subscription to requests ended")
    }

    async fn cancel(&self, message: &Message) -> Result<serde_json::Value, String> {
        let id = parse::<control::Cancel>(message)?.id.parse::<DispatchId>().map_err(|e| e.to_string())?;
        let source = subjects::last_token(&message.subject).to_owned();
        self.send(Command::Cancel { source, id }).await?;
        Ok(serde_json::json!({}))
    }

    async fn extend(&self, message: &Message) -> Result<serde_json::Value, String> {
        let wish = parse::<control::Extend>(message)?;
        let id = wish.id.parse::<DispatchId>().map_err(|e| e.to_string())?;
        let source = subjects::last_token(&message.subject).to_owned();
        let (respond, told) = oneshot::channel();
        self.send(Command::Extend { source, id, by: Duration::from_millis(wish.by_ms), respond }).await?;
        let extended = told.await.map_err(|_| "the coordinator is stopping".to_owned())?;
        serde_json::to_value(extended).map_err(|e| e.to_string())
    }

    async fn open(&self, message: &Message) -> Result<serde_json::Value, String> {
        let question = parse::<control::OpenQuestion>(message)?;
        let runs = question
            .runs
            .iter()
            .map(|(id, count)| Ok((id.parse::<DispatchId>().map_err(|e| e.to_string())?, *count)))
            .collect::<Result<Vec<_>, String>>()?;
        let (respond, told) = oneshot::channel();
        self.send(Command::Open { runs, respond }).await?;
        let answer = told.await.map_err(|_| "the coordinator is stopping".to_owned())?;
        serde_json::to_value(answer).map_err(|e| e.to_string())
    }

    async fn send(&self, command: Command) -> Result<(), String> {
        self.home.send(Input::Command(command)).await.map_err(|_| "the coordinator is stopping".to_owned())
    }

    /// Operators' commands: every replica answers for what it owns.
    pub(crate) async fn run_operators(self) -> anyhow::Result<()> {
        let mut commands = self.client.subscribe(subjects::CONTROLS).await?;
        while let Some(message) = commands.next().await {
            let verb = subjects::last_token(&message.subject).to_owned();
            let result = self.operate(verb, &message).await;
            let replicas = self.membership.count().await;
            let (body, error) = match result {
                Ok(body) => (Some(body), None),
                Err(e) => (None, Some(e)),
            };
            let answer = Answer { replica: self.replica.clone(), replicas, body, error };
            respond(&self.client, &message, &answer).await;
        }
        anyhow::bail!("the subscription to operators' commands ended")
    }

    async fn operate(&self, verb: String, message: &Message) -> Result<serde_json::Value, String> {
        let operation = if message.payload.is_empty() {
            Operation { agent: String::new(), reason: String::new(), operator: String::new() }
        } else {
            parse::<Operation>(message)?
        };
        let (respond, told) = oneshot::channel();
        self.send(Command::Operate { verb, operation, respond }).await?;
        told.await.map_err(|_| "the coordinator is stopping".to_owned())?
    }
}

/// All registrations in the bucket.
pub(crate) async fn known_registrations(agents: &Store) -> anyhow::Result<BTreeMap<String, Registration>> {
    let mut known = BTreeMap::new();
    let mut keys = agents.keys().await?;
    while let Some(key) = keys.next().await {
        let key = key?;
        if let Some(bytes) = agents.get(&key).await? {
            known.insert(key, serde_json::from_slice(&bytes)?);
        }
    }
    Ok(known)
}

fn parse<T: DeserializeOwned>(message: &Message) -> Result<T, String> {
    serde_json::from_slice(&message.payload).map_err(|e| e.to_string())
}

fn refused(field: &str, message: String, fix: &str) -> Verdict {
    let problem = Problem { field: field.to_owned(), message, fix: fix.to_owned() };
    Verdict { accepted: false, problems: vec![problem], warnings: Vec::new(), terms: None }
}

async fn respond<T: serde::Serialize>(client: &Client, message: &Message, body: &T) {
    let Some(reply) = &message.reply else { return };
    let body = serde_json::to_vec(body).expect("plain data serialises");
    if let Err(e) = client.publish(reply.clone(), body.into()).await {
        tracing::warn!(error = %e, "an answer was not sent");
    }
}
