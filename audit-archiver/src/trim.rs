//! How long Redis keeps what is archived. Owns the choice of what may go, and notices a trail that ends too early.
//!
//! The rule it keeps: only what PostgreSQL has committed goes, never a block that a new home still needs, never a
//! stream's last entry.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::redis::{EntryId, Head};
use time::OffsetDateTime;
use tokio_postgres::Client;

/// Below this share of the budget, in percent, the hot window grows again.
const RELAXED_PERCENT: u64 = 80;
/// Of Redis' own limit, the share in percent that is the budget where none is given: the rest is for appends until trimming helps.
const BUDGET_PERCENT: u64 = 75;

/// The window that Redis keeps, as far as memory allows.
#[derive(Debug)]
pub(crate) struct HotWindow {
    wanted: Duration,
    now: Duration,
    budget: Option<u64>,
}

impl HotWindow {
    pub(crate) const fn new(wanted: Duration, budget: Option<u64>) -> Self {
        Self { wanted, now: wanted, budget }
    }

    /// Whether memory is over the budget, which is a share of Redis' own limit where none was given; never where there is neither.
    pub(crate) fn is_over(&self, used: u64, limit: u64) -> bool {
        self.budget(limit).is_some_and(|budget| used > budget)
    }

    fn budget(&self, limit: u64) -> Option<u64> {
        self.budget.or_else(|| (limit > 0).then(|| limit / 100 * BUDGET_PERCENT))
    }

    /// Takes note of Redis' memory: halves the window while it is over the budget, doubles it up to the wanted one when
    /// there is room again. A window longer than what is held, whose age may be given, is halved from there: otherwise it would
    /// take rounds until anything goes.
    pub(crate) fn adapt(&mut self, used: u64, limit: u64, held: Option<Duration>) {
        let Some(budget) = self.budget(limit) else { return };
        if used > budget {
            self.now = self.now.min(held.unwrap_or(self.now)) / 2;
        } else if used < budget / 100 * RELAXED_PERCENT {
            self.now = (self.now * 2).max(Duration::from_secs(1)).min(self.wanted);
        }
    }

    pub(crate) const fn length(&self) -> Duration {
        self.now
    }
}

/// The first block that must stay: the newest of those older than the window, unless a new home needs an older one, or the archive
/// has not come so far. None where nothing may go.
pub(crate) fn keep_from(cold: Option<EntryId>, needed: Option<EntryId>, archived: Head) -> Option<EntryId> {
    Some(cold?.min(needed?).min(archived.id))
}

/// The newest archived block of each shard that is older than a moment.
pub(crate) async fn newest_before(
    client: &Client,
    shards: &[u8],
    before: OffsetDateTime,
) -> Result<BTreeMap<u8, EntryId>, tokio_postgres::Error> {
    let shards: Vec<i16> = shards.iter().map(|s| i16::from(*s)).collect();
    let query = "SELECT s.shard, b.epoch, b.sequence FROM unnest($1::smallint[]) s(shard) \
         CROSS JOIN LATERAL (SELECT epoch, sequence FROM audit_block WHERE shard = s.shard AND at < $2 \
             ORDER BY at DESC, epoch DESC, sequence DESC LIMIT 1) b";
    let rows = client.query(query, &[&shards, &before]).await?;
    let id = |epoch: i64, sequence: i64| EntryId {
        epoch: epoch.cast_unsigned(),
        sequence: sequence.cast_unsigned(),
    };
    Ok(rows.iter().map(|row| (row.get::<_, i16>(0) as u8, id(row.get(1), row.get(2)))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn id(epoch: u64, sequence: u64) -> EntryId {
        EntryId { epoch, sequence }
    }

    #[test]
    fn trimming_respects_window_snapshot_and_archive() {
        let archived = Head { id: id(3, 5), hash: [0; 32] };
        assert_eq!(keep_from(Some(id(2, 9)), Some(id(3, 1)), archived), Some(id(2, 9)));
        assert_eq!(keep_from(Some(id(3, 4)), Some(id(3, 1)), archived), Some(id(3, 1)));
        assert_eq!(keep_from(Some(id(3, 9)), Some(id(3, 8)), archived), Some(id(3, 5)));
    }

    #[test]
    fn without_a_snapshot_or_a_cold_block_nothing_goes() {
        let archived = Head { id: id(3, 5), hash: [0; 32] };
        assert_eq!(keep_from(Some(id(2, 9)), None, archived), None);
        assert_eq!(keep_from(None, Some(id(2, 9)), archived), None);
    }

    #[test]
    fn the_window_shrinks_over_the_budget_and_comes_back() {
        let day = Duration::from_secs(86_400);
        let mut window = HotWindow::new(day, Some(1_000));
        let length_at = |window: &mut HotWindow, used| {
            window.adapt(used, 0, None);
            window.length()
        };
        assert!(window.is_over(1_001, 0) && !window.is_over(1_000, 0));
        assert_eq!(length_at(&mut window, 1_001), day / 2);
        assert_eq!(length_at(&mut window, 900), day / 2);
        assert_eq!(length_at(&mut window, 700), day);
        assert_eq!(length_at(&mut window, 0), day);
    }

    #[test]
    fn the_window_shrinks_from_what_is_held() {
        let mut window = HotWindow::new(Duration::from_secs(86_400 * 30), Some(1_000));
        window.adapt(2_000, 0, Some(Duration::from_secs(600)));
        assert_eq!(window.length(), Duration::from_secs(300));
        window.adapt(2_000, 0, Some(Duration::from_secs(299)));
        assert_eq!(window.length(), Duration::from_nanos(149_500_000_000));
    }

    #[test]
    fn redis_own_limit_is_the_budget_where_none_is_given() {
        let window = HotWindow::new(Duration::from_secs(60), None);
        assert!(!window.is_over(u64::MAX, 0));
        assert!(window.is_over(80_000, 100_000));
    }
}
