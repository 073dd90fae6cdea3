//! The door: a lane message arrives. Owns the refusals that need no waiting, and turns runs into held runs.
//!
//! The rule it keeps: a refusal happens here, at once; it uses no quota and holds up nothing behind it.

use std::time::Duration;

use crate::effect::{Effect, Ending};
use crate::event::{Arrival, Destination, Lane, Lineage, Run};
use crate::governor::Governor;
use crate::lanes::{Fan, Held, HeldIx, HeldRun, Key};
use crate::names::{AgentIx, CapabilityIx, DispatchId, InstanceId, TopicIx};
use crate::time::Timestamp;
use crate::words::{Kind, Outcome, Priority, Reason};

/// What a run may do, after the door has looked at it.
struct Passed {
    class: Priority,
    serves_person: bool,
    demoted: bool,
    deadline: Timestamp,
    deadline_max: Timestamp,
}

impl Governor {
    /// A lane message arrived.
    pub(crate) fn on_arrived(&mut self, now: Timestamp, arrival: &Arrival<'_>, effects: &mut Vec<Effect>) {
        self.lanes.returned(arrival.lane, 1);
        let known = self.seen.contains(arrival.instance, arrival.sequence);
        if !arrival.resumed && known || self.lanes.find(arrival.instance, arrival.sequence).is_some() {
            effects.push(Effect::Duplicate { message: arrival.message });
            return;
        }
        let held = self.lanes.hold(Held {
            message: arrival.message,
            lane: arrival.lane,
            instance: arrival.instance,
            sequence: arrival.sequence,
            accepted: arrival.accepted,
            left: 0,
        });
        for run in arrival.runs {
            self.on_run(now, arrival, held, run, effects);
        }
        if !self.decided_copies.is_empty() {
            self.forget_copies(arrival.instance, arrival.sequence);
        }
        if self.lanes.held(held).left == 0 {
            let message = self.lanes.release_decided(held);
            self.on_message_decided(now, &message);
        }
    }

    fn on_run(
        &mut self,
        now: Timestamp,
        arrival: &Arrival<'_>,
        held: HeldIx,
        run: &Run,
        effects: &mut Vec<Effect>,
    ) {
        let lane = arrival.lane;
        if let Err(reason) = self.check_run(lane.source, run) {
            effects.push(refusal(arrival, run, Outcome::Rejected, reason));
            return;
        }
        let Some(run) = self.without_duplicates(now, arrival, run, effects) else { return };
        let passed = self.pass(lane, arrival.accepted, &run);
        if passed.demoted {
            let (message, source) = (arrival.message, lane.source);
            effects.push(Effect::Demoted { message, first: run.first, count: run.count, source });
        }
        let since = self.waits_since(now, lane.source, arrival.accepted);
        let template = HeldRun {
            held,
            first: run.first,
            count: run.count,
            counts: false,
            copy: 0,
            fan: None,
            kind: run.kind,
            capability: None,
            order_key: run.order_key,
            handed: None,
            deadline: passed.deadline,
            deadline_max: passed.deadline_max,
            since,
            serves_person: passed.serves_person,
            demoted: passed.demoted,
        };
        match run.to {
            Destination::Agent(target, capability) => {
                let held_run = HeldRun { capability: Some(capability), ..template };
                self.enqueue(now, lane, Key::Agent(target), passed.class, held_run);
            }
            Destination::Capability(capability) => {
                let held_run = HeldRun { capability: Some(capability), ..template };
                self.enqueue(now, lane, Key::Capability(capability), passed.class, held_run);
            }
            Destination::Topic(topic) => {
                self.fan_out(now, arrival, &run, topic, passed.class, template, effects)
            }
            Destination::Nowhere(_) => unreachable!("refused above"),
        }
    }

    /// The column of refusals, from the cheapest and most severe on; nothing changes.
    fn check_run(&self, source: AgentIx, run: &Run) -> Result<(), Reason> {
        if !self.registry.is_registered(source) {
            return Err(Reason::UnknownSource);
        }
        if let Lineage::Child { hops, repeats, .. } = run.lineage {
            if hops > self.policy.lineage.hops_max {
                return Err(Reason::TooManyHops);
            }
            if repeats >= self.policy.lineage.loop_at {
                return Err(Reason::Loop);
            }
        }
        if run.lineage == Lineage::Invalid {
            return Err(Reason::InvalidLineage);
        }
        if run.count == 0 || matches!(run.kind, Kind::Response | Kind::Error) {
            return Err(Reason::Malformed);
        }
        match run.to {
            Destination::Nowhere(reason) => Err(reason),
            Destination::Agent(target, capability) => self.check_call(source, target, capability),
            Destination::Capability(capability) => self.check_capability(source, capability),
            Destination::Topic(_) if run.kind == Kind::Event => Ok(()),
            Destination::Topic(_) => Err(Reason::Malformed),
        }
    }

