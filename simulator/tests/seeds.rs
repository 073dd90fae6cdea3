//! Seeds: runs of the whole simulator, as they are made by the thousand at night.

use simulator::{Faults, Scene, Settings, run};

/// The seeds that once failed, each with a sentence about why.
const KEPT: &str = include_str!("../seeds.txt");

fn settings(seed: u64, steps: u64, faults: &str) -> Settings {
    let faults = faults.parse().expect("a list of faults");
    Settings { seed, steps, faults, log: false, scene: Scene::Market }
}

fn passes(settings: &Settings) {
    let report = run(settings.clone());
    assert_eq!(report.broken, None, "seed {} with {}", settings.seed, settings.faults);
}

#[test]
fn one_seed_gives_one_run_to_the_byte() {
    for (seed, faults) in [(1, "all"), (2, "none"), (3, "crash,pause,partition")] {
        let settings = Settings { log: true, ..settings(seed, 12_000, faults) };
        let (first, second) = (run(settings.clone()), run(settings));
        assert!(first.log.len() > 100_000, "a log that says nothing proves nothing");
        assert!(first.log == second.log, "seed {seed} ran in two ways");
        assert_eq!(first.compared, second.compared);
    }
}

#[test]
fn seeds_that_differ_give_runs_that_differ() {
    let log = |seed| run(Settings { log: true, ..settings(seed, 3_000, "none") }).log;
    assert_ne!(log(1), log(2));
}

#[test]
fn nothing_breaks_without_faults() {
    for seed in 1..=3 {
        passes(&settings(seed, simulator::world::STEPS, "none"));
    }
}

#[test]
fn nothing_breaks_under_all_faults() {
    for seed in 1..=12 {
        passes(&settings(seed, simulator::world::STEPS, "all"));
    }
}

#[test]
fn a_sawtooth_of_any_length_does_not_make_the_number_of_instances_swing() {
    // Thousands more steps are played in a release build, by `./dev test`.
    for seed in 1..=2 {
        passes(&Settings { scene: Scene::Sawtooth, ..settings(seed, 120_000, "none") });
    }
}

#[test]
fn a_seed_that_once_failed_stays_mended() {
    let mut kept = 0;
    for line in KEPT.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let mut word = || words.next().unwrap_or_else(|| panic!("{line:?} is not: seed steps faults why"));
        let (seed, steps, faults) = (word().parse().unwrap(), word().parse().unwrap(), word());
        assert!(faults.parse::<Faults>().is_ok(), "{line}");
        passes(&settings(seed, steps, faults));
        kept += 1;
    }
    assert!(kept > 0, "the list was read");
}

#[test]
fn a_run_that_compares_too_little_fails() {
    let report = run(settings(1, simulator::world::STEPS, "none"));
    assert!(report.compared["decisions"] > 0 && report.compared["quota windows"] > 0);
    let mut oracle = simulator::oracle::Oracle::new(
        simulator::cast::Cast::new(&mut simulator::random::Random::new(1, 1)),
        std::collections::BTreeMap::new(),
    );
    oracle.finish(governance::Timestamp::ZERO);
    assert!(oracle.vacuous(Scene::Market).len() > 5, "nothing was compared");
}
