//! Hosting: how inputs reach a home, and what becomes of what it wants done.

use std::collections::{BTreeMap, VecDeque};

use governance::Priority;
use home::ownership::Entry;
use home::takeover::Rest;
use home::{Delivered, Ended, Home, Input, Over, Setup, Side, Source};
use protocol::control::Owner;
use protocol::streams;

use super::port::Place;
use super::{DRAIN_MAX, Hosted, Left, Replica, Serving, taking, work};
use crate::broker::{Delivery, Op};
use crate::oracle::Sight;
use crate::process::Ctx;

/// Homes of shards without agents are told the time once in so many ticks.
const IDLE_TICKS: u64 = 25;

#[derive(Debug)]
struct Pulling {
    place: Place,
    source: Source,
    /// Messages asked for and not delivered.
    outstanding: u32,
}

/// The pulls under way: what each key stands for.
#[derive(Debug, Default)]
pub(super) struct Pulls {
    by_key: BTreeMap<u64, Pulling>,
    keys: BTreeMap<(Place, Source), u64>,
    last: u64,
}

impl Pulls {
    fn key(&mut self, place: Place, source: Source, messages: u32) -> u64 {
        let key = *self.keys.entry((place, source)).or_insert_with(|| {
            self.last += 1;
            self.by_key.insert(self.last, Pulling { place, source, outstanding: 0 });
            self.last
        });
        if let Some(pulling) = self.by_key.get_mut(&key) {
            pulling.outstanding += messages;
        }
        key
    }

    fn drop_of(&mut self, place: Place) {
        self.by_key.retain(|_, p| p.place != place);
        self.keys.retain(|(of, _), _| *of != place);
    }
}

impl Replica {
    /// A shard is taken over: its home begins.
    pub(super) fn move_in(
        &mut self,
        ctx: &mut Ctx<'_>,
        shard: u8,
        (setup, rest): (Setup, Rest),
        revision: u64,
    ) {
        let epoch = setup.epoch;
        let mut home = Home::new(setup);
        home.begin(ctx.now);
        let serving = Serving {
            home,
            epoch,
            draining: None,
            levels: VecDeque::new(),
            storing: false,
            connections: self.connections,
        };
        let missed = match self.hosted.insert(shard, Hosted::Home(Box::new(serving))) {
            Some(Hosted::Taking(missed)) => missed,
            Some(Hosted::Home(_) | Hosted::Leaving) | None => Vec::new(),
        };
        if let Some(ownership) = &mut self.ownership {
            let entry = Entry { replica: self.name.clone(), epoch, revision, ready: false };
            ownership.on_home(shard, entry);
        }
        ctx.saw(Sight::Home { shard, epoch });
        // Whoever gave the shard away waits for this word before it gives away the next.
        let owner = Owner { replica: self.name.clone(), epoch, ready: true };
        let value = serde_json::to_vec(&owner).expect("plain data serialises").into();
        let (bucket, key) = (streams::OWNERS_BUCKET, shard.to_string());
        ctx.broker(3, Op::Put { token: self.port.draw(), bucket, key, value, revision: Some(revision) });
        let place = (shard, epoch);
        for input in missed {
            self.give(ctx, place, input);
        }
        self.drive(ctx, shard);
        let servers =
            taking::Servers { port: self.port.clone(), registrations: Vec::new(), breakers: Vec::new() };
        self.start(ctx, place, async move {
            Left::Input(
                place,
                match rest.take(&servers).await {
                    Ok(waiting) => Input::BulkReady { waiting },
                    Err(e) => Input::Deposed(e.to_string()),
                },
            )
        });
    }

    /// Gives an input to a home, where it is still here.
    pub(super) fn give(&mut self, ctx: &mut Ctx<'_>, place: Place, input: Input) {
        match self.hosted.get_mut(&place.0) {
            Some(Hosted::Home(serving)) if serving.epoch == place.1 => {
                if let Err(over) = serving.home.take(ctx.now, input) {
                    return self.end(ctx, place, &over);
                }
                self.drive(ctx, place.0);
            }
            Some(Hosted::Home(_) | Hosted::Taking(_) | Hosted::Leaving) | None => {}
        }
    }

    /// Gives an input to whichever home of a shard is here, or will be.
    pub(super) fn give_shard(&mut self, ctx: &mut Ctx<'_>, shard: u8, input: Input) {
        match self.hosted.get_mut(&shard) {
            Some(Hosted::Home(serving)) => {
                let place = (shard, serving.epoch);
                self.give(ctx, place, input);
            }
            Some(Hosted::Taking(missed)) => missed.push(input),
            Some(Hosted::Leaving) | None => {}
        }
    }

