//! Owns the talk between people and bots: who says what when, to which bot, and what came back. What people are is in
//! `people`; what is staged meanwhile, in `scenes`. Rule kept: a message without an answer is counted, and the person goes on.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use tokio::sync::watch;
use worker_sdk::Priority;

use crate::{
    config::Demo,
    handoff::Bot,
    ledger::lock,
    messages::{Answer, CONVERSE, PEOPLE, Utterance},
    people::{Pace, Person},
    report::{Talk, percentile_ms},
    scenes::Stage,
    wire,
};

/// How long a person waits for an answer by text message. What is told to the CRM on the way ends no later.
const ANSWER_BUDGET: Duration = Duration::from_secs(60);

/// Scenes that need a busy platform begin after this share of the messages.
const UNDER_WAY_PERCENT: usize = 10;

/// All conversations of a run.
pub struct Talks<'a> {
    stage: &'a Stage<'a>,
    people: &'a [Person<'a>],
    messages: usize,
    said: AtomicUsize,
    under_way: watch::Sender<bool>,
    example: Mutex<Option<String>>,
}

/// What one person got.
#[derive(Debug, Default)]
struct Got {
    messages: u64,
    answered: u64,
    waits_us: Vec<i64>,
}

impl<'a> Talks<'a> {
    /// The conversations of `people`.
    pub fn new(stage: &'a Stage<'a>, people: &'a [Person<'a>]) -> Self {
        let messages = people.iter().map(|person| person.dialogue.said().count()).sum();
        let (under_way, _) = watch::channel(false);
        Self { stage, people, messages, said: AtomicUsize::new(0), under_way, example: Mutex::default() }
    }

    /// Plays them all, so many people at a time and so many messages a second as `demo` says.
    pub async fn play(&self, demo: &Demo) -> Talk {
        let pace = Pace::new(demo.pace);
        let at_a_time = usize::try_from(demo.people).unwrap_or(usize::MAX);
        let talking = stream::iter(self.people).map(|person| self.talk(person, &pace));
        let got: Vec<Got> = talking.buffer_unordered(at_a_time).collect().await;
        self.under_way.send_replace(true);
        let mut waits: Vec<i64> = got.iter().flat_map(|got| got.waits_us.iter().copied()).collect();
        waits.sort_unstable();
        let messages: u64 = got.iter().map(|got| got.messages).sum();
        let answered: u64 = got.iter().map(|got| got.answered).sum();
        Talk {
            conversations: self.people.len() as u64,
            messages,
            answered,
            unanswered: messages - answered,
            answer_p50_ms: percentile_ms(&waits, 50),
            answer_p99_ms: percentile_ms(&waits, 99),
            seconds: 0.0,
        }
    }

    /// Waits until talk is under way, or over.
    pub async fn under_way(&self) {
        // The sender lives as long as `self`.
        drop(self.under_way.subscribe().wait_for(|under_way| *under_way).await);
    }

    /// A dispatch that brought an answer to a person.
    pub fn example(&self) -> Option<String> {
        lock(&self.example).clone()
    }

    async fn talk(&self, person: &Person<'_>, pace: &Pace) -> Got {
        let (mut bot, mut got) = (Bot::Lead, Got::default());
        let conversation = person.conversation();
        for said in person.dialogue.said() {
            pace.turn().await;
            self.count();
            got.messages += 1;
            let utterance = Utterance {
                conversation: conversation.clone(),
                text: said.text.to_owned(),
                in_reply_to: said.in_reply_to.map(str::to_owned),
            };
            let start = Instant::now();
            if let Some(answer) = self.say(bot, &utterance).await {
                got.answered += 1;
                got.waits_us.push(i64::try_from(start.elapsed().as_micros()).unwrap_or(i64::MAX));
                bot = answer.next;
            }
        }
        got
    }

    async fn say(&self, bot: Bot, utterance: &Utterance) -> Option<Answer> {
        let Stage { platform, crew, seen, .. } = self.stage;
        let dispatch = crew.agent(PEOPLE).dispatch(bot.agent(), CONVERSE).priority(Priority::P0);
        let dispatch = dispatch.conversation(&utterance.conversation).budget(ANSWER_BUDGET);
        match wire::request::<_, Answer>(&platform.ledger, dispatch, utterance).await {
            Ok(replied) => {
                if replied.value.fallback {
                    seen.fallback();
                }
                *lock(&self.example) = Some(replied.id);
                Some(replied.value)
            }
            Err(error) => {
                tracing::warn!(error = %error, bot = bot.agent(), "a person got no answer");
                None
            }
        }
    }

    fn count(&self) {
        let said = self.said.fetch_add(1, Ordering::Relaxed) + 1;
        if said * 100 >= self.messages * UNDER_WAY_PERCENT {
            self.under_way.send_replace(true);
        }
        let messages = self.messages;
        self.stage.progress.show(|| format!("{said} of {messages} messages"));
    }
}
