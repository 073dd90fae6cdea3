//! The governance core alone: decisions per second of one core, with no server and no I/O.
//!
//! Owns a driver that does what a coordinator's shell does around the core: delivers what the core pulled, asks for turns,
//! reports completions. The rule it keeps: a decision counts once its dispatch was admitted, completed and closed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use governance::policy::{Rate, Role};
use governance::{
    AgentIx, Arrival, Beat, Completion, Destination, DispatchId, Effect, Event, Governor, InstanceId, Kind,
    Lane, Lineage, MessageIx, Outcome, Policy, Priority, Reason, Registration, Run, Timestamp,
};
use serde::Serialize;

use crate::args::{self, Args};
use crate::output;
use crate::report::Common;

/// Faster than any core decides, so that the quota is computed and never waited for.
const QUOTA: Rate = Rate { per_s: 100_000_000, burst: 10_000_000 };
/// Envelopes of one measured stretch; the clock is read between stretches.
const STRETCH: u32 = 200;
/// What one instance of a target runs at once; high, so that slots are counted and never waited for.
const SLOTS: u32 = 65_535;
/// The middle of any run: handlers take this long, as far as the core is told.
const RAN: Duration = Duration::from_millis(1);

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
    let mut world = World::new(agents, envelope, mixed)?;
    // Tables grow to their size before anything is measured.
    world.stretch()?;
    let begin = Instant::now();
    let before = world.closed;
    while begin.elapsed() < duration {
        world.stretch()?;
    }
    let elapsed = begin.elapsed();
    let decisions = (world.closed - before) as f64;
    let closed = world.closed;
    let mut last = Ok(());
    let allocations = allocation_counter::measure(|| last = world.stretch());
    last?;
    let counted = (world.closed - closed) as f64;
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

/// A source and its target.
struct Pair {
    source: AgentIx,
    target: AgentIx,
    instance: InstanceId,
    sequence: u64,
    runs: Vec<Run>,
    /// Lane messages that the core has asked for and not been given.
    credit: u32,
}

/// The shell around the core, with messages that never wait.
struct World {
    governor: Governor,
    now: Timestamp,
    pairs: Vec<Pair>,
    /// The pair of each agent that is a source.
    pair_of: Vec<Option<usize>>,
    effects: Vec<Effect>,
    completions: Vec<Completion>,
    next_beat: Timestamp,
    messages: u32,
    envelope: u16,
    turn: usize,
    /// Dispatches that were admitted, completed and closed.
    closed: u64,
}

fn registration(
    agent: String,
    capabilities: &[&str],
    dependencies: &[String],
) -> anyhow::Result<Registration> {
    let value = serde_json::json!({
        "agent": agent, "capabilities": capabilities, "dependencies": dependencies, "max_concurrent": SLOTS,
    });
    serde_json::from_value(value).context("a registration of our own")
}

impl World {
    fn new(agents: u32, envelope: u16, mixed: bool) -> anyhow::Result<Self> {
        let mut policy = Policy { default_role: "loadgen".to_owned(), ..Policy::default() };
        policy.roles.insert("loadgen".to_owned(), Role { quota: QUOTA, p0: Vec::new() });
        let mut world = Self {
            governor: Governor::new(Arc::new(policy), governance::Shards::ALL),
            now: Timestamp::from_millis(1_767_323_045_678),
            pairs: Vec::new(),
            pair_of: Vec::new(),
            effects: Vec::new(),
            completions: Vec::new(),
            next_beat: Timestamp::ZERO,
            messages: 0,
            envelope,
            turn: 0,
            closed: 0,
        };
        for i in 0..(agents / 2).max(1) {
            world.add_pair(i, mixed)?;
        }
        world.beat();
        Ok(world)
    }

