//! Chaos: every process, way and disk of a mesh under load suffers something, and a judge looks at what came of it.
//!
//! Owns the course of a run. What is done to whom is in [`plan`], how in [`inflict`], and when it was in [`deeds`]; who plays in
//! [`cast`], who takes work in [`crew`], who sends in [`load`]; what must hold in `crate::conservation` and [`judge`].
//! The rule it keeps: the seed decides all that is done on purpose, and the judge compares what senders, handlers and
//! PostgreSQL counted, each for itself.

mod cast;
pub mod crew;
mod deeds;
mod evidence;
mod inflict;
mod judge;
mod load;
pub mod plan;
pub mod proxy;
mod random;
mod report;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use governance::Policy;
use worker_sdk::Mesh;

pub use plan::{Fault, Plan};
pub use report::Report;

use crate::conservation::{self, Told};
use crate::{PATIENCE, Stage, until};
use deeds::Journal;
use evidence::Evidence;
use judge::Sides;
use load::Load;
use plan::{Sizes, Track};

/// What everything that waits is given once faults are over: for retries, for the silence of the lost, and for an archiver that
/// catches up on a busy machine.
const SETTLE: Duration = Duration::from_secs(180);
/// How often it is looked whether everything has ended.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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
    let sizes = sizes(&stage);
    let evidence = Evidence::new(&stage.settings.stack)?;
    let journal = Journal::create(&evidence.path("plan.jsonl"))?;
    ready(&stage).await;
    let load = Load::start(senders(&stage).await?).await?;
    load.flows().await;
    let end = Instant::now() + wish.duration;
    let mut plans = [Track::Mesh, Track::Edge].map(|track| Plan::new(wish.seed, track, sizes));
    let [mesh, edge] = &mut plans;
    tokio::try_join!(
        inflict::play(&stage, &journal, end, || mesh.next_step()),
        inflict::play(&stage, &journal, end, || edge.next_step()),
    )?;
    ready(&stage).await;
    let counted = load.end().await?;
    settled(&stage, &counted.told).await?;
    let effects = crew::effects(&stage.settings.stack)?;
    let client = audit_archiver::connect(&stage.settings.postgres_url, "chaos").await?;
    let records = conservation::records(&client, stage.since).await?;
    let deeds = journal.deeds();
    let duration = wish.duration;
    let sides = Sides { counted: &counted, effects: &effects, records: &records, deeds: &deeds, duration };
    let judged = judge::judge(&stage, &client, &policy, &sides).await?;
    evidence.keep(&stage, &sides, &judged.books).await?;
    let report = Report::new(wish, &stage.settings, sizes, &deeds, judged, evidence.folder());
    evidence.write("report.json", &report)?;
    Ok(report)
}

fn policy(stage: &Stage) -> anyhow::Result<Policy> {
    let path = &stage.settings.policy;
    let text = std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
    Policy::parse(&text).map_err(|problems| anyhow::anyhow!("{}: {problems:?}", path.display()))
}

fn sizes(stage: &Stage) -> Sizes {
    let run = stage.settings.stack.join("run");
    let archivers =
        (0..).take_while(|n| crate::stack::process(&run, &plan::Process::Archiver(*n).to_string()).is_some());
    Sizes {
        coordinators: stage.settings.coordinators.len(),
        crews: cast::crews(),
        archivers: archivers.count(),
        nats_nodes: crate::stack::broker_nodes(stage).len(),
        disks: inflict::has_disks(&stage.settings.stack),
    }
}

/// The way of the senders to the mesh, through the proxy like every other.
async fn senders(stage: &Stage) -> anyhow::Result<Mesh> {
    let path = stage.settings.stack.join(format!("{}.env", plan::Process::Senders));
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
    // The last line of a name counts, as in a shell.
    let url = text.lines().rev().find_map(|line| line.strip_prefix("MESH_NATS_URL="));
    Ok(Mesh::connect(url.context("the proxy names no broker")?).await?)
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

/// Waits until all that was accepted has ended and is archived. Where that does not come, the judge says what is missing.
async fn settled(stage: &Stage, told: &Told) -> anyhow::Result<()> {
    let started = Instant::now();
    while started.elapsed() < SETTLE {
        // PostgreSQL may be on its way back.
        if let Ok(books) = stage.archive.books(stage.since).await {
            tracing::info!(
                accepted = told.len(),
                archived = books.accepted,
                open = books.in_flight,
                "settling"
            );
            if books.in_flight == 0 && books.accepted >= told.len() as u64 {
                break;
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    stage
        .archive
        .until_archived(&stage.settings.redis_url, PATIENCE)
        .await
        .context("the trail is not archived")
}
