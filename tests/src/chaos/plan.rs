//! The plan of a run: who suffers what, for how long, and how long the mesh has until the next one.
//!
//! Two tracks run side by side: one for what dispatches pass through, one for what is at the edges. The rule it keeps: the same
//! seed gives the same plan, whatever the mesh does, and each kind of fault comes once before one comes again.

use std::fmt;
use std::time::Duration;

use super::random::Random;

/// A stop shorter than this is missed by nobody; a replica counts as lost after as long.
const COORDINATOR_FREEZE: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(12)];
/// From what is hardly noticed to longer than the silence after which an instance counts as lost.
const FREEZE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(6)];
const CUT: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];
const SILENCE: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(5)];
const SLOW: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(5)];
/// From another building to another continent.
const DELAY: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(40)];
const FULL: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(4)];
/// What a take-over may take: a person waits for one of them, not for two.
const COORDINATOR_PAUSE: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(8)];
/// Until connections stand again.
const MESH_PAUSE: [Duration; 2] = [Duration::from_secs(4), Duration::from_secs(5)];
/// An archiver or an instance that is away keeps nobody waiting.
const EDGE_PAUSE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// A process of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Process {
    /// A coordinator, by its number.
    Coordinator(usize),
    /// A process with agents.
    Crew(usize),
    /// An archiver.
    Archiver(usize),
    /// A node of the broker, of so many.
    Nats(usize, usize),
    /// The store of the audit streams.
    Redis,
    /// The archive.
    Postgres,
    /// The program that sends, and that nothing is done to but through its links.
    Senders,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator(n) => write!(f, "coordinator-{n}"),
            Self::Crew(n) => write!(f, "crew-{n}"),
            Self::Archiver(0) => f.write_str("audit-archiver"),
            Self::Archiver(n) => write!(f, "audit-archiver-{n}"),
            Self::Nats(_, 0 | 1) => f.write_str("nats"),
            Self::Nats(n, _) => write!(f, "nats-{n}"),
            Self::Redis => f.write_str("redis"),
            Self::Postgres => f.write_str("postgres"),
            Self::Senders => f.write_str("senders"),
        }
    }
}

/// What connects a process to a server, all nodes of a broker together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Who connects.
    pub client: Process,
    /// Where to; a node of the broker stands for all.
    pub server: Process,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let broker = matches!(self.server, Process::Nats(..));
        let server = if broker { Process::Nats(0, 1) } else { self.server };
        write!(f, "{}/{server}", self.client)
    }
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Killed.
    Kill(Process),
    /// Asked to end.
    End(Process),
    /// Stopped for a time, and continued as if nothing had been.
    Freeze(Process, Duration),
    /// Connections are closed and refused for a time.
    Cut(Link, Duration),
    /// Connections stay, and nothing goes through for a time.
    Silence(Link, Duration),
    /// Everything takes longer for a time: by so much, up to twice, by a seed.
    Slow(Link, Duration, Duration, u64),
    /// The disk of a server is full for a time.
    Fill(Process, Duration),
}

impl Fault {
    /// The kind, as reports name it.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Kill(_) => "kill",
            Self::End(_) => "end",
            Self::Freeze(..) => "freeze",
            Self::Cut(..) => "cut",
            Self::Silence(..) => "silence",
            Self::Slow(..) => "slow",
            Self::Fill(..) => "full_disk",
        }
    }

    /// Whom it hits: a kind of process, or of link.
    #[must_use]
    pub fn whom(&self) -> String {
        let name = match self {
            Self::Kill(process) | Self::End(process) | Self::Freeze(process, _) | Self::Fill(process, _) => {
                process.to_string()
            }
            Self::Cut(link, _) | Self::Silence(link, _) | Self::Slow(link, ..) => link.to_string(),
        };
        name.chars()
            .filter(|c| !c.is_ascii_digit())
            .collect::<String>()
            .replace("-/", "/")
            .trim_end_matches('-')
            .to_owned()
    }

    /// How long it lasts.
    #[must_use]
    pub const fn lasts(&self) -> Duration {
        match self {
            Self::Kill(_) | Self::End(_) => Duration::ZERO,
            Self::Freeze(_, time)
            | Self::Cut(_, time)
            | Self::Silence(_, time)
            | Self::Slow(_, time, ..)
            | Self::Fill(_, time) => *time,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(victim) => write!(f, "kill -9 {victim}"),
            Self::End(victim) => write!(f, "kill -TERM {victim}"),
            Self::Freeze(victim, time) => write!(f, "stop {victim} for {time:.1?}"),
            Self::Cut(link, time) => write!(f, "cut {link} for {time:.1?}"),
            Self::Silence(link, time) => write!(f, "silence {link} for {time:.1?}"),
            Self::Slow(link, time, by, _) => write!(f, "slow {link} by {by:.1?} and more for {time:.1?}"),
            Self::Fill(server, time) => write!(f, "fill the disk of {server} for {time:.1?}"),
        }
    }
}

