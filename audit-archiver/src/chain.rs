//! The proof that nothing is missing. Owns the checks on an entry before it is archived: dense ids, whole blocks, unbroken
//! chain. Reads and writes nothing.
//!
//! The rule it keeps: an entry that fails one check ends its shard's archiving until somebody has looked.

use governance::SHARDS;
use protocol::audit::{self, Block, BlockError};
use protocol::redis::{EntryId, Head};

/// Why a shard's trail cannot be archived any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Blocks between two entries are missing.
    #[error("block {found} does not follow block {after}: what lies between is missing")]
    Gap {
        /// The last block that was archived.
        after: EntryId,
        /// What came next.
        found: EntryId,
    },
    /// The block does not carry the hash of the one before.
    #[error("block {at} does not carry the hash of the block before it: one of them was changed or replaced")]
    Chain {
        /// The block.
        at: EntryId,
    },
    /// The entry's id or stream and what its block says of itself differ.
    #[error("the entry {at} of shard {shard} holds a block of shard {found_shard} that calls itself {found}")]
    Mislabelled {
        /// The id of the entry.
        at: EntryId,
        /// The shard of the stream.
        shard: u8,
        /// The shard in the block.
        found_shard: u8,
        /// The id in the block.
        found: EntryId,
    },
    /// The bytes are no block.
    #[error("block {at} cannot be read")]
    Unreadable {
        /// The id of the entry.
        at: EntryId,
        /// What is wrong.
        #[source]
        source: BlockError,
    },
    /// PostgreSQL refuses what the block says.
    #[error("PostgreSQL refuses the blocks after {after}: {message}")]
    Refused {
        /// The last block that was archived.
        after: EntryId,
        /// What it says.
        message: String,
    },
    /// The trail ends before the archive does, or before what its head names.
    #[error("the trail in Redis ends before block {expected}")]
    Missing {
        /// The block that should be there.
        expected: EntryId,
    },
}

/// A block that belongs where it stands.
#[derive(Debug)]
pub struct Checked {
    /// The block.
    pub block: Block,
    /// Its id and hash: the next cursor.
    pub head: Head,
}

/// Checks the entry that comes after `before`.
///
/// # Errors
/// When it is not the next block of this shard's chain.
pub fn check(shard: u8, before: Head, id: EntryId, bytes: &[u8]) -> Result<Checked, Broken> {
    debug_assert!(shard < SHARDS, "the caller numbers shards");
    if !id.follows(before.id) {
        return Err(Broken::Gap { after: before.id, found: id });
    }
    let unreadable = |source| Broken::Unreadable { at: id, source };
    let head = audit::Head::decode(bytes).map_err(unreadable)?;
    let found = EntryId { epoch: head.epoch, sequence: head.sequence };
    if found != id || head.shard != shard {
        return Err(Broken::Mislabelled { at: id, shard, found_shard: head.shard, found });
    }
    if head.previous != before.hash {
        return Err(Broken::Chain { at: id });
    }
    let block = Block::decode(bytes).map_err(unreadable)?;
    Ok(Checked { block, head: Head { id, hash: audit::hash(bytes) } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use governance::Timestamp;

    fn block(epoch: u64, sequence: u64, previous: audit::BlockHash) -> Vec<u8> {
        Block {
            shard: 3,
            epoch,
            sequence,
            at: Timestamp::from_millis(1_000),
            previous,
            policy_version: 1,
            decisions: Vec::new(),
            completions: Vec::new(),
            notes: Vec::new(),
        }
        .encode()
    }

    const fn id(epoch: u64, sequence: u64) -> EntryId {
        EntryId { epoch, sequence }
    }

    #[test]
    fn a_chain_of_two_epochs_is_accepted() {
        let first = block(1, 1, [0; 32]);
        let head = check(3, Head::default(), id(1, 1), &first).unwrap().head;
        let second = block(1, 2, head.hash);
        let head = check(3, head, id(1, 2), &second).unwrap().head;
        let marker = block(5, 1, head.hash);
        assert_eq!(check(3, head, id(5, 1), &marker).unwrap().head.id, id(5, 1));
    }

    #[test]
    fn a_missing_block_is_a_gap() {
        let head = Head { id: id(1, 1), hash: [7; 32] };
        let third = block(1, 3, [7; 32]);
        let found = check(3, head, id(1, 3), &third).unwrap_err();
        assert_eq!(found, Broken::Gap { after: id(1, 1), found: id(1, 3) });
    }

    #[test]
    fn an_epoch_that_does_not_begin_with_one_is_a_gap() {
        let head = Head { id: id(1, 1), hash: [7; 32] };
        assert!(matches!(check(3, head, id(2, 2), &block(2, 2, [7; 32])), Err(Broken::Gap { .. })));
    }

    #[test]
    fn a_changed_block_breaks_the_chain_of_the_next() {
        let head = check(3, Head::default(), id(1, 1), &block(1, 1, [0; 32])).unwrap().head;
        let mut changed = head.hash;
        changed[0] ^= 1;
        assert_eq!(
            check(3, head, id(1, 2), &block(1, 2, changed)).unwrap_err(),
            Broken::Chain { at: id(1, 2) }
        );
    }

    #[test]
    fn a_block_of_another_shard_or_id_is_refused() {
        let bytes = block(1, 1, [0; 32]);
        assert!(matches!(check(4, Head::default(), id(1, 1), &bytes), Err(Broken::Mislabelled { .. })));
        assert!(matches!(check(3, Head::default(), id(2, 1), &bytes), Err(Broken::Mislabelled { .. })));
    }

    #[test]
    fn bytes_that_are_no_block_are_refused() {
        let mut bytes = block(1, 1, [0; 32]);
        bytes.truncate(bytes.len() - 1);
        assert!(matches!(check(3, Head::default(), id(1, 1), &bytes), Err(Broken::Unreadable { .. })));
        assert!(matches!(check(3, Head::default(), id(1, 1), b"hello"), Err(Broken::Unreadable { .. })));
    }
}
