//! Owns what is staged while people talk, so that the rules are seen at work: a call without a declaration, a claim of
//! P0 without the right to it, a burst for the CRM, a slow handoff service. It judges by what the agents get and what
//! the archive holds. Rule kept: nothing staged changes what people are promised; every lead gets an answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use governance::Reason;
use tokio::time::sleep;
use worker_sdk::{ErrorKind, Priority};

use crate::{
    agents::{Crew, HANDOFF_SLA},
    books::{self, Record},
    handoff::{Bot, Handoff},
    memory::Conversation,
    messages::{
        BI_DASHBOARD, BILLING_REPORT, CRM_CLIENT, Dashboard, EVALUATE, Evaluate, HANDOFF_SERVICE,
        MARKET_INTELLIGENCE, MARKET_REPORT, MarketReport, Tags, UPDATE_TAGS,
    },
    platform::Platform,
    progress::Progress,
    report::Scene,
    scoring, wire,
};

/// How often a call without a declaration and a claim of P0 are tried.
const TRIES: usize = 3;

/// How many contacts get new tags at once: at the CRM's ten in a second, work for ten seconds.
const TAGGED: usize = 100;

/// Slower than 120 % of the SLA with a margin, and far from every timeout.
const SLOW: Duration = HANDOFF_SLA.saturating_mul(2);

/// So many answers with the fallback are enough to have seen it.
const FALLBACKS_SEEN: u64 = 5;

/// How long a scene may take: a probe comes every thirty seconds, and the first one may find the service slow still.
const PATIENCE: Duration = Duration::from_secs(90);

/// How often the lead bot asks whether handoffs pass again.
const ASK: Duration = Duration::from_secs(1);

/// How often a scene looks.
const LOOK: Duration = Duration::from_millis(500);

/// What was seen while people talked.
#[derive(Debug, Default)]
pub struct Seen {
    undeclared: AtomicU64,
    p0_claims: AtomicU64,
    tags_sent: AtomicU64,
    /// Answers to people in which the handoff was decided by the fallback.
    fallbacks: AtomicU64,
    tripped: AtomicU64,
    recovered: AtomicU64,
}

impl Seen {
    /// A person got an answer although the handoff service was cut off.
    pub fn fallback(&self) {
        self.fallbacks.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a scene works with.
pub struct Stage<'a> {
    pub platform: &'a Platform,
    pub crew: &'a Crew,
    pub seen: &'a Seen,
    pub progress: &'a Progress,
}

impl Stage<'_> {
    /// The lead bot tries to call what it has not declared.
    pub async fn undeclared_call(&self) {
        for _ in 0..TRIES {
            let dispatch = self.crew.agent(Bot::Lead.agent()).dispatch(BI_DASHBOARD, BILLING_REPORT);
            let called = wire::request::<_, Dashboard>(&self.platform.ledger, dispatch, &()).await;
            if called.is_err_and(|error| error.kind() == ErrorKind::Rejected(Reason::UndeclaredDependency)) {
                self.seen.undeclared.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.progress.say("lead_bot called bi_dashboard/billing_report without having declared it: rejected");
    }

    /// The dashboard claims the priority of waiting people for its charts.
    pub async fn claimed_p0(&self) {
        for _ in 0..TRIES {
            let dashboard = self.crew.agent(BI_DASHBOARD);
            let dispatch = dashboard.dispatch(MARKET_INTELLIGENCE, MARKET_REPORT).priority(Priority::P0);
            let called = wire::request::<_, MarketReport>(&self.platform.ledger, dispatch, &()).await;
            self.seen.p0_claims.fetch_add(u64::from(called.is_ok()), Ordering::Relaxed);
        }
        self.progress.say("bi_dashboard claimed P0 for its charts: demoted");
    }

    /// Many contacts get new tags at once; the CRM takes ten in a second.
    pub async fn crm_burst(&self) {
        let seller = self.crew.agent(Bot::Seller.agent());
        for number in 0..TAGGED {
            let tags =
                Tags { conversation: format!("contact-{number}"), tags: vec!["spring_mailing".to_owned()] };
            let dispatch = seller.publish_event(CRM_CLIENT, UPDATE_TAGS).priority(Priority::P2);
            let sent = wire::send(&self.platform.ledger, dispatch, &tags).await;
            self.seen.tags_sent.fetch_add(u64::from(sent.is_ok()), Ordering::Relaxed);
        }
        self.progress.say(&format!("seller_bot sent {TAGGED} tag updates for the CRM at once: they wait in its lane, ten go in a second"));
    }

    /// The handoff service is slow until its breaker trips and people have had fallbacks, then quick again until a probe
    /// has brought it back.
    pub async fn slow_handoffs(&self) {
        self.progress.say(&format!("handoff_service becomes slow: {SLOW:?}, with an SLA of {HANDOFF_SLA:?}"));
        self.platform.slow_handoffs(SLOW);
        let tripped = self.until(|seen| seen.fallbacks.load(Ordering::Relaxed) >= FALLBACKS_SEEN).await;
        self.platform.slow_handoffs(Duration::ZERO);
        if !tripped {
            return;
        }
        self.seen.tripped.fetch_add(1, Ordering::Relaxed);
        self.progress.say("its breaker has tripped, fallbacks keep the leads engaged; it is quick again and waits for a probe");
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if self.handoffs_pass().await {
                self.seen.recovered.fetch_add(1, Ordering::Relaxed);
                self.progress.say("a probe has brought handoff_service back");
                return;
            }
            sleep(ASK).await;
        }
    }

    /// Asks the handoff service as the lead bot, and whether the service itself answered.
    async fn handoffs_pass(&self) -> bool {
        let known = Conversation::default();
        let evaluate = Evaluate { bot: Bot::Lead, score: scoring::score(&known), known };
        let lead = self.crew.agent(Bot::Lead.agent());
        let dispatch = lead.dispatch(HANDOFF_SERVICE, EVALUATE).priority(Priority::P1);
        let replied = wire::request::<_, Handoff>(&self.platform.ledger, dispatch, &evaluate).await;
        replied.is_ok_and(|replied| !replied.fallback)
    }

    async fn until(&self, condition: impl Fn(&Seen) -> bool) -> bool {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if condition(self.seen) {
                return true;
            }
            sleep(LOOK).await;
        }
        false
    }
}

