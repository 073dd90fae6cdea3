//! The loop that archives: read, check, store, say so. Owns its order; a worker serves its part of this process' shards.
//!
//! The rule it keeps: a shard whose trail is damaged stops, alone and with an alarm; whatever else fails is tried again
//! from the cursor.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::redis::Head;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::chain::{self, Broken};
use crate::config::Config;
use crate::day;
use crate::metrics::{Metrics, Shard};
use crate::rows::Rows;
use crate::store::{Move, Store, Stored};
use crate::trail::{Entry, Trail};

/// Transactions follow each other no sooner while little comes in, so that a busy mesh does not pay a commit for each
/// block. Far below the second within which everything should be archived.
const PACE: Duration = Duration::from_millis(200);
/// A batch with so many records is followed by the next at once.
const BUSY_RECORDS: u64 = 4_000;
/// How long a stopped shard rests before it is looked at again: somebody may have repaired it.
const STOPPED_REST: Duration = Duration::from_secs(30);
/// The longest pause between two tries to reach a server.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// The next blocks of some shards, as read.
type Batch = Vec<(u8, Vec<Entry>)>;

/// One worker.
pub(crate) struct Worker {
    pub(crate) config: Config,
    pub(crate) index: u8,
    pub(crate) assigned: watch::Receiver<Vec<u8>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stop: CancellationToken,
}

