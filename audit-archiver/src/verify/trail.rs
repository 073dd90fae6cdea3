//! The trail in Redis: its chain from the first block that it keeps to its head, and whether its copies are those of PostgreSQL.
//! Owns the walk; judges no row.
//!
//! The rule it keeps: an archiver may trim what is archived while this reads. What is gone here by then is looked for in
//! PostgreSQL before it counts as missing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use governance::Timestamp;
use protocol::audit::{self, Block, BlockHash};
use protocol::redis::{EntryId, Head};
use protocol::text::hex;
use tokio_postgres::Client;

use super::Error;
use super::scan::Scan;
use super::snapshot::{Snapshot, hash_of, id};
use super::tally::is_beginning;
use super::verdict::{Break, Kind, Store};
use crate::day::Day;
use crate::rows::records;
use crate::trail::{Entry, Trail};

/// From which block on each shard is read: about the first that PostgreSQL has since then, else its last.
pub(super) async fn beginnings(
    snapshot: &Snapshot,
    since: Timestamp,
) -> Result<BTreeMap<u8, EntryId>, Error> {
    if since == Timestamp::ZERO {
        return Ok(BTreeMap::new());
    }
    let mut from: BTreeMap<u8, EntryId> =
        snapshot.cursors.iter().map(|(shard, cursor)| (*shard, cursor.id)).collect();
    let query = "SELECT s.shard, b.epoch, b.sequence FROM generate_series(0, 63) s(shard) \
         CROSS JOIN LATERAL (SELECT epoch, sequence FROM audit_block WHERE shard = s.shard AND at >= $1 \
             ORDER BY at, epoch, sequence LIMIT 1) b";
    let day = Day::of(since).date().midnight().assume_utc();
    for row in snapshot.client().query(query, &[&day]).await? {
        from.insert(row.get::<_, i32>(0) as u8, id(row.get(1), row.get(2)));
    }
    Ok(from)
}

/// A block as it was read.
#[derive(Debug, Clone, Copy)]
struct Step {
    head: Head,
    previous: BlockHash,
}

/// Reads streams on a connection of its own.
pub(super) struct Walker {
    trail: Trail,
    /// Sees what an archiver has stored meanwhile.
    present: Client,
    snapshot: Arc<Snapshot>,
    scan: Arc<Scan>,
}

impl Walker {
    pub(super) async fn connect(
        url: &str,
        snapshot: &Arc<Snapshot>,
        scan: &Arc<Scan>,
    ) -> Result<Self, Error> {
        Ok(Self {
            trail: Trail::connect(url).await?,
            present: snapshot.present().await?,
            snapshot: Arc::clone(snapshot),
            scan: Arc::clone(scan),
        })
    }

    /// Reads one shard's stream up to its head, as far as the first break.
    pub(super) async fn walk(&mut self, shard: u8, head: Head, from: EntryId) -> Result<(), Error> {
        let cursor = self.snapshot.cursors.get(&shard).copied().unwrap_or_default();
        if let Some(found) = self.look(shard, head, from, cursor).await? {
            self.scan.breaks().add(found);
        }
        if head.id < cursor.id {
            let expected = format!("a head at or behind block {}, which is archived", cursor.id);
            let found =
                if head == Head::default() { "no head".to_owned() } else { format!("head {}", head.id) };
            let block = after(head.id, cursor.id);
            self.scan.breaks().add(redis_break(shard, block, Kind::TailMissing, expected, found));
        }
        Ok(())
    }

    async fn look(
        &mut self,
        shard: u8,
        head: Head,
        from: EntryId,
        cursor: Head,
    ) -> Result<Option<Break>, Error> {
        let (mut before, mut next): (Option<Step>, EntryId) = (None, from);
        loop {
            let page = self.trail.page(shard, next, head.id).await?;
            let Some(last) = page.last() else { break };
            next = EntryId { sequence: last.id.sequence + 1, ..last.id };
            for (i, entry) in page.iter().enumerate() {
                let step = match self.read(shard, entry, cursor) {
                    Ok(step) => step,
                    Err(found) => return Ok(Some(*found)),
                };
                let fits = match before {
                    Some(before) => id_follows(before, step) && step.previous == before.head.hash,
                    None => {
                        step.head.id <= cursor.id
                            || (step.head.id.follows(cursor.id) && step.previous == cursor.hash)
                    }
                };
                if !fits
                    && let Some(found) =
                        self.misfit(shard, cursor, before, step, page.get(i + 1), head).await?
                {
                    return Ok(Some(found));
                }
                if step.head.id == cursor.id && step.head.hash != cursor.hash {
                    return self.first_difference(shard, from, cursor).await.map(Some);
                }
                before = Some(step);
            }
        }
        let last = before.map(|step| step.head);
        if last.is_none_or(|last| last.id < head.id) && self.is_trimmed(shard, head).await? {
            return Ok(None);
        }
        Ok(end(shard, last, head, cursor))
    }

