//! Reads a policy file. Owns field names, accepted ranges and the wording of problems.
//!
//! The rule it keeps: all or nothing. Every problem of the file is reported at once, and a policy exists only without any. What
//! the file leaves out has its default.

use std::collections::BTreeMap;

use toml::de::DeTable;

use super::table::{Reader, Table};
use super::{AgentPolicy, CallPattern, Policy, Rate, Role};
use crate::names::{AgentId, Capability, NameError};
use crate::text::nearest;
use crate::words::Priority;

/// Something in a policy file that must be put right.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The line, from 1.
    pub line: u32,
    /// The field with its path, as in `breaker.window_s`.
    pub field: String,
    /// What is wrong, what is accepted, and what to do.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}: {}", self.line, self.field, self.message)
    }
}

impl Policy {
    /// Reads a policy file.
    ///
    /// # Errors
    /// Every problem of the file at once, in the order of the lines.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        let (document, errors) = DeTable::parse_recoverable(text);
        let mut reader = Reader::new(text);
        for error in errors {
            let message = error.message().to_owned();
            reader.problem_at(&error.span().unwrap_or(0..0), "syntax", message);
        }
        let mut policy = Self::default();
        reader.root(document.get_ref(), |root| read_policy(root, &mut policy));
        let mut problems = reader.problems;
        if problems.is_empty() {
            return Ok(policy);
        }
        problems.sort();
        problems.dedup();
        Err(problems)
    }
}

const RATE: std::ops::RangeInclusive<u64> = 1..=10_000_000;
const DAY_S: u64 = 86_400;

fn read_policy(root: &mut Table<'_, '_, '_>, policy: &mut Policy) {
    root.number("version", 1..=u64::from(u32::MAX), &mut policy.version);
    root.boolean("strict_dependencies", &mut policy.strict_dependencies);
    root.table("roles", |roles| roles.each(|name, table| read_role(name, table, &mut policy.roles)));
    if let Some(role) = root.text("default_role") {
        check_role(root, "default_role", &role, &policy.roles);
        policy.default_role = role;
    }
    root.table("agents", |agents| {
        agents.each(|name, table| read_agent(name, table, &policy.roles, &mut policy.agents));
    });
    root.table("priorities", |table| read_priorities(table, policy));
    root.table("deferral", |table| read_deferral(table, policy));
    root.table("breaker", |table| read_breaker(table, policy));
    root.table("deadlines", |table| read_deadlines(table, policy));
    root.table("retries", |table| read_retries(table, policy));
    root.table("lineage", |table| {
        table.number("hops_max", 1..=255, &mut policy.lineage.hops_max);
        table.number("loop_at", 1..=255, &mut policy.lineage.loop_at);
    });
    root.table("scaling", |table| read_scaling(table, policy));
    root.table("slots", |table| {
        table.percent("p0_reserved_percent", 0..=90, &mut policy.slots.p0_reserved_bp);
        table.percent("p3_max_percent", 1..=100, &mut policy.slots.p3_max_bp);
    });
    root.table("in_flight", |table| {
        table.number("per_slot", 1..=1_000, &mut policy.in_flight.per_slot);
        table.number("min", 1..=1_000_000, &mut policy.in_flight.min);
    });
    root.table("lanes", |table| read_lanes(table, policy));
    root.table("idempotency", |table| {
        table.seconds("window_s", 1..=DAY_S, &mut policy.idempotency.window);
        table.number("entries_max", 1..=10_000_000, &mut policy.idempotency.entries_max);
    });
}

fn read_role(name: &str, table: &mut Table<'_, '_, '_>, roles: &mut BTreeMap<String, Role>) {
    if let Err(error) = Capability::new(name) {
        table.problem("", format!("{name:?} cannot name a role: {error}"));
    }
    let known = roles.get(name);
    if known.is_none() && !table.has("rate_per_s") {
        table.problem(
            "rate_per_s",
            "missing; a role of your own needs its rate in dispatches per second".to_owned(),
        );
    }
    let quota = known.map_or(Rate { per_s: 1, burst: 1 }, |role| role.quota);
    let mut p0 = known.map_or_else(Vec::new, |role| role.p0.clone());
    let quota = read_rate(table, "rate_per_s", "burst", Some(quota)).unwrap_or(quota);
    table.texts("p0", parse_call, &mut p0);
    roles.insert(name.to_owned(), Role { quota, p0 });
}

