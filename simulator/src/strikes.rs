//! Strikes: what faults do to processes, links and servers, and when. Owns the plan of a run's faults.
//!
//! The rule it keeps: whatever strikes ends by itself, and the oracle is told what it excuses.

use governance::Timestamp;

use crate::archiver::Archiver;
use crate::broker;
use crate::cast::Part;
use crate::faults::Fault;
use crate::instance::{Instance, Mood};
use crate::net::{Actor, Cut, Server, Who};
use crate::oracle::Disturbance;
use crate::process::{Heard, Wake};
use crate::replica::Replica;
use crate::world::{Body, Happening, World, calm_mood};

/// The time between two strikes, in nanoseconds, about.
const BETWEEN: u64 = 1_500_000_000;
/// The same in one seed of [`QUIET_ONE_OF`]: where strikes follow each other closely there is an excuse for every wait.
const BETWEEN_QUIET: u64 = 9_000_000_000;
/// One seed of so many is a quiet one.
const QUIET_ONE_OF: u64 = 3;
/// A process that breaks off notices within this.
const NOTICES: u64 = 1_000_000_000;

/// One strike, or its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strike {
    /// Whatever comes next.
    Next,
    /// A process is started, where it does not run.
    Start(Who),
    /// A process is killed.
    Kill(Who),
    /// A process is asked to stop.
    Stop(Who),
    /// A process stands still.
    Pause(Who),
    /// It goes on.
    Resume(Actor),
    /// A process is cut off.
    CutOff(Who, Server, Cut, Timestamp),
    /// It notices that its connection to the broker broke, unless it is connected again by then.
    Notice(Actor),
    /// It is connected again.
    Connect(Who, Server),
    /// A server goes away.
    Away(Server, Timestamp),
    /// It is there again.
    There(Server),
    /// A server is slow.
    Slow(Server, Timestamp),
    /// The handlers of an agent fare badly or well.
    Mood(usize, bool),
    /// A coordinator is lain in wait for.
    Ambush,
    /// The actuator looks at what is wanted.
    Actuate,
}

impl World {
    pub(crate) fn plan_next_strike(&mut self) {
        if !self.settings.faults.striking().is_empty() {
            let is_quiet = self.settings.seed.is_multiple_of(QUIET_ONE_OF);
            let pause = self.streams.faults.around(if is_quiet { BETWEEN_QUIET } else { BETWEEN });
            self.plan_in(pause, Strike::Next);
        }
    }

    pub(crate) fn plan_in(&mut self, nanos: u64, strike: Strike) {
        let at = Timestamp(self.now.0 + nanos);
        self.plan(at, Happening::Strikes(strike));
    }

    fn between(&mut self, low_ms: u64, high_ms: u64) -> u64 {
        self.streams.faults.between(low_ms, high_ms) * 1_000_000
    }

    pub(crate) fn strike(&mut self, strike: Strike) {
        if !matches!(strike, Strike::Next | Strike::Actuate) {
            self.note(&"fault", "strikes", || format!("{strike:?}"));
        }
        match strike {
            Strike::Next => {
                if !self.calm {
                    self.strike_next();
                    self.plan_next_strike();
                }
            }
            Strike::Start(who) => self.start(who),
            Strike::Kill(who) => self.kill(who),
            Strike::Stop(who) => {
                self.disturb(who);
                if let Some(actor) = self.living(who) {
                    self.plan(self.now, Happening::Reaches(actor, Heard::Wake(Wake::Stop)));
                }
            }
            Strike::Pause(who) => self.pause(who),
            Strike::Resume(actor) => self.resume(actor),
            Strike::CutOff(who, server, cut, until) => self.cut_off(who, server, cut, until),
            Strike::Notice(actor) => {
                if !self.net.reaches(actor.who, Server::Broker) {
                    self.plan(self.now, Happening::Reaches(actor, Heard::Broker(broker::Heard::Lost)));
                }
            }
            Strike::Connect(who, server) => self.connect(who, server),
            Strike::Away(server, until) => self.away(server, until),
            Strike::There(server) => self.there(server),
            Strike::Slow(server, until) => {
                self.net.slow(server, until);
                self.oracle.on_disturbance(Disturbance::Between(self.now, until));
            }
            Strike::Mood(member, bad) => self.set_mood(member, bad),
            Strike::Ambush => self.lie_in_wait(),
            Strike::Actuate => self.actuate(),
        }
        self.look_at_replicas();
    }

