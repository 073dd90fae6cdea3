//! Arrivals: a lane message becomes runs of dispatches that the rules can judge.
//!
//! Parses at the door: names become indices, lineages are verified, JSON becomes a binary envelope. Bad bytes become a
//! recorded refusal. Decides nothing.

use bytes::Bytes;
use governance::{
    Arrival, Decision, Destination, Event, InstanceId, Kind, Lane, Lineage, MessageIx, Outcome, Reason, Run,
};
use protocol::control::Signal;
use protocol::envelope::{LaneEnvelope, column};
use protocol::lineage::{self, hop};
use protocol::{json, streams, subjects};

use crate::home::{Held, Home};
use crate::input::{Delivered, Ended, Source};
use crate::out::{Pull, Side};
use crate::replay::derived_instance;

/// Messages of completions that a source's home asks for at once.
const DONE_CREDITS: u32 = 32;

impl Home {
    pub(crate) fn arrive(&mut self, lane: Lane, message: Delivered) {
        self.lane_pending.insert(lane, message.pending);
        let sequence = message.stream_sequence;
        if let Some(at) = self.held_by_sequence.get(&(lane.priority, sequence)) {
            // It was held longer than its ack wait: the newest acknowledgement subject is the one that counts.
            if let Some(held) = self.held.get_mut(*at) {
                held.ack = message.ack;
            }
            return self.apply(Event::PullEnded { lane, unfilled: 1 });
        }
        let instance = derived_instance(&self.name(lane.source), lane.priority, self.lanes_made);
        let read = if json::is_json(&message.payload) {
            json::to_lane(&message.payload, instance, sequence).map(Bytes::from).map_err(|e| e.to_string())
        } else {
            Ok(message.payload.clone())
        };
        let read = read.and_then(|bytes| self.check_envelope(lane, &bytes, instance).map(|()| bytes));
        match read {
            Ok(bytes) => self.keep(lane, message, bytes),
            Err(why) => self.refuse_malformed(lane, message, instance, &why),
        }
    }

    fn keep(&mut self, lane: Lane, message: Delivered, bytes: Bytes) {
        let envelope = LaneEnvelope::parse(&bytes).expect("parsed before it is held");
        let (instance, sequence, rows) = (envelope.instance, envelope.sequence, envelope.frame.rows());
        let target = subjects::route(&message.subject).and_then(|r| r.target);
        let mut runs = self.runs(lane, target, &envelope);
        let place = (lane.priority, message.stream_sequence);
        let covered = self.recovered.covered.remove(&place).unwrap_or_default();
        let resumed = self.recovered.unsettled.contains(&place);
        runs = covered.iter().fold(runs, |runs, (first, count)| without(runs, *first, *count));
        let left: u32 = runs.iter().map(|r| u32::from(r.count)).sum();
        let reply_token = envelope.text(column::REPLY_TOKEN, 0).into();
        let accepted = message.published;
        self.sources_of_instances.insert(instance, lane.source);
        let at = self.held.insert(Held {
            ack: message.ack,
            lane,
            stream_sequence: message.stream_sequence,
            accepted,
            instance,
            reply_token,
            named: target.unwrap_or_default().into(),
            rows: rows as u32,
            decided: rows as u32 - left,
            // The guard of this very call.
            pending: 1,
            blocks: Vec::new(),
            bytes: bytes.clone(),
        });
        self.held_by_sequence.insert(place, at);
        if runs.is_empty() {
            // Every slot was decided by former homes: what its sender publishes again is a repetition.
            self.apply(Event::RestoreSeen { instance, from: sequence, to: sequence });
            self.apply(Event::PullEnded { lane, unfilled: 1 });
        } else {
            let message = MessageIx(at as u32);
            self.meter.arrived(lane.priority, left);
            self.apply(Event::Arrived(Arrival {
                lane,
                message,
                instance,
                sequence,
                accepted,
                resumed,
                runs: &runs,
            }));
        }
        self.release_held(at);
    }

    /// Whether bytes are an envelope that this source may send: an instance belongs to one agent, and those that the JSON
    /// door derives are nobody's to name.
    fn check_envelope(&self, lane: Lane, bytes: &[u8], derived: InstanceId) -> Result<(), String> {
        let envelope = LaneEnvelope::parse(bytes).map_err(|e| e.to_string())?;
        if envelope.instance.is_derived() && envelope.instance != derived {
            return Err("column `instance`: the first bit is reserved".to_owned());
        }
        if envelope.instance.is_derived() {
            return Ok(());
        }
        let Some(agent) = self.agents.get(&lane.source) else { return Ok(()) };
        if envelope.instance.is_of(&agent.id) {
            return Ok(());
        }
        let own = InstanceId::of(&agent.id, envelope.instance.0);
        Err(format!("column `instance`: it belongs to another agent; one of {} would be {own}", agent.name))
    }

