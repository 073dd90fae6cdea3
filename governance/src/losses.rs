//! Lost runners: how often an open dispatch was with an instance that vanished. Owns the count; whoever lets a redelivered
//! dispatch run asks here first.
//!
//! A dispatch that is delivered for the first time costs nothing here. From its first redelivery on it has an entry: who has
//! it, and how many had it and were lost. Lost means silent without a goodbye: what was given back in order, or comes again
//! because the broker started anew, counts for nothing. Who had it first is not known; there a loss of any instance of the
//! target since then counts.
//!
//! The rule it keeps: a loss counts once, and nobody is let run without being noted as the one who has it.

use std::collections::BTreeMap;

use crate::effect::Effect;
use crate::event::AskedToRun;
use crate::governor::Governor;
use crate::names::{DispatchId, InstanceId, OpenIx};
use crate::targets::{BEAT, QUIET};
use crate::time::Timestamp;

/// Who has a dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// Nobody was let run since the last one is known to have it no more.
    Nobody,
    /// This instance was let run.
    Instance(InstanceId),
    /// One that did not say who it is.
    Unnamed,
}

/// What is known of a dispatch that was delivered more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// How many instances had it and were lost.
    pub lost: u8,
    /// Who has it.
    pub holder: Holder,
    /// Since when.
    pub since: Timestamp,
}

/// What an instance is told that asks whether it may run a dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permit {
    /// It has ended.
    Ended,
    /// It may be run.
    Run,
    /// One loss more would end it: it is to be asked for by itself, when no other of this kind runs there.
    Alone,
    /// Not now: what became of the one who had it will be known in a moment, or it is about to end.
    Wait,
}

#[derive(Debug, Default)]
pub(crate) struct Losses {
    entries: BTreeMap<DispatchId, Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    loss: Loss,
    /// Its letter is being stored; it ends when that is done.
    condemned: bool,
}

impl Losses {
    pub(crate) fn restore(&mut self, id: DispatchId, loss: Loss) {
        self.entries.insert(id, Entry { loss, condemned: false });
    }

    /// These slots have ended.
    pub(crate) fn forget(&mut self, first: DispatchId, count: u16) {
        if !self.entries.is_empty() {
            for nth in 0..count {
                self.entries.remove(&DispatchId { slot: first.slot.saturating_add(nth), ..first });
            }
        }
    }

    /// The one who had it has told how it went.
    pub(crate) fn release(&mut self, id: DispatchId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.loss.holder = Holder::Nobody;
        }
    }

    /// An instance said goodbye: what it had it gave back.
    pub(crate) fn on_left(&mut self, instance: InstanceId) {
        let of_it = self.entries.values_mut().filter(|e| e.loss.holder == Holder::Instance(instance));
        of_it.for_each(|e| e.loss.holder = Holder::Nobody);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (DispatchId, Loss)> {
        self.entries.iter().map(|(id, entry)| (*id, entry.loss))
    }
}

impl Governor {
    /// An instance asks about redelivered dispatches, one after the other; one `Permit` answers for each slot.
    pub(crate) fn on_asked_to_run(&mut self, now: Timestamp, asked: &AskedToRun, effects: &mut Vec<Effect>) {
        for nth in 0..asked.count {
            let id = DispatchId { slot: asked.first.slot.saturating_add(nth), ..asked.first };
            let permit = match self.open.find(id) {
                Some((open, offset)) if !self.open.segment(open, offset, 1).ended => {
                    self.judge_asker(now, open, id, asked, effects)
                }
                Some(_) | None => Permit::Ended,
            };
            effects.push(Effect::Permit(permit));
        }
    }

