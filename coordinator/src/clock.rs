//! The one place where the coordinator reads the wall clock.
//!
//! The rule it keeps: time does not go back. Where the wall clock is put back, quotas would stand still and deadlines not come until it
//! has caught up; here time goes on from where it was, nine tenths as fast, until both agree again. A clock that is put
//! forward is followed at once: a machine that slept did miss that time.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use governance::Timestamp;

/// What the wall clock may fall behind a steady one between two looks without having been put back: it is slewed. What passes
/// between reading the one and the other, where the process has to wait for its turn, comes on top.
const TOLERANCE: Duration = Duration::from_millis(5);
/// The part of passing time by which a lead shrinks.
const CATCHING_UP: u32 = 10;

static TIME: Mutex<Time> = Mutex::new(Time::new());

/// Now. The broker's timestamps come from its own clock; the rules tolerate the skew within one data centre.
pub(crate) fn now() -> Timestamp {
    let mut time = TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let steady = Instant::now();
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    time.tell(Look { wall, steady, apart: steady.elapsed() })
}

/// Both clocks, and how far apart they may have been read.
#[derive(Debug, Clone, Copy)]
struct Look {
    wall: Duration,
    steady: Instant,
    apart: Duration,
}

/// The wall clock, and by how much time is ahead of it.
#[derive(Debug)]
struct Time {
    last: Option<Look>,
    ahead: Duration,
    told: Duration,
}

impl Time {
    const fn new() -> Self {
        Self { last: None, ahead: Duration::ZERO, told: Duration::ZERO }
    }

    fn tell(&mut self, look: Look) -> Timestamp {
        if let Some(last) = self.last {
            let passed = look.steady.saturating_duration_since(last.steady);
            let put_back = (last.wall + passed).saturating_sub(look.wall);
            self.ahead = self.ahead.saturating_sub(passed / CATCHING_UP);
            if put_back > TOLERANCE + last.apart {
                tracing::warn!(
                    ?put_back,
                    "the wall clock was put back: time goes on, slower until both agree"
                );
                self.ahead += put_back;
            }
        }
        self.last = Some(look);
        self.told = self.told.max(look.wall + self.ahead);
        Timestamp(u64::try_from(self.told.as_nanos()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1_000);

    /// What is told by a wall clock that shows this after each second.
    fn told(walls: &[u64]) -> Vec<u64> {
        let (mut time, steady) = (Time::new(), Instant::now());
        let seconds = walls.iter().zip(0..);
        seconds
            .map(|(wall, n)| {
                let (wall, steady) = (START + Duration::from_secs(*wall), steady + Duration::from_secs(n));
                let told = time.tell(Look { wall, steady, apart: Duration::ZERO });
                told.0 / 100_000_000 - START.as_secs() * 10
            })
            .collect()
    }

    #[test]
    fn a_clock_that_is_right_is_told_as_it_is() {
        assert_eq!(told(&[0, 1, 2, 3]), [0, 10, 20, 30]);
    }

    #[test]
    fn a_clock_that_is_put_forward_is_followed() {
        assert_eq!(told(&[0, 1, 60, 61]), [0, 10, 600, 610]);
    }

    #[test]
    fn a_clock_that_is_put_back_is_waited_for_while_time_goes_on() {
        // Tenths of a second: ten in the first, nine in each second after it was put back, until both agree.
        let walls: Vec<u64> = [10, 11].into_iter().chain(11..26).collect();
        let told = told(&walls);
        assert_eq!(told[..4], [100, 110, 120, 129]);
        let steps: Vec<u64> = told.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(steps.iter().all(|step| (9..=10).contains(step)), "{steps:?}");
        assert_eq!(told.last(), Some(&250), "and both agree");
    }
}
