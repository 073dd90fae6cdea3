//! The mesh as a whole, on real servers: one file for each theme. Tests run side by side, so none of them stops a process.

mod audit;
mod batches;
mod benchmarks;
mod breakers;
mod calls;
mod doors;
mod endings;
mod health;
mod instances;
mod limits;
mod losses;
mod registrations;
mod topics;
