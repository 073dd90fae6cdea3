//! Publishing to inboxes and dead-letter queues until the broker has confirmed.
//!
//! Owns the retries; interprets nothing. The rule it keeps: a publish is tried under one message id until it is stored
//! or the fence refuses it.

use std::time::Duration;

use broker::{Fence, PublishError, Publisher};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use governance::AgentIx;
use tokio::sync::mpsc;

use crate::home::Input;

/// The pause before an unconfirmed publish is tried again.
const RETRY: Duration = Duration::from_millis(50);
/// The pause before a full inbox is tried again.
const RETRY_FULL: Duration = Duration::from_millis(100);
/// The pause before a publish that the broker refused for an unknown reason is tried again: someone should look.
const RETRY_REFUSED: Duration = Duration::from_secs(1);

/// One message to publish.
#[derive(Debug, Clone)]
pub(crate) struct Publish {
    /// The home's handle, handed back when it is stored.
    pub(crate) handle: usize,
    pub(crate) target: AgentIx,
    pub(crate) subject: String,
    pub(crate) message_id: String,
    pub(crate) fence: Option<Fence>,
    pub(crate) payload: Bytes,
}

/// Publishes what the home hands over, in that order, any number at once.
pub(crate) async fn run(
    publisher: Publisher,
    mut publishes: mpsc::Receiver<Publish>,
    home: mpsc::Sender<Input>,
) -> anyhow::Result<()> {
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            publish = publishes.recv() => match publish {
                None => return Ok(()),
                Some(publish) => {
                    // Sent before the next one is received, so that the order of the home is the order at the broker.
                    let ack = send(&publisher, &publish).await;
                    under_way.push(confirm(publisher.clone(), publish, ack, home.clone()));
                }
            },
            Some(stored) = under_way.next(), if !under_way.is_empty() => {
                if home.send(stored).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

async fn send(
    publisher: &Publisher,
    p: &Publish,
) -> impl Future<Output = Result<broker::PubAck, PublishError>> + Send + use<> {
    publisher.publish(p.subject.clone(), Some(&p.message_id), p.fence.as_ref(), p.payload.clone()).await
}

/// Waits for the ack of a publish and tries again until it is stored.
pub(crate) async fn confirm(
    publisher: Publisher,
    publish: Publish,
    ack: impl Future<Output = Result<broker::PubAck, PublishError>> + Send,
    home: mpsc::Sender<Input>,
) -> Input {
    let mut result = ack.await;
    let mut was_full = false;
    loop {
        let pause = match result {
            Ok(_) => return Input::Published { handle: publish.handle, target: publish.target, was_full },
            Err(PublishError::Fenced) => {
                return Input::Deposed("an inbox stream refused the fence".to_owned());
            }
            Err(PublishError::Full) => {
                if !was_full && home.send(Input::InboxFull(publish.target)).await.is_err() {
                    return Input::Deposed("the home ended".to_owned());
                }
                was_full = true;
                RETRY_FULL
            }
            Err(PublishError::Unconfirmed(why)) => {
                tracing::debug!(subject = publish.subject, why, "a publish was not confirmed; trying again");
                RETRY
            }
            Err(PublishError::Refused(why)) => {
                tracing::error!(subject = publish.subject, why, "the broker refuses a message; trying again");
                RETRY_REFUSED
            }
        };
        tokio::time::sleep(pause).await;
        result = send(&publisher, &publish).await.await;
    }
}
