//! Owns what the twelve agents say to each other: the payloads of their capabilities and events. The names of agents and
//! capabilities stand here once. Rule kept: every payload can be read by a reader that knows fewer fields.

use serde::{Deserialize, Serialize};

use crate::{
    handoff::Bot,
    intent::{Decoded, Goal},
    listings::Found,
    market::{Rents, Worth},
    memory::Conversation,
    reply::Facts,
    scoring::{Score, Temperature},
    slots::Slots,
};

/// Where the people's messages come from; no agent of the platform, but the channel to it.
pub const PEOPLE: &str = "people";
pub const ORCHESTRATOR: &str = "orchestrator";
pub const INTENT_DECODER: &str = "intent_decoder";
pub const HANDOFF_SERVICE: &str = "handoff_service";
pub const RESPONSE_PIPELINE: &str = "response_pipeline";
pub const CRM_CLIENT: &str = "crm_client";
pub const MEMORY_SERVICE: &str = "memory_service";
pub const MARKET_INTELLIGENCE: &str = "market_intelligence";
pub const SCORING_ENGINE: &str = "scoring_engine";
pub const BI_DASHBOARD: &str = "bi_dashboard";

pub const CONVERSE: &str = "converse";
pub const ANALYZE_LEAD: &str = "analyze_lead";
pub const ORCHESTRATE: &str = "orchestrate";
pub const RECALL: &str = "recall";
pub const REMEMBER: &str = "remember";
pub const LOCAL_PRICES: &str = "local_prices";
pub const MARKET_REPORT: &str = "market_report";
pub const SCORE: &str = "score";
pub const EVALUATE: &str = "evaluate";
pub const COMPOSE: &str = "compose";
pub const SYNC_CONTACT: &str = "sync_contact";
pub const UPDATE_TAGS: &str = "update_tags";
pub const REFRESH: &str = "refresh";
/// What the lead bot tries to call without having declared it.
pub const BILLING_REPORT: &str = "billing_report";

/// The topic of what happens to leads.
pub const LEAD_EVENTS: &str = "lead_events";
/// The topic of what reached the customer file.
pub const CRM_EVENTS: &str = "crm_events";

/// A person's message, to a bot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Utterance {
    pub conversation: String,
    pub text: String,
    /// The message that the person has before their eyes.
    #[serde(default)]
    pub in_reply_to: Option<String>,
}

/// A bot's answer to a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub text: String,
    pub segments: u32,
    /// The bot that has the conversation from here on.
    pub next: Bot,
    pub goal: Goal,
    pub temperature: Temperature,
    /// The handoff was decided by the fallback, because the handoff service was cut off.
    #[serde(default)]
    pub fallback: bool,
}

/// To the intent decoder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Analyze {
    pub conversation: String,
    pub text: String,
    #[serde(default)]
    pub in_reply_to: Option<String>,
}

/// To the memory service: what is known of a conversation?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recall {
    pub conversation: String,
}

/// To the memory service: take this in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remember {
    pub conversation: String,
    pub decoded: Decoded,
}

/// To the orchestrator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orchestrate {
    pub conversation: String,
    pub text: String,
    pub decoded: Decoded,
}

/// From the orchestrator: all that an answer is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub facts: Facts,
    pub score: Score,
}

/// To the market intelligence: homes and prices for these wishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalPrices {
    pub slots: Slots,
    pub passed: u32,
    /// The home that was named last.
    #[serde(default)]
    pub home: Option<String>,
}

/// From the market intelligence.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MarketView {
    pub found: Found,
    pub rents: Option<Rents>,
    pub worth: Option<Worth>,
}

/// To the handoff service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evaluate {
    pub bot: Bot,
    pub known: Conversation,
    pub score: Score,
}

/// To the CRM client, as an event: the customer file of a lead changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    pub conversation: String,
    pub goal: Goal,
    pub temperature: Temperature,
    pub area: Option<String>,
    pub visit_date: Option<String>,
}

/// To the CRM client, as an event: new tags of a contact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tags {
    pub conversation: String,
    pub tags: Vec<String>,
}

/// On the topic [`LEAD_EVENTS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeadEvent {
    pub conversation: String,
    pub bot: Bot,
    pub goal: Goal,
    pub temperature: Temperature,
    pub points: u32,
}

/// On the topic [`CRM_EVENTS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContactSynced {
    pub conversation: String,
}

/// From the market intelligence, for the dashboard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarketReport {
    pub homes: usize,
    pub towns: usize,
}

/// From the dashboard.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Dashboard {
    pub lead_events: u64,
    pub contacts_synced: u64,
    pub hot: u64,
    pub warm: u64,
    pub cold: u64,
}
