//! Doing what the plan says: signals to processes, states of links, ballast on disks. Owns the way, not the choice.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::process::Command;

use super::deeds::Journal;
use super::plan::{Fault, Process, Step};
use super::proxy::{self, State};
use crate::stack::{self, Signal};
use crate::{PATIENCE, Stage, eventually};

/// How often a full disk is looked at: what a server frees is taken again.
const FILL_EVERY: Duration = Duration::from_millis(50);
/// What a broker is given to come back by itself once its disk has room.
const BY_ITSELF: Duration = Duration::from_secs(2);

/// Does one thing after the other until the time is over.
pub(super) async fn play(
    stage: &Stage,
    journal: &Journal,
    end: Instant,
    mut next: impl FnMut() -> Step,
) -> anyhow::Result<()> {
    while Instant::now() < end {
        let step = next();
        let from = journal.begin(step.fault)?;
        inflict(stage, step.fault).await.with_context(|| format!("failed to {}", step.fault))?;
        journal.end(step.fault, from)?;
        tokio::time::sleep(step.pause).await;
    }
    Ok(())
}

async fn inflict(stage: &Stage, fault: Fault) -> anyhow::Result<()> {
    let stack = &stage.settings.stack;
    match fault {
        Fault::Kill(victim) => drop(send(stack, victim, Signal::Kill).await),
        // To PostgreSQL, TERM means to wait until all its clients have left.
        Fault::End(Process::Postgres) => drop(send(stack, Process::Postgres, Signal::Interrupt).await),
        Fault::End(victim) => drop(send(stack, victim, Signal::Terminate).await),
        Fault::Freeze(victim, time) => {
            let frozen = send(stack, victim, Signal::Stop).await;
            tokio::time::sleep(time).await;
            for pid in frozen {
                // One of them may have been at its end.
                stack::try_signal(pid, Signal::Continue).await;
            }
        }
        Fault::Cut(link, time) => on_link(stack, &link.to_string(), State::Cut, time).await?,
        Fault::Silence(link, time) => on_link(stack, &link.to_string(), State::Silent, time).await?,
        Fault::Slow(link, time, by, seed) => {
            on_link(stack, &link.to_string(), State::Slow(by, seed), time).await?;
        }
        Fault::Fill(server, time) => {
            fill(&disk(stack, server), time).await?;
            bring_back(stage, server).await;
        }
    }
    Ok(())
}

/// Signals a process, and where it is to stop also those that it has started; gives their ids.
async fn send(stack: &Path, victim: Process, signal: Signal) -> Vec<u32> {
    let run = stack.join("run");
    let name = victim.to_string();
    // Its supervisor may be about to start it again.
    eventually(&format!("{name} runs"), PATIENCE, || async {
        let pid = stack::process(&run, &name)?;
        let mut hit = stack::try_signal(pid, signal).await.then(|| vec![pid])?;
        if signal == Signal::Stop {
            for child in stack::children(pid) {
                stack::try_signal(child, signal).await;
                hit.push(child);
            }
        }
        Some(hit)
    })
    .await
}

async fn on_link(stack: &Path, link: &str, state: State, time: Duration) -> anyhow::Result<()> {
    proxy::set(stack, link, state).await?;
    tokio::time::sleep(time).await;
    proxy::set(stack, link, State::Open).await
}

/// The folder of a server, where that is a file system of its own.
fn disk(stack: &Path, server: Process) -> PathBuf {
    stack.join("data").join(server.to_string())
}

/// Whether servers have disks of their own.
pub(super) fn has_disks(stack: &Path) -> bool {
    std::fs::read_to_string("/proc/mounts").is_ok_and(|mounts| {
        let redis = disk(stack, Process::Redis).canonicalize().unwrap_or_default();
        mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == redis))
    })
}

/// Takes all room on a disk for a time, also what becomes free meanwhile.
async fn fill(disk: &Path, time: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + time;
    let mut ballast = Vec::new();
    while Instant::now() < end {
        let free = Command::new("df").args(["--output=avail", "-B1"]).arg(disk).output().await?;
        let free = String::from_utf8_lossy(&free.stdout);
        let free: u64 =
            free.lines().last().and_then(|line| line.trim().parse().ok()).context("df says nothing")?;
        if free > 0 {
            let file = disk.join(format!("ballast.{}", ballast.len()));
            let took = Command::new("fallocate").args(["-l", &free.to_string()]).arg(&file).output().await?;
            anyhow::ensure!(
                took.status.success() || file.exists(),
                "fallocate: {}",
                String::from_utf8_lossy(&took.stderr)
            );
            ballast.push(file);
        }
        tokio::time::sleep(FILL_EVERY).await;
    }
    for file in ballast {
        std::fs::remove_file(&file).with_context(|| format!("failed to remove {}", file.display()))?;
    }
    Ok(())
}

/// What an operator does once a disk has room again: a broker with a stream that could not be written stores nothing in it until
/// it is started anew, and says so. The other servers end by themselves, or go on.
async fn bring_back(stage: &Stage, server: Process) {
    let Process::Nats(node, _) = server else { return };
    let urls = std::env::var("MESH_NATS_MONITOR_URL").unwrap_or_default();
    let Some(address) = urls.split(',').nth(node).map(|url| url.trim_start_matches("http://")) else {
        return;
    };
    let healthy =
        || async { stage.http(address, "/healthz").await.is_ok_and(|is| is.starts_with("HTTP/1.1 200 ")) };
    tokio::time::sleep(BY_ITSELF).await;
    if !healthy().await {
        tracing::info!(%server, "is started anew, since it has given up its streams");
        send(&stage.settings.stack, server, Signal::Terminate).await;
    }
    crate::until(&format!("{server} is healthy"), PATIENCE, healthy).await;
}