    /// Whether a head was archived and trimmed since it was read.
    async fn is_trimmed(&mut self, shard: u8, head: Head) -> Result<bool, Error> {
        let last = EntryId { epoch: u64::MAX, sequence: u64::MAX };
        let first = self.trail.page(shard, EntryId::default(), last).await?.first().map(|entry| entry.id);
        let archived = hash_of(&self.present, shard, head.id).await?;
        Ok(first.is_some_and(|first| first > head.id) && archived.as_deref() == Some(&head.hash))
    }

    /// Checks one entry by itself.
    fn read(&self, shard: u8, entry: &Entry, cursor: Head) -> Result<Step, Box<Break>> {
        let wrong =
            |kind, expected: String, found| Box::new(redis_break(shard, entry.id, kind, expected, found));
        let unreadable =
            |e: audit::BlockError| wrong(Kind::BlockUnreadable, "a block".to_owned(), e.to_string());
        let read = audit::Head::decode(&entry.bytes).map_err(unreadable)?;
        let says = EntryId { epoch: read.epoch, sequence: read.sequence };
        if (read.shard, says) != (shard, entry.id) {
            let found = format!("block {says} of shard {}", read.shard);
            return Err(wrong(Kind::BlockMislabelled, format!("block {} of shard {shard}", entry.id), found));
        }
        let step =
            Step { head: Head { id: entry.id, hash: audit::hash(&entry.bytes) }, previous: read.previous };
        self.scan.counts.in_redis.fetch_add(1, Ordering::Relaxed);
        if entry.id > cursor.id {
            let block = Block::decode(&entry.bytes).map_err(unreadable)?;
            self.scan.counts.not_archived.fetch_add(1, Ordering::Relaxed);
            self.scan.counts.records.fetch_add(records(&block), Ordering::Relaxed);
            self.scan.tally(shard).look_up(step.head);
        }
        Ok(step)
    }

    /// What it means that an entry does not continue the one before; none where it was only trimmed.
    async fn misfit(
        &mut self,
        shard: u8,
        cursor: Head,
        before: Option<Step>,
        step: Step,
        next: Option<&Entry>,
        head: Head,
    ) -> Result<Option<Break>, Error> {
        let id = step.head.id;
        let Some(before) = before.filter(|before| id_follows(*before, step)) else {
            return self.gap(shard, cursor, before, step).await;
        };
        // PostgreSQL knows which of the two was changed; else the block after them, or the head.
        let archived = hash_of(&self.present, shard, before.head.id).await?;
        let later = match next.and_then(|entry| audit::Head::decode(&entry.bytes).ok()) {
            Some(next) => next.previous == step.head.hash,
            None => head.hash == step.head.hash,
        };
        let former_changed = archived.map_or(later, |hash| hash != before.head.hash);
        Ok(Some(if former_changed {
            let expected = format!("bytes with hash {}, which block {id} carries", hex(&step.previous));
            redis_break(shard, before.head.id, Kind::BlockChanged, expected, hex(&before.head.hash))
        } else {
            let expected = format!("the hash {} of the block before", hex(&before.head.hash));
            redis_break(shard, id, Kind::ChainBroken, expected, hex(&step.previous))
        }))
    }

