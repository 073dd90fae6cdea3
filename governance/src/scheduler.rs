//! Who goes next. Owns the flows and their rounds; whether something may go is asked in `admission.rs`.
//!
//! A flow is everything of one source in one class, over all its queues; inside it the queues take turns. P0's
//! flows go first, round by round, until none can go on. The others share by deficit round robin: at its turn a
//! flow earns its class's weight times a quantum and serves whole runs while its balance is positive, so a run is
//! never cut for the sake of fairness and a debt is paid in later rounds.
//!
//! The rule it keeps: a queue is in exactly one place. In its flow, or waiting for its source's quota, or waiting
//! for a target, or idle; and each way out of a wait leads back into its flow.

use std::collections::VecDeque;
use std::time::Duration;

use crate::admission::{End, Verdict};
use crate::effect::Effect;
use crate::facts::Waiting;
use crate::governor::Governor;
use crate::lanes::{HeldRun, Key, QueueIx, Standing, raised};
use crate::names::AgentIx;
use crate::time::Timestamp;
use crate::timers::Timer;
use crate::words::{Outcome, Priority, Reason};

/// The flows and the rounds they are in.
#[derive(Debug, Default)]
pub(crate) struct Scheduler {
    flows: Vec<Flow>,
    p0: VecDeque<FlowIx>,
    others: VecDeque<FlowIx>,
    /// Flows of P3 that step back.
    deferred: VecDeque<FlowIx>,
}

#[derive(Debug, Default)]
struct Flow {
    active: VecDeque<QueueIx>,
    /// In a round, or among the deferred.
    listed: bool,
    balance: i64,
}

/// A flow: source times four plus class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FlowIx(u32);

/// What a visit to a queue came to.
enum Visit {
    /// It has more that may be able to go.
    Stays,
    /// It left its flow.
    Leaves,
}

impl FlowIx {
    const fn of(source: AgentIx, class: Priority) -> Self {
        Self(source.0 * 4 + class as u32)
    }

    fn class(self) -> Priority {
        crate::facts::CLASSES[(self.0 % 4) as usize]
    }
}

impl Scheduler {
    pub(crate) fn add_agent(&mut self) {
        self.flows.resize_with(self.flows.len() + 4, Flow::default);
    }

    fn flow(&mut self, flow: FlowIx) -> &mut Flow {
        &mut self.flows[flow.0 as usize]
    }

    fn add(&mut self, queue: QueueIx, ix: FlowIx) {
        let flow = self.flow(ix);
        flow.active.push_back(queue);
        self.list(ix);
    }

    /// Puts a flow with active queues into its round.
    fn list(&mut self, ix: FlowIx) {
        let flow = self.flow(ix);
        if !flow.active.is_empty() && !std::mem::replace(&mut flow.listed, true) {
            self.round(ix.class()).push_back(ix);
        }
    }

    /// A flow had its turn; it comes again where something in it is active.
    fn relist(&mut self, ix: FlowIx) {
        let flow = self.flow(ix);
        flow.listed = false;
        if flow.active.is_empty() {
            flow.balance = 0;
        }
        self.list(ix);
    }

    fn round(&mut self, class: Priority) -> &mut VecDeque<FlowIx> {
        if class == Priority::P0 { &mut self.p0 } else { &mut self.others }
    }

    /// Whether something more urgent than P3 could go.
    fn urgent_waits(&self) -> bool {
        !self.p0.is_empty() || self.others.iter().any(|flow| flow.class() != Priority::P3)
    }
}

impl Governor {
    /// Admits what can go, at most `room` dispatches.
    pub(crate) fn on_turn(&mut self, now: Timestamp, room: u32, effects: &mut Vec<Effect>) {
        self.judge_deferral(now, effects);
        while let Some(target) = self.targets.take_changed() {
            self.wake_waiters(now, target);
        }
        let mut room = room;
        for class in [Priority::P0, Priority::P1] {
            while room > 0
                && let Some(flow) = self.scheduler.round(class).pop_front()
            {
                room -= self.serve_flow(now, flow, room, effects);
            }
        }
        self.ask_rates(now, effects);
        self.window_full = room == 0 && self.scheduler.urgent_waits();
        if self.window_full && self.deferral.on_window_full(now) {
            self.tell_deferral(now, true, effects);
        }
        self.tell_suffering(now, effects);
    }

