//! The modelled coordinator: real ownership, real take-overs, real homes, between modelled servers.
//!
//! Owns one process: what it announces, which shards it claims and gives back, and how what it hears reaches its homes. The rule
//! it keeps: it hosts homes as the coordinator does, and adds nothing to what they decide.

mod hosting;
mod port;
mod route;
mod taking;
mod work;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use governance::{Policy, Registration, SHARDS, shard_of};
use home::ownership::{Action, Entry, Ownership, RENEW};
use home::{Home, Input};
use protocol::control::{Breaker, Replica as Announcement};
use protocol::{AuditKey, streams};

use crate::broker::{self, Op};
use crate::cast::Cast;
use crate::oracle::Sight;
use crate::process::{Ctx, Doing, Heard, Wake};
use port::{Place, Port, Question, Reply, Tasks};
use taking::{Claimed, Servers};

/// How often it looks at who should own what.
const LOOK: Duration = Duration::from_millis(100);
/// How long a draining home may take to settle what it decided; the next home replays the rest.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Take-overs under way at once.
const TAKE_OVERS_MAX: usize = 8;

/// What a task leaves.
#[derive(Debug)]
enum Left {
    /// A claim has come to its end.
    Claimed(u8, Claimed),
    /// Something for a home.
    Input(Place, Input),
    /// A level was stored, or not.
    Level(Place),
    /// A shard is not here any more; its entry as it is now, where it was read.
    Ended(u8, Option<Entry>),
    /// The entry of a shard.
    Entry(u8, Option<Entry>),
    /// Nothing.
    Nothing,
}

/// One shard at this replica.
#[derive(Debug)]
enum Hosted {
    /// Being claimed or taken over; what its home should hear meanwhile.
    Taking(Vec<Input>),
    /// Its home has ended; its entry is being read or freed.
    Leaving,
    /// At home here.
    Home(Box<Serving>),
}

#[derive(Debug)]
struct Serving {
    home: Home,
    epoch: u64,
    /// Since when it drains.
    draining: Option<governance::Timestamp>,
    /// Levels to store, one after the other.
    levels: VecDeque<(&'static str, Arc<str>, u64, Bytes)>,
    storing: bool,
    /// The connection that it was told of last.
    connections: u64,
}

/// One coordinator.
#[derive(Debug)]
pub struct Replica {
    name: String,
    policy: Arc<Policy>,
    key: AuditKey,
    registrations: Vec<Registration>,
    breakers: BTreeMap<String, Breaker>,
    ownership: Option<Ownership>,
    read: usize,
    hosted: BTreeMap<u8, Hosted>,
    port: Port,
    tasks: Tasks<Left>,
    reads: BTreeMap<u64, &'static str>,
    pulls: hosting::Pulls,
    connected: bool,
    leaving: bool,
    ticks: u64,
    /// How often it was connected.
    connections: u64,
    /// The revision of each replica's announcement as it was seen last.
    renewals: BTreeMap<String, u64>,
    /// Claims that wait for their turn.
    claims: VecDeque<u8>,
    next_read: u8,
}

/// The buckets that it reads before it looks at anything.
const BUCKETS: [&str; 3] = [streams::OWNERS_BUCKET, streams::REPLICAS_BUCKET, streams::BREAKERS_BUCKET];

impl Replica {
    /// A coordinator that starts now.
    #[must_use]
    pub fn new(name: String, cast: &Cast) -> Self {
        Self {
            name,
            policy: Arc::clone(&cast.policy),
            key: cast.key.clone(),
            registrations: cast.members.iter().map(|m| m.registration.clone()).collect(),
            breakers: BTreeMap::new(),
            ownership: None,
            read: 0,
            hosted: BTreeMap::new(),
            port: Port::default(),
            tasks: Tasks::default(),
            reads: BTreeMap::new(),
            pulls: hosting::Pulls::default(),
            connected: true,
            leaving: false,
            ticks: 0,
            connections: 0,
            renewals: BTreeMap::new(),
            claims: VecDeque::new(),
            next_read: 0,
        }
    }

    /// How many homes it hosts.
    #[must_use]
    pub fn homes(&self) -> usize {
        self.hosted.values().filter(|h| matches!(h, Hosted::Home(_))).count()
    }

