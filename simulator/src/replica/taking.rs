//! Claiming and taking over: the real order, on the modelled servers.
//!
//! Owns how each operation of [`home::takeover::World`] becomes questions to broker and Redis. The rule it keeps: an operation
//! that got no answer is tried again or fails, exactly as the coordinator does it.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a question has the answers that are named; any other one fails the operation alike"
)]

use std::time::Duration;

use bytes::Bytes;
use governance::{AgentId, Priority, Registration, Timestamp, shard_of};
use home::ownership::{self, Entry};
use home::takeover::{Rest, Stored, Taking, World, WorldError, take_over};
use home::{Appended, Fence, Setup};
use protocol::control::{Breaker, Owner};
use protocol::redis::{EntryId, Head};
use protocol::{streams, subjects};

use super::port::{Lost, PATIENCE, Port};
use crate::broker::{Answer, ConsumerConfig, Expected, Op};
use crate::redis;

/// The pause before something that got no answer is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// On this connection everything of a take-over goes.
const CHANNEL: usize = 3;
/// Blocks read at once.
const READ_COUNT: usize = 256;

/// Broker, Redis and what is known, as a take-over needs them.
#[derive(Debug, Clone)]
pub(super) struct Servers {
    pub(super) port: Port,
    pub(super) registrations: Vec<Registration>,
    pub(super) breakers: Vec<(String, Breaker)>,
}

fn lost(what: &str) -> impl FnOnce(Lost) -> WorldError {
    move |Lost| WorldError(format!("{what}: no answer"))
}

fn unexpected<T>(what: &str, answer: &impl std::fmt::Debug) -> Result<T, WorldError> {
    Err(WorldError(format!("{what}: {answer:?}")))
}

/// A claim that led to a home, or did not.
#[derive(Debug)]
pub(super) enum Claimed {
    /// The shard is taken over; its entry has this revision.
    Home(Box<(Setup, Rest)>, u64),
    /// Another replica was faster, or a server failed: why.
    Not(String),
    /// The owner that seemed dead is announced.
    Alive(String),
}

/// How long the acknowledgement of a fence is waited for, and how often it is moved: as in the coordinator.
const FENCE_PATIENCE: Duration = Duration::from_secs(1);
const FENCE_TRIES: usize = 3;

/// Claims a shard by compare-and-set and takes it over. `renewed` is the revision of the owner's announcement as it was seen
/// last.
pub(super) async fn claim(servers: Servers, owner: Entry, renewed: u64, taking: Taking) -> Claimed {
    if !owner.replica.is_empty() && owner.replica != taking.replica {
        let (bucket, key) = (streams::REPLICAS_BUCKET, owner.replica.clone());
        match servers.port.broker(CHANNEL, PATIENCE, |token| Op::Get { token, bucket, key }).await {
            // Its renewals did not reach this replica, which says nothing about it.
            Ok(Answer::Entry(Some(e))) if e.revision > renewed => return Claimed::Alive(owner.replica),
            Ok(_) => {}
            Err(Lost) => return Claimed::Not("the owner's announcement was not read".to_owned()),
        }
    }
    match try_claim(&servers, &owner, taking).await {
        Ok((taken, revision)) => Claimed::Home(Box::new(taken), revision),
        Err(why) => Claimed::Not(why),
    }
}

async fn try_claim(servers: &Servers, owner: &Entry, taking: Taking) -> Result<((Setup, Rest), u64), String> {
    let shard = taking.shard;
    let ledger = servers.head(shard).await.map_err(|e| e.to_string())?.id.epoch;
    let fence = servers.fence_epoch(shard).await.map_err(|e| e.to_string())?;
    let revision = owner.revision;
    let epoch = ownership::next_epoch(revision, owner.epoch, ledger, fence);
    let former = owner.epoch;
    let owner = Owner { replica: taking.replica.clone(), epoch, ready: false };
    let value: Bytes = serde_json::to_vec(&owner).expect("plain data serialises").into();
    let (bucket, key) = (streams::OWNERS_BUCKET, shard.to_string());
    let put = |token| Op::Put { token, bucket, key, value, revision: Some(revision) };
    let revision = match servers.port.broker(CHANNEL, PATIENCE, put).await {
        Ok(Answer::Done { revision }) => revision,
        Ok(_) => return Err("another replica was faster".to_owned()),
        Err(Lost) => return Err("the claim was not confirmed".to_owned()),
    };
    let taken = take_over(servers, Taking { epoch, former, ..taking }).await.map_err(|e| e.to_string())?;
    Ok((taken, revision))
}

