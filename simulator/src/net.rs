//! The network: who talks to whom, how long it takes, and what a partition does.
//!
//! Owns the links between processes and servers. The rule it keeps: what one process sends on one connection arrives in
//! order or not at all; between connections there is no order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use governance::Timestamp;

use crate::random::Random;

/// A process, without regard to how often it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// A coordinator.
    Replica(u16),
    /// An instance of an agent.
    Instance(u16),
    /// An archiver.
    Archiver(u16),
}

/// One life of a process: what was meant for an earlier one does not reach a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Actor {
    /// Which process.
    pub who: Who,
    /// How often it was started before.
    pub life: u32,
}

impl Actor {
    /// Whether it is a coordinator.
    #[must_use]
    pub const fn is_replica(self) -> bool {
        matches!(self.who, Who::Replica(_))
    }
}

impl std::fmt::Display for Actor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.who {
            Who::Replica(n) => write!(f, "replica-{n}.{}", self.life),
            Who::Instance(n) => write!(f, "instance-{n}.{}", self.life),
            Who::Archiver(n) => write!(f, "archiver-{n}.{}", self.life),
        }
    }
}

/// A server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Server {
    /// NATS.
    Broker,
    /// Redis.
    Redis,
    /// PostgreSQL.
    Postgres,
}

impl Server {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Broker, Self::Redis, Self::Postgres];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Redis => "redis",
            Self::Postgres => "postgres",
        }
    }
}

/// What a partition does to what is sent meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The connection holds: everything arrives when the partition ends, as TCP does it.
    Delays,
    /// The connection breaks: what is sent is lost.
    Breaks,
}

/// The connections on which one process talks to one server. Requests on different ones may overtake each other.
pub const CHANNELS: usize = 4;

#[derive(Debug, Default, Clone, Copy)]
struct Link {
    /// When the last message of each direction and channel arrives.
    last: [[u64; CHANNELS]; 2],
    cut: Option<(Timestamp, bool)>,
}

/// Which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the server.
    There,
    /// Back to the process.
    Back,
}

/// All links.
#[derive(Debug)]
pub struct Net {
    links: BTreeMap<(Who, Server), Link>,
    away: BTreeSet<Server>,
    slow_until: BTreeMap<Server, Timestamp>,
    random: Random,
}

/// How long a message takes on this machine's network, in nanoseconds.
const TRAVEL: u64 = 120_000;
/// One message in so many is late.
const LATE_IN_TEN_THOUSAND: u64 = 50;
/// How much later.
const LATE_FACTOR: u64 = 40;
/// How much later everything of a slow leader is.
const SLOW_FACTOR: u64 = 60;

impl Net {
    /// A network without faults.
    #[must_use]
    pub const fn new(random: Random) -> Self {
        Self { links: BTreeMap::new(), away: BTreeSet::new(), slow_until: BTreeMap::new(), random }
    }

    /// When a message arrives that is sent now; none where it is lost.
    pub fn travel(
        &mut self,
        now: Timestamp,
        who: Who,
        server: Server,
        way: Way,
        channel: usize,
    ) -> Option<Timestamp> {
        let mut takes = self.random.around(TRAVEL);
        if self.random.happens(LATE_IN_TEN_THOUSAND) {
            takes *= LATE_FACTOR;
        }
        if way == Way::There && self.slow_until.get(&server).is_some_and(|until| *until > now) {
            takes *= SLOW_FACTOR;
        }
        if self.away.contains(&server) {
            return None;
        }
        let link = self.links.entry((who, server)).or_default();
        let earliest = match link.cut {
            Some((_, true)) => return None,
            Some((until, false)) => until.max(now),
            None => now,
        };
        let last = &mut link.last[usize::from(way == Way::Back)][channel];
        let at = (earliest.0 + takes).max(*last + 1);
        *last = at;
        Some(Timestamp(at))
    }

    /// Cuts a process off from a server.
    pub fn cut(&mut self, who: Who, server: Server, until: Timestamp, cut: Cut) {
        self.links.entry((who, server)).or_default().cut = Some((until, cut == Cut::Breaks));
    }

    /// Ends a partition; true where the connection broke.
    pub fn heal(&mut self, who: Who, server: Server) -> bool {
        let link = self.links.entry((who, server)).or_default();
        link.cut.take().is_some_and(|(_, broke)| broke)
    }

    /// Whether a process can reach a server now.
    #[must_use]
    pub fn reaches(&self, who: Who, server: Server) -> bool {
        !self.away.contains(&server) && self.links.get(&(who, server)).is_none_or(|l| l.cut.is_none())
    }

    /// A server goes away, or is there again.
    pub fn set_away(&mut self, server: Server, away: bool) {
        if away {
            self.away.insert(server)
        } else {
            self.away.remove(&server)
        };
    }

    /// Whether a server is away.
    #[must_use]
    pub fn is_away(&self, server: Server) -> bool {
        self.away.contains(&server)
    }

    /// A server is slow for a while.
    pub fn slow(&mut self, server: Server, until: Timestamp) {
        self.slow_until.insert(server, until);
    }

    /// Whether a server is slow now.
    #[must_use]
    pub fn is_slow(&self, now: Timestamp, server: Server) -> bool {
        self.slow_until.get(&server).is_some_and(|until| *until > now)
    }

    /// Everything works again.
    pub fn heal_all(&mut self) {
        self.links.values_mut().for_each(|l| l.cut = None);
        self.away.clear();
        self.slow_until.clear();
    }
}

/// Nanoseconds of a duration, which in a run are far below their end.
#[must_use]
pub const fn nanos(d: Duration) -> u64 {
    d.as_nanos() as u64
}
