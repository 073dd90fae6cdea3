//! The archiver between a real Redis and a real PostgreSQL: blocks arrive once and in order, damage stops, what is still
//! needed stays. Each test has a logical database of Redis and a database of PostgreSQL of its own.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use audit_archiver::archive::{Archive, HoldRequest};
use futures::TryStreamExt;
use governance::policy::Rate;
use governance::{Decision, DispatchId, InstanceId, Kind, Outcome, Priority, Reason, Timestamp};
use protocol::audit::{self, Block, CompletionRow, DecisionRow, Note};
use protocol::redis::{self as keys, EntryId, Head};
use redis::aio::MultiplexedConnection;
use tokio::process::{Child, Command};

/// Long enough for a machine that is busy with other tests; a condition ends the wait as soon as it holds.
const PATIENCE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

/// Servers of one test.
struct Stage {
    redis_url: String,
    postgres_url: String,
    redis: MultiplexedConnection,
    archive: Archive,
}

impl Stage {
    /// A clean place; none, with a word about it, where no servers were named.
    async fn set() -> Option<Self> {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let (Ok(redis), Ok(postgres)) = (std::env::var("MESH_REDIS_URL"), std::env::var("MESH_POSTGRES_URL"))
        else {
            eprintln!("skipped: MESH_REDIS_URL and MESH_POSTGRES_URL name no servers");
            return None;
        };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let redis_url = format!("{}/{number}", redis.trim_end_matches('/'));
        let client = redis::Client::open(redis_url.as_str()).unwrap();
        let mut redis = client.get_multiplexed_async_connection().await.unwrap();
        let _: () = redis::cmd("FLUSHDB").query_async(&mut redis).await.unwrap();

        let name = format!("archiver_{number}");
        let admin = audit_archiver::connect(&postgres, "test").await.unwrap();
        admin.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await.unwrap();
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        let (server, _) = postgres.rsplit_once('/').expect("the address ends with a database");
        let postgres_url = format!("{server}/{name}");
        let mut client = audit_archiver::connect(&postgres_url, "test").await.unwrap();
        audit_archiver::migrate(&mut client).await.unwrap();
        let archive = Archive::connect(&postgres_url).await.unwrap();
        Some(Self { redis_url, postgres_url, redis, archive })
    }

    fn archiver(&self, flags: &[&str]) -> Archiver {
        let child = Command::new(binary())
            .args(["--redis-url", &self.redis_url, "--postgres-url", &self.postgres_url])
            .args(["--upkeep-every", "100ms"])
            .args(flags)
            .env_remove("MESH_HTTP")
            .env_remove("MESH_HTTP_ADDR_FILE")
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Archiver(child)
    }

    async fn number(&self, query: &str) -> i64 {
        let client = audit_archiver::connect(&self.postgres_url, "test").await.unwrap();
        client.query_one(query, &[]).await.unwrap().get(0)
    }

    async fn ids(&self, shard: u8) -> Vec<String> {
        let reply: redis::streams::StreamRangeReply = redis::cmd("XRANGE")
            .arg(keys::stream(shard))
            .arg("-")
            .arg("+")
            .query_async(&mut self.redis.clone())
            .await
            .unwrap();
        reply.ids.into_iter().map(|entry| entry.id).collect()
    }

    async fn snapshot(&self, shard: u8, head: Head, oldest: &str) {
        let text = format!("{head}\n{oldest}\n{{}}");
        let _: () = redis::cmd("SET")
            .arg(keys::snapshot(shard))
            .arg(text)
            .query_async(&mut self.redis.clone())
            .await
            .unwrap();
    }

    async fn stopped(&self, shard: u8) -> Option<String> {
        let cursors = self.archive.cursors().await.unwrap();
        cursors.into_iter().find(|c| c.shard == shard).and_then(|c| c.stopped)
    }
}

/// The archiver as built beside this test.
fn binary() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let folder = exe.parent().and_then(|deps| deps.parent()).unwrap();
    let binary = folder.join("audit-archiver");
    assert!(binary.exists(), "build the binaries first: {} is missing", binary.display());
    binary
}

struct Archiver(Child);

impl Archiver {
    async fn kill(mut self) {
        self.0.kill().await.unwrap();
    }

    async fn terminate(mut self) -> ExitStatus {
        let pid = self.0.id().expect("it runs").to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
        tokio::time::timeout(PATIENCE, self.0.wait()).await.expect("it ends when told to").unwrap()
    }
}

