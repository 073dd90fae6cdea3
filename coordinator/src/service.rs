//! The control door: registrations, heartbeats, withdrawals, wishes for time, questions, operators' commands, and what other
//! homes tell and ask.
//!
//! Parses what comes and hands it to the homes that it concerns; what concerns a home elsewhere is left to that replica. A
//! request that cannot be read is answered with what is wrong with it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::Store;
use async_nats::{Client, Message};
use futures::StreamExt;
use governance::{AgentId, Beat, DispatchId, InstanceId, Policy, Registration, registration};
use home::{Command, LetterOrder};
use protocol::control::{self, Answer, DeadLetter, Operation, Problem, Terms, Verdict};
use protocol::know::{GrantAnswer, GrantQuestion, Knowledge};
use protocol::{streams, subjects};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use crate::homes::{Homes, Link};
use crate::known::Known;
use crate::ownership::Standing;

/// How long a registration waits for all replicas: one that died is not waited for longer, and what it owned is taken over
/// with the registration.
const KNOWN_EVERYWHERE_MAX: Duration = Duration::from_secs(2);

/// Everything that answering needs.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) client: Client,
    pub(crate) js: Context,
    pub(crate) agents: Store,
    pub(crate) policy: Arc<Policy>,
    pub(crate) homes: Homes,
    pub(crate) known: Arc<Known>,
    pub(crate) standing: Arc<Standing>,
    pub(crate) replica: String,
    pub(crate) questions: mpsc::Sender<Message>,
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
        let judged = registration::check(&registration, &self.known.registrations_by_name(), &self.policy);
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
        if let Err(e) = self.tell_replicas(&registration).await {
            return refused("mesh", format!("the registration cannot be told: {e:#}"), "try again");
        }
        let quota = self.policy.quota(&registration.agent);
        let role = self.policy.role_name(&registration.agent).to_owned();
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
        self.agents.put(&registration.agent, serde_json::to_vec(registration)?.into()).await?;
        Ok(())
    }

    /// Waits until every live replica's homes know a registration, so that whoever learns that an agent is registered can
    /// call it through any of them.
    async fn tell_replicas(&self, registration: &Registration) -> anyhow::Result<()> {
        let inbox = self.client.new_inbox();
        let mut answers = self.client.subscribe(inbox.clone()).await?;
        let body = serde_json::to_vec(registration)?;
        self.client.publish_with_reply(subjects::REGISTERED, inbox, body.into()).await?;
        let deadline = tokio::time::Instant::now() + KNOWN_EVERYWHERE_MAX;
        let mut missing = self.standing.replicas.load(Ordering::Relaxed).max(1);
        while missing > 0 {
            let Ok(Some(_)) = tokio::time::timeout_at(deadline, answers.next()).await else {
                tracing::warn!(
                    agent = registration.agent,
                    missing,
                    "not every replica confirmed a registration"
                );
                break;
            };
            missing -= 1;
        }
        Ok(())
    }

    /// Registrations that any replica accepted.
    pub(crate) async fn run_registered(self) -> anyhow::Result<()> {
        let mut registered = self.client.subscribe(subjects::REGISTERED).await?;
        while let Some(message) = registered.next().await {
            let Ok(registration) = parse::<Registration>(&message) else { continue };
            self.known.introduce(&self.js, &self.homes, registration).await;
            respond(&self.client, &message, &serde_json::json!({"replica": self.replica})).await;
        }
        anyhow::bail!("the subscription to accepted registrations ended")
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
            self.homes.tell(|| Command::Beat { agent: agent.clone(), beat, leaving }).await;
        }
        anyhow::bail!("the subscription to heartbeats ended")
    }

    /// Withdrawals, wishes for more time, and questions about redelivered dispatches, for the homes that are here.
    ///
    /// # Errors
    /// When the subscription ends.
    pub(crate) async fn run_requests(self) -> anyhow::Result<()> {
        let cancels = self.client.subscribe(subjects::CANCELS).await?;
        let extends = self.client.subscribe(subjects::EXTENDS).await?;
        let opens = self.client.subscribe(subjects::OPENS).await?;
        let mut requests = futures::stream::select_all([cancels, extends, opens]);
        while let Some(message) = requests.next().await {
            let source = subjects::last_token(&message.subject).to_owned();
            let Some(home) = self.homes.of(&source) else { continue };
            let verb = message.subject.split('.').nth(1).unwrap_or_default();
            let answer = match verb {
                "cancel" => cancel(&home, source, &message).await,
                "extend" => extend(&home, source, &message).await,
                _ => {
                    // Where too many wait this one is dropped: who asked asks again.
                    drop(self.questions.try_send(message));
                    continue;
                }
            };
            match answer {
                Ok(answer) => respond(&self.client, &message, &answer).await,
                Err(why) => respond(&self.client, &message, &serde_json::json!({"error": why})).await,
            }
        }
        anyhow::bail!("the subscription to requests ended")
    }

    /// What homes elsewhere, and here, saw of targets.
    pub(crate) async fn run_knowledge(self) -> anyhow::Result<()> {
        let mut told = self.client.subscribe(subjects::KNOWLEDGE).await?;
        while let Some(message) = told.next().await {
            let Ok(knowledge) = parse::<Knowledge>(&message) else { continue };
            let from = knowledge.home();
            if let Some(delay) = knowledge.p0_delay_us.map(Duration::from_micros) {
                for (shard, link) in self.homes.all() {
                    if shard != from.shard {
                        link.send(Command::P0Suffered { delay }).await;
                    }
                }
            }
            let Some(link) =
                subjects::last_token(&message.subject).parse().ok().and_then(|s| self.homes.at(s))
            else {
                continue;
            };
            for report in knowledge.reports {
                let figures = report.figures();
                link.send(Command::Reported { agent: report.agent, from, report: figures }).await;
            }
            for probe in knowledge.probes {
                link.send(Command::ProbeEnded { agent: probe.agent, succeeded: probe.succeeded }).await;
            }
        }
        anyhow::bail!("the subscription to what homes tell ended")
    }

    /// What homes ask of targets whose home is here.
    pub(crate) async fn run_grants(self) -> anyhow::Result<()> {
        let mut questions = self.client.subscribe(subjects::GRANTS).await?;
        while let Some(message) = questions.next().await {
            let agent = subjects::last_token(&message.subject).to_owned();
            let Some(home) = self.homes.of(&agent) else { continue };
            let Ok(question) = parse::<GrantQuestion>(&message) else { continue };
            let (respond_grant, granted) = oneshot::channel();
            home.send(Command::Grant { agent, ask: question.into(), respond: respond_grant }).await;
            if let Ok(grant) = granted.await {
                respond(&self.client, &message, &GrantAnswer::from(grant)).await;
            }
        }
        anyhow::bail!("the subscription to grants ended")
    }

    /// Operators' commands: every replica answers for what it owns.
    pub(crate) async fn run_operators(self) -> anyhow::Result<()> {
        let mut commands = self.client.subscribe(subjects::CONTROLS).await?;
        while let Some(message) = commands.next().await {
            let verb = subjects::last_token(&message.subject).to_owned();
            let result = self.operate(verb, &message).await;
            let replicas = self.standing.replicas.load(Ordering::Relaxed).max(1);
            let (body, error) = match result {
                Ok(body) => (body, None),
                Err(e) => (None, Some(e)),
            };
            let answer = Answer { replica: self.replica.clone(), replicas, body, error };
            respond(&self.client, &message, &answer).await;
        }
        anyhow::bail!("the subscription to operators' commands ended")
    }

    /// What the homes that are here say to a command; none where it is about an agent whose home is elsewhere.
    async fn operate(&self, verb: String, message: &Message) -> Result<Option<serde_json::Value>, String> {
        let operation =
            if message.payload.is_empty() { Operation::default() } else { parse::<Operation>(message)? };
        if !operation.agent.is_empty() {
            let Some(home) = self.homes.of(&operation.agent) else { return Ok(None) };
            if matches!(&*verb, "redrive" | "drop") {
                return self.order_letter(&home, &verb, operation).await.map(Some);
            }
            return ask_operate(&home, &verb, &operation).await.map(Some);
        }
        let mut lines = Vec::new();
        for (_, home) in self.homes.all() {
            let told = ask_operate(&home, &verb, &operation).await?;
            lines.extend(told.as_array().cloned().unwrap_or_default());
        }
        Ok(Some(lines.into()))
    }
}

