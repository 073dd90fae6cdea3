//! What a run leaves for whoever has to understand it: the plan with times, what handlers saw, and for each finding everything
//! that all sides know of the dispatch. Owns the folder; payloads are in none of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::json;

use super::judge::Sides;
use crate::Stage;
use crate::conservation::Books;

/// The folder.
#[derive(Debug)]
pub(super) struct Evidence(PathBuf);

impl Evidence {
    pub(super) fn new(stack: &Path) -> anyhow::Result<Self> {
        let folder = stack.join("evidence");
        std::fs::create_dir_all(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
        Ok(Self(folder))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.0
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file of JSON.
    pub(super) fn write(&self, name: &str, value: &impl Serialize) -> anyhow::Result<()> {
        let path = self.path(name);
        let text = serde_json::to_string_pretty(value)? + "\n";
        std::fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))
    }

    /// Writes what was found with everything that is known of each dispatch, and the exceptions of promise 2.
    pub(super) async fn keep(&self, stage: &Stage, sides: &Sides<'_>, books: &Books) -> anyhow::Result<()> {
        let mut findings = BufWriter::new(File::create(self.path("findings.jsonl"))?);
        for finding in &books.findings {
            let id = finding.id.parse().ok();
            // A finding may be about a shard, or an agent.
            let record = match id {
                Some(_) => stage.archive.dispatch(&finding.id).await?,
                None => None,
            };
            let told = id.and_then(|id| sides.counted.told.get(&id));
            let runs = id.and_then(|id| sides.effects.get(&id));
            let line = json!({
                "id": finding.id, "what": finding.what, "accepted": told.is_some(), "told": told, "runs": runs, "record": record,
            });
            writeln!(findings, "{line}")?;
        }
        findings.flush()?;
        let mut excused = BufWriter::new(File::create(self.path("excused.jsonl"))?);
        for duplicate in &books.excused {
            writeln!(excused, "{}", serde_json::to_string(duplicate)?)?;
        }
        excused.flush().context("failed to write the exceptions")?;
        self.keep_course(sides)
    }

    /// Writes what was decided in each second, and the longest that a person's dispatch decided in it had waited.
    fn keep_course(&self, sides: &Sides<'_>) -> anyhow::Result<()> {
        let mut course: BTreeMap<u64, (u64, Duration)> = BTreeMap::new();
        for record in sides.records.values() {
            let second = record.accepted.after(record.lane).0 / 1_000_000_000;
            let (decided, p0_wait) = course.entry(second).or_default();
            *decided += 1;
            if record.is_p0 {
                *p0_wait = (*p0_wait).max(record.lane);
            }
        }
        let mut file = BufWriter::new(File::create(self.path("course.jsonl"))?);
        for (second, (decided, p0_wait)) in course {
            let line = json!({ "at": second, "decided": decided, "p0_wait_max_ms": p0_wait.as_millis() });
            writeln!(file, "{line}")?;
        }
        file.flush().context("failed to write the course")
    }
}
