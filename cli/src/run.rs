//! `mesh run`: keeps as many instances of an agent running as the mesh wants. Owns the loop; the wish is read in `wish.rs`,
//! compared in `reconcile.rs`, and done by an actuator.
//!
//! The rule it keeps: the home of the agent decides, here it is done. What is wanted is read as a level; nothing here
//! counts load, and nothing is remembered beyond the process.

mod actuator;
mod backoff;
mod compose;
mod container;
mod engine;
mod local;
mod process;
mod reconcile;
mod wish;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use governance::AgentId;
use protocol::control::Scale;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use self::actuator::Actuator;
use self::compose::{ComposeActuator, Service};
use self::local::LocalActuator;
use self::process::Plan;
use self::reconcile::{Bounds, Step, reconcile};
use crate::answer::{Answer, Usage};
use crate::mesh::Mesh;
use crate::moment;

/// In which variable an instance finds its number among those of its supervisor.
const NUMBER_VARIABLE: &str = "MESH_INSTANCE_NUMBER";
/// The pause after an actuator could not do or say something: a broken engine shall not fill the log.
const PAUSE: Duration = Duration::from_secs(2);
/// Signals that wait to be looked at: the first lets instances drain, a second one gives up on them.
const SIGNALS_MAX: usize = 4;

pub(crate) const EXAMPLES: &str = "Examples:\n  mesh run --agent lead_bot --min 2 --max 6 -- ./lead-bot --verbose\n  \
    mesh run --agent lead_bot --min 2 --max 6 --compose-service lead-bot";

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The agent, by the name under which its instances register.
    #[arg(long, value_parser = agent_name)]
    agent: String,
    /// So many instances run at least.
    #[arg(long, default_value_t = 1, value_name = "N")]
    min: u32,
    /// So many run at most, those that are just stopping included.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max: u32,
    /// How long an instance that shall stop may take to finish what it runs, before it is killed.
    #[arg(long, default_value = "30s", value_parser = moment::parse_duration, value_name = "TIME")]
    grace: Duration,
    /// The longest pause before an instance that keeps crashing is started again.
    #[arg(long, default_value = "30s", value_parser = moment::parse_duration, value_name = "TIME")]
    backoff_max: Duration,
    /// Scales this service of Docker Compose in place of a command.
    #[arg(long, value_name = "NAME", conflicts_with = "command")]
    compose_service: Option<String>,
    /// The project of that service [else COMPOSE_PROJECT_NAME, else the only one that has the service].
    #[arg(long, value_name = "NAME", requires = "compose_service", env = "COMPOSE_PROJECT_NAME")]
    compose_project: Option<String>,
    /// The socket of the Docker engine.
    #[arg(long, value_name = "PATH", default_value = "/var/run/docker.sock")]
    docker_socket: PathBuf,
    /// What runs one instance.
    #[arg(last = true, value_name = "COMMAND", required_unless_present = "compose_service")]
    command: Vec<OsString>,
}

fn agent_name(text: &str) -> Result<String, String> {
    AgentId::new(text).map(|id| id.to_string()).map_err(|e| e.to_string())
}

pub(crate) async fn run(args: RunArgs, mesh: &Mesh) -> anyhow::Result<Answer> {
    if args.min > args.max {
        return Err(Usage(format!("--min {} is more than --max {}", args.min, args.max)).into());
    }
    let bounds = Bounds { min: args.min, max: args.max };
    let (wish, wanted) = watch::channel(None);
    let following = tokio::spawn(wish::follow(mesh.clone(), args.agent.clone(), wish));
    let supervisor = Supervisor { agent: args.agent.clone(), bounds, wanted, signals: signals()? };
    let ended = if let Some(service) = args.compose_service {
        let service = Service { name: service, project: args.compose_project };
        let actuator = ComposeActuator::new(args.docker_socket, service, args.grace, args.backoff_max);
        Box::pin(supervisor.supervise(actuator)).await
    } else {
        let plan = Plan {
            agent: args.agent,
            command: args.command,
            // Instances shall be in the mesh that is asked about them, however it was found.
            variables: vec![("MESH_NATS_URL".to_owned(), mesh.nats_url.clone())],
        };
        let actuator = LocalActuator::new(plan, args.grace, args.backoff_max);
        Box::pin(supervisor.supervise(actuator)).await
    };
    following.abort();
    ended
}

