//! The mesh as an agent author sees it first: a connection, and agents on it.

use std::sync::Arc;

use async_nats::Client;
use governance::{AgentId, InstanceId};
use tokio::sync::OnceCell;

use crate::builder::AgentBuilder;
use crate::env;
use crate::error::{Error, ErrorKind};
use crate::keeper::Keeper;

/// A connection to a mesh. Cheap to clone; agents on one connection share it.
#[derive(Debug, Clone)]
pub struct Mesh {
    pub(crate) client: Client,
    pub(crate) publisher: broker::Publisher,
    url: Arc<str>,
    /// Started with the first agent that takes work.
    keeper: Arc<OnceCell<Keeper>>,
}

impl Mesh {
    /// Connects to the broker of a mesh. The connection repairs itself from then on.
    ///
    /// # Errors
    /// `Connection` when the broker cannot be reached.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        let refused = |e| Error::caused(ErrorKind::Connection, "the mesh cannot be reached", e);
        let client = broker::connect(url, "mesh agent").await.map_err(refused)?;
        let publisher = broker::Publisher::start(client.clone()).await.map_err(refused)?;
        Ok(Self { client, publisher, url: url.into(), keeper: Arc::default() })
    }

    /// The keeper of the agents on this connection.
    ///
    /// # Errors
    /// `Connection` when it cannot be started.
    pub(crate) async fn keeper(&self) -> Result<Keeper, Error> {
        self.keeper.get_or_try_init(|| Keeper::start(&self.url)).await.cloned()
    }

    /// Connects to the mesh that `MESH_NATS_URL` names, or that runs from this folder or one above it, or that is where a
    /// broker usually is.
    ///
    /// # Errors
    /// `Connection` when the broker cannot be reached.
    pub async fn from_env() -> Result<Self, Error> {
        Self::connect(&env::nats_url()).await
    }

    /// An agent to be registered. What it offers and needs is said with the builder.
    pub fn agent(&self, name: &str) -> AgentBuilder {
        AgentBuilder::new(self.clone(), name)
    }

    /// The connection below, for what is beside dispatches: alerts, operator commands, own subjects.
    #[must_use]
    pub const fn nats(&self) -> &Client {
        &self.client
    }
}

/// A number that no other instance has: 39 random bits beside those that name its agent.
pub(crate) fn new_instance(agent: &AgentId) -> InstanceId {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    // Version and variant bits of a UUID are fixed; folding its halves leaves no fixed bit.
    InstanceId::of(agent, high.rotate_left(17) ^ low)
}
