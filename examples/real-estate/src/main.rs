//! The program: runs the agents, or plays the demo and prints its report. Owns process concerns only: logging, signals,
//! exit codes. Rule kept: the report goes to stdout, everything else to stderr.

use std::fs;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser;
use real_estate::{
    agents::{self, Crew},
    config::{Cli, Command, Common, Demo, Peak},
    demo, peak,
    platform::Platform,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let colours = stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(stderr).init();
    let ended = match Cli::parse().command {
        Command::Demo(demo) => play(&demo).await,
        Command::Peak(wish) => rush(&wish).await,
        Command::LeadBot(bot) => peak::serve(&bot, stopped()).await.map(|()| ExitCode::SUCCESS),
        Command::Agents(common) => serve(&common, &agents::NAMES).await,
        Command::Agent { name, common } => serve(&common, &[name.as_str()]).await,
    };
    ended.unwrap_or_else(|error| {
        // Where stderr is gone, the exit code has to do.
        drop(writeln!(stderr(), "real-estate: {error:#}"));
        ExitCode::FAILURE
    })
}

async fn play(demo: &Demo) -> anyhow::Result<ExitCode> {
    let report = demo::run(demo).await?;
    stdout().write_all(report.text().as_bytes()).context("the report cannot be printed")?;
    if let Some(path) = &demo.json {
        let json = serde_json::to_string_pretty(&report)?;
        fs::write(path, json + "\n").with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(if report.balanced { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn rush(wish: &Peak) -> anyhow::Result<ExitCode> {
    let report = peak::run(wish).await?;
    stdout().write_all(report.text().as_bytes()).context("the report cannot be printed")?;
    if let Some(path) = &wish.json {
        let json = serde_json::to_string_pretty(&report)?;
        fs::write(path, json + "\n").with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn serve(common: &Common, names: &[&str]) -> anyhow::Result<ExitCode> {
    let dialogues = demo::load(common.input.as_deref())?;
    let platform = Arc::new(Platform::new(&dialogues, demo::llm(common)?));
    let mesh = demo::connect(common).await?;
    let crew = Crew::start(&mesh, names.iter().rev().copied(), &platform).await?;
    tracing::info!(agents = names.len(), "the agents serve");
    stopped().await?;
    crew.stop().await?;
    Ok(ExitCode::SUCCESS)
}

/// Waits for Ctrl-C or a polite kill.
async fn stopped() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("signals cannot be waited for")?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted.context("signals cannot be waited for"),
        _ = terminate.recv() => Ok(()),
    }
}
