//! The wire of the mesh: subjects, streams, envelopes, completions, replies, JSON, audit blocks.
//!
//! Owns every byte that leaves a process, and how to read it back; does no I/O and decides nothing. The rule it keeps:
//! every decoder is total. Bad bytes give a typed refusal, never a panic.
#![warn(missing_docs)]

pub mod audit;
pub mod completion;
pub mod control;
pub mod envelope;
pub mod frame;
pub mod inbox;
pub mod json;
pub mod key;
pub mod know;
pub mod lineage;
pub mod redis;
pub mod room;
pub mod streams;
pub mod subjects;
pub mod text;

pub use frame::{Frame, FrameError, FrameWriter};
pub use key::{AuditKey, HASH_BYTES, PayloadHash};
pub use lineage::Lineage;

/// The version of the protocol that this build speaks, announced by replicas.
pub const PROTOCOL_VERSION: u8 = 1;
