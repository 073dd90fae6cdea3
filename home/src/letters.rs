//! Dead letters on an operator's order: sent again, or dropped. Owns what is sent and what is recorded of it.
//!
//! A letter that is sent again is a new dispatch of its source, in the lane it came from: the source's declared rights, its quota and
//! the order of priorities hold for it as for any other. It is a child of the dispatch that died, without a right to P0.
//!
//! The rule it keeps: the order is recorded first, with the operator's name; then it is sent; then the letter goes. Its id follows from
//! the letter's place, so that a crash in between, or a second order, sends nothing twice.

use bytes::Bytes;
use governance::{AgentId, DispatchId, InstanceId, Priority};
use protocol::control::{DeadLetter, Operation};
use protocol::envelope::{self, Outgoing};
use protocol::lineage::{Lineage, hop};
use protocol::{subjects, text};
use serde_json::json;
use tokio::sync::oneshot;

use crate::home::Home;
use crate::out::{Side, Stored};

/// Letters that share an instance: so few that the ranges of sequences of one stay within what is remembered of it.
const LETTERS_OF_INSTANCE: u64 = 1_024;
/// The bits of an instance that tell blocks of letters apart; those above tell streams apart, since one made anew counts anew.
const BLOCK_BITS: u32 = 26;

/// An operator's order about one letter.
#[derive(Debug)]
pub struct LetterOrder {
    /// Whether it is dropped; sent again otherwise.
    pub drop: bool,
    /// The letter.
    pub letter: Box<DeadLetter>,
    /// Its place in its stream.
    pub sequence: u64,
    /// Who orders it, and why.
    pub operation: Operation,
    /// Told when it is done, or what is wrong.
    pub respond: oneshot::Sender<Result<serde_json::Value, String>>,
}

impl Home {
    /// Records an order and has it done.
    pub(crate) fn order_letter(&mut self, order: LetterOrder) {
        match self.stage_order(&order) {
            Ok((send, done)) => {
                let LetterOrder { sequence, respond, .. } = order;
                self.shard.stage().side.push(Side::Letter { send, sequence, done, respond });
            }
            // Who gave up waiting asks again.
            Err(why) => drop(order.respond.send(Err(why))),
        }
    }

    fn stage_order(&mut self, order: &LetterOrder) -> Result<(Option<Stored>, serde_json::Value), String> {
        let LetterOrder { letter, operation, .. } = order;
        if operation.reason.trim().is_empty() {
            return Err("give a reason: it is recorded with your name".to_owned());
        }
        let source = self
            .governor
            .agent(&letter.source)
            .filter(|ix| self.governor.is_home(*ix))
            .ok_or_else(|| format!("no agent {:?} is registered; see: mesh agents", letter.source))?;
        let verb = if order.drop { "dlq_drop" } else { "dlq_redrive" };
        let mut done = json!({"letter": letter.id, "target": letter.target, "done": verb});
        let send = if order.drop {
            None
        } else {
            let (id, send) = self.sent_again(letter, order.sequence)?;
            done["as"] = json!(id.to_string());
            Some(send)
        };
        let mut body = done.clone();
        body["verb"] = json!(verb);
        body["operator"] = json!(operation.operator);
        body["reason"] = json!(operation.reason);
        self.note(self.now, "operator", source, &body);
        Ok((send, done))
    }

    /// The dispatch that a letter becomes.
    fn sent_again(&self, letter: &DeadLetter, sequence: u64) -> Result<(DispatchId, Stored), String> {
        if !letter.topic.is_empty() {
            return Err(format!(
                "it is a subscriber's copy of an event of topic {}, and would reach each subscriber again: publish the event anew",
                letter.topic
            ));
        }
        let payload = text::unhex(&letter.payload_hex).filter(|bytes| !bytes.is_empty());
        let payload = payload.ok_or("the letter has no payload; see its error: mesh dlq show")?;
        let died: DispatchId = letter.id.parse().map_err(|e| format!("the letter's id: {e}"))?;
        let root = letter.root.parse().unwrap_or(died);
        let name = |name: &str| AgentId::new(name).map_err(|e| e.to_string());
        let (source, target) = (name(&letter.source)?, name(&letter.target)?);
        let lineage = Lineage {
            root,
            parent: died,
            deadline: self.now.after(self.governor.policy().deadlines.event_max),
            serves_person: false,
            ancestry: vec![hop(&letter.target, &letter.capability)],
        };
        let lineage = lineage.with_seal(lineage.seal(&self.key, &letter.source));
        let outgoing = Outgoing {
            kind: letter.kind,
            capability: &letter.capability,
            topic: "",
            budget: std::time::Duration::ZERO,
            lineage: &lineage,
            conversation: &letter.conversation,
            order_key: "",
            idempotency_key: "",
            trace: "",
            content_type: &letter.content_type,
            payload: &payload,
        };
        let (instance, sequence) = self.identity(&source, sequence);
        let bytes = envelope::write(instance, sequence, "", &[outgoing]);
        let id = DispatchId { instance, sequence, slot: 0, copy: 0 };
        let stored = Stored {
            subject: subjects::lane(letter.priority, &source, Some(&target)),
            message_id: format!("redrive:{id}"),
            payload: Bytes::from(bytes),
        };
        Ok((id, stored))
    }

    /// The identity that follows from a letter's place.
    fn identity(&self, source: &AgentId, place: u64) -> (InstanceId, u64) {
        let made = self.lanes_made[usize::from(Priority::P2.code())] / 1_000_000_000;
        let block = (place / LETTERS_OF_INSTANCE) & ((1 << BLOCK_BITS) - 1);
        (
            InstanceId::of(source, (made << BLOCK_BITS) & 0xf_ffff_ffff | block),
            place % LETTERS_OF_INSTANCE + 1,
        )
    }
}
