//! The modelled Redis: the audit's streams, heads, snapshots and archive marks, with the two functions that write them.
//!
//! The rule it keeps: each operation happens at once and as a whole. An answer that is lost on its way back says nothing
//! about whether it happened.

use std::collections::BTreeMap;
use std::sync::Arc;

use governance::SHARDS;
use protocol::redis::{EntryId, Head};

use crate::net::Actor;

/// Something that arrives at Redis.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the line above each variant says what its fields are")]
pub enum Op {
    /// Append a block where the head is the expected one; answered.
    Append { token: u64, shard: u8, expected: Head, new: Head, block: Arc<[u8]> },
    /// Store a snapshot where the head is of this epoch.
    Snapshot { token: u64, shard: u8, epoch: u64, text: String },
    /// Read the head.
    Head { token: u64, shard: u8 },
    /// Read the snapshot.
    ReadSnapshot { token: u64, shard: u8 },
    /// Read blocks from an id on, so many at most.
    Blocks { token: u64, shard: u8, from: EntryId, most: usize },
    /// Drop all blocks before this one.
    Trim { token: u64, shard: u8, before: EntryId },
}

/// What Redis answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Done, now or before.
    Done,
    /// An error: the id of a block was not above the last one's.
    Failed,
    /// Another home has written since: the head it left.
    Moved(Head),
    /// The head.
    Head(Head),
    /// The snapshot's text.
    Snapshot(Option<String>),
    /// Blocks.
    Blocks(Vec<(EntryId, Arc<[u8]>)>),
}

/// What happened, for the oracle.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the line above each variant says what its fields are")]
pub enum Fact {
    /// A block became durable.
    Appended { by: Actor, shard: u8, new: Head, expected: Head, block: Arc<[u8]> },
    /// A block was refused.
    Refused { by: Actor, shard: u8, new: Head },
    /// A block was to stand behind the head with an id that is not above it.
    Below { by: Actor, shard: u8, new: Head, head: Head },
    /// Blocks were dropped.
    Trimmed { by: Actor, shard: u8, before: EntryId },
}

#[derive(Debug, Default)]
struct Shard {
    blocks: BTreeMap<EntryId, Arc<[u8]>>,
    head: Head,
    snapshot: Option<String>,
}

/// Redis.
#[derive(Debug)]
pub struct Redis {
    shards: Vec<Shard>,
}

impl Default for Redis {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Shard::default()).collect() }
    }
}

impl Redis {
    /// Handles something that arrived; gives the token and the answer.
    pub fn handle(&mut self, by: Actor, op: Op, facts: &mut Vec<Fact>) -> (u64, Answer) {
        match op {
            Op::Append { token, shard, expected, new, block } => {
                let s = &mut self.shards[usize::from(shard)];
                let answer = if s.head == expected && new.id <= s.head.id {
                    facts.push(Fact::Below { by, shard, new, head: s.head });
                    Answer::Failed
                } else if s.head == expected {
                    s.blocks.insert(new.id, Arc::clone(&block));
                    s.head = new;
                    facts.push(Fact::Appended { by, shard, new, expected, block });
                    Answer::Done
                } else if s.head == new {
                    Answer::Done
                } else {
                    facts.push(Fact::Refused { by, shard, new });
                    Answer::Moved(s.head)
                };
                (token, answer)
            }
            Op::Snapshot { token, shard, epoch, text } => {
                let s = &mut self.shards[usize::from(shard)];
                if s.head.id.epoch != epoch {
                    return (token, Answer::Moved(s.head));
                }
                s.snapshot = Some(text);
                (token, Answer::Done)
            }
            Op::Head { token, shard } => (token, Answer::Head(self.shards[usize::from(shard)].head)),
            Op::ReadSnapshot { token, shard } => {
                (token, Answer::Snapshot(self.shards[usize::from(shard)].snapshot.clone()))
            }
            Op::Blocks { token, shard, from, most } => {
                let s = &self.shards[usize::from(shard)];
                let blocks = s.blocks.range(from..).take(most).map(|(id, b)| (*id, Arc::clone(b))).collect();
                (token, Answer::Blocks(blocks))
            }
            Op::Trim { token, shard, before } => {
                let s = &mut self.shards[usize::from(shard)];
                let kept = s.blocks.split_off(&before);
                if !std::mem::replace(&mut s.blocks, kept).is_empty() {
                    facts.push(Fact::Trimmed { by, shard, before });
                }
                (token, Answer::Done)
            }
        }
    }

    /// The head of a shard, for looking at it.
    #[must_use]
    pub fn head(&self, shard: u8) -> Head {
        self.shards[usize::from(shard)].head
    }

    /// How many blocks of a shard it holds.
    #[must_use]
    pub fn held(&self, shard: u8) -> usize {
        self.shards[usize::from(shard)].blocks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Who;

    const HOME: Actor = Actor { who: Who::Replica(0), life: 0 };

    fn head(epoch: u64, sequence: u64) -> Head {
        Head { id: EntryId { epoch, sequence }, hash: [sequence as u8; 32] }
    }

    fn append(redis: &mut Redis, expected: Head, new: Head) -> Answer {
        let block = Arc::from(&b"block"[..]);
        redis.handle(HOME, Op::Append { token: 1, shard: 3, expected, new, block }, &mut Vec::new()).1
    }

    #[test]
    fn a_block_is_appended_only_on_the_head_that_is_expected() {
        let mut redis = Redis::default();
        assert_eq!(append(&mut redis, Head::default(), head(1, 1)), Answer::Done);
        assert_eq!(append(&mut redis, Head::default(), head(2, 1)), Answer::Moved(head(1, 1)));
        assert_eq!(append(&mut redis, head(1, 1), head(2, 1)), Answer::Done);
        assert_eq!(append(&mut redis, head(1, 1), head(1, 2)), Answer::Moved(head(2, 1)), "deposed");
    }

    #[test]
    fn an_append_that_is_tried_again_is_the_same() {
        let mut redis = Redis::default();
        assert_eq!(append(&mut redis, Head::default(), head(1, 1)), Answer::Done);
        assert_eq!(append(&mut redis, Head::default(), head(1, 1)), Answer::Done);
        assert_eq!(redis.held(3), 1);
    }

    #[test]
    fn a_snapshot_of_a_former_epoch_is_refused() {
        let mut redis = Redis::default();
        append(&mut redis, Head::default(), head(2, 1));
        let op = Op::Snapshot { token: 1, shard: 3, epoch: 1, text: "old".to_owned() };
        assert_eq!(redis.handle(HOME, op, &mut Vec::new()).1, Answer::Moved(head(2, 1)));
    }

    #[test]
    fn trimming_keeps_the_block_it_names() {
        let mut redis = Redis::default();
        let mut last = Head::default();
        for sequence in 1..=5 {
            append(&mut redis, last, head(1, sequence));
            last = head(1, sequence);
        }
        let before = EntryId { epoch: 1, sequence: 3 };
        redis.handle(HOME, Op::Trim { token: 1, shard: 3, before }, &mut Vec::new());
        assert_eq!(redis.held(3), 3);
    }
}
