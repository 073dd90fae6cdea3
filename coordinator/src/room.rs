//! The room that Redis has left: looked at every few seconds, shown as metrics, and told to people in time. Owns the rhythm and
//! the alert; the arithmetic is `protocol::room`.
//!
//! A coordinator looks, and not only the archiver, since an archiver that is gone is the usual cause. The rule it keeps: one
//! alert for the mesh and not one for each replica, so that the home of the first shard speaks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::control::Alert;
use protocol::room::{ALARM, Memory, Room, in_words};
use tokio::sync::mpsc;

use crate::clock;
use crate::homes::Homes;
use crate::io::ledger::Ledger;
use crate::metrics::Metrics;

/// How often the memory is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The shard whose home speaks.
const SPEAKER: u8 = 0;

/// How bad it is; each worsening is told once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Fine,
    Filling,
    Full,
}

/// Looks until the process ends.
pub(crate) async fn watch(
    ledger: Ledger,
    homes: Homes,
    metrics: Arc<Metrics>,
    alerts: mpsc::Sender<Alert>,
) -> anyhow::Result<()> {
    let (began, mut room, mut told) = (Instant::now(), Room::default(), State::Fine);
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        // While Redis is away nothing is known; that is told elsewhere.
        let Ok(memory) = ledger.memory().await else { continue };
        room.note(began.elapsed(), memory.used);
        let left = room.left(memory.limit);
        metrics.room(memory.used, left);
        let state = state(&memory, left);
        if state > told && homes.at(SPEAKER).is_some() {
            alerts.send(alert(state, &memory, left)).await.ok();
        }
        // It must be clearly better before it is told again that it is worse.
        let is_over = left.is_none_or(|left| left > ALARM * 2);
        told = if is_over { State::Fine } else { told.max(state) };
    }
}

fn state(memory: &Memory, left: Option<Duration>) -> State {
    match left {
        _ if memory.is_full() => State::Full,
        Some(left) if left < ALARM => State::Filling,
        Some(_) | None => State::Fine,
    }
}

fn alert(state: State, memory: &Memory, left: Option<Duration>) -> Alert {
    let left = left.unwrap_or_default();
    let (used, limit) = (memory.used >> 20, memory.limit >> 20);
    let text = if state == State::Full {
        format!("Redis is full at {limit} MB: dispatches wait until it has room")
    } else {
        format!(
            "Redis uses {used} of {limit} MB and is full in {} as it grows now; then dispatches wait",
            in_words(left)
        )
    };
    let figures = [("used", memory.used), ("limit", memory.limit), ("seconds_left", left.as_secs())];
    Alert {
        kind: "redis_full".to_owned(),
        at: protocol::text::rfc3339(clock::now()),
        agent: String::new(),
        text,
        figures: figures.map(|(name, value)| (name.to_owned(), value)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_the_time_to_speak_and_full_is_worse() {
        let memory = Memory { used: 50, limit: 100, is_set: true };
        let hours = |n| Some(ALARM * n);
        assert_eq!(state(&memory, hours(2)), State::Fine);
        assert_eq!(state(&memory, None), State::Fine);
        assert_eq!(state(&memory, Some(ALARM / 2)), State::Filling);
        let full = Memory { used: 100, ..memory };
        assert_eq!(state(&full, Some(Duration::ZERO)), State::Full);
        assert!(State::Full > State::Filling);
    }

    #[test]
    fn the_alert_says_how_long_there_is() {
        let memory = Memory { used: 512 << 20, limit: 1 << 30, is_set: true };
        let alert = alert(State::Filling, &memory, Some(Duration::from_secs(1_500)));
        assert_eq!(
            alert.text,
            "Redis uses 512 of 1024 MB and is full in 25 min as it grows now; then dispatches wait"
        );
        assert_eq!(alert.figures["seconds_left"], 1_500);
    }
}
