//! The archiver's own small HTTP server: health, readiness, metrics. Owns the routes; knows nothing of the archive.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone)]
struct Shown {
    metrics: Arc<Metrics>,
    registry: Arc<Registry>,
}

/// Binds, says where, and gives back the server's future.
pub(crate) async fn serve(
    address: &str,
    address_file: Option<&Path>,
    metrics: Arc<Metrics>,
    registry: Registry,
    stop: CancellationToken,
) -> anyhow::Result<impl Future<Output = std::io::Result<()>> + use<>> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} for HTTP"))?;
    let bound = listener.local_addr()?;
    tracing::info!(addr = %bound, "http listening");
    if let Some(file) = address_file {
        tokio::fs::write(file, bound.to_string())
            .await
            .with_context(|| format!("cannot write the HTTP address to {}", file.display()))?;
    }
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(show))
        .with_state(Shown { metrics, registry: Arc::new(registry) });
    Ok(async move { axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await })
}

async fn ready(State(shown): State<Shown>) -> impl IntoResponse {
    if shown.metrics.ready() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let word = |up| if up { "answers" } else { "does not answer" };
    let redis = word(shown.metrics.redis_up.get());
    let postgres = match (shown.metrics.postgres_up.get(), shown.metrics.postgres_stores.get()) {
        (true, false) => "stores nothing",
        (up, _) => word(up),
    };
    (StatusCode::SERVICE_UNAVAILABLE, format!("Redis {redis}, PostgreSQL {postgres}\n"))
}

async fn show(State(shown): State<Shown>) -> impl IntoResponse {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &shown.registry) {
        Ok(()) => (StatusCode::OK, [(header::CONTENT_TYPE, OPENMETRICS)], text),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], error.to_string())
        }
    }
}
