//! Owns how a run of the demo is shown: the article's performance table, the books, what was staged, as text for people
//! and as one JSON object for scripts. It computes nothing that `books` and `archive` have not. Rule kept: the JSON
//! fields are a contract; fields are only ever added.

use std::fmt::Write as _;

use serde::Serialize;

use crate::books::Books;

/// On what the run was made; the same in every report of the project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    pub scenario: String,
    pub version: String,
    pub commit: String,
    pub cpus: usize,
    pub storage: String,
    pub nats_sync: String,
    pub redis_fsync: String,
    /// Coordinators.
    pub replicas: usize,
    /// Copies that the broker keeps of each stream.
    pub stream_replicas: usize,
}

/// The article's table, from the archive.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Table {
    /// Median of the mesh's own share of a P0 dispatch: in its lane and in its inbox.
    pub p50_ms: f64,
    pub p95_ms: f64,
    pub p99_ms: f64,
    /// The same for every priority.
    pub all_p50_ms: f64,
    pub all_p95_ms: f64,
    pub all_p99_ms: f64,
    /// Most dispatches admitted within any second.
    pub peak_per_s: u64,
    pub breaker_trips: u64,
    /// Of a hundred trips, how many ended with the target passing again.
    pub auto_recovery_pct: f64,
    /// Dispatches refused, and claims of P0 demoted.
    pub violations_blocked: u64,
    pub audit_completeness_pct: f64,
}

/// What people got, measured by their own clocks.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Talk {
    pub conversations: u64,
    pub messages: u64,
    pub answered: u64,
    pub unanswered: u64,
    pub answer_p50_ms: f64,
    pub answer_p99_ms: f64,
    pub seconds: f64,
}

/// Something that was staged, and whether it was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Scene {
    /// A short stable name.
    pub name: &'static str,
    pub seen: bool,
    /// One sentence with the figures.
    pub text: String,
}

/// A whole report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    #[serde(flatten)]
    pub setting: Setting,
    #[serde(flatten)]
    pub books: Books,
    #[serde(flatten)]
    pub table: Table,
    #[serde(flatten)]
    pub talk: Talk,
    pub scenes: Vec<Scene>,
    /// A dispatch with an answer to a person, to look at with `mesh trace`.
    pub example_trace: Option<String>,
    pub balanced: bool,
}

impl Report {
    /// The report as text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        self.write_table(&mut out);
        self.write_books(&mut out);
        self.write_scenes(&mut out);
        if let Some(id) = &self.example_trace {
            let _ = writeln!(out, "\nOne answer, hop by hop, while this mesh is up:  mesh trace {id}");
        }
        out
    }

    fn write_table(&self, out: &mut String) {
        let (table, talk) = (&self.table, &self.talk);
        let setting = &self.setting;
        let _ = writeln!(
            out,
            "\nReal-estate mesh: {} messages of {} people in {:.0} s, {} coordinator(s), {} cores, streams on {}, \
             broker sync {}, redis fsync {}\n",
            talk.messages,
            talk.conversations,
            talk.seconds,
            setting.replicas,
            setting.cpus,
            setting.storage,
            setting.nats_sync,
            setting.redis_fsync,
        );
        let ms = |value: f64| format!("{value:.1} ms");
        let rows = [
            ("Peak throughput in this run", format!("{} dispatches/s", table.peak_per_s)),
            ("P50 dispatch latency (P0, the mesh's own share)", ms(table.p50_ms)),
            ("P95 dispatch latency (P0, the mesh's own share)", ms(table.p95_ms)),
            ("P99 dispatch latency (P0, the mesh's own share)", ms(table.p99_ms)),
            (
                "P50 / P95 / P99, all priorities, quota waits included",
                format!("{:.1} / {:.1} / {:.1} ms", table.all_p50_ms, table.all_p95_ms, table.all_p99_ms),
            ),
            (
                "P50 / P99 from a person's message to its answer",
                format!("{:.1} / {:.1} ms", talk.answer_p50_ms, talk.answer_p99_ms),
            ),
            ("People's messages answered", format!("{} of {}", talk.answered, talk.messages)),
            ("Circuit breaker trips", table.breaker_trips.to_string()),
            ("Auto-recovery success rate", format!("{:.0} %", table.auto_recovery_pct)),
            ("Governance violations blocked", table.violations_blocked.to_string()),
            ("Audit log completeness", format!("{:.2} %", table.audit_completeness_pct)),
        ];
        write_rows(out, ("Metric (from the archive)", "Value"), &rows);
    }

    fn write_books(&self, out: &mut String) {
        let books = &self.books;
        let rows = [
            ("Accepted by the mesh (senders' own count)", books.accepted),
            ("Completed (archive)", books.completed),
            ("Rejected by the rules (archive)", books.rejected),
            ("Still in flight (archive)", books.in_flight),
            ("Lost (in neither)", books.lost),
            ("Effects that happened twice (handlers' own count)", books.duplicate_effects),
            ("Successes without an effect (archive against handlers)", books.effects_missing),
            ("Outcomes told in two ways (archive against senders)", books.disagreements),
            ("Audited (archive)", books.audited),
            ("Audit missing (senders and handlers against archive)", books.audit_missing),
            ("Admissions above a quota in any second (archive)", books.quota_exceeded),
        ];
        let rows = rows.map(|(name, count)| (name, count.to_string()));
        let verdict = if self.balanced { "they balance" } else { "THEY DO NOT BALANCE" };
        let _ = writeln!(out);
        write_rows(out, ("Books", verdict), &rows);
    }

    fn write_scenes(&self, out: &mut String) {
        let _ = writeln!(out);
        for scene in &self.scenes {
            let mark = if scene.seen { "seen    " } else { "NOT SEEN" };
            let _ = writeln!(out, "{mark}  {}", scene.text);
        }
    }
}

