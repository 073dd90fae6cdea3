//! What a target has only one of, and homes ask its home for: the probe of its breaker, and its hard rate.

use std::time::Duration;

use governance::{Ask, BreakerState, Event, Grant, Outcome, Policy, Priority, Reason, Timestamp};

use super::homes::{HOME, callers_home, known, only, report, reported, targets_home};
use super::{platform, policy};
use crate::kit::{Refine, World, admitted, agent};

/// The answer to what was asked at that moment, and a turn.
fn answered(world: &mut World, name: &str, ask: Ask, asked: Timestamp, grant: Option<Grant>) -> Vec<String> {
    let target = world.ix(name);
    let mut effects = world.apply(Event::GrantAnswered { target, ask, asked, grant });
    effects.extend(world.turn());
    world.told(&effects)
}

fn granted(count: u32) -> Option<Grant> {
    Some(Grant { count, wait: Duration::from_secs(20) })
}

fn asks(world: &mut World, name: &str, ask: Ask) -> Vec<String> {
    let target = world.ix(name);
    let effects = world.apply(Event::GrantAsked { target, ask });
    world.told(&effects)
}

/// The callers' home, with the target tripped elsewhere and a probe due by what is known.
fn probe_due() -> World {
    let mut world = callers_home();
    known(&mut world, BreakerState::Tripped, Reason::ErrorRate);
    world.pass_ms(30_000);
    world
}

#[test]
fn the_probe_is_asked_for_and_goes_when_it_is_granted() {
    let mut world = probe_due();
    let call = world.call("handoff_service", "evaluate");
    let effects = world.send("lead_bot", call);
    assert_eq!(world.told(&effects), ["ask handoff_service Probe"]);
    let effects = world.send("bi_dashboard", call);
    assert_eq!(only(&world.told(&effects), "end"), ["end 1 rejected undeclared_dependency"]);
    let effects = world.send("lead_bot", call.at(Priority::P1));
    assert_eq!(world.told(&effects), ["end 1 circuit_broken breaker_tripped"], "others do not wait");
    let asked = world.now;
    world.now = Timestamp(asked.0 + 3_000_000);
    let told = answered(&mut world, "handoff_service", Ask::Probe, asked, granted(1));
    assert_eq!(only(&told, "admit"), ["admit lead_bot>handoff_service 1 P2 probe"]);
    let effects = world.send("lead_bot", call);
    assert_eq!(world.told(&effects), ["end 1 circuit_broken breaker_tripped"], "one probe for one grant");
    let probe = world.running[0];
    let effects = world.end(&probe, Outcome::Success, 5);
    assert_eq!(only(&world.told(&effects), "probe"), ["probe ended handoff_service Some(true)"]);
}

#[test]
fn a_probe_that_is_slow_or_withdrawn_is_told_as_such() {
    for slow in [true, false] {
        let mut world = probe_due();
        let call = world.call("handoff_service", "evaluate");
        world.send("lead_bot", call);
        let asked = world.now;
        answered(&mut world, "handoff_service", Ask::Probe, asked, granted(1));
        let probe = world.running[0];
        let effects = if slow {
            world.end(&probe, Outcome::Success, 601)
        } else {
            let (source, id) = (probe.source, world.id(&probe));
            world.apply(Event::Cancel { source, id })
        };
        let expected =
            if slow { "probe ended handoff_service Some(false)" } else { "probe ended handoff_service None" };
        assert_eq!(only(&world.told(&effects), "probe"), [expected]);
    }
}

#[test]
fn a_refused_or_unanswered_ask_ends_as_a_tripped_breaker_does() {
    let mut world = probe_due();
    let call = world.call("handoff_service", "evaluate");
    world.send("lead_bot", call);
    let asked = world.now;
    let told = answered(&mut world, "handoff_service", Ask::Probe, asked, granted(0));
    assert_eq!(told, ["end 1 circuit_broken breaker_tripped"]);
    world.pass_ms(19_999);
    let effects = world.send("lead_bot", call);
    assert_eq!(
        world.told(&effects),
        ["end 1 circuit_broken breaker_tripped"],
        "it was told when to ask again"
    );
    world.pass_ms(1);
    let effects = world.send("lead_bot", call);
    assert_eq!(world.told(&effects), ["ask handoff_service Probe"]);
    let effects = world.pass_ms(249);
    assert_eq!(world.told(&effects), Vec::<String>::new());
    let effects = world.pass_ms(1);
    assert_eq!(world.told(&effects), ["end 1 circuit_broken breaker_tripped"]);
}

