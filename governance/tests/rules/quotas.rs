//! Layer 2: rate limits, quotas and pulls.

use governance::{Effect, Event, Lane, Policy, Priority};

use super::{policy, world};
use crate::kit::{Refine, World, admitted, agent};

#[test]
fn over_quota_waits_and_nothing_is_dropped() {
    let mut world = world();
    let call = world.call("intent_decoder", "analyze_lead").within_ms(60_000);
    let effects = world.send("lead_bot", call.times(130));
    assert_eq!(
        world.told(&effects),
        ["admit lead_bot>intent_decoder 10 P2 ok", "slow down lead_bot 100/s 120 queued 1.2s"]
    );
    let mut gone = 0;
    for _ in 0..12 {
        gone += admitted(&world.pass_ms(100));
        world.end_all(5);
    }
    assert_eq!(gone, 120);
}

#[test]
fn a_source_is_told_to_slow_down_once_a_second_and_to_go_on_when_it_has_drained() {
    let mut world = world();
    let call = world.call("intent_decoder", "analyze_lead").within_ms(60_000);
    let mut effects = world.send("lead_bot", call.times(160));
    for _ in 0..20 {
        effects.extend(world.pass_ms(100));
        effects.extend(world.end_all(5));
    }
    let signals: Vec<String> = world
        .told(&effects)
        .into_iter()
        .filter(|l| l.starts_with("slow") || l.starts_with("resume"))
        .collect();
    assert_eq!(
        signals,
        [
            "slow down lead_bot 100/s 150 queued 1.5s",
            "slow down lead_bot 100/s 50 queued 500ms",
            "resume lead_bot"
        ]
    );
}

#[test]
fn the_crm_gets_ten_per_second_whoever_calls() {
    let mut world = world();
    let call = world.call("crm_client", "sync_contact").event();
    let mut gone = admitted(&world.send("lead_bot", call.times(40)));
    for _ in 0..10 {
        gone += admitted(&world.pass_ms(100));
        world.end_all(5);
    }
    assert_eq!(gone, 11);
    let lane = world.governor.lane_facts(world.now).into_iter().find(|l| l.queued > 0).unwrap();
    assert_eq!((lane.queued, lane.blocked), (29, 29));
    assert_eq!(lane.waiting.unwrap().reason.name(), "target_rate");
}

#[test]
fn a_target_that_takes_no_more_holds_up_no_other_target() {
    let mut world = world();
    let crm = world.call("crm_client", "sync_contact").event();
    assert_eq!(admitted(&world.send("lead_bot", crm.times(40))), 1);
    world.pass_ms(1_000);
    let decoder = world.call("intent_decoder", "analyze_lead");
    assert_eq!(admitted(&world.send("lead_bot", decoder.times(5))), 5);
}

#[test]
fn no_more_is_open_to_a_target_than_its_slots_allow_and_p0_has_room_of_its_own() {
    let agents = [agent("a").offers(&["x"]), agent("bulk").needs(&["a"]), agent("vip").needs(&["a"])];
    let text = "[agents.bulk]\nrate_per_s = 10000\n[agents.vip]\nrate_per_s = 1000\np0 = [\"x\"]\n";
    let mut world = World::under(Policy::parse(text).unwrap(), &agents);
    let call = world.call("a", "x");
    assert_eq!(admitted(&world.send("bulk", call.times(500))), 64);
    assert_eq!(admitted(&world.send("vip", call.at(Priority::P0).times(50))), 16);
    world.beat("a", 40, 0, 0);
    assert_eq!(admitted(&world.turn()), 34 + 96);
    assert_eq!(admitted(&world.end_all(1)), 160);
}

#[test]
fn pulls_follow_the_quota() {
    let mut world = World::under(policy(), &[]);
    let effects = world.apply(Event::AgentRegistered { registration: &agent("crm_client") });
    let pulls = |effects: &[Effect]| -> Vec<(Priority, u32)> {
        effects
            .iter()
            .filter_map(|e| {
                if let Effect::Pull { lane, messages } = e { Some((lane.priority, *messages)) } else { None }
            })
            .collect()
    };
    let mut asked = pulls(&effects);
    asked.sort();
    assert_eq!(asked, Priority::ALL.iter().map(|p| (*p, 4)).collect::<Vec<_>>());
    let lane = Lane { source: world.ix("crm_client"), priority: Priority::P1 };
    assert_eq!(pulls(&world.apply(Event::PullEnded { lane, unfilled: 4 })), [(Priority::P1, 4)]);
}

#[test]
fn what_waits_for_its_target_does_not_stop_the_pulls() {
    let mut world = world();
    world.apply(Event::SetPaused { target: world.ix("crm_client"), paused: true });
    let mut pulled = 0;
    for _ in 0..2_000 {
        let call = world.call("crm_client", "sync_contact").event();
        let effects = world.send("lead_bot", call);
        pulled += effects
            .iter()
            .map(|e| if let Effect::Pull { messages, .. } = e { *messages } else { 0 })
            .sum::<u32>();
    }
    assert!((1_000..1_200).contains(&pulled), "{pulled} pulled");
}
