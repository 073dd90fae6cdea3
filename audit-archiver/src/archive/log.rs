//! The log under the article's names: one row for each request, response, event and error.

use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt};
use governance::Timestamp;
use serde::Serialize;
use tokio_postgres::{Client, Row};

use super::{Archive, Error, as_rfc3339, moment, timestamp};
use crate::day;

const COLUMNS: &str = "dispatch_id, \"timestamp\", source, target, type, capability, latency_ms::float8, outcome, \
     priority, payload_hash, reason, decision, lane, lane_ms::float8, inbox_ms::float8, ran_ms::float8, attempt, \
     root, parent, conversation, policy_version, shard, epoch, block";

/// How far back the end of the log is looked for, step by step, since time is indexed by block ranges only.
const TAIL_STEPS: [Duration; 7] = [
    Duration::from_secs(1),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(3_600),
    Duration::from_secs(86_400),
    Duration::from_secs(30 * 86_400),
    Duration::from_secs(100 * 365 * 86_400),
];

/// One row of the log. As JSON it has exactly these names, the article's first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LogRow {
    /// The id; that of a response or error is its request's with `/reply` behind it.
    pub dispatch_id: String,
    /// When it was accepted; for a response or error, when the outcome was recorded.
    #[serde(serialize_with = "as_rfc3339")]
    pub timestamp: Timestamp,
    /// Who sent it.
    pub source: String,
    /// Who got it; none where no target was chosen.
    pub target: Option<String>,
    /// `request`, `response`, `event` or `error`.
    pub r#type: String,
    /// What was called, or the topic.
    pub capability: Option<String>,
    /// Milliseconds from dispatch to completion; of a response, its own way back. None while it is open.
    pub latency_ms: Option<f64>,
    /// How it ended; none while it is open.
    pub outcome: Option<String>,
    /// The priority that it went in.
    pub priority: String,
    /// Keyed hash of the payload, hexadecimal.
    pub payload_hash: Option<String>,
    /// Why it ended so, or why it went where it went.
    pub reason: String,
    /// What was decided about it.
    pub decision: String,
    /// The priority that was claimed.
    pub lane: String,
    /// Milliseconds in the lane.
    pub lane_ms: Option<f64>,
    /// Milliseconds in the inbox.
    pub inbox_ms: Option<f64>,
    /// Milliseconds in the handler.
    pub ran_ms: Option<f64>,
    /// Which attempt ended it.
    pub attempt: Option<i16>,
    /// The top of its tree.
    pub root: String,
    /// The dispatch during which it was sent; of a response, its request.
    pub parent: Option<String>,
    /// The conversation key.
    pub conversation: Option<String>,
    /// The version of the policy under which it was decided.
    pub policy_version: i32,
    /// The shard of its source.
    pub shard: i16,
    /// The epoch of its audit block.
    pub epoch: i64,
    /// The sequence of its audit block.
    pub block: i64,
}

/// From which moment on rows are wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SinceMoment(pub(crate) Timestamp);

impl SinceMoment {
    /// As PostgreSQL takes it.
    pub(crate) fn moment(self) -> time::OffsetDateTime {
        moment(self.0)
    }
}

/// All rows decided at or after a moment, as one connection sees them, in the order of their timestamps.
pub(crate) async fn rows_since(
    client: &Client,
    since: SinceMoment,
) -> Result<impl Stream<Item = Result<LogRow, Error>> + use<>, Error> {
    let query = format!("SELECT {COLUMNS} FROM dispatch_log_since($1) ORDER BY \"timestamp\", dispatch_id");
    let rows = client.query_raw(&query, [since.moment()]).await?;
    Ok(rows.map_err(Error::from).map(|row| row.map(|row| read(&row))))
}

impl Archive {
    /// All rows decided at or after a moment, in the order of their timestamps.
    ///
    /// # Errors
    /// When the query fails, at once or in the middle of the stream.
    pub async fn export(
        &self,
        since: Timestamp,
    ) -> Result<impl Stream<Item = Result<LogRow, Error>> + use<>, Error> {
        let client = self.client().await?;
        let rows = rows_since(&client, SinceMoment(since)).await?;
        // The connection goes back to the pool with the end of the stream.
        Ok(rows.map(move |row| {
            let _busy = &client;
            row
        }))
    }

    /// The newest rows, oldest first.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn tail(&self, rows: u32) -> Result<Vec<LogRow>, Error> {
        let client = self.client().await?;
        let query = format!(
            "SELECT * FROM (SELECT {COLUMNS} FROM dispatch_log_since($1) \
             ORDER BY \"timestamp\" DESC, dispatch_id DESC LIMIT $2) newest ORDER BY \"timestamp\", dispatch_id"
        );
        let now = day::now();
        let mut found = Vec::new();
        for step in TAIL_STEPS {
            let since = Timestamp(now.0.saturating_sub(governance::time::nanos(step)));
            found = client.query(&query, &[&moment(since), &i64::from(rows)]).await?;
            if found.len() >= rows as usize {
                break;
            }
        }
        Ok(found.iter().map(read).collect())
    }
}

fn read(row: &Row) -> LogRow {
    LogRow {
        dispatch_id: row.get("dispatch_id"),
        timestamp: timestamp(row.get("timestamp")),
        // The error for a dispatch that reached nobody comes from nobody.
        source: row.get::<_, Option<String>>("source").unwrap_or_default(),
        target: row.get("target"),
        r#type: row.get("type"),
        capability: row.get("capability"),
        latency_ms: row.get("latency_ms"),
        outcome: row.get("outcome"),
        priority: row.get("priority"),
        payload_hash: row.get("payload_hash"),
        reason: row.get("reason"),
        decision: row.get("decision"),
        lane: row.get("lane"),
        lane_ms: row.get("lane_ms"),
        inbox_ms: row.get("inbox_ms"),
        ran_ms: row.get("ran_ms"),
        attempt: row.get("attempt"),
        root: row.get("root"),
        parent: row.get("parent"),
        conversation: row.get("conversation"),
        policy_version: row.get("policy_version"),
        shard: row.get("shard"),
        epoch: row.get("epoch"),
        block: row.get("block"),
    }
}