/// Two columns with a rule under the head; the second one flush right.
fn write_rows(out: &mut String, head: (&str, &str), rows: &[(&str, String)]) {
    let chars = |text: &str| text.chars().count();
    let left = rows.iter().map(|(name, _)| chars(name)).chain([chars(head.0)]).max().unwrap_or(0);
    let right = rows.iter().map(|(_, value)| chars(value)).chain([chars(head.1)]).max().unwrap_or(0);
    let _ = writeln!(out, "{:<left$}   {:>right$}", head.0, head.1);
    let _ = writeln!(out, "{}   {}", "-".repeat(left), "-".repeat(right));
    for (name, value) in rows {
        let _ = writeln!(out, "{name:<left$}   {value:>right$}");
    }
}

/// The value below which `percent` of the sorted `values` lie (nearest rank), in milliseconds from microseconds.
pub fn percentile_ms(sorted_us: &[i64], percent: usize) -> f64 {
    let rank = (sorted_us.len() * percent).div_ceil(100).max(1);
    let value = sorted_us.get(rank - 1).copied().unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "microseconds of one run are far below 2^52")]
    let ms = value as f64 / 1_000.0;
    ms
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            setting: Setting {
                scenario: "demo".to_owned(),
                version: "0".to_owned(),
                commit: "c".to_owned(),
                cpus: 2,
                storage: "file".to_owned(),
                nats_sync: "default".to_owned(),
                redis_fsync: "always".to_owned(),
                replicas: 1,
                stream_replicas: 1,
            },
            books: Books { accepted: 3, completed: 3, audited: 3, ..Books::default() },
            table: Table { p50_ms: 1.25, ..Table::default() },
            talk: Talk::default(),
            scenes: vec![Scene { name: "undeclared", seen: true, text: "A call was refused.".to_owned() }],
            example_trace: Some("d-1".to_owned()),
            balanced: true,
        }
    }

    #[test]
    fn the_json_has_the_fields_that_scripts_rely_on() {
        let json = serde_json::to_value(report()).unwrap();
        for field in [
            "scenario",
            "version",
            "commit",
            "cpus",
            "storage",
            "nats_sync",
            "redis_fsync",
            "replicas",
            "accepted",
            "completed",
            "rejected",
            "in_flight",
            "lost",
            "duplicate_effects",
            "audited",
            "audit_missing",
            "quota_exceeded",
            "p50_ms",
            "p95_ms",
            "p99_ms",
            "peak_per_s",
            "breaker_trips",
            "auto_recovery_pct",
            "violations_blocked",
            "audit_completeness_pct",
        ] {
            assert!(json.get(field).is_some(), "{field}");
        }
    }

    #[test]
    fn the_text_shows_table_books_and_scenes() {
        let text = report().text();
        for part in ["1.2 ms", "they balance", "seen      A call was refused.", "mesh trace d-1"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 150));
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let values: Vec<i64> = (1..=100).map(|ms| ms * 1_000).collect();
        let found = [50, 95, 99, 100].map(|percent| percentile_ms(&values, percent));
        assert_eq!(found.map(|ms| format!("{ms:.0}")), ["50", "95", "99", "100"]);
        assert!(percentile_ms(&[], 50).abs() < f64::EPSILON);
    }
}
