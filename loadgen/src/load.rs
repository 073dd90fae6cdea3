//! What open loops share: the pace of intended send times and the histogram. Owns no traffic.
//!
//! The rule it keeps: the next intended time never depends on how long anything took.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::mpsc;

/// Latencies are recorded up to this; what takes longer counts as this long.
const LATENCY_MAX: Duration = Duration::from_secs(600);
/// Intended times that wait for the loop that sends; a loop this far behind is told when it was meant to send all the same.
const BEHIND_MAX: usize = 65_536;

/// A histogram of nanoseconds with three digits.
pub(crate) fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX.as_nanos() as u64, 3).expect("these bounds are valid")
}

/// Evenly spaced intended send times, relative to `epoch`, from a thread of their own: the timer of the runtime has a grain
/// of a millisecond, which is as long as what is to be measured. Ends after `duration`.
pub(crate) fn pace(
    epoch: Instant,
    rate: u32,
    duration: Duration,
) -> anyhow::Result<mpsc::Receiver<Duration>> {
    let (due, times) = mpsc::channel(BEHIND_MAX);
    std::thread::Builder::new().name("pace".into()).spawn(move || {
        for number in 0..total(rate, duration) {
            let at = Duration::from_nanos((u128::from(number) * 1_000_000_000 / u128::from(rate)) as u64);
            if let Some(wait) = at.checked_sub(epoch.elapsed()) {
                std::thread::sleep(wait);
            }
            if due.blocking_send(at).is_err() {
                break;
            }
        }
    })?;
    Ok(times)
}

/// How many intended times fall into a duration.
pub(crate) const fn total(rate: u32, duration: Duration) -> u64 {
    (duration.as_nanos() * rate as u128 / 1_000_000_000) as u64
}
