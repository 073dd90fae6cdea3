//! Permits: what an instance is told that asks about dispatches which came to it once more, and how often their runners were
//! lost. Owns what of that is recorded, and how; the rules count.
//!
//! The rule it keeps: nobody is let run before it is recorded who has it, so that a home that takes over counts on. A dispatch
//! whose runners are spent goes to the dead-letter queue first and ends then: a crash between the two does both once more.

use governance::{
    AskedToRun, DispatchId, Event, Holder, InstanceId, Loss, OpenIx, Permit, Reason, Timestamp,
};
use protocol::control::{OpenAnswer, OpenQuestion};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::home::Home;
use crate::out::Side;

/// The kind of the notes that are written here.
pub(crate) const NOTE: &str = "redelivery";

/// A question that was read.
#[derive(Debug, Clone)]
pub struct Asking {
    runs: Vec<(DispatchId, u16)>,
    runner: Holder,
    alone: bool,
    /// The message came for the first time, late: nothing is known to have had it.
    first: bool,
    inbox: String,
}

impl Asking {
    /// # Errors
    /// Says what cannot be read.
    pub fn read(question: OpenQuestion) -> Result<Self, String> {
        let runs = question
            .runs
            .iter()
            .map(|(id, count)| Ok((id.parse::<DispatchId>().map_err(|e| e.to_string())?, *count)))
            .collect::<Result<Vec<_>, String>>()?;
        let runner = match question.runner.as_str() {
            "" => Holder::Unnamed,
            name => Holder::Instance(name.parse().map_err(|e| format!("field `runner`: {e}"))?),
        };
        let first = question.delivered <= 1;
        Ok(Self { runs, runner, alone: question.alone, first, inbox: question.inbox })
    }
}

/// What the rules say while one question is answered.
#[derive(Debug, Default)]
pub(crate) struct Permits {
    said: Vec<Permit>,
    changed: Vec<(OpenIx, DispatchId, Loss)>,
    inbox: String,
}

/// Consecutive dispatches and who has them, as notes and snapshots keep it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Redelivered {
    id: String,
    count: u16,
    lost: u8,
    /// Empty for nobody, `unnamed`, or an instance.
    runner: String,
    since_ns: u64,
}

const UNNAMED: &str = "unnamed";

impl Redelivered {
    fn new(first: DispatchId, loss: Loss) -> Self {
        let runner = match loss.holder {
            Holder::Nobody => String::new(),
            Holder::Unnamed => UNNAMED.to_owned(),
            Holder::Instance(instance) => instance.to_string(),
        };
        Self { id: first.to_string(), count: 1, lost: loss.lost, runner, since_ns: loss.since.0 }
    }

    /// Joins what is alike and consecutive.
    pub(crate) fn runs(all: impl Iterator<Item = (DispatchId, Loss)>) -> Vec<Self> {
        let mut runs: Vec<Self> = Vec::new();
        let mut last: Option<(DispatchId, Loss)> = None;
        for (id, loss) in all {
            let follows = last.is_some_and(|(before, same)| {
                let next = before.slot.checked_add(1).map(|slot| DispatchId { slot, ..before });
                next == Some(id) && same == loss
            });
            match runs.last_mut().filter(|_| follows) {
                Some(run) => run.count += 1,
                None => runs.push(Self::new(id, loss)),
            }
            last = Some((id, loss));
        }
        runs
    }

    /// The dispatches of it; none where it cannot be read.
    pub(crate) fn each(&self) -> impl Iterator<Item = (DispatchId, Loss)> + use<> {
        let holder = match self.runner.as_str() {
            "" => Holder::Nobody,
            UNNAMED => Holder::Unnamed,
            name => name.parse::<InstanceId>().map_or(Holder::Unnamed, Holder::Instance),
        };
        let loss = Loss { lost: self.lost, holder, since: Timestamp(self.since_ns) };
        let first = self.id.parse::<DispatchId>().ok();
        let count = self.count;
        first.into_iter().flat_map(move |first| {
            (0..count).map(move |n| (DispatchId { slot: first.slot.saturating_add(n), ..first }, loss))
        })
    }
}

