//! A home's hand: blocks chained and appended as a coordinator does it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use governance::{Decision, DispatchId, InstanceId, Kind, Outcome, Priority, Reason, Timestamp};
use protocol::audit::{self, Block, CompletionRow, DecisionRow, Note};
use protocol::redis::{self as keys, EntryId, Head};
use redis::aio::MultiplexedConnection;

use crate::stage::Stage;

pub(crate) fn now() -> Timestamp {
    Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64)
}

/// Writes the trail of one shard as a home does.
pub(crate) struct Home {
    redis: MultiplexedConnection,
    shard: u8,
    pub(crate) head: Head,
    instance: InstanceId,
    sequence: u64,
}

impl Home {
    pub(crate) fn of(stage: &Stage, shard: u8) -> Self {
        let instance = InstanceId(0x1000 + u64::from(shard));
        Self { redis: stage.redis.clone(), shard, head: Head::default(), instance, sequence: 0 }
    }

    /// Appends a block of one envelope with so many requests, admitted and answered.
    pub(crate) async fn serve(&mut self, at: Timestamp, requests: u16, conversation: &str) -> DispatchId {
        self.sequence += 1;
        let first = DispatchId { instance: self.instance, sequence: self.sequence, slot: 0, copy: 0 };
        let decision = DecisionRow { conversation: conversation.into(), ..decided(first, requests, at) };
        self.append(at, vec![decision], vec![ended(first, requests, at)], Vec::new()).await;
        first
    }

    pub(crate) async fn append(
        &mut self,
        at: Timestamp,
        decisions: Vec<DecisionRow>,
        completions: Vec<CompletionRow>,
        notes: Vec<Note>,
    ) {
        let id = EntryId { epoch: self.head.id.epoch.max(1), sequence: self.head.id.sequence + 1 };
        let block = Block {
            shard: self.shard,
            epoch: id.epoch,
            sequence: id.sequence,
            at,
            previous: self.head.hash,
            policy_version: 1,
            decisions,
            completions,
            notes,
        };
        let bytes = block.encode();
        let head = Head { id, hash: audit::hash(&bytes) };
        let answer: String = redis::Script::new(keys::APPEND)
            .key(keys::stream(self.shard))
            .key(keys::head(self.shard))
            .arg(self.head.to_string())
            .arg(head.to_string())
            .arg(id.to_string())
            .arg(bytes)
            .arg(keys::empty_head())
            .invoke_async(&mut self.redis)
            .await
            .unwrap();
        assert_eq!(answer, "ok");
        self.head = head;
    }
}

pub(crate) fn decided(first: DispatchId, count: u16, at: Timestamp) -> DecisionRow {
    DecisionRow {
        first,
        count,
        lane_sequence: first.sequence,
        lane: Priority::P0,
        class: Priority::P0,
        accepted: Timestamp(at.0 - 2_000_000),
        decided: at,
        source: "lead_bot".into(),
        target: "intent_decoder".into(),
        capability: "analyze_lead".into(),
        kind: Kind::Request,
        decision: Decision::Admitted,
        reason: Reason::Ok,
        outcome: None,
        deadline: at.after(Duration::from_secs(30)),
        serves_person: true,
        root: None,
        parent: None,
        conversation: "".into(),
        order_key: 0,
        envelope: Some(0),
        hashes: vec![[9; 16]; count.into()],
        reply_token: "".into(),
    }
}

pub(crate) fn ended(first: DispatchId, count: u16, at: Timestamp) -> CompletionRow {
    CompletionRow {
        first,
        count,
        completed: at.after(Duration::from_millis(140)),
        source: "lead_bot".into(),
        target: "intent_decoder".into(),
        outcome: Outcome::Success,
        reason: Reason::Ok,
        late: false,
        lane_us: 2_000,
        inbox_us: 1_000,
        ran_us: 138_000,
        latency_us: 142_000,
        attempt: 1,
        runner: InstanceId(77),
        response: [8; 16],
    }
}
