//! The oracle: the promises, checked at every step against what servers, senders and handlers really see.
//!
//! Owns the judgement and the count of what was compared. It stands outside of time: it sees the true time and every server
//! at once, and nothing in the run depends on it. The rule it keeps: a promise that was never compared fails the run as a
//! broken one does.

mod audit;
mod end;
mod rates;
mod runs;
mod scaling;
mod waits;
mod wire;

use std::collections::BTreeMap;
use std::time::Duration;

use governance::{AgentId, DispatchId, InstanceId, Kind, Outcome, Priority, Reason, Timestamp};
use protocol::redis::EntryId;

use crate::cast::Cast;
use crate::model::Model;
use crate::net::{Actor, Who};
use crate::world::Scene;
use crate::{broker, postgres, redis};

pub use waits::Disturbance;

/// An envelope as its sender knows it.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Sent {
    pub instance: InstanceId,
    pub sequence: u64,
    pub count: u16,
    pub source: AgentId,
    pub target: Option<AgentId>,
    pub class: Priority,
    pub kind: Kind,
    pub budget: Duration,
    pub is_gate: bool,
}

/// What a process shows.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the line above each variant says what its fields are")]
pub enum Sight {
    /// An envelope is on its way.
    Sent(Sent),
    /// Its sender was told that it is stored.
    Accepted { instance: InstanceId, sequence: u64 },
    /// Its sender was told that its lane is full.
    Withdrawn { instance: InstanceId, sequence: u64 },
    /// A caller was told how a dispatch ended.
    Replied { id: DispatchId, outcome: Outcome, reason: Reason },
    /// A handler begins.
    Began { id: DispatchId, agent: AgentId, attempt: u8 },
    /// A handler ends.
    Ended { id: DispatchId, failed: bool },
    /// A replica is home of a shard.
    Home { shard: u8, epoch: u64 },
    /// It is not any more.
    HomeEnded { shard: u8, epoch: u64 },
    /// It was deposed.
    Deposed { shard: u8, epoch: u64, why: String },
    /// A claim or take-over did not come to its end.
    NotTaken { shard: u8, why: String },
    /// An archiver found a gap.
    BrokenTrail { shard: u8, after: EntryId, found: EntryId },
}

/// The promises that are compared, by name; each must be compared at least so often in a run of full length.
const MINIMUM: [(&str, u64); 8] = [
    ("decisions", 100),
    ("outcomes", 100),
    ("deliveries after their record", 100),
    ("acknowledgements after their record", 50),
    ("handler runs", 100),
    ("quota windows", 100),
    // Some forty on average; a run whose servers are away most of its time excuses nearly all of them.
    ("urgent waits", 2),
    ("archived blocks", 50),
];

/// The same of a sawtooth.
const SAWTOOTH_MINIMUM: [(&str, u64); 5] = [
    ("decisions", 1_000),
    ("outcomes", 1_000),
    ("handler runs", 1_000),
    ("archived blocks", 50),
    ("scale steps", 2),
];

/// The judge of one run.
#[derive(Debug)]
pub struct Oracle {
    cast: Cast,
    model: Model,
    compared: BTreeMap<&'static str, u64>,
    broken: Option<String>,
    trail: audit::Trail,
    wire: wire::Wire,
    rates: rates::Rates,
    contact: runs::Contact,
    waits: waits::Waits,
    steps: scaling::Steps,
    skews: BTreeMap<Who, i64>,
}

impl Oracle {
    /// The judge of a run; `skews` is by how much each process' clock is ahead, in nanoseconds.
    #[must_use]
    pub fn new(cast: Cast, skews: BTreeMap<Who, i64>) -> Self {
        Self {
            cast,
            model: Model::default(),
            compared: BTreeMap::new(),
            broken: None,
            trail: audit::Trail::default(),
            wire: wire::Wire::default(),
            rates: rates::Rates::default(),
            contact: runs::Contact::default(),
            waits: waits::Waits::default(),
            steps: scaling::Steps::new(),
            skews,
        }
    }

