//! The event log: one JSON object for each line, as `mesh replay` steps through it. Owns the form; writes nothing by itself.
//!
//! The rule it keeps: the same seed gives the same bytes.

use std::fmt::Write as _;

use governance::Timestamp;

/// Details longer than this are cut: a log is read by people.
const DETAIL_MAX: usize = 400;

/// Where events go.
#[derive(Debug, Default)]
pub struct Log {
    text: Option<String>,
    begin: u64,
}

impl Log {
    /// A log that keeps what happens, or one that keeps nothing.
    #[must_use]
    pub fn new(keep: bool, begin: Timestamp) -> Self {
        Self { text: keep.then(String::new), begin: begin.0 }
    }

    /// Whether anything is kept.
    #[must_use]
    pub const fn is_kept(&self) -> bool {
        self.text.is_some()
    }

    /// Something happened; `detail` is made only where it is kept.
    pub fn note(
        &mut self,
        step: u64,
        now: Timestamp,
        actor: &dyn std::fmt::Display,
        event: &str,
        detail: impl FnOnce() -> String,
    ) {
        let Some(text) = &mut self.text else { return };
        let mut detail = detail();
        if detail.len() > DETAIL_MAX {
            let cut = (0..=DETAIL_MAX).rev().find(|at| detail.is_char_boundary(*at)).unwrap_or(0);
            detail.truncate(cut);
        }
        let detail = serde_json::Value::String(detail);
        let us = now.0.saturating_sub(self.begin) / 1_000;
        let (ms, rest) = (us / 1_000, us % 1_000);
        writeln!(
            text,
            "{{\"step\":{step},\"at_ms\":{ms}.{rest:03},\"actor\":\"{actor}\",\"event\":\"{event}\",\"detail\":{detail}}}"
        )
        .expect("writing to memory cannot fail");
    }

    /// The lines.
    #[must_use]
    pub fn into_text(self) -> String {
        self.text.unwrap_or_default()
    }
}
