//! Settling: what becomes due when a block is durable, a publish stored, a reply confirmed.
//!
//! The rule it keeps: a lane message is acknowledged when each of its slots is published or its end was told; completions
//! when what they say is recorded and told. Nothing is acknowledged before the audit is durable.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use governance::{AgentIx, DispatchId, Event, InstanceId, Outcome, Reason};
use protocol::audit::{self, Block};
use protocol::completion;
use protocol::redis::{EntryId, Head};
use protocol::{inbox, json, subjects};

use crate::home::Home;
use crate::out::{Publish, Reply, Side, Write};
use crate::shard::{Flying, Packing, Stage};
use crate::undelivered::Message;

/// How often a shard's snapshot is taken when there is something new.
const SNAPSHOT_AFTER: Duration = Duration::from_secs(5);
/// How many blocks a new home reads at most behind the last snapshot.
const SNAPSHOT_BLOCKS: u64 = 1_000;
/// Rows and bytes of one reply message.
const REPLY_ROWS_MAX: usize = 512;
const REPLY_BYTES_MAX: usize = 512 * 1024;

/// What is released when a reply is confirmed or given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A held lane message.
    Held(usize),
    /// Held completions.
    Done(usize),
    /// Nothing: the reply tells a timeout or withdrawal.
    Nothing,
}

/// A reply that owns what it tells.
#[derive(Debug)]
pub(crate) struct OwnedReply {
    pub(crate) source: AgentIx,
    pub(crate) instance: InstanceId,
    pub(crate) token: Arc<str>,
    pub(crate) first: DispatchId,
    pub(crate) count: u16,
    pub(crate) outcome: Outcome,
    pub(crate) reason: Reason,
    pub(crate) target: Arc<str>,
    pub(crate) lane_us: u32,
    pub(crate) inbox_us: u32,
    pub(crate) ran_us: u32,
    pub(crate) payload: Bytes,
    pub(crate) content_type: String,
    pub(crate) origin: Origin,
}

impl OwnedReply {
    fn row(&self) -> completion::Reply<'_> {
        completion::Reply {
            first: self.first,
            count: self.count,
            outcome: self.outcome,
            reason: self.reason,
            target: &self.target,
            lane_us: self.lane_us,
            inbox_us: self.inbox_us,
            ran_us: self.ran_us,
            payload: &self.payload,
            content_type: &self.content_type,
        }
    }
}

/// An inbox message on its way.
#[derive(Debug)]
pub(crate) struct Publishing {
    messages: Vec<usize>,
    dispatches: u32,
}

/// A reply message on its way.
#[derive(Debug)]
pub(crate) struct Replying {
    origins: Vec<Origin>,
    /// What to tell again, where a later heartbeat can show that its receiver lives.
    message: Option<Message>,
}

impl Home {
    /// Makes the next block, where none is under way, and hands it to the ledger.
    pub(crate) fn flush_block(&mut self) {
        let Some(mut stage) = self.shard.next_stage() else { return };
        if !self.key.records() {
            return self.pass_unrecorded(stage);
        }
        let (epoch, expected) = (self.epoch, self.shard.head);
        let sequence = if expected.id.epoch == epoch { expected.id.sequence + 1 } else { 1 };
        let block = Block {
            shard: self.number,
            epoch,
            sequence,
            at: self.now,
            previous: expected.hash,
            policy_version: self.policy_version,
            decisions: std::mem::take(&mut stage.decisions),
            completions: std::mem::take(&mut stage.completions),
            notes: std::mem::take(&mut stage.notes),
        };
        let bytes = block.encode();
        let head = Head { id: EntryId { epoch, sequence }, hash: audit::hash(&bytes) };
        self.meter.block(bytes.len(), block.decided() + block.completions.len());
        let due = self.now.since(self.shard.snapshot_at) >= SNAPSHOT_AFTER
            || sequence >= self.shard.snapshot_sequence + SNAPSHOT_BLOCKS;
        // What is staged behind this block is in the state already, so that only a shard with nothing more can be taken.
        let snapshot = (due && self.shard.is_idle()).then(|| self.snapshot(head));
        if snapshot.is_some() {
            self.shard.snapshot_at = self.now;
            self.shard.snapshot_sequence = sequence;
        }
        self.shard.flying = Some(Flying { head, stage, snapshot });
        self.out.writes.push_back(Write::Append { expected, new: head, block: bytes });
    }

