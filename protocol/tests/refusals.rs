//! Typed refusals: what must not pass a decoder, and what each says about it.
//!
//! Owns the list of lies that bytes can tell. The rule it keeps: a refusal names the field and what is allowed.
#![expect(clippy::unwrap_used, reason = "a test stops where something is not as it must be")]

mod support;

use bytes::Bytes;
use governance::names::NameError;
use governance::{AgentId, Capability, InstanceId, Topic};
use protocol::audit::{self, Block, BlockError, DecisionRow};
use protocol::completion::{self, Completion, Completions, Replies};
use protocol::envelope::{self, KEY_BYTES_MAX, LaneEnvelope, Outgoing, column};
use protocol::frame::{Frame, FrameError, FrameWriter};
use protocol::inbox::{self, Parcel};
use protocol::json::{self, JsonError};
use protocol::streams::PAYLOAD_BYTES_MAX;
use protocol::{AuditKey, Lineage, redis, subjects};
use support::samples;

/// The byte of a frame that holds its version.
const VERSION_AT: usize = 2;

fn with(bytes: &[u8], at: usize, value: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] = value;
    bytes
}

fn lane_with(change: impl FnOnce(&mut FrameWriter), rows: usize) -> Result<(), FrameError> {
    let mut w = FrameWriter::new(envelope::KIND_LANE, rows);
    change(&mut w);
    LaneEnvelope::parse(&w.finish()).map(drop)
}

/// The columns that every lane envelope has, except those named.
fn required(w: &mut FrameWriter, except: &[u8]) {
    let mut put = |id: u8, write: fn(&mut FrameWriter, u8)| {
        if !except.contains(&id) {
            write(w, id);
        }
    };
    put(column::INSTANCE, |w, id| w.same(id, 1_u64.to_le_bytes()));
    put(column::SEQUENCE, |w, id| w.same(id, 1_u64.to_le_bytes()));
    put(column::KIND, |w, id| w.same(id, [0]));
    put(column::CAPABILITY, |w, id| w.text_same(id, b"score"));
    put(column::PAYLOAD, |w, id| w.text_same(id, b"{}"));
}

fn refused(json: &str) -> (String, String) {
    match json::to_lane(json.as_bytes(), InstanceId(InstanceId::DERIVED), 1) {
        Err(JsonError::Field { field, message }) => (field.to_owned(), message),
        Err(JsonError::Shape(message)) => (String::new(), message),
        Ok(_) => panic!("accepted: {json}"),
    }
}

#[test]
fn names_that_are_no_subject_tokens_are_refused() {
    for bad in ["a.b", "a b", "*", ">", "a*", "A", "ä", "a\n", "", "_", &"a".repeat(65)] {
        assert!(AgentId::new(bad).is_err(), "{bad:?}");
        assert!(Capability::new(bad).is_err(), "{bad:?}");
        assert!(Topic::new(bad).is_err(), "{bad:?}");
    }
    assert_eq!(AgentId::new(&"a".repeat(65)), Err(NameError::TooLong(65)));
    assert_eq!(
        AgentId::new("crm.client"),
        Err(NameError::BadCharacter { name: "crm.client".into(), found: '.' })
    );
    assert!(AgentId::new(&"a".repeat(64)).is_ok());
}

