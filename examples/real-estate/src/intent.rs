//! Owns what a message wants: its intents and the goal of the conversation after it, decoded by rules on words and on
//! the question that the message answers. It remembers nothing. Rule kept: the same message in the same
//! context is always decoded in the same way; `tests` measures how often that agrees with people's own labels.

use serde::{Deserialize, Serialize};

use crate::{
    slots::{self, Asked, Gazetteer, Slots},
    text::Words,
    vocabulary::{
        AFFIRMS, ALTERNATIVES, ASKS, CLOSES, CONFIRMATIONS, FIND, HOMES, HUMANS, NO_ALTERNATIVES, NOT_NOW,
        OFFERS, PHONES, PRICES, SELECTS, SELLS, VISITING, VISITS, WORTH,
    },
};

/// What a message does; one message may do several things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    Greeting,
    FindHome,
    RefineSearch,
    AskAlternatives,
    SelectHome,
    AskPhone,
    AskPets,
    AskFurnished,
    AskPrice,
    ScheduleVisit,
    AddToCalendar,
    AskWorth,
    SellHome,
    TalkToHuman,
    Affirm,
    Decline,
    Thanks,
    Goodbye,
}

/// What a conversation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    #[default]
    Unknown,
    FindHome,
    VisitHome,
    Calendar,
    SellHome,
    /// The person wants nothing more.
    Done,
}

/// A decoded message.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Decoded {
    pub goal: Goal,
    /// Sorted, each once.
    pub intents: Vec<Intent>,
    pub slots: Slots,
    /// The name of the home that is spoken about, where a listing has it; filled in by who knows the listings.
    #[serde(default)]
    pub home: Option<String>,
}

/// What the decoder is told of a message.
#[derive(Debug, Clone, Copy, Default)]
pub struct Message<'a> {
    pub text: &'a str,
    /// The assistant's message that this one answers.
    pub in_reply_to: Option<&'a str>,
    /// The goal before this message.
    pub goal: Goal,
}

/// Decodes a message.
pub fn decode(message: Message<'_>, gazetteer: &Gazetteer) -> Decoded {
    let words = Words::of(message.text);
    let question = Question::of(message.in_reply_to.unwrap_or_default());
    let slots = slots::read(message.text, &words, gazetteer, question.asked);
    let intents = intents(&words, question, &slots);
    let goal = goal(message.goal, question, &intents, &slots, &words);
    Decoded { goal, intents, slots, home: None }
}

/// What the assistant's message asks for.
#[derive(Debug, Clone, Copy, Default)]
struct Question {
    asked: Asked,
    /// "Would you like to schedule a visit?"
    offers_visit: bool,
    /// "When would you like to visit?"
    asks_day: bool,
    /// "Please confirm: …"
    asks_confirmation: bool,
    /// "Anything else?"
    asks_more: bool,
    /// "I found 3 apartments. One is …"
    offers_home: bool,
    /// "What time is the event?", "What should I name it?"
    asks_event: bool,
}

impl Question {
    fn of(text: &str) -> Self {
        let words = Words::of(text);
        let confirmation = words.has_any(CONFIRMATIONS)
            && !words.has_any("visit is confirmed | appointment is confirmed | anything else");
        let day = words.has_any("when | what day | which day | what date | which date");
        let visiting = words.has_any(VISITING);
        let would = words.has_any(OFFERS);
        let named_day =
            slots::read(text, &words, &Gazetteer::default(), Asked::default()).visit_date.is_some();
        Self {
            asked: Asked {
                beds: words.has_any("how many | number of | what size")
                    && words.has_any("bed | beds | bedroom | bedrooms | rooms | room"),
                baths: words.has_any("how many | number of") && words.has_any("baths | bath | bathrooms"),
            },
            asks_day: day && (words.has("?") || visiting),
            offers_visit: visiting && would && !day && !named_day && !confirmation,
            asks_confirmation: confirmation || named_day,
            asks_more: words.has_any("anything else | something else | what else | any thing else")
                || words.has("more") && words.has("help")
                || words.has("other help")
                || words.has("anything to be"),
            offers_home: words
                .has_any("found | have | there is | there are | how about | another | is a | located"),
            asks_event: words.has("time") && words.has_any("what | ? | time of")
                || words.has_any("name | title | label | call it | calendar"),
        }
    }
}

