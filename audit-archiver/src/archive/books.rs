//! The books: what became of every dispatch that the archive knows.

use std::collections::BTreeMap;

use governance::{Outcome, Timestamp};
use serde::Serialize;

use super::{Archive, Error, count, moment};

/// How dispatches ended, and what must not be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Books {
    /// Dispatches that left their lane; copies that topics made not counted.
    pub accepted: u64,
    /// Copies that topics made.
    pub copies: u64,
    /// Of all these, ended otherwise than by a refusal.
    pub completed: u64,
    /// Ended by a refusal.
    pub rejected: u64,
    /// Admitted and not ended.
    pub in_flight: u64,
    /// All that ended, by outcome.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// Completions that came after the outcome and changed nothing.
    pub late: u64,
    /// Dispatches with more than one decision. Must be 0.
    pub decided_twice: u64,
    /// Dispatches with more than one outcome. Must be 0.
    pub ended_twice: u64,
    /// Outcomes of dispatches that nobody admitted. Must be 0.
    pub ended_unadmitted: u64,
}

impl Books {
    /// Whether every dispatch is accounted for exactly once; what is in flight may be.
    #[must_use]
    pub const fn balanced(&self) -> bool {
        self.decided_twice == 0
            && self.ended_twice == 0
            && self.ended_unadmitted == 0
            && self.accepted + self.copies == self.completed + self.rejected + self.in_flight
    }
}

/// Each dispatch once, with its decisions and outcomes counted.
///
/// Decisions count from the moment on, ends only of these: what was decided before belongs to other books.
const QUERY: &str = "\
WITH decided AS (
    SELECT instance, sequence, slot, copy, count(*) AS times, min(outcome) AS outcome
    FROM dispatch_decision WHERE decided >= $1 GROUP BY instance, sequence, slot, copy
), ended AS (
    SELECT instance, sequence, slot, copy, count(*) FILTER (WHERE NOT late) AS times,
        count(*) FILTER (WHERE late) AS late, min(outcome) FILTER (WHERE NOT late) AS outcome
    FROM dispatch_completion WHERE completed >= $1 GROUP BY instance, sequence, slot, copy
), both_sides AS (
    SELECT d.instance IS NOT NULL AS known, copy, d.times AS decisions, coalesce(e.times, 0) AS ends,
        (d.outcome IS NOT NULL)::int AS ended_at_once, coalesce(e.late, 0) AS late,
        coalesce(d.outcome, e.outcome) AS outcome
    FROM decided d FULL JOIN ended e USING (instance, sequence, slot, copy)
)
SELECT w.name AS outcome,
    count(*) FILTER (WHERE known AND copy = 0) AS accepted,
    count(*) FILTER (WHERE known AND copy > 0) AS copies,
    count(*) FILTER (WHERE known) AS known,
    coalesce(sum(late) FILTER (WHERE known), 0)::bigint AS late,
    count(*) FILTER (WHERE decisions > 1) AS decided_twice,
    count(*) FILTER (WHERE known AND ends + ended_at_once > 1) AS ended_twice,
    count(*) FILTER (WHERE NOT known AND ends > 0) AS ended_unadmitted
FROM both_sides LEFT JOIN word w ON w.list = 'outcome' AND w.code = both_sides.outcome
GROUP BY w.name";

impl Archive {
    /// The books of all dispatches decided at or after a moment; `Timestamp::ZERO` for all there are.
    ///
    /// Ends of dispatches that were decided before the moment count as unadmitted, so a moment at which nothing was in
    /// flight is the one to ask for.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn books(&self, since: Timestamp) -> Result<Books, Error> {
        let mut books = Books::default();
        for row in self.client().await?.query(QUERY, &[&moment(since)]).await? {
            books.accepted += count(&row, "accepted");
            books.copies += count(&row, "copies");
            books.late += count(&row, "late");
            books.decided_twice += count(&row, "decided_twice");
            books.ended_twice += count(&row, "ended_twice");
            books.ended_unadmitted += count(&row, "ended_unadmitted");
            let known = count(&row, "known");
            let outcome = row.get::<_, Option<&str>>("outcome").and_then(|name| name.parse().ok());
            match outcome {
                None => books.in_flight += known,
                Some(Outcome::Rejected) => books.rejected += known,
                Some(
                    Outcome::Success
                    | Outcome::Failure
                    | Outcome::Timeout
                    | Outcome::CircuitBroken
                    | Outcome::Cancelled,
                ) => books.completed += known,
            }
            if let Some(outcome) = outcome
                && known > 0
            {
                *books.outcomes.entry(outcome).or_default() += known;
            }
        }
        Ok(books)
    }
}
