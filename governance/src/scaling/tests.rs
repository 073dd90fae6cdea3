//! Scaling alone, second by second.

use super::*;

const CALM: Sample = Sample {
    depth: 0,
    running: 50,
    slots: 100,
    in_flight: 0,
    succeeded: 0,
    instances: 2,
    instances_min: 2,
    instances_max: 6,
};

fn at(s: u64) -> Timestamp {
    Timestamp::from_millis(10_000_000 + s * 1_000)
}

/// Samples each second; the steps with their second, those that are held as a step to none.
fn steps(seconds: std::ops::Range<u64>, sample: impl Fn(u64) -> Sample) -> Vec<(u64, u32, Reason)> {
    let rules = ScalingPolicy::default();
    let mut scaling = Scaling::new();
    let mut told = Vec::new();
    for s in seconds {
        match scaling.on_sample(at(s), &rules, sample(s)) {
            Some(Advice::Step { to, reason, .. }) => told.push((s, to, reason)),
            Some(Advice::Hold { reason, .. }) => told.push((s, 0, reason)),
            None => {}
        }
    }
    told
}

#[test]
fn a_depth_above_a_hundred_for_thirty_seconds_adds_one_each_minute() {
    let deep = |_| Sample { depth: 101, ..CALM };
    assert_eq!(steps(0..95, deep), [(30, 3, Reason::DepthSustained), (90, 3, Reason::DepthSustained)]);
}

#[test]
fn a_break_in_the_depth_begins_the_count_anew() {
    let dips = |s| Sample { depth: if s % 29 == 0 { 100 } else { 5_000 }, ..CALM };
    assert_eq!(steps(0..300, dips), []);
}

#[test]
fn under_thirty_percent_for_five_minutes_removes_one() {
    let idle = |_| Sample { running: 29, instances: 6, ..CALM };
    assert_eq!(steps(0..301, idle), [(300, 5, Reason::UtilisationLow)]);
    let busy = |_| Sample { running: 30, instances: 6, ..CALM };
    assert_eq!(steps(0..900, busy), []);
}

#[test]
fn the_number_stays_within_its_bounds() {
    assert_eq!(steps(0..900, |_| Sample { depth: 500, instances: 6, ..CALM }), []);
    assert_eq!(steps(0..900, |_| Sample { running: 0, ..CALM }), []);
}

/// An agent whose instances follow each step at once, each with ten slots that do so many runs a second. What comes and what is
/// possible is given for each second; the steps with their second, and how many instances there were in the end.
fn follow(
    seconds: u64,
    arrivals: impl Fn(u64) -> u64,
    possible: impl Fn(u64, u32) -> u64,
) -> (Vec<(u64, u32, Reason)>, u32) {
    let rules = ScalingPolicy::default();
    let mut scaling = Scaling::new();
    let (mut told, mut instances, mut waits, mut succeeded) = (Vec::new(), 2_u32, 0_u64, 0_u64);
    for s in 0..seconds {
        waits += arrivals(s);
        let slots = u64::from(instances) * 10;
        let running = waits.min(slots);
        let gone = waits.min(possible(s, instances));
        (waits, succeeded) = (waits - gone, succeeded + gone);
        let sample = Sample {
            depth: waits as u32,
            running: running as u32,
            slots: slots as u32,
            in_flight: waits.min(slots * 4) as u32,
            succeeded,
            instances,
            instances_min: 2,
            instances_max: 6,
        };
        match scaling.on_sample(at(s), &rules, sample) {
            Some(Advice::Step { to, reason, .. }) => {
                told.push((s, to, reason));
                instances = to;
            }
            Some(Advice::Hold { reason, .. }) => told.push((s, 0, reason)),
            None => {}
        }
    }
    (told, instances)
}

/// Ten runs a second for each instance.
fn each_ten(_: u64, instances: u32) -> u64 {
    u64::from(instances) * 10
}

