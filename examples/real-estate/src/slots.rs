//! Owns what a message says about a home and a visit: area, beds, baths, price, pets, furnished, date, time. It
//! reads only the words; what was known before is for [`crate::memory`]. Rule kept: a slot is filled only by
//! words that are in the message.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    text::{self, Words},
    vocabulary::{QUESTIONS, WISHES},
};

/// What one message, or a whole conversation, says about the home that is looked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Slots {
    /// Town, in the spelling of the listings.
    pub area: Option<String>,
    pub beds: Option<u32>,
    pub baths: Option<u32>,
    /// Highest rent or price that was named, in dollars.
    pub price_max: Option<u32>,
    /// Pets must be allowed.
    pub pets: Option<bool>,
    pub furnished: Option<bool>,
    /// Day of a visit, in the person's words ("march 8th").
    pub visit_date: Option<String>,
    /// Time of a visit, in the person's words ("half past 5").
    pub visit_time: Option<String>,
}

impl Slots {
    /// Takes over every slot that `newer` fills, and says whether anything changed by it.
    pub fn merge(&mut self, newer: &Self) -> bool {
        let before = self.clone();
        let Self { area, beds, baths, price_max, pets, furnished, visit_date, visit_time } = newer.clone();
        self.area = area.or_else(|| self.area.take());
        self.beds = beds.or(self.beds);
        self.baths = baths.or(self.baths);
        self.price_max = price_max.or(self.price_max);
        self.pets = pets.or(self.pets);
        self.furnished = furnished.or(self.furnished);
        self.visit_date = visit_date.or_else(|| self.visit_date.take());
        self.visit_time = visit_time.or_else(|| self.visit_time.take());
        *self != before
    }

    /// How many of the criteria of a search (all but date and time) are filled.
    pub fn criteria(&self) -> usize {
        usize::from(self.area.is_some())
            + usize::from(self.beds.is_some())
            + usize::from(self.baths.is_some())
            + usize::from(self.price_max.is_some())
            + usize::from(self.pets.is_some())
            + usize::from(self.furnished.is_some())
    }
}

/// The towns that can be named, longest first so that "South San Francisco" is not read as "San Francisco".
#[derive(Debug, Clone, Default)]
pub struct Gazetteer {
    areas: Vec<(Words, String)>,
}

impl Gazetteer {
    /// Knows `areas` and the short names people use for two of them.
    pub fn new<'a>(areas: impl IntoIterator<Item = &'a str>) -> Self {
        let mut known: BTreeSet<String> = areas.into_iter().map(str::to_owned).collect();
        known.retain(|area| !Words::of(area).is_empty());
        let mut areas: Vec<(Words, String)> =
            known.iter().map(|area| (Words::of(area), area.clone())).collect();
        for (short, long) in SHORT_NAMES {
            if known.contains(*long) {
                areas.push((Words::of(short), (*long).to_owned()));
            }
        }
        areas.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.as_slice().cmp(b.as_slice())));
        Self { areas }
    }

    /// The town that the message names: a known one wherever it stands, otherwise a capitalised name behind "in".
    pub fn area(&self, text: &str, words: &Words) -> Option<String> {
        let known = self.areas.iter().find(|(area, _)| words.has(&area.as_slice().join(" ")));
        known.map(|(_, spelling)| spelling.clone()).or_else(|| named_behind_in(text))
    }
}

const SHORT_NAMES: &[(&str, &str)] =
    &[("sfo", "San Francisco"), ("san fran", "San Francisco"), ("sf", "San Francisco")];

/// Words that are written with a capital and are no towns.
const NO_TOWNS: &[&str] = &[
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
    "I",
    "The",
    "A",
    "An",
    "My",
    "Total",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];

fn named_behind_in(text: &str) -> Option<String> {
    let mut words = text.split_whitespace();
    words.find(|word| matches!(word.to_ascii_lowercase().as_str(), "in" | "near" | "around"))?;
    let mut name: Vec<&str> = Vec::new();
    for word in words.take(3) {
        let bare = word.trim_end_matches(|c: char| !c.is_alphanumeric());
        if !bare.starts_with(char::is_uppercase) || NO_TOWNS.contains(&bare) {
            break;
        }
        name.push(bare);
        if bare.len() != word.len() {
            break;
        }
    }
    (!name.is_empty()).then(|| name.join(" "))
}

/// What the message answers to, where a bare value ("three", "the 8th") needs to know its question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Asked {
    pub beds: bool,
    pub baths: bool,
}

