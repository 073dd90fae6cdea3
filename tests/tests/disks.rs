//! Servers whose disk is full: what waits, what goes on, what agents and operators see, and the books when there is room
//! again. Each server needs a small file system of its own (`./dev stack-run --small-disks`), so that these tests have a stage
//! of their own, and are not run with the others.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mesh_tests::operator::{
    doctor_fails, until_archiver, until_archiver_shows, until_one_says, until_readiness, until_up,
};
use mesh_tests::{PATIENCE, Stage, Traffic, until};

/// How long a disk stays full after everybody has noticed, and nobody is answered.
const FULL: Duration = Duration::from_secs(5);
/// A larger file system than this is not one that was made to be filled.
const DISK_BYTES_MAX: u64 = 1 << 30;
/// What is written at once; the rest of a page is filled as well.
const PIECE: usize = 4_096;

/// A file that takes all the room of a server's disk until it is dropped.
struct Ballast {
    path: PathBuf,
    file: File,
}

impl Ballast {
    fn load(stage: &Stage, server: &str) -> anyhow::Result<Self> {
        let path = stage.settings.stack.join("data").join(server).join("ballast");
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let mut ballast = Self { path, file };
        ballast.fill()?;
        Ok(ballast)
    }

    /// Takes what room there is; a server may have given some back.
    fn fill(&mut self) -> anyhow::Result<()> {
        loop {
            anyhow::ensure!(
                self.file.metadata()?.len() < DISK_BYTES_MAX,
                "{} is not on a small file system: run these tests with ./dev stack-run --small-disks",
                self.path.display()
            );
            match self.file.write_all(&[0; PIECE]) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Keeps the disk full until something has come about.
    async fn until(&mut self, seen: impl Future<Output = ()>) -> anyhow::Result<()> {
        let mut seen = std::pin::pin!(seen);
        loop {
            self.fill()?;
            tokio::select! {
                () = &mut seen => return Ok(()),
                () = until_later() => {}
            }
        }
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        // A test that fails leaves the disk as it should be for the next.
        drop(fs::remove_file(&self.path));
    }
}

/// The time between two looks at how full a disk is.
async fn until_later() {
    let begun = Instant::now();
    until("a moment has passed", PATIENCE, || async { begun.elapsed() >= Duration::from_millis(200) }).await;
}

/// The answers come to an end while the disk is full: what the last page had room for was recorded, and may be told.
async fn nothing_is_answered(traffic: &Traffic, ballast: &mut Ballast) -> anyhow::Result<()> {
    let mut last = (traffic.answered(), Instant::now());
    let quiet = || {
        let answered = traffic.answered();
        if answered != last.0 {
            last = (answered, Instant::now());
        }
        let quiet = last.1.elapsed() >= FULL;
        async move { quiet }
    };
    ballast.until(until("nobody is answered for that time", PATIENCE, quiet)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_disk_of_redis_is_full_dispatches_wait_and_none_is_lost() -> anyhow::Result<()> {
    let traffic = Traffic::start().await?;
    let stage = traffic.stage.clone();
    let onlooker = stage.mesh.agent(&stage.name("onlooker")).depends_on(traffic.worker()).register().await?;
    traffic.replies(100).await;
    let mut ballast = Ballast::load(&stage, "redis")?;
    ballast.until(until_one_says(&stage, "503", "the audit ledger")).await?;
    nothing_is_answered(&traffic, &mut ballast).await?;
    let log = fs::read_to_string(stage.settings.stack.join("logs/redis.log"))?;
    assert!(log.contains("Can't recover from AOF write error"), "it ends rather than forget");
    let event = onlooker.publish_event(traffic.worker(), "work").json(&1)?.send().await?;
    drop(ballast);

    until_readiness(&stage, "200", "ready").await;
    until_up(&stage, "redis", true).await;
    traffic.replies(100).await;
    assert_eq!(traffic.balance_beside(&[event.id()]).await?, [], "no handler saw a dispatch twice");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_disk_of_the_broker_is_full_callers_wait_and_nothing_is_lost() -> anyhow::Result<()> {
    let traffic = Traffic::start().await?;
    let stage = traffic.stage.clone();
    let onlooker = stage.mesh.agent(&stage.name("onlooker")).depends_on(traffic.worker()).register().await?;
    traffic.replies(100).await;
    let mut ballast = Ballast::load(&stage, "nats")?;
    ballast.until(until_readiness(&stage, "503", "the broker stores nothing")).await?;
    until_up(&stage, "nats", false).await;
    let waits =
        tokio::spawn(onlooker.dispatch(traffic.worker(), "work").budget(PATIENCE).json(&1)?.request());
    doctor_fails(&stage, "broker health", "make room on its disk").await;
    nothing_is_answered(&traffic, &mut ballast).await?;
    assert!(!waits.is_finished(), "a caller waits for the broker");
    drop(ballast);

    // Once a stream could not be written, the broker stores nothing in it until it is started again.
    until_readiness(&stage, "200", "ready").await;
    until_up(&stage, "nats", true).await;
    let log = fs::read_to_string(stage.settings.stack.join("logs/nats.log"))?;
    assert!(log.contains("is started again, since its disk has room again"), "its supervisor did it");
    let answered = waits.await??;
    traffic.replies(100).await;
    // What was stored and not yet acknowledged may have been published again; what ran twice ended once all the same.
    traffic.balance_beside(&[answered.id()]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_disk_of_postgresql_is_full_everything_runs_and_the_trail_waits() -> anyhow::Result<()> {
    let traffic = Traffic::start().await?;
    let stage = traffic.stage.clone();
    traffic.replies(100).await;
    let mut ballast = Ballast::load(&stage, "postgres")?;
    ballast.until(until_archiver(&stage, "503", "PostgreSQL stores nothing")).await?;
    until_archiver_shows(&stage, "postgres_stores 0").await;
    doctor_fails(&stage, "archive store", "make room on its disk").await;
    let begun = Instant::now();
    while begun.elapsed() < FULL {
        ballast.fill()?;
        traffic.replies(50).await;
    }
    until_readiness(&stage, "200", "ready").await;
    drop(ballast);

    until_archiver(&stage, "200", "ready").await;
    assert_eq!(traffic.balance().await?, [], "no handler saw a dispatch twice");
    Ok(())
}
