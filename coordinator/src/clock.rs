//! The one place where the coordinator reads the wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

use governance::Timestamp;

/// Now. The broker's timestamps come from its own clock; the rules tolerate the skew within one data centre.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
