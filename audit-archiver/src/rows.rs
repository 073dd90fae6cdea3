//! From a block to rows. Owns which column of which table holds what; knows no connection.
//!
//! A run of decisions becomes one row, with its hashes end to end. Ends differ in how long each waited and ran, so that a block often has
//! a row for each slot; here those of one envelope that are alike in everything else are one row, with an array for what
//! differs. The rule it keeps: each dispatch stands in exactly one row of its kind, in the partition of its own day.

mod ends;

use std::collections::BTreeMap;

use bytes::Bytes;
use governance::{DispatchId, Timestamp};
use protocol::audit::{Block, CompletionRow, DecisionRow};
use protocol::redis::EntryId;
use protocol::{HASH_BYTES, PayloadHash};

use ends::Run;

use crate::chain::Checked;
use crate::copy::CopyBuffer;
use crate::day::Day;

/// The tables that are partitioned by day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Blocks as they are.
    Blocks,
    /// What was decided about runs of dispatches.
    Decisions,
    /// How runs of dispatches ended.
    Completions,
    /// What else happened.
    Notes,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Blocks, Self::Decisions, Self::Completions, Self::Notes];

    /// The name of the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blocks => "audit_block",
            Self::Decisions => "decision_run",
            Self::Completions => "completion_run",
            Self::Notes => "audit_note",
        }
    }

    /// The name of a day's partition.
    #[must_use]
    pub fn partition(self, day: Day) -> String {
        format!("{}_{}", self.name(), day.compact())
    }

    /// The columns, in the order in which rows are encoded.
    #[must_use]
    pub const fn columns(self) -> &'static str {
        match self {
            Self::Blocks => "shard, epoch, sequence, at, records, prev_hash, hash, data",
            Self::Decisions => {
                "instance, sequence, slot, copy, count, accepted, decided, deadline, \
                 root_instance, root_sequence, root_slot, root_copy, \
                 parent_instance, parent_sequence, parent_slot, parent_copy, \
                 epoch, block, shard, policy_version, kind, lane, class, decision, reason, outcome, \
                 source, target, capability, conversation, payload_hashes"
            }
            Self::Completions => {
                "instance, sequence, slot, copy, count, slots, completed, lane_us, inbox_us, inbox_each, \
                 ran_us, ran_each, latency_us, runner, \
                 epoch, block, shard, outcome, reason, attempt, late, source, target, response_hashes"
            }
            Self::Notes => "at, epoch, block, shard, kind, agent, body",
        }
    }

    /// The place of the column `epoch`; behind it stand the sequence of the block, and the shard.
    pub(crate) const fn place(self) -> usize {
        match self {
            Self::Blocks | Self::Notes => 1,
            Self::Decisions => 16,
            Self::Completions => 14,
        }
    }

    const fn width(self) -> u16 {
        match self {
            Self::Blocks => 8,
            Self::Decisions => 31,
            Self::Completions => 24,
            Self::Notes => 7,
        }
    }
}

/// The rows of any number of blocks, ready to be copied, by table and day.
#[derive(Debug, Default)]
pub struct Rows {
    buffers: BTreeMap<(Table, Day), CopyBuffer>,
    records: u64,
}

impl Rows {
    /// Adds a block with all it says. `bytes` are what it was read from.
    pub fn add(&mut self, checked: &Checked, bytes: &[u8]) {
        let block = &checked.block;
        let at = Place { shard: block.shard.into(), id: checked.head.id, policy: block.policy_version };
        for row in &block.decisions {
            decision(self.buffer(Table::Decisions, row.decided), &at, row);
        }
        for run in ends::runs(&block.completions) {
            completion(self.buffer(Table::Completions, run.of.completed), &at, &run);
        }
        for row in &block.notes {
            note(self.buffer(Table::Notes, row.at), &at, row.at, [&row.kind, &row.agent, &row.body]);
        }
        let records = records(block);
        self.records += records;

        let buffer = self.buffer(Table::Blocks, block.at);
        buffer.row(Table::Blocks.width());
        buffer.i16(at.shard);
        buffer.bits(at.id.epoch);
        buffer.bits(at.id.sequence);
        buffer.timestamp(block.at);
        buffer.i32(records as i32);
        buffer.bytes(&block.previous);
        buffer.bytes(&checked.head.hash);
        buffer.bytes(bytes);
    }

    /// The rows so far, one by one, as they go into a COPY.
    pub(crate) fn each(&self, mut each: impl FnMut(Table, Day, &[u8])) {
        for ((table, day), buffer) in &self.buffers {
            buffer.each_row(|row| each(*table, *day, row));
        }
    }

    /// How many records there are: decided dispatches, ends, notes.
    #[must_use]
    pub const fn records(&self) -> u64 {
        self.records
    }

    /// The days that need partitions.
    #[must_use]
    pub fn days(&self) -> Vec<Day> {
        let mut days: Vec<_> = self.buffers.keys().map(|(_, day)| *day).collect();
        days.sort_unstable();
        days.dedup();
        days
    }