impl Service {
    /// Hands a dead letter to the home of its source, which records what becomes of it.
    async fn order_letter(
        &self,
        home: &Link,
        verb: &str,
        operation: Operation,
    ) -> Result<serde_json::Value, String> {
        let Some(place) = operation.letter.clone() else {
            return Err("field `letter`: says which".to_owned());
        };
        let none =
            || format!("there is no dead letter {} any more; see: mesh dlq show {}", place.id, place.id);
        let stream = self.js.get_stream_no_info(streams::DLQ).await.map_err(|e| e.to_string())?;
        let message = stream.get_raw_message(place.sequence).await.map_err(|_| none())?;
        let letter: DeadLetter = serde_json::from_slice(&message.payload).map_err(|e| e.to_string())?;
        if letter.id != place.id || letter.source != operation.agent {
            return Err(none());
        }
        let (respond, told) = oneshot::channel();
        let (sequence, letter) = (place.sequence, Box::new(letter));
        let order = LetterOrder { drop: verb == "drop", letter, sequence, operation, respond };
        home.send(Command::Letter(order)).await;
        told.await.map_err(|_| STOPPING.to_owned())?
    }
}

async fn ask_operate(home: &Link, verb: &str, operation: &Operation) -> Result<serde_json::Value, String> {
    let (respond, told) = oneshot::channel();
    let operation = operation.clone();
    home.send(Command::Operate { verb: verb.to_owned(), operation, respond }).await;
    told.await.map_err(|_| STOPPING.to_owned())?
}