impl Servers {
    async fn ask(&self, what: &str, op: impl FnOnce(u64) -> Op) -> Result<Answer, WorldError> {
        self.port.broker(CHANNEL, PATIENCE, op).await.map_err(lost(what))
    }

    /// What the newest fence message of a shard says; zero for none.
    async fn fence_epoch(&self, shard: u8) -> Result<u64, WorldError> {
        let subject = subjects::fence(Priority::P0, shard);
        match self.ask("read a fence", |token| Op::Last { token, subject }).await? {
            Answer::Message(None) => Ok(0),
            Answer::Message(Some(message)) => {
                Ok(std::str::from_utf8(&message.payload).ok().and_then(|t| t.parse().ok()).unwrap_or(0))
            }
            other => unexpected("read a fence", &other),
        }
    }

    /// Whether it is made: none where another consumer of the same subjects is there.
    async fn make_consumer(&self, stream: String, name: String, filter: String) -> Result<bool, WorldError> {
        let config = ConsumerConfig {
            name,
            filter,
            ack_wait: streams::LANE_ACK_WAIT,
            ack_pending_max: streams::LANE_ACK_PENDING_MAX as usize,
        };
        match self.ask("make a consumer", |token| Op::MakeConsumer { token, stream, config }).await? {
            Answer::Done { .. } => Ok(true),
            Answer::Refused(_) => Ok(false),
            other => unexpected("make a consumer", &other),
        }
    }
}

impl World for Servers {
    async fn move_fence(&self, priority: Priority, shard: u8, epoch: u64) -> Result<u64, WorldError> {
        let subject = subjects::fence(priority, shard);
        let (moved, purged) = (subject.clone(), subject);
        let payload = Bytes::from(epoch.to_string());
        let mut stored = Err(Lost);
        for _ in 0..FENCE_TRIES {
            let (subject, payload) = (moved.clone(), payload.clone());
            let publish = |token| Op::Publish { token, subject, id: None, expected: None, payload };
            stored = self.port.broker(CHANNEL, FENCE_PATIENCE, publish).await;
            if stored.is_ok() {
                break;
            }
        }
        let sequence = match stored.map_err(lost("move a fence"))? {
            Answer::Stored { sequence, .. } => sequence,
            other => return unexpected("move a fence", &other),
        };
        self.ask("drop former fences", |token| Op::Purge { token, subject: purged }).await?;
        Ok(sequence)
    }

    async fn head(&self, shard: u8) -> Result<Head, WorldError> {
        match self.port.redis(|token| redis::Op::Head { token, shard }).await.map_err(lost("read a head"))? {
            redis::Answer::Head(head) => Ok(head),
            other => unexpected("read a head", &other),
        }
    }

    async fn append(
        &self,
        shard: u8,
        expected: Head,
        new: Head,
        block: &[u8],
    ) -> Result<Appended, WorldError> {
        Ok(append(&self.port, shard, expected, new, block).await)
    }

    async fn snapshot(&self, shard: u8) -> Result<Option<(Head, EntryId, String)>, WorldError> {
        let answer = self.port.redis(|token| redis::Op::ReadSnapshot { token, shard }).await;
        let text = match answer.map_err(lost("read a snapshot"))? {
            redis::Answer::Snapshot(text) => text,
            other => return unexpected("read a snapshot", &other),
        };
        let Some(text) = text else { return Ok(None) };
        let (head, oldest, state) = protocol::redis::read_snapshot(&text)
            .ok_or_else(|| WorldError("the snapshot is damaged".to_owned()))?;
        Ok(Some((head, oldest, state.to_owned())))
    }

