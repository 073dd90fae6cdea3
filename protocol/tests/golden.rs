//! Golden bytes: what this build writes is what is committed, and what is committed is read as what it was.
//!
//! Owns the promise that stored and travelling bytes stay readable. The rule it keeps: a golden file changes only with a
//! version.

mod support;

use bytes::Bytes;
use governance::{InstanceId, Kind, Outcome, Priority, Reason};
use protocol::audit::{self, Block};
use protocol::completion::{Completions, Replies};
use protocol::envelope::{LaneEnvelope, column};
use protocol::inbox::{self, Parcel};
use protocol::{Lineage, json, text};
use support::{decode_all::decode_all, golden, samples};

#[test]
fn every_format_is_written_as_committed() {
    for (name, fresh) in samples::all() {
        let committed = golden::bytes(name, &fresh);
        // How tightly zstd packs a body is its own affair: a block is compared as it is read, below.
        if name != "audit_block" {
            assert_eq!(text::hex(&fresh), text::hex(&committed), "{name}");
        }
    }
}

#[test]
fn a_committed_lane_envelope_is_read_as_it_was_written() {
    let bytes = golden::bytes("lane_batch", &samples::lane_batch());
    let lane = LaneEnvelope::parse(&bytes).unwrap();
    assert_eq!((lane.instance, lane.sequence, lane.frame.rows()), (samples::SENDER, 10, 6));
    let payloads: Vec<&[u8]> = (0..6).map(|row| lane.payload(row)).collect();
    assert_eq!(payloads, [&b"yes"[..], b"no", b"", b"maybe", b"later", b"never"]);
    assert_eq!((lane.kind(4), lane.kind(5)), (Kind::Request, Kind::Event));
    assert_eq!((lane.text(column::CAPABILITY, 4), lane.text(column::TOPIC, 5)), ("score", "lead_changed"));
    assert_eq!((lane.budget(0).as_millis(), lane.budget(1).as_millis()), (0, 250));
    assert_eq!((lane.lineage(0), lane.lineage(1)), (&[][..], samples::lineage_bytes().as_slice()));
    assert_eq!(lane.text(column::IDEMPOTENCY_KEY, 3), "k3");
    assert_eq!(lane.text(column::REPLY_TOKEN, 0), "caller-1");
}

