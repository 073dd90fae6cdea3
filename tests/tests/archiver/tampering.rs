//! What somebody with a database could change, and what `verify` says to it. Each test tampers with a real PostgreSQL, a real
//! Redis or real files, and asks for the shard, the block, the record and the store that are named.

use audit_archiver::verify::{Kind, Store};
use governance::Timestamp;
use protocol::audit::{self, Block, Note};
use protocol::redis::{self as keys, Head};

use crate::home::{Home, now};
use crate::scene::{BLOCKS, REQUESTS, SHARD, Scene, hex, id};
use crate::stage::{PATIENCE, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn an_untouched_archive_is_whole_and_says_how_much_was_compared() {
    let Some(scene) = Scene::set().await else { return };
    let verdict = scene.verify().await;
    assert!(verdict.whole, "{verdict:#?}");
    let compared = verdict.compared;
    let records = 2 * BLOCKS * u64::from(REQUESTS) * 2;
    assert_eq!((compared.blocks, compared.blocks_in_redis, compared.shards), (2 * BLOCKS, 2 * BLOCKS, 2));
    // A run of decisions and one of ends in each block.
    assert_eq!((compared.records, compared.rows), (records, 2 * BLOCKS * 2));
    assert!(compared.checkpoints >= 2 && compared.heads >= 2, "{compared:?}");

    let since = scene.verify_with(vec![scene.checkpoints()], now()).await;
    assert!(since.whole, "{since:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn live_traffic_raises_no_false_alarm() {
    let Some(mut scene) = Scene::empty().await else { return };
    // Redis keeps as little as it can, so that blocks go while they are read.
    let archivers = [scene.archiver(&["--hot-retention", "0s"]), scene.archiver(&["--hot-retention", "0s"])];
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..8)
        .map(|shard| {
            let (mut home, stop) = (Home::of(&scene.stage, 20 + shard), std::sync::Arc::clone(&stop));
            let redis = scene.stage.redis.clone();
            tokio::spawn(async move {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    home.serve(now(), REQUESTS, "").await;
                    let text = format!("{}\n{}\n{{}}", home.head, home.head.id);
                    let mut redis = redis.clone();
                    let _: () = redis::cmd("SET")
                        .arg(keys::snapshot(20 + shard))
                        .arg(text)
                        .query_async(&mut redis)
                        .await
                        .unwrap();
                }
            })
        })
        .collect();
    scene.signed(2).await;
    let mut compared = 0;
    for _ in 0..10 {
        let verdict = scene.verify().await;
        assert!(verdict.whole, "{verdict:#?}");
        compared = verdict.compared.records;
        scene.signed(1).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    scene.homes[0].serve(now(), 1, "").await;
    scene.stage.archive.until_archived(&scene.stage.redis_url, PATIENCE).await.unwrap();
    let verdict = scene.verify().await;
    assert!(verdict.whole && verdict.compared.records > compared && compared > 1_000, "{verdict:#?}");
    for archiver in archivers {
        assert!(archiver.terminate().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bit_of_a_block_in_postgresql_is_found() {
    let Some(scene) = Scene::set().await else { return };
    // The last byte belongs to a hash of a payload, so that the block can still be read.
    let flip = format!(
        "UPDATE audit_block SET data = set_byte(data, length(data) - 1, get_byte(data, length(data) - 1) # 1) \
         WHERE shard = {SHARD} AND sequence = 3"
    );
    assert_eq!(scene.sql(&flip).await, 1);
    let found = scene.found().await;
    assert_eq!(
        (found.block, found.kind, found.store),
        (id(3), Kind::BlockChanged, Store::Postgres),
        "{found}"
    );
    assert!(found.expected.contains(&hex(&audit::hash(&scene.block(3).await))), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bit_of_a_block_is_found_also_where_its_hash_was_made_to_fit() {
    let Some(scene) = Scene::set().await else { return };
    let mut bytes = scene.block(3).await;
    *bytes.last_mut().unwrap() ^= 1;
    let fit = format!(
        "UPDATE audit_block SET data = '\\x{}', hash = '\\x{}' WHERE shard = {SHARD} AND sequence = 3",
        hex(&bytes),
        hex(&audit::hash(&bytes))
    );
    assert_eq!(scene.sql(&fit).await, 1);
    let found = scene.found().await;
    assert_eq!(
        (found.block, found.kind, found.store),
        (id(3), Kind::BlockChanged, Store::Postgres),
        "{found}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bit_of_a_block_in_redis_is_found_archived_or_not() {
    let Some(mut scene) = Scene::set().await else { return };
    let whole = scene.blocks().await;
    let mut blocks = whole.clone();
    *blocks[3].1.last_mut().unwrap() ^= 1;
    scene.put(&blocks).await;
    let found = scene.found().await;
    assert_eq!((found.block, found.kind, found.store), (id(4), Kind::BlockChanged, Store::Redis), "{found}");

    scene.put(&whole).await;
    for _ in 0..3 {
        scene.homes[0].serve(now(), REQUESTS, "").await;
    }
    assert!(scene.verify().await.whole);
    for at in [7, 9] {
        let mut blocks = scene.blocks().await;
        let untouched = blocks.clone();
        *blocks[at - 1].1.last_mut().unwrap() ^= 1;
        scene.put(&blocks).await;
        let found = scene.found().await;
        assert_eq!((found.block, found.kind), (id(at as u64), Kind::BlockChanged), "{found}");
        assert_eq!(found.store, Store::Redis);
        scene.put(&untouched).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_deleted_changed_or_added_is_named() {
    let Some(scene) = Scene::set().await else { return };
    let change = format!("UPDATE completion_run SET ran_us = 1 WHERE shard = {SHARD} AND block = 5");
    assert_eq!(scene.sql(&change).await, 1);
    let found = scene.found().await;
    assert_eq!((found.block, found.kind, found.store), (id(5), Kind::RowChanged, Store::Postgres), "{found}");
    assert_eq!(found.record.as_deref(), Some("end of d-0000000000001005-5-0"));
    assert_eq!((found.expected.as_str(), found.found.as_str()), ("ran_us 138000", "ran_us 1"));

    let delete = format!("DELETE FROM decision_run WHERE shard = {SHARD} AND block = 4");
    assert_eq!(scene.sql(&delete).await, 1);
    let found = scene.found().await;
    assert_eq!((found.block, found.kind), (id(4), Kind::RowMissing), "{found}");
    assert_eq!(found.record.as_deref(), Some("decision of d-0000000000001005-4-0"));
    assert!(found.expected.contains("3 dispatches"), "{found}");

    let add = format!(
        "INSERT INTO audit_note (at, epoch, block, shard, kind, agent, body) VALUES (now(), 1, 2, {SHARD}, 'operator', 'x', '{{}}')"
    );
    assert_eq!(scene.sql(&add).await, 1);
    let found = scene.found().await;
    assert_eq!((found.block, found.kind), (id(2), Kind::RowSurplus), "{found}");
    assert!(found.record.unwrap().starts_with("note operator about x"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_to_one_dispatch_of_a_run_is_named() {
    let Some(scene) = Scene::set().await else { return };
    let bit = format!(
        "UPDATE decision_run SET payload_hashes = set_byte(payload_hashes, 16, get_byte(payload_hashes, 16) # 1) \
         WHERE shard = {SHARD} AND block = 6"
    );
    assert_eq!(scene.sql(&bit).await, 1);
    let found = scene.found().await;
    assert_eq!((found.block, found.kind, found.store), (id(6), Kind::RowChanged, Store::Postgres), "{found}");
    assert_eq!(found.record.as_deref(), Some("decision of d-0000000000001005-6-1"));
    let (asked, there) = ("09".repeat(16), format!("08{}", "09".repeat(15)));
    assert_eq!(
        (found.expected, found.found),
        (format!("payload_hash {asked}"), format!("payload_hash {there}"))
    );

    // The last of three is cut off, so that the rest is a run of two.
    let cut = format!(
        "UPDATE decision_run SET count = 2, payload_hashes = substr(payload_hashes, 1, 32) WHERE shard = {SHARD} AND block = 5"
    );
    assert_eq!(scene.sql(&cut).await, 1);
    let found = scene.found().await;
    assert_eq!((found.block, found.kind), (id(5), Kind::RowMissing), "{found}");
    assert_eq!(found.record.as_deref(), Some("decision of d-0000000000001005-5-2"));

    // One of three is given a time of its own.
    let time = format!(
        "UPDATE completion_run SET ran_us = NULL, ran_each = ARRAY[138000, 138000, 7] WHERE shard = {SHARD} AND block = 4"
    );
    assert_eq!(scene.sql(&time).await, 1);
    let found = scene.found().await;
    assert_eq!((found.block, found.kind), (id(4), Kind::RowChanged), "{found}");
    assert_eq!(found.record.as_deref(), Some("end of d-0000000000001005-4-2"));
    assert_eq!((found.expected.as_str(), found.found.as_str()), ("ran_us 138000", "ran_us 7"));

    // A run that claims more slots than it has hashes, and an end with one time for three slots.
    let claim = format!("UPDATE decision_run SET count = 4 WHERE shard = {SHARD} AND block = 3");
    assert_eq!(scene.sql(&claim).await, 1);
    let found = scene.found().await;
    assert_eq!((found.block, found.kind), (id(3), Kind::RowChanged), "{found}");
    assert!(found.found.contains("do not fit"), "{found}");
    let short = format!(
        "UPDATE completion_run SET ran_us = NULL, ran_each = ARRAY[1] WHERE shard = {SHARD} AND block = 2"
    );
    assert_eq!(scene.sql(&short).await, 1);
    let found = scene.found().await;
    assert_eq!((found.block, found.kind), (id(2), Kind::RowChanged), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn how_records_are_cut_into_rows_is_no_break() {
    let Some(scene) = Scene::set().await else { return };
    // As an archive of before is found: a row for each dispatch.
    let cut = "INSERT INTO decision_run SELECT (jsonb_populate_record(r, jsonb_build_object('slot', r.slot + n, 'count', 1, \
               'payload_hashes', substr(r.payload_hashes, n * 16 + 1, 16)))).* FROM decision_run r, generate_series(0, count - 1) n";
    assert_eq!(scene.sql("DELETE FROM decision_run WHERE count = 1").await, 0);
    assert_eq!(scene.sql(cut).await, 2 * BLOCKS * u64::from(REQUESTS));
    assert_eq!(scene.sql("DELETE FROM decision_run WHERE count > 1").await, 2 * BLOCKS);
    let verdict = scene.verify().await;
    assert!(verdict.whole, "{verdict:#?}");
    assert_eq!(verdict.compared.rows, 2 * BLOCKS * (u64::from(REQUESTS) + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_a_block_that_never_was_is_found() {
    let Some(scene) = Scene::set().await else { return };
    let add = format!(
        "INSERT INTO audit_note (at, epoch, block, shard, kind, agent, body) VALUES (now(), 7, 1, {SHARD}, 'operator', 'x', '{{}}')"
    );
    assert_eq!(scene.sql(&add).await, 1);
    let found = scene.found().await;
    assert_eq!((found.block.epoch, found.kind), (7, Kind::RowSurplus), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_whose_tail_was_cut_off_is_found() {
    let Some(scene) = Scene::set().await else { return };
    scene.truncate_postgres(4).await;
    let found = scene.found().await;
    assert_eq!(
        (found.block, found.kind, found.store),
        (id(5), Kind::TailMissing, Store::Postgres),
        "{found}"
    );

    // With the tail gone from Redis as well, only the signed heads know of it.
    let blocks = scene.blocks().await;
    scene.put(&blocks[..4]).await;
    scene.set_head(Head { id: id(4), hash: audit::hash(&blocks[3].1) }).await;
    assert!(
        scene.verify_with(Vec::new(), Timestamp::ZERO).await.whole,
        "without checkpoints it cannot be known"
    );
    let found = scene.found().await;
    assert_eq!(found.kind, Kind::TailMissing, "{found}");
    assert!(found.found.contains("cursor at block 1-4") || found.expected.contains("signed"), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trail_whose_tail_was_cut_off_is_found() {
    let Some(scene) = Scene::set().await else { return };
    let blocks = scene.blocks().await;
    scene.put(&blocks[..4]).await;
    let found = scene.found().await;
    assert_eq!((found.block, found.kind, found.store), (id(5), Kind::TailMissing, Store::Redis), "{found}");

    scene.set_head(Head { id: id(4), hash: audit::hash(&blocks[3].1) }).await;
    let found = scene.found().await;
    assert_eq!((found.block, found.kind, found.store), (id(5), Kind::TailMissing, Store::Redis), "{found}");
    assert!(found.expected.contains("1-6"), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_blocks_that_were_swapped_are_found() {
    let Some(scene) = Scene::set().await else { return };
    let swap = format!(
        "UPDATE audit_block b SET data = o.data, hash = o.hash, prev_hash = o.prev_hash FROM audit_block o \
         WHERE b.shard = {SHARD} AND o.shard = {SHARD} AND b.sequence IN (2, 4) AND o.sequence = 6 - b.sequence"
    );
    assert_eq!(scene.sql(&swap).await, 2);
    let found = scene.found().await;
    assert_eq!(
        (found.block, found.kind, found.store),
        (id(2), Kind::BlockMislabelled, Store::Postgres),
        "{found}"
    );
    assert!(found.found.contains("1-4"), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_was_taken_out_is_a_gap() {
    let Some(scene) = Scene::set().await else { return };
    assert_eq!(
        scene.sql(&format!("DELETE FROM audit_block WHERE shard = {SHARD} AND sequence = 3")).await,
        1
    );
    let found = scene.found().await;
    assert_eq!(
        (found.block, found.kind, found.store),
        (id(3), Kind::BlockMissing, Store::Postgres),
        "{found}"
    );
    let Some(first) = Scene::set().await else { return };
    assert_eq!(
        first.sql(&format!("DELETE FROM audit_block WHERE shard = {SHARD} AND sequence = 1")).await,
        1
    );
    let found = first.found().await;
    assert_eq!(
        (found.block, found.kind, found.store),
        (id(1), Kind::BlockMissing, Store::Postgres),
        "{found}"
    );
}

/// All blocks of the shard again, chained as they should be, with one note more in the second.
async fn rewritten(scene: &Scene) -> Vec<(u64, Vec<u8>)> {
    let mut previous = [0; 32];
    let mut blocks = scene.blocks().await;
    for (sequence, bytes) in &mut blocks {
        let mut block = Block { previous, ..Block::decode(bytes).unwrap() };
        if *sequence == 2 {
            let body = "{\"verb\":\"reset\"}".to_owned();
            block.notes.push(Note { kind: "operator".into(), at: block.at, agent: "crm".into(), body });
        }
        *bytes = block.encode();
        previous = audit::hash(bytes);
    }
    blocks
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_rewritten_as_a_whole_is_found_by_its_checkpoints_alone() {
    let Some(scene) = Scene::set().await else { return };
    let blocks = rewritten(&scene).await;
    let last = Head { id: id(BLOCKS), hash: audit::hash(&blocks.last().unwrap().1) };
    // In Redis alone it differs from PostgreSQL.
    scene.put(&blocks).await;
    scene.set_head(last).await;
    let found = scene.found().await;
    assert_eq!((found.block, found.kind, found.store), (id(2), Kind::CopiesDiffer, Store::Both), "{found}");

    // The archive forgets the shard and takes the new history for the first.
    for table in ["decision_run", "completion_run", "audit_note", "audit_block"] {
        scene.sql(&format!("DELETE FROM {table} WHERE shard = {SHARD}")).await;
    }
    let forget = format!(
        "UPDATE archive_cursor SET epoch = 0, sequence = 0, hash = decode(repeat('00', 32), 'hex') WHERE shard = {SHARD}"
    );
    assert_eq!(scene.sql(&forget).await, 1);
    let archiver = scene.stage.archiver(&[]);
    scene.stage.archive.until_archived(&scene.stage.redis_url, PATIENCE).await.unwrap();
    assert!(archiver.terminate().await.success());
    assert!(scene.verify_with(Vec::new(), Timestamp::ZERO).await.whole, "its own chain is without a fault");
    let found = scene.found().await;
    assert_eq!((found.block, found.kind), (id(BLOCKS), Kind::Rewritten), "{found}");
    assert!(found.expected.contains(&hex(&scene.homes[0].head.hash)), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_was_changed_or_removed_is_named() {
    let Some(scene) = Scene::set().await else { return };
    let second = scene.archiver(&[]);
    scene.signed(3).await;
    assert!(second.terminate().await.success());
    assert!(scene.verify().await.whole);
    let files = scene.lines();
    assert_eq!(files.len(), 2, "one file for each run");
    let (file, lines) = files.iter().find(|(_, lines)| lines.len() >= 3).unwrap();
    let put = |lines: &[String]| {
        std::fs::write(file, lines.iter().map(|line| format!("{line}\n")).collect::<String>())
    };

    let mut changed = lines.clone();
    changed[1] = changed[1].replacen("\"number\":2", "\"number\":3", 1);
    put(&changed).unwrap();
    let verdict = scene.verify().await;
    assert!(!verdict.whole && verdict.breaks.is_empty());
    assert_eq!((&verdict.checkpoints[0].file, verdict.checkpoints[0].line), (file, 2));
    assert!(verdict.checkpoints[0].problem.contains("signature"), "{verdict:#?}");

    let mut removed = lines.clone();
    removed.remove(1);
    put(&removed).unwrap();
    let verdict = scene.verify().await;
    assert!(!verdict.whole && verdict.checkpoints.len() == 1, "{verdict:#?}");
    assert!(verdict.checkpoints[0].problem.contains("missing"), "{verdict:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_dropped_is_said_and_is_no_break() {
    let Some(mut scene) = Scene::empty().await else { return };
    let ago = |days: u64| Timestamp(now().0 - days * 86_400_000_000_000);
    for days in [500, 400, 1, 0] {
        scene.homes[0].serve(ago(days), 1, "").await;
    }
    let archiver = scene.archiver(&["--retention-days", "365"]);
    eventually("two days are dropped", async || {
        // A day whose blocks come after it was dropped is made, and dropped, once more.
        scene.stage.number("SELECT count(DISTINCT body) FROM audit_note WHERE kind = 'day_dropped'").await
            == 2
            && scene.stage.number("SELECT count(*) FROM audit_block").await == 2
    })
    .await;
    scene.signed(1).await;
    assert!(archiver.terminate().await.success());
    let verdict = scene.verify().await;
    assert!(verdict.whole, "{verdict:#?}");
    assert!(verdict.remarks.iter().any(|r| r.contains("dropped by retention")), "{verdict:#?}");
    assert!(verdict.remarks.iter().any(|r| r.contains("vouched for")), "{verdict:#?}");

    // Without the note of a dropped day, the beginning was taken away by somebody.
    assert!(scene.sql("DELETE FROM audit_note WHERE kind = 'day_dropped'").await >= 2);
    let found = scene.found().await;
    assert_eq!((found.kind, found.store), (Kind::BlockMissing, Store::Postgres), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_takes_no_checkpoint_holds_up_no_archiving() {
    let Some(mut scene) = Scene::empty().await else { return };
    // A file stands where the folder should be: nothing can be written below it, whoever tries.
    std::fs::write(scene.checkpoints(), "in the way").unwrap();
    let address = scene.folder.join("http");
    let flags = ["--http", "127.0.0.1:0", "--http-addr-file", address.to_str().unwrap()];
    let archiver = scene.archiver(&flags);
    scene.homes[0].append(now(), vec![], vec![], vec![]).await;
    scene.stage.archive.until_archived(&scene.stage.redis_url, PATIENCE).await.unwrap();
    let metric = async |name: &str| scene.stage.metric(&address, name).await;
    eventually("the alarm is on", async || metric("checkpoint_overdue").await >= 1.0).await;
    std::fs::remove_file(scene.checkpoints()).unwrap();
    eventually("and goes off", async || metric("checkpoint_overdue").await == 0.0).await;
    assert!(metric("checkpoints_missed_total").await >= 1.0);
    assert!(metric("checkpoint_written_seconds").await > 1_700_000_000.0);
    assert!(archiver.terminate().await.success());
}