/// Why a session ended before its time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    #[error("Redis did not answer")]
    Redis(#[from] redis::RedisError),
    #[error("PostgreSQL did not do it")]
    Postgres(#[from] tokio_postgres::Error),
}

/// What one worker knows while its connections live.
struct Session {
    trail: Trail,
    store: Store,
    cursors: BTreeMap<u8, Head>,
    stopped: BTreeMap<u8, Instant>,
}

impl Worker {
    /// Archives until told to stop. A transaction that has begun is finished.
    pub(crate) async fn run(mut self) {
        let mut pause = Duration::from_millis(50);
        while !self.stop.is_cancelled() {
            let started = Instant::now();
            let Err(lost) = self.session().await else { return };
            match &lost {
                Lost::Redis(_) => self.metrics.redis_up.set(false),
                Lost::Postgres(_) => self.metrics.stored(self.index, false),
            }
            tracing::warn!(worker = self.index, error = %Chain(&lost), "the trail stays in Redis; trying again");
            if started.elapsed() > RETRY_MAX {
                pause = Duration::from_millis(50);
            }
            self.stop.run_until_cancelled(tokio::time::sleep(pause)).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    async fn session(&mut self) -> Result<(), Lost> {
        let mut session = Session {
            trail: Trail::connect(&self.config.redis_url).await?,
            store: Store::connect(&self.config.postgres_url).await?,
            cursors: BTreeMap::new(),
            stopped: BTreeMap::new(),
        };
        let mut rest = Duration::ZERO;
        while !self.stop.is_cancelled() {
            self.stop.run_until_cancelled(tokio::time::sleep(rest)).await;
            self.take_share(&mut session).await?;
            if session.cursors.is_empty() {
                session.trail.ping().await?;
                self.metrics.redis_up.set(true);
                self.metrics.stored(self.index, true);
                rest = PACE;
                continue;
            }
            let batch = session.trail.next(&session.cursors).await?;
            self.metrics.redis_up.set(true);
            let started = Instant::now();
            let records = self.archive(&mut session, batch).await?;
            self.metrics.stored(self.index, true);
            rest =
                if records < BUSY_RECORDS { PACE.saturating_sub(started.elapsed()) } else { Duration::ZERO };
        }
        Ok(())
    }

    /// Brings the cursors in line with the shards that are this worker's.
    async fn take_share(&mut self, session: &mut Session) -> Result<(), Lost> {
        let now = Instant::now();
        session.stopped.retain(|_, until| *until > now);
        let mut mine = self.assigned.borrow_and_update().clone();
        mine.retain(|shard| {
            shard % self.config.workers == self.index && !session.stopped.contains_key(shard)
        });
        session.cursors.retain(|shard, _| mine.contains(shard));
        mine.retain(|shard| !session.cursors.contains_key(shard));
        if !mine.is_empty() {
            let cursors = session.store.cursors(&mine).await?;
            let known = cursors.iter().filter(|(_, head)| **head != Head::default());
            session.trail.mark_archived(known.map(|(shard, head)| (*shard, head.id))).await?;
            session.cursors.extend(cursors);
        }
        Ok(())
    }

    /// Archives a batch; returns how many records it held.
    async fn archive(&self, session: &mut Session, batch: Batch) -> Result<u64, Lost> {
        if batch.is_empty() {
            return Ok(0);
        }
        match self.store(session, batch).await {
            Ok(records) => Ok(records),
            Err(Failed::Lost(lost)) => Err(lost),
            Err(Failed::Refused(batch, error)) => self.store_apart(session, batch, &error).await,
        }
    }

    /// Something in the batch is not to PostgreSQL's liking: store shard by shard, so that only its own one stops.
    async fn store_apart(
        &self,
        session: &mut Session,
        batch: Batch,
        error: &tokio_postgres::Error,
    ) -> Result<u64, Lost> {
        tracing::warn!(error = %Chain(error), "PostgreSQL refused a batch; storing its shards one by one");
        let mut records = 0;
        for (shard, entries) in batch {
            match self.store(session, vec![(shard, entries)]).await {
                Ok(stored) => records += stored,
                Err(Failed::Lost(lost)) => return Err(lost),
                Err(Failed::Refused(_, error)) => {
                    let after = session.cursors.get(&shard).map(|head| head.id).unwrap_or_default();
                    let why = Broken::Refused { after, message: Chain(&error).to_string() };
                    self.stop_shard(session, shard, &why).await?;
                }
            }
        }
        Ok(records)
    }

    async fn store(&self, session: &mut Session, batch: Batch) -> Result<u64, Failed> {
        let cursors = session.cursors.clone();
        let prepared = tokio::task::spawn_blocking(move || prepare(batch, &cursors));
        let prepared = prepared.await.expect("preparing a batch does not panic");
        let (records, newest) = (prepared.rows.records(), prepared.newest);
        if !prepared.moves.is_empty() {
            let started = Instant::now();
            match session.store.commit(&prepared.moves, prepared.rows).await {
                Ok(Stored::Committed) => {
                    self.metrics.commit_seconds.0.observe(started.elapsed().as_secs_f64());
                    self.metrics.delay_seconds.set(day::now().since(newest).as_secs_f64());
                    self.metrics.records.inc_by(records);
                    self.metrics.blocks.inc_by(prepared.blocks);
                    for step in &prepared.moves {
                        session.cursors.insert(step.shard, step.to);
                        self.metrics.stopped.remove(&Shard { shard: step.shard });
                    }
                    let archived = prepared.moves.iter().map(|step| (step.shard, step.to.id));
                    session.trail.mark_archived(archived).await.map_err(Lost::from)?;
                }
                Ok(Stored::Overtaken) => {
                    // The cursors are read again with the next share.
                    self.metrics.overtaken.inc();
                    prepared.moves.iter().for_each(|step| {
                        session.cursors.remove(&step.shard);
                    });
                    return Ok(0);
                }
                Err(error) if is_about_data(&error) => return Err(Failed::Refused(prepared.batch, error)),
                Err(error) => return Err(Failed::Lost(error.into())),
            }
        }
        for (shard, why) in &prepared.broken {
            self.stop_shard(session, *shard, why).await?;
        }
        Ok(records)
    }

    async fn stop_shard(&self, session: &mut Session, shard: u8, why: &Broken) -> Result<(), Lost> {
        let at = session.cursors.remove(&shard).unwrap_or_default();
        session.stopped.insert(shard, Instant::now() + STOPPED_REST);
        self.metrics.stopped.get_or_create(&Shard { shard }).set(1);
        if session.store.stop(shard, at, why).await? {
            tracing::error!(shard, error = %Chain(why), "a shard's trail is damaged; it is not archived any further");
        }
        Ok(())
    }
}

/// Why a batch was not stored.
enum Failed {
    /// A server is away.
    Lost(Lost),
    /// PostgreSQL will not take these data, however often they are sent.
    Refused(Batch, tokio_postgres::Error),
}

impl From<Lost> for Failed {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
    }
}

/// Data exception, integrity violation, limit exceeded: sending the same again would end the same.
fn is_about_data(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| ["22", "23", "54"].iter().any(|class| code.code().starts_with(class)))
}

/// A batch that was checked and turned into rows.
struct Prepared {
    batch: Batch,
    moves: Vec<Move>,
    rows: Rows,
    broken: Vec<(u8, Broken)>,
    blocks: u64,
    newest: governance::Timestamp,
}

/// Checks blocks and makes rows of them, as far as each shard's chain holds.
fn prepare(batch: Batch, cursors: &BTreeMap<u8, Head>) -> Prepared {
    let mut moves = Vec::with_capacity(batch.len());
    let (mut rows, mut broken) = (Rows::default(), Vec::new());
    let (mut blocks, mut newest) = (0, governance::Timestamp::ZERO);
    for (shard, entries) in &batch {
        let Some(from) = cursors.get(shard).copied() else { continue };
        let mut to = from;
        for entry in entries {
            match chain::check(*shard, to, entry.id, &entry.bytes) {
                Ok(checked) => {
                    rows.add(&checked, &entry.bytes);
                    to = checked.head;
                    blocks += 1;
                    newest = newest.max(checked.block.at);
                }
                Err(why) => {
                    broken.push((*shard, why));
                    break;
                }
            }
        }
        if to != from {
            moves.push(Move { shard: *shard, from, to });
        }
    }
    Prepared { batch, moves, rows, broken, blocks, newest }
}

/// An error with all that lies behind it.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
