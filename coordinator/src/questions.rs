//! Questions of instances: is a dispatch, which came to them once more, still open?
//!
//! Owns the certainty of the answer; what is open the home says. The rule it keeps: "open" is permission to run, so it is
//! said only by a home that has applied every completion that was stored when the question came, and that is still the home
//! after that. A home that stood still, and does not know of its successor yet, says nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::{Client, Message};
use governance::{AgentId, Priority, shard_of};
use home::takeover::World as _;
use home::{Asking, Command};
use protocol::control::OpenQuestion;
use protocol::{streams, subjects};
use tokio::sync::{mpsc, oneshot};

use crate::homes::{Homes, Link};
use crate::service::{STOPPING, parse, respond};
use crate::world::Servers;

/// Questions that wait: as many as instances of one large agent ask at once; more are asked again.
pub(crate) const WAITING_MAX: usize = 1_024;
/// The pause before it is looked again whether earlier completions are settled.
const LOOK: Duration = Duration::from_millis(10);
/// How long an answer may take, so that a home which is stuck holds up no question to another one: who asked does so again after
/// two seconds.
const ANSWER_MAX: Duration = Duration::from_millis(1_500);

/// What answering needs.
#[derive(Debug)]
pub(crate) struct Questions {
    pub(crate) client: Client,
    pub(crate) js: Context,
    pub(crate) homes: Homes,
    pub(crate) servers: Servers,
}

impl Questions {
    /// Answers what comes, everything that waits at once: questions about one source share the look at its completions.
    pub(crate) async fn run(self, mut waiting: mpsc::Receiver<Message>) -> anyhow::Result<()> {
        let mut messages = Vec::with_capacity(WAITING_MAX);
        while waiting.recv_many(&mut messages, WAITING_MAX).await > 0 {
            let mut by_source: BTreeMap<String, Vec<Message>> = BTreeMap::new();
            for message in messages.drain(..) {
                let source = subjects::last_token(&message.subject).to_owned();
                by_source.entry(source).or_default().push(message);
            }
            let answers = by_source.iter().map(|(source, asked)| self.answer(source, asked));
            futures::future::join_all(answers).await;
        }
        Ok(())
    }

    async fn answer(&self, source: &str, asked: &[Message]) {
        let answered = tokio::time::timeout(ANSWER_MAX, self.ask_home(source, asked)).await;
        let Err(why) = answered.unwrap_or_else(|late| Err(late.into())) else { return };
        let why = why.to_string();
        tracing::debug!(source, why, "a question is not answered");
        for message in asked {
            respond(&self.client, message, &serde_json::json!({"error": why})).await;
        }
    }

    async fn ask_home(&self, source: &str, asked: &[Message]) -> anyhow::Result<()> {
        let Some(home) = self.homes.of(source) else { anyhow::bail!(STOPPING) };
        let id = AgentId::new(source)?;
        self.settled(&id, &home).await?;
        let mut answers = Vec::with_capacity(asked.len());
        for message in asked {
            answers.push(open(&home, message).await);
        }
        // What it said counts only if nobody was home meanwhile: a successor's completions it would not know.
        let head = self.servers.head(shard_of(source)).await?;
        anyhow::ensure!(head.id.epoch == home.epoch, STOPPING);
        for (message, answer) in asked.iter().zip(answers) {
            match answer {
                Ok(answer) => respond(&self.client, message, &answer).await,
                Err(why) => respond(&self.client, message, &serde_json::json!({"error": why})).await,
            }
        }
        Ok(())
    }

    /// Waits until the home has settled every completion of a source that is stored at this moment.
    async fn settled(&self, source: &AgentId, home: &Link) -> anyhow::Result<()> {
        let done = self.js.get_stream(streams::DONE).await?;
        let stored = done.cached_info().state.last_sequence;
        let classes = Priority::ALL.iter().map(|p| {
            let (done, name) = (&done, streams::done_consumer(*p, source, home.epoch));
            async move {
                loop {
                    let consumer = done.consumer_info(&name).await?;
                    let none_left = consumer.num_pending == 0 && consumer.num_ack_pending == 0;
                    if none_left || consumer.ack_floor.stream_sequence >= stored {
                        return anyhow::Ok(());
                    }
                    tokio::time::sleep(LOOK).await;
                }
            }
        });
        futures::future::try_join_all(classes).await.map(drop)
    }
}

async fn open(home: &Link, message: &Message) -> Result<serde_json::Value, String> {
    let asking = Asking::read(parse::<OpenQuestion>(message)?)?;
    let (respond, told) = oneshot::channel();
    home.send(Command::Open { asking, respond }).await;
    let answer = told.await.map_err(|_| STOPPING.to_owned())?;
    serde_json::to_value(answer).map_err(|e| e.to_string())
}
