//! Rows checked against a reader of PostgreSQL's binary COPY format of its own.

use super::*;
use governance::{Decision, InstanceId, Kind, Outcome, Priority, Reason};
use protocol::audit::Note;
use protocol::redis::Head;

type Row = Vec<Option<Vec<u8>>>;

/// Reads a COPY as PostgreSQL would.
fn read(copy: &[u8]) -> Vec<Row> {
    assert_eq!(&copy[..11], b"PGCOPY\n\xff\r\n\0");
    assert_eq!(&copy[11..19], &[0; 8]);
    let mut rest = &copy[19..];
    let mut take = |n: usize| {
        let (head, tail) = rest.split_at(n);
        rest = tail;
        head.to_vec()
    };
    let mut rows = Vec::new();
    loop {
        let columns = i16::from_be_bytes(take(2).try_into().unwrap());
        if columns < 0 {
            break;
        }
        rows.push(
            (0..columns)
                .map(|_| match i32::from_be_bytes(take(4).try_into().unwrap()) {
                    -1 => None,
                    n => Some(take(n as usize)),
                })
                .collect(),
        );
    }
    assert!(rest.is_empty(), "nothing follows the end mark");
    rows
}

fn i32_of(row: &Row, column: usize) -> i32 {
    i32::from_be_bytes(row[column].clone().unwrap().try_into().unwrap())
}

fn i64_of(row: &Row, column: usize) -> i64 {
    i64::from_be_bytes(row[column].clone().unwrap().try_into().unwrap())
}

const MORNING: Timestamp = Timestamp::from_millis(1_771_061_000_000);

fn first(slot: u16) -> DispatchId {
    DispatchId { instance: InstanceId(InstanceId::DERIVED | 7), sequence: 42, slot, copy: 0 }
}

fn decision_row(count: u16) -> DecisionRow {
    DecisionRow {
        first: first(3),
        count,
        lane_sequence: 9,
        lane: Priority::P0,
        class: Priority::P1,
        accepted: MORNING,
        decided: Timestamp(MORNING.0 + 1_500),
        source: "lead_bot".into(),
        target: "intent_decoder".into(),
        capability: "analyze_lead".into(),
        kind: Kind::Request,
        decision: Decision::Admitted,
        reason: Reason::DemotedFromP0,
        outcome: None,
        deadline: Timestamp(MORNING.0 + 30_000_000_000),
        serves_person: true,
        root: None,
        parent: Some(first(1)),
        conversation: "".into(),
        order_key: 0,
        envelope: Some(0),
        hashes: (0..count).map(|i| [i as u8; 16]).collect(),
        reply_token: "".into(),
    }
}

fn completion_row(count: u16, completed: Timestamp) -> CompletionRow {
    CompletionRow {
        first: first(3),
        count,
        completed,
        source: "lead_bot".into(),
        target: "intent_decoder".into(),
        outcome: Outcome::Success,
        reason: Reason::Ok,
        late: false,
        lane_us: 1,
        inbox_us: 2,
        ran_us: u32::MAX,
        latency_us: 4,
        attempt: 1,
        runner: InstanceId(0),
        response: [0; 16],
    }
}

fn rows_of(block: Block) -> BTreeMap<(Table, Day), Vec<Row>> {
    let bytes = block.encode();
    let id = EntryId { epoch: block.epoch, sequence: block.sequence };
    let head = Head { id, hash: protocol::audit::hash(&bytes) };
    let mut rows = Rows::default();
    rows.add(&Checked { block, head }, &bytes);
    rows.into_copies().map(|(table, day, copy)| ((table, day), read(&copy))).collect()
}

fn block() -> Block {
    Block {
        shard: 5,
        epoch: 2,
        sequence: 8,
        at: MORNING,
        previous: [1; 32],
        policy_version: 3,
        decisions: Vec::new(),
        completions: Vec::new(),
        notes: Vec::new(),
    }
}

#[test]
fn every_table_has_as_many_columns_as_its_rows_announce() {
    for table in Table::ALL {
        assert_eq!(table.columns().split(',').count(), usize::from(table.width()), "{}", table.name());
    }
}

#[test]
fn a_run_is_one_row_with_the_hashes_of_its_slots_end_to_end() {
    let found = rows_of(Block { decisions: vec![decision_row(3)], ..block() });
    let rows = &found[&(Table::Decisions, Day::of(MORNING))];
    let [row] = rows.as_slice() else { panic!("one row: {rows:?}") };
    assert_eq!(row.len(), usize::from(Table::Decisions.width()));
    assert_eq!(i64_of(row, 0).cast_unsigned(), InstanceId::DERIVED | 7);
    assert_eq!(i64_of(row, 1), 42);
    assert_eq!((i32_of(row, 2), i32_of(row, 4)), (3, 3));
    let hashes: Vec<u8> = (0..3).flat_map(|i| [i; 16]).collect();
    assert_eq!(row[30].as_deref(), Some(&hashes[..]));
    assert_eq!(row[26].as_deref(), Some(&b"lead_bot"[..]));
    // Neither outcome, nor root, nor conversation.
    assert!([8, 25, 29].iter().all(|column| row[*column].is_none()));
    assert_eq!(i32_of(row, 14), 1, "the parent's slot stays");
    // Nanoseconds are cut, not rounded; PostgreSQL counts from the year 2000.
    assert_eq!(i64_of(row, 6), MORNING.as_micros().cast_signed() + 1 - 946_684_800_000_000);
}

