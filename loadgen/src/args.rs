//! What can be asked of loadgen, on the command line and in the environment. Owns the defaults; reads the environment.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::report::Servers;

/// Puts honest load on a mesh and reports figures beside those of the bare broker.
#[derive(Debug, Parser)]
#[command(version, subcommand_precedence_over_arg = true)]
pub(crate) struct Args {
    /// What to measure.
    #[command(subcommand)]
    pub(crate) scenario: Scenario,
    /// Where the figures go as one JSON object; they are printed for people in any case. `report` reads any number of them.
    #[arg(long, global = true, value_name = "FILE", num_args = 1..)]
    pub(crate) json: Vec<PathBuf>,
    /// Where the figures go as a page with charts.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// The broker.
    #[arg(long, global = true, env = "MESH_NATS_URL", default_value = "nats://127.0.0.1:4222")]
    pub(crate) nats_url: String,
    /// The archive, from which the books are closed.
    #[arg(
        long,
        global = true,
        env = "MESH_POSTGRES_URL",
        default_value = "postgres://mesh@127.0.0.1:5432/mesh",
        hide_env_values = true
    )]
    pub(crate) postgres_url: String,
    /// Where the broker keeps streams; the bare run keeps its own there as well.
    #[arg(long, global = true, env = "MESH_STORAGE", default_value = "file", value_parser = ["file", "memory"])]
    pub(crate) storage: String,
    /// What the broker was started with, for the report.
    #[arg(long, global = true, env = "MESH_NATS_SYNC", default_value = "default", hide = true)]
    pub(crate) nats_sync: String,
    /// What Redis was started with, for the report.
    #[arg(long, global = true, env = "MESH_REDIS_FSYNC", default_value = "unknown", hide = true)]
    pub(crate) redis_fsync: String,
    /// The coordinators' addresses, for the report.
    #[arg(long, global = true, env = "MESH_COORDINATORS", default_value = "", hide = true)]
    pub(crate) coordinators: String,
    /// Replicas of the streams; the bare run keeps as many.
    #[arg(long, global = true, env = "MESH_STREAM_REPLICAS", default_value_t = 1, hide = true)]
    pub(crate) stream_replicas: usize,
    /// The commit, for the report; asked of git where it is not given.
    #[arg(long, global = true, env = "MESH_COMMIT", hide = true)]
    pub(crate) commit: Option<String>,
    /// The folder of the stack whose processes are measured.
    #[arg(long, global = true, env = "MESH_STACK_DIR", hide = true)]
    pub(crate) stack_folder: Option<PathBuf>,
    /// The trail, for what is to be archived before costs are taken.
    #[arg(long = "trail", global = true, env = "MESH_REDIS_URL", hide = true, hide_env_values = true)]
    pub(crate) redis: Option<String>,
    /// Where the broker tells of its traffic.
    #[arg(long, global = true, env = "MESH_NATS_MONITOR_URL", default_value = "", hide = true)]
    pub(crate) nats_monitors: String,
    /// What the servers are, asked of them before the run.
    #[arg(skip)]
    pub(crate) servers: Servers,
}

/// The scenarios.
#[derive(Debug, Subcommand)]
pub(crate) enum Scenario {
    /// As many dispatches as go through, beside the same bytes through two bare durable hops.
    Throughput(Throughput),
    /// Latency of each priority at a fixed rate, beside a bare chain at that rate.
    Latency(Latency),
    /// A recorded hour of conversations again: its arrivals, sizes and running times, as fast as wanted.
    Trace(Trace),
    /// One caller and one agent in a closed loop, beside a bare chain under the same loop.
    Request(Request),
    /// What the audit costs in throughput and bytes, and how fast the archive catches up after an outage. Stops and starts
    /// processes of the stack around it, so that it is run by `./dev bench audit` only.
    Audit(Audit),
    /// Decisions per second of the governance core alone; needs no server.
    Governance(Governance),
    /// The bare durable hops alone; needs nothing but a broker.
    Bare(Bare),
    /// Throughput and P0 latency for several numbers of agents, on the coordinators that there are.
    Scale(Scale),
    /// Mixed load at a fixed rate for long, and whether any process of the mesh grows.
    Soak(Soak),
    /// A page with charts, from the JSON of runs.
    Report(Report),
}

