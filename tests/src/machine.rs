//! The machine under the tests, while one of them runs: what of it was taken away. Owns a pulse that measures how late it is
//! itself, and what the host says it kept for others; judges nothing.
//!
//! The rule it keeps: a bound on time is for a machine that is there. What was seen to be missing may be added to a bound, or
//! explain that an instance counted as lost; where nothing was missing every bound holds as it is written.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How often the pulse beats.
const BEAT: Duration = Duration::from_millis(10);
/// A pause of every process of this machine for less than this costs no instance its messages: of three seconds without a word
/// one is the pause between two words, and one is for what else is late.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Where the host takes more of the processors than this, a promise in tens of milliseconds cannot be measured.
const STOLEN_PERCENT_MAX: u64 = 2;

/// What is seen of the machine from its making on.
#[derive(Debug)]
pub struct Machine {
    pulse: Arc<Mutex<Pulse>>,
    cpu: Cpu,
}

#[derive(Debug)]
struct Pulse {
    last: Instant,
    late: Duration,
    longest: Duration,
}

impl Pulse {
    /// How late a beat is that comes now.
    fn late_now(&self) -> Duration {
        self.last.elapsed().saturating_sub(BEAT)
    }

    fn beat(&mut self) {
        let late = self.late_now();
        self.late += late;
        self.longest = self.longest.max(late);
        self.last = Instant::now();
    }
}

impl Machine {
    /// Watches from here on. The thread ends with what is returned.
    #[must_use]
    pub fn watch() -> Self {
        let pulse = Pulse { last: Instant::now(), late: Duration::ZERO, longest: Duration::ZERO };
        let pulse = Arc::new(Mutex::new(pulse));
        let beating = Arc::downgrade(&pulse);
        std::thread::spawn(move || {
            while let Some(pulse) = Weak::upgrade(&beating) {
                pulse.lock().unwrap_or_else(PoisonError::into_inner).beat();
                drop(pulse);
                std::thread::sleep(BEAT);
            }
        });
        Self { pulse, cpu: Cpu::now() }
    }

    fn with<T>(&self, look: impl FnOnce(&Pulse) -> T) -> T {
        look(&self.pulse.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The longest time for which this process had no turn, one that still lasts included.
    #[must_use]
    pub fn longest_pause(&self) -> Duration {
        self.with(|pulse| pulse.longest.max(pulse.late_now()))
    }

    /// Whether it never stood still for so long that an instance may have counted as lost for it.
    #[must_use]
    pub fn was_there(&self) -> bool {
        self.longest_pause() < PAUSE_MAX
    }

    /// A bound, and what this process waited for its turns.
    #[must_use]
    pub fn allow(&self, bound: Duration) -> Duration {
        bound + self.with(|pulse| pulse.late + pulse.late_now())
    }

    /// How much of the processors' time the host kept for others.
    #[must_use]
    pub fn stolen_percent(&self) -> u64 {
        Cpu::now().stolen_percent_since(&self.cpu)
    }

    /// Whether tens of milliseconds could be measured.
    #[must_use]
    pub fn keeps_time(&self) -> bool {
        self.stolen_percent() <= STOLEN_PERCENT_MAX && self.was_there()
    }
}

/// What the processors of this machine did since its start, in ticks.
#[derive(Debug)]
struct Cpu {
    stolen: u64,
    total: u64,
}

impl Cpu {
    /// As the first line of `/proc/stat` has it: user, nice, system, idle, iowait, irq, softirq, steal.
    fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = stat.lines().next().unwrap_or_default();
        let ticks: Vec<u64> =
            line.split_whitespace().skip(1).take(8).filter_map(|tick| tick.parse().ok()).collect();
        Self { stolen: ticks.get(7).copied().unwrap_or(0), total: ticks.iter().sum() }
    }

    fn stolen_percent_since(&self, before: &Self) -> u64 {
        let stolen = self.stolen.saturating_sub(before.stolen) * 100;
        stolen.checked_div(self.total.saturating_sub(before.total)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_seen_while_it_lasts_and_afterwards() {
        let machine = Machine::watch();
        let before = Instant::now();
        // Nobody beats while this is held, as when the process has no turn.
        let held = machine.pulse.lock().expect("nobody panics with it");
        while before.elapsed() < Duration::from_millis(100) {
            std::thread::yield_now();
        }
        let last = held.last;
        drop(held);
        let allowed = machine.allow(Duration::from_secs(4));
        assert!(machine.longest_pause() >= Duration::from_millis(80), "{:?}", machine.longest_pause());
        assert!(
            allowed >= Duration::from_millis(4_080) && allowed <= Duration::from_secs(4) + last.elapsed()
        );
    }
}
