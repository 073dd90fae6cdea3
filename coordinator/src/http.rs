//! Health and metrics over HTTP. Shows; changes nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use protocol::control::READY_WITHOUT_AUDIT;
use tokio::net::TcpListener;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::outages::Look;
use crate::ownership::Standing;

/// Beyond this silence a replica counts as unhealthy.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What the endpoints look at.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) standing: Arc<Standing>,
    pub(crate) look: Look,
    /// False where no audit is kept, for measuring.
    pub(crate) records: bool,
}

/// Binds the address and, where wanted, writes it to a file.
pub(crate) async fn bind(config: &Config) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(config.http).await.with_context(|| {
        format!("{} is taken or not an address of this machine; choose another with --http", config.http)
    })?;
    let address = listener.local_addr()?;
    if let Some(file) = &config.http_addr_file {
        let text = format!("{address}\n");
        tokio::fs::write(file, text).await.with_context(|| format!("failed to write {}", file.display()))?;
    }
    tracing::info!(addr = %address, "http listening");
    Ok((listener, address))
}

/// Serves until the process ends.
pub(crate) async fn serve(listener: TcpListener, health: Health) -> anyhow::Result<()> {
    let app = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(health);
    axum::serve(listener, app).await.context("the HTTP endpoint ended")
}

async fn healthz(State(health): State<Health>) -> (StatusCode, &'static str) {
    if health.metrics.silent_for() > SILENCE_MAX {
        return (StatusCode::SERVICE_UNAVAILABLE, "the replica is silent\n");
    }
    (StatusCode::OK, "ok\n")
}

async fn readyz(State(health): State<Health>) -> (StatusCode, String) {
    let not_ready = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
    if let Some(why) = health.look.broker() {
        return not_ready(why);
    }
    // A take-over waits for the ledger as well: what holds it up says more.
    if let Some(why) = health.look.ledger().await {
        return not_ready(why);
    }
    if !health.standing.ready.load(Ordering::Relaxed) {
        return not_ready("taking over");
    }
    let ready = if health.records { "ready\n" } else { READY_WITHOUT_AUDIT };
    (StatusCode::OK, ready.to_owned())
}

async fn metrics(State(health): State<Health>) -> Result<String, StatusCode> {
    health.metrics.text().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}
