//! The local supervisor: instances as child processes. Owns their numbers, restarts and draining.
//!
//! The rule it keeps: an instance that ends by itself is started again under its number until it is told to stop; one that
//! is told has the grace to finish what it runs, and is killed after it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::actuator::Actuator;
use super::backoff::Backoff;
use super::process::{Plan, Process};
use super::reconcile::Fleet;

/// Instances as child processes.
#[derive(Debug)]
pub(crate) struct LocalActuator {
    keeper: Arc<Keeper>,
    /// Those that run, the oldest first.
    running: Vec<Instance>,
    /// The numbers of those that drain.
    draining: Vec<u32>,
    tasks: JoinSet<u32>,
}

#[derive(Debug)]
struct Instance {
    number: u32,
    stop: CancellationToken,
}

/// What all instances are kept by.
#[derive(Debug)]
struct Keeper {
    plan: Plan,
    grace: Duration,
    backoff_max: Duration,
}

impl LocalActuator {
    pub(crate) fn new(plan: Plan, grace: Duration, backoff_max: Duration) -> Self {
        let keeper = Arc::new(Keeper { plan, grace, backoff_max });
        Self { keeper, running: Vec::new(), draining: Vec::new(), tasks: JoinSet::new() }
    }

    /// The lowest number that no instance has, one that drains included.
    fn free_number(&self) -> u32 {
        let taken = |n: &u32| self.draining.contains(n) || self.running.iter().any(|i| i.number == *n);
        (1..).find(|n| !taken(n)).expect("there are fewer instances than numbers")
    }

    fn forget(&mut self, number: u32) {
        self.running.retain(|i| i.number != number);
        self.draining.retain(|n| *n != number);
    }
}

impl Actuator for LocalActuator {
    async fn instances(&mut self) -> anyhow::Result<Fleet> {
        while let Some(ended) = self.tasks.try_join_next() {
            self.forget(ended.context("the task of an instance was lost")?);
        }
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Fleet { running: count(self.running.len()), draining: count(self.draining.len()) })
    }

    async fn start_one(&mut self) -> anyhow::Result<()> {
        let number = self.free_number();
        let plan = &self.keeper.plan;
        let process = Process::start(plan, number)
            .with_context(|| format!("{} cannot be run", plan.command[0].display()))?;
        tracing::info!(agent = plan.agent, instance = number, "started");
        let stop = CancellationToken::new();
        self.tasks.spawn(keep(Arc::clone(&self.keeper), number, process, stop.clone()));
        self.running.push(Instance { number, stop });
        Ok(())
    }

    async fn stop_one(&mut self) -> anyhow::Result<()> {
        if let Some(newest) = self.running.pop() {
            tracing::info!(agent = self.keeper.plan.agent, instance = newest.number, "stopping");
            newest.stop.cancel();
            self.draining.push(newest.number);
        }
        Ok(())
    }

    async fn wait_change(&mut self) {
        match self.tasks.join_next().await {
            Some(Ok(number)) => self.forget(number),
            Some(Err(error)) => tracing::error!(%error, "the task of an instance was lost"),
            None => std::future::pending().await,
        }
    }

    async fn end(&mut self) {
        while !self.running.is_empty() {
            drop(self.stop_one().await);
        }
        while self.tasks.join_next().await.is_some() {}
        self.draining.clear();
    }
}

/// Keeps one instance running until it is told to stop, and gives its number back.
async fn keep(keeper: Arc<Keeper>, number: u32, first: Process, stop: CancellationToken) -> u32 {
    let Keeper { plan, grace, backoff_max } = &*keeper;
    let (agent, mut backoff, mut process) = (&plan.agent, Backoff::new(*backoff_max), first);
    loop {
        // Both arms are cancellation-safe; told to stop, it is no crash that the process ends.
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            ended = process.ended() => Some(ended),
        };
        let ran = process.since.elapsed();
        let killed = process.end(*grace).await;
        let Some(ended) = ended else {
            tracing::info!(agent, instance = number, killed, "stopped");
            return number;
        };
        let status = ended.map_or_else(|e| e.to_string(), |status| status.to_string());
        let mut pause = backoff.after(ran);
        tracing::warn!(agent, instance = number, status, ?pause, "it ended by itself; starting it again");
        process = loop {
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                tracing::info!(agent, instance = number, killed = false, "stopped");
                return number;
            }
            match Process::start(plan, number) {
                Ok(process) => break process,
                Err(error) => {
                    pause = backoff.after(Duration::ZERO);
                    tracing::warn!(agent, instance = number, %error, ?pause, "it cannot be started");
                }
            }
        };
        tracing::info!(agent, instance = number, "started again");
    }
}

#[cfg(test)]
mod tests;
