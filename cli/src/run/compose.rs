//! Docker Compose: instances as containers of a service. Owns what becomes of them; the forms are in `container.rs`.
//!
//! The rule it keeps: the containers are Compose's. They go on when the supervisor ends, the last one is stopped but never
//! removed since further ones are copied from it, and what the engine restarts by itself is left to the engine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::actuator::Actuator;
use super::backoff::Backoff;
use super::container::{Container, copy_of, filters, read_list};
use super::engine::{Engine, PATIENCE, escaped};
use super::reconcile::Fleet;

/// How often the containers are looked at: a crash is noticed within this, and the engine has little to do.
const LOOK: Duration = Duration::from_secs(2);

/// Which service is scaled.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) name: String,
    /// Its project, where more than one has such a service.
    pub(crate) project: Option<String>,
}

/// Instances as containers of a service.
#[derive(Debug)]
pub(crate) struct ComposeActuator {
    engine: Engine,
    service: Service,
    grace: Duration,
    backoff_max: Duration,
    /// What is known of containers beside what the engine says.
    lives: BTreeMap<String, Life>,
    draining: BTreeSet<String>,
    tasks: JoinSet<String>,
}

/// When a container ran, and when it may be started again.
#[derive(Debug)]
struct Life {
    backoff: Backoff,
    running_since: Option<Instant>,
    due: Instant,
}

impl Life {
    /// Takes in whether it runs now.
    fn look(&mut self, runs: bool, now: Instant) {
        if runs {
            self.running_since.get_or_insert(now);
        } else if let Some(since) = self.running_since.take() {
            self.due = now + self.backoff.after(now - since);
        }
    }

    /// Whether it pauses after a crash.
    fn pauses(&self, now: Instant) -> bool {
        self.running_since.is_none() && self.due > now
    }
}

impl ComposeActuator {
    pub(crate) fn new(socket: PathBuf, service: Service, grace: Duration, backoff_max: Duration) -> Self {
        Self {
            engine: Engine::new(socket),
            service,
            grace,
            backoff_max,
            lives: BTreeMap::new(),
            draining: BTreeSet::new(),
            tasks: JoinSet::new(),
        }
    }

    /// All containers of the service, in the order of their numbers, those that drain left out.
    async fn look(&mut self) -> anyhow::Result<Vec<Container>> {
        while let Some(ended) = self.tasks.try_join_next() {
            self.draining.remove(&ended.context("the task of a container was lost")?);
        }
        let mut all = self.list().await?;
        all.retain(|c| !self.draining.contains(&c.id));
        let now = Instant::now();
        self.lives.retain(|id, _| all.iter().any(|c| c.id == *id));
        for container in &all {
            let life = self.lives.entry(container.id.clone()).or_insert_with(|| Life {
                backoff: Backoff::new(self.backoff_max),
                running_since: None,
                due: now,
            });
            life.look(container.runs, now);
        }
        Ok(all)
    }

    async fn list(&self) -> anyhow::Result<Vec<Container>> {
        let filters = filters(&self.service.name, self.service.project.as_deref());
        let all = read_list(
            self.engine.get(&format!("/containers/json?all=true&filters={}", escaped(&filters))).await?,
        )?;
        let projects: BTreeSet<&str> = all.iter().map(|c| c.project.as_str()).collect();
        if projects.len() > 1 {
            let projects: Vec<&str> = projects.into_iter().collect();
            bail!(
                "{} projects have a service {}; choose with --compose-project one of: {}",
                projects.len(),
                self.service.name,
                projects.join(", ")
            );
        }
        if all.is_empty() {
            bail!(
                "no container of the service {} was ever made; first: docker compose up -d {0}",
                self.service.name
            );
        }
        Ok(all)
    }

    /// Whether it counts as an instance: it runs, or will again after its pause.
    fn counts(&self, container: &Container, now: Instant) -> bool {
        container.runs || self.lives.get(&container.id).is_some_and(|life| life.pauses(now))
    }

