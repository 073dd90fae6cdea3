//! What is held and ends without a turn: deadlines in the lane, cancellation, a target that left.
//!
//! The rule it keeps: whatever is taken out of the middle of a queue leaves the order of the rest as it was.

use crate::admission::End;
use crate::effect::Effect;
use crate::governor::Governor;
use crate::lanes::{Cut, HeldRun, Key, QueueIx};
use crate::names::{AgentIx, DispatchId};
use crate::time::Timestamp;
use crate::timers::Timer;
use crate::words::{Outcome, Reason};

impl Governor {
    /// Arms the timer of a queue for a new run, unless one fires earlier anyway and arms itself anew.
    pub(crate) fn arm_held_deadline(&mut self, now: Timestamp, queue: QueueIx, deadline: Timestamp) {
        let state = self.lanes.queue_mut(queue);
        let at = deadline.max(now);
        if state.deadline_armed.is_none_or(|armed| at < armed) {
            state.deadline_armed = Some(at);
            self.timers.arm(at, Timer::HeldDeadline(queue));
        }
    }

    /// A deadline in a queue may have passed: whatever is past its own ends.
    pub(crate) fn on_held_deadline(&mut self, now: Timestamp, queue: QueueIx, effects: &mut Vec<Effect>) {
        let state = self.lanes.queue_mut(queue);
        if state.deadline_armed.is_some_and(|armed| armed > now) {
            return;
        }
        state.deadline_armed = None;
        let end = End::plain(Outcome::Timeout, Reason::ExpiredInLane);
        self.end_where(now, queue, &end, effects, |run| run.deadline <= now);
        let state = self.lanes.queue(queue);
        let runs = state.runs.iter().chain(state.parked.iter().map(|(_, run)| run));
        if let Some(next) = runs.map(|run| run.deadline).min() {
            self.arm_held_deadline(now, queue, next);
        }
    }

    /// A target left for good: what waits for it is refused.
    pub(crate) fn refuse_waiting(&mut self, now: Timestamp, target: AgentIx, effects: &mut Vec<Effect>) {
        let end = End::plain(Outcome::Rejected, Reason::UnknownTarget);
        for ix in 0..self.lanes.queues.len() {
            if self.lanes.queues[ix].key == Key::Agent(target) {
                self.end_where(now, QueueIx(ix as u32), &end, effects, |_| true);
            }
        }
    }

    /// Ends the runs of a queue that a condition picks; the others keep their order.
    fn end_where(
        &mut self,
        now: Timestamp,
        queue: QueueIx,
        end: &End,
        effects: &mut Vec<Effect>,
        picks: impl Fn(&HeldRun) -> bool,
    ) {
        let mut nth = 0;
        while let Some(run) = self.lanes.queue(queue).runs.get(nth).copied() {
            if picks(&run) {
                self.lanes.queue_mut(queue).runs.remove(nth);
                self.end_run(now, queue, &run, end.clone(), effects);
            } else {
                nth += 1;
            }
        }
        let mut nth = 0;
        while let Some((_, run)) = self.lanes.queue(queue).parked.get(nth).copied() {
            if picks(&run) {
                self.lanes.queue_mut(queue).parked.remove(nth);
                self.lanes.unparked(self.lanes.queue(queue).lane, &run);
                self.end_run(now, queue, &run, end.clone(), effects);
            } else {
                nth += 1;
            }
        }
    }

    /// Withdraws one dispatch that is held, if it is.
    pub(crate) fn cancel_held(
        &mut self,
        now: Timestamp,
        source: AgentIx,
        id: DispatchId,
        effects: &mut Vec<Effect>,
    ) {
        let Some(held) = self.lanes.find(id.instance, id.sequence) else { return };
        let lane = self.lanes.held(held).lane;
        if lane.source != source {
            return;
        }
        let is_it = |run: &HeldRun| {
            let slots = u32::from(run.first)..u32::from(run.first) + u32::from(run.count);
            run.held == held && run.copy == id.copy && slots.contains(&u32::from(id.slot))
        };
        let end = End::plain(Outcome::Cancelled, Reason::CancelledByCaller);
        for nth in 0..self.lanes.queue_count(lane) {
            let queue = self.lanes.queue_at(lane, nth);
            match self.lanes.isolate(queue, is_it, id.slot) {
                Some(Cut::Holds(target, key)) => self.order_keys.hold(source, target, key),
                // Each part waits for the key by itself; one that does not exist is skipped when its turn comes.
                Some(Cut::Waits(target, key)) => {
                    self.order_keys.wait(source, target, key, queue, false);
                    self.order_keys.wait(source, target, key, queue, false);
                }
                None => {}
            }
            self.end_where(now, queue, &end, effects, is_it);
        }
    }
}
