//! The breaker of a target whose home is elsewhere, as its home tells it. Owns what is known of it, and the probe that is asked for
//! and granted; judges nothing.
//!
//! While the target is tripped, what goes to it is answered here as its home would answer. When a probe is due by what is known,
//! the first dispatch that could serve asks for it and waits a moment; the others are answered meanwhile. A grant that nothing
//! came to use is given back.
//!
//! The rule it keeps: nothing goes to a target that is not passing, except one dispatch for each grant of its home.

use std::time::Duration;

use crate::facts::BreakerFacts;
use crate::knowledge::{GRANT_WAIT, Grant};
use crate::lanes::QueueIx;
use crate::policy::BreakerPolicy;
use crate::time::Timestamp;
use crate::words::{BreakerState, Reason};

/// What is known of the breaker of a target of another home.
#[derive(Debug)]
pub(crate) struct Mirror {
    state: BreakerState,
    reason: Reason,
    since: Timestamp,
    /// From when on asking for a probe makes sense; never while it passes, nor where an operator tripped it.
    ask_at: Option<Timestamp>,
    asked: Option<Asked>,
    granted: Option<Granted>,
}

/// A probe that was asked for, by the head of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    at: Timestamp,
    by: QueueIx,
}

/// A probe that was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Granted {
    asked: Timestamp,
    /// It may be used before this.
    until: Timestamp,
}

/// What a breaker lets go, here or elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stand {
    /// Everything.
    Passes,
    /// The next dispatch, as the probe.
    MayProbe,
    /// Nothing yet; the next dispatch may ask for the probe.
    MayAsk,
    /// Nothing yet; the head of this queue has asked and waits until then.
    Asks(Timestamp),
    /// Nothing; when that may change, where it is known.
    Bars(Option<Timestamp>),
}

/// What the answer to an ask for a probe means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The grant may be used before this.
    Granted(Timestamp),
    /// The grant came too late, or for a breaker that passes: its home is told that it goes unused.
    GiveBack,
    /// Asking again makes sense then.
    Refused(Timestamp),
}

impl Mirror {
    pub(crate) const fn new() -> Self {
        Self {
            state: BreakerState::Passing,
            reason: Reason::Ok,
            since: Timestamp::ZERO,
            ask_at: None,
            asked: None,
            granted: None,
        }
    }

    /// Its home says how it stands. Whether that is news.
    pub(crate) fn on_known(
        &mut self,
        rules: &BreakerPolicy,
        state: BreakerState,
        reason: Reason,
        since: Timestamp,
    ) -> bool {
        // What is told twice must not undo what a refusal said since.
        if (self.state, self.reason, self.since) == (state, reason, since) {
            return false;
        }
        (self.state, self.reason, self.since) = (state, reason, since);
        let probed = state != BreakerState::Passing && reason != Reason::Operator;
        self.ask_at = probed.then(|| since.after(rules.probe_interval));
        if !probed {
            self.granted = None;
        }
        true
    }

    pub(crate) fn stand(&self, now: Timestamp, queue: QueueIx) -> Stand {
        if self.passes() {
            return Stand::Passes;
        }
        if self.granted.is_some_and(|granted| now < granted.until) {
            return Stand::MayProbe;
        }
        match self.asked {
            Some(asked) if asked.by == queue => Stand::Asks(asked.at.after(GRANT_WAIT)),
            Some(_) => Stand::Bars(self.ask_at),
            None if self.may_ask(now) => Stand::MayAsk,
            None => Stand::Bars(self.ask_at),
        }
    }

    pub(crate) fn passes(&self) -> bool {
        self.state == BreakerState::Passing
    }

    /// Whether the next dispatch may go as the probe, or may ask to.
    pub(crate) fn may_ask(&self, now: Timestamp) -> bool {
        self.asked.is_none() && self.ask_at.is_some_and(|at| at <= now)
    }

    /// When the grant that may be used was asked for.
    pub(crate) fn asked_for_grant(&self) -> Option<Timestamp> {
        self.granted.map(|granted| granted.asked)
    }

    pub(crate) const fn ask_at(&self) -> Option<Timestamp> {
        self.ask_at
    }

    /// The head of a queue asks for the probe.
    pub(crate) fn ask(&mut self, now: Timestamp, by: QueueIx) {
        assert!(self.asked.is_none(), "one ask for a probe is under way at a time");
        self.asked = Some(Asked { at: now, by });
    }

    /// The home of the target answered what was asked at `asked`.
    pub(crate) fn on_answer(
        &mut self,
        now: Timestamp,
        rules: &BreakerPolicy,
        asked: Timestamp,
        grant: Option<Grant>,
    ) -> Answer {
        if self.asked.is_some_and(|own| own.at == asked) {
            self.asked = None;
        }
        let again = |wait: Duration| now.after(wait.max(ASK_PAUSE));
        let Some(Grant { count, wait }) = grant else { return self.refused(again(ASK_PAUSE)) };
        if count == 0 {
            return self.refused(again(wait));
        }
        let until = asked.after(rules.ping_after.max(GRANT_WAIT));
        if now >= until || self.ask_at.is_none() {
            return Answer::GiveBack;
        }
        self.granted = Some(Granted { asked, until });
        Answer::Granted(until)
    }

    fn refused(&mut self, again: Timestamp) -> Answer {
        if self.ask_at.is_some() {
            self.ask_at = Some(again);
        }
        Answer::Refused(again)
    }

    /// The granted probe goes; its home says later what became of the breaker.
    pub(crate) fn use_grant(&mut self, now: Timestamp, rules: &BreakerPolicy) {
        assert!(self.granted.is_some_and(|granted| now < granted.until), "a probe goes with a grant");
        self.granted = None;
        self.ask_at = Some(now.after(rules.probe_interval));
    }

