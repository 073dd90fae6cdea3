//! Deadlines, retries, hops, cancellation, more time.

use std::time::Duration;

use governance::{Admission, DispatchId, Event, Lineage, Outcome, Timestamp};

use super::world;
use crate::kit::admitted;

#[test]
fn what_expires_in_the_lane_ends_as_a_timeout_without_a_turn() {
    let mut world = world();
    world.apply(Event::SetPaused { target: world.ix("crm_client"), paused: true });
    let call = world.call("crm_client", "sync_contact");
    world.send("lead_bot", call.within_ms(500).times(4));
    world.send("lead_bot", call.within_ms(900).times(2));
    world.now = Timestamp(world.now.0 + 600_000_000);
    let effects = world.apply(Event::Tick);
    assert_eq!(world.told(&effects), ["end 4 timeout expired_in_lane"]);
}

#[test]
fn a_child_s_deadline_is_never_later_than_its_parent_s() {
    let mut world = world();
    let deadline = Timestamp(world.now.0 + 700_000_000);
    let lineage = Lineage::Child { hops: 1, repeats: 0, serves_person: false, deadline };
    for call in
        [world.call("intent_decoder", "analyze_lead"), world.call("crm_client", "sync_contact").event()]
    {
        world.send("lead_bot", call.child(lineage));
        assert_eq!(world.running.pop().unwrap().deadline, deadline);
    }
}

#[test]
fn budgets_have_defaults_and_an_upper_bound() {
    let mut world = world();
    let begin = world.now;
    let call = world.call("intent_decoder", "analyze_lead");
    let after = |s| begin.after(Duration::from_secs(s));
    for (call, deadline) in [
        (call, after(30)),
        (call.event(), after(86_400)),
        (call.within_ms(5_000), after(5)),
        (call.within_ms(999_999_999), after(3_600)),
    ] {
        world.send("lead_bot", call);
        assert_eq!(world.running.pop().unwrap().deadline, deadline);
    }
}

#[test]
fn a_failed_event_is_tried_five_times_and_then_goes_to_the_dead_letter_queue() {
    let mut world = world();
    let event = world.call("intent_decoder", "analyze_lead").event();
    world.send("lead_bot", event);
    let admission = world.running[0];
    let mut told = Vec::new();
    for attempt in 1..=5 {
        let effects = world.complete(&admission, Outcome::Failure, 1, attempt);
        told.extend(world.told(&effects).into_iter().filter(|l| !l.starts_with("breaker")));
    }
    assert_eq!(
        told,
        [
            "retry attempt 2 after 1s",
            "retry attempt 3 after 2s",
            "retry attempt 4 after 4s",
            "retry attempt 5 after 8s",
            "dead letter after 5",
            "close 0+1 failure attempts_exhausted",
        ]
    );
}

#[test]
fn a_failed_request_goes_back_to_its_caller() {
    let mut world = world();
    let call = world.call("intent_decoder", "analyze_lead");
    world.send("lead_bot", call);
    let admission = world.running[0];
    let effects = world.end(&admission, Outcome::Failure, 1);
    assert_eq!(world.told(&effects), ["close 0+1 failure handler_failed"]);
}

#[test]
fn chains_that_are_too_long_or_turn_in_circles_are_rejected() {
    let mut world = world();
    let call = world.call("intent_decoder", "analyze_lead");
    let child =
        |hops, repeats| Lineage::Child { hops, repeats, serves_person: false, deadline: Timestamp::MAX };
    for (lineage, told) in [
        (child(16, 2), "admit lead_bot>intent_decoder 1 P2 ok"),
        (child(17, 0), "end 1 rejected too_many_hops"),
        (child(5, 3), "end 1 rejected loop"),
        (Lineage::Invalid, "end 1 rejected invalid_lineage"),
    ] {
        let effects = world.send("lead_bot", call.child(lineage));
        assert_eq!(world.told(&effects), [told]);
    }
}

#[test]
fn the_first_outcome_wins_and_what_comes_later_is_late() {
    let mut world = world();
    let call = world.call("intent_decoder", "analyze_lead").within_ms(100);
    world.send("lead_bot", call);
    let admission = world.running[0];
    world.pass_ms(200);
    let effects = world.end(&admission, Outcome::Success, 150);
    assert_eq!(world.told(&effects), ["late 0+1"]);
}

