//! The modelled instance of an agent: sends, takes work, runs it, reports it, says that it lives.
//!
//! Owns what the SDK promises towards the mesh, with the mesh's own encodings; its handlers are dice. The rule it keeps: what
//! it does with a message is what `worker-sdk` does with it. A sequence is dense; a publish that was not confirmed goes out
//! again under its message id; an inbox message is acknowledged when its completions are confirmed.

mod intake;
mod reports;
mod sender;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use governance::{DispatchId, InstanceId};
use protocol::completion::Replies;
use protocol::control::{Beat, Revoke};
use protocol::subjects;

use crate::broker::{self, Answer};
use crate::cast::Member;
use crate::oracle::Sight;
use crate::process::{Ctx, Doing, Heard, Wake};
use crate::random::Random;
use intake::{Inbox, Run};
use reports::Reports;
use sender::Sender;

/// How often it says that it lives, and renews what it holds.
const BEAT: Duration = Duration::from_secs(1);
/// How long the broker may leave a publish unconfirmed.
const UNCONFIRMED: Duration = Duration::from_secs(5);
/// The pause before a publish goes out again.
const BACKOFF: Duration = Duration::from_millis(80);
/// How long a coordinator may take to answer.
const QUESTION: Duration = Duration::from_secs(2);

/// How the handlers of an agent fare at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mood {
    /// How many runs fail, in ten thousand.
    pub fails: u64,
    /// How long a run takes about, in nanoseconds.
    pub takes: u64,
    /// How many runs never end by themselves, in ten thousand.
    pub hangs: u64,
}

/// What a token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Asked {
    /// An envelope on its way to its lane.
    Envelope(u64),
    /// A report of completions of a lane.
    Report(reports::LaneKey),
    /// What is still open of a redelivered message.
    Open(intake::Key, usize),
    /// The same of one dispatch that is to be run alone.
    Alone(DispatchId),
}

/// One instance.
#[derive(Debug)]
pub struct Instance {
    member: Member,
    targets: Vec<String>,
    instance: InstanceId,
    tokens: u64,
    asked: BTreeMap<u64, Asked>,
    again: BTreeMap<u64, Asked>,
    sender: Sender,
    reports: Reports,
    inbox: Inbox,
    runs: BTreeMap<u64, Run>,
    taken: BTreeSet<DispatchId>,
    revoked: BTreeSet<DispatchId>,
    draining: bool,
    load_until: governance::Timestamp,
}

impl Instance {
    /// An instance that starts now. `targets` are all agents there are; it sends until `load_until`.
    #[must_use]
    pub fn new(
        member: &Member,
        targets: Vec<String>,
        random: &mut Random,
        load_until: governance::Timestamp,
    ) -> Self {
        let instance = InstanceId::of(&member.id, random.bits());
        Self {
            member: member.clone(),
            targets,
            instance,
            tokens: 0,
            asked: BTreeMap::new(),
            again: BTreeMap::new(),
            sender: Sender::default(),
            reports: Reports::default(),
            inbox: Inbox::default(),
            runs: BTreeMap::new(),
            taken: BTreeSet::new(),
            revoked: BTreeSet::new(),
            draining: false,
            load_until,
        }
    }

    /// It sends nothing more.
    pub const fn end_load(&mut self) {
        self.load_until = governance::Timestamp::ZERO;
    }

    /// Whether it finishes what it has and takes nothing more.
    #[must_use]
    pub const fn is_draining(&self) -> bool {
        self.draining
    }

    /// The number it drew.
    #[must_use]
    pub const fn id(&self) -> InstanceId {
        self.instance
    }

    /// Handles what reached it.
    pub fn on(&mut self, ctx: &mut Ctx<'_>, mood: Mood, heard: Heard) {
        match heard {
            Heard::Wake(wake) => self.on_wake(ctx, mood, wake),
            Heard::Broker(heard) => self.on_broker(ctx, mood, heard),
            Heard::Redis(..) | Heard::Postgres(..) => {
                unreachable!("agents know neither Redis nor PostgreSQL")
            }
        }
        if !self.draining {
            self.ask_for_more(ctx);
        }
    }

    fn on_wake(&mut self, ctx: &mut Ctx<'_>, mood: Mood, wake: Wake) {
        match wake {
            Wake::Start => {
                self.subscribe(ctx);
                self.beat(ctx, false);
                ctx.after(BEAT, Wake::Renew);
                if self.member.sends_each > 0 {
                    let first = ctx.random.around(self.member.sends_each);
                    ctx.after(Duration::from_nanos(first), Wake::Load);
                }
            }
            Wake::Renew => {
                self.beat(ctx, false);
                self.renew(ctx);
                ctx.after(BEAT, Wake::Renew);
            }
            Wake::Load => self.send_something(ctx),
            Wake::Ended(run) => self.on_ended(ctx, mood, run),
            Wake::Overdue(token) => self.on_overdue(ctx, token),
            Wake::Stop => self.stop(ctx),
            Wake::Tick | Wake::Look => {}
        }
    }

    fn on_broker(&mut self, ctx: &mut Ctx<'_>, mood: Mood, heard: broker::Heard) {
        match heard {
            broker::Heard::Answer { token, answer } => self.on_answer(ctx, mood, token, answer),
            broker::Heard::Message { key, message } => self.on_message(ctx, mood, key, message),
            broker::Heard::Ended { key, unfilled, .. } => self.inbox.on_ended(key, unfilled),
            broker::Heard::Told { subject, payload, reply } => {
                match subject.split('.').nth(1).unwrap_or_default() {
                    "reply" => self.on_reply(ctx, &payload, reply),
                    "revoke" => self.on_revoke(&payload),
                    "ping" => self.beat(ctx, self.draining),
                    // Signals slow the SDK down; these dice do not mind.
                    _ => {}
                }
            }
            broker::Heard::Changed { .. } => {}
            broker::Heard::Lost => {}
            broker::Heard::Back => {
                self.subscribe(ctx);
                self.inbox.on_connected();
                let lost: Vec<u64> = self.asked.keys().copied().collect();
                lost.into_iter().for_each(|token| self.on_overdue(ctx, token));
            }
        }
    }

