//! Owns how a peak is shown: the instances over time, the books, and P0 against its budget. Rule kept: the JSON fields are
//! a contract; fields are only ever added.

use std::fmt::Write as _;

use serde::Serialize;

use crate::books::{Books, Record};
use crate::report::{Setting, percentile_ms};

/// The mesh's own latency budget of P0, as in the article.
const P0_BUDGET_MS: f64 = 200.0;

/// A whole report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    #[serde(flatten)]
    pub setting: Setting,
    #[serde(flatten)]
    pub books: Books,
    pub leads: u64,
    pub seconds: f64,
    /// From which second on there were how many lead bots.
    pub instances: Vec<(f64, u32)>,
    pub instances_max: u32,
    /// They went from the least to the most and came back.
    pub went_up_and_back: bool,
    /// The mesh's own share of a P0 dispatch, while everything else waited.
    pub p0_p50_ms: f64,
    pub p0_p95_ms: f64,
    pub p0_p99_ms: f64,
    pub p0_budget_ms: f64,
    pub balanced: bool,
}

impl Report {
    pub(crate) fn new(
        setting: Setting,
        books: Books,
        records: &[Record],
        instances: Vec<(f64, u32)>,
        bots: (u32, u32),
        leads: usize,
        seconds: f64,
    ) -> Self {
        let p0 = records.iter().filter(|record| record.priority == "P0" && record.outcome.is_some());
        let mut p0: Vec<i64> = p0.map(Record::own_share_us).collect();
        p0.sort_unstable();
        Self {
            setting,
            books,
            leads: leads as u64,
            seconds,
            instances_max: instances.iter().map(|(_, count)| *count).max().unwrap_or(0),
            went_up_and_back: went_up_and_back(&instances, bots),
            instances,
            p0_p50_ms: percentile_ms(&p0, 50),
            p0_p95_ms: percentile_ms(&p0, 95),
            p0_p99_ms: percentile_ms(&p0, 99),
            p0_budget_ms: P0_BUDGET_MS,
            balanced: books.balance(),
        }
    }

    /// Whether everything was as it must be.
    pub fn holds(&self) -> bool {
        self.balanced && self.went_up_and_back && self.p0_p95_ms <= self.p0_budget_ms
    }

    /// The report as text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "\nMorning peak: {} leads in {:.0} s, {} coordinator(s)\n",
            self.leads, self.seconds, self.setting.replicas
        );
        for (at, count) in &self.instances {
            let _ = writeln!(out, "{at:>6.1} s  {count} lead bots  {}", "#".repeat(*count as usize));
        }
        let verdict = if self.went_up_and_back {
            "they went up and came back"
        } else {
            "THEY DID NOT GO UP AND COME BACK"
        };
        let _ = writeln!(out, "\nLead bots: at most {}; {verdict}", self.instances_max);
        let _ = writeln!(
            out,
            "P0 meanwhile, the mesh's own share: P50 {:.1} ms, P95 {:.1} ms, P99 {:.1} ms; its budget is {:.0} ms",
            self.p0_p50_ms, self.p0_p95_ms, self.p0_p99_ms, self.p0_budget_ms
        );
        let b = &self.books;
        let verdict = if self.balanced { "the books balance" } else { "THE BOOKS DO NOT BALANCE" };
        let _ = writeln!(
            out,
            "Accepted {}, completed {}, rejected {}, in flight {}, lost {}, done twice {}, audited {}, audit missing {}, \
             effects missing {}, told in two ways {}, above a quota {}: {verdict}",
            b.accepted,
            b.completed,
            b.rejected,
            b.in_flight,
            b.lost,
            b.duplicate_effects,
            b.audited,
            b.audit_missing,
            b.effects_missing,
            b.disagreements,
            b.quota_exceeded
        );
        out
    }
}

/// Whether the numbers climb from the least to the most and come back to the least.
fn went_up_and_back(instances: &[(f64, u32)], bots: (u32, u32)) -> bool {
    let mut counts = instances.iter().map(|(_, count)| *count).skip_while(|count| *count != bots.0);
    counts.any(|count| count == bots.1) && instances.last().is_some_and(|(_, count)| *count == bots.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_and_back_is_from_the_least_to_the_most_and_to_the_least() {
        let lines = |counts: &[u32]| counts.iter().map(|count| (0.0, *count)).collect::<Vec<_>>();
        assert!(went_up_and_back(&lines(&[0, 1, 2, 3, 4, 5, 6, 5, 4, 3, 2]), (2, 6)));
        assert!(!went_up_and_back(&lines(&[0, 2, 3, 4, 5, 4, 3, 2]), (2, 6)));
        assert!(!went_up_and_back(&lines(&[2, 3, 4, 5, 6]), (2, 6)));
        assert!(!went_up_and_back(&[], (2, 6)));
    }
}