    /// Gives an input to all homes.
    pub(super) fn give_all(&mut self, ctx: &mut Ctx<'_>, input: impl Fn() -> Input) {
        let shards: Vec<u8> = self.hosted.keys().copied().collect();
        shards.into_iter().for_each(|shard| self.give_shard(ctx, shard, input()));
    }

    pub(super) fn tick(&mut self, ctx: &mut Ctx<'_>) {
        let shards: Vec<u8> = self.hosted.keys().copied().collect();
        for shard in shards {
            let (connected, connections, ticks) = (self.connected, self.connections, self.ticks);
            let Some(Hosted::Home(serving)) = self.hosted.get_mut(&shard) else { continue };
            if serving.home.is_empty() && !ticks.is_multiple_of(IDLE_TICKS) && serving.draining.is_none() {
                continue;
            }
            // A connection that was lost and is there again between two looks has lost what came meanwhile all the same.
            let same = std::mem::replace(&mut serving.connections, connections) == connections;
            let mut told = [connected && same, connected].into_iter();
            let over =
                told.find_map(|connected| serving.home.take(ctx.now, Input::Broker { connected }).err());
            if let Some(over) = over {
                let place = (shard, serving.epoch);
                self.end(ctx, place, &over);
                continue;
            }
            serving.home.tick(ctx.now);
            self.drive(ctx, shard);
        }
    }

    /// Lets a home decide and performs what it wants.
    fn drive(&mut self, ctx: &mut Ctx<'_>, shard: u8) {
        let Some(Hosted::Home(serving)) = self.hosted.get_mut(&shard) else { return };
        let place = (shard, serving.epoch);
        if serving.draining.is_none() {
            serving.home.turn(ctx.now);
        }
        serving.home.flush(ctx.now);
        let out = std::mem::take(serving.home.out());
        for pull in out.pulls {
            let key = self.pulls.key(place, pull.source, pull.messages);
            let channel = usize::from(pull.priority != Priority::P0);
            let (stream, consumer, messages) = (pull.stream, pull.consumer, pull.messages);
            ctx.broker(channel, Op::Pull { key, stream, consumer, messages });
        }
        for write in out.writes {
            let task = work::write(self.port.clone(), shard, write);
            self.start(ctx, place, async move {
                task.await.map_or(Left::Nothing, |input| Left::Input(place, input))
            });
        }
        for publish in out.publishes {
            let channel = usize::from(publish.class != Priority::P0);
            let task = work::publish(self.port.clone(), place, channel, publish);
            self.start(ctx, place, async move { Left::Input(place, task.await) });
        }
        for reply in out.replies {
            let task = work::reply(self.port.clone(), reply);
            self.start(ctx, place, async move { Left::Input(place, task.await) });
        }
        for side in out.side {
            self.on_the_side(ctx, place, side);
        }
    }

    pub(super) fn start(
        &mut self,
        ctx: &mut Ctx<'_>,
        place: Place,
        task: impl Future<Output = Left> + Send + 'static,
    ) {
        let left = self.tasks.start(&self.port, place, Box::pin(task));
        self.leave(ctx, left);
    }

    fn on_the_side(&mut self, ctx: &mut Ctx<'_>, place: Place, side: Side) {
        match side {
            Side::Tell { subject, payload } => ctx.broker(2, Op::Tell { subject, payload }),
            Side::Ack(ack) => ctx.broker(2, Op::Ack { ack }),
            Side::Nak { ack, delay } => ctx.broker(2, Op::Nak { ack, delay }),
            Side::DeadLetter { letter, id, inbox_ack, done } => {
                let task = work::dead_letter(self.port.clone(), *letter, id, inbox_ack, done);
                self.start(ctx, place, async move { Left::Input(place, task.await) });
            }
            Side::StoreBreaker { agent, breaker } => {
                let value = serde_json::to_vec(&breaker).expect("plain data serialises").into();
                self.store(ctx, place, (streams::BREAKERS_BUCKET, agent, breaker.epoch, value));
            }
            Side::StoreScale { agent, scale } => {
                let value = serde_json::to_vec(&scale).expect("plain data serialises").into();
                self.store(ctx, place, (streams::SCALE_BUCKET, agent, scale.epoch, value));
            }
            Side::StorePause { .. } | Side::Letter { .. } => {}
            Side::AskGrant { target, name, ask, asked } => {
                let task = work::ask_grant(self.port.clone(), target, name, ask, asked);
                self.start(ctx, place, async move { Left::Input(place, task.await) });
            }
        }
    }

