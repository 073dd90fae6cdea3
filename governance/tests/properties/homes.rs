//! Several cores, each home of some agents, with a wire between them that delays, reorders and loses what it may lose: reports,
//! grants and the news of P0's delay. What their homes say of breakers comes late, but comes, and in order. Clocks differ.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use governance::{
    Admission, AgentIx, Ask, Beat, BreakerState, Effect, Event, Grant, HomeId, OpenIx, Outcome, Policy,
    Priority, Reason, Registration, Shards, Timestamp, shard_of,
};

mod checks;

use super::wire::{Action, Counted, Packet, Ran, Wire};
use crate::kit::{self, Refine, Send, World, agent};

const AGENTS: [&str; 6] = ["bot", "worker", "crm", "fast", "orchestrator", "backup"];

/// Everyone registers everywhere, in an order that gives the first name the first index, and so on.
fn registrations() -> Vec<Registration> {
    vec![
        agent("bot").needs(&["worker/score", "crm", "fast", "*/plan"]),
        agent("worker").offers(&["score", "plan"]).needs(&["crm", "fast"]),
        agent("crm").offers(&["sync"]),
        agent("fast").offers(&["get"]).needs(&["worker"]),
        agent("orchestrator").offers(&["plan"]).needs(&["worker", "bot", "crm", "fast"]),
        agent("backup").offers(&["plan"]).needs(&["*/score", "crm", "fast"]),
    ]
}

const POLICY: &str = r#"
    [roles.bot]
    rate_per_s = 400
    burst = 40
    p0 = ["score"]
    [agents.crm]
    max_rate_per_s = 10
    [agents.fast]
    max_rate_per_s = 90
    max_burst = 7
"#;

/// A probe that was sent and has not ended, by the core that sent it and its handle.
type Probe = (usize, OpenIx);

/// The cores and what is between them.
pub(super) struct Mesh {
    worlds: Vec<World>,
    /// How far each clock is ahead.
    skews: Vec<u64>,
    stalled: Vec<Timestamp>,
    home_of: Vec<usize>,
    now: Timestamp,
    wire: Wire,
    packets: BTreeMap<(Timestamp, u64), (usize, Packet)>,
    sent: u64,
    /// Asks that nobody answered yet; the shell gives exactly one answer to each.
    asked: BTreeSet<(usize, AgentIx, bool, Timestamp)>,
    /// News of breakers overtake one another nowhere.
    news: BTreeMap<(usize, AgentIx), Timestamp>,
    breakers: BTreeMap<AgentIx, BreakerState>,
    probes: BTreeMap<AgentIx, (Timestamp, Probe)>,
    deferred: Vec<bool>,
    targets: BTreeMap<(usize, OpenIx), AgentIx>,
    admitted: Vec<(Timestamp, Admission)>,
    ran: BTreeMap<AgentIx, Ran>,
    pub(super) counted: Counted,
}

impl Mesh {
    /// As many cores as `homes` names, each home of the agents that name it.
    pub(super) fn new(homes: &[usize; AGENTS.len()], wire: Wire) -> Self {
        let count = homes.iter().max().map_or(1, |most| most + 1);
        let policy = Policy::parse(POLICY).expect("the policy is good");
        let worlds = (0..count).map(|home| {
            let own = AGENTS.iter().zip(homes).filter(|(_, h)| **h == home);
            let shards = own.fold(Shards::NONE, |shards, (name, _)| shards.with(shard_of(name)));
            World::of(shards, policy.clone())
        });
        let mut mesh = Self {
            worlds: worlds.collect(),
            skews: Vec::new(),
            stalled: vec![Timestamp::ZERO; count],
            home_of: homes.to_vec(),
            now: Timestamp::from_millis(5_000_000_000),
            wire,
            packets: BTreeMap::new(),
            sent: 0,
            asked: BTreeSet::new(),
            news: BTreeMap::new(),
            breakers: BTreeMap::new(),
            probes: BTreeMap::new(),
            deferred: vec![false; count],
            targets: BTreeMap::new(),
            admitted: Vec::new(),
            ran: BTreeMap::new(),
            counted: Counted::default(),
        };
        mesh.skews = (0..count).map(|_| mesh.random(500_000_000)).collect();
        for home in 0..count {
            for registration in registrations() {
                mesh.apply(home, Event::AgentRegistered { registration: &registration });
            }
            let index = |name: &&str| mesh.worlds[home].ix(name).ix();
            assert!(AGENTS.iter().map(index).eq(0..AGENTS.len()), "one index for one agent");
        }
        mesh
    }

    /// A number below a bound; the same history draws the same numbers.
    fn random(&mut self, below: u64) -> u64 {
        self.wire.seed = self.wire.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.wire.seed;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % below.max(1)
    }

