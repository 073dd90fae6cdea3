//! The policy: the versioned rules. Owns their form and their defaults; reading a file is in `policy/parse.rs`.
//!
//! The rule it keeps: every number that decides something stands here, with its unit, and `mesh.toml` as shipped says
//! the same as `Policy::default()`. Ratios are basis points (10,000 is the whole), so that no float ever decides.

mod parse;
mod table;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::names::AgentId;
use crate::words::Priority;

pub use parse::Problem;

/// One whole in basis points.
pub const WHOLE_BP: u64 = 10_000;

/// The rules in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Grows by one with each change.
    pub version: u32,
    /// The role of an agent that the policy does not name.
    pub default_role: String,
    /// Whether a dependency that nobody offers yet refuses the registration; else it is a warning.
    pub strict_dependencies: bool,
    /// What the roles allow, by name.
    pub roles: BTreeMap<String, Role>,
    /// What the policy says of single agents.
    pub agents: BTreeMap<AgentId, AgentPolicy>,
    /// Latency budget and weight of each priority, P0 first.
    pub priorities: [PriorityPolicy; 4],
    /// When P3 steps back.
    pub deferral: DeferralPolicy,
    /// When a target is cut off, and how it comes back.
    pub breaker: BreakerPolicy,
    /// How long a dispatch may take.
    pub deadlines: DeadlinePolicy,
    /// What happens to a failed event.
    pub retries: RetryPolicy,
    /// How long a chain of dispatches may grow.
    pub lineage: LineagePolicy,
    /// When instances are added and removed.
    pub scaling: ScalingPolicy,
    /// How an instance divides its slots.
    pub slots: SlotPolicy,
    /// How much may be open to one target.
    pub in_flight: InFlightPolicy,
    /// How much a home holds of one lane.
    pub lanes: LanePolicy,
    /// How long an idempotency key is remembered.
    pub idempotency: IdempotencyPolicy,
}

/// A rate: so many in each second, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Dispatches per second; at least 1.
    pub per_s: u32,
    /// Dispatches that may go at once after a pause; at least 1. In any second at most `per_s + burst` go.
    pub burst: u32,
}

impl Rate {
    /// The rate with the burst that applies where none is given: a tenth, at least 1.
    #[must_use]
    pub const fn with_default_burst(per_s: u32) -> Self {
        let burst = if per_s / 10 == 0 { 1 } else { per_s / 10 };
        Self { per_s, burst }
    }

    /// The nanoseconds that one dispatch uses up: rounded up, so that the rate is never exceeded.
    #[must_use]
    pub fn period_ns(self) -> u64 {
        crate::quota::period(self)
    }
}

/// What a role allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// How fast an agent of this role may dispatch.
    pub quota: Rate,
    /// The calls that serve a waiting person, hence may claim P0.
    pub p0: Vec<CallPattern>,
}

/// What the policy says of one agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentPolicy {
    /// Its role; none means the default role.
    pub role: Option<String>,
    /// A quota of its own, instead of the role's.
    pub quota: Option<Rate>,
    /// The calls of this agent that serve a waiting person, in addition to the role's.
    pub p0: Vec<CallPattern>,
    /// A hard limit on what reaches it, whoever calls.
    pub max_rate: Option<Rate>,
    /// Nothing goes to it; dispatches wait.
    pub paused: bool,
}

/// A call by capability, of one agent or of any: `capability`, `*/capability` or `agent/capability`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallPattern {
    /// The target; none means any.
    pub agent: Option<String>,
    /// The capability.
    pub capability: String,
}

/// The rules of one priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PriorityPolicy {
    /// The mesh's own latency budget, and the time after which a waiting dispatch moves up one class.
    pub budget: Duration,
    /// The share among the waiting classes; P0 goes first and has none.
    pub weight: u32,
}

/// When P3 is deferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeferralPolicy {
    /// The P0 delay that begins a deferral, in basis points of P0's budget.
    pub begin_bp: u32,
    /// The P0 delay that lets a deferral end, in basis points of P0's budget; below `begin_bp`.
    pub end_bp: u32,
    /// How long the delay must stay below the end before P3 goes on.
    pub hold: Duration,
    /// P3's share of what is admitted meanwhile, in basis points.
    pub trickle_bp: u32,
    /// What P3 gets at least meanwhile, per second.
    pub trickle_per_s: u32,
}

