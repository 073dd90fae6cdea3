//! Taking over a shard: fence, marker, P0's consumers, rebuild, replay, in this order; then the home begins, and the consumers
//! of the other priorities follow. Pulling begins with the home.
//!
//! Owns the order; the world does what is asked. The rule it keeps: when this returns, nothing that a former home still does
//! can have an effect, and everything that it recorded is known or published. What it still acknowledges by a consumer that
//! is not moved yet it had recorded before the marker.

use std::sync::Arc;

use bytes::Bytes;
use governance::{AgentId, Policy, Priority, Registration, Timestamp, shard_of};
use protocol::audit::{self, Block, Note};
use protocol::control::Breaker;
use protocol::redis::{EntryId, Head};
use protocol::{AuditKey, subjects};

use crate::home::Setup;
use crate::input::Appended;
use crate::meter::Meter;
use crate::out::Fence;
use crate::rebuild::{Recovered, rebuild};
use crate::replay::{Replay, replay};

/// Broker and audit ledger, as a take-over needs them. Each operation is tried until it is answered, or fails for good.
pub trait World: Sync {
    /// Stores a message on the fence subject of a shard that says the epoch, and drops the older ones; its sequence.
    fn move_fence(
        &self,
        priority: Priority,
        shard: u8,
        epoch: u64,
    ) -> impl Future<Output = Result<u64, WorldError>> + Send;
    /// The head of a shard's audit.
    fn head(&self, shard: u8) -> impl Future<Output = Result<Head, WorldError>> + Send;
    /// Appends a block where the head is the expected one.
    fn append(
        &self,
        shard: u8,
        expected: Head,
        new: Head,
        block: &[u8],
    ) -> impl Future<Output = Result<Appended, WorldError>> + Send;
    /// The snapshot of a shard: the head it was taken at, the oldest block needed, the state.
    fn snapshot(
        &self,
        shard: u8,
    ) -> impl Future<Output = Result<Option<(Head, EntryId, String)>, WorldError>> + Send;
    /// The blocks of a shard from this one on, in order.
    fn blocks(
        &self,
        shard: u8,
        from: EntryId,
    ) -> impl Future<Output = Result<Vec<(EntryId, Vec<u8>)>, WorldError>> + Send;
    /// Every registration in force.
    fn registrations(&self) -> impl Future<Output = Result<Vec<Registration>, WorldError>> + Send;
    /// Every breaker that was stored.
    fn breakers(&self) -> impl Future<Output = Result<Vec<(String, Breaker)>, WorldError>> + Send;
    /// The agents that operators paused.
    fn paused(&self) -> impl Future<Output = Result<Vec<String>, WorldError>> + Send;
    /// Deletes the lane and done consumers of a source and these classes under this epoch, where there are any: what they held comes back, and
    /// their acknowledgements meet nothing.
    fn delete_consumers(
        &self,
        agent: &AgentId,
        epoch: u64,
        classes: &[Priority],
    ) -> impl Future<Output = Result<(), WorldError>> + Send;
    /// The same for all agents of this shard and every lower epoch: as dear as there are consumers, of whichever shard.
    fn delete_former_consumers(
        &self,
        shard: u8,
        epoch: u64,
    ) -> impl Future<Output = Result<(), WorldError>> + Send;
    /// Makes the lane and done consumers of a source and these classes under this epoch; how many completions wait, by class. None where consumers
    /// of another epoch are still there.
    fn make_consumers(
        &self,
        agent: &AgentId,
        epoch: u64,
        classes: &[Priority],
    ) -> impl Future<Output = Result<Option<Vec<(Priority, u64)>>, WorldError>> + Send;
    /// The first message from a stream sequence on that is still in a source's lane, with its sequence.
    fn lane_message(
        &self,
        lane: Priority,
        source: &AgentId,
        from: u64,
    ) -> impl Future<Output = Result<Option<(u64, Bytes)>, WorldError>> + Send;
    /// Whether an inbox holds the message of this id: delivered or not, it is not acknowledged. Asked only about messages so
    /// old that the broker may have forgotten their ids.
    fn holds(
        &self,
        class: Priority,
        target: &AgentId,
        message_id: &str,
    ) -> impl Future<Output = Result<bool, WorldError>> + Send;
    /// Publishes an inbox message under a message id.
    fn publish(
        &self,
        subject: String,
        message_id: String,
        fence: Fence,
        payload: Bytes,
    ) -> impl Future<Output = Result<Stored, WorldError>> + Send;
    /// When each lane stream was made, by priority.
    fn lanes_made(&self) -> impl Future<Output = Result<[u64; 4], WorldError>> + Send;
    /// The time.
    fn now(&self) -> Timestamp;
}

