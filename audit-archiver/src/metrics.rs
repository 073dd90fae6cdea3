//! What the archiver counts and shows. Owns the names of its metrics; the places that know report here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, atomic::AtomicU64};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// A shard, as a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Shard {
    /// Its number.
    pub shard: u8,
}

/// The metrics of one process, and whether its servers answer.
#[derive(Debug, Default)]
pub struct Metrics {
    pub(crate) records: Counter,
    pub(crate) blocks: Counter,
    pub(crate) overtaken: Counter,
    pub(crate) trimmed: Counter,
    pub(crate) days_dropped: Counter,
    pub(crate) shards: Gauge,
    pub(crate) stopped: Family<Shard, Gauge>,
    pub(crate) over_budget: Gauge,
    pub(crate) hot_seconds: Gauge<f64, AtomicU64>,
    pub(crate) delay_seconds: Gauge<f64, AtomicU64>,
    pub(crate) commit_seconds: Seconds,
    pub(crate) redis_up: Up,
    pub(crate) postgres_up: Up,
}

/// Times from half a millisecond on.
#[derive(Debug)]
pub(crate) struct Seconds(pub(crate) Histogram);

impl Default for Seconds {
    fn default() -> Self {
        Self(Histogram::new(exponential_buckets(0.0005, 2.0, 16)))
    }
}

/// Whether a server answered when it was last asked.
#[derive(Debug, Default)]
pub(crate) struct Up(AtomicBool);

impl Up {
    pub(crate) fn set(&self, up: bool) {
        self.0.store(up, Ordering::Relaxed);
    }

    /// Sets it, and says what it was.
    pub(crate) fn replace(&self, up: bool) -> bool {
        self.0.swap(up, Ordering::Relaxed)
    }

    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Metrics {
    /// Metrics, and the registry that encodes them.
    #[must_use]
    pub fn registered() -> (Arc<Self>, Registry) {
        let m = Arc::new(Self::default());
        let mut r = Registry::with_prefix("mesh_audit_archiver");
        r.register("records", "Records archived: decisions, ends, notes", m.records.clone());
        r.register("blocks", "Blocks archived", m.blocks.clone());
        r.register(
            "overtaken",
            "Transactions given up because another archiver had moved the cursor",
            m.overtaken.clone(),
        );
        r.register("trimmed_blocks", "Blocks trimmed from Redis", m.trimmed.clone());
        r.register("days_dropped", "Days dropped from PostgreSQL by retention", m.days_dropped.clone());
        r.register("shards", "Shards that this process archives", m.shards.clone());
        r.register(
            "shard_stopped",
            "1 where a shard is stopped because its trail is damaged",
            m.stopped.clone(),
        );
        r.register(
            "redis_over_budget",
            "1 while Redis uses more memory than its budget",
            m.over_budget.clone(),
        );
        r.register_with_unit(
            "hot_window",
            "Age up to which Redis keeps what is archived",
            Unit::Seconds,
            m.hot_seconds.clone(),
        );
        r.register_with_unit(
            "delay",
            "Age of the newest block at its commit",
            Unit::Seconds,
            m.delay_seconds.clone(),
        );
        r.register_with_unit("commit", "Time of one transaction", Unit::Seconds, m.commit_seconds.0.clone());
        (m, r)
    }

    /// Whether both servers answered when they were last asked.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.redis_up.get() && self.postgres_up.get()
    }
}
