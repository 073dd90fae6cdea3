//! The settings: where the mesh under test is. Owns the reading of the environment; connects to nothing.

use std::path::PathBuf;

use serde::Serialize;

/// Where the mesh under test is, as `./dev stack-run` says.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The broker.
    pub nats_url: String,
    /// The store of the audit streams.
    pub redis_url: String,
    /// The archive.
    pub postgres_url: String,
    /// The policy that it runs under.
    pub policy: PathBuf,
    /// The folder of the stack, with the process ids.
    pub stack: PathBuf,
    /// The HTTP addresses of the coordinators, `host:port`.
    pub coordinators: Vec<String>,
    /// How many copies the broker keeps of each stream.
    pub stream_replicas: usize,
}

impl Settings {
    /// Reads them.
    ///
    /// # Panics
    /// When a variable is missing, with a word on how these tests are run.
    #[must_use]
    pub fn read() -> Self {
        let coordinators = variable("MESH_COORDINATORS");
        Self {
            nats_url: variable("MESH_NATS_URL"),
            redis_url: variable("MESH_REDIS_URL"),
            postgres_url: variable("MESH_POSTGRES_URL"),
            policy: variable("MESH_POLICY").into(),
            stack: variable("MESH_STACK_DIR").into(),
            coordinators: coordinators
                .split(',')
                .map(|url| url.trim_start_matches("http://").trim_end_matches('/').to_owned())
                .collect(),
            stream_replicas: variable("MESH_STREAM_REPLICAS").parse().expect("a number of copies"),
        }
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set: these tests need a mesh around them. Run `./dev test`, or one file of them with \
             `./dev stack-run --policy tests/policy.toml --coordinators 2 -- cargo test --release -p mesh-tests --test mesh`"
        )
    })
}

/// The root of the repository.
#[must_use]
pub fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Under which conditions something was shown: what every report begins with, under the names of all reports.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Conditions {
    scenario: &'static str,
    version: &'static str,
    commit: String,
    cpus: usize,
    storage: String,
    nats_sync: String,
    redis_fsync: String,
    /// Coordinators.
    replicas: usize,
}

impl Conditions {
    /// Those of this process' mesh, as `./dev` says.
    pub(crate) fn of(scenario: &'static str, settings: &Settings) -> Self {
        let or = |name: &str, other: &str| std::env::var(name).unwrap_or_else(|_| other.to_owned());
        Self {
            scenario,
            version: env!("CARGO_PKG_VERSION"),
            commit: or("MESH_COMMIT", "unknown"),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            storage: or("MESH_STORAGE", "file"),
            nats_sync: or("MESH_NATS_SYNC", "default"),
            redis_fsync: or("MESH_REDIS_FSYNC", "unknown"),
            replicas: settings.coordinators.len(),
        }
    }
}
