//! Owns the decision who goes on with a conversation: the bot that has it, the one for buyers, the one for sellers, or
//! a human colleague. Rule kept: only the conversation and its score decide, and every decision has a reason.

use serde::{Deserialize, Serialize};

use crate::{
    intent::Goal,
    memory::Conversation,
    scoring::{Score, Temperature},
};

/// Which bot leads a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Bot {
    #[serde(rename = "lead_bot")]
    Lead,
    #[serde(rename = "buyer_bot")]
    Buyer,
    #[serde(rename = "seller_bot")]
    Seller,
}

impl Bot {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Lead, Self::Buyer, Self::Seller];

    /// Its name as an agent.
    pub fn agent(self) -> &'static str {
        match self {
            Self::Lead => "lead_bot",
            Self::Buyer => "buyer_bot",
            Self::Seller => "seller_bot",
        }
    }
}

/// Who goes on, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handoff {
    /// The bot that takes over; nothing where the present one goes on.
    pub to: Option<Bot>,
    /// A human colleague is asked to call the person.
    pub human: bool,
    pub reason: String,
}

impl Handoff {
    /// The present bot goes on.
    pub fn stay(reason: &str) -> Self {
        Self { to: None, human: false, reason: reason.to_owned() }
    }
}

/// Decides who goes on with a conversation that `bot` has.
pub fn evaluate(bot: Bot, known: &Conversation, score: &Score) -> Handoff {
    let to = |to: Bot, reason: &str| {
        if to == bot {
            Handoff::stay(reason)
        } else {
            Handoff { to: Some(to), human: false, reason: reason.to_owned() }
        }
    };
    if known.wants_human {
        return Handoff { to: None, human: true, reason: "the person asked for a human".to_owned() };
    }
    match known.goal {
        Goal::SellHome => to(Bot::Seller, "the person wants to sell"),
        Goal::VisitHome | Goal::Calendar => to(Bot::Buyer, "the person wants to visit"),
        Goal::FindHome if score.temperature >= Temperature::Warm => to(Bot::Buyer, "the lead is warm"),
        Goal::FindHome | Goal::Unknown | Goal::Done => Handoff::stay("the lead is still to be qualified"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{scoring::score, slots::Slots};

    fn decide(bot: Bot, known: &Conversation) -> Handoff {
        evaluate(bot, known, &score(known))
    }

    #[test]
    fn a_new_lead_stays_and_a_warm_one_goes_to_the_buyer_bot() {
        let mut known = Conversation { goal: Goal::FindHome, ..Conversation::default() };
        assert_eq!(decide(Bot::Lead, &known).to, None);
        known.slots = Slots { area: Some("Napa".to_owned()), beds: Some(2), ..Slots::default() };
        known.selected = true;
        assert_eq!(decide(Bot::Lead, &known).to, Some(Bot::Buyer));
        assert_eq!(decide(Bot::Buyer, &known).to, None);
    }

    #[test]
    fn sellers_go_to_the_seller_bot_and_who_asks_gets_a_human() {
        let mut known = Conversation { goal: Goal::SellHome, ..Conversation::default() };
        assert_eq!(decide(Bot::Buyer, &known).to, Some(Bot::Seller));
        known.wants_human = true;
        assert!(decide(Bot::Seller, &known).human);
    }
}
