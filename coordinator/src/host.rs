//! Hosting one home: its take-over, the tasks around it, the loop that drives it, and its end.
//!
//! Owns the tasks; decides nothing. The rule it keeps: a home never waits for a task that may wait for the home. What a
//! channel does not take stays with the home, in order; the home's in-flight window bounds how much that can be.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::Client;
use async_nats::jetstream::Context;
use async_nats::jetstream::kv::Store;
use broker::Publisher;
use governance::{Policy, Priority};
use home::takeover::{Rest, Taking, take_over};
use home::{Home, Input, Out, Over, Publish, Pull, Reply, Side, TICK, Write};
use protocol::AuditKey;
use protocol::control::Alert;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::homes::Homes;
use crate::io::side::SideDoor;
use crate::io::{ledger, outbox, pulls, replies, side};
use crate::metrics::Metrics;
use crate::supervise::Supervisor;
use crate::world::Servers;

/// Inputs taken in one turn: bounds the time from one flush to the next.
const INPUTS_PER_TURN: usize = 256;
/// The capacity of a home's own channel; its senders wait when it is full.
const INPUT_CAPACITY: usize = 8_192;
/// The capacity of a channel to an I/O task: what it can work on at once; more waits in the home.
const OUTLET_CAPACITY: usize = 4_096;
/// How often time is told to a home of a shard without agents.
const IDLE_TICK: Duration = Duration::from_millis(500);
/// How long a draining home may take to settle what it decided; the next home replays the rest.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// How long the last acknowledgements and signals of a home may take to leave.
const FAREWELL_MAX: Duration = Duration::from_secs(2);

/// What all homes of this replica share. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) servers: Servers,
    pub(crate) homes: Homes,
    pub(crate) bulk: Client,
    pub(crate) urgent: Client,
    pub(crate) js: Context,
    pub(crate) urgent_publisher: Publisher,
    pub(crate) breakers: Store,
    pub(crate) scales: Store,
    pub(crate) orders: Store,
    pub(crate) alerts: mpsc::Sender<Alert>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) policy: Arc<Policy>,
    pub(crate) key: AuditKey,
    pub(crate) replica: String,
    /// How many copies the broker keeps of each stream.
    pub(crate) stream_copies: usize,
}

/// The turns of take-overs.
#[derive(Debug)]
pub(crate) struct Turns {
    /// The one under way.
    pub(crate) first: OwnedSemaphorePermit,
    /// Where the next one is had.
    pub(crate) all: Arc<Semaphore>,
}

/// How a home ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It was asked to, and nothing is on its way.
    Drained,
    /// It was asked to, and did not settle in time: the next home replays what is left.
    Abandoned,
    /// Another home has taken over.
    Deposed,
    /// The connection to the broker was lost for a while: take over anew.
    CutOff,
}

impl Host {
    /// Takes a shard over and hosts its home, under the second of these epochs and after the first, until told to drain. `taken`
    /// is called when the take-over is complete.
    ///
    /// # Errors
    /// When the take-over fails, or one of the home's tasks.
    pub(crate) async fn host(
        &self,
        shard: u8,
        (former, epoch): (u64, u64),
        drain: CancellationToken,
        turns: Turns,
        taken: impl FnOnce() + Send + 'static,
    ) -> anyhow::Result<End> {
        let (to_home, inputs) = mpsc::channel(INPUT_CAPACITY);
        self.homes.open(shard, epoch, to_home.clone());
        let result = self.host_linked(shard, (former, epoch), drain, (to_home, inputs), turns, taken).await;
        self.homes.close(shard, epoch);
        result
    }

    async fn host_linked(
        &self,
        shard: u8,
        (former, epoch): (u64, u64),
        drain: CancellationToken,
        (to_home, inputs): (mpsc::Sender<Input>, mpsc::Receiver<Input>),
        turns: Turns,
        taken: impl FnOnce() + Send + 'static,
    ) -> anyhow::Result<End> {
        let taking = Taking {
            shard,
            epoch,
            former,
            replica: self.replica.clone(),
            policy: Arc::clone(&self.policy),
            key: self.key.clone(),
            meter: Arc::clone(&self.metrics) as Arc<dyn home::Meter>,
        };
        let clients = [self.bulk.clone(), self.urgent.clone()];
        let connections = connections(&clients);
        let (setup, rest) = take_over(&self.servers, taking).await?;
        let home = Home::new(setup);
        let mut tasks = Supervisor::new();
        let complete = self.clone().complete(rest, turns, to_home.clone(), taken);
        let (outlets, mut farewell) = self.start_io(&mut tasks, shard, &to_home, complete);
        drop(to_home);
        let driver = Driver { home, outlets, clients, connections };
        let end = tokio::select! {
            end = driver.run(inputs, drain) => Ok(end),
            failed = tasks.run_on() => Err(failed),
        };
        // The outlets are gone: the side task ends by itself when the last acknowledgements have left.
        tokio::time::timeout(FAREWELL_MAX, farewell.join_next()).await.ok();
        tasks.shutdown().await;
        end
    }

