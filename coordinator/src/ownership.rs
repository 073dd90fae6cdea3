//! Ownership: announcing this replica, following the others, claiming and giving back shards as `home::ownership` says.
//!
//! Owns the buckets of replicas and owners; what to claim is not decided here. The rule it keeps: a claim is a
//! compare-and-set, and a home is hosted only under the epoch that was claimed for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{Entry as KvEntry, Operation, Store, Watch};
use futures::StreamExt;
use governance::{SHARDS, Timestamp, shard_of};
use home::ownership::{Action, Entry, Ownership, RENEW, next_epoch};
use home::takeover::World as _;
use protocol::control::{Owner, Replica};
use protocol::{PROTOCOL_VERSION, streams};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::host::{End, Host, Turns};

/// How often this replica looks what is to be done when nothing happens.
const LOOK: Duration = Duration::from_millis(100);
/// Take-overs under way at once: more would only make each of them, and so the urgent ones, slower.
const TAKE_OVERS_MAX: usize = 8;
/// How far apart two live replicas' protocol versions may be.
const VERSIONS_APART_MAX: u8 = 1;

/// What other tasks may know of the ownership.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// Live replicas, this one included.
    pub(crate) replicas: AtomicU32,
    /// Every shard that should be here is here.
    pub(crate) ready: AtomicBool,
}

/// This replica among the others.
#[derive(Debug, Clone)]
pub(crate) struct Membership {
    broker: async_nats::Client,
    replicas: Store,
    owners: Store,
    name: String,
    http: String,
    since_ns: u64,
    stored: Arc<AtomicBool>,
}

impl Membership {
    pub(crate) async fn open(
        broker: async_nats::Client,
        js: &Context,
        name: String,
        http: String,
    ) -> anyhow::Result<Self> {
        let replicas = js.get_key_value(streams::REPLICAS_BUCKET).await?;
        let owners = js.get_key_value(streams::OWNERS_BUCKET).await?;
        let stored = Arc::new(AtomicBool::new(true));
        Ok(Self { broker, replicas, owners, name, http, since_ns: clock::now().0, stored })
    }

    /// Whether the broker stored the last announcement.
    pub(crate) fn stored(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stored)
    }

    /// Refuses to join replicas whose protocol is too far from this build's.
    ///
    /// # Errors
    /// When a live replica speaks a version more than one apart, or the bucket cannot be read.
    pub(crate) async fn check_versions(&self) -> anyhow::Result<()> {
        let mut names = self.replicas.keys().await.context("failed to read the bucket of replicas")?;
        while let Some(name) = names.next().await {
            let name = name.context("failed to read the bucket of replicas")?;
            let Some(entry) = self.replicas.get(&name).await? else { continue };
            let Ok(replica) = serde_json::from_slice::<Replica>(&entry) else { continue };
            let apart = replica.protocol.abs_diff(PROTOCOL_VERSION);
            anyhow::ensure!(
                name == self.name || apart <= VERSIONS_APART_MAX,
                "the replica {name} speaks protocol {} and this build {PROTOCOL_VERSION}: upgrade one version at a time, \
                 and stop {name} first if it is older",
                replica.protocol
            );
        }
        Ok(())
    }

    async fn announce(&self, leaving: bool) -> anyhow::Result<()> {
        let replica =
            Replica { protocol: PROTOCOL_VERSION, http: self.http.clone(), since_ns: self.since_ns, leaving };
        self.replicas.put(&self.name, serde_json::to_vec(&replica)?.into()).await?;
        Ok(())
    }

    /// Announces this replica until told to stop, and says so from then on.
    pub(crate) async fn renew(self, leaving: CancellationToken) -> anyhow::Result<()> {
        let mut tick = tokio::time::interval(RENEW);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut told = false;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = leaving.cancelled(), if !told => told = true,
            }
            // While the broker is away nothing can be claimed by others either.
            let announced = self.announce(leaving.is_cancelled()).await;
            self.stored.store(announced.is_ok(), Ordering::Relaxed);
            if let Err(e) = announced {
                tracing::debug!(error = %e, "this replica could not announce itself");
            }
        }
    }

    /// Takes the announcement back.
    pub(crate) async fn withdraw(&self) {
        self.replicas.delete(&self.name).await.ok();
    }

    /// How often this replica was connected to the broker.
    fn connects(&self) -> u64 {
        self.broker.statistics().connects.load(Ordering::Relaxed)
    }

    fn is_connected(&self) -> bool {
        self.broker.connection_state() == async_nats::connection::State::Connected
    }

    async fn entry(&self, shard: u8) -> anyhow::Result<Entry> {
        let entry = self.owners.entry(shard.to_string()).await?;
        Ok(entry.map(|e| owned(&e)).unwrap_or_default())
    }

    /// Writes the owner of a shard where its entry has this revision; none where somebody was faster.
    async fn set_owner(&self, shard: u8, owner: Owner, revision: u64) -> Option<Entry> {
        let body = serde_json::to_vec(&owner).expect("plain data serialises");
        let revision = self.owners.update(shard.to_string(), body.into(), revision).await.ok()?;
        let Owner { replica, epoch, ready } = owner;
        Some(Entry { replica, epoch, revision, ready })
    }
}

