//! The archive's backup and restore, with PostgreSQL's own tools, as `docs/OPERATIONS.md` describes them.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use governance::Timestamp;
use tokio::process::Command;

use crate::home::{Home, now};
use crate::stage::{PATIENCE, Stage, eventually};

const SHARDS: [u8; 3] = [10, 12, 13];

/// Runs one of PostgreSQL's tools.
async fn tool(name: &str, arguments: &[&str]) {
    let done = Command::new(name).args(arguments).stdin(Stdio::null()).output().await;
    let done = done.unwrap_or_else(|error| panic!("{name} belongs to PostgreSQL's client programs: {error}"));
    assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
}

async fn back_up(stage: &Stage, file: &Path) {
    let file = file.to_str().unwrap();
    tool("pg_dump", &["--format", "custom", "--file", file, "--dbname", &stage.postgres_url]).await;
}

/// Loses the database and puts the backup in its place.
async fn restore(stage: &Stage, file: &Path) {
    let (server, name) = stage.postgres_url.rsplit_once('/').unwrap();
    let admin = audit_archiver::connect(&format!("{server}/postgres"), "test").await.unwrap();
    admin.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
    admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
    let file = file.to_str().unwrap();
    tool("pg_restore", &["--exit-on-error", "--dbname", &stage.postgres_url, file]).await;
}

async fn serve(homes: &mut [Home], blocks: usize) {
    for home in homes {
        for _ in 0..blocks {
            home.serve(now(), 5, "").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_archive_goes_on_from_redis_with_nothing_missing_and_nothing_twice() {
    let Some(stage) = Stage::set().await else { return };
    let mut homes = SHARDS.map(|shard| Home::of(&stage, shard));
    let archiver = stage.archiver(&[]);
    serve(&mut homes, 20).await;
    eventually("some of it is archived", async || {
        stage.number("SELECT count(*) FROM audit_block").await >= 10
    })
    .await;
    // While the archiver works: the dump sees rows and cursors of one moment.
    let file = stage.file("archive.dump");
    let (_, ()) = tokio::join!(back_up(&stage, &file), serve(&mut homes, 20));
    stage.archive.until_archived(&stage.redis_url, PATIENCE).await.unwrap();
    assert!(archiver.terminate().await.success());

    restore(&stage, &file).await;
    let in_backup = stage.number("SELECT count(*) FROM audit_block").await;
    assert!((10..120).contains(&in_backup), "the backup is older than the loss: {in_backup}");
    let archiver = stage.archiver(&[]);
    serve(&mut homes, 5).await;
    let archive = audit_archiver::archive::Archive::connect(&stage.postgres_url).await.unwrap();
    archive.until_archived(&stage.redis_url, PATIENCE).await.unwrap();
    let books = archive.books(Timestamp::ZERO).await.unwrap();
    assert!(books.balanced(), "{books:?}");
    assert_eq!((books.accepted, books.completed), (3 * 45 * 5, 3 * 45 * 5));
    let distinct = "SELECT count(DISTINCT (shard, epoch, sequence)) FROM audit_block";
    assert_eq!(stage.number(distinct).await, 3 * 45);
    assert_eq!(stage.number("SELECT count(*) FROM audit_block").await, 3 * 45);
    assert!(archiver.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_older_than_what_redis_still_holds_stops_and_says_what_is_missing() {
    let Some(stage) = Stage::set().await else { return };
    let mut home = Home::of(&stage, 14);
    let mut whole = Home::of(&stage, 15);
    let earlier = Timestamp(now().0 - Duration::from_secs(60).as_nanos() as u64);
    let archiver = stage.archiver(&["--hot-retention", "1s"]);
    for _ in 0..3 {
        home.serve(earlier, 1, "").await;
    }
    stage.archive.until_archived(&stage.redis_url, PATIENCE).await.unwrap();
    let file = stage.file("old.dump");
    back_up(&stage, &file).await;
    for _ in 0..4 {
        home.serve(earlier, 1, "").await;
    }
    stage.snapshot(14, home.head, "1-7").await;
    eventually("Redis is trimmed beyond the backup", async || stage.ids(14).await == ["1-7"]).await;
    assert!(archiver.terminate().await.success());

    restore(&stage, &file).await;
    let archiver = stage.archiver(&["--hot-retention", "1s"]);
    whole.serve(now(), 1, "").await;
    let archive = audit_archiver::archive::Archive::connect(&stage.postgres_url).await.unwrap();
    let stopped = async || {
        let cursors = archive.cursors().await.unwrap();
        cursors.into_iter().find(|c| c.shard == 14).and_then(|c| c.stopped)
    };
    eventually("the shard stops", async || stopped().await.is_some()).await;
    let why = stopped().await.unwrap();
    assert_eq!(why, "block 1-7 does not follow block 1-3: what lies between is missing");
    eventually("the others go on", async || {
        stage.number("SELECT count(*) FROM audit_block WHERE shard = 15").await == 1
    })
    .await;
    assert_eq!(
        stage.number("SELECT count(*) FROM audit_block WHERE shard = 14").await,
        3,
        "nothing is skipped"
    );
    assert_eq!(stage.ids(14).await, ["1-7"], "and nothing more is trimmed");
    assert!(archiver.terminate().await.success());
}
