//! Tests of the core from outside: the rules as stories, what holds over every history, and what a decision takes.

mod allocations;
mod kit;
mod properties;
mod rules;

/// The driver of the benchmarks.
#[path = "../benches/world/mod.rs"]
mod world;
