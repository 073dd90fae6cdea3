//! Owns who the agents are: what each offers, needs and promises, and the people's channel beside them. What they do is in
//! `agents/`. Rule kept: an agent calls only what it declares here.

mod bots;
mod services;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::future::BoxFuture;
use worker_sdk::{Agent, AgentBuilder, Context, Failure, Mesh};

use crate::{
    handoff::{Bot, Handoff},
    llm,
    messages::{
        ANALYZE_LEAD, BI_DASHBOARD, BILLING_REPORT, COMPOSE, CONVERSE, CRM_CLIENT, CRM_EVENTS, EVALUATE,
        HANDOFF_SERVICE, INTENT_DECODER, LEAD_EVENTS, LOCAL_PRICES, MARKET_INTELLIGENCE, MARKET_REPORT,
        MEMORY_SERVICE, ORCHESTRATE, ORCHESTRATOR, PEOPLE, RECALL, REFRESH, REMEMBER, RESPONSE_PIPELINE,
        SCORE, SCORING_ENGINE, SYNC_CONTACT, UPDATE_TAGS,
    },
    platform::Platform,
};

/// The twelve agents.
pub const NAMES: [&str; 12] = [
    "lead_bot",
    "buyer_bot",
    "seller_bot",
    ORCHESTRATOR,
    INTENT_DECODER,
    HANDOFF_SERVICE,
    RESPONSE_PIPELINE,
    CRM_CLIENT,
    MEMORY_SERVICE,
    MARKET_INTELLIGENCE,
    SCORING_ENGINE,
    BI_DASHBOARD,
];

/// What a bot promises, as in the article; what it waits for is part of it.
const BOT_SLA: Duration = Duration::from_millis(500);

/// What an agent promises that itself waits for others.
const WAITING_SLA: Duration = Duration::from_secs(1);

/// What the handoff service promises; it is made slower than 120 % of this for a while.
pub const HANDOFF_SLA: Duration = Duration::from_millis(250);

/// Registers one agent and starts to serve. The name is one of [`NAMES`], or [`PEOPLE`].
///
/// # Errors
/// When the mesh refuses the registration or does not answer, or no agent has the name.
pub async fn start(mesh: &Mesh, name: &str, platform: &Arc<Platform>) -> anyhow::Result<Agent> {
    let agent = mesh.agent(name);
    let agent = match name {
        PEOPLE => people(agent),
        "lead_bot" => bot(agent, Bot::Lead, platform),
        "buyer_bot" => bot(agent, Bot::Buyer, platform),
        "seller_bot" => bot(agent, Bot::Seller, platform),
        ORCHESTRATOR => agent
            .capability(ORCHESTRATE, serve(platform, services::orchestrate))
            .depends_on(MEMORY_SERVICE)
            .depends_on(MARKET_INTELLIGENCE)
            .depends_on(SCORING_ENGINE)
            .max_concurrent(50)
            .sla_p95(if platform.llm.is_some() { llm::SLA } else { WAITING_SLA }),
        INTENT_DECODER => agent
            .capability(ANALYZE_LEAD, serve(platform, services::analyze_lead))
            .depends_on(MEMORY_SERVICE)
            .max_concurrent(50)
            .sla_p95(WAITING_SLA),
        HANDOFF_SERVICE => agent
            .capability(EVALUATE, serve(platform, services::evaluate))
            .fallback_static(EVALUATE, &Handoff::stay("the handoff service is cut off"))
            .max_concurrent(32)
            .sla_p95(HANDOFF_SLA),
        RESPONSE_PIPELINE => service(agent).capability(COMPOSE, serve(platform, services::compose)),
        CRM_CLIENT => service(agent)
            .capability(SYNC_CONTACT, serve(platform, services::sync_contact))
            .capability(UPDATE_TAGS, serve(platform, services::update_tags)),
        MEMORY_SERVICE => service(agent)
            .capability(RECALL, serve(platform, services::recall))
            .capability(REMEMBER, serve(platform, services::remember)),
        MARKET_INTELLIGENCE => service(agent)
            .capability(LOCAL_PRICES, serve(platform, services::local_prices))
            .capability(MARKET_REPORT, serve(platform, services::market_report)),
        SCORING_ENGINE => service(agent).capability(SCORE, serve(platform, services::score)),
        BI_DASHBOARD => service(agent)
            .on_topic(LEAD_EVENTS, serve(platform, services::lead_event))
            .on_topic(CRM_EVENTS, serve(platform, services::contact_synced))
            .capability(REFRESH, serve(platform, services::refresh))
            .capability(BILLING_REPORT, serve(platform, services::billing_report))
            .depends_on(MARKET_INTELLIGENCE),
        _ => anyhow::bail!("{name:?} is none of the agents; they are {}", NAMES.join(", ")),
    };
    Ok(agent.register().await?)
}

