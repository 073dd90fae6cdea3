//! Admission: whether the head of a queue may go now, and what follows if it does.
//!
//! Two steps. `check` looks at everything and changes nothing: breaker, order key, room and rate of the target, then the quota
//! of the source, which comes last since it is the only thing that others of the same source compete for. `admit` then takes all
//! of it at once.
//!
//! The rule it keeps: nothing is taken for a dispatch that does not go.

use std::sync::Arc;

use crate::effect::{Admission, Effect, Ending};
use crate::facts::Waiting;
use crate::governor::Governor;
use crate::lanes::{HeldRun, Key, QueueIx};
use crate::mirror::Stand;
use crate::names::{AgentIx, CapabilityIx, DispatchId};
use crate::open::OpenRun;
use crate::registry::FallbackIx;
use crate::reports::Urgency;
use crate::time::Timestamp;
use crate::words::{Kind, Outcome, Priority, Reason};

/// What can be done with the head of a queue now.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// So many of it may go to this target.
    Admit(Permit),
    /// It ends here.
    End { target: Option<AgentIx>, outcome: Outcome, reason: Reason, fallback: Option<Arc<str>> },
    /// Its target does not take it now.
    Wait(Waiting),
    /// Its source is over quota until then.
    OverQuota(Timestamp),
    /// An earlier dispatch with its order key is open at this target.
    KeyBusy(AgentIx),
    /// It could go as the probe of this target, whose home is asked first.
    AskProbe(AgentIx),
}

/// The proof that everything was checked; spent by `admit`.
#[derive(Debug)]
pub(crate) struct Permit {
    target: AgentIx,
    count: u16,
    going: Going,
}

/// As what a dispatch goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Going {
    Plain,
    Probe,
    /// To an agent that stands in for its target.
    Fallback,
    /// As the probe of a target of another home, if that home grants it. What follows on the grant, the hard rate, is not asked
    /// for before.
    AskingProbe,
}

impl Governor {
    /// Looks at the head of a queue, of which at most `wanted` may go.
    pub(crate) fn check(&self, now: Timestamp, queue: QueueIx, run: &HeldRun, wanted: u32) -> Verdict {
        let wanted = wanted.min(u32::from(run.count));
        match self.lanes.queue(queue).key {
            Key::Agent(target) => self.check_target(now, queue, target, run, wanted),
            Key::Capability(capability) => match self.route(now, queue, capability) {
                Some(target) => self.check_target(now, queue, target, run, wanted),
                None => rejected(None, Reason::NoProvider),
            },
        }
    }

    /// The provider for a dispatch that names only a capability: passing and with room, then least loaded. Where there is
    /// none, the one whose refusal says most: due for a probe, else passing but full, else tripped.
    fn route(&self, now: Timestamp, queue: QueueIx, capability: CapabilityIx) -> Option<AgentIx> {
        let (source, class) =
            (self.lanes.queue(queue).lane.source, self.lanes.queue(queue).effective_class());
        let providers = self.registry.providers(capability).iter().copied();
        let permitted = providers.filter(|target| self.registry.declares(source, *target, capability));
        permitted.min_by(|a, b| {
            let rank = |target: AgentIx| {
                let free = self.room_at(now, target, class, 1).is_ok();
                match self.targets.at(target).stand(now, queue) {
                    Stand::Passes if free => 0,
                    Stand::MayProbe | Stand::MayAsk if free => 1,
                    Stand::Passes => 2,
                    Stand::MayProbe | Stand::MayAsk | Stand::Asks(_) | Stand::Bars(_) => 3,
                }
            };
            rank(*a).cmp(&rank(*b)).then_with(|| self.load_order(*a, *b))
        })
    }

    /// Orders targets by open dispatches for each slot; those without an instance come last.
    fn load_order(&self, a: AgentIx, b: AgentIx) -> std::cmp::Ordering {
        let load = |target| {
            let target = self.targets.at(target);
            (u64::from(target.in_flight_total()), u64::from(target.slots))
        };
        let ((open_a, slots_a), (open_b, slots_b)) = (load(a), load(b));
        let dead = (slots_a == 0).cmp(&(slots_b == 0));
        dead.then_with(|| (open_a * slots_b.max(1)).cmp(&(open_b * slots_a.max(1))))
    }

