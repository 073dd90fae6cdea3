//! Properties of every format: what is written is read back, and no bytes at all make a decoder panic.
//!
//! Owns the random values. The rule it keeps: mutated bytes start from good ones, so that the search is deep in a format.

mod support;

use std::time::Duration;

use bytes::Bytes;
use governance::{Decision, DispatchId, InstanceId, Kind, Outcome, Priority, Reason, Timestamp};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use protocol::audit::{Block, CompletionRow, DecisionRow, Note};
use protocol::completion::{self, Completion, Completions, Replies, Reply};
use protocol::envelope::{self, LaneEnvelope, Outgoing, column};
use protocol::inbox::{self, Parcel, Stamp};
use protocol::{AuditKey, Frame, FrameWriter, Lineage, json};
use support::decode_all::decode_all;
use support::samples;

fn any_id() -> impl Strategy<Value = DispatchId> {
    (any::<u64>(), 1_u64.., 0..60_000_u16, any::<u16>()).prop_map(|(instance, sequence, slot, copy)| {
        DispatchId { instance: InstanceId(instance), sequence, slot, copy }
    })
}

/// A text that is often the same as others, sometimes not, sometimes empty.
fn key() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), select(&["a", "lead-1", "ü"][..]).prop_map(String::from), ".{0,40}"]
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![Just(b"{}".to_vec()), vec(any::<u8>(), 0..200)]
}

#[derive(Debug, Clone)]
struct Sent {
    kind: Kind,
    budget_ms: u32,
    keys: [String; 5],
    lineage: Vec<u8>,
    payload: Vec<u8>,
}

fn sent() -> impl Strategy<Value = Sent> {
    let kind = select(&[Kind::Request, Kind::Event][..]);
    let lineage = prop_oneof![Just(Vec::new()), Just(samples::lineage_bytes()), vec(any::<u8>(), 0..80)];
    (kind, any::<u32>(), [key(), key(), key(), key(), key()], lineage, payload()).prop_map(
        |(kind, budget_ms, keys, lineage, payload)| Sent { kind, budget_ms, keys, lineage, payload },
    )
}

fn outgoing(sent: &Sent) -> Outgoing<'_> {
    Outgoing {
        kind: sent.kind,
        capability: &sent.keys[0],
        topic: "",
        budget: Duration::from_millis(sent.budget_ms.into()),
        lineage: &sent.lineage,
        conversation: &sent.keys[1],
        order_key: &sent.keys[2],
        idempotency_key: &sent.keys[3],
        trace: &sent.keys[4],
        content_type: "",
        payload: &sent.payload,
    }
}

fn same(lane: &LaneEnvelope<'_>, row: usize, sent: &Sent) -> Result<(), TestCaseError> {
    prop_assert_eq!(lane.kind(row), sent.kind);
    prop_assert_eq!(lane.budget(row), Duration::from_millis(sent.budget_ms.into()));
    prop_assert_eq!(lane.lineage(row), &sent.lineage);
    prop_assert_eq!(lane.payload(row), &sent.payload);
    let texts =
        [column::CAPABILITY, column::CONVERSATION, column::ORDER_KEY, column::IDEMPOTENCY_KEY, column::TRACE];
    for (id, key) in texts.into_iter().zip(&sent.keys) {
        prop_assert_eq!(lane.text(id, row), key);
    }
    Ok(())
}

/// Also one that only a newer build knows.
fn any_reason() -> impl Strategy<Value = Reason> {
    any::<u8>().prop_map(Reason::from_code)
}

fn completion_row() -> impl Strategy<Value = (DispatchId, u16, Outcome, Reason, [u32; 3], u8, Vec<u8>, String)>
{
    let outcome = select(&[Outcome::Success, Outcome::Failure][..]);
    let count = 1..5_000_u16;
    (any_id(), count, outcome, any_reason(), any::<[u32; 3]>(), any::<u8>(), payload(), key())
}

