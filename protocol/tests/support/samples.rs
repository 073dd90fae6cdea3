//! Fixed values of every format, each with its golden file.

use std::time::Duration;

use bytes::Bytes;
use governance::{Decision, DispatchId, InstanceId, Kind, Outcome, Priority, Reason, Timestamp};
use protocol::audit::{self, Block, CompletionRow, DecisionRow, Note};
use protocol::completion::{self, Completion, Reply};
use protocol::envelope::{self, LaneEnvelope, Outgoing};
use protocol::inbox::{self, Stamp};
use protocol::{AuditKey, Lineage};

/// The instance that sends.
pub(crate) const SENDER: InstanceId = InstanceId(0x0102_0304_0506_0708);
/// The instance that runs.
pub(crate) const RUNNER: InstanceId = InstanceId(0x1112_1314_1516_1718);
/// 2026-01-02T03:04:05.678Z.
pub(crate) const AT: Timestamp = Timestamp(1_767_323_045_678_000_000);

/// A fixed audit key: the bytes 0 to 31.
pub(crate) fn key() -> AuditKey {
    AuditKey::new(&std::array::from_fn(|i| i as u8))
}

/// A dispatch of the sender.
pub(crate) fn id(sequence: u64, slot: u16) -> DispatchId {
    DispatchId { instance: SENDER, sequence, slot, copy: 0 }
}

fn ms(ms: u64) -> Timestamp {
    AT.after(Duration::from_millis(ms))
}

/// A dispatch with nothing optional.
pub(crate) fn plain(payload: &[u8]) -> Outgoing<'_> {
    Outgoing {
        kind: Kind::Request,
        capability: "score",
        topic: "",
        budget: Duration::ZERO,
        lineage: &[],
        conversation: "",
        order_key: "",
        idempotency_key: "",
        trace: "",
        content_type: "",
        payload,
    }
}

/// The lineage of a child of `id(7, 1)`.
pub(crate) fn lineage() -> Lineage {
    Lineage {
        root: id(3, 0),
        parent: id(7, 1),
        deadline: ms(30_000),
        serves_person: true,
        ancestry: vec![
            protocol::lineage::hop("orchestrator", "reply"),
            protocol::lineage::hop("scoring_engine", "score"),
        ],
    }
}

/// The lineage with the seal for its holder.
pub(crate) fn lineage_bytes() -> Vec<u8> {
    let lineage = lineage();
    lineage.with_seal(lineage.seal(&key(), "scoring_engine"))
}