    fn check_call(&self, source: AgentIx, target: AgentIx, capability: CapabilityIx) -> Result<(), Reason> {
        if !self.registry.is_registered(target) {
            return Err(Reason::UnknownTarget);
        }
        if !self.registry.offers(target, capability) {
            return Err(Reason::UnknownCapability);
        }
        if !self.registry.declares(source, target, capability) {
            return Err(Reason::UndeclaredDependency);
        }
        Ok(())
    }

    fn check_capability(&self, source: AgentIx, capability: CapabilityIx) -> Result<(), Reason> {
        let providers = self.registry.providers(capability);
        if providers.is_empty() {
            return Err(Reason::NoProvider);
        }
        if !providers.iter().any(|target| self.registry.declares(source, *target, capability)) {
            return Err(Reason::UndeclaredDependency);
        }
        Ok(())
    }

    /// Refuses what carries a key that is taken. Of several dispatches that share a key the first may go.
    fn without_duplicates(
        &mut self,
        now: Timestamp,
        arrival: &Arrival<'_>,
        run: &Run,
        effects: &mut Vec<Effect>,
    ) -> Option<Run> {
        if run.idempotency_key == 0 {
            return Some(*run);
        }
        let id =
            DispatchId { instance: arrival.instance, sequence: arrival.sequence, slot: run.first, copy: 0 };
        let (rules, source) = (&self.policy.idempotency, arrival.lane.source);
        if self.idempotency.is_taken(now, rules, source, run.idempotency_key, id) {
            effects.push(refusal(arrival, run, Outcome::Rejected, Reason::DuplicateKey));
            return None;
        }
        if run.count > 1 {
            let rest = Run { first: run.first + 1, count: run.count - 1, ..*run };
            effects.push(refusal(arrival, &rest, Outcome::Rejected, Reason::DuplicateKey));
        }
        Some(Run { count: 1, ..*run })
    }

    /// Class, right and deadline of a run that is not refused.
    fn pass(&self, lane: Lane, accepted: Timestamp, run: &Run) -> Passed {
        let source = self.source(lane.source);
        let within_tree = matches!(run.lineage, Lineage::Child { serves_person: true, .. });
        let may = within_tree
            || match run.to {
                Destination::Agent(target, capability) => source.may_claim_p0(capability, Some(target)),
                Destination::Capability(capability) => source.may_claim_p0(capability, None),
                Destination::Topic(_) | Destination::Nowhere(_) => false,
            };
        let claims = lane.priority == Priority::P0;
        let demoted = claims && !may;
        let class = if demoted { Priority::P1 } else { lane.priority };
        let rules = &self.policy.deadlines;
        let (default, max) = match run.kind {
            Kind::Event => (rules.event, rules.event_max),
            Kind::Request | Kind::Response | Kind::Error => (rules.request, rules.request_max),
        };
        let budget = if run.budget == Duration::ZERO { default } else { run.budget.min(max) };
        let outlives = run.kind == Kind::Event && rules.events_outlive_parent;
        let parent = match run.lineage {
            Lineage::Child { deadline, .. } if !outlives => deadline,
            Lineage::Child { .. } | Lineage::Root | Lineage::Invalid => Timestamp::MAX,
        };
        Passed {
            class,
            serves_person: within_tree || claims && may,
            demoted,
            deadline: accepted.after(budget).min(parent),
            deadline_max: accepted.after(max).min(parent),
        }
    }

    /// From when the mesh's own delay counts: acceptance, or arrival where the quota kept the message in the broker.
    fn waits_since(&self, now: Timestamp, source: AgentIx, accepted: Timestamp) -> Timestamp {
        let over = self.source(source).last_over.is_some_and(|at| at >= accepted);
        if over { now } else { accepted.min(now) }
    }

    fn enqueue(&mut self, now: Timestamp, lane: Lane, key: Key, class: Priority, run: HeldRun) {
        let queue = self.lanes.queue_for(lane, key, class);
        self.lanes.push(queue, run);
        self.source_mut(lane.source).held += u32::from(run.count);
        self.arm_held_deadline(now, queue, run.deadline);
        self.activate_if_idle(queue);
    }

