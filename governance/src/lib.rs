//! The rules of the mesh, as a pure function of state, time and event.
//!
//! Owns every decision: registration, declared dependencies, quotas, priorities, breakers, deadlines, retries, hops,
//! scaling. Does no I/O, reads no clock, draws no random number, spawns nothing, uses no floats, and iterates over no
//! hash map, so that one history always gives one result. The coordinator hosts it between the broker and the audit.
#![warn(missing_docs, clippy::float_arithmetic)]

mod admission;
mod arrival;
mod breaker;
mod breakers;
mod completion;
mod deferral;
pub mod effect;
pub mod event;
pub mod facts;
pub mod governor;
mod grants;
mod hash;
mod idempotency;
mod instances;
pub mod knowledge;
mod lanes;
mod losses;
mod membership;
mod mirror;
pub mod names;
mod open;
mod order;
pub mod policy;
mod quota;
pub mod registration;
mod registry;
mod reports;
mod retry;
mod scaling;
mod scheduler;
mod seen;
mod slab;
mod sources;
mod targets;
mod text;
pub mod time;
mod timers;
mod waiting;
pub mod words;

pub use effect::{Admission, BreakerChange, Closing, Effect, Ending, ScaleChange};
pub use event::{Arrival, AskedToRun, Beat, Completion, Destination, Event, Lane, Lineage, Restored, Run};
pub use facts::{BreakerFacts, LaneFacts, TargetFacts, Waiting};
pub use governor::{Governor, WakeReason, Wakeup};
pub use knowledge::{Ask, Grant, HomeId, Shards, TargetReport};
pub use losses::{Holder, Loss, Permit};
pub use names::{
    AgentId, AgentIx, Capability, CapabilityIx, DispatchId, InstanceId, MessageIx, OpenIx, SHARDS, Topic,
    TopicIx, shard_of,
};
pub use open::NO_CAPABILITY;
pub use policy::Policy;
pub use registration::{Encoding, Fallback, Registration};
pub use time::Timestamp;
pub use words::{BreakerState, Decision, Kind, Outcome, Priority, Reason};
