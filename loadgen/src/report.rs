//! The figures that every report has in common. Owns their names, which are stable.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::args::Args;

/// The shares at which a distribution is written down.
const QUANTILES: [f64; 16] =
    [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999, 1.0];

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
    machine: Machine,
    servers: Servers,
    /// When the report was written.
    measured_at: Option<String>,
}

/// What it ran on.
#[derive(Debug, Clone, Serialize)]
struct Machine {
    cpu: Option<String>,
    memory_gb: Option<f64>,
    kernel: Option<String>,
    /// Processes that waited for a processor in the minute before the run: what else the machine did.
    load: Option<f64>,
}

impl Machine {
    fn of(load: Option<f64>) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let cpu = read("/proc/cpuinfo").and_then(|text| field(&text, "model name").map(str::to_owned));
        let memory = read("/proc/meminfo")
            .and_then(|text| field(&text, "MemTotal")?.trim_end_matches("kB").trim().parse::<f64>().ok());
        Self {
            cpu,
            memory_gb: memory.map(|kilobytes| (kilobytes / 1024.0 / 1024.0 * 10.0).round() / 10.0),
            kernel: read("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()),
            load,
        }
    }
}

/// The value behind a name and a colon, of the first line that has it.
fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.trim_start().strip_prefix(':')?.trim()))
}

/// What answers behind the addresses; null where nobody did, as for a scenario without servers.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Servers {
    nats: Option<String>,
    redis: Option<String>,
    postgres: Option<String>,
    #[serde(skip)]
    load: Option<f64>,
}

impl Servers {
    /// Asks each for its version, and the machine for its load.
    pub(crate) async fn ask(args: &Args) -> Self {
        let load = std::fs::read_to_string("/proc/loadavg").ok();
        let load = load.and_then(|text| text.split_whitespace().next()?.parse().ok());
        let nats = broker::connect(&args.nats_url, "loadgen").await.ok();
        let nats = nats.map(|client| client.server_info().version);
        Self { nats, redis: redis_version(args).await, postgres: postgres_version(args).await, load }
    }
}

async fn redis_version(args: &Args) -> Option<String> {
    let client = redis::Client::open(args.redis.as_deref()?).ok()?;
    let mut connection = client.get_multiplexed_async_connection().await.ok()?;
    let text: String = redis::cmd("INFO").arg("server").query_async(&mut connection).await.ok()?;
    field(&text, "redis_version").map(str::to_owned)
}

async fn postgres_version(args: &Args) -> Option<String> {
    let (client, connection) =
        tokio_postgres::connect(&args.postgres_url, tokio_postgres::NoTls).await.ok()?;
    let connection = tokio::spawn(connection);
    let row = client.query_one("SHOW server_version", &[]).await;
    connection.abort();
    row.ok().map(|row| row.get(0))
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
            machine: Machine::of(args.servers.load),
            servers: args.servers.clone(),
            measured_at: OffsetDateTime::now_utc()
                .replace_nanosecond(0)
                .ok()
                .and_then(|at| at.format(&Rfc3339).ok()),
        }
    }
}

impl Common {
    /// How many coordinators there are.
    pub(crate) const fn replicas(&self) -> usize {
        self.replicas
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

/// Whole distributions, each at the same shares, for charts.
#[derive(Debug, Serialize)]
pub(crate) struct Distributions {
    quantiles: [f64; QUANTILES.len()],
    /// In microseconds.
    series: BTreeMap<String, Vec<f64>>,
}

impl Distributions {
    /// Of histograms of nanoseconds by their names; what measured nothing is left out.
    pub(crate) fn of<'h>(named: impl IntoIterator<Item = (&'h str, &'h Histogram<u64>)>) -> Self {
        let measured = named.into_iter().filter(|(_, histogram)| !histogram.is_empty());
        let at = |histogram: &Histogram<u64>| {
            QUANTILES.map(|quantile| histogram.value_at_quantile(quantile) as f64 / 1_000.0).to_vec()
        };
        Self {
            quantiles: QUANTILES,
            series: measured.map(|(name, histogram)| (name.to_owned(), at(histogram))).collect(),
        }
    }
}

/// Rounded for reading; the third digit of a ratio is noise.
pub(crate) fn ratio(of: f64, to: f64) -> Option<f64> {
    (to > 0.0).then(|| (of / to * 1_000.0).round() / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_whatever_the_gap() {
        let text =
            "processor\t: 0\nmodel name\t: A CPU: fast\nMemTotal:       2048 kB\nredis_version:7.0.15\r\n";
        assert_eq!(field(text, "model name"), Some("A CPU: fast"));
        assert_eq!(field(text, "MemTotal"), Some("2048 kB"));
        assert_eq!(field(text, "redis_version"), Some("7.0.15"));
        assert_eq!(field(text, "nothing"), None);
    }

    #[test]
    fn a_distribution_leaves_out_what_was_not_measured() {
        let (mut some, none) = (Histogram::new(3).unwrap(), Histogram::new(3).unwrap());
        some.record(2_000_000).unwrap();
        let all = Distributions::of([("P0", &some), ("P1", &none)]);
        assert_eq!(all.series.keys().collect::<Vec<_>>(), ["P0"]);
        assert_eq!(all.series["P0"].len(), all.quantiles.len());
    }
}
