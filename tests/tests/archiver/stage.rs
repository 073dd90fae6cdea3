//! The servers of one test, and the archiver as a process.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use audit_archiver::archive::Archive;
use protocol::redis::{self as keys, Head};
use redis::aio::MultiplexedConnection;
use tokio::process::{Child, Command};

/// Long enough for a machine that is busy with other tests; a condition ends the wait as soon as it holds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// Servers of one test.
pub(crate) struct Stage {
    pub(crate) redis_url: String,
    pub(crate) postgres_url: String,
    pub(crate) redis: MultiplexedConnection,
    pub(crate) archive: Archive,
}

impl Stage {
    /// A clean place; none, with a word about it, where no servers were named.
    pub(crate) async fn set() -> Option<Self> {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let (Ok(redis), Ok(_)) = (std::env::var("MESH_REDIS_URL"), std::env::var("MESH_POSTGRES_URL")) else {
            eprintln!("skipped: MESH_REDIS_URL and MESH_POSTGRES_URL name no servers");
            return None;
        };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let redis_url = format!("{}/{number}", redis.trim_end_matches('/'));
        let client = redis::Client::open(redis_url.as_str()).unwrap();
        // The client's own half second is short for a server that shares its cores with builds.
        let patient = redis::AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
        let mut redis = client.get_multiplexed_async_connection_with_config(&patient).await.unwrap();
        let _: () = redis::cmd("FLUSHDB").query_async(&mut redis).await.unwrap();

        let postgres_url = Self::database(&format!("archiver_{number}")).await;
        let mut client = audit_archiver::connect(&postgres_url, "test").await.unwrap();
        audit_archiver::migrate(&mut client).await.unwrap();
        let archive = Archive::connect(&postgres_url).await.unwrap();
        Some(Self { redis_url, postgres_url, redis, archive })
    }

    /// An empty database beside the one that the environment names.
    pub(crate) async fn database(name: &str) -> String {
        let postgres = std::env::var("MESH_POSTGRES_URL").unwrap();
        let admin = audit_archiver::connect(&postgres, "test").await.unwrap();
        admin.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await.unwrap();
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        let (server, _) = postgres.rsplit_once('/').expect("the address ends with a database");
        format!("{server}/{name}")
    }

    pub(crate) fn archiver(&self, flags: &[&str]) -> Archiver {
        let child = Command::new(binary())
            .args(["--redis-url", &self.redis_url, "--postgres-url", &self.postgres_url])
            .args(["--upkeep-every", "100ms"])
            .args(flags)
            .env_remove("MESH_HTTP")
            .env_remove("MESH_HTTP_ADDR_FILE")
            .env_remove("MESH_CHECKPOINTS")
            .env_remove("MESH_CHECKPOINT_KEY_FILE")
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Archiver(child)
    }

    pub(crate) async fn number(&self, query: &str) -> i64 {
        let client = audit_archiver::connect(&self.postgres_url, "test").await.unwrap();
        client.query_one(query, &[]).await.unwrap().get(0)
    }

    pub(crate) async fn text(&self, query: &str) -> String {
        let client = audit_archiver::connect(&self.postgres_url, "test").await.unwrap();
        client.query_one(query, &[]).await.unwrap().get(0)
    }

    /// A file of this test's own, beside the test program.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        let database = self.postgres_url.rsplit('/').next().unwrap();
        let folder = binary().with_file_name("test-files").join(format!("{}-{database}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder.join(name)
    }

    pub(crate) async fn ids(&self, shard: u8) -> Vec<String> {
        let reply: redis::streams::StreamRangeReply = redis::cmd("XRANGE")
            .arg(keys::stream(shard))
            .arg("-")
            .arg("+")
            .query_async(&mut self.redis.clone())
            .await
            .unwrap();
        reply.ids.into_iter().map(|entry| entry.id).collect()
    }

    pub(crate) async fn snapshot(&self, shard: u8, head: Head, oldest: &str) {
        let text = format!("{head}\n{oldest}\n{{}}");
        let _: () = redis::cmd("SET")
            .arg(keys::snapshot(shard))
            .arg(text)
            .query_async(&mut self.redis.clone())
            .await
            .unwrap();
    }

    /// A metric of an archiver that wrote its address into a file; zero while it does not answer.
    pub(crate) async fn metric(&self, address: &std::path::Path, name: &str) -> f64 {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let Ok(address) = tokio::fs::read_to_string(address).await else { return 0.0 };
        let mut stream = tokio::net::TcpStream::connect(address.trim()).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: mesh\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let wanted = format!("mesh_audit_archiver_{name} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&wanted));
        value.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
    }

    pub(crate) async fn stopped(&self, shard: u8) -> Option<String> {
        let cursors = self.archive.cursors().await.unwrap();
        cursors.into_iter().find(|c| c.shard == shard).and_then(|c| c.stopped)
    }
}

/// The archiver as built beside this test.
pub(crate) fn binary() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let folder = exe.parent().and_then(|deps| deps.parent()).unwrap();
    let binary = folder.join("audit-archiver");
    assert!(binary.exists(), "build the binaries first: {} is missing", binary.display());
    binary
}

pub(crate) struct Archiver(Child);

impl Archiver {
    /// Sends a signal by name, as `STOP`.
    pub(crate) async fn signal(&self, name: &str) {
        let pid = self.0.id().expect("it runs").to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().await.unwrap().success());
    }

    pub(crate) async fn kill(mut self) {
        self.0.kill().await.unwrap();
    }

    pub(crate) async fn terminate(mut self) -> ExitStatus {
        let pid = self.0.id().expect("it runs").to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
        tokio::time::timeout(PATIENCE, self.0.wait()).await.expect("it ends when told to").unwrap()
    }
}

/// Waits until a condition holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
