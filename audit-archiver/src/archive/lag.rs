//! How far the archive is behind the trail.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use governance::{SHARDS, Timestamp};
use protocol::redis::EntryId;
use serde::Serialize;
use tokio_postgres::Row;

use super::{Archive, Error, as_optional_rfc3339, optional_timestamp};
use crate::trail::Trail;

/// How often the heads are compared while waiting.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How far one shard is archived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cursor {
    /// The shard.
    pub shard: u8,
    /// The epoch of its last archived block.
    pub epoch: u64,
    /// The sequence of its last archived block.
    pub sequence: u64,
    /// When that was archived; none before the first.
    #[serde(serialize_with = "as_optional_rfc3339")]
    pub archived_at: Option<Timestamp>,
    /// Why it is archived no further; none where nothing is wrong.
    pub stopped: Option<String>,
}

/// What is not archived yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Lag {
    /// Shards whose trail goes further than the archive.
    pub behind: Vec<u8>,
    /// Shards that are stopped, with the reason.
    pub stopped: BTreeMap<u8, String>,
}

impl Lag {
    /// Whether everything is archived.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.behind.is_empty() && self.stopped.is_empty()
    }
}

impl fmt::Display for Lag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} shards behind", self.behind.len())?;
        for (shard, why) in &self.stopped {
            write!(f, "; shard {shard} is stopped: {why}")?;
        }
        Ok(())
    }
}

impl Archive {
    /// How far each shard is archived.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn cursors(&self) -> Result<Vec<Cursor>, Error> {
        let query = "SELECT shard, epoch, sequence, archived_at, stopped FROM archive_cursor ORDER BY shard";
        let rows = self.client().await?.query(query, &[]).await?;
        let number = |row: &Row, column| row.get::<_, i64>(column).cast_unsigned();
        Ok(rows
            .iter()
            .map(|row| Cursor {
                shard: row.get::<_, i16>("shard") as u8,
                epoch: number(row, "epoch"),
                sequence: number(row, "sequence"),
                archived_at: optional_timestamp(row, "archived_at"),
                stopped: row.get("stopped"),
            })
            .collect())
    }

    /// What the trail holds beyond the archive at this moment.
    ///
    /// # Errors
    /// When PostgreSQL or Redis does not answer.
    pub async fn lag(&self, redis_url: &str) -> Result<Lag, Error> {
        self.lag_of(&mut Trail::connect(redis_url).await?).await
    }

    /// The epoch and sequence of the newest block of each shard in the trail.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn heads(&self, redis_url: &str) -> Result<BTreeMap<u8, (u64, u64)>, Error> {
        let shards: Vec<u8> = (0..SHARDS).collect();
        let heads = Trail::connect(redis_url).await?.heads(&shards).await?;
        Ok(heads.into_iter().map(|(shard, head)| (shard, (head.id.epoch, head.id.sequence))).collect())
    }

    /// Waits until everything that the trail holds is archived.
    ///
    /// # Errors
    /// When it is not within the time, or a shard is stopped.
    pub async fn until_archived(&self, redis_url: &str, within: Duration) -> Result<(), Error> {
        let mut trail = Trail::connect(redis_url).await?;
        let started = Instant::now();
        loop {
            let lag = self.lag_of(&mut trail).await?;
            if lag.is_none() {
                return Ok(());
            }
            if !lag.stopped.is_empty() || started.elapsed() >= within {
                return Err(Error::Behind(lag));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn lag_of(&self, trail: &mut Trail) -> Result<Lag, Error> {
        let shards: Vec<u8> = (0..SHARDS).collect();
        let heads = trail.heads(&shards).await?;
        let mut lag = Lag::default();
        for cursor in self.cursors().await? {
            let archived = EntryId { epoch: cursor.epoch, sequence: cursor.sequence };
            if heads.get(&cursor.shard).is_some_and(|head| head.id > archived) {
                lag.behind.push(cursor.shard);
            }
            if let Some(why) = cursor.stopped {
                lag.stopped.insert(cursor.shard, why);
            }
        }
        Ok(lag)
    }
}