/// `throughput`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Throughput {
    /// Bytes of each payload; several, with commas between them, are measured one after another.
    #[arg(long = "payload", default_value = "128", value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(16..=1_000_000))]
    pub(crate) payloads: Vec<u32>,
    /// The one that is measured.
    #[arg(skip)]
    pub(crate) payload: u32,
    /// Pairs of a sending and a receiving agent.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) agents: u32,
    /// How long to send, in seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub(crate) seconds: u64,
    /// How long each bare run sends, in seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) bare_seconds: u64,
    /// Dispatches that each sender has on their way to acceptance.
    #[arg(long, default_value_t = 8_192, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) window: u32,
    /// Dispatches that each receiver runs at once.
    #[arg(long, default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..=65_535))]
    pub(crate) concurrent: u32,
    /// Whether receivers take events in batches, or one by one as agents do that know nothing of batches.
    #[arg(long, value_enum, default_value_t = Handlers::Batch)]
    pub(crate) handlers: Handlers,
}

/// How receivers take what is sent to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Handlers {
    /// Many in one call of the handler.
    Batch,
    /// One call of the handler for each.
    Single,
}

/// `latency`.
#[derive(Debug, clap::Args)]
pub(crate) struct Latency {
    /// Requests per second, over all priorities.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(4..=200_000))]
    pub(crate) rate: u32,
    /// Floods P3 with events, so many per second or as many as go (max), after a first phase without the flood.
    #[arg(long, value_name = "N|max", num_args = 0..=1, default_missing_value = "max", value_parser = flood)]
    pub(crate) flood: Option<Flood>,
    /// How long, in seconds, after the warm-up.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub(crate) seconds: u64,
    /// Bytes of each payload.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=1_000_000))]
    pub(crate) payload: u32,
    /// Pairs of a calling and an answering agent.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) agents: u32,
    /// Shares of P0, P1, P2, P3 among the requests, in percent.
    #[arg(long, default_value = "25,25,25,25", value_delimiter = ',')]
    pub(crate) mix: Vec<u32>,
}

/// How much floods P3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flood {
    /// Nothing.
    None,
    /// Events per second.
    Rate(u32),
    /// As many as senders get accepted.
    Max,
}

fn flood(text: &str) -> Result<Flood, String> {
    match text {
        "max" => Ok(Flood::Max),
        "0" => Ok(Flood::None),
        rate => rate.parse().map(Flood::Rate).map_err(|_| format!("{rate:?} is neither max nor a number")),
    }
}

/// `trace`.
#[derive(Debug, clap::Args)]
pub(crate) struct Trace {
    /// The recording: CSV with the columns TIMESTAMP, ContextTokens and GeneratedTokens, ordered by time.
    #[arg(long, value_name = "CSV")]
    pub(crate) file: PathBuf,
    /// How much faster than it was: arrivals and running times are divided by it.
    #[arg(long, default_value_t = 1.0, value_parser = speed)]
    pub(crate) speed: f64,
    /// How long at most, in seconds of this run; by default all of the recording.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) seconds: Option<u64>,
    /// Milliseconds that a handler runs for each token it generates, at real speed.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    pub(crate) ms_per_token: u32,
    /// Pairs of a calling and an answering agent.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) agents: u32,
    /// Shares of P0, P1, P2, P3 among the requests, in percent.
    #[arg(long, default_value = "25,25,25,25", value_delimiter = ',')]
    pub(crate) mix: Vec<u32>,
}

fn speed(text: &str) -> Result<f64, String> {
    let speed: f64 = text.parse().map_err(|_| format!("{text:?} is not a number; write 1 or 50"))?;
    if (0.01..=10_000.0).contains(&speed) { Ok(speed) } else { Err("a speed is from 0.01 to 10000".into()) }
}

/// `request`.
#[derive(Debug, clap::Args)]
pub(crate) struct Request {
    /// Requests that wait for their reply at any time.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_535))]
    pub(crate) outstanding: u32,
    /// Bytes of each payload.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=1_000_000))]
    pub(crate) payload: u32,
    /// How long, in seconds, after the warm-up; the bare chain runs as long.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub(crate) seconds: u64,
    /// The priority of the requests.
    #[arg(long, default_value = "P2")]
    pub(crate) priority: governance::Priority,
}

/// `audit`.
#[derive(Debug, clap::Args)]
pub(crate) struct Audit {
    /// Rounds; in each the mesh is measured without its audit, with it, and with the archiver at work as well.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// How long each measurement sends, in seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) seconds: u64,
    /// Bytes of each payload.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(16..=1_000_000))]
    pub(crate) payload: u32,
    /// Pairs of a sending and a receiving agent.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) agents: u32,
    /// Records that pile up in Redis while PostgreSQL is away.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    pub(crate) pile: u64,
    /// Dispatches per second that go on while the archive catches up.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub(crate) live: u32,
    /// Where the trail is.
    #[arg(long, env = "MESH_REDIS_URL", hide_env_values = true)]
    pub(crate) redis_url: String,
    /// The folder of the stack whose processes are stopped and started.
    #[arg(long, env = "MESH_STACK_DIR")]
    pub(crate) stack: PathBuf,
    /// The script that does so.
    #[arg(long, env = "MESH_DEV", hide = true)]
    pub(crate) dev: PathBuf,
}

