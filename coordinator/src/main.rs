//! The coordinator: hosts the rules of the mesh between broker and audit.
//!
//! This file wires: configuration, connections, ownership, the home, the tasks around it, and the end of them all.

mod clock;
mod config;
mod explain;
mod home;
mod http;
mod io;
mod metrics;
mod ownership;
mod service;
mod supervise;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use async_nats::Client;
use async_nats::jetstream::{self, Context};
use broker::Publisher;
use clap::Parser;
use futures::StreamExt;
use governance::{AgentId, Policy, Priority, SHARDS, Timestamp};
use protocol::audit::{self, Block, Note};
use protocol::control::Breaker;
use protocol::redis::{EntryId, Head};
use protocol::{AuditKey, streams};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use config::Config;
use home::{Home, INPUT_CAPACITY, Input, Outputs, Recovery, Setup, recover};
use http::Health;
use io::ledger::{Appended, Ledger};
use io::side::SideDoor;
use metrics::Metrics;
use ownership::Membership;
use service::Service;
use supervise::Supervisor;

/// The exit code for a configuration that cannot be used, as in `sysexits.h`.
const EX_USAGE: u8 = 64;
/// How long a stopping home may take to settle what it decided.
const DRAIN_MAX: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let config = Config::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "info,async_nats=warn".into()),
        )
        .init();
    let (policy, key) = match read_rules(&config) {
        Ok(rules) => rules,
        Err(e) => {
            tracing::error!("{e:#}");
            return ExitCode::from(EX_USAGE);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            tracing::error!(error = %e, "failed to start the runtime");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(config, policy, key)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

fn read_rules(config: &Config) -> anyhow::Result<(Arc<Policy>, AuditKey)> {
    let file = &config.audit_key_file;
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("failed to read the audit key {}", file.display()))?;
    let key = AuditKey::parse(&text).with_context(|| format!("{} holds no audit key", file.display()))?;
    let Some(file) = &config.policy else { return Ok((Arc::default(), key)) };
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("failed to read the policy {}", file.display()))?;
    let policy = Policy::parse(&text).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(|p| format!("  {p}")).collect();
        anyhow::anyhow!("the policy {} has {} problems:\n{}", file.display(), lines.len(), lines.join("\n"))
    })?;
    Ok((Arc::new(policy), key))
}

async fn run(config: Config, policy: Arc<Policy>, key: AuditKey) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    tokio::spawn(watch_signals(stop.clone()));
    let replica = config.replica_name();
    let bulk = broker::connect(&config.nats_url, &format!("coordinator {replica}")).await?;
    let urgent = broker::connect(&config.nats_url, &format!("coordinator {replica} P0")).await?;
    let ledger = Ledger::connect(&config.redis_url).await.context("failed to connect to the audit ledger")?;
    let js = jetstream::new(bulk.clone());
    broker::ensure(&js, config.storage.into(), config.stream_replicas).await?;
    let (listener, address) = http::bind(&config).await?;
    let metrics = Arc::new(Metrics::new());
    let ready = Arc::new(AtomicBool::new(false));
    let membership = Membership::open(&js, replica.clone(), format!("http://{address}")).await?;

    let mut tasks = Supervisor::new();
    let health = Health { metrics: Arc::clone(&metrics), ready: Arc::clone(&ready), broker: bulk.clone() };
    tasks.start("http", http::serve(listener, health));
    tasks.start("announce", membership.clone().renew(tasks.stop.clone()));
    let epoch = tokio::select! {
        epoch = membership.claim(&ledger) => epoch?,
        () = stop.cancelled() => return Ok(()),
    };

    let publisher = Publisher::start(bulk.clone()).await?;
    let taken = take_over(&Taking {
        js: &js,
        ledger: &ledger,
        publisher: &publisher,
        key: &key,
        policy: &policy,
        replica: &replica,
        epoch,
    })
    .await
    .context("failed to take over the shards")?;
    let setup = Setup { policy: Arc::clone(&policy), key, epoch, replica: replica.clone(), metrics, ..taken };
    let (home, outputs) = Home::new(setup);
    let (to_home, inputs) = mpsc::channel(INPUT_CAPACITY);
    let urgent_publisher = Publisher::start(urgent.clone()).await?;
    let links = Links { bulk: bulk.clone(), urgent, js: js.clone(), publisher, urgent_publisher, ledger };
    start_io(&mut tasks, outputs, links, to_home.clone(), config.webhook_url.clone()).await?;
    let agents = js.get_key_value(streams::AGENTS_BUCKET).await?;
    let service = Service {
        client: bulk,
        js,
        agents,
        policy,
        home: to_home,
        membership: membership.clone(),
        replica,
        epoch,
    };
    tasks.start("registrar", service.clone().run_registrar());
    tasks.start("beats", service.clone().run_beats());
    tasks.start("requests", service.clone().run_requests());
    tasks.start("operators", service.run_operators());
    ready.store(true, Ordering::Relaxed);

    let all_stop = tasks.stop.clone();
    let draining = stop.clone();
    tasks.start("home", async move {
        let result = home.run(inputs, draining).await;
        all_stop.cancel();
        result
    });
    let deadline = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN_MAX).await;
    };
    let result = tokio::select! {
        result = tasks.run() => result,
        () = deadline => Err(anyhow::anyhow!("what was decided did not settle in time; the next home replays it")),
    };
    membership.release(epoch).await;
    result
}

