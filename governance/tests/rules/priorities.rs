//! Layer 3: priorities, rights to P0, ageing, deferral.

use governance::{Effect, Lineage, Policy, Priority, Timestamp};

use super::world;
use crate::kit::{Refine, World, admitted, agent};

#[test]
fn p0_goes_first_whatever_came_first() {
    let mut world = world();
    let analytics = world.call("intent_decoder", "analyze_lead").at(Priority::P3);
    let person = world.call("lead_bot", "converse").at(Priority::P0);
    world.arrive("bi_dashboard", analytics.times(3));
    world.arrive("people", person.times(2));
    let effects = world.turn();
    assert_eq!(
        world.told(&effects),
        ["admit people>lead_bot 2 P0 ok for a person", "admit bi_dashboard>intent_decoder 3 P3 ok",]
    );
}

#[test]
fn p0_without_the_right_goes_as_p1_and_is_told() {
    let mut world = world();
    let call = world.call("intent_decoder", "analyze_lead").at(Priority::P0);
    let effects = world.send("bi_dashboard", call);
    assert_eq!(
        world.told(&effects),
        ["demoted 1 of bi_dashboard", "admit bi_dashboard>intent_decoder 1 P1 demoted_from_p0"]
    );
}

#[test]
fn the_children_of_a_person_s_dispatch_may_be_p0() {
    let mut world = world();
    let child =
        |serves_person| Lineage::Child { hops: 1, repeats: 0, serves_person, deadline: Timestamp::MAX };
    let call = world.call("intent_decoder", "analyze_lead").at(Priority::P0);
    let effects = world.send("lead_bot", call.child(child(true)));
    assert_eq!(world.told(&effects), ["admit lead_bot>intent_decoder 1 P0 ok for a person"]);
    let effects = world.send("lead_bot", call.child(child(false)));
    assert_eq!(
        world.told(&effects),
        ["demoted 1 of lead_bot", "admit lead_bot>intent_decoder 1 P1 demoted_from_p0"]
    );
    let call = world.call("handoff_service", "evaluate").at(Priority::P1);
    let effects = world.send("lead_bot", call.child(child(true)));
    assert_eq!(world.told(&effects), ["admit lead_bot>handoff_service 1 P1 ok for a person"]);
}

#[test]
fn classes_share_what_room_there_is_by_weight_and_none_starves() {
    let agents = [
        agent("a").offers(&["x"]),
        agent("b1").needs(&["a"]),
        agent("b2").needs(&["a"]),
        agent("b3").needs(&["a"]),
    ];
    let text = r#"
        [agents.b1]
        rate_per_s = 10000000
        [agents.b2]
        rate_per_s = 10000000
        [agents.b3]
        rate_per_s = 10000000
        [in_flight]
        min = 1000000
        [deferral]
        trickle_percent = 100
    "#;
    let mut world = World::under(Policy::parse(text).unwrap(), &agents);
    let call = world.call("a", "x");
    for (source, class) in [("b1", Priority::P1), ("b2", Priority::P2), ("b3", Priority::P3)] {
        for _ in 0..1_000 {
            world.arrive(source, call.at(class).times(16));
        }
    }
    world.room = 64 * 13;
    let mut gone = [0_u32; 4];
    for effect in world.turn() {
        if let Effect::Admit(a) = effect {
            gone[a.class as usize] += u32::from(a.count);
        }
    }
    assert_eq!(gone, [0, 512, 256, 64]);
}

#[test]
fn what_has_waited_its_whole_budget_moves_up_one_class() {
    let mut world = world();
    world.room = 0;
    let call = world.call("intent_decoder", "analyze_lead").at(Priority::P2);
    world.arrive("lead_bot", call);
    world.pass_ms(2_000);
    world.room = 10;
    let effects = world.turn();
    assert_eq!(world.told(&effects), ["admit lead_bot>intent_decoder 1 P1 aged_up"]);
}

#[test]
fn the_wait_for_a_quota_does_not_age() {
    let mut world = world();
    let call = world.call("intent_decoder", "analyze_lead").within_ms(60_000);
    world.send("lead_bot", call.times(400));
    let mut effects = Vec::new();
    for _ in 0..40 {
        effects.extend(world.pass_ms(100));
        world.end_all(1);
    }
    assert!(effects.iter().all(|e| !matches!(e, Effect::Admit(a) if a.class != Priority::P2)));
}

#[test]
fn p3_steps_back_while_p0_suffers_and_still_gets_a_trickle() {
    let mut world = world();
    let person = world.call("lead_bot", "converse").at(Priority::P0);
    let report = world.call("intent_decoder", "analyze_lead").at(Priority::P3);
    world.arrive("people", person);
    world.now = Timestamp(world.now.0 + 150_000_000);
    let told = world.turn();
    assert_eq!(world.told(&told), ["admit people>lead_bot 1 P0 ok for a person"]);
    let told = world.send("bi_dashboard", report.times(5));
    assert_eq!(world.told(&told), ["deferral begins", "admit bi_dashboard>intent_decoder 1 P3 ok"]);
    let lane = world.governor.lane_facts(world.now).into_iter().find(|l| l.queued > 0).unwrap();
    assert_eq!(lane.waiting.unwrap().reason.name(), "deferred");
    assert_eq!(admitted(&world.pass_ms(250)), 2);
    let rest = world.pass_ms(2_500);
    assert!(world.told(&rest).contains(&"deferral ends".to_owned()) || admitted(&rest) == 2);
    assert_eq!(admitted(&rest), 2);
}
