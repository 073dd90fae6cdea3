//! A small world around the governor, in which tests read like stories. Owns no rules.
//!
//! Time is milliseconds since the world began. Effects are told as short lines, for example
//! `admit lead_bot>intent_decoder 3 P0 ok`; pulls are left out of the lines.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use governance::{
    Admission, AgentIx, Arrival, Beat, Completion, Destination, DispatchId, Effect, Encoding, Event,
    Fallback, Governor, Grant, InstanceId, Kind, Lane, Lineage, MessageIx, Outcome, Policy, Priority, Reason,
    Registration, Run, Shards, TargetReport, Timestamp, shard_of,
};

/// The world begins here, long after the epoch.
const BEGIN_MS: u64 = 1_000_000_000;

/// Far more room than any test fills.
const ROOM: u32 = 1_000_000;

/// A registration of an agent with one capability or none, to be refined.
pub(crate) fn agent(name: &str) -> Registration {
    Registration {
        agent: name.to_owned(),
        capabilities: Vec::new(),
        topics: Vec::new(),
        dependencies: Vec::new(),
        max_concurrent: 50,
        sla_p95_ms: 500,
        fallbacks: BTreeMap::new(),
        min_instances: 1,
        max_instances: 1,
        encoding: Encoding::Binary,
    }
}

/// Refines registrations.
pub(crate) trait Refine {
    fn offers(self, capabilities: &[&str]) -> Self;
    fn needs(self, dependencies: &[&str]) -> Self;
    fn wants(self, topics: &[&str]) -> Self;
    fn falls_back(self, capability: &str, fallback: Fallback) -> Self;
}

impl Refine for Registration {
    fn offers(mut self, capabilities: &[&str]) -> Self {
        self.capabilities = capabilities.iter().map(|c| (*c).to_owned()).collect();
        self
    }
    fn needs(mut self, dependencies: &[&str]) -> Self {
        self.dependencies = dependencies.iter().map(|d| (*d).to_owned()).collect();
        self
    }
    fn wants(mut self, topics: &[&str]) -> Self {
        self.topics = topics.iter().map(|t| (*t).to_owned()).collect();
        self
    }
    fn falls_back(mut self, capability: &str, fallback: Fallback) -> Self {
        self.fallbacks.insert(capability.to_owned(), fallback);
        self
    }
}

/// A run to send, refined before it goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Send {
    pub(crate) priority: Priority,
    pub(crate) run: Run,
}

impl Send {
    pub(crate) fn at(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }
    pub(crate) fn times(mut self, count: u16) -> Self {
        self.run.count = count;
        self
    }
    pub(crate) fn event(mut self) -> Self {
        self.run.kind = Kind::Event;
        self
    }
    pub(crate) fn within_ms(mut self, ms: u64) -> Self {
        self.run.budget = Duration::from_millis(ms);
        self
    }
    pub(crate) fn order_key(mut self, key: u64) -> Self {
        self.run.order_key = key;
        self
    }
    pub(crate) fn idempotency_key(mut self, key: u128) -> Self {
        self.run.idempotency_key = key;
        self
    }
    pub(crate) fn child(mut self, lineage: Lineage) -> Self {
        self.run.lineage = lineage;
        self
    }
}

/// The governor with its surroundings.
pub(crate) struct World {
    pub(crate) governor: Governor,
    pub(crate) now: Timestamp,
    /// Room of the in-flight window at each turn.
    pub(crate) room: u32,
    messages: u32,
    sequences: BTreeMap<AgentIx, u64>,
    /// Admissions that have not ended, in the order in which they were made.
    pub(crate) running: Vec<Admission>,
    ids: BTreeMap<u32, (InstanceId, u64)>,
}

impl World {
    pub(crate) fn new(policy: Policy) -> Self {
        Self::of(Shards::ALL, policy)
    }