async fn watch_signals(stop: CancellationToken) {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("stopping: nothing new is decided, what was decided is finished");
    stop.cancel();
}

struct Taking<'a> {
    js: &'a Context,
    ledger: &'a Ledger,
    publisher: &'a Publisher,
    key: &'a AuditKey,
    policy: &'a Arc<Policy>,
    replica: &'a str,
    epoch: u64,
}

/// The take-over in its order: fence, marker, consumers, rebuild, replay. Pulling begins with the home.
async fn take_over(t: &Taking<'_>) -> anyhow::Result<Setup> {
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
    let recovered = recover(&recovery, registrations, breakers).await?;
    Ok(Setup {
        policy: Arc::clone(t.policy),
        key: t.key.clone(),
        epoch: t.epoch,
        replica: t.replica.to_owned(),
        heads: heads.into_iter().zip(fences).collect(),
        recovered,
        lanes_made,
        metrics: Arc::new(Metrics::new()),
    })
}

/// Appends the take-over marker: from here on a former home's appends are refused.
async fn mark(t: &Taking<'_>, shard: u8) -> anyhow::Result<Head> {
    loop {
        let expected = t.ledger.head(shard).await?;
        let at: Timestamp = clock::now();
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

/// The connections of the tasks around the home.
struct Links {
    bulk: Client,
    urgent: Client,
    js: Context,
    publisher: Publisher,
    urgent_publisher: Publisher,
    ledger: Ledger,
}

async fn start_io(
    tasks: &mut Supervisor,
    outputs: Outputs,
    links: Links,
    home: mpsc::Sender<Input>,
    webhook: Option<String>,
) -> anyhow::Result<()> {
    let breakers = links.js.get_key_value(streams::BREAKERS_BUCKET).await?;
    let door =
        SideDoor { client: links.bulk.clone(), js: links.js, publisher: links.publisher.clone(), breakers };
    tasks.start("P0 pulls", io::pulls::run(links.urgent.clone(), outputs.p0_pulls, home.clone()));
    tasks.start("pulls", io::pulls::run(links.bulk.clone(), outputs.bulk_pulls, home.clone()));
    tasks.start("ledger", io::ledger::run(links.ledger, outputs.ledger, home.clone()));
    tasks.start("P0 outbox", io::outbox::run(links.urgent_publisher, outputs.p0_outbox, home.clone()));
    tasks.start("outbox", io::outbox::run(links.publisher, outputs.bulk_outbox, home.clone()));
    tasks.start("replies", io::replies::run(links.urgent, outputs.replies, home.clone()));
    tasks.start("alerts", io::alerts::run(links.bulk, webhook, outputs.alerts));
    tasks.start("side", io::side::run(door, outputs.side, home));
    Ok(())
}
