//! The home's state, and its hot path: take what came, let the rules decide, flush what they decided.
//!
//! It stages what the rules want into one audit block, and performs the rest only when the ledger has that block. A crash
//! between any two steps is harmless: what a block records is replayed as recorded, what it does not record is decided anew.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use governance::{
    AgentIx, DispatchId, Effect, Event, Governor, Grant, InstanceId, Lane, Policy, Priority, Shards,
    Timestamp,
};
use protocol::AuditKey;
use protocol::redis::Head;

use crate::complete::Reported;
use crate::input::{Appended, Input, Over, Source};
use crate::know::Told;
use crate::meter::Meter;
use crate::out::{Fence, Out};
use crate::permits::Permits;
use crate::rebuild::Recovered;
use crate::settle::{OwnedReply, Publishing, Replying};
use crate::shard::Shard;
use crate::slab::Slab;
use crate::undelivered::Undelivered;

/// Dispatches that may be between decision and confirmed publish at once: enough to keep broker and ledger busy, few enough
/// that P0 never waits long behind what was decided before it.
const WINDOW: u32 = 32_768;
/// How often time is told to the rules when nothing else happens.
pub const TICK: Duration = Duration::from_millis(20);

/// After so many ticks without one more of the completions that waited for it a new home waits no longer: 30 s. Counted in ticks
/// because the clock goes on while a home stands still, and callers may have been told by its predecessor what it has yet to read.
const UNREAD_TICKS_MAX: u32 = 1_500;
/// For how long after its beginning at least a home can tell again what was recorded before it.
const TELL_AGAIN: Duration = Duration::from_secs(5);

/// What the shell knows of an agent beside what the rules know.
#[derive(Debug, Clone)]
pub(crate) struct AgentShell {
    pub(crate) name: Arc<str>,
    pub(crate) id: governance::AgentId,
    pub(crate) shard: u8,
    pub(crate) json: bool,
}

/// A lane message that is held until each of its slots is published or ended.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) bytes: Bytes,
    pub(crate) ack: String,
    pub(crate) lane: Lane,
    pub(crate) stream_sequence: u64,
    pub(crate) accepted: Timestamp,
    pub(crate) instance: InstanceId,
    pub(crate) reply_token: Arc<str>,
    /// The target that its subject names; empty for none.
    pub(crate) named: Arc<str>,
    pub(crate) rows: u32,
    /// Slots about which a durable or staged decision exists.
    pub(crate) decided: u32,
    /// Publishes and replies under way for it, and blocks not yet durable.
    pub(crate) pending: u32,
    /// The blocks that decided about it, in the shard of its source.
    pub(crate) blocks: Vec<u64>,
}

/// Completions that are held until what they say is recorded and told.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) ack: String,
    pub(crate) pending: u32,
    pub(crate) source: AgentIx,
    pub(crate) blocks: Vec<u64>,
}

/// How many dispatches of a lane were admitted in the whole second before this one, for people to look at.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct AdmittedIn {
    second: u64,
    count: u32,
    before: u32,
}

impl AdmittedIn {
    pub(crate) fn add(&mut self, now: Timestamp, count: u32) {
        let second = now.0 / 1_000_000_000;
        if second != self.second {
            self.before = if second == self.second + 1 { self.count } else { 0 };
            (self.second, self.count) = (second, 0);
        }
        self.count += count;
    }