    /// Moves the consumers that P0 does not wait for. All shards that are taken over at once have their turn with what P0 waits
    /// for before any of them has its turn with the rest.
    async fn complete(
        self,
        rest: Rest,
        turns: Turns,
        home: mpsc::Sender<Input>,
        taken: impl FnOnce() + Send + 'static,
    ) -> anyhow::Result<()> {
        let Turns { first, all } = turns;
        drop(first);
        let turn = all.acquire().await.context("this replica is stopping")?;
        let waiting = rest.take(&self.servers).await?;
        drop(turn);
        home.send(Input::BulkReady { waiting }).await.ok();
        taken();
        Ok(())
    }

    /// Starts the tasks around a home, whose take-over is completed before it is given what P0 does not wait for. The second part is the task that is waited for at the end.
    fn start_io(
        &self,
        tasks: &mut Supervisor,
        shard: u8,
        home: &mpsc::Sender<Input>,
        complete: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) -> (Outlets, tokio::task::JoinSet<anyhow::Result<()>>) {
        let (p0_pulls, p0_pulls_out) = mpsc::channel(OUTLET_CAPACITY);
        let (bulk_pulls, bulk_pulls_out) = mpsc::channel(OUTLET_CAPACITY);
        let (writes, writes_out) = mpsc::channel(OUTLET_CAPACITY);
        let (p0_publishes, p0_publishes_out) = mpsc::channel(OUTLET_CAPACITY);
        let (bulk_publishes, bulk_publishes_out) = mpsc::channel(OUTLET_CAPACITY);
        let (replies, replies_out) = mpsc::channel(OUTLET_CAPACITY);
        let (side, side_out) = mpsc::channel(OUTLET_CAPACITY);
        let door = SideDoor {
            client: self.bulk.clone(),
            js: self.js.clone(),
            publisher: self.servers.publisher.clone(),
            breakers: self.breakers.clone(),
            scales: self.scales.clone(),
            orders: self.orders.clone(),
        };
        let (urgent, bulk) = (self.urgent_publisher.clone(), self.servers.publisher.clone());
        let copies = self.stream_copies;
        tasks.start("P0 pulls", pulls::run(self.urgent.clone(), p0_pulls_out, home.clone()));
        let pulling = pulls::run(self.bulk.clone(), bulk_pulls_out, home.clone());
        tasks.start("pulls", async move {
            complete.await?;
            pulling.await
        });
        tasks.start("ledger", ledger::run(self.servers.ledger.clone(), shard, writes_out, home.clone()));
        tasks.start("P0 outbox", outbox::run(urgent, p0_publishes_out, home.clone(), copies));
        tasks.start("outbox", outbox::run(bulk, bulk_publishes_out, home.clone(), copies));
        tasks.start("replies", replies::run(self.urgent.clone(), replies_out, home.clone()));
        let mut farewell = tokio::task::JoinSet::new();
        farewell.spawn(side::run(door, side_out, home.clone()));
        let alerts = self.alerts.clone();
        let outlets = Outlets {
            p0_pulls: Outlet::new(p0_pulls),
            bulk_pulls: Outlet::new(bulk_pulls),
            writes: Outlet::new(writes),
            p0_publishes: Outlet::new(p0_publishes),
            bulk_publishes: Outlet::new(bulk_publishes),
            replies: Outlet::new(replies),
            alerts: Outlet::new(alerts),
            side: Outlet::new(side),
        };
        (outlets, farewell)
    }
}

/// A home with its ways out.
struct Driver {
    home: Home,
    outlets: Outlets,
    clients: [Client; 2],
    /// How often they were connected when the take-over began.
    connections: u64,
}

impl Driver {
    /// The hot path: take what came, let the rules decide, hand over what they decided.
    async fn run(mut self, mut inputs: mpsc::Receiver<Input>, drain: CancellationToken) -> End {
        self.home.begin(clock::now());
        let mut draining = false;
        let mut tick = std::pin::pin!(tokio::time::sleep(TICK));
        let give_up = async {
            drain.cancelled().await;
            tokio::time::sleep(DRAIN_MAX).await;
        };
        let mut give_up = std::pin::pin!(give_up);
        loop {
            // Every arm is cancellation-safe: a channel and the timers keep what they have not yielded.
            tokio::select! {
                input = inputs.recv() => {
                    let Some(input) = input else { return End::Abandoned };
                    if let Some(end) = self.take(input, &mut inputs) {
                        return end;
                    }
                }
                () = &mut tick => {
                    if let Some(end) = self.tell_time() {
                        return end;
                    }
                    let next = if self.home.is_empty() { IDLE_TICK } else { TICK };
                    tick.as_mut().reset(tokio::time::Instant::now() + next);
                }
                () = drain.cancelled(), if !draining => draining = true,
                () = &mut give_up => return End::Abandoned,
            }
            let now = clock::now();
            if !draining {
                self.home.turn(now);
            }
            self.home.flush(now);
            self.outlets.hand_over(self.home.out());
            if draining && self.home.is_settled() && self.outlets.are_empty() {
                return End::Drained;
            }
        }
    }

