//! The way of the audit from Redis to PostgreSQL, and the questions it answers there.
//!
//! Owns the archive: its schema, how blocks get into it exactly once, how long they stay, and every query about them.
//! Writes no block and decides nothing about dispatches. The rule it keeps: what is in doubt stops, and is never skipped.
#![warn(missing_docs)]

pub mod archive;
pub mod chain;
pub mod checkpoint;
pub mod config;
mod copy;
pub mod day;
mod http;
mod keeper;
pub mod metrics;
mod postgres;
mod retention;
pub mod rows;
mod schema;
pub mod service;
mod shares;
mod store;
mod trail;
mod trim;
pub mod verify;
mod worker;

pub use postgres::connect;
pub use schema::{migrate, migrate_to_version};
