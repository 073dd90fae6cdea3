//! Actuators: what makes instances of an agent begin and end. Owns what all of them have in common.
//!
//! The rule they keep: they decide nothing. How many run is told; which one ends is always the newest, as the oldest have
//! proved that they work.

use std::future::Future;

use super::reconcile::Fleet;

/// Something that starts and stops instances of one agent.
pub(crate) trait Actuator {
    /// The instances there are at this moment.
    ///
    /// # Errors
    /// When they cannot be counted; nothing is known then, and nothing is to be done.
    fn instances(&mut self) -> impl Future<Output = anyhow::Result<Fleet>> + Send;

    /// Starts one more.
    ///
    /// # Errors
    /// When it cannot be started; it may be tried again.
    fn start_one(&mut self) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Tells the newest to drain, and returns at once.
    ///
    /// # Errors
    /// When it cannot be told; it may be tried again.
    fn stop_one(&mut self) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Waits until the number of instances may have changed. Cancellation-safe.
    fn wait_change(&mut self) -> impl Future<Output = ()> + Send;

    /// The supervisor ends: lets go of the instances in the way of this actuator.
    fn end(&mut self) -> impl Future<Output = ()> + Send;
}