    /// Makes one more by the example of the oldest.
    async fn copy(&self, oldest: &Container, number: u32) -> anyhow::Result<String> {
        let inspected = self.engine.get(&format!("/containers/{}/json", oldest.id)).await?;
        let creation = copy_of(&inspected, &self.service.name, &oldest.project, number)?;
        let path = format!("/containers/create?name={}", escaped(&creation.name));
        let created = self.engine.post(&path, Some(&creation.body), PATIENCE).await?;
        let id = created["Id"].as_str().context("the engine does not name the new container")?.to_owned();
        for (network, endpoint) in &creation.further_networks {
            let body = serde_json::json!({ "Container": id, "EndpointConfig": endpoint });
            let path = format!("/networks/{}/connect", escaped(network));
            self.or_remove(&id, self.engine.post(&path, Some(&body), PATIENCE).await).await?;
        }
        let started = self.engine.post(&format!("/containers/{id}/start"), None, PATIENCE).await;
        self.or_remove(&id, started).await?;
        Ok(creation.name)
    }

    /// Leaves nothing behind of a container that could not be completed.
    async fn or_remove<T>(&self, id: &str, result: anyhow::Result<T>) -> anyhow::Result<T> {
        if result.is_err()
            && let Err(error) = self.engine.delete(&format!("/containers/{id}?force=true&v=true")).await
        {
            tracing::warn!(container = id, error = %format!("{error:#}"), "it could not be removed");
        }
        result
    }
}

impl Actuator for ComposeActuator {
    async fn instances(&mut self) -> anyhow::Result<Fleet> {
        let all = self.look().await?;
        let now = Instant::now();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let running = all.iter().filter(|c| self.counts(c, now)).count();
        Ok(Fleet { running: count(running), draining: count(self.draining.len()) })
    }

    async fn start_one(&mut self) -> anyhow::Result<()> {
        let all = self.look().await?;
        let now = Instant::now();
        let name = if let Some(ended) = all.iter().find(|c| !self.counts(c, now)) {
            self.engine.post(&format!("/containers/{}/start", ended.id), None, PATIENCE).await?;
            format!("{}-{}-{}", ended.project, self.service.name, ended.number)
        } else {
            // Those that drain have their numbers until they are removed.
            let every = self.list().await?;
            let number = every.last().map_or(1, |c| c.number + 1);
            let oldest = every.first().context("there is no container to copy")?;
            self.copy(oldest, number).await?
        };
        tracing::info!(container = name, "started");
        Ok(())
    }

    async fn stop_one(&mut self) -> anyhow::Result<()> {
        let all = self.look().await?;
        let now = Instant::now();
        let Some(newest) = all.iter().rfind(|c| self.counts(c, now)) else { return Ok(()) };
        tracing::info!(service = self.service.name, number = newest.number, "stopping");
        self.draining.insert(newest.id.clone());
        let (engine, id, grace, last) = (self.engine.clone(), newest.id.clone(), self.grace, all.len() == 1);
        let number = newest.number;
        self.tasks.spawn(async move {
            match drain(&engine, &id, grace, last).await {
                Ok(()) => tracing::info!(number, "stopped"),
                Err(error) => {
                    tracing::warn!(number, error = %format!("{error:#}"), "it could not be stopped");
                }
            }
            id
        });
        Ok(())
    }

    async fn wait_change(&mut self) {
        tokio::select! {
            Some(ended) = self.tasks.join_next() => match ended {
                Ok(id) => {
                    self.draining.remove(&id);
                }
                Err(error) => tracing::error!(%error, "the task of a container was lost"),
            },
            () = tokio::time::sleep(LOOK) => {}
        }
    }

    async fn end(&mut self) {
        // What was told to stop is seen to its end; the others are Compose's.
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Stops a container and takes it away, the last one of its service left there.
async fn drain(engine: &Engine, id: &str, grace: Duration, last: bool) -> anyhow::Result<()> {
    let path = format!("/containers/{id}/stop?t={}", grace.as_secs());
    engine.post(&path, None, grace + PATIENCE).await?;
    if !last {
        engine.delete(&format!("/containers/{id}?v=true")).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
