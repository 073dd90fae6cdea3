//! What the buckets of the broker say about agents: registrations, breakers, pauses. Watched, kept, and told to the homes.
//!
//! Owns the copy; changes no bucket. The rule it keeps: the copy is changed before the homes are told, so that a home that
//! reads it while it takes over misses nothing that it is not told as well.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{Entry, Operation, Store};
use futures::StreamExt;
use governance::{AgentId, Priority, Registration, Timestamp};
use home::Command;
use protocol::control::Breaker;
use protocol::streams;
use tokio::sync::{oneshot, watch};

use crate::homes::Homes;

/// The buckets that are watched.
#[derive(Debug, Clone)]
pub(crate) struct Buckets {
    pub(crate) agents: Store,
    pub(crate) breakers: Store,
    pub(crate) orders: Store,
}

impl Buckets {
    pub(crate) async fn open(js: &Context) -> anyhow::Result<Self> {
        Ok(Self {
            agents: js.get_key_value(streams::AGENTS_BUCKET).await?,
            breakers: js.get_key_value(streams::BREAKERS_BUCKET).await?,
            orders: js.get_key_value(streams::POLICY_BUCKET).await?,
        })
    }
}

/// What is known, shared by the tasks of this replica.
#[derive(Debug)]
pub(crate) struct Known {
    facts: Mutex<Facts>,
    /// Whether each bucket has been read to its end once.
    read: watch::Sender<u8>,
}

#[derive(Debug, Default)]
struct Facts {
    registrations: BTreeMap<String, Registration>,
    breakers: BTreeMap<String, Breaker>,
    paused: BTreeSet<String>,
}

/// How long the homes may take to know an agent: those that take over meanwhile read it from here.
const INTRODUCTION_MAX: Duration = Duration::from_secs(2);
/// The pause before consumers that the broker did not make are asked for again.
const RETRY: Duration = Duration::from_millis(200);

/// So many buckets are read before anything is taken over.
const BUCKETS: u8 = 3;

