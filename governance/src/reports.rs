//! What homes report of each other's targets. Owns the counters at a home that is not the target's, and what the target's home
//! knows from all of them; the breaker and scaling decide what it means.
//!
//! Counters are cumulative since the reporting home began, so that the difference to the last report says what is new, whatever
//! was lost between. A reporting home is one ownership of one shard: a later ownership begins from zero, and what comes of an
//! earlier one is old.
//!
//! The rule it keeps: a run that was reported counts once. So the first report that comes of a home sets the base and counts for
//! nothing: its runs may be hours old, from before this core began, and would look like runs of this second. Little is lost, for
//! the first report goes out before the first run has ended, and a home that has been there for longer reports within a moment
//! of its next run. Where an earlier ownership of the same shard has been heard of, the later one began in this core's time: its
//! base is zero.

use std::time::Duration;

use crate::breaker::Ran;
use crate::effect::Effect;
use crate::governor::Governor;
use crate::knowledge::{HomeId, TargetReport};
use crate::names::AgentIx;
use crate::time::Timestamp;
use crate::timers::Timer;

/// What a home counts of a target of another home.
#[derive(Debug)]
pub(crate) struct Reporter {
    /// The gauges in it are those of the last look.
    counted: TargetReport,
    told: Option<Timestamp>,
    armed: Option<Timestamp>,
    /// In the list of those that are told at the end of this event.
    due: bool,
    /// What is told at once is told again a little later: a report that is lost must not hide a trip until the next run.
    again: bool,
}

/// How soon a change is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// It may trip a breaker.
    AtOnce,
    /// It is told with what else happens.
    Soon,
}

impl Reporter {
    pub(crate) const fn new() -> Self {
        let counted = TargetReport { finished: 0, errors: 0, over: 0, streak: 0, in_flight: 0, depth: 0 };
        Self { counted, told: None, armed: None, due: false, again: false }
    }

    fn count(&mut self, ran: Ran) {
        let count = u64::from(ran.count);
        self.counted.finished += count;
        self.counted.errors += if ran.failed { count } else { 0 };
        self.counted.over += if ran.over { count } else { 0 };
        self.counted.streak = if ran.failed { self.counted.streak.saturating_add(ran.count) } else { 0 };
    }

    /// When a change is told.
    fn next(&self, now: Timestamp, urgency: Urgency) -> Timestamp {
        match (self.told, urgency) {
            // The first report is the base for what follows, hence it goes before anything has ended.
            (None, _) => now,
            (Some(told), Urgency::AtOnce) => told.after(URGENT_PAUSE).max(now),
            (Some(_), Urgency::Soon) => now.after(REPORT_PAUSE),
        }
    }

    fn needs_refresh(&self, now: Timestamp) -> bool {
        let gauges = self.counted.in_flight > 0 || self.counted.depth > 0;
        gauges && self.told.is_some_and(|told| now.since(told) >= REFRESH)
    }
}

/// What other homes have reported of one target.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    /// In the order of the shards, one for each.
    known: Vec<Known>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    home: HomeId,
    report: TargetReport,
    seen: Timestamp,
}

/// Runs that a report tells beyond the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Difference {
    pub finished: u32,
    pub errors: u32,
    pub over: u32,
    /// Failures since the last success, as the reporting home saw them.
    pub streak: u32,
}

/// What there is of a target's dispatches at other homes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Elsewhere {
    pub in_flight: u32,
    pub depth: u32,
}

impl Reports {
    pub(crate) const fn new() -> Self {
        Self { known: Vec::new() }
    }

    /// Takes a report; what it tells beyond the last.
    pub(crate) fn on_report(
        &mut self,
        now: Timestamp,
        home: HomeId,
        report: &TargetReport,
    ) -> Option<Difference> {
        let fresh = Known { home, report: *report, seen: now };
        let known = match self.known.binary_search_by_key(&home.shard, |known| known.home.shard) {
            Ok(place) => &mut self.known[place],
            Err(gap) => {
                self.known.insert(gap, fresh);
                return None;
            }
        };
        let later = home.epoch > known.home.epoch;
        if home.epoch < known.home.epoch || !later && report.finished < known.report.finished {
            return None;
        }
        let base = if later { TargetReport::default() } else { known.report };
        *known = fresh;
        let beyond = |now: u64, base: u64| u32::try_from(now.saturating_sub(base)).unwrap_or(u32::MAX);
        Some(Difference {
            finished: beyond(report.finished, base.finished),
            errors: beyond(report.errors, base.errors),
            over: beyond(report.over, base.over),
            streak: report.streak,
        })
    }

