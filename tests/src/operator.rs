//! What operators see: readiness, metrics, and what `mesh doctor` says. Owns the waiting for it; a test says what it should be.

use std::collections::BTreeMap;
use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

use crate::settings::root;
use crate::{PATIENCE, Stage, until};

/// Waits until each coordinator answers this on `/readyz`: a status, and words in it.
///
/// # Panics
/// When one does not.
pub async fn until_readiness(stage: &Stage, status: &str, words: &str) {
    for address in &stage.settings.coordinators {
        until_answer(stage, address, status, words).await;
    }
}

/// Waits until one coordinator at least answers this on `/readyz`.
///
/// # Panics
/// When none does.
pub async fn until_one_says(stage: &Stage, status: &str, words: &str) {
    let waits = stage
        .settings
        .coordinators
        .iter()
        .map(|address| Box::pin(until_answer(stage, address, status, words)));
    futures::future::select_all(waits).await;
}

/// Waits until the archiver answers this on `/readyz`.
///
/// # Panics
/// When it does not.
pub async fn until_archiver(stage: &Stage, status: &str, words: &str) {
    until_answer(stage, &archiver(stage), status, words).await;
}

async fn until_answer(stage: &Stage, address: &str, status: &str, words: &str) {
    until(&format!("{address} answers {status} {words}"), PATIENCE, || async {
        let answer = stage.http(address, "/readyz").await.unwrap_or_default();
        answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(words)
    })
    .await;
}

/// Waits until the metric of each coordinator says whether a server does its work.
///
/// # Panics
/// When it does not.
pub async fn until_up(stage: &Stage, server: &str, up: bool) {
    let line = format!("mesh_server_up{{server=\"{server}\"}} {}", u8::from(up));
    for address in &stage.settings.coordinators {
        until(&format!("{address} shows {line}"), PATIENCE, || async {
            stage.http(address, "/metrics").await.unwrap_or_default().contains(&line)
        })
        .await;
    }
}

/// Waits until the archiver shows a metric with this value.
///
/// # Panics
/// When it does not.
pub async fn until_archiver_shows(stage: &Stage, metric: &str) {
    let address = archiver(stage);
    until(&format!("the archiver shows {metric}"), PATIENCE, || async {
        let shown = stage.http(&address, "/metrics").await.unwrap_or_default();
        shown.lines().any(|line| line.strip_prefix("mesh_audit_archiver_") == Some(metric))
    })
    .await;
}

fn archiver(stage: &Stage) -> String {
    let file = stage.settings.stack.join("run/audit-archiver.addr");
    let address = std::fs::read_to_string(&file).expect("the archiver has an address");
    address.trim().to_owned()
}

/// Asks `mesh doctor`, which must call this check a failure and say this about it.
///
/// # Panics
/// When it does not.
pub async fn doctor_fails(stage: &Stage, check: &str, word: &str) {
    doctor_says(stage, check, "fail", word).await;
}

/// Asks `mesh doctor`, which must give this check this state and say this about it.
///
/// # Panics
/// When it does not.
pub async fn doctor_says(stage: &Stage, check: &str, expected: &str, word: &str) {
    let said = doctor(stage).await;
    let (state, words) = said.get(check).unwrap_or_else(|| panic!("no check {check}: {said:?}"));
    assert_eq!(state, expected, "{check}: {words}");
    assert!(words.contains(word), "{check}: {words}");
}

/// What `mesh doctor` says: each check by its name, with its state and its words.
async fn doctor(stage: &Stage) -> BTreeMap<String, (String, String)> {
    // The addresses of the mesh under test are in the environment, as for the tests themselves.
    let run = Command::new(root().join("target/release/mesh"))
        .args(["--json", "doctor"])
        .current_dir(&stage.settings.stack)
        .stdin(Stdio::null())
        .output();
    let output =
        tokio::time::timeout(PATIENCE, run).await.expect("mesh doctor ends").expect("mesh can be run");
    let checks: Vec<Value> = serde_json::from_slice(&output.stdout).expect("the checks are JSON");
    let text = |check: &Value, field: &str| check[field].as_str().unwrap_or_default().to_owned();
    let mut found = BTreeMap::new();
    for check in &checks {
        let entry =
            found.entry(text(check, "check")).or_insert_with(|| (text(check, "state"), String::new()));
        // Several lines may bear one name: what is wrong counts.
        if text(check, "state") != "ok" {
            entry.0 = text(check, "state");
        }
        entry.1.push_str(&format!("{} → {}; ", text(check, "text"), text(check, "fix")));
    }
    found
}
