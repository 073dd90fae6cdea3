//! Pulling with exact credits: one subscription receives for any number of pulls on any consumers.
//!
//! Owns the pulls under way; decides about no message. The rule it keeps: every message asked for is delivered or
//! reported as unfilled, also when the connection breaks.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use async_nats::{Client, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use governance::Timestamp;

use crate::{Error, api};

/// What a pull that lost its connection is given beyond its own expiry before it counts as ended.
const GRACE: Duration = Duration::from_secs(2);
/// How often lost pulls are looked for.
const SWEEP: Duration = Duration::from_millis(250);

/// A message that was pulled.
#[derive(Debug, Clone)]
pub struct Message {
    /// The key of its pull.
    pub key: u64,
    /// The subject it was published on.
    pub subject: async_nats::Subject,
    /// Its bytes.
    pub payload: Bytes,
    /// Where to acknowledge it.
    pub ack: async_nats::Subject,
    /// Its place in the stream.
    pub stream_sequence: u64,
    /// How often it was delivered, this time included.
    pub delivered: u64,
    /// When the broker stored it.
    pub published: Timestamp,
    /// How many more wait for this consumer.
    pub pending: u64,
}

/// Why a pull ended unfilled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Its time was up: nothing, or not enough, was there.
    Expired,
    /// The consumer does not exist, or was deleted meanwhile.
    NoConsumer,
    /// The broker refused it for another reason, or the connection was lost.
    Refused,
}

/// What comes out of the pump.
#[derive(Debug, Clone)]
pub enum Pulled {
    /// A message.
    Message(Message),
    /// A pull ended; so many messages were not delivered. A pull that was filled ends silently.
    Ended {
        /// The key of the pull.
        key: u64,
        /// Messages not delivered.
        unfilled: u32,
        /// Why.
        why: Ended,
    },
}

/// A pull under way. Messages name their consumer but not their pull, and the broker serves the pulls of one consumer in
/// turn, so that `remaining` is exact over all pulls of a consumer, not for each.
#[derive(Debug)]
struct Pull {
    id: u64,
    remaining: u32,
    lost_at: Instant,
    /// How often the client had connected when it was sent: it does not outlive its connection.
    connection: u64,
}

/// One consumer that is pulled from.
#[derive(Debug)]
struct Source {
    key: u64,
    pulls: VecDeque<Pull>,
}

impl Source {
    fn outstanding(&self) -> u32 {
        self.pulls.iter().map(|p| p.remaining).sum()
    }

    /// Takes `n` messages off the oldest pulls; those that are filled end.
    fn take(&mut self, mut n: u32) {
        while let Some(oldest) = self.pulls.front_mut() {
            let taken = oldest.remaining.min(n);
            oldest.remaining -= taken;
            n -= taken;
            if oldest.remaining > 0 {
                break;
            }
            self.pulls.pop_front();
        }
    }

    /// Ends a pull of which `unfilled` messages were not delivered, as the broker says, and gives that number back as far
    /// as it was outstanding. What the broker served from this pull and not from older ones is moved to them.
    fn end(&mut self, id: u64, unfilled: Option<u32>) -> Option<u32> {
        let at = self.pulls.iter().position(|p| p.id == id)?;
        let outstanding = self.outstanding();
        let ended = self.pulls.remove(at)?;
        let unfilled = unfilled.unwrap_or(ended.remaining).min(outstanding);
        let (left, have) = (outstanding - unfilled, self.outstanding());
        match self.pulls.back_mut() {
            Some(newest) if have < left => newest.remaining += left - have,
            Some(_) => self.take(have - left),
            // Without another pull nothing can be outstanding any more.
            None => return Some(outstanding),
        }
        Some(unfilled)
    }
}

/// Any number of pulls over one subscription.
#[derive(Debug)]
pub struct Pump {
    client: Client,
    inbox: String,
    messages: Subscriber,
    /// By `<stream>.<consumer>`, as it stands in acknowledgement subjects.
    sources: HashMap<String, Source>,
    /// The source of each pull under way, for status messages, which name the pull alone.
    pulls: HashMap<u64, String>,
    next: u64,
    lost: Vec<Pulled>,
    sweep: tokio::time::Interval,
}

impl Pump {
    /// Subscribes.
    ///
    /// # Errors
    /// When the subscription cannot be made.
    pub async fn start(client: Client) -> Result<Self, Error> {
        let inbox = client.new_inbox();
        let messages = client.subscribe(format!("{inbox}.*")).await.map_err(api("subscribe to pulls"))?;
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Ok(Self {
            client,
            inbox,
            messages,
            sources: HashMap::new(),
            pulls: HashMap::new(),
            next: 0,
            lost: Vec::new(),
            sweep,
        })
    }