/// The channel between people and bots; it offers nothing.
fn people(agent: AgentBuilder) -> AgentBuilder {
    Bot::ALL.into_iter().fold(agent, |agent, bot| agent.depends_on(bot.agent()))
}

fn bot(agent: AgentBuilder, bot: Bot, platform: &Arc<Platform>) -> AgentBuilder {
    agent
        .capability(
            CONVERSE,
            serve(platform, move |platform, context, said| bots::converse(platform, bot, context, said)),
        )
        .depends_on(INTENT_DECODER)
        .depends_on(ORCHESTRATOR)
        .depends_on(HANDOFF_SERVICE)
        .depends_on(RESPONSE_PIPELINE)
        .depends_on(CRM_CLIENT)
        .fallback_static(CONVERSE, &bots::excuse(bot))
        .max_concurrent(50)
        .sla_p95(if platform.llm.is_some() { llm::SLA + BOT_SLA } else { BOT_SLA })
}

/// What small and quick services have in common.
fn service(agent: AgentBuilder) -> AgentBuilder {
    agent.max_concurrent(32).sla_p95(Duration::from_millis(250))
}

/// A handler that enters its effect into the ledger once its work is done.
fn serve<T, R, F, W>(
    platform: &Arc<Platform>,
    work: F,
) -> impl Fn(Context, T) -> BoxFuture<'static, Result<R, Failure>> + Send + Sync + 'static
where
    T: Send + 'static,
    F: Fn(Arc<Platform>, Context, T) -> W + Send + Sync + 'static,
    W: Future<Output = Result<R, Failure>> + Send + 'static,
{
    let platform = Arc::clone(platform);
    move |context, input| {
        let (id, ledger) = (context.id().to_string(), Arc::clone(&platform));
        let work = work(Arc::clone(&platform), context, input);
        Box::pin(async move {
            let output = work.await?;
            ledger.ledger.effect(&id);
            Ok(output)
        })
    }
}

/// Agents that run in this process.
#[derive(Debug)]
pub struct Crew(Vec<(String, Agent)>);

impl Crew {
    /// Starts `names` one after the other.
    ///
    /// # Errors
    /// When one of them cannot be started.
    pub async fn start(
        mesh: &Mesh,
        names: impl IntoIterator<Item = &str>,
        platform: &Arc<Platform>,
    ) -> anyhow::Result<Self> {
        let mut crew = Vec::new();
        for name in names {
            crew.push((
                name.to_owned(),
                start(mesh, name, platform).await.with_context(|| format!("{name} cannot join"))?,
            ));
        }
        Ok(Self(crew))
    }

    /// The agent with this name, which must be one of those started.
    pub fn agent(&self, name: &str) -> &Agent {
        let (_, agent) =
            self.0.iter().find(|(known, _)| known == name).expect("the crew was started with it");
        agent
    }

    /// Lets all of them finish what runs, and stops them.
    ///
    /// # Errors
    /// When one of them cannot say goodbye in order.
    pub async fn stop(&self) -> anyhow::Result<()> {
        let stopping = self.0.iter().map(|(name, agent)| async move {
            agent.stop().await.with_context(|| format!("{name} did not stop in order"))
        });
        futures::future::try_join_all(stopping).await?;
        Ok(())
    }
}
