//! One target, several homes: who counts and reports, who decides, who is told. What is asked for stands in `grants.rs`.

use std::time::Duration;

use governance::{
    BreakerState, Effect, Encoding, Event, Fallback, HomeId, Kind, Lane, Outcome, Priority, Reason,
    Registration, TargetReport, Timestamp,
};

use super::{platform, policy};
use crate::kit::{Refine, World, admitted, agent};

/// The home of the callers.
pub(super) fn callers_home() -> World {
    World::home_of(&["people", "lead_bot", "bi_dashboard"], policy(), &platform())
}

/// The home of what they call.
pub(super) fn targets_home() -> World {
    World::home_of(&["handoff_service", "crm_client"], policy(), &platform())
}

pub(super) const HOME: HomeId = HomeId { shard: 61, epoch: 7 };

pub(super) fn report(finished: u64, errors: u64, streak: u32) -> TargetReport {
    TargetReport { finished, errors, streak, ..TargetReport::default() }
}

pub(super) fn reported(world: &mut World, from: HomeId, report: TargetReport) -> Vec<String> {
    let target = world.ix("handoff_service");
    let effects = world.apply(Event::TargetReported { target, from, report });
    world.told(&effects)
}

/// The target's home says how its breaker stands since now.
pub(super) fn known(world: &mut World, state: BreakerState, reason: Reason) -> Vec<String> {
    let target = world.ix("handoff_service");
    let since = world.now;
    let mut effects = world.apply(Event::BreakerKnown { target, state, reason, since });
    effects.extend(world.turn());
    world.told(&effects)
}

pub(super) fn only(told: &[String], what: &str) -> Vec<String> {
    told.iter().filter(|line| line.starts_with(what)).cloned().collect()
}

#[test]
fn a_home_pulls_the_lanes_of_its_own_agents_only() {
    let mut world = World::of(governance::Shards::one(61), policy());
    for registration in platform() {
        for effect in world.apply(Event::AgentRegistered { registration: &registration }) {
            let Effect::Pull { lane: Lane { source, .. }, .. } = effect else { continue };
            assert_eq!(world.name(source), "lead_bot");
        }
    }
}

#[test]
fn the_first_report_goes_before_anything_has_ended() {
    let mut world = callers_home();
    let call = world.call("handoff_service", "evaluate");
    let effects = world.send("lead_bot", call);
    assert_eq!(
        world.told(&effects),
        ["admit lead_bot>handoff_service 1 P2 ok", "report handoff_service 0 finished 0 errors 0 over"]
    );
    let Some(Effect::Report { report, .. }) = effects.last() else { panic!("{effects:?}") };
    assert_eq!(report.in_flight, 1);
}

#[test]
fn a_failure_is_reported_at_once_and_again_a_success_within_a_quarter_of_a_second() {
    let mut world = callers_home();
    let call = world.call("handoff_service", "evaluate");
    world.send("lead_bot", call.times(3));
    world.pass_ms(500);
    let mut running = world.running[0];
    running.count = 1;
    let effects = world.complete(&running, Outcome::Success, 5, 1);
    assert_eq!(only(&world.told(&effects), "report"), Vec::<String>::new());
    let effects = world.pass_ms(300);
    assert_eq!(only(&world.told(&effects), "report"), ["report handoff_service 1 finished 0 errors 0 over"]);
    running.first = 1;
    let effects = world.complete(&running, Outcome::Failure, 5, 1);
    assert_eq!(only(&world.told(&effects), "report"), ["report handoff_service 2 finished 1 errors 0 over"]);
    running.first = 2;
    let effects = world.complete(&running, Outcome::Success, 601, 1);
    assert_eq!(only(&world.told(&effects), "report"), Vec::<String>::new(), "not within ten milliseconds");
    let effects = world.pass_ms(10);
    assert_eq!(only(&world.told(&effects), "report"), ["report handoff_service 3 finished 1 errors 1 over"]);
    let effects = world.pass_ms(5_000);
    let told = only(&world.told(&effects), "report");
    assert_eq!(
        told,
        ["report handoff_service 3 finished 1 errors 1 over"],
        "once more, then nothing changes"
    );
}

#[test]
fn gauges_are_told_each_second_while_something_is_in_flight() {
    let mut world = callers_home();
    let call = world.call("handoff_service", "evaluate");
    world.send("lead_bot", call);
    let effects = world.pass_ms(10_000);
    let reports = only(&world.told(&effects), "report").len();
    assert!((5..=10).contains(&reports), "{reports} reports in ten seconds");
    world.end_all(5);
    let effects = world.pass_ms(10_000);
    assert_eq!(only(&world.told(&effects), "report").len(), 1, "the last that something changed");
}

