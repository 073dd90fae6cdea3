//! The judgement on each shard once everything was read: where its chain begins, whether it goes on without a break to its cursor,
//! whether what others say of it is there. Owns what counts as retention and what as loss.
//!
//! The rule it keeps: only whole days go by retention, and the archiver notes each. What is missing on a day that is kept, or where no
//! day was ever dropped, is a break.

use std::collections::BTreeMap;

use governance::{SHARDS, Timestamp};
use protocol::audit::{self, BlockHash};
use protocol::redis::{EntryId, Head};
use protocol::text::{hex, rfc3339};

use super::scan::Scan;
use super::snapshot::{Snapshot, hash_of, id};
use super::tally::{Stretch, Wanted, is_beginning};
use super::trail::after;
use super::verdict::{Break, Breaks, Kind, Store, Verdict};
use super::{Error, exact, signed_words};
use crate::day::Day;

/// What is judged one shard after the other.
struct Judge<'a> {
    since: Timestamp,
    snapshot: &'a Snapshot,
    shard: u8,
    stretches: Vec<Stretch>,
    cursor: Head,
    breaks: &'a mut Breaks,
    verdict: &'a mut Verdict,
}

/// Judges all shards.
pub(super) async fn judge(
    since: Timestamp,
    snapshot: &Snapshot,
    scan: &Scan,
    archived: &BTreeMap<u8, EntryId>,
    breaks: &mut Breaks,
    verdict: &mut Verdict,
) -> Result<(), Error> {
    let mut doubtful = Vec::new();
    for shard in 0..SHARDS {
        let (stretches, mut wanted, accused, unbalanced) = {
            let mut tally = scan.tally(shard);
            (tally.stretches(), tally.wanted.clone(), tally.accused.clone(), tally.unbalanced())
        };
        let cursor = snapshot.cursors.get(&shard).copied().unwrap_or_default();
        let mut judge = Judge { since, snapshot, shard, stretches, cursor, breaks, verdict };
        judge.verdict.compared.shards += u64::from(!judge.stretches.is_empty());
        judge.beginning().await?;
        judge.chain(&accused);
        judge.end(archived.get(&shard).copied().unwrap_or_default(), &accused).await?;
        judge.look_again(&mut wanted).await?;
        judge.heads(&wanted, &accused);
        let clear = unbalanced.into_iter().filter(|id| !accused.contains(id) && !judge.is_elsewhere(*id));
        doubtful.extend(clear.map(|id| (shard, id)));
    }
    for (shard, why) in &snapshot.stopped {
        verdict.remarks.push(format!("shard {shard} is archived no further: {why}"));
    }
    breaks.extend(exact::compare(snapshot, &doubtful).await?);
    Ok(())
}