    /// Without an audit nothing is made durable: what was decided goes on at once, under the ids that its block would give it.
    fn pass_unrecorded(&mut self, mut stage: Stage) {
        (stage.decisions, stage.completions, stage.notes) = Default::default();
        let sequence = self.shard.head.id.sequence + 1;
        let head = Head { id: EntryId { epoch: self.epoch, sequence }, ..self.shard.head };
        self.shard.flying = Some(Flying { head, stage, snapshot: None });
        self.durable();
    }

    /// The block under way is durable: publish what it admits, tell what it ends.
    pub(crate) fn durable(&mut self) {
        let Some(Flying { head, mut stage, snapshot }) = self.shard.flying.take() else { return };
        self.shard.head = head;
        let sequence = head.id.sequence;
        let waiting = self.mark(&stage, sequence);
        if waiting > 0 {
            self.shard.unsettled.insert(sequence, waiting);
        }
        for (index, packing) in stage.envelopes.drain(..).enumerate() {
            self.publish(head.id, index, packing);
        }
        for reply in &stage.replies {
            self.hold(reply.origin);
        }
        self.send_replies(std::mem::take(&mut stage.replies));
        for at in stage.messages {
            self.release_held(at);
        }
        for at in stage.dones {
            self.release_done(at);
        }
        for id in &stage.redelivered {
            self.unrecorded.remove(id);
        }
        self.out.side.extend(stage.side);
        self.out.alerts.extend(stage.alerts);
        if let Some(snapshot) = snapshot {
            self.out.writes.push_back(Write::Snapshot { epoch: self.epoch, snapshot });
        }
    }

    /// Notes the block with everything that it decided about, and counts how much that is.
    fn mark(&mut self, stage: &Stage, sequence: u64) -> u32 {
        let mut waiting = 0;
        for at in &stage.messages {
            if let Some(held) = self.held.get_mut(*at)
                && held.blocks.last() != Some(&sequence)
            {
                held.blocks.push(sequence);
                waiting += 1;
            }
        }
        for at in &stage.dones {
            if let Some(done) = self.done.get_mut(*at)
                && done.blocks.last() != Some(&sequence)
            {
                done.blocks.push(sequence);
                waiting += 1;
            }
        }
        waiting
    }

    fn publish(&mut self, block: EntryId, index: usize, packing: Packing) {
        let target = self.agents[&packing.target].id.clone();
        let mut parcels = packing.parcels;
        let payload = if packing.json { parcels.pop().unwrap_or_default() } else { inbox::write(&parcels) };
        for at in &packing.messages {
            if let Some(held) = self.held.get_mut(*at) {
                held.pending += 1;
            }
        }
        let handle =
            self.publishes.insert(Publishing { messages: packing.messages, dispatches: packing.dispatches });
        self.out.publishes.push_back(Publish {
            handle,
            target: packing.target,
            class: packing.class,
            subject: subjects::inbox(packing.class, &target),
            message_id: message_id(self.number, block, index),
            fence: self.shard.fences[usize::from(packing.class.code())].clone(),
            payload: payload.into(),
        });
    }

    pub(crate) fn published(&mut self, handle: usize, target: AgentIx, was_full: bool) {
        let Some(Publishing { messages, dispatches }) = self.publishes.remove(handle) else { return };
        self.in_window = self.in_window.saturating_sub(dispatches);
        for at in messages {
            self.release_held(at);
        }
        if was_full {
            self.apply(Event::InboxRoom { target });
        }
    }

    pub(crate) fn send_ready_replies(&mut self) {
        let ready = std::mem::take(&mut self.ready_replies);
        self.send_replies(ready);
    }