#[test]
fn a_handler_that_fails_because_its_deadline_came_has_timed_out() {
    let mut world = world();
    let call = world.call("intent_decoder", "analyze_lead").within_ms(100);
    world.send("lead_bot", call.times(2));
    let admission = world.running[0];
    world.now = Timestamp(admission.deadline.0 - 1);
    let effects = world.end(&Admission { count: 1, ..admission }, Outcome::Failure, 99);
    assert_eq!(world.told(&effects), ["close 0+1 failure handler_failed"]);
    world.now = admission.deadline;
    let effects = world.end(&Admission { first: 1, count: 1, ..admission }, Outcome::Failure, 100);
    assert_eq!(world.told(&effects)[0], "close 1+1 timeout expired_running");
}

#[test]
fn a_completion_by_another_than_the_target_is_late() {
    let mut world = world();
    let call = world.call("intent_decoder", "analyze_lead");
    world.send("lead_bot", call);
    let forged = Admission { target: world.ix("crm_client"), ..world.running[0] };
    let effects = world.end(&forged, Outcome::Success, 1);
    assert_eq!(world.told(&effects), ["late 0+1"]);
    assert!(world.governor.is_open(world.id(&forged)));
}

#[test]
fn part_of_a_run_ends_and_the_rest_stays_open() {
    let mut world = world();
    let call = world.call("intent_decoder", "analyze_lead").within_ms(1_000);
    world.send("lead_bot", call.times(10));
    let all = world.running[0];
    let middle = Admission { first: 3, count: 4, ..all };
    let effects = world.end(&middle, Outcome::Success, 1);
    assert_eq!(world.told(&effects), ["close 3+4 success ok"]);
    let effects = world.complete(&all, Outcome::Success, 1, 1);
    assert_eq!(world.told(&effects), ["close 0+3 success ok", "late 3+4", "close 7+3 success ok"]);
    assert_eq!(world.governor.open_dispatches(), 0);
}

#[test]
fn a_caller_withdraws_what_waits_and_what_runs() {
    let mut world = world();
    let source = world.ix("lead_bot");
    let call = world.call("intent_decoder", "analyze_lead");
    world.send("lead_bot", call.times(20));
    let first = world.id(&world.running[0]);
    let running = DispatchId { slot: 4, ..first };
    let effects = world.apply(Event::Cancel { source, id: running });
    assert_eq!(
        world.told(&effects),
        ["close 4+1 cancelled cancelled_by_caller", "revoke intent_decoder 4+1"]
    );
    let waiting = DispatchId { slot: 15, ..first };
    let effects = world.apply(Event::Cancel { source, id: waiting });
    assert_eq!(world.told(&effects), ["end 1 cancelled cancelled_by_caller"]);
    let stranger = world.ix("bi_dashboard");
    assert_eq!(world.apply(Event::Cancel { source: stranger, id: first }), []);
    let effects = world.apply(Event::Cancel { source, id: waiting });
    assert_eq!(effects, [], "it has ended");
    assert_eq!(admitted(&world.pass_ms(200)), 9);
}

#[test]
fn a_handler_gets_more_time_within_the_bounds() {
    let mut world = world();
    let source = world.ix("lead_bot");
    let call = world.call("intent_decoder", "analyze_lead").within_ms(1_000);
    world.send("lead_bot", call.times(2));
    let admission = world.running[0];
    let id = world.id(&admission);
    let effects = world.apply(Event::Extend { source, id, by: Duration::from_secs(4) });
    assert_eq!(world.told(&effects), ["extended to 5000"]);
    let effects = world.pass_ms(1_100);
    assert_eq!(
        world.told(&effects),
        ["close 1+1 timeout expired_unknown", "revoke intent_decoder 1+1"],
        "the other dispatch of the run keeps its deadline"
    );
    let effects = world.apply(Event::Extend { source, id, by: Duration::from_secs(999_999) });
    assert_eq!(world.told(&effects), ["extended to 3600000"]);
    let effects = world.pass_ms(3_600_000);
    assert!(world.told(&effects).contains(&"close 0+1 timeout expired_unknown".to_owned()));
}
