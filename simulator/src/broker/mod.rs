//! The modelled broker: what the mesh uses of NATS JetStream, as far as it can be observed.
//!
//! Owns streams, consumers, buckets and the routing of core messages. Draws no random number and waits for nothing: what
//! arrives is handled at once, and how long answers travel is the network's. The rule it keeps: it promises no more than
//! the real one does. What it knows of message ids it forgets with a restart; what a deleted consumer held comes back.

mod bucket;
mod consumer;
mod core;
mod stream;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use governance::Timestamp;
use protocol::streams;

pub use bucket::Entry;
pub use consumer::{ConsumerConfig, Timer};
pub use core::ReplyTo;
pub use stream::Stored;

use crate::net::Actor;
use bucket::Bucket;
use core::Subscriptions;
use stream::Stream;

/// Expected of another subject of the stream: the sequence of its last message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The subject.
    pub subject: String,
    /// The sequence.
    pub sequence: u64,
}

/// Something that arrives at the broker.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the line above each variant says what its fields are")]
pub enum Op {
    /// Store a message; answered.
    Publish { token: u64, subject: String, id: Option<String>, expected: Option<Expected>, payload: Bytes },
    /// Hand a message to whoever listens, at most once.
    Tell { subject: String, payload: Bytes },
    /// The same, and wait for the first answer.
    Ask { token: u64, subject: String, payload: Bytes },
    /// Answer such a question.
    Respond { to: ReplyTo, payload: Bytes },
    /// Wait for messages of a consumer.
    Pull { key: u64, stream: String, consumer: String, messages: u32 },
    /// Acknowledge.
    Ack { ack: String },
    /// Give a message back.
    Nak { ack: String, delay: Duration },
    /// A message is worked on.
    Progress { ack: String },
    /// Make a consumer where none of its name exists.
    MakeConsumer { token: u64, stream: String, config: ConsumerConfig },
    /// Delete a consumer.
    DeleteConsumer { token: u64, stream: String, name: String },
    /// Name the consumers of a stream.
    Consumers { token: u64, stream: String },
    /// Count the messages that a consumer has yet to deliver.
    Waiting { token: u64, stream: String, consumer: String },
    /// Drop all messages of a subject but the last.
    Purge { token: u64, subject: String },
    /// Read the first message from a sequence on that a filter lets through.
    Next { token: u64, stream: String, filter: String, from: u64 },
    /// Read the last message of a subject.
    Last { token: u64, subject: String },
    /// Store an entry; with a revision only where that is the last one.
    Put { token: u64, bucket: &'static str, key: String, value: Bytes, revision: Option<u64> },
    /// Drop an entry.
    Drop { token: u64, bucket: &'static str, key: String },
    /// Read an entry.
    Get { token: u64, bucket: &'static str, key: String },
    /// Read a whole bucket.
    Entries { token: u64, bucket: &'static str },
}

/// What the broker answers.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the line above each variant says what its fields are")]
pub enum Answer {
    /// A message is stored, or was before.
    Stored { sequence: u64, duplicate: bool },
    /// The subject is full.
    Full,
    /// The expected sequence is not the last one.
    Fenced,
    /// Done.
    Done { revision: u64 },
    /// Not done, and why.
    Refused(&'static str),
    /// Names of consumers.
    Names(Vec<String>),
    /// So many.
    Count(u64),
    /// A message, where there is one.
    Message(Option<Stored>),
    /// An entry, where there is one.
    Entry(Option<Entry>),
    /// Entries by key.
    Entries(Vec<(String, Entry)>),
    /// What another process answered.
    Reply(Bytes),
    /// Nobody listens there.
    NoResponders,
}

/// What a process hears from the broker.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the line above each variant says what its fields are")]
pub enum Heard {
    /// The answer to a question.
    Answer { token: u64, answer: Answer },
    /// A message of a pull.
    Message { key: u64, message: Delivery },
    /// A pull ended with so many messages missing: in time, or because it was refused.
    Ended { key: u64, unfilled: u32, expired: bool },
    /// A core message.
    Told { subject: String, payload: Bytes, reply: Option<ReplyTo> },
    /// An entry of a bucket changed.
    Changed { bucket: &'static str, key: String, entry: Option<Entry> },
    /// The connection broke.
    Lost,
    /// The connection is there again.
    Back,
}

/// A message as it reaches a consumer's client.
#[derive(Clone)]
pub struct Delivery {
    /// Its subject.
    pub subject: String,
    /// Its bytes.
    pub payload: Bytes,
    /// Where to acknowledge it.
    pub ack: String,
    /// Its place in the stream.
    pub sequence: u64,
    /// How often it was delivered, this time included.
    pub delivered: u64,
    /// When it was stored.
    pub stored: Timestamp,
    /// How many more wait.
    pub pending: u64,
}

impl std::fmt::Debug for Delivery {
    /// Without its bytes: the acknowledgement says which message it is.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {} ({} bytes)", self.ack, self.subject, self.payload.len())
    }
}

/// What happened at the broker, for the oracle.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the line above each variant says what its fields are")]
pub enum Fact {
    /// A message was stored.
    Stored { by: Actor, subject: String, sequence: u64, id: Option<String>, payload: Bytes },
    /// A message was acknowledged and is gone.
    Acknowledged { by: Actor, stream: String, sequence: u64, consumer: String },
    /// A publish was refused because of its expected sequence.
    Fenced { by: Actor, subject: String, id: Option<String> },
    /// An acknowledgement met nothing.
    Missed { by: Actor, ack: String },
}

/// What handling something gave.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What processes hear.
    pub heard: Vec<(Actor, Heard)>,
    /// When the broker wants to be woken, and for what.
    pub timers: Vec<(Timestamp, Timer)>,
    /// What happened.
    pub facts: Vec<Fact>,
}

/// The broker.
#[derive(Debug)]
pub struct Broker {
    streams: BTreeMap<String, Stream>,
    buckets: BTreeMap<&'static str, Bucket>,
    subscriptions: Subscriptions,
    out: Outcome,
}

/// The buckets of the mesh.
const BUCKETS: [&str; 6] = [
    streams::AGENTS_BUCKET,
    streams::POLICY_BUCKET,
    streams::OWNERS_BUCKET,
    streams::REPLICAS_BUCKET,
    streams::BREAKERS_BUCKET,
    streams::SCALE_BUCKET,
];

impl Broker {
    /// A broker with the streams and buckets of the mesh, all empty.
    #[must_use]
    pub fn new() -> Self {
        Self {
            streams: streams::all().into_iter().map(|s| (s.name.clone(), Stream::new(s))).collect(),
            buckets: BUCKETS.into_iter().map(|b| (b, Bucket::default())).collect(),
            subscriptions: Subscriptions::default(),
            out: Outcome::default(),
        }
    }

    /// What came of everything since the last call.
    pub fn take(&mut self) -> Outcome {
        std::mem::take(&mut self.out)
    }

    /// Handles something that arrived from `by`.
    pub fn handle(&mut self, now: Timestamp, by: Actor, op: Op) {
        match op {
            Op::Publish { token, subject, id, expected, payload } => {
                let answer = self.publish(now, by, &subject, id, expected.as_ref(), payload);
                self.answer(by, token, answer);
            }
            Op::Tell { subject, payload } => drop(self.tell(&subject, &payload, None)),
            Op::Ask { token, subject, payload } => {
                if !self.tell(&subject, &payload, Some(ReplyTo { to: by, token })) {
                    self.answer(by, token, Answer::NoResponders);
                }
            }
            Op::Respond { to, payload } => self.answer(to.to, to.token, Answer::Reply(payload)),
            Op::Pull { key, stream, consumer, messages } => {
                self.on_stream(&stream, |s, out| s.pull(now, by, key, &consumer, messages, out));
            }
            Op::Ack { ack } => self.acknowledge(now, by, &ack),
            Op::Nak { ack, delay } => self.on_ack(&ack, |s, a, out| s.nak(now, a, delay, out)),
            Op::Progress { ack } => self.on_ack(&ack, |s, a, _| s.progress(now, a)),
            Op::MakeConsumer { token, stream, config } => {
                let answer = self.stream(&stream).make_consumer(config);
                self.answer(by, token, answer);
            }
            Op::DeleteConsumer { token, stream, name } => {
                self.on_stream(&stream, |s, out| s.delete_consumer(now, &name, out));
                self.answer(by, token, Answer::Done { revision: 0 });
            }
            Op::Consumers { token, stream } => {
                let names = self.stream(&stream).consumer_names();
                self.answer(by, token, Answer::Names(names));
            }
            Op::Waiting { token, stream, consumer } => {
                let count = self.stream(&stream).waiting(&consumer);
                self.answer(by, token, Answer::Count(count));
            }
            Op::Purge { token, subject } => {
                self.stream_of(&subject).keep_last(&subject);
                self.answer(by, token, Answer::Done { revision: 0 });
            }
            Op::Next { token, stream, filter, from } => {
                let message = self.stream(&stream).next_of(&filter, from).cloned();
                self.answer(by, token, Answer::Message(message));
            }
            Op::Last { token, subject } => {
                let message = self.stream_of(&subject).last(&subject).cloned();
                self.answer(by, token, Answer::Message(message));
            }
            Op::Put { token, bucket, key, value, revision } => {
                let answer = self.put(now, bucket, &key, value, revision);
                self.answer(by, token, answer);
            }
            Op::Drop { token, bucket, key } => {
                self.drop_entry(bucket, &key);
                self.answer(by, token, Answer::Done { revision: 0 });
            }
            Op::Get { token, bucket, key } => {
                let entry = self.entry(now, bucket, &key);
                self.answer(by, token, Answer::Entry(entry));
            }
            Op::Entries { token, bucket } => {
                let entries = self.live(now, bucket);
                self.answer(by, token, Answer::Entries(entries));
            }
        }
    }

    /// A moment that was asked for has come.
    pub fn wake(&mut self, now: Timestamp, timer: Timer) {
        let stream = timer.stream.clone();
        self.on_stream(&stream, |s, out| s.wake(now, timer, out));
    }

    /// The broker was killed and comes back: what it stored is there, what it only remembered is not.
    pub fn restart(&mut self, now: Timestamp) {
        self.subscriptions.clear();
        for stream in self.streams.values_mut() {
            stream.restart(now, &mut self.out);
        }
    }

    /// The connection of a process is gone, with its pulls and subscriptions.
    pub fn disconnect(&mut self, actor: Actor) {
        self.subscriptions.remove(actor);
        self.streams.values_mut().for_each(|s| s.drop_pulls(actor));
    }

    /// A process listens to the core subjects that begin so.
    pub fn subscribe(&mut self, actor: Actor, prefixes: &[String]) {
        self.subscriptions.add(actor, prefixes);
    }

    /// A stream, for looking at it.
    ///
    /// # Panics
    /// When there is none of this name.
    #[must_use]
    pub fn look(&self, stream: &str) -> &Stream {
        &self.streams[stream]
    }

    fn stream(&mut self, name: &str) -> &mut Stream {
        self.streams.get_mut(name).unwrap_or_else(|| panic!("the mesh has no stream {name}"))
    }

    fn stream_of(&mut self, subject: &str) -> &mut Stream {
        self.stream(&stream::name_of(subject))
    }

    fn on_stream(&mut self, name: &str, act: impl FnOnce(&mut Stream, &mut Outcome)) {
        let mut out = std::mem::take(&mut self.out);
        act(self.stream(name), &mut out);
        self.out = out;
    }

    fn answer(&mut self, to: Actor, token: u64, answer: Answer) {
        self.out.heard.push((to, Heard::Answer { token, answer }));
    }

    fn publish(
        &mut self,
        now: Timestamp,
        by: Actor,
        subject: &str,
        id: Option<String>,
        expected: Option<&Expected>,
        payload: Bytes,
    ) -> Answer {
        let mut answer = Answer::Full;
        let name = stream::name_of(subject);
        self.on_stream(&name, |s, out| {
            answer = s.publish(now, subject, id.as_deref(), expected, payload.clone(), out);
            if let Answer::Stored { sequence, duplicate: false } = answer {
                out.facts.push(Fact::Stored { by, subject: subject.to_owned(), sequence, id, payload });
            } else if answer == Answer::Fenced {
                out.facts.push(Fact::Fenced { by, subject: subject.to_owned(), id });
            }
        });
        answer
    }

    fn acknowledge(&mut self, now: Timestamp, by: Actor, ack: &str) {
        let mut met = None;
        self.on_ack(ack, |s, a, out| {
            if s.acknowledge(now, a, out) {
                met = Some((a.stream.to_owned(), a.sequence, a.consumer.to_owned()));
            }
        });
        self.out.facts.push(match met {
            Some((stream, sequence, consumer)) => Fact::Acknowledged { by, stream, sequence, consumer },
            None => Fact::Missed { by, ack: ack.to_owned() },
        });
    }

    fn on_ack(&mut self, ack: &str, act: impl FnOnce(&mut Stream, consumer::Ack<'_>, &mut Outcome)) {
        // A text that is no acknowledgement is a subject on which nobody listens.
        let Some(parsed) = consumer::Ack::parse(ack) else { return };
        self.on_stream(parsed.stream, |s, out| act(s, parsed, out));
    }
}

impl Default for Broker {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
