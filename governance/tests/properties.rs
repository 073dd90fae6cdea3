//! What holds over every history. Random actions drive the core beside a model of broker, agents and rules; after each event the
//! core's own invariants are checked, and at the end that nothing was lost, doubled, overtaken or let through.

mod action;
mod model;

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use action::{Action, action};
use model::Model;

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
