//! What a dispatch costs: processor time of each process, and bytes through the broker, per dispatch.
//!
//! The rule it keeps: the time is taken when everything that was sent is archived, so that no process is left with work that
//! is not counted, and before the books are closed, whose queries are not the mesh's.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use audit_archiver::archive::Archive;
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::args::Args;
use crate::output;
use crate::process::{Processes, Usage};

/// How long the archive may take to catch up with what was measured.
const CATCH_UP: Duration = Duration::from_secs(300);
/// A monitoring port on this machine answers at once or not at all.
const PATIENCE: Duration = Duration::from_secs(2);

/// What passed through the broker's connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Traffic {
    #[serde(rename = "in")]
    received: f64,
    #[serde(rename = "out")]
    sent: f64,
}

/// Costs per dispatch, under the names of the reports.
#[derive(Debug, Serialize)]
pub(crate) struct Cost {
    /// Seconds of one core, by process and in all.
    cpu_s_per_million: BTreeMap<String, f64>,
    /// Null where the archive was not level within its time: then archiver and PostgreSQL had work left.
    archived_after_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    broker_bytes_per_dispatch: Option<Traffic>,
}

/// Counts from its beginning.
pub(crate) struct Meter {
    processes: Processes,
    before: BTreeMap<String, Usage>,
    monitors: Vec<String>,
    traffic: Option<Traffic>,
}

impl Meter {
    pub(crate) async fn begin(args: &Args) -> Self {
        let processes = Processes::of(args);
        let monitors: Vec<String> = args.nats_monitors.split(',').filter_map(address).collect();
        let traffic = traffic(&monitors).await;
        Self { before: processes.sample(), processes, monitors, traffic }
    }

    /// What so many dispatches cost since, once they are archived.
    pub(crate) async fn end(self, args: &Args, dispatches: u64) -> Cost {
        let bar = output::spinner("waiting for the archive");
        let (traffic, since) = (traffic(&self.monitors).await, std::time::Instant::now());
        let archived = match until_archived(args).await {
            Ok(()) => Some((since.elapsed().as_secs_f64() * 10.0).round() / 10.0),
            Err(error) => {
                tracing::warn!("the archive is not level, so that its cost is not complete: {error:#}");
                None
            }
        };
        bar.finish_and_clear();
        let dispatches = dispatches.max(1) as f64;
        let bytes = |now: f64, then: f64| ((now - then) / dispatches * 10.0).round() / 10.0;
        Cost {
            cpu_s_per_million: per_million(&self.before, &self.processes.sample(), dispatches),
            archived_after_s: archived,
            broker_bytes_per_dispatch: self.traffic.zip(traffic).map(|(then, now)| Traffic {
                received: bytes(now.received, then.received),
                sent: bytes(now.sent, then.sent),
            }),
        }
    }
}

async fn until_archived(args: &Args) -> anyhow::Result<()> {
    let redis = args.redis.as_deref().context("MESH_REDIS_URL is not set")?;
    let archive = Archive::connect(&args.postgres_url).await?;
    Ok(archive.until_archived(redis, CATCH_UP).await?)
}

fn per_million(
    before: &BTreeMap<String, Usage>,
    after: &BTreeMap<String, Usage>,
    dispatches: f64,
) -> BTreeMap<String, f64> {
    let mut total = 0.0;
    let mut all = BTreeMap::new();
    for (name, now) in after {
        let then = before.get(name).copied().unwrap_or_default();
        let cost = now.cpu.saturating_sub(then.cpu).as_secs_f64() / dispatches * 1e6;
        total += cost;
        all.insert(name.clone(), (cost * 100.0).round() / 100.0);
    }
    all.insert("total".to_owned(), (total * 100.0).round() / 100.0);
    all
}

/// Host and port of a monitoring address.
fn address(url: &str) -> Option<String> {
    let rest = url.trim().strip_prefix("http://")?;
    Some(rest.trim_end_matches('/').to_owned())
}

/// What passed through all nodes; none where one does not tell.
async fn traffic(monitors: &[String]) -> Option<Traffic> {
    if monitors.is_empty() {
        return None;
    }
    let mut all = Traffic::default();
    for monitor in monitors {
        let one = tokio::time::timeout(PATIENCE, ask(monitor)).await.ok()?.ok()?;
        all.received += one.received;
        all.sent += one.sent;
    }
    Some(all)
}

async fn ask(monitor: &str) -> anyhow::Result<Traffic> {
    let mut stream = TcpStream::connect(monitor).await?;
    stream.write_all(format!("GET /varz HTTP/1.0\r\nHost: {monitor}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    read(&answer).context("the broker's answer has no traffic")
}

fn read(answer: &str) -> Option<Traffic> {
    let (_, body) = answer.split_once("\r\n\r\n")?;
    let body: serde_json::Value = serde_json::from_str(body).ok()?;
    Some(Traffic { received: body["in_bytes"].as_f64()?, sent: body["out_bytes"].as_f64()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_what_was_used_since_per_million() {
        let usage = |s| Usage { cpu: Duration::from_secs(s), resident: 0 };
        let before = BTreeMap::from([("nats".to_owned(), usage(10)), ("redis".to_owned(), usage(1))]);
        let after = BTreeMap::from([
            ("nats".to_owned(), usage(14)),
            // Started anew: what its forerunner took is not known.
            ("redis".to_owned(), usage(0)),
            ("coordinator-0".to_owned(), usage(2)),
        ]);
        let cost = per_million(&before, &after, 2_000_000.0);
        let of = |name: &str| (cost[name] * 100.0).round() as i64;
        assert_eq!([of("nats"), of("redis"), of("coordinator-0"), of("total")], [200, 0, 100, 300]);
    }

    #[test]
    fn the_broker_s_answer_is_read() {
        let answer =
            "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{\"in_bytes\": 7, \"out_bytes\": 9}";
        assert_eq!(read(answer), Some(Traffic { received: 7.0, sent: 9.0 }));
        assert_eq!(read("HTTP/1.0 404 Not Found\r\n\r\n"), None);
        assert_eq!(address("http://127.0.0.1:8222/"), Some("127.0.0.1:8222".to_owned()));
    }
}