/// The signals that end it, one after the other.
fn signals() -> anyhow::Result<mpsc::Receiver<&'static str>> {
    let (heard, signals) = mpsc::channel(SIGNALS_MAX);
    let kinds = [
        (SignalKind::terminate(), "SIGTERM"),
        (SignalKind::interrupt(), "SIGINT"),
        (SignalKind::hangup(), "SIGHUP"),
    ];
    for (kind, name) in kinds {
        let mut incoming = signal(kind).context("signals cannot be heard")?;
        let heard = heard.clone();
        tokio::spawn(
            async move { while incoming.recv().await.is_some() && heard.send(name).await.is_ok() {} },
        );
    }
    Ok(signals)
}

struct Supervisor {
    agent: String,
    bounds: Bounds,
    wanted: watch::Receiver<Option<Scale>>,
    signals: mpsc::Receiver<&'static str>,
}

impl Supervisor {
    /// Keeps the fleet at its level until a signal ends it.
    async fn supervise(mut self, mut actuator: impl Actuator) -> anyhow::Result<Answer> {
        let mut works = false;
        loop {
            let wanted = self.wanted.borrow_and_update().as_ref().map(|scale| scale.wanted);
            let stepped = step(&mut actuator, self.bounds, wanted).await;
            let pause = match stepped {
                Ok(rests) => {
                    works = true;
                    // What was just told to begin or end is looked at again at once.
                    if !rests {
                        continue;
                    }
                    Duration::MAX
                }
                Err(error) if !works => return Err(error),
                Err(error) => {
                    let error = crate::answer::in_words(&error);
                    tracing::warn!(
                        agent = self.agent,
                        error,
                        "the instances cannot be changed; trying again"
                    );
                    PAUSE
                }
            };
            // All arms are cancellation-safe.
            tokio::select! {
                Some(name) = self.signals.recv() => {
                    tracing::info!(agent = self.agent, signal = name, "ending");
                    return Ok(self.end(actuator).await);
                }
                Ok(()) = self.wanted.changed() => self.report(),
                () = actuator.wait_change() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn report(&self) {
        let Bounds { min, max } = self.bounds;
        match &*self.wanted.borrow() {
            Some(Scale { wanted, reason, epoch, .. }) => {
                let level = self.bounds.level(Some(*wanted));
                let reason = reason.name();
                tracing::info!(
                    agent = self.agent,
                    wanted,
                    reason,
                    epoch,
                    min,
                    max,
                    level,
                    "the wish changed"
                );
            }
            None => tracing::info!(agent = self.agent, level = min, "nothing is wished"),
        }
    }

    /// Lets the instances go; no where they were not given the time that they wanted.
    async fn end(&mut self, mut actuator: impl Actuator) -> Answer {
        tokio::select! {
            () = actuator.end() => Answer::Yes,
            Some(name) = self.signals.recv() => {
                tracing::warn!(agent = self.agent, signal = name, "once more; killing what has not ended");
                Answer::No
            }
        }
    }
}

/// Takes one step towards the level; whether none is needed.
async fn step(actuator: &mut impl Actuator, bounds: Bounds, wanted: Option<u32>) -> anyhow::Result<bool> {
    match reconcile(bounds, wanted, actuator.instances().await?) {
        Step::Start(_) => actuator.start_one().await?,
        Step::Stop(_) => actuator.stop_one().await?,
        Step::Rest => return Ok(true),
    }
    Ok(false)
}

#[cfg(test)]
mod tests;
