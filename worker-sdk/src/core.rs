//! The core of an agent: what its tasks share. Owns the state and the small questions to coordinators; the work is done
//! in the files that own it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::Client;
use async_nats::client::RequestErrorKind;
use bytes::Bytes;
use governance::{AgentId, DispatchId, InstanceId, Registration, Timestamp};
use protocol::control::{Beat, Cancel, Extend, Extended, OpenAnswer, OpenQuestion, Progress, Verdict};
use protocol::subjects;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::completer::Completer;
use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::handler::Handlers;
use crate::held::Holding;
use crate::ledger::Ledger;
use crate::outbox::Outbox;
use crate::pulse::Pulse;
use crate::retry::Backoff;
use crate::signals::Signals;
use crate::slots::Slots;
use crate::supervise::Supervisor;
use crate::waiters::Waiters;

/// How long one question to a coordinator may take before it is asked again.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// How long questions are repeated when no coordinator answers: longer than a take-over.
const QUESTION_PATIENCE: Duration = Duration::from_secs(10);
/// The field of a progress note by which an instance tells the waiting caller of a later deadline.
pub(crate) const DEADLINE_NOTE: &str = "$deadline_ns";

/// What the tasks of one agent share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) name: AgentId,
    pub(crate) instance: InstanceId,
    pub(crate) client: Client,
    pub(crate) publisher: broker::Publisher,
    pub(crate) registration: Registration,
    pub(crate) handlers: Handlers,
    pub(crate) outbox: Outbox,
    pub(crate) waiters: Waiters,
    pub(crate) completer: Completer,
    pub(crate) ledger: Ledger,
    pub(crate) slots: Arc<Slots>,
    pub(crate) signals: Signals,
    pub(crate) supervisor: Supervisor,
    /// The inbox messages that are held.
    pub(crate) holding: Holding,
    /// Held by the one dispatch that its home said is to be run alone.
    pub(crate) alone: Arc<tokio::sync::Mutex<()>>,
    /// Signs of life of the runtime that handlers run on.
    pub(crate) pulse: Pulse,
    /// Open dispatches of all inbox messages that are held.
    pub(crate) held: Arc<AtomicUsize>,
    /// It takes no new work.
    pub(crate) draining: CancellationToken,
    /// Nothing runs any more and every completion is confirmed.
    pub(crate) drained: CancellationToken,
    closed: AtomicBool,
}

impl Core {
    pub(crate) fn new(
        name: AgentId,
        instance: InstanceId,
        client: Client,
        publisher: broker::Publisher,
        registration: Registration,
        handlers: Handlers,
    ) -> Self {
        Self {
            name,
            instance,
            client,
            publisher,
            slots: Arc::new(Slots::new(registration.max_concurrent)),
            registration,
            handlers,
            outbox: Outbox::new(),
            waiters: Waiters::default(),
            completer: Completer::default(),
            ledger: Ledger::default(),
            signals: Signals::new(),
            supervisor: Supervisor::default(),
            holding: Holding::default(),
            alone: Arc::default(),
            pulse: Pulse::new(),
            held: Arc::default(),
            draining: CancellationToken::new(),
            drained: CancellationToken::new(),
            closed: AtomicBool::new(false),
        }
    }

