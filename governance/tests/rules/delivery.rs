//! Order keys, topics, idempotency keys, double delivery.

use governance::{Event, MessageIx, Outcome};

use super::{platform, policy, world};
use crate::kit::{self, Refine, World, admitted, agent};

#[test]
fn dispatches_with_one_order_key_run_one_after_another_and_others_pass_them_by() {
    let mut world = world();
    let call = world.call("intent_decoder", "analyze_lead");
    world.arrive("lead_bot", call.order_key(7).times(2));
    world.arrive("lead_bot", call.order_key(7));
    world.arrive("lead_bot", call.order_key(8));
    let effects = world.turn();
    assert_eq!(admitted(&effects), 2);
    let lane = world.governor.lane_facts(world.now).into_iter().find(|l| l.queued > 0).unwrap();
    assert_eq!(lane.waiting.unwrap().reason.name(), "order_key_busy");
    let mut order = Vec::new();
    while let Some(admission) = world.running.first().copied() {
        order.push((admission.message, admission.first));
        world.end(&admission, Outcome::Success, 1);
    }
    let at = |message, slot| (MessageIx(message), slot);
    assert_eq!(order, [at(1, 0), at(3, 0), at(1, 1), at(2, 0)]);
}

#[test]
fn each_subscriber_of_a_topic_gets_a_copy_and_the_event_ends_after_the_last() {
    let mut agents = platform();
    agents.push(agent("archive").wants(&["lead_events"]));
    let mut world = World::under(policy(), &agents);
    world.apply(Event::SetPaused { target: world.ix("bi_dashboard"), paused: true });
    let event = world.publish("lead_events");
    let effects = world.send("lead_bot", event.times(2));
    assert_eq!(world.told(&effects), ["admit lead_bot>archive 2 P2 topic_copy"]);
    world.apply(Event::SetPaused { target: world.ix("bi_dashboard"), paused: false });
    let effects = world.turn();
    assert_eq!(world.told(&effects), ["admit lead_bot>bi_dashboard 2 P2 topic_copy", "end 2 success ok"]);
    let copies: Vec<u16> = world.running.iter().map(|a| a.copy).collect();
    assert_eq!(copies, [1, 2]);
    world.end_all(1);
    assert_eq!(world.governor.open_dispatches(), 0);
}

#[test]
fn a_topic_that_nobody_wants_ends_as_delivered_to_nobody() {
    let mut world = world();
    world.apply(Event::AgentRegistered { registration: &agent("bi_dashboard") });
    let event = world.publish("lead_events");
    let effects = world.send("lead_bot", event);
    assert_eq!(world.told(&effects), ["end 1 success no_subscriber"]);
}

#[test]
fn each_copy_counts_against_the_quota() {
    let mut agents = platform();
    agents.push(agent("archive").wants(&["lead_events"]));
    let mut world = World::under(policy(), &agents);
    let event = world.publish("lead_events");
    assert_eq!(admitted(&world.send("lead_bot", event.times(10))), 10);
}

#[test]
fn an_idempotency_key_is_accepted_once() {
    let mut world = world();
    let call = world.call("intent_decoder", "analyze_lead").idempotency_key(99);
    let effects = world.send("lead_bot", call.times(2));
    assert_eq!(
        world.told(&effects),
        ["end 1 rejected duplicate_key", "admit lead_bot>intent_decoder 1 P2 ok"]
    );
    let effects = world.send("lead_bot", call);
    assert_eq!(world.told(&effects), ["end 1 rejected duplicate_key"]);
}

#[test]
fn a_message_that_comes_again_is_a_duplicate_unless_a_former_home_left_part_of_it() {
    let mut world = world();
    let source = world.ix("lead_bot");
    let call = world.call("intent_decoder", "analyze_lead");
    assert_eq!(admitted(&world.send("lead_bot", call)), 1);
    let effects = world.deliver(source, 1, call, false);
    assert_eq!(world.told(&effects), ["duplicate"]);
    let mut rest = call;
    rest.run.first = 1;
    let effects = world.deliver(source, 1, rest, true);
    assert_eq!(world.told(&effects), Vec::<String>::new());
    assert_eq!(admitted(&world.turn()), 1);
}

#[test]
fn what_is_merely_held_is_not_among_the_decided_sequences() {
    let mut world = world();
    world.apply(Event::SetPaused { target: world.ix("intent_decoder"), paused: true });
    let call = world.call("intent_decoder", "analyze_lead");
    world.send("lead_bot", call);
    assert_eq!(world.governor.seen_ranges().count(), 0);
    world.apply(Event::SetPaused { target: world.ix("intent_decoder"), paused: false });
    world.turn();
    let instance = kit::instance_of(world.ix("lead_bot"));
    assert_eq!(world.governor.seen_ranges().collect::<Vec<_>>(), [(instance, 1, 1)]);
}
