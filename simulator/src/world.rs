//! The world: virtual time, the queue of what happens next, and the one loop.
//!
//! Owns all processes and servers. The rule it keeps: events of one moment happen in the order in which they were planned, and
//! every draw comes from a stream of the seed, so that a run is its seed.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use governance::Timestamp;
use protocol::streams;

use crate::ambush::Ambush;
use crate::archiver::{self, Archiver};
use crate::broker::{self, Broker, ConsumerConfig, Timer};
use crate::cast::{Cast, Part};
use crate::faults::{Fault, Faults};
use crate::instance::{Instance, Mood};
use crate::log::Log;
use crate::net::{Actor, Net, Server, Way, Who};
use crate::oracle::{Oracle, Sight};
use crate::postgres::{self, Postgres};
use crate::process::{Ctx, Doing, Heard, Wake};
use crate::random::{Random, Streams};
use crate::redis::{self, Redis};
use crate::replica::Replica;
use crate::strikes::Strike;

/// The steps of a run of full length: some ten seconds of the mesh's time with faults all the way, and what then is under way.
pub const STEPS: u64 = 40_000;
/// When a run begins.
const BEGIN: Timestamp = Timestamp(1_771_060_995_000_000_000);
/// How many coordinators there are.
const REPLICAS: u16 = 3;
/// How many archivers there are.
const ARCHIVERS: u16 = 2;
/// How long after the last fault everything must have come to its end: the longest budget, the longest silence and the time of
/// a few take-overs, with room.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_secs(1);
/// How far clocks may be off, in nanoseconds.
const SKEW_MAX: u64 = 500_000_000;
/// What a process takes from deciding to doing, in nanoseconds.
const DOING: u64 = 30_000;
/// One pause between two doings in so many is a long one.
const STALL_IN_TEN_THOUSAND: u64 = 20;
/// How long such a stall is, in nanoseconds.
const STALL: u64 = 20_000_000;

/// What to run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The seed.
    pub seed: u64,
    /// For how many steps there are load and faults.
    pub steps: u64,
    /// Which faults.
    pub faults: Faults,
    /// Whether the event log is kept.
    pub log: bool,
    /// What is played.
    pub scene: Scene,
}

/// What is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Scene {
    /// Everything at once, some ten seconds of it.
    #[default]
    Market,
    /// A load that climbs and falls for minutes, and an agent that is scaled for it.
    Sawtooth,
}

impl Scene {
    /// The steps of a run of full length.
    #[must_use]
    pub const fn steps(self) -> u64 {
        match self {
            Self::Market => STEPS,
            Self::Sawtooth => 400_000,
        }
    }

    /// How long archivers rest between two rounds: in a long scene, so long that it is not made of their rounds.
    pub(crate) const fn archiver_pace(self) -> Duration {
        match self {
            Self::Market => archiver::PACE,
            Self::Sawtooth => Duration::from_secs(10),
        }
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    /// The promise that was broken, where one was.
    pub broken: Option<String>,
    /// What was compared, how often.
    pub compared: BTreeMap<&'static str, u64>,
    /// How many steps there were in all.
    pub steps: u64,
    /// How long the run was in its own time.
    pub lasted: Duration,
    /// The longest wait of a person's dispatch that nothing excuses.
    pub longest_urgent_wait: Duration,
    /// The event log.
    pub log: String,
}

/// What happens next.
#[derive(Debug)]
pub(crate) enum Happening {
    /// Something reaches a process.
    Reaches(Actor, Heard),
    /// A process does what it has decided to do.
    Does(Actor, Vec<Doing>),
    /// Something reaches a server.
    AtBroker(Actor, broker::Op),
    AtRedis(Actor, redis::Op),
    AtPostgres(Actor, postgres::Op),
    Subscribes(Actor, Vec<String>),
    /// The broker wanted to be woken.
    BrokerWakes(Timer),
    /// A fault strikes, or ends.
    Strikes(Strike),
}

#[derive(Debug)]
pub(crate) enum Body {
    Replica(Box<Replica>),
    Instance(Box<Instance>),
    Archiver(Archiver),
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) life: u32,
    pub(crate) body: Option<Body>,
    pub(crate) paused: bool,
    pub(crate) backlog: VecDeque<Happening>,
    pub(crate) member: usize,
    pub(crate) mood: Mood,
    pub(crate) random: Random,
    skew: i64,
    last_doing: u64,
}

