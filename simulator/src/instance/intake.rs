//! Taking work: from the inboxes into free slots, and from the handlers' ends back to the messages they came in.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use governance::{AgentId, DispatchId, Kind, Outcome, Priority, Reason, Timestamp};
use protocol::control::{OpenAnswer, OpenQuestion};
use protocol::inbox::{self, Parcel};
use protocol::{streams, subjects};

use super::reports::Done;
use super::{Asked, Instance, Mood, QUESTION};
use crate::broker::{Delivery, Op};
use crate::oracle::Sight;
use crate::process::{Ctx, Wake};

/// How long a handler that was cancelled may take to end.
const CANCEL_GRACE: Duration = Duration::from_secs(1);
/// How long a handler runs that does not end by itself.
const FOR_EVER: u64 = 3_600_000_000_000;
/// Messages that are asked for beyond the free slots: none waits here for long.
const ASKED_MAX: u32 = 4;

/// An inbox message: its class and its place in the stream.
pub(super) type Key = (Priority, u64);

/// A dispatch in an inbox message.
#[derive(Debug, Clone)]
struct Row {
    id: DispatchId,
    kind: Kind,
    lane: Priority,
    source: AgentId,
    deadline: Timestamp,
    admitted: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Ours,
    LeftToHome,
}

#[derive(Debug)]
struct Held {
    ack: String,
    open: usize,
    failed: Vec<Done>,
    begun: bool,
    phase: Phase,
    attempt: u8,
    /// Rows of a redelivered message, parcel by parcel, about which its homes are being asked.
    asking: BTreeMap<usize, Vec<Row>>,
}

/// A dispatch in its handler.
#[derive(Debug)]
pub(super) struct Run {
    row: Row,
    held: Key,
    attempt: u8,
    pub(super) began: Timestamp,
    /// Whether it comes to its end by itself.
    ends: bool,
}

/// Everything that an instance holds.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    held: BTreeMap<Key, Held>,
    waiting: [VecDeque<(Key, Row, u8)>; 4],
    asked: [u32; 4],
    runs: u64,
    /// What its home wants run alone, and which of it has its turn.
    alone: VecDeque<(Key, Row, u8)>,
    turn: Option<(Key, Row, u8)>,
}

impl Inbox {
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub(super) fn on_ended(&mut self, key: u64, unfilled: u32) {
        let asked = &mut self.asked[key as usize];
        *asked = asked.saturating_sub(unfilled);
    }

    /// Pulls do not outlive their connection.
    pub(super) fn on_connected(&mut self) {
        self.asked = [0; 4];
    }
}

impl Instance {
    pub(super) fn ask_for_more(&mut self, ctx: &mut Ctx<'_>) {
        if self.member.registration.capabilities.is_empty() {
            return;
        }
        let waiting: usize = self.inbox.waiting.iter().map(VecDeque::len).sum();
        let busy = (self.runs.len() + waiting) as u32;
        let room = self.member.registration.max_concurrent.saturating_sub(busy).min(ASKED_MAX);
        for class in Priority::ALL.iter().copied() {
            let asked = &mut self.inbox.asked[usize::from(class.code())];
            if *asked > 0 || room == 0 {
                continue;
            }
            *asked = room;
            let op = Op::Pull {
                key: class.code().into(),
                stream: streams::inboxes(class),
                consumer: streams::inbox_consumer(&self.member.id),
                messages: room,
            };
            ctx.broker(1, op);
        }
    }

    pub(super) fn on_message(&mut self, ctx: &mut Ctx<'_>, mood: Mood, key: u64, message: Delivery) {
        let class = Priority::from_code(key as u8).expect("the key of a pull is a class");
        self.inbox.on_ended(key, 1);
        if self.draining {
            return ctx.broker(2, Op::Nak { ack: message.ack, delay: Duration::ZERO });
        }
        let key = (class, message.sequence);
        if let Some(held) = self.inbox.held.get_mut(&key)
            && held.phase == Phase::Ours
        {
            held.ack = message.ack;
            return;
        }
        let rows = rows(&message.payload);
        let attempt = u8::try_from(message.delivered).unwrap_or(u8::MAX);
        let open = rows.len();
        let mut parcels: BTreeMap<usize, Vec<Row>> = BTreeMap::new();
        for (parcel, row) in rows {
            parcels.entry(parcel).or_default().push(row);
        }
        let held = Held {
            ack: message.ack,
            open,
            failed: Vec::new(),
            begun: false,
            phase: Phase::Ours,
            attempt,
            asking: parcels,
        };
        self.inbox.held.insert(key, held);
        let parcels: Vec<usize> = self.inbox.held[&key].asking.keys().copied().collect();
        for parcel in parcels {
            if message.delivered > 1 {
                // It may have been run elsewhere, or have ended meanwhile: its home knows.
                self.question(ctx, key, parcel);
            } else {
                self.admit(ctx, mood, key, parcel, &[]);
            }
        }
    }

