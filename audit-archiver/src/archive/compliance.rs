//! What an auditor asks about a month: is every dispatch accounted for, who overruled what, what was kept. Owns the definition of
//! each figure.

use governance::{Reason, Timestamp};
use serde::Serialize;
use time::{Date, Month, OffsetDateTime};
use tokio_postgres::Client;

use super::{Archive, Cursor, Error, Hold, Note, as_rfc3339, count, moment, timestamp};
use crate::retention::DAY_DROPPED;
use crate::store::ARCHIVE_STOPPED;

/// Ids of dispatches without an outcome that are named; of more, the number is.
const IDS_MAX: i64 = 100;

/// The first moment of a month and of the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MonthOf {
    from: Timestamp,
    until: Timestamp,
}

impl MonthOf {
    /// Reads a month as `2026-11`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (year, month) = text.split_once('-')?;
        let well_formed =
            year.len() == 4 && month.len() == 2 && text.bytes().all(|b| b.is_ascii_digit() || b == b'-');
        let month = Month::try_from(month.parse::<u8>().ok().filter(|_| well_formed)?).ok()?;
        let first = Date::from_calendar_date(year.parse().ok()?, month, 1).ok()?;
        let year = first.year() + i32::from(month == Month::December);
        let next = Date::from_calendar_date(year, month.next(), 1).ok()?;
        let midnight = |date: Date| {
            let nanos = date.midnight().assume_utc().unix_timestamp_nanos();
            u64::try_from(nanos).ok().map(Timestamp)
        };
        Some(Self { from: midnight(first)?, until: midnight(next)? })
    }

    /// Its first moment.
    #[must_use]
    pub const fn from(&self) -> Timestamp {
        self.from
    }
}

/// One UTC day, by when dispatches were decided.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DayOf {
    /// The day.
    pub day: String,
    /// Dispatches that left their lane.
    pub dispatches: u64,
    /// Of these, with a recorded outcome.
    pub with_outcome: u64,
    /// Under way: no outcome, and less than a minute past the deadline.
    pub open: u64,
    /// Without an outcome a minute past the deadline.
    pub without_outcome: u64,
    /// 100 × with / (with + without).
    pub completeness_pct: Option<f64>,
    /// Audit blocks.
    pub blocks: u64,
    /// Sequences between blocks that are not there.
    pub blocks_missing: u64,
}

/// A dispatch whose outcome is not recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unended {
    /// Its id.
    pub dispatch_id: String,
    /// When it was decided.
    #[serde(serialize_with = "as_rfc3339")]
    pub decided: Timestamp,
}

/// How often a rule was violated, and the attempt blocked or demoted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The reason.
    pub reason: String,
    /// How often.
    pub dispatches: u64,
}

/// What retention keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// Days that have partitions.
    pub days: u64,
    /// The first of them.
    pub first: Option<String>,
    /// The last of them; the archiver makes one ahead.
    pub last: Option<String>,
    /// The setting, as the newest note of a dropped day has it; none where no day was dropped.
    pub retention_days: Option<u64>,
    /// Days that were dropped in this month.
    pub dropped: Vec<String>,
}

/// The report of a month.
#[derive(Debug, Clone, Serialize)]
pub struct Compliance {
    /// Day by day; a day without a dispatch and without a block is not there.
    pub days: Vec<DayOf>,
    /// Dispatches without an outcome, the first hundred.
    pub unended: Vec<Unended>,
    /// How many more there are.
    pub unended_more: u64,
    /// Violations by reason.
    pub violations: Vec<Violation>,
    /// What operators did, with their names and reasons, and new policies.
    pub operators: Vec<Note>,
    /// Legal holds that were in force in this month, at least for a time.
    pub holds: Vec<Hold>,
    /// What is kept.
    pub kept: Kept,
    /// When shards were stopped, and why.
    pub archive_stops: Vec<Note>,
    /// Shards that are stopped at this moment.
    pub stopped: Vec<Cursor>,
}

impl Archive {
    /// The report of a month.
    ///
    /// # Errors
    /// When a query fails.
    pub async fn compliance(&self, month: MonthOf) -> Result<Compliance, Error> {
        let client = self.client().await?;
        let days = days(&client, month).await?;
        let (unended, unended_more) = unended(&client, month, &days).await?;
        let violations = violations(&client, month).await?;
        let mut kept = kept(&client).await?;
        drop(client);
        let mut notes = self.notes(None, month.from).await?;
        // The setting of today counts, also for a month that is over.
        let setting = |note: &Note| note.body.get("retention_days").and_then(serde_json::Value::as_u64);
        kept.retention_days = notes.iter().rev().filter(|n| n.kind == DAY_DROPPED).find_map(setting);
        notes.retain(|note| note.at < month.until);
        let day = |note: &Note| note.body.get("day").and_then(|day| day.as_str()).map(str::to_owned);
        kept.dropped = notes.iter().filter(|n| n.kind == DAY_DROPPED).filter_map(day).collect();
        kept.dropped.sort();
        kept.dropped.dedup();
        let of = |kinds: &[&str]| -> Vec<Note> {
            notes.iter().filter(|note| kinds.contains(&note.kind.as_str())).cloned().collect()
        };
        let mut holds = self.holds().await?;
        holds.retain(|h| h.placed_at < month.until && h.released_at.is_none_or(|at| at >= month.from));
        let stopped = self.cursors().await?.into_iter().filter(|cursor| cursor.stopped.is_some()).collect();
        Ok(Compliance {
            days,
            unended,
            unended_more,
            violations,
            operators: of(&["operator", "policy"]),
            holds,
            kept,
            archive_stops: of(&[ARCHIVE_STOPPED]),
            stopped,
        })
    }
}

