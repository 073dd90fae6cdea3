//! The outbox without a broker: packing, order, sequences, tallies.

use governance::Kind;
use tokio::sync::oneshot;

use super::*;
use crate::waiters::Waiter;

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

fn many(payloads: &[&'static [u8]], tally: &Arc<Tally>) -> Item {
    let share = tally.more(payloads.len());
    Item::many(item(b"").head, payloads.iter().map(|p| Bytes::from_static(p)).collect(), share)
}

fn payloads(batch: &[Item]) -> Vec<&[u8]> {
    batch.iter().flat_map(|i| (0..i.count()).map(|nth| &i.payload(nth)[..])).collect()
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

#[tokio::test]
async fn what_was_handed_over_together_is_cut_to_envelopes_and_each_part_is_accepted() {
    static HALF: [u8; ENVELOPE_BYTES_MAX / 2] = [0; ENVELOPE_BYTES_MAX / 2];
    static LARGE: [u8; ENVELOPE_BYTES_MAX + 1] = [0; ENVELOPE_BYTES_MAX + 1];
    let (lane, tally) = (lane(), Arc::new(Tally::default()));
    lane.lock().items.extend([item(b"1"), many(&[b"2", b"3", b"4", b"5"], &tally), item(b"6")]);
    lane.lock().items.push_back(many(&[&HALF, &HALF, &LARGE, &HALF], &tally));
    let mut sent = Vec::new();
    for sequence in 1.. {
        let Some(batch) = lane.take(3) else { break };
        sent.push(payloads(&batch).iter().map(|p| p.len()).collect::<Vec<_>>());
        let mut slot = 0;
        for item in batch {
            let id = DispatchId { instance: governance::InstanceId(1), sequence, slot, copy: 0 };
            slot += item.count() as u16;
            if let Accept::Many(share) = item.accept {
                share.settle(Ok(id));
            }
        }
    }
    let (half, large) = (HALF.len(), LARGE.len());
    assert_eq!(sent, [vec![1, 1, 1], vec![1, 1, 1], vec![half, half], vec![large], vec![half]]);
    let accepted = tally.finish().await.unwrap();
    let runs = accepted.runs().iter().map(|(first, count)| (first.sequence, first.slot, *count));
    assert_eq!(runs.collect::<Vec<_>>(), [(1, 1, 2), (2, 0, 2), (3, 0, 2), (4, 0, 1), (5, 0, 1)]);
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
    let shares: Vec<Share> = (0..4).map(|_| tally.more(1)).collect();
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
    drop(tally.more(1));
    assert_eq!(tally.finish().await.unwrap_err().kind(), ErrorKind::Closed);
}