fn intents(words: &Words, question: Question, slots: &Slots) -> Vec<Intent> {
    let asks = |phrases: &str| words.has_any(phrases);
    let calendar = asks("calendar | calender");
    let worth = asks(WORTH);
    let sells = asks(SELLS);
    let later = asks(NOT_NOW);
    let no =
        matches!(words.at(0), "no" | "nope" | "nah" | "not") || later || asks("no thanks | no thank you");
    let other_day = slots.visit_date.is_some() && question.asks_confirmation;
    let alternatives = asks(ALTERNATIVES) && !other_day && !asks(NO_ALTERNATIVES);
    let question_mark = asks(ASKS);
    let phone = asks(PHONES);
    let pets = asks("pet | pets | dog | dogs | cat | cats | animals") && slots.pets.is_none();
    let furnished =
        asks("furnished | furniture | unfurnished | furnishings | furnish") && slots.furnished.is_none();
    let price = asks(PRICES) && !worth;
    let visit = (asks(VISITS) || slots.visit_date.is_some()) && !later && !calendar;
    let finds = asks(FIND) && asks(HOMES) && !sells && !worth && !visit && !phone && !pets && !furnished;
    let affirms = asks(AFFIRMS) && !no;
    let table = [
        (Intent::Greeting, matches!(words.at(0), "hi" | "hello" | "hey")),
        (Intent::FindHome, finds && !alternatives),
        (Intent::RefineSearch, slots.criteria() > 0),
        (Intent::AskAlternatives, alternatives),
        (
            Intent::SelectHome,
            !no && !alternatives && question.offers_home && !question.asks_confirmation && asks(SELECTS),
        ),
        (Intent::AskPhone, phone),
        (Intent::AskPets, pets && (question_mark || !no)),
        (Intent::AskFurnished, furnished && (question_mark || !no)),
        (Intent::AskPrice, price),
        (Intent::ScheduleVisit, visit),
        (Intent::AddToCalendar, calendar),
        (Intent::AskWorth, worth),
        (Intent::SellHome, sells || worth),
        (Intent::TalkToHuman, asks(HUMANS)),
        (Intent::Affirm, affirms),
        (Intent::Decline, no),
        (Intent::Thanks, asks("thanks | thank | appreciate | thankyou | thx")),
        (Intent::Goodbye, asks(CLOSES) && !alternatives),
    ];
    table.into_iter().filter(|(_, applies)| *applies).map(|(intent, _)| intent).collect()
}

fn goal(before: Goal, question: Question, intents: &[Intent], slots: &Slots, words: &Words) -> Goal {
    let has = |intent| intents.contains(&intent);
    let closing = has(Intent::Decline) || has(Intent::Goodbye) || has(Intent::Thanks);
    let asks_something =
        has(Intent::AskPhone) || has(Intent::AskPets) || has(Intent::AskFurnished) || words.has("?");
    if has(Intent::SellHome) {
        return Goal::SellHome;
    }
    if has(Intent::AddToCalendar) {
        return Goal::Calendar;
    }
    if has(Intent::AskAlternatives) {
        return Goal::FindHome;
    }
    if question.asks_more && closing && !asks_something {
        return Goal::Done;
    }
    if question.offers_visit && !has(Intent::AskAlternatives) {
        let agreed = has(Intent::Affirm)
            || slots.visit_date.is_some()
            || (has(Intent::ScheduleVisit) && !has(Intent::Decline));
        let refused = has(Intent::Decline) || has(Intent::Goodbye);
        match (refused, agreed) {
            (true, _) if slots.visit_date.is_none() => return Goal::Done,
            (_, true) if !asks_something || slots.visit_date.is_some() || has(Intent::ScheduleVisit) => {
                return Goal::VisitHome;
            }
            _ => {}
        }
    }
    match before {
        Goal::Calendar if question.asks_event || question.asks_confirmation => before,
        Goal::SellHome if !has(Intent::FindHome) => before,
        _ if has(Intent::ScheduleVisit) || question.asks_day && !asks_something => Goal::VisitHome,
        _ if has(Intent::FindHome) => Goal::FindHome,
        Goal::Unknown | Goal::Done if has(Intent::RefineSearch) => Goal::FindHome,
        Goal::Unknown | Goal::FindHome | Goal::VisitHome | Goal::Calendar | Goal::SellHome | Goal::Done => {
            before
        }
    }
}

#[cfg(test)]
mod tests;
