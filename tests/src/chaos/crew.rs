//! The crew: processes with the agents that take work, to be killed and stopped like any other.
//!
//! Owns what handlers do and what they note. The rule it keeps: each run is in a file of its process before the handler
//! answers, so that it survives a kill; the file is appended to and never rewritten.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use governance::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use worker_sdk::{Agent, AgentBuilder, Context, DispatchId, Failure, Mesh};

use super::cast;
use crate::clock;
use crate::conservation::{Effect, Effects};

/// Between two tries to reach a broker that is away.
const TRY_AGAIN: Duration = Duration::from_millis(300);
/// What a stopping process gives to what runs; its supervisor waits longer.
const DRAIN: Duration = Duration::from_secs(10);
/// What an effects file is called after the process and its id.
const SUFFIX: &str = "effects";

/// Where the processes of a stack keep what their handlers saw.
pub(super) fn folder(stack: &Path) -> PathBuf {
    stack.join("evidence").join("effects")
}

/// Runs the process `crew-<index>` until it is asked to end.
///
/// # Errors
/// When its files cannot be written, or it may not register.
pub async fn run(index: usize, stack: &Path) -> anyhow::Result<()> {
    let process = cast::crew(index);
    let notes = Notes::open(&folder(stack), &process)?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot hear TERM")?;
    let agents = tokio::select! {
        agents = assemble(index, &notes) => agents?,
        _ = terminate.recv() => return Ok(()),
    };
    // What `./dev` waits for before it goes on.
    std::fs::write(stack.join("run").join(format!("{process}.addr")), "registered\n")?;
    terminate.recv().await;
    for ended in futures::future::join_all(agents.iter().map(Agent::stop)).await {
        if let Err(error) = ended {
            tracing::warn!(%error, "an agent did not stop in order");
        }
    }
    Ok(())
}

