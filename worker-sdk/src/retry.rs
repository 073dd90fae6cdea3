//! Pauses between attempts: short at first, then longer, up to a second.

use std::time::Duration;

/// The first pause: about what a busy broker needs to make room.
const FIRST: Duration = Duration::from_millis(10);
/// The longest: a broker or coordinator that comes back is noticed within it.
const LONGEST: Duration = Duration::from_secs(1);

/// Doubling pauses.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Backoff {
    /// Waits, and next time longer.
    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(LONGEST);
    }

    /// Begins anew.
    pub(crate) fn reset(&mut self) {
        self.0 = FIRST;
    }
}
