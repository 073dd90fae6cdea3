//! The configuration: addresses and sizes, read once from flags and environment. Owns no rule; those are the policy's.

use std::net::SocketAddr;
use std::path::PathBuf;

use broker::Storage;
use clap::{Parser, ValueEnum};

/// Hosts the rules of the mesh between broker and audit.
#[derive(Debug, Clone, Parser)]
#[command(name = "coordinator", version)]
pub(crate) struct Config {
    /// The broker.
    #[arg(long, env = "MESH_NATS_URL", default_value = "nats://127.0.0.1:4222")]
    pub(crate) nats_url: String,
    /// The store of the audit streams.
    #[arg(long, env = "MESH_REDIS_URL", default_value = "redis://127.0.0.1:6379", hide_env_values = true)]
    pub(crate) redis_url: String,
    /// The policy file; without one, the article's numbers hold.
    #[arg(long, env = "MESH_POLICY")]
    pub(crate) policy: Option<PathBuf>,
    /// A file with 64 hexadecimal digits: the key of payload hashes and lineage seals, the same for all replicas.
    #[arg(long, env = "MESH_AUDIT_KEY_FILE")]
    pub(crate) audit_key_file: PathBuf,
    /// Where health and metrics are served.
    #[arg(long, env = "MESH_HTTP", default_value = "127.0.0.1:7070")]
    pub(crate) http: SocketAddr,
    /// A file that is given the bound address, for scripts that let the system choose a port.
    #[arg(long, env = "MESH_HTTP_ADDR_FILE")]
    pub(crate) http_addr_file: Option<PathBuf>,
    /// Where the broker keeps the streams.
    #[arg(long, env = "MESH_STORAGE", value_enum, default_value = "file")]
    pub(crate) storage: StorageArg,
    /// Copies that the broker keeps of each stream: 1, or 3 in a cluster.
    #[arg(long, env = "MESH_STREAM_REPLICAS", default_value_t = 1, value_parser = parse_copies)]
    pub(crate) stream_replicas: usize,
    /// The name of this replica; the host's name and the process number by default.
    #[arg(long, env = "MESH_REPLICA")]
    pub(crate) replica: Option<String>,
    /// `off-for-measuring` keeps no audit, which breaks promises 1 and 4: for a benchmark's own mesh only.
    #[arg(long, env = "MESH_AUDIT", value_enum, default_value = "on", hide = true)]
    pub(crate) audit: AuditArg,
    /// Alerts are posted there as JSON.
    #[arg(long, env = "MESH_WEBHOOK_URL", hide_env_values = true)]
    pub(crate) webhook_url: Option<String>,
}

/// Where the broker keeps the streams, as written on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum StorageArg {
    File,
    Memory,
}

impl From<StorageArg> for Storage {
    fn from(arg: StorageArg) -> Self {
        match arg {
            StorageArg::File => Self::File,
            StorageArg::Memory => Self::Memory,
        }
    }
}

/// Whether what is decided is recorded. The long word is there so that nobody chooses it by accident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AuditArg {
    On,
    OffForMeasuring,
}

fn parse_copies(text: &str) -> Result<usize, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("the broker keeps 1 or 3 copies".to_owned()),
    }
}

impl Config {
    /// The name of this replica, fit for a key of a bucket.
    pub(crate) fn replica_name(&self) -> String {
        self.replica.clone().unwrap_or_else(|| {
            let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
            let host: String =
                host.trim().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
            format!("{}-{}", if host.is_empty() { "host" } else { &host }, std::process::id())
        })
    }
}