    fn check_target(
        &self,
        now: Timestamp,
        queue: QueueIx,
        target: AgentIx,
        run: &HeldRun,
        wanted: u32,
    ) -> Verdict {
        if !self.registry.is_registered(target) {
            return rejected(Some(target), Reason::UnknownTarget);
        }
        let awaits =
            |until| Verdict::Wait(Waiting { reason: Reason::AwaitsRecovery, target: Some(target), until });
        match self.targets.at(target).stand(now, queue) {
            Stand::Passes => self.check_room(now, queue, run, wanted, Permit::new(target, Going::Plain)),
            Stand::MayProbe => self.check_room(now, queue, run, 1, Permit::new(target, Going::Probe)),
            Stand::MayAsk => {
                let could = self.check_room(now, queue, run, 1, Permit::new(target, Going::AskingProbe));
                if let Verdict::Admit(_) = could { Verdict::AskProbe(target) } else { could }
            }
            Stand::Asks(until) => awaits(Some(until)),
            Stand::Bars(until) if run.kind == Kind::Event => awaits(until),
            Stand::Bars(_) => self.stand_in(now, queue, target, run, wanted),
        }
    }

    /// The answer in the place of a target that takes nothing: its fallback, or a typed error.
    fn stand_in(
        &self,
        now: Timestamp,
        queue: QueueIx,
        target: AgentIx,
        run: &HeldRun,
        wanted: u32,
    ) -> Verdict {
        let broken = |reason, fallback| Verdict::End {
            target: Some(target),
            outcome: Outcome::CircuitBroken,
            reason,
            fallback,
        };
        match run.capability.and_then(|capability| self.registry.fallback(target, capability)) {
            Some(FallbackIx::Static(text)) => broken(Reason::FallbackStatic, Some(Arc::clone(text))),
            Some(FallbackIx::Agent(other)) if self.may_stand_in(*other, run.capability) => {
                self.check_room(now, queue, run, wanted, Permit::new(*other, Going::Fallback))
            }
            Some(FallbackIx::Agent(_)) | None => broken(Reason::BreakerTripped, None),
        }
    }

    /// Whether a fallback agent can take a dispatch; there is no fallback of a fallback.
    fn may_stand_in(&self, other: AgentIx, capability: Option<CapabilityIx>) -> bool {
        self.registry.is_registered(other)
            && capability.is_some_and(|capability| self.registry.offers(other, capability))
            && self.targets.at(other).passes()
    }

    fn check_room(
        &self,
        now: Timestamp,
        queue: QueueIx,
        run: &HeldRun,
        wanted: u32,
        permit: Permit,
    ) -> Verdict {
        let target = permit.target;
        let (source, class) =
            (self.lanes.queue(queue).lane.source, self.lanes.queue(queue).effective_class());
        let mut wanted = wanted;
        if run.order_key != 0 {
            let holder = run.handed == Some(target);
            let busy = self.order_keys.is_busy(source, target, run.order_key, holder);
            if busy {
                return Verdict::KeyBusy(target);
            }
            wanted = 1;
        }
        let room = match permit.going {
            Going::AskingProbe => self.free_at(target, class, wanted),
            Going::Plain | Going::Probe | Going::Fallback => self.room_at(now, target, class, wanted),
        };
        let room = match room {
            Ok(room) => room,
            Err(waiting) => return Verdict::Wait(waiting),
        };
        let quota = &self.source(source).quota;
        let count = quota.check(now, room);
        if count == 0 {
            return Verdict::OverQuota(quota.next());
        }
        let count = u16::try_from(count).expect("a run has at most 65,535 dispatches");
        Verdict::Admit(Permit { count, ..permit })
    }

    /// How many a target takes in a class now, at most `wanted`, and why it takes none.
    fn room_at(&self, now: Timestamp, target: AgentIx, class: Priority, wanted: u32) -> Result<u32, Waiting> {
        let room = self.free_at(target, class, wanted)?;
        let wait = |until| Waiting { reason: Reason::TargetRate, target: Some(target), until };
        self.targets.at(target).rate_room(now, room).map_err(wait)
    }

