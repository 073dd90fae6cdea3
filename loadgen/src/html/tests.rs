//! The page is well-formed, whole and alone.

use serde_json::json;

use super::*;

fn a_run() -> Value {
    json!({
        "scenario": "latency", "version": "0.1.0", "commit": "abc<def", "cpus": 2, "rate": 1000,
        "p0": { "p50_us": 1200.0, "p95_us": 3000.0, "p99_us": 5000.0 },
        "bare": { "p50_us": 800.0, "p95_us": 1500.0, "p99_us": 2500.0 },
        "ratio_p50": 1.5,
        "accepted": 10, "completed": 9, "rejected": 1, "in_flight": 0, "lost": 0, "duplicate_effects": 0,
        "audited": 10, "audit_missing": 0, "quota_exceeded": 0,
        "distributions": {
            "quantiles": [0.0, 0.5, 0.9, 0.99, 0.999, 1.0],
            "series": { "bare": [500, 800, 900, 2500, 3000, 3100], "P0": [900, 1200, 2000, 5000, 7000, 9000] },
        },
        "stages": { "p0": {
            "lane": { "p50_us": 300.0, "p99_us": 900.0 }, "inbox": { "p50_us": 500.0, "p99_us": 800.0 },
            "ran": { "p50_us": 0.0, "p99_us": 10.0 }, "reply": { "p50_us": 400.0, "p99_us": 2000.0 },
        } },
        "course": {
            "at_s": [1.0, 2.0, 3.0],
            "completed_per_s": [900.0, 1000.0, 1100.0],
            "in_flight": [3, 4, 5],
            "queues": { "lane P0": [0, 2, 1], "inbox P3": [0, 0, 0] },
            "latency": { "p0": { "p50_us": [1000.0, null, 1200.0], "p99_us": [4000.0, null, 5000.0] } },
            "processes": { "coordinator-0": { "cpu_pct": [20.0, 21.0, 22.0], "rss_mb": [30.0, 31.0, 31.0] } },
            "marks": [{ "at_s": 2.0, "name": "the flood begins" }],
        },
    })
}

/// Every element that is opened is closed, in order; every attribute is quoted.
fn well_formed(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = page.strip_prefix("<!DOCTYPE html>").expect("it says what it is");
    while let Some(begin) = rest.find('<') {
        let end = begin + rest[begin..].find('>').expect("a tag ends");
        let tag = &rest[begin + 1..end];
        rest = &rest[end + 1..];
        assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "closes what is open");
        } else if !tag.ends_with('/') {
            let name = tag.split_whitespace().next().expect("a tag has a name");
            open.push(name);
            if name == "style" {
                rest = &rest[rest.find("</style>").expect("the style ends")..];
            }
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
}

#[test]
fn the_page_is_well_formed_and_needs_nothing_else() {
    let page = page(&[a_run(), a_run()]);
    well_formed(&page);
    for foreign in ["http:", "https:", "//", "<script", "<link", "<img", "@import", "url("] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    assert!(page.contains("prefers-color-scheme: dark"));
    assert!(page.contains("abc&lt;def") && !page.contains("abc<def"));
}

#[test]
fn each_series_of_a_run_has_its_place() {
    let page = page(&[a_run()]);
    for shown in [
        "Throughput",
        "Latency by percentile",
        "Latency over time",
        "Where the time goes",
        "Queues",
        "In flight",
        "Processors",
        "Memory",
        "the books balance",
        "P0 P99",
        "P0 inbox",
        "coordinator-0",
        "the flood begins",
        "1.2 ms",
    ] {
        assert!(page.contains(shown), "{shown}");
    }
    assert!(!page.contains("inbox P3"), "a queue that was always empty is left out");
    let titles = page.matches("role=\"img\"").count();
    assert_eq!(page.matches("<desc ").count(), titles, "each chart is told in words");
    assert_eq!(titles, 8);
}

#[test]
fn every_id_is_there_once() {
    let page = page(&[a_run(), a_run()]);
    let mut ids: Vec<&str> =
        page.split(" id=\"").skip(1).map(|rest| rest.split('"').next().expect("an id ends")).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all);
}

#[test]
fn runs_with_little_are_shown_as_well() {
    let governance = json!({
        "scenario": "governance", "decisions_per_s_per_core": 4_300_000.0,
        "cases": [{ "agents": 12, "ns_per_decision": 230.5 }, { "agents": 1000, "ns_per_decision": 240.0 }],
    });
    let page_of_it = page(&[governance]);
    well_formed(&page_of_it);
    assert!(page_of_it.contains("4,300,000") && page_of_it.contains("230.5"));
    assert!(!page_of_it.contains("books balance"), "it has none");

    let cell = |coordinators: u32, agents: u32| {
        json!({
            "coordinators": coordinators, "agents": agents, "dispatches_per_s": 1000 * agents,
            "p0": { "p99_us": 2_000.0 },
        })
    };
    let scale =
        json!({ "scenario": "scale", "cells": [cell(1, 12), cell(1, 100), cell(2, 12), cell(2, 100)] });
    let page_of_it = page(&[scale]);
    well_formed(&page_of_it);
    assert!(page_of_it.contains("2 coordinators") && page_of_it.contains("Throughput by size"));
}

#[test]
fn books_that_do_not_balance_are_called_so() {
    let mut run = a_run();
    run["lost"] = json!(1);
    assert!(page(&[run]).contains("the books do not balance"));
}

#[test]
fn what_is_no_run_is_refused() {
    let folder = std::env::temp_dir().join(format!("loadgen-report-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (file, out) = (folder.join("x.json"), folder.join("x.html"));
    std::fs::write(&file, "{}").unwrap();
    let error = run(&[&file], &out).unwrap_err().to_string();
    assert!(error.contains("no \"scenario\""), "{error}");
    std::fs::write(&file, a_run().to_string()).unwrap();
    assert!(run(&[&file], &out).unwrap());
    well_formed(&std::fs::read_to_string(&out).unwrap());
    std::fs::remove_dir_all(&folder).unwrap();
}
