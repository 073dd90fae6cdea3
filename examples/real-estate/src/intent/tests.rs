//! Sentences with their meaning, and the agreement with the dataset's own labels where it is at hand.

use std::path::Path;

use super::{Intent as I, *};
use crate::{
    dialogues::{self, Dialogue, Turn},
    listings::Index,
};

/// Agreement that was reached on `sgd_homes.json`, in tenths of a percent, rounded down.
const GOAL_FLOOR: usize = 985;
const REQUEST_FLOOR: usize = 965;
const SLOT_FLOOR: usize = 985;

fn decoded(text: &str, in_reply_to: &str, goal: Goal) -> Decoded {
    let gazetteer = Gazetteer::new(["Napa", "San Jose"]);
    decode(Message { text, in_reply_to: Some(in_reply_to), goal }, &gazetteer)
}

/// A message, what it answers, the goal before it, the goal after it, its intents.
type Sentence = (&'static str, &'static str, Goal, Goal, &'static [I]);

const SENTENCES: &[Sentence] = &[
    (
        "Hi, I'm looking for a two bedroom apartment in Napa",
        "",
        Goal::Unknown,
        Goal::FindHome,
        &[I::Greeting, I::FindHome, I::RefineSearch],
    ),
    ("Three, please", "How many bedrooms do you need?", Goal::FindHome, Goal::FindHome, &[I::RefineSearch]),
    (
        "What's the phone number? Do they allow pets?",
        "I found one.",
        Goal::FindHome,
        Goal::FindHome,
        &[I::AskPhone, I::AskPets],
    ),
    (
        "Can you find me some other apartments?",
        "I found one.",
        Goal::FindHome,
        Goal::FindHome,
        &[I::AskAlternatives],
    ),
    ("That one sounds good.", "I have found 3.", Goal::FindHome, Goal::FindHome, &[I::SelectHome, I::Affirm]),
    ("Yes please.", "Would you like to schedule a visit?", Goal::FindHome, Goal::VisitHome, &[I::Affirm]),
    ("No, not right now.", "Would you like to schedule a visit?", Goal::FindHome, Goal::Done, &[I::Decline]),
    (
        "The 8th, at 3 pm.",
        "When would you like to visit?",
        Goal::VisitHome,
        Goal::VisitHome,
        &[I::ScheduleVisit],
    ),
    ("What's my home worth?", "", Goal::Unknown, Goal::SellHome, &[I::AskWorth, I::SellHome]),
    ("I want to sell my house in Napa", "", Goal::Unknown, Goal::SellHome, &[I::RefineSearch, I::SellHome]),
    ("I'd rather speak with someone real", "", Goal::SellHome, Goal::SellHome, &[I::TalkToHuman]),
    (
        "Add it to my calendar please",
        "Your visit is scheduled.",
        Goal::VisitHome,
        Goal::Calendar,
        &[I::AddToCalendar],
    ),
    (
        "Thanks, that's all. Bye!",
        "Anything else?",
        Goal::VisitHome,
        Goal::Done,
        &[I::Affirm, I::Thanks, I::Goodbye],
    ),
    ("", "", Goal::Unknown, Goal::Unknown, &[]),
];

#[test]
fn sentences_are_decoded() {
    for &(text, reply_to, before, goal, intents) in SENTENCES {
        let found = decoded(text, reply_to, before);
        assert_eq!((found.goal, found.intents.as_slice()), (goal, intents), "{text:?} after {reply_to:?}");
    }
}

#[test]
fn decoding_is_total_and_repeatable() {
    for text in
        ["????", "$$$ 99999999999999999999 beds", "\u{0}\u{fffd}İ", "of the of this 8th of", "half past"]
    {
        assert_eq!(decoded(text, text, Goal::Unknown), decoded(text, text, Goal::Unknown));
    }
}

#[test]
fn decoding_agrees_with_the_labels_of_the_dataset() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/sgd_homes.json");
    if !path.exists() {
        use std::io::Write;
        writeln!(std::io::stderr(), "skipped: {} is not here", path.display()).unwrap();
        return;
    }
    let dialogues = dialogues::read(&path).unwrap();
    let gazetteer = Index::from_results(dialogues.iter().flat_map(Dialogue::results)).gazetteer();
    let (mut goals, mut requests, mut values) =
        (Agreement::default(), Agreement::default(), Agreement::default());
    for dialogue in &dialogues {
        let mut goal = Goal::Unknown;
        for said in dialogue.said() {
            let found = decode(Message { text: said.text, in_reply_to: said.in_reply_to, goal }, &gazetteer);
            goal = found.goal;
            goals.count(label(said.turn) == found.goal, said.text, said.in_reply_to, &found);
            for (slot, intent) in [
                ("phone_number", Intent::AskPhone),
                ("pets_allowed", Intent::AskPets),
                ("furnished", Intent::AskFurnished),
            ] {
                let labelled = has_act(said.turn, "REQUEST", slot);
                if labelled || found.intents.contains(&intent) {
                    requests.count(
                        labelled && found.intents.contains(&intent),
                        said.text,
                        said.in_reply_to,
                        &found,
                    );
                }
            }
            let slots = &found.slots;
            for (slot, filled) in [
                ("area", slots.area.is_some()),
                ("number_of_beds", slots.beds.is_some()),
                ("number_of_baths", slots.baths.is_some()),
                ("visit_date", slots.visit_date.is_some()),
            ] {
                if has_act(said.turn, "INFORM", slot) {
                    values.count(
                        filled && agrees(said.turn, slot, slots),
                        said.text,
                        said.in_reply_to,
                        &found,
                    );
                }
            }
        }
    }
    goals.report("goal", GOAL_FLOOR);
    requests.report("requests", REQUEST_FLOOR);
    values.report("slots", SLOT_FLOOR);
}