    /// Packs replies by receiver and sends them; their origins were made pending by the caller.
    fn send_replies(&mut self, replies: Vec<OwnedReply>) {
        if replies.is_empty() {
            return;
        }
        let mut by_receiver: BTreeMap<(AgentIx, InstanceId), Vec<OwnedReply>> = BTreeMap::new();
        for reply in replies {
            if !reply.token.is_empty() {
                let Some(agent) = self.agents.get(&reply.source) else { continue };
                let subject = subjects::reply_token(&agent.id, &reply.token);
                let body =
                    serde_json::to_vec(&json::reply_view(&reply.row())).expect("plain data serialises");
                self.send_reply(subject, body.into(), vec![reply.origin], None);
            } else if reply.instance.is_derived() {
                // Nobody said where to answer.
                self.release(reply.origin);
            } else {
                by_receiver.entry((reply.source, reply.instance)).or_default().push(reply);
            }
        }
        for ((source, instance), replies) in by_receiver {
            let Some(agent) = self.agents.get(&source) else { continue };
            let subject = subjects::reply(&agent.id, instance);
            let mut rest = replies.as_slice();
            while !rest.is_empty() {
                let mut bytes = 0;
                let fits = rest
                    .iter()
                    .take(REPLY_ROWS_MAX)
                    .take_while(|r| {
                        bytes += r.payload.len();
                        bytes <= REPLY_BYTES_MAX
                    })
                    .count()
                    .max(1);
                let (now, later) = rest.split_at(fits);
                rest = later;
                let rows: Vec<completion::Reply<'_>> = now.iter().map(OwnedReply::row).collect();
                let origins = now.iter().map(|r| r.origin).collect();
                let payload = Bytes::from(completion::write_replies(&rows));
                let again = Message { instance, subject: subject.clone(), payload: payload.clone() };
                self.send_reply(subject.clone(), payload, origins, Some(again));
            }
        }
    }

    fn send_reply(
        &mut self,
        subject: String,
        payload: Bytes,
        origins: Vec<Origin>,
        message: Option<Message>,
    ) {
        let handle = self.replies.insert(Replying { origins, message });
        self.out.replies.push_back(Reply { handle, subject, payload });
    }

    /// Tells an instance that was heard of what it missed.
    pub(crate) fn tell_missed(&mut self, instance: InstanceId) {
        for message in self.undelivered.take(instance) {
            let (subject, payload) = (message.subject.clone(), message.payload.clone());
            self.send_reply(subject, payload, Vec::new(), Some(message));
        }
    }

    pub(crate) fn replied(&mut self, handle: usize, confirmed: bool) {
        let Some(Replying { origins, message }) = self.replies.remove(handle) else { return };
        self.meter.replied(confirmed, origins.len());
        if let Some(message) = message
            && !confirmed
        {
            self.undelivered.keep(self.now, message);
        }
        for origin in origins {
            self.release(origin);
        }
    }

    fn hold(&mut self, origin: Origin) {
        match origin {
            Origin::Held(at) => {
                if let Some(held) = self.held.get_mut(at) {
                    held.pending += 1;
                }
            }
            Origin::Done(at) => {
                if let Some(done) = self.done.get_mut(at) {
                    done.pending += 1;
                }
            }
            Origin::Nothing => {}
        }
    }

    fn release(&mut self, origin: Origin) {
        match origin {
            Origin::Held(at) => self.release_held(at),
            Origin::Done(at) => self.release_done(at),
            Origin::Nothing => {}
        }
    }

    /// One thing less that a held message waits for; with the last one it is acknowledged.
    pub(crate) fn release_held(&mut self, at: usize) {
        let Some(held) = self.held.get_mut(at) else { return };
        held.pending = held.pending.saturating_sub(1);
        if held.pending > 0 || held.decided < held.rows {
            return;
        }
        let Some(held) = self.held.remove(at) else { return };
        let place = (held.lane.priority, held.stream_sequence);
        self.held_by_sequence.remove(&place);
        self.recovered.unsettled.remove(&place);
        self.out.side.push_back(Side::Ack(held.ack));
        self.settle_blocks(&held.blocks);
    }

    pub(crate) fn release_done(&mut self, at: usize) {
        let Some(done) = self.done.get_mut(at) else { return };
        done.pending = done.pending.saturating_sub(1);
        if done.pending > 0 {
            return;
        }
        let Some(done) = self.done.remove(at) else { return };
        self.out.side.push_back(Side::Ack(done.ack));
        self.settle_blocks(&done.blocks);
    }

    fn settle_blocks(&mut self, blocks: &[u64]) {
        for sequence in blocks {
            self.shard.settle(*sequence);
        }
    }
}

/// The message id of an envelope of a block: the same whenever the block is replayed.
pub(crate) fn message_id(shard: u8, block: EntryId, index: usize) -> String {
    format!("{shard}:{block}:{index}")
}