    fn strike_next(&mut self) {
        let kinds = self.settings.faults.striking();
        let fault = *self.streams.faults.pick(&kinds);
        let replica = Who::Replica(self.streams.faults.below(3) as u16);
        match fault {
            Fault::Crash => {
                self.strike(Strike::Kill(replica));
                // Those that stay away so long that others must take their shards are no exception.
                let longest = *self.streams.faults.pick(&[1_000, 6_000, 25_000]);
                let after = self.between(200, longest);
                self.plan_in(after, Strike::Start(replica));
            }
            Fault::Stop => {
                self.strike(Strike::Stop(replica));
                let after = self.between(1_000, 6_000);
                self.plan_in(after, Strike::Start(replica));
            }
            Fault::Pause => self.strike_pause(replica, 15_000),
            Fault::Partition => self.strike_partition(),
            Fault::Broker => {
                let until = Timestamp(self.now.0 + self.between(100, 3_000));
                self.strike(Strike::Away(Server::Broker, until));
            }
            Fault::Redis => {
                let until = Timestamp(self.now.0 + self.between(100, 4_000));
                self.strike(Strike::Away(Server::Redis, until));
            }
            Fault::Slow => {
                let server = *self.streams.faults.pick(&[Server::Broker, Server::Redis]);
                let until = Timestamp(self.now.0 + self.between(200, 2_000));
                self.strike(Strike::Slow(server, until));
            }
            Fault::Agents => self.strike_agents(),
            Fault::Archive => self.strike_archive(),
            Fault::Skew | Fault::Acks | Fault::Ambush => {}
        }
    }

    fn strike_pause(&mut self, who: Who, longest_ms: u64) {
        self.strike(Strike::Pause(who));
        if let Some(actor) = self.living(who) {
            // Short ones stall a home between two steps; long ones make it a former home.
            let longest = *self.streams.faults.pick(&[300, 3_500, longest_ms]);
            let after = self.between(10, longest);
            // What it holds may go to others long before it wakes up.
            self.oracle.on_contact_lost(actor, self.now, Timestamp(self.now.0 + after));
            self.plan_in(after, Strike::Resume(actor));
        }
    }

    fn strike_partition(&mut self) {
        let replica = Who::Replica(self.streams.faults.below(3) as u16);
        let who = if self.streams.faults.happens(7_000) {
            replica
        } else {
            self.some_instance().unwrap_or(replica)
        };
        let is_replica = matches!(who, Who::Replica(_));
        let server =
            if is_replica && self.streams.faults.happens(3_000) { Server::Redis } else { Server::Broker };
        let cut = *self.streams.faults.pick(&[Cut::Delays, Cut::Breaks]);
        let until = Timestamp(self.now.0 + self.between(100, 7_000));
        self.strike(Strike::CutOff(who, server, cut, until));
    }

    /// An instance of an agent whose faults are allowed: not the two whose waits are measured.
    fn some_instance(&mut self) -> Option<Who> {
        let may: Vec<Who> = self
            .processes
            .keys()
            .copied()
            .filter(|who| matches!(who, Who::Instance(_)) && !self.is_measured(*who))
            .collect();
        (!may.is_empty()).then(|| *self.streams.faults.pick(&may))
    }

    fn strike_agents(&mut self) {
        let Some(who) = self.some_instance() else { return };
        match self.streams.faults.below(4) {
            0 => {
                self.strike(Strike::Kill(who));
                let after = self.between(100, 4_000);
                self.plan_in(after, Strike::Start(who));
            }
            1 => {
                self.strike(Strike::Stop(who));
                let after = self.between(1_000, 5_000);
                self.plan_in(after, Strike::Start(who));
            }
            2 => self.strike_pause(who, 6_000),
            _ => {
                let bad: Vec<usize> = (0..self.cast.members.len())
                    .filter(|m| matches!(self.cast.members[*m].part, Part::Flaky | Part::Slow | Part::Desk))
                    .collect();
                if bad.is_empty() {
                    return;
                }
                let member = *self.streams.faults.pick(&bad);
                self.strike(Strike::Mood(member, true));
                let after = self.between(1_000, 5_000);
                self.plan_in(after, Strike::Mood(member, false));
            }
        }
    }

