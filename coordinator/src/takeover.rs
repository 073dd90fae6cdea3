//! Taking over: fence, marker, consumers, rebuild, replay, in this order. Pulling begins with the home.
//!
//! The rule it keeps: when this returns, nothing that a former home still does can have an effect, and everything that it
//! recorded is known or published.

use std::sync::Arc;

use async_nats::jetstream::Context;
use broker::Publisher;
use futures::{StreamExt, TryStreamExt};
use governance::{AgentId, Policy, Priority, SHARDS};
use protocol::audit::{self, Block, Note};
use protocol::control::Breaker;
use protocol::redis::{EntryId, Head};
use protocol::{AuditKey, streams};

use crate::home::{Recovery, Setup, recover};
use crate::io::ledger::{Appended, Ledger};
use crate::metrics::Metrics;
use crate::{clock, ownership, service};

/// Everything that a take-over needs.
pub(crate) struct Taking<'a> {
    pub(crate) broker: &'a async_nats::Client,
    pub(crate) js: &'a Context,
    pub(crate) ledger: &'a Ledger,
    pub(crate) publisher: &'a Publisher,
    pub(crate) key: &'a AuditKey,
    pub(crate) policy: &'a Arc<Policy>,
    pub(crate) replica: &'a str,
    pub(crate) epoch: u64,
}

/// The take-over in its order: fence, marker, consumers, rebuild, replay. Pulling begins with the home.
pub(crate) async fn take_over(t: &Taking<'_>) -> anyhow::Result<Setup> {
    let fences = ownership::fence(t.js, t.publisher, t.epoch).await?;
    let mut heads = Vec::with_capacity(usize::from(SHARDS));
    for shard in 0..SHARDS {
        heads.push(mark(t, shard).await?);
    }
    let agents = t.js.get_key_value(streams::AGENTS_BUCKET).await?;
    let registrations: Vec<_> = service::known_registrations(&agents).await?.into_values().collect();
    broker::delete_former_consumers(t.js, |_| Some(t.epoch)).await?;
    for registration in &registrations {
        let id = AgentId::new(&registration.agent)?;
        broker::ensure_inbox_consumers(t.js, &id).await?;
        broker::ensure_source_consumers(t.js, &id, t.epoch).await?;
    }
    let breakers = known_breakers(t.js).await?;
    let paused = known_pauses(t.js).await?;
    let mut lanes_made = [0; 4];
    for p in Priority::ALL {
        let stream = t.js.get_stream(streams::lanes(*p)).await?;
        lanes_made[usize::from(p.code())] = stream.cached_info().created.unix_timestamp_nanos() as u64;
    }
    let recovery = Recovery {
        js: t.js,
        ledger: t.ledger,
        publisher: t.publisher,
        key: t.key,
        policy: t.policy,
        lanes_made,
        fences: &fences,
    };
    let recovered = recover(&recovery, registrations, breakers, paused).await?;
    Ok(Setup {
        policy: Arc::clone(t.policy),
        key: t.key.clone(),
        epoch: t.epoch,
        replica: t.replica.to_owned(),
        heads: heads.into_iter().zip(fences).collect(),
        recovered,
        lanes_made,
        broker: t.broker.clone(),
        metrics: Arc::new(Metrics::new()),
    })
}

/// Appends the take-over marker: from here on a former home's appends are refused.
async fn mark(t: &Taking<'_>, shard: u8) -> anyhow::Result<Head> {
    loop {
        let expected = t.ledger.head(shard).await?;
        let at = clock::now();
        let body = serde_json::json!({
            "replica": t.replica, "epoch": t.epoch,
            "after": expected.id.to_string(), "hash": protocol::text::hex(&expected.hash),
        });
        let note = Note { kind: "takeover".into(), at, agent: "".into(), body: body.to_string() };
        let block = Block {
            shard,
            epoch: t.epoch,
            sequence: 1,
            at,
            previous: expected.hash,
            policy_version: t.policy.version,
            decisions: Vec::new(),
            completions: Vec::new(),
            notes: vec![note],
        };
        let bytes = block.encode();
        let head = Head { id: EntryId { epoch: t.epoch, sequence: 1 }, hash: audit::hash(&bytes) };
        match t.ledger.append(shard, expected, head, &bytes).await {
            Appended::Durable => return Ok(head),
            Appended::Deposed(now) => {
                let now = Head::parse(&now).map_or(u64::MAX, |h| h.id.epoch);
                // The former home got one more block in; a later epoch means that this replica was too slow.
                anyhow::ensure!(now < t.epoch, "another replica took shard {shard} over at epoch {now}");
            }
        }
    }
}

async fn known_breakers(js: &Context) -> anyhow::Result<Vec<(String, Breaker)>> {
    let store = js.get_key_value(streams::BREAKERS_BUCKET).await?;
    let mut breakers = Vec::new();
    let mut keys = store.keys().await?;
    while let Some(key) = keys.next().await {
        let key = key?;
        if let Some(bytes) = store.get(&key).await? {
            breakers.push((key, serde_json::from_slice(&bytes)?));
        }
    }
    Ok(breakers)
}

async fn known_pauses(js: &Context) -> anyhow::Result<Vec<String>> {
    let store = js.get_key_value(streams::POLICY_BUCKET).await?;
    let keys: Vec<String> = store.keys().await?.try_collect().await?;
    Ok(keys.iter().filter_map(|key| streams::paused_agent(key)).map(str::to_owned).collect())
}
