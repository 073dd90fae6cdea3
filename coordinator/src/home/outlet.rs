//! Outlets: how the home hands work to its I/O tasks without ever waiting for them.
//!
//! The rule it keeps: the home never blocks on a task that may be blocked on the home. What a channel does not take is
//! kept in order and handed over later; the in-flight window bounds how much that can be.

use std::collections::VecDeque;

use tokio::sync::mpsc::{self, error::TrySendError};

/// The capacity of a channel to an I/O task: what it can work on at once; more waits here.
pub(crate) const OUTLET_CAPACITY: usize = 4_096;

/// One way out of the home.
#[derive(Debug)]
pub(crate) struct Outlet<T> {
    channel: mpsc::Sender<T>,
    waiting: VecDeque<T>,
}

impl<T> Outlet<T> {
    pub(crate) fn new() -> (Self, mpsc::Receiver<T>) {
        let (channel, receiver) = mpsc::channel(OUTLET_CAPACITY);
        (Self { channel, waiting: VecDeque::new() }, receiver)
    }

    pub(crate) fn push(&mut self, item: T) {
        self.waiting.push_back(item);
        self.drain();
    }

    /// Hands over what the channel takes now.
    pub(crate) fn drain(&mut self) {
        while let Some(item) = self.waiting.pop_front() {
            match self.channel.try_send(item) {
                Ok(()) => {}
                // A closed channel means that the process is ending.
                Err(TrySendError::Full(item) | TrySendError::Closed(item)) => {
                    self.waiting.push_front(item);
                    return;
                }
            }
        }
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.waiting.is_empty()
    }
}
