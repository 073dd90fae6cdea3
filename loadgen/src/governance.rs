//! The governance core alone: decisions per second of one core, with no server and no I/O.
//!
//! Owns clock and figures; the driver is that of the core's own benchmarks. The rule it keeps: a decision counts once its
//! dispatch was admitted, completed and closed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde::Serialize;

use crate::args::{self, Args};
use crate::output;
use crate::report::Common;

use world::World;

/// The same world as in the core's own benchmarks.
#[path = "../../governance/benches/world/mod.rs"]
mod world;

/// One number of agents and one kind of envelope.
#[derive(Debug, Clone, Copy, Serialize)]
struct Case {
    agents: u32,
    dispatches_per_envelope: u16,
    /// 1 where all dispatches of an envelope are alike; as many as dispatches where each differs from its neighbours.
    runs_per_envelope: u16,
    decisions_per_s_per_core: f64,
    ns_per_decision: f64,
    ns_per_envelope: f64,
    allocations_per_decision: f64,
}

/// Measures each number of agents, with mixed and with alike envelopes. The figures on top are those of the first number of
/// agents with mixed envelopes: there each dispatch is decided by itself, while alike ones share a decision.
pub(crate) fn run(scenario: &args::Governance, args: &Args) -> anyhow::Result<bool> {
    let mut cases = Vec::new();
    for agents in &scenario.agents {
        for mixed in [true, false] {
            let bar = output::spinner("governance: deciding");
            cases.push(measure(*agents, scenario.envelope, mixed, Duration::from_secs(scenario.seconds))?);
            bar.finish_and_clear();
        }
    }
    let first = cases.first().context("name at least one number of agents")?;
    let report = serde_json::json!({
        "decisions_per_s_per_core": first.decisions_per_s_per_core,
        "ns_per_decision": first.ns_per_decision,
        "allocations_per_decision": first.allocations_per_decision,
        "cases": cases,
    });
    output::finish(args, &Common::gather("governance", args), report)?;
    Ok(true)
}

fn measure(agents: u32, envelope: u16, mixed: bool, duration: Duration) -> anyhow::Result<Case> {
    let mut world = World::new(agents, envelope, mixed);
    // Tables grow to their size before anything is measured.
    world.stretch();
    let begin = Instant::now();
    let before = world.closed();
    while begin.elapsed() < duration {
        world.stretch();
    }
    let elapsed = begin.elapsed();
    let decisions = (world.closed() - before) as f64;
    let closed = world.closed();
    let allocations = allocation_counter::measure(|| world.stretch());
    let counted = (world.closed() - closed) as f64;
    ensure!(decisions > 0.0 && counted > 0.0, "nothing was decided");
    let tenth = |x: f64| (x * 10.0).round() / 10.0;
    Ok(Case {
        agents,
        dispatches_per_envelope: envelope,
        runs_per_envelope: if mixed { envelope } else { 1 },
        decisions_per_s_per_core: (decisions / elapsed.as_secs_f64()).round(),
        ns_per_decision: tenth(elapsed.as_nanos() as f64 / decisions),
        ns_per_envelope: (elapsed.as_nanos() as f64 / decisions * f64::from(envelope)).round(),
        allocations_per_decision: (allocations.count_total as f64 / counted * 10_000.0).round() / 10_000.0,
    })
}
