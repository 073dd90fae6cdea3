//! The sums of one shard while its blocks and rows stream by in any order. Owns chains in pieces and the balance between what
//! blocks ask for and what records there are.
//!
//! The rule it keeps: memory follows what is out of order or out of balance, not how much there is.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use governance::Timestamp;
use protocol::audit::{BLOCK_HASH_BYTES, BlockHash};
use protocol::redis::{EntryId, Head};

/// A stretch of blocks that follow each other without a break.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretch {
    pub(super) first: EntryId,
    pub(super) first_at: Timestamp,
    /// What the first block calls the hash of the one before.
    pub(super) previous: BlockHash,
    pub(super) last: Head,
    pub(super) last_at: Timestamp,
}

/// A block as far as the chain is concerned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub(super) head: Head,
    pub(super) previous: BlockHash,
    pub(super) at: Timestamp,
}

/// What blocks ask for less what records there are in rows: zero where they agree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Balance {
    records: i64,
    sum: u128,
}

impl Balance {
    pub(super) const fn ask(&mut self, record: u128) {
        self.records += 1;
        self.sum = self.sum.wrapping_add(record);
    }

    pub(super) const fn have(&mut self, record: u128) {
        self.records -= 1;
        self.sum = self.sum.wrapping_sub(record);
    }

    const fn merge(&mut self, other: Self) {
        self.records += other.records;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

/// A head that a checkpoint names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) hash: BlockHash,
    /// The checkpoint that named it first.
    pub(super) signed_at: Timestamp,
    /// The one before, which named an earlier head; none where there was none.
    pub(super) not_before: Option<Timestamp>,
    /// What was there under its id.
    pub(super) found: Option<BlockHash>,
}

/// One shard.
#[derive(Debug, Default)]
pub(super) struct Tally {
    open: Option<Stretch>,
    done: Vec<Stretch>,
    balances: HashMap<EntryId, Balance>,
    pub(super) wanted: BTreeMap<EntryId, Wanted>,
    /// Blocks that a break was found in already; the chain around them tells nothing new.
    pub(super) accused: BTreeSet<EntryId>,
}

impl Tally {
    pub(super) fn wanting(wanted: BTreeMap<EntryId, Wanted>) -> Self {
        Self { wanted, ..Self::default() }
    }

    /// Takes a block that PostgreSQL or Redis has.
    pub(super) fn link(&mut self, link: Link) {
        self.look_up(link.head);
        match &mut self.open {
            Some(open) if link.head.id.follows(open.last.id) && link.previous == open.last.hash => {
                open.last = link.head;
                open.last_at = link.at;
            }
            open => {
                let next = Stretch {
                    first: link.head.id,
                    first_at: link.at,
                    previous: link.previous,
                    last: link.head,
                    last_at: link.at,
                };
                self.done.extend(open.replace(next));
            }
        }
    }

    /// Notes that a block is there, where a checkpoint names it.
    pub(super) fn look_up(&mut self, head: Head) {
        if let Some(wanted) = self.wanted.get_mut(&head.id) {
            wanted.found = Some(head.hash);
        }
    }

    pub(super) fn settle(&mut self, block: EntryId, balance: Balance) {
        let entry = self.balances.entry(block).or_default();
        entry.merge(balance);
        if *entry == Balance::default() {
            self.balances.remove(&block);
        }
    }

    /// The blocks whose rows are not theirs, in order.
    pub(super) fn unbalanced(&self) -> Vec<EntryId> {
        let mut ids: Vec<_> = self.balances.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// The stretches in order. Pieces that came apart only by the order in which they were read are joined.
    pub(super) fn stretches(&mut self) -> Vec<Stretch> {
        let mut pieces = std::mem::take(&mut self.done);
        pieces.extend(self.open.take());
        pieces.sort_by_key(|piece| (piece.first, piece.last.id));
        let mut joined: Vec<Stretch> = Vec::new();
        for piece in pieces {
            match joined.last_mut() {
                Some(last) if piece.first.follows(last.last.id) && piece.previous == last.last.hash => {
                    last.last = piece.last;
                    last.last_at = piece.last_at;
                }
                Some(_) | None => joined.push(piece),
            }
        }
        joined
    }
}

/// Whether this is what the first block of a shard carries.
pub(super) fn is_beginning(previous: &BlockHash) -> bool {
    *previous == [0; BLOCK_HASH_BYTES]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(sequence: u64) -> Link {
        Link {
            head: Head { id: EntryId { epoch: 1, sequence }, hash: [sequence as u8; 32] },
            previous: [sequence as u8 - 1; 32],
            at: Timestamp::from_millis(sequence),
        }
    }

    #[test]
    fn blocks_in_any_order_are_one_stretch() {
        for order in [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [3, 4, 1, 2, 5]] {
            let mut tally = Tally::default();
            order.iter().for_each(|sequence| tally.link(link(*sequence)));
            let stretches = tally.stretches();
            assert_eq!(stretches.len(), 1, "{order:?}: {stretches:?}");
            assert!(is_beginning(&stretches[0].previous) && stretches[0].last.id.sequence == 5);
        }
    }

    #[test]
    fn a_block_that_is_missing_or_changed_parts_them() {
        let mut tally = Tally::default();
        [1, 2, 4].iter().for_each(|sequence| tally.link(link(*sequence)));
        assert_eq!(tally.stretches().len(), 2);
        let changed = Link { previous: [9; 32], ..link(2) };
        [link(1), changed, link(3)].into_iter().for_each(|one| tally.link(one));
        assert_eq!(tally.stretches().len(), 2);
    }

    #[test]
    fn rows_and_blocks_balance_in_any_order_and_leave_nothing() {
        let (mut asked, mut one, mut other) = (Balance::default(), Balance::default(), Balance::default());
        [5, 7].iter().for_each(|row| asked.ask(*row));
        one.have(7);
        other.have(5);
        let id = link(1).head.id;
        let mut tally = Tally::default();
        tally.settle(id, one);
        tally.settle(id, asked);
        assert_eq!(tally.unbalanced(), [id]);
        tally.settle(id, other);
        assert!(tally.unbalanced().is_empty());
    }

    #[test]
    fn another_row_in_the_place_of_one_is_no_balance() {
        let (mut asked, mut had) = (Balance::default(), Balance::default());
        asked.ask(5);
        had.have(6);
        let mut tally = Tally::default();
        tally.settle(link(1).head.id, asked);
        tally.settle(link(1).head.id, had);
        assert_eq!(tally.unbalanced().len(), 1);
    }
}
