//! The homes that this replica hosts: how what concerns a shard, or all of them, reaches the right ones.
//!
//! Owns the list; starts and ends no home. The rule it keeps: a home can be reached from before its take-over reads what is
//! known, so that nothing that is told meanwhile is missed.

use std::sync::{Arc, PoisonError, RwLock};

use governance::{SHARDS, shard_of};
use home::{Command, Input};
use tokio::sync::mpsc;

/// The way to one home.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) epoch: u64,
    inputs: mpsc::Sender<Input>,
}

impl Link {
    /// Gives a home something to take; false where it has ended meanwhile.
    pub(crate) async fn send(&self, command: Command) -> bool {
        self.inputs.send(Input::Command(command)).await.is_ok()
    }
}

type Links = Vec<Option<Link>>;

/// The homes of this replica. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Homes(Arc<RwLock<Arc<Links>>>);

impl Homes {
    pub(crate) fn new() -> Self {
        Self(Arc::new(RwLock::new(Arc::new(vec![None; usize::from(SHARDS)]))))
    }

    fn links(&self) -> Arc<Links> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, change: impl FnOnce(&mut Links)) {
        let mut place = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut links = Links::clone(&place);
        change(&mut links);
        *place = Arc::new(links);
    }

    pub(crate) fn open(&self, shard: u8, epoch: u64, inputs: mpsc::Sender<Input>) {
        self.change(|links| links[usize::from(shard)] = Some(Link { epoch, inputs }));
    }

    /// The home of a shard under this epoch has ended.
    pub(crate) fn close(&self, shard: u8, epoch: u64) {
        self.change(|links| {
            let link = &mut links[usize::from(shard)];
            if link.as_ref().is_some_and(|l| l.epoch == epoch) {
                *link = None;
            }
        });
    }

    /// The home of an agent, where it is here.
    pub(crate) fn of(&self, agent: &str) -> Option<Link> {
        self.links()[usize::from(shard_of(agent))].clone()
    }

    /// The home of a shard, where it is here.
    pub(crate) fn at(&self, shard: u8) -> Option<Link> {
        self.links().get(usize::from(shard)).cloned().flatten()
    }

    /// All homes that are here, with their shards.
    pub(crate) fn all(&self) -> Vec<(u8, Link)> {
        let links = self.links();
        (0..SHARDS).filter_map(|shard| Some((shard, links[usize::from(shard)].clone()?))).collect()
    }

    /// Tells all homes.
    pub(crate) async fn tell(&self, command: impl Fn() -> Command) {
        for link in self.links().iter().flatten() {
            link.send(command()).await;
        }
    }
}