    fn add_pair(&mut self, i: u32, mixed: bool) -> anyhow::Result<()> {
        let (source, target) = (format!("src-{i}"), format!("dst-{i}"));
        for registration in [
            registration(target.clone(), &["work", "rest"], &[])?,
            registration(source.clone(), &[], std::slice::from_ref(&target))?,
        ] {
            self.apply(Event::AgentRegistered { registration: &registration });
        }
        let index = |name: &str| self.governor.agent(name).context("it was registered a line above");
        let (source, target) = (index(&source)?, index(&target)?);
        let capability = |name| self.governor.capability(name).context("it was registered a line above");
        let (work, rest) = (capability("work")?, capability("rest")?);
        let run = |first, count, capability| Run {
            first,
            count,
            kind: Kind::Request,
            to: Destination::Agent(target, capability),
            budget: Duration::ZERO,
            lineage: Lineage::Root,
            order_key: 0,
            idempotency_key: 0,
        };
        let runs = if mixed {
            (0..self.envelope).map(|slot| run(slot, 1, if slot % 2 == 0 { work } else { rest })).collect()
        } else {
            vec![run(0, self.envelope, work)]
        };
        self.pair_of.resize(self.pair_of.len().max(source.ix() + 1), None);
        self.pair_of[source.ix()] = Some(self.pairs.len());
        let instance = InstanceId(u64::from(i) + 1);
        self.pairs.push(Pair { source, target, instance, sequence: 0, runs, credit: 0 });
        // What the core asked for while the pair was not known yet.
        self.perform();
        Ok(())
    }

    /// Each target says that it lives, once a second as instances do.
    fn beat(&mut self) {
        for i in 0..self.pairs.len() {
            let Pair { target, instance, .. } = self.pairs[i];
            let beat = Beat { instance, slots: SLOTS, running: 0, running_over: 0 };
            self.apply(Event::InstanceSeen { agent: target, beat });
        }
        self.perform();
        self.next_beat = self.now.after(Duration::from_secs(1));
    }

    fn apply(&mut self, event: Event<'_>) {
        self.governor.apply(self.now, event, &mut self.effects);
    }

    /// So many envelopes from arrival to the last close.
    fn stretch(&mut self) -> anyhow::Result<()> {
        for _ in 0..STRETCH {
            self.one_envelope()?;
        }
        Ok(())
    }

    fn one_envelope(&mut self) -> anyhow::Result<()> {
        // The quota gives an envelope in this time; time passes for all pairs alike.
        let step = u64::from(self.envelope) * 1_000_000_000 / u64::from(QUOTA.per_s) + 1;
        self.now = self.now.after(Duration::from_nanos(step));
        if self.now >= self.next_beat {
            self.beat();
        }
        let at = self.turn % self.pairs.len();
        self.turn += 1;
        let pair = &mut self.pairs[at];
        ensure!(pair.credit > 0, "the core pulls nothing from a lane that is empty");
        pair.credit -= 1;
        pair.sequence += 1;
        let arrival = Arrival {
            lane: Lane { source: pair.source, priority: Priority::P2 },
            message: MessageIx(self.messages),
            instance: pair.instance,
            sequence: pair.sequence,
            accepted: self.now,
            resumed: false,
            runs: &pair.runs,
        };
        self.messages = self.messages.wrapping_add(1);
        self.governor.apply(self.now, Event::Arrived(arrival), &mut self.effects);
        self.apply(Event::Turn { room: u32::MAX });
        let Pair { instance, sequence, source, target, .. } = self.pairs[at];
        self.complete_admitted(instance, sequence);
        let mut completions = std::mem::take(&mut self.completions);
        self.apply(Event::Completed { source, target, completions: &completions });
        completions.clear();
        self.completions = completions;
        self.perform();
        Ok(())
    }

    /// Turns what was admitted into completions: the target answers at once.
    fn complete_admitted(&mut self, instance: InstanceId, sequence: u64) {
        for effect in &self.effects {
            if let Effect::Admit(admission) = effect {
                let first = DispatchId { instance, sequence, slot: admission.first, copy: 0 };
                self.completions.push(Completion {
                    first,
                    count: admission.count,
                    outcome: Outcome::Success,
                    reason: Reason::Ok,
                    ran: RAN,
                    attempt: 1,
                    reported: self.now,
                    row: self.completions.len() as u32,
                });
            }
        }
    }

    /// Counts what was closed and notes what is pulled.
    fn perform(&mut self) {
        for effect in self.effects.drain(..) {
            if let Effect::Close(closing) = effect {
                self.closed += u64::from(closing.count);
            } else if let Effect::Pull { lane, messages } = effect
                && lane.priority == Priority::P2
                && let Some(pair) = self.pair_of.get(lane.source.ix()).copied().flatten()
            {
                self.pairs[pair].credit += messages;
            }
        }
    }
}
