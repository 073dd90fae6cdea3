//! Owns the lead bot of the peak: a process that qualifies leads as slowly as a language model writes, and talks to people
//! between. Rule kept: an effect is written down before it is told.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use worker_sdk::{Context, Failure};

use crate::config::LeadBot;
use crate::demo;
use crate::ledger::lock;
use crate::peak::BOTS;

pub(crate) const LEAD_BOT: &str = "lead_bot";
/// A lead is looked at; nobody waits for it.
pub(crate) const QUALIFY: &str = "qualify_lead";
/// A person waits for an answer.
pub(crate) const CONVERSE: &str = "converse";

/// How long a language model takes for one token.
const TOKEN: Duration = Duration::from_millis(30);
/// Leads and people that one bot serves at once.
const SLOTS: u32 = 8;
/// Far above the longest answer: what waits in a lane or an inbox does not count.
const SLA: Duration = Duration::from_secs(10);

/// What is asked, and answered.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Lead {
    /// How long the answer is.
    pub(crate) tokens: u32,
}

/// Serves as a lead bot until `stopped`, then finishes what runs.
///
/// # Errors
/// When the mesh cannot be reached or refuses the registration, or effects cannot be written down.
pub async fn serve(bot: &LeadBot, stopped: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let path = bot.effects.join(format!("{}.ids", std::process::id()));
    let file = OpenOptions::new().create(true).append(true).open(&path);
    let effects = file.with_context(|| format!("{} cannot be written", path.display()))?;
    let effects = Arc::new(Mutex::new(effects));
    let mesh = demo::connect(&bot.common).await?;
    let agent = mesh
        .agent(LEAD_BOT)
        .capability(QUALIFY, answer(&effects, TOKEN / bot.speed))
        .capability(CONVERSE, answer(&effects, TOKEN / bot.speed))
        .instances(BOTS.0, BOTS.1)
        .max_concurrent(SLOTS)
        .sla_p95(SLA)
        .register()
        .await?;
    stopped.await?;
    agent.stop().await?;
    Ok(())
}

/// Writes so many tokens, and notes the effect.
fn answer(
    effects: &Arc<Mutex<File>>,
    token: Duration,
) -> impl Fn(Context, Lead) -> futures::future::BoxFuture<'static, Result<Lead, Failure>> + Send + Sync + 'static
{
    let effects = Arc::clone(effects);
    move |context, lead| {
        let effects = Arc::clone(&effects);
        Box::pin(async move {
            sleep(token * lead.tokens).await;
            let line = format!("{}\n", context.id());
            lock(&effects).write_all(line.as_bytes()).map_err(|e| Failure::new(e.to_string()))?;
            Ok(lead)
        })
    }
}
