//! The article's real-estate platform: twelve agents that answer people who look for a home or want to sell one. The
//! domain (`dialogues`, `text`, `slots`, `intent`, `listings`, `market`, `memory`, `scoring`, `handoff`, `reply`) is pure;
//! `agents` and `wire` connect it to the mesh; `demo`, `people`, `talks` and `scenes` play it, `peak` plays a busy morning; `ledger`, `books`, `archive`
//! and `report` count. Rule kept: the domain knows nothing of the mesh, and nothing here is needed by the mesh itself.

pub mod agents;
pub mod archive;
pub mod books;
pub mod config;
pub mod demo;
pub mod dialogues;
pub mod handoff;
pub mod intent;
pub mod ledger;
pub mod listings;
pub mod llm;
pub mod market;
pub mod memory;
pub mod messages;
pub mod peak;
pub mod people;
pub mod platform;
pub mod progress;
pub mod reply;
pub mod report;
pub mod scenes;
pub mod scoring;
pub mod slots;
pub mod talks;
pub mod text;
mod vocabulary;
pub mod wire;
