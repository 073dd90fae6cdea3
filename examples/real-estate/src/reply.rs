//! Owns the text that a person gets: one answer per message, made from what is known, found and decided. Rule kept: it
//! states only what a listing, the market or the conversation says, and fits into few text messages.

use serde::{Deserialize, Serialize};

use crate::{
    handoff::Handoff,
    intent::{Goal, Intent},
    listings::{Found, Listing},
    market::{Rents, Worth},
    memory::Conversation,
};

/// One text message of the carrier; longer answers are sent in parts.
const SEGMENT_CHARS_MAX: usize = 160;

/// What is known when the answer is written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    pub intents: Vec<Intent>,
    pub known: Conversation,
    pub found: Found,
    pub rents: Option<Rents>,
    pub worth: Option<Worth>,
    pub handoff: Option<Handoff>,
    /// A text drafted by a language model; it is used in place of the rules' own.
    pub draft: Option<String>,
}

/// The answer, in parts that the carrier takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    pub text: String,
    pub segments: u32,
}

/// Writes the answer.
pub fn compose(facts: &Facts) -> Reply {
    let draft = facts.draft.as_deref().map(str::trim).filter(|draft| !draft.is_empty());
    let mut text = draft.map_or_else(|| sentences(facts).join(" "), str::to_owned);
    if let Some(handoff) = &facts.handoff {
        if handoff.human && facts.intents.contains(&Intent::TalkToHuman) {
            text.push_str(" A colleague will call you today.");
        } else if handoff.to.is_some() {
            text.push_str(" I stay with you and get our specialist on board.");
        }
    }
    let segments = text.chars().count().div_ceil(SEGMENT_CHARS_MAX).max(1);
    Reply { text, segments: u32::try_from(segments).unwrap_or(u32::MAX) }
}

fn sentences(facts: &Facts) -> Vec<String> {
    let has = |intent| facts.intents.contains(&intent);
    let known = &facts.known;
    if known.ended && !has(Intent::SelectHome) {
        return vec!["You're welcome. Have a wonderful day!".to_owned()];
    }
    if has(Intent::Thanks)
        && !known.changed
        && facts.intents.iter().all(|intent| matches!(intent, Intent::Thanks | Intent::Affirm))
    {
        return vec!["You're welcome. Is there anything else?".to_owned()];
    }
    match known.goal {
        Goal::Done => vec!["Alright. I am here whenever you need me.".to_owned()],
        Goal::SellHome => selling(facts),
        Goal::VisitHome => visiting(facts),
        Goal::Calendar => vec![calendar(known)],
        Goal::FindHome => finding(facts),
        Goal::Unknown => {
            vec![
                "Hello! Are you looking for a home, or would you like to know what yours is worth?"
                    .to_owned(),
            ]
        }
    }
}

fn finding(facts: &Facts) -> Vec<String> {
    let Some(area) = &facts.known.slots.area else {
        return vec!["In which area are you looking?".to_owned()];
    };
    let Some(home) = &facts.found.current else {
        return vec![format!("I have nothing in {area} at the moment. Would another area do?")];
    };
    let mut sentences = answers(facts, home);
    if sentences.is_empty() {
        if facts.found.loosened {
            sentences.push(format!("Nothing in {area} meets all of that, but this comes close."));
        }
        sentences.push(format!("I have {} in {area}. {}", homes(facts.found.count), offer(home)));
        if let Some(rents) = facts.rents {
            sentences.push(format!("The median rent there is {}.", dollars(rents.median)));
        }
    }
    if facts.known.slots.beds.is_none() {
        sentences.push("How many bedrooms do you need?".to_owned());
    } else if facts.known.selected {
        sentences.push("Would you like to schedule a visit?".to_owned());
    }
    sentences
}

