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
mod takeover;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use async_nats::Client;
use async_nats::jetstream::{self, Context};
use broker::Publisher;
use clap::Parser;
use governance::Policy;
use protocol::{AuditKey, streams};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use config::Config;
use home::{Home, INPUT_CAPACITY, Input, Outputs, Setup};
use http::Health;
use io::ledger::Ledger;
use io::side::SideDoor;
use metrics::Metrics;
use ownership::Membership;
use service::Service;
use supervise::Supervisor;
use takeover::Taking;

/// The exit code for a configuration that cannot be used, as in `sysexits.h`.
const EX_USAGE: u8 = 64;
/// How long a stopping home may take to settle what it decided.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// After so long without a claim a replica counts as standing by.
const STAND_BY_AFTER: Duration = Duration::from_secs(1);

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
    let membership =
        Membership::open(bulk.clone(), &js, replica.clone(), format!("http://{address}")).await?;

    let mut tasks = Supervisor::new();
    let health = Health {
        metrics: Arc::clone(&metrics),
        ready: Arc::clone(&ready),
        broker: bulk.clone(),
        ledger: ledger.clone(),
    };
    tasks.start("http", http::serve(listener, health));
    tasks.start("announce", membership.clone().renew(tasks.stop.clone()));
    let epoch = tokio::select! {
        epoch = claim(&membership, &ledger, &metrics, &ready) => epoch,
        () = stop.cancelled() => {
            tasks.stop.cancel();
            return tasks.run().await;
        }
    };
    Box::pin(lead(
        Leading { config, policy, key, replica, bulk, urgent, ledger, js, metrics, membership, epoch },
        tasks,
        stop,
        &ready,
    ))
    .await
}

/// Claims the shards. Standing by for another home counts as ready: this replica does all that is asked of it.
async fn claim(membership: &Membership, ledger: &Ledger, metrics: &Metrics, ready: &AtomicBool) -> u64 {
    let standing_by = async {
        loop {
            tokio::time::sleep(STAND_BY_AFTER).await;
            // There is no home yet whose silence would mean something.
            metrics.beat();
            ready.store(true, Ordering::Relaxed);
        }
    };
    tokio::select! {
        epoch = membership.claim(ledger) => epoch,
        epoch = standing_by => epoch,
    }
}

/// What a replica has gathered when it becomes home.
struct Leading {
    config: Config,
    policy: Arc<Policy>,
    key: AuditKey,
    replica: String,
    bulk: Client,
    urgent: Client,
    ledger: Ledger,
    js: Context,
    metrics: Arc<Metrics>,
    membership: Membership,
    epoch: u64,
}

/// Takes over, hosts the rules until told to stop, and gives the shards back.
async fn lead(
    l: Leading,
    mut tasks: Supervisor,
    stop: CancellationToken,
    ready: &AtomicBool,
) -> anyhow::Result<()> {
    let Leading { config, policy, key, replica, bulk, urgent, ledger, js, metrics, membership, epoch } = l;
    ready.store(false, Ordering::Relaxed);

    let publisher = Publisher::start(bulk.clone()).await?;
    let taken = takeover::take_over(&Taking {
        broker: &bulk,
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
    let orders = links.js.get_key_value(streams::POLICY_BUCKET).await?;
    let door = SideDoor {
        client: links.bulk.clone(),
        js: links.js,
        publisher: links.publisher.clone(),
        breakers,
        orders,
    };
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
