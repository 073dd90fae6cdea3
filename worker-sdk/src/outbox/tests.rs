//! The outbox without a broker: packing, order, sequences, tallies.

use super::*;

fn item(payload: &'static [u8]) -> Item {
    let head = Head { capability: "c".into(), ..Head::new(Kind::Event) };
    Item::new(Arc::new(head), Bytes::from_static(payload), Accept::Nobody, None)
}

fn lane() -> Lane {
    Lane {
        priority: Priority::P2,
        subject: "mesh.in.p2.a.b".into(),
        queue: Mutex::default(),
        room: Semaphore::new(0),
    }
}

fn payloads(batch: &[Item]) -> Vec<&[u8]> {
    batch.iter().map(|i| &i.payload[..]).collect()
}

#[test]
fn an_envelope_holds_no_more_than_the_quota_gives_in_50_ms() {
    let outbox = Outbox::new();
    for (rate, dispatches) in [(10, 1), (100, 5), (200, 10), (1_000_000, ENVELOPE_DISPATCHES_MAX)] {
        outbox.set_rate(rate);
        assert_eq!(outbox.dispatches_max.load(Ordering::Relaxed), dispatches, "at {rate}/s");
    }
}

#[test]
fn what_waits_is_packed_in_its_order() {
    let lane = lane();
    lane.lock().items.extend([item(b"1"), item(b"2"), item(b"3")]);
    assert_eq!(payloads(&lane.take(2).unwrap()), [b"1", b"2"]);
    assert_eq!(payloads(&lane.take(2).unwrap()), [b"3"]);
    assert!(lane.lock().driven, "until it was found empty");
    assert!(lane.take(2).is_none());
    assert!(!lane.lock().driven);
}

#[test]
fn an_envelope_is_closed_at_its_size_and_a_larger_dispatch_goes_alone() {
    static LARGE: [u8; ENVELOPE_BYTES_MAX + 1] = [0; ENVELOPE_BYTES_MAX + 1];
    static HALF: [u8; ENVELOPE_BYTES_MAX / 2] = [0; ENVELOPE_BYTES_MAX / 2];
    let lane = lane();
    lane.lock().items.extend([item(&HALF), item(&HALF), item(&HALF), item(&LARGE), item(b"x")]);
    let sizes: Vec<usize> = std::iter::from_fn(|| lane.take(100).map(|b| b.len())).collect();
    assert_eq!(sizes, [2, 1, 1, 1]);
}

#[test]
fn what_a_full_lane_gave_back_goes_first() {
    let lane = lane();
    lane.lock().items.extend([item(b"1"), item(b"2"), item(b"3")]);
    let batch = lane.take(2).unwrap();
    lane.put_back(batch);
    assert_eq!(payloads(&lane.take(3).unwrap()), [b"1", b"2", b"3"]);
}

#[test]
fn a_request_whose_caller_has_gone_is_not_sent() {
    let lane = lane();
    let (reply, replied) = oneshot::channel();
    let head = Arc::new(Head::new(Kind::Request));
    let waiter = Some(Waiter { reply, progress: None });
    lane.lock().items.push_back(Item::new(head, Bytes::new(), Accept::Nobody, waiter));
    lane.lock().items.push_back(item(b"kept"));
    drop(replied);
    assert_eq!(payloads(&lane.take(9).unwrap()), [b"kept"]);
    assert_eq!(lane.room.available_permits(), 1, "its room is free again");
}

#[test]
fn a_refused_sequence_is_drawn_again_before_a_new_one() {
    let mut sequences = Sequences::default();
    assert_eq!((sequences.draw(), sequences.draw(), sequences.draw()), (1, 2, 3));
    sequences.unused.extend([1, 2]);
    assert_eq!((sequences.draw(), sequences.draw(), sequences.draw()), (1, 2, 4));
}

#[tokio::test]
async fn a_tally_names_consecutive_slots_as_one_run() {
    let tally = Arc::new(Tally::default());
    let shares: Vec<Share> = (0..4).map(|_| tally.one_more()).collect();
    let id = |sequence, slot| DispatchId { instance: governance::InstanceId(1), sequence, slot, copy: 0 };
    for (share, id) in shares.into_iter().zip([id(1, 0), id(1, 1), id(1, 2), id(2, 0)]) {
        share.settle(Ok(id));
    }
    let accepted = tally.finish().await.unwrap();
    assert_eq!(accepted.runs(), [(id(1, 0), 3), (id(2, 0), 1)]);
    assert_eq!((accepted.count(), accepted.ids().count()), (4, 4));
}

#[tokio::test]
async fn a_share_that_is_dropped_counts_as_not_sent() {
    let tally = Arc::new(Tally::default());
    drop(tally.one_more());
    assert_eq!(tally.finish().await.unwrap_err().kind(), ErrorKind::Closed);
}
