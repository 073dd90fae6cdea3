//! The intake: from the broker's inboxes into free slots. Owns pulling and waiting rows; what is held is renewed elsewhere.
//!
//! The rule it keeps: P0 first, and no message is asked for that has no slot. Each inbox has one pull open at least, so that
//! a message arrives in one hop; the few that come when the last slot has just been taken wait here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::Subject;
use broker::{Ended, Message, Pulled, Pump};
use governance::{Priority, Timestamp};
use protocol::control::{OpenAnswer, OpenQuestion};
use protocol::streams::{self, DUPLICATE_ASSUMED, INBOX_ACK_WAIT};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::clock;
use crate::completer::Alone;
use crate::core::Core;
use crate::held::Held;
use crate::row::{self, Part, Row};
use crate::runner::{self, Turn};
use crate::slots::ALIVE_PER_SLOT;

/// How long a pull stays open when nothing comes.
const PULL_EXPIRES: Duration = Duration::from_secs(20);
/// The pause after a pull that the broker refused.
const PULL_PAUSE: Duration = Duration::from_millis(500);
/// So many refusals in a row say that the consumers are gone, with a broker that lost its memory: register again.
const REFUSALS_MAX: u32 = 4;
/// One in so many slots has a pull open in each inbox while nothing is known to wait.
const IDLE_PULL_SHARE: u32 = 8;
/// The most of these.
const IDLE_PULLS_MAX: u32 = 16;
/// Messages that are being asked about at their home.
const QUESTIONS_MAX: usize = 64;
/// What came during so long a pause of ours may lie here unread and unrenewed for as long as the broker waits for a word.
const STALL: Duration = Duration::from_secs(INBOX_ACK_WAIT.as_secs() * 2 / 3);
/// After a stall the connection needs a moment to hand over everything that came meanwhile.
const STALE_FOR: Duration = Duration::from_millis(250);
/// The clocks of the broker and of an instance agree better than this.
const CLOCKS_APART: Duration = Duration::from_secs(1);
/// A message that could not be read this often is given up; its home ends what is in it.
const UNREADABLE_MAX: u64 = 5;
/// The pause before a message that could not be read is offered again: another instance may be newer.
const UNREADABLE_PAUSE: Duration = Duration::from_secs(5);

/// A dispatch that waits for a slot, or a piece of many.
#[derive(Debug)]
struct Waiting {
    held: Arc<Held>,
    part: Part,
    attempt: u8,
    /// Its turn, where it is to be run with no other of its kind beside it.
    alone: Option<Alone>,
}

/// What is known of the inbox of one priority.
#[derive(Default)]
struct Inbox {
    waiting: VecDeque<Waiting>,
    /// Rows that their homes are asked about: they will wait as well.
    asked_about: u32,
    /// Messages asked for.
    asked: u32,
    /// Messages that the broker said it has beyond those.
    backlog: u64,
    /// Rows of a message, about, in sixteenths.
    rows_x16: u32,
    refused: u32,
    paused_until: Option<Instant>,
}

impl Inbox {
    /// Dispatches that wait for slots.
    fn waiting(&self) -> u32 {
        self.waiting.iter().map(|waiting| u32::from(waiting.part.count())).sum()
    }
}

/// A message that may have been run, of which its home has said what is open.
struct Judged {
    class: Priority,
    held: Arc<Held>,
    rows: Vec<Row>,
    attempt: u8,
    delivered: u64,
    ack: Subject,
    alone: Option<Alone>,
    /// Of how many rows this is the answer.
    asked_about: u32,
}

/// The task that takes work in.
pub(crate) struct Intake {
    core: Arc<Core>,
    pump: Pump,
    inboxes: [Inbox; 4],
    /// When the loop last came around.
    seen: Instant,
    /// Until then what comes may have been delivered before a stall.
    stale_until: Instant,
    /// How often there was a connection so far, and since when there is the present one.
    connection: u64,
    connected: Timestamp,
    judged: mpsc::Receiver<Judged>,
    judge: mpsc::Sender<Judged>,
}