    async fn blocks(&self, shard: u8, from: EntryId) -> Result<Vec<(EntryId, Vec<u8>)>, WorldError> {
        let (mut blocks, mut from) = (Vec::new(), from);
        loop {
            let op = |token| redis::Op::Blocks { token, shard, from, most: READ_COUNT };
            let read = match self.port.redis(op).await.map_err(lost("read blocks"))? {
                redis::Answer::Blocks(read) => read,
                other => return unexpected("read blocks", &other),
            };
            let full = read.len() == READ_COUNT;
            if let Some((last, _)) = read.last() {
                from = EntryId { sequence: last.sequence + 1, ..*last };
            }
            blocks.extend(read.into_iter().map(|(id, block)| (id, block.to_vec())));
            if !full {
                return Ok(blocks);
            }
        }
    }

    async fn registrations(&self) -> Result<Vec<Registration>, WorldError> {
        Ok(self.registrations.clone())
    }

    async fn breakers(&self) -> Result<Vec<(String, Breaker)>, WorldError> {
        Ok(self.breakers.clone())
    }

    async fn paused(&self) -> Result<Vec<String>, WorldError> {
        Ok(Vec::new())
    }

    async fn delete_former_consumers(&self, shard: u8, epoch: u64) -> Result<(), WorldError> {
        for stream in Priority::ALL.iter().map(|p| streams::lanes(*p)).chain([streams::DONE.to_owned()]) {
            let of = stream.clone();
            let names = match self.ask("list consumers", |token| Op::Consumers { token, stream: of }).await? {
                Answer::Names(names) => names,
                other => return unexpected("list consumers", &other),
            };
            for name in names {
                let is_former = streams::consumer_epoch(&name)
                    .is_some_and(|(agent, of)| shard_of(agent) == shard && of < epoch);
                if is_former {
                    let stream = stream.clone();
                    self.ask("drop a consumer", |token| Op::DeleteConsumer { token, stream, name }).await?;
                }
            }
        }
        Ok(())
    }

    async fn delete_consumers(
        &self,
        agent: &AgentId,
        epoch: u64,
        classes: &[Priority],
    ) -> Result<(), WorldError> {
        for p in classes.iter().copied() {
            let lane = (streams::lanes(p), streams::lane_consumer(agent, epoch));
            let done = (streams::DONE.to_owned(), streams::done_consumer(p, agent, epoch));
            for (stream, name) in [lane, done] {
                self.ask("drop a consumer", |token| Op::DeleteConsumer { token, stream, name }).await?;
            }
        }
        Ok(())
    }

    async fn make_consumers(
        &self,
        agent: &AgentId,
        epoch: u64,
        classes: &[Priority],
    ) -> Result<Option<Vec<(Priority, u64)>>, WorldError> {
        let mut unread = Vec::new();
        for p in classes.iter().copied() {
            let lane = streams::lane_consumer(agent, epoch);
            let done = streams::done_consumer(p, agent, epoch);
            let (completions, filter) = (streams::DONE.to_owned(), subjects::done_filter(p, agent));
            let made = self.make_consumer(streams::lanes(p), lane, subjects::lane_filter(p, agent)).await?
                && self.make_consumer(completions.clone(), done.clone(), filter).await?;
            if !made {
                return Ok(None);
            }
            let waiting = |token| Op::Waiting { token, stream: completions, consumer: done };
            if let Answer::Count(count) = self.ask("count completions", waiting).await? {
                unread.push((p, count));
            }
        }
        Ok(Some(unread))
    }