/// An entry of the owners bucket as the ownership sees it. One that was deleted or damaged is free; its revision counts.
fn owned(entry: &KvEntry) -> Entry {
    let owner = serde_json::from_slice::<Owner>(&entry.value).ok();
    let (replica, epoch, ready) = owner.map(|o| (o.replica, o.epoch, o.ready)).unwrap_or_default();
    Entry { replica, epoch, revision: entry.revision, ready }
}

/// What a task of this file tells the loop.
enum Told {
    /// The take-over of a shard is complete, under this entry.
    Home(u8, Entry),
    /// A shard is not here any more, or was not claimed; this is its entry, where it was read.
    Ended(u8, Option<Entry>),
    /// A replica that seemed dead is announced.
    Alive(String),
}

/// Follows the buckets and does what the ownership says, until told to stop and everything is given back.
pub(crate) struct Owning {
    pub(crate) membership: Membership,
    pub(crate) host: Host,
    pub(crate) standing: Arc<Standing>,
}

struct Loop {
    owning: Arc<Owning>,
    ownership: Ownership,
    began: Instant,
    connects: u64,
    tasks: JoinSet<()>,
    drains: HashMap<u8, CancellationToken>,
    /// The revision of each replica's announcement as it was seen last.
    renewals: HashMap<String, u64>,
    tell: mpsc::UnboundedSender<Told>,
    take_overs: Arc<Semaphore>,
    /// The next shard whose entry is read, so that a watch that missed something is set right within seconds.
    next_read: u8,
}

impl Owning {
    /// # Errors
    /// When a bucket cannot be followed.
    pub(crate) async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        self.host.servers.known.is_read().await;
        let replicas = self.membership.replicas.watch_with_history(">").await?;
        let owners = self.membership.owners.watch_with_history(">").await?;
        // Each shard has one message under way at most, whatever happens to it.
        let (tell, told) = mpsc::unbounded_channel();
        let began = Instant::now();
        let ownership = Ownership::new(self.membership.name.clone(), Timestamp::ZERO);
        let connects = self.membership.connects();
        let state = Loop {
            owning: Arc::new(self),
            ownership,
            began,
            connects,
            tasks: JoinSet::new(),
            drains: HashMap::new(),
            renewals: HashMap::new(),
            tell,
            take_overs: Arc::new(Semaphore::new(TAKE_OVERS_MAX)),
            next_read: 0,
        };
        state.run(replicas, owners, told, stop).await
    }
}

