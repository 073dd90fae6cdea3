//! The closed lists of the field: priorities, kinds, outcomes, decisions, reasons. Owns their stable names and numbers.
//!
//! The rule it keeps: a number or a name, once given, never changes its meaning; new ones are appended. Reasons are those that
//! grow, and nobody decides by one that another wrote: one from a newer build is read, kept and passed on under its number.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is in none of the closed lists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not a {what}; known are {known}")]
pub struct WordError {
    /// The list that was asked.
    pub what: &'static str,
    /// What was given.
    pub found: String,
    /// The names in the list.
    pub known: String,
}

/// What a list can be turned into.
macro_rules! texts {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl From<$type> for String {
            fn from(w: $type) -> Self {
                w.name().to_owned()
            }
        }
    };
}

macro_rules! words {
    ($(#[$doc:meta])* $type:ident $what:literal { $($(#[$vdoc:meta])* $variant:ident = $number:literal $name:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        #[repr(u8)]
        pub enum $type { $($(#[$vdoc])* $variant = $number,)+ }

        impl $type {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The stable name, as in JSON, metrics and the audit.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The stable number, as on the wire.
            #[must_use]
            pub const fn code(self) -> u8 {
                self as u8
            }

            /// Reads the stable number.
            #[must_use]
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($number => Some(Self::$variant),)+ _ => None }
            }
        }

        impl FromStr for $type {
            type Err = WordError;
            fn from_str(s: &str) -> Result<Self, WordError> {
                match s {
                    $($name => Ok(Self::$variant),)+
                    other => Err(unknown($what, other, &[$($name),+])),
                }
            }
        }

        impl TryFrom<String> for $type {
            type Error = WordError;
            fn try_from(s: String) -> Result<Self, WordError> { s.parse() }
        }

        texts!($type);
    };
}

/// The same for a list whose later words are read by builds that do not have them yet.
macro_rules! growing_words {
    ($(#[$doc:meta])* $type:ident $what:literal { $($(#[$vdoc:meta])* $variant:ident = $number:literal $name:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        pub enum $type {
            $($(#[$vdoc])* $variant,)+
            /// A word of a newer build, known by its number alone.
            Newer(Newer),
        }

        impl $type {
            /// All that this build knows, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The stable name, as in JSON, metrics and the audit; `reason_200` for what a newer build calls 200.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                    Self::Newer(word) => word.name(),
                }
            }

            /// The stable number, as on the wire.
            #[must_use]
            pub const fn code(self) -> u8 {
                match self {
                    $(Self::$variant => $number,)+
                    Self::Newer(Newer(code)) => code,
                }
            }

            /// Reads the stable number: every number is a word, now or later.
            #[must_use]
            pub const fn from_code(code: u8) -> Self {
                match code {
                    $($number => Self::$variant,)+
                    code => Self::Newer(Newer(code)),
                }
            }
        }

        impl FromStr for $type {
            type Err = WordError;
            fn from_str(s: &str) -> Result<Self, WordError> {
                match s {
                    $($name => Ok(Self::$variant),)+
                    other => match other.strip_prefix(NEWER).and_then(|code| code.parse().ok()) {
                        // It was noted by a build that did not know it; this one may.
                        Some(code) => Ok(Self::from_code(code)),
                        None => Err(unknown($what, other, &[$($name),+])),
                    },
                }
            }
        }

        impl From<String> for $type {
            /// A name that is unknown is the name of a newer build's word; of its number nothing is said.
            fn from(s: String) -> Self { s.parse().unwrap_or(Self::Newer(Newer(u8::MAX))) }
        }

        texts!($type);
    };
}

fn unknown(what: &'static str, found: &str, known: &[&str]) -> WordError {
    WordError { what, found: found.chars().take(64).collect(), known: known.join(", ") }
}

/// The number of a word that this build does not have. Made by reading one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Newer(u8);

/// What the name of such a word begins with.
const NEWER: &str = "reason_";

impl Newer {
    const fn name(self) -> &'static str {
        let (text, length) = &NEWER_NAMES[self.0 as usize];
        match std::str::from_utf8(text.split_at(*length).0) {
            Ok(name) => name,
            Err(_) => NEWER,
        }
    }
}

/// The names of all numbers and how long they are, made when this is compiled: a name is asked for where nothing may be allocated.
static NEWER_NAMES: [([u8; NEWER.len() + 3], usize); 256] = {
    let mut names = [([0; NEWER.len() + 3], 0); 256];
    let mut code = 0;
    while code < names.len() {
        let digits = if code < 10 {
            1
        } else if code < 100 {
            2
        } else {
            3
        };
        let (text, length) = &mut names[code];
        *length = NEWER.len() + digits;
        let (mut at, mut rest) = (*length, code);
        while at > NEWER.len() {
            at -= 1;
            text[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        while at > 0 {
            at -= 1;
            text[at] = NEWER.as_bytes()[at];
        }
        code += 1;
    }
    names
};

words! {
    /// How urgent a dispatch is; the article's table. Smaller is more urgent.
    Priority "priority" {
        /// A person waits: 200 ms.
        P0 = 0 "P0",
        /// A handoff decision: 500 ms.
        P1 = 1 "P1",
        /// Normal work: 2 s.
        P2 = 2 "P2",
        /// Analytics and reports: 10 s.
        P3 = 3 "P3",
    }
}

words! {
    /// What a dispatch is.
    Kind "kind" {
        /// Wants a reply.
        Request = 0 "request",
        /// The reply of a request; part of the request's record.
        Response = 1 "response",
        /// Wants none.
        Event = 2 "event",
        /// A failed reply; part of the request's record.
        Error = 3 "error",
    }
}

words! {
    /// How a dispatch ended. Each accepted dispatch has exactly one.
    Outcome "outcome" {
        /// The handler answered.
        Success = 0 "success",
        /// The handler failed, or its retries are spent.
        Failure = 1 "failure",
        /// The deadline passed first.
        Timeout = 2 "timeout",
        /// The target's breaker was tripped; a fallback may have answered.
        CircuitBroken = 3 "circuit_broken",
        /// The rules refused it.
        Rejected = 4 "rejected",
        /// The caller withdrew it.
        Cancelled = 5 "cancelled",
    }
}

words! {
    /// What the core decided about a dispatch.
    Decision "decision" {
        /// It went to its target.
        Admitted = 0 "admitted",
        /// It was refused with a typed error.
        Rejected = 1 "rejected",
        /// A fallback answered in the target's place.
        Fallback = 2 "fallback",
        /// It ended while it waited.
        Expired = 3 "expired",
        /// It named a topic and became one copy for each subscriber.
        FannedOut = 4 "fanned_out",
    }
}

growing_words! {
    /// Why a decision, a wait or an outcome is what it is. The same name stands in the reply, the audit, the metric
    /// and what `mesh` shows.
    Reason "reason" {
        /// Declared, within quota, target passing.
        Ok = 0 "ok",
        /// The mesh picked the target by capability: passing, then least loaded.
        RoutedByCapability = 1 "routed_by_capability",
        /// P0 was claimed without the right to it; it went as P1.
        DemotedFromP0 = 2 "demoted_from_p0",
        /// It went as the probe that a tripped breaker was granted.
        Probe = 3 "probe",
        /// A fallback agent took the place of a tripped target.
        FallbackAgent = 4 "fallback_agent",
        /// A registered static payload answered for a tripped target.
        FallbackStatic = 5 "fallback_static",
        /// One copy of an event for a subscriber of its topic.
        TopicCopy = 6 "topic_copy",
        /// It waited its whole budget and moved up one class.
        AgedUp = 7 "aged_up",

        /// The source is not registered.
        UnknownSource = 20 "unknown_source",
        /// The named target is not registered.
        UnknownTarget = 21 "unknown_target",
        /// The target does not offer the capability.
        UnknownCapability = 22 "unknown_capability",
        /// The source did not declare that it calls this.
        UndeclaredDependency = 23 "undeclared_dependency",
        /// Nobody offers the capability.
        NoProvider = 24 "no_provider",
        /// Nobody subscribes to the topic; the event ends as delivered to nobody.
        NoSubscriber = 25 "no_subscriber",
        /// More hops than the policy allows.
        TooManyHops = 26 "too_many_hops",
        /// The same agent and capability three times in the ancestry.
        Loop = 27 "loop",
        /// The seal of the parent's lineage does not fit: forged or damaged.
        InvalidLineage = 28 "invalid_lineage",
        /// The bytes could not be read.
        Malformed = 29 "malformed",
        /// A dispatch with this idempotency key was accepted before.
        DuplicateKey = 30 "duplicate_key",
        /// The source's lane for this target is full; the broker refused the message.
        LaneFull = 31 "lane_full",
        /// The target's breaker is tripped and it has no fallback.
        BreakerTripped = 32 "breaker_tripped",

        /// The source is over its quota; it waits in its lane.
        QuotaExceeded = 40 "quota_exceeded",
        /// The target receives no more than its hard rate.
        TargetRate = 41 "target_rate",
        /// The target's inbox is full.
        InboxFull = 42 "inbox_full",
        /// An earlier dispatch with the same order key still runs.
        OrderKeyBusy = 43 "order_key_busy",
        /// P3 waits while P0 suffers.
        Deferred = 44 "deferred",
        /// An operator paused it.
        Paused = 45 "paused",
        /// The target has no live instance.
        NoInstance = 46 "no_instance",
        /// An event waits for a tripped target.
        AwaitsRecovery = 47 "awaits_recovery",
        /// The coordinator's in-flight window is full.
        WindowFull = 48 "window_full",

        /// The deadline passed in the lane.
        ExpiredInLane = 60 "expired_in_lane",
        // 61 was set apart and never written: what a deadline ends in its inbox is 68, since an instance may just have begun it.
        /// The deadline passed while the handler ran.
        ExpiredRunning = 62 "expired_running",
        /// The handler returned an error.
        HandlerFailed = 63 "handler_failed",
        /// The handler panicked.
        HandlerCrashed = 64 "handler_crashed",
        /// The instance has no handler for the capability.
        NotHandled = 65 "not_handled",
        /// All attempts of an event failed; it is in the dead-letter queue.
        AttemptsExhausted = 66 "attempts_exhausted",
        /// The caller withdrew it.
        CancelledByCaller = 67 "cancelled_by_caller",
        /// The deadline passed after it was admitted; whether a handler ran, or it lay in its inbox to the end, is unknown.
        ExpiredUnknown = 68 "expired_unknown",
        /// Instances that ran it were lost one after the other, as many as the policy allows; it is in the dead-letter queue.
        RunnerLost = 69 "runner_lost",

        /// The error rate in the window exceeded its bound.
        ErrorRate = 80 "error_rate_exceeded",
        /// More runs over 120 % of the SLA than the bound.
        SlaExceeded = 81 "sla_exceeded",
        /// Five failures in a row.
        FailuresInRow = 82 "failures_in_row",
        /// A probe succeeded.
        ProbeSucceeded = 83 "probe_succeeded",
        /// A probe failed.
        ProbeFailed = 84 "probe_failed",
        /// An operator did it.
        Operator = 85 "operator",
        /// The time for a probe has come.
        ProbeDue = 86 "probe_due",
        /// The queue was deep for long.
        DepthSustained = 87 "depth_sustained",
        /// The instances were idle for long.
        UtilisationLow = 88 "utilisation_low",
        /// Runs are under way and none has succeeded for long: more instances would not help.
        TargetFrozen = 89 "target_frozen",
        /// The last instance more did not let more succeed: one more would not either.
        ScalingNoGain = 90 "scaling_no_gain",
    }
}

words! {
    /// The state of a target's breaker.
    BreakerState "breaker state" {
        /// Dispatches pass.
        Passing = 0 "passing",
        /// Fallbacks answer.
        Tripped = 1 "tripped",
        /// One probe is under way.
        Probing = 2 "probing",
    }
}

impl Decision {
    /// Whether the dispatch went on its way to a target, and so counts against its source's quota.
    #[must_use]
    pub const fn reaches_target(self) -> bool {
        matches!(self, Self::Admitted)
    }
}

impl Reason {
    /// Whether this refusal is a governance violation: the source tried what its registration does not allow.
    #[must_use]
    pub const fn is_violation(self) -> bool {
        matches!(
            self,
            Self::UnknownSource
                | Self::UnknownTarget
                | Self::UnknownCapability
                | Self::UndeclaredDependency
                | Self::TooManyHops
                | Self::Loop
                | Self::InvalidLineage
                | Self::DemotedFromP0
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_a_reason_with_a_name_that_leads_back_to_it() {
        for code in 0..=u8::MAX {
            let reason = Reason::from_code(code);
            assert_eq!(reason.code(), code);
            assert_eq!(reason.name().parse(), Ok(reason), "{reason}");
            let known = Reason::ALL.contains(&reason);
            assert_eq!(reason.name() == format!("reason_{code}"), !known, "{reason}");
        }
    }

    #[test]
    fn what_an_older_build_called_by_its_number_is_known_by_its_name() {
        assert_eq!("reason_69".parse(), Ok(Reason::RunnerLost));
        assert_eq!(Reason::from("reason_69".to_owned()), Reason::RunnerLost);
        assert!(Reason::from("of_next_year".to_owned()).name().starts_with("reason_"));
        assert!("of_next_year".parse::<Reason>().is_err(), "a person who mistypes a name is told");
        assert!("reason_256".parse::<Reason>().is_err());
    }
}
