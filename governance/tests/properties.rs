//! What holds over every history. Random actions drive the core beside a model of broker, agents and rules; after each event the
//! core's own invariants are checked, and at the end that nothing was lost, doubled, overtaken or let through.

mod action;
mod homes;
mod model;
mod wire;

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use action::{Action, action};
use homes::Mesh;
use model::Model;
use wire::{Counted, Wire};

/// A runner whose histories are the same each time; `PROPTEST_RNG_SEED` and `PROPTEST_CASES` give others.
fn runner(cases: u32) -> TestRunner {
    let given = Config::default();
    let cases = if given.cases == 256 { cases } else { given.cases };
    let rng_seed = if given.rng_seed == RngSeed::Random { RngSeed::Fixed(SEED) } else { given.rng_seed };
    TestRunner::new(Config { cases, rng_seed, failure_persistence: None, ..given })
}

const SEED: u64 = 20_260_214;

fn run(actions: &[Action]) -> Model {
    let mut model = Model::new();
    for action in actions {
        model.act(action);
    }
    model.settle();
    model.check_the_end();
    model
}

#[test]
fn every_history_keeps_the_promises() {
    let compared = Cell::new((0_usize, 0_usize));
    let mut runner = runner(96);
    let result = runner.run(&prop::collection::vec(action(), 1..160), |actions| {
        let model = run(&actions);
        let (dispatches, admissions) = compared.get();
        compared.set((dispatches + model.fates.len(), admissions + model.admitted.len()));
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let (dispatches, admissions) = compared.get();
    assert!(
        dispatches > 10_000 && admissions > 1_000,
        "only {dispatches} dispatches, {admissions} admissions"
    );
}

#[test]
fn one_history_always_gives_one_result() {
    let compared = Cell::new(0_usize);
    let mut runner = runner(16);
    let result = runner.run(&prop::collection::vec(action(), 1..120), |actions| {
        let (once, again) = (run(&actions), run(&actions));
        prop_assert_eq!(&once.log, &again.log);
        compared.set(compared.get() + once.log.len());
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    assert!(compared.get() > 100_000, "only {} bytes of effects compared", compared.get());
}

fn home_action() -> impl Strategy<Value = wire::Action> {
    use wire::Action;
    let send = (0..6_usize, 0..8_usize, 0..4_usize, 1..12_u16, any::<bool>());
    let ran = prop_oneof![4 => Just(5_u64), 1 => Just(900)];
    prop_oneof![
        8 => send.prop_map(|(source, to, priority, count, event)| Action::Send { source, to, priority, count, event }),
        6 => prop_oneof![1..40_u64, 50..400_u64, Just(31_000)].prop_map(|ms| Action::Pass { ms }),
        8 => (0..4_usize, 0..64_usize, prop::bool::weighted(0.7), ran)
            .prop_map(|(home, nth, good, ran_ms)| Action::Complete { home, nth, good, ran_ms }),
        1 => (0..4_usize, 0..64_usize).prop_map(|(home, nth)| Action::Cancel { home, nth }),
        1 => (0..6_usize, prop::bool::weighted(0.2)).prop_map(|(target, trip)| Action::Operator { target, trip }),
        1 => (0..4_usize, 1..400_u64).prop_map(|(home, ms)| Action::Stall { home, ms }),
        1 => (0..6_usize, 1..60_u32).prop_map(|(target, slots)| Action::Beat { target, slots }),
        1 => (20..300_u64).prop_map(|ms| Action::Suffer { ms }),
    ]
}

/// Which core each of the agents has its home in: two to four cores, each home of at least one.
fn divided() -> impl Strategy<Value = [usize; 6]> {
    prop_oneof![
        Just([0, 0, 1, 1, 1, 0]),
        Just([0, 1, 2, 0, 1, 2]),
        Just([0, 1, 1, 2, 2, 0]),
        Just([0, 1, 2, 3, 3, 3]),
        Just([0, 1, 2, 3, 0, 1]),
    ]
}

#[test]
fn several_homes_are_one_mesh() {
    let total = Cell::new(Counted::default());
    let mut runner = runner(40);
    let wire = (any::<u64>(), prop_oneof![Just(0), 1..40_u64], 1..120_u64)
        .prop_map(|(seed, loss_percent, delay_ms_max)| Wire { seed, loss_percent, delay_ms_max });
    let history = (divided(), wire, prop::collection::vec(home_action(), 20..200));
    let result = runner.run(&history, |(homes, wire, actions)| {
        let mut mesh = Mesh::new(&homes, wire);
        for action in &actions {
            mesh.act(action);
        }
        mesh.settle();
        mesh.check_the_end();
        total.set(total.get().plus(mesh.counted));
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let counted = total.get();
    let Counted { admitted, limited, trips, probes_granted, deferrals_told, windows } = counted;
    assert!(admitted > 3_000 && limited > 1_000 && windows > 1_000, "{counted:?}");
    assert!(trips > 20 && probes_granted > 5 && deferrals_told > 20, "{counted:?}");
}

#[test]
fn a_hard_rate_holds_under_any_load_and_every_home_gets_some_of_it() {
    for seed in 0..8 {
        let wire =
            Wire { seed, loss_percent: 10 * (seed % 3), delay_ms_max: [2, 20, 49, 120][seed as usize % 4] };
        // The targets are at home in the last core; callers are in each.
        let mut mesh = Mesh::new(&[0, 2, 2, 2, 1, 2], wire);
        mesh.besiege(seed.is_multiple_of(2));
        mesh.check_rates();
        let [first, second, own] = mesh.passed_by_home()[..] else { panic!("three cores") };
        if wire.delay_ms_max < 20 {
            let most = own.max(first).max(second);
            let least = own.min(first).min(second);
            assert!(least * 8 > most, "one home gets all: {first}, {second} and {own} of its own, {wire:?}");
        }
    }
}