    pub(super) fn question(&mut self, ctx: &mut Ctx<'_>, key: Key, parcel: usize) {
        let Some(rows) = self.inbox.held.get(&key).and_then(|h| h.asking.get(&parcel)) else { return };
        if rows.iter().all(|row| row.deadline <= ctx.now) {
            let none = vec![false; rows.len()];
            return self.admit(ctx, Mood { fails: 0, takes: 1, hangs: 0 }, key, parcel, &none);
        }
        let runs = vec![(rows[0].id.to_string(), rows.len() as u16)];
        let question = self.question_about(key, runs, false);
        let subject = subjects::open(&rows[0].source);
        let payload: Bytes = serde_json::to_vec(&question).expect("plain data serialises").into();
        self.ask(ctx, Asked::Open(key, parcel), QUESTION, |token| Op::Ask { token, subject, payload });
    }

    pub(super) fn on_open(&mut self, ctx: &mut Ctx<'_>, mood: Mood, key: Key, parcel: usize, bytes: &Bytes) {
        let Ok(answer) = serde_json::from_slice::<OpenAnswer>(bytes) else {
            return self.again_later(ctx, Asked::Open(key, parcel));
        };
        let flags = answer.open.into_iter().next().unwrap_or_default();
        if let Some(apart) = answer.alone.into_iter().next()
            && let Some(held) = self.inbox.held.get_mut(&key)
            && let Some(rows) = held.asking.get_mut(&parcel)
        {
            let rows_then = std::mem::take(rows);
            let mut left = Vec::new();
            let mut left_flags = Vec::new();
            for ((row, open), alone) in rows_then.into_iter().zip(flags).zip(apart) {
                if open && alone {
                    self.inbox.alone.push_back((key, row, held.attempt));
                } else {
                    left_flags.push(open);
                    left.push(row);
                }
            }
            *rows = left;
            if !left_flags.is_empty() {
                self.admit(ctx, mood, key, parcel, &left_flags);
            } else if let Some(held) = self.inbox.held.get_mut(&key) {
                held.asking.remove(&parcel);
            }
            return self.next_alone(ctx);
        }
        self.admit(ctx, mood, key, parcel, &flags);
    }

    fn question_about(&self, key: Key, runs: Vec<(String, u16)>, alone: bool) -> OpenQuestion {
        let held = self.inbox.held.get(&key);
        OpenQuestion {
            runs,
            delivered: held.map_or(2, |h| h.attempt.into()),
            runner: self.instance.to_string(),
            alone,
            inbox: held.map(|h| h.ack.clone()).unwrap_or_default(),
        }
    }

    /// Gives the next of what is to be run alone its turn, where none has it.
    fn next_alone(&mut self, ctx: &mut Ctx<'_>) {
        if self.inbox.turn.is_none() {
            self.inbox.turn = self.inbox.alone.pop_front();
            self.ask_alone(ctx);
        }
    }

    pub(super) fn ask_alone(&mut self, ctx: &mut Ctx<'_>) {
        let Some((key, row, _)) = self.inbox.turn.clone() else { return };
        if row.deadline <= ctx.now || !self.inbox.held.contains_key(&key) {
            self.alone_over(ctx, row.id);
            return self.settle(ctx, key, 1);
        }
        let question = self.question_about(key, vec![(row.id.to_string(), 1)], true);
        let subject = subjects::open(&row.source);
        let payload: Bytes = serde_json::to_vec(&question).expect("plain data serialises").into();
        self.ask(ctx, Asked::Alone(row.id), QUESTION, |token| Op::Ask { token, subject, payload });
    }

