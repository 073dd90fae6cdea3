//! Owns what is read from PostgreSQL: the records of a run and the notes beside them, as they are. It judges nothing;
//! that is for `books`. Rule kept: reads only, through the archive's documented functions.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use serde::Deserialize;
use tokio::time::{sleep, timeout};
use tokio_postgres::{NoTls, Row};

use crate::books::Record;

/// A query that takes longer than this finds a database in trouble.
const QUERY_TIMEOUT: Duration = Duration::from_secs(60);

/// A restart of PostgreSQL with a recovery is over by then.
const AWAY_MAX: Duration = Duration::from_secs(60);

/// The pause before a question is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

const RECORDS: &str = "SELECT dispatch_id, source, coalesce(target, ''), class, decision, decision_reason, outcome, \
    (extract(epoch FROM decided) * 1000000)::bigint, coalesce(lane_us, 0), coalesce(ran_us, 0), coalesce(latency_us, 0) \
    FROM dispatches_since(to_timestamp($1))";

const ENDED: &str = "SELECT count(*) FROM dispatches_since(to_timestamp($1)) WHERE outcome IS NOT NULL";

const NOTES: &str =
    "SELECT kind, coalesce(agent, ''), body FROM audit_note WHERE at >= to_timestamp($1) ORDER BY at";

/// Something that the audit keeps beside dispatches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub kind: String,
    pub agent: String,
    /// JSON.
    pub body: String,
}

/// The archive, and from when on it is read. Each question has a connection of its own, so that a restart of PostgreSQL
/// costs a question and not the report.
#[derive(Debug)]
pub struct Archive {
    url: String,
    since: f64,
}

impl Archive {
    /// What is read later is from this moment on.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn open(url: &str) -> anyhow::Result<Self> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let archive = Self { url: url.to_owned(), since };
        archive.ask("SELECT 1 WHERE $1::float8 > 0").await?;
        Ok(archive)
    }

    /// How many dispatches have ended.
    ///
    /// # Errors
    /// When PostgreSQL does not answer.
    pub async fn ended(&self) -> anyhow::Result<u64> {
        let rows = self.query(ENDED).await?;
        let count: i64 = rows.first().map_or(0, |row| row.get(0));
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// All records.
    ///
    /// # Errors
    /// When PostgreSQL does not answer.
    pub async fn records(&self) -> anyhow::Result<Vec<Record>> {
        Ok(self.query(RECORDS).await?.iter().map(record).collect())
    }

    /// All notes, oldest first.
    ///
    /// # Errors
    /// When PostgreSQL does not answer.
    pub async fn notes(&self) -> anyhow::Result<Vec<Note>> {
        let note = |row: &Row| Note { kind: row.get(0), agent: row.get(1), body: row.get(2) };
        Ok(self.query(NOTES).await?.iter().map(note).collect())
    }

    /// Asks until there is an answer, or PostgreSQL has been away for too long.
    async fn query(&self, sql: &str) -> anyhow::Result<Vec<Row>> {
        let start = Instant::now();
        loop {
            match self.ask(sql).await {
                Err(error) if start.elapsed() < AWAY_MAX => {
                    tracing::warn!(error = format!("{error:#}"), "the archive is asked again");
                    sleep(ASK_AGAIN).await;
                }
                answer => return answer,
            }
        }
    }

    async fn ask(&self, sql: &str) -> anyhow::Result<Vec<Row>> {
        let asking = async {
            let (client, connection) =
                tokio_postgres::connect(&self.url, NoTls).await.context("PostgreSQL cannot be reached")?;
            let asked =
                async { client.query(sql, &[&self.since]).await.context("the archive cannot be read") };
            tokio::select! {
                rows = asked => rows,
                lost = connection => {
                    lost.context("the connection to PostgreSQL is lost")?;
                    anyhow::bail!("PostgreSQL has closed the connection")
                }
            }
        };
        timeout(QUERY_TIMEOUT, asking).await.context("PostgreSQL does not answer")?
    }
}

fn record(row: &Row) -> Record {
    let decision: String = row.get(4);
    let decided: i64 = row.get(7);
    Record {
        id: row.get(0),
        source: row.get(1),
        target: row.get(2),
        priority: row.get(3),
        admitted_us: (decision == "admitted").then_some(decided),
        decision,
        reason: row.get(5),
        outcome: row.get(6),
        lane_us: row.get(8),
        ran_us: row.get(9),
        latency_us: row.get(10),
    }
}

/// How often breakers tripped, and how often a target came to pass again.
pub fn breaker_trips(notes: &[Note]) -> (u64, u64) {
    let changes = notes.iter().filter(|note| note.kind == "breaker");
    changes.fold((0, 0), |(trips, recoveries), note| {
        let change: Change = serde_json::from_str(&note.body).unwrap_or_default();
        match (change.from.as_str(), change.to.as_str()) {
            ("passing", "tripped") => (trips + 1, recoveries),
            (_, "passing") => (trips, recoveries + 1),
            _ => (trips, recoveries),
        }
    })
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Change {
    from: String,
    to: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trips_and_recoveries_are_counted_from_the_notes() {
        let note = |kind: &str, from: &str, to: &str| Note {
            kind: kind.to_owned(),
            agent: "handoff_service".to_owned(),
            body: format!(r#"{{"from": "{from}", "to": "{to}", "samples": 20}}"#),
        };
        let notes = [
            note("breaker", "passing", "tripped"),
            note("breaker", "tripped", "probing"),
            note("breaker", "probing", "tripped"),
            note("breaker", "tripped", "probing"),
            note("breaker", "probing", "passing"),
            note("scale", "1", "2"),
        ];
        assert_eq!(breaker_trips(&notes), (1, 1));
    }
}