impl Home {
    /// Answers what is open and may be run. Without an answer the instance asks again.
    pub(crate) fn permit(&mut self, asking: &Asking, respond: oneshot::Sender<OpenAnswer>) {
        // A completion that waits to be read may have ended what is asked about.
        if self.has_unread_completions() {
            return;
        }
        if asking.first {
            let flags = |(id, count): &(DispatchId, u16)| {
                slots(*id, *count).map(|id| self.governor.is_open(id)).collect()
            };
            let open = asking.runs.iter().map(flags).collect();
            drop(respond.send(OpenAnswer { open, alone: Vec::new() }));
            return;
        }
        let (mut open, mut alone, mut waits) = (Vec::new(), Vec::new(), false);
        for (first, count) in &asking.runs {
            let said = self.ask_rules(*first, *count, asking);
            waits |=
                said.contains(&Permit::Wait) || slots(*first, *count).any(|id| self.unrecorded.contains(&id));
            open.push(said.iter().map(|p| *p != Permit::Ended).collect());
            alone.push(said.iter().map(|p| *p == Permit::Alone).collect::<Vec<bool>>());
        }
        if waits {
            return;
        }
        if !alone.iter().flatten().any(|alone| *alone) {
            alone.clear();
        }
        drop(respond.send(OpenAnswer { open, alone }));
    }

    fn ask_rules(&mut self, first: DispatchId, count: u16, asking: &Asking) -> Vec<Permit> {
        self.permits = Permits { inbox: asking.inbox.clone(), ..Permits::default() };
        let asked = AskedToRun { first, count, runner: asking.runner, alone: asking.alone };
        self.apply(Event::AskedToRun(asked));
        let Permits { said, changed, .. } = std::mem::take(&mut self.permits);
        let Some(target) = changed.first().and_then(|(open, ..)| self.opens.get(open.ix())).map(|o| o.target)
        else {
            return said;
        };
        for run in Redelivered::runs(changed.iter().map(|(_, id, loss)| (*id, *loss))) {
            let body = serde_json::to_value(&run).expect("plain data serialises");
            self.note(self.now, NOTE, target, &body);
        }
        let ids = changed.iter().map(|(_, id, _)| *id);
        self.unrecorded.extend(ids.clone());
        self.shard.stage().redelivered.extend(ids);
        said
    }

    pub(crate) fn permitted(&mut self, permit: Permit) {
        self.permits.said.push(permit);
    }

    pub(crate) fn runner_changed(&mut self, open: OpenIx, id: DispatchId, loss: Loss) {
        self.permits.changed.push((open, id, loss));
    }

    /// A dispatch with which too many instances were lost: its letter first.
    pub(crate) fn condemn(&mut self, now: Timestamp, open: OpenIx, id: DispatchId, lost: u8) {
        let Some(open) = self.opens.get(open.ix()).cloned() else { return };
        let inbox_ack = self.own_inbox(open.target, &self.permits.inbox).unwrap_or_default();
        let error = format!(
            "{lost} instances of {} were lost one after the other while they had it",
            self.name(open.target)
        );
        let letter = self.letter(now, &open, id, lost, (Reason::RunnerLost, error.clone()));
        let body =
            serde_json::json!({"id": id.to_string(), "attempts": lost, "reason": Reason::RunnerLost.name()});
        self.note(now, "dead_letter", open.target, &body);
        self.alert(now, "dead_letter", Some(open.target), format!("{id}: {error}"), &[]);
        self.out.side.push_back(Side::DeadLetter { letter: Box::new(letter), id, inbox_ack, done: None });
    }
}

fn slots(first: DispatchId, count: u16) -> impl Iterator<Item = DispatchId> {
    (0..count).map(move |n| DispatchId { slot: first.slot.saturating_add(n), ..first })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_down_is_read_back() {
        let id = |slot| DispatchId { instance: InstanceId(7), sequence: 3, slot, copy: 0 };
        let loss = |lost, holder| Loss { lost, holder, since: Timestamp(9) };
        let all = [
            (id(1), loss(1, Holder::Instance(InstanceId(0xaa)))),
            (id(2), loss(1, Holder::Instance(InstanceId(0xaa)))),
            (id(3), loss(2, Holder::Nobody)),
            (id(5), loss(2, Holder::Nobody)),
            (id(6), loss(0, Holder::Unnamed)),
        ];
        let runs = Redelivered::runs(all.into_iter());
        assert_eq!(runs.iter().map(|run| run.count).collect::<Vec<_>>(), [2, 1, 1, 1]);
        let text = serde_json::to_string(&runs).unwrap();
        let read: Vec<Redelivered> = serde_json::from_str(&text).unwrap();
        assert_eq!(read.iter().flat_map(Redelivered::each).collect::<Vec<_>>(), all);
    }
}
