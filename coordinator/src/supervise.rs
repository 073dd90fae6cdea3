//! Tasks: each has a name, stops with the process's token, and takes the process down when it ends unexpectedly.

use std::future::Future;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The tasks of a process.
#[derive(Debug)]
pub(crate) struct Supervisor {
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
    /// Cancelled when the process is to end.
    pub(crate) stop: CancellationToken,
}

impl Supervisor {
    pub(crate) fn new() -> Self {
        Self { tasks: JoinSet::new(), stop: CancellationToken::new() }
    }

    /// Starts a task that runs until the process ends.
    pub(crate) fn start<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.tasks.spawn(async move { (name, task.await) });
    }

    /// Waits until a task ends or the token is cancelled, then stops the others. The first failure is the result.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let mut result = Ok(());
        loop {
            let ended = tokio::select! {
                ended = self.tasks.join_next() => ended,
                () = self.stop.cancelled() => break,
            };
            match ended {
                None => break,
                Some(Ok((name, Ok(())))) => tracing::debug!(task = name, "a task ended"),
                Some(Ok((name, Err(e)))) => {
                    result = Err(e.context(format!("the task {name} failed")));
                    break;
                }
                Some(Err(e)) => {
                    result = Err(anyhow::Error::new(e).context("a task panicked"));
                    break;
                }
            }
        }
        self.stop.cancel();
        self.tasks.shutdown().await;
        result
    }
}
