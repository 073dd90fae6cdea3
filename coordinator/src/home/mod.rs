//! The home: the one task that hosts the rules for its shards. Owns the order decide, make durable, then tell.
//!
//! It pulls what the rules ask for, lets them decide, stages what they want into one audit block for each shard, and
//! performs the rest only when Redis has that block. It has no opinion of its own. A crash between any two steps is
//! harmless: what a block records is replayed as recorded, what it does not record is decided anew.

mod arrive;
mod begin;
mod complete;
mod outlet;
mod perform;
mod rebuild;
mod replay;
mod settle;
mod shard;
mod slab;
mod snapshot;
mod views;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use governance::{
    AgentIx, Beat, Effect, Event, Governor, InstanceId, Lane, Priority, Registration, Timestamp,
};
use protocol::AuditKey;
use protocol::control::{Alert, Extended, OpenAnswer, Operation};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::io::ledger::{Appended, Write};
use crate::io::outbox::Publish;
use crate::io::pulls::{Pull, Source};
use crate::io::replies::Reply;
use crate::metrics::Metrics;
use complete::Reported;
use outlet::Outlet;
use shard::Shard;
use slab::Slab;

pub(crate) use rebuild::{Recovered, Recovery, recover};

/// Dispatches that may be between decision and confirmed publish at once: enough to keep broker and Redis busy, few enough
/// that P0 never waits long behind what was decided before it.
const WINDOW: u32 = 32_768;
/// Inputs taken in one turn: bounds the time from one flush to the next.
const INPUTS_PER_TURN: usize = 256;
/// The capacity of the home's own channel; its senders wait when it is full.
pub(crate) const INPUT_CAPACITY: usize = 8_192;
/// How often time is told to the rules when nothing else happens.
const TICK: Duration = Duration::from_millis(20);

/// How long a home reads completions after the broker came back, before it judges deadlines.
const CATCH_UP: Duration = Duration::from_secs(2);
/// How long a new home waits at most for completions that waited for it.
const UNREAD_MAX: Duration = Duration::from_secs(5);

/// Everything that reaches the home.
#[derive(Debug)]
pub(crate) enum Input {
    /// A lane message or completions.
    Message(Source, broker::Message),
    /// A pull ended unfilled.
    PullEnded(Source, u32, broker::Ended),
    /// A block was appended, or refused.
    Appended(u8, Appended),
    /// An inbox message is stored.
    Published { handle: usize, target: AgentIx, was_full: bool },
    /// An inbox is full; its publish is being tried again.
    InboxFull(AgentIx),
    /// A reply was confirmed or given up.
    Replied { handle: usize, confirmed: bool },
    /// Another home has taken over.
    Deposed(String),
    /// A dead letter is stored; its inbox message may go.
    DeadLettered { inbox_ack: String, done: usize },
    /// A control message.
    Command(Command),
}

/// What people and agents ask of the home beside dispatches.
#[derive(Debug)]
pub(crate) enum Command {
    /// A registration that passed its check; its consumers exist.
    Register { registration: Box<Registration>, respond: oneshot::Sender<()> },
    /// A heartbeat.
    Beat { agent: String, beat: Beat, leaving: bool },
    /// A caller withdraws a dispatch.
    Cancel { source: String, id: governance::DispatchId },
    /// A handler asks for more time.
    Extend { source: String, id: governance::DispatchId, by: Duration, respond: oneshot::Sender<Extended> },
    /// An instance asks what is still open.
    Open { runs: Vec<(governance::DispatchId, u16)>, respond: oneshot::Sender<OpenAnswer> },
    /// An operator's command; the answer is its body as JSON, or what is wrong with it.
    Operate {
        verb: String,
        operation: Operation,
        respond: oneshot::Sender<Result<serde_json::Value, String>>,
    },
}

/// What the shell knows of an agent beside what the rules know.
#[derive(Debug, Clone)]
struct AgentShell {
    name: Arc<str>,
    id: governance::AgentId,
    shard: u8,
    slots: u32,
    json: bool,
}