    fn strike_archive(&mut self) {
        let who = Who::Archiver(self.streams.faults.below(2) as u16);
        if self.streams.faults.happens(5_000) {
            self.strike(Strike::Kill(who));
            let after = self.between(100, 4_000);
            self.plan_in(after, Strike::Start(who));
        } else {
            let until = Timestamp(self.now.0 + self.between(100, 5_000));
            self.strike(Strike::Away(Server::Postgres, until));
        }
    }

    fn start(&mut self, who: Who) {
        if self.living(who).is_some() {
            return;
        }
        let targets: Vec<String> = self
            .cast
            .members
            .iter()
            .filter(|m| !m.registration.capabilities.is_empty())
            .map(|m| m.id.to_string())
            .collect();
        let load_until = if self.calm { Timestamp::ZERO } else { Timestamp::MAX };
        let Some(process) = self.processes.get_mut(&who) else { return };
        process.life += 1;
        process.paused = false;
        process.backlog.clear();
        process.body = Some(match who {
            Who::Replica(n) => Body::Replica(Box::new(Replica::new(format!("replica-{n}"), &self.cast))),
            Who::Archiver(_) => Body::Archiver(Archiver::new(self.settings.scene.archiver_pace())),
            Who::Instance(_) => {
                let member = &self.cast.members[process.member];
                Body::Instance(Box::new(Instance::new(member, targets, &mut process.random, load_until)))
            }
        });
        let actor = Actor { who, life: process.life };
        self.disturb(who);
        self.plan(self.now, Happening::Reaches(actor, Heard::Wake(Wake::Start)));
    }

    /// An instance dies of what it was given to run, and is started again by whoever looks after it.
    pub(crate) fn poison(&mut self, actor: Actor) {
        let back = self.streams.processes.between(300_000_000, 3_000_000_000);
        self.plan(self.now, Happening::Strikes(Strike::Kill(actor.who)));
        self.plan_in(back, Strike::Start(actor.who));
    }

    fn kill(&mut self, who: Who) {
        let Some(actor) = self.living(who) else { return };
        self.disturb(who);
        self.exit(actor);
    }

    /// A process is gone, with everything that it had not sent.
    pub(crate) fn exit(&mut self, actor: Actor) {
        self.note(&actor, "ends", String::new);
        self.oracle.on_contact_lost(actor, self.now, Timestamp::MAX);
        self.broker.disconnect(actor);
        if let Some(process) = self.processes.get_mut(&actor.who) {
            process.body = None;
            process.paused = false;
            process.backlog.clear();
        }
        self.look_at_replicas();
        if self.calm {
            self.plan_in(100_000_000, Strike::Start(actor.who));
        }
    }

    fn pause(&mut self, who: Who) {
        self.disturb(who);
        if let Some(process) = self.processes.get_mut(&who) {
            process.paused = process.body.is_some();
        }
    }

    /// A process goes on, with everything that piled up, in the order in which it came.
    fn resume(&mut self, actor: Actor) {
        let Some(process) = self.processes.get_mut(&actor.who) else { return };
        if process.life != actor.life || !process.paused {
            return;
        }
        process.paused = false;
        let backlog = std::mem::take(&mut process.backlog);
        // At this very moment, so that nothing that comes later is heard before what waited.
        for happening in backlog {
            self.plan(self.now, happening);
        }
        self.disturb(actor.who);
        self.oracle.on_contact_lost(actor, Timestamp::ZERO, self.now);
    }

    fn cut_off(&mut self, who: Who, server: Server, cut: Cut, until: Timestamp) {
        if !self.net.reaches(who, server) {
            return;
        }
        self.net.cut(who, server, until, cut);
        self.plan(until, Happening::Strikes(Strike::Connect(who, server)));
        if let Some(actor) = self.living(who) {
            self.oracle.on_contact_lost(actor, self.now, until);
            if server == Server::Broker && cut == Cut::Breaks {
                let notices = Timestamp(self.now.0 + self.streams.faults.below(NOTICES)).min(until);
                self.plan(notices, Happening::Strikes(Strike::Notice(actor)));
            }
        }
        if server == Server::Redis && matches!(who, Who::Replica(_)) {
            self.oracle.on_disturbance(Disturbance::Between(self.now, until));
        } else {
            self.disturb(who);
        }
    }

