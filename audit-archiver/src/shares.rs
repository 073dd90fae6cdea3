//! Which shards this archiver works on, when there are several. Owns the advisory locks; archives nothing.
//!
//! Each archiver holds a shared lock that says it is there, and an exclusive one for each of its shards, up to its fair
//! share. A dead archiver's locks go with its connection, and the others take over. The rule it keeps: locks only save
//! wasted work. What is stored once is decided by the cursor.

use std::sync::Arc;
use std::time::Duration;

use governance::SHARDS;
use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::worker::Chain;

/// The first half of all lock keys: an arbitrary number that nothing else in the database uses.
const CLASS: i32 = 0x6d65_7368;
/// The second half of the key that all archivers share; shards are below it.
const PRESENT: i32 = 1_000;
/// The locks of an archiver that stands still go after this, though its connection lives: its kernel still answers for it.
const SILENCE_MAX: &str = "SET idle_session_timeout = '5s'";
/// How often shares are looked at; bounds how long a dead archiver's shards lie idle.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Keeps this process' share up to date until told to stop.
pub(crate) async fn keep(
    url: String,
    assigned: watch::Sender<Vec<u8>>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let session = stop.run_until_cancelled(session(&url, &assigned, &metrics)).await;
        if let Some(Err(error)) = session {
            // Locks went with the connection; somebody else may hold them already.
            assign(&assigned, &metrics, Vec::new());
            if error.is_closed() {
                // The server ends a session that was silent, as it should where this process stood still. That it is away is for
                // the next try to find out.
                tracing::info!(error = %Chain(&error), "the session of the shares was ended; a share is taken anew");
            } else if metrics.postgres_up.replace(false) {
                tracing::warn!(error = %Chain(&error), "PostgreSQL is away; the trail stays in Redis");
            }
            stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await;
        }
    }
}

async fn session(
    url: &str,
    assigned: &watch::Sender<Vec<u8>>,
    metrics: &Metrics,
) -> Result<(), tokio_postgres::Error> {
    let client = crate::postgres::connect(url, "audit-archiver shares").await?;
    client.batch_execute(SILENCE_MAX).await?;
    client.execute("SELECT pg_advisory_lock_shared($1, $2)", &[&CLASS, &PRESENT]).await?;
    let mut mine: Vec<u8> = Vec::new();
    // Archivers that begin their search at different shards seldom ask for the same one.
    let first = (std::process::id() % u32::from(SHARDS)) as u8;
    loop {
        let fair = usize::from(SHARDS).div_ceil(archivers(&client).await?.max(1));
        if mine.len() > fair {
            let surplus = mine.split_off(fair);
            assign(assigned, metrics, mine.clone());
            for shard in surplus {
                client.execute("SELECT pg_advisory_unlock($1, $2)", &[&CLASS, &i32::from(shard)]).await?;
            }
        } else {
            for shard in (0..SHARDS).map(|i| (first + i) % SHARDS) {
                if mine.len() < fair && !mine.contains(&shard) && try_lock(&client, shard).await? {
                    mine.push(shard);
                }
            }
            assign(assigned, metrics, mine.clone());
        }
        metrics.postgres_up.set(true);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn assign(assigned: &watch::Sender<Vec<u8>>, metrics: &Metrics, mine: Vec<u8>) {
    assigned.send_if_modified(|now| {
        let changed = *now != mine;
        if changed {
            tracing::info!(shards = mine.len(), "share of the shards changed");
            metrics.shards.set(mine.len() as i64);
            *now = mine;
        }
        changed
    });
}

async fn archivers(client: &Client) -> Result<usize, tokio_postgres::Error> {
    let query = "SELECT count(*) FROM pg_locks \
         WHERE locktype = 'advisory' AND classid = $1::int::oid AND objid = $2::int::oid AND granted \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let row = client.query_one(query, &[&CLASS, &PRESENT]).await?;
    Ok(row.get::<_, i64>(0) as usize)
}

async fn try_lock(client: &Client, shard: u8) -> Result<bool, tokio_postgres::Error> {
    let row = client.query_one("SELECT pg_try_advisory_lock($1, $2)", &[&CLASS, &i32::from(shard)]).await?;
    Ok(row.get(0))
}