#[test]
fn own_and_reported_runs_trip_together_and_only_at_the_target_s_home() {
    let mut agents = platform();
    agents[2] = agents[2].clone().needs(&["handoff_service"]);
    let names = ["handoff_service", "intent_decoder"];
    let mut world = World::home_of(&names, policy(), &agents);
    let call = world.call("handoff_service", "evaluate");
    world.send("intent_decoder", call.times(2));
    let running = world.running[0];
    assert_eq!(reported(&mut world, HOME, report(40, 0, 0)), Vec::<String>::new(), "the base");
    assert_eq!(reported(&mut world, HOME, report(43, 3, 3)), Vec::<String>::new(), "three in a row");
    let effects = world.end(&running, Outcome::Failure, 5);
    assert_eq!(
        only(&world.told(&effects), "breaker"),
        ["breaker handoff_service passing>tripped failures_in_row"],
        "and two here"
    );
    assert_eq!(reported(&mut world, HOME, report(90, 50, 9)), Vec::<String>::new(), "tripped once");

    let mut callers = callers_home();
    let call = callers.call("handoff_service", "evaluate");
    for _ in 0..30 {
        let effects = callers.send("lead_bot", call);
        let Some(Effect::Admit(admission)) = effects.first() else { panic!("{effects:?}") };
        let effects = callers.end(&admission.clone(), Outcome::Failure, 5);
        assert_eq!(only(&callers.told(&effects), "breaker"), Vec::<String>::new());
        callers.pass_ms(20);
    }
}

#[test]
fn a_success_elsewhere_ends_the_row_and_what_failed_behind_it_begins_one() {
    let mut world = targets_home();
    reported(&mut world, HOME, report(0, 0, 0));
    reported(&mut world, HOME, report(4, 4, 4));
    assert_eq!(reported(&mut world, HOME, report(8, 7, 2)), Vec::<String>::new(), "two behind a success");
    assert_eq!(reported(&mut world, HOME, report(10, 9, 4)), Vec::<String>::new());
    assert_eq!(
        reported(&mut world, HOME, report(11, 10, 5)),
        ["breaker handoff_service passing>tripped failures_in_row"]
    );
}

#[test]
fn the_error_rate_counts_over_all_homes() {
    let mut world = targets_home();
    for shard in 0..4 {
        let from = HomeId { shard, epoch: 1 };
        reported(&mut world, from, report(0, 0, 0));
        let told = reported(&mut world, from, report(8, 1, 0));
        // 8 of them say nothing, 16 neither; of 24 three are more than a tenth.
        let expected: &[&str] =
            if shard == 2 { &["breaker handoff_service passing>tripped error_rate_exceeded"] } else { &[] };
        assert_eq!(told, expected);
    }
}

#[test]
fn an_older_ownership_of_a_shard_counts_for_nothing() {
    let mut world = targets_home();
    reported(&mut world, HomeId { epoch: 8, ..HOME }, report(0, 0, 0));
    reported(&mut world, HomeId { epoch: 7, ..HOME }, report(0, 0, 0));
    assert_eq!(reported(&mut world, HomeId { epoch: 7, ..HOME }, report(9, 9, 9)), Vec::<String>::new());
    let told = reported(&mut world, HomeId { epoch: 9, ..HOME }, report(5, 5, 5));
    assert_eq!(
        told,
        ["breaker handoff_service passing>tripped failures_in_row"],
        "a later one counts from zero"
    );
}

#[test]
fn what_goes_to_a_target_that_tripped_elsewhere_is_answered_and_events_wait() {
    let mut agents = platform();
    agents[3] = agents[3].clone().falls_back("history", Fallback::Static("[]".to_owned()));
    let mut world = World::home_of(&["lead_bot", "bi_dashboard"], policy(), &agents);
    let over = world.call("handoff_service", "evaluate");
    world.send("lead_bot", over.times(14));
    let told = known(&mut world, BreakerState::Tripped, Reason::SlaExceeded);
    assert_eq!(told, ["end 4 circuit_broken breaker_tripped"], "what waited for its quota");
    let effects = world.send("lead_bot", over.event());
    assert_eq!(world.told(&effects), Vec::<String>::new());
    let told = known(&mut world, BreakerState::Passing, Reason::ProbeSucceeded);
    assert_eq!(only(&told, "admit"), Vec::<String>::new(), "its quota comes first");
    let effects = world.pass_ms(100);
    assert_eq!(only(&world.told(&effects), "admit"), ["admit lead_bot>handoff_service 1 P2 ok"]);
}

