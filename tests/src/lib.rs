//! The kit of the system tests: where the mesh under test is, agents with names of their own, the archive, the processes.
//!
//! Owns what every test needs and no test's theme. The rule it keeps: a test waits for a condition and never for a time;
//! [`eventually`] is the one place that sleeps.

pub mod chaos;
pub mod conservation;
mod door;
mod machine;
pub mod operator;
pub mod powerloss;
mod settings;
mod sightings;
pub mod stack;
mod stage;
mod traffic;

use std::future::Future;
use std::time::{Duration, Instant};

pub use door::Door;
pub use machine::Machine;
pub use settings::{Settings, root};
pub use sightings::Sightings;
pub use stage::{Stage, clock};
pub use traffic::{OUTSTANDING_TOTAL, Traffic, alone};

/// Long enough for what happens within moments, on a machine that is busy with other tests or has a twentieth of its processors.
/// Where time is what a test is about, its bound is another one.
pub const SOON: Duration = Duration::from_secs(60);
/// Long enough for what a lost process delays: the silence after which an instance or a replica counts as lost.
pub const PATIENCE: Duration = Duration::from_secs(180);

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks until there is something to see, and gives that.
///
/// # Panics
/// When there is nothing within the time.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> F,
) -> T {
    let started = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(started.elapsed() < within, "not within {within:?}: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Waits until a condition holds.
///
/// # Panics
/// When it does not within the time.
pub async fn until<F: Future<Output = bool>>(what: &str, within: Duration, mut holds: impl FnMut() -> F) {
    eventually(what, within, || {
        let look = holds();
        async move { look.await.then_some(()) }
    })
    .await;
}