/// Registers the agents of a process, as soon as the mesh can be reached.
async fn assemble(index: usize, notes: &Notes) -> anyhow::Result<Vec<Agent>> {
    loop {
        match try_to_assemble(index, notes).await {
            Ok(agents) => return Ok(agents),
            Err(error) if error.problems().is_empty() => tracing::warn!(%error, "not registered yet"),
            Err(error) => anyhow::bail!("refused: {:?}", error.problems()),
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}

async fn try_to_assemble(index: usize, notes: &Notes) -> Result<Vec<Agent>, worker_sdk::Error> {
    let mesh = Mesh::from_env().await?;
    let mut agents = Vec::new();
    for name in cast::agents_of(index).iter().copied() {
        let agent = mesh.agent(name).instances(1, cast::INSTANCES_MAX).drain_within(DRAIN);
        let agent = match name {
            cast::FRAGILE => fragile(agent, notes),
            cast::SLUGGISH => sluggish(agent, notes),
            cast::SECRET => offer(agent, cast::WORK, notes, name, || (Duration::ZERO, false)),
            _ => worker(agent, notes, name),
        };
        agents.push(agent.register().await?);
    }
    Ok(agents)
}

fn worker(agent: AgentBuilder, notes: &Notes, name: &'static str) -> AgentBuilder {
    let news = notes.clone();
    let agent = agent.max_concurrent(64).on_topic(cast::NEWS, move |context: Context, _: u64| {
        let noted = news.note(&context, name, false);
        async move { noted }
    });
    let agent = offer(agent, cast::URGENT, notes, name, || (Duration::ZERO, false));
    offer(agent, cast::WORK, notes, name, || (Duration::ZERO, false))
}

fn fragile(agent: AgentBuilder, notes: &Notes) -> AgentBuilder {
    let agent = agent.fallback_static(cast::WORK, &0_u64);
    offer(agent, cast::WORK, notes, cast::FRAGILE, || (Duration::ZERO, cast::is_ill(clock())))
}

fn sluggish(agent: AgentBuilder, notes: &Notes) -> AgentBuilder {
    offer(agent.max_concurrent(32), cast::WORK, notes, cast::SLUGGISH, || (cast::SLUGGISH_FOR, false))
}

/// A capability that notes each run, takes its time, and fails where it is ill.
fn offer(
    agent: AgentBuilder,
    capability: &str,
    notes: &Notes,
    name: &'static str,
    mood: impl Fn() -> (Duration, bool) + Send + Sync + 'static,
) -> AgentBuilder {
    let notes = notes.clone();
    agent.capability(capability, move |context: Context, n: u64| {
        let (takes, fails) = mood();
        let noted = notes.note(&context, name, fails);
        answer(noted, takes, fails, n)
    })
}

async fn answer(noted: Result<(), Failure>, takes: Duration, fails: bool, n: u64) -> Result<u64, Failure> {
    noted?;
    if !takes.is_zero() {
        tokio::time::sleep(takes).await;
    }
    if fails { Err(Failure::new("ill")) } else { Ok(n + 1) }
}

/// The file of one process.
#[derive(Debug, Clone)]
struct Notes(Arc<File>);

impl Notes {
    fn open(folder: &Path, process: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let path = folder.join(format!("{process}.{}.{SUFFIX}", std::process::id()));
        let file = OpenOptions::new().append(true).create(true).open(&path);
        Ok(Self(Arc::new(file.with_context(|| format!("failed to open {}", path.display()))?)))
    }

    /// One line in one write: a kill leaves it whole or not at all.
    fn note(&self, context: &Context, agent: &str, fails: bool) -> Result<(), Failure> {
        let verdict = if fails { "failed" } else { "ok" };
        let line = format!("{} {} {} {agent} {verdict}\n", context.id(), context.attempt(), clock().0);
        (&*self.0).write_all(line.as_bytes()).map_err(|e| Failure::new(format!("not noted: {e}")))
    }
}

/// Reads what all processes of a stack noted.
///
/// # Errors
/// When a file cannot be read, or a line of it.
pub(super) fn effects(stack: &Path) -> anyhow::Result<Effects> {
    let mut all = Effects::new();
    for entry in std::fs::read_dir(folder(stack)).context("no process has noted anything")? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let mut parts = name.split('.');
        let (Some(process), Some(pid), Some(SUFFIX)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let pid = pid.parse().with_context(|| format!("{} has no process id", path.display()))?;
        for line in std::fs::read_to_string(&path)?.lines() {
            let (id, run) = effect(line, process, pid)
                .with_context(|| format!("{}: cannot read `{line}`", path.display()))?;
            all.entry(id).or_default().push(run);
        }
    }
    Ok(all)
}

fn effect(line: &str, process: &str, pid: u32) -> Option<(DispatchId, Effect)> {
    let mut words = line.split(' ');
    let id = words.next()?.parse().ok()?;
    let run = Effect {
        attempt: words.next()?.parse().ok()?,
        at: Timestamp(words.next()?.parse().ok()?),
        process: process.to_owned(),
        pid,
        agent: words.next()?.to_owned(),
        failed: match words.next()? {
            "failed" => true,
            "ok" => false,
            _ => return None,
        },
    };
    words.next().is_none().then_some((id, run))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_who_ran_what_when_and_how() {
        let (id, run) = effect("d-0000000000000007-2a-1 2 1500 worker-0 failed", "crew-1", 9).unwrap();
        assert_eq!((id.sequence, id.slot), (42, 1));
        let at = Timestamp(1500);
        let (process, agent) = ("crew-1".to_owned(), "worker-0".to_owned());
        assert_eq!(run, Effect { attempt: 2, at, process, pid: 9, agent, failed: true });
        assert!(effect("d-0000000000000007-2a-1 2 1500 worker-0", "crew-1", 9).is_none());
        assert!(effect("d-0000000000000007-2a-1 2 1500 worker-0 ok more", "crew-1", 9).is_none());
    }
}