    fn delay(&mut self) -> Duration {
        let most = self.wire.delay_ms_max * 1_000_000;
        Duration::from_nanos(1 + self.random(most))
    }

    fn is_lost(&mut self) -> bool {
        self.random(100) < self.wire.loss_percent
    }

    fn put(&mut self, at: Timestamp, to: usize, packet: Packet) {
        self.sent += 1;
        self.packets.insert((at, self.sent), (to, packet));
    }

    /// Sends what may be lost.
    fn send(&mut self, to: usize, packet: Packet) {
        if !self.is_lost() {
            let at = self.now.after(self.delay());
            self.put(at, to, packet);
        }
    }

    fn home(&self, agent: AgentIx) -> usize {
        self.home_of[agent.ix()]
    }

    fn others(&self, home: usize) -> impl Iterator<Item = usize> + use<> {
        (0..self.worlds.len()).filter(move |other| *other != home)
    }

    /// Applies an event at one core by its clock, and performs what follows. The grants that were given.
    fn apply(&mut self, home: usize, event: Event<'_>) -> Vec<Grant> {
        let world = &mut self.worlds[home];
        world.now = Timestamp(self.now.0 + self.skews.get(home).copied().unwrap_or(0));
        let effects = world.apply(event);
        let mut granted = Vec::new();
        for effect in &effects {
            if let Effect::Granted(grant) = effect {
                granted.push(*grant);
            }
            self.perform(home, effect);
        }
        granted
    }

    fn perform(&mut self, home: usize, effect: &Effect) {
        match effect {
            Effect::Admit(admission) => self.on_admit(home, admission),
            Effect::Forget { open } => self.probes.retain(|_, (_, probe)| *probe != (home, *open)),
            Effect::Report { target, report } => {
                assert_ne!(self.home(*target), home, "nobody reports to itself");
                let from = HomeId { shard: self.shard(home), epoch: 1 };
                self.send(self.home(*target), Packet::Report { target: *target, from, report: *report });
            }
            Effect::ProbeEnded { target, succeeded } => {
                let packet = Packet::ProbeEnded { target: *target, succeeded: *succeeded };
                self.send(self.home(*target), packet);
            }
            Effect::AskGrant { target, ask } => self.on_ask(home, *target, *ask),
            Effect::Breaker(change) => {
                assert_eq!(self.home(change.target), home, "a breaker is judged at its home only");
                let former = self.breakers.insert(change.target, change.to).unwrap_or(BreakerState::Passing);
                let withdrawn = former == BreakerState::Probing && change.from == BreakerState::Tripped;
                assert!(former == change.from || withdrawn, "one change follows on the other: {change:?}");
                self.counted.trips += usize::from(change.from == BreakerState::Passing);
                let since = self.worlds[home].now;
                let packet =
                    Packet::Breaker { target: change.target, state: change.to, reason: change.reason, since };
                for other in self.others(home) {
                    let earliest = self.now.after(self.delay());
                    let last = self.news.entry((other, change.target)).or_default();
                    *last = (*last).max(earliest);
                    let at = *last;
                    self.put(at, other, packet);
                }
            }
            Effect::Deferral { on, .. } => self.deferred[home] = *on,
            Effect::P0Suffers { delay } => {
                for other in self.others(home) {
                    self.send(other, Packet::Suffered { delay: *delay });
                }
            }
            Effect::Scale(change) => assert_eq!(self.home(change.agent), home, "an agent is scaled at home"),
            Effect::Ping { target } => assert_eq!(self.home(*target), home, "a ping goes out at home"),
            Effect::InstanceLost { agent, .. } => assert_eq!(self.home(*agent), home, "lost at home"),
            Effect::ScaleHeld { agent, .. } => assert_eq!(self.home(*agent), home, "held at home"),
            Effect::Pull { lane, .. } => assert_eq!(self.home(lane.source), home, "lanes are pulled at home"),
            Effect::Close(close) if close.reason == Reason::ExpiredUnknown => {
                let target = self.targets[&(home, close.open)];
                self.on_ran(target, close.count.into(), close.count.into());
            }
            Effect::Close(_)
            | Effect::End(_)
            | Effect::Duplicate { .. }
            | Effect::Late { .. }
            | Effect::Retry { .. }
            | Effect::DeadLetter { .. }
            | Effect::Runner { .. }
            | Effect::Condemn { .. }
            | Effect::Permit(_)
            | Effect::Revoke { target: _, .. }
            | Effect::Extended { .. }
            | Effect::SlowDown { .. }
            | Effect::Resume { .. }
            | Effect::Demoted { .. }
            | Effect::Granted(_) => {}
        }
    }