impl Intake {
    /// # Errors
    /// When the connection is closed.
    pub(crate) async fn new(core: Arc<Core>) -> Result<Self, broker::Error> {
        let pump = Pump::start(core.client.clone()).await?;
        let (judge, judged) = mpsc::channel(QUESTIONS_MAX);
        let now = Instant::now();
        Ok(Self {
            connection: broker::connection(&core.client),
            connected: clock::now(),
            core,
            pump,
            inboxes: Default::default(),
            seen: now,
            stale_until: now,
            judged,
            judge,
        })
    }

    /// Takes work in until the agent drains and nothing is held any more.
    pub(crate) async fn run(mut self) {
        // Draining is looked at, and a pause ends, at least this often.
        let mut tick = tokio::time::interval(PULL_PAUSE / 5);
        let core = Arc::clone(&self.core);
        loop {
            self.notice_stall();
            self.notice_connection();
            if core.draining.is_cancelled() {
                // What was being asked about meanwhile is given back as well, and not begun.
                self.give_back_waiting().await;
                self.start_waiting();
                if core.held.load(Ordering::Relaxed) == 0 {
                    core.drained.cancel();
                    return;
                }
            } else {
                self.start_waiting();
                self.ask_for_more().await;
            }
            // All arms are cancellation-safe: each keeps what it has not yielded.
            tokio::select! {
                pulled = self.pump.next() => match pulled {
                    Some(Pulled::Message(message)) => self.on_message(message).await,
                    Some(Pulled::Ended { key, unfilled, why }) => self.on_ended(key, unfilled, why),
                    None => return,
                },
                Some(judged) = self.judged.recv() => self.admit(judged).await,
                () = core.slots.freed() => {}
                _ = tick.tick() => {}
            }
        }
    }

    /// Whether this task had no turn for long: a handler blocked its thread, or the process stood still.
    fn notice_stall(&mut self) {
        let now = Instant::now();
        if now - self.seen > STALL {
            self.stale_until = now + STALE_FOR;
        }
        self.seen = now;
    }

    /// Whether the connection is a new one. A broker that lost its power may have forgotten the last acknowledgements, and with
    /// them how often it delivered: what it stored before this connection may have been run by anybody.
    fn notice_connection(&mut self) {
        let connection = broker::connection(&self.core.client);
        if connection != self.connection {
            (self.connection, self.connected) = (connection, clock::now());
        }
    }

    fn start_waiting(&mut self) {
        for class in Priority::ALL.iter().copied() {
            let waiting = &mut self.inboxes[usize::from(class.code())].waiting;
            while let Some(first) = waiting.front_mut() {
                let count = self.core.slots.take(class, first.part.count().into());
                if count == 0 {
                    break;
                }
                first.held.begin();
                // What of a piece has no slot waits on.
                if let Part::Many(piece) = &mut first.part
                    && count < u32::from(piece.count)
                {
                    let (front, held) = (piece.split_front(count as u16), Arc::clone(&first.held));
                    self.core.supervisor.spawn(runner::run_many(Arc::clone(&self.core), class, front, held));
                    break;
                }
                let Some(first) = waiting.pop_front() else { break };
                start(&self.core, class, first);
            }
        }
    }

    async fn ask_for_more(&mut self) {
        let alive_max = self.core.slots.limit().saturating_mul(ALIVE_PER_SLOT).saturating_mul(2) as usize;
        if self.core.held.load(Ordering::Relaxed) > alive_max + QUESTIONS_MAX {
            return;
        }
        for class in Priority::ALL.iter().copied() {
            let at = usize::from(class.code());
            let wish = self.wish(class);
            let inbox = &mut self.inboxes[at];
            if inbox.asked * 2 > wish || wish == 0 || inbox.paused_until.is_some_and(|t| t > Instant::now()) {
                continue;
            }
            let batch = wish - inbox.asked;
            let (stream, consumer) = (streams::inboxes(class), streams::inbox_consumer(&self.core.name));
            match self.pump.pull(class.code().into(), &stream, &consumer, batch, PULL_EXPIRES).await {
                Ok(()) => inbox.asked += batch,
                Err(error) => {
                    tracing::debug!(%error, "cannot pull");
                    inbox.paused_until = Some(Instant::now() + PULL_PAUSE);
                }
            }
        }
    }