/// A lane message that is held until each of its slots is published or ended.
#[derive(Debug)]
struct Held {
    bytes: Bytes,
    ack: async_nats::Subject,
    lane: Lane,
    stream_sequence: u64,
    accepted: Timestamp,
    instance: InstanceId,
    reply_token: Arc<str>,
    /// The target that its subject names; empty for none.
    named: Arc<str>,
    rows: u32,
    /// Slots about which a durable or staged decision exists.
    decided: u32,
    /// Publishes and replies under way for it, and blocks not yet durable.
    pending: u32,
    /// The blocks that decided about it, in the shard of its source.
    blocks: Vec<u64>,
}

/// Completions that are held until what they say is recorded and told.
#[derive(Debug)]
struct Done {
    ack: async_nats::Subject,
    pending: u32,
    source: AgentIx,
    blocks: Vec<u64>,
}

/// How many dispatches of a lane were admitted in the whole second before this one, for people to look at.
#[derive(Debug, Default, Clone, Copy)]
struct AdmittedIn {
    second: u64,
    count: u32,
    before: u32,
}

impl AdmittedIn {
    fn add(&mut self, now: Timestamp, count: u32) {
        let second = now.0 / 1_000_000_000;
        if second != self.second {
            self.before = if second == self.second + 1 { self.count } else { 0 };
            (self.second, self.count) = (second, 0);
        }
        self.count += count;
    }

    const fn in_last_second(&self, now: Timestamp) -> u32 {
        let second = now.0 / 1_000_000_000;
        if second == self.second {
            self.before
        } else if second == self.second + 1 {
            self.count
        } else {
            0
        }
    }
}

/// What the shell keeps of an admitted run, under the handle of the rules.
#[derive(Debug, Clone)]
struct OpenShell {
    source: AgentIx,
    target: AgentIx,
    capability: Arc<str>,
    kind: governance::Kind,
    class: Priority,
    lane: Priority,
    accepted: Timestamp,
    admitted: Timestamp,
    reason: governance::Reason,
    reply_token: Arc<str>,
}

/// Ways out of the home.
#[derive(Debug)]
struct Outlets {
    p0_pulls: Outlet<Pull>,
    bulk_pulls: Outlet<Pull>,
    ledger: Outlet<Write>,
    p0_outbox: Outlet<Publish>,
    bulk_outbox: Outlet<Publish>,
    replies: Outlet<Reply>,
    alerts: Outlet<Alert>,
    side: Outlet<Side>,
}

/// Small messages that need no confirmation, and the work that needs the broker's API.
#[derive(Debug)]
pub(crate) enum Side {
    /// Publish on a core subject.
    Tell { subject: String, payload: Bytes },
    /// Acknowledge.
    Ack(async_nats::Subject),
    /// Give an inbox message back.
    Nak { ack: String, delay: Duration },
    /// Move a dispatch from its inbox message to the dead-letter queue.
    DeadLetter {
        letter: Box<protocol::control::DeadLetter>,
        id: governance::DispatchId,
        inbox_ack: String,
        done: usize,
    },
    /// Store a breaker.
    StoreBreaker { agent: Arc<str>, breaker: protocol::control::Breaker },
    /// Store an operator's order to pause an agent, or take it back.
    StorePause { agent: String, order: Option<Operation> },
}

/// The receiving ends of the ways out, for the tasks.
#[derive(Debug)]
pub(crate) struct Outputs {
    pub(crate) p0_pulls: mpsc::Receiver<Pull>,
    pub(crate) bulk_pulls: mpsc::Receiver<Pull>,
    pub(crate) ledger: mpsc::Receiver<Write>,
    pub(crate) p0_outbox: mpsc::Receiver<Publish>,
    pub(crate) bulk_outbox: mpsc::Receiver<Publish>,
    pub(crate) replies: mpsc::Receiver<Reply>,
    pub(crate) alerts: mpsc::Receiver<Alert>,
    pub(crate) side: mpsc::Receiver<Side>,
}

