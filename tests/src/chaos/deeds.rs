//! What was done to the mesh, and when: the plan as it came to pass. Owns the record and what it excuses.
//!
//! The rule it keeps: every deed is in a file before it begins and after it ends, so that a run that breaks off says what it did;
//! and only what the promises name excuses anything.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use governance::Timestamp;
use serde_json::json;

use super::plan::{Fault, Link, Process};
use crate::clock;
use crate::conservation::Effect;

/// The silence after which an instance counts as lost, and as much again until everybody has heard that it is back.
const CONTACT: Duration = Duration::from_secs(6);
/// A broker, or a store, that was away: until connections stand again and what waited has gone through.
const SERVER_AFTERMATH: Duration = Duration::from_secs(4);
/// A coordinator that was cut off comes back as a stranger: what a take-over may take.
const LINK_AFTERMATH: Duration = Duration::from_secs(5);

/// One thing that was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deed {
    /// What.
    pub(super) fault: Fault,
    /// From when.
    pub(super) from: Timestamp,
    /// Until when; for what is over at once, its beginning.
    pub(super) until: Timestamp,
}

impl Deed {
    /// Whether it, or what follows from it for so long, falls into a time.
    pub(super) fn touches(&self, from: Timestamp, until: Timestamp, aftermath: Duration) -> bool {
        self.from <= until && from <= self.until.after(aftermath)
    }

    /// Whether contact was lost with the agents of a process, or publishes with the broker were: the exceptions of promise 2.
    fn parts_from(&self, process: &str) -> bool {
        let is = |victim: Process| victim.to_string() == process;
        match self.fault {
            Fault::Kill(victim) | Fault::Freeze(victim, _) => {
                is(victim) || matches!(victim, Process::Nats(..))
            }
            Fault::End(victim) | Fault::Fill(victim, _) => matches!(victim, Process::Nats(..)),
            Fault::Cut(Link { client, .. }, _) | Fault::Silence(Link { client, .. }, _) => is(client),
            Fault::Slow(..) => false,
        }
    }

    /// Whether a process that it parts from the mesh goes on afterwards with what it has.
    const fn is_survived(&self) -> bool {
        matches!(self.fault, Fault::Freeze(..) | Fault::Cut(..) | Fault::Silence(..))
    }

    /// How long after it a dispatch may still wait for its home on account of it; none where it keeps nobody waiting.
    fn keeps_waiting(&self) -> Option<Duration> {
        match self.fault {
            Fault::Kill(Process::Nats(..) | Process::Redis)
            | Fault::End(Process::Nats(..) | Process::Redis)
            | Fault::Freeze(Process::Nats(..) | Process::Redis, _)
            | Fault::Fill(Process::Nats(..) | Process::Redis, _) => Some(SERVER_AFTERMATH),
            Fault::Cut(Link { client: Process::Coordinator(_), .. }, _)
            | Fault::Silence(Link { client: Process::Coordinator(_), .. }, _)
            | Fault::Slow(Link { client: Process::Coordinator(_), .. }, ..) => Some(LINK_AFTERMATH),
            Fault::Kill(_)
            | Fault::End(_)
            | Fault::Freeze(..)
            | Fault::Fill(..)
            | Fault::Cut(..)
            | Fault::Silence(..)
            | Fault::Slow(..) => None,
        }
    }
}

/// All that was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Deeds(pub(super) Vec<Deed>);

impl Deeds {
    /// What of promise 2 excuses that the second run follows the first: contact with either was lost, the second being the one
    /// that had it first, and that goes on with it when it wakes up; or the broker was away.
    pub(super) fn excuse(&self, former: &Effect, latter: &Effect) -> Option<String> {
        let excuses = |deed: &&Deed| {
            let woken =
                latter.attempt <= former.attempt && deed.is_survived() && deed.parts_from(&latter.process);
            (deed.parts_from(&former.process) || woken) && deed.touches(former.at, latter.at, CONTACT)
        };
        let deed = self.0.iter().find(excuses)?;
        Some(format!("{} at {:.3}", deed.fault, deed.from.0 as f64 / 1e9))
    }

    /// How much of a wait falls into times at which servers, or the ways to them, were away or just back.
    pub(super) fn excused_wait(&self, from: Timestamp, until: Timestamp) -> Duration {
        let away = |deed: &Deed| {
            let end = deed.until.after(deed.keeps_waiting()?);
            Some((deed.from.max(from), end.min(until))).filter(|(from, until)| from < until)
        };
        let mut away: Vec<_> = self.0.iter().filter_map(away).collect();
        away.sort_unstable();
        let (mut excused, mut reached) = (0, from);
        for (begin, end) in away {
            excused += end.0.saturating_sub(begin.max(reached).0);
            reached = reached.max(end);
        }
        Duration::from_nanos(excused)
    }
}

