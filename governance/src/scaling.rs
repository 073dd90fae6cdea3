//! Scaling. Owns the triggers of one agent, a deep queue for long and idle instances for long, and the brakes that tell load from a
//! dependency that is frozen or slow.
//!
//! Up: more than the depth waits, without a break for `depth_for`. Down: on average less than the utilisation is in use, over
//! `utilisation_for`, and nothing was deep meanwhile. Between two steps lies `pause`, between two opposite ones
//! `utilisation_for`, so that a load that swings faster does not make the number swing. Where a step down was taken back by a
//! step up, the next one down waits twice as long, and again twice, until two in a row were right: so a load that swings more slowly
//! finds its number as well.
//!
//! Two brakes hold a step up that is due. Runs are under way and for `depth_for` none has succeeded: what they wait for is
//! frozen. Or the last step brought no gain: over `depth_for`, the new instances at work, not clearly more succeeded than over as
//! long before the step. Example: 300 succeed in 30 s on two instances. After the step to three there must be 330, or there is no
//! fourth. Of one more in ten nobody can expect a tenth, so half of the share that the step promises is enough as well.
//!
//! The rule it keeps: one step per decision and a pause between steps, so that a step shows its effect before the next.

use std::time::Duration;

use crate::policy::{ScalingPolicy, WHOLE_BP};
use crate::time::{Timestamp, nanos};
use crate::words::Reason;

/// What one agent's scaling remembers.
#[derive(Debug)]
pub(crate) struct Scaling {
    /// Since when it is deep without a break.
    deep_since: Option<Timestamp>,
    /// When it was last deep.
    deep_at: Option<Timestamp>,
    stepped: Option<Stepped>,
    /// A step down waits for so many times `utilisation_for` since the last step.
    patience: u32,
    /// Running and slots summed over the samples of each tenth of the averaging time.
    tenths: [Tenth; TENTHS],
    observed_since: Option<Timestamp>,
    progress: Progress,
    /// What the last step up is judged by.
    trial: Option<Trial>,
    /// It was told that a step is held; once while it is.
    held: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Tenth {
    number: u64,
    running: u64,
    slots: u64,
}

#[derive(Debug, Clone, Copy)]
struct Stepped {
    at: Timestamp,
    up: bool,
}

/// A step up, to be judged by what came of it.
#[derive(Debug, Clone, Copy)]
struct Trial {
    from: u32,
    /// What succeeded in `depth_for` before the step.
    before: u64,
    /// When as many instances as the step wanted were first seen.
    there_since: Option<Timestamp>,
}

/// One look at an agent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub depth: u32,
    pub running: u32,
    pub slots: u32,
    /// Admitted and not ended, anywhere.
    pub in_flight: u32,
    /// Runs that succeeded so far.
    pub succeeded: u64,
    pub instances: u32,
    pub instances_min: u32,
    pub instances_max: u32,
}

/// What a look came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advice {
    /// A step is due.
    Step { to: u32, reason: Reason, utilisation_bp: u32 },
    /// A step up is due and not taken.
    Hold { reason: Reason, utilisation_bp: u32 },
}

/// Whether a step up that is due may be taken.
enum Brake {
    Off,
    On(Reason),
    /// The last step has not shown its effect yet.
    TooEarly,
}

impl Scaling {
    pub(crate) const fn new() -> Self {
        let none = Tenth { number: 0, running: 0, slots: 0 };
        Self {
            deep_since: None,
            deep_at: None,
            stepped: None,
            patience: 1,
            tenths: [none; TENTHS],
            observed_since: None,
            progress: Progress::new(),
            trial: None,
            held: false,
        }
    }

    /// Looks at the agent, once a second; may ask for one step.
    pub(crate) fn on_sample(
        &mut self,
        now: Timestamp,
        rules: &ScalingPolicy,
        sample: Sample,
    ) -> Option<Advice> {
        self.note(now, rules, sample);
        self.judge_trial(now, rules, sample);
        if self.is_up_due(now, rules, sample) {
            return self.step_up(now, rules, sample);
        }
        self.is_down_due(now, rules, sample).then(|| {
            let utilisation_bp = self.utilisation_bp(now, rules);
            self.stepped(now, false);
            Advice::Step { to: sample.instances - 1, reason: Reason::UtilisationLow, utilisation_bp }
        })
    }

