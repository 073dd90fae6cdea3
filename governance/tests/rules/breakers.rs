//! Layer 4: circuit breaking, fallbacks, probes.

use governance::{Effect, Event, Fallback, Outcome};

use super::{platform, policy, world};
use crate::kit::{Refine, World, agent};

/// Sends so many requests to the handoff service, which all end in the same way.
fn handoffs(world: &mut World, count: u16, outcome: Outcome, ran_ms: u64) -> Vec<String> {
    let call = world.call("handoff_service", "evaluate");
    let mut told = Vec::new();
    for _ in 0..count {
        let effects = world.send("lead_bot", call);
        let Some(Effect::Admit(admission)) = effects.iter().find(|e| matches!(e, Effect::Admit(_))) else {
            told.extend(world.told(&effects));
            continue;
        };
        let effects = world.end(&admission.clone(), outcome, ran_ms);
        told.extend(world.told(&effects).into_iter().filter(|l| l.starts_with("breaker")));
        world.pass_ms(20);
    }
    told
}

#[test]
fn a_slow_target_trips_and_the_lead_bot_gets_a_graceful_answer() {
    let mut agents = platform();
    let text = Fallback::Static("{\"handoff\":false}".to_owned());
    agents[3] = agents[3].clone().falls_back("evaluate", text);
    let mut world = World::under(policy(), &agents);
    assert_eq!(handoffs(&mut world, 19, Outcome::Success, 601), Vec::<String>::new());
    assert_eq!(
        handoffs(&mut world, 2, Outcome::Success, 601),
        [
            "breaker handoff_service passing>tripped sla_exceeded",
            "end 1 circuit_broken fallback_static {\"handoff\":false}",
        ]
    );
}

#[test]
fn a_run_within_120_percent_of_the_sla_is_not_slow() {
    let mut world = world();
    assert_eq!(handoffs(&mut world, 40, Outcome::Success, 600), Vec::<String>::new());
}

#[test]
fn without_a_fallback_a_request_is_answered_at_once_with_an_error() {
    let mut world = world();
    assert_eq!(
        handoffs(&mut world, 6, Outcome::Failure, 1),
        ["breaker handoff_service passing>tripped failures_in_row", "end 1 circuit_broken breaker_tripped"]
    );
}

#[test]
fn another_agent_stands_in_where_it_is_named_and_offers_the_same() {
    let mut agents = platform();
    agents[3] = agents[3].clone().falls_back("evaluate", Fallback::Agent("handoff_backup".to_owned()));
    agents.push(agent("handoff_backup").offers(&["evaluate"]));
    let mut world = World::under(policy(), &agents);
    handoffs(&mut world, 5, Outcome::Failure, 1);
    let call = world.call("handoff_service", "evaluate");
    let effects = world.send("lead_bot", call);
    assert_eq!(world.told(&effects), ["admit lead_bot>handoff_backup 1 P2 fallback_agent"]);
}

#[test]
fn what_waits_for_its_quota_is_answered_when_the_target_trips() {
    let mut world = world();
    let call = world.call("handoff_service", "evaluate");
    let effects = world.send("lead_bot", call.times(30));
    let Effect::Admit(admission) = &effects[0] else { panic!("{effects:?}") };
    let effects = world.end(&admission.clone(), Outcome::Failure, 1);
    assert_eq!(
        world.told(&effects),
        [
            "breaker handoff_service passing>tripped failures_in_row",
            "close 0+10 failure handler_failed",
            "end 20 circuit_broken breaker_tripped",
        ]
    );
}

#[test]
fn events_wait_for_a_tripped_target_and_the_first_is_the_probe() {
    let mut world = world();
    handoffs(&mut world, 5, Outcome::Failure, 1);
    let event = world.call("handoff_service", "evaluate").event();
    let effects = world.send("lead_bot", event.times(3));
    assert_eq!(world.told(&effects), Vec::<String>::new());
    let effects = world.pass_ms(29_800);
    assert_eq!(world.told(&effects), Vec::<String>::new());
    let effects = world.pass_ms(300);
    assert_eq!(
        world.told(&effects),
        ["admit lead_bot>handoff_service 1 P1 probe", "breaker handoff_service tripped>probing probe_due"]
    );
    let probe = world.running[0];
    let effects = world.end(&probe, Outcome::Success, 5);
    assert_eq!(
        world.told(&effects),
        [
            "breaker handoff_service probing>passing probe_succeeded",
            "close 0+1 success ok",
            "admit lead_bot>handoff_service 2 P1 aged_up",
        ]
    );
}

#[test]
fn a_failed_probe_waits_for_another_thirty_seconds() {
    let mut world = world();
    handoffs(&mut world, 5, Outcome::Failure, 1);
    world.pass_ms(30_100);
    let call = world.call("handoff_service", "evaluate");
    let effects = world.send("lead_bot", call);
    assert_eq!(
        world.told(&effects),
        ["admit lead_bot>handoff_service 1 P2 probe", "breaker handoff_service tripped>probing probe_due"]
    );
    let effects = world.send("lead_bot", call);
    assert_eq!(world.told(&effects), ["end 1 circuit_broken breaker_tripped"], "one probe at a time");
    let probe = world.running[0];
    let effects = world.end(&probe, Outcome::Failure, 5);
    assert_eq!(world.told(&effects)[0], "breaker handoff_service probing>tripped probe_failed");
    world.pass_ms(29_000);
    let effects = world.send("lead_bot", call);
    assert_eq!(world.told(&effects), ["end 1 circuit_broken breaker_tripped"]);
}

#[test]
fn a_ping_serves_where_no_dispatch_comes() {
    let mut world = world();
    handoffs(&mut world, 5, Outcome::Failure, 1);
    let effects = world.pass_ms(31_100);
    assert_eq!(
        world.told(&effects),
        ["breaker handoff_service tripped>probing probe_due", "ping handoff_service"]
    );
    let effects = world.beat("handoff_service", 10, 0, 0);
    assert_eq!(world.told(&effects), ["breaker handoff_service probing>passing probe_succeeded"]);
}

#[test]
fn timeouts_count_as_errors() {
    let mut world = world();
    let call = world.call("handoff_service", "evaluate").within_ms(100);
    world.send("lead_bot", call.times(5));
    let effects = world.pass_ms(200);
    assert_eq!(
        world.told(&effects),
        [
            "close 0+5 timeout expired_unknown",
            "revoke handoff_service 0+5",
            "breaker handoff_service passing>tripped failures_in_row",
        ]
    );
}

#[test]
fn an_operator_trips_and_resets() {
    let mut world = world();
    let target = world.ix("handoff_service");
    let effects = world.apply(Event::SetBreaker { target, trip: true });
    assert_eq!(world.told(&effects), ["breaker handoff_service passing>tripped operator"]);
    world.pass_ms(60_000);
    let call = world.call("handoff_service", "evaluate");
    let effects = world.send("lead_bot", call);
    assert_eq!(world.told(&effects), ["end 1 circuit_broken breaker_tripped"]);
    let effects = world.apply(Event::SetBreaker { target, trip: false });
    assert_eq!(world.told(&effects), ["breaker handoff_service tripped>passing operator"]);
}