    /// Handles what reached it.
    pub fn on(&mut self, ctx: &mut Ctx<'_>, heard: Heard) {
        self.port.set_now(ctx.now);
        match heard {
            Heard::Wake(wake) => self.on_wake(ctx, wake),
            Heard::Redis(token, answer) => {
                let left = self.tasks.answer(&self.port, token, Reply::Redis(answer));
                self.leave(ctx, left);
            }
            Heard::Broker(heard) => self.on_broker(ctx, heard),
            Heard::Postgres(..) => unreachable!("coordinators do not know PostgreSQL"),
        }
        self.send_questions(ctx);
    }

    fn on_wake(&mut self, ctx: &mut Ctx<'_>, wake: Wake) {
        match wake {
            Wake::Start => {
                self.ownership = Some(Ownership::new(self.name.clone(), ctx.now));
                if let Some(ownership) = &mut self.ownership {
                    ownership.set_urgent(urgent(&self.policy, &self.registrations));
                }
                self.connect(ctx);
                ctx.after(Duration::ZERO, Wake::Renew);
                ctx.after(LOOK, Wake::Look);
                ctx.after(home::TICK, Wake::Tick);
            }
            Wake::Tick => {
                self.ticks += 1;
                self.tick(ctx);
                ctx.after(home::TICK, Wake::Tick);
            }
            Wake::Renew => {
                self.announce(ctx);
                ctx.after(RENEW, Wake::Renew);
            }
            Wake::Look => {
                self.look(ctx);
                ctx.after(LOOK, Wake::Look);
            }
            Wake::Overdue(token) => {
                self.reads.remove(&token);
                let left = self.tasks.answer(&self.port, token, Reply::None);
                self.leave(ctx, left);
                if self.read < BUCKETS.len() && self.reads.is_empty() && self.connected {
                    self.read_buckets(ctx);
                }
            }
            Wake::Stop => {
                self.leaving = true;
                if let Some(ownership) = &mut self.ownership {
                    ownership.stop();
                }
                self.announce(ctx);
                self.look(ctx);
            }
            Wake::Ended(_) | Wake::Load => {}
        }
    }

    /// Subscribes, and reads the buckets whose changes it is told from here on.
    fn connect(&mut self, ctx: &mut Ctx<'_>) {
        let prefixes =
            ["mesh.beat.", "mesh.open.", "mesh.extend.", "mesh.cancel.", "mesh.know.", "mesh.grant."];
        ctx.doings.push(Doing::Subscribe(prefixes.map(str::to_owned).to_vec()));
        self.read_buckets(ctx);
    }

    fn read_buckets(&mut self, ctx: &mut Ctx<'_>) {
        self.read = 0;
        self.reads.clear();
        for bucket in BUCKETS {
            let token = self.port.draw();
            self.reads.insert(token, bucket);
            ctx.broker(3, Op::Entries { token, bucket });
            ctx.after(port::PATIENCE, Wake::Overdue(token));
        }
    }

    fn announce(&self, ctx: &mut Ctx<'_>) {
        let announcement = Announcement {
            protocol: protocol::PROTOCOL_VERSION,
            http: String::new(),
            since_ns: 0,
            leaving: self.leaving,
        };
        let value = serde_json::to_vec(&announcement).expect("plain data serialises").into();
        let (bucket, key) = (streams::REPLICAS_BUCKET, self.name.clone());
        ctx.broker(3, Op::Put { token: self.port.draw(), bucket, key, value, revision: None });
    }

    /// What time alone brings: an entry that was missed, and homes that have drained.
    fn look(&mut self, ctx: &mut Ctx<'_>) {
        if self.read < BUCKETS.len() || !self.connected {
            return;
        }
        let shard = self.next_read;
        self.next_read = (shard + 1) % SHARDS;
        let read = taking::read_entry(self.port.clone(), shard);
        self.start(ctx, (shard, 0), async move { Left::Entry(shard, read.await) });
        self.act(ctx);
        self.end_drained(ctx);
        if self.leaving && self.hosted.is_empty() {
            let (bucket, key) = (streams::REPLICAS_BUCKET, self.name.clone());
            ctx.broker(3, Op::Drop { token: self.port.draw(), bucket, key });
            ctx.doings.push(Doing::Exit);
        }
    }

