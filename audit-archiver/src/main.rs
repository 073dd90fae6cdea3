//! The `audit-archiver` process. Owns flags, logs and signals; the work is in the library.

use std::io::IsTerminal;

use anyhow::Context;
use audit_archiver::archive::{Archive, HoldRequest};
use audit_archiver::config::{Cli, Config, HoldVerb, HoldWish, Verb};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match cli.verb.unwrap_or(Verb::Run) {
        Verb::Run => audit_archiver::service::run(cli.config, until_told()?).await,
        Verb::Migrate => migrate(&cli.config).await,
        Verb::CheckpointKey => {
            let key = cli.config.checkpoint_key()?.context("name the key with --checkpoint-key-file")?;
            show(&key.public().to_string());
            Ok(())
        }
        Verb::Hold(verb) => hold(&cli.config, verb).await,
    }
}

/// A token that is cancelled by SIGTERM or Ctrl-C.
fn until_told() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("told to stop");
        told.cancel();
    });
    Ok(stop)
}

async fn migrate(config: &Config) -> anyhow::Result<()> {
    let mut client = audit_archiver::connect(&config.postgres_url, "audit-archiver migrate")
        .await
        .context("PostgreSQL does not answer")?;
    audit_archiver::migrate(&mut client).await?;
    Ok(())
}

async fn hold(config: &Config, verb: HoldVerb) -> anyhow::Result<()> {
    let archive = Archive::connect(&config.postgres_url).await?;
    match verb {
        HoldVerb::Add(HoldWish { from, to, conversation, agent, reason, by }) => {
            let id = archive.place_hold(&HoldRequest { from, to, conversation, agent, reason, by }).await?;
            show(&format!("{{\"id\":{id}}}"));
        }
        HoldVerb::List => {
            for hold in archive.holds().await? {
                show(&serde_json::to_string(&hold)?);
            }
        }
        HoldVerb::Release { id, by } => archive.release_hold(id, &by).await?,
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the answer of a command goes to stdout")]
fn show(line: &str) {
    println!("{line}");
}
