//! Connecting. Owns the options that every connection of the mesh has in common.

use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, ServerAddr};

use crate::Error;

/// Messages that one subscription may hold before the client drops: pulls are bounded by credits far below it.
const SUBSCRIPTION_CAPACITY: usize = 16_384;
/// The pause between attempts to reconnect: short, as a broker's restart should be noticed within a fraction of a second.
const RECONNECT_DELAY: Duration = Duration::from_millis(100);

/// Connects to the broker under a name that its operators see. Reconnects for ever once it was connected.
///
/// The address may be a list, with commas between the nodes of a cluster: any one of them will do, now and after a loss.
///
/// # Errors
/// When the first connection fails.
pub async fn connect(url: &str, name: &str) -> Result<Client, Error> {
    let failed = |source| Error::Connect { url: without_credentials(url), source };
    let servers = servers(url).map_err(|e| failed(e.into()))?;
    ConnectOptions::new()
        .name(name)
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .max_reconnects(None)
        .reconnect_delay_callback(|_| RECONNECT_DELAY)
        .ping_interval(Duration::from_secs(10))
        .event_callback(|event| async move { report(&event) })
        .connect(servers)
        .await
        .map_err(|e| failed(e.into()))
}

/// The servers that an address names: one, or several with commas between them.
///
/// # Errors
/// When one of them is not an address.
pub fn servers(url: &str) -> std::io::Result<Vec<ServerAddr>> {
    url.split(',').map(str::trim).filter(|one| !one.is_empty()).map(str::parse).collect()
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

/// An address as it may be shown: what stands before `@` is secret, in each part of a list.
fn without_credentials(url: &str) -> String {
    let shown: Vec<String> = url
        .split(',')
        .map(|one| match (one.split_once("://"), one.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
            (None, Some((_, host))) => host.to_owned(),
            (_, None) => one.to_owned(),
        })
        .collect();
    shown.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_name_the_nodes_of_a_cluster() {
        let ports = |url: &str| servers(url).unwrap().iter().map(ServerAddr::port).collect::<Vec<_>>();
        assert_eq!(ports("nats://127.0.0.1:4222"), [4222]);
        assert_eq!(ports("nats://a:1, nats://b:2,c:3"), [1, 2, 3]);
        assert!(servers("nats://a:1:2").is_err());
    }

    #[test]
    fn what_is_shown_of_an_address_has_no_secrets() {
        assert_eq!(without_credentials("nats://me:secret@a:1,nats://t@b:2"), "nats://a:1,nats://b:2");
        assert_eq!(without_credentials("me:secret@a:1,b:2"), "a:1,b:2");
        assert_eq!(without_credentials("nats://a:1"), "nats://a:1");
    }
}