    async fn lane_message(
        &self,
        lane: Priority,
        source: &AgentId,
        from: u64,
    ) -> Result<Option<(u64, Bytes)>, WorldError> {
        let (stream, filter) = (streams::lanes(lane), subjects::lane_filter(lane, source));
        match self.ask("read a lane", |token| Op::Next { token, stream, filter, from }).await? {
            Answer::Message(message) => Ok(message.map(|m| (m.sequence, m.payload))),
            other => unexpected("read a lane", &other),
        }
    }

    async fn holds(&self, _: Priority, _: &AgentId, _: &str) -> Result<bool, WorldError> {
        // The modelled broker forgets a message id later than any run that replays it ends.
        Ok(false)
    }

    async fn publish(
        &self,
        subject: String,
        message_id: String,
        fence: Fence,
        payload: Bytes,
    ) -> Result<Stored, WorldError> {
        loop {
            let (subject, id, payload) = (subject.clone(), Some(message_id.clone()), payload.clone());
            let expected = Some(Expected { subject: fence.subject.clone(), sequence: fence.sequence });
            let op = |token| Op::Publish { token, subject, id, expected, payload };
            match self.port.broker(CHANNEL, PATIENCE, op).await {
                Ok(Answer::Stored { duplicate: true, .. }) => return Ok(Stored::Already),
                Ok(Answer::Stored { duplicate: false, .. }) => return Ok(Stored::New),
                Ok(Answer::Fenced) => return Ok(Stored::Fenced),
                Ok(_) | Err(Lost) => self.port.sleep(RETRY).await,
            }
        }
    }

    async fn lanes_made(&self) -> Result<[u64; 4], WorldError> {
        // The streams of a run are never made anew.
        Ok([1; 4])
    }

    fn now(&self) -> Timestamp {
        self.port.now()
    }
}

/// Appends a block, trying again for as long as Redis gives no answer: a retry is answered as done.
pub(super) async fn append(port: &Port, shard: u8, expected: Head, new: Head, block: &[u8]) -> Appended {
    let block: std::sync::Arc<[u8]> = block.into();
    loop {
        let block = std::sync::Arc::clone(&block);
        match port.redis(|token| redis::Op::Append { token, shard, expected, new, block }).await {
            Ok(redis::Answer::Moved(head)) => return Appended::Deposed(head.to_string()),
            Ok(redis::Answer::Done) => return Appended::Durable,
            Ok(_) | Err(Lost) => port.sleep(RETRY).await,
        }
    }
}

/// The entry of a shard as it is now; none where it cannot be read.
pub(super) async fn read_entry(port: Port, shard: u8) -> Option<Entry> {
    let (bucket, key) = (streams::OWNERS_BUCKET, shard.to_string());
    match port.broker(CHANNEL, PATIENCE, |token| Op::Get { token, bucket, key }).await {
        Ok(Answer::Entry(entry)) => Some(entry.map(|e| owned(&e.value, e.revision)).unwrap_or_default()),
        Ok(_) | Err(Lost) => None,
    }
}

/// An entry of the owners bucket as the ownership sees it. One that is damaged is free; its revision counts.
pub(super) fn owned(value: &[u8], revision: u64) -> Entry {
    let owner = serde_json::from_slice::<Owner>(value).ok();
    let (replica, epoch, ready) = owner.map(|o| (o.replica, o.epoch, o.ready)).unwrap_or_default();
    Entry { replica, epoch, revision, ready }
}

/// Gives a shard back whose home has drained, where it is still this replica's; the entry as it is then.
pub(super) async fn give_back(port: Port, shard: u8, replica: String, epoch: u64) -> Option<Entry> {
    let entry = read_entry(port.clone(), shard).await?;
    if entry.replica == replica && entry.epoch == epoch {
        let free = Owner { replica: String::new(), epoch, ready: false };
        let value = serde_json::to_vec(&free).expect("plain data serialises").into();
        let (bucket, key, revision) = (streams::OWNERS_BUCKET, shard.to_string(), Some(entry.revision));
        drop(port.broker(CHANNEL, PATIENCE, |token| Op::Put { token, bucket, key, value, revision }).await);
        return read_entry(port, shard).await;
    }
    Some(entry)
}
