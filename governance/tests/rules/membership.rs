//! Scaling, instances, a new home, other rules.

use governance::{Admission, Event, Outcome, Policy, Registration, Timestamp};

use super::world;
use crate::kit::{Refine, World, admitted, agent};

#[test]
fn a_silent_instance_is_lost_after_three_seconds() {
    let mut world = world();
    world.beat("lead_bot", 50, 0, 0);
    let effects = world.pass_ms(2_900);
    assert_eq!(world.told(&effects), Vec::<String>::new());
    let effects = world.pass_ms(200);
    assert_eq!(world.told(&effects), ["lost an instance of lead_bot"]);
}

#[test]
fn a_deep_queue_adds_an_instance_after_thirty_seconds() {
    let agents = [
        agent("caller").needs(&["worker"]),
        Registration { max_instances: 6, ..agent("worker").offers(&["x"]) },
    ];
    let mut world = World::with(&agents);
    let call = world.call("worker", "x").event();
    world.beat("worker", 50, 50, 0);
    world.apply(Event::SetPaused { target: world.ix("worker"), paused: true });
    for _ in 0..2 {
        world.send("caller", call.times(60));
    }
    let mut told = Vec::new();
    for _ in 0..40 {
        world.beat("worker", 50, 50, 0);
        let effects = world.pass_ms(1_000);
        told.extend(world.told(&effects));
    }
    assert_eq!(told, ["scale worker 1>2 depth_sustained"]);
}

#[test]
fn a_new_home_goes_on_where_the_former_one_ended() {
    let mut former = world();
    let call = former.call("intent_decoder", "analyze_lead").within_ms(10_000);
    former.send("lead_bot", call.times(10));
    let part = Admission { first: 2, count: 3, ..former.running[0] };
    former.end(&part, Outcome::Success, 1);

    let mut world = world();
    world.now = former.now;
    for (source, arrival) in former.governor.quota_arrivals() {
        world.apply(Event::RestoreQuota { source, arrival });
    }
    for (instance, from, to) in former.governor.seen_ranges() {
        world.apply(Event::RestoreSeen { instance, from, to });
    }
    for (_, restored) in former.governor.open_runs() {
        world.apply(Event::Restore(&restored));
    }
    world.governor.check_invariants();
    assert_eq!(world.governor.open_dispatches(), 7);
    let source = world.ix("lead_bot");
    let effects = world.deliver(source, 1, call, false);
    assert_eq!(world.told(&effects), ["duplicate"]);
    let effects = world.deliver(source, 2, call, false);
    assert_eq!(world.told(&effects), Vec::<String>::new());
    let effects = world.turn();
    assert_eq!(admitted(&effects), 0, "the quota that the former home used is used");
    let effects = world.pass_ms(10_200);
    assert_eq!(
        world.told(&effects).iter().filter(|l| l.starts_with("close")).collect::<Vec<_>>(),
        [
            "close 0+1 timeout expired_unknown",
            "close 0+2 timeout expired_unknown",
            "close 5+5 timeout expired_unknown"
        ]
    );
}

#[test]
fn an_agent_that_left_gets_nothing_more_and_its_callers_are_told() {
    let mut world = world();
    let target = world.ix("intent_decoder");
    let call = world.call("intent_decoder", "analyze_lead");
    world.send("lead_bot", call.times(12));
    let effects = world.apply(Event::AgentRemoved { agent: target });
    assert_eq!(world.told(&effects), ["end 2 rejected unknown_target"]);
    let effects = world.send("lead_bot", call);
    assert_eq!(world.told(&effects), ["end 1 rejected unknown_target"]);
}

#[test]
fn a_clock_that_goes_back_is_taken_for_the_latest_time() {
    let mut world = world();
    let call = world.call("intent_decoder", "analyze_lead");
    assert_eq!(admitted(&world.send("lead_bot", call.times(10))), 10);
    world.now = Timestamp(world.now.0 - 5_000_000_000);
    assert_eq!(admitted(&world.send("lead_bot", call.times(10))), 0);
}

#[test]
fn another_policy_wakes_what_the_former_one_held_up() {
    let mut world = world();
    let call = world.call("intent_decoder", "analyze_lead");
    assert_eq!(admitted(&world.send("lead_bot", call.times(60))), 10);
    let faster = Policy::parse("version = 2\n[agents.lead_bot]\nrate_per_s = 1000\n").unwrap();
    world.apply(Event::PolicyChanged { policy: faster.into() });
    world.now = Timestamp(world.now.0 + 10_000_000);
    assert_eq!(admitted(&world.turn()), 10, "what was used stays used, one period each under the new rate");
    assert_eq!(admitted(&world.pass_ms(40)), 40);
}
