//! Pauses between the restarts of one instance. Pure: it is told how long the instance ran.
//!
//! The rule it keeps: a first crash is made good at once, one that repeats costs little, and one that is over is forgotten.

use std::time::Duration;

/// The pause after a first crash: too short to be missed, and long enough not to fill a log.
const FIRST: Duration = Duration::from_millis(250);
/// An instance that ran for so long was well: its next crash counts as a first one.
const STABLE: Duration = Duration::from_secs(60);

/// The state of one instance's restarts.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(longest: Duration) -> Self {
        Self { longest, next: FIRST.min(longest) }
    }

    /// How long to wait before the next start of an instance that has ended after `ran`.
    pub(crate) fn after(&mut self, ran: Duration) -> Duration {
        if ran >= STABLE {
            self.next = FIRST.min(self.longest);
        }
        let pause = self.next;
        self.next = self.next.saturating_mul(2).min(self.longest);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut backoff = Backoff::new(Duration::from_secs(2));
        let pauses: Vec<u128> = (0..6).map(|_| backoff.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(pauses, [250, 500, 1_000, 2_000, 2_000, 2_000]);
    }

    #[test]
    fn a_stable_minute_is_a_new_beginning() {
        let mut backoff = Backoff::new(Duration::from_secs(30));
        for _ in 0..5 {
            backoff.after(Duration::from_secs(59));
        }
        assert_eq!(backoff.after(Duration::from_secs(59)), Duration::from_secs(8));
        assert_eq!(backoff.after(STABLE), FIRST);
    }

    #[test]
    fn the_longest_pause_may_be_shorter_than_the_usual_first_one() {
        let mut backoff = Backoff::new(Duration::from_millis(10));
        assert_eq!(backoff.after(Duration::ZERO), Duration::from_millis(10));
    }
}
