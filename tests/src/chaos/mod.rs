//! Chaos: coordinators that are killed, stopped and asked to end in turn while the mesh is under load, and a judge.
//!
//! Owns the course of a run; what is done to whom is the plan's, who sends what is the load's, what must hold is the judge's.
//! The rule it keeps: the seed decides all that is done on purpose, and the judge compares what senders, handlers and
//! PostgreSQL counted, each for itself.

mod judge;
mod load;
mod plan;
mod report;

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use governance::{Policy, Timestamp};

pub use plan::{Fault, Plan};
pub use report::Report;

use crate::stack::{self, Signal};
use crate::{PATIENCE, Stage, until};
use load::Load;

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Everything that is done on purpose follows from it.
    pub seed: u64,
    /// How long faults go on.
    pub duration: Duration,
}

/// Plays the plan of a seed, and judges.
///
/// # Errors
/// When the mesh does not come to rest, or cannot be asked. What it did wrong is in the report.
///
/// # Panics
/// When the stack around it is not what `./dev chaos` makes.
pub async fn run(wish: &Wish) -> anyhow::Result<Report> {
    let stage = Stage::set().await;
    let policy = policy(&stage)?;
    ready(&stage).await;
    let load = Load::start(&stage).await?;
    load.flows().await?;
    let faults = play(&stage, wish).await?;
    ready(&stage).await;
    let told = load.end().await?;
    stage.archived().await;
    let judged = judge::judge(&stage, &policy, &told, &faults).await?;
    let faults: Vec<Fault> = faults.into_iter().map(|(_, fault)| fault).collect();
    Ok(Report::new(wish, &stage.settings, &faults, judged))
}

fn policy(stage: &Stage) -> anyhow::Result<Policy> {
    let path = &stage.settings.policy;
    let text = std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
    Policy::parse(&text).map_err(|problems| anyhow::anyhow!("{}: {problems:?}", path.display()))
}

/// Waits until each coordinator can work.
async fn ready(stage: &Stage) {
    for address in &stage.settings.coordinators {
        until(&format!("{address} is ready"), PATIENCE, || async {
            stage.http(address, "/readyz").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 "))
        })
        .await;
    }
}

/// Does what the plan says until the time is over; gives what was done, and when.
async fn play(stage: &Stage, wish: &Wish) -> anyhow::Result<Vec<(Timestamp, Fault)>> {
    let run = stage.settings.stack.join("run");
    let coordinators = stage.settings.coordinators.len();
    let mut plan = Plan::new(wish.seed, coordinators);
    let end = Instant::now() + wish.duration;
    let mut done = Vec::new();
    while Instant::now() < end {
        let step = plan.next_step();
        tracing::info!(fault = %step.fault, pause = ?step.pause, "next");
        let at = Timestamp::ZERO.after(SystemTime::now().duration_since(UNIX_EPOCH)?);
        inflict(&run, step.fault).await?;
        done.push((at, step.fault));
        tokio::time::sleep(step.pause).await;
    }
    Ok(done)
}

async fn inflict(run: &Path, fault: Fault) -> anyhow::Result<()> {
    let (victim, signal) = match fault {
        Fault::Kill(victim) => (victim, Signal::Kill),
        Fault::End(victim) => (victim, Signal::Terminate),
        Fault::Freeze(victim, _) => (victim, Signal::Stop),
    };
    let name = format!("coordinator-{victim}");
    // Its supervisor may be about to start it again.
    let pid =
        crate::eventually(&format!("{name} runs"), PATIENCE, || async { stack::process(run, &name) }).await;
    stack::signal(pid, signal).await;
    if let Fault::Freeze(_, time) = fault {
        tokio::time::sleep(time).await;
        stack::signal(pid, Signal::Continue).await;
    }
    Ok(())
}