/// One step of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What is done.
    pub fault: Fault,
    /// How long the mesh is left alone after it.
    pub pause: Duration,
}

/// What a track is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Track {
    /// What dispatches pass through: coordinators, the broker, the store of the audit streams, and the ways to them.
    Mesh,
    /// What is at the edges: agents, archivers, the archive, and the ways to them.
    Edge,
}

/// How many of each there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Coordinators.
    pub coordinators: usize,
    /// Processes with agents.
    pub crews: usize,
    /// Archivers.
    pub archivers: usize,
    /// Nodes of the broker.
    pub nats_nodes: usize,
    /// Whether servers have disks of their own, which can be filled.
    pub disks: bool,
}

/// A kind of process, before one of them is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Coordinator,
    Crew,
    Archiver,
    Nats,
    Redis,
    Postgres,
    Senders,
}

/// A kind of fault, before its victim and its length are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Card {
    Kill(Class),
    End(Class),
    Freeze(Class),
    Cut(Class, Class),
    Silence(Class, Class),
    Slow(Class, Class),
    Fill(Class),
}

/// The steps of one track, one after the other, without an end.
#[derive(Debug, Clone)]
pub struct Plan {
    random: Random,
    track: Track,
    sizes: Sizes,
    deck: Vec<Card>,
    /// Whose turn it is among the coordinators, so that each has one.
    coordinator: usize,
}

impl Plan {
    /// The plan of a seed for one track.
    #[must_use]
    pub fn new(seed: u64, track: Track, sizes: Sizes) -> Self {
        let mut random = Random::new(seed ^ track as u64);
        let coordinator = random.below(sizes.coordinators.max(1) as u64) as usize;
        Self { random, track, sizes, deck: Vec::new(), coordinator }
    }

    /// What comes next.
    pub fn next_step(&mut self) -> Step {
        if self.deck.is_empty() {
            self.deck = self.shuffled();
        }
        let card = self.deck.pop().unwrap_or(Card::Kill(Class::Coordinator));
        let fault = self.played(card);
        let pause = match (self.track, card) {
            (Track::Edge, _) => EDGE_PAUSE,
            (
                _,
                Card::Kill(Class::Coordinator)
                | Card::End(Class::Coordinator)
                | Card::Freeze(Class::Coordinator),
            ) => COORDINATOR_PAUSE,
            (Track::Mesh, _) => MESH_PAUSE,
        };
        Step { fault, pause: self.within(pause) }
    }

    /// All kinds of a track. Faults of coordinators come first, while no server is still coming back.
    fn shuffled(&mut self) -> Vec<Card> {
        let mut cards = Vec::new();
        let (processes, links): (&[Class], &[(Class, Class)]) = match self.track {
            Track::Mesh => (
                &[Class::Nats, Class::Redis],
                &[(Class::Coordinator, Class::Nats), (Class::Coordinator, Class::Redis)],
            ),
            Track::Edge => (
                &[Class::Crew, Class::Archiver, Class::Postgres],
                &[
                    (Class::Crew, Class::Nats),
                    (Class::Senders, Class::Nats),
                    (Class::Archiver, Class::Redis),
                    (Class::Archiver, Class::Postgres),
                ],
            ),
        };
        for class in processes {
            cards.extend([Card::Kill(*class), Card::End(*class), Card::Freeze(*class)]);
            if self.sizes.disks && matches!(class, Class::Nats | Class::Redis | Class::Postgres) {
                cards.push(Card::Fill(*class));
            }
        }
        for (client, server) in links {
            let (client, server) = (*client, *server);
            cards.extend([
                Card::Cut(client, server),
                Card::Silence(client, server),
                Card::Slow(client, server),
            ]);
        }
        self.shuffle(&mut cards);
        if self.track == Track::Mesh {
            let class = Class::Coordinator;
            let mut first = vec![Card::Kill(class), Card::End(class), Card::Freeze(class)];
            self.shuffle(&mut first);
            cards.extend(first);
        }
        cards
    }

