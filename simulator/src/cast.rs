//! The cast: which agents take part in a run, what they declare, what the policy says of them. Owns their making.
//!
//! The rule it keeps: one seed gives one cast. Names carry a number from the seed, so that agents fall into other shards in
//! every run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use governance::policy::{AgentPolicy, CallPattern, Policy, Rate};
use governance::{AgentId, Fallback, Registration};
use protocol::AuditKey;

use crate::random::Random;

/// What an agent is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Sends P0 calls for waiting people, steadily and far below its quota: the one whose waits are measured.
    Gate,
    /// Sends more or less than its quota allows, of everything.
    Bot,
    /// Answers the gate, quickly and always: what is measured there is the mesh alone.
    Host,
    /// Answers quickly.
    Desk,
    /// Answers, and has a hard rate.
    Crm,
    /// Fails in phases.
    Flaky,
    /// Takes long now and then, and sometimes for ever.
    Slow,
    /// Nobody declares it.
    Vault,
    /// Sends a load that climbs and falls.
    Wave,
    /// Answers it, with as many instances as the mesh wants.
    Pool,
}

/// One agent.
#[derive(Debug, Clone)]
pub struct Member {
    /// What it is there for.
    pub part: Part,
    /// Its name.
    pub id: AgentId,
    /// What it registered.
    pub registration: Registration,
    /// How many instances it runs as.
    pub instances: u16,
    /// Nanoseconds between two envelopes of one of its instances; zero for none.
    pub sends_each: u64,
    /// How long its load climbs before it falls again; none for a steady one.
    pub tooth: Option<Duration>,
}

/// All agents of a run, and the rules they run under.
#[derive(Debug, Clone)]
pub struct Cast {
    /// The agents.
    pub members: Vec<Member>,
    /// The rules.
    pub policy: Arc<Policy>,
    /// The mesh's key.
    pub key: AuditKey,
}

/// The topic that events are sent on.
pub const TOPIC: &str = "lead_changed";
/// What every target offers.
pub const CAPABILITY: &str = "work";

const PARTS: [(Part, &str); 10] = [
    (Part::Gate, "gate"),
    (Part::Bot, "bot"),
    (Part::Bot, "bot"),
    (Part::Bot, "bot"),
    (Part::Host, "host"),
    (Part::Desk, "desk"),
    (Part::Crm, "crm"),
    (Part::Flaky, "flaky"),
    (Part::Slow, "slow"),
    (Part::Vault, "vault"),
];

impl Cast {
    /// The cast of a run.
    #[must_use]
    pub fn new(random: &mut Random) -> Self {
        let first = random.below(1_000);
        let names: Vec<(Part, AgentId)> = PARTS
            .iter()
            .zip(0..)
            .map(|((part, name), n)| {
                let name = AgentId::new(&format!("{name}_{}", first + n)).expect("a good name");
                (*part, name)
            })
            .collect();
        let mut policy = Policy { strict_dependencies: false, ..Policy::default() };
        // A run is short: what takes half a minute in the field must happen several times in it.
        policy.breaker.probe_interval = Duration::from_secs(4);
        policy.breaker.window = Duration::from_secs(10);
        policy.retries.backoff_first = Duration::from_millis(300);
        policy.retries.backoff_max = Duration::from_secs(3);
        policy.in_flight.min = 16;
        let mut members = Vec::new();
        for (part, id) in &names {
            policy.agents.insert(id.clone(), rules(*part, random));
            members.push(member(*part, id, &names, random));
        }
        Self { members, policy: Arc::new(policy), key: AuditKey::new(&[7; 32]) }
    }

    /// The place of an agent by name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|m| m.id.as_str() == name)
    }

    /// Whether a source declared that it calls a target.
    #[must_use]
    pub fn declares(&self, source: &str, target: &str) -> bool {
        let any = format!("*/{CAPABILITY}");
        self.find(source)
            .is_some_and(|m| m.registration.dependencies.iter().any(|d| d == target || *d == any))
    }
}

fn rules(part: Part, random: &mut Random) -> AgentPolicy {
    let mut rules = AgentPolicy::default();
    let rate = |per_s: u64, burst: u64| Some(Rate { per_s: per_s as u32, burst: burst as u32 });
    match part {
        Part::Gate => {
            rules.quota = rate(50, 10);
            rules.p0 = vec![CallPattern { agent: None, capability: CAPABILITY.to_owned() }];
        }
        Part::Bot => rules.quota = rate(random.between(8, 24), random.between(1, 6)),
        Part::Crm => {
            rules.max_rate = rate(random.between(4, 10), random.between(1, 2));
            rules.quota = rate(10, 1);
        }
        Part::Host | Part::Desk | Part::Flaky | Part::Slow | Part::Vault | Part::Wave | Part::Pool => {
            rules.quota = rate(20, 4)
        }
    }
    rules
}

fn member(part: Part, id: &AgentId, names: &[(Part, AgentId)], random: &mut Random) -> Member {
    let named = |wanted: &[Part]| -> Vec<String> {
        names.iter().filter(|(p, _)| wanted.contains(p)).map(|(_, n)| n.to_string()).collect()
    };
    let is_source = matches!(part, Part::Gate | Part::Bot);
    let dependencies = match part {
        Part::Gate => named(&[Part::Host]),
        Part::Bot => named(&[Part::Desk, Part::Crm, Part::Flaky, Part::Slow]),
        Part::Desk => named(&[Part::Crm]),
        Part::Host | Part::Crm | Part::Flaky | Part::Slow | Part::Vault | Part::Wave | Part::Pool => {
            Vec::new()
        }
    };
    let fallbacks = if part == Part::Flaky && random.happens(5_000) {
        BTreeMap::from([(CAPABILITY.to_owned(), Fallback::Static("\"later\"".to_owned()))])
    } else {
        BTreeMap::new()
    };
    let registration = Registration {
        agent: id.to_string(),
        capabilities: if is_source { Vec::new() } else { vec![CAPABILITY.to_owned()] },
        topics: if matches!(part, Part::Desk | Part::Slow) { vec![TOPIC.to_owned()] } else { Vec::new() },
        dependencies,
        max_concurrent: if part == Part::Host { 32 } else { random.between(3, 8) as u32 },
        sla_p95_ms: 2_000,
        fallbacks,
        min_instances: 1,
        max_instances: 4,
        encoding: governance::Encoding::Binary,
    };
    let sends_each = match part {
        Part::Gate => 400_000_000,
        Part::Bot => random.between(120, 360) * 1_000_000,
        Part::Desk => 1_500_000_000,
        Part::Host | Part::Crm | Part::Flaky | Part::Slow | Part::Vault | Part::Wave | Part::Pool => 0,
    };
    let instances = if matches!(part, Part::Vault | Part::Host) { 1 } else { random.between(1, 2) as u16 };
    Member { part, id: id.clone(), registration, instances, sends_each, tooth: None }
}
