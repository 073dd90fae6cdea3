//! An archive of before, with a row for each dispatch, becomes one of runs: nothing is lost, everything reads and proves as it did.

use std::time::Duration;

use audit_archiver::archive::{Archive, LogRow};
use audit_archiver::verify::{Request, verify};
use bytes::Bytes;
use futures::{SinkExt as _, TryStreamExt as _};
use governance::{DispatchId, Outcome, Timestamp};
use protocol::audit::CompletionRow;
use tokio_postgres::Client;

use crate::home::{Home, decided, ended, now};
use crate::stage::{PATIENCE, Stage, eventually};

/// The last version with a row for each dispatch.
const BEFORE: i32 = 3;
const TABLES: [(&str, &str); 4] = [
    ("audit_block", "at"),
    ("dispatch_decision", "decided"),
    ("dispatch_completion", "completed"),
    ("audit_note", "at"),
];

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_single_rows_becomes_one_of_runs() {
    let Some(stage) = Stage::set().await else { return };
    let mut home = Home::of(&stage, 9);
    archive_all_kinds(&stage, &mut home).await;

    let url = Stage::database("archiver_before").await;
    let mut before = audit_archiver::connect(&url, "test").await.unwrap();
    audit_archiver::migrate_to_version(&mut before, BEFORE).await.unwrap();
    let now_client = audit_archiver::connect(&stage.postgres_url, "test").await.unwrap();
    for (table, time) in TABLES {
        carry(&now_client, &before, table, time).await;
    }
    carry_cursor(&now_client, &before).await;
    let archive = Archive::connect(&url).await.unwrap();
    let written = log(&archive).await;
    assert_eq!(written, log(&stage.archive).await, "the view of runs says what the table of rows says");
    assert!(written.iter().any(|row| row.ran_ms == Some(f64::from(u32::MAX) / 1_000.0)), "{written:#?}");

    audit_archiver::migrate(&mut before).await.unwrap();
    assert_eq!(log(&archive).await, written);
    assert_eq!(
        archive.books(Timestamp::ZERO).await.unwrap(),
        stage.archive.books(Timestamp::ZERO).await.unwrap()
    );
    let request =
        Request { postgres_url: url.clone(), redis_url: stage.redis_url.clone(), ..Request::default() };
    let verdict = verify(&request).await.unwrap();
    assert!(verdict.whole && verdict.compared.records == 26, "{verdict:#?}");

    // It is archived on, and its old days go.
    home.serve(now(), 3, "lead-8").await;
    let upgraded = Stage { postgres_url: url, archive, ..stage };
    let archiver = upgraded.archiver(&["--retention-days", "365"]);
    upgraded.archive.until_archived(&upgraded.redis_url, PATIENCE).await.unwrap();
    eventually("the day of long ago is dropped", async || {
        upgraded.archive.by_conversation("lead-1").await.unwrap().is_empty()
    })
    .await;
    assert!(archiver.terminate().await.success());
    assert_eq!(upgraded.archive.by_conversation("lead-8").await.unwrap().len(), 3);
    let verdict = verify(&request).await.unwrap();
    assert!(verdict.whole, "{verdict:#?}");
}

/// A day of long ago, a plain envelope, and one whose ends differ in their times: two of its six slots have none, one has two.
async fn archive_all_kinds(stage: &Stage, home: &mut Home) {
    home.serve(Timestamp(now().0 - 400 * 86_400_000_000_000), 2, "lead-1").await;
    let plain = home.serve(now(), 5, "lead-7").await;
    let first = DispatchId { sequence: plain.sequence + 100, ..plain };
    let at = now();
    let ends = [3_u16, 0, 1, 5].map(|slot| CompletionRow {
        inbox_us: u32::from(slot) * 10,
        ran_us: if slot == 3 { u32::MAX } else { 7 },
        response: if slot == 1 { [0; 16] } else { [slot as u8 + 1; 16] },
        ..ended(DispatchId { slot, ..first }, 1, at)
    });
    home.append(at, vec![decided(first, 6, at)], ends.to_vec(), Vec::new()).await;
    let late = CompletionRow { late: true, outcome: Outcome::Failure, ..ended(first, 2, now()) };
    home.append(now(), Vec::new(), vec![late], Vec::new()).await;
    let archiver = stage.archiver(&["--retention-days", "1000"]);
    stage.archive.until_archived(&stage.redis_url, PATIENCE).await.unwrap();
    assert!(archiver.terminate().await.success());
}

async fn log(archive: &Archive) -> Vec<LogRow> {
    tokio::time::timeout(Duration::from_secs(30), async {
        archive.export(Timestamp::ZERO).await.unwrap().try_collect().await.unwrap()
    })
    .await
    .unwrap()
}

/// Copies the rows of a table or view into a table of before, with its partitions.
async fn carry(from: &Client, to: &Client, table: &str, time: &str) {
    let days = format!("SELECT DISTINCT to_char({time} AT TIME ZONE 'UTC', 'YYYYMMDD') FROM {table}");
    for day in from.query(&days, &[]).await.unwrap() {
        let day: &str = day.get(0);
        let make = format!(
            "CREATE TABLE {table}_{day} (LIKE {table} INCLUDING ALL); \
             ALTER TABLE {table} ATTACH PARTITION {table}_{day} FOR VALUES \
             FROM ('{day} 00:00:00+00') TO (timestamptz '{day} 00:00:00+00' + interval '1 day')"
        );
        to.batch_execute(&make).await.unwrap();
    }
    carry_rows(from, to, &format!("(SELECT * FROM {table})"), table).await;
}

async fn carry_cursor(from: &Client, to: &Client) {
    to.batch_execute("DELETE FROM archive_cursor").await.unwrap();
    carry_rows(from, to, "archive_cursor", "archive_cursor").await;
}

/// Views and tables name their columns in the same order.
async fn carry_rows(from: &Client, to: &Client, source: &str, table: &str) {
    let rows = from.copy_out(&format!("COPY {source} TO STDOUT")).await.unwrap();
    let rows: Vec<Bytes> = rows.try_collect().await.unwrap();
    let sink = to.copy_in(&format!("COPY {table} FROM STDIN")).await.unwrap();
    futures::pin_mut!(sink);
    for piece in rows {
        sink.send(piece).await.unwrap();
    }
    sink.finish().await.unwrap();
}
