//! Owns what is remembered of each conversation: wishes, goal, which home is spoken about, what was agreed. It
//! decides nothing. Rule kept: bounded, and the same messages in the same order give the same memory.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::{
    intent::{Decoded, Goal, Intent},
    slots::Slots,
};

/// Conversations that are kept; beyond it the one that was silent longest is forgotten.
const CONVERSATIONS_MAX: usize = 20_000;

/// What is known of one conversation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Conversation {
    pub turns: u32,
    pub goal: Goal,
    pub slots: Slots,
    /// How many homes the person has passed over; the next one is spoken about.
    pub passed: u32,
    /// The home that was named last, as long as nothing else was asked for.
    pub home: Option<String>,
    /// The person likes the home that is spoken about.
    pub selected: bool,
    /// A day was named and confirmed.
    pub visit_confirmed: bool,
    /// Questions about a home: phone, pets, price, furniture.
    pub questions: u32,
    pub declined: bool,
    pub wants_human: bool,
    pub ended: bool,
    /// The last message changed something that the customer file should know.
    pub changed: bool,
}

impl Conversation {
    /// Takes one decoded message in.
    pub fn take(&mut self, decoded: &Decoded) {
        let before = self.clone();
        let has = |intent| decoded.intents.contains(&intent);
        self.turns = self.turns.saturating_add(1);
        if self.slots.merge(&Slots { visit_date: None, visit_time: None, ..decoded.slots.clone() }) {
            self.passed = 0;
            self.selected = false;
            self.home = None;
        }
        self.slots.merge(&decoded.slots);
        if has(Intent::AskAlternatives) {
            self.passed = self.passed.saturating_add(1);
            self.selected = false;
            self.home = None;
        } else if decoded.home.is_some() {
            self.home.clone_from(&decoded.home);
        }
        let asked = [Intent::AskPhone, Intent::AskPets, Intent::AskPrice, Intent::AskFurnished];
        let asked = asked.into_iter().filter(|intent| has(*intent)).count();
        self.questions = self.questions.saturating_add(u32::try_from(asked).unwrap_or(u32::MAX));
        self.selected |= has(Intent::SelectHome) || decoded.goal == Goal::VisitHome;
        self.visit_confirmed |=
            before.goal == Goal::VisitHome && has(Intent::Affirm) && self.slots.visit_date.is_some();
        self.declined = has(Intent::Decline);
        self.wants_human |= has(Intent::TalkToHuman);
        self.ended = has(Intent::Goodbye);
        if decoded.goal != Goal::Unknown {
            self.goal = decoded.goal;
        }
        let changed = self.file() != before.file();
        self.changed = changed;
    }

    /// What the customer file keeps; greetings and questions do not change it.
    fn file(&self) -> impl PartialEq + '_ {
        (&self.slots, self.goal, self.selected, self.visit_confirmed, self.wants_human)
    }
}

/// All conversations.
#[derive(Debug, Default)]
pub struct Memory {
    conversations: HashMap<String, (u64, Conversation)>,
    /// Conversation keys by when they were last touched.
    by_age: BTreeMap<u64, String>,
    clock: u64,
}

impl Memory {
    /// What is known of the conversation; empty for an unknown one.
    pub fn recall(&self, key: &str) -> Conversation {
        self.conversations.get(key).map(|(_, conversation)| conversation.clone()).unwrap_or_default()
    }

    /// Takes a decoded message into the conversation and returns what is known after it.
    pub fn remember(&mut self, key: &str, decoded: &Decoded) -> Conversation {
        self.clock += 1;
        let (touched, conversation) = self.conversations.entry(key.to_owned()).or_default();
        self.by_age.remove(touched);
        *touched = self.clock;
        conversation.take(decoded);
        let conversation = conversation.clone();
        self.by_age.insert(self.clock, key.to_owned());
        if self.conversations.len() > CONVERSATIONS_MAX
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.conversations.remove(&oldest);
        }
        conversation
    }

    /// How many conversations are kept.
    pub fn len(&self) -> usize {
        self.conversations.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.conversations.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(goal: Goal, intents: &[Intent], slots: Slots) -> Decoded {
        Decoded { goal, intents: intents.to_vec(), slots, home: None }
    }

    #[test]
    fn a_conversation_gathers_wishes_and_agreements() {
        let mut memory = Memory::default();
        let napa = Slots { area: Some("Napa".to_owned()), ..Slots::default() };
        assert!(memory.remember("c", &decoded(Goal::FindHome, &[Intent::FindHome], napa)).changed);
        let other = decoded(Goal::FindHome, &[Intent::AskAlternatives], Slots::default());
        assert_eq!(memory.remember("c", &other).passed, 1);
        let day = Slots { visit_date: Some("today".to_owned()), ..Slots::default() };
        memory.remember("c", &decoded(Goal::VisitHome, &[Intent::ScheduleVisit], day));
        let known = memory.remember("c", &decoded(Goal::VisitHome, &[Intent::Affirm], Slots::default()));
        assert!(known.selected && known.visit_confirmed && known.changed);
        assert_eq!((known.turns, known.slots.area.as_deref(), known.passed), (4, Some("Napa"), 1));
    }

    #[test]
    fn a_question_does_not_change_the_customer_file() {
        let mut memory = Memory::default();
        memory.remember("c", &decoded(Goal::FindHome, &[Intent::FindHome], Slots::default()));
        let known = memory.remember("c", &decoded(Goal::FindHome, &[Intent::AskPets], Slots::default()));
        assert!(!known.changed && known.questions == 1);
    }

    #[test]
    fn the_conversation_silent_longest_is_forgotten_first() {
        let mut memory = Memory::default();
        let hello = decoded(Goal::Unknown, &[Intent::Greeting], Slots::default());
        for number in 0..=CONVERSATIONS_MAX {
            memory.remember(&number.to_string(), &hello);
            if number == 1 {
                memory.remember("0", &hello);
            }
        }
        assert_eq!(memory.len(), CONVERSATIONS_MAX);
        assert_eq!((memory.recall("0").turns, memory.recall("1").turns), (2, 0));
    }
}