    /// The core of the home of some shards only.
    pub(crate) fn of(shards: Shards, policy: Policy) -> Self {
        Self {
            governor: Governor::new(Arc::new(policy), shards),
            now: Timestamp::from_millis(BEGIN_MS - 1_000),
            room: ROOM,
            messages: 0,
            sequences: BTreeMap::new(),
            running: Vec::new(),
            ids: BTreeMap::new(),
        }
    }

    /// A world under the article's rules, with agents that have one live instance each.
    pub(crate) fn with(agents: &[Registration]) -> Self {
        Self::under(Policy::default(), agents)
    }

    pub(crate) fn under(policy: Policy, agents: &[Registration]) -> Self {
        Self::new(policy).joined(agents)
    }

    /// The home of some of the agents; the others have their homes elsewhere.
    pub(crate) fn home_of(names: &[&str], policy: Policy, agents: &[Registration]) -> Self {
        let shards = names.iter().fold(Shards::NONE, |shards, name| shards.with(shard_of(name)));
        let world = Self::of(shards, policy).joined(agents);
        for agent in agents {
            let here = names.contains(&agent.agent.as_str());
            assert_eq!(
                world.governor.is_home(world.ix(&agent.agent)),
                here,
                "{} is where it belongs",
                agent.agent
            );
        }
        world
    }

    fn joined(self, agents: &[Registration]) -> Self {
        let mut world = self;
        for registration in agents {
            world.apply(Event::AgentRegistered { registration });
        }
        // The agents have been there for a second when a story begins.
        world.now = Timestamp::from_millis(BEGIN_MS);
        world
    }

    pub(crate) fn ix(&self, name: &str) -> AgentIx {
        self.governor.agent(name).expect("the agent is known")
    }

    pub(crate) fn name(&self, ix: AgentIx) -> &str {
        self.governor.agent_name(ix).as_str()
    }

    /// Applies an event, checks the invariants, keeps what runs; the effects as they are.
    pub(crate) fn apply(&mut self, event: Event<'_>) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.governor.apply(self.now, event, &mut effects);
        self.governor.check_invariants();
        for effect in &effects {
            if let Effect::Admit(admission) = effect {
                self.running.push(*admission);
            }
            if let Effect::Forget { open } = effect {
                self.running.retain(|a| a.open != *open);
            }
        }
        effects
    }

    /// A call of a capability of an agent, a request at P2 unless refined.
    pub(crate) fn call(&self, target: &str, capability: &str) -> Send {
        let to = match (self.governor.agent(target), self.governor.capability(capability)) {
            (Some(target), Some(capability)) => Destination::Agent(target, capability),
            (None, _) => Destination::Nowhere(Reason::UnknownTarget),
            (Some(_), None) => Destination::Nowhere(Reason::UnknownCapability),
        };
        send_to(to)
    }

    /// A call of whoever offers a capability.
    pub(crate) fn call_any(&self, capability: &str) -> Send {
        send_to(match self.governor.capability(capability) {
            Some(capability) => Destination::Capability(capability),
            None => Destination::Nowhere(Reason::NoProvider),
        })
    }

    /// An event to a topic.
    pub(crate) fn publish(&self, topic: &str) -> Send {
        send_to(match self.governor.topic(topic) {
            Some(topic) => Destination::Topic(topic),
            None => Destination::Nowhere(Reason::NoSubscriber),
        })
        .event()
    }

    /// Sends a run as one message accepted now, and gives the effects of its arrival and of a turn.
    pub(crate) fn send(&mut self, source: &str, send: Send) -> Vec<Effect> {
        let mut effects = self.arrive(source, send);
        effects.extend(self.turn());
        effects
    }

    /// Sends a run as one message accepted now; nothing is admitted before a turn.
    pub(crate) fn arrive(&mut self, source: &str, send: Send) -> Vec<Effect> {
        let source = self.ix(source);
        let sequence = self.sequences.entry(source).or_insert(0);
        *sequence += 1;
        let sequence = *sequence;
        self.deliver(source, sequence, send, false)
    }