/// One dispatch with nothing optional.
pub(crate) fn lane_single() -> Vec<u8> {
    envelope::write(SENDER, 9, "", &[plain(br#"{"lead":17}"#)])
}

/// Six dispatches with every column, so that each encoding of columns occurs.
pub(crate) fn lane_batch() -> Vec<u8> {
    let above = lineage_bytes();
    let rows: Vec<Outgoing<'_>> = (0..6)
        .map(|i| Outgoing {
            kind: if i == 5 { Kind::Event } else { Kind::Request },
            capability: if i == 5 { "" } else { "score" },
            topic: if i == 5 { "lead_changed" } else { "" },
            budget: Duration::from_millis(if i == 0 { 0 } else { 250 }),
            lineage: if i % 2 == 0 { &[] } else { &above },
            conversation: ["lead-1", "lead-2"][i % 2],
            order_key: "lead-1",
            idempotency_key: ["k0", "k1", "k2", "k3", "k4", "k5"][i],
            trace: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            content_type: "text/plain",
            payload: [&b"yes"[..], b"no", b"", b"maybe", b"later", b"never"][i],
        })
        .collect();
    envelope::write(SENDER, 10, "caller-1", &rows)
}

/// Two parcels: the single dispatch, and slots 1 to 3 of the batch.
pub(crate) fn inbox() -> Vec<u8> {
    let (single, batch) = (lane_single(), lane_batch());
    let single = LaneEnvelope::parse(&single).expect("a sample");
    let batch = LaneEnvelope::parse(&batch).expect("a sample");
    let stamp = Stamp {
        source: "lead_bot",
        copy: 0,
        lane: Priority::P0,
        accepted: AT,
        admitted: ms(2),
        reason: Reason::Ok,
        deadlines: &[ms(30_000)],
        serves_person: true,
        seals: &[0xfeed_beef],
    };
    let other = Stamp {
        source: "buyer_bot",
        copy: 2,
        lane: Priority::P2,
        reason: Reason::TopicCopy,
        deadlines: &[ms(250), ms(250), ms(500)],
        serves_person: false,
        seals: &[1, 2, 3],
        ..stamp.clone()
    };
    inbox::write(&[inbox::parcel(&single, 0..1, &stamp), inbox::parcel(&batch, 1..4, &other)])
}

/// The parcels of the inbox sample.
pub(crate) fn parcels() -> Vec<Bytes> {
    inbox::split(&Bytes::from(inbox())).expect("a sample")
}

/// A run of successes, and a failed event.
pub(crate) fn completion_rows() -> [Completion<'static>; 2] {
    [
        Completion {
            first: id(10, 1),
            count: 3,
            outcome: Outcome::Success,
            reason: Reason::Ok,
            ran_us: 1_500,
            inbox_us: 300,
            attempt: 1,
            payload: br#"{"score":0.5}"#,
            content_type: "",
            inbox_ack: "",
        },
        Completion {
            first: DispatchId { copy: 2, ..id(10, 5) },
            count: 1,
            outcome: Outcome::Failure,
            reason: Reason::HandlerFailed,
            ran_us: 20,
            inbox_us: 80,
            attempt: 4,
            payload: b"no such lead",
            content_type: "text/plain",
            inbox_ack: "$JS.ACK.MESH_OUT_P2.scoring_engine.4.812.5.1767323045678000000.0",
        },
    ]
}

/// The completions as bytes.
pub(crate) fn completions() -> Vec<u8> {
    completion::write(RUNNER, &completion_rows())
}

/// An answer, and a refusal.
pub(crate) fn reply_rows() -> [Reply<'static>; 2] {
    [
        Reply {
            first: id(9, 0),
            count: 1,
            outcome: Outcome::Success,
            reason: Reason::Ok,
            target: "scoring_engine",
            lane_us: 900,
            inbox_us: 300,
            ran_us: 1_500,
            payload: br#"{"score":0.5}"#,
            content_type: "",
        },
        Reply {
            first: id(10, 0),
            count: 2,
            outcome: Outcome::Rejected,
            reason: Reason::UndeclaredDependency,
            target: "",
            lane_us: 100,
            inbox_us: 0,
            ran_us: 0,
            payload: b"lead_bot has not declared crm_client/delete",
            content_type: "text/plain",
        },
    ]
}

/// The replies as bytes.
pub(crate) fn replies() -> Vec<u8> {
    completion::write_replies(&reply_rows())
}

fn decision(first: DispatchId, payloads: &[&[u8]]) -> DecisionRow {
    DecisionRow {
        first,
        count: payloads.len() as u16,
        lane_sequence: 812,
        lane: Priority::P0,
        class: Priority::P1,
        accepted: AT,
        decided: ms(2),
        source: "lead_bot".into(),
        target: "scoring_engine".into(),
        capability: "score".into(),
        kind: Kind::Request,
        decision: Decision::Admitted,
        reason: Reason::DemotedFromP0,
        outcome: None,
        deadline: ms(30_000),
        serves_person: false,
        root: None,
        parent: None,
        conversation: "lead-1".into(),
        order_key: 0,
        envelope: Some(0),
        hashes: payloads.iter().map(|p| key().hash(p)).collect(),
        reply_token: "".into(),
    }
}

/// A block with rows of each kind.
pub(crate) fn block() -> Block {
    let refused = DecisionRow {
        target: "".into(),
        capability: "delete".into(),
        decision: Decision::Rejected,
        reason: Reason::UndeclaredDependency,
        outcome: Some(Outcome::Rejected),
        root: Some(id(3, 0)),
        parent: Some(id(7, 1)),
        conversation: "".into(),
        order_key: 77,
        envelope: None,
        reply_token: "caller-1".into(),
        ..decision(id(11, 4), &[b"{}"])
    };
    Block {
        shard: 17,
        epoch: 5,
        sequence: 42,
        at: ms(3),
        previous: audit::hash(b"the block before"),
        policy_version: 6,
        decisions: vec![decision(id(10, 1), &[b"yes", b"no", b"yes"]), refused],
        completions: vec![CompletionRow {
            first: id(9, 0),
            count: 1,
            completed: ms(5),
            source: "lead_bot".into(),
            target: "scoring_engine".into(),
            outcome: Outcome::Success,
            reason: Reason::Ok,
            late: false,
            lane_us: 900,
            inbox_us: 300,
            ran_us: 1_500,
            latency_us: 4_800,
            attempt: 1,
            runner: RUNNER,
            response: key().hash(br#"{"score":0.5}"#),
        }],
        notes: vec![Note {
            kind: "breaker".into(),
            at: ms(3),
            agent: "handoff".into(),
            body: r#"{"state":"tripped"}"#.into(),
        }],
    }
}

/// Every golden file of bytes with the sample that it holds.
pub(crate) fn all() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("lane_single", lane_single()),
        ("lane_batch", lane_batch()),
        ("inbox", inbox()),
        ("completions", completions()),
        ("replies", replies()),
        ("lineage", lineage_bytes()),
        ("audit_block", block().encode()),
    ]
}