#[test]
fn a_json_dispatch_to_an_impossible_name_is_refused_with_the_field() {
    for bad in ["a.b", "a b", "*", ">", &"a".repeat(65)] {
        assert_eq!(refused(&format!(r#"{{"capability":"{bad}"}}"#)).0, "capability");
        assert_eq!(refused(&format!(r#"{{"kind":"event","topic":"{bad}"}}"#)).0, "topic");
    }
}

#[test]
fn a_json_dispatch_that_is_not_clear_is_refused_with_the_field() {
    for (json, field) in [
        (r#"{"payload":1}"#, "capability"),
        (r#"{"capability":"a","topic":"b"}"#, "capability"),
        (r#"{"capability":"a","kind":"response"}"#, "kind"),
        (r#"{"capability":"a","payload":1,"payload_hex":"00"}"#, "payload_hex"),
        (r#"{"capability":"a","payload_hex":"0"}"#, "payload_hex"),
        (r#"{"capability":"a","lineage":"xy"}"#, "lineage"),
        (r#"{"capability":"a","reply":"a.b"}"#, "reply"),
        (r#"{"dispatches":[]}"#, "dispatches"),
        (r#"{"dispatches":[{"capability":"a"}],"instance":"0102030405060708"}"#, "sequence"),
        (r#"{"dispatches":[{"capability":"a"}],"instance":"0102030405060708","sequence":0}"#, "sequence"),
        (r#"{"dispatches":[{"capability":"a"}],"instance":"f102030405060708","sequence":1}"#, "instance"),
        (r#"{"dispatches":[{"capability":"a","reply":"x"}]}"#, "reply"),
    ] {
        assert_eq!(refused(json).0, field, "{json}");
    }
    let (_, message) = refused(r#"{"capability":"a","colour":"red"}"#);
    assert!(message.contains("unknown field `colour`"), "{message}");
    let (_, message) = refused(r#"{"dispatches":[{"capability":"a","colour":"red"}]}"#);
    assert!(message.contains("unknown field `colour`"), "{message}");
    let many = vec![r#"{"capability":"a"}"#; json::DISPATCHES_MAX + 1].join(",");
    assert_eq!(refused(&format!(r#"{{"dispatches":[{many}]}}"#)).0, "dispatches");
    let long = "k".repeat(KEY_BYTES_MAX + 1);
    assert_eq!(refused(&format!(r#"{{"capability":"a","order_key":"{long}"}}"#)).0, "order_key");
}

#[test]
fn a_payload_over_the_bound_is_refused_in_both_encodings() {
    let big = vec![b'1'; PAYLOAD_BYTES_MAX + 1];
    assert!(
        LaneEnvelope::parse(&envelope::write(InstanceId(1), 1, "", &[samples::plain(&big[1..])])).is_ok()
    );
    assert_eq!(
        LaneEnvelope::parse(&envelope::write(InstanceId(1), 1, "", &[samples::plain(&big)])).unwrap_err(),
        FrameError::BadValue { column: column::PAYLOAD, row: 0 }
    );
    let text = String::from_utf8(big.clone()).unwrap();
    assert_eq!(refused(&format!(r#"{{"capability":"a","payload":{text}}}"#)).0, "payload");
    let row = Completion { payload: &big, ..samples::completion_rows()[0] };
    assert!(matches!(
        Completions::parse(&completion::write(InstanceId(1), &[row])),
        Err(FrameError::BadValue { row: 0, .. })
    ));
    let done = format!(r#"{{"id":"d-0102030405060708-9-0","outcome":"success","payload":{text}}}"#);
    assert!(matches!(json::to_completions(done.as_bytes()), Err(JsonError::Field { field: "payload", .. })));
}

#[test]
fn a_payload_that_is_shared_by_too_many_rows_is_refused() {
    let share = vec![b'1'; 64 * 1024];
    let rows = envelope::SPREAD_BYTES_MAX / share.len();
    let good: Vec<Outgoing<'_>> = (0..rows).map(|_| samples::plain(&share)).collect();
    let bytes = envelope::write(InstanceId(1), 1, "", &good);
    assert!(bytes.len() < 2 * share.len(), "equal payloads stand in the bytes once");
    assert!(LaneEnvelope::parse(&bytes).is_ok());
    let bytes = envelope::write(InstanceId(1), 1, "", &vec![good[0]; rows + 1]);
    assert_eq!(LaneEnvelope::parse(&bytes).unwrap_err(), FrameError::BadColumn(column::PAYLOAD));
}

#[test]
fn unknown_versions_are_refused_by_number() {
    let unknown = |error| assert_eq!(error, FrameError::UnknownVersion(9));
    unknown(LaneEnvelope::parse(&with(&samples::lane_batch(), VERSION_AT, 9)).unwrap_err());
    unknown(Completions::parse(&with(&samples::completions(), VERSION_AT, 9)).unwrap_err());
    unknown(Replies::parse(&with(&samples::replies(), VERSION_AT, 9)).unwrap_err());
    unknown(inbox::split(&Bytes::from(with(&samples::inbox(), VERSION_AT, 9))).unwrap_err());
    unknown(Parcel::parse(&with(&samples::parcels()[0], VERSION_AT, 9)).unwrap_err());
    assert_eq!(Block::decode(&with(&samples::block().encode(), VERSION_AT, 9)), Err(BlockError::NotABlock));
}

#[test]
fn a_frame_of_another_kind_is_refused_by_number() {
    assert_eq!(
        Completions::parse(&samples::replies()).unwrap_err(),
        FrameError::WrongKind { found: completion::KIND_REPLIES, expected: completion::KIND_COMPLETIONS }
    );
    assert_eq!(LaneEnvelope::parse(b"{\"capability\":1}").unwrap_err(), FrameError::NotAFrame);
}

#[test]
fn lengths_that_lie_are_refused() {
    let bytes = samples::lane_batch();
    let mut longer = bytes.clone();
    longer.push(0);
    assert_eq!(
        LaneEnvelope::parse(&longer).unwrap_err(),
        FrameError::Truncated { need: bytes.len(), have: bytes.len() + 1 }
    );
    assert!(matches!(LaneEnvelope::parse(&bytes[..bytes.len() - 1]), Err(FrameError::Truncated { .. })));
    let mut inbox = samples::inbox();
    inbox.push(0);
    assert!(matches!(inbox::split(&Bytes::from(inbox)), Err(FrameError::Truncated { .. })));
    for (at, claims) in [(4, [0xff; 4]), (16, [0xff; 4])] {
        let mut bytes = bytes.clone();
        bytes[at..at + 4].copy_from_slice(&claims);
        assert!(LaneEnvelope::parse(&bytes).is_err(), "byte {at}");
    }
}

#[test]
fn rows_and_columns_beyond_the_bounds_are_refused() {
    let mut head = samples::lane_single();
    head[4..8].copy_from_slice(&65_536_u32.to_le_bytes());
    assert_eq!(Frame::parse(&head, envelope::KIND_LANE).unwrap_err(), FrameError::TooManyRows(65_536));
    assert_eq!(
        lane_with(|w| required(w, &[]), audit::RECORDS_MAX + 1),
        Err(FrameError::TooManyRows(audit::RECORDS_MAX + 1)),
        "an envelope fits one block"
    );
    assert_eq!(lane_with(|w| required(w, &[]), audit::RECORDS_MAX), Ok(()));
    assert_eq!(lane_with(|w| required(w, &[]), 0), Err(FrameError::MissingColumn(column::PAYLOAD)));
    // A column that this build does not know is passed over.
    assert_eq!(lane_with(|w| (required(w, &[]), w.same(200, [7])).1, 1), Ok(()));
    let mut inbox = inbox::write(&[]);
    inbox[4..8].copy_from_slice(&(inbox::PARCELS_MAX as u32 + 1).to_le_bytes());
    assert_eq!(inbox::split(&Bytes::from(inbox)), Err(FrameError::TooManyRows(inbox::PARCELS_MAX + 1)));
}

#[test]
fn a_column_that_is_there_twice_is_refused() {
    let twice = |w: &mut FrameWriter| {
        required(w, &[]);
        w.text_same(column::PAYLOAD, b"{}");
    };
    assert_eq!(lane_with(twice, 1), Err(FrameError::BadColumn(column::PAYLOAD)));
}

#[test]
fn a_lane_envelope_lacking_what_must_be_there_is_refused() {
    for id in [column::INSTANCE, column::SEQUENCE, column::PAYLOAD] {
        assert_eq!(lane_with(|w| required(w, &[id]), 1), Err(FrameError::MissingColumn(id)));
    }
    let bad_kind = FrameError::BadValue { column: column::KIND, row: 0 };
    assert_eq!(lane_with(|w| required(w, &[column::KIND]), 1), Err(bad_kind));
}

#[test]
fn a_lane_envelope_has_one_sender() {
    let two = |w: &mut FrameWriter| {
        required(w, &[column::INSTANCE]);
        w.fixed(column::INSTANCE, [1_u64.to_le_bytes(), 2_u64.to_le_bytes()].into_iter());
    };
    assert_eq!(lane_with(two, 2), Err(FrameError::BadColumn(column::INSTANCE)));
    let zero = |w: &mut FrameWriter| {
        required(w, &[column::SEQUENCE]);
        w.same(column::SEQUENCE, [0; 8]);
    };
    assert_eq!(lane_with(zero, 1), Err(FrameError::BadValue { column: column::SEQUENCE, row: 0 }));
}

#[test]
fn a_column_of_another_type_does_not_pass_as_absent() {
    for id in [column::CAPABILITY, column::LINEAGE, column::PAYLOAD, column::CONVERSATION] {
        let fixed = |w: &mut FrameWriter| {
            required(w, &[id]);
            w.same(id, [1, 2, 3, 4]);
        };
        assert_eq!(lane_with(fixed, 1), Err(FrameError::BadColumn(id)));
    }
    let text = |w: &mut FrameWriter| {
        required(w, &[]);
        w.text_same(column::BUDGET_MS, b"soon");
    };
    assert_eq!(lane_with(text, 1), Err(FrameError::BadColumn(column::BUDGET_MS)));
}

#[test]
fn keys_that_are_too_long_or_no_text_are_refused_with_their_row() {
    let long = "k".repeat(KEY_BYTES_MAX + 1);
    let rows = [samples::plain(b"1"), Outgoing { order_key: &long, ..samples::plain(b"2") }];
    assert_eq!(
        LaneEnvelope::parse(&envelope::write(InstanceId(1), 1, "", &rows)).unwrap_err(),
        FrameError::BadValue { column: column::ORDER_KEY, row: 1 }
    );
    let torn = |w: &mut FrameWriter| {
        required(w, &[]);
        w.text(column::CONVERSATION, [&b"good"[..], b"\xff\xfe"].into_iter());
    };
    assert_eq!(lane_with(torn, 2), Err(FrameError::BadValue { column: column::CONVERSATION, row: 1 }));
}

#[test]
fn a_reply_token_cannot_choose_a_subject() {
    for bad in ["a.b", "*", ">", "a b", "a\r\nPUB x 0", &"a".repeat(65)] {
        let bytes = envelope::write(InstanceId(1), 1, bad, &[samples::plain(b"1")]);
        assert!(
            matches!(
                LaneEnvelope::parse(&bytes),
                Err(FrameError::BadValue { column: column::REPLY_TOKEN, .. })
            ),
            "{bad:?}"
        );
    }
}

#[test]
fn an_acknowledgement_is_asked_for_on_nothing_else() {
    let good = "$JS.ACK.MESH_OUT_P2.scoring_engine.4.812.5.1767323045678000000.0";
    assert_eq!(subjects::acknowledges(good), Some(("MESH_OUT_P2", "scoring_engine")));
    let longer = "$JS.ACK._.szMpdrwD.MESH_OUT_P0.crm.1.1.1.1767323045678000000.1.x7";
    assert_eq!(subjects::acknowledges(longer), Some(("MESH_OUT_P0", "crm")));
    for bad in [
        "mesh.out.p0.crm",
        "$JS.ACK.",
        "$JS.ACK.a.*.1.2.3.4.5",
        "$JS.ACK.a.b c.1.2.3.4.5",
        "$JS.ACK.a..1.2.3.4.5",
    ] {
        let row = Completion { inbox_ack: bad, ..samples::completion_rows()[1] };
        assert!(Completions::parse(&completion::write(InstanceId(1), &[row])).is_err(), "{bad}");
        let done = format!(r#"{{"id":"d-0102030405060708-9-0","outcome":"failure","inbox":"{bad}"}}"#);
        assert!(matches!(
            json::to_completions(done.as_bytes()),
            Err(JsonError::Field { field: "inbox", .. })
        ));
    }
}

#[test]
fn a_completion_says_success_or_failure_of_slots_that_exist() {
    use governance::Outcome;
    for outcome in [Outcome::Timeout, Outcome::CircuitBroken, Outcome::Rejected, Outcome::Cancelled] {
        let row = Completion { outcome, ..samples::completion_rows()[0] };
        assert!(Completions::parse(&completion::write(InstanceId(1), &[row])).is_err(), "{outcome}");
        let done = format!(r#"{{"id":"d-0102030405060708-9-0","outcome":"{outcome}"}}"#);
        assert!(matches!(
            json::to_completions(done.as_bytes()),
            Err(JsonError::Field { field: "outcome", .. })
        ));
    }
    for (slot, count) in [(0, 0), (65_535, 2), (2, 65_535)] {
        let row = Completion { first: samples::id(1, slot), count, ..samples::completion_rows()[0] };
        assert!(Completions::parse(&completion::write(InstanceId(1), &[row])).is_err(), "{slot} + {count}");
    }
    assert!(matches!(
        json::to_completions(br#"{"id":"d-1-2","outcome":"success"}"#),
        Err(JsonError::Field { field: "id", .. })
    ));
}

#[test]
fn a_parcel_whose_source_is_no_name_is_refused() {
    let parcel = samples::parcels()[0].to_vec();
    let at = parcel.windows(8).position(|w| w == b"lead_bot").unwrap();
    assert!(Parcel::parse(&parcel).is_ok());
    assert_eq!(
        Parcel::parse(&with(&parcel, at + 4, b'.')).unwrap_err(),
        FrameError::BadValue { column: column::SOURCE, row: 0 }
    );
}

#[test]
fn a_lineage_that_was_touched_anywhere_is_refused() {
    let bytes = samples::lineage_bytes();
    for at in 0..bytes.len() {
        let touched = with(&bytes, at, bytes[at] ^ 1);
        assert_eq!(Lineage::verify(&touched, &samples::key(), "scoring_engine"), None, "byte {at}");
    }
    assert_eq!(Lineage::verify(&[], &samples::key(), "scoring_engine"), None);
    let other = AuditKey::new(&[1; 32]);
    assert_eq!(Lineage::verify(&bytes, &other, "scoring_engine"), None, "another mesh's key");
}

/// A block around a body that was packed from `plain`, with `hashes` zero bytes behind it.
fn block_of(plain: &[u8], hashes: usize) -> Vec<u8> {
    let body = zstd::bulk::compress(plain, 1).unwrap();
    let mut bytes = samples::block().encode()[..60].to_vec();
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes.extend(std::iter::repeat_n(0, hashes));
    bytes
}

/// The plain body of the sample with one of its frames replaced.
fn plain_with(place: usize, frame: &[u8]) -> Vec<u8> {
    let bytes = samples::block().encode();
    let body = u32::from_le_bytes(bytes[60..64].try_into().unwrap()) as usize;
    let plain = zstd::bulk::decompress(&bytes[64..64 + body], audit::BODY_BYTES_MAX).unwrap();
    let (mut rest, mut out) = (plain.as_slice(), Vec::new());
    for i in 0..3 {
        let (len, tail) = rest.split_at(4);
        let (old, tail) = tail.split_at(u32::from_le_bytes(len.try_into().unwrap()) as usize);
        let frame = if i == place { frame } else { old };
        out.extend_from_slice(&(frame.len() as u32).to_le_bytes());
        out.extend_from_slice(frame);
        rest = tail;
    }
    out
}

#[test]
fn a_body_that_unpacks_without_end_is_refused() {
    assert_eq!(
        Block::decode(&block_of(&vec![0; audit::BODY_BYTES_MAX + 1], 0)),
        Err(BlockError::Packed),
        "a bomb that tells its size"
    );
    let streamed = {
        use std::io::Write as _;
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.write_all(&vec![0; audit::BODY_BYTES_MAX + 1]).unwrap();
        encoder.finish().unwrap()
    };
    let mut bytes = samples::block().encode()[..60].to_vec();
    bytes.extend_from_slice(&(streamed.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&streamed);
    assert_eq!(Block::decode(&bytes), Err(BlockError::Packed), "a bomb that does not");
    let mut plain = plain_with(9, &[]);
    plain.push(0);
    assert_eq!(
        Block::decode(&block_of(&plain, 5 * 16)),
        Err(BlockError::Packed),
        "bytes behind the last frame"
    );
}

#[test]
fn texts_that_spell_out_to_gigabytes_are_refused_before_they_are_copied() {
    let long = "n".repeat(1 << 20);
    let rows = 16_000_usize;
    let words: Vec<&[u8]> = (0..rows).map(|i| &long.as_bytes()[i % 2..]).collect();
    let mut notes = FrameWriter::new(18, rows);
    notes.text_same(0, b"breaker");
    notes.same(1, [0; 8]);
    notes.text_same(2, b"agent");
    notes.text(3, words.iter().copied());
    let refused = Block::decode(&block_of(&plain_with(2, &notes.finish()), 5 * 16));
    assert_eq!(refused, Err(BlockError::Frame(FrameError::BadColumn(3))));

    let mut block = samples::block();
    let row = block.decisions[0].clone();
    let conversation = |i: usize| long[i % 2..].into();
    block.decisions = (0..64).map(|i| DecisionRow { conversation: conversation(i), ..row.clone() }).collect();
    assert!(matches!(Block::decode(&block.encode()), Err(BlockError::Frame(FrameError::BadValue { .. }))));
}

#[test]
fn a_block_with_hashes_too_few_or_too_many_is_refused() {
    let bytes = samples::block().encode();
    assert_eq!(
        Block::decode(&bytes[..bytes.len() - 16]),
        Err(BlockError::Hashes { found: 64, expected: 80 })
    );
    let more = [bytes.as_slice(), &[0; 16]].concat();
    assert_eq!(Block::decode(&more), Err(BlockError::Hashes { found: 96, expected: 80 }));
    let mut none = samples::block();
    none.decisions[0].count = 0;
    none.decisions[0].hashes.clear();
    assert!(matches!(Block::decode(&none.encode()), Err(BlockError::Frame(FrameError::BadValue { .. }))));
}

#[test]
fn ids_of_blocks_have_one_form_and_follow_without_gaps() {
    let id = |epoch, sequence| redis::EntryId { epoch, sequence };
    for bad in ["+1-2", "01-2", "1-+2", "1", "1-2-3", "-", "18446744073709551616-0"] {
        assert_eq!(redis::EntryId::parse(bad), None, "{bad}");
    }
    assert!(id(3, 8).follows(id(3, 7)) && id(4, 1).follows(id(3, 7)) && id(9, 1).follows(id(3, 7)));
    assert!(!id(3, 9).follows(id(3, 7)) && !id(4, 2).follows(id(3, 7)) && !id(2, 1).follows(id(3, 7)));
    assert!(!id(3, 0).follows(id(3, u64::MAX)), "a sequence does not wrap");
}

#[test]
fn a_key_is_64_hexadecimal_digits() {
    assert!(AuditKey::parse(&format!(" {}\n", "0f".repeat(32))).is_ok());
    for bad in ["", "0f", &"+f".repeat(32), &"0g".repeat(32), &"0f".repeat(33)] {
        assert!(AuditKey::parse(bad).is_err(), "{bad}");
    }
    assert_eq!(format!("{:?}", samples::key()), "AuditKey(..)", "a key is never printed");
}