async fn cancel(home: &Link, source: String, message: &Message) -> Result<serde_json::Value, String> {
    let id = parse::<control::Cancel>(message)?.id.parse::<DispatchId>().map_err(|e| e.to_string())?;
    home.send(Command::Cancel { source, id }).await;
    Ok(serde_json::json!({}))
}

async fn extend(home: &Link, source: String, message: &Message) -> Result<serde_json::Value, String> {
    let wish = parse::<control::Extend>(message)?;
    let id = wish.id.parse::<DispatchId>().map_err(|e| e.to_string())?;
    let (respond, told) = oneshot::channel();
    home.send(Command::Extend { source, id, by: Duration::from_millis(wish.by_ms), respond }).await;
    let extended = told.await.map_err(|_| STOPPING.to_owned())?;
    serde_json::to_value(extended).map_err(|e| e.to_string())
}

/// What a home answers that ends before it answers.
pub(crate) const STOPPING: &str = "the home is moving; try again in a moment";

pub(crate) fn parse<T: DeserializeOwned>(message: &Message) -> Result<T, String> {
    serde_json::from_slice(&message.payload).map_err(|e| e.to_string())
}

fn refused(field: &str, message: String, fix: &str) -> Verdict {
    let problem = Problem { field: field.to_owned(), message, fix: fix.to_owned() };
    Verdict { accepted: false, problems: vec![problem], warnings: Vec::new(), terms: None }
}

pub(crate) async fn respond<T: serde::Serialize>(client: &Client, message: &Message, body: &T) {
    let Some(reply) = &message.reply else { return };
    let body = serde_json::to_vec(body).expect("plain data serialises");
    if let Err(e) = client.publish(reply.clone(), body.into()).await {
        tracing::warn!(error = %e, "an answer was not sent");
    }
}
