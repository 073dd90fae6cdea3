//! What a verification found: the first break of each shard, and how much was compared. Owns the words; compares nothing.

use std::collections::BTreeMap;
use std::fmt;

use protocol::redis::EntryId;
use serde::Serialize;

use crate::checkpoint::Trouble;

/// Where something is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// In PostgreSQL.
    Postgres,
    /// In Redis.
    Redis,
    /// Redis and PostgreSQL differ, and nothing here says which of them is right.
    Both,
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "PostgreSQL",
            Self::Redis => "Redis",
            Self::Both => "PostgreSQL and Redis",
        })
    }
}

/// What kind of break it is. In the order in which they are looked at where several begin at one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The bytes of a block are not those that were hashed.
    BlockChanged,
    /// The bytes are no block.
    BlockUnreadable,
    /// A block stands under the id or shard of another.
    BlockMislabelled,
    /// A block does not carry the hash of the one before.
    ChainBroken,
    /// A block that should be there is not.
    BlockMissing,
    /// A block is there twice.
    BlockTwice,
    /// A column beside the block says something else than the block.
    ColumnChanged,
    /// Redis and PostgreSQL hold different blocks under one id.
    CopiesDiffer,
    /// The block is not the one that a checkpoint signed.
    Rewritten,
    /// The end of the trail, or of the archive, is gone.
    TailMissing,
    /// The cursor names another block than the last.
    CursorDiffers,
    /// A record that its block asks for stands in no row.
    RowMissing,
    /// A row says something else of a record than its block.
    RowChanged,
    /// A row holds a record that no block asks for.
    RowSurplus,
}

/// A break.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Break {
    /// The shard.
    pub shard: u8,
    /// The block at which it begins.
    #[serde(serialize_with = "as_text")]
    pub block: EntryId,
    /// What kind it is.
    pub kind: Kind,
    /// The record: the id of a dispatch, or which note; none where the break is about the block as a whole.
    pub record: Option<String>,
    /// Where it is.
    pub store: Store,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard {}, block {}", self.shard, self.block)?;
        if let Some(record) = &self.record {
            write!(f, ", {record}")?;
        }
        let kind = serde_json::to_value(self.kind).unwrap_or_default();
        let kind = kind.as_str().unwrap_or_default().replace('_', " ");
        write!(f, ", in {}: {kind}: expected {}; found {}", self.store, self.expected, self.found)
    }
}

/// How much was compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// Shards with at least one block.
    pub shards: u64,
    /// Blocks in PostgreSQL.
    pub blocks: u64,
    /// Blocks in Redis, those among them that PostgreSQL has as well.
    pub blocks_in_redis: u64,
    /// Blocks of the trail that were not archived yet.
    pub blocks_not_archived: u64,
    /// Records that the blocks hold: decided dispatches, ends, notes.
    pub records: u64,
    /// Rows in PostgreSQL: runs of decisions and of ends, notes.
    pub rows: u64,
    /// Signed lines of checkpoints.
    pub checkpoints: u64,
    /// Different heads that they name and that were found with their hash.
    pub heads: u64,
}

/// The answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Whether nothing is broken.
    pub whole: bool,
    /// The first break of each shard that has one.
    pub breaks: Vec<Break>,
    /// Further ones behind the first of their shards.
    pub further: u64,
    /// What is wrong with checkpoints themselves.
    pub checkpoints: Vec<Trouble>,
    /// What is no break and good to know.
    pub remarks: Vec<String>,
    /// How much was compared.
    pub compared: Compared,
}

/// Collects breaks, and keeps the first of each shard.
#[derive(Debug, Default)]
pub(super) struct Breaks {
    first: BTreeMap<u8, Break>,
    all: u64,
}

impl Breaks {
    pub(super) fn add(&mut self, new: Break) {
        self.all += 1;
        let key = |b: &Break| (b.block, b.kind, b.record.clone());
        match self.first.get(&new.shard) {
            Some(first) if key(first) <= key(&new) => {}
            Some(_) | None => {
                self.first.insert(new.shard, new);
            }
        }
    }

    pub(super) fn extend(&mut self, more: impl IntoIterator<Item = Break>) {
        more.into_iter().for_each(|b| self.add(b));
    }

    pub(super) fn into_first(self) -> (Vec<Break>, u64) {
        let further = self.all - self.first.len() as u64;
        (self.first.into_values().collect(), further)
    }
}

fn as_text<S: serde::Serializer>(id: &EntryId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}
