//! UTC days, the unit of partitions and of retention. Owns their numbers and printed forms; reads no clock but where it says so.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use governance::Timestamp;
use time::{Date, Duration};

const NANOS: u64 = 86_400_000_000_000;

/// A UTC day, counted from 1970-01-01.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(pub u32);

impl Day {
    /// The day of a moment.
    #[must_use]
    pub const fn of(at: Timestamp) -> Self {
        Self((at.0 / NANOS) as u32)
    }

    /// The day after.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// So many days earlier; the first day there is where that lies before it.
    #[must_use]
    pub const fn before(self, days: u32) -> Self {
        Self(self.0.saturating_sub(days))
    }

    /// The date.
    #[must_use]
    pub fn date(self) -> Date {
        let epoch = time::OffsetDateTime::UNIX_EPOCH.date();
        epoch.checked_add(Duration::days(self.0.into())).unwrap_or(Date::MAX)
    }

    /// As in the names of partitions: `20260214`.
    #[must_use]
    pub fn compact(self) -> String {
        let date = self.date();
        format!("{:04}{:02}{:02}", date.year(), u8::from(date.month()), date.day())
    }

    /// Reads the compact form.
    #[must_use]
    pub fn parse_compact(text: &str) -> Option<Self> {
        if text.len() != 8 || !text.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let month = time::Month::try_from(text[4..6].parse::<u8>().ok()?).ok()?;
        let date = Date::from_calendar_date(text[..4].parse().ok()?, month, text[6..].parse().ok()?).ok()?;
        let days = (date - time::OffsetDateTime::UNIX_EPOCH.date()).whole_days();
        u32::try_from(days).ok().map(Self)
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let date = self.date();
        write!(f, "{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day())
    }
}

/// The present, from the system's clock: the one place where this crate reads it.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(governance::time::nanos(since))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_prints_as_a_date_and_reads_back() {
        let day = Day::of(Timestamp::from_millis(1_771_061_000_000));
        assert_eq!(day.to_string(), "2026-02-14");
        assert_eq!(day.compact(), "20260214");
        assert_eq!(Day::parse_compact("20260214"), Some(day));
        assert_eq!(Day::parse_compact("20260231"), None);
        assert_eq!(Day::parse_compact("2026021x"), None);
    }

    #[test]
    fn a_day_ends_with_its_last_nanosecond() {
        let midnight = Timestamp(20_000 * NANOS);
        assert_eq!(Day::of(midnight), Day(20_000));
        assert_eq!(Day::of(Timestamp(midnight.0 - 1)), Day(19_999));
        assert_eq!(Day(19_999).next(), Day(20_000));
    }
}
