//! `./dev chaos`: faults under load, judged. Owns the command line, the output and the exit code.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use mesh_tests::chaos::{self, Wish};

/// Breaks processes, ways and disks of the mesh in turn while it is under load, and judges what came of it.
#[derive(Debug, Parser)]
struct Args {
    /// Everything that is done on purpose follows from it; by default another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// How long faults go on, in seconds.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Where the figures go as one JSON object; they are printed for people in any case.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(subcommand)]
    part: Option<Part>,
}

/// The processes that belong to a run, as the stack starts them.
#[derive(Debug, Subcommand)]
enum Part {
    /// A process with agents that take work.
    #[command(hide = true)]
    Crew {
        /// Which one.
        index: usize,
    },
    /// The network between clients and servers.
    #[command(hide = true)]
    Proxy {
        /// Who connects through it.
        clients: Vec<String>,
    },
}

/// A client that finds its broker away says so with each try, which here is no news.
const FILTER: &str = "warn,async_nats=off,mesh_tests=info";

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(FILTER));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let args = Args::parse();
    let stack = || PathBuf::from(std::env::var_os("MESH_STACK_DIR").unwrap_or_default());
    match &args.part {
        Some(Part::Crew { index }) => chaos::crew::run(*index, &stack()).await.map(|()| ExitCode::SUCCESS),
        Some(Part::Proxy { clients }) => {
            chaos::proxy::run(&stack(), clients).await.map(|()| ExitCode::SUCCESS)
        }
        None => judge(&args).await,
    }
}

async fn judge(args: &Args) -> anyhow::Result<ExitCode> {
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    let seed = args.seed.unwrap_or_else(|| u64::from(clock()));
    tracing::info!(seed, "the plan follows from it");
    let report = chaos::run(&Wish { seed, duration: Duration::from_secs(args.seconds) }).await?;
    std::io::stdout().write_all(report.text().as_bytes()).context("the report cannot be printed")?;
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, json).with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