    fn tell_deferral(&self, now: Timestamp, on: bool, effects: &mut Vec<Effect>) {
        let (p0_delay, own) = (self.deferral.p0_delay(now), self.deferral.is_own());
        effects.push(Effect::Deferral { on, p0_delay, own });
    }

    /// Tells the other homes that P0 suffers here, where it does and there are any.
    fn tell_suffering(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let budget = self.policy.priority(Priority::P0).budget;
        if self.shards.has_others()
            && let Some(delay) = self.deferral.suffers(now, &self.policy.deferral, budget, self.window_full)
        {
            effects.push(Effect::P0Suffers { delay });
        }
    }

    /// P0 suffers at another home: P3 steps back here as well.
    pub(crate) fn on_p0_suffered(&mut self, now: Timestamp, delay: Duration, effects: &mut Vec<Effect>) {
        self.deferral.on_told(now, delay);
        self.judge_deferral(now, effects);
    }

    pub(crate) fn judge_deferral(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let budget = self.policy.priority(Priority::P0).budget;
        let Some(on) = self.deferral.judge(now, &self.policy.deferral, budget) else { return };
        self.tell_deferral(now, on, effects);
        if !on {
            self.resume_deferred();
        }
    }

    /// Puts the deferred flows back into their round.
    pub(crate) fn resume_deferred(&mut self) {
        while let Some(flow) = self.scheduler.deferred.pop_front() {
            self.scheduler.relist(flow);
        }
    }

    /// Serves one flow for one round; how many dispatches were admitted.
    fn serve_flow(&mut self, now: Timestamp, ix: FlowIx, room: u32, effects: &mut Vec<Effect>) -> u32 {
        let class = ix.class();
        let quantum = i64::from(self.policy.priority(class).weight.max(1)) * QUANTUM;
        let deferred = class == Priority::P3 && self.deferral.is_on();
        let mut left = if deferred { room.min(self.deferral.allowance(now)) } else { room };
        let flow = self.scheduler.flow(ix);
        flow.balance = (flow.balance + quantum).min(quantum);
        let mut admitted = 0;
        // Each queue is visited once in a round, as long as there is room and balance.
        for _ in 0..self.scheduler.flow(ix).active.len() {
            let balance = self.scheduler.flow(ix).balance;
            if balance <= 0 || room == admitted {
                break;
            }
            let Some(queue) = self.scheduler.flow(ix).active.pop_front() else { break };
            let (gone, visit) = self.serve_queue(now, queue, class, left, balance, effects);
            admitted += gone;
            left -= gone;
            let flow = self.scheduler.flow(ix);
            flow.balance -= i64::from(gone);
            match visit {
                Visit::Stays => flow.active.push_back(queue),
                Visit::Leaves => {}
            }
        }
        if deferred && left == 0 && !self.scheduler.flow(ix).active.is_empty() {
            self.defer(now, ix);
        } else {
            self.scheduler.relist(ix);
        }
        admitted
    }

    fn defer(&mut self, now: Timestamp, ix: FlowIx) {
        self.scheduler.deferred.push_back(ix);
        self.arm_trickle(now);
    }

    pub(crate) fn arm_trickle(&mut self, now: Timestamp) {
        if !self.scheduler.deferred.is_empty() && !self.trickle_armed {
            self.trickle_armed = true;
            self.timers.arm(self.deferral.next(now), Timer::Trickle);
        }
    }

    /// Deferred P3 is looked at again.
    pub(crate) fn on_trickle(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        self.trickle_armed = false;
        self.judge_deferral(now, effects);
        self.resume_deferred();
    }

