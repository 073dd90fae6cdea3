//! Owns how a bot answers a person: decode, orchestrate, decide who goes on, write the answer, tell the CRM and the
//! dashboard. Rule kept: whatever fails behind the answer, the person gets one.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use worker_sdk::{Context, Error, Failure, Priority};

use crate::{
    handoff::{Bot, Handoff},
    intent::{Decoded, Goal},
    memory::Conversation,
    messages::{
        ANALYZE_LEAD, Analyze, Answer, COMPOSE, CRM_CLIENT, Contact, EVALUATE, Evaluate, HANDOFF_SERVICE,
        INTENT_DECODER, LEAD_EVENTS, LeadEvent, ORCHESTRATE, ORCHESTRATOR, Orchestrate, Plan,
        RESPONSE_PIPELINE, SYNC_CONTACT, Utterance,
    },
    platform::Platform,
    reply::Reply,
    scoring::Temperature,
    wire::{self, Replied},
};

/// How long a bot waits for the decision who goes on; the person waits with it.
const HANDOFF_PATIENCE: Duration = Duration::from_millis(150);

/// What a person gets when there is no better answer; also the bot's registered fallback.
pub(super) fn excuse(bot: Bot) -> Answer {
    Answer {
        text: "One moment please, I am looking into it and come back to you.".to_owned(),
        segments: 1,
        next: bot,
        goal: Goal::Unknown,
        temperature: Temperature::Cold,
        fallback: true,
    }
}

/// Answers one message of a person.
pub(super) async fn converse(
    platform: Arc<Platform>,
    bot: Bot,
    context: Context,
    said: Utterance,
) -> Result<Answer, Failure> {
    let answered = answer(&platform, bot, &context, said).await;
    Ok(answered.unwrap_or_else(|error| {
        tracing::warn!(error = %error, bot = bot.agent(), "no answer could be made; the person is asked to wait");
        excuse(bot)
    }))
}

async fn answer(platform: &Platform, bot: Bot, context: &Context, said: Utterance) -> Result<Answer, Error> {
    let Utterance { conversation, text, in_reply_to } = said;
    let ledger = &platform.ledger;
    let analyze = Analyze { conversation: conversation.clone(), text: text.clone(), in_reply_to };
    let dispatch = context.dispatch(INTENT_DECODER, ANALYZE_LEAD).priority(Priority::P0);
    let decoded: Decoded = wire::request(ledger, dispatch, &analyze).await?.value;

    let dispatch = context.dispatch(ORCHESTRATOR, ORCHESTRATE).priority(Priority::P0);
    let asked = Orchestrate { conversation: conversation.clone(), text, decoded };
    let Plan { mut facts, score } = wire::request(ledger, dispatch, &asked).await?.value;

    let evaluate = Evaluate { bot, known: facts.known.clone(), score: score.clone() };
    let handoff = hand_off(platform, context, &evaluate).await;
    facts.handoff = Some(handoff.value.clone());

    let event = LeadEvent {
        conversation,
        bot,
        goal: facts.known.goal,
        temperature: score.temperature,
        points: score.points,
    };
    let dispatch = context.dispatch(RESPONSE_PIPELINE, COMPOSE).priority(Priority::P0);
    let (reply, (), ()) = futures::join!(
        wire::request::<_, Reply>(ledger, dispatch, &facts),
        sync_contact(platform, context, &event, &facts.known),
        tell_dashboard(platform, context, &event),
    );
    let Reply { text, segments } = reply?.value;
    Ok(Answer {
        text,
        segments,
        next: handoff.value.to.unwrap_or(bot),
        goal: event.goal,
        temperature: event.temperature,
        fallback: handoff.fallback,
    })
}

/// Who goes on? Where nobody says so in time, the bot does.
async fn hand_off(platform: &Platform, context: &Context, evaluate: &Evaluate) -> Replied<Handoff> {
    let dispatch = context.dispatch(HANDOFF_SERVICE, EVALUATE).priority(Priority::P1);
    let decided = wire::request(&platform.ledger, dispatch, evaluate);
    let stay = || Replied { id: String::new(), value: Handoff::stay("no decision"), fallback: false };
    match timeout(HANDOFF_PATIENCE, decided).await {
        Ok(Ok(decided)) => decided,
        Ok(Err(error)) => {
            tracing::warn!(error = %error, "no decision about the handoff; the bot goes on");
            stay()
        }
        Err(_elapsed) => stay(),
    }
}

/// Tells the CRM where something changed that its file keeps. The person does not wait for it.
async fn sync_contact(platform: &Platform, context: &Context, event: &LeadEvent, known: &Conversation) {
    if !known.changed {
        return;
    }
    let contact = Contact {
        conversation: event.conversation.clone(),
        goal: event.goal,
        temperature: event.temperature,
        area: known.slots.area.clone(),
        visit_date: known.slots.visit_date.clone(),
    };
    let dispatch =
        context.publish_event(CRM_CLIENT, SYNC_CONTACT).priority(Priority::P2).order_key(&event.conversation);
    if let Err(error) = wire::send(&platform.ledger, dispatch, &contact).await {
        tracing::warn!(error = %error, "the CRM was not told");
    }
}

async fn tell_dashboard(platform: &Platform, context: &Context, event: &LeadEvent) {
    let dispatch = context.emit(LEAD_EVENTS).priority(Priority::P3);
    if let Err(error) = wire::send(&platform.ledger, dispatch, event).await {
        tracing::warn!(error = %error, "the dashboard was not told");
    }
}