    /// The gauges of those that have been heard of lately.
    pub(crate) fn elsewhere(&self, now: Timestamp) -> Elsewhere {
        let fresh = self.known.iter().filter(|known| now.since(known.seen) < GAUGE_LIFE);
        fresh.fold(Elsewhere::default(), |sum, known| Elsewhere {
            in_flight: sum.in_flight.saturating_add(known.report.in_flight),
            depth: sum.depth.saturating_add(known.report.depth),
        })
    }

    pub(crate) fn check_invariants(&self) {
        let ascend = self.known.windows(2).all(|pair| pair[0].home.shard < pair[1].home.shard);
        assert!(ascend, "each shard has one newest home");
    }
}

impl Governor {
    /// Runs of a target ended: its home judges, another home counts and tells.
    pub(crate) fn on_target_ran(
        &mut self,
        now: Timestamp,
        target: AgentIx,
        ran: Ran,
        effects: &mut Vec<Effect>,
    ) {
        let state = self.targets.at_mut(target);
        if let Some(away) = &mut state.away {
            away.reporter.count(ran);
            let urgency = if ran.failed || ran.over { Urgency::AtOnce } else { Urgency::Soon };
            return self.report_soon(now, target, urgency);
        }
        if !ran.failed {
            state.succeeded += u64::from(ran.count);
        }
        let change = state.breaker.on_ran(now, &self.policy.breaker, ran);
        self.on_breaker(target, change, effects);
    }

    /// Something that is reported changed; nothing where the target is at home here.
    pub(crate) fn report_soon(&mut self, now: Timestamp, target: AgentIx, urgency: Urgency) {
        let Some(away) = &mut self.targets.at_mut(target).away else { return };
        let reporter = &mut away.reporter;
        reporter.again |= urgency == Urgency::AtOnce;
        if reporter.due || urgency == Urgency::Soon && reporter.armed.is_some() {
            return;
        }
        let at = reporter.next(now, urgency);
        if at <= now {
            reporter.due = true;
            self.reports_due.push(target);
        } else if reporter.armed.is_none_or(|armed| at < armed) {
            reporter.armed = Some(at);
            self.timers.arm(at, Timer::Report(target));
        }
    }

    pub(crate) fn on_report_timer(&mut self, now: Timestamp, target: AgentIx) {
        let Some(away) = &mut self.targets.at_mut(target).away else { return };
        if away.reporter.armed.is_some_and(|at| at <= now) {
            away.reporter.armed = None;
            if !std::mem::replace(&mut away.reporter.due, true) {
                self.reports_due.push(target);
            }
        }
    }

    /// A second passed: what waits for a target of another home is looked at, and gauges are told again before they expire.
    pub(crate) fn refresh_report(&mut self, now: Timestamp, target: AgentIx, depth: u32) {
        let Some(away) = &mut self.targets.at_mut(target).away else { return };
        let changed = std::mem::replace(&mut away.reporter.counted.depth, depth) != depth;
        if away.reporter.needs_refresh(now) && !std::mem::replace(&mut away.reporter.due, true) {
            self.reports_due.push(target);
        } else if changed {
            self.report_soon(now, target, Urgency::Soon);
        }
    }

    /// Tells what is due. Once for each event, so that a batch of completions is one report.
    pub(crate) fn tell_reports(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        while let Some(target) = self.reports_due.pop() {
            let state = self.targets.at_mut(target);
            let in_flight = state.in_flight_total();
            let Some(away) = &mut state.away else { continue };
            let reporter = &mut away.reporter;
            reporter.due = false;
            reporter.told = Some(now);
            reporter.counted.in_flight = in_flight;
            effects.push(Effect::Report { target, report: reporter.counted });
            if std::mem::take(&mut reporter.again) {
                self.report_soon(now, target, Urgency::Soon);
            }
        }
    }

    /// Another home reports of a target that is at home here.
    pub(crate) fn on_target_reported(
        &mut self,
        now: Timestamp,
        target: AgentIx,
        from: HomeId,
        report: &TargetReport,
        effects: &mut Vec<Effect>,
    ) {
        // What a former home of a shard of this core still tells is old.
        if !self.is_home(target) || self.shards.contains(from.shard) {
            return;
        }
        let state = self.targets.at_mut(target);
        let Some(difference) = state.reports.on_report(now, from, report) else { return };
        state.succeeded += u64::from(difference.finished.saturating_sub(difference.errors));
        let change = state.breaker.on_reported(now, &self.policy.breaker, difference);
        self.on_breaker(target, change, effects);
    }
}

