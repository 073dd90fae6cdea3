//! How long Redis has room: its growth over the last minutes against its limit. Owns the arithmetic, which coordinators,
//! archiver and `mesh doctor` share; asks nobody, and reads no clock.
//!
//! The rule it keeps: what is said is the net of appending and trimming over the window, so that a store that is trimmed as
//! fast as it is filled has time without end.

use std::collections::VecDeque;
use std::time::Duration;

/// The window over which growth is measured: long enough to hold some rounds of trimming.
const WINDOW: Duration = Duration::from_secs(300);
/// Looks closer together than this are not kept, which bounds how many there are.
const STEP: Duration = Duration::from_secs(5);
/// Over less than this, growth is noise.
const SPAN_MIN: Duration = Duration::from_secs(10);
/// With less time than this left, people are told: it takes a while to find memory, or what keeps the archive.
pub const ALARM: Duration = Duration::from_secs(3_600);

/// What Redis says of its memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Bytes in use.
    pub used: u64,
    /// The most bytes it may use: its `maxmemory`, or else what the machine has. 0 where it says neither.
    pub limit: u64,
    /// Whether the limit is its own `maxmemory`.
    pub is_set: bool,
}

impl Memory {
    /// Reads the answer to `INFO memory`.
    #[must_use]
    pub fn parse(info: &str) -> Self {
        let field = |name: &str| {
            let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.and_then(|v| v.trim().parse().ok()).unwrap_or(0)
        };
        let own: u64 = field("maxmemory");
        let limit = if own > 0 { own } else { field("total_system_memory") };
        Self { used: field("used_memory"), limit, is_set: own > 0 }
    }

    /// Whether nothing more goes in.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.is_set && self.used >= self.limit
    }
}

/// What was seen of the memory over the last minutes.
#[derive(Debug, Default)]
pub struct Room {
    seen: VecDeque<(Duration, u64)>,
    last: (Duration, u64),
}

impl Room {
    /// Takes note of the bytes in use at a time, which is counted from wherever the caller likes and never goes back.
    pub fn note(&mut self, at: Duration, used: u64) {
        self.last = (at, used);
        if self.seen.back().is_none_or(|(last, _)| at.saturating_sub(*last) >= STEP) {
            self.seen.push_back((at, used));
        }
        // The first one stays until the next is old enough to stand for the window.
        while self.seen.get(1).is_some_and(|(second, _)| at.saturating_sub(*second) >= WINDOW) {
            self.seen.pop_front();
        }
    }

    /// The time until `limit` is reached at the growth of the last minutes. None where memory does not grow, or where too
    /// little time has been looked at; zero where the limit is reached.
    #[must_use]
    pub fn left(&self, limit: u64) -> Option<Duration> {
        let (at, used) = self.last;
        if used >= limit {
            return Some(Duration::ZERO);
        }
        let (since, before) = *self.seen.front()?;
        let (span, grown) = (at.saturating_sub(since), used.saturating_sub(before));
        if span < SPAN_MIN || grown == 0 {
            return None;
        }
        let millis = u128::from(limit - used) * span.as_millis() / u128::from(grown);
        Some(Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX)))
    }
}

/// A time left in words, as precise as it is worth: `40 s`, `12 min`, `7 h`, `12 days`.
#[must_use]
pub fn in_words(left: Duration) -> String {
    match left.as_secs() {
        s @ 0..=119 => format!("{s} s"),
        s @ 120..=7_199 => format!("{} min", s / 60),
        s @ 7_200..=172_799 => format!("{} h", s / 3_600),
        s => format!("{} days", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn steady(per_s: u64, seconds: u64) -> Room {
        let mut room = Room::default();
        (0..=seconds).for_each(|at| room.note(s(at), 1_000 + at * per_s));
        room
    }

    #[test]
    fn the_time_left_is_the_rest_over_the_growth() {
        let room = steady(10, 100);
        assert_eq!(room.left(12_000), Some(s(1_000)));
        assert_eq!(room.left(2_000), Some(Duration::ZERO));
    }

    #[test]
    fn only_the_last_minutes_count() {
        let mut room = steady(1_000, 300);
        (301..=1_000).for_each(|at| room.note(s(at), 301_000 + (at - 300)));
        let left = room.left(301_700 + 3_600).unwrap();
        assert!(left.abs_diff(s(3_600)) < s(5), "{left:?}");
        assert!(room.seen.len() <= 62, "{}", room.seen.len());
    }

    #[test]
    fn what_does_not_grow_or_was_just_looked_at_has_no_end() {
        assert_eq!(steady(0, 100).left(5_000), None);
        assert_eq!(steady(10, 9).left(5_000), None);
        let mut trimmed = steady(10, 100);
        trimmed.note(s(101), 900);
        assert_eq!(trimmed.left(5_000), None);
        assert_eq!(Room::default().left(1), None);
    }

    #[test]
    fn redis_own_limit_is_the_limit_and_the_machine_otherwise() {
        let own = Memory::parse("used_memory:10\r\nmaxmemory:10\r\ntotal_system_memory:99\r\n");
        assert_eq!(own, Memory { used: 10, limit: 10, is_set: true });
        assert!(own.is_full());
        let machine = Memory::parse("used_memory:10\r\nmaxmemory:0\r\ntotal_system_memory:99\r\n");
        assert_eq!(machine, Memory { used: 10, limit: 99, is_set: false });
        assert_eq!(Memory::parse(""), Memory::default());
    }

    #[test]
    fn times_are_said_as_precisely_as_they_are_worth() {
        let said = [40, 720, 7 * 3_600, 12 * 86_400].map(|seconds| in_words(s(seconds)));
        assert_eq!(said, ["40 s", "12 min", "7 h", "12 days"]);
    }
}
