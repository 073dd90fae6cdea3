//! What the tests of the wire share: sample values, golden files, and the run of all decoders.
//!
//! Owns no test itself. The rule it keeps: samples are fixed, so that golden bytes are.
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses a part of what they share")]
#![allow(clippy::unwrap_used, reason = "a test stops where something is not as it must be")]

pub(crate) mod decode_all;
pub(crate) mod golden;
pub(crate) mod samples;
