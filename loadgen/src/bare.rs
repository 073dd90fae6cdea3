//! The bare baseline: the same two durable hops through the same broker, with no mesh. Owns its streams, which it deletes.
//!
//! The rule it keeps: it is written to be fast. Publish, pull, republish, pull, with every acknowledgement that the mesh
//! waits for and nothing else, so that whatever the mesh costs shows in the ratio.

mod chain;
mod stage;

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::{self, consumer, stream};

use crate::args::{Args, Bare};
use crate::output;
use crate::report::{Common, Percentiles};

pub(crate) use chain::{Closed, Paced};

/// The bytes of an envelope, as large as the worker SDK packs them.
pub(crate) const ENVELOPE_BYTES: usize = 64 * 1024;
/// Publishes in flight of single messages; beyond it the broker's queue grows and nothing gets faster.
const SINGLE_WINDOW: usize = 4_096;
/// Publishes in flight of envelopes: a few megabytes.
const ENVELOPE_WINDOW: usize = 64;
/// What is sent before measuring, so that connections, files and caches are warm.
const WARM_UP: Duration = Duration::from_millis(500);

/// The stream of the first hop and its consumer.
const FIRST: &str = "BARE_FIRST";
/// The stream of the second hop and its consumer.
const SECOND: &str = "BARE_SECOND";
const FIRST_SUBJECT: &str = "bare.first";
const SECOND_SUBJECT: &str = "bare.second";

/// The broker as the bare runs find it.
#[derive(Debug, Clone)]
pub(crate) struct Broker {
    url: String,
    storage: stream::StorageType,
    replicas: usize,
}

impl Broker {
    pub(crate) fn of(args: &Args) -> Self {
        let storage = match args.storage.as_str() {
            "memory" => stream::StorageType::Memory,
            _ => stream::StorageType::File,
        };
        Self { url: args.nats_url.clone(), storage, replicas: args.stream_replicas }
    }

    async fn connect(&self, name: &str) -> anyhow::Result<async_nats::Client> {
        Ok(broker::connect(&self.url, &format!("loadgen bare {name}")).await?)
    }

    /// Both streams, empty, each with its one consumer.
    async fn prepare(&self) -> anyhow::Result<jetstream::Context> {
        let js = jetstream::new(self.connect("setup").await?);
        self.forget(&js).await;
        for (name, subject) in [(FIRST, FIRST_SUBJECT), (SECOND, SECOND_SUBJECT)] {
            let stream = js
                .create_stream(stream::Config {
                    name: name.into(),
                    subjects: vec![subject.into()],
                    retention: stream::RetentionPolicy::WorkQueue,
                    storage: self.storage,
                    num_replicas: self.replicas,
                    ..Default::default()
                })
                .await
                .with_context(|| format!("failed to create the stream {name}"))?;
            stream
                .create_consumer(consumer::pull::Config {
                    durable_name: Some(name.into()),
                    ack_policy: consumer::AckPolicy::Explicit,
                    max_ack_pending: 100_000,
                    ack_wait: Duration::from_secs(60),
                    ..Default::default()
                })
                .await
                .with_context(|| format!("failed to create the consumer of {name}"))?;
        }
        Ok(js)
    }

    async fn forget(&self, js: &jetstream::Context) {
        for name in [FIRST, SECOND] {
            // There is nothing to delete as a rule, and what is left over harms nobody.
            drop(js.delete_stream(name).await);
        }
    }

    /// Messages of `bytes` bytes per second through both hops, as fast as they go.
    pub(crate) async fn saturate(&self, bytes: usize, duration: Duration) -> anyhow::Result<f64> {
        let window = if bytes >= ENVELOPE_BYTES / 4 { ENVELOPE_WINDOW } else { SINGLE_WINDOW };
        let js = self.prepare().await?;
        let measured = chain::saturate(self, bytes, window, duration).await;
        self.forget(&js).await;
        measured
    }

    /// Latencies of a chain request, hop, reply, at a rate, from the intended send time.
    pub(crate) async fn paced(&self, rate: u32, bytes: usize, duration: Duration) -> anyhow::Result<Paced> {
        let js = self.prepare().await?;
        let measured = chain::paced(self, rate, bytes, duration).await;
        self.forget(&js).await;
        measured
    }

    /// Latencies of the same chain in a closed loop.
    pub(crate) async fn closed(
        &self,
        outstanding: u32,
        bytes: usize,
        duration: Duration,
    ) -> anyhow::Result<Closed> {
        let js = self.prepare().await?;
        let measured = chain::closed(self, outstanding, bytes, duration).await;
        self.forget(&js).await;
        measured
    }
}

/// The two baselines of a throughput.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Baselines {
    /// Single messages per second.
    pub(crate) single_per_s: f64,
    /// Megabytes of envelopes per second.
    pub(crate) envelope_mb_per_s: f64,
}

impl Baselines {
    pub(crate) async fn measure(broker: &Broker, payload: usize, duration: Duration) -> anyhow::Result<Self> {
        let bar = output::spinner("bare: single messages through two durable hops");
        let single_per_s = broker.saturate(payload, duration).await?;
        bar.set_message("bare: 64 KiB envelopes through two durable hops");
        let per_s = broker.saturate(ENVELOPE_BYTES, duration).await?;
        bar.finish_and_clear();
        Ok(Self { single_per_s, envelope_mb_per_s: per_s * ENVELOPE_BYTES as f64 / 1e6 })
    }
}

/// Runs the baselines alone.
pub(crate) async fn run(scenario: &Bare, args: &Args) -> anyhow::Result<bool> {
    let broker = Broker::of(args);
    let duration = Duration::from_secs(scenario.seconds);
    let payload = scenario.payload as usize;
    let baselines = Baselines::measure(&broker, payload, duration).await?;
    let bar = output::spinner("bare: request, hop and reply at a fixed rate");
    let paced = broker.paced(scenario.rate, payload, duration).await?;
    bar.finish_and_clear();
    let report = serde_json::json!({
        "payload_bytes": payload,
        "bare_single_per_s": baselines.single_per_s.round(),
        "bare_envelope_mb_per_s": (baselines.envelope_mb_per_s * 10.0).round() / 10.0,
        "rate": scenario.rate,
        "bare": Percentiles::of(&paced.latency),
        "sent": paced.sent,
        "replied": paced.latency.len(),
    });
    output::finish(args, &Common::gather("bare", args), report)?;
    Ok(paced.sent == paced.latency.len())
}