/// A rate with its burst. A rate without a burst has the default burst, even where another was known before.
fn read_rate(
    table: &mut Table<'_, '_, '_>,
    rate_key: &'static str,
    burst_key: &'static str,
    known: Option<Rate>,
) -> Option<Rate> {
    let mut per_s = known.map_or(0, |rate| rate.per_s);
    table.number(rate_key, RATE, &mut per_s);
    let mut rate = match known {
        Some(known) if !table.has(rate_key) => known,
        Some(_) | None => Rate::with_default_burst(per_s),
    };
    table.number(burst_key, RATE, &mut rate.burst);
    if table.has(burst_key) && per_s == 0 {
        table.problem(burst_key, format!("a burst needs its rate; add {rate_key}"));
    }
    (per_s > 0).then_some(rate)
}

fn read_agent(
    name: &str,
    table: &mut Table<'_, '_, '_>,
    roles: &BTreeMap<String, Role>,
    agents: &mut BTreeMap<AgentId, AgentPolicy>,
) {
    let mut agent = AgentPolicy { role: table.text("role"), ..AgentPolicy::default() };
    if let Some(role) = &agent.role {
        check_role(table, "role", role, roles);
    }
    agent.quota = read_rate(table, "rate_per_s", "burst", None);
    agent.max_rate = read_rate(table, "max_rate_per_s", "max_burst", None);
    if let (Some(rate), false) = (&mut agent.max_rate, table.has("max_burst")) {
        // A hard limit protects something that counts for itself: nothing goes ahead of its time unless said so.
        rate.burst = 1;
    }
    table.texts("p0", parse_call, &mut agent.p0);
    table.boolean("paused", &mut agent.paused);
    match AgentId::new(name) {
        Ok(id) => _ = agents.insert(id, agent),
        Err(error) => table.problem("", format!("{name:?} cannot name an agent: {error}")),
    }
}

fn check_role(table: &mut Table<'_, '_, '_>, key: &str, role: &str, roles: &BTreeMap<String, Role>) {
    if roles.contains_key(role) {
        return;
    }
    let names: Vec<&str> = roles.keys().map(String::as_str).collect();
    let near = nearest(role, names.iter().copied())
        .map_or_else(String::new, |near| format!("; did you mean {near:?}?"));
    table.problem(key, format!("no role {role:?}; known are {}{near}", names.join(", ")));
}

/// `capability`, `*/capability` or `agent/capability`.
fn parse_call(text: &str) -> Result<CallPattern, String> {
    let (agent, capability) = match text.split_once('/') {
        Some(("*", capability)) => (None, capability),
        Some((agent, capability)) => (Some(agent), capability),
        None => (None, text),
    };
    let checked = agent.map_or(Ok(()), |agent| AgentId::new(agent).map(drop));
    let wrong = |error: NameError| {
        format!("{text:?} is not a call: {error}; give \"capability\" or \"agent/capability\"")
    };
    checked.map_err(wrong)?;
    Capability::new(capability).map_err(wrong)?;
    Ok(CallPattern { agent: agent.map(str::to_owned), capability: capability.to_owned() })
}

fn read_priorities(table: &mut Table<'_, '_, '_>, policy: &mut Policy) {
    for priority in Priority::ALL {
        table.table(priority.name(), |table| {
            let rules = &mut policy.priorities[*priority as usize];
            table.millis("budget_ms", 1..=3_600_000, &mut rules.budget);
            if *priority != Priority::P0 {
                table.number("weight", 1..=1_000, &mut rules.weight);
            }
        });
    }
    let budgets = policy.priorities.map(|p| p.budget);
    if !budgets.is_sorted() {
        table.problem("", "the budgets must not fall from P0 to P3".to_owned());
    }
}

