//! The two halves of `./dev powerloss`: the load before the cut, and the judge after it. Owns the command line and the exit code.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use mesh_tests::powerloss;

/// What senders and handlers saw before a power loss, against what came back.
#[derive(Debug, Parser)]
enum Args {
    /// Sends until it is killed.
    Load {
        /// Where is written what was accepted, told and run.
        #[arg(long, value_name = "FILE")]
        books: PathBuf,
    },
    /// Lets what came back run to its end, and compares.
    Judge {
        /// What the load wrote.
        #[arg(long, value_name = "FILE")]
        books: PathBuf,
        /// Where the figures go as one JSON object; they are printed for people in any case.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let (books, json) = match Args::parse() {
        Args::Load { books } => return powerloss::load(&books).await.map(|()| ExitCode::SUCCESS),
        Args::Judge { books, json } => (books, json),
    };
    let report = powerloss::judge(&books).await?;
    std::io::stdout().write_all(report.text().as_bytes()).context("the report cannot be printed")?;
    if let Some(path) = &json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