    fn connect(&mut self, who: Who, server: Server) {
        if self.net.is_away(server) {
            // Back with the server itself.
            return;
        }
        let broke = self.net.heal(who, server);
        self.disturb(who);
        let Some(actor) = self.living(who).filter(|_| broke && server == Server::Broker) else { return };
        self.broker.disconnect(actor);
        // Who had not noticed yet notices now; told again, it has nothing more to lose.
        for heard in [broker::Heard::Lost, broker::Heard::Back] {
            self.plan(self.now, Happening::Reaches(actor, Heard::Broker(heard)));
        }
    }

    fn away(&mut self, server: Server, until: Timestamp) {
        if self.net.is_away(server) {
            return;
        }
        self.net.set_away(server, true);
        self.oracle.on_disturbance(Disturbance::Between(self.now, until));
        self.plan(until, Happening::Strikes(Strike::There(server)));
        if server != Server::Broker {
            return;
        }
        self.oracle.on_broker_restart(self.now);
        let all: Vec<Who> = self.processes.keys().copied().collect();
        for who in all {
            self.net.cut(who, server, until, Cut::Breaks);
            if let Some(actor) = self.living(who) {
                let notices = Timestamp(self.now.0 + self.streams.faults.below(50_000_000)).min(until);
                self.plan(notices, Happening::Strikes(Strike::Notice(actor)));
            }
        }
    }

    fn there(&mut self, server: Server) {
        // The calm may have brought it back before its time.
        if !self.net.is_away(server) {
            return;
        }
        self.net.set_away(server, false);
        self.oracle.on_disturbance(Disturbance::At(self.now));
        if server != Server::Broker {
            return;
        }
        self.broker.restart(self.now);
        self.settle_broker();
        self.oracle.on_broker_restart(self.now);
        let all: Vec<Who> = self.processes.keys().copied().collect();
        for who in all {
            let after = self.streams.faults.below(400_000_000);
            self.plan_in(after, Strike::Connect(who, server));
        }
    }

    fn set_mood(&mut self, member: usize, bad: bool) {
        let part = self.cast.members[member].part;
        let calm = calm_mood(part);
        let mood = match (bad && !self.calm, part) {
            (false, _) => calm,
            (true, Part::Slow) => Mood { fails: 500, takes: 2_500_000_000, hangs: 1_500 },
            (true, Part::Flaky) => Mood { fails: 9_000, ..calm },
            (true, _) => Mood { fails: 2_000, ..calm },
        };
        for process in self.processes.values_mut().filter(|p| p.member == member) {
            process.mood = mood;
        }
    }

    /// What happens to a coordinator disturbs the waits of people.
    fn disturb(&mut self, who: Who) {
        if matches!(who, Who::Replica(_)) {
            self.oracle.on_disturbance(Disturbance::At(self.now));
        }
    }

    /// While no coordinator can work nothing is promised.
    fn look_at_replicas(&mut self) {
        let works = self.processes.iter().any(|(who, p)| {
            matches!(who, Who::Replica(_))
                && p.body.is_some()
                && !p.paused
                && self.net.reaches(*who, Server::Broker)
                && self.net.reaches(*who, Server::Redis)
        });
        match (works, self.idle_since) {
            (true, Some(since)) => {
                self.oracle.on_disturbance(Disturbance::Between(since, self.now));
                self.idle_since = None;
            }
            (false, None) => self.idle_since = Some(self.now),
            (true, None) | (false, Some(_)) => {}
        }
    }

    /// Faults and load stop; everything that was struck is as it should be.
    pub(crate) fn calm_down(&mut self) {
        self.note(&"fault", "calm", String::new);
        self.calm = true;
        for server in Server::ALL {
            if self.net.is_away(server) {
                self.there(server);
            }
        }
        let all: Vec<Who> = self.processes.keys().copied().collect();
        for who in all {
            match self.living(who) {
                Some(actor) => self.resume(actor),
                None => self.start(who),
            }
            for server in Server::ALL {
                if server != Server::Broker || !self.net.reaches(who, server) {
                    self.connect(who, server);
                }
            }
        }
        for member in 0..self.cast.members.len() {
            self.set_mood(member, false);
        }
        for process in self.processes.values_mut() {
            if let Some(Body::Instance(instance)) = &mut process.body {
                instance.end_load();
            }
        }
        self.look_at_replicas();
    }
}