    /// Serves one queue: how many dispatches were admitted, and whether it is still active.
    fn serve_queue(
        &mut self,
        now: Timestamp,
        queue: QueueIx,
        class: Priority,
        room: u32,
        balance: i64,
        effects: &mut Vec<Effect>,
    ) -> (u32, Visit) {
        let mut admitted = 0;
        loop {
            let Some(head) = self.lanes.queue(queue).runs.front().copied() else {
                self.lanes.set_standing(queue, Standing::Idle);
                return (admitted, Visit::Leaves);
            };
            if head.deadline <= now {
                let end = End::plain(Outcome::Timeout, Reason::ExpiredInLane);
                self.end_head(now, queue, end, effects);
                continue;
            }
            self.age(now, queue, &head);
            if self.lanes.queue(queue).effective_class() != class {
                self.activate(queue);
                return (admitted, Visit::Leaves);
            }
            if admitted >= room || i64::from(admitted) >= balance {
                return (admitted, Visit::Stays);
            }
            match self.check(now, queue, &head, room - admitted) {
                Verdict::Admit(permit) => {
                    admitted += u32::from(permit.count());
                    self.admit(now, queue, permit, effects);
                }
                Verdict::End { target, outcome, reason, fallback } => {
                    self.end_head(now, queue, End { target, outcome, reason, fallback }, effects);
                }
                Verdict::KeyBusy(target) => self.park(queue, target, &head),
                Verdict::AskProbe(target) => {
                    self.ask_probe(now, queue, &head, target, effects);
                    return (admitted, Visit::Leaves);
                }
                Verdict::Wait(waiting) => {
                    self.block(queue, &head, waiting);
                    return (admitted, Visit::Leaves);
                }
                Verdict::OverQuota(until) => {
                    self.wait_for_quota(now, queue, until, effects);
                    return (admitted, Visit::Leaves);
                }
            }
        }
    }

    /// The head of a queue goes one class higher once it has waited for its whole budget, the wait for its quota apart.
    fn age(&mut self, now: Timestamp, queue: QueueIx, head: &HeldRun) {
        let class = self.lanes.queue(queue).class;
        if class == raised(class) {
            return;
        }
        let budget = self.policy.priority(class).budget;
        let state = self.lanes.queue_mut(queue);
        state.raised = now.since(head.since.max(state.quota_released)) >= budget;
    }

    fn park(&mut self, queue: QueueIx, target: AgentIx, head: &HeldRun) {
        let source = self.lanes.queue(queue).lane.source;
        // The rest of a run goes before those that came after the run.
        let first = head.handed == Some(target);
        if first {
            self.order_keys.release(source, target, head.order_key);
        }
        self.order_keys.wait(source, target, head.order_key, queue, first);
        self.lanes.park_head(queue, target, first);
        self.leave_key_elsewhere(source, target, head);
    }

    /// An order key came free: the first run that waits for it may go.
    pub(crate) fn hand_on(&mut self, source: AgentIx, target: AgentIx, key: u64) {
        while let Some(queue) = self.order_keys.next_waiting(source, target, key) {
            if self.lanes.unpark(queue, target, key) {
                self.order_keys.hold(source, target, key);
                self.activate_if_idle(queue);
                return;
            }
        }
    }

    /// A queue whose target does not take more leaves its flow until one of the targets it may go to changes.
    pub(crate) fn block(&mut self, queue: QueueIx, head: &HeldRun, waiting: Waiting) {
        self.lanes.queue_mut(queue).waiting = Some(waiting);
        self.lanes.set_standing(queue, Standing::Blocked);
        if let (Reason::TargetRate, Some(target)) = (waiting.reason, waiting.target) {
            match waiting.until {
                Some(until) => self.timers.arm(until, Timer::TargetRate(target)),
                None => self.want_rate(target),
            }
        }
        let lane = self.lanes.queue(queue).lane;
        match self.lanes.queue(queue).key {
            Key::Agent(target) => self.wait_at(queue, target),
            Key::Capability(capability) => {
                for nth in 0..self.registry.providers(capability).len() {
                    let target = self.registry.providers(capability)[nth];
                    if self.registry.declares(lane.source, target, capability) {
                        self.wait_at(queue, target);
                    }
                }
            }
        }
        // A fallback agent that is full, or the target of a fallback that is full.
        if let Some(target) = waiting.target {
            self.wait_at(queue, target);
        }
        debug_assert!(head.count > 0, "what waits has something in it");
    }