    /// One copy for each subscriber, each in the queue of that subscriber.
    #[expect(clippy::too_many_arguments, reason = "the parts of one arriving run, taken apart by the caller")]
    fn fan_out(
        &mut self,
        now: Timestamp,
        arrival: &Arrival<'_>,
        run: &Run,
        topic: TopicIx,
        class: Priority,
        template: HeldRun,
        effects: &mut Vec<Effect>,
    ) {
        let copies = self.registry.subscribers(topic).len().min(COPIES_MAX);
        if copies == 0 {
            effects.push(refusal(arrival, run, Outcome::Success, Reason::NoSubscriber));
            return;
        }
        let fan = Fan { held: template.held, first: run.first, count: run.count, class, left: 0 };
        let fan = self.lanes.fans.insert(fan);
        for copy in 0..copies {
            let target = self.registry.subscribers(topic)[copy];
            let copy = HeldRun { copy: copy as u16 + 1, fan: Some(fan), ..template };
            self.enqueue_copy(now, arrival, target, class, copy);
        }
        if self.lanes.fans.at(fan).left == 0 {
            self.lanes.fans.remove(fan);
            effects.push(refusal(arrival, run, Outcome::Success, Reason::Ok));
        }
    }

    /// Holds a copy, except for what a former home decided about.
    fn enqueue_copy(
        &mut self,
        now: Timestamp,
        arrival: &Arrival<'_>,
        target: AgentIx,
        class: Priority,
        copy: HeldRun,
    ) {
        let Arrival { instance, sequence, .. } = *arrival;
        let former = !self.decided_copies.is_empty() || self.open.has_envelope(instance, sequence);
        let mut rest = copy;
        while rest.count > 0 {
            let id = DispatchId { instance, sequence, slot: rest.first, copy: rest.copy };
            let (alike, decided) =
                if former { self.alike_copies(id, rest.count) } else { (rest.count, false) };
            if !decided {
                let fan = rest.fan.expect("a copy has its fan");
                self.lanes.fans.at_mut(fan).left += u32::from(alike);
                self.enqueue(now, arrival.lane, Key::Agent(target), class, HeldRun { count: alike, ..rest });
            }
            rest.first = rest.first.wrapping_add(alike);
            rest.count -= alike;
        }
    }

    /// How many slots from `id` on a former home has either all decided about or all not.
    fn alike_copies(&self, id: DispatchId, count: u16) -> (u16, bool) {
        let is_decided = |nth: u16| {
            let id = DispatchId { slot: id.slot.wrapping_add(nth), ..id };
            self.decided_copies.contains(&id) || self.open.find(id).is_some()
        };
        let decided = is_decided(0);
        let alike = (1..count).take_while(|nth| is_decided(*nth) == decided).count() as u16 + 1;
        (alike, decided)
    }

    /// Notes copies that a former home decided about.
    pub(crate) fn on_restore_copies(&mut self, first: DispatchId, count: u16) {
        let ids = (0..count).map(|nth| DispatchId { slot: first.slot.wrapping_add(nth), ..first });
        self.decided_copies.extend(ids);
    }

    /// The message of an event came: what was noted for it has served.
    fn forget_copies(&mut self, instance: InstanceId, sequence: u64) {
        let at = |sequence| DispatchId { instance, sequence, slot: 0, copy: 0 };
        let mut from = self.decided_copies.split_off(&at(sequence));
        let mut later = from.split_off(&at(sequence.saturating_add(1)));
        self.decided_copies.append(&mut later);
    }
}

fn refusal(arrival: &Arrival<'_>, run: &Run, outcome: Outcome, reason: Reason) -> Effect {
    let (target, capability) = match run.to {
        Destination::Agent(target, capability) => (Some(target), Some(capability)),
        Destination::Capability(capability) => (None, Some(capability)),
        Destination::Topic(_) | Destination::Nowhere(_) => (None, None),
    };
    Effect::End(Ending {
        message: arrival.message,
        first: run.first,
        count: run.count,
        copy: 0,
        source: arrival.lane.source,
        target,
        capability,
        kind: run.kind,
        class: arrival.lane.priority,
        outcome,
        reason,
        fallback: None,
    })
}

/// Copies have 16 bits in an id, and a topic with more subscribers than the largest mesh has agents is a mistake.
const COPIES_MAX: usize = 65_535;