fn label(turn: &Turn) -> Goal {
    match turn.frames.iter().find_map(|frame| frame.active_intent.as_deref()) {
        Some("FindApartment") => Goal::FindHome,
        Some("ScheduleVisit") => Goal::VisitHome,
        Some("AddEvent") => Goal::Calendar,
        Some("NONE") => Goal::Done,
        _ => Goal::Unknown,
    }
}

fn has_act(turn: &Turn, act: &str, slot: &str) -> bool {
    turn.frames.iter().flat_map(|frame| &frame.actions).any(|action| action.act == act && action.slot == slot)
}

fn agrees(turn: &Turn, slot: &str, slots: &Slots) -> bool {
    let values = turn.frames.iter().filter_map(|frame| frame.slot_values.get(slot)).flatten();
    let same = |value: &str| match slot {
        "area" => slots.area.as_deref().is_some_and(|area| {
            area.eq_ignore_ascii_case(value) || matches!(value, "SFO" | "San Fran" | "SF")
        }),
        "number_of_beds" => slots.beds.is_some_and(|beds| beds.to_string() == value),
        "number_of_baths" => slots.baths.is_some_and(|baths| baths.to_string() == value),
        _ => slots.visit_date.as_deref().is_some_and(|date| date.eq_ignore_ascii_case(value)),
    };
    values.map(String::as_str).any(same)
}

/// How often the decoder and the labels agree, with some of the cases where they do not.
#[derive(Default)]
struct Agreement {
    agreed: usize,
    all: usize,
    misses: Vec<String>,
}

impl Agreement {
    fn count(&mut self, agrees: bool, text: &str, in_reply_to: Option<&str>, found: &Decoded) {
        self.all += 1;
        self.agreed += usize::from(agrees);
        if !agrees {
            self.misses.push(format!("{text} <- {} = {found:?}", in_reply_to.unwrap_or_default()));
        }
    }

    fn report(&self, what: &str, floor: usize) {
        use std::io::Write;
        let permille = self.agreed * 1_000 / self.all.max(1);
        let mut out = std::io::stderr();
        writeln!(out, "{what}: {} of {} agree, {}.{} %", self.agreed, self.all, permille / 10, permille % 10)
            .unwrap();
        if std::env::var_os("SHOW_MISSES").is_some() {
            self.misses.iter().for_each(|miss| writeln!(out, "  {miss}").unwrap());
        }
        assert!(self.all > 100, "{what}: compared only {}", self.all);
        assert!(permille >= floor, "{what}: {permille} is below {floor}");
    }
}