    /// The same, its hard rate apart.
    fn free_at(&self, target: AgentIx, class: Priority, wanted: u32) -> Result<u32, Waiting> {
        let state = self.targets.at(target);
        let wait = |reason| Waiting { reason, target: Some(target), until: None };
        if state.paused || state.paused_by_operator {
            return Err(wait(Reason::Paused));
        }
        if state.inbox_full {
            return Err(wait(Reason::InboxFull));
        }
        let room = state.room(&self.policy.in_flight, class).min(wanted);
        if room == 0 {
            let reason = if state.instances() == 0 { Reason::NoInstance } else { Reason::InboxFull };
            return Err(wait(reason));
        }
        Ok(room)
    }

    /// Lets the first dispatches of a queue's head go.
    pub(crate) fn admit(
        &mut self,
        now: Timestamp,
        queue: QueueIx,
        permit: Permit,
        effects: &mut Vec<Effect>,
    ) {
        let Permit { target, count, going } = permit;
        let probe = going == Going::Probe;
        let class = self.lanes.queue(queue).effective_class();
        let lane = self.lanes.queue(queue).lane;
        let run = *self.lanes.queue(queue).runs.front().expect("a permit is for the head of a queue");
        let reason = self.admission_reason(queue, &run, &permit);
        self.source_mut(lane.source).quota.secure(now, u32::from(count));
        let state = self.targets.at_mut(target);
        let pack_max = state.pack_max;
        state.in_flight[class as usize] += u32::from(count);
        state.secure_rate(now, u32::from(count));
        if run.order_key != 0 {
            self.take_key(queue, target, &run);
        }
        self.note_admitted(now, queue, &run, class, count);
        let held = self.lanes.held(run.held);
        let (message, instance, sequence) = (held.message, held.instance, held.sequence);
        let open = self.open.insert(OpenRun {
            source: lane.source,
            target,
            capability: run.capability,
            kind: run.kind,
            class,
            serves_person: run.serves_person,
            probe: probe.then(|| self.probe_until(now, target)),
            stands_in: going == Going::Fallback,
            first: DispatchId { instance, sequence, slot: run.first, copy: run.copy },
            count,
            deadline: run.deadline,
            deadline_max: run.deadline_max,
            admitted: now,
            order_key: run.order_key,
        });
        effects.push(Effect::Admit(Admission {
            message,
            first: run.first,
            count,
            copy: run.copy,
            source: lane.source,
            target,
            capability: run.capability,
            kind: run.kind,
            class,
            serves_person: run.serves_person,
            reason,
            deadline: run.deadline,
            open,
            pack_max,
        }));
        if probe {
            self.send_probe(now, target, effects);
        }
        self.report_soon(now, target, Urgency::Soon);
        self.take_from_head(now, queue, count, effects);
        self.leave_key_elsewhere(lane.source, target, &run);
    }

    /// The first dispatch of the head goes with the order key; what is left of the run holds the key on.
    fn take_key(&mut self, queue: QueueIx, target: AgentIx, run: &HeldRun) {
        let source = self.lanes.queue(queue).lane.source;
        self.order_keys.open(source, target, run.order_key);
        let (held, holds) = (run.handed == Some(target), run.count > 1);
        if held && !holds {
            self.order_keys.release(source, target, run.order_key);
        } else if holds && !held {
            self.order_keys.hold(source, target, run.order_key);
        }
        if let Some(head) = self.lanes.queue_mut(queue).runs.front_mut() {
            head.handed = Some(target);
        }
    }

    /// A run that held its order key at one target and turned to another leaves the first to those who wait there.
    pub(crate) fn leave_key_elsewhere(&mut self, source: AgentIx, target: AgentIx, run: &HeldRun) {
        if let Some(other) = run.handed.filter(|other| *other != target) {
            self.order_keys.release(source, other, run.order_key);
            self.hand_on(source, other, run.order_key);
        }
    }

    /// The strongest of the reasons that apply.
    fn admission_reason(&self, queue: QueueIx, run: &HeldRun, permit: &Permit) -> Reason {
        let queue = self.lanes.queue(queue);
        if permit.going == Going::Probe {
            Reason::Probe
        } else if permit.going == Going::Fallback {
            Reason::FallbackAgent
        } else if run.copy != 0 {
            Reason::TopicCopy
        } else if run.demoted {
            Reason::DemotedFromP0
        } else if matches!(queue.key, Key::Capability(_)) {
            Reason::RoutedByCapability
        } else if queue.raised {
            Reason::AgedUp
        } else {
            Reason::Ok
        }
    }

