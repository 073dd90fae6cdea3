//! What the archiver counts and shows. Owns the names of its metrics; the places that know report here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
    pub(crate) redis_left: Gauge<f64, AtomicU64>,
    pub(crate) hot_seconds: Gauge<f64, AtomicU64>,
    pub(crate) delay_seconds: Gauge<f64, AtomicU64>,
    pub(crate) commit_seconds: Seconds,
    pub(crate) checkpoint_at: Gauge,
    pub(crate) checkpoint_overdue: Gauge,
    pub(crate) checkpoints_missed: Counter,
    pub(crate) redis_up: Up,
    pub(crate) postgres_up: Up,
    pub(crate) postgres_stores: Up,
    /// The workers whose last transaction PostgreSQL did not store, a bit for each.
    refused: AtomicU64,
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
pub(crate) struct Up(Gauge);

impl Up {
    pub(crate) fn set(&self, up: bool) {
        self.0.set(i64::from(up));
    }

    /// Sets it, and says what it was.
    pub(crate) fn replace(&self, up: bool) -> bool {
        self.0.set(i64::from(up)) != 0
    }

    pub(crate) fn get(&self) -> bool {
        self.0.get() != 0
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
        r.register("redis_up", "1 while Redis answers", m.redis_up.0.clone());
        r.register("postgres_up", "1 while PostgreSQL answers", m.postgres_up.0.clone());
        r.register(
            "postgres_stores",
            "0 while PostgreSQL does not store what it is given, though it may answer",
            m.postgres_stores.0.clone(),
        );
        r.register(
            "redis_full_in_seconds",
            "Time until Redis is full at the growth of the last minutes; infinite while it does not grow",
            m.redis_left.clone(),
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
        r.register_with_unit(
            "checkpoint_written",
            "When the last signed checkpoint was written, seconds since 1970; 0 before the first",
            Unit::Seconds,
            m.checkpoint_at.clone(),
        );
        r.register(
            "checkpoint_overdue",
            "1 while the last checkpoint is older than three intervals",
            m.checkpoint_overdue.clone(),
        );
        r.register(
            "checkpoints_missed",
            "Checkpoints that could not be written",
            m.checkpoints_missed.clone(),
        );
        (m, r)
    }

    /// Whether PostgreSQL stored what a worker gave it last; it counts as storing when it does for all of them.
    pub(crate) fn stored(&self, worker: u8, stored: bool) {
        let bit = 1_u64 << (worker % 64);
        let refused = if stored {
            self.refused.fetch_and(!bit, Ordering::Relaxed) & !bit
        } else {
            self.refused.fetch_or(bit, Ordering::Relaxed) | bit
        };
        self.postgres_stores.set(refused == 0);
    }

    /// Whether both servers did what they were last asked for.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.redis_up.get() && self.postgres_up.get() && self.postgres_stores.get()
    }
}