/// When a breaker trips and how it is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// How far back runs count; whole seconds, 1 to 60.
    pub window: Duration,
    /// Fewer runs than this say nothing about a rate.
    pub samples_min: u32,
    /// The error rate above which it trips, in basis points.
    pub error_rate_bp: u32,
    /// The share of runs over the bound above which it trips, in basis points; 500 means the 95th percentile.
    pub over_share_bp: u32,
    /// The bound of a run, in basis points of the SLA.
    pub over_sla_bp: u32,
    /// So many failures one after another trip it whatever the rate.
    pub failures_in_row: u32,
    /// The time from trip to probe, and between probes.
    pub probe_interval: Duration,
    /// How long a due probe waits for a real dispatch before a ping goes out.
    pub ping_after: Duration,
}

/// How long a dispatch may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadlinePolicy {
    /// The budget of a request that names none.
    pub request: Duration,
    /// The budget of an event that names none.
    pub event: Duration,
    /// The longest budget of a request, extensions included.
    pub request_max: Duration,
    /// The longest budget of an event, extensions included.
    pub event_max: Duration,
    /// Whether an event sent during a request may outlive that request's deadline.
    pub events_outlive_parent: bool,
}

/// What happens to a failed event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Runs in all, the first included.
    pub attempts_max: u8,
    /// How many instances may be lost while they have one dispatch, before it goes to the dead-letter queue; at least 2, so that
    /// what merely was beside it is told apart.
    pub crashes_max: u8,
    /// The delay before the second attempt; it doubles with each further one.
    pub backoff_first: Duration,
    /// The longest delay.
    pub backoff_max: Duration,
}

/// How long a chain may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineagePolicy {
    /// The most hops from the root.
    pub hops_max: u8,
    /// A dispatch whose agent and capability stand so often in its ancestry is a loop.
    pub loop_at: u8,
}

/// When instances are added and removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScalingPolicy {
    /// The depth above which an agent needs more instances.
    pub depth: u32,
    /// How long the depth must stay above.
    pub depth_for: Duration,
    /// How much more must succeed after a step up for another one, in basis points.
    pub gain_bp: u32,
    /// The utilisation below which it needs fewer, in basis points.
    pub utilisation_bp: u32,
    /// Over how long utilisation is averaged.
    pub utilisation_for: Duration,
    /// The time between two steps.
    pub pause: Duration,
    /// The silence after which an instance counts as lost.
    pub silence: Duration,
}

/// How an instance divides its slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotPolicy {
    /// Kept for P0, in basis points; at least one of two.
    pub p0_reserved_bp: u32,
    /// The most that P3 takes, in basis points.
    pub p3_max_bp: u32,
}

/// How much may be open to one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InFlightPolicy {
    /// Open dispatches for each slot of its instances.
    pub per_slot: u32,
    /// Open dispatches whatever its slots.
    pub min: u32,
}

/// How much a home holds of one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LanePolicy {
    /// What the quota gives in this time is held ready.
    pub ready_for: Duration,
    /// The fewest messages held ready.
    pub ready_min: u32,
    /// The most messages held ready.
    pub ready_max: u32,
    /// The most messages held that wait for their target.
    pub blocked_max: u32,
}

/// How long an idempotency key is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdempotencyPolicy {
    /// For how long.
    pub window: Duration,
    /// For how many dispatches of one source.
    pub entries_max: u32,
}