impl Loop {
    /// The local time of the ownership: what other clocks say does not matter to it.
    fn now(&self) -> Timestamp {
        Timestamp(u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    async fn run(
        mut self,
        mut replicas: Watch,
        mut owners: Watch,
        mut told: mpsc::UnboundedReceiver<Told>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        self.read_all().await?;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stopping = false;
        loop {
            // Every arm is cancellation-safe: watches, channels and timers keep what they have not yielded.
            tokio::select! {
                entry = replicas.next() => self.on_replica(entry.context("the watch of replicas ended")?),
                entry = owners.next() => self.on_owner(entry.context("the watch of owners ended")?),
                Some(told) = told.recv() => self.on_told(told),
                _ = look.tick() => self.look().await,
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    self.ownership.stop();
                }
            }
            while self.tasks.try_join_next().is_some() {}
            for action in self.ownership.next_actions(self.now()) {
                self.act(action);
            }
            self.publish_standing();
            if stopping && self.drains.is_empty() {
                return Ok(());
            }
        }
    }

    /// Reads both buckets once: nothing is claimed before who lives and who owns what is known.
    async fn read_all(&mut self) -> anyhow::Result<()> {
        let owning = Arc::clone(&self.owning);
        let m = &owning.membership;
        let mut names = m.replicas.keys().await?;
        while let Some(name) = names.next().await {
            self.ownership.on_announced(self.now(), &name?, false);
        }
        let entries = futures::stream::iter(0..SHARDS)
            .map(|shard| async move { Ok::<_, anyhow::Error>((shard, m.entry(shard).await?)) })
            .buffer_unordered(usize::from(SHARDS));
        let entries: Vec<_> = entries.collect().await;
        for entry in entries {
            let (shard, entry) = entry?;
            self.ownership.on_entry(shard, entry);
        }
        self.set_urgent();
        Ok(())
    }

    /// The shards of agents that may call in P0 are taken over first.
    fn set_urgent(&mut self) {
        let host = &self.owning.host;
        let registrations = host.servers.known.registrations();
        let serves = |agent: &str| host.policy.p0_calls(agent).next().is_some();
        let urgent = registrations.iter().filter(|r| serves(&r.agent)).map(|r| shard_of(&r.agent));
        self.ownership.set_urgent(urgent);
    }

    fn on_replica(&mut self, entry: Result<KvEntry, impl std::fmt::Display>) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => return tracing::warn!(error = %e, "the replicas are not followed at the moment"),
        };
        self.renewals.insert(entry.key.clone(), entry.revision);
        match entry.operation {
            Operation::Put => {
                let leaving = serde_json::from_slice::<Replica>(&entry.value).is_ok_and(|r| r.leaving);
                self.ownership.on_announced(self.now(), &entry.key, leaving);
            }
            Operation::Delete | Operation::Purge => self.ownership.on_withdrawn(&entry.key),
        }
    }

    fn on_owner(&mut self, entry: Result<KvEntry, impl std::fmt::Display>) {
        match entry {
            Ok(entry) => {
                if let Some(shard) = entry.key.parse().ok().filter(|shard| *shard < SHARDS) {
                    self.ownership.on_entry(shard, owned(&entry));
                }
            }
            Err(e) => tracing::warn!(error = %e, "the owners are not followed at the moment"),
        }
    }

    fn on_told(&mut self, told: Told) {
        let now = self.now();
        match told {
            Told::Home(shard, entry) => {
                // Whoever gave the shard away waits for this word before it gives away the next.
                let (owning, claimed) = (Arc::clone(&self.owning), entry.clone());
                self.tasks.spawn(async move {
                    let Entry { replica, epoch, revision, .. } = claimed;
                    owning.membership.set_owner(shard, Owner { replica, epoch, ready: true }, revision).await;
                });
                self.ownership.on_home(shard, entry);
            }
            Told::Ended(shard, entry) => {
                self.drains.remove(&shard);
                if let Some(entry) = entry {
                    self.ownership.on_entry(shard, entry);
                }
                self.ownership.on_ended(now, shard);
            }
            Told::Alive(replica) => self.ownership.on_announced(now, &replica, false),
        }
    }

    /// What time alone brings: a connection that was lost, and an entry that a watch may have missed.
    async fn look(&mut self) {
        self.owning.host.metrics.beat_now();
        if !self.owning.membership.is_connected() || self.connects != self.owning.membership.connects() {
            self.connects = self.owning.membership.connects();
            return self.ownership.on_cut_off(self.now());
        }
        let shard = self.next_read;
        self.next_read = (shard + 1) % SHARDS;
        if shard == 0 {
            self.set_urgent();
        }
        let read = tokio::time::timeout(LOOK, self.owning.membership.entry(shard)).await;
        if let Ok(Ok(entry)) = read {
            self.ownership.on_entry(shard, entry);
        }
    }

    fn publish_standing(&self) {
        let standing = &self.owning.standing;
        standing.replicas.store(self.ownership.replicas(self.now()), Ordering::Relaxed);
        standing.ready.store(self.ownership.is_settled(self.now()), Ordering::Relaxed);
        self.owning.host.metrics.homes(self.ownership.homes());
    }

    fn act(&mut self, action: Action) {
        let owning = Arc::clone(&self.owning);
        let (tell, take_overs) = (self.tell.clone(), Arc::clone(&self.take_overs));
        match action {
            Action::Claim { shard, revision } => {
                let drain = CancellationToken::new();
                self.drains.insert(shard, drain.clone());
                let owner = self.ownership.owner(shard).clone();
                let renewed = self.renewals.get(&owner.replica).copied().unwrap_or_default();
                let claim = Claim { shard, revision, owner, renewed };
                self.tasks.spawn(async move {
                    let held = claim_and_host(&owning, &claim, drain, &tell, take_overs).await;
                    let entry = match held {
                        Ok(()) => owning.membership.entry(shard).await.ok(),
                        Err(e) => {
                            tracing::warn!(shard, error = %format!("{e:#}"), "a shard is not here");
                            None
                        }
                    };
                    tell.send(Told::Ended(shard, entry)).ok();
                });
            }
            Action::Release { shard } => {
                if let Some(drain) = self.drains.get(&shard) {
                    drain.cancel();
                }
            }
        }
    }
}

