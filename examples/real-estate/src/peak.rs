//! Owns the run of the morning peak: leads arrive three times as fast as before, and lead bots, each a process of its own
//! under `mesh run`, come and go as the mesh decides. Rule kept: what is reported was seen from outside: instances by
//! their heartbeats, effects by what the processes wrote down, outcomes by senders and archive.

mod arrivals;
mod bot;
mod instances;
mod report;
mod troop;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::future::try_join_all;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};
use worker_sdk::{Agent, Priority};

pub use bot::serve;
pub use report::Report;

use crate::archive::Archive;
use crate::config::{self, Peak};
use crate::demo;
use crate::ledger::Ledger;
use crate::messages::PEOPLE;
use crate::progress::Progress;
use crate::wire;
use arrivals::{Arrival, Phases};
use bot::{CONVERSE, LEAD_BOT, Lead, QUALIFY};
use instances::Instances;
use troop::Troop;

/// Where leads come in.
const FEED: &str = "lead_feed";

/// Lead bots, at least and at most, as in the article.
pub(crate) const BOTS: (u32, u32) = (2, 6);

/// A lead may wait for as long as the whole peak takes.
const LEAD_BUDGET: Duration = Duration::from_secs(600);

/// Between two messages of people, all of them together.
const PEOPLE_EVERY: Duration = Duration::from_millis(200);

/// Several processes have to start and to register.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Four steps down, each after a time of little to do, and a reserve.
const REST_PATIENCE: Duration = Duration::from_secs(240);

/// Plays the peak and gives its report.
///
/// # Errors
/// When the arrivals cannot be read, or mesh, archive or `mesh run` cannot be used.
pub async fn run(peak: &Peak) -> anyhow::Result<Report> {
    let text = fs::read_to_string(&peak.arrivals)
        .with_context(|| format!("the arrivals {} cannot be read", peak.arrivals.display()))?;
    let phases = Phases { calm: peak.calm(), peak: peak.duration(), factor: peak.peak };
    let arrivals = arrivals::plan(&text, peak.speed, phases)?;
    let limits = demo::limits(&peak.policy, &[LEAD_BOT, FEED, PEOPLE])?;
    let archive = Archive::open(&peak.postgres_url).await?;
    let (ledger, progress) = (Arc::new(Ledger::default()), Progress::default());
    let mesh = demo::connect(&peak.common).await?;
    let instances = Instances::watch(&mesh, LEAD_BOT).await?;
    let mut troop = Troop::start(peak.speed, BOTS)?;
    instances.until(START_PATIENCE, |count| count >= BOTS.0).await.context("the lead bots did not start")?;
    let feed = mesh.agent(FEED).depends_on(LEAD_BOT).register().await?;
    let people = mesh.agent(PEOPLE).depends_on(LEAD_BOT).register().await?;

    progress.say(&format!("{} lead bots serve; {} leads are on their way", BOTS.0, arrivals.len()));
    let started = Instant::now();
    let over = Arc::new(AtomicBool::new(false));
    let chat = tokio::spawn(talk(people.clone(), Arc::clone(&ledger), Arc::clone(&over)));
    let sent = send(&feed, &arrivals, &ledger, &progress, &instances).await;
    progress.say("all leads are answered; waiting until the lead bots are as few as before");
    let rested = instances.until(REST_PATIENCE, |count| count <= BOTS.0).await;
    over.store(true, Ordering::Relaxed);
    chat.await?;
    let seconds = started.elapsed().as_secs_f64();
    let lines = instances.lines();
    troop.stop().await?;
    troop.effects(&ledger)?;
    feed.stop().await?;
    people.stop().await?;
    sent?;
    let (books, records) = demo::settle(&archive, &ledger, &limits, &progress).await?;
    if let Err(error) = rested {
        progress.say(&format!("{error:#}"));
    }
    Ok(Report::new(config::setting("peak"), books, &records, lines, BOTS, arrivals.len(), seconds))
}

/// Sends each lead when it is due, whatever became of those before, and waits for all ends.
async fn send(
    feed: &Agent,
    arrivals: &[Arrival],
    ledger: &Arc<Ledger>,
    progress: &Progress,
    instances: &Instances,
) -> anyhow::Result<()> {
    let begin = tokio::time::Instant::now();
    let mut leads = Vec::with_capacity(arrivals.len());
    for (n, arrival) in arrivals.iter().enumerate() {
        sleep_until(begin + arrival.at).await;
        let dispatch = feed.dispatch(LEAD_BOT, QUALIFY).priority(Priority::P2).budget(LEAD_BUDGET);
        let (ledger, lead) = (Arc::clone(ledger), Lead { tokens: arrival.tokens });
        leads.push(tokio::spawn(async move {
            if let Err(error) = wire::request::<_, Lead>(&ledger, dispatch, &lead).await {
                tracing::warn!(%error, "a lead got no answer");
            }
        }));
        progress.show(|| format!("{n} of {} leads, {} lead bots", arrivals.len(), instances.now()));
    }
    timeout(LEAD_BUDGET, try_join_all(leads)).await.context("the leads do not end")??;
    Ok(())
}

/// People talk until it is over, a message each so often, whether the one before was answered or not.
async fn talk(people: Agent, ledger: Arc<Ledger>, over: Arc<AtomicBool>) {
    let (mut due, mut asked) = (tokio::time::interval(PEOPLE_EVERY), JoinSet::new());
    while !over.load(Ordering::Relaxed) {
        due.tick().await;
        let dispatch = people.dispatch(LEAD_BOT, CONVERSE).priority(Priority::P0);
        let ledger = Arc::clone(&ledger);
        asked.spawn(async move {
            if let Err(error) = wire::request::<_, Lead>(&ledger, dispatch, &Lead { tokens: 1 }).await {
                tracing::warn!(%error, "a person got no answer");
            }
        });
    }
    while asked.join_next().await.is_some() {}
}