fn read_deferral(table: &mut Table<'_, '_, '_>, policy: &mut Policy) {
    let rules = &mut policy.deferral;
    table.percent("begin_percent", 1..=1_000, &mut rules.begin_bp);
    table.percent("end_percent", 0..=1_000, &mut rules.end_bp);
    table.millis("hold_ms", 0..=60_000, &mut rules.hold);
    table.percent("trickle_percent", 1..=100, &mut rules.trickle_bp);
    table.number("trickle_per_s", 1..=1_000_000, &mut rules.trickle_per_s);
    if rules.end_bp >= rules.begin_bp {
        table.problem("end_percent", "must be below begin_percent, or the deferral would flap".to_owned());
    }
}

fn read_breaker(table: &mut Table<'_, '_, '_>, policy: &mut Policy) {
    let rules = &mut policy.breaker;
    table.seconds("window_s", 1..=60, &mut rules.window);
    table.number("samples_min", 1..=1_000_000, &mut rules.samples_min);
    table.percent("error_rate_percent", 1..=100, &mut rules.error_rate_bp);
    table.percent("over_share_percent", 1..=100, &mut rules.over_share_bp);
    table.percent("over_sla_percent", 100..=1_000, &mut rules.over_sla_bp);
    table.number("failures_in_row", 1..=1_000_000, &mut rules.failures_in_row);
    table.seconds("probe_interval_s", 1..=3_600, &mut rules.probe_interval);
    table.millis("ping_after_ms", 0..=60_000, &mut rules.ping_after);
}

fn read_deadlines(table: &mut Table<'_, '_, '_>, policy: &mut Policy) {
    let rules = &mut policy.deadlines;
    table.seconds("request_s", 1..=DAY_S, &mut rules.request);
    table.seconds("event_s", 1..=30 * DAY_S, &mut rules.event);
    table.seconds("request_max_s", 1..=DAY_S, &mut rules.request_max);
    table.seconds("event_max_s", 1..=30 * DAY_S, &mut rules.event_max);
    table.boolean("events_outlive_parent", &mut rules.events_outlive_parent);
    if rules.request > rules.request_max {
        table.problem("request_s", "must not be above request_max_s".to_owned());
    }
    if rules.event > rules.event_max {
        table.problem("event_s", "must not be above event_max_s".to_owned());
    }
}

fn read_retries(table: &mut Table<'_, '_, '_>, policy: &mut Policy) {
    let rules = &mut policy.retries;
    table.number("attempts_max", 1..=100, &mut rules.attempts_max);
    table.number("crashes_max", 2..=100, &mut rules.crashes_max);
    table.millis("backoff_first_ms", 1..=3_600_000, &mut rules.backoff_first);
    table.millis("backoff_max_ms", 1..=3_600_000, &mut rules.backoff_max);
    if rules.backoff_first > rules.backoff_max {
        table.problem("backoff_first_ms", "must not be above backoff_max_ms".to_owned());
    }
}

fn read_scaling(table: &mut Table<'_, '_, '_>, policy: &mut Policy) {
    let rules = &mut policy.scaling;
    table.number("depth", 1..=1_000_000, &mut rules.depth);
    table.seconds("depth_s", 1..=3_600, &mut rules.depth_for);
    table.percent("gain_percent", 0..=100, &mut rules.gain_bp);
    table.percent("utilisation_percent", 1..=99, &mut rules.utilisation_bp);
    table.seconds("utilisation_s", 10..=DAY_S, &mut rules.utilisation_for);
    table.seconds("pause_s", 1..=3_600, &mut rules.pause);
    table.millis("silence_ms", 1_500..=60_000, &mut rules.silence);
}

fn read_lanes(table: &mut Table<'_, '_, '_>, policy: &mut Policy) {
    let rules = &mut policy.lanes;
    table.millis("ready_ms", 1..=1_000, &mut rules.ready_for);
    table.number("ready_min", 1..=1_024, &mut rules.ready_min);
    table.number("ready_max", 1..=1_024, &mut rules.ready_max);
    table.number("blocked_max", 1..=65_536, &mut rules.blocked_max);
    if rules.ready_min > rules.ready_max {
        table.problem("ready_min", "must not be above ready_max".to_owned());
    }
}

#[cfg(test)]
mod tests;
