//! Tasks: each has a name, ends with its supervisor, and ends what it belongs to when it ends unexpectedly.

use std::future::Future;

use tokio::task::JoinSet;

/// The tasks of a process, or of one home.
#[derive(Debug)]
pub(crate) struct Supervisor {
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
}

impl Supervisor {
    pub(crate) fn new() -> Self {
        Self { tasks: JoinSet::new() }
    }

    /// Starts a task that runs until it is shut down.
    pub(crate) fn start<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.tasks.spawn(async move { (name, task.await) });
    }

    /// Waits until a task fails or ends unexpectedly; stops nothing.
    pub(crate) async fn run_on(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok((name, Ok(())))) => anyhow::anyhow!("the task {name} ended"),
            Some(Ok((name, Err(e)))) => e.context(format!("the task {name} failed")),
            Some(Err(e)) => anyhow::Error::new(e).context("a task panicked"),
            None => std::future::pending().await,
        }
    }

    /// Stops all tasks and waits for their ends.
    pub(crate) async fn shutdown(&mut self) {
        self.tasks.shutdown().await;
    }
}