    fn note(&mut self, now: Timestamp, rules: &ScalingPolicy, sample: Sample) {
        self.progress.note(now, rules, sample);
        if sample.depth <= rules.depth {
            self.deep_since = None;
            self.held = false;
        } else {
            self.deep_at = Some(now);
            if self.deep_since.is_none() {
                self.deep_since = Some(now);
            }
        }
        if sample.slots == 0 {
            self.observed_since = None;
            return;
        }
        if self.observed_since.is_none() {
            self.observed_since = Some(now);
            self.tenths = [Tenth::default(); TENTHS];
        }
        let number = now.0 / tenth(rules.utilisation_for);
        let place = &mut self.tenths[(number % TENTHS as u64) as usize];
        if place.number != number {
            *place = Tenth { number, running: 0, slots: 0 };
        }
        place.running += u64::from(sample.running);
        place.slots += u64::from(sample.slots);
    }

    /// A trial begins when its instance is there, and ends without a verdict when the instance is gone again, or the queue was
    /// not deep for so long that the load is another one.
    fn judge_trial(&mut self, now: Timestamp, rules: &ScalingPolicy, sample: Sample) {
        let Some(trial) = &mut self.trial else { return };
        let there = sample.instances > trial.from;
        if there && trial.there_since.is_none() {
            trial.there_since = Some(now);
        }
        let gone = !there && trial.there_since.is_some();
        let calm = self.deep_at.is_some_and(|at| now.since(at) >= rules.depth_for);
        if gone || calm {
            self.trial = None;
        }
    }

    fn is_up_due(&self, now: Timestamp, rules: &ScalingPolicy, sample: Sample) -> bool {
        let pause = |stepped: Stepped| if stepped.up { rules.pause } else { rules.utilisation_for };
        sample.instances < sample.instances_max
            && self.deep_since.is_some_and(|since| now.since(since) >= rules.depth_for)
            && self.stepped.is_none_or(|stepped| now.since(stepped.at) >= pause(stepped))
    }

    fn step_up(&mut self, now: Timestamp, rules: &ScalingPolicy, sample: Sample) -> Option<Advice> {
        let utilisation_bp = self.utilisation_bp(now, rules);
        match self.brake(now, rules) {
            Brake::TooEarly => None,
            Brake::On(reason) => {
                let told = std::mem::replace(&mut self.held, true);
                (!told).then_some(Advice::Hold { reason, utilisation_bp })
            }
            Brake::Off => {
                let before = self.progress.recent(now, rules);
                self.stepped(now, true);
                self.trial = Some(Trial { from: sample.instances, before, there_since: None });
                let to = sample.instances + 1;
                Some(Advice::Step { to, reason: Reason::DepthSustained, utilisation_bp })
            }
        }
    }

    fn brake(&self, now: Timestamp, rules: &ScalingPolicy) -> Brake {
        if self.progress.stands_still_for(now) >= rules.depth_for {
            return Brake::On(Reason::TargetFrozen);
        }
        // An instance that nobody started is no trial; it is asked for again.
        let Some(Trial { from, before, there_since: Some(since) }) = self.trial else { return Brake::Off };
        if now.since(since) < rules.depth_for {
            return Brake::TooEarly;
        }
        let promised = WHOLE_BP / u64::from(from.max(1));
        let wanted = u64::from(rules.gain_bp).min(promised / 2);
        let gained = self.progress.recent(now, rules) * WHOLE_BP >= before * (WHOLE_BP + wanted);
        if gained { Brake::Off } else { Brake::On(Reason::ScalingNoGain) }
    }

