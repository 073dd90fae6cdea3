//! Signals: the mesh asks a source to slow down, or to go on. Owns what was last heard and what follows from it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use governance::Priority;
pub use protocol::control::Signal;
use tokio::sync::broadcast;
use tokio::time::Instant;

/// Signals that a slow listener may be behind; older ones are dropped, as the latest says all.
const BACKLOG: usize = 16;
/// A signal is repeated each second while it holds; one that is not has been withdrawn by a message that was lost.
const HOLDS_FOR: Duration = Duration::from_secs(3);

/// What a slowed source has not sent in this time it may send at once: its quota has room for that.
const CATCH_UP: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy)]
struct Slow {
    rate_per_s: u32,
    until: Instant,
    /// When the next dispatch may go.
    next: Instant,
}

/// The signals of one agent.
#[derive(Debug)]
pub(crate) struct Signals {
    tell: broadcast::Sender<Signal>,
    slow: Mutex<Option<Slow>>,
}

impl Signals {
    pub(crate) fn new() -> Self {
        Self { tell: broadcast::Sender::new(BACKLOG), slow: Mutex::new(None) }
    }

    /// A signal was heard.
    pub(crate) fn hear(&self, signal: Signal) {
        let now = Instant::now();
        let mut slow = self.slow.lock().unwrap_or_else(PoisonError::into_inner);
        *slow = match &signal {
            Signal::SlowDown { rate_per_s, wait_ms, .. } => {
                let until = now + Duration::from_millis(*wait_ms).min(HOLDS_FOR) + HOLDS_FOR;
                let next = slow.map_or(now, |s| s.next);
                Some(Slow { rate_per_s: (*rate_per_s).max(1), until, next })
            }
            Signal::Resume => None,
            Signal::Refused { stream, sequence, message } => {
                // Several instances hear it, and whoever wrote the message is none of this SDK, which writes what it can read.
                tracing::warn!(stream, sequence, message, "the mesh cannot read a message of this agent");
                *slow
            }
        };
        drop(slow);
        // Nobody may be listening.
        drop(self.tell.send(signal));
    }

    /// All signals from here on.
    pub(crate) fn listen(&self) -> BoxStream<'static, Signal> {
        let receiver = self.tell.subscribe();
        futures::stream::unfold(receiver, |mut receiver| async move {
            loop {
                match receiver.recv().await {
                    Ok(signal) => return Some((signal, receiver)),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        })
        .boxed()
    }

    /// Waits until `count` dispatches may go: while slowed down, they go at the rate of the quota, so that what is in the
    /// lane does not grow. P0 does not wait: it goes before what waits in the lanes.
    pub(crate) async fn pace(&self, priority: Priority, count: usize) {
        let at = {
            let mut slow = self.slow.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            match slow.as_mut() {
                Some(s) if s.until > now && priority != Priority::P0 => {
                    let at = s.next.max(now.checked_sub(CATCH_UP).unwrap_or(now));
                    s.next =
                        at + Duration::from_secs(1) * u32::try_from(count).unwrap_or(u32::MAX) / s.rate_per_s;
                    at
                }
                Some(_) | None => return,
            }
        };
        tokio::time::sleep_until(at).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow_down(rate_per_s: u32) -> Signal {
        Signal::SlowDown { rate_per_s, queued: 10, wait_ms: 1_000 }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slowed_source_sends_at_its_quota_until_it_may_go_on() {
        let signals = Signals::new();
        let begun = Instant::now();
        signals.hear(slow_down(10));
        for _ in 0..5 {
            signals.pace(Priority::P2, 1).await;
        }
        assert_eq!(begun.elapsed().as_millis(), 400, "the first goes at once, the others each 100 ms");
        tokio::time::sleep(Duration::from_millis(200)).await;
        signals.pace(Priority::P2, 1).await;
        assert_eq!(begun.elapsed().as_millis(), 600, "it was due");
        signals.hear(Signal::Resume);
        signals.pace(Priority::P2, 1_000).await;
        assert_eq!(begun.elapsed().as_millis(), 600);
    }

    #[tokio::test(start_paused = true)]
    async fn p0_is_not_held_back() {
        let signals = Signals::new();
        signals.hear(slow_down(1));
        let begun = Instant::now();
        for _ in 0..100 {
            signals.pace(Priority::P0, 1).await;
        }
        assert!(begun.elapsed().is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_that_is_not_repeated_expires() {
        let signals = Signals::new();
        signals.hear(slow_down(1));
        tokio::time::sleep(HOLDS_FOR * 2).await;
        let begun = Instant::now();
        signals.pace(Priority::P2, 100).await;
        signals.pace(Priority::P2, 100).await;
        assert!(begun.elapsed().is_zero());
    }

    #[tokio::test]
    async fn signals_are_offered_as_a_stream() {
        let signals = Signals::new();
        let mut heard = signals.listen();
        signals.hear(slow_down(7));
        signals.hear(Signal::Resume);
        assert_eq!(heard.next().await, Some(slow_down(7)));
        assert_eq!(heard.next().await, Some(Signal::Resume));
    }
}