    pub(super) fn on_alone(&mut self, ctx: &mut Ctx<'_>, mood: Mood, id: DispatchId, bytes: &Bytes) {
        let Some((key, row, attempt)) = self.inbox.turn.clone().filter(|(_, row, _)| row.id == id) else {
            return;
        };
        let Ok(answer) = serde_json::from_slice::<OpenAnswer>(bytes) else {
            return self.again_later(ctx, Asked::Alone(id));
        };
        let open = answer.open.first().and_then(|flags| flags.first()).copied().unwrap_or(false);
        if open && self.taken.insert(id) {
            self.inbox.waiting[usize::from(key.0.code())].push_back((key, row, attempt));
            self.start_waiting(ctx, mood);
        } else {
            self.alone_over(ctx, id);
            self.settle(ctx, key, 1);
        }
    }

    /// A dispatch is done with here: where it ran alone the next one has its turn.
    pub(super) fn alone_over(&mut self, ctx: &mut Ctx<'_>, id: DispatchId) {
        if self.inbox.turn.as_ref().is_some_and(|(_, row, _)| row.id == id) {
            self.inbox.turn = None;
            self.next_alone(ctx);
        }
    }

    /// Lets rows wait for slots, but for those that have ended and those that were taken here before.
    fn admit(&mut self, ctx: &mut Ctx<'_>, mood: Mood, key: Key, parcel: usize, flags: &[bool]) {
        let Some(held) = self.inbox.held.get_mut(&key) else { return };
        let (attempt, rows) = (held.attempt, held.asking.remove(&parcel).unwrap_or_default());
        let mut settled = 0;
        for (at, row) in rows.into_iter().enumerate() {
            let open = flags.get(at).copied().unwrap_or(flags.is_empty());
            if open && self.taken.insert(row.id) {
                self.inbox.waiting[usize::from(key.0.code())].push_back((key, row, attempt));
            } else {
                settled += 1;
            }
        }
        if settled > 0 {
            self.settle(ctx, key, settled);
        }
        self.start_waiting(ctx, mood);
    }

    pub(super) fn start_waiting(&mut self, ctx: &mut Ctx<'_>, mood: Mood) {
        let slots = self.member.registration.max_concurrent as usize;
        for class in Priority::ALL.iter().copied() {
            // One slot is kept for P0.
            let limit = if class == Priority::P0 || slots < 2 { slots } else { slots - 1 };
            while self.runs.len() < limit {
                let next = self.inbox.waiting[usize::from(class.code())].pop_front();
                let Some((key, row, attempt)) = next else { break };
                self.start(ctx, mood, key, row, attempt);
            }
        }
    }

    fn start(&mut self, ctx: &mut Ctx<'_>, mood: Mood, key: Key, row: Row, attempt: u8) {
        let Some(held) = self.inbox.held.get_mut(&key) else { return };
        held.begun = true;
        if row.deadline <= ctx.now || self.revoked.contains(&row.id) {
            self.alone_over(ctx, row.id);
            return self.settle(ctx, key, 1);
        }
        ctx.saw(Sight::Began { id: row.id, agent: self.member.id.clone(), attempt });
        let hangs = ctx.random.happens(mood.hangs);
        let takes = if hangs { FOR_EVER } else { ctx.random.around(mood.takes) };
        let latest = row.deadline.after(CANCEL_GRACE).since(ctx.now);
        let ends = Duration::from_nanos(takes) <= latest;
        self.inbox.runs += 1;
        let number = self.inbox.runs;
        ctx.after(Duration::from_nanos(takes).min(latest), Wake::Ended(number));
        self.runs.insert(number, Run { row, held: key, attempt, began: ctx.now, ends });
    }