    /// The dispatches of an envelope as runs of equal attributes.
    fn runs(&self, lane: Lane, target: Option<&str>, envelope: &LaneEnvelope<'_>) -> Vec<Run> {
        let rows = envelope.frame.rows();
        let alike = [
            column::KIND,
            column::CAPABILITY,
            column::TOPIC,
            column::BUDGET_MS,
            column::LINEAGE,
            column::ORDER_KEY,
            column::IDEMPOTENCY_KEY,
        ]
        .iter()
        .all(|id| envelope.frame.is_same(*id));
        if alike {
            return vec![Run { count: rows as u16, ..self.run_of(lane, target, envelope, 0) }];
        }
        let mut runs: Vec<Run> = Vec::new();
        for row in 0..rows {
            let run = self.run_of(lane, target, envelope, row);
            match runs.last_mut() {
                Some(last) if (Run { first: last.first, count: last.count, ..run }) == *last => {
                    last.count += 1
                }
                Some(_) | None => runs.push(run),
            }
        }
        runs
    }

    fn run_of(&self, lane: Lane, target: Option<&str>, envelope: &LaneEnvelope<'_>, row: usize) -> Run {
        let capability = envelope.text(column::CAPABILITY, row);
        let topic = envelope.text(column::TOPIC, row);
        Run {
            first: row as u16,
            count: 1,
            kind: envelope.kind(row),
            to: self.destination(target, capability, topic),
            budget: envelope.budget(row),
            lineage: self.lineage(lane, envelope.lineage(row), target.unwrap_or_default(), capability),
            order_key: key64(envelope.text(column::ORDER_KEY, row)),
            idempotency_key: key128(envelope.text(column::IDEMPOTENCY_KEY, row)),
        }
    }

    fn destination(&self, target: Option<&str>, capability: &str, topic: &str) -> Destination {
        if !topic.is_empty() {
            return self
                .governor
                .topic(topic)
                .map_or(Destination::Nowhere(Reason::NoSubscriber), Destination::Topic);
        }
        let Some(target) = target else {
            let known = self.governor.capability(capability);
            return known.map_or(Destination::Nowhere(Reason::NoProvider), Destination::Capability);
        };
        match (self.governor.agent(target), self.governor.capability(capability)) {
            (None, _) => Destination::Nowhere(Reason::UnknownTarget),
            (Some(_), None) => Destination::Nowhere(Reason::UnknownCapability),
            (Some(agent), Some(capability)) => Destination::Agent(agent, capability),
        }
    }

    fn lineage(&self, lane: Lane, bytes: &[u8], target: &str, capability: &str) -> Lineage {
        if bytes.is_empty() {
            return Lineage::Root;
        }
        let Some(holder) = self.agents.get(&lane.source) else { return Lineage::Invalid };
        let Some(above) = lineage::Lineage::verify(bytes, &self.key, &holder.name) else {
            return Lineage::Invalid;
        };
        let own = hop(target, capability);
        Lineage::Child {
            hops: above.ancestry.len() as u8,
            repeats: above.ancestry.iter().filter(|h| **h == own).count() as u8,
            serves_person: above.serves_person,
            deadline: above.deadline,
        }
    }

    /// Bytes that are no envelope: recorded, counted, told to the sender by the stream sequence it got as acknowledgement.
    fn refuse_malformed(&mut self, lane: Lane, message: Delivered, instance: InstanceId, why: &str) {
        let now = self.now;
        let sequence = message.stream_sequence;
        let at = self.held.insert(Held {
            bytes: Bytes::new(),
            ack: message.ack,
            lane,
            stream_sequence: sequence,
            accepted: message.published,
            instance,
            reply_token: "".into(),
            named: subjects::route(&message.subject).and_then(|r| r.target).unwrap_or_default().into(),
            rows: 1,
            decided: 1,
            pending: 1,
            blocks: Vec::new(),
        });
        self.held_by_sequence.insert((lane.priority, sequence), at);
        let mut row = self.decision_row(at, now, (0, 1, 0));
        row.first.sequence = sequence;
        row.kind = Kind::Error;
        row.decision = Decision::Rejected;
        row.reason = Reason::Malformed;
        row.outcome = Some(Outcome::Rejected);
        row.hashes = vec![self.key.hash(&message.payload)];
        self.meter.ended(Reason::Malformed, lane.priority, 1);
        let source = self.agents[&lane.source].id.clone();
        let signal =
            Signal::Refused { stream: streams::lanes(lane.priority), sequence, message: why.to_owned() };
        self.tell(subjects::signal(&source), &signal);
        let stage = self.shard.stage();
        stage.decisions.push(row);
        stage.messages.push(at);
        self.apply(Event::PullEnded { lane, unfilled: 1 });
    }

