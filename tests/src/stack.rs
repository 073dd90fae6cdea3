//! The processes of the mesh under test: which one is home, killing it, asking it to stop.
//!
//! Works through the stack's folder: `run/NAME.pid` is the process, and a supervisor starts it again when it ends.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::settings::root;
use crate::{PATIENCE, Stage, until};

/// How a process is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// At once, without a chance to do anything.
    Kill,
    /// In order.
    Terminate,
    /// In order, for PostgreSQL: it waits for nobody who is connected.
    Interrupt,
    /// Not at all: it stands still, as on a machine that swaps or is suspended.
    Stop,
    /// And goes on from there, knowing nothing of the time between.
    Continue,
}

impl Signal {
    const fn flag(self) -> &'static str {
        match self {
            Self::Kill => "-KILL",
            Self::Terminate => "-TERM",
            Self::Interrupt => "-INT",
            Self::Stop => "-STOP",
            Self::Continue => "-CONT",
        }
    }
}

/// The process of the stack that is home of an agent at present: its name, as `coordinator-0`, and its id.
///
/// # Panics
/// When no coordinator says that it is.
pub async fn home(stage: &Stage, agent: &str) -> (String, u32) {
    let replica = stage.home(agent).await;
    let pid: u32 =
        replica.rsplit('-').next().and_then(|pid| pid.parse().ok()).expect("a name ends with a pid");
    let run = stage.settings.stack.join("run");
    let name = (0..stage.settings.coordinators.len())
        .map(|index| format!("coordinator-{index}"))
        .find(|name| process(&run, name) == Some(pid));
    (name.unwrap_or_else(|| panic!("no process of {} is {replica}", run.display())), pid)
}

/// The processes of the broker: one, or the nodes of a cluster.
#[must_use]
pub fn broker_nodes(stage: &Stage) -> Vec<String> {
    match stage.settings.nats_url.split(',').count() {
        0 | 1 => vec!["nats".to_owned()],
        nodes => (0..nodes).map(|index| format!("nats-{index}")).collect(),
    }
}

/// The id of a running process of the stack.
#[must_use]
pub fn process(run: &Path, name: &str) -> Option<u32> {
    std::fs::read_to_string(run.join(format!("{name}.pid"))).ok()?.trim().parse().ok()
}

/// Sends a signal to a process; where that ends it, its supervisor starts it again.
///
/// # Panics
/// When there is no such process.
pub async fn signal(pid: u32, signal: Signal) {
    assert!(try_signal(pid, signal).await, "process {pid} is there");
}

/// Sends a signal to a process; whether there was one.
///
/// # Panics
/// When signals cannot be sent at all.
pub async fn try_signal(pid: u32, signal: Signal) -> bool {
    let sent = Command::new("kill").args([signal.flag(), &pid.to_string()]).stderr(Stdio::null()).status();
    sent.await.expect("kill can be run").success()
}

/// The processes that a process has started and that still run.
#[must_use]
pub fn children(of: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name, which may hold anything, come the state and the parent.
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        parent.and_then(|parent| parent.parse().ok()) == Some(of)
    })
    .collect()
}

/// Waits until a process has ended.
///
/// # Panics
/// When it has not within the time.
pub async fn ended(pid: u32, within: Duration) {
    let stat = format!("/proc/{pid}/stat");
    until("the process ends", within, || {
        // What has ended and was not yet waited for is a zombie.
        let state = std::fs::read_to_string(&stat).unwrap_or_default();
        let gone = state.is_empty() || state.rsplit(')').next().is_some_and(|s| s.trim().starts_with('Z'));
        async move { gone }
    })
    .await;
}

/// Ends a process of the stack and keeps it down.
///
/// # Panics
/// When `./dev` fails.
pub async fn stop(stage: &Stage, name: &str, signal: Signal) {
    run("stack-stop", stage, &[name, signal.flag().trim_start_matches('-')]).await;
}

/// Starts a process of the stack again and waits until it is ready.
///
/// # Panics
/// When `./dev` fails.
pub async fn start(stage: &Stage, name: &str) {
    run("stack-start", stage, &[name]).await;
}

/// The same for several that wait for each other.
///
/// # Panics
/// When `./dev` fails.
pub async fn start_all(stage: &Stage, names: &[String]) {
    futures::future::join_all(names.iter().map(|name| start(stage, name))).await;
}

async fn run(verb: &str, stage: &Stage, arguments: &[&str]) {
    let run = Command::new(root().join("dev"))
        .arg(verb)
        .arg(&stage.settings.stack)
        .args(arguments)
        .stdin(Stdio::null())
        .status();
    let status =
        tokio::time::timeout(PATIENCE * 2, run).await.expect("./dev ends").expect("./dev can be run");
    assert!(status.success(), "./dev {verb} {arguments:?} failed");
}
