//! Three archivers that are killed at any moment, and one that stood still and wakes up deposed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use governance::Timestamp;
use tokio::task::JoinSet;

use crate::home::{Home, now};
use crate::stage::{Archiver, PATIENCE, Stage, eventually};

const SHARDS: u8 = 16;
const REQUESTS: u16 = 20;
/// The seed of who is killed when.
const SEED: u64 = 0x5eed_a4c1;

/// Homes that go on until told to stop; how many blocks each wrote.
struct Writers {
    stop: Arc<AtomicBool>,
    running: JoinSet<u64>,
}

impl Writers {
    fn start(stage: &Stage) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut running = JoinSet::new();
        for shard in 0..SHARDS {
            let (mut home, stop) = (Home::of(stage, shard), Arc::clone(&stop));
            running.spawn(async move {
                let mut blocks = 0;
                while !stop.load(Ordering::Relaxed) {
                    home.serve(now(), REQUESTS, "").await;
                    blocks += 1;
                }
                blocks
            });
        }
        Self { stop, running }
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.running.join_all().await.into_iter().sum()
    }
}

async fn archived(stage: &Stage) -> i64 {
    stage.number("SELECT count(*) FROM audit_block").await
}

/// Waits until so many more blocks are archived.
async fn progress(stage: &Stage, more: i64) {
    let before = archived(stage).await;
    eventually("the archive goes on", async || archived(stage).await >= before + more).await;
}

/// A few blocks more, of shards that had none; how many.
async fn more(stage: &Stage) -> u64 {
    const MORE: u64 = 20;
    for shard in SHARDS..SHARDS * 2 {
        let mut home = Home::of(stage, shard);
        for _ in 0..MORE {
            home.serve(now(), REQUESTS, "").await;
        }
    }
    MORE * u64::from(SHARDS)
}

/// Everything that was written is there, once, and where the cursors say.
async fn check(stage: &Stage, blocks: u64) {
    stage.archive.until_archived(&stage.redis_url, PATIENCE).await.unwrap();
    let distinct = "SELECT count(DISTINCT (shard, epoch, sequence)) FROM audit_block";
    assert_eq!(archived(stage).await, blocks as i64);
    assert_eq!(stage.number(distinct).await, blocks as i64);
    let books = stage.archive.books(Timestamp::ZERO).await.unwrap();
    let requests = blocks * u64::from(REQUESTS);
    assert!(books.balanced(), "{books:?}");
    assert_eq!((books.accepted, books.completed, books.in_flight), (requests, requests, 0));
    let wrong_cursors = "SELECT count(*) FROM archive_cursor c LEFT JOIN LATERAL \
         (SELECT max(sequence) AS last FROM audit_block b WHERE b.shard = c.shard) b ON true \
         WHERE c.sequence <> coalesce(b.last, 0)";
    assert_eq!(stage.number(wrong_cursors).await, 0, "a cursor stands at the last block of its shard");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_archivers_that_are_killed_again_and_again_archive_each_block_once() {
    const KILLS: usize = 12;
    let Some(stage) = Stage::set().await else { return };
    let writers = Writers::start(&stage);
    let mut archivers: Vec<Archiver> = (0..3).map(|_| stage.archiver(&[])).collect();
    let mut random = SEED;
    for _ in 0..KILLS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // A little and uneven progress, so that transactions are hit at any point.
        progress(&stage, 1 + (random >> 33) as i64 % 200).await;
        let victim = (random >> 40) as usize % archivers.len();
        archivers.swap_remove(victim).kill().await;
        archivers.push(stage.archiver(&[]));
    }
    let blocks = writers.end().await;
    assert!(blocks > 1_000, "too little was compared: {blocks} blocks");
    check(&stage, blocks).await;
    for archiver in archivers {
        assert!(archiver.terminate().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archiver_that_stood_still_wakes_up_deposed_and_stores_nothing_twice() {
    let Some(stage) = Stage::set().await else { return };
    let writers = Writers::start(&stage);
    let (frozen, other) = (stage.archiver(&[]), stage.archiver(&[]));
    progress(&stage, 200).await;
    frozen.signal("STOP").await;
    let blocks = writers.end().await;
    // Its locks go although its connections live, so that the other one can archive what was its share.
    check(&stage, blocks).await;
    frozen.signal("CONT").await;
    let more = more(&stage).await;
    check(&stage, blocks + more).await;
    assert!(frozen.terminate().await.success(), "it goes on");
    assert!(other.terminate().await.success());
}
