//! Owns how a bot answers a person: decode, orchestrate, decide who goes on, write the answer, tell the CRM and the
//! dashboard. Rule kept: whatever fails behind the answer, the person gets one.

use std::sync::Arc;

use worker_sdk::{Context, Failure, Priority};

use crate::{
    handoff::{Bot, Handoff},
    intent::Decoded,
    messages::{
        ANALYZE_LEAD, Analyze, Answer, COMPOSE, CRM_CLIENT, Contact, EVALUATE, Evaluate, HANDOFF_SERVICE,
        INTENT_DECODER, LEAD_EVENTS, LeadEvent, ORCHESTRATE, ORCHESTRATOR, Orchestrate, Plan,
        RESPONSE_PIPELINE, SYNC_CONTACT, Utterance,
    },
    platform::Platform,
    reply::Reply,
    wire::{self, Replied},
};

/// Answers one message of a person.
pub(super) async fn converse(
    platform: Arc<Platform>,
    bot: Bot,
    context: Context,
    said: Utterance,
) -> Result<Answer, Failure> {
    let Utterance { conversation, text, in_reply_to } = said;
    let ledger = &platform.ledger;
    let analyze = Analyze { conversation: conversation.clone(), text: text.clone(), in_reply_to };
    let dispatch = context.dispatch(INTENT_DECODER, ANALYZE_LEAD).priority(Priority::P0);
    let decoded: Decoded = wire::request(ledger, dispatch, &analyze).await?.value;

    let dispatch = context.dispatch(ORCHESTRATOR, ORCHESTRATE).priority(Priority::P0);
    let asked = Orchestrate { conversation: conversation.clone(), text, decoded };
    let Plan { mut facts, score } = wire::request(ledger, dispatch, &asked).await?.value;

    let evaluate = Evaluate { bot, known: facts.known.clone(), score: score.clone() };
    let handoff = hand_off(&platform, &context, &evaluate).await;
    facts.handoff = Some(handoff.value.clone());

    let event = LeadEvent {
        conversation: conversation.clone(),
        bot,
        goal: facts.known.goal,
        temperature: score.temperature,
        points: score.points,
    };
    let dispatch = context.dispatch(RESPONSE_PIPELINE, COMPOSE).priority(Priority::P0);
    let (reply, (), ()) = futures::join!(
        wire::request::<_, Reply>(ledger, dispatch, &facts),
        sync_contact(&platform, &context, &event, &facts.known),
        tell_dashboard(&platform, &context, &event),
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

/// Who goes on? Where nobody can say, the bot does.
async fn hand_off(platform: &Platform, context: &Context, evaluate: &Evaluate) -> Replied<Handoff> {
    let dispatch = context.dispatch(HANDOFF_SERVICE, EVALUATE).priority(Priority::P1);
    wire::request(&platform.ledger, dispatch, evaluate).await.unwrap_or_else(|error| {
        tracing::warn!(error = %error, "no decision about the handoff; the bot goes on");
        Replied { id: String::new(), value: Handoff::stay("no decision"), fallback: false }
    })
}

/// Tells the CRM where something changed that its file keeps. The person does not wait for it.
async fn sync_contact(
    platform: &Platform,
    context: &Context,
    event: &LeadEvent,
    known: &crate::memory::Conversation,
) {
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
