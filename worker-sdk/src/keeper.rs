//! The keeper: a thread that renews what the instances of this process hold, and says that they live. Owns that thread, its
//! runtime and its connection; runs no handler.
//!
//! The rule it keeps: a handler that blocks its thread, and with it the only worker of a small runtime, costs neither the
//! message it works on nor the others that wait here. That is kept up for [`BLOCKED_MAX`] without a sign of life from the
//! agent's own runtime; whatever is silent for longer is taken for dead, and what it held goes to other instances.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_nats::Client;
use protocol::streams::INBOX_ACK_WAIT;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use crate::core::Core;
use crate::error::{Error, ErrorKind};

/// How often held messages are renewed and a heartbeat is sent: two may be lost before the work goes to others.
pub(crate) const RENEWAL: Duration = Duration::from_secs(INBOX_ACK_WAIT.as_secs() / 3);
/// How long a runtime may be blocked before its agent is given up: longer than blocking code that was called by mistake
/// takes, shorter than a caller waits for a dead-locked process.
const BLOCKED_MAX: Duration = Duration::from_secs(30);
/// Agents of one process that wait to be adopted: each waits for its own turn in between.
const ADOPTIONS_MAX: usize = 16;

/// The way to the thread. It ends when nobody has one and nobody is kept any more.
#[derive(Debug, Clone)]
pub(crate) struct Keeper {
    adopt: mpsc::Sender<Weak<Core>>,
}

impl Keeper {
    /// Starts the thread, with a connection of its own: the other one is served by the runtime that may be blocked.
    ///
    /// # Errors
    /// When the broker cannot be reached, or no thread can be started.
    pub(crate) async fn start(url: &str) -> Result<Self, Error> {
        let (adopt, adopted) = mpsc::channel(ADOPTIONS_MAX);
        let (started, ready) = oneshot::channel();
        let url = url.to_owned();
        let body = move || match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(begin(&url, started, adopted)),
            // Who started it may have given up by now; the same holds below.
            Err(e) => {
                drop(started.send(Err(Error::caused(ErrorKind::Connection, "no runtime for the keeper", e))))
            }
        };
        let thread = std::thread::Builder::new().name("mesh-keeper".into()).spawn(body);
        thread.map_err(|e| Error::caused(ErrorKind::Connection, "no thread for the keeper", e))?;
        let gone = |_| Error::new(ErrorKind::Connection, "the keeper ended before it began");
        ready.await.map_err(gone)??;
        Ok(Self { adopt })
    }

    /// Keeps this agent from here on, until it is closed or dropped.
    pub(crate) async fn adopt(&self, core: &Arc<Core>) {
        // The thread does not end before this way to it.
        drop(self.adopt.send(Arc::downgrade(core)).await);
    }
}

/// Connects, tells how that went, and keeps.
async fn begin(url: &str, started: oneshot::Sender<Result<(), Error>>, adopted: mpsc::Receiver<Weak<Core>>) {
    match broker::connect(url, "mesh agent, keeper").await {
        Ok(client) => {
            drop(started.send(Ok(())));
            keep(client, adopted).await;
        }
        Err(e) => {
            drop(started.send(Err(Error::caused(ErrorKind::Connection, "the mesh cannot be reached", e))))
        }
    }
}

/// Keeps whom it adopts, until they are gone and nobody can be adopted any more.
async fn keep(client: Client, mut adopted: mpsc::Receiver<Weak<Core>>) {
    let mut cores: Vec<Weak<Core>> = Vec::new();
    let mut adopts = true;
    let mut tick = tokio::time::interval(RENEWAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while adopts || !cores.is_empty() {
        // Both arms are cancellation-safe.
        tokio::select! {
            core = adopted.recv(), if adopts => match core {
                Some(core) => cores.push(core),
                None => adopts = false,
            },
            _ = tick.tick() => {
                let living: Vec<Arc<Core>> = cores.iter().filter_map(Weak::upgrade).filter(|c| !c.is_closed()).collect();
                cores = living.iter().map(Arc::downgrade).collect();
                for core in &living {
                    keep_one(&client, core).await;
                }
            }
        }
    }
}

async fn keep_one(client: &Client, core: &Core) {
    let silent = core.pulse.silent();
    if silent > BLOCKED_MAX {
        let given_up = core.holding.give_up();
        if given_up > 0 {
            let agent = &core.name;
            tracing::error!(%agent, ?silent, given_up, "its runtime is blocked; what it holds goes to other instances");
        }
        return;
    }
    let (subject, beat) = core.heartbeat(false);
    if let Err(error) = client.publish(subject, beat).await {
        tracing::debug!(%error, "no heartbeat");
    }
    for ack in core.holding.renewable() {
        if let Err(error) = broker::in_progress(client, &ack).await {
            tracing::debug!(%error, "not renewed; it may come again");
        }
    }
}
