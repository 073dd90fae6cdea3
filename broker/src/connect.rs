//! Connecting. Owns the options that every connection of the mesh has in common.

use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event};

use crate::Error;

/// Messages that one subscription may hold before the client drops: pulls are bounded by credits far below it.
const SUBSCRIPTION_CAPACITY: usize = 16_384;
/// The pause between attempts to reconnect: short, as a broker's restart should be noticed within a fraction of a second.
const RECONNECT_DELAY: Duration = Duration::from_millis(100);

/// Connects to the broker under a name that its operators see. Reconnects for ever once it was connected.
///
/// # Errors
/// When the first connection fails.
pub async fn connect(url: &str, name: &str) -> Result<Client, Error> {
    ConnectOptions::new()
        .name(name)
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .max_reconnects(None)
        .reconnect_delay_callback(|_| RECONNECT_DELAY)
        .ping_interval(Duration::from_secs(10))
        .event_callback(|event| async move { report(&event) })
        .connect(url)
        .await
        .map_err(|e| Error::Connect { url: without_credentials(url), source: e.into() })
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a foreign enum, and any further event is worth the same line"
)]
fn report(event: &Event) {
    match event {
        Event::Connected => tracing::debug!("connected to the broker"),
        Event::SlowConsumer(id) => {
            tracing::warn!(subscription = id, "messages dropped by the client; they come again")
        }
        other => tracing::info!(event = %other, "the connection to the broker changed"),
    }
}

/// An address as it may be shown: what stands before `@` is secret.
fn without_credentials(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        _ => url.to_owned(),
    }
}
