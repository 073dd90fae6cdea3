//! What must be done now and then: partitions ahead, retention on both sides, a look at whether trails end where they
//! should, and how long Redis has room. Owns the rhythm; the rules are in `trim`, `retention` and `protocol::room`.
//!
//! The rule it keeps: Redis is looked at whether or not PostgreSQL answers, since that is when it fills.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::redis::Head;
use protocol::room::{ALARM, Room, in_words};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::chain::Broken;
use crate::config::Config;
use crate::day::{self, Day};
use crate::metrics::{Metrics, Shard};
use crate::retention;
use crate::store::Store;
use crate::trail::Trail;
use crate::trim::{self, HotWindow};
use crate::worker::{Chain, Lost};

/// Looks after the archive until told to stop.
pub(crate) struct Keeper {
    pub(crate) config: Config,
    pub(crate) assigned: watch::Receiver<Vec<u8>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stop: CancellationToken,
}

impl Keeper {
    pub(crate) async fn run(self) {
        let mut window = HotWindow::new(self.config.hot_retention, self.config.redis_memory_budget);
        let (began, mut room) = (Instant::now(), Room::default());
        while !self.stop.is_cancelled() {
            let upkeep = async {
                self.look_at_memory(&mut window, &mut room, began.elapsed()).await?;
                self.round(&window).await
            };
            if let Some(Err(lost)) = self.stop.run_until_cancelled(upkeep).await {
                tracing::warn!(error = %Chain(&lost), "upkeep waits");
            }
            self.stop.run_until_cancelled(tokio::time::sleep(self.config.upkeep_every)).await;
        }
    }

    /// Shortens the hot window where memory is short, and says how long there is room.
    async fn look_at_memory(
        &self,
        window: &mut HotWindow,
        room: &mut Room,
        at: Duration,
    ) -> Result<(), Lost> {
        let mut trail = Trail::connect(&self.config.redis_url).await?;
        let memory = trail.memory().await?;
        room.note(at, memory.used);
        let left = room.left(memory.limit);
        self.metrics.redis_left.set(left.map_or(f64::INFINITY, |left| left.as_secs_f64()));
        if let Some(left) = left.filter(|left| *left < ALARM) {
            let (used, limit) = (memory.used, memory.limit);
            tracing::warn!(used, limit, left = in_words(left), "Redis is full soon; then dispatches wait");
        }
        let own = if memory.is_set { memory.limit } else { 0 };
        let over = window.is_over(memory.used, own);
        // How old the oldest block is bounds from where the window has to shrink; asked only when that matters.
        let shards = self.assigned.borrow().clone();
        let oldest = if over { trail.oldest(&shards).await? } else { None };
        window.adapt(memory.used, own, oldest.map(|at| day::now().since(at)));
        let hot = window.length();
        self.metrics.over_budget.set(i64::from(over));
        self.metrics.hot_seconds.set(hot.as_secs_f64());
        if over {
            let used = memory.used;
            tracing::warn!(
                used,
                hot_seconds = hot.as_secs(),
                "Redis is over its memory budget; the hot window shrinks"
            );
        }
        Ok(())
    }

    /// One round on connections of its own: rounds are seldom, and servers may have gone in between.
    async fn round(&self, window: &HotWindow) -> Result<(), Lost> {
        let mut store = Store::connect(&self.config.postgres_url).await?;
        let today = Day::of(day::now());
        store.ensure_partitions([today, today.next()]).await?;
        let mut client = crate::postgres::connect(&self.config.postgres_url, "audit-archiver upkeep").await?;
        self.retain(&mut client, today).await?;

        let shards = self.assigned.borrow().clone();
        let mut trail = Trail::connect(&self.config.redis_url).await?;
        let cursors = store.cursors(&shards).await?;
        self.look_for_losses(&mut store, &mut trail, &cursors).await?;
        self.trim(&mut trail, &client, &cursors, window).await
    }

    async fn retain(&self, client: &mut Client, today: Day) -> Result<(), Lost> {
        let round = retention::drop_old(client, today, self.config.retention_days).await?;
        self.metrics.days_dropped.inc_by(round.dropped.len() as u64);
        for day in round.dropped {
            tracing::info!(%day, "day dropped from the archive: its retention is over");
        }
        if !round.held.is_empty() {
            tracing::debug!(days = round.held.len(), "days kept under legal hold");
        }
        Ok(())
    }

    /// A trail whose head is behind the archive was lost or put back; one whose head names blocks that are not there has
    /// lost its end. Both look like silence to the worker.
    async fn look_for_losses(
        &self,
        store: &mut Store,
        trail: &mut Trail,
        cursors: &BTreeMap<u8, Head>,
    ) -> Result<(), Lost> {
        let shards: Vec<u8> = cursors.keys().copied().collect();
        // A head and its block are written at once, and nothing beyond the archive is ever trimmed.
        for (shard, head) in trail.heads(&shards).await? {
            let archived = cursors.get(&shard).copied().unwrap_or_default();
            let lost = match head.id.cmp(&archived.id) {
                Ordering::Less => true,
                Ordering::Equal => false,
                Ordering::Greater => !trail.goes_beyond(shard, archived.id).await?,
            };
            let why = Broken::Missing { expected: head.id.max(archived.id) };
            if lost && store.stop_unless_stopped(shard, archived, &why).await? {
                self.metrics.stopped.get_or_create(&Shard { shard }).set(1);
                tracing::error!(shard, error = %why, "a shard's trail is damaged; it is not archived any further");
            }
        }
        Ok(())
    }

    async fn trim(
        &self,
        trail: &mut Trail,
        client: &Client,
        cursors: &BTreeMap<u8, Head>,
        window: &HotWindow,
    ) -> Result<(), Lost> {
        let hot = window.length();
        let shards: Vec<u8> = cursors.keys().copied().collect();
        let before = OffsetDateTime::from_unix_timestamp_nanos(i128::from(day::now().0)).map(|now| now - hot);
        let Ok(before) = before else { return Ok(()) };
        let cold = trim::newest_before(client, &shards, before).await?;
        let needed = trail.oldest_needed(&shards).await?;
        for (shard, archived) in cursors {
            let keep = trim::keep_from(cold.get(shard).copied(), needed.get(shard).copied(), *archived);
            if let Some(keep) = keep {
                self.metrics.trimmed.inc_by(trail.trim(*shard, keep).await?);
            }
        }
        Ok(())
    }
}
