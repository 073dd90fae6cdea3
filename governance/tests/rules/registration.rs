//! Layer 1: capability registration and declared dependencies.

use governance::Event;

use super::world;
use crate::kit::{Refine, World, admitted, agent};

#[test]
fn a_declared_call_is_admitted() {
    let mut world = world();
    let call = world.call("intent_decoder", "analyze_lead");
    let effects = world.send("lead_bot", call);
    assert_eq!(world.told(&effects), ["admit lead_bot>intent_decoder 1 P2 ok"]);
}

#[test]
fn a_call_that_was_not_declared_is_rejected_and_never_delivered() {
    let mut world = world();
    let cases = [
        ("lead_bot", world.call("handoff_service", "history"), "undeclared_dependency"),
        ("intent_decoder", world.call("lead_bot", "converse"), "undeclared_dependency"),
        ("lead_bot", world.call("intent_decoder", "evaluate"), "unknown_capability"),
        ("lead_bot", world.call("billing", "charge"), "unknown_target"),
        ("lead_bot", world.call_any("converse"), "undeclared_dependency"),
        ("people", world.call_any("charge"), "no_provider"),
    ];
    for (source, call, reason) in cases {
        let effects = world.send(source, call.times(3));
        assert_eq!(world.told(&effects), [format!("end 3 rejected {reason}")]);
    }
}

#[test]
fn an_agent_may_be_declared_whole_or_by_capability_or_by_capability_of_anyone() {
    let mut world = world();
    for (source, call) in [
        ("lead_bot", world.call("crm_client", "sync_contact")),
        ("lead_bot", world.call("handoff_service", "evaluate")),
        ("people", world.call("lead_bot", "converse")),
    ] {
        assert_eq!(admitted(&world.send(source, call)), 1);
    }
}

#[test]
fn a_new_registration_replaces_the_former_one() {
    let mut world = world();
    world.apply(Event::AgentRegistered { registration: &agent("lead_bot").needs(&["handoff_service"]) });
    let call = world.call("intent_decoder", "analyze_lead");
    let effects = world.send("lead_bot", call);
    assert_eq!(world.told(&effects), ["end 1 rejected undeclared_dependency"]);
    let call = world.call("handoff_service", "history");
    assert_eq!(admitted(&world.send("lead_bot", call)), 1);
}

#[test]
fn a_refusal_uses_no_quota_and_holds_up_nothing() {
    let mut world = world();
    for _ in 0..50 {
        let call = world.call("handoff_service", "history");
        world.arrive("lead_bot", call.times(100));
    }
    let call = world.call("intent_decoder", "analyze_lead");
    assert_eq!(admitted(&world.send("lead_bot", call.times(10))), 10);
}

#[test]
fn a_capability_alone_goes_to_the_provider_with_the_least_load() {
    let agents = [
        agent("caller").needs(&["*/score"]),
        agent("engine_a").offers(&["score"]),
        agent("engine_b").offers(&["score"]),
        agent("engine_c").offers(&["score"]),
    ];
    let mut world = World::with(&agents);
    world.beat("engine_a", 2, 0, 0);
    world.beat("engine_b", 4, 0, 0);
    let targets: Vec<String> = (0..6)
        .flat_map(|_| {
            let call = world.call_any("score");
            let effects = world.send("caller", call);
            world.told(&effects)
        })
        .collect();
    let to = |engine: &str| format!("admit caller>{engine} 1 P2 routed_by_capability");
    let (a, b) = (to("engine_a"), to("engine_b"));
    assert_eq!(targets, [a.clone(), b.clone(), b.clone(), a, b.clone(), b]);
}