    /// Blocks are missing before an entry: trimmed meanwhile, or lost.
    async fn gap(
        &mut self,
        shard: u8,
        cursor: Head,
        before: Option<Step>,
        step: Step,
    ) -> Result<Option<Break>, Error> {
        let id = step.head.id;
        let last = before.map_or(cursor, |before| before.head);
        if before.is_none() && cursor == Head::default() && is_beginning(&step.previous) && id.sequence == 1 {
            return Ok(None);
        }
        let first = self.trail.page(shard, EntryId::default(), id).await?.first().map(|entry| entry.id);
        if first.is_none_or(|first| first >= id) {
            // Whatever came before is archived by this moment, or it was not for trimming to take.
            let query = "SELECT hash FROM audit_block WHERE shard = $1 AND (epoch, sequence) < ($2, $3) \
                         ORDER BY epoch DESC, sequence DESC LIMIT 1";
            let (epoch, sequence) = (id.epoch.cast_signed(), id.sequence.cast_signed());
            let row = self.present.query_opt(query, &[&i16::from(shard), &epoch, &sequence]).await?;
            if row.is_some_and(|row| row.get::<_, &[u8]>(0) == step.previous) {
                return Ok(None);
            }
        }
        let block = after(last.id, id);
        let (expected, found) = (format!("the block after {}", last.id), format!("block {id}"));
        let kind = if id.follows(last.id) { Kind::CopiesDiffer } else { Kind::BlockMissing };
        Ok(Some(redis_break(shard, block, kind, expected, found)))
    }

    /// Both chains hold and they are not the same: where they part.
    async fn first_difference(&mut self, shard: u8, from: EntryId, cursor: Head) -> Result<Break, Error> {
        let query = "SELECT epoch, sequence, hash FROM audit_block WHERE shard = $1";
        let rows = self.snapshot.client().query(query, &[&i16::from(shard)]).await?;
        let archived: BTreeMap<EntryId, Vec<u8>> =
            rows.iter().map(|row| (id(row.get(0), row.get(1)), row.get(2))).collect();
        let mut next = from;
        loop {
            let page = self.trail.page(shard, next, cursor.id).await?;
            for entry in &page {
                let here = audit::hash(&entry.bytes);
                if let Some(there) = archived.get(&entry.id).filter(|there| ***there != here) {
                    let mut found =
                        redis_break(shard, entry.id, Kind::CopiesDiffer, String::new(), String::new());
                    found.store = Store::Both;
                    found.expected = format!("one block, with hash {} in PostgreSQL", hex(there));
                    found.found = format!("hash {} in Redis", hex(&here));
                    return Ok(found);
                }
            }
            match page.last() {
                Some(last) => next = EntryId { sequence: last.id.sequence + 1, ..last.id },
                None => break,
            }
        }
        let expected = format!("hash {} in the cursor", hex(&cursor.hash));
        let mut found =
            redis_break(shard, cursor.id, Kind::CursorDiffers, expected, "another in Redis".to_owned());
        found.store = Store::Postgres;
        Ok(found)
    }
}

/// Whether the stream ends with what its head names.
fn end(shard: u8, last: Option<Head>, head: Head, cursor: Head) -> Option<Break> {
    match last {
        Some(last) if last == head => None,
        Some(last) if last.id == head.id => {
            let expected = format!("bytes with hash {}, as the head says", hex(&head.hash));
            Some(redis_break(shard, head.id, Kind::BlockChanged, expected, hex(&last.hash)))
        }
        None if head == Head::default() => None,
        _ => {
            let last = last.map_or_else(|| cursor.id.min(head.id), |last| last.id);
            let expected = format!("blocks up to {}, as the head says", head.id);
            Some(redis_break(
                shard,
                after(last, head.id),
                Kind::TailMissing,
                expected,
                format!("the end at {last}"),
            ))
        }
    }
}

fn id_follows(before: Step, step: Step) -> bool {
    step.head.id.follows(before.head.id)
}

/// The block that should come after one, where a later one is there; the later one itself where it begins an epoch.
pub(super) fn after(id: EntryId, later: EntryId) -> EntryId {
    if later.epoch == id.epoch || id != EntryId::default() && later.sequence > 1 {
        EntryId { epoch: id.epoch, sequence: id.sequence + 1 }
    } else {
        EntryId { epoch: later.epoch, sequence: 1 }
    }
}

fn redis_break(shard: u8, block: EntryId, kind: Kind, expected: String, found: String) -> Break {
    Break { shard, block, kind, record: None, store: Store::Redis, expected, found }
}
