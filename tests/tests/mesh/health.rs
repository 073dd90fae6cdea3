//! What operators look at from outside: readiness and metrics.

use mesh_tests::Stage;

#[tokio::test]
async fn every_coordinator_is_alive_and_ready() {
    let stage = Stage::set().await;
    for address in &stage.settings.coordinators {
        for path in ["/healthz", "/readyz"] {
            let answer = stage.http(address, path).await.expect("a coordinator answers");
            assert!(answer.starts_with("HTTP/1.1 200"), "{address}{path}: {answer}");
        }
    }
}

#[tokio::test]
async fn metrics_follow_the_conventions_and_name_no_conversation() {
    let stage = Stage::set().await;
    for address in &stage.settings.coordinators {
        let text = stage.http(address, "/metrics").await.expect("a coordinator answers");
        let (_, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        let samples: Vec<&str> = body.lines().filter(|line| line.starts_with("mesh_")).collect();
        for line in body.lines().filter(|line| line.starts_with("# TYPE ")) {
            let mut words = line.split(' ').skip(2);
            let (name, kind) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            assert!(name.starts_with("mesh_"), "{line}");
            assert!(body.contains(&format!("# HELP {name} ")), "{name} says what it is");
            let unit = name.ends_with("_seconds");
            assert!(kind != "histogram" || unit, "{name} is measured in seconds");
            let total = samples.iter().filter(|s| s.starts_with(&format!("{name}_total")));
            let bare = samples
                .iter()
                .filter(|s| s.starts_with(&format!("{name} ")) || s.starts_with(&format!("{name}{{")));
            assert!(kind != "counter" || (bare.count() == 0 || total.count() > 0), "{name} ends with _total");
        }
        assert!(!body.contains("conversation"), "a label with an open list of values grows without end");
    }
}
