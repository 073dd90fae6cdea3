//! The world around the core in benchmarks: sources, targets that answer at once, and messages that never wait.
//!
//! Owns a driver that does what a coordinator's shell does around the core: delivers what the core pulled, asks for turns,
//! reports completions. It reads no clock. The rule it keeps: a decision counts once its dispatch was admitted, completed and
//! closed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use governance::policy::{Rate, Role};
use governance::{
    AgentIx, Arrival, Beat, CapabilityIx, Completion, Destination, DispatchId, Effect, Encoding, Event,
    Governor, InstanceId, Kind, Lane, Lineage, MessageIx, Outcome, Policy, Priority, Reason, Registration,
    Run, Timestamp,
};

/// Faster than any core decides, so that the quota is computed and never waited for.
const QUOTA: Rate = Rate { per_s: 100_000_000, burst: 10_000_000 };
/// Envelopes of one stretch; whoever measures reads the clock between stretches.
pub(crate) const STRETCH: u32 = 200;
/// What one instance of a target runs at once; high, so that slots are counted and never waited for.
const SLOTS: u32 = 65_535;
/// The middle of any run: handlers take this long, as far as the core is told.
const RAN: Duration = Duration::from_millis(1);

/// A source and its target.
struct Pair {
    source: AgentIx,
    target: AgentIx,
    instance: InstanceId,
    sequence: u64,
    /// Lane messages that the core has asked for and not been given.
    credit: u32,
}

/// The shell around the core, with messages that never wait.
pub(crate) struct World {
    governor: Governor,
    now: Timestamp,
    pairs: Vec<Pair>,
    /// The pair of each agent that is a source.
    pair_of: Vec<Option<usize>>,
    /// An envelope as the shell has just read it; its target is that of the pair whose turn it is.
    runs: Vec<Run>,
    effects: Vec<Effect>,
    completions: Vec<Completion>,
    next_beat: Timestamp,
    messages: u32,
    envelope: u16,
    turn: usize,
    closed: u64,
}

fn registration(agent: &str, capabilities: &[&str], dependencies: &[&str]) -> Registration {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Registration {
        agent: agent.to_owned(),
        capabilities: owned(capabilities),
        topics: Vec::new(),
        dependencies: owned(dependencies),
        max_concurrent: SLOTS,
        sla_p95_ms: 500,
        fallbacks: BTreeMap::new(),
        min_instances: 1,
        max_instances: 1,
        encoding: Encoding::Binary,
    }
}

/// The runs of an envelope: one for each dispatch, or one of all.
fn runs(target: AgentIx, [work, rest]: [CapabilityIx; 2], envelope: u16, mixed: bool) -> Vec<Run> {
    let run = |first, count, capability| Run {
        first,
        count,
        kind: if first % 4 == 1 { Kind::Event } else { Kind::Request },
        to: Destination::Agent(target, capability),
        budget: Duration::from_secs(10),
        lineage: Lineage::Root,
        order_key: 0,
        idempotency_key: 0,
    };
    if mixed {
        (0..envelope).map(|slot| run(slot, 1, if slot % 2 == 0 { work } else { rest })).collect()
    } else {
        vec![run(0, envelope, work)]
    }
}

impl World {
    /// So many agents, half of them sources. In a mixed envelope each dispatch differs from its neighbours, so that each is
    /// decided by itself; alike ones share a decision.
    pub(crate) fn new(agents: u32, envelope: u16, mixed: bool) -> Self {
        let mut policy = Policy { default_role: "loadgen".to_owned(), ..Policy::default() };
        policy.roles.insert("loadgen".to_owned(), Role { quota: QUOTA, p0: Vec::new() });
        let mut world = Self {
            governor: Governor::new(Arc::new(policy), governance::Shards::ALL),
            now: Timestamp::from_millis(1_767_323_045_678),
            pairs: Vec::new(),
            pair_of: Vec::new(),
            runs: Vec::new(),
            effects: Vec::new(),
            completions: Vec::new(),
            next_beat: Timestamp::ZERO,
            messages: 0,
            envelope,
            turn: 0,
            closed: 0,
        };
        for i in 0..(agents / 2).max(1) {
            world.add_pair(i, mixed);
        }
        world.beat();
        world
    }

    /// Dispatches that were admitted, completed and closed.
    pub(crate) const fn closed(&self) -> u64 {
        self.closed
    }

    fn add_pair(&mut self, i: u32, mixed: bool) {
        let (source, target) = (format!("src-{i}"), format!("dst-{i}"));
        for registration in
            [registration(&target, &["work", "rest"], &[]), registration(&source, &[], &[target.as_str()])]
        {
            self.apply(Event::AgentRegistered { registration: &registration });
        }
        let index = |name: &str| self.governor.agent(name).expect("it was registered a line above");
        let (source, target) = (index(&source), index(&target));
        let capability = |name| self.governor.capability(name).expect("it was registered a few lines above");
        let (work, rest) = (capability("work"), capability("rest"));
        if self.runs.is_empty() {
            self.runs = runs(target, [work, rest], self.envelope, mixed);
        }
        self.pair_of.resize(self.pair_of.len().max(source.ix() + 1), None);
        self.pair_of[source.ix()] = Some(self.pairs.len());
        let instance = InstanceId(u64::from(i) + 1);
        self.pairs.push(Pair { source, target, instance, sequence: 0, credit: 0 });
        // What the core asked for while the pair was not known yet.
        self.perform();
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
    pub(crate) fn stretch(&mut self) {
        for _ in 0..STRETCH {
            self.one_envelope();
        }
    }

    /// One envelope from arrival to the close of its last dispatch.
    pub(crate) fn one_envelope(&mut self) {
        // The quota gives an envelope in this time; time passes for all pairs alike.
        let step = u64::from(self.envelope) * 1_000_000_000 / u64::from(QUOTA.per_s) + 1;
        self.now = self.now.after(Duration::from_nanos(step));
        if self.now >= self.next_beat {
            self.beat();
        }
        let at = self.turn % self.pairs.len();
        self.turn += 1;
        let pair = &mut self.pairs[at];
        assert!(pair.credit > 0, "the core pulls from a lane that is empty");
        pair.credit -= 1;
        pair.sequence += 1;
        for run in &mut self.runs {
            if let Destination::Agent(target, _) = &mut run.to {
                *target = pair.target;
            }
        }
        let arrival = Arrival {
            lane: Lane { source: pair.source, priority: Priority::P2 },
            message: MessageIx(self.messages),
            instance: pair.instance,
            sequence: pair.sequence,
            accepted: self.now,
            resumed: false,
            runs: &self.runs,
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
