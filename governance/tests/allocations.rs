//! A decision allocates nothing: what the core keeps of it has its room from envelopes before.

use crate::world::{STRETCH, World};

/// Dispatches of one envelope.
const ENVELOPE: u16 = 500;

/// Allocations for each decision, after the tables have grown to their size.
fn per_decision(agents: u32, mixed: bool) -> f64 {
    let mut world = World::new(agents, ENVELOPE, mixed);
    for _ in 0..agents.div_ceil(STRETCH).max(2) {
        world.stretch();
    }
    let before = world.closed();
    let allocated = allocation_counter::measure(|| world.stretch());
    let decisions = world.closed() - before;
    assert_eq!(decisions, u64::from(STRETCH) * u64::from(ENVELOPE), "each dispatch was decided and closed");
    allocated.count_total as f64 / decisions as f64
}

#[test]
fn a_decision_about_a_dispatch_by_itself_allocates_nothing() {
    for agents in [12, 1_000] {
        let allocations = per_decision(agents, true);
        assert!(allocations < 0.001, "{allocations} allocations per decision with {agents} agents");
    }
}

#[test]
fn a_decision_about_an_envelope_of_alike_dispatches_allocates_nothing() {
    for agents in [12, 1_000] {
        let allocations = per_decision(agents, false);
        assert!(allocations < 0.001, "{allocations} allocations per decision with {agents} agents");
    }
}