    /// How many messages of a priority should be asked for, those that are asked for included.
    fn wish(&self, class: Priority) -> u32 {
        let slots = &self.core.slots;
        let above = &self.inboxes[..=usize::from(class.code())];
        let waiting: u32 = above.iter().map(|i| i.waiting() + i.asked_about).sum();
        let room = slots.room(class).saturating_sub(waiting);
        if room == 0 {
            return 0;
        }
        // What other inboxes may deliver beyond the one pull that each has, P0's slots apart.
        let promised: u32 = Priority::ALL
            .iter()
            .filter(|p| class != Priority::P0 && **p != class && **p != Priority::P0)
            .map(|p| self.inboxes[usize::from(p.code())].asked.saturating_sub(1))
            .sum();
        let inbox = &self.inboxes[usize::from(class.code())];
        let rows = (inbox.rows_x16 / 16).max(1);
        let fits = (room.saturating_sub(promised) / rows).max(1);
        let idle = (slots.limit() / IDLE_PULL_SHARE).clamp(1, IDLE_PULLS_MAX);
        u32::try_from(inbox.backlog).unwrap_or(u32::MAX).max(idle).min(fits)
    }

    fn on_ended(&mut self, key: u64, unfilled: u32, why: Ended) {
        let Some(inbox) = self.inboxes.get_mut(key as usize) else { return };
        inbox.asked = inbox.asked.saturating_sub(unfilled);
        match why {
            Ended::Expired => {
                inbox.backlog = 0;
                inbox.refused = 0;
            }
            Ended::NoConsumer | Ended::Refused => {
                inbox.paused_until = Some(Instant::now() + PULL_PAUSE);
                inbox.refused += 1;
                if inbox.refused == REFUSALS_MAX {
                    inbox.refused = 0;
                    let core = Arc::clone(&self.core);
                    self.core.supervisor.spawn(async move {
                        tracing::info!(agent = %core.name, "the inbox does not answer; registering again");
                        if let Err(error) = core.register(PULL_EXPIRES).await {
                            tracing::warn!(agent = %core.name, %error, "cannot register again");
                        }
                    });
                }
            }
        }
    }

    async fn on_message(&mut self, message: Message) {
        let Some(class) = u8::try_from(message.key).ok().and_then(Priority::from_code) else { return };
        let inbox = &mut self.inboxes[usize::from(class.code())];
        inbox.asked = inbox.asked.saturating_sub(1);
        inbox.backlog = message.pending;
        inbox.refused = 0;
        if self.core.draining.is_cancelled() {
            give_back(&self.core, &message.ack, Duration::ZERO).await;
            return;
        }
        let key = (class, message.stream_sequence);
        if self.core.holding.delivered_again(key, &message.ack) {
            return;
        }
        if Instant::now() < self.stale_until {
            // It may be with another instance by now. Whatever is said about it would be said about that delivery.
            tracing::debug!(agent = %self.core.name, "left to come again: it may have waited here unread");
            return;
        }
        let handlers = &self.core.handlers;
        let takes_many = |capability: &str, topic: &str| handlers.find_many(capability, topic).is_some();
        let parts = match row::read(&message.payload, takes_many) {
            Ok(parts) => parts,
            Err(error) => return self.on_unreadable(&message, &error).await,
        };
        let rows: usize = parts.iter().map(|part| usize::from(part.count())).sum();
        let share = u32::try_from(rows * 16).unwrap_or(u32::MAX);
        inbox.rows_x16 = (inbox.rows_x16 * 7 + share) / 8;
        let held = Arc::new(Held::new(message.ack.clone(), rows, Arc::clone(&self.core.held)));
        self.core.holding.insert(key, Arc::clone(&held));
        let now = clock::now();
        let is_old = |part: &Part| now.since(part.admitted()) > DUPLICATE_ASSUMED;
        self.notice_connection();
        let was_there = message.published < self.connected.after(CLOCKS_APART);
        if message.delivered > 1 || was_there || parts.iter().any(is_old) {
            // It may have been run elsewhere, or have ended meanwhile: its home knows. It runs one by one, so that what fails
            // or kills its instance does so alone.
            let attempt = u8::try_from(message.delivered).unwrap_or(u8::MAX);
            let rows: Vec<Row> = parts.into_iter().flat_map(Part::rows).collect();
            let asked_about = u32::try_from(rows.len()).unwrap_or(u32::MAX);
            self.inboxes[usize::from(class.code())].asked_about += asked_about;
            let (delivered, ack) = (message.delivered, message.ack);
            let judged = Judged { class, held, rows, attempt, delivered, ack, alone: None, asked_about };
            self.core.supervisor.spawn(question(Arc::clone(&self.core), judged, self.judge.clone()));
        } else {
            self.admit_new(class, &held, parts).await;
        }
    }