/// The whole world of one run.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: Timestamp,
    pub(crate) step: u64,
    planned: u64,
    queue: BTreeMap<(Timestamp, u64), Happening>,
    pub(crate) settings: Settings,
    pub(crate) streams: Streams,
    pub(crate) net: Net,
    pub(crate) broker: Broker,
    pub(crate) redis: Redis,
    pub(crate) postgres: Postgres,
    pub(crate) oracle: Oracle,
    pub(crate) log: Log,
    pub(crate) cast: Cast,
    pub(crate) processes: BTreeMap<Who, Process>,
    pub(crate) calm: bool,
    pub(crate) idle_since: Option<Timestamp>,
    pub(crate) ambush: Ambush,
}

/// Runs one seed.
#[must_use]
pub fn run(settings: Settings) -> Report {
    let mut world = World::new(settings);
    world.begin();
    while world.step < world.settings.steps && world.oracle.broken().is_none() {
        world.next();
    }
    world.calm_down();
    let end = world.now.after(PATIENCE);
    let mut look = world.now.after(LOOK);
    while world.oracle.broken().is_none() && world.now < end {
        world.next();
        if world.now >= look {
            look = world.now.after(LOOK);
            if world.oracle.unfinished().is_none() {
                break;
            }
        }
    }
    let scene = world.settings.scene;
    let full = world.settings.steps >= scene.steps();
    if world.oracle.broken().is_none() {
        world.oracle.finish(world.now);
    }
    let vacuous = if full { world.oracle.vacuous(scene) } else { Vec::new() };
    let broken = world.oracle.broken().map(str::to_owned);
    let broken =
        broken.or_else(|| (!vacuous.is_empty()).then(|| format!("too little was compared: {vacuous:?}")));
    if let Some(why) = &broken {
        let (step, now) = (world.step, world.now);
        world.log.note(step, now, &"oracle", "broken", || why.clone());
    }
    Report {
        broken,
        compared: world.oracle.compared().clone(),
        steps: world.step,
        lasted: world.now.since(BEGIN),
        longest_urgent_wait: world.oracle.longest_urgent_wait(),
        log: world.log.into_text(),
    }
}

impl World {
    fn new(settings: Settings) -> Self {
        let mut streams = Streams::new(settings.seed);
        let cast = match settings.scene {
            Scene::Market => Cast::new(&mut streams.cast),
            Scene::Sawtooth => Cast::sawtooth(&mut streams.cast),
        };
        let mut processes = BTreeMap::new();
        let mut add = |who: Who, member: usize, mood: Mood, skew: i64| {
            let random = Random::new(settings.seed, 1_000 + processes.len() as u64);
            let (life, last_doing) = (0, 0);
            let backlog = VecDeque::new();
            let process =
                Process { life, body: None, paused: false, backlog, member, mood, random, skew, last_doing };
            processes.insert(who, process);
        };
        let still = Mood { fails: 0, takes: 1, hangs: 0 };
        for n in 0..REPLICAS {
            let skew = streams.cast.between(0, 2 * SKEW_MAX) as i64 - SKEW_MAX as i64;
            add(Who::Replica(n), 0, still, if settings.faults.has(Fault::Skew) { skew } else { 0 });
        }
        for n in 0..ARCHIVERS {
            add(Who::Archiver(n), 0, still, 0);
        }
        let mut number = 0;
        for (at, member) in cast.members.iter().enumerate() {
            for _ in 0..member.instances {
                add(Who::Instance(number), at, calm_mood(member.part), 0);
                number += 1;
            }
        }
        let skews = processes.iter().map(|(who, p): (&Who, &Process)| (*who, p.skew)).collect();
        Self {
            now: BEGIN,
            step: 0,
            planned: 0,
            queue: BTreeMap::new(),
            net: Net::new(streams.network.clone()),
            broker: Broker::new(),
            redis: Redis::default(),
            postgres: Postgres::default(),
            oracle: Oracle::new(cast.clone(), skews),
            log: Log::new(settings.log, BEGIN),
            cast,
            processes,
            calm: false,
            idle_since: Some(BEGIN),
            ambush: Ambush::default(),
            settings,
            streams,
        }
    }