    /// Delivers a message with a given sequence.
    pub(crate) fn deliver(
        &mut self,
        source: AgentIx,
        sequence: u64,
        send: Send,
        resumed: bool,
    ) -> Vec<Effect> {
        self.messages += 1;
        let instance = instance_of(source);
        self.ids.insert(self.messages, (instance, sequence));
        self.apply(Event::Arrived(Arrival {
            lane: Lane { source, priority: send.priority },
            message: MessageIx(self.messages),
            instance,
            sequence,
            accepted: self.now,
            resumed,
            runs: &[send.run],
        }))
    }

    pub(crate) fn turn(&mut self) -> Vec<Effect> {
        self.apply(Event::Turn { room: self.room })
    }

    /// Lets time pass from wake-up to wake-up, with a turn after each.
    pub(crate) fn pass_ms(&mut self, ms: u64) -> Vec<Effect> {
        let end = Timestamp(self.now.0 + ms * 1_000_000);
        let mut effects = Vec::new();
        while let Some(wakeup) = self.governor.next_wakeup()
            && wakeup.at <= end
        {
            self.now = self.now.max(wakeup.at);
            effects.extend(self.apply(Event::Tick));
            effects.extend(self.turn());
        }
        self.now = end;
        effects.extend(self.apply(Event::Tick));
        effects.extend(self.turn());
        effects
    }

    /// A heartbeat of the one instance of an agent.
    pub(crate) fn beat(&mut self, name: &str, slots: u32, running: u32, running_over: u32) -> Vec<Effect> {
        let agent = self.ix(name);
        let instance = instance_of(agent);
        self.apply(Event::InstanceSeen { agent, beat: Beat { instance, slots, running, running_over } })
    }

    /// The id of the first dispatch of an admission.
    pub(crate) fn id(&self, admission: &Admission) -> DispatchId {
        let (instance, sequence) = self.ids[&admission.message.0];
        DispatchId { instance, sequence, slot: admission.first, copy: admission.copy }
    }

    /// All dispatches of an admission end alike; the effects of that and of a turn.
    pub(crate) fn end(&mut self, admission: &Admission, outcome: Outcome, ran_ms: u64) -> Vec<Effect> {
        let mut effects = self.complete(admission, outcome, ran_ms, 1);
        effects.extend(self.turn());
        effects
    }

    /// All dispatches of an admission end alike, in a certain attempt.
    pub(crate) fn complete(
        &mut self,
        admission: &Admission,
        outcome: Outcome,
        ran_ms: u64,
        attempt: u8,
    ) -> Vec<Effect> {
        let reason = if outcome == Outcome::Success { Reason::Ok } else { Reason::HandlerFailed };
        let first = self.id(admission);
        let ran = Duration::from_millis(ran_ms);
        let (count, reported) = (admission.count, self.now);
        let completion = Completion { first, count, outcome, reason, ran, attempt, reported, row: 0 };
        let Admission { source, target, .. } = *admission;
        self.apply(Event::Completed { source, target, completions: &[completion] })
    }

    /// Everything that runs ends well after so many milliseconds in the handler.
    pub(crate) fn end_all(&mut self, ran_ms: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        for admission in std::mem::take(&mut self.running) {
            effects.extend(self.complete(&admission, Outcome::Success, ran_ms, 1));
        }
        effects.extend(self.turn());
        effects
    }

    /// Effects as lines, pulls and forgotten handles left out.
    pub(crate) fn told(&self, effects: &[Effect]) -> Vec<String> {
        effects.iter().filter_map(|effect| self.line(effect)).collect()
    }

