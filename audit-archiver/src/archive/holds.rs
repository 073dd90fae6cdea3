//! Legal holds: days that retention must keep. The one thing about the archive that people change.

use governance::Timestamp;
use serde::Serialize;
use time::Date;
use time::macros::format_description;

use super::{Archive, Error, as_optional_rfc3339, as_rfc3339, optional_timestamp, timestamp};
use crate::retention::HOLD_LOCK;

/// A hold to be placed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HoldRequest {
    /// The first day, as 2026-02-14; none for no beginning.
    pub from: Option<String>,
    /// The last day; none for no end.
    pub to: Option<String>,
    /// Only days with records of this conversation.
    pub conversation: Option<String>,
    /// Only days with records of this agent.
    pub agent: Option<String>,
    /// Why.
    pub reason: String,
    /// Who asks for it.
    pub by: String,
}

/// A hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hold {
    /// Its number.
    pub id: i64,
    /// The first day.
    pub from: Option<String>,
    /// The last day.
    pub to: Option<String>,
    /// The conversation.
    pub conversation: Option<String>,
    /// The agent.
    pub agent: Option<String>,
    /// Why.
    pub reason: String,
    /// Who placed it.
    pub placed_by: String,
    /// When.
    #[serde(serialize_with = "as_rfc3339")]
    pub placed_at: Timestamp,
    /// Who released it; none while it is in force.
    pub released_by: Option<String>,
    /// When.
    #[serde(serialize_with = "as_optional_rfc3339")]
    pub released_at: Option<Timestamp>,
}

fn day(text: &Option<String>) -> Result<Option<Date>, Error> {
    let format = format_description!("[year]-[month]-[day]");
    let parse = |text: &String| Date::parse(text, format).map_err(|_| Error::Day(text.clone()));
    text.as_ref().map(parse).transpose()
}

impl Archive {
    /// Places a hold; returns its number. When it returns, no day under it is dropped any more.
    ///
    /// # Errors
    /// When a day cannot be read, nothing is named to be held, or the query fails.
    pub async fn place_hold(&self, wish: &HoldRequest) -> Result<i64, Error> {
        let (from, to) = (day(&wish.from)?, day(&wish.to)?);
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&HOLD_LOCK]).await?;
        let insert = "INSERT INTO legal_hold (from_day, to_day, conversation, agent, reason, placed_by) \
             VALUES ($1, $2, $3, $4, $5, $6) RETURNING id";
        let row = transaction
            .query_one(insert, &[&from, &to, &wish.conversation, &wish.agent, &wish.reason, &wish.by])
            .await?;
        transaction.commit().await?;
        Ok(row.get(0))
    }

    /// Releases a hold.
    ///
    /// # Errors
    /// When there is none with this number in force, or the query fails.
    pub async fn release_hold(&self, id: i64, by: &str) -> Result<(), Error> {
        let update = "UPDATE legal_hold SET released_by = $2, released_at = now() \
             WHERE id = $1 AND released_at IS NULL";
        match self.client().await?.execute(update, &[&id, &by]).await? {
            0 => Err(Error::NoHold(id)),
            _ => Ok(()),
        }
    }

    /// All holds, the released ones included.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn holds(&self) -> Result<Vec<Hold>, Error> {
        let query = "SELECT id, from_day::text, to_day::text, conversation, agent, reason, placed_by, placed_at, \
             released_by, released_at FROM legal_hold ORDER BY id";
        let rows = self.client().await?.query(query, &[]).await?;
        Ok(rows
            .iter()
            .map(|row| Hold {
                id: row.get("id"),
                from: row.get("from_day"),
                to: row.get("to_day"),
                conversation: row.get("conversation"),
                agent: row.get("agent"),
                reason: row.get("reason"),
                placed_by: row.get("placed_by"),
                placed_at: timestamp(row.get("placed_at")),
                released_by: row.get("released_by"),
                released_at: optional_timestamp(row, "released_at"),
            })
            .collect())
    }
}