    fn is_down_due(&self, now: Timestamp, rules: &ScalingPolicy, sample: Sample) -> bool {
        let for_long = |since: Timestamp| now.since(since) >= rules.utilisation_for;
        sample.instances > sample.instances_min.max(1)
            && self.observed_since.is_some_and(for_long)
            && self.deep_at.is_none_or(for_long)
            && self.stepped.is_none_or(|stepped| now.since(stepped.at) >= self.calm(rules))
            && self.utilisation_bp(now, rules) < rules.utilisation_bp
    }

    /// How long after a step the next one down may come.
    fn calm(&self, rules: &ScalingPolicy) -> Duration {
        rules.pause.max(rules.utilisation_for.saturating_mul(self.patience))
    }

    fn stepped(&mut self, now: Timestamp, up: bool) {
        match (self.stepped.map(|stepped| stepped.up), up) {
            (Some(false), true) => self.patience = (self.patience * 2).min(PATIENCE_MAX),
            (Some(false), false) => self.patience = 1,
            (Some(true) | None, _) => {}
        }
        self.stepped = Some(Stepped { at: now, up });
        self.deep_since = None;
        self.held = false;
        self.trial = None;
        // The average of the former number says nothing about the new one.
        self.observed_since = None;
    }

    fn utilisation_bp(&self, now: Timestamp, rules: &ScalingPolicy) -> u32 {
        let number = now.0 / tenth(rules.utilisation_for);
        let recent = self.tenths.iter().filter(|t| t.number + TENTHS as u64 > number);
        let (running, slots) = recent.fold((0, 0), |(r, s), t| (r + t.running, s + t.slots));
        utilisation_bp(running, slots)
    }
}

/// What succeeds, over time.
#[derive(Debug)]
struct Progress {
    succeeded: Option<u64>,
    /// When something last succeeded, or there was nothing that could have.
    moved: Option<Timestamp>,
    /// What succeeded in each tenth of `depth_for`: the present one and ten before it.
    parts: [(u64, u64); PARTS],
}

impl Progress {
    const fn new() -> Self {
        Self { succeeded: None, moved: None, parts: [(0, 0); PARTS] }
    }

    fn note(&mut self, now: Timestamp, rules: &ScalingPolicy, sample: Sample) {
        let gone = sample.succeeded.saturating_sub(self.succeeded.unwrap_or(sample.succeeded));
        let first = self.succeeded.replace(sample.succeeded).is_none();
        // Only what the mesh sent there and the instances run can succeed.
        let idle = sample.running == 0 || sample.in_flight == 0;
        if first || gone > 0 || idle {
            self.moved = Some(now);
        }
        let number = now.0 / tenth(rules.depth_for);
        let part = &mut self.parts[(number % PARTS as u64) as usize];
        if part.0 != number {
            *part = (number, 0);
        }
        part.1 += gone;
    }

    fn stands_still_for(&self, now: Timestamp) -> Duration {
        self.moved.map_or(Duration::ZERO, |moved| now.since(moved))
    }

    /// What succeeded in the last `depth_for`, in whole parts.
    fn recent(&self, now: Timestamp, rules: &ScalingPolicy) -> u64 {
        let number = now.0 / tenth(rules.depth_for);
        let whole = |part: u64| part < number && part + PARTS as u64 > number;
        self.parts.iter().filter(|(part, _)| whole(*part)).map(|(_, gone)| gone).sum()
    }
}

/// Running over slots in basis points; nothing runs where there are no slots.
pub(crate) fn utilisation_bp(running: u64, slots: u64) -> u32 {
    (running * WHOLE_BP).checked_div(slots).map_or(0, |bp| u32::try_from(bp).unwrap_or(u32::MAX))
}

fn tenth(whole: Duration) -> u64 {
    (nanos(whole) / TENTHS as u64).max(1)
}

const TENTHS: usize = 10;

/// The longest that a step down waits after others were taken back: with the article's five minutes an hour and twenty minutes.
const PATIENCE_MAX: u32 = 16;

/// Ten whole parts and the present one.
const PARTS: usize = TENTHS + 1;

#[cfg(test)]
mod tests;
