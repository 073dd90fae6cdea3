//! Owns what the program is told from outside: flags and environment, read once. Rule kept: secrets come from the
//! environment only and are printed nowhere.

use std::{env, path::PathBuf, thread, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::report::Setting;

/// The real-estate platform of twelve agents, on the mesh.
#[derive(Debug, Parser)]
#[command(name = "real-estate", version, about)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the agents, play the dialogues, show the report, exit. Exits with 0 only when the books balance.
    Demo(Demo),
    /// Let leads arrive as on a busy morning, and lead bots come and go. Exits with 0 only when the books balance, P0 kept
    /// its budget, and the bots became more and then as few as before.
    Peak(Peak),
    /// One lead bot of the peak, a process of its own.
    #[command(hide = true)]
    LeadBot(LeadBot),
    /// Run all twelve agents until stopped.
    Agents(Common),
    /// Run one of the agents until stopped.
    Agent {
        /// Its name, such as `lead_bot`.
        name: String,
        #[command(flatten)]
        common: Common,
    },
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Where the broker is; without it the mesh that `./dev up` started.
    #[arg(long, env = "MESH_NATS_URL", hide_env_values = true)]
    pub nats_url: Option<String>,
    /// A file of dialogues in the format of the Schema-Guided Dialogue dataset; a small set is built in.
    #[arg(long)]
    pub input: Option<PathBuf>,
    /// Base URL of an OpenAI-compatible API that the orchestrator drafts answers with; none is needed.
    #[arg(long, env = "MESH_LLM_URL")]
    pub llm_url: Option<String>,
    /// The model that is asked there.
    #[arg(long, env = "MESH_LLM_MODEL", default_value = "gpt-4o-mini")]
    pub llm_model: String,
}

/// What the demo takes.
#[derive(Debug, Clone, Args)]
pub struct Demo {
    #[command(flatten)]
    pub common: Common,
    /// Write the report there as one JSON object, too.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// The archive.
    #[arg(
        long,
        env = "MESH_POSTGRES_URL",
        hide_env_values = true,
        default_value = "postgres://127.0.0.1:5432/mesh"
    )]
    pub postgres_url: String,
    /// The policy that the mesh runs under, to check its quotas against the archive.
    #[arg(long, env = "MESH_POLICY", default_value = "mesh.toml")]
    pub policy: PathBuf,
    /// Messages per second, all people together.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub pace: u32,
    /// How many people talk at the same time.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub people: u32,
    /// A small set of dialogues is played by several people, until there are so many messages.
    #[arg(long, default_value_t = 500)]
    pub messages_min: usize,
}

/// What the peak takes.
#[derive(Debug, Clone, Args)]
pub struct Peak {
    #[command(flatten)]
    pub common: Common,
    /// Who arrives when: lines of TIMESTAMP,ContextTokens,GeneratedTokens after a head.
    #[arg(long, default_value = "../shared/data/azure_llm_conv_2023.csv")]
    pub arrivals: PathBuf,
    /// How many times the base rate the peak is.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=100))]
    pub peak: u32,
    /// By what time is compressed; the policy's times of scaling are, too.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub speed: u32,
    /// How long the base rate holds before the peak, in seconds.
    #[arg(long, default_value_t = 15)]
    pub calm: u64,
    /// How long the peak takes, in seconds.
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// Write the report there as one JSON object, too.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// The archive.
    #[arg(
        long,
        env = "MESH_POSTGRES_URL",
        hide_env_values = true,
        default_value = "postgres://127.0.0.1:5432/mesh"
    )]
    pub postgres_url: String,
    /// The policy that the mesh runs under, to check its quotas against the archive.
    #[arg(long, env = "MESH_POLICY", default_value = "examples/real-estate/peak.toml")]
    pub policy: PathBuf,
}

impl Peak {
    pub(crate) const fn calm(&self) -> Duration {
        Duration::from_secs(self.calm)
    }

    pub(crate) const fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// What a lead bot of the peak takes.
#[derive(Debug, Clone, Args)]
pub struct LeadBot {
    #[command(flatten)]
    pub common: Common,
    /// By what time is compressed.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub speed: u32,
    /// The folder where it writes down what it did.
    #[arg(long)]
    pub effects: PathBuf,
}

/// The key of the language model's API.
pub fn llm_key() -> Option<String> {
    set("MESH_LLM_KEY")
}

/// On what the run is made, as the stack tells by its environment.
pub fn setting(scenario: &str) -> Setting {
    let coordinators = set("MESH_COORDINATORS").map_or(1, |urls| urls.split(',').count());
    let or = |name, other: &str| set(name).unwrap_or_else(|| other.to_owned());
    Setting {
        scenario: scenario.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: or("MESH_COMMIT", "unknown"),
        cpus: thread::available_parallelism().map_or(1, usize::from),
        storage: or("MESH_STORAGE", "file"),
        nats_sync: or("MESH_NATS_SYNC", "unknown"),
        redis_fsync: or("MESH_REDIS_FSYNC", "unknown"),
        replicas: coordinators,
        stream_replicas: set("MESH_STREAM_REPLICAS").and_then(|copies| copies.parse().ok()).unwrap_or(1),
    }
}

fn set(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let cli =
            Cli::try_parse_from(["real-estate", "demo", "--input", "x.json", "--json", "y.json"]).unwrap();
        assert!(matches!(cli.command, Command::Demo(demo) if demo.json == Some("y.json".into())));
        assert!(Cli::try_parse_from(["real-estate", "demo", "--pace", "0"]).is_err());
    }
}
