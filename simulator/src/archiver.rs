//! The modelled archiver: Redis to PostgreSQL, shard by shard, then trim.
//!
//! The rule it keeps: a block is archived only when it follows the cursor, densely and by hash; the cursor moves with what it
//! covers; and only what is archived and no home needs is dropped.

use std::time::Duration;

use governance::SHARDS;
use protocol::audit;
use protocol::redis::{EntryId, Head};

use crate::oracle::Sight;
use crate::process::{Ctx, Doing, Heard, Wake};
use crate::{postgres, redis};

/// The pause between two batches.
pub const PACE: Duration = Duration::from_millis(200);
/// How long a server may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Blocks of one transaction.
const BLOCKS_MAX: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It rests.
    Rest,
    /// It asked for the cursor.
    Cursor,
    /// It reads blocks behind the cursor.
    Blocks(Head),
    /// It found this behind the cursor, which does not follow: another archiver may have moved the cursor, and dropped the rest.
    Doubt(Head, EntryId),
    /// It commits up to this head.
    Commit(Head),
    /// It asks what a new home needs.
    Needed(EntryId),
    /// It trims.
    Trim,
}

/// One archiver. Several may run at once, and archive the same shards.
#[derive(Debug)]
pub struct Archiver {
    shard: u8,
    stage: Stage,
    token: u64,
    pace: Duration,
}

impl Archiver {
    /// An archiver that rests so long between two rounds.
    #[must_use]
    pub const fn new(pace: Duration) -> Self {
        Self { shard: 0, stage: Stage::Rest, token: 0, pace }
    }

    /// Handles what reached it.
    pub fn on(&mut self, ctx: &mut Ctx<'_>, heard: Heard) {
        match heard {
            Heard::Wake(Wake::Start) => ctx.after(self.pace, Wake::Look),
            Heard::Wake(Wake::Look) => self.begin(ctx),
            // A server does not answer: the shard is looked at again from its cursor.
            Heard::Wake(Wake::Overdue(token)) if token == self.token && self.stage != Stage::Rest => {
                self.stage = Stage::Rest;
                ctx.after(self.pace, Wake::Look);
            }
            Heard::Redis(token, answer) if token == self.token => self.on_redis(ctx, answer),
            Heard::Postgres(token, answer) if token == self.token => self.on_postgres(ctx, &answer),
            Heard::Wake(_) | Heard::Redis(..) | Heard::Postgres(..) | Heard::Broker(_) => {}
        }
    }

    fn ask(&mut self, ctx: &mut Ctx<'_>, stage: Stage, op: impl FnOnce(u64) -> Doing) {
        self.token += 1;
        self.stage = stage;
        ctx.doings.push(op(self.token));
        ctx.after(PATIENCE, Wake::Overdue(self.token));
    }

    fn begin(&mut self, ctx: &mut Ctx<'_>) {
        if self.stage == Stage::Rest {
            let shard = self.shard;
            self.ask(ctx, Stage::Cursor, |token| Doing::Postgres(postgres::Op::Cursor { token, shard }));
        }
    }

    fn next_shard(&mut self, ctx: &mut Ctx<'_>) {
        self.shard = (self.shard + 1) % SHARDS;
        self.stage = Stage::Rest;
        if self.shard == 0 {
            return ctx.after(self.pace, Wake::Look);
        }
        self.begin(ctx);
    }

    fn on_redis(&mut self, ctx: &mut Ctx<'_>, answer: redis::Answer) {
        let shard = self.shard;
        match (self.stage, answer) {
            (Stage::Blocks(cursor), redis::Answer::Blocks(blocks)) => self.commit(ctx, cursor, &blocks),
            (Stage::Needed(archived), redis::Answer::Snapshot(text)) => {
                let needed = text.as_deref().and_then(|t| t.lines().nth(1)).and_then(EntryId::parse);
                let Some(needed) = needed else { return self.next_shard(ctx) };
                let before = needed.min(archived);
                self.ask(ctx, Stage::Trim, |token| Doing::Redis(redis::Op::Trim { token, shard, before }));
            }
            (Stage::Trim, redis::Answer::Done) => self.next_shard(ctx),
            (stage, answer) => unreachable!("{answer:?} while {stage:?}"),
        }
    }

    fn commit(&mut self, ctx: &mut Ctx<'_>, cursor: Head, blocks: &[(EntryId, std::sync::Arc<[u8]>)]) {
        let shard = self.shard;
        let mut to = cursor;
        let mut fresh = Vec::new();
        for (id, bytes) in blocks.iter().filter(|(id, _)| *id > cursor.id) {
            let follows = audit::Head::decode(bytes).is_ok_and(|h| h.previous == to.hash && h.shard == shard);
            if !id.follows(to.id) || !follows {
                let doubt = Stage::Doubt(cursor, *id);
                return self.ask(ctx, doubt, |token| Doing::Postgres(postgres::Op::Cursor { token, shard }));
            }
            to = Head { id: *id, hash: audit::hash(bytes) };
            fresh.push((*id, to.hash));
        }
        if fresh.is_empty() {
            return self.next_shard(ctx);
        }
        self.ask(ctx, Stage::Commit(to), |token| {
            Doing::Postgres(postgres::Op::Commit { token, shard, from: cursor, to, blocks: fresh })
        });
    }

    fn on_postgres(&mut self, ctx: &mut Ctx<'_>, answer: &postgres::Answer) {
        let shard = self.shard;
        match (self.stage, answer) {
            (Stage::Cursor, postgres::Answer::Cursor(cursor)) => {
                let cursor = *cursor;
                self.ask(ctx, Stage::Blocks(cursor), |token| {
                    Doing::Redis(redis::Op::Blocks { token, shard, from: cursor.id, most: BLOCKS_MAX })
                });
            }
            (Stage::Doubt(before, found), postgres::Answer::Cursor(cursor)) => {
                if *cursor == before {
                    ctx.saw(Sight::BrokenTrail { shard, after: before.id, found });
                }
                self.next_shard(ctx);
            }
            (Stage::Commit(to), postgres::Answer::Committed) => {
                self.ask(ctx, Stage::Needed(to.id), |token| {
                    Doing::Redis(redis::Op::ReadSnapshot { token, shard })
                });
            }
            (Stage::Commit(_), postgres::Answer::Overtaken) => self.next_shard(ctx),
            (stage, answer) => unreachable!("{answer:?} while {stage:?}"),
        }
    }
}