fn visiting(facts: &Facts) -> Vec<String> {
    let known = &facts.known;
    let home = facts.found.current.as_ref();
    let name = home.map_or("the home", |home| home.name.as_str());
    let mut sentences = home.map_or_else(Vec::new, |home| answers(facts, home));
    sentences.push(match (&known.slots.visit_date, known.visit_confirmed) {
        (None, _) => format!("When would you like to visit {name}?"),
        (Some(date), false) => format!("Please confirm: a visit to {name}, {}.", when(date, known)),
        (Some(date), true) => format!("Your visit to {name} is booked: {}.", when(date, known)),
    });
    sentences
}

fn selling(facts: &Facts) -> Vec<String> {
    let slots = &facts.known.slots;
    if let Some(date) = slots.visit_date.as_ref().filter(|_| facts.intents.contains(&Intent::ScheduleVisit)) {
        return vec![format!("Noted: a colleague comes by for a valuation, {}.", when(date, &facts.known))];
    }
    match (&slots.area, facts.worth) {
        (None, _) => vec!["Gladly. Where is your home, and how many bedrooms does it have?".to_owned()],
        (Some(area), None) => {
            vec![format!(
                "I have no recent figures for {area}; a colleague will prepare a valuation for you."
            )]
        }
        (Some(area), Some(worth)) => {
            let size = slots.beds.map_or_else(String::new, |beds| format!("{beds}-bedroom "));
            let range = format!("{} to {}", dollars(worth.low), dollars(worth.high));
            let next = if slots.beds.is_none() {
                "How many bedrooms does it have?"
            } else {
                "Shall a colleague come by for an exact valuation?"
            };
            vec![format!("Going by rents, a {size}home in {area} is worth about {range}."), next.to_owned()]
        }
    }
}

/// Answers to what was asked about the home.
fn answers(facts: &Facts, home: &Listing) -> Vec<String> {
    let name = &home.name;
    let answer = |intent: &Intent| match intent {
        Intent::AskPhone => Some(home.phone.as_ref().map_or_else(
            || format!("I do not have a number of {name}, but I will ask for it."),
            |phone| format!("You can reach {name} at {phone}."),
        )),
        Intent::AskPets => Some(match home.pets {
            Some(true) => format!("Yes, {name} allows pets."),
            Some(false) => format!("Sorry, {name} does not allow pets."),
            None => format!("I will ask {name} about pets."),
        }),
        Intent::AskFurnished => Some(match home.furnished {
            Some(true) => format!("{name} is furnished."),
            Some(false) => format!("{name} is not furnished."),
            None => format!("I will ask {name} about the furniture."),
        }),
        Intent::AskPrice => home.rent.map(|rent| format!("{name} is {} a month.", dollars(rent))),
        Intent::Greeting
        | Intent::FindHome
        | Intent::RefineSearch
        | Intent::AskAlternatives
        | Intent::SelectHome
        | Intent::ScheduleVisit
        | Intent::AddToCalendar
        | Intent::AskWorth
        | Intent::SellHome
        | Intent::TalkToHuman
        | Intent::Affirm
        | Intent::Decline
        | Intent::Thanks
        | Intent::Goodbye => None,
    };
    facts.intents.iter().filter_map(answer).collect()
}

fn calendar(known: &Conversation) -> String {
    known.slots.visit_date.as_ref().map_or_else(
        || "For which day shall I note it?".to_owned(),
        |date| format!("I have put your visit into the calendar: {}.", when(date, known)),
    )
}

fn offer(home: &Listing) -> String {
    let rooms =
        [home.beds.map(|beds| plural(beds, "bedroom")), home.baths.map(|baths| plural(baths, "bath"))];
    let rooms: Vec<String> = rooms.into_iter().flatten().collect();
    let rent = home.rent.map_or_else(String::new, |rent| format!(" for {} a month", dollars(rent)));
    format!("One is {} on {}: {}{rent}.", home.name, home.address, rooms.join(", "))
}

fn when(date: &str, known: &Conversation) -> String {
    known.slots.visit_time.as_ref().map_or_else(|| date.to_owned(), |time| format!("{date}, {time}"))
}

