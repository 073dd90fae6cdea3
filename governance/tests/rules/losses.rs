//! Runners that are lost: counted, never for what was given back in order, up to the bound, the last try alone.

use std::time::Duration;

use governance::{
    Admission, AskedToRun, Beat, DispatchId, Effect, Event, Holder, InstanceId, Loss, Permit, Timestamp,
};

use super::world;
use crate::kit::World;

const TARGET: &str = "intent_decoder";

fn beat(world: &mut World, instance: u64) {
    let beat = Beat { instance: InstanceId(instance), slots: 8, running: 0, running_over: 0 };
    world.apply(Event::InstanceSeen { agent: world.ix(TARGET), beat });
}

fn pass(world: &mut World, seconds: u64) {
    world.now = Timestamp(world.now.0 + seconds * 1_000_000_000);
}

/// A world in which a call is with instance 1.
fn called(times: u16) -> (World, Admission) {
    let mut world = world();
    beat(&mut world, 1);
    let call = world.call(TARGET, "analyze_lead").within_ms(3_000_000).times(times);
    world.send("lead_bot", call);
    let admission = world.running[0];
    (world, admission)
}

/// What an instance that lives is told when it asks, and whether the dispatch was condemned.
fn ask(world: &mut World, admission: &Admission, instance: u64, alone: bool) -> (Vec<Permit>, bool) {
    beat(world, instance);
    let runner = Holder::Instance(InstanceId(instance));
    let asked = AskedToRun { first: world.id(admission), count: admission.count, runner, alone };
    let effects = world.apply(Event::AskedToRun(asked));
    let permits = effects.iter().filter_map(|e| if let Effect::Permit(p) = e { Some(*p) } else { None });
    (permits.collect(), effects.iter().any(|e| matches!(e, Effect::Condemn { lost: 3, .. })))
}

#[test]
fn the_third_lost_instance_ends_it_and_the_third_run_is_made_alone() {
    let (mut world, admission) = called(1);
    pass(&mut world, 3);
    assert_eq!(ask(&mut world, &admission, 2, false), (vec![Permit::Run], false), "one loss");
    pass(&mut world, 3);
    assert_eq!(ask(&mut world, &admission, 3, false), (vec![Permit::Alone], false), "two losses");
    assert_eq!(ask(&mut world, &admission, 3, true), (vec![Permit::Run], false));
    pass(&mut world, 3);
    assert_eq!(ask(&mut world, &admission, 4, false), (vec![Permit::Wait], true), "its letter comes first");
    assert_eq!(ask(&mut world, &admission, 4, false), (vec![Permit::Wait], false));
    let id = world.id(&admission);
    let effects = world.apply(Event::Condemned { id });
    assert_eq!(world.told(&effects)[0], "close 0+1 failure runner_lost");
    assert_eq!(ask(&mut world, &admission, 4, false), (vec![Permit::Ended], false));
}

#[test]
fn what_is_given_back_or_comes_again_to_one_that_lives_counts_for_nothing() {
    let (mut world, admission) = called(1);
    for round in 0..10 {
        // From an instance that lives to another one, and to the same once more.
        for instance in [2, 1, 1] {
            for _ in 0..2 {
                pass(&mut world, 1);
                beat(&mut world, 1);
                beat(&mut world, 2);
            }
            assert_eq!(ask(&mut world, &admission, instance, false), (vec![Permit::Run], false), "{round}");
        }
    }
    // One that says goodbye has given back what it had.
    let agent = world.ix(TARGET);
    world.apply(Event::InstanceLeft { agent, instance: InstanceId(1) });
    pass(&mut world, 3);
    assert_eq!(ask(&mut world, &admission, 3, false), (vec![Permit::Run], false));
    assert_eq!(world.governor.losses().map(|(_, loss)| loss.lost).max(), Some(0));
}

#[test]
fn a_second_copy_waits_while_the_first_is_about_to_end_it() {
    let (mut world, admission) = called(1);
    beat(&mut world, 1);
    beat(&mut world, 2);
    assert_eq!(ask(&mut world, &admission, 1, false), (vec![Permit::Run], false));
    assert_eq!(ask(&mut world, &admission, 2, false), (vec![Permit::Wait], false));
    assert_eq!(
        ask(&mut world, &admission, 1, false),
        (vec![Permit::Run], false),
        "it came to the same once more"
    );
    pass(&mut world, 1);
    beat(&mut world, 1);
    assert_eq!(ask(&mut world, &admission, 2, false), (vec![Permit::Wait], false));
    pass(&mut world, 1);
    beat(&mut world, 1);
    beat(&mut world, 2);
    assert_eq!(ask(&mut world, &admission, 2, false), (vec![Permit::Run], false));
}

#[test]
fn what_was_beside_it_makes_its_last_try_alone_and_survives() {
    let (mut world, admission) = called(3);
    for instance in [2, 3] {
        pass(&mut world, 3);
        ask(&mut world, &admission, instance, false);
    }
    // An instance that only asks takes nothing from the one that has it.
    ask(&mut world, &admission, 4, false);
    // Each was with two lost instances. Now they are asked for one by one, and only the one that runs is noted.
    let slot = |n| DispatchId { slot: n, ..world.id(&admission) };
    let (poison, innocent) = (slot(0), slot(1));
    let alone = |world: &mut World, first, instance| {
        beat(world, instance);
        let runner = Holder::Instance(InstanceId(instance));
        let effects = world.apply(Event::AskedToRun(AskedToRun { first, count: 1, runner, alone: true }));
        (
            effects.contains(&Effect::Permit(Permit::Run)),
            effects.iter().any(|e| matches!(e, Effect::Condemn { .. })),
        )
    };
    assert_eq!(alone(&mut world, poison, 3), (true, false));
    pass(&mut world, 3);
    assert_eq!(alone(&mut world, poison, 4), (false, true));
    assert_eq!(alone(&mut world, innocent, 4), (true, false));
}

#[test]
fn a_core_that_takes_over_counts_on_and_waits_for_heartbeats_before_it_judges() {
    let (mut world, admission) = called(1);
    let id = world.id(&admission);
    let loss = Loss { lost: 2, holder: Holder::Instance(InstanceId(9)), since: world.now };
    world.apply(Event::RestoreLoss { id, loss });
    let mut young = Duration::ZERO;
    let condemned = loop {
        let (permits, condemned) = ask(&mut world, &admission, 1, false);
        assert_eq!(permits, [Permit::Wait]);
        if condemned {
            break young;
        }
        young += Duration::from_secs(1);
        pass(&mut world, 1);
    };
    assert!((2..=3).contains(&condemned.as_secs()), "{condemned:?}");
}

#[test]
fn one_that_does_not_say_who_it_is_is_judged_by_the_losses_of_its_agent() {
    let (mut world, admission) = called(1);
    let first = world.id(&admission);
    let mut condemned = false;
    for instance in 2..=4 {
        pass(&mut world, 3);
        beat(&mut world, instance);
        let asked = AskedToRun { first, count: 1, runner: Holder::Unnamed, alone: false };
        let effects = world.apply(Event::AskedToRun(asked));
        condemned = effects.iter().any(|e| matches!(e, Effect::Condemn { .. }));
    }
    assert!(condemned);
}
