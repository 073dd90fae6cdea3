//! The coordinator: hosts the rules of the mesh between broker and audit.
//!
//! This file wires: configuration, connections, ownership, the homes, the tasks around them, and the end of them all.

mod clock;
mod config;
mod homes;
mod host;
mod http;
mod io;
mod known;
mod metrics;
mod outages;
mod ownership;
mod questions;
mod room;
mod service;
mod supervise;
mod world;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream;
use broker::Publisher;
use clap::Parser;
use governance::Policy;
use protocol::control::Alert;
use protocol::{AuditKey, streams};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use config::{AuditArg, Config};
use homes::Homes;
use host::Host;
use http::Health;
use io::ledger::Ledger;
use known::{Buckets, Known};
use metrics::Metrics;
use outages::Look;
use ownership::{Membership, Owning, Standing};
use questions::Questions;
use service::Service;
use supervise::Supervisor;
use world::Servers;

/// The exit code for a configuration that cannot be used, as in `sysexits.h`.
const EX_USAGE: u8 = 64;
/// Alerts that may wait for a slow webhook; what more there is waits in the homes.
const ALERTS_MAX: usize = 1_024;
/// How long the homes may take to drain and be given back: their own bound, and some for what comes after.
const STOP_MAX: Duration = Duration::from_secs(30);

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
    let key = match config.audit {
        AuditArg::On => key,
        AuditArg::OffForMeasuring => {
            tracing::warn!(
                "NO AUDIT IS KEPT: nothing is recorded, and a crash loses what was accepted. For measuring only"
            );
            key.without_audit()
        }
    };
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
    let membership =
        Membership::open(bulk.clone(), &js, replica.clone(), format!("http://{address}")).await?;
    membership.check_versions().await?;

    let metrics = Arc::new(Metrics::new());
    let (homes, known, standing) = (Homes::new(), Known::new(), Arc::new(Standing::default()));
    let buckets = Buckets::open(&js).await?;
    let publisher = Publisher::start(bulk.clone()).await?;
    let servers = Servers::new(js.clone(), ledger.clone(), publisher, Arc::clone(&known));
    let (alerts, alerts_out) = mpsc::channel(ALERTS_MAX);
    let mut tasks = Supervisor::new();
    let health = Health {
        metrics: Arc::clone(&metrics),
        standing: Arc::clone(&standing),
        look: Look { broker: bulk.clone(), ledger, stored: membership.stored() },
        records: key.records(),
    };
    start_looking(&mut tasks, listener, health, homes.clone(), &alerts);
    tasks.start("known", known::follow(Arc::clone(&known), js.clone(), buckets.clone(), homes.clone()));
    tasks.start("alerts", io::alerts::run(bulk.clone(), config.webhook_url.clone(), alerts_out));
    tasks.start("announce", membership.clone().renew(stop.clone()));
    let answering =
        Questions { client: bulk.clone(), js: js.clone(), homes: homes.clone(), servers: servers.clone() };
    let questions = start_questions(&mut tasks, answering);
    start_service(
        &mut tasks,
        &Service {
            client: bulk.clone(),
            js: js.clone(),
            agents: buckets.agents.clone(),
            policy: Arc::clone(&policy),
            homes: homes.clone(),
            known,
            standing: Arc::clone(&standing),
            replica: replica.clone(),
            questions,
        },
    );
    let host = Host {
        servers,
        homes,
        urgent_publisher: Publisher::start(urgent.clone()).await?,
        bulk,
        urgent,
        breakers: buckets.breakers,
        scales: js.get_key_value(streams::SCALE_BUCKET).await?,
        orders: buckets.orders,
        js,
        alerts,
        metrics,
        policy,
        key,
        replica,
        stream_copies: config.stream_replicas,
    };
    let owning = Owning { membership: membership.clone(), host, standing };
    own(tasks, owning, stop).await?;
    membership.withdraw().await;
    Ok(())
}

/// Owns shards until told to stop and everything is given back.
async fn own(mut tasks: Supervisor, owning: Owning, stop: CancellationToken) -> anyhow::Result<()> {
    let give_up = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_MAX).await;
    };
    let result = tokio::select! {
        result = Box::pin(owning.run(stop.clone())) => result,
        failed = tasks.run_on() => Err(failed),
        () = give_up => Err(anyhow::anyhow!("not all homes ended in time; the next ones replay what they left")),
    };
    tasks.shutdown().await;
    result
}

/// What tells people how this replica and its servers are.
fn start_looking(
    tasks: &mut Supervisor,
    listener: TcpListener,
    health: Health,
    homes: Homes,
    alerts: &mpsc::Sender<Alert>,
) {
    let (look, metrics) = (health.look.clone(), Arc::clone(&health.metrics));
    tasks.start("http", http::serve(listener, health));
    tasks.start("room", room::watch(look.ledger.clone(), homes, Arc::clone(&metrics), alerts.clone()));
    tasks.start("outages", outages::watch(look, metrics, alerts.clone()));
}

fn start_questions(tasks: &mut Supervisor, answering: Questions) -> mpsc::Sender<async_nats::Message> {
    let (questions, asked) = mpsc::channel(questions::WAITING_MAX);
    tasks.start("questions", answering.run(asked));
    questions
}

fn start_service(tasks: &mut Supervisor, service: &Service) {
    tasks.start("registrar", service.clone().run_registrar());
    tasks.start("registered", service.clone().run_registered());
    tasks.start("beats", service.clone().run_beats());
    tasks.start("requests", service.clone().run_requests());
    tasks.start("knowledge", service.clone().run_knowledge());
    tasks.start("grants", service.clone().run_grants());
    tasks.start("operators", service.clone().run_operators());
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
