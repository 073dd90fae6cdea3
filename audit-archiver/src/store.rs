//! The archive's write side. Owns the one transaction: rows, blocks and the cursor's move, together or not at all.
//!
//! The rule it keeps: a cursor moves by compare-and-set, before its rows are copied and in the same transaction. Whoever
//! finds another value there stores nothing, so that each block arrives exactly once, however many archivers run.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::SinkExt;
use protocol::redis::{EntryId, Head};
use tokio_postgres::{Client, CopyInSink, Transaction};

use crate::chain::Broken;
use crate::day::{self, Day};
use crate::rows::{Rows, Table};

/// The largest piece of a COPY that is handed to the driver at once.
const PIECE_BYTES: usize = 256 * 1024;
/// An archiver that stands still inside a transaction holds cursors that others need; PostgreSQL ends it after this, between
/// two statements or in the middle of a COPY. A statement stores a batch of a megabyte of blocks at most.
const GIVE_UP: &str = "SET idle_in_transaction_session_timeout = '10s'; SET statement_timeout = '20s'";
/// Held while partitions are made.
const PARTITION_LOCK: i64 = 0x6d65_7368_7061_7274;

/// The note that says that a shard is archived no further, and why.
pub(crate) const ARCHIVE_STOPPED: &str = "archive_stopped";

/// A cursor's way in one transaction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Move {
    pub(crate) shard: u8,
    pub(crate) from: Head,
    pub(crate) to: Head,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    /// Everything is in.
    Committed,
    /// A cursor was elsewhere: another archiver works on the shard. Nothing was stored.
    Overtaken,
}

/// A connection that stores.
pub(crate) struct Store {
    client: Client,
    /// Days known to have their partitions.
    days: BTreeSet<Day>,
}

impl Store {
    pub(crate) async fn connect(url: &str) -> Result<Self, tokio_postgres::Error> {
        let client = crate::postgres::connect(url, "audit-archiver").await?;
        client.batch_execute(GIVE_UP).await?;
        Ok(Self { client, days: BTreeSet::new() })
    }

    /// The cursors of some shards.
    pub(crate) async fn cursors(&self, shards: &[u8]) -> Result<BTreeMap<u8, Head>, tokio_postgres::Error> {
        let shards: Vec<i16> = shards.iter().map(|s| i16::from(*s)).collect();
        let query = "SELECT shard, epoch, sequence, hash FROM archive_cursor WHERE shard = ANY($1)";
        let rows = self.client.query(query, &[&shards]).await?;
        Ok(rows
            .iter()
            .map(|row| {
                let id = EntryId {
                    epoch: row.get::<_, i64>(1).cast_unsigned(),
                    sequence: row.get::<_, i64>(2).cast_unsigned(),
                };
                let hash = row.get::<_, Vec<u8>>(3).try_into().unwrap_or_default();
                (row.get::<_, i16>(0) as u8, Head { id, hash })
            })
            .collect())
    }

    /// Stores rows and moves cursors.
    pub(crate) async fn commit(
        &mut self,
        moves: &[Move],
        rows: Rows,
    ) -> Result<Stored, tokio_postgres::Error> {
        self.ensure_partitions(rows.days()).await?;
        let transaction = self.client.transaction().await?;
        if move_cursors(&transaction, moves).await? != moves.len() as u64 {
            transaction.rollback().await?;
            return Ok(Stored::Overtaken);
        }
        for (table, day, copy) in rows.into_copies() {
            let into =
                format!("COPY {} ({}) FROM STDIN (FORMAT binary)", table.partition(day), table.columns());
            copy_in(&transaction, &into, copy).await?;
        }
        transaction.commit().await?;
        Ok(Stored::Committed)
    }

    /// Marks a shard as stopped, with a note; says whether this is news.
    pub(crate) async fn stop(
        &mut self,
        shard: u8,
        at: Head,
        why: &Broken,
    ) -> Result<bool, tokio_postgres::Error> {
        self.mark_stopped(shard, at, why, "stopped IS DISTINCT FROM $2").await
    }

    /// The same, where no other reason was given before.
    pub(crate) async fn stop_unless_stopped(
        &mut self,
        shard: u8,
        at: Head,
        why: &Broken,
    ) -> Result<bool, tokio_postgres::Error> {
        self.mark_stopped(shard, at, why, "stopped IS NULL").await
    }