/// Reads all slots from a message.
pub fn read(text: &str, words: &Words, gazetteer: &Gazetteer, asked: Asked) -> Slots {
    let beds = counted(words, &["bed", "beds", "bedroom", "bedrooms", "br", "bdr", "room", "rooms"]);
    let baths = counted(words, &["bath", "baths", "bathroom", "bathrooms", "ba", "restroom", "restrooms"]);
    let bare = || words.as_slice().iter().find_map(|word| text::number(word)).filter(|n| *n <= ROOMS_MAX);
    let date = visit_date(words);
    Slots {
        area: gazetteer.area(text, words),
        beds: beds.or_else(|| if asked.beds && baths.is_none() && date.is_none() { bare() } else { None }),
        baths: baths.or_else(|| if asked.baths && beds.is_none() && date.is_none() { bare() } else { None }),
        price_max: price(words),
        pets: wants(words, &["pet", "pets", "dog", "dogs", "cat", "cats", "animals"]),
        furnished: wants(words, &["furnished", "furniture"]),
        visit_date: date,
        visit_time: visit_time(words),
    }
}

/// More rooms than this is a rent, a year or a house number.
const ROOMS_MAX: u32 = 12;

/// The number in front of one of `nouns`, with at most two words between ("three attached bathrooms"), or right behind.
fn counted(words: &Words, nouns: &[&str]) -> Option<u32> {
    let all = words.as_slice();
    all.iter().enumerate().filter(|(_, word)| nouns.contains(&word.as_str())).find_map(|(at, _)| {
        let before = all[..at].iter().rev().take(3);
        let near = before.take_while(|word| !is_other_room(word, nouns)).find_map(|word| text::number(word));
        near.filter(|n| *n <= ROOMS_MAX)
    })
}

fn is_other_room(word: &str, nouns: &[&str]) -> bool {
    const ROOMS: &[&str] =
        &["bed", "beds", "bedroom", "bedrooms", "bath", "baths", "bathroom", "bathrooms", "and", "with"];
    // "bed rooms": the noun's own first half is no border.
    ROOMS.contains(&word) && !nouns.contains(&word)
}

/// Whether a wish ("where pets are allowed", "must be furnished") is in the message. A question about one home
/// ("are pets allowed?") is no wish.
fn wants(words: &Words, nouns: &[&str]) -> Option<bool> {
    let named = nouns.iter().any(|noun| words.has(noun));
    let wish = words.has_any(WISHES) && !words.has_any(QUESTIONS);
    (named && wish).then_some(true)
}

/// The highest amount of dollars named: with a `$`, or behind "under", "below", "max", "budget".
fn price(words: &Words) -> Option<u32> {
    const LIMITS: &[&str] =
        &["under", "below", "max", "maximum", "budget", "to", "than", "is", "of", "for", "around"];
    let all = words.as_slice();
    let amounts = all.iter().enumerate().filter_map(|(at, word)| {
        let amount = text::number(word)?;
        let dollars = word.starts_with('$') || matches!(words.at(at + 1), "dollars" | "bucks" | "usd");
        let limited = at > 0 && LIMITS.contains(&all[at - 1].as_str());
        (dollars || (limited && amount >= PRICE_MIN)).then_some(amount)
    });
    amounts.max()
}

/// A bare number below this, without a `$`, is no price.
const PRICE_MIN: u32 = 500;

