//! Snapshots: the state of a shard as a new home needs it, taken with a block and stored when that block is durable.

use std::collections::BTreeMap;

use governance::{AgentIx, Kind, Priority, Reason};
use protocol::redis::{EntryId, Head};
use serde::{Deserialize, Serialize};

use crate::home::Home;
use crate::permits::Redelivered;

/// An open run as a snapshot keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OpenState {
    pub(crate) source: String,
    pub(crate) target: String,
    pub(crate) capability: String,
    pub(crate) kind: Kind,
    pub(crate) class: Priority,
    pub(crate) lane: Priority,
    pub(crate) serves_person: bool,
    pub(crate) first: String,
    pub(crate) count: u16,
    pub(crate) ended: Vec<u64>,
    pub(crate) deadline: u64,
    pub(crate) admitted: u64,
    pub(crate) accepted: u64,
    pub(crate) reason: Reason,
    pub(crate) order_key: u64,
    pub(crate) reply_token: String,
}

impl OpenState {
    /// Whether a slot, counted from the run's first, has no end yet.
    pub(crate) fn is_open(&self, offset: u16) -> bool {
        let ended = self.ended.get(usize::from(offset) / 64).copied().unwrap_or(0);
        offset < self.count && ended & 1 << (offset % 64) == 0
    }
}

/// What a snapshot keeps of a shard.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) opens: Vec<OpenState>,
    /// Theoretical arrival times by source.
    pub(crate) quotas: BTreeMap<String, u64>,
    /// Source, instance, first and last sequence decided about.
    pub(crate) seen: Vec<(String, u64, u64, u64)>,
    /// Who has what was delivered more than once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) redelivered: Vec<Redelivered>,
}

impl Home {
    /// The state of the shard as it is when the block `head` is durable.
    pub(crate) fn snapshot(&self, head: Head) -> String {
        let name = |agent: AgentIx| self.name(agent).to_string();
        let opens = self
            .governor
            .open_runs()
            .filter_map(|(ix, run)| self.opens.get(ix.ix()).map(|open| (run, open)))
            .map(|(run, open)| OpenState {
                source: name(run.source),
                target: name(run.target),
                capability: open.capability.to_string(),
                kind: run.kind,
                class: run.class,
                lane: open.lane,
                serves_person: run.serves_person,
                first: run.first.to_string(),
                count: run.count,
                ended: run.ended,
                deadline: run.deadline.0,
                admitted: open.admitted.0,
                accepted: open.accepted.0,
                reason: open.reason,
                order_key: run.order_key,
                reply_token: open.reply_token.to_string(),
            })
            .collect();
        let quotas = self.governor.quota_arrivals().map(|(a, at)| (name(a), at.0)).collect();
        let redelivered = Redelivered::runs(self.governor.losses());
        let state = State { opens, quotas, seen: self.decided_ranges(), redelivered };
        let own = self
            .shard
            .unsettled
            .keys()
            .next()
            .map_or(head.id, |sequence| EntryId { epoch: self.epoch, sequence: *sequence });
        let oldest = self.recovered.needed_from().map_or(own, |floor| own.min(floor));
        let state = serde_json::to_string(&state).expect("plain data serialises");
        format!("{head}\n{oldest}\n{state}")
    }

    /// Sequences about which everything is decided: one of which a slot is still held must come again after a crash.
    fn decided_ranges(&self) -> Vec<(String, u64, u64, u64)> {
        self.governor
            .seen_ranges()
            .filter_map(|(instance, from, to)| {
                let source = self.sources_of_instances.get(&instance)?;
                let agent = self.agents.get(source)?;
                Some((agent.name.to_string(), instance.0, from, to))
            })
            .collect()
    }
}