/// Waits until a condition holds.
async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < PATIENCE, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn now() -> Timestamp {
    Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64)
}

/// Writes the trail of one shard as a home does.
struct Home {
    redis: MultiplexedConnection,
    shard: u8,
    head: Head,
    instance: InstanceId,
    sequence: u64,
}

impl Home {
    fn of(stage: &Stage, shard: u8) -> Self {
        let instance = InstanceId(0x1000 + u64::from(shard));
        Self { redis: stage.redis.clone(), shard, head: Head::default(), instance, sequence: 0 }
    }

    /// Appends a block of one envelope with so many requests, admitted and answered.
    async fn serve(&mut self, at: Timestamp, requests: u16, conversation: &str) -> DispatchId {
        self.sequence += 1;
        let first = DispatchId { instance: self.instance, sequence: self.sequence, slot: 0, copy: 0 };
        let decision = DecisionRow { conversation: conversation.into(), ..decided(first, requests, at) };
        self.append(at, vec![decision], vec![ended(first, requests, at)], Vec::new()).await;
        first
    }

    async fn append(
        &mut self,
        at: Timestamp,
        decisions: Vec<DecisionRow>,
        completions: Vec<CompletionRow>,
        notes: Vec<Note>,
    ) {
        let id = EntryId { epoch: self.head.id.epoch.max(1), sequence: self.head.id.sequence + 1 };
        let block = Block {
            shard: self.shard,
            epoch: id.epoch,
            sequence: id.sequence,
            at,
            previous: self.head.hash,
            policy_version: 1,
            decisions,
            completions,
            notes,
        };
        let bytes = block.encode();
        let head = Head { id, hash: audit::hash(&bytes) };
        let answer: String = redis::Script::new(keys::APPEND)
            .key(keys::stream(self.shard))
            .key(keys::head(self.shard))
            .arg(self.head.to_string())
            .arg(head.to_string())
            .arg(id.to_string())
            .arg(bytes)
            .arg(keys::empty_head())
            .invoke_async(&mut self.redis)
            .await
            .unwrap();
        assert_eq!(answer, "ok");
        self.head = head;
    }
}

fn decided(first: DispatchId, count: u16, at: Timestamp) -> DecisionRow {
    DecisionRow {
        first,
        count,
        lane_sequence: first.sequence,
        lane: Priority::P0,
        class: Priority::P0,
        accepted: Timestamp(at.0 - 2_000_000),
        decided: at,
        source: "lead_bot".into(),
        target: "intent_decoder".into(),
        capability: "analyze_lead".into(),
        kind: Kind::Request,
        decision: Decision::Admitted,
        reason: Reason::Ok,
        outcome: None,
        deadline: at.after(Duration::from_secs(30)),
        serves_person: true,
        root: None,
        parent: None,
        conversation: "".into(),
        order_key: 0,
        envelope: Some(0),
        hashes: vec![[9; 16]; count.into()],
        reply_token: "".into(),
    }
}

