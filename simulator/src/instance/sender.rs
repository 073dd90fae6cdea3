//! Sending: envelopes on lanes, under dense sequences, until the broker has stored or refused them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use governance::{AgentId, Kind, Priority, Timestamp};
use protocol::envelope::{self, Outgoing};
use protocol::subjects;

use super::{Asked, Instance, UNCONFIRMED};
use crate::broker::Op;
use crate::cast::{CAPABILITY, Part, TOPIC};
use crate::oracle::{Sent, Sight};
use crate::process::{Ctx, Wake};
use crate::sawtooth::LOWEST;

/// Dispatches of one envelope.
const DISPATCHES_MAX: u64 = 4;
/// Envelopes that may be on their way at once; beyond it nothing new is sent.
const UNDER_WAY_MAX: usize = 32;

#[derive(Debug)]
struct Envelope {
    subject: String,
    payload: Bytes,
    /// A publish of it went unconfirmed, so that it may lie in its lane.
    may_be_stored: bool,
}

/// What an instance has sent and the broker has not confirmed.
#[derive(Debug, Default)]
pub(super) struct Sender {
    last: u64,
    unused: BTreeSet<u64>,
    envelopes: BTreeMap<u64, Envelope>,
}

impl Sender {
    pub(super) fn is_empty(&self) -> bool {
        self.envelopes.is_empty()
    }

    pub(super) fn unconfirmed(&mut self, asked: &Asked) {
        if let Asked::Envelope(sequence) = asked
            && let Some(envelope) = self.envelopes.get_mut(sequence)
        {
            envelope.may_be_stored = true;
        }
    }

    fn draw(&mut self) -> u64 {
        self.unused.pop_first().unwrap_or_else(|| {
            self.last += 1;
            self.last
        })
    }
}

impl Instance {
    pub(super) fn send_something(&mut self, ctx: &mut Ctx<'_>) {
        if ctx.now >= self.load_until {
            return self.end_if_drained(ctx);
        }
        let next = ctx.random.around(self.pause(ctx.now));
        ctx.after(Duration::from_nanos(next), Wake::Load);
        if self.sender.envelopes.len() < UNDER_WAY_MAX {
            self.compose(ctx);
        }
    }

    /// The time to the next envelope: of a sawtooth the shorter, the longer its load has climbed.
    fn pause(&self, now: Timestamp) -> u64 {
        let each = self.member.sends_each;
        let Some(tooth) = self.member.tooth else { return each };
        let (tooth, highest) = (tooth.as_nanos() as u64, LOWEST);
        let climbed = (now.0 % tooth) * (highest - 1) / tooth + 1;
        each * highest / climbed
    }

    /// Puts an envelope together: as its agent's part wants it, and now and then as nobody may.
    fn compose(&mut self, ctx: &mut Ctx<'_>) {
        let is_gate = self.member.part == Part::Gate;
        let named = |target: &str| Some(AgentId::new(target).expect("a good name"));
        let is_wave = self.member.part == Part::Wave;
        let topic = !is_gate && !is_wave && ctx.random.happens(500);
        let target = if topic {
            None
        } else if is_gate {
            named(&self.member.registration.dependencies[0])
        } else if ctx.random.happens(300) {
            named(ctx.random.pick::<String>(&self.targets))
        } else {
            named(ctx.random.pick::<String>(&self.member.registration.dependencies))
        };
        let class = match (is_gate, self.member.part) {
            (true, _) => Priority::P0,
            (false, Part::Desk) => Priority::P1,
            (false, Part::Wave) => Priority::P2,
            (false, _) => {
                *ctx.random.pick(&[Priority::P1, Priority::P2, Priority::P2, Priority::P3, Priority::P0])
            }
        };
        let kind = if topic || ctx.random.happens(2_500) && !is_gate { Kind::Event } else { Kind::Request };
        let budget = match kind {
            // What is measured there is how many instances answer, and not how many callers give up.
            _ if is_wave => Duration::from_secs(100),
            Kind::Event => Duration::from_millis(ctx.random.between(8_000, 40_000)),
            Kind::Request | Kind::Response | Kind::Error => {
                Duration::from_millis(ctx.random.between(1_500, 20_000))
            }
        };
        let count = if is_gate { 1 } else { ctx.random.between(1, DISPATCHES_MAX) as usize };
        let order_key = if !is_gate && ctx.random.happens(1_000) { "one-after-another" } else { "" };
        let sequence = self.sender.draw();
        let payload = format!("{}:{sequence}", self.instance);
        let row = Outgoing {
            kind,
            capability: if topic { "" } else { CAPABILITY },
            topic: if topic { TOPIC } else { "" },
            budget: if is_gate { Duration::from_secs(20) } else { budget },
            lineage: &[],
            conversation: "",
            order_key,
            idempotency_key: "",
            trace: "",
            content_type: "",
            payload: payload.as_bytes(),
        };
        let bytes = envelope::write(self.instance, sequence, "", &vec![row; count]);
        let subject = subjects::lane(class, &self.member.id, target.as_ref());
        ctx.saw(Sight::Sent(Sent {
            instance: self.instance,
            sequence,
            count: count as u16,
            source: self.member.id.clone(),
            target,
            class,
            kind,
            budget: row.budget,
            is_gate,
        }));
        let envelope = Envelope { subject, payload: bytes.into(), may_be_stored: false };
        self.sender.envelopes.insert(sequence, envelope);
        self.publish(ctx, sequence);
    }

    pub(super) fn publish(&mut self, ctx: &mut Ctx<'_>, sequence: u64) {
        let Some(e) = self.sender.envelopes.get(&sequence) else { return };
        let (subject, payload) = (e.subject.clone(), e.payload.clone());
        let id = Some(format!("{}:{sequence}", self.instance));
        self.ask(ctx, Asked::Envelope(sequence), UNCONFIRMED, |token| Op::Publish {
            token,
            subject,
            id,
            expected: None,
            payload,
        });
    }

    pub(super) fn accepted(&mut self, ctx: &mut Ctx<'_>, sequence: u64) {
        if self.sender.envelopes.remove(&sequence).is_some() {
            ctx.saw(Sight::Accepted { instance: self.instance, sequence });
        }
        self.end_if_drained(ctx);
    }

    /// The lane is full: unless an earlier try may have been stored, the envelope was never sent and its sequence is free.
    pub(super) fn lane_full(&mut self, ctx: &mut Ctx<'_>, sequence: u64) {
        if self.sender.envelopes.get(&sequence).is_some_and(|e| e.may_be_stored) {
            return self.again_later(ctx, Asked::Envelope(sequence));
        }
        self.sender.envelopes.remove(&sequence);
        self.sender.unused.insert(sequence);
        ctx.saw(Sight::Withdrawn { instance: self.instance, sequence });
    }
}