    /// Does what the ownership says.
    fn act(&mut self, ctx: &mut Ctx<'_>) {
        if self.read < BUCKETS.len() {
            return;
        }
        let Some(ownership) = &mut self.ownership else { return };
        for action in ownership.next_actions(ctx.now) {
            match action {
                Action::Claim { shard, .. } => self.claims.push_back(shard),
                Action::Release { shard } => {
                    if let Some(Hosted::Home(serving)) = self.hosted.get_mut(&shard) {
                        serving.draining = Some(ctx.now);
                    }
                }
            }
        }
        let taking = self.hosted.values().filter(|h| matches!(h, Hosted::Taking(_))).count();
        for _ in taking..TAKE_OVERS_MAX {
            let Some(shard) = self.claims.pop_front() else { return };
            self.claim(ctx, shard);
        }
    }

    fn claim(&mut self, ctx: &mut Ctx<'_>, shard: u8) {
        let Some(ownership) = &self.ownership else { return };
        let owner = ownership.owner(shard).clone();
        let renewed = self.renewals.get(&owner.replica).copied().unwrap_or_default();
        self.hosted.insert(shard, Hosted::Taking(Vec::new()));
        let servers = Servers {
            port: self.port.clone(),
            registrations: self.registrations.clone(),
            breakers: self.breakers.iter().map(|(name, b)| (name.clone(), b.clone())).collect(),
        };
        let taking = home::takeover::Taking {
            shard,
            epoch: 0,
            former: 0,
            replica: self.name.clone(),
            policy: Arc::clone(&self.policy),
            key: self.key.clone(),
            meter: Arc::new(home::meter::Unmetered),
        };
        let claim = taking::claim(servers, owner, renewed, taking);
        let task = Box::pin(async move { Left::Claimed(shard, claim.await) });
        let left = self.tasks.start(&self.port, (shard, 0), task);
        self.leave(ctx, left);
    }

    /// What a task left when it ended.
    fn leave(&mut self, ctx: &mut Ctx<'_>, left: Option<Left>) {
        match left {
            Some(Left::Claimed(shard, Claimed::Home(taken, revision))) => {
                self.move_in(ctx, shard, *taken, revision);
            }
            Some(Left::Claimed(shard, Claimed::Not(why))) => {
                ctx.saw(Sight::NotTaken { shard, why });
                self.leave_shard(ctx, shard);
            }
            Some(Left::Claimed(shard, Claimed::Alive(replica))) => {
                if let Some(ownership) = &mut self.ownership {
                    ownership.on_announced(ctx.now, &replica, false);
                }
                self.leave_shard(ctx, shard);
            }
            Some(Left::Ended(shard, entry)) => self.on_ended(ctx, shard, entry),
            Some(Left::Entry(shard, entry)) => {
                if let (Some(ownership), Some(entry)) = (&mut self.ownership, entry) {
                    ownership.on_entry(shard, entry);
                }
                self.act(ctx);
            }
            Some(Left::Input(place, input)) => self.give(ctx, place, input),
            Some(Left::Level(place)) => self.next_level(ctx, place, true),
            Some(Left::Nothing) | None => {}
        }
        for (place, input) in self.port.take_told() {
            self.give(ctx, place, input);
        }
    }

    /// A shard is not here: its entry is read before anything else is done about it.
    fn leave_shard(&mut self, ctx: &mut Ctx<'_>, shard: u8) {
        self.hosted.insert(shard, Hosted::Leaving);
        let read = taking::read_entry(self.port.clone(), shard);
        self.start(ctx, (shard, 0), async move { Left::Ended(shard, read.await) });
    }

    fn on_ended(&mut self, ctx: &mut Ctx<'_>, shard: u8, entry: Option<Entry>) {
        self.hosted.remove(&shard);
        if let Some(ownership) = &mut self.ownership {
            if let Some(entry) = entry {
                ownership.on_entry(shard, entry);
            }
            ownership.on_ended(ctx.now, shard);
        }
        self.act(ctx);
    }

