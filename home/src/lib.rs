//! The home of one shard: hosts the rules between broker and audit, without doing any I/O itself.
//!
//! Owns the order decide, make durable, then tell; what is staged, settled and rebuilt; the take-over in its order; and which
//! replica owns which shard. Reads no clock, waits for nothing, spawns nothing: time and what happened are passed in, what is
//! to be done is left in [`Out`]. The coordinator drives it with a broker and an audit ledger, the simulator with models of
//! both, so that what is simulated is what runs.
//!
//! The rule it keeps: it has no opinion of its own. Decisions are the governor's, and what a block records is never decided
//! again.

mod arrive;
mod begin;
mod complete;
mod explain;
mod home;
mod input;
mod know;
mod letters;
pub mod meter;
mod out;
pub mod ownership;
mod perform;
mod permits;
mod rebuild;
mod replay;
mod settle;
mod shard;
mod slab;
mod snapshot;
pub mod takeover;
mod undelivered;
mod views;

pub use home::{Home, Setup, TICK};
pub use input::{Appended, Command, Delivered, Ended, Input, Over, Source};
pub use letters::LetterOrder;
pub use meter::Meter;
pub use out::{Fence, Out, Publish, Pull, Reply, Side, Stored, Write};
pub use permits::Asking;
pub use rebuild::Recovered;