    fn shuffle(&mut self, cards: &mut [Card]) {
        for last in (1..cards.len()).rev() {
            cards.swap(last, self.random.below(last as u64 + 1) as usize);
        }
    }

    fn played(&mut self, card: Card) -> Fault {
        match card {
            Card::Kill(class) => Fault::Kill(self.one_of(class)),
            Card::End(class) => Fault::End(self.one_of(class)),
            Card::Freeze(class) => {
                let range = if class == Class::Coordinator { COORDINATOR_FREEZE } else { FREEZE };
                Fault::Freeze(self.one_of(class), self.within(range))
            }
            Card::Cut(client, server) => Fault::Cut(self.link(client, server), self.within(CUT)),
            Card::Silence(client, server) => Fault::Silence(self.link(client, server), self.within(SILENCE)),
            Card::Slow(client, server) => {
                let (link, time, delay) = (self.link(client, server), self.within(SLOW), self.within(DELAY));
                Fault::Slow(link, time, delay, self.random.next())
            }
            Card::Fill(class) => Fault::Fill(self.one_of(class), self.within(FULL)),
        }
    }

    fn link(&mut self, client: Class, server: Class) -> Link {
        Link { client: self.one_of(client), server: self.one_of(server) }
    }

    fn one_of(&mut self, class: Class) -> Process {
        let mut any = |of: usize| self.random.below(of.max(1) as u64) as usize;
        match class {
            Class::Coordinator => {
                let step = 1 + any(self.sizes.coordinators / 2 + 1);
                self.coordinator = (self.coordinator + step) % self.sizes.coordinators.max(1);
                Process::Coordinator(self.coordinator)
            }
            Class::Crew => Process::Crew(any(self.sizes.crews)),
            Class::Archiver => Process::Archiver(any(self.sizes.archivers)),
            Class::Nats => Process::Nats(any(self.sizes.nats_nodes), self.sizes.nats_nodes),
            Class::Redis => Process::Redis,
            Class::Postgres => Process::Postgres,
            Class::Senders => Process::Senders,
        }
    }

    fn within(&mut self, [least, most]: [Duration; 2]) -> Duration {
        self.random.between(least, most)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    const SIZES: Sizes = Sizes { coordinators: 3, crews: 4, archivers: 2, nats_nodes: 1, disks: true };
    /// Kinds in a round of each track.
    const ROUNDS: [(Track, usize); 2] = [(Track::Mesh, 17), (Track::Edge, 22)];

    fn steps(seed: u64, track: Track) -> Vec<Step> {
        let mut plan = Plan::new(seed, track, SIZES);
        (0..120).map(|_| plan.next_step()).collect()
    }

    #[test]
    fn a_seed_is_a_plan() {
        for (track, _) in ROUNDS {
            assert_eq!(steps(7, track), steps(7, track));
            assert_ne!(steps(7, track), steps(8, track));
        }
    }

    #[test]
    fn a_round_has_each_kind_once_and_fits_into_two_minutes() {
        for (track, kinds) in ROUNDS {
            for seed in 0..50 {
                let round = &steps(seed, track)[..kinds];
                let names: BTreeSet<String> =
                    round.iter().map(|step| format!("{} {}", step.fault.kind(), step.fault.whom())).collect();
                assert_eq!(names.len(), kinds, "{names:?}");
                let time: Duration = round.iter().map(|step| step.fault.lasts() + step.pause).sum();
                assert!(time < Duration::from_secs(150), "{time:?}");
            }
        }
    }

    #[test]
    fn each_coordinator_has_its_turn_and_names_are_those_of_the_stack() {
        let mut victims = BTreeMap::new();
        for step in steps(1, Track::Mesh) {
            if let Fault::Kill(process) | Fault::End(process) | Fault::Freeze(process, _) = step.fault {
                *victims.entry(process.to_string()).or_insert(0) += 1;
            }
        }
        let names: Vec<&str> = victims.keys().map(String::as_str).collect();
        assert_eq!(names, ["coordinator-0", "coordinator-1", "coordinator-2", "nats", "redis"]);
        assert!(victims.values().all(|times| *times >= 4), "{victims:?}");
        let link = Link { client: Process::Archiver(1), server: Process::Nats(2, 3) };
        assert_eq!(link.to_string(), "audit-archiver-1/nats");
        assert_eq!(Fault::Cut(link, Duration::ZERO).whom(), "audit-archiver/nats");
        assert_eq!(Process::Nats(2, 3).to_string(), "nats-2");
    }
}
