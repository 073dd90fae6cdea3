//! What balances, and that each way of going wrong is seen.

use super::*;
use crate::ledger::Ledger;

fn record(id: &str, outcome: &str) -> Record {
    Record {
        id: id.to_owned(),
        source: "lead_bot".to_owned(),
        target: "crm_client".to_owned(),
        decision: "admitted".to_owned(),
        outcome: Some(outcome.to_owned()),
        admitted_us: Some(0),
        ..Record::default()
    }
}

fn counts(fill: impl FnOnce(&Ledger)) -> Counts {
    let ledger = Ledger::default();
    fill(&ledger);
    ledger.counts()
}

fn close(counts: &Counts, records: &[Record]) -> Books {
    Books::close(counts, records, &Limits::default())
}

#[test]
fn books_balance_when_sender_handler_and_archive_agree() {
    let counts = counts(|ledger| {
        ledger.ended("d-1", "success");
        ledger.effect("d-1");
        ledger.accepted("d-2");
        ledger.effect("d-2.1");
        ledger.ended("d-3", "rejected");
    });
    let mut fanned = record("d-2", "success");
    fanned.decision = "fanned_out".to_owned();
    let mut refused = record("d-3", "rejected");
    refused.decision = "rejected".to_owned();
    let books = close(&counts, &[record("d-1", "success"), fanned, record("d-2.1", "success"), refused]);
    assert!(books.balance(), "{books:?}");
    assert_eq!((books.accepted, books.completed, books.rejected, books.audited), (3, 2, 1, 3));
    assert!((books.completeness_pct() - 100.0).abs() < f64::EPSILON);
}

#[test]
fn each_way_of_going_wrong_is_seen() {
    let sent = counts(|ledger| ledger.accepted("d-1"));
    let open = Record { outcome: None, ..record("d-1", "") };
    let known = counts(|ledger| ledger.ended("d-1", "success"));
    let twice = counts(|ledger| {
        ledger.accepted("d-1");
        ledger.effect("d-1");
        ledger.effect("d-1");
    });
    for (counts, records, books) in [
        (&sent, vec![], Books { accepted: 1, lost: 1, audit_missing: 1, ..Books::default() }),
        (&known, vec![], Books { accepted: 1, audit_missing: 1, ..Books::default() }),
        (&sent, vec![open], Books { accepted: 1, in_flight: 1, audited: 1, ..Books::default() }),
        (
            &sent,
            vec![record("d-1", "success")],
            Books { accepted: 1, completed: 1, audited: 1, effects_missing: 1, ..Books::default() },
        ),
        (
            &known,
            vec![record("d-1", "timeout")],
            Books { accepted: 1, completed: 1, audited: 1, disagreements: 1, ..Books::default() },
        ),
        (
            &twice,
            vec![record("d-1", "success")],
            Books { accepted: 1, completed: 1, audited: 1, duplicate_effects: 1, ..Books::default() },
        ),
    ] {
        let closed = close(counts, &records);
        assert_eq!(closed, books);
        assert!(!closed.balance());
    }
    assert!(!close(&Counts::default(), &[]).balance(), "empty books prove nothing");
}

#[test]
fn a_copy_on_its_way_is_in_flight() {
    let counts = counts(|ledger| ledger.accepted("d-1"));
    let mut fanned = record("d-1", "success");
    fanned.decision = "fanned_out".to_owned();
    let copy = Record { outcome: None, ..record("d-1.1", "") };
    assert_eq!(close(&counts, &[fanned, copy]).in_flight, 1);
}

#[test]
fn quotas_are_checked_in_every_sliding_second() {
    let at = |us: i64| Record { admitted_us: Some(us), ..record(&format!("d-{us}"), "success") };
    let limit = Limit { rate_per_s: 2, burst: 1 };
    let limits = Limits {
        quotas: BTreeMap::from([("lead_bot".to_owned(), limit)]),
        target_rates: BTreeMap::from([("crm_client".to_owned(), limit)]),
    };
    let within: Vec<Record> = [0, 1, 2, SECOND_US, SECOND_US + 1, SECOND_US + 2].map(at).to_vec();
    assert_eq!(exceeded(&within, &limits), 0);
    let above: Vec<Record> = [0, 1, 2, SECOND_US - 1].map(at).to_vec();
    assert_eq!(exceeded(&above, &limits), 2, "once as the source's quota, once as the target's rate");
    assert_eq!(peak(above.iter().filter_map(|record| record.admitted_us).collect()), 4);
}