#[test]
fn a_waiting_event_asks_by_itself() {
    let mut world = callers_home();
    known(&mut world, BreakerState::Tripped, Reason::ErrorRate);
    let event = world.call("handoff_service", "evaluate").event();
    world.send("lead_bot", event.times(2));
    let effects = world.pass_ms(30_000);
    assert_eq!(only(&world.told(&effects), "ask"), ["ask handoff_service Probe"]);
}

#[test]
fn a_probe_that_nothing_came_to_use_is_given_back() {
    let mut world = probe_due();
    let call = world.call("handoff_service", "evaluate");
    world.send("lead_bot", call.within_ms(10));
    let asked = world.now;
    let effects = world.pass_ms(20);
    assert_eq!(world.told(&effects), ["end 1 timeout expired_in_lane"]);
    assert_eq!(answered(&mut world, "handoff_service", Ask::Probe, asked, granted(1)), Vec::<String>::new());
    let effects = world.pass_ms(979);
    assert_eq!(world.told(&effects), Vec::<String>::new());
    let effects = world.pass_ms(1);
    assert_eq!(world.told(&effects), ["probe ended handoff_service None"]);
}

#[test]
fn a_probe_that_was_given_up_says_nothing_of_the_next() {
    let mut world = probe_due();
    let event = world.call("handoff_service", "evaluate").event();
    world.send("lead_bot", event);
    let asked = world.now;
    answered(&mut world, "handoff_service", Ask::Probe, asked, granted(1));
    let probe = world.running[0];
    world.pass_ms(30_000);
    let effects = world.end(&probe, Outcome::Success, 5);
    assert_eq!(only(&world.told(&effects), "probe ended"), Vec::<String>::new());
}

#[test]
fn nobody_asks_for_the_probe_of_what_an_operator_tripped() {
    let mut world = callers_home();
    known(&mut world, BreakerState::Tripped, Reason::Operator);
    world.pass_ms(90_000);
    let call = world.call("handoff_service", "evaluate");
    let effects = world.send("lead_bot", call);
    assert_eq!(world.told(&effects), ["end 1 circuit_broken breaker_tripped"]);
}

#[test]
fn one_probe_is_granted_when_it_is_due() {
    let mut world = targets_home();
    reported(&mut world, HOME, report(0, 0, 0));
    assert_eq!(asks(&mut world, "handoff_service", Ask::Probe), ["granted 0 wait 0ns"], "it passes");
    reported(&mut world, HOME, report(5, 5, 5));
    assert_eq!(asks(&mut world, "handoff_service", Ask::Probe), ["granted 0 wait 30s"]);
    world.now = Timestamp(world.now.0 + 30_000_000_000);
    assert_eq!(
        asks(&mut world, "handoff_service", Ask::Probe),
        ["breaker handoff_service tripped>probing probe_due", "granted 1 wait 0ns"]
    );
    assert_eq!(asks(&mut world, "handoff_service", Ask::Probe), ["granted 0 wait 30s"], "one at a time");
    let target = world.ix("handoff_service");
    let effects = world.apply(Event::ProbeEnded { target, succeeded: Some(true) });
    assert_eq!(world.told(&effects), ["breaker handoff_service probing>passing probe_succeeded"]);
}

#[test]
fn a_probe_that_is_given_back_is_granted_again_or_a_ping_follows() {
    let mut world = targets_home();
    reported(&mut world, HOME, report(0, 0, 0));
    reported(&mut world, HOME, report(5, 5, 5));
    world.now = Timestamp(world.now.0 + 30_000_000_000);
    asks(&mut world, "handoff_service", Ask::Probe);
    let target = world.ix("handoff_service");
    world.apply(Event::ProbeEnded { target, succeeded: None });
    let told = asks(&mut world, "handoff_service", Ask::Probe);
    assert_eq!(told.last().map(String::as_str), Some("granted 1 wait 0ns"));
    world.apply(Event::ProbeEnded { target, succeeded: None });
    let effects = world.pass_ms(1_000);
    assert_eq!(only(&world.told(&effects), "ping"), ["ping handoff_service"]);
}

