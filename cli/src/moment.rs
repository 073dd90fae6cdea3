//! Times as people write and read them: durations, moments, ages. Owns their forms; the one place here that reads a clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use governance::Timestamp;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime};

/// The time of this machine.
pub(crate) fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(governance::time::nanos(since_epoch))
}

/// Reads `--since`: a duration back from now, a moment, a day, or `all`.
///
/// # Errors
/// Says what may be written.
pub(crate) fn parse_since(text: &str) -> Result<Timestamp, String> {
    since(text, now())
}

fn since(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if text == "all" {
        return Ok(Timestamp::ZERO);
    }
    if let Ok(back) = parse_duration(text) {
        return Ok(Timestamp(now.0.saturating_sub(governance::time::nanos(back))));
    }
    let day = || {
        let day = Date::parse(text, format_description!("[year]-[month]-[day]")).ok()?;
        Some(day.midnight().assume_utc())
    };
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()
        .or_else(day)
        .and_then(|at| u64::try_from(at.unix_timestamp_nanos()).ok())
        .map(Timestamp)
        .ok_or_else(|| {
            format!("{text:?} is not a time; write 15m, 24h, 7d, 2026-02-14, 2026-02-14T09:23:15Z, or all")
        })
}

/// Reads a duration: `250ms`, `30s`, `15m`, `24h`, `7d`.
///
/// # Errors
/// Says what may be written.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => 0,
    };
    let number: Option<u64> = number.parse().ok();
    number
        .filter(|_| millis > 0)
        .and_then(|n| n.checked_mul(millis))
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is not a duration; write 250ms, 30s, 15m, 24h or 7d"))
}

/// A duration in the largest unit that fits, as people say it.
pub(crate) fn in_words(duration: Duration) -> String {
    let s = duration.as_secs();
    match s {
        0 => format!("{} ms", duration.as_millis()),
        1..=119 => format!("{s} s"),
        120..=7_199 => format!("{} min", s / 60),
        7_200..=172_799 => format!("{} h", s / 3_600),
        _ => format!("{} d", s / 86_400),
    }
}

/// Microseconds as milliseconds with three digits that matter, or as seconds where there are many.
pub(crate) fn millis(us: i64) -> String {
    let ms = us as f64 / 1_000.0;
    if ms.abs() < 10.0 {
        format!("{ms:.2} ms")
    } else if ms.abs() < 10_000.0 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.1} s", ms / 1_000.0)
    }
}

/// Milliseconds without the digits below a microsecond, which nobody measured.
pub(crate) fn rounded(ms: f64) -> f64 {
    (ms * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_771_060_995_482);

    #[test]
    fn since_takes_durations_moments_and_days() {
        assert_eq!(since("15m", NOW), Ok(Timestamp::from_millis(1_771_060_995_482 - 900_000)));
        assert_eq!(since("2026-02-14T09:23:15.482Z", NOW), Ok(NOW));
        assert_eq!(since("2026-02-14T10:23:15.482+01:00", NOW), Ok(NOW));
        assert_eq!(since("2026-02-14", NOW), Ok(Timestamp::from_millis(1_771_027_200_000)));
        assert_eq!(since("all", NOW), Ok(Timestamp::ZERO));
        assert_eq!(since("99999999d", NOW), Ok(Timestamp::ZERO));
        for wrong in ["", "15", "m", "-5m", "yesterday", "1.5h", "2026-02-30"] {
            assert!(since(wrong, NOW).unwrap_err().contains("15m"), "{wrong}");
        }
    }

    #[test]
    fn durations_are_read_with_their_unit() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("2h"), Ok(Duration::from_secs(7_200)));
        assert!(parse_duration("18446744073709551615d").is_err());
    }

    #[test]
    fn durations_are_said_in_one_unit() {
        let words = |s| in_words(Duration::from_secs(s));
        assert_eq!([words(5), words(300), words(7_200), words(900_000)], ["5 s", "5 min", "2 h", "10 d"]);
        assert_eq!(in_words(Duration::from_millis(40)), "40 ms");
        assert_eq!([millis(420), millis(141_600), millis(30_000_000)], ["0.42 ms", "142 ms", "30.0 s"]);
    }
}