impl Judge<'_> {
    fn wrong(&mut self, block: EntryId, kind: Kind, expected: String, found: String) {
        let (shard, store) = (self.shard, Store::Postgres);
        self.breaks.add(Break { shard, block, kind, record: None, store, expected, found });
    }

    fn remark(&mut self, text: &str) {
        self.verdict.remarks.push(format!("shard {}: {text}", self.shard));
    }

    /// Whether a block lies where nothing was looked at, or where retention took it.
    fn is_elsewhere(&self, id: EntryId) -> bool {
        let Some(first) = self.stretches.first() else { return self.since > Timestamp::ZERO };
        if id < first.first {
            return self.since > Timestamp::ZERO || self.snapshot.dropped_days;
        }
        let gap = self.stretches.windows(2).find(|pair| pair[0].last.id < id && id < pair[1].first);
        gap.is_some_and(|pair| self.took(&pair[0], &pair[1]))
    }

    /// Whether retention may have taken what lies between two stretches.
    fn took(&self, former: &Stretch, next: &Stretch) -> bool {
        self.snapshot.dropped_days
            && self.snapshot.lacks_a_day(Day::of(former.last_at), Day::of(next.first_at))
    }

    /// The first block is the first of the shard, or what lies before it is accounted for.
    async fn beginning(&mut self) -> Result<(), Error> {
        let Some(first) = self.stretches.first().copied() else { return Ok(()) };
        if is_beginning(&first.previous) {
            if first.first.sequence != 1 {
                let found = format!("block {} that says that none came before", first.first);
                self.wrong(
                    first.first,
                    Kind::BlockMissing,
                    "a first block with sequence 1".to_owned(),
                    found,
                );
            }
            return Ok(());
        }
        if self.since > Timestamp::ZERO
            && let Some(before) = self.block_before(first.first).await?
        {
            if before.hash != first.previous {
                let expected = format!("the hash {} of block {}", hex(&before.hash), before.id);
                self.wrong(first.first, Kind::ChainBroken, expected, hex(&first.previous));
            }
            return Ok(());
        }
        if self.snapshot.dropped_days {
            let text =
                format!("begins with block {}; what came before was dropped by retention", first.first);
            self.remark(&text);
        } else {
            let missing = EntryId { sequence: first.first.sequence.saturating_sub(1).max(1), ..first.first };
            let expected = format!("the block before {}, with hash {}", first.first, hex(&first.previous));
            let found = "nothing, though retention has dropped no day".to_owned();
            self.wrong(missing, Kind::BlockMissing, expected, found);
        }
        Ok(())
    }

    async fn block_before(&self, first: EntryId) -> Result<Option<Head>, Error> {
        let query = "SELECT epoch, sequence, data FROM audit_block WHERE shard = $1 AND (epoch, sequence) < ($2, $3) \
             ORDER BY epoch DESC, sequence DESC LIMIT 1";
        let (epoch, sequence) = (first.epoch.cast_signed(), first.sequence.cast_signed());
        let row =
            self.snapshot.client().query_opt(query, &[&i16::from(self.shard), &epoch, &sequence]).await?;
        let before = row.map(|row| Head { id: id(row.get(0), row.get(1)), hash: audit::hash(row.get(2)) });
        Ok(before.filter(|before| first.follows(before.id)))
    }

    /// No block is missing or there twice, and each carries the hash of the one before.
    fn chain(&mut self, accused: &std::collections::BTreeSet<EntryId>) {
        for i in 1..self.stretches.len() {
            let (former, next) = (self.stretches[i - 1], self.stretches[i]);
            let later = self.stretches.get(i + 1).map(|later| later.previous);
            if next.first <= former.last.id {
                let found = format!("block {} once more", next.first);
                self.wrong(
                    next.first,
                    Kind::BlockTwice,
                    format!("the block after {}", former.last.id),
                    found,
                );
            } else if next.first.follows(former.last.id) {
                if !accused.contains(&former.last.id) && !accused.contains(&next.first) {
                    self.parted(&former, &next, later);
                }
            } else if self.took(&former, &next) {
                let (last, first) = (former.last.id, next.first);
                self.remark(&format!("between blocks {last} and {first} retention has dropped days"));
            } else {
                let missing = after(former.last.id, next.first);
                let expected = format!("the block after {}", former.last.id);
                let found =
                    format!("block {}, which follows one with hash {}", next.first, hex(&next.previous));
                self.wrong(missing, Kind::BlockMissing, expected, found);
            }
        }
    }

    /// A block does not carry the hash of the one before. Which of the two was changed shows in the one after them.
    fn parted(&mut self, former: &Stretch, next: &Stretch, later: Option<BlockHash>) {
        let alone = next.first == next.last.id;
        let fits_on = later.map_or(next.last == self.cursor, |previous| previous == next.last.hash);
        if alone && !fits_on {
            let expected = format!("the hash {} of block {}", hex(&former.last.hash), former.last.id);
            self.wrong(next.first, Kind::ChainBroken, expected, hex(&next.previous));
        } else {
            let expected =
                format!("bytes with hash {}, which block {} carries", hex(&next.previous), next.first);
            self.wrong(former.last.id, Kind::BlockChanged, expected, hex(&former.last.hash));
        }
    }

    /// The last block is the one in the cursor, and the cursor is not behind what was archived before.
    async fn end(
        &mut self,
        archived: EntryId,
        accused: &std::collections::BTreeSet<EntryId>,
    ) -> Result<(), Error> {
        let cursor = self.cursor;
        if archived > cursor.id {
            let expected = format!("blocks up to {archived}, which were archived");
            let found = format!("a cursor at block {}", cursor.id);
            self.wrong(after(cursor.id, archived), Kind::TailMissing, expected, found);
        }
        let expected = format!("block {} with hash {}, as the cursor says", cursor.id, hex(&cursor.hash));
        match self.stretches.last().map(|stretch| stretch.last) {
            Some(last) if last.id < cursor.id => {
                let found = format!("the end at block {}", last.id);
                self.wrong(after(last.id, cursor.id), Kind::TailMissing, expected, found);
            }
            Some(last) if last != cursor && !accused.contains(&last.id) => {
                let found = format!("block {} with hash {}", last.id, hex(&last.hash));
                self.wrong(last.id, Kind::CursorDiffers, expected, found);
            }
            Some(_) => {}
            None if cursor == Head::default() => {}
            None => {
                let hash = hash_of(self.snapshot.client(), self.shard, cursor.id).await?;
                if hash.is_none() && self.snapshot.dropped_days {
                    self.remark("all its blocks were dropped by retention");
                } else if hash.as_deref() != Some(&cursor.hash) {
                    let found =
                        hash.map_or_else(|| "no block".to_owned(), |hash| format!("hash {}", hex(&hash)));
                    self.wrong(cursor.id, Kind::TailMissing, expected, found);
                }
            }
        }
        Ok(())
    }

    /// What was neither archived in the snapshot nor left in Redis may have gone from one to the other meanwhile.
    async fn look_again(&self, wanted: &mut BTreeMap<EntryId, Wanted>) -> Result<(), Error> {
        let behind = |id: &EntryId, wanted: &Wanted| *id > self.cursor.id && wanted.found.is_none();
        if !wanted.iter().any(|(id, wanted)| behind(id, wanted)) {
            return Ok(());
        }
        let present = self.snapshot.present().await?;
        for (id, wanted) in wanted.iter_mut().filter(|(id, wanted)| behind(id, wanted)) {
            let hash = hash_of(&present, self.shard, *id).await?;
            wanted.found = hash.and_then(|hash| hash.try_into().ok());
        }
        Ok(())
    }

    /// Each head that a checkpoint names is there, and is the block that was signed.
    fn heads(&mut self, wanted: &BTreeMap<EntryId, Wanted>, accused: &std::collections::BTreeSet<EntryId>) {
        let mut dropped = 0_u64;
        for (id, wanted) in wanted {
            match wanted.found {
                Some(hash) if hash == wanted.hash => self.verdict.compared.heads += 1,
                Some(_) if accused.contains(id) => {}
                Some(hash) => {
                    let expected = format!("a block with hash {}", signed_words(wanted));
                    self.wrong(*id, Kind::Rewritten, expected, format!("hash {}", hex(&hash)));
                }
                None if self.is_elsewhere(*id) && (self.since > Timestamp::ZERO || !self.is_kept(wanted)) => {
                    dropped += u64::from(self.since == Timestamp::ZERO);
                }
                None => {
                    let expected = format!("block {id} with hash {}", signed_words(wanted));
                    let (shard, block, store) = (self.shard, *id, Store::Both);
                    let last = self.stretches.last().map(|stretch| stretch.last.id).unwrap_or_default();
                    let kind = if *id > last { Kind::TailMissing } else { Kind::BlockMissing };
                    let found = "no such block".to_owned();
                    self.breaks.add(Break { shard, block, kind, record: None, store, expected, found });
                }
            }
        }
        if dropped > 0 {
            self.remark(&format!("{dropped} signed heads are of blocks that retention has dropped"));
        }
        self.anchor(wanted);
    }

    /// Whether a head was written on days that are all kept, so that its block must be there.
    fn is_kept(&self, wanted: &Wanted) -> bool {
        let days = |from: Timestamp| (Day::of(from), Day::of(wanted.signed_at));
        wanted.not_before.map(days).is_some_and(|(from, to)| !self.snapshot.lacks_a_day(from, to))
    }

    /// What retention left begins in the middle of a chain: a signed head behind its first block vouches for it.
    fn anchor(&mut self, wanted: &BTreeMap<EntryId, Wanted>) {
        let Some(first) = self.stretches.first().filter(|first| !is_beginning(&first.previous)) else {
            return;
        };
        let first = first.first;
        let vouching = wanted.range(first..).find(|(_, wanted)| wanted.found == Some(wanted.hash));
        if let Some((id, wanted)) = vouching.filter(|_| self.since == Timestamp::ZERO) {
            let at = rfc3339(wanted.signed_at);
            self.remark(&format!(
                "its first block {first} is vouched for by block {id}, signed in the checkpoint of {at}"
            ));
        } else if self.since == Timestamp::ZERO && !wanted.is_empty() {
            self.remark(&format!("no signed head vouches for its first block {first}"));
        }
    }
}
