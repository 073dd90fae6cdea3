//! Whether quotas held: an independent look at what was admitted when, without the core's arithmetic.

use std::collections::VecDeque;

use futures::TryStreamExt;
use governance::Timestamp;
use governance::policy::Rate;
use serde::Serialize;
use tokio_postgres::Row;

use super::{Archive, Error, moment, timestamp};

const SECOND_NS: u64 = 1_000_000_000;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct QuotaCheck {
    /// Pairs of agent and second in which more was admitted than rate and burst allow. A second is any sliding one,
    /// counted by the calendar second in which it ends. Should be 0.
    pub exceeded: u64,
    /// Agents that were looked at: nothing compared is nothing shown.
    pub agents: u64,
    /// Admissions that were looked at.
    pub admitted: u64,
    /// The first few violations, for people: agent, moment in nanoseconds since the epoch, admitted in the second before it.
    pub examples: Vec<(String, u64, u64)>,
}

/// Enough for somebody to find out what is wrong.
const EXAMPLES_MAX: usize = 10;

impl Archive {
    /// Checks each source that `limit` names against its rate: in any second at most rate and burst are admitted.
    ///
    /// Copies that a topic makes count, since each is admitted on its own. The archive keeps microseconds; cutting off
    /// the rest never brings two admissions closer than a second when they were not.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn quota_exceeded(
        &self,
        since: Timestamp,
        limit: impl Fn(&str) -> Option<Rate>,
    ) -> Result<QuotaCheck, Error> {
        let query = "SELECT source, decided, sum(count) FROM decision_run d \
             JOIN word w ON w.list = 'decision' AND w.code = d.decision AND w.name = 'admitted' \
             WHERE decided >= $1 GROUP BY source, decided ORDER BY source, decided";
        let rows = self.client().await?.query_raw(query, [moment(since)]).await?;
        let mut rows = std::pin::pin!(rows);
        let mut check = QuotaCheck::default();
        let mut window: Option<(String, Option<Window>)> = None;
        while let Some(row) = rows.try_next().await? {
            let (source, at, admitted) = read(&row);
            if window.as_ref().is_none_or(|(current, _)| current != source) {
                let fresh = limit(source).map(Window::new);
                check.agents += u64::from(fresh.is_some());
                window = Some((source.to_owned(), fresh));
            }
            let Some((_, Some(window))) = &mut window else { continue };
            check.admitted += admitted;
            if let Some(found) = window.add(at, admitted) {
                check.exceeded += u64::from(found.new_second);
                if found.new_second && check.examples.len() < EXAMPLES_MAX {
                    check.examples.push((source.to_owned(), at.0, found.admitted));
                }
            }
        }
        Ok(check)
    }
}

fn read(row: &Row) -> (&str, Timestamp, u64) {
    (row.get(0), timestamp(row.get(1)), row.get::<_, i64>(2).max(0).cast_unsigned())
}

/// The admissions of the last second of one source.
struct Window {
    allowed: u64,
    admissions: VecDeque<(Timestamp, u64)>,
    sum: u64,
    last_exceeded: Option<u64>,
}

struct Exceeded {
    admitted: u64,
    new_second: bool,
}

impl Window {
    fn new(rate: Rate) -> Self {
        let allowed = u64::from(rate.per_s) + u64::from(rate.burst);
        Self { allowed, admissions: VecDeque::new(), sum: 0, last_exceeded: None }
    }

    /// Takes the next admissions; says whether the second that ends with them holds too many.
    fn add(&mut self, at: Timestamp, admitted: u64) -> Option<Exceeded> {
        while let Some((first, count)) = self.admissions.front().copied()
            && at.0.saturating_sub(first.0) >= SECOND_NS
        {
            self.sum -= count;
            self.admissions.pop_front();
        }
        self.admissions.push_back((at, admitted));
        self.sum += admitted;
        if self.sum <= self.allowed {
            return None;
        }
        let second = at.0 / SECOND_NS;
        let new_second = self.last_exceeded.replace(second) != Some(second);
        Some(Exceeded { admitted: self.sum, new_second })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holds_rate_and_burst_and_not_one_more() {
        let mut window = Window::new(Rate { per_s: 10, burst: 1 });
        for i in 0..11 {
            assert!(window.add(Timestamp::from_millis(5_000 + i), 1).is_none());
        }
        assert_eq!(window.add(Timestamp::from_millis(5_999), 1).map(|e| e.admitted), Some(12));
    }

    #[test]
    fn the_second_slides() {
        let mut window = Window::new(Rate { per_s: 10, burst: 1 });
        assert!(window.add(Timestamp::from_millis(900), 11).is_none());
        assert!(window.add(Timestamp::from_millis(1_899), 1).is_some());
        let mut window = Window::new(Rate { per_s: 10, burst: 1 });
        assert!(window.add(Timestamp::from_millis(900), 11).is_none());
        assert!(window.add(Timestamp::from_millis(1_900), 11).is_none());
    }

    #[test]
    fn one_bad_second_counts_once() {
        let mut window = Window::new(Rate { per_s: 1, burst: 1 });
        assert!(window.add(Timestamp::from_millis(1_000), 3).is_some_and(|e| e.new_second));
        assert!(window.add(Timestamp::from_millis(1_001), 1).is_some_and(|e| !e.new_second));
        assert!(window.add(Timestamp::from_millis(2_500), 3).is_some_and(|e| e.new_second));
    }
}