    fn take(&mut self, first: Input, inputs: &mut mpsc::Receiver<Input>) -> Option<End> {
        let more = std::iter::from_fn(|| inputs.try_recv().ok());
        for input in std::iter::once(first).chain(more).take(INPUTS_PER_TURN) {
            if let Err(over) = self.home.take(clock::now(), input) {
                return Some(end_of(&over));
            }
        }
        None
    }

    fn tell_time(&mut self) -> Option<End> {
        let now = clock::now();
        // A connection that was lost and is there again between two looks has lost what came meanwhile all the same.
        let same = connections(&self.clients) == self.connections;
        let connected = self.clients.iter().all(is_connected);
        for connected in [connected && same, connected] {
            if let Err(over) = self.home.take(now, Input::Broker { connected }) {
                return Some(end_of(&over));
            }
        }
        self.home.tick(now);
        None
    }
}

fn end_of(over: &Over) -> End {
    tracing::warn!("{over}");
    match over {
        Over::Deposed(_) => End::Deposed,
        Over::CutOff => End::CutOff,
    }
}

fn is_connected(client: &Client) -> bool {
    client.connection_state() == async_nats::connection::State::Connected
}

/// How often these clients were connected, together.
fn connections(clients: &[Client]) -> u64 {
    clients.iter().map(|client| client.statistics().connects.load(Ordering::Relaxed)).sum()
}

/// One way out: a channel, and what it has not taken.
#[derive(Debug)]
struct Outlet<T> {
    channel: mpsc::Sender<T>,
    waiting: VecDeque<T>,
}

impl<T> Outlet<T> {
    const fn new(channel: mpsc::Sender<T>) -> Self {
        Self { channel, waiting: VecDeque::new() }
    }

    fn push(&mut self, item: T) {
        if !self.waiting.is_empty() {
            return self.waiting.push_back(item);
        }
        // A closed channel means that the home is ending.
        if let Err(TrySendError::Full(item) | TrySendError::Closed(item)) = self.channel.try_send(item) {
            self.waiting.push_back(item);
        }
    }

    fn drain(&mut self) {
        while let Some(item) = self.waiting.pop_front() {
            if let Err(TrySendError::Full(item) | TrySendError::Closed(item)) = self.channel.try_send(item) {
                self.waiting.push_front(item);
                return;
            }
        }
    }
}

/// The ways out of one home.
struct Outlets {
    p0_pulls: Outlet<Pull>,
    bulk_pulls: Outlet<Pull>,
    writes: Outlet<Write>,
    p0_publishes: Outlet<Publish>,
    bulk_publishes: Outlet<Publish>,
    replies: Outlet<Reply>,
    alerts: Outlet<Alert>,
    side: Outlet<Side>,
}

impl Outlets {
    /// Hands over what the home wants done, and what waited.
    fn hand_over(&mut self, out: &mut Out) {
        self.p0_pulls.drain();
        self.bulk_pulls.drain();
        self.writes.drain();
        self.p0_publishes.drain();
        self.bulk_publishes.drain();
        self.replies.drain();
        self.alerts.drain();
        self.side.drain();
        for pull in out.pulls.drain(..) {
            let urgent = pull.priority == Priority::P0;
            if urgent { &mut self.p0_pulls } else { &mut self.bulk_pulls }.push(pull);
        }
        for publish in out.publishes.drain(..) {
            let urgent = publish.class == Priority::P0;
            if urgent { &mut self.p0_publishes } else { &mut self.bulk_publishes }.push(publish);
        }
        out.writes.drain(..).for_each(|write| self.writes.push(write));
        out.replies.drain(..).for_each(|reply| self.replies.push(reply));
        out.alerts.drain(..).for_each(|alert| self.alerts.push(alert));
        out.side.drain(..).for_each(|side| self.side.push(side));
    }

    /// Whether everything that may not be lost was handed over.
    fn are_empty(&self) -> bool {
        self.writes.waiting.is_empty() && self.side.waiting.is_empty() && self.alerts.waiting.is_empty()
    }
}
