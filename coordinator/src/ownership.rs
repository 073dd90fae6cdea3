//! Ownership: announcing this replica, claiming the shards, fencing what former homes publish.
//!
//! The rule it keeps: a claim is a compare-and-set; its epoch is above every epoch seen in the owners bucket and in Redis;
//! and nothing is decided before both outputs are fenced.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::jetstream::{Context, kv::Store};
use broker::{Fence, Publisher};
use futures::TryStreamExt;
use governance::{Priority, SHARDS};
use protocol::control::{Owner, Replica};
use protocol::{streams, subjects};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::io::ledger::Ledger;

/// How often a replica renews its announcement; the bucket forgets it after three.
const RENEW: Duration = Duration::from_secs(1);
/// How often a replica that stands by looks whether the shards became free.
const LOOK: Duration = Duration::from_millis(500);

/// How long the bucket remembers an announcement that is not renewed.
const EXPIRY: Duration = Duration::from_secs(3);

/// What a look at the owners found.
enum Look {
    /// A live replica is home.
    Owned(String),
    /// Another replica was faster.
    Lost,
    /// This replica is home now.
    Claimed(u64),
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
        Ok(Self { broker, replicas, owners, name, http, since_ns: clock::now().0 })
    }

    async fn announce(&self) -> anyhow::Result<()> {
        let replica = Replica {
            protocol: protocol::PROTOCOL_VERSION,
            http: self.http.clone(),
            since_ns: self.since_ns,
        };
        self.replicas.put(&self.name, serde_json::to_vec(&replica)?.into()).await?;
        Ok(())
    }

    /// Announces this replica until told to stop.
    pub(crate) async fn renew(self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut tick = tokio::time::interval(RENEW);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => {
                    self.replicas.delete(&self.name).await.ok();
                    return Ok(());
                }
                _ = tick.tick() => {
                    // While the broker is away nothing can be claimed by others either.
                    if let Err(e) = self.announce().await {
                        tracing::debug!(error = %e, "this replica could not announce itself");
                    }
                }
            }
        }
    }

    /// How many replicas live.
    pub(crate) async fn count(&self) -> u32 {
        let Ok(keys) = self.replicas.keys().await else { return 1 };
        keys.try_fold(0, |n, _| async move { Ok(n + 1) }).await.unwrap_or(1).max(1)
    }

    /// Waits until no other live replica owns a shard, then claims them all under one epoch.
    ///
    /// Nothing is claimed within one expiry of a reconnect: while the broker was away nobody could announce itself, and a home
    /// that lives must not be taken for dead.
    pub(crate) async fn claim(&self, ledger: &Ledger) -> u64 {
        let (mut waited, mut connected, mut quiet_until) = (false, self.connects(), Instant::now());
        loop {
            if connected != self.connects() {
                connected = self.connects();
                quiet_until = Instant::now() + EXPIRY;
            }
            if Instant::now() >= quiet_until {
                match self.look(ledger).await {
                    Ok(Look::Claimed(epoch)) => return epoch,
                    Ok(Look::Owned(owner)) if !waited => {
                        tracing::info!(owner, "standing by: another replica is home of the shards");
                        waited = true;
                    }
                    Ok(Look::Owned(_) | Look::Lost) => {}
                    Err(e) => {
                        tracing::warn!(error = %format!("{e:#}"), "the owners cannot be read or set; trying again")
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// How often this replica was connected to the broker.
    fn connects(&self) -> u64 {
        self.broker.statistics().connects.load(Ordering::Relaxed)
    }

    /// Claims all shards, where none of them has a live owner.
    ///
    /// The entries whose owners are judged are the ones that are compared and set: a claim that another replica makes in
    /// between is either seen here or met there. All claim in the same order, so that only one gets past the first shard.
    async fn look(&self, ledger: &Ledger) -> anyhow::Result<Look> {
        // An owner that is not announced counts as dead: another replica that starts now would claim over this one's head.
        self.announce().await.context("failed to announce this replica")?;
        let connected = self.connects();
        let mut revisions = Vec::with_capacity(usize::from(SHARDS));
        let mut epoch = 0;
        let mut dead = String::new();
        for shard in 0..SHARDS {
            let entry = self.owners.entry(shard.to_string()).await?;
            let revision = entry.as_ref().map_or(0, |e| e.revision);
            if let Some(entry) = entry.filter(|entry| !entry.value.is_empty()) {
                let owner: Owner = serde_json::from_slice(&entry.value)
                    .context("an entry of the owners bucket is damaged")?;
                let another = !owner.replica.is_empty() && owner.replica != self.name;
                if another && owner.replica != dead {
                    if self.replicas.get(&owner.replica).await?.is_some() {
                        return Ok(Look::Owned(owner.replica));
                    }
                    dead = owner.replica;
                }
                epoch = epoch.max(owner.epoch);
            }
            epoch = epoch.max(revision).max(ledger.head(shard).await?.id.epoch);
            revisions.push(revision);
        }
        if connected != self.connects() {
            // Who seemed dead may have been cut off like this replica.
            return Ok(Look::Lost);
        }
        epoch += 1;
        for (shard, revision) in revisions.into_iter().enumerate() {
            let owner = serde_json::to_vec(&Owner { replica: self.name.clone(), epoch })?;
            if self.owners.update(shard.to_string(), owner.into(), revision).await.is_err() {
                return Ok(Look::Lost);
            }
        }
        Ok(Look::Claimed(epoch))
    }

    /// Gives the shards back, so that another replica need not wait for this one's announcement to expire.
    pub(crate) async fn release(&self, epoch: u64) {
        for shard in 0..SHARDS {
            let Ok(Some(entry)) = self.owners.entry(shard.to_string()).await else { continue };
            let mine = serde_json::from_slice::<Owner>(&entry.value)
                .is_ok_and(|o| o.replica == self.name && o.epoch == epoch);
            let free =
                serde_json::to_vec(&Owner { replica: String::new(), epoch }).expect("plain data serialises");
            if mine {
                self.owners.update(shard.to_string(), free.into(), entry.revision).await.ok();
            }
        }
    }
}

/// Moves the fences of all shards: whatever a former home still publishes is refused from here on.
pub(crate) async fn fence(
    js: &Context,
    publisher: &Publisher,
    epoch: u64,
) -> anyhow::Result<Vec<[Fence; 4]>> {
    let mut fences: Vec<[Fence; 4]> = Vec::with_capacity(usize::from(SHARDS));
    for shard in 0..SHARDS {
        let mut acks = Vec::new();
        for p in Priority::ALL {
            let body = format!("{epoch}").into();
            acks.push(publisher.publish(subjects::fence(*p, shard), None, None, body).await);
        }
        let acks = futures::future::try_join_all(acks).await.context("failed to move a fence")?;
        let fences_of_shard: Vec<Fence> = Priority::ALL
            .iter()
            .zip(acks)
            .map(|(p, ack)| Fence { subject: subjects::fence(*p, shard), sequence: ack.sequence })
            .collect();
        fences.push(fences_of_shard.try_into().expect("one for each priority"));
    }
    for p in Priority::ALL {
        let stream = js.get_stream_no_info(streams::inboxes(*p)).await?;
        for shard in 0..SHARDS {
            // Only the newest fence message counts; the older ones would fill the subject in the end.
            stream.purge().filter(subjects::fence(*p, shard)).keep(1).await?;
        }
    }
    Ok(fences)
}