    /// Whether it sends nothing more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire) || self.supervisor.is_stopped()
    }

    /// Sends nothing more, and stops every task.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.supervisor.stop();
        self.waiters.clear();
    }

    async fn publish(&self, subject: String, message: &impl Serialize) -> Result<(), Error> {
        let bytes = serde_json::to_vec(message).expect("plain data serialises");
        let sent = self.client.publish(subject, bytes.into()).await;
        sent.map_err(|e| Error::caused(ErrorKind::Connection, "the connection is closed", e))
    }

    /// Asks coordinators and reads the answer; repeats the question while nobody answers.
    async fn ask<A: DeserializeOwned>(
        &self,
        subject: String,
        question: &impl Serialize,
        patience: Duration,
    ) -> Result<A, Error> {
        let bytes = Bytes::from(serde_json::to_vec(question).expect("plain data serialises"));
        let begun = tokio::time::Instant::now();
        let mut backoff = Backoff::default();
        loop {
            let request = async_nats::Request::new().payload(bytes.clone()).timeout(Some(QUESTION_TIMEOUT));
            match self.client.send_request(subject.clone(), request).await {
                Ok(answer) => match read_answer(&answer.payload) {
                    Ok(answer) => return Ok(answer),
                    Err(error) if begun.elapsed() > patience => return Err(error),
                    Err(error) => tracing::debug!(subject, %error, "no good answer; asking again"),
                },
                Err(e) if begun.elapsed() > patience => {
                    let what = match e.kind() {
                        RequestErrorKind::NoResponders => "no coordinator answers",
                        RequestErrorKind::TimedOut => "no coordinator answered in time",
                        RequestErrorKind::InvalidSubject
                        | RequestErrorKind::MaxPayloadExceeded
                        | RequestErrorKind::Other => "a coordinator could not be asked",
                    };
                    return Err(Error::caused(ErrorKind::Connection, what, e));
                }
                Err(e) => tracing::debug!(subject, error = %e, "no answer; asking again"),
            }
            backoff.wait().await;
        }
    }

    /// Registers, and takes on the terms that hold for the agent.
    pub(crate) async fn register(&self, patience: Duration) -> Result<Verdict, Error> {
        let begun = tokio::time::Instant::now();
        let mut backoff = Backoff::default();
        let verdict = loop {
            let left = patience.saturating_sub(begun.elapsed());
            let verdict: Verdict = self.ask(subjects::REGISTER.into(), &self.registration, left).await?;
            if verdict.accepted {
                break verdict;
            }
            // A coordinator that is starting or stopping finds fault with itself, not with the registration.
            let passing = verdict.problems.iter().all(|p| p.field == "mesh");
            if !passing || begun.elapsed() > patience {
                return Err(Error::refused(verdict.problems));
            }
            backoff.wait().await;
        };
        for w in &verdict.warnings {
            tracing::info!(agent = %self.name, field = w.field, problem = w.message, fix = w.fix, "registered with a warning");
        }
        if let Some(terms) = &verdict.terms {
            self.outbox.set_rate(terms.rate_per_s);
        }
        Ok(verdict)
    }

    /// Withdraws a dispatch of its own.
    pub(crate) async fn withdraw(&self, id: DispatchId) -> Result<(), Error> {
        let question = Cancel { id: id.to_string() };
        let _: Value = self.ask(subjects::cancel(&self.name), &question, QUESTION_PATIENCE).await?;
        Ok(())
    }

    /// Asks the home of a dispatch for more time; none where it has ended.
    pub(crate) async fn ask_for_time(
        &self,
        context: &Context,
        by: Duration,
    ) -> Result<Option<Timestamp>, Error> {
        let by_ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        let question = Extend { id: context.id().to_string(), by_ms };
        let subject = subjects::extend(&context.0.row.source);
        let answer: Extended = self.ask(subject, &question, QUESTION_PATIENCE).await?;
        if let Some(deadline) = answer.deadline_ns {
            self.tell_progress(context, serde_json::json!({ DEADLINE_NOTE: deadline })).await?;
        }
        Ok(answer.deadline_ns.map(Timestamp))
    }

    /// Tells the instance that waits for a dispatch how it goes.
    pub(crate) async fn tell_progress(&self, context: &Context, note: Value) -> Result<(), Error> {
        let id = context.id();
        let subject = subjects::progress(&context.0.row.source, id.instance);
        self.publish(subject, &Progress { id: id.to_string(), note }).await
    }

    /// Asks the home of a source which of its dispatches are still open, and may be run here.
    pub(crate) async fn ask_open(
        &self,
        source: &AgentId,
        question: &OpenQuestion,
    ) -> Result<OpenAnswer, Error> {
        self.ask(subjects::open(source), question, QUESTION_PATIENCE).await
    }

    /// Says that the instance lives, and what it does.
    pub(crate) async fn beat(&self, leaving: bool) -> Result<(), Error> {
        let (subject, beat) = self.heartbeat(leaving);
        let sent = self.client.publish(subject, beat).await;
        sent.map_err(|e| Error::caused(ErrorKind::Connection, "the connection is closed", e))
    }

    /// A heartbeat and where it goes, for whichever connection takes it.
    pub(crate) fn heartbeat(&self, leaving: bool) -> (String, Bytes) {
        let sla = Duration::from_millis(self.registration.sla_p95_ms.into());
        let running = self.slots.running();
        let draining = self.draining.is_cancelled();
        let beat = Beat {
            instance: self.instance.to_string(),
            slots: match (self.handlers.is_empty(), draining) {
                (true, _) => 0,
                (false, true) => running,
                (false, false) => self.slots.limit(),
            },
            running,
            running_over: self.ledger.running_over(sla.mul_f64(OVER_SLA)),
            leaving,
        };
        let bytes = serde_json::to_vec(&beat).expect("plain data serialises");
        (subjects::beat(&self.name), bytes.into())
    }
}

/// Reads what a coordinator answered; one that cannot answer says why in `error`.
fn read_answer<A: DeserializeOwned>(payload: &[u8]) -> Result<A, Error> {
    #[derive(serde::Deserialize)]
    struct Excuse {
        error: String,
    }
    if let Ok(Excuse { error }) = serde_json::from_slice(payload) {
        return Err(Error::new(ErrorKind::Connection, format!("a coordinator cannot answer: {error}")));
    }
    serde_json::from_slice(if payload.is_empty() { b"null" } else { payload })
        .map_err(|e| Error::caused(ErrorKind::Encoding, "a coordinator's answer cannot be read", e))
}

/// A run counts as over its SLA beyond this many times of it.
const OVER_SLA: f64 = 1.2;
