//! Processes: what one hears, what it does, when it wakes up. Owns the vocabulary between processes and the world.
//!
//! The rule it keeps: a process knows only its own clock and what reached it; everything it does goes through here, so that
//! a crash or a pause can come between any two of its doings.

use std::time::Duration;

use governance::Timestamp;

use crate::net::Actor;
use crate::random::Random;
use crate::{broker, oracle, postgres, redis};

/// What reaches a process.
#[derive(Debug)]
pub enum Heard {
    /// From the broker.
    Broker(broker::Heard),
    /// An answer of Redis, by its token.
    Redis(u64, redis::Answer),
    /// An answer of PostgreSQL, by its token.
    Postgres(u64, postgres::Answer),
    /// It asked to be woken up.
    Wake(Wake),
}

/// Why a process wakes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// It begins.
    Start,
    /// Time has passed.
    Tick,
    /// It announces itself, or says that it lives.
    Renew,
    /// It looks at who owns what, or for work.
    Look,
    /// What it waits for under this token may be lost.
    Overdue(u64),
    /// A handler ends.
    Ended(u64),
    /// It sends something of its own accord.
    Load,
    /// It was asked to stop.
    Stop,
}

/// What a process does.
#[derive(Debug)]
pub enum Doing {
    /// Send something to the broker, on one of its connections.
    Broker(usize, broker::Op),
    /// Send something to Redis.
    Redis(redis::Op),
    /// Send something to PostgreSQL.
    Postgres(postgres::Op),
    /// Listen to core subjects that begin so.
    Subscribe(Vec<String>),
    /// Wake up later.
    After(Duration, Wake),
    /// Something that the oracle sees without a server in between.
    Saw(oracle::Sight),
    /// End by itself.
    Exit,
}

/// What a process works with while it handles one thing.
#[derive(Debug)]
pub struct Ctx<'a> {
    /// The process.
    pub me: Actor,
    /// What its own clock shows.
    pub now: Timestamp,
    /// Its dice.
    pub random: &'a mut Random,
    /// What it does, in order.
    pub doings: &'a mut Vec<Doing>,
}

impl Ctx<'_> {
    /// Sends something to the broker.
    pub fn broker(&mut self, channel: usize, op: broker::Op) {
        self.doings.push(Doing::Broker(channel, op));
    }

    /// Sends something to Redis.
    pub fn redis(&mut self, op: redis::Op) {
        self.doings.push(Doing::Redis(op));
    }

    /// Wakes up later.
    pub fn after(&mut self, delay: Duration, wake: Wake) {
        self.doings.push(Doing::After(delay, wake));
    }

    /// Shows something to the oracle.
    pub fn saw(&mut self, sight: oracle::Sight) {
        self.doings.push(Doing::Saw(sight));
    }
}
