//! What homes tell and ask each other about targets: the small JSON on `mesh.know.*` and `mesh.grant.*`. Owns the forms.
//!
//! The rule it keeps: counters are cumulative for one home and epoch, so that a lost message costs only time.

use std::time::Duration;

use governance::{Ask, Grant, HomeId, TargetReport};
use serde::{Deserialize, Serialize};

/// On `mesh.know.<shard>`: what one home tells the home of a target's shard; on `mesh.know.p0`: what it tells all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knowledge {
    /// The shard of the home that tells.
    pub shard: u8,
    /// Its epoch.
    pub epoch: u64,
    /// What it saw of targets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reports: Vec<Report>,
    /// How granted probes ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<Probe>,
    /// How long its own P0 waited, in microseconds, where that is worth telling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p0_delay_us: Option<u64>,
}

impl Knowledge {
    /// Nothing yet, from this home.
    #[must_use]
    pub const fn from(home: HomeId) -> Self {
        Self {
            shard: home.shard,
            epoch: home.epoch,
            reports: Vec::new(),
            probes: Vec::new(),
            p0_delay_us: None,
        }
    }

    /// Who tells.
    #[must_use]
    pub const fn home(&self) -> HomeId {
        HomeId { shard: self.shard, epoch: self.epoch }
    }
}

/// What a home saw of one target since it began; the last two as of now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The target.
    pub agent: String,
    /// Runs that ended.
    pub finished: u64,
    /// Failures and timeouts among them.
    pub errors: u64,
    /// Runs over 120 % of the SLA among them.
    pub over: u64,
    /// Failures since the last success.
    pub streak: u32,
    /// Admitted and not ended.
    pub in_flight: u32,
    /// Waiting in lanes.
    pub depth: u32,
}

impl Report {
    /// A report of the rules with its target's name.
    #[must_use]
    pub const fn new(agent: String, r: TargetReport) -> Self {
        let TargetReport { finished, errors, over, streak, in_flight, depth } = r;
        Self { agent, finished, errors, over, streak, in_flight, depth }
    }

    /// The report as the rules take it.
    #[must_use]
    pub const fn figures(&self) -> TargetReport {
        TargetReport {
            finished: self.finished,
            errors: self.errors,
            over: self.over,
            streak: self.streak,
            in_flight: self.in_flight,
            depth: self.depth,
        }
    }
}

/// How a granted probe ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The target.
    pub agent: String,
    /// Whether it succeeded; none where the grant was not used.
    pub succeeded: Option<bool>,
}

/// A request on `mesh.grant.<target>`: a share of what the target's home limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum GrantQuestion {
    /// The right to send the one probe that is due.
    Probe,
    /// So many dispatches under the target's hard rate.
    Rate {
        /// How many.
        count: u32,
    },
}

impl From<Ask> for GrantQuestion {
    fn from(ask: Ask) -> Self {
        match ask {
            Ask::Probe => Self::Probe,
            Ask::Rate { count } => Self::Rate { count },
        }
    }
}

impl From<GrantQuestion> for Ask {
    fn from(question: GrantQuestion) -> Self {
        match question {
            GrantQuestion::Probe => Self::Probe,
            GrantQuestion::Rate { count } => Self::Rate { count },
        }
    }
}

/// The answer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantAnswer {
    /// How many; zero refuses.
    pub count: u32,
    /// How long until asking again makes sense, in microseconds.
    pub wait_us: u64,
}

impl From<Grant> for GrantAnswer {
    fn from(grant: Grant) -> Self {
        Self { count: grant.count, wait_us: u64::try_from(grant.wait.as_micros()).unwrap_or(u64::MAX) }
    }
}

impl From<GrantAnswer> for Grant {
    fn from(answer: GrantAnswer) -> Self {
        Self { count: answer.count, wait: Duration::from_micros(answer.wait_us) }
    }
}