    fn line(&self, effect: &Effect) -> Option<String> {
        let name = |ix: &AgentIx| self.name(*ix).to_owned();
        let slots = |id: &DispatchId, count: &u16| format!("{}+{count}", id.slot);
        Some(match effect {
            Effect::Pull { .. } | Effect::Forget { .. } => return None,
            Effect::Admit(a) => {
                let person = if a.serves_person { " for a person" } else { "" };
                let (source, target) = (name(&a.source), name(&a.target));
                format!("admit {source}>{target} {} {} {}{person}", a.count, a.class, a.reason)
            }
            Effect::End(e) => {
                let payload = e.fallback.as_deref().map_or_else(String::new, |text| format!(" {text}"));
                format!("end {} {} {}{payload}", e.count, e.outcome, e.reason)
            }
            Effect::Duplicate { .. } => "duplicate".to_owned(),
            Effect::Close(c) => format!("close {} {} {}", slots(&c.id, &c.count), c.outcome, c.reason),
            Effect::Late { id, count, .. } => format!("late {}", slots(id, count)),
            Effect::Retry { attempt, delay, .. } => format!("retry attempt {attempt} after {delay:?}"),
            Effect::DeadLetter { attempts, .. } => format!("dead letter after {attempts}"),
            Effect::Revoke { target, first, count } => {
                format!("revoke {} {}", name(target), slots(first, count))
            }
            Effect::Runner { id, loss, .. } => format!("runner of {} lost {}", id.slot, loss.lost),
            Effect::Condemn { id, lost, .. } => format!("condemn {} after {lost}", id.slot),
            Effect::Permit(permit) => format!("permit {permit:?}"),
            Effect::Extended { deadline, .. } => format!("extended to {}", self.ms(*deadline)),
            Effect::SlowDown { source, rate_per_s, queued, wait } => {
                format!("slow down {} {rate_per_s}/s {queued} queued {wait:?}", name(source))
            }
            Effect::Resume { source } => format!("resume {}", name(source)),
            Effect::Breaker(b) => format!("breaker {} {}>{} {}", name(&b.target), b.from, b.to, b.reason),
            Effect::Ping { target } => format!("ping {}", name(target)),
            Effect::Scale(s) => format!("scale {} {}>{} {}", name(&s.agent), s.from, s.to, s.reason),
            Effect::InstanceLost { agent, .. } => format!("lost an instance of {}", name(agent)),
            Effect::Deferral { on, .. } => format!("deferral {}", if *on { "begins" } else { "ends" }),
            Effect::Demoted { count, source, .. } => format!("demoted {count} of {}", name(source)),
            Effect::ScaleHeld { agent, instances, reason, .. } => {
                format!("scale held {} at {instances} {reason}", name(agent))
            }
            Effect::Report { target, report } => {
                let TargetReport { finished, errors, over, .. } = report;
                format!("report {} {finished} finished {errors} errors {over} over", name(target))
            }
            Effect::ProbeEnded { target, succeeded } => format!("probe ended {} {succeeded:?}", name(target)),
            Effect::AskGrant { target, ask } => format!("ask {} {ask:?}", name(target)),
            Effect::Granted(Grant { count, wait }) => format!("granted {count} wait {wait:?}"),
            Effect::P0Suffers { delay } => format!("p0 suffers {delay:?}"),
        })
    }

    /// Milliseconds since the world began.
    pub(crate) fn ms(&self, at: Timestamp) -> u64 {
        at.0 / 1_000_000 - BEGIN_MS
    }
}

fn send_to(to: Destination) -> Send {
    let run = Run {
        first: 0,
        count: 1,
        kind: Kind::Request,
        to,
        budget: Duration::ZERO,
        lineage: Lineage::Root,
        order_key: 0,
        idempotency_key: 0,
    };
    Send { priority: Priority::P2, run }
}

pub(crate) fn instance_of(agent: AgentIx) -> InstanceId {
    InstanceId(u64::from(agent.0) + 1)
}

/// The number of dispatches admitted in these effects.
pub(crate) fn admitted(effects: &[Effect]) -> u32 {
    effects.iter().map(|e| if let Effect::Admit(a) = e { u32::from(a.count) } else { 0 }).sum()
}
