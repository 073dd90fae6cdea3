//! A flood of P3: events at a rate of their own, or as many as senders get accepted.
//!
//! The rule it keeps: a flood never waits for the requests beside it. One at the maximum stays a bounded number of dispatches
//! ahead of its targets, so that it fills no queue to the brim and ends soon after it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use governance::Priority;
use tokio::task::JoinSet;

use crate::args::Flood;
use crate::books::Accepted;
use crate::mesh::{CAPABILITY, OCTETS, Pair};
use crate::payload::Payloads;

/// Events at a rate go out this often, all that are due at once.
const STEP: Duration = Duration::from_millis(10);
/// Events that a sender at the maximum hands over at once.
const BATCH: u64 = 256;
/// Senders of one source at the maximum.
const SENDERS: u32 = 4;
/// Events that a source at the maximum may be ahead of its target.
const AHEAD: u64 = 8_192;
/// How often a sender that is far ahead looks again.
const LOOK: Duration = Duration::from_millis(2);

/// What floods.
pub(crate) struct Source<'p> {
    pub(crate) flood: Flood,
    pub(crate) pairs: &'p [Pair],
    pub(crate) payload: usize,
}

impl Source<'_> {
    /// Floods until `end`; what was accepted.
    pub(crate) async fn until(&self, end: Instant) -> anyhow::Result<Accepted> {
        let mut senders = JoinSet::new();
        for pair in self.pairs {
            let payloads = Arc::new(Payloads::new(self.payload));
            match self.flood {
                Flood::None => {}
                Flood::Rate(rate) => {
                    let share = f64::from(rate) / self.pairs.len() as f64;
                    senders.spawn(paced(Sender::of(pair, payloads), share, end));
                }
                Flood::Max => {
                    // Counted on from what the target ran before.
                    let sent = Arc::new(AtomicU64::new(pair.effects.done()));
                    for _ in 0..SENDERS {
                        let sender = Sender::of(pair, Arc::clone(&payloads));
                        senders.spawn(unpaced(sender, Arc::clone(&sent), end));
                    }
                }
            }
        }
        let mut all = Accepted::default();
        while let Some(accepted) = senders.join_next().await {
            all.merge(accepted.context("a sender of the flood panicked")??);
        }
        Ok(all)
    }
}

struct Sender {
    source: worker_sdk::Agent,
    target: String,
    effects: Arc<crate::mesh::Effects>,
    payloads: Arc<Payloads>,
}

impl Sender {
    fn of(pair: &Pair, payloads: Arc<Payloads>) -> Self {
        Self {
            source: pair.source.clone(),
            target: pair.target.name().to_owned(),
            effects: Arc::clone(&pair.effects),
            payloads,
        }
    }

    async fn send(&self, count: u64, accepted: &mut Accepted) -> anyhow::Result<()> {
        let event = self.source.publish_event(&self.target, CAPABILITY);
        let event = event.priority(Priority::P3).bytes(Bytes::new(), OCTETS);
        let many = event.send_many((0..count).map(|_| self.payloads.next())).await;
        for (first, count) in many.context("failed to send the flood")?.runs() {
            accepted.add(*first, (*count).into());
        }
        Ok(())
    }
}

async fn paced(sender: Sender, per_s: f64, end: Instant) -> anyhow::Result<Accepted> {
    let (mut accepted, begin, mut sent) = (Accepted::default(), Instant::now(), 0_u64);
    let mut step = tokio::time::interval(STEP);
    while Instant::now() < end {
        step.tick().await;
        let due = (begin.elapsed().as_secs_f64() * per_s) as u64 - sent;
        sent += due;
        sender.send(due, &mut accepted).await?;
    }
    Ok(accepted)
}

async fn unpaced(sender: Sender, sent: Arc<AtomicU64>, end: Instant) -> anyhow::Result<Accepted> {
    let mut accepted = Accepted::default();
    while Instant::now() < end {
        if sent.load(Ordering::Relaxed).saturating_sub(sender.effects.done()) >= AHEAD {
            tokio::time::sleep(LOOK).await;
            continue;
        }
        sent.fetch_add(BATCH, Ordering::Relaxed);
        sender.send(BATCH, &mut accepted).await?;
    }
    Ok(accepted)
}
