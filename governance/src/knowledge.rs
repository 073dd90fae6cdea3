//! What homes tell and ask each other about targets. Owns the forms of it; who counts and who decides stands in `reports.rs`,
//! `mirror.rs` and `grants.rs`.
//!
//! A target has one home, which alone judges its breaker, gives out its hard rate and scales it. Homes of other shards admit
//! dispatches to it as well; they report what they saw end, know its breaker from what its home says, and ask before they use
//! what there is only one of.
//!
//! The rule it keeps: reports are cumulative, so that one that is lost is made good by the next; a grant that is lost is only
//! unused.

use std::time::Duration;

use crate::names::{SHARDS, shard_of};

/// The shards whose agents a core is home of: a bit for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shards(u64);

impl Shards {
    /// Every shard: one core alone.
    pub const ALL: Self = Self(u64::MAX);
    /// No shard.
    pub const NONE: Self = Self(0);

    /// One shard.
    #[must_use]
    pub const fn one(shard: u8) -> Self {
        Self::NONE.with(shard)
    }

    /// These and one more.
    #[must_use]
    pub const fn with(self, shard: u8) -> Self {
        Self(self.0 | 1 << (shard % SHARDS))
    }

    /// Whether a shard is among them.
    #[must_use]
    pub const fn contains(self, shard: u8) -> bool {
        self.0 & (1 << (shard % SHARDS)) != 0
    }

    /// Whether an agent's shard is among them.
    pub(crate) fn are_home_of(self, agent: &str) -> bool {
        self.contains(shard_of(agent))
    }

    /// Whether there is another core to tell something.
    pub(crate) fn has_others(self) -> bool {
        self != Self::ALL
    }
}

/// One ownership of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HomeId {
    /// Which shard.
    pub shard: u8,
    /// Which ownership of it; a later one has a higher number.
    pub epoch: u64,
}

/// What a home asks the home of a target for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// The probe of its tripped breaker.
    Probe,
    /// So many dispatches of its hard rate.
    Rate {
        /// How many wait for it, within a bound.
        count: u32,
    },
}

/// The answer of the target's home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// How many dispatches may go; 0 is a refusal.
    pub count: u32,
    /// How long until asking again makes sense.
    pub wait: Duration,
}

/// What a home has seen of a target of another home: counters since the reporting home began, gauges as of now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TargetReport {
    /// Runs that ended, timeouts among them.
    pub finished: u64,
    /// Failures and timeouts among them.
    pub errors: u64,
    /// Runs over their bound among them.
    pub over: u64,
    /// Failures since the last success.
    pub streak: u32,
    /// Admitted and not ended.
    pub in_flight: u32,
    /// Dispatches that wait for it in the lanes of the reporting home, the wait for a quota apart.
    pub depth: u32,
}

/// How long a grant of a hard rate may be used, from the moment it was asked for. Long enough for a slow answer and the turn
/// after it; short, since the rate is stretched by it (`quota.rs`).
pub const GRANT_LIFE: Duration = Duration::from_millis(50);

/// How long an answer is waited for. A person does not notice it, and a home that is there answers in a few milliseconds.
pub const GRANT_WAIT: Duration = Duration::from_millis(250);
