//! What the archiver is started with: flags, each with its environment variable. Owns their forms and defaults.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use crate::checkpoint::CheckpointKey;

/// Archives the audit trail: Redis to PostgreSQL, exactly once.
#[derive(Debug, Parser)]
#[command(name = "audit-archiver", version)]
pub struct Cli {
    /// What to do; `run` where nothing is said.
    #[command(subcommand)]
    pub verb: Option<Verb>,
    /// Addresses and times.
    #[command(flatten)]
    pub config: Config,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Verb {
    /// Archive until told to stop. Brings the schema to the newest version first.
    Run,
    /// Bring the schema to the newest version, then end.
    Migrate,
    /// Print the public half of the checkpoint key, for `mesh verify`, then end.
    CheckpointKey,
    /// Legal holds: days that retention must keep.
    #[command(subcommand)]
    Hold(HoldVerb),
}

/// What to do with legal holds.
#[derive(Debug, Clone, Subcommand)]
pub enum HoldVerb {
    /// Place one. Without a conversation or an agent it holds the days as a whole.
    Add(HoldWish),
    /// Show all, one JSON object in a line.
    List,
    /// Release one.
    Release {
        /// Its number.
        id: i64,
        /// Who releases it.
        #[arg(long)]
        by: String,
    },
}

/// A hold to be placed.
#[derive(Debug, Clone, Args)]
pub struct HoldWish {
    /// The first day, as 2026-02-14; all days before `to` where left out.
    #[arg(long)]
    pub from: Option<String>,
    /// The last day; all days from `from` where left out.
    #[arg(long)]
    pub to: Option<String>,
    /// Only days on which this conversation has records.
    #[arg(long)]
    pub conversation: Option<String>,
    /// Only days on which this agent has records.
    #[arg(long)]
    pub agent: Option<String>,
    /// Why.
    #[arg(long)]
    pub reason: String,
    /// Who asks for it.
    #[arg(long)]
    pub by: String,
}

/// Addresses and times.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// Where the trail is.
    #[arg(
        long,
        env = "MESH_REDIS_URL",
        default_value = "redis://127.0.0.1:6379",
        global = true,
        hide_env_values = true
    )]
    pub redis_url: String,
    /// Where the archive is.
    #[arg(
        long,
        env = "MESH_POSTGRES_URL",
        default_value = "postgres://user:password@127.0.0.1:5432/mesh",
        global = true,
        hide_env_values = true
    )]
    pub postgres_url: String,
    /// Where to serve /healthz, /readyz and /metrics; nowhere where left out.
    #[arg(long, env = "MESH_HTTP", global = true)]
    pub http: Option<String>,
    /// Write the bound address there.
    #[arg(long, env = "MESH_HTTP_ADDR_FILE", global = true)]
    pub http_addr_file: Option<PathBuf>,
    /// Days that PostgreSQL keeps, besides those under legal hold.
    ///
    /// One year covers the audit periods customary for consumer interactions; the regulation that applies decides.
    #[arg(long, env = "MESH_RETENTION_DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500), global = true)]
    pub retention_days: u32,
    /// How long Redis keeps what is archived, for instance 30d, 12h or 90s.
    #[arg(long, env = "MESH_HOT_RETENTION", default_value = "30d", value_parser = duration, global = true)]
    pub hot_retention: Duration,
    /// The memory that Redis may use, for instance 4G; beyond it the hot window shrinks, with an alarm. Three quarters
    /// of Redis' own `maxmemory` where left out, unbounded where that is not set either.
    #[arg(long, env = "MESH_REDIS_MEMORY_BUDGET", value_parser = bytes, global = true)]
    pub redis_memory_budget: Option<u64>,
    /// The time between two rounds of trimming, retention and making partitions.
    #[arg(long, env = "MESH_UPKEEP_EVERY", default_value = "30s", value_parser = duration, global = true)]
    pub upkeep_every: Duration,
    /// The folder for signed checkpoints, outside PostgreSQL and best on another machine; none are written where left out.
    #[arg(long, env = "MESH_CHECKPOINTS", global = true)]
    pub checkpoints: Option<PathBuf>,
    /// The file with the key that signs checkpoints: 64 hexadecimal digits. PostgreSQL's operators must not have it.
    #[arg(long, env = "MESH_CHECKPOINT_KEY_FILE", global = true)]
    pub checkpoint_key_file: Option<PathBuf>,
    /// The time between two checkpoints.
    #[arg(long, env = "MESH_CHECKPOINT_EVERY", default_value = "60s", value_parser = duration, global = true)]
    pub checkpoint_every: Duration,
    /// Connections that archive at the same time, each for a part of the shards.
    #[arg(long, env = "MESH_ARCHIVE_WORKERS", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64), global = true)]
    pub workers: u8,
}