fn ended(first: DispatchId, count: u16, at: Timestamp) -> CompletionRow {
    CompletionRow {
        first,
        count,
        completed: at.after(Duration::from_millis(140)),
        source: "lead_bot".into(),
        target: "intent_decoder".into(),
        outcome: Outcome::Success,
        reason: Reason::Ok,
        late: false,
        lane_us: 2_000,
        inbox_us: 1_000,
        ran_us: 138_000,
        latency_us: 142_000,
        attempt: 1,
        runner: InstanceId(77),
        response: [8; 16],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_arrive_exactly_once_through_two_archivers_of_which_one_is_killed() {
    const SHARDS: u8 = 12;
    const BLOCKS: u64 = 250;
    const REQUESTS: u16 = 40;
    let Some(stage) = Stage::set().await else { return };
    let (victim, survivor) = (stage.archiver(&[]), stage.archiver(&["--workers", "3"]));
    let started = now();
    let writers: Vec<_> = (0..SHARDS)
        .map(|shard| {
            let mut home = Home::of(&stage, shard);
            tokio::spawn(async move {
                for _ in 0..BLOCKS {
                    home.serve(now(), REQUESTS, "").await;
                }
            })
        })
        .collect();
    eventually("both have begun", async || {
        stage.number("SELECT count(*) FROM audit_block").await > i64::from(SHARDS)
    })
    .await;
    victim.kill().await;
    let late = stage.archiver(&[]);
    for writer in writers {
        writer.await.unwrap();
    }
    stage.archive.until_archived(&stage.redis_url, PATIENCE).await.unwrap();

    let blocks = u64::from(SHARDS) * BLOCKS;
    let requests = blocks * u64::from(REQUESTS);
    let books = stage.archive.books(Timestamp::ZERO).await.unwrap();
    assert!(books.balanced(), "{books:?}");
    assert_eq!((books.accepted, books.completed, books.in_flight), (requests, requests, 0));
    let distinct = "SELECT count(DISTINCT (shard, epoch, sequence)) FROM audit_block";
    assert_eq!(stage.number("SELECT count(*) FROM audit_block").await, blocks as i64);
    assert_eq!(stage.number(distinct).await, blocks as i64);
    let report = stage.archive.report(Timestamp::ZERO).await.unwrap();
    assert_eq!((report.audit_completeness_pct, report.audit_missing), (Some(100.0), 0));
    assert!(report.peak_per_s > 0);
    let check = stage.archive.quota_exceeded(started, |_| Some(Rate { per_s: 1, burst: 1 })).await.unwrap();
    assert!(check.exceeded > 0 && check.admitted == requests, "{check:?}");

    assert!(survivor.terminate().await.success());
    assert!(late.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_stops_its_shard_with_an_alarm_and_no_other() {
    let Some(stage) = Stage::set().await else { return };
    let (mut damaged, mut whole) = (Home::of(&stage, 3), Home::of(&stage, 4));
    for _ in 0..5 {
        damaged.serve(now(), 2, "").await;
        whole.serve(now(), 2, "").await;
    }
    let removed: u64 = redis::cmd("XDEL")
        .arg(keys::stream(3))
        .arg("1-3")
        .query_async(&mut stage.redis.clone())
        .await
        .unwrap();
    assert_eq!(removed, 1);
    let archiver = stage.archiver(&[]);
    eventually("the damaged shard stops", async || stage.stopped(3).await.is_some()).await;
    whole.serve(now(), 2, "").await;
    eventually("the other goes on", async || {
        stage.number("SELECT count(*) FROM audit_block WHERE shard = 4").await == 6
    })
    .await;

    assert_eq!(stage.number("SELECT count(*) FROM audit_block WHERE shard = 3").await, 2);
    assert!(stage.stopped(3).await.unwrap().contains("1-4 does not follow block 1-2"));
    assert_eq!(stage.stopped(4).await, None);
    let notes = stage.archive.notes(Some("archive_stopped"), Timestamp::ZERO).await.unwrap();
    assert_eq!(notes.len(), 1, "one alarm, not one for each try");
    assert!(stage.archive.until_archived(&stage.redis_url, PATIENCE).await.is_err());
    assert!(archiver.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_block_and_a_lost_trail_stop_their_shards() {
    let Some(stage) = Stage::set().await else { return };
    let (mut changed, mut lost) = (Home::of(&stage, 7), Home::of(&stage, 8));
    changed.serve(now(), 1, "").await;
    lost.serve(now(), 1, "").await;
    let archiver = stage.archiver(&[]);
    stage.archive.until_archived(&stage.redis_url, PATIENCE).await.unwrap();

    changed.head.hash[0] ^= 1;
    let _: () = redis::cmd("SET")
        .arg(keys::head(7))
        .arg(changed.head.to_string())
        .query_async(&mut stage.redis.clone())
        .await
        .unwrap();
    changed.serve(now(), 1, "").await;
    let _: () = redis::cmd("DEL")
        .arg(keys::stream(8))
        .arg(keys::head(8))
        .query_async(&mut stage.redis.clone())
        .await
        .unwrap();
    eventually("the changed one stops", async || stage.stopped(7).await.is_some()).await;
    eventually("the lost one stops", async || stage.stopped(8).await.is_some()).await;
    assert!(stage.stopped(7).await.unwrap().contains("does not carry the hash"));
    assert!(stage.stopped(8).await.unwrap().contains("ends before block 1-1"));
    assert!(archiver.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_postgresql_refuses_stops_its_own_shard_only() {
    let Some(stage) = Stage::set().await else { return };
    let (mut refused, mut fine) = (Home::of(&stage, 9), Home::of(&stage, 11));
    let client = audit_archiver::connect(&stage.postgres_url, "test").await.unwrap();
    let rule = "ALTER TABLE dispatch_decision ADD CHECK (conversation <> 'unspeakable')";
    client.batch_execute(rule).await.unwrap();
    refused.serve(now(), 1, "unspeakable").await;
    fine.serve(now(), 1, "short").await;
    let archiver = stage.archiver(&["--workers", "1"]);
    eventually("the refused one stops", async || stage.stopped(9).await.is_some()).await;
    assert!(stage.stopped(9).await.unwrap().contains("PostgreSQL refuses"));
    eventually("the other one is archived", async || {
        stage.archive.by_conversation("short").await.unwrap().len() == 1
    })
    .await;
    assert!(archiver.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn trimming_stops_at_the_snapshot_and_before_the_last_entry() {
    let Some(stage) = Stage::set().await else { return };
    let (mut home, mut bare) = (Home::of(&stage, 20), Home::of(&stage, 21));
    let earlier = Timestamp(now().0 - Duration::from_secs(60).as_nanos() as u64);
    for _ in 0..10 {
        home.serve(earlier, 1, "").await;
        bare.serve(earlier, 1, "").await;
    }
    stage.snapshot(20, home.head, "1-6").await;
    let archiver = stage.archiver(&["--hot-retention", "1s"]);
    eventually("up to the snapshot", async || stage.ids(20).await.first().is_some_and(|id| id == "1-6"))
        .await;
    assert_eq!(stage.ids(20).await.len(), 5);
    assert_eq!(stage.ids(21).await.len(), 10, "without a snapshot a new home starts from the first block");

    stage.snapshot(20, home.head, "1-10").await;
    eventually("up to the last", async || stage.ids(20).await == ["1-10"]).await;
    // An id far beyond everything, as a damaged snapshot might have it, takes nothing more.
    stage.snapshot(20, home.head, "9-1").await;
    home.serve(now(), 1, "").await;
    stage.archive.until_archived(&stage.redis_url, PATIENCE).await.unwrap();
    eventually("the last stays", async || stage.ids(20).await == ["1-11"]).await;
    let archived: String =
        redis::cmd("GET").arg(keys::archived(20)).query_async(&mut stage.redis.clone()).await.unwrap();
    assert_eq!(archived, "1-11");
    assert!(archiver.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_keeps_the_hot_window_whatever_is_archived() {
    let Some(stage) = Stage::set().await else { return };
    let mut home = Home::of(&stage, 22);
    for _ in 0..3 {
        home.serve(now(), 1, "").await;
    }
    stage.snapshot(22, home.head, "1-3").await;
    let archiver = stage.archiver(&["--hot-retention", "1h"]);
    stage.archive.until_archived(&stage.redis_url, PATIENCE).await.unwrap();
    let mut old = Home::of(&stage, 23);
    old.serve(Timestamp(now().0 - 2 * Duration::from_secs(3_600).as_nanos() as u64), 1, "").await;
    old.serve(now(), 1, "").await;
    stage.snapshot(23, old.head, "1-2").await;
    old.serve(now(), 1, "").await;
    // The second shard shows that rounds have passed: its first block is old, and stays as the last one that is.
    stage.archive.until_archived(&stage.redis_url, PATIENCE).await.unwrap();
    assert_eq!(stage.ids(22).await.len(), 3);
    assert_eq!(stage.ids(23).await.len(), 3);
    assert!(archiver.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_drops_old_days_and_respects_a_hold() {
    let Some(stage) = Stage::set().await else { return };
    let mut home = Home::of(&stage, 30);
    let ago = |days: u32| Timestamp(now().0 - (DAY * days).as_nanos() as u64);
    for (days, conversation) in [(500, "lead-1"), (450, "lead-2"), (400, "lead-3"), (1, "lead-4")] {
        home.serve(ago(days), 1, conversation).await;
    }
    let hold = HoldRequest {
        conversation: Some("lead-2".into()),
        reason: "complaint 17".into(),
        by: "counsel".into(),
        ..HoldRequest::default()
    };
    let id = stage.archive.place_hold(&hold).await.unwrap();
    let archiver = stage.archiver(&["--retention-days", "365"]);
    let left = async || {
        let mut found = Vec::new();
        for key in ["lead-1", "lead-2", "lead-3", "lead-4"] {
            if !stage.archive.by_conversation(key).await.unwrap().is_empty() {
                found.push(key);
            }
        }
        found
    };
    stage.archive.until_archived(&stage.redis_url, PATIENCE).await.unwrap();
    eventually("only the held day and the young one are left", async || left().await == ["lead-2", "lead-4"])
        .await;
    assert_eq!(
        stage.number("SELECT count(*) FROM audit_block").await,
        2,
        "the proof goes and stays with its rows"
    );

    stage.archive.release_hold(id, "counsel").await.unwrap();
    eventually("the released day goes", async || left().await == ["lead-4"]).await;
    assert!(stage.archive.release_hold(id, "counsel").await.is_err());
    assert!(archiver.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_has_the_shape_of_the_article_and_trees_are_whole() {
    let Some(stage) = Stage::set().await else { return };
    let mut home = Home::of(&stage, 40);
    let at = now();
    let root = home.serve(at, 1, "lead-7").await;
    let child = DispatchId { sequence: 2, ..root };
    let refused = DispatchId { sequence: 3, ..root };
    let family = |row: DecisionRow| DecisionRow {
        root: Some(root),
        parent: Some(root),
        conversation: "lead-7".into(),
        ..row
    };
    let decisions = vec![
        family(decided(child, 1, at.after(Duration::from_millis(10)))),
        family(DecisionRow {
            decision: Decision::Rejected,
            reason: Reason::UndeclaredDependency,
            outcome: Some(Outcome::Rejected),
            target: "billing".into(),
            ..decided(refused, 1, at.after(Duration::from_millis(20)))
        }),
    ];
    home.append(at, decisions, vec![ended(child, 1, at)], Vec::new()).await;
    let archiver = stage.archiver(&[]);
    stage.archive.until_archived(&stage.redis_url, PATIENCE).await.unwrap();

    let rows: Vec<_> = stage.archive.export(Timestamp::ZERO).await.unwrap().try_collect().await.unwrap();
    let types: Vec<_> = rows.iter().map(|row| row.r#type.as_str()).collect();
    assert_eq!(types.iter().filter(|t| **t == "request").count(), 3);
    assert_eq!(types.iter().filter(|t| **t == "response").count(), 2);
    assert_eq!(types.iter().filter(|t| **t == "error").count(), 1);
    let row = serde_json::to_value(&rows[0]).unwrap();
    for (name, value) in [
        ("dispatch_id", serde_json::json!(root.to_string())),
        ("source", "lead_bot".into()),
        ("target", "intent_decoder".into()),
        ("type", "request".into()),
        ("capability", "analyze_lead".into()),
        ("latency_ms", 142.0.into()),
        ("outcome", "success".into()),
        ("priority", "P0".into()),
        ("payload_hash", "09".repeat(16).into()),
        ("conversation", "lead-7".into()),
    ] {
        assert_eq!(row[name], value, "{name}");
    }
    let shown = row["timestamp"].as_str().unwrap();
    assert!(shown.len() == 24 && shown.ends_with('Z'), "{shown}");
    let reply = rows.iter().find(|row| row.dispatch_id == format!("{root}/reply")).unwrap();
    assert_eq!((reply.source.as_str(), reply.target.as_deref()), ("intent_decoder", Some("lead_bot")));
    assert_eq!(reply.payload_hash, Some("08".repeat(16)));
    assert_eq!(reply.latency_ms, Some(1.0));

    let tree = stage.archive.tree(&format!("{child}/reply")).await.unwrap().unwrap();
    assert_eq!(tree.root, root.to_string());
    assert_eq!(tree.hops.iter().map(|hop| hop.depth).collect::<Vec<_>>(), [0, 1, 1]);
    assert_eq!(stage.archive.by_conversation("lead-7").await.unwrap().len(), 3);
    assert_eq!(stage.archive.tail(2).await.unwrap().len(), 2);
    let of = format!("SELECT count(*) FROM dispatch_log_of('{child}/reply')");
    assert_eq!(stage.number(&of).await, 2);
    let edges = stage.archive.edges(Timestamp::ZERO).await.unwrap();
    assert_eq!(
        edges.iter().map(|edge| (edge.dispatches, edge.rejected)).collect::<Vec<_>>(),
        [(1, 1), (2, 0)]
    );
    let by_agent = stage.archive.by_agent("billing", Timestamp::ZERO, now().after(DAY), 10).await.unwrap();
    assert_eq!(by_agent.len(), 1);

    let books = stage.archive.books(Timestamp::ZERO).await.unwrap();
    assert!(books.balanced(), "{books:?}");
    assert_eq!((books.accepted, books.completed, books.rejected), (3, 2, 1));
    let report = stage.archive.report(Timestamp::ZERO).await.unwrap();
    assert_eq!(report.violations_blocked, 1);
    assert_eq!(report.own.map(|p| p.p50_ms), Some(4.0));
    assert_eq!(report.audit_completeness_pct, Some(100.0));
    assert!(archiver.terminate().await.success());
}
