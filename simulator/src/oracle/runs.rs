//! Handlers: a handler sees what was recorded for it, and sees it once, but for the exceptions that the promises list.

use std::collections::BTreeMap;
use std::time::Duration;

use governance::{AgentId, Decision, DispatchId, Kind, Timestamp};

use super::Oracle;
use crate::model::Ran;
use crate::net::Actor;

/// A connection may have carried its last words so long before it was seen to be broken.
const SLACK: Duration = Duration::from_secs(6);

/// When contact with whom was lost.
#[derive(Debug, Default)]
pub(super) struct Contact {
    lost: BTreeMap<Actor, Vec<(Timestamp, Timestamp)>>,
    broker_restarts: Vec<Timestamp>,
}

impl Contact {
    /// It was killed, or has ended.
    fn is_dead(&self, actor: Actor) -> bool {
        self.lost.get(&actor).is_some_and(|spans| spans.iter().any(|(_, until)| *until == Timestamp::MAX))
    }

    fn was_lost(&self, actor: Actor, since: Timestamp) -> bool {
        self.lost.get(&actor).is_some_and(|spans| spans.iter().any(|(_, until)| until.after(SLACK) >= since))
    }
}

impl Oracle {
    /// Of a dispatch no more instances die than the rules allow. One more may: who had it first is not known to a home that took
    /// over meanwhile. What the broker delivered twice as new is not asked about.
    fn judge_deaths(&mut self, id: DispatchId) {
        let Some(life) = self.model.life(id) else { return };
        let died = |run: &&Ran| run.failed.is_none() && self.contact.is_dead(run.by);
        let deaths = life.runs.iter().filter(died).count();
        let since = life.delivered.unwrap_or_default();
        let twice = self.contact.broker_restarts.iter().any(|at| at.after(SLACK) >= since);
        let max = usize::from(self.cast.policy.retries.crashes_max);
        if deaths > 0 {
            self.count("runs after a death");
        }
        if deaths > max + usize::from(twice) {
            self.fail(format!("{id} runs again after {deaths} instances died of it"));
        }
    }

    /// Contact with a process is lost between these moments: it was killed, stopped, cut off, or an acknowledgement of it was.
    pub fn on_contact_lost(&mut self, actor: Actor, from: Timestamp, until: Timestamp) {
        self.contact.lost.entry(actor).or_default().push((from, until));
    }

    /// The broker was restarted: what it left unconfirmed may be published twice.
    pub fn on_broker_restart(&mut self, now: Timestamp) {
        self.contact.broker_restarts.push(now);
    }

    pub(super) fn on_began(
        &mut self,
        now: Timestamp,
        by: Actor,
        id: DispatchId,
        agent: &AgentId,
        _attempt: u8,
    ) {
        self.count("handler runs");
        let Some(life) = self.model.life(id) else {
            return self.fail(format!("{agent} runs {id}, which no record admits"));
        };
        let decided = life.decided.as_ref();
        if !decided.is_some_and(|d| d.decision == Decision::Admitted && d.target == agent.as_str()) {
            return self.fail(format!("{agent} runs {id}, which is {decided:?}"));
        }
        if let Some(before) = life.runs.last() {
            let may_retry = decided.is_some_and(|d| d.kind == Kind::Event) && before.failed == Some(true);
            // Of the one that ran it, or of this one, to which it had been delivered before and which heard of it late.
            let contact_lost = life.runs.iter().any(|run| self.contact.was_lost(run.by, run.began))
                || life.delivered.is_some_and(|at| self.contact.was_lost(by, at));
            let since = life.delivered.unwrap_or(before.began);
            let republished = self.contact.broker_restarts.iter().any(|at| at.after(SLACK) >= since);
            let excused = may_retry || contact_lost || republished;
            let text = format!("{by} runs {id} again, which {} ran from {:?} on", before.by, before.began);
            self.count("runs that came again");
            if !excused {
                return self.fail(text);
            }
        }
        self.judge_deaths(id);
        self.model.life_mut(id).runs.push(Ran { by, began: now, failed: None });
    }

    pub(super) fn on_run_ended(&mut self, by: Actor, id: DispatchId, failed: bool) {
        let life = self.model.life_mut(id);
        if let Some(run) = life.runs.iter_mut().rev().find(|run| run.by == by) {
            run.failed = Some(failed);
        }
    }
}
