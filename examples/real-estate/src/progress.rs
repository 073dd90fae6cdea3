//! Owns what is told while the demo runs: a few sentences and one line of progress, on stderr. It counts nothing itself.
//! Rule kept: stdout is for the report.

use std::io::{IsTerminal, Write, stderr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Where nobody looks at a terminal, a line each so often is enough.
const QUIET_EVERY: Duration = Duration::from_secs(10);

/// On a terminal the line is renewed this often.
const LIVELY_EVERY: Duration = Duration::from_millis(200);

/// Tells how far the demo is.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
    last: Mutex<Instant>,
}

impl Default for Progress {
    fn default() -> Self {
        Self { terminal: stderr().is_terminal(), last: Mutex::new(Instant::now()) }
    }
}

impl Progress {
    /// Tells one sentence.
    pub fn say(&self, sentence: &str) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        self.write(&format!("{clear}{sentence}\n"));
    }

    /// Shows how far it is, if the last time is long enough ago.
    pub fn show(&self, line: impl FnOnce() -> String) {
        let every = if self.terminal { LIVELY_EVERY } else { QUIET_EVERY };
        {
            let Ok(mut last) = self.last.lock() else { return };
            if last.elapsed() < every {
                return;
            }
            *last = Instant::now();
        }
        if self.terminal {
            self.write(&format!("\r\x1b[K{}", line()));
        } else {
            self.write(&format!("{}\n", line()));
        }
    }

    /// Nothing can be done where stderr is gone; the report does not depend on it.
    fn write(&self, text: &str) {
        let mut out = stderr().lock();
        drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
    }
}
