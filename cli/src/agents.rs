//! `mesh agents` and `mesh breakers`: who is there, what they do, whether they are cut off. Shows; changes nothing.

use std::collections::BTreeSet;

use async_nats::Client;
use clap::Args;
use governance::{BreakerState, Fallback, Timestamp};
use protocol::control::AgentView;

use crate::answer::Answer;
use crate::control;
use crate::mesh::Mesh;
use crate::moment;
use crate::output::{Column, Output, table};

#[derive(Debug, Args)]
pub(crate) struct AgentsArgs {
    /// Shows all that one agent registered.
    agent: Option<String>,
}

pub(crate) async fn run(args: &AgentsArgs, mesh: &Mesh, output: &Output) -> anyhow::Result<Answer> {
    let mut views = views(&mesh.broker().await?).await?;
    if let Some(name) = &args.agent {
        views.retain(|v| v.agent == *name);
        let Some(view) = views.first() else {
            output.note(&format!("no agent {name:?} is registered; see: mesh agents"));
            return Ok(Answer::No);
        };
        output.show(view, || one(view))?;
        return Ok(Answer::Yes);
    }
    output.show(&views, || all(&views))?;
    if views.is_empty() {
        output.note("no agent has registered yet");
    }
    Ok(Answer::Yes)
}

pub(crate) async fn run_breakers(mesh: &Mesh, output: &Output) -> anyhow::Result<Answer> {
    let mut views = views(&mesh.broker().await?).await?;
    // What is cut off comes first: it is what one looks for.
    views.sort_by_key(|v| v.breaker == BreakerState::Passing);
    output.show(&views, || breakers(&views, moment::now()))?;
    Ok(Answer::Yes)
}

/// All agents, each once, in the order of their names.
///
/// # Errors
/// When no coordinator answers.
pub(crate) async fn views(client: &Client) -> anyhow::Result<Vec<AgentView>> {
    let mut views: Vec<AgentView> = control::list(client, "agents").await?;
    views.sort_by(|a, b| a.agent.cmp(&b.agent));
    let mut seen = BTreeSet::new();
    views.retain(|v| seen.insert(v.agent.clone()));
    Ok(views)
}

fn all(views: &[AgentView]) -> String {
    let columns = [
        Column::Text("AGENT"),
        Column::Text("ROLE"),
        Column::Number("INSTANCES"),
        Column::Number("RUNNING"),
        Column::Number("SLOTS"),
        Column::Number("IN FLIGHT"),
        Column::Number("WAITING"),
        Column::Text("STATE"),
        Column::Text("OFFERS"),
    ];
    let rows = views.iter().map(|v| {
        vec![
            v.agent.clone(),
            v.role.clone(),
            v.instances.to_string(),
            v.running.to_string(),
            v.slots.to_string(),
            v.in_flight.to_string(),
            v.depth.to_string(),
            state(v),
            or_dash(v.registration.capabilities.join(", ")),
        ]
    });
    table(&columns, rows)
}

fn state(v: &AgentView) -> String {
    let breaker = if v.breaker == BreakerState::Passing { "" } else { v.breaker.name() };
    match (v.paused, breaker) {
        (false, "") if v.instances == 0 && offers_something(v) => "no instance".to_owned(),
        (false, "") => "ok".to_owned(),
        (false, breaker) => breaker.to_owned(),
        (true, "") => "paused".to_owned(),
        (true, breaker) => format!("paused, {breaker}"),
    }
}