/// The dispatches of the month that have no end, and whether it is due. Ends may come after the month.
const UNENDED: &str = "\
WITH unended AS (
    SELECT d.instance, d.sequence, d.slot, d.copy, d.decided, d.deadline < now() - interval '1 minute' AS due
    FROM dispatch_decision d
    WHERE d.decided >= $1 AND d.decided < $2 AND d.outcome IS NULL
        AND NOT EXISTS (SELECT FROM completion_run c
            WHERE NOT c.late AND c.completed >= $1::timestamptz - interval '1 minute'
            AND c.instance = d.instance AND c.sequence = d.sequence AND c.copy = d.copy
            AND run_place(c.slot, c.count, c.slots, d.slot) IS NOT NULL)
)";

async fn days(client: &Client, month: MonthOf) -> Result<Vec<DayOf>, Error> {
    let query = format!(
        "{UNENDED}, counted AS (
            SELECT (decided AT TIME ZONE 'UTC')::date AS day, sum(count) AS dispatches
            FROM decision_run WHERE decided >= $1 AND decided < $2 GROUP BY 1
        ), without AS (
            SELECT (decided AT TIME ZONE 'UTC')::date AS day, count(*) AS n, count(*) FILTER (WHERE due) AS due
            FROM unended GROUP BY 1
        ), chained AS (
            SELECT at, epoch, sequence, lag(epoch) OVER w AS former, lag(sequence) OVER w AS before
            FROM audit_block WHERE at >= $1::timestamptz - interval '1 day' AND at < $2
            WINDOW w AS (PARTITION BY shard ORDER BY epoch, sequence)
        ), blocks AS (
            SELECT (at AT TIME ZONE 'UTC')::date AS day, count(*) AS blocks,
                sum(CASE WHEN former IS NULL THEN 0 WHEN former = epoch THEN sequence - before - 1
                    ELSE sequence - 1 END)::bigint AS missing
            FROM chained WHERE at >= $1 GROUP BY 1
        )
        SELECT coalesce(c.day, b.day)::text AS day, coalesce(dispatches, 0) AS dispatches,
            coalesce(dispatches, 0) - coalesce(w.n, 0) AS ended, coalesce(w.due, 0) AS unended, coalesce(blocks, 0) AS blocks, coalesce(missing, 0) AS missing
        FROM counted c LEFT JOIN without w ON w.day = c.day FULL JOIN blocks b ON c.day = b.day ORDER BY 1"
    );
    let rows = client.query(&query, &[&moment(month.from), &moment(month.until)]).await?;
    Ok(rows
        .iter()
        .map(|row| {
            let (dispatches, with, without) =
                (count(row, "dispatches"), count(row, "ended"), count(row, "unended"));
            DayOf {
                day: row.get("day"),
                dispatches,
                with_outcome: with,
                open: dispatches - with - without,
                without_outcome: without,
                completeness_pct: (with + without > 0).then(|| with as f64 * 100.0 / (with + without) as f64),
                blocks: count(row, "blocks"),
                blocks_missing: count(row, "missing"),
            }
        })
        .collect())
}

async fn unended(client: &Client, month: MonthOf, days: &[DayOf]) -> Result<(Vec<Unended>, u64), Error> {
    let all: u64 = days.iter().map(|day| day.without_outcome).sum();
    if all == 0 {
        return Ok((Vec::new(), 0));
    }
    let query = format!(
        "{UNENDED} SELECT dispatch_id(instance, sequence, slot, copy) AS id, decided FROM unended \
         WHERE due ORDER BY decided, instance, sequence, slot, copy LIMIT $3"
    );
    let rows = client.query(&query, &[&moment(month.from), &moment(month.until), &IDS_MAX]).await?;
    let named: Vec<Unended> = rows
        .iter()
        .map(|row| Unended {
            dispatch_id: row.get("id"),
            decided: timestamp(row.get::<_, OffsetDateTime>("decided")),
        })
        .collect();
    let more = all.saturating_sub(named.len() as u64);
    Ok((named, more))
}

async fn violations(client: &Client, month: MonthOf) -> Result<Vec<Violation>, Error> {
    let codes: Vec<i16> = Reason::ALL.iter().filter(|r| r.is_violation()).map(|r| r.code().into()).collect();
    let query = "SELECT w.name, sum(count) AS n FROM decision_run d \
         JOIN word w ON w.list = 'reason' AND w.code = d.reason \
         WHERE d.decided >= $1 AND d.decided < $2 AND d.reason = ANY($3) GROUP BY w.name ORDER BY n DESC, w.name";
    let rows = client.query(query, &[&moment(month.from), &moment(month.until), &codes]).await?;
    Ok(rows.iter().map(|row| Violation { reason: row.get(0), dispatches: count(row, "n") }).collect())
}

async fn kept(client: &Client) -> Result<Kept, Error> {
    let days = crate::retention::partitioned_days(client).await?;
    Ok(Kept {
        days: days.len() as u64,
        first: days.first().map(ToString::to_string),
        last: days.last().map(ToString::to_string),
        ..Kept::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_ends_where_the_next_begins() {
        let month = MonthOf::parse("2026-12").unwrap();
        assert_eq!(protocol::text::rfc3339(month.from), "2026-12-01T00:00:00.000Z");
        assert_eq!(protocol::text::rfc3339(month.until), "2027-01-01T00:00:00.000Z");
        for wrong in ["2026", "2026-13", "2026-1", "26-11", "2026-11-01", "+026-11", ""] {
            assert_eq!(MonthOf::parse(wrong), None, "{wrong}");
        }
    }
}