    async fn on_unreadable(&self, message: &Message, error: &row::RowError) {
        tracing::error!(subject = %message.subject, delivered = message.delivered, %error, "unreadable");
        if message.delivered < UNREADABLE_MAX {
            give_back(&self.core, &message.ack, UNREADABLE_PAUSE).await;
        } else if let Err(error) = broker::ack(&self.core.client, &message.ack).await {
            tracing::debug!(%error, "not acknowledged; it comes again");
        }
    }

    /// Lets what is open of a redelivered message wait for slots.
    async fn admit(&mut self, judged: Judged) {
        let Judged { class, held, rows, attempt, mut alone, asked_about, .. } = judged;
        self.inboxes[usize::from(class.code())].asked_about -= asked_about;
        let mut known = 0;
        for row in rows {
            known += self.enqueue(class, &held, Part::One(row), attempt, &mut alone);
        }
        if known > 0 {
            held.settle(&self.core, known).await;
        }
    }

    /// Lets the dispatches of a new message wait for slots.
    async fn admit_new(&mut self, class: Priority, held: &Arc<Held>, parts: Vec<Part>) {
        let mut known = 0;
        for part in parts {
            known += self.enqueue(class, held, part, 1, &mut None);
        }
        if known > 0 {
            held.settle(&self.core, known).await;
        }
    }

    /// Lets dispatches wait for slots, but for those that this instance has taken before; how many these are.
    fn enqueue(
        &mut self,
        class: Priority,
        held: &Arc<Held>,
        part: Part,
        attempt: u8,
        alone: &mut Option<Alone>,
    ) -> usize {
        if self.core.ledger.take(part.first(), part.count()) {
            let waiting = Waiting { held: Arc::clone(held), part, attempt, alone: alone.take() };
            self.inboxes[usize::from(class.code())].waiting.push_back(waiting);
            return 0;
        }
        if part.count() == 1 {
            return 1;
        }
        // Some of a piece were taken before: which, shows one by one.
        part.rows().into_iter().map(|row| self.enqueue(class, held, Part::One(row), attempt, alone)).sum()
    }

    /// Gives back messages of which nothing has begun: other instances shall have them. The others are finished here, as
    /// a message that comes again would find its running dispatches open.
    async fn give_back_waiting(&mut self) {
        for inbox in &mut self.inboxes {
            let (begun, fresh): (Vec<_>, Vec<_>) =
                inbox.waiting.drain(..).partition(|waiting| waiting.held.has_begun());
            inbox.waiting = begun.into();
            for Waiting { held, part, .. } in fresh {
                self.core.ledger.forget(part.first(), part.count());
                if let Some(ack) = held.give_back() {
                    give_back(&self.core, &ack, Duration::ZERO).await;
                }
            }
        }
    }
}

