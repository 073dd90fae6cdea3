//! The end of admitted dispatches: completions, deadlines, cancellation, and more time.
//!
//! The rule it keeps: the first outcome of a dispatch is its outcome. What comes after it is `Late`, whoever is right.

use std::time::Duration;

use crate::breaker::Ran;
use crate::effect::{Closing, Effect};
use crate::event::Completion;
use crate::governor::Governor;
use crate::names::{AgentIx, DispatchId, OpenIx};
use crate::policy::WHOLE_BP;
use crate::reports::Urgency;
use crate::retry::{self, Next};
use crate::time::{Timestamp, nanos};
use crate::words::{Kind, Outcome, Reason};

/// Slots of one open run that end alike.
#[derive(Debug, Clone, Copy)]
struct Slots {
    open: OpenIx,
    offset: u16,
    count: u16,
}

/// How they end.
#[derive(Debug, Clone, Copy)]
struct As {
    outcome: Outcome,
    reason: Reason,
    row: Option<u32>,
}

impl Governor {
    /// A target reports what ended.
    pub(crate) fn on_completed(
        &mut self,
        now: Timestamp,
        source: AgentIx,
        target: AgentIx,
        completions: &[Completion],
        effects: &mut Vec<Effect>,
    ) {
        for completion in completions {
            let mut rest = *completion;
            while rest.count > 0 {
                let taken = self.on_completed_part(now, (source, target), &rest, effects);
                rest.first.slot = rest.first.slot.wrapping_add(taken);
                rest.row += u32::from(taken);
                rest.count -= taken;
            }
        }
    }

    /// Handles the first slots of a completion that are alike; how many they are.
    fn on_completed_part(
        &mut self,
        now: Timestamp,
        (source, target): (AgentIx, AgentIx),
        completion: &Completion,
        effects: &mut Vec<Effect>,
    ) -> u16 {
        let late = |count| Effect::Late { row: completion.row, id: completion.first, count };
        let Some((open, offset)) = self.open.find(completion.first) else {
            let count = self.open.gap(completion.first, completion.count);
            effects.push(late(count));
            return count;
        };
        let segment = self.open.segment(open, offset, completion.count);
        let run = self.open.run(open);
        if segment.ended || run.source != source || run.target != target {
            effects.push(late(segment.count));
            return segment.count;
        }
        let slots = Slots { open, offset, count: segment.count };
        self.on_ran(now, open, completion, segment.count, effects);
        if completion.outcome == Outcome::Failure && self.open.run(open).kind == Kind::Event {
            self.on_event_failed(now, slots, completion, effects);
        } else {
            let Completion { mut outcome, mut reason, row, .. } = *completion;
            if outcome == Outcome::Failure && completion.reported >= self.open.deadline(open, offset) {
                // A handler that is told of its deadline fails in its own words; what ended it is the deadline.
                (outcome, reason) = (Outcome::Timeout, Reason::ExpiredRunning);
            }
            self.close(now, slots, As { outcome, reason, row: Some(row) }, effects);
        }
        segment.count
    }

    /// What a run that ended says about its target.
    fn on_ran(
        &mut self,
        now: Timestamp,
        open: OpenIx,
        completion: &Completion,
        count: u16,
        effects: &mut Vec<Effect>,
    ) {
        let target = self.open.run(open).target;
        let failed = completion.outcome != Outcome::Success;
        let over = self.is_over(target, completion.ran);
        if self.open.take_probe(now, open) {
            self.end_probe(now, target, !failed && !over, effects);
        }
        let ran = Ran { count: u32::from(count), failed, over };
        self.on_target_ran(now, target, ran, effects);
    }

    /// Whether a run took longer than the bound that the target's SLA gives.
    fn is_over(&self, target: AgentIx, ran: Duration) -> bool {
        let Some(registration) = self.registry.registration(target) else { return false };
        let bound_bp =
            u128::from(registration.sla_p95_ms) * 1_000_000 * u128::from(self.policy.breaker.over_sla_bp);
        u128::from(nanos(ran)) * u128::from(WHOLE_BP) > bound_bp
    }

    /// A failed event runs again, or goes to the dead-letter queue.
    fn on_event_failed(
        &mut self,
        now: Timestamp,
        slots: Slots,
        completion: &Completion,
        effects: &mut Vec<Effect>,
    ) {
        let Slots { open, count, .. } = slots;
        let next = retry::after_failure(&self.policy.retries, completion.attempt);
        for nth in 0..count {
            let id = DispatchId { slot: completion.first.slot + nth, ..completion.first };
            let row = completion.row + u32::from(nth);
            effects.push(match next {
                Next::Retry(delay) => {
                    self.losses.release(id);
                    Effect::Retry { row, open, id, attempt: completion.attempt.saturating_add(1), delay }
                }
                Next::DeadLetter => Effect::DeadLetter { row, open, id, attempts: completion.attempt },
            });
        }
        if next == Next::DeadLetter {
            let row = Some(completion.row);
            let exhausted = As { outcome: Outcome::Failure, reason: Reason::AttemptsExhausted, row };
            self.close(now, slots, exhausted, effects);
        }
    }

