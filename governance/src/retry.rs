//! Retries of failed events. Owns the backoff; requests are never retried, since their caller decides.

use std::time::Duration;

use crate::policy::RetryPolicy;

/// What becomes of an event whose attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// It runs again after this delay.
    Retry(Duration),
    /// No attempts are left.
    DeadLetter,
}

/// The delay doubles with each attempt: 1 s, 2 s, 4 s, 8 s, and after the fifth attempt there is none.
pub(crate) fn after_failure(rules: &RetryPolicy, attempt: u8) -> Next {
    if attempt >= rules.attempts_max {
        return Next::DeadLetter;
    }
    let doublings = u32::from(attempt.saturating_sub(1)).min(DOUBLINGS_MAX);
    Next::Retry((rules.backoff_first * (1 << doublings)).min(rules.backoff_max))
}

/// Beyond this many doublings every delay is at its maximum, and the shift stays within its type.
const DOUBLINGS_MAX: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fifth_failure_is_the_last() {
        let rules = RetryPolicy::default();
        let seconds: Vec<_> = (1..=5).map(|attempt| after_failure(&rules, attempt)).collect();
        let s = |s| Next::Retry(Duration::from_secs(s));
        assert_eq!(seconds, [s(1), s(2), s(4), s(8), Next::DeadLetter]);
    }

    #[test]
    fn a_delay_never_exceeds_its_maximum() {
        let rules = RetryPolicy { attempts_max: 255, ..RetryPolicy::default() };
        assert_eq!(after_failure(&rules, 200), Next::Retry(Duration::from_secs(60)));
    }
}
