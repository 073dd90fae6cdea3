//! The agents that carry the load: pairs of a source and a target, with what each handler did by dispatch.
//!
//! Owns what handlers count, independently of senders and archive. The rule it keeps: an effect is noted before it is
//! answered, so that an answer without an effect cannot happen.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use governance::{DispatchId, InstanceId};
use worker_sdk::{Agent, AgentBuilder, Answers, Batch, Mesh, Response};

/// What every target offers.
pub(crate) const CAPABILITY: &str = "work";
/// The content type of what is sent: bytes that nobody reads.
pub(crate) const OCTETS: &str = "application/octet-stream";

/// Pairs that register at the same time.
const REGISTERED_AT_ONCE: usize = 16;

/// What the handlers of one target did.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    done: AtomicU64,
    duplicates: AtomicU64,
    seen: Mutex<HashMap<InstanceId, Vec<Slots>>>,
}

/// The slots of one envelope that were run, as bits.
#[derive(Debug, Default, Clone)]
struct Slots(Vec<u64>);

impl Slots {
    /// Inserts consecutive slots; how many of them were not there.
    fn insert(&mut self, first: u16, count: u16) -> u64 {
        let (mut at, end) = (usize::from(first), usize::from(first) + usize::from(count));
        let words = end.div_ceil(64);
        if self.0.len() < words {
            self.0.resize(words, 0);
        }
        let mut fresh = 0;
        while at < end {
            let (word, from) = (at / 64, at % 64);
            let bits = (end - at).min(64 - from);
            let mask = (u64::MAX >> (64 - bits)) << from;
            fresh += u64::from((mask & !self.0[word]).count_ones());
            self.0[word] |= mask;
            at += bits;
        }
        fresh
    }
}

impl Effects {
    /// Notes that a handler runs consecutive dispatches.
    fn note(&self, first: DispatchId, count: u16) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let envelopes = seen.entry(first.instance).or_default();
        let at = first.sequence as usize;
        if envelopes.len() <= at {
            envelopes.resize(at + 1, Slots::default());
        }
        let fresh = envelopes[at].insert(first.slot, count);
        drop(seen);
        self.done.fetch_add(fresh, Ordering::Relaxed);
        self.duplicates.fetch_add(u64::from(count) - fresh, Ordering::Relaxed);
    }

    /// Notes a run whose handler knows by itself whether it is the first of its dispatch.
    pub(crate) fn tally(&self, first: bool) {
        let of = if first { &self.done } else { &self.duplicates };
        of.fetch_add(1, Ordering::Relaxed);
    }

    /// Dispatches that were run at least once.
    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Runs beyond the first.
    pub(crate) fn duplicates(&self) -> u64 {
        self.duplicates.load(Ordering::Relaxed)
    }
}

/// A source, its target, and what the target did.
pub(crate) struct Pair {
    pub(crate) source: Agent,
    pub(crate) target: Agent,
    pub(crate) effects: Arc<Effects>,
    /// What an unpaced source has handed over, counted on from what its target ran.
    pub(crate) sent: Arc<AtomicU64>,
}

/// Registers pairs named `<prefix>-src-<i>` and `<prefix>-dst-<i>` whose targets answer at once with what they got.
pub(crate) async fn pairs(url: &str, prefix: &str, count: u32, concurrent: u32) -> anyhow::Result<Vec<Pair>> {
    // A request is answered with what it brought; nobody reads the response of an event.
    pairs_with(url, prefix, count, concurrent, std::future::ready).await
}

/// The same with targets that take events in batches.
pub(crate) async fn pairs_of_batches(
    url: &str,
    prefix: &str,
    count: u32,
    concurrent: u32,
) -> anyhow::Result<Vec<Pair>> {
    let offer = |target: AgentBuilder, noted: Arc<Effects>| {
        target.capability_batch(CAPABILITY, move |batch: Batch| {
            for (first, count) in batch.runs() {
                noted.note(first, count);
            }
            std::future::ready(Ok(Answers::empty()))
        })
    };
    register(url, prefix, count, concurrent, offer).await
}

/// Registers pairs named `<prefix>-src-<i>` and `<prefix>-dst-<i>`, sources and targets on a connection each. What `work`
/// makes of a payload is the reply.
pub(crate) async fn pairs_with<F>(
    url: &str,
    prefix: &str,
    count: u32,
    concurrent: u32,
    work: impl Fn(Bytes) -> F + Clone + Send + Sync + 'static,
) -> anyhow::Result<Vec<Pair>>
where
    F: Future<Output = Bytes> + Send + 'static,
{
    let offer = |target: AgentBuilder, noted: Arc<Effects>| {
        let work = work.clone();
        target.capability_raw(CAPABILITY, move |context| {
            noted.note(context.id(), 1);
            let reply = work(context.payload().clone());
            async move { Ok(Response::bytes(reply.await, OCTETS)) }
        })
    };
    register(url, prefix, count, concurrent, offer).await
}

/// Registers pairs whose targets offer `work` in one way or another.
async fn register(
    url: &str,
    prefix: &str,
    count: u32,
    concurrent: u32,
    offer: impl Fn(AgentBuilder, Arc<Effects>) -> AgentBuilder,
) -> anyhow::Result<Vec<Pair>> {
    let sources = Mesh::connect(url).await.context("failed to connect the sources")?;
    let targets = Mesh::connect(url).await.context("failed to connect the targets")?;
    // Many at a time, since each waits until all coordinators know it; few enough that none of them is kept waiting.
    let pairs = futures::stream::iter(0..count).map(|i| {
        let (source, target) = (format!("{prefix}-src-{i}"), format!("{prefix}-dst-{i}"));
        let effects = Arc::new(Effects::default());
        let target = offer(targets.agent(&target), Arc::clone(&effects)).max_concurrent(concurrent);
        let sources = &sources;
        async move {
            let target =
                target.register().await.with_context(|| format!("failed to register {prefix}-dst-{i}"))?;
            let source = sources
                .agent(&source)
                .depends_on(target.name())
                .register()
                .await
                .with_context(|| format!("failed to register {source}"))?;
            Ok(Pair { source, target, effects, sent: Arc::default() })
        }
    });
    pairs.buffered(REGISTERED_AT_ONCE).try_collect().await
}

/// Stops all agents in order.
pub(crate) async fn stop(pairs: &[Pair]) -> anyhow::Result<()> {
    let stops = pairs.iter().map(|pair| async move {
        pair.source.stop().await.with_context(|| format!("failed to stop {}", pair.source.name()))?;
        pair.target.stop().await.with_context(|| format!("failed to stop {}", pair.target.name()))
    });
    futures::stream::iter(stops).buffer_unordered(REGISTERED_AT_ONCE).try_collect().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_of_slots_are_counted_once_each() {
        let mut slots = Slots::default();
        assert_eq!(slots.insert(60, 10), 10);
        assert_eq!(slots.insert(0, 64), 60);
        assert_eq!(slots.insert(64, 200), 194);
        assert_eq!(slots.insert(0, 264), 0);
        assert_eq!(slots.insert(u16::MAX, 1), 1);
    }
}