fn decision_row() -> impl Strategy<Value = DecisionRow> {
    let words = (
        select(Priority::ALL),
        select(Priority::ALL),
        select(Kind::ALL),
        select(Decision::ALL),
        any_reason(),
        proptest::option::of(select(Outcome::ALL)),
    );
    let numbers = (any::<[u64; 5]>(), any::<bool>(), proptest::option::of(0..65_535_u16));
    let ids = (any_id(), proptest::option::of(any_id()), proptest::option::of(any_id()));
    (ids, vec(any::<[u8; 16]>(), 1..5), words, numbers, [key(), key(), key(), key(), key()]).prop_map(
        |((first, root, parent), hashes, words, (numbers, serves_person, envelope), keys)| {
            let [source, target, capability, conversation, reply_token] = keys.map(Into::into);
            let (lane, class, kind, decision, reason, outcome) = words;
            DecisionRow {
                first,
                count: hashes.len() as u16,
                lane_sequence: numbers[0],
                lane,
                class,
                accepted: Timestamp(numbers[1]),
                decided: Timestamp(numbers[2]),
                source,
                target,
                capability,
                kind,
                decision,
                reason,
                outcome,
                deadline: Timestamp(numbers[3]),
                serves_person,
                root,
                parent,
                conversation,
                order_key: numbers[4],
                envelope,
                hashes,
                reply_token,
            }
        },
    )
}

fn ended_row() -> impl Strategy<Value = CompletionRow> {
    let words = (select(Outcome::ALL), any_reason(), any::<bool>());
    let numbers = (any::<u64>(), any::<[u32; 3]>(), any::<u64>(), any::<u8>(), any::<u64>());
    (any_id(), 1..500_u16, [key(), key()], words, numbers, any::<[u8; 16]>()).prop_map(
        |(first, count, [source, target], (outcome, reason, late), numbers, response)| CompletionRow {
            first,
            count,
            completed: Timestamp(numbers.0),
            source: source.into(),
            target: target.into(),
            outcome,
            reason,
            late,
            lane_us: numbers.1[0],
            inbox_us: numbers.1[1],
            ran_us: numbers.1[2],
            latency_us: numbers.2,
            attempt: numbers.3,
            runner: InstanceId(numbers.4),
            response,
        },
    )
}

fn note() -> impl Strategy<Value = Note> {
    (key(), any::<u64>(), key(), ".{0,80}").prop_map(|(kind, at, agent, body)| Note {
        kind: kind.into(),
        at: Timestamp(at),
        agent: agent.into(),
        body,
    })
}

fn block() -> impl Strategy<Value = Block> {
    let head = (any::<u8>(), any::<[u64; 3]>(), any::<[u8; 32]>(), any::<u32>());
    (head, vec(decision_row(), 0..20), vec(ended_row(), 0..20), vec(note(), 0..5)).prop_map(
        |((shard, numbers, previous, policy_version), decisions, completions, notes)| Block {
            shard,
            epoch: numbers[0],
            sequence: numbers[1],
            at: Timestamp(numbers[2]),
            previous,
            policy_version,
            decisions,
            completions,
            notes,
        },
    )
}

