//! The reference model: what may become of a dispatch, as the promises say it, and nothing of how the mesh does it.
//!
//! Owns the life of each dispatch as senders, handlers, the broker and the audit show it. Knows no lane, no quota state, no
//! breaker, and shares no code with the core. The rule it keeps: each step names what must have been before.

use std::collections::BTreeMap;

use governance::{Decision, DispatchId, InstanceId, Kind, Outcome, Timestamp};
use protocol::redis::EntryId;

use crate::net::Actor;
use crate::oracle::Sent;

/// An envelope: what its sender says, and whether the broker has it.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// What was sent.
    pub sent: Sent,
    /// When the broker stored it first, and where.
    pub stored: Option<(Timestamp, u64)>,
    /// The sender was told that it is stored.
    pub accepted: bool,
}

/// What the audit decided about a dispatch.
#[derive(Debug, Clone)]
pub struct Decided {
    /// What.
    pub decision: Decision,
    /// To whom it goes.
    pub target: String,
    /// In which block.
    pub block: (u8, EntryId),
    /// Which inbox message of the block carries it.
    pub envelope: Option<u16>,
    /// Request or event.
    pub kind: Kind,
}

/// One run of a handler.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Where.
    pub by: Actor,
    /// From when.
    pub began: Timestamp,
    /// Whether it ended, and as a failure.
    pub failed: Option<bool>,
}

/// What is known of one dispatch, or of one copy of it.
#[derive(Debug, Clone, Default)]
pub struct Life {
    /// Its one decision.
    pub decided: Option<Decided>,
    /// Its one outcome.
    pub outcome: Option<Outcome>,
    /// When an inbox message with it was stored first.
    pub delivered: Option<Timestamp>,
    /// Its runs.
    pub runs: Vec<Ran>,
    /// What its caller was told.
    pub replied: Option<Outcome>,
}

/// All dispatches of a run.
#[derive(Debug, Default)]
pub struct Model {
    envelopes: BTreeMap<(InstanceId, u64), Envelope>,
    lives: BTreeMap<DispatchId, Life>,
}

impl Model {
    /// An envelope is on its way. Its sequence was not used, or its sender was told that nothing was stored.
    pub fn sent(&mut self, sent: Sent) -> Result<(), String> {
        let key = (sent.instance, sent.sequence);
        match self.envelopes.insert(key, Envelope { sent, stored: None, accepted: false }) {
            Some(before) => Err(format!("the sequence of {before:?} is used twice")),
            None => Ok(()),
        }
    }

    /// The sender was told that the lane is full, and forgets the envelope.
    pub fn withdrawn(&mut self, instance: InstanceId, sequence: u64) -> Result<(), String> {
        match self.envelopes.remove(&(instance, sequence)) {
            Some(Envelope { stored: None, .. }) => Ok(()),
            other => Err(format!("an envelope was refused that is {other:?}")),
        }
    }

    /// The broker stored it, perhaps once more.
    pub fn stored(&mut self, now: Timestamp, instance: InstanceId, sequence: u64, place: u64) {
        if let Some(envelope) = self.envelopes.get_mut(&(instance, sequence)) {
            envelope.stored.get_or_insert((now, place));
        }
    }

    /// The sender was told that it is stored.
    pub fn accepted(&mut self, instance: InstanceId, sequence: u64) -> Result<(), String> {
        match self.envelopes.get_mut(&(instance, sequence)) {
            Some(envelope) if envelope.stored.is_some() => {
                envelope.accepted = true;
                Ok(())
            }
            other => Err(format!("a sender was told of a stored envelope that is {other:?}")),
        }
    }

    /// The envelope that a dispatch is in.
    #[must_use]
    pub fn envelope(&self, id: DispatchId) -> Option<&Envelope> {
        self.envelopes.get(&(id.instance, id.sequence))
    }

    /// All envelopes.
    pub fn envelopes(&self) -> impl Iterator<Item = &Envelope> {
        self.envelopes.values()
    }

    /// All dispatches that the audit knows.
    pub fn lives(&self) -> impl Iterator<Item = (&DispatchId, &Life)> {
        self.lives.iter()
    }

    /// What is known of a dispatch.
    #[must_use]
    pub fn life(&self, id: DispatchId) -> Option<&Life> {
        self.lives.get(&id)
    }

    /// The same, to change it.
    pub fn life_mut(&mut self, id: DispatchId) -> &mut Life {
        self.lives.entry(id).or_default()
    }

    /// The audit decided about it: once.
    pub fn decided(
        &mut self,
        id: DispatchId,
        decided: Decided,
        outcome: Option<Outcome>,
    ) -> Result<(), String> {
        let life = self.life_mut(id);
        if let Some(before) = &life.decided {
            return Err(format!("{id} was decided about twice: {before:?}, then {decided:?}"));
        }
        if (decided.decision == Decision::Admitted) == outcome.is_some() {
            return Err(format!("{id} was {decided:?} with the outcome {outcome:?}"));
        }
        life.outcome = outcome;
        life.decided = Some(decided);
        Ok(())
    }

    /// The audit recorded how it ended: once, and after it was admitted.
    pub fn completed(&mut self, id: DispatchId, outcome: Outcome) -> Result<(), String> {
        let life = self.life_mut(id);
        match &life.decided {
            Some(d) if d.decision == Decision::Admitted => {}
            other => return Err(format!("{id} ended as {outcome} while it was {other:?}")),
        }
        match life.outcome.replace(outcome) {
            Some(before) => Err(format!("{id} has the outcomes {before} and {outcome}")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> DispatchId {
        DispatchId { instance: InstanceId(1), sequence: 1, slot: 0, copy: 0 }
    }

    fn admitted() -> Decided {
        let block = (3, EntryId { epoch: 1, sequence: 2 });
        Decided {
            decision: Decision::Admitted,
            target: "t".to_owned(),
            block,
            envelope: Some(0),
            kind: Kind::Request,
        }
    }

    #[test]
    fn a_dispatch_is_decided_about_once_and_ends_once() {
        let mut model = Model::default();
        assert!(model.completed(id(), Outcome::Success).is_err(), "it was not admitted");
        assert!(model.decided(id(), admitted(), None).is_ok());
        assert!(model.decided(id(), admitted(), None).is_err());
        assert!(model.completed(id(), Outcome::Success).is_ok());
        assert!(model.completed(id(), Outcome::Timeout).is_err());
    }
}