    fn store(
        &mut self,
        ctx: &mut Ctx<'_>,
        place: Place,
        level: (&'static str, std::sync::Arc<str>, u64, bytes::Bytes),
    ) {
        if let Some(Hosted::Home(serving)) = self.hosted.get_mut(&place.0) {
            serving.levels.push_back(level);
        }
        self.next_level(ctx, place, false);
    }

    /// Stores the next level of a home, one after the other, so that the last one stays.
    pub(super) fn next_level(&mut self, ctx: &mut Ctx<'_>, place: Place, stored: bool) {
        let Some(Hosted::Home(serving)) = self.hosted.get_mut(&place.0) else { return };
        if serving.epoch != place.1 || (serving.storing && !stored) {
            return;
        }
        let next = serving.levels.pop_front();
        serving.storing = next.is_some();
        let Some((bucket, agent, epoch, value)) = next else { return };
        let task = work::store_level(self.port.clone(), bucket, agent, epoch, value);
        self.start(ctx, place, async move {
            task.await;
            Left::Level(place)
        });
    }

    pub(super) fn on_message(&mut self, ctx: &mut Ctx<'_>, key: u64, message: Delivery) {
        // Of a home that has ended.
        let Some(pulling) = self.pulls.by_key.get_mut(&key) else { return };
        pulling.outstanding = pulling.outstanding.saturating_sub(1);
        let (place, source) = (pulling.place, pulling.source);
        let delivered = Delivered {
            subject: message.subject,
            payload: message.payload,
            ack: message.ack,
            stream_sequence: message.sequence,
            published: message.stored,
            pending: message.pending,
        };
        self.give(ctx, place, Input::Message(source, delivered));
    }

    pub(super) fn on_pull_ended(&mut self, ctx: &mut Ctx<'_>, key: u64, unfilled: u32, expired: bool) {
        let Some(pulling) = self.pulls.by_key.get_mut(&key) else { return };
        let unfilled = unfilled.min(pulling.outstanding);
        pulling.outstanding -= unfilled;
        let (place, source) = (pulling.place, pulling.source);
        let why = if expired { Ended::Expired } else { Ended::Refused };
        self.give(ctx, place, Input::PullEnded(source, unfilled, why));
    }

    /// The connection is new: no pull of the former one is served any more.
    pub(super) fn end_lost_pulls(&mut self, ctx: &mut Ctx<'_>) {
        let lost: Vec<(u64, u32)> = self
            .pulls
            .by_key
            .iter()
            .filter(|(_, p)| p.outstanding > 0)
            .map(|(k, p)| (*k, p.outstanding))
            .collect();
        for (key, outstanding) in lost {
            self.on_pull_ended(ctx, key, outstanding, false);
        }
    }

    /// Gives back the shards whose homes have drained.
    pub(super) fn end_drained(&mut self, ctx: &mut Ctx<'_>) {
        let done: Vec<Place> = self
            .hosted
            .iter()
            .filter_map(|(shard, hosted)| match hosted {
                Hosted::Home(s) => {
                    let waited = ctx.now.since(s.draining?);
                    let over = s.home.is_settled() || waited > DRAIN_MAX;
                    over.then_some((*shard, s.epoch))
                }
                Hosted::Taking(_) | Hosted::Leaving => None,
            })
            .collect();
        for place in done {
            let give_back = taking::give_back(self.port.clone(), place.0, self.name.clone(), place.1);
            self.forget(ctx, place);
            self.hosted.insert(place.0, Hosted::Leaving);
            self.start(ctx, (place.0, 0), async move { Left::Ended(place.0, give_back.await) });
        }
    }

    /// A home ends by itself: it was deposed, or cut off from the broker.
    fn end(&mut self, ctx: &mut Ctx<'_>, place: Place, over: &Over) {
        ctx.saw(Sight::Deposed { shard: place.0, epoch: place.1, why: over.to_string() });
        self.forget(ctx, place);
        self.leave_shard(ctx, place.0);
    }

    fn forget(&mut self, ctx: &mut Ctx<'_>, place: Place) {
        self.hosted.remove(&place.0);
        self.tasks.drop_of(place);
        self.pulls.drop_of(place);
        ctx.saw(Sight::HomeEnded { shard: place.0, epoch: place.1 });
    }
}