    fn subscribe(&self, ctx: &mut Ctx<'_>) {
        let agent = &self.member.id;
        ctx.doings.push(Doing::Subscribe(vec![
            subjects::reply(agent, self.instance),
            subjects::signal(agent),
            subjects::revoke(agent),
            subjects::ping(agent),
        ]));
    }

    /// Asks for something under a new token, which is overdue after a while.
    fn ask(
        &mut self,
        ctx: &mut Ctx<'_>,
        asked: Asked,
        patience: Duration,
        op: impl FnOnce(u64) -> broker::Op,
    ) {
        self.tokens += 1;
        let token = self.tokens;
        self.asked.insert(token, asked);
        ctx.broker(0, op(token));
        ctx.after(patience, Wake::Overdue(token));
    }

    /// Does something again after a pause.
    fn again_later(&mut self, ctx: &mut Ctx<'_>, asked: Asked) {
        self.tokens += 1;
        self.again.insert(self.tokens, asked);
        ctx.after(BACKOFF, Wake::Overdue(self.tokens));
    }

    fn on_overdue(&mut self, ctx: &mut Ctx<'_>, token: u64) {
        if let Some(asked) = self.asked.remove(&token) {
            self.sender.unconfirmed(&asked);
            return self.again_later(ctx, asked);
        }
        match self.again.remove(&token) {
            Some(Asked::Envelope(sequence)) => self.publish(ctx, sequence),
            Some(Asked::Report(lane)) => self.publish_report(ctx, &lane),
            Some(Asked::Open(key, run)) => self.question(ctx, key, run),
            Some(Asked::Alone(_)) => self.ask_alone(ctx),
            None => {}
        }
    }

    fn on_answer(&mut self, ctx: &mut Ctx<'_>, mood: Mood, token: u64, answer: Answer) {
        // An answer that came too late was asked for again.
        let Some(asked) = self.asked.remove(&token) else { return };
        match (asked, answer) {
            (Asked::Envelope(sequence), Answer::Stored { .. }) => self.accepted(ctx, sequence),
            (Asked::Envelope(sequence), Answer::Full) => self.lane_full(ctx, sequence),
            (Asked::Report(lane), Answer::Stored { .. }) => self.reported(ctx, mood, &lane),
            (Asked::Open(key, run), Answer::Reply(bytes)) => self.on_open(ctx, mood, key, run, &bytes),
            (Asked::Alone(id), Answer::Reply(bytes)) => self.on_alone(ctx, mood, id, &bytes),
            // Anything else means: not now.
            (asked, _) => self.again_later(ctx, asked),
        }
    }

    fn on_reply(&mut self, ctx: &mut Ctx<'_>, payload: &bytes::Bytes, reply: Option<broker::ReplyTo>) {
        let replies = Replies::parse(payload).expect("homes write replies that can be read");
        for row in 0..replies.len() {
            let row = replies.row(row);
            for slot in 0..row.count {
                let id = DispatchId { slot: row.first.slot + slot, ..row.first };
                ctx.saw(Sight::Replied { id, outcome: row.outcome, reason: row.reason });
            }
        }
        if let Some(to) = reply {
            ctx.broker(0, broker::Op::Respond { to, payload: bytes::Bytes::new() });
        }
    }

    fn on_revoke(&mut self, payload: &bytes::Bytes) {
        let revoke: Revoke =
            serde_json::from_slice(payload).expect("homes write revocations that can be read");
        let first: DispatchId = revoke.first.parse().expect("an id");
        self.revoked.extend((0..revoke.count).map(|i| DispatchId { slot: first.slot + i, ..first }));
    }

    fn beat(&self, ctx: &mut Ctx<'_>, leaving: bool) {
        let offers = !self.member.registration.capabilities.is_empty();
        let running = self.runs.len() as u32;
        let sla = Duration::from_millis(self.member.registration.sla_p95_ms.into()) * 6 / 5;
        let beat = Beat {
            instance: self.instance.to_string(),
            slots: match (offers, self.draining) {
                (false, _) => 0,
                (true, true) => running,
                (true, false) => self.member.registration.max_concurrent,
            },
            running,
            running_over: self.runs.values().filter(|r| ctx.now.since(r.began) > sla).count() as u32,
            leaving,
        };
        let payload = serde_json::to_vec(&beat).expect("plain data serialises").into();
        ctx.broker(0, broker::Op::Tell { subject: subjects::beat(&self.member.id), payload });
    }

    /// Takes no more work, gives back what has not begun, and ends when the rest has.
    fn stop(&mut self, ctx: &mut Ctx<'_>) {
        self.draining = true;
        self.load_until = governance::Timestamp::ZERO;
        self.give_back_waiting(ctx);
        self.end_if_drained(ctx);
    }

    fn end_if_drained(&mut self, ctx: &mut Ctx<'_>) {
        if self.draining && self.inbox.is_empty() && self.sender.is_empty() && self.reports.is_empty() {
            self.beat(ctx, true);
            ctx.doings.push(Doing::Exit);
        }
    }
}
