//! What an agent author imports: join the mesh, offer capabilities, call those of others.
//!
//! Owns the agent's side of the protocol: packing, waiting, slots, deadlines, retries, and what is said when the outcome is
//! unknown. Decides nothing that governance decides. The rule it keeps: what the mesh has accepted from here is never lost
//! by this side, and a dispatch runs here once.
//!
//! ```no_run
//! use std::time::Duration;
//! use serde::{Deserialize, Serialize};
//! use worker_sdk::{Context, Failure, Mesh, Priority};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Lead { text: String }
//!
//! async fn analyze(ctx: Context, lead: Lead) -> Result<u32, Failure> {
//!     let known: Vec<String> = ctx.dispatch("memory_service", "recall").json(&lead.text)?.call().await?;
//!     Ok(known.len() as u32)
//! }
//!
//! # async fn main_() -> Result<(), worker_sdk::Error> {
//! let mesh = Mesh::from_env().await?;
//! let agent = mesh.agent("intent_decoder")
//!     .capability("analyze_lead", analyze)
//!     .depends_on("memory_service")
//!     .depends_on("scoring_engine/score")
//!     .max_concurrent(50)
//!     .sla_p95(Duration::from_millis(500))
//!     .register().await?;
//! let lead = Lead { text: "two bedrooms".into() };
//! let reply = agent.dispatch("scoring_engine", "score").priority(Priority::P0).json(&lead)?.request().await?;
//! let score: u32 = reply.json()?;
//! # let shutdown = std::future::pending::<()>(); let _ = score;
//! agent.run_until(shutdown).await
//! # }
//! ```
//!
//! A handler should not block its thread: what others of the agent do waits for it. Its message is not lost by that, as what an
//! instance holds is renewed from a thread of the SDK's own, for as long as 30 s without a sign of life from the runtime. Beyond
//! that, and where the process as a whole stands still for 3 s, other instances get the work. Blocking code belongs into
//! `tokio::task::spawn_blocking`.
//!
//! | | |
//! | --- | --- |
//! | [`Mesh`] | the connection; makes agents |
//! | [`AgentBuilder`] | what an agent offers and needs, up to its registration |
//! | [`Agent`] | a registered instance: sends, and runs until it is stopped |
//! | [`Dispatch`] | one dispatch, or many alike, on the way out |
//! | [`Batch`] | many dispatches that a handler takes together |
//! | [`Context`] | the dispatch that a handler runs; what it sends belongs to the same tree |
//! | [`Error`], [`Failure`] | what callers get; what handlers report |
//! | [`testing`] | handlers without servers |
#![warn(missing_docs)]

mod agent;
mod batch;
mod builder;
mod clock;
mod completer;
mod context;
mod core;
mod dispatch;
mod env;
mod error;
mod handler;
mod held;
mod intake;
mod keeper;
mod ledger;
mod listen;
mod mesh;
mod outbox;
mod pulse;
mod reply;
mod retry;
mod row;
mod run;
mod runner;
mod signals;
mod slots;
mod supervise;
pub mod testing;
mod waiters;

pub use agent::Agent;
pub use batch::{Answers, Batch};
pub use builder::AgentBuilder;
pub use context::Context;
pub use dispatch::{Dispatch, Pending};
pub use error::{Error, ErrorKind, Failure};
pub use handler::Response;
pub use mesh::Mesh;
pub use reply::{Accepted, AcceptedMany, Reply};
pub use signals::Signal;

pub use governance::{DispatchId, InstanceId, Kind, Outcome, Priority, Reason, Timestamp};
pub use protocol::control::{Problem, Terms};