impl Default for Policy {
    /// The article's numbers.
    fn default() -> Self {
        let role = |per_s, burst| Role { quota: Rate { per_s, burst }, p0: Vec::new() };
        let roles = [
            ("bot", role(100, 10)),
            ("orchestrator", role(200, 20)),
            ("analytics", role(50, 5)),
            ("crm_sync", role(10, 1)),
            ("channel", role(200, 20)),
            ("service", role(200, 20)),
        ];
        let priority = |ms, weight| PriorityPolicy { budget: Duration::from_millis(ms), weight };
        Self {
            version: 1,
            default_role: "bot".to_owned(),
            strict_dependencies: false,
            roles: roles.into_iter().map(|(name, role)| (name.to_owned(), role)).collect(),
            agents: BTreeMap::new(),
            priorities: [priority(200, 0), priority(500, 8), priority(2_000, 4), priority(10_000, 1)],
            deferral: DeferralPolicy::default(),
            breaker: BreakerPolicy::default(),
            deadlines: DeadlinePolicy::default(),
            retries: RetryPolicy::default(),
            lineage: LineagePolicy { hops_max: 16, loop_at: 3 },
            scaling: ScalingPolicy::default(),
            slots: SlotPolicy { p0_reserved_bp: 1_000, p3_max_bp: 5_000 },
            in_flight: InFlightPolicy { per_slot: 4, min: 64 },
            lanes: LanePolicy {
                ready_for: Duration::from_millis(50),
                ready_min: 4,
                ready_max: 64,
                blocked_max: 1_024,
            },
            idempotency: IdempotencyPolicy { window: Duration::from_secs(600), entries_max: 10_000 },
        }
    }
}

impl Default for DeferralPolicy {
    fn default() -> Self {
        Self {
            begin_bp: 5_000,
            end_bp: 2_500,
            hold: Duration::from_secs(1),
            trickle_bp: 100,
            trickle_per_s: 10,
        }
    }
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(30),
            samples_min: 20,
            error_rate_bp: 1_000,
            over_share_bp: 500,
            over_sla_bp: 12_000,
            failures_in_row: 5,
            probe_interval: Duration::from_secs(30),
            ping_after: Duration::from_secs(1),
        }
    }
}

impl Default for DeadlinePolicy {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(30),
            event: Duration::from_secs(86_400),
            request_max: Duration::from_secs(3_600),
            event_max: Duration::from_secs(7 * 86_400),
            events_outlive_parent: false,
        }
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts_max: 5,
            crashes_max: 3,
            backoff_first: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
        }
    }
}

impl Default for ScalingPolicy {
    fn default() -> Self {
        Self {
            depth: 100,
            depth_for: Duration::from_secs(30),
            gain_bp: 1_000,
            utilisation_bp: 3_000,
            utilisation_for: Duration::from_secs(300),
            pause: Duration::from_secs(60),
            silence: Duration::from_secs(3),
        }
    }
}

impl Policy {
    /// The role of an agent by name: its own, or the default.
    #[must_use]
    pub fn role_name<'a>(&'a self, agent: &str) -> &'a str {
        self.agents.get(agent).and_then(|a| a.role.as_deref()).unwrap_or(&self.default_role)
    }

    /// How fast an agent may dispatch.
    #[must_use]
    pub fn quota(&self, agent: &str) -> Rate {
        let own = self.agents.get(agent).and_then(|a| a.quota);
        let role = || self.roles.get(self.role_name(agent)).map(|r| r.quota);
        own.or_else(role).unwrap_or(FALLBACK_QUOTA)
    }

    /// The hard limit on what reaches an agent, where there is one.
    #[must_use]
    pub fn max_rate(&self, agent: &str) -> Option<Rate> {
        self.agents.get(agent).and_then(|a| a.max_rate)
    }

    /// The calls by which an agent may claim P0.
    pub fn p0_calls<'a>(&'a self, agent: &str) -> impl Iterator<Item = &'a CallPattern> {
        let role = self.roles.get(self.role_name(agent)).map_or(&[][..], |r| &r.p0);
        let own = self.agents.get(agent).map_or(&[][..], |a| &a.p0);
        role.iter().chain(own)
    }

    /// The rules of one priority.
    #[must_use]
    pub const fn priority(&self, priority: Priority) -> PriorityPolicy {
        self.priorities[priority as usize]
    }
}

/// What an agent gets whose role does not exist: a policy that was built in code instead of parsed. The slowest of the
/// article's roles, so that a mistake is felt and harms nobody.
const FALLBACK_QUOTA: Rate = Rate { per_s: 10, burst: 1 };
