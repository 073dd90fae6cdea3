//! Owns the books: what senders had accepted, what handlers did and what PostgreSQL holds, held against each other
//! dispatch by dispatch, and the quotas recomputed from the archive. Pure; reading is done in `archive`. Rule kept:
//! no figure is copied from another one, and what does not agree is counted, not explained away.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde::Serialize;

use crate::ledger::{Counts, Ending};

/// One second in the archive's microseconds.
const SECOND_US: i64 = 1_000_000;

/// One record of the archive: a request or an event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    pub id: String,
    pub source: String,
    pub target: String,
    pub priority: String,
    pub decision: String,
    pub reason: String,
    /// Absent while the dispatch is on its way.
    pub outcome: Option<String>,
    /// When it was admitted, in microseconds since the epoch; absent where it was not.
    pub admitted_us: Option<i64>,
    /// From acceptance to admission, in microseconds.
    pub lane_us: i64,
    /// In the handler, in microseconds.
    pub ran_us: i64,
    /// From acceptance to the recorded end, in microseconds.
    pub latency_us: i64,
}

impl Record {
    /// The id without the number of the copy that a topic made.
    fn original(&self) -> &str {
        self.id.split_once('.').map_or(self.id.as_str(), |(id, _)| id)
    }

    /// What the mesh itself took: all but the handler's own time, in microseconds.
    pub fn own_share_us(&self) -> i64 {
        (self.latency_us - self.ran_us).max(0)
    }

    fn is_copy(&self) -> bool {
        self.id.contains('.')
    }
}

/// A rate with its burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    pub rate_per_s: u32,
    pub burst: u32,
}

/// What the policy allows, by agent.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// As a source.
    pub quotas: BTreeMap<String, Limit>,
    /// As a target.
    pub target_rates: BTreeMap<String, Limit>,
}

/// The books. They balance when every accepted dispatch has its end and its record, and nothing happened twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Books {
    /// Ids that senders hold as accepted by the mesh.
    pub accepted: u64,
    /// Of these, ended in the archive otherwise than by a refusal.
    pub completed: u64,
    /// Of these, refused by the rules in the archive.
    pub rejected: u64,
    /// Of these, in the archive without an end.
    pub in_flight: u64,
    /// Of these, unknown to the archive and without an end at their sender.
    pub lost: u64,
    /// Dispatches whose effect a handler had more than once.
    pub duplicate_effects: u64,
    /// Ids of senders that the archive holds.
    pub audited: u64,
    /// Ids of senders or handlers that the archive does not hold.
    pub audit_missing: u64,
    /// Admissions above rate and burst within any second, as a source or at a target.
    pub quota_exceeded: u64,
    /// Outcomes that the archive and the sender name differently.
    pub disagreements: u64,
    /// Successes in the archive without an effect at a handler.
    pub effects_missing: u64,
    /// Publishes of which the sender does not know whether the mesh has them.
    pub unconfirmed: u64,
}

impl Books {
    /// Holds the three counts against each other.
    pub fn close(counts: &Counts, records: &[Record], limits: &Limits) -> Self {
        let mut books = Self {
            accepted: as_u64(counts.sent.len()),
            unconfirmed: as_u64(counts.unconfirmed.len()),
            duplicate_effects: as_u64(counts.effects.values().filter(|times| **times > 1).count()),
            quota_exceeded: exceeded(records, limits),
            ..Self::default()
        };
        let archived: HashMap<&str, &Record> =
            records.iter().map(|record| (record.id.as_str(), record)).collect();
        for (id, ending) in &counts.sent {
            match archived.get(id.as_str()) {
                Some(record) => books.enter(record, *ending),
                None => {
                    books.audit_missing += 1;
                    books.lost += u64::from(*ending == Ending::Unknown);
                }
            }
        }
        let unaudited = counts.effects.keys().filter(|id| !archived.contains_key(id.as_str())).count();
        books.audit_missing += as_u64(unaudited);
        let ran = records.iter().filter(|record| {
            counts.sent.contains_key(record.original())
                && ran(record)
                && record.outcome.as_deref() == Some("success")
        });
        books.effects_missing = as_u64(ran.filter(|record| !counts.effects.contains_key(&record.id)).count());
        let copies = records.iter().filter(|record| record.is_copy() && record.outcome.is_none());
        books.in_flight += as_u64(copies.filter(|copy| counts.sent.contains_key(copy.original())).count());
        books
    }

    /// Whether nothing is open, lost, missing, doubled, above a quota or told in two ways.
    pub fn balance(&self) -> bool {
        let wrong = [
            self.in_flight,
            self.lost,
            self.duplicate_effects,
            self.audit_missing,
            self.quota_exceeded,
            self.disagreements,
            self.effects_missing,
        ];
        self.accepted > 0
            && self.accepted == self.completed + self.rejected
            && wrong.iter().all(|count| *count == 0)
    }

    /// How many of a hundred accepted dispatches the archive holds, as the article gives it.
    pub fn completeness_pct(&self) -> f64 {
        if self.accepted == 0 {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "counts of one run are far below 2^52")]
        let share = self.audited as f64 / self.accepted as f64;
        share * 100.0
    }

    fn enter(&mut self, record: &Record, ending: Ending) {
        self.audited += 1;
        match record.outcome.as_deref() {
            None => self.in_flight += 1,
            Some("rejected") => self.rejected += 1,
            Some(_) => self.completed += 1,
        }
        if let (Some(outcome), Ending::Known(told)) = (record.outcome.as_deref(), ending) {
            self.disagreements += u64::from(outcome != told);
        }
    }
}

/// Whether a handler ran it: it went to a target and did not become copies.
fn ran(record: &Record) -> bool {
    record.decision == "admitted"
}

fn exceeded(records: &[Record], limits: &Limits) -> u64 {
    let admissions = |agent: fn(&Record) -> &str| {
        let mut times: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
        for record in records {
            if let Some(admitted) = record.admitted_us.filter(|_| ran(record)) {
                times.entry(agent(record)).or_default().push(admitted);
            }
        }
        times
    };
    let over = |times: BTreeMap<&str, Vec<i64>>, limits: &BTreeMap<String, Limit>| -> u64 {
        let known =
            times.into_iter().filter_map(|(agent, times)| limits.get(agent).map(|limit| (times, limit)));
        known.map(|(times, limit)| above(times, u64::from(limit.rate_per_s) + u64::from(limit.burst))).sum()
    };
    over(admissions(|record| &record.source), &limits.quotas)
        + over(admissions(|record| &record.target), &limits.target_rates)
}

/// How many of `times` are one too many in the second that ends with them.
fn above(times: Vec<i64>, most: u64) -> u64 {
    peaks(times).filter(|in_second| *in_second > most).count() as u64
}

/// The most within any second.
pub fn peak(times: Vec<i64>) -> u64 {
    peaks(times).max().unwrap_or(0)
}

fn peaks(mut times: Vec<i64>) -> impl Iterator<Item = u64> {
    times.sort_unstable();
    let mut second = VecDeque::new();
    times.into_iter().map(move |time| {
        while second.front().is_some_and(|first| time - first >= SECOND_US) {
            second.pop_front();
        }
        second.push_back(time);
        second.len() as u64
    })
}

fn as_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