    /// Time passed: whether a grant went unused and is given back.
    pub(crate) fn on_time(&mut self, now: Timestamp) -> bool {
        if self.asked.is_some_and(|asked| asked.at.after(GRANT_WAIT) <= now) {
            self.asked = None;
            _ = self.refused(now.after(ASK_PAUSE));
        }
        let unused = self.granted.is_some_and(|granted| granted.until <= now);
        if unused {
            self.granted = None;
            self.ask_at = self.ask_at.map(|_| now.after(ASK_PAUSE));
        }
        unused
    }

    pub(crate) const fn facts(&self) -> BreakerFacts {
        BreakerFacts {
            state: self.state,
            reason: self.reason,
            since: self.since,
            probe_at: self.ask_at,
            samples: 0,
            errors: 0,
            over: 0,
            in_row: 0,
        }
    }

    pub(crate) fn check_invariants(&self) {
        assert!(self.ask_at.is_none() || !self.passes(), "no probe is asked for where everything passes");
        assert!(self.granted.is_none() || self.ask_at.is_some(), "a grant is for a breaker that is probed");
    }
}

/// After a refusal, or where nobody answered, a probe is asked for no sooner: each ask keeps a dispatch waiting.
const ASK_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: QueueIx = QueueIx(3);
    const OTHER: QueueIx = QueueIx(4);

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + ms)
    }

    fn rules() -> BreakerPolicy {
        BreakerPolicy::default()
    }

    fn tripped() -> Mirror {
        let mut mirror = Mirror::new();
        assert!(mirror.on_known(&rules(), BreakerState::Tripped, Reason::ErrorRate, at(0)));
        mirror
    }

    fn granted(count: u32) -> Option<Grant> {
        Some(Grant { count, wait: Duration::from_secs(7) })
    }

    #[test]
    fn the_first_that_could_serve_asks_and_the_others_are_barred() {
        let mut mirror = tripped();
        assert_eq!(mirror.stand(at(29_999), QUEUE), Stand::Bars(Some(at(30_000))));
        assert_eq!(mirror.stand(at(30_000), QUEUE), Stand::MayAsk);
        mirror.ask(at(30_000), QUEUE);
        assert_eq!(mirror.stand(at(30_001), QUEUE), Stand::Asks(at(30_250)));
        assert_eq!(mirror.stand(at(30_001), OTHER), Stand::Bars(Some(at(30_000))));
        let answer = mirror.on_answer(at(30_002), &rules(), at(30_000), granted(1));
        assert_eq!(answer, Answer::Granted(at(31_000)));
        assert_eq!(mirror.stand(at(30_002), OTHER), Stand::MayProbe);
        mirror.use_grant(at(30_002), &rules());
        assert_eq!(mirror.stand(at(30_003), QUEUE), Stand::Bars(Some(at(60_002))));
    }

    #[test]
    fn a_refusal_says_when_to_ask_again() {
        let mut mirror = tripped();
        mirror.ask(at(30_000), QUEUE);
        let answer = mirror.on_answer(at(30_002), &rules(), at(30_000), granted(0));
        assert_eq!(answer, Answer::Refused(at(37_002)));
        assert_eq!(mirror.stand(at(37_001), QUEUE), Stand::Bars(Some(at(37_002))));
        assert_eq!(mirror.stand(at(37_002), QUEUE), Stand::MayAsk);
    }

    #[test]
    fn an_unanswered_ask_ends_after_a_moment() {
        let mut mirror = tripped();
        mirror.ask(at(30_000), QUEUE);
        assert!(!mirror.on_time(at(30_249)));
        assert_eq!(mirror.stand(at(30_249), QUEUE), Stand::Asks(at(30_250)));
        assert!(!mirror.on_time(at(30_250)));
        assert_eq!(mirror.stand(at(30_250), QUEUE), Stand::Bars(Some(at(31_250))));
        let late = mirror.on_answer(at(30_900), &rules(), at(30_000), granted(1));
        assert_eq!(late, Answer::Granted(at(31_000)), "late, but in its time");
    }

    #[test]
    fn what_goes_unused_or_comes_too_late_is_given_back() {
        let mut mirror = tripped();
        mirror.ask(at(30_000), QUEUE);
        mirror.on_answer(at(30_002), &rules(), at(30_000), granted(1));
        assert!(!mirror.on_time(at(30_999)));
        assert!(mirror.on_time(at(31_000)));
        assert!(!mirror.on_time(at(31_001)), "once");
        let answer = mirror.on_answer(at(31_000), &rules(), at(30_000), granted(1));
        assert_eq!(answer, Answer::GiveBack);
    }

    #[test]
    fn what_an_operator_tripped_is_never_probed() {
        let mut mirror = tripped();
        mirror.on_known(&rules(), BreakerState::Tripped, Reason::Operator, at(10));
        assert_eq!(mirror.stand(at(900_000), QUEUE), Stand::Bars(None));
        mirror.check_invariants();
    }

    #[test]
    fn news_that_come_twice_do_not_undo_a_refusal() {
        let mut mirror = tripped();
        mirror.ask(at(30_000), QUEUE);
        mirror.on_answer(at(30_002), &rules(), at(30_000), granted(0));
        assert!(!mirror.on_known(&rules(), BreakerState::Tripped, Reason::ErrorRate, at(0)));
        assert_eq!(mirror.stand(at(30_003), QUEUE), Stand::Bars(Some(at(37_002))));
    }
}