    /// The first promise that was broken.
    #[must_use]
    pub fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    /// What was compared, how often.
    #[must_use]
    pub const fn compared(&self) -> &BTreeMap<&'static str, u64> {
        &self.compared
    }

    /// What a run of full length compared too seldom.
    #[must_use]
    pub fn vacuous(&self, scene: Scene) -> Vec<String> {
        let too_few = |(name, least): &(&'static str, u64)| {
            let found = self.compared.get(name).copied().unwrap_or(0);
            (found < *least).then(|| format!("{name}: {found} of at least {least}"))
        };
        let minimum: &[(&str, u64)] = match scene {
            Scene::Market => &MINIMUM,
            Scene::Sawtooth => &SAWTOOTH_MINIMUM,
        };
        minimum.iter().filter_map(too_few).collect()
    }

    fn count(&mut self, what: &'static str) {
        *self.compared.entry(what).or_default() += 1;
    }

    fn fail(&mut self, why: impl Into<String>) {
        let why = why.into();
        self.broken.get_or_insert(why);
    }

    fn expect(&mut self, result: Result<(), String>) {
        if let Err(why) = result {
            self.fail(why);
        }
    }

    /// A process showed something.
    pub fn on_sight(&mut self, now: Timestamp, by: Actor, sight: Sight) {
        match sight {
            Sight::Sent(sent) => {
                let result = self.model.sent(sent);
                self.expect(result);
            }
            Sight::Accepted { instance, sequence } => {
                self.count("acceptances");
                let result = self.model.accepted(instance, sequence);
                self.expect(result);
            }
            Sight::Withdrawn { instance, sequence } => {
                let result = self.model.withdrawn(instance, sequence);
                self.expect(result);
            }
            Sight::Replied { id, outcome, .. } => self.on_replied(id, outcome),
            Sight::Began { id, agent, attempt } => self.on_began(now, by, id, &agent, attempt),
            Sight::Ended { id, failed } => self.on_run_ended(by, id, failed),
            Sight::BrokenTrail { shard, after, found } => {
                self.fail(format!("an archiver found {found} behind {after} in shard {shard}"));
            }
            Sight::Home { shard, epoch } => self.on_home(now, shard, epoch, by),
            Sight::HomeEnded { .. } | Sight::Deposed { .. } | Sight::NotTaken { .. } => {}
        }
    }

    /// Something happened at the broker.
    pub fn on_broker(&mut self, now: Timestamp, fact: &broker::Fact) {
        match fact {
            broker::Fact::Stored { by, subject, sequence, id, payload } => {
                self.on_stored(now, *by, subject, *sequence, id.as_deref(), payload);
            }
            broker::Fact::Acknowledged { by, stream, sequence, consumer } => {
                self.on_acknowledged(*by, stream, *sequence, consumer);
            }
            broker::Fact::Fenced { .. } => self.count("publishes that a fence refused"),
            broker::Fact::Missed { .. } => self.count("acknowledgements that met nothing"),
        }
    }

    /// Something happened at Redis.
    pub fn on_redis(&mut self, now: Timestamp, fact: &redis::Fact) {
        match fact {
            redis::Fact::Appended { by, shard, new, expected, block } => {
                self.on_block(now, *by, *shard, *expected, *new, block);
            }
            redis::Fact::Below { by, shard, new, head } => {
                self.fail(format!(
                    "{by} wants block {} of shard {shard} to stand behind {}",
                    new.id, head.id
                ));
            }
            redis::Fact::Refused { .. } => self.count("appends that were refused"),
            redis::Fact::Trimmed { shard, before, .. } => self.on_trimmed(*shard, *before),
        }
    }

    /// Something happened at PostgreSQL.
    pub fn on_postgres(&mut self, fact: &postgres::Archived) {
        self.on_archived(fact);
    }

    /// The true moment of a stamp that a process took from its own clock.
    fn true_time(&self, by: Actor, stamp: Timestamp) -> u64 {
        let skew = self.skews.get(&by.who).copied().unwrap_or(0);
        stamp.0.saturating_add_signed(-skew)
    }
}
