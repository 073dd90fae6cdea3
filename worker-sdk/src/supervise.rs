//! Tasks. Owns the one place where the SDK starts any, and how they end.
//!
//! The rule it keeps: a task belongs to an agent and ends with it; at the latest at its next await once the agent is gone.

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The tasks of one agent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Supervisor {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Supervisor {
    /// Starts a task that ends by itself, or when everything stops.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            // None says that it was stopped, which is how most of them end.
            let _ = stop.run_until_cancelled(task).await;
        });
    }

    /// Stops every task; returns at once.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
        self.tracker.close();
    }

    /// Whether the tasks were stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Waits until every task has ended after [`Supervisor::stop`].
    pub(crate) async fn ended(&self) {
        self.tracker.wait().await;
    }
}
