//! Owns when leads arrive: the arrivals of a real morning, compressed, thinned before and after the peak. Pure.

use std::time::Duration;

use anyhow::Context as _;

/// After the peak hardly anybody comes: one of so many that came before it.
const TAIL_DIVISOR: u32 = 10;
/// How long hardly anybody comes; the run ends when the bots are few again.
const TAIL: Duration = Duration::from_secs(20);

/// One lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// When, from the beginning of the run.
    pub(crate) at: Duration,
    /// How long its answer is.
    pub(crate) tokens: u32,
}

/// The course of the morning.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Phases {
    /// How long the base rate holds before the peak.
    pub(crate) calm: Duration,
    /// How long the peak takes.
    pub(crate) peak: Duration,
    /// How many times the base rate the peak is.
    pub(crate) factor: u32,
}

impl Phases {
    /// Of so many arrivals one is taken; none where the run is over. In the peak all are.
    fn divisor(&self, at: Duration) -> Option<u32> {
        match at {
            _ if at < self.calm => Some(self.factor),
            _ if at < self.calm + self.peak => Some(1),
            _ if at < self.calm + self.peak + TAIL => Some(self.factor * TAIL_DIVISOR),
            _ => None,
        }
    }
}

/// Reads lines of `TIMESTAMP,ContextTokens,GeneratedTokens` and says who comes when.
///
/// # Errors
/// Names the line that is none, and where nobody comes.
pub(crate) fn plan(text: &str, speed: u32, phases: Phases) -> anyhow::Result<Vec<Arrival>> {
    let mut arrivals = Vec::new();
    let mut first = None;
    for (n, line) in text.lines().enumerate().skip(1).filter(|(_, line)| !line.trim().is_empty()) {
        let (second, tokens) = read(line).with_context(|| format!("line {} is no arrival", n + 1))?;
        let since = second - *first.get_or_insert(second);
        // A trace that runs over midnight ends there.
        if since < 0.0 {
            break;
        }
        let at = Duration::from_secs_f64(since / f64::from(speed));
        let Some(divisor) = phases.divisor(at) else { break };
        if n % divisor as usize == 0 {
            arrivals.push(Arrival { at, tokens });
        }
    }
    anyhow::ensure!(!arrivals.is_empty(), "nobody arrives");
    Ok(arrivals)
}

/// The second of the day, and the tokens of the answer.
fn read(line: &str) -> Option<(f64, u32)> {
    let mut fields = line.trim().split(',');
    let (_, time) = fields.next()?.split_once(' ')?;
    let mut clock = time.split(':').map(|part| part.parse::<f64>().ok());
    let second = clock.next()?? * 3_600.0 + clock.next()?? * 60.0 + clock.next()??;
    let tokens = fields.nth(1)?.parse().ok()?;
    Some((second, tokens))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_so_many_times_the_base_rate() {
        let mut text = "TIMESTAMP,ContextTokens,GeneratedTokens\n".to_owned();
        for second in 0..3_600 {
            text += &format!("2023-11-16 18:{:02}:{:02}.5000000,374,44\n", second / 60, second % 60);
        }
        let phases = Phases { calm: Duration::from_secs(60), peak: Duration::from_secs(60), factor: 3 };
        let arrivals = plan(&text, 10, phases).unwrap();
        let within = |from: u64, to: u64| {
            let range = Duration::from_secs(from)..Duration::from_secs(to);
            arrivals.iter().filter(|arrival| range.contains(&arrival.at)).count()
        };
        assert_eq!((within(0, 60), within(60, 120)), (200, 600));
        assert!((6..=7).contains(&within(120, 140)), "{}", within(120, 140));
        assert_eq!(within(140, 400), 0);
        assert_eq!(arrivals[0].tokens, 44);
    }

    #[test]
    fn what_is_no_arrival_is_named() {
        let phases = Phases { calm: Duration::ZERO, peak: Duration::from_secs(1), factor: 3 };
        let error = plan("head\nnonsense\n", 1, phases).unwrap_err();
        assert!(format!("{error:#}").contains("line 2"), "{error:#}");
        assert!(plan("head\n", 1, phases).is_err());
    }
}
