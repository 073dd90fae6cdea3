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
use protocol::completion::{self, Reply};
use protocol::redis::{EntryId, Head};
use protocol::{inbox, json, subjects};

use super::shard::{Flying, Packing, Stage};
use super::{Home, Side};
use crate::clock;
use crate::io::ledger::Write;
use crate::io::outbox::Publish;
use crate::io::replies;

/// How often a shard's snapshot is taken when there is something new.
const SNAPSHOT_AFTER: Duration = Duration::from_secs(5);
/// How many blocks a new home reads at most behind the last snapshot.
const SNAPSHOT_BLOCKS: u64 = 1_000;
/// Rows and bytes of one reply message.
const REPLY_ROWS_MAX: usize = 512;
const REPLY_BYTES_MAX: usize = 512 * 1024;

/// What is released when a reply is confirmed or given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A held lane message.
    Held(usize),
    /// Held completions.
    Done(usize),
    /// Nothing: the reply tells a timeout or withdrawal.
    Nothing,
}

/// A reply that owns what it tells.
#[derive(Debug)]
pub(super) struct OwnedReply {
    pub(super) source: AgentIx,
    pub(super) instance: InstanceId,
    pub(super) token: Arc<str>,
    pub(super) first: DispatchId,
    pub(super) count: u16,
    pub(super) outcome: Outcome,
    pub(super) reason: Reason,
    pub(super) target: Arc<str>,
    pub(super) lane_us: u32,
    pub(super) inbox_us: u32,
    pub(super) ran_us: u32,
    pub(super) payload: Bytes,
    pub(super) content_type: String,
    pub(super) origin: Origin,
}

impl OwnedReply {
    fn row(&self) -> Reply<'_> {
        Reply {
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
pub(super) struct Publishing {
    messages: Vec<usize>,
    dispatches: u32,
}

/// A reply message on its way.
#[derive(Debug)]
pub(super) struct Replying {
    origins: Vec<Origin>,
}

impl Home {
    /// Makes the next block of a shard, where none is under way, and hands it to the ledger.
    pub(super) fn flush_shard(&mut self, shard: u8) {
        let s = &mut self.shards[usize::from(shard)];
        let Some(mut stage) = s.next_stage() else { return };
        let sequence = if s.head.id.epoch == self.epoch { s.head.id.sequence + 1 } else { 1 };
        let block = Block {
            shard,
            epoch: self.epoch,
            sequence,
            at: clock::now(),
            previous: s.head.hash,
            policy_version: self.policy_version,
            decisions: std::mem::take(&mut stage.decisions),
            completions: std::mem::take(&mut stage.completions),
            notes: std::mem::take(&mut stage.notes),
        };
        let bytes = block.encode();
        let head = Head { id: EntryId { epoch: self.epoch, sequence }, hash: audit::hash(&bytes) };
        let expected = s.head;
        self.metrics.block(bytes.len(), block.decided() + block.completions.len());
        let due =
            s.snapshot_at.elapsed() >= SNAPSHOT_AFTER || sequence >= s.snapshot_sequence + SNAPSHOT_BLOCKS;
        // What is staged behind this block is in the state already, so that only a shard with nothing more can be taken.
        let snapshot = (due && s.is_idle()).then(|| self.snapshot(shard, head));
        let s = &mut self.shards[usize::from(shard)];
        if snapshot.is_some() {
            s.snapshot_at = std::time::Instant::now();
            s.snapshot_sequence = sequence;
        }
        s.flying = Some(Flying { head, stage, snapshot });
        self.outlets.ledger.push(Write::Append { shard, expected, new: head, block: bytes });
    }

    /// A block is durable: publish what it admits, tell what it ends.
    pub(super) fn durable(&mut self, shard: u8) {
        let s = &mut self.shards[usize::from(shard)];
        let Some(Flying { head, mut stage, snapshot }) = s.flying.take() else { return };
        s.head = head;
        let sequence = head.id.sequence;
        let waiting = self.mark(&stage, sequence);
        if waiting > 0 {
            self.shards[usize::from(shard)].unsettled.insert(sequence, waiting);
        }
        for (index, packing) in stage.envelopes.drain(..).enumerate() {
            self.publish(shard, head.id, index, packing);
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
        if let Some(snapshot) = snapshot {
            self.outlets.ledger.push(Write::Snapshot { shard, epoch: self.epoch, snapshot });
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

    fn publish(&mut self, shard: u8, block: EntryId, index: usize, packing: Packing) {
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
        let publish = Publish {
            handle,
            target: packing.target,
            subject: subjects::inbox(packing.class, &target),
            message_id: message_id(shard, block, index),
            fence: Some(self.shards[usize::from(shard)].fences[usize::from(packing.class.code())].clone()),
            payload: payload.into(),
        };
        match packing.class {
            governance::Priority::P0 => self.outlets.p0_outbox.push(publish),
            governance::Priority::P1 | governance::Priority::P2 | governance::Priority::P3 => {
                self.outlets.bulk_outbox.push(publish);
            }
        }
    }

    pub(super) fn published(&mut self, handle: usize, target: AgentIx, was_full: bool) {
        let Some(Publishing { messages, dispatches }) = self.publishes.remove(handle) else { return };
        self.in_window = self.in_window.saturating_sub(dispatches);
        for at in messages {
            self.release_held(at);
        }
        if was_full {
            self.apply(Event::InboxRoom { target });
        }
    }

    pub(super) fn send_ready_replies(&mut self) {
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
                self.send_reply(subject, body, vec![reply.origin]);
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
                let rows: Vec<Reply<'_>> = now.iter().map(OwnedReply::row).collect();
                let origins = now.iter().map(|r| r.origin).collect();
                self.send_reply(subject.clone(), completion::write_replies(&rows), origins);
            }
        }
    }

    fn send_reply(&mut self, subject: String, payload: Vec<u8>, origins: Vec<Origin>) {
        let handle = self.replies.insert(Replying { origins });
        self.outlets.replies.push(replies::Reply { handle, subject, payload: payload.into() });
    }

    pub(super) fn replied(&mut self, handle: usize, confirmed: bool) {
        let Some(Replying { origins }) = self.replies.remove(handle) else { return };
        self.metrics.replied(confirmed, origins.len());
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
    pub(super) fn release_held(&mut self, at: usize) {
        let Some(held) = self.held.get_mut(at) else { return };
        held.pending = held.pending.saturating_sub(1);
        if held.pending > 0 || held.decided < held.rows {
            return;
        }
        let Some(held) = self.held.remove(at) else { return };
        self.held_by_sequence.remove(&(held.lane.priority, held.stream_sequence));
        self.outlets.side.push(Side::Ack(held.ack));
        self.settle_blocks(held.lane.source, &held.blocks);
    }

    pub(super) fn release_done(&mut self, at: usize) {
        let Some(done) = self.done.get_mut(at) else { return };
        done.pending = done.pending.saturating_sub(1);
        if done.pending > 0 {
            return;
        }
        let Some(done) = self.done.remove(at) else { return };
        self.outlets.side.push(Side::Ack(done.ack));
        self.settle_blocks(done.source, &done.blocks);
    }

    fn settle_blocks(&mut self, source: AgentIx, blocks: &[u64]) {
        let Some(agent) = self.agents.get(&source) else { return };
        let shard = &mut self.shards[usize::from(agent.shard)];
        for sequence in blocks {
            shard.settle(*sequence);
        }
    }
}

/// The message id of an envelope of a block: the same whenever the block is replayed.
pub(super) fn message_id(shard: u8, block: EntryId, index: usize) -> String {
    format!("{shard}:{block}:{index}")
}
