//! The modelled PostgreSQL: cursors and archived blocks, moved together or not at all.
//!
//! The rule it keeps: a transaction commits as a whole, and one whose cursor was moved by another writes nothing.

use std::collections::BTreeMap;

use protocol::audit::BlockHash;
use protocol::redis::{EntryId, Head};

use crate::net::Actor;

/// Something that arrives at PostgreSQL.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the line above each variant says what its fields are")]
pub enum Op {
    /// Read the cursor of a shard.
    Cursor { token: u64, shard: u8 },
    /// Store blocks and move the cursor, where it is still the one expected.
    Commit { token: u64, shard: u8, from: Head, to: Head, blocks: Vec<(EntryId, BlockHash)> },
}

/// What PostgreSQL answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The cursor.
    Cursor(Head),
    /// Committed.
    Committed,
    /// Another archiver was there before.
    Overtaken,
}

/// What happened, for the oracle.
#[derive(Debug, Clone)]
pub struct Archived {
    /// By whom.
    pub by: Actor,
    /// In which shard.
    pub shard: u8,
    /// What.
    pub blocks: Vec<(EntryId, BlockHash)>,
}

/// PostgreSQL.
#[derive(Debug, Default)]
pub struct Postgres {
    cursors: BTreeMap<u8, Head>,
}

impl Postgres {
    /// Handles something that arrived; gives the token and the answer.
    pub fn handle(&mut self, by: Actor, op: Op, facts: &mut Vec<Archived>) -> (u64, Answer) {
        match op {
            Op::Cursor { token, shard } => (token, Answer::Cursor(self.cursor(shard))),
            Op::Commit { token, shard, from, to, blocks } => {
                if self.cursor(shard) != from {
                    return (token, Answer::Overtaken);
                }
                self.cursors.insert(shard, to);
                facts.push(Archived { by, shard, blocks });
                (token, Answer::Committed)
            }
        }
    }

    /// How far a shard is archived.
    #[must_use]
    pub fn cursor(&self, shard: u8) -> Head {
        self.cursors.get(&shard).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Who;

    #[test]
    fn of_two_archivers_at_one_cursor_one_commits() {
        let (mut postgres, mut facts) = (Postgres::default(), Vec::new());
        let by = Actor { who: Who::Archiver(0), life: 0 };
        let to = Head { id: EntryId { epoch: 1, sequence: 1 }, hash: [1; 32] };
        let commit =
            || Op::Commit { token: 1, shard: 2, from: Head::default(), to, blocks: vec![(to.id, to.hash)] };
        assert_eq!(postgres.handle(by, commit(), &mut facts).1, Answer::Committed);
        assert_eq!(postgres.handle(by, commit(), &mut facts).1, Answer::Overtaken);
        assert_eq!(facts.len(), 1);
    }
}
