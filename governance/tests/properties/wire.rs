//! What several cores are tried with: the steps of a history, what travels between homes and how badly, and what is counted.

use std::collections::VecDeque;
use std::time::Duration;

use governance::{AgentIx, Ask, BreakerState, Grant, HomeId, Reason, TargetReport, Timestamp};

/// What is on its way, and to which core.
#[derive(Debug, Clone, Copy)]
pub(super) enum Packet {
    Report { target: AgentIx, from: HomeId, report: TargetReport },
    ProbeEnded { target: AgentIx, succeeded: Option<bool> },
    Ask { target: AgentIx, ask: Ask, asked: Timestamp, by: usize },
    Answer { target: AgentIx, ask: Ask, asked: Timestamp, grant: Option<Grant> },
    Breaker { target: AgentIx, state: BreakerState, reason: Reason, since: Timestamp },
    Suffered { delay: Duration },
}

/// How bad the wire is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wire {
    pub(super) seed: u64,
    pub(super) loss_percent: u64,
    pub(super) delay_ms_max: u64,
}

/// One step of a history.
#[derive(Debug, Clone)]
pub(super) enum Action {
    Send {
        source: usize,
        to: usize,
        priority: usize,
        count: u16,
        event: bool,
    },
    Pass {
        ms: u64,
    },
    Complete {
        home: usize,
        nth: usize,
        good: bool,
        ran_ms: u64,
    },
    Cancel {
        home: usize,
        nth: usize,
    },
    Operator {
        target: usize,
        trip: bool,
    },
    Stall {
        home: usize,
        ms: u64,
    },
    Beat {
        target: usize,
        slots: u32,
    },
    /// A person waits while the home of the bot takes no turn.
    Suffer {
        ms: u64,
    },
}

/// Runs of a target that ended, wherever.
#[derive(Debug, Default)]
pub(super) struct Ran {
    /// Those of the last window: when, how many, how many failed.
    recent: VecDeque<(Timestamp, u32, u32)>,
    /// The most that were ever in a window at once.
    pub(super) peak: (u32, u32),
    pub(super) total: (u32, u32),
}

impl Ran {
    pub(super) fn note(&mut self, now: Timestamp, count: u32, failed: u32) {
        self.recent.push_back((now, count, failed));
        while self.recent.front().is_some_and(|(at, ..)| now.since(*at) > WINDOW_MAX) {
            self.recent.pop_front();
        }
        let recent = self.recent.iter().fold((0, 0), |(c, f), (_, count, failed)| (c + count, f + failed));
        self.peak = (self.peak.0.max(recent.0), self.peak.1.max(recent.1));
        self.total = (self.total.0 + count, self.total.1 + failed);
    }
}

/// What was compared, so that a run that compares nothing fails.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counted {
    pub(super) admitted: usize,
    pub(super) limited: usize,
    pub(super) trips: usize,
    pub(super) probes_granted: usize,
    pub(super) deferrals_told: usize,
    pub(super) windows: usize,
}

impl Counted {
    pub(super) const fn plus(self, other: Self) -> Self {
        Self {
            admitted: self.admitted + other.admitted,
            limited: self.limited + other.limited,
            trips: self.trips + other.trips,
            probes_granted: self.probes_granted + other.probes_granted,
            deferrals_told: self.deferrals_told + other.deferrals_told,
            windows: self.windows + other.windows,
        }
    }
}

/// What may be in a window of 30 s: its bucket of a second, the longest delay of the wire, and what a quiet reporter held back.
const WINDOW_MAX: Duration = Duration::from_secs(33);