/// Failures and slow runs are told at once, but not more often than this: a hundred messages a second for each target at most.
const URGENT_PAUSE: Duration = Duration::from_millis(10);

/// Other changes are told so often: four messages a second for each target, and rates are judged over seconds.
const REPORT_PAUSE: Duration = Duration::from_millis(250);

/// Gauges are told again after this, though nothing changed, since those who know them forget them.
const REFRESH: Duration = Duration::from_secs(1);

/// Gauges that nobody told again for so long are forgotten: three refreshes, one or two of which may be lost.
const GAUGE_LIFE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + ms)
    }

    const fn home(shard: u8, epoch: u64) -> HomeId {
        HomeId { shard, epoch }
    }

    fn report(finished: u64, errors: u64, streak: u32) -> TargetReport {
        TargetReport { finished, errors, over: 0, streak, in_flight: 2, depth: 3 }
    }

    /// Reports one after another; what each told as (finished, errors).
    fn told(reports: &[(HomeId, TargetReport)]) -> Vec<Option<(u32, u32)>> {
        let mut known = Reports::new();
        let mut take = |(from, report): &(HomeId, TargetReport)| {
            let difference = known.on_report(at(0), *from, report);
            known.check_invariants();
            difference.map(|d| (d.finished, d.errors))
        };
        reports.iter().map(&mut take).collect()
    }

    #[test]
    fn the_first_report_is_the_base_and_later_ones_tell_what_is_new() {
        let of = home(1, 5);
        let reports = [(of, report(900, 800, 7)), (of, report(905, 801, 0)), (of, report(905, 801, 0))];
        assert_eq!(told(&reports), [None, Some((5, 1)), Some((0, 0))]);
    }

    #[test]
    fn a_lost_report_is_made_good_by_the_next_and_an_overtaken_one_counts_for_nothing() {
        let of = home(1, 5);
        let reports = [(of, report(0, 0, 0)), (of, report(9, 3, 0)), (of, report(4, 1, 0))];
        assert_eq!(told(&reports), [None, Some((9, 3)), None]);
    }

    #[test]
    fn a_later_ownership_begins_from_zero_and_an_earlier_one_is_old() {
        let reports = [
            (home(1, 5), report(900, 800, 7)),
            (home(1, 6), report(3, 1, 1)),
            (home(1, 5), report(950, 850, 9)),
            (home(1, 6), report(4, 1, 0)),
            (home(2, 3), report(70, 0, 0)),
        ];
        assert_eq!(told(&reports), [None, Some((3, 1)), None, Some((1, 0)), None]);
    }

    #[test]
    fn whatever_is_lost_doubled_or_overtaken_nothing_counts_twice() {
        let mut known = Reports::new();
        let (mut seed, mut epoch, mut ran, mut compared) = (7_u64, 1, TargetReport::default(), 0);
        let (mut told, mut newest, mut former) = (0_u64, None, 0_u64);
        let mut sent: Vec<(HomeId, TargetReport)> = Vec::new();
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let draw = seed >> 33;
            if draw.is_multiple_of(97) {
                (epoch, ran) = (epoch + 1, TargetReport::default());
            }
            ran.finished += draw % 5;
            sent.push((home(1, epoch), ran));
            // One of the last four, so that some never come, some twice, some late.
            let (from, report) = sent[sent.len() - 1 - (draw as usize % 4).min(sent.len() - 1)];
            let base = *newest.get_or_insert((from, report));
            if from.epoch > base.0.epoch {
                former += base.1.finished;
                newest = Some((from, report));
            } else if from.epoch == base.0.epoch && report.finished > base.1.finished {
                newest = Some((from, report));
            }
            told += known.on_report(at(0), from, &report).map_or(0, |d| u64::from(d.finished));
            let first = sent[0].1.finished;
            assert_eq!(told, former + newest.map_or(0, |(_, r)| r.finished) - first);
            compared += told;
        }
        assert!(compared > 0 && epoch > 100);
    }

    #[test]
    fn gauges_add_up_and_expire() {
        let mut known = Reports::new();
        known.on_report(at(0), home(1, 5), &report(0, 0, 0));
        known.on_report(at(1_000), home(2, 5), &report(0, 0, 0));
        known.on_report(at(1_000), home(1, 6), &report(0, 0, 0));
        assert_eq!(known.elsewhere(at(1_001)), Elsewhere { in_flight: 4, depth: 6 });
        known.on_report(at(3_000), home(2, 5), &report(0, 0, 0));
        assert_eq!(known.elsewhere(at(4_000)), Elsewhere { in_flight: 2, depth: 3 });
    }
}