    /// The finished COPY of each partition.
    pub fn into_copies(self) -> impl Iterator<Item = (Table, Day, Bytes)> {
        self.buffers.into_iter().map(|((table, day), buffer)| (table, day, buffer.finish()))
    }

    fn buffer(&mut self, table: Table, at: Timestamp) -> &mut CopyBuffer {
        self.buffers.entry((table, Day::of(at))).or_insert_with(CopyBuffer::new)
    }
}

/// How many records a block holds: decided dispatches, ends, notes.
#[must_use]
pub fn records(block: &Block) -> u64 {
    let ends: usize = block.completions.iter().map(|c| usize::from(c.count)).sum();
    (block.decided() + ends + block.notes.len()) as u64
}

/// What all rows of one block share.
struct Place {
    shard: i16,
    id: EntryId,
    policy: u32,
}

fn id(buffer: &mut CopyBuffer, id: DispatchId) {
    buffer.bits(id.instance.0);
    buffer.bits(id.sequence);
    buffer.i32(id.slot.into());
    buffer.i32(id.copy.into());
}

fn optional_id(buffer: &mut CopyBuffer, value: Option<DispatchId>) {
    if let Some(value) = value {
        id(buffer, value);
    } else {
        (0..4).for_each(|_| buffer.null());
    }
}

fn decision(buffer: &mut CopyBuffer, at: &Place, row: &DecisionRow) {
    buffer.row(Table::Decisions.width());
    id(buffer, row.first);
    buffer.i32(row.count.into());
    buffer.timestamp(row.accepted);
    buffer.timestamp(row.decided);
    buffer.timestamp(row.deadline);
    optional_id(buffer, row.root.filter(|root| *root != row.first));
    optional_id(buffer, row.parent);
    buffer.bits(at.id.epoch);
    buffer.bits(at.id.sequence);
    buffer.i16(at.shard);
    buffer.i32(at.policy.cast_signed());
    for code in [row.kind.code(), row.lane.code(), row.class.code(), row.decision.code(), row.reason.code()] {
        buffer.i16(code.into());
    }
    match row.outcome {
        Some(outcome) => buffer.i16(outcome.code().into()),
        None => buffer.null(),
    }
    // Never null: it is empty where bytes were so bad that nobody could be named.
    buffer.text_or_empty(&row.source);
    buffer.text(&row.target);
    buffer.text(&row.capability);
    buffer.text(&row.conversation);
    buffer.bytes(row.hashes.as_flattened());
}

fn completion(buffer: &mut CopyBuffer, at: &Place, run: &Run<'_>) {
    let row = run.of;
    buffer.row(Table::Completions.width());
    id(buffer, DispatchId { slot: run.first_slot(), ..row.first });
    buffer.i32(run.count() as i32);
    if run.is_dense() {
        buffer.null();
    } else {
        buffer.bit_text(run.span(), run.places());
    }
    buffer.timestamp(row.completed);
    buffer.i64(row.lane_us.into());
    each(buffer, run, |end| end.inbox_us);
    each(buffer, run, |end| end.ran_us);
    buffer.bits(row.latency_us);
    match row.runner.0 {
        0 => buffer.null(),
        runner => buffer.bits(runner),
    }
    buffer.bits(at.id.epoch);
    buffer.bits(at.id.sequence);
    buffer.i16(at.shard);
    buffer.i16(row.outcome.code().into());
    buffer.i16(row.reason.code().into());
    buffer.i16(row.attempt.into());
    buffer.bool(row.late);
    buffer.text_or_empty(&row.source);
    buffer.text(&row.target);
    match run.same(|end| end.response) {
        Some(response) if response == [0; HASH_BYTES] => buffer.null(),
        Some(response) => buffer.value(response),
        None => {
            let responses: Vec<PayloadHash> = run.each(|end| end.response).collect();
            buffer.bytes(responses.as_flattened());
        }
    }
}

/// A number that is the same for a whole run, and beside it the array of those that are not: one of the two is null.
fn each(buffer: &mut CopyBuffer, run: &Run<'_>, pick: fn(&CompletionRow) -> u32) {
    match run.same(pick) {
        Some(value) => {
            buffer.i64(value.into());
            buffer.null();
        }
        None => {
            buffer.null();
            buffer.i32_array(run.each(pick).map(u32::cast_signed));
        }
    }
}

fn note(buffer: &mut CopyBuffer, at: &Place, when: Timestamp, texts: [&str; 3]) {
    buffer.row(Table::Notes.width());
    buffer.timestamp(when);
    buffer.bits(at.id.epoch);
    buffer.bits(at.id.sequence);
    buffer.i16(at.shard);
    let [kind, agent, body] = texts;
    buffer.text_or_empty(kind);
    buffer.text(agent);
    buffer.text_or_empty(body);
}

#[cfg(test)]
mod tests;
