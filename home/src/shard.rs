//! A shard: the block being staged, the block being made durable, and what becomes due when it is.
//!
//! The rule it keeps: one block of a shard is under way at a time, so that the next one gathers everything that is decided
//! meanwhile. That is the batching: one dispatch is fast and a million are cheap.

use governance::{AgentIx, DispatchId, Priority, Timestamp};
use protocol::audit::{CompletionRow, DecisionRow, Note, RECORDS_MAX};
use protocol::control::Alert;
use protocol::redis::Head;
use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::out::{Fence, Side};
use crate::settle::OwnedReply;

/// An inbox message being packed: parcels of one block for one target in one class.
#[derive(Debug)]
pub(crate) struct Packing {
    pub(crate) target: AgentIx,
    pub(crate) class: Priority,
    pub(crate) parcels: Vec<Vec<u8>>,
    pub(crate) dispatches: u32,
    pub(crate) bytes: usize,
    /// The held messages whose slots are in it.
    pub(crate) messages: Vec<usize>,
    /// It is one JSON object and takes nothing more.
    pub(crate) json: bool,
}

/// What the rules decided and no block holds yet.
#[derive(Debug, Default)]
pub(crate) struct Stage {
    pub(crate) decisions: Vec<DecisionRow>,
    pub(crate) completions: Vec<CompletionRow>,
    pub(crate) notes: Vec<Note>,
    pub(crate) envelopes: Vec<Packing>,
    /// Replies that may go only when the block is durable.
    pub(crate) replies: Vec<OwnedReply>,
    /// Held messages that the block decides about; one entry for each decision.
    pub(crate) messages: Vec<usize>,
    /// Completions that the block records.
    pub(crate) dones: Vec<usize>,
    /// What is stored for others and told to people when the block is durable.
    pub(crate) side: Vec<Side>,
    pub(crate) alerts: Vec<Alert>,
    /// Dispatches of which the block records who has them.
    pub(crate) redelivered: Vec<DispatchId>,
    /// The envelope that still takes parcels, by target and class.
    pub(crate) packing: HashMap<(AgentIx, Priority), usize>,
}

impl Stage {
    pub(crate) fn is_empty(&self) -> bool {
        self.decisions.is_empty() && self.completions.is_empty() && self.notes.is_empty()
    }

    /// Whether the next decision belongs into another block, which keeps every block within its bounds.
    fn is_full(&self) -> bool {
        self.decisions.len() >= RECORDS_MAX
            || self.completions.len() >= RECORDS_MAX
            || self.notes.len() >= RECORDS_MAX
    }
}

/// A block on its way to Redis.
#[derive(Debug)]
pub(crate) struct Flying {
    pub(crate) head: Head,
    pub(crate) stage: Stage,
    /// The snapshot that becomes valid with the block.
    pub(crate) snapshot: Option<String>,
}

/// One shard of this home.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) head: Head,
    pub(crate) fences: [Fence; 4],
    /// The last one takes what is decided; the ones before are full.
    stages: VecDeque<Stage>,
    pub(crate) flying: Option<Flying>,
    /// How many held messages and completions each durable block still waits for.
    pub(crate) unsettled: BTreeMap<u64, u32>,
    pub(crate) snapshot_at: Timestamp,
    pub(crate) snapshot_sequence: u64,
}

impl Shard {
    pub(crate) fn new(head: Head, fences: [Fence; 4]) -> Self {
        Self {
            snapshot_sequence: head.id.sequence,
            head,
            fences,
            stages: VecDeque::new(),
            flying: None,
            unsettled: BTreeMap::new(),
            snapshot_at: Timestamp::ZERO,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.flying.is_none() && self.stages.is_empty()
    }

    /// The stage that takes the next decision.
    pub(crate) fn stage(&mut self) -> &mut Stage {
        if self.stages.back().is_none_or(Stage::is_full) {
            self.stages.push_back(Stage::default());
        }
        self.stages.back_mut().expect("just pushed")
    }

    /// The stage that is the next block, where there is one and none is under way.
    pub(crate) fn next_stage(&mut self) -> Option<Stage> {
        if self.flying.is_some() {
            return None;
        }
        self.stages.pop_front().filter(|s| !s.is_empty())
    }

    /// A held message or completion that block `sequence` decided about is done with.
    pub(crate) fn settle(&mut self, sequence: u64) {
        if let Some(waiting) = self.unsettled.get_mut(&sequence) {
            *waiting -= 1;
            if *waiting == 0 {
                self.unsettled.remove(&sequence);
            }
        }
    }
}
