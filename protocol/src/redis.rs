//! The audit's place in Redis: keys, entry ids, heads, and the one function that appends. Owns their forms; connects to
//! nothing.
//!
//! The rule it keeps: the function compares and stores, and knows no policy.

use crate::audit::BlockHash;
use crate::text::{hex, unhex};

/// The field of a stream entry that holds the block's bytes.
pub const BLOCK_FIELD: &str = "b";

/// The stream of a shard's blocks. The braces keep a shard's keys on one node of a Redis cluster.
#[must_use]
pub fn stream(shard: u8) -> String {
    format!("mesh:audit:{{{shard}}}")
}

/// The head of a shard: the id and hash of its last block.
#[must_use]
pub fn head(shard: u8) -> String {
    format!("mesh:audit:{{{shard}}}:head")
}

/// The snapshot of a shard: what a new home starts from. Its first line is the [`Head`] it was taken at, its second the
/// id of the oldest block that a new home must read, from which on nothing may be trimmed.
#[must_use]
pub fn snapshot(shard: u8) -> String {
    format!("mesh:audit:{{{shard}}}:snapshot")
}

/// The parts of a snapshot: the head it was taken at, the oldest block needed, the state.
#[must_use]
pub fn read_snapshot(text: &str) -> Option<(Head, EntryId, &str)> {
    let mut lines = text.splitn(3, '\n');
    Some((Head::parse(lines.next()?)?, EntryId::parse(lines.next()?)?, lines.next()?))
}

/// How far a shard is archived: the id of the last block that PostgreSQL has committed.
#[must_use]
pub fn archived(shard: u8) -> String {
    format!("mesh:audit:{{{shard}}}:archived")
}

/// The id of a block's entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// The epoch.
    pub epoch: u64,
    /// The sequence in the epoch, from 1.
    pub sequence: u64,
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.epoch, self.sequence)
    }
}

impl EntryId {
    /// Reads `<epoch>-<sequence>`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (epoch, sequence) = text.split_once('-')?;
        let id = Self { epoch: epoch.parse().ok()?, sequence: sequence.parse().ok()? };
        // Redis writes an id in one way only; `+1-2` or `01-2` would be another text for the same id.
        (id.to_string() == text).then_some(id)
    }

    /// Whether `self` may stand directly behind `before`: the next of its epoch, or the first of a later one.
    #[must_use]
    pub const fn follows(self, before: Self) -> bool {
        (self.epoch == before.epoch
            && self.sequence > before.sequence
            && self.sequence - before.sequence == 1)
            || (self.epoch > before.epoch && self.sequence == 1)
    }
}

/// The id and hash of a shard's last block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Head {
    /// Its id; zero before the first block.
    pub id: EntryId,
    /// Its hash; all zero before the first block.
    pub hash: BlockHash,
}

impl std::fmt::Display for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.id, hex(&self.hash))
    }
}

impl Head {
    /// Reads `<id> <hash>`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (id, hash) = text.split_once(' ')?;
        Some(Self { id: EntryId::parse(id)?, hash: unhex(hash)?.try_into().ok()? })
    }
}

/// Appends a block where the head is the expected one.
///
/// Keys: stream, head. Arguments: expected head, new head, new id, block. Answers `ok`, `same` where this very block is
/// the last already (a retry), or the head there is: then the caller was deposed and must stop.
pub const APPEND: &str = "\
local head = redis.call('GET', KEYS[2]) or ARGV[5]
if head == ARGV[1] then
  redis.call('XADD', KEYS[1], ARGV[3], 'b', ARGV[4])
  redis.call('SET', KEYS[2], ARGV[2])
  return 'ok'
elseif head == ARGV[2] then
  return 'same'
else
  return head
end";

/// Stores a snapshot where the head has not passed to another home.
///
/// Keys: snapshot, head. Arguments: the epoch, the snapshot. Answers `ok`, or the head there is.
pub const SNAPSHOT: &str = "\
local head = redis.call('GET', KEYS[2]) or '0-0'
local epoch = string.match(head, '^(%d+)-')
if epoch == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2])
  return 'ok'
else
  return head
end";

/// The head of a shard that has no block yet, as [`APPEND`] wants it in its last argument.
#[must_use]
pub fn empty_head() -> String {
    Head::default().to_string()
}
