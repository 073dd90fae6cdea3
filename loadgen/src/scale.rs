//! `scale`: throughput and P0 latency for several numbers of agents, on the coordinators that there are; and one report of
//! what several such stacks showed.
//!
//! The rule it keeps: each cell has agents of its own and closes its own books.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::args::{Args, Scale, Throughput};
use crate::bare::{Baselines, Broker};
use crate::books::{self, Books};
use crate::course::Recent;
use crate::load::{Asked, interleaved, pace};
use crate::mesh::{self, CAPABILITY, OCTETS, Pair};
use crate::output::{self, BOOKS};
use crate::payload::Payloads;
use crate::report::{Common, Percentiles, ratio};
use crate::throughput;

/// What is sent before latencies are measured.
const WARM_UP: Duration = Duration::from_secs(1);
/// What a target runs at once; a thousand targets have as many slots as a process can hold tasks.
const CONCURRENT: u32 = 256;
/// How long the baseline runs.
const BARE: Duration = Duration::from_secs(3);

/// Runs the scenario; whether all books balance.
pub(crate) async fn run(scenario: &Scale, args: &Args) -> anyhow::Result<bool> {
    let common = Common::gather("scale", args);
    let bare = Baselines::measure(&Broker::of(args), scenario.payload as usize, BARE).await?;
    let (mut cells, mut all, mut balance) = (Vec::new(), Vec::new(), true);
    for agents in &scenario.agents {
        let (mut cell, books) = cell(scenario, args, *agents).await?;
        balance &= books.balance() && cell["failed"] == 0;
        cell["coordinators"] = common.replicas().into();
        cell["ratio_vs_bare_single"] =
            json!(cell["dispatches_per_s"].as_f64().and_then(|per_s| ratio(per_s, bare.single_per_s)));
        all.push(serde_json::to_value(&books)?);
        cells.push(cell);
    }
    let mut report = json!({
        "payload_bytes": scenario.payload,
        "rate": scenario.rate,
        "seconds": scenario.seconds,
        "bare_single_per_s": bare.single_per_s.round(),
        "cells": cells,
    });
    output::add(&mut report, &output::several(all)?)?;
    if let Some(fields) = report.as_object_mut() {
        fields.remove("runs");
    }
    output::table(report["cells"].as_array().map_or(&[], Vec::as_slice), &COLUMNS);
    output::finish(args, &common, report)?;
    Ok(balance)
}

/// The columns of the table, with the names of the figures.
const COLUMNS: [(&str, &str); 7] = [
    ("coordinators", "coordinators"),
    ("agents", "agents"),
    ("dispatches/s", "dispatches_per_s"),
    ("of bare", "ratio_vs_bare_single"),
    ("P0 P50 us", "p0.p50_us"),
    ("P0 P99 us", "p0.p99_us"),
    ("registered in s", "registered_s"),
];

/// One number of agents: latency first, since an archive that catches up would show in it.
async fn cell(scenario: &Scale, args: &Args, agents: u32) -> anyhow::Result<(Value, Books)> {
    let bar = output::spinner("registering agents");
    let (begin, count) = (Instant::now(), agents.div_ceil(2));
    let pairs = mesh::pairs(&args.nats_url, &format!("sc{agents}"), count, CONCURRENT).await?;
    let registered_s = begin.elapsed().as_secs_f64();
    bar.set_message("asking");
    let since = SystemTime::now();
    let asked = ask(scenario, &pairs).await?;
    bar.finish_and_clear();
    let load = Throughput::of(scenario.payload, count, scenario.seconds);
    let (mut accepted, per_s) = throughput::load(&load, &pairs).await?;
    let mut cell = json!({
        "agents": count * 2,
        "dispatches_per_s": per_s.round(),
        "p0": Percentiles::of(&asked.latency[0]),
        "failed": asked.failed,
        "late_sends": asked.late_sends,
        "registered_s": (registered_s * 10.0).round() / 10.0,
    });
    accepted.merge(asked.accepted);
    let books = books::close(&args.postgres_url, since, &accepted, &pairs).await?;
    mesh::stop(&pairs).await?;
    cell["accepted"] = accepted.dispatches().into();
    Ok((cell, books))
}

/// Requests of all priorities at a modest rate, spread over all pairs.
async fn ask(scenario: &Scale, pairs: &[Pair]) -> anyhow::Result<Asked> {
    let order = interleaved(&[25, 25, 25, 25])?;
    let (payloads, recent) = (Payloads::new(scenario.payload as usize), Recent::new());
    let epoch = Instant::now();
    let mut times = pace(epoch, scenario.rate, WARM_UP + Duration::from_secs(scenario.seconds))?;
    let mut asked = Asked::new(epoch, WARM_UP).watched(&recent);
    while let Some(intended) = times.recv().await {
        let number = asked.sent as usize;
        // Each pair takes all priorities in turn, whatever numbers of both there are.
        let (pair, priority) = (&pairs[number % pairs.len()], order[number / pairs.len() % order.len()]);
        let request = pair.source.dispatch(pair.target.name(), CAPABILITY).bytes(payloads.next(), OCTETS);
        asked.ask(intended, priority, request)?;
    }
    asked.finish().await?;
    Ok(asked)
}

/// One report of several: the settings of the first, the cells and the books of all.
pub(crate) fn merge(files: &[PathBuf], args: &Args) -> anyhow::Result<bool> {
    let mut reports = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(path);
        let text = text.with_context(|| format!("failed to read {}", path.display()))?;
        let report: Value =
            serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
        ensure!(report["scenario"] == "scale", "{} is not the report of a scale run", path.display());
        reports.push(report);
    }
    let report = merged(&reports)?;
    output::table(report["cells"].as_array().map_or(&[], Vec::as_slice), &COLUMNS);
    output::emit(args, &report)?;
    Ok(true)
}

fn merged(reports: &[Value]) -> anyhow::Result<Value> {
    let mut report = reports.first().cloned().context("there is nothing to merge")?;
    let cells = reports.iter().filter_map(|report| report["cells"].as_array()).flatten();
    report["cells"] = cells.cloned().collect();
    for name in BOOKS {
        report[name] = reports.iter().filter_map(|report| report[name].as_u64()).sum::<u64>().into();
    }
    report["replicas"] = reports.iter().filter_map(|report| report["replicas"].as_u64()).max().into();
    report["bare_single_per_s"] = reports.iter().map(|report| report["bare_single_per_s"].clone()).collect();
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_are_merged_with_all_their_cells_and_books() {
        let one = |replicas: u32| {
            json!({
                "scenario": "scale", "replicas": replicas, "accepted": 10, "lost": 0, "bare_single_per_s": 100,
                "cells": [{ "coordinators": replicas, "agents": 12 }],
            })
        };
        let report = merged(&[one(1), one(3)]).unwrap();
        assert_eq!(report["cells"].as_array().unwrap().len(), 2);
        assert_eq!(
            (&report["replicas"], &report["accepted"], &report["lost"]),
            (&json!(3), &json!(20), &json!(0))
        );
        assert!(merged(&[]).is_err());
    }
}
