//! What the archive answers: the log, trees, books and the report.

use std::time::Duration;

use futures::TryStreamExt;
use governance::{Decision, DispatchId, Outcome, Reason, Timestamp};
use protocol::audit::DecisionRow;

use crate::home::{Home, decided, ended, now};
use crate::stage::{PATIENCE, Stage};

/// A request, a child of it, and a child that was refused; archived. Returns the ids of the first two.
async fn archive_family(stage: &Stage) -> (DispatchId, DispatchId) {
    let mut home = Home::of(stage, 40);
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
    assert!(archiver.terminate().await.success());
    (root, child)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_has_the_shape_of_the_article() {
    let Some(stage) = Stage::set().await else { return };
    let (root, child) = archive_family(&stage).await;
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

    assert_eq!(stage.archive.tail(2).await.unwrap().len(), 2);
    let of = format!("SELECT count(*) FROM dispatch_log_of('{child}/reply')");
    assert_eq!(stage.number(&of).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_to_a_lead_is_found_by_id_root_conversation_and_agent() {
    let Some(stage) = Stage::set().await else { return };
    let (root, child) = archive_family(&stage).await;
    let tree = stage.archive.tree(&format!("{child}/reply")).await.unwrap().unwrap();
    assert_eq!(tree.root, root.to_string());
    assert_eq!(tree.hops.iter().map(|hop| hop.depth).collect::<Vec<_>>(), [0, 1, 1]);
    assert_eq!(stage.archive.by_conversation("lead-7").await.unwrap().len(), 3);
    let edges = stage.archive.edges(Timestamp::ZERO).await.unwrap();
    assert_eq!(
        edges.iter().map(|edge| (edge.dispatches, edge.rejected)).collect::<Vec<_>>(),
        [(1, 1), (2, 0)]
    );
    let by_agent = stage.archive.by_agent("billing", Timestamp::ZERO, now(), 10).await.unwrap();
    assert_eq!(by_agent.len(), 1);

    let books = stage.archive.books(Timestamp::ZERO).await.unwrap();
    assert!(books.balanced(), "{books:?}");
    assert_eq!((books.accepted, books.completed, books.rejected), (3, 2, 1));
    let report = stage.archive.report(Timestamp::ZERO).await.unwrap();
    assert_eq!(report.violations_blocked, 1);
    assert_eq!(report.own.map(|p| p.p50_ms), Some(4.0));
    assert_eq!(report.audit_completeness_pct, Some(100.0));
}