#[test]
fn a_hard_rate_is_asked_for_and_used_in_its_time() {
    let mut world = callers_home();
    let call = world.call("crm_client", "sync_contact").event();
    let effects = world.send("lead_bot", call.times(9));
    assert_eq!(world.told(&effects), ["ask crm_client Rate { count: 1 }"], "no more than can be used");
    let ask = Ask::Rate { count: 1 };
    let asked = world.now;
    world.now = Timestamp(asked.0 + 50_000_000);
    let grant = |count, wait| Some(Grant { count, wait: Duration::from_millis(wait) });
    let told = answered(&mut world, "crm_client", ask, asked, grant(1, 70));
    assert_eq!(only(&told, "admit"), ["admit lead_bot>crm_client 1 P2 ok"], "just in time");
    let effects = world.pass_ms(69);
    assert_eq!(only(&world.told(&effects), "ask"), Vec::<String>::new(), "it was told when");
    let effects = world.pass_ms(1);
    assert_eq!(only(&world.told(&effects), "ask"), ["ask crm_client Rate { count: 1 }"]);
    let asked = world.now;
    let effects = world.pass_ms(51);
    assert_eq!(only(&world.told(&effects), "admit"), Vec::<String>::new());
    let told = answered(&mut world, "crm_client", ask, asked, grant(1, 0));
    assert_eq!(told, ["ask crm_client Rate { count: 1 }"], "late: worth nothing, and asked for again");
    let asked = world.now;
    assert_eq!(answered(&mut world, "crm_client", ask, asked, grant(0, 30)), Vec::<String>::new());
    let effects = world.pass_ms(30);
    assert_eq!(only(&world.told(&effects), "ask"), ["ask crm_client Rate { count: 1 }"]);
    let effects = world.pass_ms(250);
    assert_eq!(only(&world.told(&effects), "ask"), ["ask crm_client Rate { count: 1 }"], "nobody answered");
}

#[test]
fn a_hard_rate_is_given_out_once_and_in_turns() {
    let mut agents = platform();
    agents[2] = agents[2].clone().needs(&["crm_client"]);
    let mut world = World::home_of(&["crm_client", "intent_decoder"], policy(), &agents);
    world.pass_ms(1_000);
    let call = world.call("crm_client", "sync_contact").event();
    let effects = world.send("intent_decoder", call.times(40));
    assert_eq!(admitted(&effects), 1);
    assert_eq!(asks(&mut world, "crm_client", Ask::Rate { count: 1 }), ["granted 0 wait 100ms"]);
    let effects = world.pass_ms(105);
    assert_eq!(admitted(&effects), 0, "the other home is back within a moment");
    assert_eq!(asks(&mut world, "crm_client", Ask::Rate { count: 1 }), ["granted 1 wait 100ms"]);
    let effects = world.pass_ms(100);
    assert_eq!(admitted(&effects), 1, "each in its turn");
    assert_eq!(asks(&mut world, "crm_client", Ask::Rate { count: 1 }), ["granted 0 wait 100ms"]);
    let effects = world.pass_ms(130);
    assert_eq!(admitted(&effects), 1, "but not for one that stays away");
}

#[test]
fn a_home_that_is_not_the_target_s_grants_nothing() {
    let mut world = callers_home();
    for ask in [Ask::Probe, Ask::Rate { count: 3 }] {
        assert_eq!(asks(&mut world, "crm_client", ask), ["granted 0 wait 250ms"]);
    }
    let target = world.ix("handoff_service");
    let effects = world.apply(Event::SetBreaker { target, trip: true });
    assert_eq!(world.told(&effects), Vec::<String>::new());
    world.beat("handoff_service", 10, 10, 10);
    let effects = world.pass_ms(10_000);
    assert_eq!(world.told(&effects), Vec::<String>::new(), "who is lost is told by its home");
    let facts = world.governor.target_facts(world.now);
    let instances = |name: &str| facts.iter().find(|f| f.agent == world.ix(name)).unwrap().instances;
    assert_eq!(instances("handoff_service"), 0);
}

#[test]
fn a_fast_rate_is_given_out_a_little_slower_since_grants_are_used_later() {
    let agents = [agent("crm_client").offers(&["sync_contact"])];
    let policy = Policy::parse("[agents.crm_client]\nmax_rate_per_s = 200\nmax_burst = 5\n").unwrap();
    let mut world = World::home_of(&["crm_client"], policy, &agents);
    let mut given = 0;
    for _ in 0..10_000 {
        world.now = Timestamp(world.now.0 + 1_000_000);
        let told = asks(&mut world, "crm_client", Ask::Rate { count: 1 });
        given += usize::from(told[0].starts_with("granted 1"));
    }
    assert!((1_880..=1_910).contains(&given), "{given} in ten seconds");
}