    fn shard(&self, home: usize) -> u8 {
        let first = self.home_of.iter().position(|h| *h == home).expect("each core is home of somebody");
        shard_of(AGENTS[first])
    }

    fn on_admit(&mut self, home: usize, admission: &Admission) {
        let Admission { target, reason, open, .. } = *admission;
        self.admitted.push((self.now, *admission));
        self.targets.insert((home, open), target);
        self.counted.admitted += usize::from(admission.count);
        if reason == Reason::Probe {
            let probe = (self.now, (home, open));
            if let Some((at, _)) = self.probes.insert(target, probe) {
                let apart = self.now.since(at);
                // Half a second for the clocks, which only say when to ask.
                assert!(apart >= Duration::from_secs(30), "two probes at a time, {apart:?} apart");
            }
            self.counted.probes_granted += usize::from(self.home(target) != home);
        }
    }

    /// A request with exactly one answer: what the target's home says, or nothing after a while.
    fn on_ask(&mut self, home: usize, target: AgentIx, ask: Ask) {
        let asked = self.worlds[home].now;
        self.asked.insert((home, target, ask == Ask::Probe, asked));
        self.send(self.home(target), Packet::Ask { target, ask, asked, by: home });
        let timeout = self.now.after(Duration::from_millis(250));
        self.put(timeout, home, Packet::Answer { target, ask, asked, grant: None });
    }

    fn receive(&mut self, to: usize, packet: Packet) {
        match packet {
            Packet::Report { target, from, report } => {
                self.apply(to, Event::TargetReported { target, from, report });
            }
            Packet::ProbeEnded { target, succeeded } => {
                self.apply(to, Event::ProbeEnded { target, succeeded });
            }
            Packet::Ask { target, ask, asked, by } => {
                let granted = self.apply(to, Event::GrantAsked { target, ask });
                let [grant] = granted[..] else { panic!("one answer to one ask: {granted:?}") };
                self.send(by, Packet::Answer { target, ask, asked, grant: Some(grant) });
            }
            Packet::Answer { target, ask, asked, grant } => {
                if self.asked.remove(&(to, target, ask == Ask::Probe, asked)) {
                    self.apply(to, Event::GrantAnswered { target, ask, asked, grant });
                }
            }
            Packet::Breaker { target, state, reason, since } => {
                self.apply(to, Event::BreakerKnown { target, state, reason, since });
            }
            Packet::Suffered { delay } => {
                self.apply(to, Event::P0Suffered { delay });
                if delay > Duration::from_millis(100) {
                    assert!(self.deferred[to], "P3 is deferred wherever it is known that P0 suffers");
                    self.counted.deferrals_told += 1;
                }
            }
        }
        self.turn(to);
    }

    fn turn(&mut self, home: usize) {
        if self.now >= self.stalled[home] {
            self.apply(home, Event::Turn { room: 100_000 });
        }
    }

    /// Lets time pass from one thing to the next.
    fn pass(&mut self, ms: u64) {
        let end = self.now.after(Duration::from_millis(ms));
        loop {
            let packet = self.packets.first_key_value().map(|((at, _), _)| *at);
            let wakeup = (0..self.worlds.len()).filter_map(|home| {
                let at = self.worlds[home].governor.next_wakeup()?.at;
                Some((Timestamp(at.0.saturating_sub(self.skews[home])).max(self.now), home))
            });
            let wakeup = wakeup.min();
            let stalled = (0..self.worlds.len()).map(|home| (self.stalled[home], home));
            let stalled = stalled.filter(|(at, _)| *at > self.now).min();
            let next = [packet, wakeup.map(|w| w.0), stalled.map(|s| s.0)].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            if packet == Some(next) {
                if let Some((_, (to, packet))) = self.packets.pop_first() {
                    self.receive(to, packet);
                }
            } else if let Some((at, home)) = wakeup.filter(|(at, _)| *at == next) {
                assert!(at <= self.now);
                self.apply(home, Event::Tick);
                self.turn(home);
            } else if let Some((_, home)) = stalled {
                self.turn(home);
            }
        }
        self.now = end;
        for home in 0..self.worlds.len() {
            self.apply(home, Event::Tick);
            self.turn(home);
        }
    }