    fn note_admitted(&mut self, now: Timestamp, queue: QueueIx, run: &HeldRun, class: Priority, count: u16) {
        if class == Priority::P0 {
            let since = run.since.max(self.lanes.queue(queue).released);
            self.deferral.on_p0(now, now.since(since));
        }
        let p3 = class == Priority::P3;
        self.deferral.on_admitted(now, &self.policy.deferral, p3, u32::from(count));
    }

    /// Takes decided dispatches out of the head of a queue.
    fn take_from_head(&mut self, now: Timestamp, queue: QueueIx, count: u16, effects: &mut Vec<Effect>) {
        let head = self
            .lanes
            .queue_mut(queue)
            .runs
            .front_mut()
            .expect("the head is there until all of it is decided");
        let before = *head;
        head.first = head.first.wrapping_add(count);
        head.count -= count;
        if head.count == 0 {
            self.lanes.queue_mut(queue).runs.pop_front();
        }
        self.settle(now, queue, &before, count, effects);
    }

    /// Ends the head of a queue without a target.
    pub(crate) fn end_head(&mut self, now: Timestamp, queue: QueueIx, end: End, effects: &mut Vec<Effect>) {
        if let Some(run) = self.lanes.queue_mut(queue).runs.pop_front() {
            self.end_run(now, queue, &run, end, effects);
        }
    }

    /// Ends a run that was taken out of its queue.
    pub(crate) fn end_run(
        &mut self,
        now: Timestamp,
        queue: QueueIx,
        run: &HeldRun,
        end: End,
        effects: &mut Vec<Effect>,
    ) {
        let named = self.lanes.queue(queue);
        let target = end.target.or(match named.key {
            Key::Agent(target) => Some(target),
            Key::Capability(_) => None,
        });
        let (source, class) = (named.lane.source, named.effective_class());
        effects.push(Effect::End(Ending {
            message: self.lanes.held(run.held).message,
            first: run.first,
            count: run.count,
            copy: run.copy,
            source,
            target,
            capability: run.capability,
            kind: run.kind,
            class,
            outcome: end.outcome,
            reason: end.reason,
            fallback: end.fallback,
        }));
        if let Some(target) = run.handed {
            self.order_keys.release(source, target, run.order_key);
            self.hand_on(source, target, run.order_key);
        }
        self.settle(now, queue, run, run.count, effects);
    }

    /// The books of the first `count` dispatches of a run, which were decided.
    fn settle(
        &mut self,
        now: Timestamp,
        queue: QueueIx,
        run: &HeldRun,
        count: u16,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(fan) = run.fan {
            self.settle_fan(queue, run, fan, count, effects);
        }
        let source = self.lanes.queue(queue).lane.source;
        self.on_held_less(now, source, u32::from(count));
        if let Some(message) = self.lanes.decided(queue, run, count) {
            self.on_message_decided(now, &message);
        }
    }

    /// When all copies of an event are decided, the event itself has ended.
    fn settle_fan(&mut self, queue: QueueIx, run: &HeldRun, fan: u32, count: u16, effects: &mut Vec<Effect>) {
        let state = self.lanes.fans.at_mut(fan);
        state.left -= u32::from(count);
        if state.left > 0 {
            return;
        }
        let done = self.lanes.fans.remove(fan);
        effects.push(Effect::End(Ending {
            message: self.lanes.held(done.held).message,
            first: done.first,
            count: done.count,
            copy: 0,
            source: self.lanes.queue(queue).lane.source,
            target: None,
            capability: None,
            kind: run.kind,
            class: done.class,
            outcome: Outcome::Success,
            reason: Reason::Ok,
            fallback: None,
        }));
    }
}

/// How a held run ends.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub target: Option<AgentIx>,
    pub outcome: Outcome,
    pub reason: Reason,
    pub fallback: Option<Arc<str>>,
}

impl End {
    pub(crate) const fn plain(outcome: Outcome, reason: Reason) -> Self {
        Self { target: None, outcome, reason, fallback: None }
    }
}

impl Permit {
    const fn new(target: AgentIx, going: Going) -> Self {
        Self { target, count: 0, going }
    }

    pub(crate) const fn count(&self) -> u16 {
        self.count
    }
}

const fn rejected(target: Option<AgentIx>, reason: Reason) -> Verdict {
    Verdict::End { target, outcome: Outcome::Rejected, reason, fallback: None }
}
