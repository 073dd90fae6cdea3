//! A benchmark as users run it: figures as JSON with balanced books, and a page made of them.

use mesh_tests::root;
use serde_json::Value;
use tokio::process::Command;

/// Runs `loadgen` against the mesh of these tests, which it finds as they do.
async fn loadgen(arguments: &[&str]) {
    let run = Command::new(root().join("target/release/loadgen")).args(arguments).output().await;
    let output = run.expect("loadgen is built with the release binaries");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "loadgen {arguments:?} failed: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_benchmark_leaves_figures_and_a_page() {
    let folder = std::env::temp_dir().join(format!("mesh-benchmark-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for the report");
    let (json, html) = (folder.join("latency.json"), folder.join("latency.html"));
    let (json_path, html_path) = (json.to_string_lossy(), html.to_string_lossy());
    loadgen(&["latency", "--rate", "40", "--seconds", "3", "--agents", "1", "--json", &json_path]).await;
    loadgen(&["report", "--json", &json_path, "--out", &html_path]).await;

    let report = std::fs::read_to_string(&json).expect("the figures were written");
    let report: Value = serde_json::from_str(&report).expect("the figures are JSON");
    let number = |path: &str| {
        path.split('.').fold(&report, |value, name| &value[name]).as_f64().unwrap_or_else(|| panic!("{path}"))
    };
    assert_eq!(report["scenario"], "latency");
    // A second of warm-up and three that are measured.
    for (count, expected) in
        [("accepted", 160.0), ("completed", 160.0), ("audited", 160.0), ("lost", 0.0), ("failed", 0.0)]
    {
        assert!((number(count) - expected).abs() < 0.5, "{count}: {}", number(count));
    }
    for percentile in ["p0.p50_us", "p3.p99_us", "bare.p50_us", "stages.p0.reply.p50_us"] {
        assert!(number(percentile) > 0.0, "{percentile}");
    }
    let seconds = report["course"]["at_s"].as_array().map_or(0, Vec::len);
    assert!(seconds >= 2, "the course has {seconds} moments");
    for series in ["completed_per_s", "in_flight"] {
        assert_eq!(report["course"][series].as_array().map(Vec::len), Some(seconds), "{series}");
    }
    assert!(report["course"]["queues"]["lane P0"].is_array(), "the broker's queues are watched");
    assert!(report["course"]["processes"]["coordinator-0"]["rss_mb"].is_array(), "so is each process");

    let page = std::fs::read_to_string(&html).expect("the page was written");
    for shown in ["the books balance", "Latency by percentile", "Where the time goes", "coordinator-0"] {
        assert!(page.contains(shown), "{shown}");
    }
    assert!(!page.contains("http:") && !page.contains("<script"), "the page needs nothing else");
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
}
