//! Snapshots: the state of a shard as a new home needs it, taken with a block and stored when that block is durable.

use std::collections::BTreeMap;

use governance::{AgentIx, Kind, Priority, Reason};
use protocol::redis::{EntryId, Head};
use serde::{Deserialize, Serialize};

use super::Home;

/// An open run as a snapshot keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct OpenState {
    pub(super) source: String,
    pub(super) target: String,
    pub(super) capability: String,
    pub(super) kind: Kind,
    pub(super) class: Priority,
    pub(super) lane: Priority,
    pub(super) serves_person: bool,
    pub(super) first: String,
    pub(super) count: u16,
    pub(super) ended: Vec<u64>,
    pub(super) deadline: u64,
    pub(super) admitted: u64,
    pub(super) accepted: u64,
    pub(super) reason: Reason,
    pub(super) order_key: u64,
    pub(super) reply_token: String,
}

/// What a snapshot keeps of a shard.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) opens: Vec<OpenState>,
    /// Theoretical arrival times by source.
    pub(super) quotas: BTreeMap<String, u64>,
    /// Source, instance, first and last sequence decided about.
    pub(super) seen: Vec<(String, u64, u64, u64)>,
}

impl Home {
    /// The state of a shard as it is when the block `head` is durable.
    pub(super) fn snapshot(&self, shard: u8, head: Head) -> String {
        let mine = |agent: AgentIx| self.agents.get(&agent).is_some_and(|a| a.shard == shard);
        let name = |agent: AgentIx| self.name(agent).to_string();
        let opens = self
            .governor
            .open_runs()
            .filter(|(_, run)| mine(run.source))
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
        let quotas =
            self.governor.quota_arrivals().filter(|(a, _)| mine(*a)).map(|(a, at)| (name(a), at.0)).collect();
        let state = State { opens, quotas, seen: self.decided_ranges(shard) };
        let s = &self.shards[usize::from(shard)];
        let own = s
            .unsettled
            .keys()
            .next()
            .map_or(head.id, |sequence| EntryId { epoch: self.epoch, sequence: *sequence });
        let oldest = self
            .recovered
            .floors
            .get(&shard)
            .filter(|_| !self.recovered.covered.is_empty())
            .map_or(own, |f| own.min(*f));
        let state = serde_json::to_string(&state).expect("plain data serialises");
        format!("{head}\n{oldest}\n{state}")
    }

    /// Sequences about which everything is decided: one of which a slot is still held must come again after a crash.
    fn decided_ranges(&self, shard: u8) -> Vec<(String, u64, u64, u64)> {
        self.governor
            .seen_ranges()
            .filter_map(|(instance, from, to)| {
                let source = self.sources_of_instances.get(&instance)?;
                let agent = self.agents.get(source).filter(|a| a.shard == shard)?;
                Some((agent.name.to_string(), instance.0, from, to))
            })
            .collect()
    }
}