#[test]
fn a_peak_adds_what_it_takes_and_a_calm_takes_it_away_again() {
    let peak = |s| if (60..1_000).contains(&s) { 55 } else { 5 };
    let (told, instances) = follow(4_000, peak, each_ten);
    let up: Vec<u32> =
        told.iter().filter(|(_, _, r)| *r == Reason::DepthSustained).map(|(_, to, _)| *to).collect();
    let down: Vec<u32> =
        told.iter().filter(|(_, _, r)| *r == Reason::UtilisationLow).map(|(_, to, _)| *to).collect();
    assert_eq!((up, down, instances), (vec![3, 4, 5, 6], vec![5, 4, 3, 2], 2), "{told:?}");
}

#[test]
fn a_frozen_dependency_is_not_load() {
    let frozen = |s, instances| if s < 100 { each_ten(s, instances) } else { 0 };
    let (told, instances) = follow(3_600, |_| 15, frozen);
    assert_eq!((told.len(), instances), (1, 2), "{told:?}");
    assert_eq!(told[0].2, Reason::TargetFrozen);
}

#[test]
fn a_slow_dependency_stops_the_steps_after_the_first_that_brought_no_gain() {
    let (told, instances) = follow(3_600, |_| 40, |_, _| 12);
    let reasons: Vec<Reason> = told.iter().map(|(_, _, reason)| *reason).collect();
    assert_eq!((reasons, instances), (vec![Reason::DepthSustained, Reason::ScalingNoGain], 3), "{told:?}");
}

#[test]
fn a_slow_dependency_that_recovers_lets_the_steps_go_on() {
    let slow = |s, instances| if s < 1_000 { 12 } else { each_ten(s, instances) };
    let (told, instances) = follow(2_000, |_| 70, slow);
    assert_eq!(instances, 6, "{told:?}");
    assert_eq!(told.iter().filter(|(_, to, _)| *to == 0).count(), 1, "held and told once: {told:?}");
}

#[test]
fn of_many_instances_one_more_need_not_bring_a_tenth() {
    let rules = ScalingPolicy::default();
    let mut scaling = Scaling::new();
    let (mut instances, mut succeeded, mut steps) = (30_u32, 0, Vec::new());
    for s in 0..400 {
        succeeded += u64::from(instances) * 10;
        let many =
            Sample { depth: 5_000, in_flight: 1_000, succeeded, instances, instances_max: 100, ..CALM };
        match scaling.on_sample(at(s), &rules, many) {
            Some(Advice::Step { to, .. }) => {
                steps.push(s);
                instances = to;
            }
            Some(Advice::Hold { reason, .. }) => panic!("held at {s} for {reason}"),
            None => {}
        }
    }
    assert_eq!(steps.len(), 7, "{steps:?}");
}

#[test]
fn a_sawtooth_of_any_period_does_not_make_the_number_swing() {
    let mut compared = 0;
    for period in (20..2_400).step_by(20) {
        for deep_part in [1, 2, 3] {
            let arrivals = |s| if s % period < period * deep_part / 4 { 45 } else { 1 };
            let (told, _) = follow(3_600, arrivals, each_ten);
            let steps: Vec<_> = told.iter().filter(|(_, to, _)| *to > 0).collect();
            for pair in steps.windows(2) {
                let opposite = pair[0].2 != pair[1].2;
                let apart = pair[1].0 - pair[0].0;
                assert!(!opposite || apart >= 300, "period {period}: {pair:?}");
                assert!(apart >= 60, "period {period}: {pair:?}");
            }
            let turns = steps.windows(2).filter(|pair| pair[0].2 != pair[1].2).count();
            assert!(turns <= 6, "period {period}: {turns} turns in an hour: {told:?}");
            // A load that swings within five minutes is one load; a slower one may be followed, up and down.
            let most = if period <= 300 { 10 } else { 16 };
            assert!(steps.len() <= most, "period {period}: {} steps: {told:?}", steps.len());
            compared += steps.len();
        }
    }
    assert!(compared > 200, "only {compared} steps compared");
}
