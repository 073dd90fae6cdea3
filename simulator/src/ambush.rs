//! Ambushes: a coordinator falls asleep in the moment in which one of its blocks has become durable and it does not know yet,
//! and wakes when it is a former home. Owns that plan; puts to sleep and wakes through the ordinary strikes.
//!
//! By chance this happens in one run of a hundred, and it is what the fences of the broker are there for: a former home that
//! publishes what was recorded, after its successor has moved the fence and where the message id no longer helps, be it that
//! the successor has not published yet, or that the broker was restarted and has forgotten the ids of what is gone.

use governance::Timestamp;
use protocol::audit::Block;
use protocol::subjects;

use crate::faults::Fault;
use crate::net::{Actor, Server, Who};
use crate::strikes::Strike;
use crate::world::World;

/// The time between two ambushes, in nanoseconds, about.
const BETWEEN: u64 = 5_000_000_000;
/// So long a sleep lasts at least and at most, in milliseconds, where nobody moves the fence: longer than the silence after
/// which a replica counts as dead.
const SLEEP_MS: (u64, u64) = (4_000, 9_000);
/// A former home that wakes at its successor's fence wakes within this, in nanoseconds: about what a take-over takes from its
/// fence to its last publish.
const WAKES_WITHIN: u64 = 4_000_000;
/// How often it sleeps through a restart of the broker instead, in ten thousand.
const SLEEPS_ON: u64 = 4_000;

/// Whom is lain in wait for.
#[derive(Debug, Default)]
pub(crate) struct Ambush {
    /// Falls asleep with its next block.
    awaited: Option<Who>,
    /// Fell asleep with a block of this shard.
    asleep: Option<(Actor, u8)>,
}

impl World {
    pub(crate) fn plan_next_ambush(&mut self) {
        if self.settings.faults.has(Fault::Ambush) && !self.calm {
            let pause = self.streams.ambushes.around(BETWEEN);
            self.plan_in(pause, Strike::Ambush);
        }
    }

    pub(crate) fn lie_in_wait(&mut self) {
        self.ambush.awaited = Some(Who::Replica(self.streams.ambushes.below(3) as u16));
        self.plan_next_ambush();
    }

    /// A block of a home became durable. Its replica has yet to hear of it.
    pub(crate) fn ambush_at_block(&mut self, by: Actor, shard: u8, block: &[u8]) {
        if self.calm || self.ambush.awaited != Some(by.who) || self.living(by.who) != Some(by) {
            return;
        }
        let publishes =
            |block: Block| block.decisions.iter().any(|d| d.decision == governance::Decision::Admitted);
        if !Block::decode(block).is_ok_and(publishes) {
            return;
        }
        self.ambush = Ambush { awaited: None, asleep: Some((by, shard)) };
        self.strike(Strike::Pause(by.who));
        let sleeps = self.streams.ambushes.between(SLEEP_MS.0, SLEEP_MS.1) * 1_000_000;
        self.plan_in(sleeps, Strike::Resume(by));
    }

    /// The fence of a shard was moved: by the successor of the one that sleeps, perhaps.
    pub(crate) fn ambush_at_fence(&mut self, by: Actor, subject: &str) {
        let Some((sleeper, shard)) = self.ambush.asleep else { return };
        if by == sleeper || subjects::last_token(subject).parse() != Ok(shard) {
            return;
        }
        self.ambush.asleep = None;
        if self.settings.faults.has(Fault::Broker) && self.streams.ambushes.happens(SLEEPS_ON) {
            let from = self.streams.ambushes.between(500, 2_000) * 1_000_000;
            let until = from + self.streams.ambushes.between(100, 500) * 1_000_000;
            self.plan_in(from, Strike::Away(Server::Broker, Timestamp(self.now.0 + until)));
            return;
        }
        let wakes = self.streams.ambushes.below(WAKES_WITHIN);
        self.plan_in(wakes, Strike::Resume(sleeper));
    }
}
