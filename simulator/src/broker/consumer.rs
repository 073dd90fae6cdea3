//! Durable pull consumers: what was delivered and not acknowledged, who waits for messages, what comes again when.
//!
//! The rule it keeps: a consumer is its name. Whoever knows the name can pull and acknowledge; with the consumer goes all it
//! knew, and what it held is there again for the next one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use governance::Timestamp;

use super::stream::Stream;
use super::{Answer, Delivery, Heard, Outcome};
use crate::net::Actor;

/// How long a pull stays open when nothing comes, as all clients of the mesh ask for.
const PULL_EXPIRES: Duration = Duration::from_secs(20);

/// What a consumer is made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerConfig {
    /// Its name.
    pub name: String,
    /// Which subjects it reads.
    pub filter: String,
    /// How long a message may be held in silence.
    pub ack_wait: Duration,
    /// How many messages may be held at once.
    pub ack_pending_max: usize,
}

/// What the broker wakes up for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timer {
    pub(super) stream: String,
    consumer: String,
    what: Due,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// A message was held for too long, or its delay is over.
    Again(u64),
    /// A pull ends.
    PullEnds(u64),
}

#[derive(Debug)]
struct Held {
    delivered: u64,
    /// When it comes again; it is with a client until then, or waits for a delay to pass.
    again_at: Timestamp,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    by: Actor,
    key: u64,
    left: u32,
}

/// One consumer.
#[derive(Debug)]
pub(super) struct Consumer {
    config: ConsumerConfig,
    held: BTreeMap<u64, Held>,
    /// How often what comes again was delivered.
    again: BTreeMap<u64, u64>,
    next: u64,
    pulls: VecDeque<Waiting>,
    pulls_made: u64,
}

impl Consumer {
    fn new(config: ConsumerConfig) -> Self {
        Self {
            config,
            held: BTreeMap::new(),
            again: BTreeMap::new(),
            next: 0,
            pulls: VecDeque::new(),
            pulls_made: 0,
        }
    }

    pub(super) fn drop_all_pulls(&mut self) {
        self.pulls.clear();
    }
}

/// An acknowledgement subject, taken apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ack<'a> {
    pub(super) stream: &'a str,
    pub(super) consumer: &'a str,
    pub(super) sequence: u64,
}

impl<'a> Ack<'a> {
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let mut tokens = text.strip_prefix("$JS.ACK.")?.split('.');
        let (stream, consumer) = (tokens.next()?, tokens.next()?);
        Some(Self { stream, consumer, sequence: tokens.nth(1)?.parse().ok()? })
    }
}

impl Stream {
    pub(super) fn make_consumer(&mut self, config: ConsumerConfig) -> Answer {
        if self.consumers.contains_key(&config.name) {
            return Answer::Done { revision: 0 };
        }
        let overlaps = self.consumers.values().any(|c| c.config.filter == config.filter);
        if overlaps && self.is_work_queue() {
            return Answer::Refused("filtered consumer not unique on workqueue stream");
        }
        self.consumers.insert(config.name.clone(), Consumer::new(config));
        Answer::Done { revision: 0 }
    }

    pub(super) fn delete_consumer(&mut self, _now: Timestamp, name: &str, out: &mut Outcome) {
        let Some(consumer) = self.consumers.remove(name) else { return };
        for pull in consumer.pulls {
            out.heard.push((pull.by, Heard::Ended { key: pull.key, unfilled: pull.left, expired: false }));
        }
    }

    pub(super) fn consumer_names(&self) -> Vec<String> {
        self.consumers.keys().cloned().collect()
    }

    /// How many messages a consumer has neither delivered nor seen acknowledged.
    pub(super) fn waiting(&self, name: &str) -> u64 {
        let Some(consumer) = self.consumers.get(name) else { return 0 };
        let all = self.by_filter.get(&consumer.config.filter).map_or(0, BTreeSet::len);
        (all - consumer.held.len().min(all)) as u64
    }

    pub(super) fn pull(
        &mut self,
        now: Timestamp,
        by: Actor,
        key: u64,
        name: &str,
        messages: u32,
        out: &mut Outcome,
    ) {
        let Some(consumer) = self.consumers.get_mut(name) else {
            return out.heard.push((by, Heard::Ended { key, unfilled: messages, expired: false }));
        };
        consumer.pulls_made += 1;
        let id = consumer.pulls_made;
        consumer.pulls.push_back(Waiting { id, by, key, left: messages });
        self.arm(now.after(PULL_EXPIRES), name, Due::PullEnds(id), out);
        self.serve(now, name, out);
    }

    pub(super) fn drop_pulls(&mut self, actor: Actor) {
        self.consumers.values_mut().for_each(|c| c.pulls.retain(|p| p.by != actor));
    }

