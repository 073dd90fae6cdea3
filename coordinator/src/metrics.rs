//! Metrics: counters and histograms that the home feeds and `/metrics` shows. Owns their names.
//!
//! The rule it keeps: labels come from closed lists or from registered agents, never from conversations or ids.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governance::{BreakerState, Outcome, Priority, Reason};
use home::Meter;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::clock;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPriority {
    priority: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    priority: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    priority: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByAgent {
    agent: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByServer {
    server: &'static str,
}

/// A server that dispatches wait for while it is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Server {
    /// nats-server.
    Broker,
    /// redis-server.
    Ledger,
}

impl Server {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Broker => "nats",
            Self::Ledger => "redis",
        }
    }
}

/// Everything that is counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    accepted: Family<ByPriority, Counter>,
    admitted: Family<ByReason, Counter>,
    ended: Family<ByReason, Counter>,
    completed: Family<ByOutcome, Counter>,
    violations: Counter,
    demoted: Counter,
    late: Counter,
    duplicates: Counter,
    malformed: Counter,
    undelivered_replies: Counter,
    lane_seconds: Family<ByPriority, Histogram>,
    latency_seconds: Family<ByPriority, Histogram>,
    breaker_tripped: Family<ByAgent, Gauge>,
    breaker_trips: Family<ByAgent, Counter>,
    deferral: Gauge,
    /// The shards that defer P3, a bit for each.
    deferring: AtomicU64,
    homes: Gauge,
    server_up: Family<ByServer, Gauge>,
    deposed: Counter,
    blocks: Counter,
    block_bytes: Counter,
    records: Counter,
    redis_used: Gauge,
    redis_left: Gauge<f64, AtomicU64>,
    alive_at: AtomicU64,
}

fn seconds() -> Histogram {
    // 0.1 ms to 52 s, each bucket twice the one before.
    Histogram::new(exponential_buckets(0.000_1, 2.0, 20))
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut m = Self {
            registry: Registry::with_prefix("mesh"),
            accepted: Family::default(),
            admitted: Family::default(),
            ended: Family::default(),
            completed: Family::default(),
            violations: Counter::default(),
            demoted: Counter::default(),
            late: Counter::default(),
            duplicates: Counter::default(),
            malformed: Counter::default(),
            undelivered_replies: Counter::default(),
            lane_seconds: Family::new_with_constructor(seconds),
            latency_seconds: Family::new_with_constructor(seconds),
            breaker_tripped: Family::default(),
            breaker_trips: Family::default(),
            deferral: Gauge::default(),
            deferring: AtomicU64::new(0),
            homes: Gauge::default(),
            server_up: Family::default(),
            deposed: Counter::default(),
            blocks: Counter::default(),
            block_bytes: Counter::default(),
            records: Counter::default(),
            redis_used: Gauge::default(),
            redis_left: Gauge::default(),
            alive_at: AtomicU64::new(clock::now().0),
        };
        m.register_dispatches();
        m.register_mesh();
        m
    }

    fn register_dispatches(&mut self) {
        let r = &mut self.registry;
        r.register("dispatches_accepted", "Dispatches read from lanes", self.accepted.clone());
        r.register(
            "dispatches_admitted",
            "Dispatches on their way to a target, by reason",
            self.admitted.clone(),
        );
        r.register(
            "dispatches_ended",
            "Dispatches that ended without reaching a target, by reason",
            self.ended.clone(),
        );
        r.register(
            "dispatches_completed",
            "Admitted dispatches that ended, by outcome",
            self.completed.clone(),
        );
        r.register(
            "governance_violations",
            "Dispatches refused because their source may not send them",
            self.violations.clone(),
        );
        r.register(
            "priority_demotions",
            "Dispatches that claimed P0 without the right to it",
            self.demoted.clone(),
        );
        r.register("completions_late", "Completions after an outcome was recorded", self.late.clone());
        r.register(
            "envelopes_duplicate",
            "Lane messages that were decided about before",
            self.duplicates.clone(),
        );
        r.register("completions_malformed", "Completions that could not be read", self.malformed.clone());
        r.register(
            "replies_undelivered",
            "Replies whose receiver was gone",
            self.undelivered_replies.clone(),
        );
        r.register("lane_wait_seconds", "From acceptance to admission", self.lane_seconds.clone());
        r.register(
            "dispatch_latency_seconds",
            "From acceptance to the outcome",
            self.latency_seconds.clone(),
        );
    }

    /// What is about agents, homes and servers.
    fn register_mesh(&mut self) {
        let r = &mut self.registry;
        r.register(
            "breaker_tripped",
            "1 while the breaker of an agent is not passing",
            self.breaker_tripped.clone(),
        );
        r.register("breaker_trips", "How often the breaker of an agent tripped", self.breaker_trips.clone());
        r.register("deferral_active", "1 while P3 is deferred to protect P0", self.deferral.clone());
        r.register("homes", "Shards that this replica is home of", self.homes.clone());
        r.register(
            "server_up",
            "1 while a server does what the mesh needs of it, 0 while dispatches wait for it",
            self.server_up.clone(),
        );
        r.register(
            "homes_deposed",
            "Homes that were refused by a fence because another one has taken over",
            self.deposed.clone(),
        );
        r.register("audit_blocks", "Audit blocks written", self.blocks.clone());
        r.register("audit_block_bytes", "Bytes of audit blocks written", self.block_bytes.clone());
        r.register("audit_records", "Records in audit blocks written", self.records.clone());
        r.register("redis_used_bytes", "Memory that Redis uses", self.redis_used.clone());
        r.register(
            "redis_full_in_seconds",
            "Time until Redis is full at the growth of the last minutes; infinite while it does not grow",
            self.redis_left.clone(),
        );
    }

    /// The text that Prometheus reads.
    pub(crate) fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// This replica is alive, home or not.
    pub(crate) fn beat_now(&self) {
        self.beat(clock::now());
    }

    /// How long the home has given no sign of life.
    pub(crate) fn silent_for(&self) -> Duration {
        clock::now().since(governance::Timestamp(self.alive_at.load(Ordering::Relaxed)))
    }

    /// How many homes are here.
    pub(crate) fn homes(&self, count: usize) {
        self.homes.set(count as i64);
    }

    /// Whether a server does its work.
    pub(crate) fn server_up(&self, server: Server, up: bool) {
        self.server_up.get_or_create(&ByServer { server: server.name() }).set(i64::from(up));
    }

    /// What Redis uses, and for how long it has room.
    pub(crate) fn room(&self, used: u64, left: Option<Duration>) {
        self.redis_used.set(i64::try_from(used).unwrap_or(i64::MAX));
        self.redis_left.set(left.map_or(f64::INFINITY, |left| left.as_secs_f64()));
    }

    /// A home that was here learned that another one has taken over.
    pub(crate) fn deposed(&self) {
        self.deposed.inc();
    }
}

