//! The mesh as an agent author sees it first: a connection, and agents on it.

use async_nats::Client;
use governance::InstanceId;

use crate::builder::AgentBuilder;
use crate::env;
use crate::error::{Error, ErrorKind};

/// A connection to a mesh. Cheap to clone; agents on one connection share it.
#[derive(Debug, Clone)]
pub struct Mesh {
    pub(crate) client: Client,
    pub(crate) publisher: broker::Publisher,
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
        Ok(Self { client, publisher })
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

/// A number that no other instance has: 63 random bits, as the top bit marks derived ones.
pub(crate) fn new_instance() -> InstanceId {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    // Version and variant bits of a UUID are fixed; folding its halves leaves no fixed bit.
    InstanceId((high.rotate_left(17) ^ low) & !InstanceId::DERIVED)
}
