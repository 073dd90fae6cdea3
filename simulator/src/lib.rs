//! The simulator: the real homes, rules and ownership, many replicas of them, in a modelled world with virtual time.
//!
//! | layer | real or modelled |
//! | --- | --- |
//! | rules (`governance`), homes, take-overs, ownership (`home`), every byte on the wire (`protocol`) | real |
//! | the coordinator's tasks, retries and routing | modelled after them, in `replica` |
//! | broker, Redis, PostgreSQL | modelled, as far as the mesh can tell the difference |
//! | agents and the SDK | modelled, with the real encodings |
//! | archiver | modelled, with the real checks of the chain |
//! | clocks, network, faults | modelled, from the seed |
//!
//! The rule it keeps: one seed is one run, to the byte. Nothing here reads a clock, starts a thread or walks a hash map to decide.

mod ambush;
pub mod archiver;
pub mod broker;
pub mod cast;
pub mod faults;
pub mod instance;
pub mod log;
pub mod model;
pub mod net;
pub mod oracle;
pub mod postgres;
pub mod process;
pub mod random;
pub mod redis;
pub mod replica;
mod sawtooth;
mod strikes;
mod wire;
pub mod world;

pub use faults::Faults;
pub use world::{Report, Scene, Settings, run};
