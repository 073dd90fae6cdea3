//! Owns the people: each plays one dialogue, message by message, with a bounded number of them at a time and an even
//! flow of messages. They know nothing of the platform but the channel that takes a message and brings an answer. Rule
//! kept: a person waits for the answer before going on.

use std::time::Duration;

use tokio::{
    sync::Mutex,
    time::{Interval, MissedTickBehavior, interval},
};

use crate::dialogues::Dialogue;

/// An even flow: each message waits for its turn, so that no burst runs into a quota that real people would not.
#[derive(Debug)]
pub struct Pace(Mutex<Interval>);

impl Pace {
    /// At most `per_s` turns in a second, evenly; `per_s` is at least 1.
    pub fn new(per_s: u32) -> Self {
        let mut turns = interval(Duration::from_secs(1) / per_s.max(1));
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self(Mutex::new(turns))
    }

    /// Waits for the next turn.
    pub async fn turn(&self) {
        self.0.lock().await.tick().await;
    }
}

/// One person with the dialogue that it plays.
#[derive(Debug, Clone, Copy)]
pub struct Person<'a> {
    pub dialogue: &'a Dialogue,
    /// Which of the people with this dialogue.
    pub round: u32,
}

impl Person<'_> {
    /// The key of this person's conversation.
    pub fn conversation(&self) -> String {
        let Self { dialogue, round } = self;
        let id: String = dialogue.id.chars().take(ID_CHARS_MAX).collect();
        if *round == 0 { id } else { format!("{id}.{round}") }
    }
}

/// Conversation keys are indexed; a longer id of a dialogue is cut.
const ID_CHARS_MAX: usize = 96;

/// The people who play `dialogues`: each dialogue once, and again from the start until there are `messages_min`
/// messages, so that a small set is played by several people at the same time.
pub fn cast(dialogues: &[Dialogue], messages_min: usize) -> Vec<Person<'_>> {
    let in_round: usize = dialogues.iter().map(|dialogue| dialogue.said().count()).sum();
    let rounds = if in_round == 0 { 1 } else { messages_min.div_ceil(in_round).max(1) };
    let rounds = u32::try_from(rounds).unwrap_or(u32::MAX);
    let round = |round| dialogues.iter().map(move |dialogue| Person { dialogue, round });
    (0..rounds).flat_map(round).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::dialogues;

    #[test]
    fn a_small_set_is_played_by_several_people() {
        let dialogues = dialogues::built_in();
        let people = cast(&dialogues, 500);
        let messages: usize = people.iter().map(|person| person.dialogue.said().count()).sum();
        assert!((500..1_000).contains(&messages), "{messages} messages");
        let keys: BTreeSet<String> = people.iter().map(Person::conversation).collect();
        assert_eq!(keys.len(), people.len());
    }

    #[test]
    fn a_large_set_is_played_once() {
        let dialogues = dialogues::built_in();
        assert_eq!(cast(&dialogues, 10).len(), dialogues.len());
        assert!(cast(&[], 10).is_empty());
    }

    #[tokio::test]
    async fn the_pace_is_kept() {
        let pace = Pace::new(200);
        let start = tokio::time::Instant::now();
        for _ in 0..11 {
            pace.turn().await;
        }
        assert!(start.elapsed() >= Duration::from_millis(50));
    }
}