    async fn mark_stopped(
        &mut self,
        shard: u8,
        at: Head,
        why: &Broken,
        unless: &str,
    ) -> Result<bool, tokio_postgres::Error> {
        self.ensure_partitions([Day::of(day::now())]).await?;
        let transaction = self.client.transaction().await?;
        let (number, why) = (i16::from(shard), why.to_string());
        let (epoch, sequence) = (at.id.epoch.cast_signed(), at.id.sequence.cast_signed());
        // Where the cursor has moved on, the alarm is out of date.
        let mark = format!(
            "UPDATE archive_cursor SET stopped = $2 WHERE shard = $1 AND epoch = $3 AND sequence = $4 AND {unless}"
        );
        let news = transaction.execute(&mark, &[&number, &why, &epoch, &sequence]).await? > 0;
        if news {
            let body =
                serde_json::json!({ "shard": shard, "after": at.id.to_string(), "problem": why }).to_string();
            let note = "INSERT INTO audit_note (at, epoch, block, shard, kind, agent, body) \
                        VALUES (now(), $1, $2, $3, $5, NULL, $4)";
            transaction.execute(note, &[&epoch, &sequence, &number, &body, &ARCHIVE_STOPPED]).await?;
        }
        transaction.commit().await?;
        Ok(news)
    }

    /// Makes the partitions of some days where they are missing.
    ///
    /// A table is made beside its parent and attached, which waits for no reader and lets none wait.
    pub(crate) async fn ensure_partitions(
        &mut self,
        days: impl IntoIterator<Item = Day>,
    ) -> Result<(), tokio_postgres::Error> {
        for day in days {
            if self.days.contains(&day) {
                continue;
            }
            let transaction = self.client.transaction().await?;
            transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&PARTITION_LOCK]).await?;
            for table in Table::ALL {
                let partition = table.partition(day);
                let there =
                    transaction.query_one("SELECT to_regclass($1) IS NOT NULL", &[&partition]).await?;
                if !there.get::<_, bool>(0) {
                    transaction.batch_execute(&make_partition(table, day)).await?;
                }
            }
            transaction.commit().await?;
            self.days.insert(day);
        }
        Ok(())
    }
}

fn make_partition(table: Table, day: Day) -> String {
    let (parent, partition) = (table.name(), table.partition(day));
    // The times of a run stay in its row while two such rows fit a page, so that looking up a slot fetches nothing else.
    let with = if table == Table::Completions { "WITH (toast_tuple_target = 4080)" } else { "" };
    format!(
        "CREATE TABLE {partition} (LIKE {parent} INCLUDING ALL) {with}; \
         ALTER TABLE {parent} ATTACH PARTITION {partition} \
         FOR VALUES FROM ('{day} 00:00:00+00') TO ('{} 00:00:00+00')",
        day.next()
    )
}

async fn move_cursors(transaction: &Transaction<'_>, moves: &[Move]) -> Result<u64, tokio_postgres::Error> {
    let shards: Vec<i16> = moves.iter().map(|m| m.shard.into()).collect();
    let numbers = |pick: fn(&Move) -> u64| moves.iter().map(|m| pick(m).cast_signed()).collect::<Vec<i64>>();
    let (from_epoch, from_sequence) = (numbers(|m| m.from.id.epoch), numbers(|m| m.from.id.sequence));
    let (to_epoch, to_sequence) = (numbers(|m| m.to.id.epoch), numbers(|m| m.to.id.sequence));
    let from_hash: Vec<&[u8]> = moves.iter().map(|m| &m.from.hash[..]).collect();
    let to_hash: Vec<&[u8]> = moves.iter().map(|m| &m.to.hash[..]).collect();
    let update = "UPDATE archive_cursor c \
         SET epoch = n.to_epoch, sequence = n.to_sequence, hash = n.to_hash, archived_at = now(), stopped = NULL \
         FROM unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bigint[], $6::bigint[], $7::bytea[]) \
         AS n(shard, from_epoch, from_sequence, from_hash, to_epoch, to_sequence, to_hash) \
         WHERE c.shard = n.shard AND c.epoch = n.from_epoch AND c.sequence = n.from_sequence AND c.hash = n.from_hash";
    transaction
        .execute(
            update,
            &[&shards, &from_epoch, &from_sequence, &from_hash, &to_epoch, &to_sequence, &to_hash],
        )
        .await
}

async fn copy_in(
    transaction: &Transaction<'_>,
    statement: &str,
    mut copy: Bytes,
) -> Result<(), tokio_postgres::Error> {
    let sink: CopyInSink<Bytes> = transaction.copy_in(statement).await?;
    futures::pin_mut!(sink);
    while !copy.is_empty() {
        let piece = copy.split_to(copy.len().min(PIECE_BYTES));
        sink.send(piece).await?;
    }
    sink.finish().await?;
    Ok(())
}
