//! Owns what the agents of one process share: the homes, the memory, the CRM's own records, the dashboard, and the ledger.
//! It knows no broker. Rule kept: no lock is held across a wait.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::{
    books,
    dialogues::Dialogue,
    intent::{self, Decoded, Message},
    ledger::{Ledger, lock},
    listings::Index,
    llm::Llm,
    market::Market,
    memory::{Conversation, Memory},
    messages::{Analyze, Contact, Dashboard, LeadEvent, LocalPrices, MarketReport, MarketView, Tags},
    scoring::Temperature,
    slots::Gazetteer,
    text::Words,
};

/// What the twelve agents work with.
#[derive(Debug)]
pub struct Platform {
    pub ledger: Ledger,
    pub llm: Option<Llm>,
    index: Index,
    market: Market,
    gazetteer: Gazetteer,
    memory: Mutex<Memory>,
    crm: Mutex<Crm>,
    dashboard: Mutex<Dashboard>,
    handoff_delay_ms: AtomicU64,
    started: Instant,
}

/// The customer file, as the CRM on the other side keeps it, with its own record of when it was called.
#[derive(Debug, Default)]
struct Crm {
    contacts: HashMap<String, Contact>,
    tags: BTreeMap<String, Vec<String>>,
    called_us: Vec<i64>,
}

impl Platform {
    /// A platform whose homes are the search results in `dialogues`.
    pub fn new(dialogues: &[Dialogue], llm: Option<Llm>) -> Self {
        let index = Index::from_results(dialogues.iter().flat_map(Dialogue::results));
        Self {
            ledger: Ledger::default(),
            llm,
            market: Market::of(&index),
            gazetteer: index.gazetteer(),
            index,
            memory: Mutex::default(),
            crm: Mutex::default(),
            dashboard: Mutex::default(),
            handoff_delay_ms: AtomicU64::new(0),
            started: Instant::now(),
        }
    }

    /// Decodes a message of a conversation of which `known` is known.
    pub fn decode(&self, analyze: &Analyze, known: &Conversation) -> Decoded {
        let in_reply_to = analyze.in_reply_to.as_deref();
        let decoded =
            intent::decode(Message { text: &analyze.text, in_reply_to, goal: known.goal }, &self.gazetteer);
        let named = |text| self.index.named_in(&Words::of(text));
        let home = named(&analyze.text).or_else(|| in_reply_to.and_then(named)).map(|home| home.name.clone());
        Decoded { home, ..decoded }
    }

    /// What is known of a conversation.
    pub fn recall(&self, conversation: &str) -> Conversation {
        lock(&self.memory).recall(conversation)
    }

    /// Takes a decoded message in.
    pub fn remember(&self, conversation: &str, decoded: &Decoded) -> Conversation {
        lock(&self.memory).remember(conversation, decoded)
    }

    /// Homes and prices for these wishes.
    pub fn local_prices(&self, wanted: &LocalPrices) -> MarketView {
        let LocalPrices { slots, passed, home } = wanted;
        let area = slots.area.as_deref();
        MarketView {
            found: self.index.search(slots, usize::try_from(*passed).unwrap_or(usize::MAX), home.as_deref()),
            rents: area.and_then(|area| self.market.rents(area, slots.beds)),
            worth: area.and_then(|area| self.market.worth(area, slots.beds)),
        }
    }

    /// The whole market in two figures.
    pub fn market_report(&self) -> MarketReport {
        MarketReport { homes: self.index.all().len(), towns: self.market.towns() }
    }

    /// The CRM is called with a contact.
    pub fn sync_contact(&self, contact: Contact) {
        let now = self.now_us();
        let mut crm = lock(&self.crm);
        crm.called_us.push(now);
        crm.contacts.insert(contact.conversation.clone(), contact);
    }

    /// The CRM is called with tags.
    pub fn update_tags(&self, tags: Tags) {
        let now = self.now_us();
        let mut crm = lock(&self.crm);
        crm.called_us.push(now);
        crm.tags.insert(tags.conversation, tags.tags);
    }

    /// The most calls that the CRM saw within any second.
    pub fn crm_peak(&self) -> u64 {
        let called = lock(&self.crm).called_us.clone();
        books::peak(called)
    }

    /// How many contacts and how many tagged contacts the CRM has.
    pub fn crm_contacts(&self) -> (usize, usize) {
        let crm = lock(&self.crm);
        (crm.contacts.len(), crm.tags.len())
    }

    /// The dashboard counts something that happened to a lead.
    pub fn count_lead(&self, event: &LeadEvent) {
        let mut dashboard = lock(&self.dashboard);
        dashboard.lead_events += 1;
        match event.temperature {
            Temperature::Hot => dashboard.hot += 1,
            Temperature::Warm => dashboard.warm += 1,
            Temperature::Cold => dashboard.cold += 1,
        }
    }

    /// The dashboard counts a contact that reached the CRM.
    pub fn count_contact(&self) {
        lock(&self.dashboard).contacts_synced += 1;
    }

    /// What the dashboard shows.
    pub fn dashboard(&self) -> Dashboard {
        lock(&self.dashboard).clone()
    }

    /// Makes the handoff service slow, or quick again with zero.
    pub fn slow_handoffs(&self, delay: Duration) {
        self.handoff_delay_ms.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long the handoff service takes beside its work.
    pub fn handoff_delay(&self) -> Duration {
        Duration::from_millis(self.handoff_delay_ms.load(Ordering::Relaxed))
    }

    fn now_us(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{dialogues, handoff, reply, scoring};

    /// Plays every built-in dialogue through the domain, as the agents do over the mesh.
    #[test]
    fn every_built_in_message_gets_an_answer() {
        let dialogues = dialogues::built_in();
        let platform = Platform::new(&dialogues, None);
        let (mut hot, mut qualified) = (0, 0);
        for dialogue in &dialogues {
            let mut bot = handoff::Bot::Lead;
            for said in dialogue.said() {
                let analyze = Analyze {
                    conversation: dialogue.id.clone(),
                    text: said.text.to_owned(),
                    in_reply_to: said.in_reply_to.map(str::to_owned),
                };
                let decoded = platform.decode(&analyze, &platform.recall(&dialogue.id));
                let known = platform.remember(&dialogue.id, &decoded);
                let view = platform.local_prices(&LocalPrices {
                    slots: known.slots.clone(),
                    passed: known.passed,
                    home: known.home.clone(),
                });
                let score = scoring::score(&known);
                let handoff = handoff::evaluate(bot, &known, &score);
                bot = handoff.to.unwrap_or(bot);
                hot += u32::from(score.temperature == Temperature::Hot);
                let facts = reply::Facts {
                    intents: decoded.intents,
                    known,
                    found: view.found,
                    rents: view.rents,
                    worth: view.worth,
                    handoff: Some(handoff),
                    draft: None,
                };
                let reply = reply::compose(&facts);
                assert!(!reply.text.is_empty() && reply.segments <= 3, "{said:?} got {reply:?}");
            }
            qualified += usize::from(bot != handoff::Bot::Lead);
        }
        assert!(hot > 10, "only {hot} messages of hot leads");
        assert!(qualified >= 20, "only {qualified} of {} leads are qualified", dialogues.len());
    }

    #[test]
    fn the_crm_keeps_its_own_record_of_calls() {
        let platform = Platform::new(&[], None);
        for number in 0..3 {
            platform.update_tags(Tags { conversation: number.to_string(), tags: Vec::new() });
        }
        assert_eq!((platform.crm_peak(), platform.crm_contacts()), (3, (0, 3)));
    }
}