const MONTHS: &[&str] = &[
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const DAYS: &[&str] = &["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

/// The day that the message names, in its own words.
fn visit_date(words: &Words) -> Option<String> {
    (0..words.len()).find_map(|at| date_at(words, at)).or_else(|| {
        let fixed: [&str; 5] = ["day after tomorrow", "later today", "tomorrow", "today", "tonight"];
        fixed.iter().find(|phrase| words.has(phrase)).map(|phrase| (*phrase).to_owned())
    })
}

fn date_at(words: &Words, at: usize) -> Option<String> {
    let word = words.at(at);
    let day_of =
        |word: &str| text::ordinal(word).or_else(|| word.parse().ok().filter(|d| (1..=31).contains(d)));
    if MONTHS.contains(&word) && day_of(words.at(at + 1)).is_some() {
        return Some(format!("{word} {}", words.at(at + 1)));
    }
    if text::ordinal(word).is_some() {
        return Some(match (words.at(at + 1), words.at(at + 2), words.at(at + 3)) {
            ("of", "this", "month") => format!("{word} of this month"),
            ("of", month, _) if MONTHS.contains(&month) => format!("{word} of {month}"),
            (month, _, _) if MONTHS.contains(&month) => format!("{word} of {month}"),
            _ => format!("the {word}"),
        });
    }
    if DAYS.contains(&word) {
        let before = if at > 0 { words.at(at - 1) } else { "" };
        return Some(match (before, words.at(at + 1), words.at(at + 2)) {
            (which @ ("next" | "this"), _, _) => format!("{which} {word}"),
            (_, which @ ("next" | "this"), "week") => format!("{word} {which} week"),
            _ => word.to_owned(),
        });
    }
    None
}

/// The time that the message names, in its own words.
fn visit_time(words: &Words) -> Option<String> {
    const PARTS: &[&str] = &["am", "pm", "o'clock"];
    const DAYTIMES: &[&str] = &["morning", "afternoon", "evening"];
    (0..words.len()).find_map(|at| {
        let word = words.at(at);
        let hour = text::number(word).is_some_and(|n| n <= 24);
        let clock = word.split_once(':').is_some_and(|(h, m)| is_number_to(h, 24) && is_number_to(m, 59));
        if !(hour || clock) {
            return None;
        }
        let (next, before) = (words.at(at + 1), if at > 0 { words.at(at - 1) } else { "" });
        let half = if at > 1 && words.starts_at(at - 2, "half past") { "half past " } else { "" };
        if PARTS.contains(&next) {
            return Some(format!("{half}{word} {next}"));
        }
        if next == "in" && words.at(at + 2) == "the" && DAYTIMES.contains(&words.at(at + 3)) {
            return Some(format!("{half}{word} in the {}", words.at(at + 3)));
        }
        if DAYTIMES.contains(&before) {
            return Some(format!("{before} {word}"));
        }
        (clock || !half.is_empty()).then(|| format!("{half}{word}"))
    })
}

fn is_number_to(digits: &str, highest: u32) -> bool {
    digits.parse::<u32>().is_ok_and(|number| number <= highest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(text: &str) -> Slots {
        let gazetteer = Gazetteer::new(["San Francisco", "South San Francisco", "San Jose", "Napa"]);
        read(text, &Words::of(text), &gazetteer, Asked::default())
    }

    #[test]
    fn rooms_and_town_are_read_from_one_sentence() {
        let found = slots("I would prefer a one bed, two bath place in San Jose under $3,200");
        assert_eq!((found.beds, found.baths, found.price_max), (Some(1), Some(2), Some(3_200)));
        assert_eq!(found.area.as_deref(), Some("San Jose"));
        assert_eq!(slots("3 bed rooms in SFO").beds, Some(3));
        assert_eq!(slots("3 bed rooms in SFO").area.as_deref(), Some("San Francisco"));
    }

    #[test]
    fn the_longest_town_wins_and_an_unknown_one_is_taken_behind_in() {
        assert_eq!(slots("in south san francisco").area.as_deref(), Some("South San Francisco"));
        assert_eq!(slots("What is a house in Mill Valley, worth?").area.as_deref(), Some("Mill Valley"));
        assert_eq!(slots("I will come in March").area, None);
    }

    #[test]
    fn a_bare_number_answers_only_its_question() {
        let words = Words::of("Three, please.");
        let beds = Asked { beds: true, baths: false };
        assert_eq!(read("Three, please.", &words, &Gazetteer::default(), beds).beds, Some(3));
        assert_eq!(read("Three, please.", &words, &Gazetteer::default(), Asked::default()).beds, None);
    }

    #[test]
    fn a_wish_for_pets_is_told_from_a_question_about_them() {
        assert_eq!(slots("I want a place where pets are allowed").pets, Some(true));
        assert_eq!(slots("Are pets allowed?").pets, None);
    }

    #[test]
    fn dates_and_times_keep_the_persons_words() {
        for (text, date, time) in [
            ("On March 8th at 9:30 am", Some("march 8th"), Some("9:30 am")),
            ("the 3rd of this month please", Some("3rd of this month"), None),
            (
                "Wednesday next week, half past 5 in the evening",
                Some("wednesday next week"),
                Some("half past 5 in the evening"),
            ),
            ("the day after tomorrow", Some("day after tomorrow"), None),
            ("evening 4:30", None, Some("evening 4:30")),
            ("This Saturday", Some("this saturday"), None),
            ("no idea", None, None),
        ] {
            let found = slots(text);
            assert_eq!((found.visit_date.as_deref(), found.visit_time.as_deref()), (date, time), "{text}");
        }
    }

    #[test]
    fn merging_keeps_what_the_newer_message_does_not_name() {
        let mut known = slots("2 bedrooms in Napa");
        assert!(known.merge(&slots("with two baths")));
        assert!(!known.merge(&slots("hello")));
        assert_eq!((known.beds, known.baths, known.criteria()), (Some(2), Some(2), 3));
    }
}