#[test]
fn a_committed_inbox_envelope_is_read_as_it_was_written() {
    let bytes = Bytes::from(golden::bytes("inbox", &samples::inbox()));
    let parcels = inbox::split(&bytes).unwrap();
    let parcels: Vec<Parcel<'_>> = parcels.iter().map(|p| Parcel::parse(p).unwrap()).collect();
    assert_eq!(parcels.len(), 2);
    let (single, batch) = (&parcels[0], &parcels[1]);
    assert_eq!((single.source, single.lane, single.id(0)), ("lead_bot", Priority::P0, samples::id(9, 0)));
    assert_eq!(single.payload(0), br#"{"lead":17}"#);
    assert_eq!((batch.source, batch.lane, batch.frame.rows()), ("buyer_bot", Priority::P2, 3));
    assert_eq!((batch.id(2).slot, batch.id(2).copy), (3, 2));
    assert_eq!((batch.payload(0), batch.payload(2)), (&b"no"[..], &b"maybe"[..]));
    assert_eq!(batch.deadline(2).since(batch.accepted()).as_millis(), 500);
    assert_eq!(batch.root(0), samples::lineage().root, "it carries a lineage");
    assert_eq!(batch.root(1), batch.id(1), "it carries none");
}

#[test]
fn committed_completions_and_replies_are_read_as_they_were_written() {
    let bytes = golden::bytes("completions", &samples::completions());
    let rows = Completions::parse(&bytes).unwrap();
    assert_eq!(rows.runner, samples::RUNNER);
    assert_eq!([rows.row(0), rows.row(1)], samples::completion_rows());
    let bytes = golden::bytes("replies", &samples::replies());
    let rows = Replies::parse(&bytes).unwrap();
    assert_eq!([rows.row(0), rows.row(1)], samples::reply_rows());
}

#[test]
fn a_committed_lineage_keeps_its_seal() {
    let bytes = golden::bytes("lineage", &samples::lineage_bytes());
    assert_eq!(Lineage::verify(&bytes, &samples::key(), "scoring_engine"), Some(samples::lineage()));
    assert_eq!(
        Lineage::verify(&bytes, &samples::key(), "another_agent"),
        None,
        "it is sealed for its holder"
    );
}

#[test]
fn a_committed_block_is_read_as_it_was_written() {
    let bytes = golden::bytes("audit_block", &samples::block().encode());
    assert_eq!(Block::decode(&bytes).unwrap(), samples::block());
    let head = audit::Head::decode(&bytes).unwrap();
    assert_eq!((head.shard, head.epoch, head.sequence), (17, 5, 42));
    assert_eq!(head.previous, audit::hash(b"the block before"));
}

#[test]
fn payload_hashes_and_block_hashes_are_as_committed() {
    let fresh = format!(
        "{} # keyed hash of `yes`\n{} # hash of the audit block file\n",
        text::hex(&samples::key().hash(b"yes")),
        text::hex(&audit::hash(&golden::bytes("audit_block", &samples::block().encode()))),
    );
    assert_eq!(golden::text("hashes.txt", &fresh), fresh);
}

#[test]
fn the_json_door_reads_and_writes_as_committed() {
    let batch = golden::text("batch.json", include_str!("golden/batch.json"));
    let lane = json::to_lane(batch.as_bytes(), InstanceId(InstanceId::DERIVED), 1).unwrap();
    let lane = LaneEnvelope::parse(&lane).unwrap();
    assert_eq!((lane.instance, lane.sequence, lane.frame.rows()), (samples::SENDER, 12, 2));
    assert_eq!((lane.payload(0), lane.payload(1)), (&br#"{"lead": 17}"#[..], &[0xde, 0xad][..]));
    assert_eq!(lane.text(column::CONTENT_TYPE, 1), json::OCTETS);

    let single = golden::text("dispatch.json", include_str!("golden/dispatch.json"));
    let lane = json::to_lane(single.as_bytes(), InstanceId(InstanceId::DERIVED | 5), 99).unwrap();
    let lane = LaneEnvelope::parse(&lane).unwrap();
    assert_eq!((lane.instance, lane.sequence), (InstanceId(InstanceId::DERIVED | 5), 99));
    assert_eq!(lane.lineage(0), samples::lineage_bytes());

    let done = golden::text("completion.json", include_str!("golden/completion.json"));
    let done = json::to_completions(done.as_bytes()).unwrap();
    let done = Completions::parse(&done).unwrap();
    let row = done.row(0);
    assert_eq!((row.first, row.outcome, row.reason), (samples::id(9, 0), Outcome::Success, Reason::Ok));
    assert_eq!((row.ran_us, row.payload), (1_500, &br#"{"score": 0.5}"#[..]));

    let parcel = samples::parcels();
    let shown = json::inbox(&Parcel::parse(&parcel[0]).unwrap(), 0, "scoring_engine");
    let shown = String::from_utf8(shown).unwrap() + "\n";
    assert_eq!(golden::text("inbox.json", &shown), shown);
}

#[test]
fn no_bit_flipped_in_a_committed_file_makes_a_decoder_panic() {
    for (name, fresh) in samples::all() {
        let committed = golden::bytes(name, &fresh);
        let mut bytes = committed.clone();
        for at in 0..bytes.len() {
            for flip in (0..8).map(|bit| 1 << bit).chain([0xff]) {
                bytes[at] ^= flip;
                decode_all(&bytes);
                bytes[at] ^= flip;
            }
        }
        for len in 0..bytes.len() {
            decode_all(&bytes[..len]);
        }
        assert_eq!(bytes, committed, "{name} was put back");
    }
}
