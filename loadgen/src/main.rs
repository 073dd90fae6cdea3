//! `loadgen`: honest load. Owns the scenarios and their figures; every figure of the mesh stands beside the same work done
//! without it, in the same run, through the same broker.
//!
//! The rule it keeps: latency runs from the intended send time, and a run whose books do not balance is a failed run.

mod args;
mod audit;
mod bare;
mod books;
mod cost;
mod course;
mod flood;
mod governance;
mod html;
mod latency;
mod load;
mod mesh;
mod output;
mod payload;
mod process;
mod report;
mod request;
mod scale;
mod soak;
mod throughput;
mod trace;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;

use args::{Args, Scenario};

fn main() -> ExitCode {
    let mut args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    match run(&mut args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            tracing::error!("the books do not balance, requests failed, or memory grew; see the figures");
            ExitCode::FAILURE
        }
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a scenario; whether its books balance.
fn run(args: &mut Args) -> anyhow::Result<bool> {
    if let Scenario::Governance(scenario) = &args.scenario {
        return governance::run(scenario, args);
    }
    if let Scenario::Report(scenario) = &args.scenario {
        return html::run(&args.json, &scenario.out);
    }
    if let Scenario::Scale(scenario) = &args.scenario
        && !scenario.merge.is_empty()
    {
        return scale::merge(&scenario.merge, args);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    runtime.block_on(async {
        args.servers = report::Servers::ask(args).await;
        let args = &*args;
        match &args.scenario {
            Scenario::Bare(scenario) => bare::run(scenario, args).await,
            Scenario::Throughput(scenario) => Box::pin(throughput::run(scenario, args)).await,
            Scenario::Latency(scenario) => Box::pin(latency::run(scenario, args)).await,
            Scenario::Trace(scenario) => Box::pin(trace::run(scenario, args)).await,
            Scenario::Request(scenario) => Box::pin(request::run(scenario, args)).await,
            Scenario::Audit(scenario) => Box::pin(audit::run(scenario, args)).await,
            Scenario::Scale(scenario) => Box::pin(scale::run(scenario, args)).await,
            Scenario::Soak(scenario) => Box::pin(soak::run(scenario, args)).await,
            Scenario::Governance(_) | Scenario::Report(_) => {
                unreachable!("they need no runtime and ran above")
            }
        }
    })
}
