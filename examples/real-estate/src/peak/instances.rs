//! Owns how many instances of an agent there are, as their heartbeats tell. Rule kept: it asks nobody who counts for
//! himself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::StreamExt;
use serde::Deserialize;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use worker_sdk::Mesh;

use crate::ledger::lock;

/// An instance that was not heard for so long is gone: the same time after which the mesh gives its work to others.
const SILENCE: Duration = Duration::from_secs(3);
/// How often it is looked whether the number has changed.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, Deserialize)]
struct Beat {
    instance: String,
    #[serde(default)]
    leaving: bool,
}

type Heard = Arc<Mutex<HashMap<String, Instant>>>;

/// The instances of one agent over time.
#[derive(Debug)]
pub(crate) struct Instances {
    heard: Heard,
    /// The number from when on, whenever it changed.
    lines: Arc<Mutex<Vec<(Instant, u32)>>>,
    started: Instant,
    tasks: [JoinHandle<()>; 2],
}

impl Instances {
    /// Listens from here on.
    ///
    /// # Errors
    /// When the connection is closed.
    pub(crate) async fn watch(mesh: &Mesh, agent: &str) -> anyhow::Result<Self> {
        let mut beats = mesh.nats().subscribe(format!("mesh.beat.{agent}")).await.context("no heartbeats")?;
        let (heard, lines) = (Heard::default(), Arc::new(Mutex::new(Vec::new())));
        let hear = Arc::clone(&heard);
        let listening = tokio::spawn(async move {
            while let Some(message) = beats.next().await {
                let Ok(beat) = serde_json::from_slice::<Beat>(&message.payload) else { continue };
                if beat.leaving {
                    lock(&hear).remove(&beat.instance);
                } else {
                    lock(&hear).insert(beat.instance, Instant::now());
                }
            }
        });
        let (count, keep) = (Arc::clone(&heard), Arc::clone(&lines));
        let counting = tokio::spawn(async move {
            loop {
                note(&keep, alive(&count));
                sleep(LOOK).await;
            }
        });
        Ok(Self { heard, lines, started: Instant::now(), tasks: [listening, counting] })
    }

    /// How many there are.
    pub(crate) fn now(&self) -> u32 {
        alive(&self.heard)
    }

    /// Waits until their number is as wanted.
    ///
    /// # Errors
    /// When it is not within the time.
    pub(crate) async fn until(&self, patience: Duration, wanted: impl Fn(u32) -> bool) -> anyhow::Result<()> {
        let since = Instant::now();
        while !wanted(self.now()) {
            anyhow::ensure!(
                since.elapsed() < patience,
                "after {patience:?} there are {} instances",
                self.now()
            );
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// From which second on there were how many.
    pub(crate) fn lines(&self) -> Vec<(f64, u32)> {
        let lines = lock(&self.lines);
        lines.iter().map(|(at, count)| ((*at - self.started).as_secs_f64(), *count)).collect()
    }
}

impl Drop for Instances {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn note(lines: &Mutex<Vec<(Instant, u32)>>, now: u32) {
    let mut lines = lock(lines);
    if lines.last().is_none_or(|(_, last)| *last != now) {
        lines.push((Instant::now(), now));
    }
}

fn alive(heard: &Heard) -> u32 {
    let heard = lock(heard);
    let alive = heard.values().filter(|at| at.elapsed() < SILENCE).count();
    u32::try_from(alive).unwrap_or(u32::MAX)
}
