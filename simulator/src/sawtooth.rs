//! The sawtooth: a load that climbs and falls again and again, an agent that is scaled, and the actuator that does it.
//!
//! Owns the scene; the decisions are the rules', the judgement the oracle's. The rule it keeps: the actuator does what is
//! stored as wanted and nothing else, a step a look.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use governance::policy::{AgentPolicy, Policy, Rate, ScalingPolicy};
use governance::{AgentId, Registration};
use protocol::control::Scale;
use protocol::{AuditKey, streams};

use crate::cast::{CAPABILITY, Cast, Member, Part};
use crate::net::Who;
use crate::random::Random;
use crate::strikes::Strike;
use crate::world::{Body, World};

/// How often the actuator looks.
const LOOK: u64 = 250_000_000;
/// Instances of the scaled agent.
const POOL_MIN: u32 = 1;
const POOL_MAX: u32 = 6;
/// A run lasts some hundred seconds: the patience of the rules, as short as their proportions allow.
const SCALING: ScalingPolicy = ScalingPolicy {
    depth: 12,
    depth_for: Duration::from_secs(3),
    gain_bp: 1_000,
    utilisation_bp: 3_000,
    utilisation_for: Duration::from_secs(24),
    pause: Duration::from_secs(5),
    silence: Duration::from_secs(3),
};
/// From what to what a tooth may last: shorter and longer than the rules look back.
const TOOTH_MS: (u64, u64) = (6_000, 120_000);
/// Nanoseconds between two envelopes of the source when the load is highest: more than all instances can take.
const PEAK: u64 = 60_000_000;
/// When it is lowest they come so many times as slowly.
pub(crate) const LOWEST: u64 = 12;

impl Cast {
    /// A source whose load is a sawtooth, and the agent that is scaled for it.
    #[must_use]
    pub fn sawtooth(random: &mut Random) -> Self {
        let named = |name: &str, random: &mut Random| {
            AgentId::new(&format!("{name}_{}", random.below(1_000))).expect("a good name")
        };
        let (wave, pool) = (named("wave", random), named("pool", random));
        let mut policy = Policy { strict_dependencies: false, scaling: SCALING, ..Policy::default() };
        let quota = Some(Rate { per_s: 1_000, burst: 100 });
        policy.agents.insert(wave.clone(), AgentPolicy { quota, ..AgentPolicy::default() });
        policy.in_flight.min = 8;
        let registration = |id: &AgentId, capabilities: &[&str], dependencies: Vec<String>| Registration {
            agent: id.to_string(),
            capabilities: capabilities.iter().map(|c| (*c).to_owned()).collect(),
            topics: Vec::new(),
            dependencies,
            max_concurrent: 4,
            sla_p95_ms: 20_000,
            fallbacks: BTreeMap::new(),
            min_instances: POOL_MIN,
            max_instances: POOL_MAX,
            encoding: governance::Encoding::Binary,
        };
        let (low, high) = TOOTH_MS;
        let members = vec![
            Member {
                part: Part::Wave,
                registration: registration(&wave, &[], vec![pool.to_string()]),
                id: wave,
                instances: 1,
                sends_each: PEAK,
                tooth: Some(Duration::from_millis(random.between(low, high))),
            },
            Member {
                part: Part::Pool,
                registration: registration(&pool, &[CAPABILITY], Vec::new()),
                id: pool,
                instances: POOL_MAX as u16,
                sends_each: 0,
                tooth: None,
            },
        ];
        Self { members, policy: Arc::new(policy), key: AuditKey::new(&[7; 32]) }
    }
}

impl World {
    /// Whether a process waits for the actuator to start it.
    pub(crate) fn is_spare(&self, who: Who) -> bool {
        let pool = self.pool();
        pool.iter().position(|w| *w == who).is_some_and(|at| at >= POOL_MIN as usize)
    }

    /// The instances of the scaled agent, running or not.
    fn pool(&self) -> Vec<Who> {
        let is_pool =
            |p: &crate::world::Process| self.cast.members.get(p.member).is_some_and(|m| m.part == Part::Pool);
        let instances =
            self.processes.iter().filter(|(who, p)| matches!(who, Who::Instance(_)) && is_pool(p));
        instances.map(|(who, _)| *who).collect()
    }

    pub(crate) fn plan_next_actuation(&mut self) {
        if !self.pool().is_empty() && !self.calm {
            self.plan_in(LOOK, Strike::Actuate);
        }
    }

    /// Starts or stops one instance where another number is wanted than works.
    pub(crate) fn actuate(&mut self) {
        let pool = self.pool();
        let working = |who: &Who| match self.processes.get(who).and_then(|p| p.body.as_ref()) {
            Some(Body::Instance(instance)) => !instance.is_draining(),
            Some(Body::Replica(_) | Body::Archiver(_)) | None => false,
        };
        let idle = |who: &Who| self.processes.get(who).is_some_and(|p| p.body.is_none());
        let wanted = self.broker.entries(streams::SCALE_BUCKET).into_iter().next();
        let wanted = wanted.and_then(|(_, entry)| serde_json::from_slice::<Scale>(&entry.value).ok());
        let wanted = wanted.map_or(POOL_MIN, |scale| scale.wanted) as usize;
        let at_work: Vec<Who> = pool.iter().copied().filter(working).collect();
        let strike = match at_work.len().cmp(&wanted) {
            std::cmp::Ordering::Less => pool.iter().copied().find(idle).map(Strike::Start),
            std::cmp::Ordering::Greater => at_work.last().copied().map(Strike::Stop),
            std::cmp::Ordering::Equal => None,
        };
        if let Some(strike) = strike {
            self.strike(strike);
        }
        self.plan_next_actuation();
    }
}