    pub(crate) const fn in_last_second(&self, now: Timestamp) -> u32 {
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
pub(crate) struct OpenShell {
    pub(crate) source: AgentIx,
    pub(crate) target: AgentIx,
    pub(crate) capability: Arc<str>,
    pub(crate) kind: governance::Kind,
    pub(crate) class: Priority,
    pub(crate) lane: Priority,
    pub(crate) accepted: Timestamp,
    pub(crate) admitted: Timestamp,
    pub(crate) reason: governance::Reason,
    pub(crate) reply_token: Arc<str>,
}

/// The home of one shard.
#[derive(Debug)]
pub struct Home {
    /// The moment of the input being taken.
    pub(crate) now: Timestamp,
    pub(crate) number: u8,
    pub(crate) epoch: u64,
    pub(crate) replica: String,
    pub(crate) governor: Governor,
    pub(crate) effects: Vec<Effect>,
    pub(crate) key: AuditKey,
    pub(crate) policy_version: u32,
    pub(crate) shard: Shard,
    pub(crate) agents: HashMap<AgentIx, AgentShell>,
    pub(crate) held: Slab<Held>,
    pub(crate) held_by_sequence: HashMap<(Priority, u64), usize>,
    pub(crate) done: Slab<Done>,
    pub(crate) opens: Slab<OpenShell>,
    pub(crate) publishes: Slab<Publishing>,
    pub(crate) replies: Slab<Replying>,
    pub(crate) in_window: u32,
    pub(crate) sources_of_instances: HashMap<InstanceId, AgentIx>,
    pub(crate) recovered: Recovered,
    pub(crate) out: Out,
    pub(crate) meter: Arc<dyn Meter>,
    pub(crate) lane_pending: HashMap<Lane, u64>,
    pub(crate) admitted_in: HashMap<Lane, AdmittedIn>,
    /// Completions asked for and not yet delivered.
    pub(crate) done_credits: HashMap<(AgentIx, Priority), u32>,
    /// Pulls that the broker refused at once: asked for again with the next tick, so that a missing consumer is no storm.
    pub(crate) refused_pulls: Vec<(Source, u32)>,
    /// When each lane stream was made, so that derived ids of a stream made anew differ.
    pub(crate) lanes_made: [u64; 4],
    connected: bool,
    began: Timestamp,
    /// Replies that may go out at once, since the completion they tell is durable in the done lane.
    pub(crate) ready_replies: Vec<OwnedReply>,
    /// Replies that nobody confirmed.
    pub(crate) undelivered: Undelivered,
    /// What is to be told to other homes with the next flush.
    pub(crate) told: Told,
    /// What a granted wish for more time is answered with.
    pub(crate) extended: Option<Timestamp>,
    /// What another home's question is answered with.
    pub(crate) granted: Option<Grant>,
    /// What an instance's question is answered with.
    pub(crate) permits: Permits,
    /// Redelivered dispatches of which is not durable yet who has them.
    pub(crate) unrecorded: BTreeSet<DispatchId>,
}

/// What a home starts with.
#[derive(Debug)]
pub struct Setup {
    /// Its shard.
    pub shard: u8,
    /// The epoch of its ownership.
    pub epoch: u64,
    /// The replica that hosts it.
    pub replica: String,
    /// The rules.
    pub policy: Arc<Policy>,
    /// The key of payload hashes and lineage seals.
    pub key: AuditKey,
    /// The head of its audit: its own take-over marker.
    pub head: Head,
    /// Its fences by priority.
    pub fences: [Fence; 4],
    /// What former homes left.
    pub recovered: Recovered,
    /// When each lane stream was made, by priority.
    pub lanes_made: [u64; 4],
    /// Where it counts.
    pub meter: Arc<dyn Meter>,
}

impl Home {
    /// A home that has taken over.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        Self {
            now: Timestamp::ZERO,
            number: setup.shard,
            epoch: setup.epoch,
            replica: setup.replica,
            policy_version: setup.policy.version,
            governor: Governor::new(setup.policy, Shards::one(setup.shard)),
            effects: Vec::new(),
            key: setup.key,
            shard: Shard::new(setup.head, setup.fences),
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
            out: Out::default(),
            meter: setup.meter,
            lane_pending: HashMap::new(),
            admitted_in: HashMap::new(),
            done_credits: HashMap::new(),
            refused_pulls: Vec::new(),
            lanes_made: setup.lanes_made,
            connected: true,
            began: Timestamp::ZERO,
            ready_replies: Vec::new(),
            undelivered: Undelivered::default(),
            told: Told::default(),
            extended: None,
            granted: None,
            permits: Permits::default(),
            unrecorded: BTreeSet::new(),
        }
    }

    /// Tells the rules what was recovered, then asks for what waits. Once, before anything else.
    pub fn begin(&mut self, now: Timestamp) {
        (self.now, self.began) = (now, now);
        self.shard.snapshot_at = now;
        self.restore_all();
    }

