//! One moment of the archive, seen from any number of connections. Owns the transaction and how tables are read; compares
//! nothing.
//!
//! The rule it keeps: everything read comes from one snapshot, so that an archiver at work is no break.

use std::collections::{BTreeMap, BTreeSet};

use futures::TryStreamExt;
use protocol::redis::{EntryId, Head};
use tokio_postgres::Client;

use super::Error;
use crate::copy::CopyReader;
use crate::day::Day;
use crate::rows::Table;

/// The name of the verifier's connections in `pg_stat_activity`.
const NAME: &str = "mesh verify";

/// A moment of the archive. While it lives, retention waits.
pub(super) struct Snapshot {
    url: String,
    client: Client,
    name: String,
    /// The partitions that there are.
    pub(super) days: BTreeMap<Table, BTreeSet<Day>>,
    /// The cursors of all shards.
    pub(super) cursors: BTreeMap<u8, Head>,
    /// Why shards are stopped.
    pub(super) stopped: BTreeMap<u8, String>,
    /// Whether the archiver noted that retention dropped a day.
    pub(super) dropped_days: bool,
}

impl Snapshot {
    pub(super) async fn take(url: &str) -> Result<Self, Error> {
        let client = crate::postgres::connect(url, NAME).await?;
        // The locks come before the snapshot, so that no partition goes between the two.
        client
            .batch_execute(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
                 LOCK TABLE audit_block, decision_run, completion_run, audit_note IN ACCESS SHARE MODE",
            )
            .await?;
        let name = client.query_one("SELECT pg_export_snapshot()", &[]).await?.get(0);
        let mut snapshot = Self {
            url: url.to_owned(),
            client,
            name,
            days: BTreeMap::new(),
            cursors: BTreeMap::new(),
            stopped: BTreeMap::new(),
            dropped_days: false,
        };
        snapshot.read_days().await?;
        snapshot.read_cursors().await?;
        let dropped = "SELECT EXISTS (SELECT FROM audit_note WHERE kind = $1)";
        snapshot.dropped_days =
            snapshot.client.query_one(dropped, &[&crate::retention::DAY_DROPPED]).await?.get(0);
        Ok(snapshot)
    }

    async fn read_days(&mut self) -> Result<(), Error> {
        let query = "SELECT parent.relname, child.relname FROM pg_inherits \
             JOIN pg_class child ON child.oid = inhrelid JOIN pg_class parent ON parent.oid = inhparent \
             WHERE parent.relnamespace = current_schema()::regnamespace";
        for row in self.client.query(query, &[]).await? {
            let (parent, child): (&str, &str) = (row.get(0), row.get(1));
            let table = Table::ALL.into_iter().find(|table| table.name() == parent);
            let day = child.rsplit('_').next().and_then(Day::parse_compact);
            if let Some((table, day)) = table.zip(day) {
                self.days.entry(table).or_default().insert(day);
            }
        }
        Ok(())
    }

    async fn read_cursors(&mut self) -> Result<(), Error> {
        let query = "SELECT shard, epoch, sequence, hash, stopped FROM archive_cursor";
        for row in self.client.query(query, &[]).await? {
            let shard = row.get::<_, i16>(0) as u8;
            let hash = row.get::<_, Vec<u8>>(3).try_into().unwrap_or_default();
            self.cursors.insert(shard, Head { id: id(row.get(1), row.get(2)), hash });
            if let Some(why) = row.get(4) {
                self.stopped.insert(shard, why);
            }
        }
        Ok(())
    }

    /// Another connection that sees the same.
    pub(super) async fn reader(&self) -> Result<Client, Error> {
        let client = crate::postgres::connect(&self.url, NAME).await?;
        client
            .batch_execute(&format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{}'",
                self.name
            ))
            .await?;
        Ok(client)
    }

    /// A connection that sees what is there at this moment, an archiver's latest work included.
    pub(super) async fn present(&self) -> Result<Client, Error> {
        Ok(crate::postgres::connect(&self.url, NAME).await?)
    }

    /// The snapshot's own connection.
    pub(super) const fn client(&self) -> &Client {
        &self.client
    }

    /// Whether a day from one to another has no partition of blocks, so that retention may have dropped it.
    pub(super) fn lacks_a_day(&self, from: Day, to: Day) -> bool {
        let days = self.days.get(&Table::Blocks);
        (from.0..=to.0).any(|day| !days.is_some_and(|days| days.contains(&Day(day))))
    }
}

/// Reads the rows of a query as PostgreSQL sends them.
pub(super) async fn scan(client: &Client, query: &str, mut each: impl FnMut(&[u8])) -> Result<(), Error> {
    let stream = client.copy_out(&format!("COPY ({query}) TO STDOUT (FORMAT binary)")).await?;
    futures::pin_mut!(stream);
    let mut reader = CopyReader::default();
    while let Some(bytes) = stream.try_next().await? {
        reader.feed(&bytes, &mut each);
    }
    Ok(())
}

/// The hash that PostgreSQL keeps of a block; none where the block is not there.
pub(super) async fn hash_of(client: &Client, shard: u8, id: EntryId) -> Result<Option<Vec<u8>>, Error> {
    let query = "SELECT hash FROM audit_block WHERE shard = $1 AND epoch = $2 AND sequence = $3";
    let (shard, epoch, sequence) = (i16::from(shard), id.epoch.cast_signed(), id.sequence.cast_signed());
    Ok(client.query_opt(query, &[&shard, &epoch, &sequence]).await?.map(|row| row.get(0)))
}

pub(super) const fn id(epoch: i64, sequence: i64) -> EntryId {
    EntryId { epoch: epoch.cast_unsigned(), sequence: sequence.cast_unsigned() }
}
