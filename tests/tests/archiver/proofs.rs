//! What others are shown: bundles that prove themselves, the report of a month, a million records verified.

use std::time::Duration;

use audit_archiver::archive::{DayOf, HoldRequest, MonthOf};
use audit_archiver::checkpoint::{CheckpointKey, PublicKey};
use audit_archiver::verify::{Kind, bundle};
use governance::{Decision, DispatchId, Kind as DispatchKind, Outcome, Reason, Timestamp};
use protocol::audit::{CompletionRow, DecisionRow, Note};

use crate::home::{Home, decided, ended, now};
use crate::scene::{BLOCKS, REQUESTS, SHARD, Scene, id, public};
use crate::stage::PATIENCE;

/// A bundle of everything, as lines of text.
async fn bundle(scene: &Scene) -> Vec<String> {
    let mut bytes = Vec::new();
    let folders = [scene.checkpoints()];
    let exported =
        bundle::export(&scene.stage.postgres_url, Timestamp::ZERO, &folders, &[public()], &mut bytes)
            .await
            .unwrap();
    assert!(exported.checkpoints >= 1 && exported.blocks > 2 * BLOCKS, "{exported:?}");
    String::from_utf8(bytes).unwrap().lines().map(Into::into).collect()
}

/// What is wrong with a bundle.
fn faults(lines: &[String]) -> Vec<String> {
    let verdict = bundle::check(lines.join("\n").as_bytes(), &[public()]).unwrap();
    assert_eq!(verdict.whole, verdict.faults.is_empty());
    verdict.faults.into_iter().map(|fault| fault.problem).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_proves_itself_and_a_tampered_one_does_not() {
    let Some(mut scene) = Scene::set().await else { return };
    // Of each kind of line: a refusal, an event that is open, a child, a reply without a payload.
    let root = scene.homes[0].serve(now(), 2, "sms-17").await;
    let other = |sequence| DispatchId { sequence, ..root };
    let refused = DecisionRow {
        decision: Decision::Rejected,
        reason: Reason::UndeclaredDependency,
        outcome: Some(Outcome::Rejected),
        target: "".into(),
        ..decided(other(100), 1, now())
    };
    let open = DecisionRow {
        kind: DispatchKind::Event,
        root: Some(root),
        parent: Some(root),
        ..decided(other(101), 2, now())
    };
    let bare = CompletionRow { response: [0; 16], outcome: Outcome::Failure, ..ended(other(102), 1, now()) };
    let rows = vec![refused, open, decided(other(102), 1, now())];
    scene.homes[0].append(now(), rows, vec![bare], Vec::new()).await;
    let archiver = scene.archiver(&[]);
    scene.stage.archive.until_archived(&scene.stage.redis_url, PATIENCE).await.unwrap();
    scene.signed(2).await;
    assert!(archiver.terminate().await.success());

    let lines = bundle(&scene).await;
    assert_eq!(faults(&lines), Vec::<String>::new());
    let whole = bundle::check(lines.join("\n").as_bytes(), &[public()]).unwrap();
    let dispatches = 2 * BLOCKS * u64::from(REQUESTS) + 2 + 4;
    let open_ones = 2;
    assert_eq!(whole.checked.lines, 2 * dispatches - open_ones);
    assert_eq!(whole.unsigned_blocks, 0, "{whole:?}");
    let stranger: PublicKey = "8".repeat(64).parse::<CheckpointKey>().unwrap().public();
    assert!(!bundle::check(lines.join("\n").as_bytes(), &[stranger]).unwrap().whole);

    let at = |start: &str| lines.iter().position(|line| line.starts_with(start)).unwrap();
    let tampered = |change: &dyn Fn(&mut Vec<String>)| {
        let mut copy = lines.clone();
        change(&mut copy);
        assert_ne!(copy, lines);
        faults(&copy)
    };
    let (line, block, checkpoint) = (at("{\"line\""), at("{\"shard\""), at("{\"checkpoint\""));
    let found = tampered(&|copy| copy[line] = copy[line].replacen("\"ran_ms\":138.0", "\"ran_ms\":13.0", 1));
    assert!(found[0].contains("ran_ms is 13.0, and 138.0 by its block"), "{found:?}");
    let found = tampered(&|copy| drop(copy.remove(line)));
    assert!(found[0].contains("is missing"), "{found:?}");
    let found = tampered(&|copy| copy.push(copy[line].clone()));
    assert!(found[0].contains("no block asks for it"), "{found:?}");
    let found = tampered(&|copy| drop(copy.remove(block + 2)));
    assert!(found[0].contains("does not follow"), "{found:?}");
    let found = tampered(&|copy| {
        let bit = copy[block + 1].len() - 3;
        let other = if copy[block + 1].as_bytes()[bit] == b'8' { "9" } else { "8" };
        copy[block + 1].replace_range(bit..=bit, other);
    });
    assert!(found.iter().any(|fault| fault.contains("does not carry the hash")), "{found:?}");
    let found = tampered(&|copy| copy[checkpoint] = copy[checkpoint].replacen("1-", "1-1", 1));
    assert!(found.iter().any(|fault| fault.contains("signature")), "{found:?}");
    let found = tampered(&|copy| copy.retain(|line| !line.starts_with("{\"checkpoint\"")));
    assert!(found[0].contains("no checkpoint signs"), "{found:?}");
    let last_block = lines.iter().rposition(|line| line.starts_with("{\"shard\"")).unwrap();
    let found = tampered(&|copy| drop(copy.remove(last_block)));
    assert!(found.iter().any(|fault| fault.contains("is signed")), "{found:?}");
}

const AN_HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test(flavor = "multi_thread")]
async fn a_month_s_report_counts_what_is_missing_and_who_did_what() {
    let Some(mut scene) = Scene::empty().await else { return };
    // One moment for all of it, whose month is the one that is asked about.
    let at = now();
    let first = scene.homes[0].serve(at, 5, "").await;
    let other = |sequence| DispatchId { sequence, ..first };
    let lost =
        DecisionRow { deadline: Timestamp(at.0 - AN_HOUR.as_nanos() as u64), ..decided(other(100), 2, at) };
    // It is under way however long this test takes.
    let open = DecisionRow { deadline: at.after(AN_HOUR), ..decided(other(102), 1, at) };
    let refused = DecisionRow {
        decision: Decision::Rejected,
        reason: Reason::UndeclaredDependency,
        outcome: Some(Outcome::Rejected),
        ..decided(other(101), 1, at)
    };
    let body = "{\"verb\":\"trip\",\"operator\":\"ann\",\"reason\":\"drill\"}".to_owned();
    let note = Note { kind: "operator".into(), at, agent: "crm".into(), body };
    let rows = vec![lost, refused, open];
    scene.homes[0].append(at, rows, Vec::new(), vec![note]).await;
    let hold = HoldRequest {
        from: Some("2026-01-01".into()),
        reason: "complaint 17".into(),
        by: "counsel".into(),
        ..HoldRequest::default()
    };
    scene.stage.archive.place_hold(&hold).await.unwrap();
    let archiver = scene.archiver(&[]);
    scene.stage.archive.until_archived(&scene.stage.redis_url, PATIENCE).await.unwrap();
    assert!(archiver.terminate().await.success());

    let name = protocol::text::rfc3339(at)[..7].to_owned();
    let report = scene.stage.archive.compliance(MonthOf::parse(&name).unwrap()).await.unwrap();
    let sum = |pick: fn(&DayOf) -> u64| report.days.iter().map(pick).sum::<u64>();
    assert_eq!((sum(|d| d.dispatches), sum(|d| d.with_outcome)), (9, 6), "{report:#?}");
    assert_eq!((sum(|d| d.without_outcome), sum(|d| d.open)), (2, 1), "{report:#?}");
    assert_eq!((sum(|d| d.blocks), sum(|d| d.blocks_missing)), (2, 0));
    let ids: Vec<_> = report.unended.iter().map(|one| one.dispatch_id.clone()).collect();
    assert_eq!(ids, ["d-0000000000001005-64-0", "d-0000000000001005-64-1"]);
    assert_eq!((report.unended_more, report.violations[0].reason.as_str()), (0, "undeclared_dependency"));
    assert_eq!(report.operators[0].body["operator"], "ann");
    assert_eq!(report.holds[0].placed_by, "counsel");
    assert!(report.kept.days >= 2 && report.archive_stops.is_empty() && report.stopped.is_empty());
    let other_month = scene.stage.archive.compliance(MonthOf::parse("2020-01").unwrap()).await.unwrap();
    assert!(other_month.days.is_empty() && other_month.operators.is_empty());
}

