//! The lines of the log as they follow from blocks, without a database. Owns nothing: the views of the archive define them.
//!
//! The rule it keeps: for the same records it says, character by character, what `dispatch_log_since` says.

use std::collections::HashMap;

use governance::{DispatchId, Kind, Outcome, Reason, Timestamp};
use protocol::audit::{Block, CompletionRow, DecisionRow};
use protocol::text::hex;

use crate::archive::LogRow;

/// The lines of the dispatches that a block decides at or after a moment.
pub(super) fn of_block(
    block: &Block,
    since: Timestamp,
    ends: &HashMap<DispatchId, Vec<CompletionRow>>,
) -> Vec<LogRow> {
    let mut lines = Vec::new();
    for row in block.decisions.iter().filter(|row| row.decided.as_micros() >= since.as_micros()) {
        for (i, hash) in row.hashes.iter().enumerate() {
            let id = DispatchId { slot: row.first.slot + i as u16, ..row.first };
            match ends.get(&id).map(Vec::as_slice) {
                None | Some([]) => of_dispatch(block, row, id, hash, None, &mut lines),
                Some(ends) => {
                    ends.iter().for_each(|end| of_dispatch(block, row, id, hash, Some(end), &mut lines))
                }
            }
        }
    }
    lines
}

fn of_dispatch(
    block: &Block,
    row: &DecisionRow,
    id: DispatchId,
    hash: &[u8],
    end: Option<&CompletionRow>,
    lines: &mut Vec<LogRow>,
) {
    let waited = row.decided.as_micros().cast_signed() - row.accepted.as_micros().cast_signed();
    let latency = match row.outcome {
        None => end.map(|end| end.latency_us.cast_signed()),
        Some(_) => Some(waited),
    };
    let outcome = row.outcome.or_else(|| end.map(|end| end.outcome));
    let reason = if row.outcome.is_some() { row.reason } else { end.map_or(row.reason, |end| end.reason) };
    let root = row.root.filter(|root| *root != row.first);
    let line = LogRow {
        dispatch_id: id.to_string(),
        timestamp: in_micros(row.accepted),
        source: stored(&row.source).unwrap_or_default(),
        target: stored(&row.target),
        r#type: row.kind.name().to_owned(),
        capability: stored(&row.capability),
        latency_ms: latency.map(millis),
        outcome: outcome.map(|outcome| outcome.name().to_owned()),
        priority: row.class.name().to_owned(),
        payload_hash: Some(hex(hash)),
        reason: reason.name().to_owned(),
        decision: row.decision.name().to_owned(),
        lane: row.lane.name().to_owned(),
        lane_ms: Some(millis(end.map_or(waited, |end| end.lane_us.into()))),
        inbox_ms: end.map(|end| millis(end.inbox_us.into())),
        ran_ms: end.map(|end| millis(end.ran_us.into())),
        attempt: end.map(|end| end.attempt.into()),
        root: root.unwrap_or(DispatchId { copy: 0, ..id }).to_string(),
        parent: row.parent.map(|parent| parent.to_string()),
        conversation: stored(&row.conversation),
        policy_version: block.policy_version.cast_signed(),
        shard: block.shard.into(),
        epoch: block.epoch.cast_signed(),
        block: block.sequence.cast_signed(),
    };
    let reply = outcome.filter(|_| row.kind == Kind::Request).map(|outcome| {
        let good = outcome == Outcome::Success || reason == Reason::FallbackStatic;
        let own = end.zip(latency).map(|(end, latency)| {
            let waits = i64::from(end.lane_us) + i64::from(end.inbox_us) + i64::from(end.ran_us);
            millis((latency - waits).max(0))
        });
        let response = end.map(|end| end.response).filter(|hash| hash.iter().any(|byte| *byte != 0));
        LogRow {
            dispatch_id: format!("{id}/reply"),
            timestamp: in_micros(end.map_or(row.decided, |end| end.completed)),
            source: line.target.clone().unwrap_or_default(),
            target: Some(line.source.clone()),
            r#type: if good { "response" } else { "error" }.to_owned(),
            latency_ms: own,
            payload_hash: response.map(|hash| hex(&hash)),
            lane_ms: None,
            inbox_ms: None,
            ran_ms: None,
            parent: Some(line.dispatch_id.clone()),
            ..line.clone()
        }
    });
    lines.push(line);
    lines.extend(reply);
}

/// As the archive keeps moments.
const fn in_micros(at: Timestamp) -> Timestamp {
    Timestamp(at.as_micros() * 1_000)
}

fn millis(us: i64) -> f64 {
    us as f64 / 1_000.0
}

/// A text as the archive keeps it; none where it is empty.
fn stored(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.replace('\0', "\u{fffd}"))
}
