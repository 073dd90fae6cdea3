//! What a decision costs on one core: envelopes from arrival to the close of their last dispatch, all rules on.
//!
//! `cargo bench -p governance`. Throughput is in decisions. Hashing of payloads is apart: a decision begins after it. A machine
//! that others use shows their work as well; what a change costs in instructions, wherever it runs, is shown by
//! `governance/benches/instructions.sh`.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};

mod world;

use world::World;

/// Dispatches of one envelope.
const ENVELOPE: u16 = 500;
/// From a handful to more than any mesh has.
const AGENTS: [u32; 5] = [10, 12, 1_000, 10_000, 100_000];
/// Envelopes for each agent before anything is measured, so that every table has its size.
const ROUNDS: u32 = 2;

fn main() {
    if let Some(stretches) = std::env::args().skip_while(|a| a != "--stretches").nth(1) {
        return count(&stretches);
    }
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .sample_size(30)
        .configure_from_args();
    decisions(&mut criterion);
    criterion.final_summary();
}

fn decisions(criterion: &mut Criterion) {
    for (name, mixed) in [("unlike", true), ("alike", false)] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(ENVELOPE.into()));
        for agents in AGENTS {
            let mut world = warm(agents, mixed);
            group.bench_function(BenchmarkId::from_parameter(agents), |bencher| {
                bencher.iter(|| world.one_envelope());
            });
            black_box(world.closed());
        }
        group.finish();
    }
}

fn warm(agents: u32, mixed: bool) -> World {
    let mut world = World::new(agents, ENVELOPE, mixed);
    for _ in 0..agents.div_ceil(2) * ROUNDS {
        world.one_envelope();
    }
    world
}

/// Some stretches with 12 agents and nothing else, for a tool that counts instructions around it.
fn count(stretches: &str) {
    let stretches: u32 = stretches.parse().expect("--stretches is followed by a number");
    let mut world = warm(12, true);
    for _ in 0..stretches {
        world.stretch();
    }
    black_box(world.closed());
}