impl Known {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { facts: Mutex::default(), read: watch::Sender::new(0) })
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn registrations(&self) -> Vec<Registration> {
        self.facts().registrations.values().cloned().collect()
    }

    pub(crate) fn registrations_by_name(&self) -> BTreeMap<String, Registration> {
        self.facts().registrations.clone()
    }

    pub(crate) fn breakers(&self) -> Vec<(String, Breaker)> {
        self.facts().breakers.iter().map(|(name, b)| (name.clone(), b.clone())).collect()
    }

    pub(crate) fn paused(&self) -> Vec<String> {
        self.facts().paused.iter().cloned().collect()
    }

    /// Makes an agent known to the homes that are here, and waits until they know it; the home of its shard reads its lanes
    /// from then on.
    pub(crate) async fn introduce(&self, js: &Context, homes: &Homes, registration: Registration) {
        self.facts().registrations.insert(registration.agent.clone(), registration.clone());
        self.make_lanes(js, homes, &registration.agent).await;
        let mut told = Vec::new();
        for (_, link) in homes.all() {
            let (respond, registered) = oneshot::channel();
            let registration = Box::new(registration.clone());
            link.send(Command::Register { registration, respond: Some(respond) }).await;
            told.push(registered);
        }
        // A home that is still taking over answers when it begins.
        tokio::time::timeout(INTRODUCTION_MAX, futures::future::join_all(told)).await.ok();
    }

    /// Makes the consumers by which the agent's home reads its lanes, where that home is here.
    async fn make_lanes(&self, js: &Context, homes: &Homes, agent: &str) {
        let Ok(id) = AgentId::new(agent) else { return };
        let deadline = Instant::now() + INTRODUCTION_MAX;
        while let Some(link) = homes.of(agent) {
            match broker::ensure_source_consumers(js, &id, link.epoch, Priority::ALL).await {
                Ok(Some(_)) => return,
                // A take-over is under way, which moves them.
                Ok(None) if Instant::now() < deadline => {}
                Ok(None) => return tracing::error!(agent, "the lanes of an agent are read by another home"),
                Err(e) if Instant::now() >= deadline => {
                    return tracing::error!(agent, error = %e, "the lanes of an agent are not read");
                }
                Err(e) => tracing::warn!(agent, error = %e, "the lanes of an agent are not read yet"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Waits until every bucket has been read to its end once.
    pub(crate) async fn is_read(&self) {
        self.read.subscribe().wait_for(|read| *read >= BUCKETS).await.ok();
    }

    fn has_read(&self, bucket: u8) {
        let all = |read: &mut u8| *read += bucket;
        self.read.send_modify(all);
    }
}

/// Follows the three buckets until the process ends.
pub(crate) async fn follow(
    known: Arc<Known>,
    js: Context,
    buckets: Buckets,
    homes: Homes,
) -> anyhow::Result<()> {
    let agents = follow_bucket(&known, &buckets.agents, |entry| on_agent(&known, &js, &homes, entry));
    let breakers = follow_bucket(&known, &buckets.breakers, |entry| on_breaker(&known, &homes, entry));
    let orders = follow_bucket(&known, &buckets.orders, |entry| on_order(&known, &homes, entry));
    tokio::try_join!(agents, breakers, orders).map(drop)
}

async fn follow_bucket<F: Future<Output = ()>>(
    known: &Known,
    bucket: &Store,
    mut on_entry: impl FnMut(Entry) -> F,
) -> anyhow::Result<()> {
    let name = &bucket.name;
    let mut entries =
        bucket.watch_with_history(">").await.with_context(|| format!("failed to watch {name}"))?;
    // A bucket without an entry says nothing at all.
    let mut read = bucket.status().await?.values() == 0;
    if read {
        known.has_read(1);
    }
    while let Some(entry) = entries.next().await {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => {
                tracing::warn!(bucket = name, error = %e, "a bucket is not followed at the moment");
                continue;
            }
        };
        let last = entry.delta == 0;
        on_entry(entry).await;
        if last && !read {
            read = true;
            known.has_read(1);
        }
    }
    anyhow::bail!("the watch of the bucket {name} ended")
}

async fn on_agent(known: &Known, js: &Context, homes: &Homes, entry: Entry) {
    if entry.operation != Operation::Put {
        return;
    }
    let Some(registration) = read::<Registration>(&entry) else { return };
    let known_already = known.facts().registrations.get(&registration.agent) == Some(&registration);
    // As a rule the registrar has told this replica; a message that was lost is made up for here.
    if !known_already {
        known.introduce(js, homes, registration).await;
    }
}

async fn on_breaker(known: &Known, homes: &Homes, entry: Entry) {
    let Some(breaker) = read::<Breaker>(&entry).filter(|_| entry.operation == Operation::Put) else { return };
    known.facts().breakers.insert(entry.key.clone(), breaker.clone());
    let Breaker { state, reason, since_ns, .. } = breaker;
    homes
        .tell(|| Command::BreakerKnown {
            agent: entry.key.clone(),
            state,
            reason,
            since: Timestamp(since_ns),
        })
        .await;
}

async fn on_order(known: &Known, homes: &Homes, entry: Entry) {
    let Some(agent) = streams::paused_agent(&entry.key).filter(|name| AgentId::new(name).is_ok()) else {
        return;
    };
    let paused = entry.operation == Operation::Put;
    if paused {
        known.facts().paused.insert(agent.to_owned());
    } else {
        known.facts().paused.remove(agent);
    }
    homes.tell(|| Command::Paused { agent: agent.to_owned(), paused }).await;
}

fn read<T: serde::de::DeserializeOwned>(entry: &Entry) -> Option<T> {
    match serde_json::from_slice(&entry.value) {
        Ok(value) => Some(value),
        // A newer replica may write what this one cannot read.
        Err(e) => {
            if entry.operation == Operation::Put {
                tracing::warn!(bucket = entry.bucket, key = entry.key, error = %e, "an entry cannot be read");
            }
            None
        }
    }
}