fn offers_something(v: &AgentView) -> bool {
    !(v.registration.capabilities.is_empty() && v.registration.topics.is_empty())
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

fn one(v: &AgentView) -> String {
    let r = &v.registration;
    let fallbacks = r.fallbacks.iter().map(|(capability, fallback)| match fallback {
        Fallback::Static(text) => format!("{capability}: {text}"),
        Fallback::Agent(agent) => format!("{capability}: by {agent}"),
    });
    let fallbacks: Vec<String> = fallbacks.collect();
    let lines = [
        ("agent", v.agent.clone()),
        ("role", v.role.clone()),
        ("state", state(v)),
        ("instances", format!("{} live, {} to {} wanted", v.instances, r.min_instances, r.max_instances)),
        ("slots", format!("{} of {} in use, {} in each instance", v.running, v.slots, r.max_concurrent)),
        ("in flight", v.in_flight.to_string()),
        ("waiting", v.depth.to_string()),
        ("sla", format!("P95 within {} ms", r.sla_p95_ms)),
        ("offers", or_dash(r.capabilities.join(", "))),
        ("topics", or_dash(r.topics.join(", "))),
        ("calls", or_dash(r.dependencies.join(", "))),
        ("fallbacks", or_dash(fallbacks.join("; "))),
    ];
    lines.map(|(name, value)| format!("{name:<10} {value}")).join("\n")
}

fn breakers(views: &[AgentView], now: Timestamp) -> String {
    let columns = [
        Column::Text("AGENT"),
        Column::Text("BREAKER"),
        Column::Text("WHY"),
        Column::Text("SINCE"),
        Column::Number("RUNS"),
        Column::Number("ERRORS"),
        Column::Number("OVER SLA"),
    ];
    let rows = views.iter().map(|v| {
        let since = Timestamp(v.breaker_since_ns);
        let since =
            if since == Timestamp::ZERO { "-".to_owned() } else { moment::in_words(now.since(since)) };
        vec![
            v.agent.clone(),
            v.breaker.to_string(),
            v.breaker_reason.to_string(),
            since,
            v.samples.to_string(),
            share(v.errors, v.samples),
            share(v.over, v.samples),
        ]
    });
    table(&columns, rows)
}

/// A count with its share of the whole.
fn share(part: u32, whole: u32) -> String {
    match (u64::from(part) * 100).checked_div(whole.into()) {
        Some(percent) if part > 0 => format!("{part} ({percent} %)"),
        Some(_) | None => part.to_string(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use governance::{Reason, Registration};

    pub(crate) fn view(agent: &str, rest: serde_json::Value) -> AgentView {
        let mut registration = rest;
        registration["agent"] = agent.into();
        let registration: Registration = serde_json::from_value(registration).unwrap();
        AgentView {
            agent: agent.to_owned(),
            role: "bot".to_owned(),
            instances: 1,
            slots: 16,
            running: 2,
            in_flight: 3,
            depth: 4,
            breaker: BreakerState::Passing,
            breaker_reason: Reason::Ok,
            breaker_since_ns: 0,
            samples: 0,
            errors: 0,
            over: 0,
            paused: false,
            registration,
        }
    }

    #[test]
    fn agents_are_shown_one_in_a_line() {
        let lead = view("lead_bot", serde_json::json!({"capabilities": ["converse", "score"]}));
        let mut people = view("people", serde_json::json!({}));
        people.instances = 0;
        assert_eq!(
            all(&[lead, people]),
            "AGENT     ROLE  INSTANCES  RUNNING  SLOTS  IN FLIGHT  WAITING  STATE  OFFERS\n\
             lead_bot  bot           1        2     16          3        4  ok     converse, score\n\
             people    bot           0        2     16          3        4  ok     -"
        );
    }

    #[test]
    fn a_breaker_is_shown_with_its_reason_and_age() {
        let mut v = view("handoff_service", serde_json::json!({"capabilities": ["hand_over"]}));
        v.breaker = BreakerState::Tripped;
        v.breaker_reason = Reason::SlaExceeded;
        v.breaker_since_ns = Timestamp::from_millis(1_000).0;
        (v.samples, v.errors, v.over) = (40, 0, 10);
        let text = breakers(&[v], Timestamp::from_millis(13_000));
        assert_eq!(
            text.lines().nth(1),
            Some("handoff_service  tripped  sla_exceeded  12 s     40       0  10 (25 %)")
        );
    }

    #[test]
    fn an_agent_that_offers_something_and_does_not_run_is_told_apart() {
        let mut v = view("crm_client", serde_json::json!({"capabilities": ["sync"]}));
        v.instances = 0;
        assert_eq!(state(&v), "no instance");
        v.paused = true;
        v.breaker = BreakerState::Probing;
        assert_eq!(state(&v), "paused, probing");
    }
}
