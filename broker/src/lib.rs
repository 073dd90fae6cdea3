//! Thin I/O on JetStream: connecting, ensuring streams and consumers, pulling with exact credits, publishing with acks.
//!
//! Owns how the mesh talks to its broker; knows no rule and no payload. The rule it keeps: nothing is reported as stored
//! that the broker has not confirmed, and nothing unconfirmed is reported as refused.
#![warn(missing_docs)]

mod connect;
mod ensure;
mod publisher;
mod pump;

pub use connect::{connect, servers};
pub use ensure::{
    Storage, delete_former_consumers, delete_source_consumers, ensure, ensure_inbox_consumers,
    ensure_source_consumers,
};
pub use publisher::{Fence, PubAck, PublishError, Publisher};
pub use pump::{Ended, Message, Pulled, Pump};

use std::time::Duration;

use async_nats::Client;
use bytes::Bytes;

/// Why the broker could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Check the address and that the server runs.
    #[error("failed to connect to the broker at {url}")]
    Connect {
        /// The address without its credentials.
        url: String,
        /// What the client says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The broker refused or did not answer in time.
    #[error("failed to {what}")]
    Api {
        /// What was attempted.
        what: String,
        /// What the client says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

pub(crate) fn api<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    what: impl Into<String>,
) -> impl FnOnce(E) -> Error {
    let what = what.into();
    move |source| Error::Api { what, source: source.into() }
}

/// Acknowledges a message: it is done with. Sent without waiting; a lost one leads to a redelivery.
///
/// # Errors
/// When the connection is closed for good.
pub async fn ack(client: &Client, ack: &str) -> Result<(), Error> {
    send(client, ack, Bytes::from_static(b"+ACK")).await
}

/// Gives a message back, to be delivered again after `delay`.
///
/// # Errors
/// When the connection is closed for good.
pub async fn nak(client: &Client, ack: &str, delay: Duration) -> Result<(), Error> {
    send(client, ack, Bytes::from(format!("-NAK {{\"delay\": {}}}", delay.as_nanos()))).await
}

/// Says that a message is still being worked on: its time to redelivery begins anew.
///
/// # Errors
/// When the connection is closed for good.
pub async fn in_progress(client: &Client, ack: &str) -> Result<(), Error> {
    send(client, ack, Bytes::from_static(b"+WPI")).await
}

/// How often a client has connected so far.
#[must_use]
pub fn connection(client: &Client) -> u64 {
    client.statistics().connects.load(std::sync::atomic::Ordering::Relaxed)
}

async fn send(client: &Client, ack: &str, word: Bytes) -> Result<(), Error> {
    client.publish(ack.to_owned(), word).await.map_err(api("acknowledge"))
}