/// Judges the scenes by what agents got, what the CRM noted and what the archive holds.
pub fn judge(seen: &Seen, platform: &Platform, records: &[Record]) -> Vec<Scene> {
    let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let reason = |name: &str| records.iter().filter(|record| record.reason == name).count();
    let (rejected, undeclared) = (load(&seen.undeclared), reason(Reason::UndeclaredDependency.name()));
    let (claims, demoted) = (load(&seen.p0_claims), reason(Reason::DemotedFromP0.name()));
    let to_crm =
        || records.iter().filter(|record| record.target == CRM_CLIENT && record.admitted_us.is_some());
    let crm_rate = books::peak(to_crm().filter_map(|record| record.admitted_us).collect());
    let crm_wait_s = to_crm().map(|record| record.lane_us).max().unwrap_or(0) / 1_000_000;
    let fallbacks = load(&seen.fallbacks);
    let cut_off =
        |record: &&Record| record.target == HANDOFF_SERVICE && record.reason == Reason::FallbackStatic.name();
    let broken = records.iter().filter(cut_off).count();
    vec![
        Scene {
            name: "undeclared_call_rejected",
            seen: rejected > 0 && undeclared > 0,
            text: format!(
                "lead_bot called what it had not declared: {rejected} times rejected, {undeclared} in the archive"
            ),
        },
        Scene {
            name: "p0_claim_demoted",
            seen: claims > 0 && demoted > 0,
            text: format!(
                "bi_dashboard claimed P0 {claims} times without the right to it: {demoted} demoted in the archive"
            ),
        },
        Scene {
            name: "crm_held",
            seen: load(&seen.tags_sent) > 0 && crm_wait_s >= 1 && (1..=11).contains(&crm_rate),
            text: format!(
                "crm_client got at most {crm_rate} in any second (it noted {} itself); the last one waited {crm_wait_s} s in its lane",
                platform.crm_peak(),
            ),
        },
        Scene {
            name: "breaker_tripped",
            seen: load(&seen.tripped) > 0 && broken > 0,
            text: format!("handoff_service was slow and cut off: {broken} dispatches got its fallback"),
        },
        Scene {
            name: "fallbacks_kept_leads",
            seen: fallbacks > 0,
            text: format!("{fallbacks} answers went out to people meanwhile"),
        },
        Scene {
            name: "probe_recovered",
            seen: load(&seen.recovered) > 0,
            text: "a probe brought handoff_service back".to_owned(),
        },
    ]
}
