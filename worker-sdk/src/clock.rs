//! The clock. Owns the one place where the wall clock is read: deadlines are moments of the broker's clock, and the wall
//! clock of a well-kept machine is the nearest thing to it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use governance::Timestamp;

/// This moment.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::ZERO.after(since)
}

/// How long it is until a moment; zero where it has passed.
pub(crate) fn until(at: Timestamp) -> Duration {
    at.since(now())
}

/// A duration in whole microseconds, as completions carry it.
pub(crate) fn micros(d: Duration) -> u32 {
    u32::try_from(d.as_micros()).unwrap_or(u32::MAX)
}
