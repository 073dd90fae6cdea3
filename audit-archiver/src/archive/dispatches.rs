//! Single dispatches and what surrounds them: by id, conversation and agent; who called whom; notes.

use governance::{DispatchId, Timestamp};
use serde::Serialize;
use tokio_postgres::Row;

use super::{Archive, Error, as_optional_rfc3339, as_rfc3339, count, moment, optional_timestamp, timestamp};

/// A dispatch with everything the archive knows about it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Dispatch {
    /// Its id.
    pub dispatch_id: String,
    /// The top of its tree; itself for a root.
    pub root: String,
    /// The dispatch during which it was sent.
    pub parent: Option<String>,
    /// The conversation key.
    pub conversation: Option<String>,
    /// When the broker stored it in its lane.
    #[serde(serialize_with = "as_rfc3339")]
    pub accepted: Timestamp,
    /// When it was decided.
    #[serde(serialize_with = "as_rfc3339")]
    pub decided: Timestamp,
    /// When its end was recorded; none where it is open, or ended with the decision.
    #[serde(serialize_with = "as_optional_rfc3339")]
    pub completed: Option<Timestamp>,
    /// When it had to end.
    #[serde(serialize_with = "as_rfc3339")]
    pub deadline: Timestamp,
    /// Who sent it.
    pub source: String,
    /// Who ran it, or should have.
    pub target: Option<String>,
    /// What it called, or the topic.
    pub capability: Option<String>,
    /// `request` or `event`.
    pub kind: String,
    /// The priority that was claimed.
    pub lane: String,
    /// The priority that it went in.
    pub class: String,
    /// What was decided.
    pub decision: String,
    /// Why that was decided.
    pub decision_reason: String,
    /// How it ended; none while it is open.
    pub outcome: Option<String>,
    /// Why it ended so; why it was admitted while it is open.
    pub reason: String,
    /// Microseconds in the lane.
    pub lane_us: i64,
    /// Microseconds in the inbox.
    pub inbox_us: Option<i64>,
    /// Microseconds in the handler.
    pub ran_us: Option<i64>,
    /// Microseconds from acceptance to the record of its end.
    pub latency_us: Option<i64>,
    /// Which attempt ended it.
    pub attempt: Option<i16>,
    /// The instance that ran it.
    pub runner: Option<String>,
    /// Keyed hash of the payload, hexadecimal.
    pub payload_hash: String,
    /// Keyed hash of the response, hexadecimal.
    pub response_hash: Option<String>,
    /// The version of the policy under which it was decided.
    pub policy_version: i32,
    /// The shard of its source.
    pub shard: i16,
    /// The epoch of its audit block.
    pub epoch: i64,
    /// The sequence of its audit block.
    pub block: i64,
}

/// Who called whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Edge {
    /// Who sent.
    pub source: String,
    /// Who got it; none where no target was chosen.
    pub target: Option<String>,
    /// What was called.
    pub capability: Option<String>,
    /// How many dispatches.
    pub dispatches: u64,
    /// Those among them that failed, timed out or met a tripped breaker.
    pub failures: u64,
    /// Those among them that were refused.
    pub rejected: u64,
}

/// A note of the audit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Note {
    /// When.
    #[serde(serialize_with = "as_rfc3339")]
    pub at: Timestamp,
    /// What it is: `breaker`, `registration`, `operator`, …
    pub kind: String,
    /// Who it is about; none for the mesh.
    pub agent: Option<String>,
    /// The facts; a text where they are no JSON.
    pub body: serde_json::Value,
}

/// Reads an id as the log prints it, `/reply` included.
pub(super) fn parse_id(id: &str) -> Result<DispatchId, Error> {
    Ok(id.strip_suffix("/reply").unwrap_or(id).parse()?)
}

impl Archive {
    /// The dispatch with an id; that of a reply finds its request.
    ///
    /// # Errors
    /// When the text is no id, or the query fails.
    pub async fn dispatch(&self, id: &str) -> Result<Option<Dispatch>, Error> {
        let id = parse_id(id)?;
        let query =
            "SELECT * FROM dispatch WHERE instance = $1 AND sequence = $2 AND slot = $3 AND copy = $4";
        let (instance, sequence) = (id.instance.0.cast_signed(), id.sequence.cast_signed());
        let (slot, copy) = (i32::from(id.slot), i32::from(id.copy));
        let row = self.client().await?.query_opt(query, &[&instance, &sequence, &slot, &copy]).await?;
        Ok(row.as_ref().map(read))
    }