/// What a claim begins with.
struct Claim {
    shard: u8,
    /// The revision of the shard's entry.
    revision: u64,
    owner: Entry,
    /// The revision of the owner's announcement as it was seen last.
    renewed: u64,
}

/// Claims a shard, takes it over, and hosts its home until it is drained or deposed; then gives the shard back.
async fn claim_and_host(
    owning: &Owning,
    claim: &Claim,
    drain: CancellationToken,
    tell: &mpsc::UnboundedSender<Told>,
    take_overs: Arc<Semaphore>,
) -> anyhow::Result<()> {
    let first = Arc::clone(&take_overs).acquire_owned().await.context("this replica is stopping")?;
    let turns = Turns { first, all: take_overs };
    let (m, host) = (&owning.membership, &owning.host);
    let Claim { shard, revision, owner, renewed } = claim;
    let (shard, revision) = (*shard, *revision);
    if !owner.replica.is_empty() && owner.replica != m.name {
        let announced = m.replicas.entry(&owner.replica).await?;
        if announced.is_some_and(|a| a.operation == Operation::Put && a.revision > *renewed) {
            // Its renewals did not reach this replica, which says nothing about it.
            tell.send(Told::Alive(owner.replica.clone())).ok();
            return Ok(());
        }
    }
    let (head, fence) = tokio::try_join!(async { anyhow::Ok(host.servers.head(shard).await?) }, async {
        Ok(host.servers.fence_epoch(shard).await?)
    },)?;
    let former = owner.epoch;
    let epoch = next_epoch(revision, former, head.id.epoch, fence);
    let owner = |ready| Owner { replica: m.name.clone(), epoch, ready };
    let Some(claimed) = m.set_owner(shard, owner(false), revision).await else {
        tracing::debug!(shard, "another replica claimed a shard first");
        return Ok(());
    };
    let (began, tell) = (Instant::now(), tell.clone());
    let taken = move || {
        tracing::info!(shard, epoch, after_ms = began.elapsed().as_millis() as u64, "home of a shard");
        tell.send(Told::Home(shard, claimed)).ok();
    };
    let end = host.host(shard, (former, epoch), drain, turns, taken).await;
    match end {
        Ok(End::Drained | End::Abandoned) => {
            let entry = m.entry(shard).await?;
            if entry.replica == m.name && entry.epoch == epoch {
                let free = Owner { replica: String::new(), epoch, ready: false };
                m.set_owner(shard, free, entry.revision).await;
            }
            tracing::info!(shard, epoch, "a shard is given back");
            Ok(())
        }
        Ok(End::Deposed) => {
            host.metrics.deposed();
            tracing::warn!(shard, epoch, "this replica was deposed; it acknowledges nothing more");
            Ok(())
        }
        // The entry stays: nobody else may claim it meanwhile, and this replica claims it again.
        Ok(End::CutOff) => Ok(()),
        Err(e) => Err(e.context(format!("the home of shard {shard} failed"))),
    }
}