impl Config {
    /// What cannot be read or contradicts itself.
    ///
    /// # Errors
    /// One sentence about it.
    pub fn check(&self) -> Result<(), String> {
        // Otherwise a typing error would look like a server that is away, for ever.
        if let Err(error) = self.postgres_url.parse::<tokio_postgres::Config>() {
            return Err(format!("the address of PostgreSQL cannot be read: {error}"));
        }
        if let Err(error) = redis::Client::open(self.redis_url.as_str()) {
            return Err(format!("the address of Redis cannot be read: {error}"));
        }
        // What may be trimmed from Redis is looked up among the archived blocks, so these must still be there.
        let kept = Duration::from_secs(u64::from(self.retention_days) * 86_400);
        if self.hot_retention > kept {
            return Err(format!(
                "Redis cannot keep blocks longer (--hot-retention) than PostgreSQL (--retention-days {})",
                self.retention_days
            ));
        }
        if self.checkpoints.is_some() && self.checkpoint_key_file.is_none() {
            return Err("checkpoints (--checkpoints) are signed: name the key with --checkpoint-key-file; make one with: \
                        openssl rand -hex 32"
                .to_owned());
        }
        if self.checkpoint_every.is_zero() {
            return Err("--checkpoint-every is a time above zero, for instance 60s".to_owned());
        }
        Ok(())
    }

    /// The key that signs checkpoints, where a file is named.
    ///
    /// # Errors
    /// When the file cannot be read, or holds no key.
    pub fn checkpoint_key(&self) -> anyhow::Result<Option<CheckpointKey>> {
        let Some(file) = &self.checkpoint_key_file else { return Ok(None) };
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read the checkpoint key {}", file.display()))?;
        let key = text.parse().with_context(|| format!("{} holds no checkpoint key", file.display()))?;
        Ok(Some(key))
    }

    /// The folder of checkpoints and their key, where both are named.
    ///
    /// # Errors
    /// When the key cannot be read.
    pub fn checkpoints_and_key(&self) -> anyhow::Result<Option<(PathBuf, CheckpointKey)>> {
        Ok(self.checkpoints.clone().zip(self.checkpoint_key()?))
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text);
    let number: u64 =
        number.parse().map_err(|_| format!("{text:?} is not a time; write 30d, 12h, 5m, 90s or 250ms"))?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(number.saturating_mul(3_600))),
        "d" => Ok(Duration::from_secs(number.saturating_mul(86_400))),
        _ => Err(format!("{text:?} has no unit; write 30d, 12h, 5m, 90s or 250ms")),
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text);
    let shift = match unit {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return Err(format!("{text:?} is not a size; write bytes, or 512M, or 4G")),
    };
    let number: u64 =
        number.parse().map_err(|_| format!("{text:?} is not a size; write bytes, or 512M, or 4G"))?;
    number.checked_shl(shift).ok_or_else(|| format!("{text:?} is too large"))
}

fn split_unit(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_read() {
        assert_eq!(duration("30d"), Ok(Duration::from_secs(2_592_000)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(duration("30").is_err());
        assert!(duration("soon").is_err());
        assert_eq!(bytes("4G"), Ok(4 << 30));
        assert_eq!(bytes("1000"), Ok(1_000));
        assert!(bytes("4T").is_err());
    }

    #[test]
    fn a_hot_window_beyond_the_archive_is_refused() {
        let cli = Cli::try_parse_from(["audit-archiver", "--retention-days", "10"]).unwrap();
        assert!(cli.config.check().is_err());
        let cli = Cli::try_parse_from(["audit-archiver"]).unwrap();
        assert!(cli.config.check().is_ok());
    }

    #[test]
    fn checkpoints_without_a_key_are_refused() {
        let cli = Cli::try_parse_from(["audit-archiver", "--checkpoints", "here"]).unwrap();
        assert!(cli.config.check().is_err_and(|why| why.contains("--checkpoint-key-file")));
    }

    #[test]
    fn an_address_that_cannot_be_read_is_said_at_once() {
        for flags in [["--postgres-url", "/mesh"], ["--redis-url", "127.0.0.1"]] {
            let cli = Cli::try_parse_from(["audit-archiver"].iter().chain(&flags)).unwrap();
            assert!(cli.config.check().is_err_and(|why| why.contains("cannot be read")));
        }
    }
}