    /// Ends open slots; whether they were the last of their run.
    fn close(&mut self, now: Timestamp, slots: Slots, how: As, effects: &mut Vec<Effect>) -> bool {
        let Slots { open, offset, count } = slots;
        let run = self.open.run(open);
        let (target, class) = (run.target, run.class);
        let id = DispatchId { slot: run.first.slot + offset, ..run.first };
        let As { outcome, reason, row } = how;
        // What the caller must know of an answer: that it is not from whom it asked.
        let reason =
            if run.stands_in && outcome == Outcome::Success { Reason::FallbackAgent } else { reason };
        effects.push(Effect::Close(Closing { open, id, count, outcome, reason, row }));
        let state = self.targets.at_mut(target);
        state.in_flight[class as usize] -= u32::from(count);
        self.report_soon(now, target, Urgency::Soon);
        self.targets.mark_changed(target);
        self.losses.forget(id, count);
        let last = self.open.end(open, offset, count);
        if last {
            self.forget(now, open, effects);
        }
        last
    }

    fn forget(&mut self, now: Timestamp, open: OpenIx, effects: &mut Vec<Effect>) {
        let run = self.open.forget(open);
        effects.push(Effect::Forget { open });
        if run.order_key != 0 {
            self.order_keys.close(run.source, run.target, run.order_key);
            self.hand_on(run.source, run.target, run.order_key);
        }
        if run.probe.is_some_and(|until| now < until) {
            // It was withdrawn before anything was heard of it.
            self.withdraw_probe(now, run.target, effects);
        }
    }

    /// Ends what is past its deadline. Only a tick does this, for only then the shell has read the done lane so far.
    pub(crate) fn expire_open(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        while let Some(open) = self.open.overdue(now) {
            let count = self.open.run(open).count;
            let mut offset = 0;
            while offset < count {
                let (slots, past) = self.overdue_slots(now, open, offset);
                offset += slots.count;
                if past && self.time_out(now, slots, effects) {
                    break;
                }
            }
        }
    }

    /// The slots from `offset` on that are alike, and whether they are open and past their deadline.
    fn overdue_slots(&self, now: Timestamp, open: OpenIx, offset: u16) -> (Slots, bool) {
        let run = self.open.run(open);
        let segment = self.open.segment(open, offset, run.count - offset);
        let is_past = |o| self.open.deadline(open, o) <= now;
        let past = is_past(offset);
        let alike = (offset..offset + segment.count).take_while(|o| is_past(*o) == past).count() as u16;
        (Slots { open, offset, count: alike }, past && !segment.ended)
    }

    /// Ends slots whose deadline passed; whether they were the last of their run.
    fn time_out(&mut self, now: Timestamp, slots: Slots, effects: &mut Vec<Effect>) -> bool {
        let Slots { open, offset, count } = slots;
        let run = self.open.run(open);
        let target = run.target;
        let first = DispatchId { slot: run.first.slot + offset, ..run.first };
        if self.open.take_probe(now, open) {
            self.end_probe(now, target, false, effects);
        }
        let how = As { outcome: Outcome::Timeout, reason: Reason::ExpiredUnknown, row: None };
        let last = self.close(now, slots, how, effects);
        effects.push(Effect::Revoke { target, first, count });
        let ran = Ran { count: u32::from(count), failed: true, over: false };
        self.on_target_ran(now, target, ran, effects);
        last
    }

    /// Ends a dispatch whose runners were lost one after the other.
    pub(crate) fn close_lost(&mut self, now: Timestamp, id: DispatchId, effects: &mut Vec<Effect>) {
        let Some((open, offset)) = self.open.find(id) else { return };
        let target = self.open.run(open).target;
        if self.open.take_probe(now, open) {
            self.end_probe(now, target, false, effects);
        }
        let how = As { outcome: Outcome::Failure, reason: Reason::RunnerLost, row: None };
        self.close(now, Slots { open, offset, count: 1 }, how, effects);
        effects.push(Effect::Revoke { target, first: id, count: 1 });
        self.on_target_ran(now, target, Ran { count: 1, failed: true, over: false }, effects);
    }

    /// The caller withdraws a dispatch: it ends where it is.
    pub(crate) fn on_cancel(
        &mut self,
        now: Timestamp,
        source: AgentIx,
        id: DispatchId,
        effects: &mut Vec<Effect>,
    ) {
        if let Some((open, offset)) = self.open.find(id) {
            let run = self.open.run(open);
            let (target, owner) = (run.target, run.source);
            if owner != source || self.open.segment(open, offset, 1).ended {
                return;
            }
            let how = As { outcome: Outcome::Cancelled, reason: Reason::CancelledByCaller, row: None };
            self.close(now, Slots { open, offset, count: 1 }, how, effects);
            effects.push(Effect::Revoke { target, first: id, count: 1 });
        } else {
            self.cancel_held(now, source, id, effects);
        }
    }

    /// A handler asks for more time: the present deadline plus the wish, within the bounds of policy and parent.
    pub(crate) fn on_extend(
        &mut self,
        source: AgentIx,
        id: DispatchId,
        by: Duration,
        effects: &mut Vec<Effect>,
    ) {
        let Some((open, offset)) = self.open.find(id) else { return };
        let run = self.open.run(open);
        if run.source != source || self.open.segment(open, offset, 1).ended {
            return;
        }
        let present = self.open.deadline(open, offset);
        let deadline = present.after(by).min(run.deadline_max).max(present);
        if deadline > present {
            self.open.extend(open, offset, deadline);
        }
        effects.push(Effect::Extended { id, deadline });
    }
}