impl Meter for Metrics {
    fn arrived(&self, p: Priority, count: u32) {
        self.accepted.get_or_create(&ByPriority { priority: p.name() }).inc_by(count.into());
    }

    fn admitted(&self, p: Priority, reason: Reason, count: u32, waited: Duration) {
        self.admitted
            .get_or_create(&ByReason { priority: p.name(), reason: reason.name() })
            .inc_by(count.into());
        self.lane_seconds.get_or_create(&ByPriority { priority: p.name() }).observe(waited.as_secs_f64());
    }

    fn ended(&self, reason: Reason, p: Priority, count: u32) {
        self.ended
            .get_or_create(&ByReason { priority: p.name(), reason: reason.name() })
            .inc_by(count.into());
        if reason.is_violation() {
            self.violations.inc_by(count.into());
        }
    }

    fn completed(&self, outcome: Outcome, p: Priority, count: u32, latency: Duration) {
        self.completed
            .get_or_create(&ByOutcome { priority: p.name(), outcome: outcome.name() })
            .inc_by(count.into());
        self.latency_seconds.get_or_create(&ByPriority { priority: p.name() }).observe(latency.as_secs_f64());
    }

    fn demoted(&self, count: u32) {
        self.demoted.inc_by(count.into());
        self.violations.inc_by(count.into());
    }

    fn late(&self, count: u32) {
        self.late.inc_by(count.into());
    }

    fn duplicate(&self) {
        self.duplicates.inc();
    }

    fn malformed_completion(&self) {
        self.malformed.inc();
    }

    fn replied(&self, confirmed: bool, count: usize) {
        if !confirmed {
            self.undelivered_replies.inc_by(count as u64);
        }
    }

    fn breaker(&self, agent: &str, from: BreakerState, to: BreakerState) {
        let label = ByAgent { agent: agent.to_owned() };
        self.breaker_tripped.get_or_create(&label).set(i64::from(to != BreakerState::Passing));
        if from == BreakerState::Passing && to == BreakerState::Tripped {
            self.breaker_trips.get_or_create(&label).inc();
        }
    }

    fn deferral(&self, shard: u8, on: bool) {
        let bit = 1_u64 << (shard % 64);
        let shards = if on {
            self.deferring.fetch_or(bit, Ordering::Relaxed) | bit
        } else {
            self.deferring.fetch_and(!bit, Ordering::Relaxed) & !bit
        };
        self.deferral.set(i64::from(shards != 0));
    }

    fn block(&self, bytes: usize, records: usize) {
        self.blocks.inc();
        self.block_bytes.inc_by(bytes as u64);
        self.records.inc_by(records as u64);
    }

    fn beat(&self, now: governance::Timestamp) {
        self.alive_at.store(now.0, Ordering::Relaxed);
    }
}