/// The home of the shards that this replica owns.
#[derive(Debug)]
pub(crate) struct Home {
    governor: Governor,
    effects: Vec<Effect>,
    key: AuditKey,
    epoch: u64,
    replica: String,
    policy_version: u32,
    shards: Vec<Shard>,
    agents: HashMap<AgentIx, AgentShell>,
    held: Slab<Held>,
    held_by_sequence: HashMap<(Priority, u64), usize>,
    done: Slab<Done>,
    opens: Slab<OpenShell>,
    publishes: Slab<settle::Publishing>,
    replies: Slab<settle::Replying>,
    in_window: u32,
    sources_of_instances: HashMap<InstanceId, AgentIx>,
    recovered: Recovered,
    outlets: Outlets,
    metrics: Arc<Metrics>,
    lane_pending: HashMap<Lane, u64>,
    admitted_in: HashMap<Lane, AdmittedIn>,
    /// Completions asked for and not yet delivered.
    done_credits: HashMap<(AgentIx, Priority), u32>,
    /// Pulls that the broker refused at once: asked for again with the next tick, so that a missing consumer is no storm.
    refused_pulls: Vec<(Source, u32)>,
    /// When each lane stream was made, so that derived ids of a stream made anew differ.
    lanes_made: [u64; 4],
    broker: async_nats::Client,
    began: Instant,
    unread_until: Instant,
    /// Replies that may go out at once, since the completion they tell is durable in the done lane.
    ready_replies: Vec<settle::OwnedReply>,
    /// What a granted wish for more time is answered with.
    extended: Option<Timestamp>,
}

impl Home {
    /// A home that has taken over, and the ends of its ways out.
    pub(crate) fn new(setup: Setup) -> (Self, Outputs) {
        let (p0_pulls, p0_pulls_out) = Outlet::new();
        let (bulk_pulls, bulk_pulls_out) = Outlet::new();
        let (ledger, ledger_out) = Outlet::new();
        let (p0_outbox, p0_outbox_out) = Outlet::new();
        let (bulk_outbox, bulk_outbox_out) = Outlet::new();
        let (replies, replies_out) = Outlet::new();
        let (alerts, alerts_out) = Outlet::new();
        let (side, side_out) = Outlet::new();
        let shards = setup.heads.into_iter().map(|(head, fences)| Shard::new(head, fences)).collect();
        let home = Self {
            policy_version: setup.policy.version,
            governor: Governor::new(setup.policy),
            effects: Vec::new(),
            key: setup.key,
            epoch: setup.epoch,
            replica: setup.replica,
            shards,
            agents: HashMap::new(),
            held: Slab::default(),
            held_by_sequence: HashMap::new(),
            done: Slab::default(),
            opens: Slab::default(),
            publishes: Slab::default(),
            replies: Slab::default(),
            in_window: 0,
            sources_of_instances: HashMap::new(),
            recovered: setup.recovered,
            outlets: Outlets { p0_pulls, bulk_pulls, ledger, p0_outbox, bulk_outbox, replies, alerts, side },
            metrics: setup.metrics,
            lane_pending: HashMap::new(),
            admitted_in: HashMap::new(),
            done_credits: HashMap::new(),
            refused_pulls: Vec::new(),
            lanes_made: setup.lanes_made,
            broker: setup.broker,
            began: Instant::now(),
            unread_until: Instant::now(),
            ready_replies: Vec::new(),
            extended: None,
        };
        let outputs = Outputs {
            p0_pulls: p0_pulls_out,
            bulk_pulls: bulk_pulls_out,
            ledger: ledger_out,
            p0_outbox: p0_outbox_out,
            bulk_outbox: bulk_outbox_out,
            replies: replies_out,
            alerts: alerts_out,
            side: side_out,
        };
        (home, outputs)
    }