/// What became of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is stored.
    New,
    /// It was stored before.
    Already,
    /// The fence stands elsewhere.
    Fenced,
}

/// Broker or ledger refused something for good, or hold something that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WorldError(pub String);

/// A take-over that did not come to its end. Nothing was decided; claim anew, under a higher epoch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TakeoverError {
    /// Another replica was faster.
    #[error("deposed while taking over: {0}")]
    Deposed(String),
    /// What a former home left cannot be read.
    #[error("what former homes of shard {shard} left is damaged: {what}")]
    Damaged {
        /// The shard.
        shard: u8,
        /// What is wrong with it.
        what: String,
    },
    /// Broker or ledger failed.
    #[error(transparent)]
    World(#[from] WorldError),
}

/// What is taken over, by whom.
#[derive(Debug, Clone)]
pub struct Taking {
    /// The shard.
    pub shard: u8,
    /// The epoch that was claimed.
    pub epoch: u64,
    /// The epoch that the shard's entry named before.
    pub former: u64,
    /// The replica.
    pub replica: String,
    /// The rules.
    pub policy: Arc<Policy>,
    /// The key of payload hashes and lineage seals.
    pub key: AuditKey,
    /// Where the home will count.
    pub meter: Arc<dyn Meter>,
}

/// The consumers that P0 waits for.
const URGENT: &[Priority] = &[Priority::P0];
/// The others.
const BULK: &[Priority] = &[Priority::P1, Priority::P2, Priority::P3];

/// Messages with completions of a source that wait for their new home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Whose dispatches ended.
    pub source: AgentId,
    /// The priority of their lane.
    pub class: Priority,
    /// How many.
    pub messages: u64,
}

/// What is left of a take-over when its home begins: the consumers of P1 to P3.
#[derive(Debug)]
pub struct Rest {
    shard: u8,
    former: u64,
    epoch: u64,
    agents: Vec<AgentId>,
}

impl Rest {
    /// Moves these consumers; the home is to be told [`Input::BulkReady`](crate::Input::BulkReady) with how many completions
    /// wait there, before it can be given any of their messages.
    ///
    /// # Errors
    /// When the broker fails for good, or a later home is here.
    pub async fn take<W: World>(self, world: &W) -> Result<Vec<Waiting>, TakeoverError> {
        move_consumers(world, self.shard, (self.former, self.epoch), &self.agents, BULK).await
    }
}

/// The take-over in its order, up to where the home begins.
///
/// # Errors
/// When another replica was faster, or broker or ledger fail for good.
pub async fn take_over<W: World>(world: &W, taking: Taking) -> Result<(Setup, Rest), TakeoverError> {
    let Taking { shard, epoch, former, replica, policy, key, meter } = taking;
    let began = world.now();
    let fences = move_fences(world, shard, epoch).await?;
    let fenced = world.now();
    let head = mark(world, shard, epoch, &replica, policy.version).await?;
    let marked = world.now();
    let mut recovered = Recovered {
        registrations: world.registrations().await?,
        breakers: world.breakers().await?,
        paused: world.paused().await?,
        ..Recovered::default()
    };
    let own = recovered.registrations.iter().filter(|r| shard_of(&r.agent) == shard);
    let own: Vec<AgentId> = own.filter_map(|r| AgentId::new(&r.agent).ok()).collect();
    // Both sides are fenced: what was recorded can be read while the consumers are made.
    let (unread, rebuilt, lanes_made) = futures::try_join!(
        move_consumers(world, shard, (former, epoch), &own, URGENT),
        rebuild(world, shard, &policy),
        async { Ok::<_, TakeoverError>(world.lanes_made().await?) },
    )?;
    recovered.unread.wait(unread, false);
    let read = world.now();
    let r = Replay { world, shard, key: &key, lanes_made, fences: &fences };
    replay(&r, &rebuilt, &mut recovered).await?;
    rebuilt.recover(&mut recovered);
    let (agents, end) = (own.len(), world.now());
    let [fences_took, marker_took, reading_took, replay_took] =
        [fenced.since(began), marked.since(fenced), read.since(marked), end.since(read)];
    tracing::debug!(shard, agents, ?fences_took, ?marker_took, ?reading_took, ?replay_took, "taken over");
    let setup = Setup { shard, epoch, replica, policy, key, head, fences, recovered, lanes_made, meter };
    Ok((setup, Rest { shard, former, epoch, agents: own }))
}

