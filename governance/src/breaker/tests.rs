//! The breaker alone, second by second.

use std::time::Duration;

use super::*;

const RULES: fn() -> BreakerPolicy = BreakerPolicy::default;

fn at(s: u64) -> Timestamp {
    Timestamp::from_millis(1_000_000 + s * 1_000)
}

fn runs(breaker: &mut Breaker, s: u64, count: u32, failed: bool, over: bool) -> Option<Reason> {
    let change = breaker.on_ran(at(s), &RULES(), Ran { count, failed, over });
    breaker.check_invariants();
    change.map(|c| c.reason)
}

const OK: bool = false;
const FAILED: bool = true;

#[test]
fn an_error_rate_of_ten_percent_passes_and_more_trips() {
    let mut breaker = Breaker::new();
    for _ in 0..2 {
        assert_eq!(runs(&mut breaker, 0, 9, OK, false), None);
        assert_eq!(runs(&mut breaker, 0, 1, FAILED, false), None);
    }
    assert_eq!(runs(&mut breaker, 1, 1, FAILED, false), Some(Reason::ErrorRate));
    assert_eq!(breaker.state(), BreakerState::Tripped);
}

#[test]
fn fewer_than_twenty_samples_trip_only_by_five_failures_in_a_row() {
    let mut breaker = Breaker::new();
    for _ in 0..3 {
        assert_eq!(runs(&mut breaker, 0, 4, FAILED, false), None);
        assert_eq!(runs(&mut breaker, 0, 1, OK, false), None);
    }
    let mut breaker = Breaker::new();
    assert_eq!(runs(&mut breaker, 0, 4, FAILED, false), None);
    assert_eq!(runs(&mut breaker, 0, 1, FAILED, false), Some(Reason::FailuresInRow));
}

#[test]
fn more_than_five_percent_over_the_sla_trip() {
    let mut breaker = Breaker::new();
    assert_eq!(runs(&mut breaker, 0, 38, OK, false), None);
    assert_eq!(runs(&mut breaker, 0, 2, OK, true), None);
    assert_eq!(runs(&mut breaker, 0, 1, OK, true), Some(Reason::SlaExceeded));
}

#[test]
fn what_is_older_than_thirty_seconds_does_not_count() {
    let mut breaker = Breaker::new();
    assert_eq!(runs(&mut breaker, 0, 4, FAILED, false), None);
    assert_eq!(runs(&mut breaker, 30, 25, OK, false), None);
    assert_eq!(breaker.facts().samples, 25);
    assert_eq!(breaker.facts().errors, 0);
    assert_eq!(runs(&mut breaker, 1_000, 1, OK, false), None);
    assert_eq!(breaker.facts().samples, 1);
}

#[test]
fn runs_still_going_past_their_bound_count_as_over() {
    let mut breaker = Breaker::new();
    assert_eq!(runs(&mut breaker, 0, 30, OK, false), None);
    assert!(breaker.on_running_over(at(1), &RULES(), 1).is_none());
    let change = breaker.on_running_over(at(2), &RULES(), 2).unwrap();
    assert_eq!((change.reason, change.samples, change.over), (Reason::SlaExceeded, 32, 2));
}

#[test]
fn a_probe_is_due_after_thirty_seconds_and_its_success_passes() {
    let mut breaker = Breaker::new();
    runs(&mut breaker, 0, 5, FAILED, false);
    assert!(!breaker.probe_is_due(at(29)));
    assert!(breaker.probe_is_due(at(30)));
    assert_eq!(breaker.begin_probe(at(30), &RULES(), false).to, BreakerState::Probing);
    assert!(!breaker.probe_is_due(at(31)), "one probe at a time");
    let change = breaker.on_probe(at(31), &RULES(), true).unwrap();
    assert_eq!((change.to, change.reason), (BreakerState::Passing, Reason::ProbeSucceeded));
    assert_eq!(breaker.facts().errors, 0);
}

#[test]
fn a_probe_that_fails_or_is_never_heard_of_trips_again() {
    let mut breaker = Breaker::new();
    runs(&mut breaker, 0, 5, FAILED, false);
    breaker.begin_probe(at(30), &RULES(), false);
    assert_eq!(breaker.on_probe(at(31), &RULES(), false).unwrap().reason, Reason::ProbeFailed);
    assert!(!breaker.probe_is_due(at(60)));
    breaker.begin_probe(at(61), &RULES(), true);
    assert!(breaker.on_probe_overdue(at(90), &RULES()).is_none());
    assert_eq!(breaker.on_probe_overdue(at(91), &RULES()).unwrap().reason, Reason::ProbeFailed);
}

#[test]
fn a_heartbeat_answers_a_ping_unless_runs_are_stuck() {
    let mut breaker = Breaker::new();
    runs(&mut breaker, 0, 5, FAILED, false);
    assert!(breaker.on_sign_of_life(at(1), &RULES()).is_none(), "no ping was sent");
    breaker.begin_probe(at(30), &RULES(), true);
    breaker.on_running_over(at(31), &RULES(), 3);
    assert!(breaker.on_sign_of_life(at(31), &RULES()).is_none());
    breaker.on_running_over(at(32), &RULES(), 0);
    assert_eq!(breaker.on_sign_of_life(at(32), &RULES()).unwrap().to, BreakerState::Passing);
}

#[test]
fn what_an_operator_trips_waits_for_the_operator() {
    let mut breaker = Breaker::new();
    assert_eq!(breaker.on_operator(at(0), true).unwrap().reason, Reason::Operator);
    assert!(breaker.on_operator(at(0), true).is_none());
    assert!(!breaker.probe_is_due(at(0).after(Duration::from_secs(86_400))));
    assert_eq!(breaker.on_operator(at(1), false).unwrap().to, BreakerState::Passing);
    assert!(breaker.on_operator(at(1), false).is_none());
}

#[test]
fn a_restored_breaker_is_probed_like_any_other() {
    let mut breaker = Breaker::new();
    breaker.restore(at(0), &RULES(), BreakerState::Probing, Reason::ProbeDue);
    assert_eq!(breaker.state(), BreakerState::Tripped);
    assert!(breaker.probe_is_due(at(30)));
}

#[test]
fn a_restored_breaker_that_an_operator_tripped_waits_for_an_operator() {
    let mut breaker = Breaker::new();
    breaker.restore(at(0), &RULES(), BreakerState::Tripped, Reason::Operator);
    assert!(!breaker.probe_is_due(at(86_400)));
    assert_eq!(breaker.on_operator(at(1), false).unwrap().to, BreakerState::Passing);
}