#[test]
fn p0_that_suffers_elsewhere_defers_p3_here_and_is_not_told_on() {
    let mut world = callers_home();
    let delay = Duration::from_millis(101);
    let effects = world.apply(Event::P0Suffered { delay });
    assert!(
        matches!(effects[..], [Effect::Deferral { on: true, own: false, .. }]),
        "counted, not recorded: {effects:?}"
    );
    let effects = world.pass_ms(3_000);
    assert_eq!(world.told(&effects), ["deferral ends"]);
    assert!(effects.iter().any(|e| matches!(e, Effect::Deferral { on: false, own: false, .. })));
}

#[test]
fn own_p0_that_suffers_is_told_at_most_four_times_a_second() {
    let mut world = callers_home();
    let person = world.call("lead_bot", "converse").at(Priority::P0);
    let mut effects = Vec::new();
    for _ in 0..20 {
        world.arrive("people", person.within_ms(60_000));
        world.now = Timestamp(world.now.0 + 51_000_000);
        effects.extend(world.turn());
    }
    effects.extend(world.pass_ms(1_900));
    assert_eq!(admitted(&effects), 20);
    let told = only(&world.told(&effects), "p0 suffers");
    assert!((2..=8).contains(&told.len()), "{told:?}");
    assert!(told.iter().all(|line| line == "p0 suffers 51ms"), "{told:?}");
}

#[test]
fn a_full_window_is_told_as_a_delay_of_the_whole_budget() {
    let mut world = callers_home();
    world.room = 0;
    let call = world.call("intent_decoder", "analyze_lead");
    let effects = world.send("lead_bot", call);
    assert_eq!(world.told(&effects), ["deferral begins", "p0 suffers 200ms"]);
}

#[test]
fn what_waits_at_other_homes_counts_for_scaling_and_expires() {
    let agents = [
        agent("caller").needs(&["worker"]),
        Registration { max_instances: 6, ..agent("worker").offers(&["x"]) },
    ];
    let mut world = World::home_of(&["worker"], policy(), &agents);
    let target = world.ix("worker");
    let elsewhere = TargetReport { in_flight: 70, depth: 60, ..TargetReport::default() };
    let mut told = Vec::new();
    for second in 0..70 {
        world.beat("worker", 20, 20, 0);
        if second < 35 {
            // Something always succeeds, so that it is load and nothing else.
            let report = TargetReport { finished: second * 10, ..elsewhere };
            world.apply(Event::TargetReported { target, from: HOME, report });
        }
        let effects = world.pass_ms(1_000);
        told.extend(world.told(&effects));
    }
    assert_eq!(told, ["scale worker 1>2 depth_sustained"]);
    assert_eq!(world.governor.target_facts(world.now)[1].depth, 0, "nobody tells of it any more");
}

#[test]
fn a_frozen_target_is_held_and_told_once() {
    let agents = [
        agent("caller").needs(&["worker"]),
        Registration { max_instances: 6, ..agent("worker").offers(&["x"]) },
    ];
    let mut world = World::home_of(&["worker"], policy(), &agents);
    let target = world.ix("worker");
    let mut told = Vec::new();
    for second in 0..200 {
        world.beat("worker", 20, 20, 0);
        let finished = if second < 150 { 900 } else { 900 + second };
        let report = TargetReport { finished, in_flight: 70, depth: 60, ..TargetReport::default() };
        world.apply(Event::TargetReported { target, from: HOME, report });
        let effects = world.pass_ms(1_000);
        told.extend(world.told(&effects).into_iter().map(|line| format!("{second} {line}")));
    }
    assert_eq!(told, ["30 scale held worker at 1 target_frozen", "150 scale worker 1>2 depth_sustained"]);
}

#[test]
fn an_agent_that_stands_in_is_named_in_the_closing_and_a_json_target_takes_one_at_a_time() {
    let mut agents = platform();
    agents[3] = agents[3].clone().falls_back("evaluate", Fallback::Agent("handoff_backup".to_owned()));
    let backup = agent("handoff_backup").offers(&["evaluate"]);
    agents.push(Registration { encoding: Encoding::Json, ..backup });
    let mut world = World::under(policy(), &agents);
    let target = world.ix("handoff_service");
    let call = world.call("handoff_service", "evaluate");
    world.send("lead_bot", call);
    assert_eq!(world.running[0].pack_max, 25, "half of the slots of one instance");
    world.end_all(5);
    world.apply(Event::SetBreaker { target, trip: true });
    world.send("lead_bot", call);
    world.send("lead_bot", call);
    let [good, bad] = world.running[..] else { panic!("{:?}", world.running) };
    assert_eq!((good.pack_max, good.kind), (1, Kind::Request));
    let effects = world.end(&good, Outcome::Success, 5);
    assert_eq!(only(&world.told(&effects), "close"), ["close 0+1 success fallback_agent"]);
    let effects = world.end(&bad, Outcome::Failure, 5);
    assert_eq!(only(&world.told(&effects), "close"), ["close 0+1 failure handler_failed"]);
}
