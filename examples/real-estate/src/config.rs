//! Owns what the program is told from outside: flags and environment, read once. Rule kept: secrets come from the
//! environment only and are printed nowhere.

use std::{env, path::PathBuf, thread};

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

/// The key of the language model's API.
pub fn llm_key() -> Option<String> {
    set("MESH_LLM_KEY")
}

/// On what the run is made, as the stack tells by its environment.
pub fn setting() -> Setting {
    let coordinators = set("MESH_COORDINATORS").map_or(1, |urls| urls.split(',').count());
    let or = |name, other: &str| set(name).unwrap_or_else(|| other.to_owned());
    Setting {
        scenario: "demo".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: or("MESH_COMMIT", "unknown"),
        cpus: thread::available_parallelism().map_or(1, usize::from),
        storage: or("MESH_STORAGE", "file"),
        nats_sync: or("MESH_NATS_SYNC", "unknown"),
        redis_fsync: or("MESH_REDIS_FSYNC", "unknown"),
        replicas: coordinators,
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
