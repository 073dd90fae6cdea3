//! The report of a run: for people as text, for scripts as JSON. Owns the form; judges nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Wish;
use super::deeds::Deeds;
use super::judge::Judged;
use super::plan::Sizes;
use crate::Settings;
use crate::settings::Conditions;

/// What of a long list is printed; all of it is in the evidence.
const PRINTED_MAX: usize = 10;

/// What came out of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    conditions: Conditions,
    /// Copies that the broker keeps of each stream.
    stream_replicas: usize,
    seed: u64,
    seconds: u64,
    /// How often each kind of fault was done to whom.
    done: BTreeMap<String, u64>,
    done_total: usize,
    /// Kinds of faults that this machine does not allow.
    skipped: Vec<&'static str>,
    #[serde(flatten)]
    judged: Judged,
    examples: Vec<String>,
    /// What must hold and did not; empty where all is well.
    faults: Vec<String>,
    /// Where the evidence is, as long as the stack's folder is kept: after a run that failed.
    evidence: PathBuf,
}

impl Report {
    pub(super) fn new(
        wish: &Wish,
        settings: &Settings,
        sizes: Sizes,
        deeds: &Deeds,
        judged: Judged,
        evidence: &Path,
    ) -> Self {
        let mut faults = judged.faults();
        let mut done = BTreeMap::new();
        for deed in &deeds.0 {
            *done.entry(format!("{} {}", deed.fault.kind(), deed.fault.whom())).or_insert(0) += 1;
        }
        if done.is_empty() {
            faults.push("nothing was done to the mesh".to_owned());
        }
        let mut skipped = vec!["clock jump: the clock of one process cannot be set"];
        if !sizes.disks {
            skipped.push("full disk: nothing can be mounted here, which takes root");
        }
        let findings = judged.books.findings.iter().take(PRINTED_MAX);
        Self {
            conditions: Conditions::of("chaos", settings),
            stream_replicas: settings.stream_replicas,
            seed: wish.seed,
            seconds: wish.duration.as_secs(),
            done,
            done_total: deeds.0.len(),
            skipped,
            examples: findings.map(|finding| format!("{}: {}", finding.id, finding.what)).collect(),
            judged,
            faults,
            evidence: evidence.to_owned(),
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
            if !value.is_array() && !value.is_object() {
                text.push_str(&format!("{name:<28} {}\n", value.to_string().trim_matches('"')));
            }
        }
        for (what, times) in &self.done {
            text.push_str(&format!("done: {what:<38} {times}\n"));
        }
        for what in &self.skipped {
            text.push_str(&format!("not done: {what}\n"));
        }
        let excused = &self.judged.books.excused;
        for duplicate in excused.iter().take(PRINTED_MAX) {
            let [former, latter] = &duplicate.runs;
            text.push_str(&format!(
                "excused: {} ran in {} ({}) and {:.1} s later in {} ({}): {}\n",
                duplicate.id,
                former.process,
                former.pid,
                latter.at.0.saturating_sub(former.at.0) as f64 / 1e9,
                latter.process,
                latter.pid,
                duplicate.cause
            ));
        }
        if excused.len() > PRINTED_MAX {
            text.push_str(&format!("excused: and {} more, in excused.jsonl\n", excused.len() - PRINTED_MAX));
        }
        for example in &self.examples {
            text.push_str(&format!("for example: {example}\n"));
        }
        for fault in &self.faults {
            text.push_str(&format!("FAILED: {fault}\n"));
        }
        if self.faults.is_empty() {
            text.push_str("everything that must hold did\n");
        } else {
            let seed = format!("--seed {} --seconds {}", self.seed, self.seconds);
            text.push_str(&format!("again: ./dev chaos {seed}\nevidence: {}\n", self.evidence.display()));
        }
        text
    }
}