    pub(super) fn act(&mut self, action: &Action) {
        match *action {
            Action::Send { source, to, priority, count, event } => {
                self.dispatch(source, to, priority, count, event)
            }
            Action::Pass { ms } => self.pass(ms),
            Action::Complete { home, nth, good, ran_ms } => {
                self.complete(home % self.worlds.len(), nth, good, ran_ms)
            }
            Action::Cancel { home, nth } => {
                let home = home % self.worlds.len();
                let running = &self.worlds[home].running;
                if running.is_empty() {
                    return;
                }
                let admission = running[nth % running.len()];
                let id = self.worlds[home].id(&admission);
                self.apply(home, Event::Cancel { source: admission.source, id });
            }
            Action::Operator { target, trip } => {
                let target = AgentIx(target as u32);
                self.apply(self.home(target), Event::SetBreaker { target, trip });
            }
            Action::Stall { home, ms } => {
                let home = home % self.worlds.len();
                self.stalled[home] = self.now.after(Duration::from_millis(ms));
            }
            Action::Beat { target, slots } => self.beat(target, slots),
            Action::Suffer { ms } => {
                self.stalled[self.home_of[0]] = self.now.after(Duration::from_millis(ms));
                self.dispatch(0, 0, 0, 1, false);
                self.pass(ms + 20);
            }
        }
        self.check_windows();
    }

    fn beat(&mut self, target: usize, slots: u32) {
        let agent = AgentIx(target as u32);
        let beat = Beat { instance: kit::instance_of(agent), slots, running: 0, running_over: 0 };
        for home in 0..self.worlds.len() {
            self.apply(home, Event::InstanceSeen { agent, beat });
        }
    }

    fn dispatch(&mut self, source: usize, to: usize, priority: usize, count: u16, event: bool) {
        let home = self.home_of[source];
        let world = &mut self.worlds[home];
        world.now = Timestamp(self.now.0 + self.skews[home]);
        let call: Send = match to {
            0 | 1 => world.call("worker", "score"),
            2 | 3 => world.call("crm", "sync"),
            4 | 5 => world.call("fast", "get"),
            _ => world.call_any("plan"),
        };
        let call = call.at(Priority::ALL[priority]).times(count);
        let effects = world.arrive(AGENTS[source], if event { call.event() } else { call });
        for effect in &effects {
            self.perform(home, effect);
        }
        self.turn(home);
    }

    fn complete(&mut self, home: usize, nth: usize, good: bool, ran_ms: u64) {
        let world = &mut self.worlds[home];
        if world.running.is_empty() {
            return;
        }
        let admission = world.running[nth % world.running.len()];
        let outcome = if good { Outcome::Success } else { Outcome::Failure };
        world.now = Timestamp(self.now.0 + self.skews[home]);
        let effects = world.complete(&admission, outcome, ran_ms, 5);
        let late: u32 = effects
            .iter()
            .map(|e| if let Effect::Late { count, .. } = e { u32::from(*count) } else { 0 })
            .sum();
        let count = u32::from(admission.count) - late;
        let failed = if good { 0 } else { count };
        self.on_ran(admission.target, count, failed);
        for effect in &effects {
            self.perform(home, effect);
        }
        self.turn(home);
    }

    fn on_ran(&mut self, target: AgentIx, count: u32, failed: u32) {
        self.ran.entry(target).or_default().note(self.now, count, failed);
    }

    /// A while in which more waits for the targets with a hard rate than they take, without a break or in waves.
    pub(super) fn besiege(&mut self, waves: bool) {
        for step in 0..250_u64 {
            let calm = waves && self.random(2) == 0 && step % 50 < 25;
            for (source, to) in [(0, 2), (0, 4), (4, 2), (4, 4), (1, 2), (1, 4)] {
                if !calm && self.random(3) == 0 {
                    let count = if to == 2 { 1 } else { 1 + self.random(12) as u16 };
                    self.dispatch(source, to, 2, count, true);
                }
            }
            let pause = 1 + self.random(99);
            self.pass(pause);
            for home in 0..self.worlds.len() {
                while !self.worlds[home].running.is_empty() {
                    self.complete(home, 0, true, 5);
                }
            }
        }
    }

    /// The wire is good again and everyone answers: everything comes to an end.
    pub(super) fn settle(&mut self) {
        // Never quite zero, as what was lost before still comes.
        (self.wire.loss_percent, self.wire.delay_ms_max) = (self.wire.loss_percent.min(1), 5);
        for target in 0..AGENTS.len() {
            self.act(&Action::Operator { target, trip: true });
            self.act(&Action::Operator { target, trip: false });
        }
        for _ in 0..2_400 {
            for target in 0..AGENTS.len() {
                self.beat(target, 50);
            }
            for home in 0..self.worlds.len() {
                while !self.worlds[home].running.is_empty() {
                    self.complete(home, 0, true, 5);
                }
            }
            self.pass(100);
            let waits =
                |world: &World| world.governor.lane_facts(world.now).iter().any(|lane| lane.queued > 0);
            if !self.worlds.iter().any(waits) {
                break;
            }
        }
    }
}