    pub(crate) fn tell<T: serde::Serialize>(&mut self, subject: String, body: &T) {
        let payload = serde_json::to_vec(body).expect("plain data serialises").into();
        self.out.side.push_back(Side::Tell { subject, payload });
    }

    pub(crate) fn pull_ended(&mut self, source: Source, unfilled: u32, why: Ended) {
        match why {
            Ended::Expired => self.pull_again(source, unfilled),
            Ended::Refused => self.refused_pulls.push((source, unfilled)),
        }
    }

    pub(crate) fn pull_again(&mut self, source: Source, unfilled: u32) {
        match source {
            Source::Lane(source, priority) => {
                self.apply(Event::PullEnded { lane: Lane { source, priority }, unfilled })
            }
            Source::Done(source, priority) => {
                let credits = self.done_credits.entry((source, priority)).or_default();
                *credits = credits.saturating_sub(unfilled);
                self.pull_done(source, priority);
            }
        }
    }

    /// Keeps enough completions of a source asked for.
    pub(crate) fn pull_done(&mut self, source: governance::AgentIx, priority: governance::Priority) {
        let credits = self.done_credits.entry((source, priority)).or_default();
        if *credits * 2 > DONE_CREDITS {
            return;
        }
        let messages = DONE_CREDITS - *credits;
        *credits = DONE_CREDITS;
        let Some(agent) = self.agents.get(&source) else { return };
        let consumer = streams::done_consumer(priority, &agent.id, self.epoch);
        let (source, stream) = (Source::Done(source, priority), streams::DONE.to_owned());
        self.out.pulls.push_back(Pull { source, priority, stream, consumer, messages });
    }

    pub(crate) fn pull_lane(&mut self, lane: Lane, messages: u32) {
        let Some(agent) = self.agents.get(&lane.source) else { return };
        let Lane { priority, .. } = lane;
        let consumer = streams::lane_consumer(&agent.id, self.epoch);
        let (source, stream) = (Source::Lane(lane.source, priority), streams::lanes(priority));
        self.out.pulls.push_back(Pull { source, priority, stream, consumer, messages });
    }
}

/// A hash of a key, 0 for the empty one.
pub(crate) fn key64(text: &str) -> u64 {
    if text.is_empty() {
        return 0;
    }
    let hash = blake3::hash(text.as_bytes());
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight bytes")).max(1)
}

fn key128(text: &str) -> u128 {
    if text.is_empty() {
        return 0;
    }
    let hash = blake3::hash(text.as_bytes());
    u128::from_le_bytes(hash.as_bytes()[..16].try_into().expect("sixteen bytes")).max(1)
}

/// Runs without the slots from `first` on, `count` of them.
fn without(runs: Vec<Run>, first: u16, count: u16) -> Vec<Run> {
    let (from, to) = (u32::from(first), u32::from(first) + u32::from(count));
    let mut left = Vec::with_capacity(runs.len() + 1);
    for run in runs {
        let (start, end) = (u32::from(run.first), u32::from(run.first) + u32::from(run.count));
        for (a, b) in [(start, end.min(from)), (start.max(to), end)] {
            if a < b {
                left.push(Run { first: a as u16, count: (b - a) as u16, ..run });
            }
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u16, count: u16) -> Run {
        Run {
            first,
            count,
            kind: Kind::Request,
            to: Destination::Nowhere(Reason::NoProvider),
            budget: std::time::Duration::ZERO,
            lineage: Lineage::Root,
            order_key: 0,
            idempotency_key: 0,
        }
    }

    fn cut(runs: &[(u16, u16)], first: u16, count: u16) -> Vec<(u16, u16)> {
        let runs = runs.iter().map(|(f, c)| run(*f, *c)).collect();
        without(runs, first, count).iter().map(|r| (r.first, r.count)).collect()
    }

    #[test]
    fn covered_slots_are_cut_out_of_runs() {
        assert_eq!(cut(&[(0, 10)], 0, 10), []);
        assert_eq!(cut(&[(0, 10)], 3, 4), [(0, 3), (7, 3)]);
        assert_eq!(cut(&[(0, 10)], 8, 9), [(0, 8)]);
        assert_eq!(cut(&[(0, 2), (5, 5)], 1, 6), [(0, 1), (7, 3)]);
        assert_eq!(cut(&[(4, 2)], 0, 4), [(4, 2)]);
    }

    #[test]
    fn an_empty_key_hashes_to_none() {
        assert_eq!((key64(""), key128("")), (0, 0));
        assert_ne!(key64("a"), key64("b"));
    }
}