/// `governance`.
#[derive(Debug, clap::Args)]
pub(crate) struct Governance {
    /// Dispatches of one envelope.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=16_384))]
    pub(crate) envelope: u16,
    /// Numbers of agents to measure with.
    #[arg(long, default_value = "12,1000", value_delimiter = ',')]
    pub(crate) agents: Vec<u32>,
    /// Seconds for each number of agents.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) seconds: u64,
}

/// `bare`.
#[derive(Debug, clap::Args)]
pub(crate) struct Bare {
    /// Bytes of each single message.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(16..=1_000_000))]
    pub(crate) payload: u32,
    /// How long each part runs, in seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) seconds: u64,
    /// Requests per second of the chain.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(4..=200_000))]
    pub(crate) rate: u32,
}

/// `scale`.
#[derive(Debug, clap::Args)]
pub(crate) struct Scale {
    /// Numbers of agents to measure with, one after another.
    #[arg(long, default_value = "12,100,1000", value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(2..=20_000))]
    pub(crate) agents: Vec<u32>,
    /// How long each measurement sends, in seconds.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub(crate) seconds: u64,
    /// Requests per second while latency is measured.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(4..=200_000))]
    pub(crate) rate: u32,
    /// Bytes of each payload.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(16..=1_000_000))]
    pub(crate) payload: u32,
    /// Does not measure: makes one report of those of several stacks.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) merge: Vec<PathBuf>,
}

/// `soak`.
#[derive(Debug, clap::Args)]
pub(crate) struct Soak {
    /// How long.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=1_440))]
    pub(crate) minutes: u64,
    /// Requests per second, over all priorities.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(4..=200_000))]
    pub(crate) rate: u32,
    /// Bytes of each payload.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=1_000_000))]
    pub(crate) payload: u32,
    /// Pairs of a calling and an answering agent.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) agents: u32,
    /// Shares of P0, P1, P2, P3 among the requests, in percent.
    #[arg(long, default_value = "25,25,25,25", value_delimiter = ',')]
    pub(crate) mix: Vec<u32>,
}

/// `report`.
#[derive(Debug, clap::Args)]
pub(crate) struct Report {
    /// The page.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

impl Audit {
    /// The load of one measurement.
    pub(crate) const fn load(&self, seconds: u64) -> Throughput {
        Throughput::of(self.payload, self.agents, seconds)
    }
}

impl Throughput {
    /// The load of another scenario, with the windows of this one.
    pub(crate) const fn of(payload: u32, agents: u32, seconds: u64) -> Self {
        Self {
            payloads: Vec::new(),
            payload,
            agents,
            seconds,
            bare_seconds: 1,
            window: 2_048,
            concurrent: 1_024,
            handlers: Handlers::Single,
        }
    }
}

impl Throughput {
    pub(crate) const fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Args {
        Args::try_parse_from(line.split_whitespace()).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }

    #[test]
    fn a_flood_is_a_number_or_the_maximum() {
        let flood = |line: &str| {
            let Scenario::Latency(latency) = parsed(line).scenario else { panic!("latency was asked for") };
            latency.flood
        };
        assert_eq!(flood("loadgen latency"), None);
        assert_eq!(flood("loadgen latency --flood"), Some(Flood::Max));
        assert_eq!(flood("loadgen latency --flood --seconds 3"), Some(Flood::Max));
        assert_eq!(flood("loadgen latency --flood 5000"), Some(Flood::Rate(5_000)));
        assert!(Args::try_parse_from(["loadgen", "latency", "--flood", "much"]).is_err());
    }

    #[test]
    fn payloads_and_files_may_be_several() {
        let Scenario::Throughput(throughput) = parsed("loadgen throughput --payload 16,128,1024").scenario
        else {
            panic!("throughput was asked for")
        };
        assert_eq!(throughput.payloads, [16, 128, 1_024]);
        assert!(Args::try_parse_from(["loadgen", "throughput", "--payload", "15"]).is_err());
        let args = parsed("loadgen report --json a.json b.json --out c.html");
        assert_eq!(args.json.len(), 2);
        assert!(matches!(args.scenario, Scenario::Report(report) if report.out.ends_with("c.html")));
    }
}