/// Requests of each shard in the measurement: a decision and an end each, over a million records in all.
const MANY: u16 = 8_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_million_records_are_verified() {
    let Some(scene) = Scene::empty().await else { return };
    let archiver = scene.archiver(&[]);
    let writers: Vec<_> = (0..governance::SHARDS)
        .map(|shard| {
            let mut home = Home::of(&scene.stage, shard);
            // Blocks of a busy mesh, and of one that is less so.
            let requests = [500, 100, 20, 500][usize::from(shard % 4)];
            tokio::spawn(async move {
                for _ in 0..MANY / requests {
                    home.serve(now(), requests, "").await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    scene.stage.archive.until_archived(&scene.stage.redis_url, PATIENCE).await.unwrap();
    assert!(archiver.terminate().await.success());
    for _ in 0..3 {
        let started = std::time::Instant::now();
        let verdict = scene.verify_with(Vec::new(), Timestamp::ZERO).await;
        eprintln!("verified in {:?}: {:?}", started.elapsed(), verdict.compared);
        assert!(verdict.whole, "{verdict:#?}");
        assert!(
            verdict.compared.records > 1_000_000 && verdict.compared.rows < verdict.compared.records / 20
        );
    }
    // One record in a million.
    let delete = format!(
        "UPDATE completion_run SET slots = set_bit(repeat('1', count)::varbit, 7, 0), count = count - 1 \
         WHERE shard = {SHARD} AND block = 40"
    );
    assert_eq!(scene.sql(&delete).await, 1);
    let found = scene.found().await;
    assert_eq!((found.block, found.kind), (id(40), Kind::RowMissing), "{found}");
    assert_eq!(found.record.as_deref(), Some("end of d-0000000000001005-28-7"));
}
