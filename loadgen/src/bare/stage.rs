//! One pulling stage of a bare chain. Owns the credits of its pulls and the acknowledgements it waits for.
//!
//! The rule it keeps: a message is acknowledged only after the broker has confirmed what was made of it.

use std::collections::VecDeque;

use anyhow::{Context as _, bail};
use async_nats::{Client, Message, Subject, Subscriber};
use bytes::Bytes;
use futures::StreamExt as _;

/// Messages of one pull.
const BATCH: usize = 256;
/// Pulls that stand at the broker, so that it never waits for one.
const PULLS: usize = 8;
/// A bare run is far shorter, so that pulls end by being filled.
const EXPIRES_NS: u64 = 3_600_000_000_000;
const ACK: Bytes = Bytes::from_static(b"+ACK");

/// Pulls from one consumer over one subscription, on which publish acknowledgements arrive as well.
pub(crate) struct Stage {
    client: Client,
    inbox: String,
    messages: Subscriber,
    next_pull: String,
    /// Messages until the next pull is due.
    until_pull: usize,
    /// What is acknowledged when the broker confirms what was republished, in the order of publishing.
    republished: VecDeque<Subject>,
}

/// What came.
pub(crate) enum Came {
    /// A message that was pulled.
    Pulled(Message),
    /// The oldest republished message was confirmed and acknowledged.
    Confirmed,
}

impl Stage {
    /// Subscribes, and pulls from the consumer that has the name of its stream.
    pub(crate) async fn start(client: Client, stream: &str) -> anyhow::Result<Self> {
        let inbox = client.new_inbox();
        let messages = client.subscribe(format!("{inbox}.>")).await.context("failed to subscribe")?;
        let next_pull = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{stream}");
        let stage =
            Self { client, inbox, messages, next_pull, until_pull: BATCH, republished: VecDeque::new() };
        for _ in 0..PULLS {
            stage.pull().await?;
        }
        Ok(stage)
    }

    async fn pull(&self) -> anyhow::Result<()> {
        let request = format!("{{\"batch\":{BATCH},\"expires\":{EXPIRES_NS}}}");
        let reply = format!("{}.pull", self.inbox);
        self.client
            .publish_with_reply(self.next_pull.clone(), reply, request.into())
            .await
            .context("failed to pull")
    }

    /// Waits for what comes next.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Came> {
        let message = self.messages.next().await.context("the subscription ended")?;
        self.take(message).await
    }

    async fn take(&mut self, message: Message) -> anyhow::Result<Came> {
        if let Some(status) = message.status {
            bail!("the broker ended a pull: {status} {}", message.description.unwrap_or_default());
        }
        if message.subject.starts_with(self.inbox.as_str()) {
            check_stored(&message)?;
            let ack = self.republished.pop_front().context("a confirmation of nothing")?;
            self.acknowledge(ack).await?;
            return Ok(Came::Confirmed);
        }
        self.until_pull -= 1;
        if self.until_pull == 0 {
            self.until_pull = BATCH;
            self.pull().await?;
        }
        Ok(Came::Pulled(message))
    }

    /// Publishes durably what was made of a message, which is acknowledged once the broker has confirmed it.
    pub(crate) async fn republish(&mut self, subject: &'static str, message: Message) -> anyhow::Result<()> {
        let ack = message.reply.context("a pulled message without an acknowledgement subject")?;
        let reply = format!("{}.ack", self.inbox);
        self.client
            .publish_with_reply(subject, reply, message.payload)
            .await
            .context("failed to republish")?;
        self.republished.push_back(ack);
        Ok(())
    }

    /// Acknowledges a message that was pulled.
    pub(crate) async fn acknowledge(&self, ack: Subject) -> anyhow::Result<()> {
        self.client.publish(ack, ACK).await.context("failed to acknowledge")
    }
}

/// Whether a publish acknowledgement says that the message is stored.
pub(crate) fn check_stored(message: &Message) -> anyhow::Result<()> {
    if message.status.is_some() || message.payload.windows(7).any(|w| w == b"\"error\"") {
        bail!("the broker did not store a message: {}", String::from_utf8_lossy(&message.payload));
    }
    Ok(())
}