    fn send_questions(&mut self, ctx: &mut Ctx<'_>) {
        for (token, question, patience) in self.port.take_questions() {
            match question {
                Question::Broker(channel, op) => {
                    self.tasks.went_to_broker(token);
                    ctx.broker(channel, op);
                }
                Question::Redis(op) => ctx.redis(op),
                Question::Time => {}
            }
            ctx.after(patience, Wake::Overdue(token));
        }
    }

    fn on_broker(&mut self, ctx: &mut Ctx<'_>, heard: broker::Heard) {
        match heard {
            broker::Heard::Answer { token, answer } => {
                if let Some(bucket) = self.reads.remove(&token) {
                    return self.on_read(ctx, bucket, answer);
                }
                let left = self.tasks.answer(&self.port, token, Reply::Broker(answer));
                self.leave(ctx, left);
            }
            broker::Heard::Message { key, message } => self.on_message(ctx, key, message),
            broker::Heard::Ended { key, unfilled, expired } => {
                self.on_pull_ended(ctx, key, unfilled, expired)
            }
            broker::Heard::Told { subject, payload, reply } => self.on_told(ctx, &subject, &payload, reply),
            broker::Heard::Changed { bucket, key, entry } => {
                self.on_changed(ctx, bucket, &key, entry.as_ref())
            }
            broker::Heard::Lost => self.on_lost(ctx),
            broker::Heard::Back => self.on_back(ctx),
        }
    }

    fn on_lost(&mut self, ctx: &Ctx<'_>) {
        self.connected = false;
        if let Some(ownership) = &mut self.ownership {
            ownership.on_cut_off(ctx.now);
        }
    }

    fn on_back(&mut self, ctx: &mut Ctx<'_>) {
        self.connected = true;
        self.connections += 1;
        if let Some(ownership) = &mut self.ownership {
            ownership.on_cut_off(ctx.now);
        }
        for left in self.tasks.lose_connection(&self.port) {
            self.leave(ctx, Some(left));
        }
        self.end_lost_pulls(ctx);
        self.connect(ctx);
    }

    fn on_read(&mut self, ctx: &mut Ctx<'_>, bucket: &'static str, answer: broker::Answer) {
        let broker::Answer::Entries(entries) = answer else { return };
        for (key, entry) in entries {
            self.on_changed(ctx, bucket, &key, Some(&entry));
        }
        self.read += 1;
    }

    fn on_changed(&mut self, ctx: &mut Ctx<'_>, bucket: &str, key: &str, entry: Option<&broker::Entry>) {
        match bucket {
            streams::OWNERS_BUCKET => {
                let (Ok(shard), Some(entry)) = (key.parse::<u8>(), entry) else { return };
                if let Some(ownership) = self.ownership.as_mut().filter(|_| shard < SHARDS) {
                    ownership.on_entry(shard, taking::owned(&entry.value, entry.revision));
                }
                self.act(ctx);
            }
            streams::REPLICAS_BUCKET => {
                let Some(ownership) = &mut self.ownership else { return };
                if let Some(entry) = entry {
                    self.renewals.insert(key.to_owned(), entry.revision);
                }
                match entry.and_then(|e| serde_json::from_slice::<Announcement>(&e.value).ok()) {
                    Some(announcement) => ownership.on_announced(ctx.now, key, announcement.leaving),
                    None => ownership.on_withdrawn(key),
                }
                self.act(ctx);
            }
            streams::BREAKERS_BUCKET => {
                let Some(breaker) = entry.and_then(|e| serde_json::from_slice::<Breaker>(&e.value).ok())
                else {
                    return;
                };
                self.breakers.insert(key.to_owned(), breaker.clone());
                self.tell_breaker(ctx, key, &breaker);
            }
            _ => {}
        }
    }
}

/// The shards of agents that may claim P0: they are taken over first.
fn urgent(policy: &Policy, registrations: &[Registration]) -> Vec<u8> {
    let names = registrations.iter().map(|r| r.agent.as_str());
    names.filter(|name| policy.p0_calls(name).next().is_some()).map(shard_of).collect()
}
