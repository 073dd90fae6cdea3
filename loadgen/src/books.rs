//! The books of a run: what senders got accepted, what handlers did, and what the archive says, each counted by itself.
//!
//! The rule it keeps: nothing is copied from one count to another; a run is good only when they agree.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use governance::{Decision, DispatchId, InstanceId, Outcome};
use serde::Serialize;
use tokio_postgres::{Client, NoTls};

use crate::mesh::Pair;
use crate::output;

/// What is given to the mesh to end everything and to the archiver to store it; large runs are archived for minutes.
const ARCHIVE_PATIENCE: Duration = Duration::from_secs(300);
/// The archive is looked at this often.
const LOOK: Duration = Duration::from_millis(500);
const SECOND: Duration = Duration::from_secs(1);

/// What senders were told: dispatches by envelope.
#[derive(Debug, Default)]
pub(crate) struct Accepted {
    envelopes: HashMap<(InstanceId, u64), u64>,
}

impl Accepted {
    /// Makes room for so many envelopes, for a run whose memory is measured.
    pub(crate) fn reserve(&mut self, envelopes: usize) {
        self.envelopes.reserve(envelopes);
    }

    /// Consecutive slots that were accepted.
    pub(crate) fn add(&mut self, first: DispatchId, count: u64) {
        *self.envelopes.entry((first.instance, first.sequence)).or_default() += count;
    }

    pub(crate) fn merge(&mut self, other: Self) {
        for (envelope, count) in other.envelopes {
            *self.envelopes.entry(envelope).or_default() += count;
        }
    }

    pub(crate) fn dispatches(&self) -> u64 {
        self.envelopes.values().sum()
    }

    pub(crate) fn envelopes(&self) -> u64 {
        self.envelopes.len() as u64
    }
}

/// The books, under the names of all reports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Books {
    /// What senders were told.
    accepted: u64,
    /// Recorded outcomes other than rejected.
    completed: u64,
    rejected: u64,
    /// Recorded decisions without an outcome.
    in_flight: u64,
    /// Accepted, but without a record; or recorded as a success without an effect.
    lost: u64,
    /// Runs of a handler beyond the first of a dispatch.
    duplicate_effects: u64,
    /// Records of what was accepted.
    audited: u64,
    audit_missing: u64,
    /// Dispatches admitted beyond rate and burst of their source in any second.
    quota_exceeded: u64,
    /// Dispatches that handlers saw.
    effects: u64,
    /// Recorded successes.
    successes: u64,
}

impl Books {
    /// Whether all counts agree.
    pub(crate) const fn balance(&self) -> bool {
        self.accepted == self.completed + self.rejected
            && self.in_flight == 0
            && self.lost == 0
            && self.duplicate_effects == 0
            && self.audit_missing == 0
            && self.quota_exceeded == 0
    }
}

/// What the archive says of one envelope.
#[derive(Debug, Default, Clone, Copy)]
struct Archived {
    decided: u64,
    ended: u64,
    rejected: u64,
    successes: u64,
}

/// Waits until the archive has an end for everything that was accepted, or no more comes, and closes the books.
pub(crate) async fn close(
    postgres_url: &str,
    since: SystemTime,
    accepted: &Accepted,
    pairs: &[Pair],
) -> anyhow::Result<Books> {
    let bar = output::spinner("waiting for the archive");
    let (client, connection) = tokio_postgres::connect(postgres_url, NoTls)
        .await
        .context("failed to connect to the archive (MESH_POSTGRES_URL)")?;
    let connection = tokio::spawn(connection);
    let archive =
        Archive { client, since, sources: pairs.iter().map(|p| p.source.name().to_owned()).collect() };
    let until = Instant::now() + ARCHIVE_PATIENCE;
    loop {
        let found = archive.envelopes().await?;
        let mut books = balance(accepted, &found, pairs);
        let over = Instant::now() > until;
        if over || (books.audit_missing == 0 && books.in_flight == 0) {
            books.quota_exceeded = archive.quota_exceeded(pairs).await?;
            bar.finish_and_clear();
            connection.abort();
            return Ok(books);
        }
        bar.set_message(format!(
            "waiting for the archive: {} of {} decided, {} of them open",
            books.audited, books.accepted, books.in_flight
        ));
        tokio::time::sleep(LOOK).await;
    }
}

fn balance(accepted: &Accepted, found: &HashMap<(InstanceId, u64), Archived>, pairs: &[Pair]) -> Books {
    let mut books = Books {
        accepted: accepted.dispatches(),
        duplicate_effects: pairs.iter().map(|p| p.effects.duplicates()).sum(),
        effects: pairs.iter().map(|p| p.effects.done()).sum(),
        ..Books::default()
    };
    for (envelope, count) in &accepted.envelopes {
        let archived = found.get(envelope).copied().unwrap_or_default();
        books.audited += archived.decided.min(*count);
        books.audit_missing += count.saturating_sub(archived.decided);
        books.in_flight += archived.decided.saturating_sub(archived.ended);
        books.rejected += archived.rejected;
        books.completed += archived.ended - archived.rejected;
        books.successes += archived.successes;
    }
    books.lost = books.audit_missing + books.successes.saturating_sub(books.effects);
    books
}

struct Archive {
    client: Client,
    since: SystemTime,
    sources: Vec<String>,
}