/// Starts what has its slots.
fn start(core: &Arc<Core>, class: Priority, waiting: Waiting) {
    let Waiting { held, part, attempt, alone } = waiting;
    let own = Arc::clone(core);
    match part {
        Part::One(row) => {
            core.supervisor.spawn(runner::run(own, class, row, Turn { held, attempt, alone }));
        }
        Part::Many(piece) => core.supervisor.spawn(runner::run_many(own, class, piece, held)),
    }
}

async fn give_back(core: &Core, ack: &Subject, delay: Duration) {
    if let Err(error) = broker::nak(&core.client, ack, delay).await {
        tracing::debug!(%error, "not given back; it comes again after its time");
    }
}

/// Asks the homes of the sources which rows of a message that may have been run are still open, and settles the others. What its home wants
/// run alone is asked for once more in its turn.
async fn question(core: Arc<Core>, mut judged: Judged, judge: mpsc::Sender<Judged>) {
    let (mut together, mut alone) = (Vec::with_capacity(judged.rows.len()), Vec::new());
    let mut rows = std::mem::take(&mut judged.rows).into_iter().peekable();
    while let Some(first) = rows.next() {
        // Rows of one parcel are consecutive slots of one source.
        let mut run = vec![first];
        while let Some(next) = rows.next_if(|next| {
            let last = &run[run.len() - 1];
            (next.id.instance, next.id.sequence, next.id.copy)
                == (last.id.instance, last.id.sequence, last.id.copy)
                && Some(next.id.slot) == last.id.slot.checked_add(1)
        }) {
            run.push(next);
        }
        let answer = ask(&core, &judged, &run, false).await;
        let open = answer.open.into_iter().next().unwrap_or_default();
        let apart = answer.alone.into_iter().next().unwrap_or_default();
        let flag = |flags: &[bool], at: usize| flags.get(at).copied().unwrap_or(false);
        let mut ended = 0;
        for (at, row) in run.into_iter().enumerate() {
            match (flag(&open, at), flag(&apart, at)) {
                (false, _) => ended += 1,
                (true, false) => together.push(row),
                (true, true) => alone.push(row),
            }
        }
        judged.held.settle(&core, ended).await;
    }
    let (class, held, attempt, delivered) =
        (judged.class, Arc::clone(&judged.held), judged.attempt, judged.delivered);
    let ack = judged.ack.clone();
    judged.rows = together;
    // The intake is gone only when the agent stops.
    drop(judge.send(judged).await);
    for row in alone {
        let turn = Arc::clone(&core.alone).lock_owned().await;
        if core.is_closed() {
            // What had the turn before was dropped with the instance: this one must not count as begun here.
            return;
        }
        let (held, ack) = (Arc::clone(&held), ack.clone());
        let mut judged = Judged {
            class,
            held,
            rows: Vec::new(),
            attempt,
            delivered,
            ack,
            alone: Some(turn),
            asked_about: 0,
        };
        let run = [row];
        let answer = ask(&core, &judged, &run, true).await;
        if answer.open.first().is_some_and(|flags| flags.first() == Some(&true)) {
            judged.rows.extend(run);
            drop(judge.send(judged).await);
        } else {
            judged.held.settle(&core, 1).await;
        }
    }
}

/// What the home says about a run of rows; that none is open once all are past their deadline.
async fn ask(core: &Core, judged: &Judged, run: &[Row], alone: bool) -> OpenAnswer {
    let Some(first) = run.first() else { return OpenAnswer::default() };
    let question = OpenQuestion {
        runs: vec![(first.id.to_string(), u16::try_from(run.len()).unwrap_or(u16::MAX))],
        delivered: judged.delivered,
        runner: core.instance.to_string(),
        alone,
        inbox: judged.ack.to_string(),
    };
    // The message is held and renewed meanwhile; what passes its deadline is not worth an answer.
    loop {
        match core.ask_open(&first.source, &question).await {
            Ok(answer) => return answer,
            Err(error) => tracing::debug!(source = %first.source, %error, "no home says what is open"),
        }
        if run.iter().all(|row| clock::until(row.deadline).is_zero()) {
            return OpenAnswer::default();
        }
    }
}