    /// Takes one input. Follow a batch of them by [`Home::turn`] and [`Home::flush`].
    ///
    /// # Errors
    /// When the home is over: drop it, and acknowledge nothing more.
    pub fn take(&mut self, now: Timestamp, input: Input) -> Result<(), Over> {
        self.now = now;
        match input {
            Input::Message(Source::Lane(source, priority), message) => {
                self.arrive(Lane { source, priority }, message);
            }
            Input::Message(Source::Done(source, priority), message) => {
                self.complete(source, priority, message);
            }
            Input::PullEnded(source, unfilled, why) => self.pull_ended(source, unfilled, why),
            Input::Appended(Appended::Durable) => self.durable(),
            Input::Appended(Appended::Deposed(head)) => {
                return Err(Over::Deposed(format!(
                    "the audit of shard {} has the head {head}, written by another home",
                    self.number
                )));
            }
            Input::BulkReady { waiting } => self.recovered.unread.wait(waiting, true),
            Input::Deposed(why) => return Err(Over::Deposed(why)),
            Input::Published { handle, target, was_full } => self.published(handle, target, was_full),
            Input::InboxFull(target) => self.apply(Event::InboxFull { target }),
            Input::Replied { handle, confirmed } => self.replied(handle, confirmed),
            Input::DeadLettered { id, inbox_ack, done } => self.dead_lettered(id, inbox_ack, done),
            Input::Broker { connected: true } if !self.connected => return Err(Over::CutOff),
            Input::Broker { connected } => self.connected = connected,
            Input::GrantAnswered { target, ask, asked, grant } => {
                self.apply(Event::GrantAnswered { target, ask, asked, grant });
            }
            Input::Command(command) => self.command(command),
        }
        Ok(())
    }

    /// Lets the rules decide what may go. Left out while the home drains.
    pub fn turn(&mut self, now: Timestamp) {
        self.now = now;
        let room = WINDOW.saturating_sub(self.in_window);
        if room > 0 {
            self.apply(Event::Turn { room });
        }
    }

    /// Tells the time, each [`TICK`].
    pub fn tick(&mut self, now: Timestamp) {
        self.now = now;
        self.recovered.unread.tick();
        self.undelivered.expire(now);
        if self.completions_are_read() {
            self.apply(Event::Tick);
        }
        for (source, messages) in std::mem::take(&mut self.refused_pulls) {
            self.pull_again(source, messages);
        }
        self.meter.beat(now);
    }

    /// Sends out what the last inputs led to: replies that are due, the next block, what other homes should know.
    pub fn flush(&mut self, now: Timestamp) {
        self.now = now;
        self.send_ready_replies();
        self.flush_block();
        self.tell_homes();
    }

    /// What is to be done; whoever hosts the home empties it.
    pub const fn out(&mut self) -> &mut Out {
        &mut self.out
    }

    /// Whether nothing that was decided is on its way any more; what is merely held goes to the next home. What is in
    /// [`Out`] and not yet done is for the host to look at.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.shard.is_idle() && self.publishes.len() == 0
    }

    /// Whether no agent of this shard is registered, so that there is nothing to hurry for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.agents.values().any(|agent| agent.shard == self.number)
    }

    /// Gives an event to the rules and performs what they want.
    pub(crate) fn apply(&mut self, event: Event<'_>) {
        self.apply_reported(event, None);
    }

    /// The same for completions, whose message the effects refer to by row.
    pub(crate) fn apply_reported(&mut self, event: Event<'_>, reported: Option<&Reported<'_>>) {
        let now = self.now;
        let mut effects = std::mem::take(&mut self.effects);
        self.governor.apply(now, event, &mut effects);
        for effect in effects.drain(..) {
            self.perform(now, effect, reported);
        }
        self.effects = effects;
    }

    /// Deadlines are judged only when the completions that may have come before them have been read: those that waited for
    /// a new home, and those that waited while the broker was away.
    fn completions_are_read(&mut self) -> bool {
        if !self.connected {
            return false;
        }
        if self.has_unread_completions() {
            return false;
        }
        if self.now.since(self.began) > TELL_AGAIN {
            // Every completion that waited has come: nothing is left to be told a second time.
            self.recovered.closed = HashMap::new();
        }
        true
    }

    /// Whether completions that waited for this home may still come. One that cannot be read holds nothing up for ever.
    pub(crate) fn has_unread_completions(&self) -> bool {
        self.recovered.unread.is_left(UNREAD_TICKS_MAX)
    }
}
