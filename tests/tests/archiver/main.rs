//! The archiver between a real Redis and a real PostgreSQL: blocks arrive once and in order, damage stops, what is still
//! needed stays. Each test has a logical database of Redis and a database of PostgreSQL of its own.

#![expect(clippy::unwrap_used, reason = "in a test, what cannot be done fails the test")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod backup;
mod home;
mod kills;
mod proofs;
mod questions;
mod repairs;
mod scene;
mod stage;
mod tampering;
mod upgrade;

use std::time::Duration;

use audit_archiver::archive::HoldRequest;
use governance::Timestamp;
use governance::policy::Rate;
use protocol::redis as keys;

use home::{Home, now};
use stage::{PATIENCE, Stage, eventually};

const DAY: Duration = Duration::from_secs(86_400);

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
    let rule = "ALTER TABLE decision_run ADD CHECK (conversation <> 'unspeakable')";
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
