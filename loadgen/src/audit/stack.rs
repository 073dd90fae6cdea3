//! The processes of the stack that the scenario stops and starts, and the size of Redis. Owns no figure.
//!
//! Works through `./dev stack-…`, as an operator would. A coordinator's settings are read anew at each start from the
//! stack's `mesh.env`, which is where the audit is switched.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use redis::aio::MultiplexedConnection;
use tokio::process::Command;

use crate::args::{Args, Audit};

/// The line in `mesh.env` by which coordinators keep no audit.
const WITHOUT: &str = "MESH_AUDIT=off-for-measuring\n";
const ARCHIVER: &str = "audit-archiver";

/// The stack around this run.
pub(super) struct Stack {
    folder: PathBuf,
    dev: PathBuf,
    coordinators: usize,
    redis: MultiplexedConnection,
    records: bool,
    archives: bool,
}

impl Stack {
    pub(super) async fn open(scenario: &Audit, args: &Args) -> anyhow::Result<Self> {
        let client = redis::Client::open(scenario.redis_url.as_str()).context("MESH_REDIS_URL")?;
        let redis = client.get_multiplexed_async_connection().await.context("Redis does not answer")?;
        Ok(Self {
            folder: scenario.stack.clone(),
            dev: scenario.dev.clone(),
            coordinators: args.coordinators.split(',').filter(|url| !url.trim().is_empty()).count(),
            redis,
            records: true,
            archives: true,
        })
    }

    /// Restarts the coordinators, in order, with or without an audit.
    pub(super) async fn record(&mut self, records: bool) -> anyhow::Result<()> {
        if self.records == records {
            return Ok(());
        }
        let file = self.folder.join("mesh.env");
        let settings = std::fs::read_to_string(&file).context("the settings of the stack")?;
        let settings = settings.replace(WITHOUT, "") + if records { "" } else { WITHOUT };
        std::fs::write(&file, settings).context("the settings of the stack")?;
        for index in 0..self.coordinators {
            self.dev("stack-restart", &format!("coordinator-{index}"), Some("TERM")).await?;
        }
        self.records = records;
        Ok(())
    }

    /// Holds the archiver, or lets it work.
    pub(super) async fn archive(&mut self, archives: bool) -> anyhow::Result<()> {
        if self.archives == archives {
            return Ok(());
        }
        if archives {
            self.start(ARCHIVER).await?;
        } else {
            self.dev("stack-stop", ARCHIVER, Some("TERM")).await?;
        }
        self.archives = archives;
        Ok(())
    }

    /// Kills a server and keeps it down.
    pub(super) async fn kill(&self, name: &str) -> anyhow::Result<()> {
        self.dev("stack-stop", name, None).await
    }

    /// Starts what is down, and waits until it is ready.
    pub(super) async fn start(&self, name: &str) -> anyhow::Result<()> {
        self.dev("stack-start", name, None).await
    }

    /// The bytes that Redis has allocated: streams, keys, and what its structures cost.
    pub(super) async fn redis_bytes(&self) -> anyhow::Result<u64> {
        let info: String = redis::cmd("INFO").arg("memory").query_async(&mut self.redis.clone()).await?;
        let used =
            info.lines().find_map(|line| line.strip_prefix("used_memory_dataset:")?.trim().parse().ok());
        used.context("Redis does not say how much memory it uses")
    }

    async fn dev(&self, verb: &str, name: &str, signal: Option<&str>) -> anyhow::Result<()> {
        let arguments = [verb.as_ref(), self.folder.as_os_str(), name.as_ref()];
        let status = Command::new(&self.dev)
            .args(arguments.into_iter().chain(signal.map(OsStr::new)))
            .stdin(Stdio::null())
            .status()
            .await
            .with_context(|| format!("failed to run {}", self.dev.display()))?;
        ensure!(status.success(), "./dev {verb} {name} failed");
        Ok(())
    }
}