/// One change to bytes, at a place relative to their length.
#[derive(Debug, Clone)]
enum Mutation {
    Set(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Remove(Index, Index),
    Repeat(Index, Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let interesting = prop_oneof![any::<u8>(), select(&[0, 1, 2, 4, 16, 127, 128, 254, 255][..])];
    prop_oneof![
        6 => (any::<Index>(), interesting).prop_map(|(at, to)| Mutation::Set(at, to)),
        1 => any::<Index>().prop_map(Mutation::Cut),
        1 => (any::<Index>(), vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        1 => any::<(Index, Index)>().prop_map(|(from, to)| Mutation::Remove(from, to)),
        1 => any::<(Index, Index)>().prop_map(|(from, to)| Mutation::Repeat(from, to)),
    ]
}

fn mutate(bytes: &mut Vec<u8>, mutation: &Mutation) {
    let range = |from: &Index, to: &Index, len: usize| {
        let (a, b) = (from.index(len + 1), to.index(len + 1));
        a.min(b)..a.max(b)
    };
    match mutation {
        Mutation::Set(at, to) => {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = *to;
            }
        }
        Mutation::Cut(at) => bytes.truncate(at.index(bytes.len() + 1)),
        Mutation::Insert(at, more) => {
            let at = at.index(bytes.len() + 1);
            bytes.splice(at..at, more.iter().copied());
        }
        Mutation::Remove(from, to) => drop(bytes.drain(range(from, to, bytes.len()))),
        Mutation::Repeat(from, to) => bytes.extend_from_within(range(from, to, bytes.len())),
    }
}

proptest! {
    #[test]
    fn any_columns_are_read_back(texts in vec(payload(), 0..50), numbers in vec(any::<u32>(), 0..50)) {
        let rows = texts.len().min(numbers.len());
        let mut w = FrameWriter::new(77, rows);
        w.text(3, texts[..rows].iter().map(Vec::as_slice));
        w.fixed(4, numbers[..rows].iter().map(|n| n.to_le_bytes()));
        let bytes = w.finish();
        let frame = Frame::parse(&bytes, 77).unwrap();
        prop_assert_eq!(frame.rows(), rows);
        prop_assert_eq!(frame.spread(3), texts[..rows].iter().map(Vec::len).sum::<usize>());
        for row in 0..rows {
            prop_assert_eq!(frame.text(3, row), Some(texts[row].as_slice()));
            prop_assert_eq!(frame.u32(4, row), Some(numbers[row]));
        }
        prop_assert_eq!((frame.text(3, rows), frame.u64(4, 0), frame.has(5)), (None, None, false));
    }

    #[test]
    fn what_is_alike_is_packed_as_if_row_by_row(
        alike in sent(),
        payloads in prop_oneof![vec(payload(), 1..40), vec(vec(any::<u8>(), 16), 1..40)],
        sequence in 1_u64..,
    ) {
        let rows: Vec<_> =
            payloads.iter().map(|payload| Outgoing { payload, ..outgoing(&alike) }).collect();
        let at_once = envelope::write_alike(
            InstanceId(7),
            sequence,
            &outgoing(&alike),
            payloads.iter().map(|payload| &payload[..]),
        );
        prop_assert_eq!(at_once, envelope::write(InstanceId(7), sequence, "", &rows));
    }

    #[test]
    fn what_is_alike_is_sealed_as_if_one_by_one(
        id in any_id(),
        above in prop_oneof![Just(Vec::new()), Just(samples::lineage_bytes())],
        rows in 1_usize..40,
        deadline in any::<u64>(),
    ) {
        let child = |nth: usize| {
            let id = DispatchId { slot: id.slot + nth as u16, ..id };
            inbox::child_lineage(&above, id, "score", "scoring_engine", Timestamp(deadline), true)
        };
        let one_by_one: Vec<u64> =
            (0..rows).map(|nth| child(nth).seal(&samples::key(), "scoring_engine")).collect();
        let at_once =
            inbox::child_seals(&child(0), rows, above.is_empty(), &samples::key(), "scoring_engine");
        prop_assert_eq!(at_once, one_by_one);
    }

    #[test]
    fn any_dispatches_are_read_back_from_lane_and_inbox(
        dispatches in vec(sent(), 1..40),
        instance in any::<u64>(),
        sequence in 1_u64..,
        ends in any::<(Index, Index)>(),
        deadlines in vec((any::<u64>(), any::<u64>()), 40),
    ) {
        let rows: Vec<_> = dispatches.iter().map(outgoing).collect();
        let bytes = envelope::write(InstanceId(instance), sequence, "caller", &rows);
        let lane = LaneEnvelope::parse(&bytes).unwrap();
        prop_assert_eq!((lane.instance, lane.sequence), (InstanceId(instance), sequence));
        for (row, sent) in dispatches.iter().enumerate() {
            same(&lane, row, sent)?;
        }

        let (a, b) = (ends.0.index(rows.len()), ends.1.index(rows.len()));
        let cut = a.min(b)..a.max(b) + 1;
        let (deadlines, seals): (Vec<_>, Vec<_>) =
            deadlines[..cut.len()].iter().map(|(d, s)| (Timestamp(*d), *s)).unzip();
        let stamp = Stamp {
            source: "lead_bot",
            copy: 1,
            lane: Priority::P3,
            accepted: Timestamp(5),
            admitted: Timestamp(6),
            reason: Reason::AgedUp,
            deadlines: &deadlines,
            serves_person: true,
            seals: &seals,
        };
        let envelope = Bytes::from(inbox::write(&[inbox::parcel(&lane, cut.clone(), &stamp)]));
        let parcels = inbox::split(&envelope).unwrap();
        let parcel = Parcel::parse(&parcels[0]).unwrap();
        for (row, above) in cut.enumerate() {
            let id = DispatchId { instance: InstanceId(instance), sequence, slot: above as u16, copy: 1 };
            prop_assert_eq!(parcel.id(row), id);
            prop_assert_eq!(parcel.payload(row), &dispatches[above].payload);
            prop_assert_eq!(parcel.deadline(row), deadlines[row]);
            let child = parcel.child_lineage(row, "target");
            let (lineage, seal) = Lineage::decode(&child).unwrap();
            prop_assert_eq!((lineage.parent, lineage.deadline, seal), (id, deadlines[row], seals[row]));
        }
    }

    #[test]
    fn any_completions_and_replies_are_read_back(rows in vec(completion_row(), 0..40), runner in any::<u64>()) {
        let done: Vec<Completion<'_>> = rows.iter().map(|(first, count, outcome, reason, us, attempt, payload, text)| {
            Completion {
                first: *first, count: *count, outcome: *outcome, reason: *reason, ran_us: us[0], inbox_us: us[1],
                attempt: *attempt, payload, content_type: text,
                inbox_ack: if *attempt > 3 { "$JS.ACK.MESH_OUT_P0.crm.1.2.3.4.5" } else { "" },
            }
        }).collect();
        let bytes = completion::write(InstanceId(runner), &done);
        let read = Completions::parse(&bytes).unwrap();
        prop_assert_eq!(read.runner, InstanceId(runner));
        prop_assert_eq!((0..read.len()).map(|i| read.row(i)).collect::<Vec<_>>(), done);

        let replies: Vec<Reply<'_>> = rows.iter().map(|(first, count, outcome, reason, us, _, payload, text)| {
            Reply {
                first: *first, count: *count, outcome: *outcome, reason: *reason, target: text, lane_us: us[0],
                inbox_us: us[1], ran_us: us[2], payload, content_type: text,
            }
        }).collect();
        let bytes = completion::write_replies(&replies);
        let read = Replies::parse(&bytes).unwrap();
        prop_assert_eq!((0..read.len()).map(|i| read.row(i)).collect::<Vec<_>>(), replies);
    }

    #[test]
    fn any_block_is_read_back(block in block()) {
        let bytes = block.encode();
        prop_assert_eq!(Block::decode(&bytes), Ok(block));
    }

    #[test]
    fn any_lineage_is_verified_for_its_holder_only(
        root in any_id(), parent in any_id(), deadline in any::<u64>(), serves in any::<bool>(),
        ancestry in vec(any::<u32>(), 0..=64), key in any::<[u8; 32]>(),
    ) {
        let key = AuditKey::new(&key);
        let lineage = Lineage { root, parent, deadline: Timestamp(deadline), serves_person: serves, ancestry };
        let bytes = lineage.with_seal(lineage.seal(&key, "holder"));
        prop_assert_eq!(Lineage::verify(&bytes, &key, "holder"), Some(lineage));
        prop_assert_eq!(Lineage::verify(&bytes, &key, "holders"), None);
    }

    #[test]
    fn what_json_says_is_what_binary_says(
        dispatches in vec(("[a-z0-9_-]{2,20}", any::<u32>(), key(), proptest::option::of(any::<i32>())), 1..20),
        sequence in 1_u64..,
    ) {
        let rows: Vec<_> = dispatches.iter().map(|(capability, budget, key, payload)| serde_json::json!({
            "capability": capability, "budget_ms": budget, "order_key": key, "payload": payload,
        })).collect();
        let message = serde_json::json!({
            "dispatches": rows, "instance": "0102030405060708", "sequence": sequence, "reply": "caller-1",
        });
        let lane = json::to_lane(message.to_string().as_bytes(), InstanceId(InstanceId::DERIVED), 1).unwrap();
        let payloads: Vec<_> =
            dispatches.iter().map(|d| d.3.map_or_else(|| "null".to_owned(), |n| n.to_string())).collect();
        let direct: Vec<_> = dispatches.iter().zip(&payloads).map(|((capability, budget, key, _), payload)| Outgoing {
            capability, budget: Duration::from_millis((*budget).into()), order_key: key,
            ..samples::plain(payload.as_bytes())
        }).collect();
        prop_assert_eq!(lane, envelope::write(samples::SENDER, sequence, "caller-1", &direct));
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(bytes in vec(any::<u8>(), 0..300)) {
        decode_all(&bytes);
    }

    #[test]
    fn arbitrary_bytes_behind_a_good_head_are_refused_without_a_panic(
        kind in select(&[1_u8, 2, 3, 4, 16, 17, 18][..]), rows in 0..70_000_u32, columns in 0..12_u8,
        rest in vec(any::<u8>(), 0..200),
    ) {
        let mut bytes = vec![b'A', b'M', 1, kind];
        bytes.extend_from_slice(&rows.to_le_bytes());
        bytes.extend_from_slice(&[columns, 0, 0, 0]);
        bytes.extend_from_slice(&rest);
        decode_all(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn good_bytes_that_were_mutated_make_no_decoder_panic(
        sample in any::<Index>(), mutations in vec(mutation(), 1..6),
    ) {
        let mut samples = samples::all();
        let (_, mut bytes) = samples.swap_remove(sample.index(samples.len()));
        for mutation in &mutations {
            mutate(&mut bytes, mutation);
        }
        decode_all(&bytes);
    }

    #[test]
    fn good_json_that_was_mutated_makes_no_decoder_panic(
        sample in any::<Index>(), mutations in vec(mutation(), 1..4),
    ) {
        let texts = [
            include_str!("golden/batch.json"),
            include_str!("golden/dispatch.json"),
            include_str!("golden/completion.json"),
            r#"{"instance":"0102030405060708","slots":4,"running":1}"#,
            r#"{"agent":"a","capabilities":["b"],"fallbacks":{"b":{"static":"{}"}}}"#,
            "d-0102030405060708-9-0.3",
            "mesh.in.p0.lead_bot._",
        ];
        let mut bytes = texts[sample.index(texts.len())].as_bytes().to_vec();
        for mutation in &mutations {
            mutate(&mut bytes, mutation);
        }
        decode_all(&bytes);
    }

    #[test]
    fn a_block_whose_unpacked_body_was_mutated_makes_no_decoder_panic(mutations in vec(mutation(), 1..6)) {
        let bytes = samples::block().encode();
        let body = u32::from_le_bytes(bytes[60..64].try_into().unwrap()) as usize;
        let mut plain = zstd::bulk::decompress(&bytes[64..64 + body], 1 << 20).unwrap();
        for mutation in &mutations {
            mutate(&mut plain, mutation);
        }
        let packed = zstd::bulk::compress(&plain, 1).unwrap();
        let mut mutated = bytes[..60].to_vec();
        mutated.extend_from_slice(&(packed.len() as u32).to_le_bytes());
        mutated.extend_from_slice(&packed);
        mutated.extend_from_slice(&bytes[64 + body..]);
        decode_all(&mutated);
    }
}