    /// The hot path: take what came, let the rules decide, flush what they decided. Ends when told to stop and nothing
    /// that was decided is still on its way.
    pub(crate) async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.begin();
        loop {
            // Both arms are cancellation-safe: a channel and an interval keep what they have not yielded.
            tokio::select! {
                input = inputs.recv() => {
                    let Some(input) = input else { return Ok(()) };
                    self.take(input)?;
                    for _ in 1..INPUTS_PER_TURN {
                        let Ok(input) = inputs.try_recv() else { break };
                        self.take(input)?;
                    }
                }
                _ = tick.tick() => self.tick(),
            }
            if stop.is_cancelled() {
                if self.is_settled() {
                    return Ok(());
                }
            } else {
                self.turn();
            }
            self.flush();
        }
    }

    fn take(&mut self, input: Input) -> anyhow::Result<()> {
        match input {
            Input::Message(Source::Lane(source, priority), message) => {
                self.arrive(Lane { source, priority }, message)
            }
            Input::Message(Source::Done(source, _), message) => self.complete(source, message),
            Input::PullEnded(source, unfilled, why) => self.pull_ended(source, unfilled, why),
            Input::Appended(shard, Appended::Durable) => self.durable(shard),
            Input::Appended(shard, Appended::Deposed(head)) => {
                anyhow::bail!(
                    "deposed: the audit of shard {shard} has the head {head}, written by another home"
                )
            }
            Input::Deposed(why) => anyhow::bail!("deposed: {why}"),
            Input::Published { handle, target, was_full } => self.published(handle, target, was_full),
            Input::InboxFull(target) => self.apply(Event::InboxFull { target }),
            Input::Replied { handle, confirmed } => self.replied(handle, confirmed),
            Input::DeadLettered { inbox_ack, done } => self.dead_lettered(inbox_ack, done),
            Input::Command(command) => self.command(command),
        }
        Ok(())
    }

    /// Gives an event to the rules and performs what they want.
    fn apply(&mut self, event: Event<'_>) {
        self.apply_reported(event, None);
    }

    /// The same for completions, whose message the effects refer to by row.
    fn apply_reported(&mut self, event: Event<'_>, reported: Option<&Reported<'_>>) {
        let now = clock::now();
        let mut effects = std::mem::take(&mut self.effects);
        self.governor.apply(now, event, &mut effects);
        for effect in effects.drain(..) {
            self.perform(now, effect, reported);
        }
        self.effects = effects;
    }

    fn turn(&mut self) {
        let room = WINDOW.saturating_sub(self.in_window);
        if room > 0 {
            self.apply(Event::Turn { room });
        }
    }

    fn tick(&mut self) {
        if self.completions_are_read() {
            self.apply(Event::Tick);
        }
        for (source, messages) in std::mem::take(&mut self.refused_pulls) {
            self.pull_again(source, messages);
        }
        self.metrics.beat();
    }

    /// Deadlines are judged only when the completions that may have come before them have been read: those that waited for
    /// a new home, and those that waited while the broker was away.
    fn completions_are_read(&mut self) -> bool {
        if self.broker.connection_state() != async_nats::connection::State::Connected {
            self.unread_until = Instant::now() + CATCH_UP;
            return false;
        }
        if self.recovered.completions_unread == 0 {
            if self.began.elapsed() > UNREAD_MAX {
                // Every completion that waited has come: nothing is left to be told a second time.
                self.recovered.closed = HashMap::new();
            }
            return Instant::now() >= self.unread_until;
        }
        // Completions of sources that nobody registered any more are never read.
        self.began.elapsed() > UNREAD_MAX
    }

    /// Whether nothing that was decided is on its way any more; what is merely held goes to the next home.
    fn is_settled(&self) -> bool {
        self.shards.iter().all(Shard::is_idle) && self.publishes.len() == 0 && self.outlets.side.is_drained()
    }

    fn flush(&mut self) {
        self.send_ready_replies();
        for shard in 0..self.shards.len() {
            self.flush_shard(shard as u8);
        }
        let o = &mut self.outlets;
        o.p0_pulls.drain();
        o.bulk_pulls.drain();
        o.ledger.drain();
        o.p0_outbox.drain();
        o.bulk_outbox.drain();
        o.replies.drain();
        o.alerts.drain();
        o.side.drain();
    }
}

/// What a home starts with.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) policy: Arc<governance::Policy>,
    pub(crate) key: AuditKey,
    pub(crate) epoch: u64,
    pub(crate) replica: String,
    /// For each shard: the head of its audit, and its fences by priority.
    pub(crate) heads: Vec<(protocol::redis::Head, [broker::Fence; 4])>,
    pub(crate) recovered: Recovered,
    /// When each lane stream was made, by priority.
    pub(crate) lanes_made: [u64; 4],
    /// Asked only whether it is connected.
    pub(crate) broker: async_nats::Client,
    pub(crate) metrics: Arc<Metrics>,
}