impl Archive {
    /// Decisions and ends by envelope.
    async fn envelopes(&self) -> anyhow::Result<HashMap<(InstanceId, u64), Archived>> {
        let mut found: HashMap<(InstanceId, u64), Archived> = HashMap::new();
        let (rejected, success) = (i16::from(Outcome::Rejected.code()), i16::from(Outcome::Success.code()));
        let decided = self
            .client
            .query(
                "SELECT instance, sequence, sum(count), coalesce(sum(count) FILTER (WHERE outcome IS NOT NULL), 0),
                     coalesce(sum(count) FILTER (WHERE outcome = $3), 0)
                 FROM decision_run WHERE decided >= $1 AND source = ANY($2) GROUP BY 1, 2",
                &[&self.since, &self.sources, &rejected],
            )
            .await
            .context("failed to read decisions from the archive")?;
        for row in decided {
            let archived = found.entry(envelope(&row)).or_default();
            archived.decided = count(&row, 2);
            archived.ended = count(&row, 3);
            archived.rejected = count(&row, 4);
        }
        let ended = self
            .client
            .query(
                "SELECT instance, sequence, sum(count), coalesce(sum(count) FILTER (WHERE outcome = $3), 0)
                 FROM completion_run WHERE completed >= $1 AND source = ANY($2) AND NOT late GROUP BY 1, 2",
                &[&self.since, &self.sources, &success],
            )
            .await
            .context("failed to read ends from the archive")?;
        for row in ended {
            let archived = found.entry(envelope(&row)).or_default();
            archived.ended += count(&row, 2);
            archived.successes = count(&row, 3);
        }
        Ok(found)
    }

    /// How many dispatches were admitted beyond rate and burst of their source, in the worst second of each.
    async fn quota_exceeded(&self, pairs: &[Pair]) -> anyhow::Result<u64> {
        let admitted = i16::from(Decision::Admitted.code());
        let rows = self
            .client
            .query(
                "SELECT source, decided, sum(count) FROM decision_run
                 WHERE decided >= $1 AND source = ANY($2) AND decision = $3 GROUP BY 1, 2 ORDER BY 1, 2",
                &[&self.since, &self.sources, &admitted],
            )
            .await
            .context("failed to read admissions from the archive")?;
        let mut moments: HashMap<String, Vec<(SystemTime, u64)>> = HashMap::new();
        for row in rows {
            moments.entry(row.get(0)).or_default().push((row.get(1), count(&row, 2)));
        }
        let mut exceeded = 0;
        for pair in pairs {
            let allowed = pair.source.terms().map_or(0, |t| u64::from(t.rate_per_s) + u64::from(t.burst));
            let worst = moments.get(pair.source.name()).map_or(0, |moments| busiest_second(moments));
            exceeded += worst.saturating_sub(allowed);
        }
        Ok(exceeded)
    }
}

/// The most that falls into any second, of counts in the order of time.
fn busiest_second(moments: &[(SystemTime, u64)]) -> u64 {
    let (mut first, mut within, mut busiest) = (0, 0, 0);
    for (at, count) in moments {
        within += count;
        while at.duration_since(moments[first].0).is_ok_and(|d| d >= SECOND) {
            within -= moments[first].1;
            first += 1;
        }
        busiest = busiest.max(within);
    }
    busiest
}

fn envelope(row: &tokio_postgres::Row) -> (InstanceId, u64) {
    (InstanceId(row.get::<_, i64>(0) as u64), row.get::<_, i64>(1) as u64)
}

fn count(row: &tokio_postgres::Row, column: usize) -> u64 {
    row.get::<_, i64>(column).max(0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_second_slides() {
        let at = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        let moments = [(at(0), 1), (at(600), 5), (at(1_000), 4), (at(1_599), 3), (at(1_600), 2)];
        assert_eq!(busiest_second(&moments), 12, "600 to 1,599 ms");
        assert_eq!(busiest_second(&[]), 0);
    }

    #[test]
    fn books_balance_only_when_every_count_agrees() {
        let good = Books { accepted: 5, completed: 4, rejected: 1, audited: 5, ..Books::default() };
        assert!(good.balance());
        for bad in [
            Books { accepted: 6, ..good.clone() },
            Books { in_flight: 1, ..good.clone() },
            Books { lost: 1, ..good.clone() },
            Books { duplicate_effects: 1, ..good.clone() },
            Books { audit_missing: 1, ..good.clone() },
            Books { quota_exceeded: 1, ..good.clone() },
        ] {
            assert!(!bad.balance(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_accepted_without_a_record_is_lost() {
        let mut accepted = Accepted::default();
        let first = DispatchId { instance: InstanceId(1), sequence: 1, slot: 0, copy: 0 };
        accepted.add(first, 3);
        accepted.add(DispatchId { sequence: 2, ..first }, 2);
        let archived = Archived { decided: 3, ended: 3, rejected: 1, successes: 0 };
        let books = balance(&accepted, &HashMap::from([((InstanceId(1), 1), archived)]), &[]);
        assert_eq!((books.accepted, books.audited, books.audit_missing, books.lost), (5, 3, 2, 2));
        assert_eq!((books.completed, books.rejected, books.in_flight), (2, 1, 0));
    }
}
