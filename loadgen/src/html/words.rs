//! How numbers and texts are written for people. Owns escaping.

/// Microseconds as a person says them.
pub(super) fn latency(us: f64) -> String {
    match us {
        us if us < 1_000.0 => format!("{} µs", digits(us)),
        us if us < 1_000_000.0 => format!("{} ms", digits(us / 1_000.0)),
        us => format!("{} s", digits(us / 1_000_000.0)),
    }
}

/// A number of things.
pub(super) fn count(number: f64) -> String {
    match number.abs() {
        n if n < 10_000.0 => digits(number),
        n if n < 1_000_000.0 => format!("{}k", digits(number / 1e3)),
        n if n < 1_000_000_000.0 => format!("{}M", digits(number / 1e6)),
        _ => format!("{}G", digits(number / 1e9)),
    }
}

/// A number of things in full, its digits in groups of three.
pub(super) fn full(number: f64) -> String {
    let text = format!("{:.0}", number.abs());
    let mut grouped = String::new();
    for (at, digit) in text.chars().enumerate() {
        if at > 0 && (text.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if number <= -0.5 { format!("−{grouped}") } else { grouped }
}

pub(super) fn percent(number: f64) -> String {
    format!("{} %", digits(number))
}

pub(super) fn megabytes(number: f64) -> String {
    format!("{} MB", digits(number))
}

/// Three digits that say something, and no zeros behind them.
pub(super) fn digits(number: f64) -> String {
    let places = match number.abs() {
        n if n >= 99.95 => 0,
        n if n >= 9.995 => 1,
        n if n >= 0.01 || n == 0.0 => 2,
        _ => 4,
    };
    let text = format!("{number:.places$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A text that may stand anywhere in the page.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_people_say_them() {
        assert_eq!(latency(0.0), "0 µs");
        assert_eq!(latency(850.4), "850 µs");
        assert_eq!(latency(3_204.0), "3.2 ms");
        assert_eq!(latency(1_500_000.0), "1.5 s");
        assert_eq!(count(116_773.0), "117k");
        assert_eq!(count(4_300_000.0), "4.3M");
        assert_eq!(count(950.0), "950");
        assert_eq!(full(1_234_567.0), "1,234,567");
        assert_eq!(full(12.0), "12");
        assert_eq!(percent(-0.25), "-0.25 %");
    }

    #[test]
    fn a_text_cannot_leave_its_place() {
        assert_eq!(escaped("<b a=\"1\">&'"), "&lt;b a=&quot;1&quot;&gt;&amp;&#39;");
    }
}
