//! The end: when faults have stopped, everything that was accepted has its outcome, and everything that was recorded is archived.

use governance::{Decision, DispatchId, Timestamp};

use super::Oracle;

impl Oracle {
    /// What has not come to its end; none when the run may stop.
    #[must_use]
    pub fn unfinished(&self) -> Option<String> {
        for envelope in self.model.envelopes() {
            let Some((stored, _)) = envelope.stored else {
                if envelope.accepted {
                    return Some(format!("{envelope:?} was accepted and is not stored"));
                }
                continue;
            };
            for slot in 0..envelope.sent.count {
                let (instance, sequence) = (envelope.sent.instance, envelope.sent.sequence);
                let id = DispatchId { instance, sequence, slot, copy: 0 };
                let life = self.model.life(id);
                if life.and_then(|l| l.outcome).is_none() {
                    return Some(format!(
                        "{id}, stored at {stored:?}, has no outcome: {envelope:?}, {life:?}"
                    ));
                }
            }
        }
        let open = self.model.lives().find(|(_, life)| life.decided.is_some() && life.outcome.is_none());
        if let Some((id, life)) = open {
            return Some(format!("{id} has no outcome: {life:?}"));
        }
        let unarchived = self.unarchived();
        (unarchived > 0).then(|| format!("{unarchived} blocks are not archived"))
    }

    /// Judges what can only be judged at the end.
    pub fn finish(&mut self, now: Timestamp) {
        if let Some(what) = self.unfinished() {
            self.fail(format!("at {now:?}, long after the last fault: {what}"));
        }
        let ended = self.model.lives().filter(|(_, l)| l.outcome.is_some()).count() as u64;
        let fanned =
            |l: &crate::model::Life| l.decided.as_ref().is_some_and(|d| d.decision == Decision::FannedOut);
        let copies = self.model.lives().filter(|(_, l)| fanned(l)).count() as u64;
        *self.compared.entry("dispatches that ended").or_default() += ended;
        *self.compared.entry("events that were fanned out").or_default() += copies;
        self.judge_rates();
    }
}