fn homes(count: usize) -> String {
    if count == 1 { "1 home".to_owned() } else { format!("{count} homes") }
}

fn plural(count: u32, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// Dollars with thousands separated: `$3,900`.
pub fn dollars(amount: u32) -> String {
    let digits = amount.to_string();
    let mut grouped = String::from("$");
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::Slots;

    fn home() -> Listing {
        Listing {
            name: "Elm Court".to_owned(),
            address: "1 Elm Street".to_owned(),
            area: "Napa".to_owned(),
            beds: Some(2),
            baths: Some(1),
            rent: Some(2_950),
            pets: Some(false),
            furnished: None,
            phone: Some("707-555-0101".to_owned()),
        }
    }

    fn facts(goal: Goal, intents: &[Intent]) -> Facts {
        let slots = Slots { area: Some("Napa".to_owned()), beds: Some(2), ..Slots::default() };
        Facts {
            intents: intents.to_vec(),
            known: Conversation { goal, slots, ..Conversation::default() },
            found: Found { count: 3, current: Some(home()), loosened: false },
            ..Facts::default()
        }
    }

    #[test]
    fn a_home_is_offered_with_the_market() {
        let mut facts = facts(Goal::FindHome, &[Intent::FindHome]);
        facts.rents = Some(Rents { homes: 3, low: 1, median: 3_100, high: 9 });
        let text = compose(&facts).text;
        assert_eq!(
            text,
            "I have 3 homes in Napa. One is Elm Court on 1 Elm Street: 2 bedrooms, 1 bath for $2,950 a month. \
             The median rent there is $3,100."
        );
    }

    #[test]
    fn questions_about_the_home_are_answered() {
        let text = compose(&facts(Goal::FindHome, &[Intent::AskPhone, Intent::AskPets])).text;
        assert_eq!(text, "You can reach Elm Court at 707-555-0101. Sorry, Elm Court does not allow pets.");
    }

    #[test]
    fn a_visit_is_asked_for_confirmed_and_booked() {
        let mut facts = facts(Goal::VisitHome, &[]);
        assert_eq!(compose(&facts).text, "When would you like to visit Elm Court?");
        facts.known.slots.visit_date = Some("march 8th".to_owned());
        assert_eq!(compose(&facts).text, "Please confirm: a visit to Elm Court, march 8th.");
        facts.known.visit_confirmed = true;
        assert_eq!(compose(&facts).text, "Your visit to Elm Court is booked: march 8th.");
    }

    #[test]
    fn a_seller_hears_what_the_home_may_be_worth_and_a_human_takes_over() {
        let mut facts = facts(Goal::SellHome, &[Intent::AskWorth, Intent::TalkToHuman]);
        facts.worth = Some(Worth { low: 570_000, high: 725_000 });
        facts.handoff = Some(Handoff { to: None, human: true, reason: String::new() });
        let reply = compose(&facts);
        assert!(
            reply
                .text
                .starts_with("Going by rents, a 2-bedroom home in Napa is worth about $570,000 to $725,000.")
        );
        assert!(reply.text.ends_with("A colleague will call you today."));
    }

    #[test]
    fn a_draft_of_a_language_model_is_used_and_long_answers_are_counted_in_parts() {
        let mut facts = facts(Goal::FindHome, &[]);
        facts.draft = Some("x".repeat(SEGMENT_CHARS_MAX + 1));
        assert_eq!(compose(&facts).segments, 2);
        facts.draft = Some("  ".to_owned());
        assert!(compose(&facts).text.starts_with("I have 3 homes"));
    }

    #[test]
    fn every_goal_has_an_answer() {
        for goal in
            [Goal::Unknown, Goal::FindHome, Goal::VisitHome, Goal::Calendar, Goal::SellHome, Goal::Done]
        {
            let facts = Facts { known: Conversation { goal, ..Conversation::default() }, ..Facts::default() };
            assert!(!compose(&facts).text.is_empty(), "{goal:?}");
        }
    }
}