    fn begin(&mut self) {
        for member in self.cast.members.clone() {
            let value = serde_json::to_vec(&member.registration).expect("plain data serialises").into();
            self.broker.provide(streams::AGENTS_BUCKET, member.id.as_str(), value);
            for p in governance::Priority::ALL.iter().copied() {
                let config = ConsumerConfig {
                    name: streams::inbox_consumer(&member.id),
                    filter: protocol::subjects::inbox(p, &member.id),
                    ack_wait: streams::INBOX_ACK_WAIT,
                    ack_pending_max: streams::INBOX_ACK_PENDING_MAX as usize,
                };
                let by = Actor { who: Who::Replica(0), life: 0 };
                let op = broker::Op::MakeConsumer { token: 0, stream: streams::inboxes(p), config };
                self.broker.handle(self.now, by, op);
            }
        }
        drop(self.broker.take());
        let all: Vec<Who> = self.processes.keys().copied().collect();
        for who in all.into_iter().filter(|who| !self.is_spare(*who)).collect::<Vec<_>>() {
            let at = self.now.after(Duration::from_micros(self.streams.processes.between(0, 200_000)));
            self.plan(at, Happening::Strikes(Strike::Start(who)));
        }
        self.plan_next_strike();
        self.plan_next_ambush();
        self.plan_next_actuation();
    }

    /// Plans something.
    pub(crate) fn plan(&mut self, at: Timestamp, what: Happening) {
        self.planned += 1;
        self.queue.insert((at.max(self.now), self.planned), what);
    }

    fn next(&mut self) {
        let Some(((at, _), what)) = self.queue.pop_first() else {
            return self.now = self.now.after(LOOK);
        };
        self.now = at;
        self.step += 1;
        match what {
            Happening::Reaches(actor, heard) => self.reaches(actor, heard),
            Happening::Does(actor, doings) => self.does(actor, doings),
            Happening::AtBroker(by, op) => {
                if !self.net.is_away(Server::Broker) {
                    self.note(&"broker", "takes", || format!("{by}: {op:?}"));
                    self.broker.handle(self.now, by, op);
                    self.settle_broker();
                }
            }
            Happening::Subscribes(by, prefixes) => {
                if !self.net.is_away(Server::Broker) {
                    self.broker.subscribe(by, &prefixes);
                }
            }
            Happening::BrokerWakes(timer) => {
                self.broker.wake(self.now, timer);
                self.settle_broker();
            }
            Happening::AtRedis(by, op) => self.at_redis(by, op),
            Happening::AtPostgres(by, op) => self.at_postgres(by, op),
            Happening::Strikes(strike) => self.strike(strike),
        }
    }

    pub(crate) fn note(
        &mut self,
        actor: &dyn std::fmt::Display,
        event: &str,
        detail: impl FnOnce() -> String,
    ) {
        self.log.note(self.step, self.now, actor, event, detail);
    }

    /// The life that a process lives now, where it lives.
    pub(crate) fn living(&self, who: Who) -> Option<Actor> {
        let process = self.processes.get(&who)?;
        process.body.as_ref().map(|_| Actor { who, life: process.life })
    }

    fn is_gone(&self, actor: Actor) -> bool {
        self.living(actor.who) != Some(actor)
    }

    fn reaches(&mut self, actor: Actor, heard: Heard) {
        if self.is_gone(actor) {
            return;
        }
        if !matches!(heard, Heard::Wake(Wake::Tick | Wake::Look | Wake::Renew)) {
            self.note(&actor, "hears", || format!("{heard:?}"));
        }
        let now = self.now;
        let Some(process) = self.processes.get_mut(&actor.who) else { return };
        if process.paused {
            return process.backlog.push_back(Happening::Reaches(actor, heard));
        }
        let mut doings = Vec::new();
        let local = Timestamp(now.0.saturating_add_signed(process.skew));
        let mut ctx = Ctx { me: actor, now: local, random: &mut process.random, doings: &mut doings };
        match &mut process.body {
            Some(Body::Replica(replica)) => replica.on(&mut ctx, heard),
            Some(Body::Instance(instance)) => instance.on(&mut ctx, process.mood, heard),
            Some(Body::Archiver(archiver)) => archiver.on(&mut ctx, heard),
            None => {}
        }
        self.plan_doings(actor, doings);
    }