    /// All dispatches with a conversation key, by acceptance.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn by_conversation(&self, key: &str) -> Result<Vec<Dispatch>, Error> {
        let query = "SELECT * FROM dispatch WHERE conversation = $1 ORDER BY accepted, sequence, slot, copy";
        Ok(self.client().await?.query(query, &[&key]).await?.iter().map(read).collect())
    }

    /// What an agent sent or received, decided within a time, by acceptance; at most so many.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn by_agent(
        &self,
        agent: &str,
        since: Timestamp,
        until: Timestamp,
        rows: u32,
    ) -> Result<Vec<Dispatch>, Error> {
        let query = "SELECT * FROM dispatches_since($1) WHERE decided < $2 AND $3 IN (source, target) \
             ORDER BY accepted, sequence, slot, copy LIMIT $4";
        let found = self
            .client()
            .await?
            .query(query, &[&moment(since), &moment(until), &agent, &i64::from(rows)])
            .await?;
        Ok(found.iter().map(read).collect())
    }

    /// Who called whom since a moment.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn edges(&self, since: Timestamp) -> Result<Vec<Edge>, Error> {
        let query = "SELECT source, target, capability, count(*) AS dispatches, \
             count(*) FILTER (WHERE outcome IN ('failure', 'timeout', 'circuit_broken')) AS failures, \
             count(*) FILTER (WHERE outcome = 'rejected') AS rejected \
             FROM dispatches_since($1) GROUP BY source, target, capability ORDER BY source, target, capability";
        let rows = self.client().await?.query(query, &[&moment(since)]).await?;
        Ok(rows
            .iter()
            .map(|row| Edge {
                source: row.get("source"),
                target: row.get("target"),
                capability: row.get("capability"),
                dispatches: count(row, "dispatches"),
                failures: count(row, "failures"),
                rejected: count(row, "rejected"),
            })
            .collect())
    }

    /// Notes since a moment, oldest first; of one kind, or of all.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn notes(&self, kind: Option<&str>, since: Timestamp) -> Result<Vec<Note>, Error> {
        let query = "SELECT at, kind, agent, body FROM audit_note \
             WHERE at >= $1 AND ($2::text IS NULL OR kind = $2) ORDER BY at, epoch, block";
        let rows = self.client().await?.query(query, &[&moment(since), &kind]).await?;
        Ok(rows
            .iter()
            .map(|row| {
                let body: &str = row.get("body");
                Note {
                    at: timestamp(row.get("at")),
                    kind: row.get("kind"),
                    agent: row.get("agent"),
                    body: serde_json::from_str(body).unwrap_or_else(|_| body.into()),
                }
            })
            .collect())
    }
}

pub(super) fn read(row: &Row) -> Dispatch {
    Dispatch {
        dispatch_id: row.get("dispatch_id"),
        root: row.get("root"),
        parent: row.get("parent"),
        conversation: row.get("conversation"),
        accepted: timestamp(row.get("accepted")),
        decided: timestamp(row.get("decided")),
        completed: optional_timestamp(row, "completed"),
        deadline: timestamp(row.get("deadline")),
        source: row.get("source"),
        target: row.get("target"),
        capability: row.get("capability"),
        kind: row.get("kind"),
        lane: row.get("lane"),
        class: row.get("class"),
        decision: row.get("decision"),
        decision_reason: row.get("decision_reason"),
        outcome: row.get("outcome"),
        reason: row.get("reason"),
        lane_us: row.get("lane_us"),
        inbox_us: row.get("inbox_us"),
        ran_us: row.get("ran_us"),
        latency_us: row.get("latency_us"),
        attempt: row.get("attempt"),
        runner: row.get("runner"),
        payload_hash: row.get("payload_hash"),
        response_hash: row.get("response_hash"),
        policy_version: row.get("policy_version"),
        shard: row.get("shard"),
        epoch: row.get("epoch"),
        block: row.get("block"),
    }
}
