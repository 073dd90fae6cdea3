//! The audit: dense, whole, chained; each dispatch decided about once and ended once; a trip of a breaker recorded once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use governance::{Decision, DispatchId, Priority, Reason, Timestamp, shard_of};
use protocol::audit::{self, Block, BlockHash, CompletionRow, DecisionRow, Note};
use protocol::redis::{EntryId, Head};

use super::Oracle;
use crate::model::Decided;
use crate::net::Actor;
use crate::postgres::Archived;

/// The audit as it was appended.
#[derive(Debug, Default)]
pub(super) struct Trail {
    heads: BTreeMap<u8, Head>,
    /// Every block, in order.
    pub(super) blocks: BTreeMap<u8, BTreeMap<EntryId, BlockHash>>,
    archived: BTreeMap<u8, BTreeSet<EntryId>>,
    /// The writer of each epoch of each shard.
    pub(super) writers: BTreeMap<(u8, u64), Actor>,
    breakers: BTreeMap<String, (u64, String)>,
}

impl Oracle {
    pub(super) fn on_block(
        &mut self,
        now: Timestamp,
        by: Actor,
        shard: u8,
        expected: Head,
        new: Head,
        bytes: &Arc<[u8]>,
    ) {
        self.count("blocks");
        let block = match Block::decode(bytes) {
            Ok(block) => block,
            Err(why) => return self.fail(format!("block {} of shard {shard} cannot be read: {why}", new.id)),
        };
        let before = self.trail.heads.insert(shard, new).unwrap_or_default();
        let id = EntryId { epoch: block.epoch, sequence: block.sequence };
        let sound = before == expected
            && id == new.id
            && id.follows(before.id)
            && block.previous == before.hash
            && block.shard == shard
            && audit::hash(bytes) == new.hash;
        if !sound {
            return self.fail(format!("block {} of shard {shard} does not follow {}", new.id, before.id));
        }
        self.trail.blocks.entry(shard).or_default().insert(new.id, new.hash);
        let writer = *self.trail.writers.entry((shard, id.epoch)).or_insert(by);
        if writer != by {
            return self.fail(format!("epoch {} of shard {shard} is written by {writer} and {by}", id.epoch));
        }
        for row in &block.decisions {
            self.on_decision(now, by, (shard, id), row);
        }
        for row in &block.completions {
            self.on_completion(row);
        }
        for note in &block.notes {
            self.on_note((shard, id), note);
        }
    }

    fn on_decision(&mut self, now: Timestamp, by: Actor, block: (u8, EntryId), row: &DecisionRow) {
        if shard_of(&row.source) != block.0 {
            return self.fail(format!("a dispatch of {} is recorded in shard {}", row.source, block.0));
        }
        for slot in 0..row.count {
            let id = DispatchId { slot: row.first.slot + slot, ..row.first };
            self.count("decisions");
            let Some(envelope) = self.model.envelope(id).cloned() else {
                return self.fail(format!("{id} was decided about and never sent"));
            };
            let Some((stored, _)) = envelope.stored else {
                return self.fail(format!("{id} was decided about and never stored"));
            };
            if row.accepted < stored
                || slot >= envelope.sent.count
                || *row.source != *envelope.sent.source.as_str()
            {
                return self
                    .fail(format!("{id} is recorded otherwise than it was sent: {row:?}, {envelope:?}"));
            }
            if row.decision == Decision::Admitted {
                self.on_admitted(now, by, id, row);
            }
            let decided = Decided {
                decision: row.decision,
                target: row.target.to_string(),
                block,
                envelope: row.envelope,
                kind: row.kind,
            };
            let result = self.model.decided(id, decided, row.outcome);
            self.expect(result);
            if envelope.sent.is_gate {
                let decided_at = self.true_time(by, row.decided);
                self.on_urgent_decided(Timestamp(stored.0), Timestamp(decided_at));
            }
        }
    }