#[test]
fn an_end_says_what_is_the_same_for_its_slots_once_and_absent_things_are_null() {
    let found = rows_of(Block { completions: vec![completion_row(2, MORNING)], ..block() });
    let rows = &found[&(Table::Completions, Day::of(MORNING))];
    let [row] = rows.as_slice() else { panic!("one row: {rows:?}") };
    assert_eq!((i32_of(row, 2), i32_of(row, 4)), (3, 2));
    assert_eq!((i64_of(row, 8), i64_of(row, 10)), (2, i64::from(u32::MAX)));
    assert!([5, 9, 11, 13, 23].iter().all(|column| row[*column].is_none()), "{row:?}");
}

#[test]
fn ends_that_differ_in_their_times_are_one_row_in_the_order_of_slots() {
    let end = |slot, ran_us| {
        let alike = completion_row(1, MORNING);
        CompletionRow {
            first: first(slot),
            inbox_us: slot.into(),
            ran_us,
            response: [slot as u8; 16],
            ..alike
        }
    };
    let other = CompletionRow { outcome: Outcome::Failure, ..end(5, 1) };
    let completions = vec![end(4, u32::MAX), other, end(3, 1), end(6, 9)];
    let found = rows_of(Block { completions, ..block() });
    let rows = &found[&(Table::Completions, Day::of(MORNING))];
    assert_eq!(rows.len(), 2, "one has another outcome");
    let array = |column: usize| crate::copy::i32_array(rows[0][column].as_deref().unwrap()).unwrap();
    assert_eq!((i32_of(&rows[0], 2), i32_of(&rows[0], 4)), (3, 3));
    let slots = crate::copy::bits(rows[0][5].as_deref().unwrap()).unwrap();
    assert_eq!(slots, [0, 1, 3]);
    assert_eq!((array(9), array(11)), (vec![3, 4, 6], vec![1, -1, 9]));
    assert!(rows[0][8].is_none() && rows[0][10].is_none());
    assert_eq!(rows[0][23].as_deref(), Some([[3; 16], [4; 16], [6; 16]].as_flattened()));
    assert_eq!(rows[1][23].as_deref(), Some(&[5; 16][..]));
}

#[test]
fn an_end_that_was_told_twice_stands_in_two_rows() {
    let late =
        |slot, count| CompletionRow { late: true, first: first(slot), ..completion_row(count, MORNING) };
    let found = rows_of(Block { completions: vec![late(5, 1), late(3, 2), late(4, 1)], ..block() });
    let rows = &found[&(Table::Completions, Day::of(MORNING))];
    let runs: Vec<_> = rows.iter().map(|row| (i32_of(row, 2), i32_of(row, 4))).collect();
    assert_eq!(runs, [(3, 3), (4, 1)]);
}

#[test]
fn no_run_is_longer_than_an_envelope_can_be() {
    let long = completion_row(60_000, MORNING);
    let found = rows_of(Block { completions: vec![long.clone(), long], ..block() });
    let rows = &found[&(Table::Completions, Day::of(MORNING))];
    assert_eq!(rows.iter().map(|row| i32_of(row, 4)).collect::<Vec<_>>(), [60_000, 60_000]);
}

#[test]
fn each_row_goes_to_the_day_of_its_own_moment() {
    let next = Timestamp((u64::from(Day::of(MORNING).0) + 1) * 86_400_000_000_000);
    let completions = vec![completion_row(1, MORNING), completion_row(1, next)];
    let found = rows_of(Block { completions, ..block() });
    assert_eq!(found[&(Table::Completions, Day::of(MORNING))].len(), 1);
    assert_eq!(found[&(Table::Completions, Day::of(next))].len(), 1);
    assert_eq!(found[&(Table::Blocks, Day::of(MORNING))].len(), 1);
}

#[test]
fn the_block_itself_is_kept_with_the_number_of_its_records() {
    let note = Note { kind: "breaker".into(), at: MORNING, agent: "".into(), body: "nul \0 inside".into() };
    let whole = Block {
        decisions: vec![decision_row(3)],
        completions: vec![completion_row(2, MORNING)],
        notes: vec![note],
        ..block()
    };
    let bytes = whole.encode();
    let found = rows_of(whole);
    let row = &found[&(Table::Blocks, Day::of(MORNING))][0];
    assert_eq!(i32_of(row, 4), 6);
    assert_eq!(row[7].as_deref(), Some(&bytes[..]));
    let note = &found[&(Table::Notes, Day::of(MORNING))][0];
    assert!(note[5].is_none());
    assert_eq!(note[6].as_deref(), Some("nul \u{fffd} inside".as_bytes()));
}