    /// Asks a consumer for up to `batch` messages, to be delivered as they come until `expires` has passed.
    ///
    /// # Errors
    /// When the connection is closed for good.
    pub async fn pull(
        &mut self,
        key: u64,
        stream: &str,
        consumer: &str,
        batch: u32,
        expires: Duration,
    ) -> Result<(), Error> {
        let id = self.next;
        self.next += 1;
        let name = format!("{stream}.{consumer}");
        let source =
            self.sources.entry(name.clone()).or_insert_with(|| Source { key, pulls: VecDeque::new() });
        let (lost_at, connection) = (Instant::now() + expires + GRACE, crate::connection(&self.client));
        source.pulls.push_back(Pull { id, remaining: batch, lost_at, connection });
        self.pulls.insert(id, name);
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
        let request = format!("{{\"batch\":{batch},\"expires\":{}}}", expires.as_nanos());
        self.client
            .publish_with_reply(subject, format!("{}.{id}", self.inbox), request.into())
            .await
            .map_err(api(format!("pull from {consumer} on {stream}")))
    }

    /// Waits for what comes next. Cancellation-safe. None when the subscription has ended.
    pub async fn next(&mut self) -> Option<Pulled> {
        loop {
            if let Some(lost) = self.lost.pop() {
                return Some(lost);
            }
            // Both arms are cancellation-safe: a subscriber and an interval keep what they have not yielded.
            tokio::select! {
                message = self.messages.next() => {
                    if let Some(pulled) = self.receive(message?) {
                        return Some(pulled);
                    }
                }
                _ = self.sweep.tick() => self.find_lost(),
            }
        }
    }

    fn find_lost(&mut self) {
        let (now, connection) = (Instant::now(), crate::connection(&self.client));
        for source in self.sources.values_mut() {
            let is_lost = |p: &&Pull| p.lost_at < now || p.connection < connection;
            while let Some(pull) = source.pulls.front().filter(is_lost) {
                let id = pull.id;
                let unfilled = source.end(id, None).unwrap_or(0);
                self.lost.push(Pulled::Ended { key: source.key, unfilled, why: Ended::Refused });
            }
        }
        // Pulls that were filled have left no trace but this one.
        let sources = &self.sources;
        self.pulls.retain(|id, name| sources.get(name).is_some_and(|s| s.pulls.iter().any(|p| p.id == *id)));
    }

    fn receive(&mut self, message: async_nats::Message) -> Option<Pulled> {
        if let Some(status) = message.status {
            let id: u64 = message.subject.rsplit('.').next()?.parse().ok()?;
            let unfilled = message
                .headers
                .as_ref()
                .and_then(|h| h.get("Nats-Pending-Messages"))
                .and_then(|v| v.as_str().parse().ok());
            return self.end(
                id,
                status.as_u16(),
                message.description.as_deref().unwrap_or_default(),
                unfilled,
            );
        }
        let ack = message.reply?;
        let origin = Origin::parse(&ack)?;
        // A pull that was given up as lost may still be served: its messages count all the same.
        let source = self.sources.get_mut(origin.consumer)?;
        source.take(1);
        Some(Pulled::Message(Message {
            key: source.key,
            subject: message.subject,
            payload: message.payload,
            stream_sequence: origin.stream_sequence,
            delivered: origin.delivered,
            published: origin.published,
            pending: origin.pending,
            ack: ack.clone(),
        }))
    }

    fn end(&mut self, id: u64, status: u16, description: &str, unfilled: Option<u32>) -> Option<Pulled> {
        // 100 is an idle heartbeat; it ends nothing.
        if status == 100 {
            return None;
        }
        let source = self.sources.get_mut(&self.pulls.remove(&id)?)?;
        let unfilled = source.end(id, unfilled)?;
        let why = match status {
            404 | 408 => Ended::Expired,
            503 => Ended::NoConsumer,
            409 if description.to_ascii_lowercase().contains("consumer") => Ended::NoConsumer,
            _ => Ended::Refused,
        };
        Some(Pulled::Ended { key: source.key, unfilled, why })
    }
}

/// What the acknowledgement subject of a message tells about it.
struct Origin<'a> {
    /// `<stream>.<consumer>`.
    consumer: &'a str,
    stream_sequence: u64,
    delivered: u64,
    published: Timestamp,
    pending: u64,
}

impl<'a> Origin<'a> {
    /// Reads both forms: `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>`, and the
    /// second version with domain and account behind `ACK`.
    fn parse(ack: &'a str) -> Option<Self> {
        let tokens = ack.split('.').count();
        let skip = match tokens {
            9 => 2,
            n if n >= 11 => 4,
            _ => return None,
        };
        let start = ack.match_indices('.').nth(skip - 1)?.0 + 1;
        let end = ack.match_indices('.').nth(skip + 1)?.0;
        let mut numbers = ack[end + 1..].split('.').map(|t| t.parse::<u64>().ok());
        let numbers =
            [numbers.next()??, numbers.next()??, numbers.next()??, numbers.next()??, numbers.next()??];
        Some(Self {
            consumer: &ack[start..end],
            delivered: numbers[0],
            stream_sequence: numbers[1],
            published: Timestamp(numbers[3]),
            pending: numbers[4],
        })
    }
}
