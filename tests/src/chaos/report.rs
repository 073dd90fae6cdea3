//! The report of a run: for people as text, for scripts as JSON. Owns the form; judges nothing.

use serde::Serialize;

use super::Wish;
use super::judge::Judged;
use super::plan::Fault;
use crate::Settings;

/// What came out of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    scenario: &'static str,
    version: &'static str,
    commit: String,
    cpus: usize,
    storage: String,
    nats_sync: String,
    redis_fsync: String,
    /// Coordinators.
    replicas: usize,
    /// Copies that the broker keeps of each stream.
    stream_replicas: usize,
    seed: u64,
    seconds: u64,
    killed: usize,
    ended: usize,
    frozen: usize,
    #[serde(flatten)]
    judged: Judged,
    /// What must hold and did not; empty where all is well.
    faults: Vec<String>,
}

impl Report {
    pub(super) fn new(wish: &Wish, settings: &Settings, done: &[Fault], judged: Judged) -> Self {
        let or = |name: &str, other: &str| std::env::var(name).unwrap_or_else(|_| other.to_owned());
        let count = |is: fn(&Fault) -> bool| done.iter().filter(|fault| is(fault)).count();
        let mut faults = judged.faults();
        if done.is_empty() {
            faults.push("nothing was done to the mesh".to_owned());
        }
        Self {
            scenario: "chaos",
            version: env!("CARGO_PKG_VERSION"),
            commit: or("MESH_COMMIT", "unknown"),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            storage: or("MESH_STORAGE", "file"),
            nats_sync: or("MESH_NATS_SYNC", "default"),
            redis_fsync: or("MESH_REDIS_FSYNC", "unknown"),
            replicas: settings.coordinators.len(),
            stream_replicas: settings.stream_replicas,
            seed: wish.seed,
            seconds: wish.duration.as_secs(),
            killed: count(|fault| matches!(fault, Fault::Kill(_))),
            ended: count(|fault| matches!(fault, Fault::End(_))),
            frozen: count(|fault| matches!(fault, Fault::Freeze(..))),
            judged,
            faults,
        }
    }

    /// Whether everything that must hold did.
    #[must_use]
    pub const fn holds(&self) -> bool {
        self.faults.is_empty()
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or_default();
        let mut text = String::new();
        for (name, value) in value.as_object().into_iter().flatten() {
            if !value.is_array() {
                text.push_str(&format!("{name:<24} {}\n", value.to_string().trim_matches('"')));
            }
        }
        for example in value["examples"].as_array().into_iter().flatten() {
            text.push_str(&format!("for example: {}\n", example.as_str().unwrap_or_default()));
        }
        for fault in &self.faults {
            text.push_str(&format!("FAILED: {fault}\n"));
        }
        if self.faults.is_empty() {
            text.push_str("everything that must hold did\n");
        } else {
            text.push_str(&format!("again: ./dev chaos --seed {} --seconds {}\n", self.seed, self.seconds));
        }
        text
    }
}
