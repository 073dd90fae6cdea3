//! The rules, one story each, in the order in which the article tells them.

mod breakers;
mod delivery;
mod endings;
mod grants;
mod homes;
mod losses;
mod membership;
mod priorities;
mod quotas;
mod registration;

use governance::{Policy, Registration};

use crate::kit::{Refine, World, agent};

/// The article's platform in small: people talk to the lead bot, which needs the others.
fn platform() -> Vec<Registration> {
    vec![
        agent("people").needs(&["*/converse"]),
        agent("lead_bot").offers(&["converse"]).needs(&[
            "intent_decoder",
            "handoff_service/evaluate",
            "crm_client",
        ]),
        agent("intent_decoder").offers(&["analyze_lead"]),
        agent("handoff_service").offers(&["evaluate", "history"]),
        agent("crm_client").offers(&["sync_contact"]),
        agent("bi_dashboard").wants(&["lead_events"]).needs(&["intent_decoder"]),
    ]
}

fn policy() -> Policy {
    let text = r#"
        [agents.people]
        role = "channel"
        p0 = ["converse"]
        [agents.crm_client]
        role = "crm_sync"
        max_rate_per_s = 10
        [agents.bi_dashboard]
        role = "analytics"
    "#;
    Policy::parse(text).expect("the policy is good")
}

fn world() -> World {
    World::under(policy(), &platform())
}
