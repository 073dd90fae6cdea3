//! Connections to PostgreSQL. Owns how they are made and how a dead peer is noticed; knows no table.

use std::time::Duration;

use tokio_postgres::{Client, Config, NoTls};

/// A peer that does not answer for so long is dead: its locks and its half of a transaction go with it.
const PEER_SILENCE: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects, under a name that `pg_stat_activity` shows.
///
/// # Errors
/// When the address is wrong or the server does not answer.
pub async fn connect(url: &str, name: &str) -> Result<Client, tokio_postgres::Error> {
    let mut config: Config = url.parse()?;
    config
        .application_name(name)
        .connect_timeout(CONNECT_TIMEOUT)
        .keepalives(true)
        .keepalives_idle(PEER_SILENCE)
        .keepalives_interval(Duration::from_secs(2))
        .tcp_user_timeout(PEER_SILENCE);
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to PostgreSQL ended");
        }
    });
    // The server watches its side of a lost machine in the same way, so that locks do not outlive their holder.
    client
        .batch_execute(
            "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3",
        )
        .await?;
    Ok(client)
}
