//! The pulse: when the agent's own runtime last did anything. Owns that moment; draws no conclusion.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Signs of life, set by one thread and read by another.
#[derive(Debug)]
pub(crate) struct Pulse(Mutex<Instant>);

impl Pulse {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    /// The runtime is at work.
    pub(crate) fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// How long nothing was heard of the runtime.
    pub(crate) fn silent(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}