    /// True where the message was held and is gone now.
    pub(super) fn acknowledge(&mut self, now: Timestamp, ack: Ack<'_>, out: &mut Outcome) -> bool {
        let Some(consumer) = self.consumers.get_mut(ack.consumer) else { return false };
        let was_held = consumer.held.remove(&ack.sequence).is_some();
        if !was_held && consumer.again.remove(&ack.sequence).is_none() {
            return false;
        }
        self.remove(ack.sequence);
        self.serve(now, ack.consumer, out);
        true
    }

    pub(super) fn nak(&mut self, now: Timestamp, ack: Ack<'_>, delay: Duration, out: &mut Outcome) {
        let again_at = now.after(delay);
        let Some(held) = self.consumers.get_mut(ack.consumer).and_then(|c| c.held.get_mut(&ack.sequence))
        else {
            return;
        };
        held.again_at = again_at;
        self.arm(again_at, ack.consumer, Due::Again(ack.sequence), out);
    }

    pub(super) fn progress(&mut self, now: Timestamp, ack: Ack<'_>) {
        let Some(consumer) = self.consumers.get_mut(ack.consumer) else { return };
        let until = now.after(consumer.config.ack_wait);
        if let Some(held) = consumer.held.get_mut(&ack.sequence) {
            held.again_at = until;
        }
    }

    pub(super) fn wake(&mut self, now: Timestamp, timer: Timer, out: &mut Outcome) {
        let Timer { consumer: name, what, .. } = timer;
        let Some(consumer) = self.consumers.get_mut(&name) else { return };
        match what {
            Due::PullEnds(id) => {
                let Some(at) = consumer.pulls.iter().position(|p| p.id == id) else { return };
                if let Some(pull) = consumer.pulls.remove(at) {
                    let ended = Heard::Ended { key: pull.key, unfilled: pull.left, expired: true };
                    out.heard.push((pull.by, ended));
                }
            }
            Due::Again(sequence) => {
                let Some(held) = consumer.held.get(&sequence) else { return };
                if held.again_at > now {
                    let at = held.again_at;
                    return self.arm(at, &name, Due::Again(sequence), out);
                }
                let delivered = held.delivered;
                consumer.held.remove(&sequence);
                consumer.again.insert(sequence, delivered);
                self.serve(now, &name, out);
            }
        }
    }

    /// After a restart the broker looks at everything that is held.
    pub(super) fn rearm(&mut self, now: Timestamp, out: &mut Outcome) {
        let due: Vec<(String, u64, Timestamp)> = self
            .consumers
            .iter()
            .flat_map(|(name, c)| c.held.iter().map(|(s, h)| (name.clone(), *s, h.again_at)))
            .collect();
        for (name, sequence, at) in due {
            self.arm(at.max(now), &name, Due::Again(sequence), out);
        }
    }

    fn arm(&self, at: Timestamp, consumer: &str, what: Due, out: &mut Outcome) {
        let timer = Timer { stream: self.name.clone(), consumer: consumer.to_owned(), what };
        out.timers.push((at, timer));
    }

    pub(super) fn serve_filter(&mut self, now: Timestamp, filter: &str, out: &mut Outcome) {
        let reads = |(name, c): (&String, &Consumer)| (c.config.filter == filter).then(|| name.clone());
        if let Some(name) = self.consumers.iter().find_map(reads) {
            self.serve(now, &name, out);
        }
    }

    /// Delivers what is there to those who wait.
    fn serve(&mut self, now: Timestamp, name: &str, out: &mut Outcome) {
        loop {
            let Some(consumer) = self.consumers.get_mut(name) else { return };
            let of_filter = self.by_filter.get(&consumer.config.filter);
            if consumer.pulls.is_empty() || consumer.held.len() >= consumer.config.ack_pending_max {
                return;
            }
            let fresh = || of_filter.and_then(|all| all.range(consumer.next..).next().copied());
            let (sequence, before) = match consumer.again.pop_first() {
                Some((sequence, delivered)) => (sequence, delivered),
                None => match fresh() {
                    Some(sequence) => {
                        consumer.next = sequence + 1;
                        (sequence, 0)
                    }
                    None => return,
                },
            };
            let Some(message) = self.messages.get(&sequence) else { continue };
            let again_at = now.after(consumer.config.ack_wait);
            let delivered = before + 1;
            consumer.held.insert(sequence, Held { delivered, again_at });
            let pending = of_filter.map_or(0, |all| all.range(consumer.next..).count() as u64);
            let Some(pull) = consumer.pulls.front_mut() else { return };
            let ack = format!(
                "$JS.ACK.{}.{name}.{delivered}.{sequence}.{sequence}.{}.{pending}",
                self.name, message.at.0
            );
            let delivery = Delivery {
                subject: message.subject.clone(),
                payload: message.payload.clone(),
                ack,
                sequence,
                delivered,
                stored: message.at,
                pending,
            };
            out.heard.push((pull.by, Heard::Message { key: pull.key, message: delivery }));
            pull.left -= 1;
            if pull.left == 0 {
                consumer.pulls.pop_front();
            }
            let timer =
                Timer { stream: self.name.clone(), consumer: name.to_owned(), what: Due::Again(sequence) };
            out.timers.push((again_at, timer));
        }
    }
}
