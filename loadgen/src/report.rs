//! The figures that every report has in common. Owns their names, which are stable.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::args::Args;

/// Under what a run was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Common {
    scenario: &'static str,
    version: &'static str,
    commit: String,
    cpus: usize,
    storage: String,
    nats_sync: String,
    redis_fsync: String,
    /// Coordinators.
    replicas: usize,
    stream_replicas: usize,
}

impl Common {
    pub(crate) fn gather(scenario: &'static str, args: &Args) -> Self {
        Self {
            scenario,
            version: env!("CARGO_PKG_VERSION"),
            commit: args.commit.clone().or_else(commit).unwrap_or_else(|| "unknown".to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            storage: args.storage.clone(),
            nats_sync: args.nats_sync.clone(),
            redis_fsync: args.redis_fsync.clone(),
            replicas: args.coordinators.split(',').filter(|c| !c.trim().is_empty()).count(),
            stream_replicas: args.stream_replicas,
        }
    }
}

/// The commit of the folder that this runs in, where it is one of git.
fn commit() -> Option<String> {
    let output = std::process::Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

/// Percentiles in microseconds; null where nothing was measured.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) p50_us: Option<f64>,
    p95_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
}

impl Percentiles {
    /// Of a histogram of nanoseconds.
    pub(crate) fn of(nanoseconds: &Histogram<u64>) -> Self {
        let at = |quantile| {
            let measured = !nanoseconds.is_empty();
            measured.then(|| nanoseconds.value_at_quantile(quantile) as f64 / 1_000.0)
        };
        Self { p50_us: at(0.50), p95_us: at(0.95), p99_us: at(0.99) }
    }
}

/// Rounded for reading; the third digit of a ratio is noise.
pub(crate) fn ratio(of: f64, to: f64) -> Option<f64> {
    (to > 0.0).then(|| (of / to * 1_000.0).round() / 1_000.0)
}
