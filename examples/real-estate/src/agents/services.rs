//! Owns what the nine services do: one function each, from a payload to its answer, with the domain's own functions in
//! between. Rule kept: a service that calls another one says so in `agents`.

use std::sync::Arc;

use tokio::time::sleep;
use worker_sdk::{Context, Failure, Priority};

use crate::{
    handoff::{self, Handoff},
    intent::Decoded,
    memory::Conversation,
    messages::{
        Analyze, CRM_EVENTS, Contact, ContactSynced, Dashboard, Evaluate, LOCAL_PRICES, LeadEvent,
        LocalPrices, MARKET_INTELLIGENCE, MARKET_REPORT, MEMORY_SERVICE, MarketReport, MarketView,
        Orchestrate, Plan, RECALL, REMEMBER, Recall, Remember, SCORE, SCORING_ENGINE, Tags,
    },
    platform::Platform,
    reply::{self, Facts, Reply},
    scoring::{self, Score},
    wire,
};

/// Decodes a message in the light of what is known of its conversation.
pub(super) async fn analyze_lead(
    platform: Arc<Platform>,
    context: Context,
    analyze: Analyze,
) -> Result<Decoded, Failure> {
    let recall = Recall { conversation: analyze.conversation.clone() };
    let dispatch = context.dispatch(MEMORY_SERVICE, RECALL).priority(Priority::P0);
    let known: Conversation = wire::request(&platform.ledger, dispatch, &recall).await?.value;
    Ok(platform.decode(&analyze, &known))
}

/// Gathers all that an answer is made of: memory first, then market and score at the same time.
pub(super) async fn orchestrate(
    platform: Arc<Platform>,
    context: Context,
    asked: Orchestrate,
) -> Result<Plan, Failure> {
    let Orchestrate { conversation, text, decoded } = asked;
    let ledger = &platform.ledger;
    let intents = decoded.intents.clone();
    let remember = context.dispatch(MEMORY_SERVICE, REMEMBER).priority(Priority::P0);
    let known: Conversation =
        wire::request(ledger, remember, &Remember { conversation, decoded }).await?.value;

    let wanted = LocalPrices { slots: known.slots.clone(), passed: known.passed, home: known.home.clone() };
    let prices = context.dispatch(MARKET_INTELLIGENCE, LOCAL_PRICES).priority(Priority::P0);
    let score = context.dispatch(SCORING_ENGINE, SCORE).priority(Priority::P0);
    let (view, score) = futures::try_join!(
        wire::request::<_, MarketView>(ledger, prices, &wanted),
        wire::request::<_, Score>(ledger, score, &known),
    )?;

    let MarketView { found, rents, worth } = view.value;
    let mut facts = Facts { intents, known, found, rents, worth, handoff: None, draft: None };
    if let Some(llm) = &platform.llm {
        match llm.draft(&text, &facts).await {
            Ok(draft) => facts.draft = Some(draft),
            Err(error) => tracing::warn!(error = %error, "no draft of the language model; the rules answer"),
        }
    }
    Ok(Plan { facts, score: score.value })
}

/// Decides who goes on with a conversation.
pub(super) async fn evaluate(
    platform: Arc<Platform>,
    _context: Context,
    asked: Evaluate,
) -> Result<Handoff, Failure> {
    let delay = platform.handoff_delay();
    if !delay.is_zero() {
        sleep(delay).await;
    }
    Ok(handoff::evaluate(asked.bot, &asked.known, &asked.score))
}

pub(super) async fn compose(
    _platform: Arc<Platform>,
    _context: Context,
    facts: Facts,
) -> Result<Reply, Failure> {
    Ok(reply::compose(&facts))
}

pub(super) async fn recall(
    platform: Arc<Platform>,
    _context: Context,
    asked: Recall,
) -> Result<Conversation, Failure> {
    Ok(platform.recall(&asked.conversation))
}

pub(super) async fn remember(
    platform: Arc<Platform>,
    _context: Context,
    asked: Remember,
) -> Result<Conversation, Failure> {
    Ok(platform.remember(&asked.conversation, &asked.decoded))
}

pub(super) async fn local_prices(
    platform: Arc<Platform>,
    _context: Context,
    wanted: LocalPrices,
) -> Result<MarketView, Failure> {
    Ok(platform.local_prices(&wanted))
}

pub(super) async fn market_report(
    platform: Arc<Platform>,
    _context: Context,
    (): (),
) -> Result<MarketReport, Failure> {
    Ok(platform.market_report())
}

pub(super) async fn score(
    _platform: Arc<Platform>,
    _context: Context,
    known: Conversation,
) -> Result<Score, Failure> {
    Ok(scoring::score(&known))
}

/// Puts a contact into the CRM and tells whoever wants to know.
pub(super) async fn sync_contact(
    platform: Arc<Platform>,
    context: Context,
    contact: Contact,
) -> Result<(), Failure> {
    let synced = ContactSynced { conversation: contact.conversation.clone() };
    platform.sync_contact(contact);
    wire::send(&platform.ledger, context.emit(CRM_EVENTS).priority(Priority::P3), &synced).await?;
    Ok(())
}

pub(super) async fn update_tags(
    platform: Arc<Platform>,
    _context: Context,
    tags: Tags,
) -> Result<(), Failure> {
    platform.update_tags(tags);
    Ok(())
}

pub(super) async fn lead_event(
    platform: Arc<Platform>,
    _context: Context,
    event: LeadEvent,
) -> Result<(), Failure> {
    platform.count_lead(&event);
    Ok(())
}

pub(super) async fn contact_synced(
    platform: Arc<Platform>,
    _context: Context,
    _event: ContactSynced,
) -> Result<(), Failure> {
    platform.count_contact();
    Ok(())
}

/// Shows the dashboard with fresh figures of the market.
pub(super) async fn refresh(platform: Arc<Platform>, context: Context, (): ()) -> Result<Dashboard, Failure> {
    let report = context.dispatch(MARKET_INTELLIGENCE, MARKET_REPORT).priority(Priority::P3);
    wire::request::<_, MarketReport>(&platform.ledger, report, &()).await?;
    Ok(platform.dashboard())
}

/// What nobody but accounting may ask for; no agent declares it.
pub(super) async fn billing_report(
    platform: Arc<Platform>,
    _context: Context,
    (): (),
) -> Result<Dashboard, Failure> {
    Ok(platform.dashboard())
}
