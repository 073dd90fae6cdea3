//! Runs are found by any of their slots, and a row that is used again remembers nothing.

use super::*;

fn run(sequence: u64, slot: u16, count: u16, copy: u16) -> OpenRun {
    OpenRun {
        source: AgentIx(0),
        target: AgentIx(1),
        capability: None,
        kind: Kind::Event,
        class: Priority::P2,
        serves_person: false,
        probe: None,
        stands_in: false,
        first: id(sequence, slot, copy),
        count,
        deadline: Timestamp::from_millis(60_000),
        deadline_max: Timestamp::from_millis(60_000),
        admitted: Timestamp::from_millis(1),
        order_key: 0,
    }
}

fn id(sequence: u64, slot: u16, copy: u16) -> DispatchId {
    DispatchId { instance: InstanceId(7), sequence, slot, copy }
}

fn end(open: &mut Open, ix: OpenIx) {
    let count = open.run(ix).count;
    assert!(open.end(ix, 0, count));
    open.forget(ix);
    open.check_invariants();
}

#[test]
fn a_run_of_many_is_found_by_each_of_its_slots() {
    let mut open = Open::new();
    // In the order in which queues let them go, not in that of their slots.
    let runs = [(4, 3), (0, 2), (9, 1)].map(|(slot, count)| open.insert(run(1, slot, count, 0)));
    open.check_invariants();
    for (slot, expected) in [
        (0, Some((runs[1], 0))),
        (1, Some((runs[1], 1))),
        (2, None),
        (4, Some((runs[0], 0))),
        (6, Some((runs[0], 2))),
        (7, None),
        (9, Some((runs[2], 0))),
        (10, None),
    ] {
        assert_eq!(open.find(id(1, slot, 0)), expected, "slot {slot}");
    }
    assert_eq!(open.find(id(1, 4, 1)), None, "a copy that was never made");
    assert_eq!((open.gap(id(1, 2, 0), 10), open.gap(id(1, 7, 0), 1), open.gap(id(1, 10, 0), 5)), (2, 1, 5));
    end(&mut open, runs[0]);
    assert_eq!(open.find(id(1, 5, 0)), None);
    assert_eq!(open.gap(id(1, 2, 0), 100), 7, "up to slot 9");
    end(&mut open, runs[1]);
    end(&mut open, runs[2]);
    assert!(!open.has_envelope(InstanceId(7), 1));
}

#[test]
fn a_row_that_is_used_again_remembers_nothing() {
    let mut open = Open::new();
    for sequence in 1..=3 {
        let long = [0, 50, 100].map(|slot| open.insert(run(sequence, slot, 10, 0)));
        long.into_iter().for_each(|ix| end(&mut open, ix));
        assert_eq!(open.spare.len(), 1, "one row serves all");
    }
    let short = [0, 3].map(|slot| open.insert(run(9, slot, 1, 0)));
    assert_eq!(open.find(id(9, 50, 0)), None);
    assert_eq!(open.gap(id(9, 4, 0), 200), 200);
    short.into_iter().for_each(|ix| end(&mut open, ix));
}

#[test]
fn copies_share_slots_with_what_is_sent_once() {
    let mut open = Open::new();
    let plain = [0, 2].map(|slot| open.insert(run(1, slot, 2, 0)));
    let copies = [1, 2].map(|copy| open.insert(run(1, 4, 1, copy)));
    open.check_invariants();
    assert_eq!(open.find(id(1, 3, 0)), Some((plain[1], 1)));
    assert_eq!(open.find(id(1, 4, 2)), Some((copies[1], 0)));
    assert_eq!(open.find(id(1, 4, 0)), None);
    plain.into_iter().chain(copies).for_each(|ix| end(&mut open, ix));
    assert!(!open.has_envelope(InstanceId(7), 1));
}