    fn judge_asker(
        &mut self,
        now: Timestamp,
        open: OpenIx,
        id: DispatchId,
        asked: &AskedToRun,
        effects: &mut Vec<Effect>,
    ) -> Permit {
        let known = self.losses.entries.get(&id).copied();
        if known.is_some_and(|entry| entry.condemned) {
            return Permit::Wait;
        }
        let admitted = self.open.run(open).admitted;
        let before = known.map_or(Loss { lost: 0, holder: Holder::Unnamed, since: admitted }, |e| e.loss);
        let Some(runner) = self.runner(now, open, asked.runner) else { return Permit::Wait };
        let Some(was_lost) = self.was_lost(now, open, &before, runner) else { return Permit::Wait };
        if !was_lost && self.was_just_let_run(now, &before, runner) {
            return Permit::Wait;
        }
        let lost = before.lost.saturating_add(u8::from(was_lost));
        let max = self.policy.retries.crashes_max;
        let is_asker = matches!(runner, Holder::Instance(_)) && before.holder == runner;
        let (permit, holder) = if lost >= max {
            (Permit::Wait, Holder::Nobody)
        } else if lost + 1 == max && !asked.alone && !is_asker && runner != Holder::Unnamed {
            // It may still run where it was: only who is let run takes its place.
            (Permit::Alone, if was_lost { Holder::Nobody } else { before.holder })
        } else {
            (Permit::Run, runner)
        };
        let same = known.is_some() && (lost, holder) == (before.lost, before.holder);
        let after = Loss { lost, holder, since: if same { before.since } else { now } };
        let condemned = lost >= max;
        self.losses.entries.insert(id, Entry { loss: after, condemned });
        if known.is_none_or(|entry| entry.loss != after) {
            effects.push(Effect::Runner { open, id, loss: after });
        }
        if condemned {
            effects.push(Effect::Condemn { open, id, lost });
        }
        permit
    }

    /// The one who asks: named only where an instance of the target is known to live under that name, so that nobody speaks for
    /// one that is not there; none where that will be known in a moment.
    fn runner(&self, now: Timestamp, open: OpenIx, runner: Holder) -> Option<Holder> {
        let Holder::Instance(instance) = runner else { return Some(runner) };
        match self.targets.at(self.open.run(open).target).is_quiet(now, instance) {
            Some(false) => Some(runner),
            Some(true) => None,
            None => (!self.is_young(now)).then_some(Holder::Unnamed),
        }
    }

    /// Whether another instance, which lives, was let run a moment ago. The broker delivers what it handed out again after its
    /// patience only, or when it is given back: what comes sooner is mostly a second copy, called up by a word about an earlier
    /// delivery that came late, and the first is about to end it.
    fn was_just_let_run(&self, now: Timestamp, before: &Loss, runner: Holder) -> bool {
        let other = matches!(before.holder, Holder::Instance(_)) && before.holder != runner;
        other && now < before.since.after(QUIET)
    }

    /// Whether this core may have missed the heartbeat of an instance that lives.
    const fn is_young(&self, now: Timestamp) -> bool {
        now.0 < self.began.0.saturating_add((QUIET.as_nanos() + BEAT.as_nanos()) as u64)
    }

    /// Whether the one who had it was lost; none where that will be known in a moment only.
    fn was_lost(&self, now: Timestamp, open: OpenIx, before: &Loss, runner: Holder) -> Option<bool> {
        let target = self.targets.at(self.open.run(open).target);
        match before.holder {
            Holder::Nobody => Some(false),
            holder @ Holder::Instance(_) if holder == runner => Some(false),
            Holder::Instance(instance) => match target.is_quiet(now, instance) {
                Some(quiet) => Some(quiet),
                None => (!self.is_young(now)).then_some(true),
            },
            Holder::Unnamed => Some(target.lost_one_since(now, before.since)),
        }
    }

    /// The letter of a condemned dispatch is stored: it ends.
    pub(crate) fn on_condemned(&mut self, now: Timestamp, id: DispatchId, effects: &mut Vec<Effect>) {
        if self.losses.entries.get(&id).is_some_and(|entry| entry.condemned) {
            self.close_lost(now, id, effects);
        }
    }

    /// What redelivered dispatches have been through, for a snapshot.
    pub fn losses(&self) -> impl Iterator<Item = (DispatchId, Loss)> {
        self.losses.iter()
    }
}