    /// What a process decided is done a moment later, and a crash or pause may come between any two of its doings.
    fn plan_doings(&mut self, actor: Actor, doings: Vec<Doing>) {
        let kills = self.settings.faults.has(Fault::Agents);
        let mut poisoned = false;
        let Some(process) = self.processes.get_mut(&actor.who) else { return };
        let random = &mut self.streams.processes;
        let mut at = self.now.0.max(process.last_doing);
        let mut batch = Vec::new();
        let mut batches = Vec::new();
        for doing in doings {
            // What is seen, and what the clock does, needs no doing.
            match doing {
                Doing::Saw(sight) => {
                    poisoned |= kills && is_poison(&self.cast, &sight);
                    self.oracle.on_sight(self.now, actor, sight);
                }
                Doing::After(delay, wake) => {
                    let heard = Happening::Reaches(actor, Heard::Wake(wake));
                    self.planned += 1;
                    self.queue.insert((self.now.after(delay), self.planned), heard);
                }
                doing @ (Doing::Broker(..)
                | Doing::Redis(_)
                | Doing::Postgres(_)
                | Doing::Subscribe(_)
                | Doing::Exit) => {
                    if random.happens(1_500) && !batch.is_empty() {
                        batches.push((at, std::mem::take(&mut batch)));
                        at += random.around(DOING * 4);
                    }
                    batch.push(doing);
                }
            }
        }
        if poisoned {
            return self.poison(actor);
        }
        if batch.is_empty() && batches.is_empty() {
            return;
        }
        batches.push((at, batch));
        let mut offset = random.around(DOING);
        if random.happens(STALL_IN_TEN_THOUSAND) && !self.calm {
            offset += random.around(STALL);
        }
        for (at, batch) in batches {
            process.last_doing = at + offset;
            self.planned += 1;
            self.queue.insert((Timestamp(at + offset), self.planned), Happening::Does(actor, batch));
        }
    }

    fn does(&mut self, actor: Actor, doings: Vec<Doing>) {
        if self.is_gone(actor) {
            return;
        }
        if let Some(process) = self.processes.get_mut(&actor.who).filter(|p| p.paused) {
            return process.backlog.push_back(Happening::Does(actor, doings));
        }
        for doing in doings {
            match doing {
                Doing::Broker(channel, op) => self.send_to_broker(actor, channel, op),
                Doing::Redis(op) => {
                    if let Some(at) = self.net.travel(self.now, actor.who, Server::Redis, Way::There, 0) {
                        self.plan(at, Happening::AtRedis(actor, op));
                    }
                }
                Doing::Postgres(op) => {
                    if let Some(at) = self.net.travel(self.now, actor.who, Server::Postgres, Way::There, 0) {
                        self.plan(at, Happening::AtPostgres(actor, op));
                    }
                }
                Doing::Subscribe(prefixes) => {
                    if let Some(at) = self.net.travel(self.now, actor.who, Server::Broker, Way::There, 0) {
                        self.plan(at, Happening::Subscribes(actor, prefixes));
                    }
                }
                Doing::Exit => self.exit(actor),
                Doing::After(..) | Doing::Saw(_) => unreachable!("done when they were decided"),
            }
        }
    }
}

/// One in so many dispatches to a flaky agent kills the instance that begins to run it, each time.
const POISON_ONE_OF: u64 = 41;

fn is_poison(cast: &Cast, sight: &Sight) -> bool {
    let Sight::Began { id, agent, .. } = sight else { return false };
    let number = (id.instance.0 & 0xffff) * 31 + id.sequence * 7 + u64::from(id.slot);
    number.is_multiple_of(POISON_ONE_OF) && cast.find(agent.as_str()).is_some_and(|m| m.part == Part::Flaky)
}

/// How handlers fare when nothing is wrong with them.
pub(crate) const fn calm_mood(part: Part) -> Mood {
    let takes = match part {
        Part::Host => 10_000_000,
        Part::Desk | Part::Vault | Part::Gate | Part::Bot | Part::Wave => 30_000_000,
        Part::Crm | Part::Flaky => 60_000_000,
        Part::Slow => 200_000_000,
        Part::Pool => 400_000_000,
    };
    Mood { fails: 0, takes, hangs: 0 }
}