/// The record as it is written: lines of JSON.
#[derive(Debug, Clone)]
pub(super) struct Journal {
    file: Arc<Mutex<File>>,
    deeds: Arc<Mutex<Deeds>>,
}

impl Journal {
    /// A new one.
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("failed to make {}", path.display()))?;
        Ok(Self { file: Arc::new(Mutex::new(file)), deeds: Arc::default() })
    }

    /// Something begins.
    pub(super) fn begin(&self, fault: Fault) -> anyhow::Result<Timestamp> {
        let now = clock();
        self.line(fault, "begins", now)?;
        tracing::info!(%fault, "now");
        Ok(now)
    }

    /// It is over.
    pub(super) fn end(&self, fault: Fault, from: Timestamp) -> anyhow::Result<()> {
        let until = clock();
        self.deeds.lock().unwrap_or_else(PoisonError::into_inner).0.push(Deed { fault, from, until });
        self.line(fault, "is over", until)
    }

    /// What was done so far.
    pub(super) fn deeds(&self) -> Deeds {
        self.deeds.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn line(&self, fault: Fault, what: &str, at: Timestamp) -> anyhow::Result<()> {
        let line = json!({
            "at": at.0 as f64 / 1e9, "fault": fault.to_string(), "kind": fault.kind(), "whom": fault.whom(), "it": what,
        });
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(file, "{line}").context("failed to note what is done")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(process: &str, second: u64) -> Effect {
        let (process, agent) = (process.to_owned(), "worker-0".to_owned());
        Effect {
            attempt: 1,
            at: Timestamp::from_millis(second * 1_000),
            process,
            pid: 1,
            agent,
            failed: false,
        }
    }

    fn deeds(fault: Fault, from: u64, until: u64) -> Deeds {
        let second = |s: u64| Timestamp::from_millis(s * 1_000);
        Deeds(vec![Deed { fault, from: second(from), until: second(until) }])
    }

    #[test]
    fn only_lost_contact_with_the_former_runner_or_the_broker_excuses() {
        let excused = |deeds: &Deeds| deeds.excuse(&run("crew-0", 20), &run("crew-1", 30)).is_some();
        assert!(excused(&deeds(Fault::Kill(Process::Crew(0)), 21, 21)));
        assert!(!excused(&deeds(Fault::Kill(Process::Crew(1)), 21, 21)), "that was the other one");
        assert!(!excused(&deeds(Fault::End(Process::Crew(0)), 21, 21)), "it drains");
        assert!(!excused(&deeds(Fault::Kill(Process::Crew(0)), 31, 31)), "too late");
        assert!(!excused(&deeds(Fault::Kill(Process::Crew(0)), 2, 3)), "too early");
        assert!(excused(&deeds(Fault::Freeze(Process::Crew(0), Duration::ZERO), 10, 19)));
        assert!(excused(&deeds(Fault::Kill(Process::Nats(0, 1)), 25, 25)));
        assert!(!excused(&deeds(Fault::Kill(Process::Coordinator(0)), 25, 25)), "homes may die");
        let woken = deeds(Fault::Freeze(Process::Crew(1), Duration::ZERO), 19, 25);
        assert!(excused(&woken), "it had it first, and went on with it");
        let again = Effect { attempt: 2, ..run("crew-1", 30) };
        assert!(woken.excuse(&run("crew-0", 20), &again).is_none(), "it was given it again");
        let link = Link { client: Process::Crew(0), server: Process::Nats(0, 1) };
        assert!(excused(&deeds(Fault::Cut(link, Duration::ZERO), 22, 27)));
        assert!(!excused(&deeds(Fault::Slow(link, Duration::ZERO, Duration::ZERO, 1), 22, 27)));
    }

    #[test]
    fn a_wait_is_excused_while_servers_are_away_and_by_nothing_else() {
        let at = |s: u64| Timestamp::from_millis(s * 1_000);
        let excused = |deeds: &Deeds| deeds.excused_wait(at(20), at(30)).as_secs();
        let freeze = |process| Fault::Freeze(process, Duration::ZERO);
        assert_eq!(excused(&deeds(freeze(Process::Redis), 12, 18)), 2, "just back");
        assert_eq!(excused(&deeds(freeze(Process::Redis), 5, 10)), 0);
        assert_eq!(excused(&deeds(freeze(Process::Redis), 22, 23)), 5);
        assert_eq!(excused(&deeds(Fault::Kill(Process::Coordinator(1)), 20, 20)), 0);
        assert_eq!(excused(&deeds(freeze(Process::Postgres), 12, 25)), 0);
        let mut both = deeds(freeze(Process::Redis), 22, 23);
        both.0.extend(deeds(freeze(Process::Nats(0, 1)), 21, 24).0);
        assert_eq!(excused(&both), 7, "once, where two were away");
    }
}
