//! Waits: a person's dispatch does not wait for a take-over longer than five seconds after a crash.
//!
//! What is judged is the time from its acceptance to its decision. A disturbance (a crash, a pause, a partition, a server that
//! is away) begins the five seconds anew when it begins and when it ends; while a server is away nothing is promised at all.

use std::collections::BTreeMap;
use std::time::Duration;

use governance::Timestamp;

use super::Oracle;

/// The promise.
const P0_WAIT_MAX: Duration = Duration::from_secs(5);

/// Something that keeps dispatches waiting for a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disturbance {
    /// Something happened at this moment.
    At(Timestamp),
    /// Nothing can go on from here to there.
    Between(Timestamp, Timestamp),
}

#[derive(Debug, Default)]
pub(super) struct Waits {
    /// Begin and end of each disturbance; an excuse has a span.
    spans: BTreeMap<u64, u64>,
    longest: Duration,
}

impl Oracle {
    /// Something keeps dispatches waiting.
    pub fn on_disturbance(&mut self, disturbance: Disturbance) {
        let (from, until) = match disturbance {
            Disturbance::At(at) => (at, at),
            Disturbance::Between(from, until) => (from, until),
        };
        let end = self.waits.spans.entry(from.0).or_insert(until.0);
        *end = (*end).max(until.0);
    }

    /// The longest wait that nothing excuses.
    #[must_use]
    pub const fn longest_urgent_wait(&self) -> Duration {
        self.waits.longest
    }

    pub(super) fn on_urgent_decided(&mut self, stored: Timestamp, decided: Timestamp) {
        self.count("urgent waits");
        let wait = self.undisturbed(stored, decided);
        self.waits.longest = self.waits.longest.max(wait);
        if wait > P0_WAIT_MAX {
            self.fail(format!("a person's dispatch waited {wait:?} from {stored:?} on without a reason"));
        }
    }

    /// The longest stretch between two moments in which nothing disturbs.
    pub(super) fn undisturbed(&self, from: Timestamp, until: Timestamp) -> Duration {
        let (mut longest, mut begin) = (0, from.0);
        for (start, end) in self.waits.spans.range(..=until.0) {
            if *end < begin {
                continue;
            }
            longest = longest.max(start.saturating_sub(begin));
            begin = begin.max(*end);
        }
        longest = longest.max(until.0.saturating_sub(begin));
        Duration::from_nanos(longest)
    }
}
