//! A shard that stopped goes on when its trail is repaired; partitions are there before their day; a batch may span midnight.

use std::time::Duration;

use governance::Timestamp;
use protocol::redis as keys;

use crate::home::{Home, now};
use crate::stage::{PATIENCE, Stage, eventually};

const NANOS_OF_DAY: u64 = 86_400_000_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_stopped_at_a_gap_goes_on_when_its_trail_is_whole_again() {
    let Some(stage) = Stage::set().await else { return };
    let mut home = Home::of(&stage, 5);
    for _ in 0..6 {
        home.serve(now(), 3, "").await;
    }
    let mut redis = stage.redis.clone();
    let whole: Vec<u8> = redis::cmd("DUMP").arg(keys::stream(5)).query_async(&mut redis).await.unwrap();
    let removed: u64 =
        redis::cmd("XDEL").arg(keys::stream(5)).arg("1-4").query_async(&mut redis).await.unwrap();
    assert_eq!(removed, 1);
    let archiver = stage.archiver(&[]);
    eventually("the shard stops", async || stage.stopped(5).await.is_some()).await;
    let archived = "SELECT count(*) FROM audit_block WHERE shard = 5";
    assert_eq!(stage.number(archived).await, 3, "what lies before the gap is archived");

    let restored: String = redis::cmd("RESTORE")
        .arg(keys::stream(5))
        .arg(0)
        .arg(whole)
        .arg("REPLACE")
        .query_async(&mut redis)
        .await
        .unwrap();
    assert_eq!(restored, "OK");
    eventually("the shard goes on", async || stage.number(archived).await == 6).await;
    assert_eq!(stage.stopped(5).await, None, "the alarm is over");
    assert!(archiver.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_made_ahead_and_a_batch_spans_midnight() {
    let Some(stage) = Stage::set().await else { return };
    let archiver = stage.archiver(&[]);
    let partitions = async |when: &str| {
        let query = format!(
            "SELECT count(*) FROM unnest(ARRAY['audit_block', 'decision_run', 'completion_run', 'audit_note']) t \
             WHERE to_regclass(t || '_' || to_char(timezone('UTC', now()) + interval '{when}', 'YYYYMMDD')) IS NOT NULL"
        );
        stage.number(&query).await
    };
    eventually("today's and tomorrow's partitions", async || {
        partitions("0 days").await == 4 && partitions("1 day").await == 4
    })
    .await;

    // The home's clock passes midnight in the middle of what it writes; one run ends on the day after it was decided.
    let midnight = Timestamp((now().0 / NANOS_OF_DAY - 3) * NANOS_OF_DAY);
    let mut home = Home::of(&stage, 6);
    for before_ms in [500, 100, 1] {
        home.serve(Timestamp(midnight.0 - before_ms * 1_000_000), 4, "").await;
    }
    for after_ms in [0, 1, 500] {
        home.serve(midnight.after(Duration::from_millis(after_ms)), 4, "").await;
    }
    stage.archive.until_archived(&stage.redis_url, PATIENCE).await.unwrap();
    let by_day = async |table: &str, time: &str| {
        let query = format!(
            "SELECT array_to_string(array_agg(n ORDER BY day), ',') FROM \
             (SELECT date_trunc('day', timezone('UTC', {time})) AS day, count(*) AS n FROM {table} GROUP BY 1) d"
        );
        stage.text(&query).await
    };
    assert_eq!(by_day("audit_block", "at").await, "3,3");
    assert_eq!(by_day("dispatch_decision", "decided").await, "12,12");
    // An end comes 140 ms after its decision: of the blocks 100 ms and 1 ms before midnight that is the next day.
    assert_eq!(by_day("dispatch_completion", "completed").await, "4,20");
    let books = stage.archive.books(Timestamp::ZERO).await.unwrap();
    assert!(books.balanced() && books.completed == 24, "{books:?}");
    assert!(archiver.terminate().await.success());
}