    fn wait_at(&mut self, queue: QueueIx, target: AgentIx) {
        let state = self.lanes.queue_mut(queue);
        if !state.waiting_at.contains(&target) {
            state.waiting_at.push(target);
            self.targets.at_mut(target).waiters.push_back(queue);
        }
    }

    fn wake_waiters(&mut self, now: Timestamp, target: AgentIx) {
        for _ in 0..self.targets.at(target).waiters.len() {
            let Some(queue) = self.targets.at_mut(target).waiters.pop_front() else { return };
            let state = self.lanes.queue_mut(queue);
            state.waiting_at.retain(|t| *t != target);
            if state.standing == Standing::Blocked {
                state.released = now;
                self.reactivate(queue);
            }
        }
    }

    fn wait_for_quota(
        &mut self,
        now: Timestamp,
        queue: QueueIx,
        until: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let waiting = Waiting { reason: Reason::QuotaExceeded, target: None, until: Some(until) };
        self.lanes.queue_mut(queue).waiting = Some(waiting);
        self.lanes.set_standing(queue, Standing::Quota);
        let source = self.lanes.queue(queue).lane.source;
        let state = self.source_mut(source);
        state.waiting.push(queue);
        state.last_over = Some(now);
        let armed = state.timer.is_some_and(|at| at <= until);
        if !armed {
            let former = state.timer.replace(until);
            if let Some(former) = former {
                self.timers.disarm(former, Timer::Quota(source));
            }
            self.timers.arm(until, Timer::Quota(source));
        }
        self.signal_slow_down(now, source, until, effects);
    }

    /// A source's quota gives again.
    pub(crate) fn on_quota(&mut self, now: Timestamp, source: AgentIx) {
        let state = self.source_mut(source);
        state.timer = None;
        state.last_over = Some(now);
        let mut waiting = std::mem::take(&mut state.waiting);
        for queue in waiting.drain(..) {
            let state = self.lanes.queue_mut(queue);
            if state.standing == Standing::Quota {
                state.released = now;
                state.quota_released = now;
                self.reactivate(queue);
            }
        }
        // The list keeps its room for the next wait.
        self.source_mut(source).waiting = waiting;
    }

    /// A target tripped: what waits for a quota on the way there is answered at once instead.
    pub(crate) fn wake_on_trip(&mut self, target: AgentIx) {
        for ix in 0..self.lanes.queues.len() {
            let queue = &self.lanes.queues[ix];
            let leads_there = match queue.key {
                Key::Agent(agent) => agent == target,
                Key::Capability(capability) => self.registry.offers(target, capability),
            };
            if leads_there && queue.standing == Standing::Quota {
                self.reactivate(QueueIx(ix as u32));
            }
        }
    }

    fn reactivate(&mut self, queue: QueueIx) {
        self.lanes.set_standing(queue, Standing::Idle);
        self.lanes.queue_mut(queue).waiting = None;
        self.activate_if_idle(queue);
    }

    pub(crate) fn activate_if_idle(&mut self, queue: QueueIx) {
        let state = self.lanes.queue(queue);
        if state.standing == Standing::Idle && !state.runs.is_empty() {
            self.activate(queue);
        }
    }

    fn activate(&mut self, queue: QueueIx) {
        self.lanes.set_standing(queue, Standing::Active);
        let state = self.lanes.queue_mut(queue);
        state.waiting = None;
        let flow = FlowIx::of(state.lane.source, state.effective_class());
        self.scheduler.add(queue, flow);
    }
}

/// What a weight of one earns in one round, in dispatches: about what one envelope carries, so that a round of equals costs
/// one envelope each.
const QUANTUM: i64 = 64;