/// Moves the fences: whatever a former home still publishes is refused from here on.
async fn move_fences<W: World>(world: &W, shard: u8, epoch: u64) -> Result<[Fence; 4], TakeoverError> {
    let moves = Priority::ALL.iter().map(|p| async move {
        let sequence = world.move_fence(*p, shard, epoch).await?;
        Ok::<Fence, WorldError>(Fence { subject: subjects::fence(*p, shard), sequence })
    });
    let fences = futures::future::try_join_all(moves).await?;
    Ok(fences.try_into().expect("one for each priority"))
}

/// Lets go what former homes held, and makes the consumers of these agents anew; which completions wait.
async fn move_consumers<W: World>(
    world: &W,
    shard: u8,
    (former, epoch): (u64, u64),
    agents: &[AgentId],
    classes: &[Priority],
) -> Result<Vec<Waiting>, TakeoverError> {
    let moves = agents.iter().map(|agent| async move {
        world.delete_consumers(agent, former, classes).await?;
        world.make_consumers(agent, epoch, classes).await
    });
    let mut moved = futures::future::try_join_all(moves).await?;
    if moved.iter().any(Option::is_none) {
        // The home before last was not followed by one that came this far.
        world.delete_former_consumers(shard, epoch).await?;
        for (agent, made) in agents.iter().zip(&mut moved).filter(|(_, made)| made.is_none()) {
            *made = world.make_consumers(agent, epoch, classes).await?;
        }
    }
    let mut waiting = Vec::new();
    for (agent, made) in agents.iter().zip(moved) {
        let Some(counts) = made else {
            return Err(WorldError("a consumer of a later epoch is in the way".to_owned()).into());
        };
        let of = |(class, messages)| Waiting { source: agent.clone(), class, messages };
        waiting.extend(counts.into_iter().map(of));
    }
    Ok(waiting)
}

/// Appends the take-over marker: from here on a former home's appends are refused.
async fn mark<W: World>(
    world: &W,
    shard: u8,
    epoch: u64,
    replica: &str,
    policy_version: u32,
) -> Result<Head, TakeoverError> {
    loop {
        let expected = world.head(shard).await?;
        // A later epoch means that this replica was too slow; the ledger takes no entry below its last.
        if expected.id.epoch >= epoch {
            let why = format!("shard {shard} was taken over at epoch {}", expected.id.epoch);
            return Err(TakeoverError::Deposed(why));
        }
        let at = world.now();
        let body = serde_json::json!({
            "replica": replica, "epoch": epoch,
            "after": expected.id.to_string(), "hash": protocol::text::hex(&expected.hash),
        });
        let note = Note { kind: "takeover".into(), at, agent: "".into(), body: body.to_string() };
        let block = Block {
            shard,
            epoch,
            sequence: 1,
            at,
            previous: expected.hash,
            policy_version,
            decisions: Vec::new(),
            completions: Vec::new(),
            notes: vec![note],
        };
        let bytes = block.encode();
        let head = Head { id: EntryId { epoch, sequence: 1 }, hash: audit::hash(&bytes) };
        match world.append(shard, expected, head, &bytes).await? {
            Appended::Durable => return Ok(head),
            // The former home got one more block in, or a later one was faster: look again.
            Appended::Deposed(_) => {}
        }
    }
}
