//! Between processes and servers: what is sent arrives or is lost, and what servers do is shown to the oracle.
//!
//! The rule it keeps: an acknowledgement or answer that is lost says nothing about whether what it tells has happened.

use std::time::Duration;

use protocol::audit::Block;

use crate::cast::Part;
use crate::faults::Fault;
use crate::net::{Actor, Server, Way, Who};
use crate::oracle::Disturbance;
use crate::process::Heard;
use crate::world::{Happening, World};
use crate::{broker, postgres, redis};

/// Of the answers and acknowledgements that may be lost, so many are.
const LOST_IN_TEN_THOUSAND: u64 = 30;
/// How long a lost acknowledgement excuses that something runs again.
const LOST_ACK_EXCUSES: Duration = Duration::from_secs(30);

/// How long publishers wait for an acknowledgement before they publish again.
const ACK_PATIENCE: Duration = Duration::from_secs(5);

/// What the subjects of fences begin with.
const FENCES: &str = "mesh.fence.";

impl World {
    pub(crate) fn send_to_broker(&mut self, actor: Actor, channel: usize, op: broker::Op) {
        let may_be_lost = matches!(op, broker::Op::Ack { .. } | broker::Op::Nak { .. });
        if may_be_lost && !self.is_measured(actor.who) && self.loses() {
            self.note(&actor, "loses", || format!("{op:?}"));
            return self.oracle.on_contact_lost(actor, self.now, self.now.after(LOST_ACK_EXCUSES));
        }
        match self.net.travel(self.now, actor.who, Server::Broker, Way::There, channel) {
            Some(at) => self.plan(at, Happening::AtBroker(actor, op)),
            None => self.note(&actor, "loses", || format!("{op:?}")),
        }
    }

    /// Whether it is one of the instances by which the waits of people are measured: nothing happens to them.
    pub(crate) fn is_measured(&self, who: Who) -> bool {
        let part = self.processes.get(&who).map(|p| self.cast.members[p.member].part);
        matches!(who, Who::Instance(_)) && matches!(part, Some(Part::Gate | Part::Host))
    }

    fn loses(&mut self) -> bool {
        let active = !self.calm && self.settings.faults.has(Fault::Acks);
        active && self.streams.servers.happens(LOST_IN_TEN_THOUSAND)
    }

    /// Delivers what the broker has to say, and shows the oracle what happened.
    pub(crate) fn settle_broker(&mut self) {
        let out = self.broker.take();
        for fact in &out.facts {
            self.oracle.on_broker(self.now, fact);
            if let broker::Fact::Stored { by, subject, .. } = fact
                && subject.starts_with(FENCES)
            {
                self.ambush_at_fence(*by, subject);
            }
        }
        for (at, timer) in out.timers {
            self.plan(at, Happening::BrokerWakes(timer));
        }
        for (to, heard) in out.heard {
            let (channel, may_be_lost) = match &heard {
                broker::Heard::Answer { answer: broker::Answer::Stored { .. }, .. } => (0, true),
                broker::Heard::Answer { .. } => (0, false),
                broker::Heard::Message { .. } | broker::Heard::Ended { .. } => (1, false),
                broker::Heard::Told { .. } => (2, false),
                broker::Heard::Changed { .. } | broker::Heard::Lost | broker::Heard::Back => (3, false),
            };
            if may_be_lost && !self.is_measured(to.who) && self.loses() {
                self.note(&to, "loses", || format!("{heard:?}"));
                // Whoever published waits for the whole time that an acknowledgement may take.
                if to.is_replica() {
                    let until = self.now.after(ACK_PATIENCE);
                    self.oracle.on_disturbance(Disturbance::Between(self.now, until));
                }
                continue;
            }
            if let Some(at) = self.net.travel(self.now, to.who, Server::Broker, Way::Back, channel) {
                self.plan(at, Happening::Reaches(to, Heard::Broker(heard)));
            }
        }
    }

    pub(crate) fn at_redis(&mut self, by: Actor, op: redis::Op) {
        if self.net.is_away(Server::Redis) {
            return;
        }
        self.note(&"redis", "takes", || format!("{by}: {op:?}"));
        let mut facts = Vec::new();
        let (token, answer) = self.redis.handle(by, op, &mut facts);
        for fact in &facts {
            if let redis::Fact::Appended { by, shard, block, .. } = fact {
                self.note_records(*shard, block);
                self.ambush_at_block(*by, *shard, block);
            }
            self.oracle.on_redis(self.now, fact);
        }
        // The write has happened; whoever asked must find that out by asking again.
        let active = !self.calm && self.settings.faults.has(Fault::Redis);
        if active && self.streams.servers.happens(LOST_IN_TEN_THOUSAND) {
            return self.note(&by, "loses", || format!("{answer:?}"));
        }
        if let Some(at) = self.net.travel(self.now, by.who, Server::Redis, Way::Back, 0) {
            self.plan(at, Happening::Reaches(by, Heard::Redis(token, answer)));
        }
    }

    /// Shows in the log what a block records.
    fn note_records(&mut self, shard: u8, block: &[u8]) {
        if !self.log.is_kept() {
            return;
        }
        let Ok(block) = Block::decode(block) else { return };
        let at = format!("{shard}:{}-{}", block.epoch, block.sequence);
        for d in &block.decisions {
            let (source, target, lane) = (&d.source, &d.target, d.lane_sequence);
            self.note(&"audit", "decided", || {
                let what = (d.decision, d.reason, d.outcome, d.envelope);
                format!(
                    "{at} {}+{} {source}>{target} {} {lane} {:?} {what:?}",
                    d.first, d.count, d.lane, d.kind
                )
            });
        }
        for c in &block.completions {
            let late = if c.late { "late" } else { "" };
            self.note(&"audit", "completed", || {
                format!("{at} {}+{} {:?} {:?} {late}", c.first, c.count, c.outcome, c.reason)
            });
        }
        for n in &block.notes {
            self.note(&"audit", "noted", || format!("{at} {} {} {}", n.kind, n.agent, n.body));
        }
    }

    pub(crate) fn at_postgres(&mut self, by: Actor, op: postgres::Op) {
        if self.net.is_away(Server::Postgres) {
            return;
        }
        let mut facts = Vec::new();
        let (token, answer) = self.postgres.handle(by, op, &mut facts);
        facts.iter().for_each(|fact| self.oracle.on_postgres(fact));
        if let Some(at) = self.net.travel(self.now, by.who, Server::Postgres, Way::Back, 0) {
            self.plan(at, Happening::Reaches(by, Heard::Postgres(token, answer)));
        }
    }
}
