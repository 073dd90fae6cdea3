//! The wire: nothing is delivered before its record is durable, nothing is acknowledged before either, and of several homes
//! of a shard only the newest has an effect.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use governance::{Decision, DispatchId, Kind, Outcome, Timestamp};
use protocol::completion::Completions;
use protocol::control::DeadLetter;
use protocol::envelope::LaneEnvelope;
use protocol::inbox::{self, Parcel};
use protocol::redis::EntryId;
use protocol::streams;

use super::Oracle;
use crate::net::Actor;

/// What lies in the streams, as far as it is judged later.
#[derive(Debug, Default)]
pub(super) struct Wire {
    /// Dispatches of lane messages, by stream and sequence.
    lanes: BTreeMap<(String, u64), Vec<DispatchId>>,
    /// Dispatches of completions, by sequence, with what they say.
    dones: BTreeMap<u64, Vec<(DispatchId, Outcome)>>,
    /// Who moved the fence of a priority and shard last.
    fences: BTreeMap<(String, u8), Actor>,
    /// Who took over a shard, by epoch.
    homes: BTreeMap<(u8, u64), Actor>,
    /// Dispatches of which a dead letter is stored.
    pub(super) letters: BTreeSet<DispatchId>,
}

impl Oracle {
    pub(super) fn on_home(&mut self, now: Timestamp, shard: u8, epoch: u64, by: Actor) {
        self.count("take-overs");
        self.rates.handed_over(shard, now.0);
        if self.wire.homes.insert((shard, epoch), by).is_some_and(|other| other != by) {
            self.fail(format!("epoch {epoch} of shard {shard} has two homes"));
        }
    }

    pub(super) fn on_stored(
        &mut self,
        now: Timestamp,
        by: Actor,
        subject: &str,
        sequence: u64,
        id: Option<&str>,
        payload: &Bytes,
    ) {
        let mut tokens = subject.split('.').skip(1);
        let (what, class) = (tokens.next().unwrap_or_default(), tokens.next().unwrap_or_default());
        let last = protocol::subjects::last_token(subject);
        match what {
            "in" => {
                let envelope = LaneEnvelope::parse(payload).expect("senders write what can be read");
                self.model.stored(now, envelope.instance, envelope.sequence, sequence);
                let rows = envelope.frame.rows() as u16;
                let id = |slot| DispatchId {
                    instance: envelope.instance,
                    sequence: envelope.sequence,
                    slot,
                    copy: 0,
                };
                let stream = format!("MESH_IN_{}", class.to_uppercase());
                self.wire.lanes.insert((stream, sequence), (0..rows).map(id).collect());
            }
            "dlq" => {
                let letter: DeadLetter =
                    serde_json::from_slice(payload).expect("homes write what can be read");
                self.wire.letters.insert(letter.id.parse().expect("an id"));
            }
            "done" => self.on_reported(sequence, payload),
            "fence" => {
                let shard = last.parse().expect("a fence is of a shard");
                self.wire.fences.insert((class.to_owned(), shard), by);
            }
            "out" => self.on_delivered(now, by, (class, last), id.unwrap_or_default(), payload),
            _ => {}
        }
    }

    fn on_reported(&mut self, sequence: u64, payload: &Bytes) {
        let completions = Completions::parse(payload).expect("instances write what can be read");
        let mut ids = Vec::new();
        for row in 0..completions.len() {
            let row = completions.row(row);
            ids.extend(
                (0..row.count)
                    .map(|slot| (DispatchId { slot: row.first.slot + slot, ..row.first }, row.outcome)),
            );
        }
        self.wire.dones.insert(sequence, ids);
    }

    fn on_delivered(
        &mut self,
        now: Timestamp,
        by: Actor,
        (class, target): (&str, &str),
        id: &str,
        payload: &Bytes,
    ) {
        let mut parts = id.split(':');
        let shard: Option<u8> = parts.next().and_then(|s| s.parse().ok());
        let block = parts.next().and_then(EntryId::parse);
        let index: Option<u16> = parts.next().and_then(|i| i.parse().ok());
        let (Some(shard), Some(block), Some(index)) = (shard, block, index) else {
            return self.fail(format!("an inbox message has the id {id:?}"));
        };
        let owner = self.wire.fences.get(&(class.to_owned(), shard)).copied();
        if owner != Some(by) {
            self.fail(format!("{by} published {id} while the fence was moved by {owner:?}"));
        }
        for bytes in inbox::split(payload).expect("homes write what can be read") {
            let parcel = Parcel::parse(&bytes).expect("homes write what can be read");
            for row in 0..parcel.frame.rows() {
                self.count("deliveries after their record");
                let id = parcel.id(row);
                let decided = self.model.life(id).and_then(|life| life.decided.as_ref());
                let as_recorded = decided.is_some_and(|d| {
                    d.decision == Decision::Admitted
                        && d.block == (shard, block)
                        && d.envelope == Some(index)
                        && d.target == target
                });
                if !as_recorded {
                    return self.fail(format!(
                        "{id} was delivered to {target} in {block}:{index}, and is {decided:?}"
                    ));
                }
                self.model.life_mut(id).delivered.get_or_insert(now);
            }
        }
    }

    pub(super) fn on_acknowledged(&mut self, by: Actor, stream: &str, sequence: u64, consumer: &str) {
        if let Some((agent, epoch)) = streams::consumer_epoch(consumer) {
            let home = self.trail.writers.get(&(governance::shard_of(agent), epoch)).copied();
            if home != Some(by) {
                self.fail(format!("{by} acknowledged through {consumer}, which is of {home:?}"));
            }
        }
        if let Some(ids) = self.wire.lanes.remove(&(stream.to_owned(), sequence)) {
            self.count("acknowledgements after their record");
            let open = ids.iter().find(|id| self.model.life(**id).is_none_or(|l| l.decided.is_none()));
            // An envelope that was stored twice may go once: the other message of it is still there.
            let twin = |ids: &Vec<DispatchId>| ids.first() == open;
            if let Some(id) = open.filter(|_| !self.wire.lanes.values().any(twin)) {
                self.fail(format!(
                    "{id} was acknowledged on its lane ({stream} {sequence}) and is not decided about"
                ));
            }
        } else if stream == streams::DONE {
            self.count("acknowledged completions");
            for (id, outcome) in self.wire.dones.remove(&sequence).unwrap_or_default() {
                let Some(life) = self.model.life(id) else { continue };
                let kind = life.decided.as_ref().map(|d| d.kind);
                // A failed event may run again.
                if life.outcome.is_none() && !(kind == Some(Kind::Event) && outcome == Outcome::Failure) {
                    self.fail(format!("the completion of {id} was acknowledged and no outcome is recorded"));
                }
            }
        }
    }

    pub(super) fn on_replied(&mut self, id: DispatchId, outcome: Outcome) {
        self.count("replies");
        let life = self.model.life_mut(id);
        let told = life.replied.replace(outcome);
        let recorded = life.outcome;
        if told.is_some_and(|told| told != outcome) || recorded.is_some_and(|recorded| recorded != outcome) {
            self.fail(format!(
                "the caller of {id} was told {outcome}, before {told:?}; recorded is {recorded:?}"
            ));
        }
    }
}