    pub(super) fn on_ended(&mut self, ctx: &mut Ctx<'_>, mood: Mood, number: u64) {
        let Some(run) = self.runs.remove(&number) else { return };
        let Run { row, held, attempt, began, ends } = run;
        let failed = ctx.random.happens(mood.fails);
        ctx.saw(Sight::Ended { id: row.id, failed: failed || !ends });
        if ends {
            let micros = |d: Duration| u32::try_from(d.as_micros()).unwrap_or(u32::MAX);
            let done = Done {
                id: row.id,
                lane: (row.lane, row.source.clone()),
                outcome: if failed { Outcome::Failure } else { Outcome::Success },
                reason: if failed { Reason::HandlerFailed } else { Reason::Ok },
                ran_us: micros(ctx.now.since(began)),
                inbox_us: micros(began.since(row.admitted)),
                attempt,
                inbox_ack: String::new(),
                held,
            };
            if failed && row.kind == Kind::Event {
                self.alone_over(ctx, row.id);
                self.defer(ctx, held, done);
            } else {
                self.report(ctx, done);
            }
        } else {
            // It did not end within the grace after its deadline; its home has ended the dispatch.
            self.alone_over(ctx, row.id);
            self.settle(ctx, held, 1);
        }
        self.start_waiting(ctx, mood);
    }

    fn defer(&mut self, ctx: &mut Ctx<'_>, key: Key, done: Done) {
        let Some(held) = self.inbox.held.get_mut(&key) else { return };
        held.failed.push(done);
        self.report_failed(ctx, key);
    }

    /// Reports the failed events of a message once nothing else of it is open: its home decides about the message.
    fn report_failed(&mut self, ctx: &mut Ctx<'_>, key: Key) {
        let Some(held) = self.inbox.held.get_mut(&key) else { return };
        if held.phase != Phase::Ours || held.open != held.failed.len() {
            return;
        }
        held.phase = Phase::LeftToHome;
        let (failed, ack) = (std::mem::take(&mut held.failed), held.ack.clone());
        for mut done in failed {
            self.taken.remove(&done.id);
            done.inbox_ack.clone_from(&ack);
            self.report(ctx, done);
        }
    }

    /// So many dispatches of a message are done with.
    pub(super) fn settle(&mut self, ctx: &mut Ctx<'_>, key: Key, rows: usize) {
        let Some(held) = self.inbox.held.get_mut(&key) else { return };
        held.open = held.open.saturating_sub(rows);
        if held.open > 0 {
            return self.report_failed(ctx, key);
        }
        let held = self.inbox.held.remove(&key).expect("looked at above");
        if held.phase == Phase::Ours {
            ctx.broker(2, Op::Ack { ack: held.ack });
        }
        self.end_if_drained(ctx);
    }

    pub(super) fn renew(&self, ctx: &mut Ctx<'_>) {
        for held in self.inbox.held.values() {
            ctx.broker(2, Op::Progress { ack: held.ack.clone() });
        }
    }

    /// Gives back messages of which nothing has begun: other instances shall have them.
    pub(super) fn give_back_waiting(&mut self, ctx: &mut Ctx<'_>) {
        let fresh: Vec<Key> = self.inbox.held.iter().filter(|(_, h)| !h.begun).map(|(k, _)| *k).collect();
        for key in fresh {
            for waiting in &mut self.inbox.waiting {
                waiting.retain(|(k, row, _)| {
                    if *k == key {
                        self.taken.remove(&row.id);
                    }
                    *k != key
                });
            }
            self.inbox.alone.retain(|(k, ..)| *k != key);
            if self.inbox.turn.as_ref().is_some_and(|(k, ..)| *k == key) {
                self.inbox.turn = None;
            }
            let held = self.inbox.held.remove(&key).expect("listed above");
            ctx.broker(2, Op::Nak { ack: held.ack, delay: Duration::ZERO });
        }
    }
}

/// The dispatches of an inbox message, with the number of the parcel that each is in.
fn rows(payload: &Bytes) -> Vec<(usize, Row)> {
    let parcels = inbox::split(payload).expect("homes write inbox messages that can be read");
    let mut rows = Vec::new();
    for (at, bytes) in parcels.iter().enumerate() {
        let parcel = Parcel::parse(bytes).expect("homes write parcels that can be read");
        rows.extend((0..parcel.frame.rows()).map(|row| {
            let row = Row {
                id: parcel.id(row),
                kind: parcel.kind(row),
                lane: parcel.lane,
                source: AgentId::new(parcel.source).expect("a good name"),
                deadline: parcel.deadline(row),
                admitted: parcel.admitted(),
            };
            (at, row)
        }));
    }
    rows
}
