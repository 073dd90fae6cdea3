//! `mesh`, the operator's command: asks the mesh and tells it, and prints what it says.
//!
//! Owns the command line. Decides nothing that governance decides, and keeps no state of its own. The rule it keeps: data
//! goes to stdout and everything else to stderr, and the exit code says whether the answer was yes, no, or none.

mod agents;
mod answer;
mod audit;
mod call;
mod compliance;
mod control;
mod dlq;
mod doctor;
mod explain;
mod graph;
mod lanes;
mod letters;
mod mesh;
mod moment;
mod operate;
mod output;
mod policy;
mod replay;
mod report;
mod run;
mod shards;
mod trace;
mod verify;

use std::process::ExitCode;

use answer::Answer;
use clap::{Parser, Subcommand};
use mesh::{Addresses, Mesh};
use output::Output;
use tracing_subscriber::EnvFilter;

const AFTER_HELP: &str = concat!(
    "How the mesh is found: by the options above, else by MESH_NATS_URL, MESH_REDIS_URL and MESH_POSTGRES_URL. ",
    "Where neither names the broker, by target/stack/mesh.env in this folder or the nearest above it, ",
    "which `./dev up` writes; else at the usual ports of this machine.\n\n",
    "Exit codes: 0 fine; 1 the answer is no (a call failed, a check found problems, nothing was found); ",
    "64 the command line cannot be understood; 69 the mesh cannot be asked.\n\n",
    "Examples:\n",
    "  mesh doctor\n",
    "  mesh call scoring_engine score '{\"budget\": 500000}' --priority P1\n",
    "  mesh trace d-1c0ffee5ca1ab1e0-2a-0\n",
    "  mesh audit export --since 24h > day.jsonl",
);

/// Looks into a running agent mesh, and operates it.
#[derive(Debug, Parser)]
#[command(name = "mesh", version, after_help = AFTER_HELP, propagate_version = false)]
struct Cli {
    #[command(flatten)]
    addresses: Addresses,
    /// Prints JSON for scripts: one value, or one object in a line where there is a stream of them.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Sends a request as an agent of its own, and shows the reply.
    #[command(after_help = call::EXAMPLES, override_usage = call::USAGE)]
    Call(call::CallArgs),
    /// Who is registered, what they offer, and what they do at this moment.
    Agents(agents::AgentsArgs),
    /// Who may call whom, by the registrations, and who does, by the archive.
    #[command(after_help = graph::EXAMPLES)]
    Graph(graph::GraphArgs),
    /// What waits in the lanes, at which rate they go, and why the first one waits.
    Lanes(lanes::LanesArgs),
    /// The breakers: their states, why and since when, and the runs in their windows.
    Breakers,
    /// Trips the breaker of an agent: fallbacks answer for it until it is reset. It is not probed meanwhile.
    Trip(operate::OperateArgs),
    /// Lets dispatches pass to an agent whose breaker is tripped.
    Reset(operate::OperateArgs),
    /// Holds back everything for an agent; it waits in the lanes until `resume` or its deadline.
    Pause(operate::OperateArgs),
    /// Lets dispatches pass to an agent that was paused.
    Resume(operate::OperateArgs),
    /// Dead letters: events that failed in every attempt, and what instances died of. Shows them, sends them again, drops them.
    Dlq(dlq::DlqArgs),
    /// The log of every dispatch, from the archive.
    Audit(audit::AuditArgs),
    /// The whole tree that a dispatch belongs to: every hop with its waits and its outcome.
    #[command(after_help = trace::EXAMPLES)]
    Trace(trace::TraceArgs),
    /// The performance table, computed from the archive. `report --help` has the formula of each row.
    #[command(after_long_help = report::formulas())]
    Report(report::ReportArgs),
    /// Proves the audit: recomputes every chain, row and signature, and names the first break of each shard.
    #[command(after_help = verify::EXAMPLES)]
    Verify(verify::VerifyArgs),
    /// Policies: the rules of the mesh.
    Policy(policy::PolicyArgs),
    /// What a reason means that stands in a reply, in the audit or in a metric.
    Explain(explain::ExplainArgs),
    /// Keeps as many instances of an agent running as the mesh wants, as processes here or as containers of Compose.
    #[command(after_help = run::EXAMPLES)]
    Run(run::RunArgs),
    /// Which coordinator is home of which shard, and of which agents by that.
    Shards,
    /// Steps through an event log of the simulator.
    #[command(after_help = replay::EXAMPLES)]
    Replay(replay::ReplayArgs),
    /// Checks everything that the mesh needs, and says how to mend what is wrong.
    Doctor,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { answer::USAGE } else { 0 };
            // Nobody is left to be told when this fails.
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("warn,worker_sdk=error,mesh::run=info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let output = Output::new(cli.json);
    let result = Box::pin(run(cli.command, &Mesh::find(&cli.addresses), &output)).await;
    match result {
        Ok(answer) => answer.exit_code(),
        Err(error) => {
            let code = answer::exit_code_of(&error);
            if code != 0 {
                output.note(&format!("mesh: {}", answer::in_words(&error)));
            }
            ExitCode::from(code)
        }
    }
}

async fn run(command: Command, mesh: &Mesh, output: &Output) -> anyhow::Result<Answer> {
    match command {
        Command::Call(args) => call::run(args, mesh, output).await,
        Command::Agents(args) => agents::run(&args, mesh, output).await,
        Command::Graph(args) => graph::run(&args, mesh, output).await,
        Command::Lanes(args) => lanes::run(&args, mesh, output).await,
        Command::Breakers => agents::run_breakers(mesh, output).await,
        Command::Trip(args) => operate::run("trip", &args, mesh, output).await,
        Command::Reset(args) => operate::run("reset", &args, mesh, output).await,
        Command::Pause(args) => operate::run("pause", &args, mesh, output).await,
        Command::Resume(args) => operate::run("resume", &args, mesh, output).await,
        Command::Dlq(args) => dlq::run(&args, mesh, output).await,
        Command::Audit(args) => audit::run(&args, mesh, output).await,
        Command::Trace(args) => trace::run(&args, mesh, output).await,
        Command::Report(args) => Box::pin(report::run(&args, mesh, output)).await,
        Command::Verify(args) => verify::run(&args, mesh, output).await,
        Command::Policy(args) => policy::run(&args, output),
        Command::Explain(args) => explain::run(&args, output),
        Command::Run(args) => run::run(args, mesh).await,
        Command::Shards => shards::run(mesh, output).await,
        Command::Replay(args) => replay::run(&args, output),
        Command::Doctor => doctor::run(mesh, output).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn json_may_stand_behind_the_command() {
        let cli = Cli::try_parse_from(["mesh", "lanes", "--json"]).unwrap();
        assert!(cli.json);
    }

    #[test]
    fn an_operation_needs_a_reason() {
        let without = ["mesh", "trip", "handoff_service", "--operator", "ann"];
        assert!(Cli::try_parse_from(without).is_err());
        let with = [&without[..], &["--reason", "drill"]].concat();
        assert!(Cli::try_parse_from(with).is_ok());
    }
}