    fn on_admitted(&mut self, now: Timestamp, by: Actor, id: DispatchId, row: &DecisionRow) {
        let declared = row.first.copy != 0 || self.cast.declares(&row.source, &row.target);
        if !declared {
            self.fail(format!("{id} went from {} to {}, which it does not declare", row.source, row.target));
        }
        let may_claim = self.cast.policy.p0_calls(&row.source).next().is_some();
        if row.class == Priority::P0 && !may_claim {
            self.fail(format!("{id} of {} went as P0 without the right to it", row.source));
        }
        let true_time = self.true_time(by, row.decided);
        if true_time > now.0 {
            self.fail(format!("{id} was decided about after it was recorded"));
        }
        let (source, target) = (row.source.to_string(), row.target.to_string());
        self.rates.admitted(&source, &target, row.decided.0, true_time);
    }

    fn on_completion(&mut self, row: &CompletionRow) {
        for slot in 0..row.count {
            let id = DispatchId { slot: row.first.slot + slot, ..row.first };
            if row.late {
                self.count("late completions");
                continue;
            }
            self.count("outcomes");
            if row.reason == Reason::RunnerLost {
                self.count("outcomes of poison");
                if !self.wire.letters.contains(&id) {
                    self.fail(format!("{id} ended as {}, and no letter is stored", row.reason));
                }
            }
            let result = self.model.completed(id, row.outcome);
            self.expect(result);
            let told = self.model.life(id).and_then(|life| life.replied);
            if let Some(told) = told.filter(|told| *told != row.outcome) {
                self.fail(format!("{id} ended as {}, and its caller was told {told}", row.outcome));
            }
        }
    }

    /// A breaker is decided about in its target's shard, and each change follows the one before; only across a take-over may
    /// the state be older, as the former home's last word may not have been stored.
    fn on_note(&mut self, (shard, id): (u8, EntryId), note: &Note) {
        match &*note.kind {
            "breaker" => {}
            "scale" => return self.on_scale(note),
            _ => return,
        }
        self.count("breaker changes");
        let agent = note.agent.to_string();
        if shard_of(&agent) != shard {
            return self.fail(format!("the breaker of {agent} was decided about in shard {shard}"));
        }
        let body: serde_json::Value = serde_json::from_str(&note.body).unwrap_or_default();
        let text = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
        let (from, to) = (text("from"), text("to"));
        let before = self.trail.breakers.insert(agent.clone(), (id.epoch, to.clone()));
        let state = before.as_ref().map_or("passing", |(_, state)| state.as_str());
        let same_home = before.as_ref().is_none_or(|(epoch, _)| *epoch == id.epoch);
        // A probe that was granted and not used is taken back without a word; the next one begins from the same trip.
        let probe_again = (state, from.as_str(), to.as_str()) == ("probing", "tripped", "probing");
        if from == to || (same_home && state != from && !probe_again) {
            self.fail(format!("the breaker of {agent} went from {from} to {to} while it was {state}"));
        }
    }

    pub(super) fn on_archived(&mut self, fact: &Archived) {
        let Archived { shard, blocks, .. } = fact;
        for (id, hash) in blocks {
            self.count("archived blocks");
            if self.trail.blocks.get(shard).and_then(|b| b.get(id)) != Some(hash) {
                return self.fail(format!(
                    "block {id} of shard {shard} was archived otherwise than it was appended"
                ));
            }
            if !self.trail.archived.entry(*shard).or_default().insert(*id) {
                return self.fail(format!("block {id} of shard {shard} was archived twice"));
            }
        }
    }

    pub(super) fn on_trimmed(&mut self, shard: u8, before: EntryId) {
        self.count("trims");
        let gone =
            self.trail.blocks.get(&shard).map(|b| b.range(..before).map(|(id, _)| *id).collect::<Vec<_>>());
        let archived = self.trail.archived.entry(shard).or_default();
        let lost = gone.unwrap_or_default().into_iter().find(|id| !archived.contains(id));
        if let Some(id) = lost {
            self.fail(format!("block {id} of shard {shard} was dropped before it was archived"));
        }
    }

    /// How many blocks are not archived yet.
    pub(super) fn unarchived(&self) -> usize {
        let all: usize = self.trail.blocks.values().map(BTreeMap::len).sum();
        all - self.trail.archived.values().map(BTreeSet::len).sum::<usize>()
    }
}
