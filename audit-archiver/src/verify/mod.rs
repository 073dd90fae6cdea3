//! The proof that nothing was changed: everything in PostgreSQL, Redis and the checkpoints recomputed and compared. Owns the order
//! in which things are read; changes nothing.
//!
//! The rule it keeps: what is read first may only be behind what is read later. Checkpoints come first, then how far Redis was
//! told the archive goes, then one snapshot of the archive, then the heads of the trail, so that archivers and homes at work are
//! never taken for a break.

pub mod bundle;
mod exact;
mod judge;
mod lines;
mod records;
mod scan;
mod snapshot;
mod tally;
mod trail;
mod verdict;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use governance::{SHARDS, Timestamp};
use protocol::redis::{EntryId, Head};
use tokio::task::JoinSet;

pub use verdict::{Break, Compared, Kind, Store, Verdict};

use crate::checkpoint::{self, PublicKey};
use crate::day::Day;
use crate::rows::Table;
use crate::trail::Trail;
use scan::Scan;
use snapshot::Snapshot;
use tally::Wanted;

/// Connections to PostgreSQL that read at the same time, at most.
const READERS_MAX: usize = 8;
/// Connections to Redis that read at the same time, each a part of the shards.
const WALKERS: u8 = 4;

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// PostgreSQL does not answer, or holds no archive.
    #[error("PostgreSQL could not be read")]
    Postgres(#[from] tokio_postgres::Error),
    /// Redis does not answer, or holds what no home wrote.
    #[error("Redis could not be read")]
    Redis(#[from] redis::RedisError),
    /// A folder of checkpoints, or a bundle, cannot be read or written.
    #[error("a file could not be read or written")]
    File(#[from] std::io::Error),
    /// A question to the archive failed.
    #[error(transparent)]
    Archive(#[from] crate::archive::Error),
}

/// What to verify.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Where the archive is.
    pub postgres_url: String,
    /// Where the trail is.
    pub redis_url: String,
    /// Everything since the beginning of this moment's UTC day; `Timestamp::ZERO` for all there is.
    pub since: Timestamp,
    /// Folders of checkpoints.
    pub checkpoints: Vec<PathBuf>,
    /// The keys that may have signed them.
    pub keys: Vec<PublicKey>,
}

/// Recomputes and compares everything.
///
/// # Errors
/// When a server or a folder cannot be read.
pub async fn verify(request: &Request) -> Result<Verdict, Error> {
    let (folders, keys) = (request.checkpoints.clone(), request.keys.clone());
    let from = Day::of(request.since);
    let found = tokio::task::spawn_blocking(move || checkpoint::read_folders(&folders, &keys, from));
    let found = found.await.expect("reading checkpoints does not panic")?;
    let shards: Vec<u8> = (0..SHARDS).collect();
    let mut trail = Trail::connect(&request.redis_url).await?;
    let archived = trail.archived(&shards).await?;
    let snapshot = Arc::new(Snapshot::take(&request.postgres_url).await?);
    let heads = trail.heads(&shards).await?;

    let mut said = Said { archived: BTreeMap::new(), contradictions: Vec::new() };
    let scan = Arc::new(Scan::new(wanted(&found.signed, &mut said)));
    for (shard, id) in archived {
        let named = said.archived.entry(shard).or_default();
        *named = (*named).max(id);
    }
    read_everything(request, &snapshot, &scan, heads).await?;

    let mut breaks = std::mem::take(&mut *scan.breaks());
    breaks.extend(said.contradictions);
    let mut verdict = Verdict { checkpoints: found.troubles, remarks: found.remarks, ..Verdict::default() };
    verdict.compared = scan.compared();
    verdict.compared.checkpoints = found.signed.len() as u64;
    judge::judge(request.since, &snapshot, &scan, &said.archived, &mut breaks, &mut verdict).await?;
    if request.checkpoints.is_empty() {
        verdict.remarks.push(
            "no checkpoints were given: a history that was rewritten as a whole, in both stores, would not be noticed"
                .to_owned(),
        );
    } else if let Some(newest) = found.signed.last() {
        let at = protocol::text::rfc3339(newest.checkpoint.at);
        verdict
            .remarks
            .push(format!("the newest checkpoint is of {at}: what came later is shown by the chain alone"));
    }
    (verdict.breaks, verdict.further) = breaks.into_first();
    verdict.whole = verdict.breaks.is_empty() && verdict.checkpoints.is_empty();
    Ok(verdict)
}

/// What others say of the archive, beside itself.
struct Said {
    /// How far each shard was archived at some moment before the snapshot.
    archived: BTreeMap<u8, EntryId>,
    /// Checkpoints that name different blocks under one id.
    contradictions: Vec<Break>,
}

/// The heads that checkpoints name, each once, with the first checkpoint that did.
fn wanted(signed: &[checkpoint::Signed], said: &mut Said) -> Vec<BTreeMap<EntryId, Wanted>> {
    let mut wanted: Vec<BTreeMap<EntryId, Wanted>> = vec![BTreeMap::new(); SHARDS.into()];
    // By shard: the moment of the last checkpoint, whatever head it named.
    let mut before: BTreeMap<u8, Timestamp> = BTreeMap::new();
    for checkpoint in signed.iter().map(|signed| &signed.checkpoint) {
        for of in &checkpoint.shards {
            let Some(wanted) = wanted.get_mut(usize::from(of.shard)) else { continue };
            let named = said.archived.entry(of.shard).or_default();
            *named = (*named).max(of.archived);
            let not_before = before.insert(of.shard, checkpoint.at);
            match wanted.get(&of.head) {
                None => {
                    let new = Wanted { hash: of.hash, signed_at: checkpoint.at, not_before, found: None };
                    wanted.insert(of.head, new);
                }
                Some(other) if other.hash != of.hash => said.contradictions.push(Break {
                    shard: of.shard,
                    block: of.head,
                    kind: Kind::Rewritten,
                    record: None,
                    store: Store::Redis,
                    expected: format!("hash {}", signed_words(other)),
                    found: format!(
                        "hash {}, as the checkpoint of {} says",
                        protocol::text::hex(&of.hash),
                        protocol::text::rfc3339(checkpoint.at)
                    ),
                }),
                Some(_) => {}
            }
        }
    }
    wanted
}

/// A signed head, for people.
fn signed_words(wanted: &Wanted) -> String {
    let at = protocol::text::rfc3339(wanted.signed_at);
    format!("{}, signed in the checkpoint of {at}", protocol::text::hex(&wanted.hash))
}

/// Reads all partitions and all streams, several at a time.
async fn read_everything(
    request: &Request,
    snapshot: &Arc<Snapshot>,
    scan: &Arc<Scan>,
    heads: BTreeMap<u8, Head>,
) -> Result<(), Error> {
    let mut tasks: JoinSet<Result<(), Error>> = JoinSet::new();
    let work = Arc::new(std::sync::Mutex::new(partitions(snapshot, request.since)));
    let readers =
        std::thread::available_parallelism().map_or(2, std::num::NonZero::get).clamp(3, READERS_MAX);
    for _ in 0..readers {
        let (client, work, scan) = (snapshot.reader().await?, Arc::clone(&work), Arc::clone(scan));
        tasks.spawn(async move {
            loop {
                let next = work.lock().expect("nothing panics with the list").pop();
                let Some((table, day)) = next else { return Ok(()) };
                scan.partition(&client, table, day).await?;
            }
        });
    }
    let from = Arc::new(trail::beginnings(snapshot, request.since).await?);
    let heads = Arc::new(heads);
    for part in 0..WALKERS {
        let (snapshot, scan) = (Arc::clone(snapshot), Arc::clone(scan));
        let (heads, from, url) = (Arc::clone(&heads), Arc::clone(&from), request.redis_url.clone());
        tasks.spawn(async move {
            let mut walker = trail::Walker::connect(&url, &snapshot, &scan).await?;
            for (shard, head) in heads.iter().filter(|(shard, _)| *shard % WALKERS == part) {
                walker.walk(*shard, *head, from.get(shard).copied().unwrap_or_default()).await?;
            }
            Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("comparing does not panic")?;
    }
    Ok(())
}

/// The partitions to read, the newest first in the list, so that the oldest is taken first. Rows may stand in the day before their
/// block's.
fn partitions(snapshot: &Snapshot, since: Timestamp) -> Vec<(Table, Day)> {
    let first = Day::of(since);
    let mut work: Vec<(Table, Day)> = Vec::new();
    for (table, days) in &snapshot.days {
        let from = if *table == Table::Blocks { first } else { first.before(1) };
        work.extend(days.range(from..).map(|day| (*table, *day)));
    }
    work.sort_by_key(|(table, day)| std::cmp::Reverse((*day, *table)));
    work
}
