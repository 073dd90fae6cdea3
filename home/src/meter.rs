//! What a home counts. Owns the list; whoever hosts a home says what becomes of it.
//!
//! The rule it keeps: facts only, told after they are decided; nothing comes back.

use std::time::Duration;

use governance::{BreakerState, Outcome, Priority, Reason};

/// Told what happens in a home. Every method may be left out.
#[expect(unused_variables, reason = "what is left out counts nothing")]
pub trait Meter: std::fmt::Debug + Send + Sync {
    /// Dispatches were read from a lane.
    fn arrived(&self, priority: Priority, count: u32) {}
    /// Dispatches are on their way to a target.
    fn admitted(&self, class: Priority, reason: Reason, count: u32, waited: Duration) {}
    /// Dispatches ended without reaching a target.
    fn ended(&self, reason: Reason, class: Priority, count: u32) {}
    /// Admitted dispatches ended.
    fn completed(&self, outcome: Outcome, class: Priority, count: u32, latency: Duration) {}
    /// P0 was claimed without the right to it.
    fn demoted(&self, count: u32) {}
    /// Completions came after an outcome was recorded.
    fn late(&self, count: u32) {}
    /// A lane message was decided about before.
    fn duplicate(&self) {}
    /// Completions could not be read.
    fn malformed_completion(&self) {}
    /// Replies were confirmed, or their receiver was gone.
    fn replied(&self, confirmed: bool, count: usize) {}
    /// A breaker changed.
    fn breaker(&self, agent: &str, from: BreakerState, to: BreakerState) {}
    /// P3 is deferred in this shard, or no longer.
    fn deferral(&self, shard: u8, on: bool) {}
    /// An audit block was written.
    fn block(&self, bytes: usize, records: usize) {}
    /// The home is alive.
    fn beat(&self, now: governance::Timestamp) {}
}

/// Counts nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unmetered;

impl Meter for Unmetered {}
