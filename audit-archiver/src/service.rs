//! The archiver as a process. Owns the start, the tasks and their end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::Writer;
use crate::config::Config;
use crate::keeper::Keeper;
use crate::metrics::Metrics;
use crate::worker::{Chain, Worker};
use crate::{http, schema, shares};

/// The pause between two tries to reach PostgreSQL at the start.
const START_PAUSE: Duration = Duration::from_secs(1);

/// Archives until told to stop.
///
/// # Errors
/// When the configuration contradicts itself, the address for HTTP cannot be bound, the schema cannot be migrated, or a
/// task ends of its own.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    config.check().map_err(anyhow::Error::msg)?;
    let (metrics, registry) = Metrics::registered();
    let mut tasks: JoinSet<(&'static str, anyhow::Result<()>)> = JoinSet::new();
    if let Some(address) = &config.http {
        let file = config.http_addr_file.as_deref();
        let server = http::serve(address, file, Arc::clone(&metrics), registry, stop.clone()).await?;
        tasks.spawn(async move { ("http", server.await.map_err(Into::into)) });
    }
    if !migrate(&config, &stop).await? {
        return Ok(());
    }
    metrics.postgres_up.set(true);
    metrics.postgres_stores.set(true);
    let (assigned, shards) = watch::channel(Vec::new());
    let keep = shares::keep(config.postgres_url.clone(), assigned, Arc::clone(&metrics), stop.clone());
    tasks.spawn(async move {
        keep.await;
        ("shares", Ok(()))
    });
    for index in 0..config.workers {
        let (config, assigned) = (config.clone(), shards.clone());
        let worker = Worker { config, index, assigned, metrics: Arc::clone(&metrics), stop: stop.clone() };
        tasks.spawn(async move {
            worker.run().await;
            ("worker", Ok(()))
        });
    }
    if let Some((folder, key)) = config.checkpoints_and_key()? {
        let writer = Writer {
            folder,
            key,
            every: config.checkpoint_every,
            redis_url: config.redis_url.clone(),
            metrics: Arc::clone(&metrics),
            stop: stop.clone(),
        };
        tasks.spawn(async move {
            writer.run().await;
            ("checkpoints", Ok(()))
        });
    }
    let keeper = Keeper { config, assigned: shards, metrics, stop: stop.clone() };
    tasks.spawn(async move {
        keeper.run().await;
        ("keeper", Ok(()))
    });
    supervise(tasks, stop).await
}

/// Brings the schema to the newest version, as soon as PostgreSQL is there; false where told to stop before that.
async fn migrate(config: &Config, stop: &CancellationToken) -> anyhow::Result<bool> {
    loop {
        let attempt = async {
            let mut client = crate::postgres::connect(&config.postgres_url, "audit-archiver migrate").await?;
            schema::migrate(&mut client).await
        };
        match stop.run_until_cancelled(attempt).await {
            None => return Ok(false),
            Some(Ok(())) => return Ok(true),
            Some(Err(error @ schema::Error::Migration(_))) => {
                return Err(error).context("the archive is unusable");
            }
            Some(Err(schema::Error::Postgres(error))) => {
                tracing::warn!(error = %Chain(&error), "PostgreSQL is away; the trail stays in Redis");
                if stop.run_until_cancelled(tokio::time::sleep(START_PAUSE)).await.is_none() {
                    return Ok(false);
                }
            }
        }
    }
}

/// Waits for the tasks. One that ends before it was told to takes all others with it: half an archiver is worse than
/// one that is started again.
async fn supervise(
    mut tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut result = Ok(());
    while let Some(ended) = tasks.join_next().await {
        let told = stop.is_cancelled();
        stop.cancel();
        match ended {
            Ok((name, Err(error))) if result.is_ok() => result = Err(error.context(name)),
            Ok((name, Ok(()))) if !told && result.is_ok() => {
                result = Err(anyhow::anyhow!("{name} ended by itself"))
            }
            Ok(_) => {}
            Err(panic) if result.is_ok() => result = Err(panic.into()),
            Err(_) => {}
        }
    }
    result
}
