//! The JSON door, by hand: what a stranger with nothing but a NATS client can do.

use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{self, Context};
use async_nats::{Client, HeaderMap};
use futures::StreamExt;
use protocol::control::{Beat, Verdict};
use protocol::{streams, subjects};
use serde_json::Value;
use worker_sdk::{InstanceId, Priority};

use crate::{PATIENCE, Stage, eventually};

const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A bare connection.
#[derive(Debug, Clone)]
pub struct Door {
    /// Core NATS.
    pub nats: Client,
    /// Its streams.
    pub js: Context,
}

impl Door {
    /// A connection of its own, so that nothing of the SDK is on it.
    ///
    /// # Panics
    /// When the broker does not answer.
    pub async fn open(stage: &Stage) -> Self {
        let servers = broker::servers(&stage.settings.nats_url).expect("the broker has an address");
        let nats = async_nats::connect(servers).await.expect("the broker under test answers");
        Self { js: jetstream::new(nats.clone()), nats }
    }

    /// Registers an agent, and gives the verdict.
    ///
    /// # Panics
    /// When nobody answers.
    pub async fn register(&self, registration: &Value) -> Verdict {
        let body = serde_json::to_vec(registration).expect("a value serialises");
        eventually("an answer to a registration", PATIENCE, || async {
            let asked = self.nats.request(subjects::REGISTER, body.clone().into());
            let answer = tokio::time::timeout(ANSWER_WITHIN, asked).await.ok()?.ok()?;
            let verdict: Verdict = serde_json::from_slice(&answer.payload).expect("a verdict is JSON");
            // A problem of the mesh itself is to be tried again.
            verdict.problems.iter().all(|p| p.field != "mesh").then_some(verdict)
        })
        .await
    }

    /// Says that an instance of an agent lives, with so many slots.
    ///
    /// # Panics
    /// When the connection is closed.
    pub async fn beat(&self, agent: &str, slots: u32) {
        let instance = InstanceId(0xaa).to_string();
        let beat = Beat { instance, slots, running: 0, running_over: 0, leaving: false };
        let body = serde_json::to_vec(&beat).expect("plain data serialises");
        self.nats.publish(format!("mesh.beat.{agent}"), body.into()).await.expect("the connection is open");
        self.nats.flush().await.expect("the connection is open");
    }

    /// Publishes bytes on a subject of a stream, and gives the sequence they are stored under.
    ///
    /// # Errors
    /// When the broker refuses them.
    pub async fn publish(
        &self,
        subject: &str,
        body: impl Into<bytes::Bytes>,
    ) -> Result<u64, jetstream::context::PublishError> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", uuid::Uuid::new_v4().to_string());
        let sent = self.js.publish_with_headers(subject.to_owned(), headers, body.into()).await?;
        Ok(sent.await?.sequence)
    }

    /// Takes the next message of an agent's inbox, and holds it.
    ///
    /// # Panics
    /// When there is none soon.
    pub async fn take(&self, agent: &str, priority: Priority) -> jetstream::Message {
        let stream = self.js.get_stream(streams::inboxes(priority)).await.expect("the inboxes are there");
        let consumer: PullConsumer = stream.get_consumer(agent).await.expect("the agent is registered");
        eventually("a message in the inbox", PATIENCE, || async {
            let mut batch = consumer
                .fetch()
                .max_messages(1)
                .expires(Duration::from_secs(1))
                .messages()
                .await
                .expect("the inbox can be read");
            batch.next().await.map(|message| message.expect("the inbox can be read"))
        })
        .await
    }

    /// How many messages of an agent's inbox nobody has taken, and how many are held.
    ///
    /// # Panics
    /// When the agent has no inbox.
    pub async fn inbox(&self, agent: &str, priority: Priority) -> (u64, usize) {
        let stream = self.js.get_stream(streams::inboxes(priority)).await.expect("the inboxes are there");
        let mut consumer: PullConsumer = stream.get_consumer(agent).await.expect("the agent is registered");
        let info = consumer.info().await.expect("the broker answers");
        (info.num_pending, info.num_ack_pending)
    }
}
