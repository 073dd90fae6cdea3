//! The bare chains: a publisher, a hop, and a sink, each on a connection of its own as the parts of the mesh are.
//!
//! Owns pace and measurement. The rule it keeps: everything that was sent is waited for, and counted at the end of the
//! chain.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use async_nats::Client;
use futures::{FutureExt as _, StreamExt as _};
use hdrhistogram::Histogram;
use tokio::task::JoinHandle;

use super::stage::{Came, Stage, check_stored};
use super::{Broker, FIRST, FIRST_SUBJECT, SECOND, SECOND_SUBJECT, WARM_UP};
use crate::load::{new_histogram, pace, total};
use crate::payload::Payloads;

/// What is given to the last messages to come through.
const DRAIN: Duration = Duration::from_secs(20);
/// Where the sink of a paced chain answers, on core NATS.
const REPLY_SUBJECT: &str = "bare.reply";

/// The latencies of a paced chain.
pub(crate) struct Paced {
    /// In nanoseconds.
    pub(crate) latency: Histogram<u64>,
    /// Requests that were sent and measured.
    pub(crate) sent: u64,
}

/// A task that ends with this handle.
struct Running(JoinHandle<anyhow::Result<()>>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Running {
    /// Waits for `done` unless the task fails first.
    async fn beside<T>(&mut self, done: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        tokio::select! {
            done = done => done,
            ended = &mut self.0 => {
                ended.context("a stage of the bare chain panicked")??;
                anyhow::bail!("a stage of the bare chain ended early")
            }
        }
    }
}

/// The hop: what it pulls from the first stream it stores in the second.
async fn hop(broker: &Broker) -> anyhow::Result<Running> {
    let mut stage = Stage::start(broker.connect("hop").await?, FIRST).await?;
    Ok(Running(tokio::spawn(async move {
        loop {
            if let Came::Pulled(message) = stage.next().await? {
                stage.republish(SECOND_SUBJECT, message).await?;
            }
        }
    })))
}

/// The sink: counts, answers where asked to, and acknowledges.
async fn sink(broker: &Broker, arrived: Arc<AtomicU64>, answer: bool) -> anyhow::Result<Running> {
    let client = broker.connect("sink").await?;
    let mut stage = Stage::start(client.clone(), SECOND).await?;
    Ok(Running(tokio::spawn(async move {
        loop {
            if let Came::Pulled(message) = stage.next().await? {
                if answer {
                    client.publish(REPLY_SUBJECT, message.payload).await.context("failed to answer")?;
                }
                let ack = message.reply.context("a pulled message without an acknowledgement subject")?;
                stage.acknowledge(ack).await?;
                arrived.fetch_add(1, Ordering::Relaxed);
            }
        }
    })))
}

/// As many messages per second as go through with a window of unconfirmed publishes.
pub(crate) async fn saturate(
    broker: &Broker,
    bytes: usize,
    window: usize,
    duration: Duration,
) -> anyhow::Result<f64> {
    let arrived = Arc::new(AtomicU64::new(0));
    let mut hop = hop(broker).await?;
    let mut sink = sink(broker, Arc::clone(&arrived), false).await?;
    let client = broker.connect("publisher").await?;
    let measured = async {
        let payloads = Payloads::new(bytes);
        let begin = Instant::now();
        let end = begin + WARM_UP + duration;
        let mut measuring = None;
        let sent = publish(&client, &payloads, window, &arrived, || {
            let now = Instant::now();
            if measuring.is_none() && now >= begin + WARM_UP {
                measuring = Some((now, arrived.load(Ordering::Relaxed)));
            }
            now < end
        })
        .await?;
        let (since, before) = measuring.context("the run was too short to measure")?;
        let rate = (arrived.load(Ordering::Relaxed) - before) as f64 / since.elapsed().as_secs_f64();
        wait_for(&arrived, sent).await?;
        Ok(rate)
    };
    hop.beside(sink.beside(measured)).await
}

/// Messages that the publisher may be ahead of the sink, for each of its window: the chain is full, and the publisher
/// does not take the processors from the stages behind it.
const AHEAD: u64 = 4;

/// Publishes to the first stream with a window of unconfirmed publishes as long as `more`; how many were sent.
async fn publish(
    client: &Client,
    payloads: &Payloads,
    window: usize,
    arrived: &AtomicU64,
    mut more: impl FnMut() -> bool,
) -> anyhow::Result<u64> {
    let inbox = client.new_inbox();
    let mut acks = client.subscribe(inbox.clone()).await.context("failed to subscribe")?;
    let (mut sent, mut confirmed) = (0_u64, 0_u64);
    while more() {
        let room = AHEAD * window as u64 - (sent - arrived.load(Ordering::Relaxed));
        for _ in 0..(window as u64 - (sent - confirmed)).min(room) {
            client
                .publish_with_reply(FIRST_SUBJECT, inbox.clone(), payloads.next())
                .await
                .context("failed to publish")?;
            sent += 1;
        }
        if sent == confirmed {
            // Nothing will wake us but the sink's progress.
            tokio::time::sleep(Duration::from_micros(500)).await;
            continue;
        }
        let mut ack = acks.next().await;
        // All that are there at once: the clock is read once for many.
        while let Some(message) = ack {
            check_stored(&message)?;
            confirmed += 1;
            ack = acks.next().now_or_never().flatten();
        }
    }
    while confirmed < sent {
        check_stored(&acks.next().await.context("the subscription ended")?)?;
        confirmed += 1;
    }
    Ok(sent)
}

async fn wait_for(arrived: &AtomicU64, sent: u64) -> anyhow::Result<()> {
    let until = Instant::now() + DRAIN;
    while arrived.load(Ordering::Relaxed) < sent {
        let have = arrived.load(Ordering::Relaxed);
        ensure!(Instant::now() < until, "of {sent} messages of the bare chain {have} arrived");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Requests at a rate, each answered by the sink. A request carries when it was meant to be sent.
pub(crate) async fn paced(
    broker: &Broker,
    rate: u32,
    bytes: usize,
    duration: Duration,
) -> anyhow::Result<Paced> {
    let mut hop = hop(broker).await?;
    let mut sink = sink(broker, Arc::default(), true).await?;
    let client = broker.connect("caller").await?;
    let mut replies = client.subscribe(REPLY_SUBJECT).await.context("failed to subscribe")?;
    let epoch = Instant::now();
    let collector = async move {
        let mut latency = new_histogram();
        let mut replied = 0_u64;
        let mut expected = u64::MAX;
        while replied < expected {
            let message = match tokio::time::timeout(DRAIN, replies.next()).await {
                Ok(message) => message.context("the subscription ended")?,
                Err(_) => break,
            };
            let head: [u8; 16] =
                message.payload.get(..16).and_then(|b| b.try_into().ok()).context("a short reply")?;
            let (intended, number) = (u64_of(&head[..8]), u64_of(&head[8..]));
            if number & LAST != 0 {
                expected = number & !LAST;
            }
            if intended >= WARM_UP.as_nanos() as u64 {
                latency.saturating_record(epoch.elapsed().as_nanos() as u64 - intended);
            }
            replied += 1;
        }
        Ok::<_, anyhow::Error>(latency)
    };
    let collector = tokio::spawn(collector);
    let measured = async {
        let sent = send_paced(&client, epoch, rate, bytes, duration).await?;
        let latency = collector.await.context("the collector panicked")??;
        Ok(Paced { latency, sent })
    };
    hop.beside(sink.beside(measured)).await
}

/// What a closed loop measured.
pub(crate) struct Closed {
    /// In nanoseconds.
    pub(crate) latency: Histogram<u64>,
    /// Replies per second after the warm-up.
    pub(crate) per_s: f64,
}

/// A caller with a fixed number of requests outstanding; each reply, which carries when its request was sent, is
/// followed by the next request.
pub(crate) async fn closed(
    broker: &Broker,
    outstanding: u32,
    bytes: usize,
    duration: Duration,
) -> anyhow::Result<Closed> {
    let mut hop = hop(broker).await?;
    let mut sink = sink(broker, Arc::default(), true).await?;
    let client = broker.connect("caller").await?;
    let mut replies = client.subscribe(REPLY_SUBJECT).await.context("failed to subscribe")?;
    let inbox = client.new_inbox();
    let mut acks = client.subscribe(inbox.clone()).await.context("failed to subscribe")?;
    let measured = async {
        let epoch = Instant::now();
        let ask = async || {
            let mut payload = vec![b'x'; bytes.max(16)];
            payload[..8].copy_from_slice(&(epoch.elapsed().as_nanos() as u64).to_le_bytes());
            let asked = client.publish_with_reply(FIRST_SUBJECT, inbox.clone(), payload.into());
            asked.await.context("failed to publish")
        };
        for _ in 0..outstanding {
            ask().await?;
        }
        let (mut latency, mut waiting) = (new_histogram(), outstanding);
        while waiting > 0 {
            let reply = tokio::time::timeout(DRAIN, replies.next()).await.context("a reply did not come")?;
            let reply = reply.context("the subscription ended")?.payload;
            ensure!(reply.len() == bytes.max(16), "a reply is not what was sent");
            let (sent, now) = (u64_of(&reply[..8]), epoch.elapsed());
            while let Some(Some(ack)) = acks.next().now_or_never() {
                check_stored(&ack)?;
            }
            if now < WARM_UP + duration {
                if now >= WARM_UP {
                    latency.saturating_record(now.as_nanos() as u64 - sent);
                }
                ask().await?;
            } else {
                waiting -= 1;
            }
        }
        let per_s = latency.len() as f64 / duration.as_secs_f64();
        Ok(Closed { latency, per_s })
    };
    hop.beside(sink.beside(measured)).await
}

/// Marks the number of the last request, so that the collector knows how many there are.
const LAST: u64 = 1 << 63;

fn u64_of(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

/// Sends by the clock, whatever comes back; how many after the warm-up.
async fn send_paced(
    client: &Client,
    epoch: Instant,
    rate: u32,
    bytes: usize,
    duration: Duration,
) -> anyhow::Result<u64> {
    let inbox = client.new_inbox();
    let mut acks = client.subscribe(inbox.clone()).await.context("failed to subscribe")?;
    let total = total(rate, WARM_UP + duration);
    let mut times = pace(epoch, rate, WARM_UP + duration)?;
    let (mut number, mut measured) = (0, 0);
    while let Some(intended) = times.recv().await {
        number += 1;
        let mut payload = vec![b'x'; bytes.max(16)];
        payload[..8].copy_from_slice(&(intended.as_nanos() as u64).to_le_bytes());
        let tagged = if number == total { number | LAST } else { number };
        payload[8..16].copy_from_slice(&tagged.to_le_bytes());
        measured += u64::from(intended >= WARM_UP);
        client
            .publish_with_reply(FIRST_SUBJECT, inbox.clone(), payload.into())
            .await
            .context("failed to publish")?;
        while let Some(Some(ack)) = acks.next().now_or_never() {
            check_stored(&ack)?;
        }
    }
    Ok(measured)
}
