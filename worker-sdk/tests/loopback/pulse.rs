//! A pulse that measures how late it is itself: whether this process, and so the machine, stood still while a test ran. Owns a
//! thread; judges nothing.
//!
//! The rule it keeps: it explains only what it saw. Where nothing stood still each test holds as it is written.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

const BEAT: Duration = Duration::from_millis(10);
/// A pause of less than this costs no instance its messages: the broker waits three times as long as an instance pauses between
/// two words, and one of these three is for what else is late.
const PAUSE_MAX: Duration = Duration::from_secs(1);

struct Beats {
    last: Instant,
    late: Duration,
    longest: Duration,
}

impl Beats {
    fn late_now(&self) -> Duration {
        self.last.elapsed().saturating_sub(BEAT)
    }
}

pub(crate) struct Pulse(Arc<Mutex<Beats>>);

impl Pulse {
    /// Beats until it is dropped.
    pub(crate) fn start() -> Self {
        let beats = Beats { last: Instant::now(), late: Duration::ZERO, longest: Duration::ZERO };
        let beats = Arc::new(Mutex::new(beats));
        let beating = Arc::downgrade(&beats);
        std::thread::spawn(move || {
            while let Some(beats) = Weak::upgrade(&beating) {
                let mut now = beats.lock().unwrap();
                let late = now.late_now();
                (now.late, now.longest, now.last) = (now.late + late, now.longest.max(late), Instant::now());
                drop(now);
                drop(beats);
                std::thread::sleep(BEAT);
            }
        });
        Self(beats)
    }

    /// Whether this process stood still for so long that it may have lost its messages, a pause that still lasts included.
    pub(crate) fn stood_still(&self) -> bool {
        let beats = self.0.lock().unwrap();
        beats.longest.max(beats.late_now()) >= PAUSE_MAX
    }

    /// A bound, and what this process waited for its turns.
    pub(crate) fn allow(&self, bound: Duration) -> Duration {
        let beats = self.0.lock().unwrap();
        bound + beats.late + beats.late_now()
    }
}
