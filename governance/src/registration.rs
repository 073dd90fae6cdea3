//! Registrations: what an agent says it can do and needs. Owns their form and their check.
//!
//! The rule it keeps: a registration is judged as a whole, and every problem is reported at once with field and fix.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::names::{AgentId, Capability};
use crate::policy::Policy;
use crate::text::nearest;

/// What an agent declares when it joins, as it stands in JSON.
///
/// Role, quota and the right to P0 are not here: they come from the policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// The agent's name.
    pub agent: String,
    /// What it offers.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// The topics whose events it wants.
    #[serde(default)]
    pub topics: Vec<String>,
    /// What it calls: `agent`, `agent/capability`, or `*/capability`. A topic it sends to needs no declaration.
    #[serde(default)]
    pub dependencies: Vec<String>,
    /// How many dispatches one instance runs at once.
    #[serde(default = "default_max_concurrent")]
    pub max_concurrent: u32,
    /// The 95th percentile of its run time that it promises, in milliseconds.
    #[serde(default = "default_sla_p95_ms")]
    pub sla_p95_ms: u32,
    /// What answers for a capability while the breaker is tripped.
    #[serde(default)]
    pub fallbacks: BTreeMap<String, Fallback>,
    /// The least number of instances that scaling leaves.
    #[serde(default = "default_instances")]
    pub min_instances: u32,
    /// The greatest number of instances that scaling asks for.
    #[serde(default = "default_instances")]
    pub max_instances: u32,
    /// How its inbox messages are written.
    #[serde(default)]
    pub encoding: Encoding,
}

const fn default_max_concurrent() -> u32 {
    16
}
const fn default_sla_p95_ms() -> u32 {
    1_000
}
const fn default_instances() -> u32 {
    1
}

/// What answers in the place of a tripped target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fallback {
    /// This text (JSON as a rule) is the reply.
    Static(String),
    /// This agent runs it; it must offer the same capability.
    Agent(String),
}

/// How an agent reads its inbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// The SDK's envelope.
    #[default]
    Binary,
    /// One JSON object for each dispatch.
    Json,
}

/// What is known of the agents beside the one that registers.
pub trait Directory {
    /// The registration of an agent, where there is one.
    fn registration(&self, agent: &str) -> Option<&Registration>;
    /// All registered agents, in the order of their names.
    fn registrations(&self) -> impl Iterator<Item = &Registration>;
}

/// A folder of registrations, as `mesh policy check` reads it.
impl Directory for BTreeMap<String, Registration> {
    fn registration(&self, agent: &str) -> Option<&Registration> {
        self.get(agent)
    }
    fn registrations(&self) -> impl Iterator<Item = &Registration> {
        self.values()
    }
}

/// Something in a registration that must be put right, or should be looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The field, as in `dependencies[2]`.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub fix: String,
}

/// The judgement of a registration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// What refuses it; none means it is good.
    pub problems: Vec<Problem>,
    /// What is worth a look.
    pub warnings: Vec<Problem>,
}

impl Verdict {
    /// Whether the agent may join.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Judges a registration as a whole: every problem at once, each with its field and what to do. Pure, so that a folder of
/// registrations can be judged offline.
///
/// What the agent itself registered before is no part of the judgement: it may change everything but its name.
#[must_use]
pub fn check(registration: &Registration, directory: &impl Directory, policy: &Policy) -> Verdict {
    let mut check = Check { registration, directory, verdict: Verdict::default() };
    check.names();
    check.numbers();
    check.dependencies(policy);
    check.fallbacks();
    if !policy.agents.contains_key(registration.agent.as_str()) {
        let message =
            format!("the policy does not name this agent; it has the role {:?}", policy.default_role);
        let fix = format!("nothing, or add [agents.{}] to the policy", registration.agent);
        check.verdict.warnings.push(Problem { field: "agent".to_owned(), message, fix });
    }
    check.verdict
}

struct Check<'a, D> {
    registration: &'a Registration,
    directory: &'a D,
    verdict: Verdict,
}

impl<D: Directory> Check<'_, D> {
    fn problem(&mut self, field: impl Into<String>, message: impl Into<String>, fix: impl Into<String>) {
        let problem = Problem { field: field.into(), message: message.into(), fix: fix.into() };
        self.verdict.problems.push(problem);
    }

    fn names(&mut self) {
        if let Err(error) = AgentId::new(&self.registration.agent) {
            self.problem("agent", error.to_string(), NAME_FIX);
        }
        let lists =
            [("capabilities", &self.registration.capabilities), ("topics", &self.registration.topics)];
        for (list, names) in lists {
            if names.len() > NAMES_MAX {
                self.problem(list, format!("{} entries", names.len()), format!("at most {NAMES_MAX}"));
            }
            for (nth, name) in names.iter().enumerate() {
                let field = format!("{list}[{nth}]");
                if let Err(error) = Capability::new(name) {
                    self.problem(field, error.to_string(), NAME_FIX);
                } else if names[..nth].contains(name) {
                    self.problem(field, format!("{name:?} stands there twice"), "leave it there once");
                }
            }
        }
    }

    fn numbers(&mut self) {
        let Registration { max_concurrent, sla_p95_ms, min_instances, max_instances, .. } =
            *self.registration;
        let bounds = [
            ("max_concurrent", max_concurrent, CONCURRENT_MAX),
            ("sla_p95_ms", sla_p95_ms, SLA_MS_MAX),
            ("max_instances", max_instances, INSTANCES_MAX),
        ];
        for (field, number, max) in bounds {
            if !(1..=max).contains(&number) {
                self.problem(
                    field,
                    format!("{number} is not accepted"),
                    format!("give a whole number from 1 to {max}"),
                );
            }
        }
        if min_instances > max_instances {
            let message = format!("{min_instances} is above max_instances, which is {max_instances}");
            self.problem("min_instances", message, "lower it, or raise max_instances");
        }
    }

    fn dependencies(&mut self, policy: &Policy) {
        let dependencies = &self.registration.dependencies;
        if dependencies.len() > NAMES_MAX {
            self.problem(
                "dependencies",
                format!("{} entries", dependencies.len()),
                format!("at most {NAMES_MAX}"),
            );
        }
        for (nth, dependency) in dependencies.iter().enumerate() {
            let field = format!("dependencies[{nth}]");
            if dependencies[..nth].contains(dependency) {
                self.problem(field, format!("{dependency:?} stands there twice"), "leave it there once");
                continue;
            }
            let (agent, capability) = match dependency.split_once('/') {
                Some((agent, capability)) => (agent, Some(capability)),
                None => (dependency.as_str(), None),
            };
            let agent = (agent != "*").then_some(agent);
            let bad_agent = agent.and_then(|agent| AgentId::new(agent).err());
            let bad_capability = capability.and_then(|capability| Capability::new(capability).err());
            if let Some(error) = bad_agent.or(bad_capability) {
                self.problem(field, format!("{dependency:?}: {error}"), DEPENDENCY_FIX);
            } else if agent.is_none() && capability.is_none() {
                self.problem(field, "\"*\" would allow every call", DEPENDENCY_FIX);
            } else if let Some((message, fix)) = self.unmet(agent, capability) {
                let problem = Problem { field, message, fix };
                if policy.strict_dependencies {
                    self.verdict.problems.push(problem);
                } else {
                    self.verdict.warnings.push(problem);
                }
            }
        }
    }

    /// What is missing for a dependency at present, and what would help.
    fn unmet(&self, agent: Option<&str>, capability: Option<&str>) -> Option<(String, String)> {
        let own = self.registration;
        let everyone = || self.directory.registrations().filter(|r| r.agent != own.agent).chain([own]);
        let Some(agent) = agent else {
            let capability = capability?;
            let offered = everyone().flat_map(|r| &r.capabilities).map(String::as_str);
            let offered: Vec<&str> = offered.collect();
            let missing = !offered.contains(&capability);
            return missing
                .then(|| (format!("nobody offers {capability:?} yet"), suggest(capability, &offered)));
        };
        let Some(known) = everyone().find(|r| r.agent == agent) else {
            let names: Vec<&str> = everyone().map(|r| r.agent.as_str()).collect();
            return Some((format!("no agent {agent:?} has registered yet"), suggest(agent, &names)));
        };
        let capability = capability?;
        let offered: Vec<&str> = known.capabilities.iter().map(String::as_str).collect();
        let missing = !offered.contains(&capability);
        missing.then(|| (format!("{agent:?} does not offer {capability:?}"), suggest(capability, &offered)))
    }

    fn fallbacks(&mut self) {
        for (capability, fallback) in &self.registration.fallbacks {
            let field = format!("fallbacks.{capability}");
            let own: Vec<&str> = self.registration.capabilities.iter().map(String::as_str).collect();
            if !own.contains(&capability.as_str()) {
                let message = format!("{capability:?} is not among the capabilities");
                self.problem(&field, message, suggest(capability, &own));
            }
            match fallback {
                Fallback::Static(text) if text.len() > FALLBACK_BYTES_MAX => {
                    let message = format!("the payload has {} bytes", text.len());
                    self.problem(&field, message, format!("at most {FALLBACK_BYTES_MAX} bytes"));
                }
                Fallback::Static(_) => {}
                Fallback::Agent(agent) if *agent == self.registration.agent => {
                    self.problem(&field, "an agent cannot stand in for itself", "name another agent");
                }
                Fallback::Agent(agent) => self.fallback_agent(&field, capability, agent),
            }
        }
    }

    fn fallback_agent(&mut self, field: &str, capability: &str, agent: &str) {
        if let Err(error) = AgentId::new(agent) {
            self.problem(field, error.to_string(), NAME_FIX);
            return;
        }
        let Some(other) = self.directory.registration(agent) else {
            let message = format!("the fallback agent {agent:?} has not registered yet");
            let fix = "start it, or the dispatches it should take are answered with an error".to_owned();
            self.verdict.warnings.push(Problem { field: field.to_owned(), message, fix });
            return;
        };
        if !other.capabilities.iter().any(|c| c == capability) {
            let message = format!("the fallback agent {agent:?} does not offer {capability:?}");
            self.problem(field, message, "name one that offers the same capability");
        }
    }
}

fn suggest(name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean {near:?}?"),
        None => "start the agent that offers it, or correct the name".to_owned(),
    }
}

const NAME_FIX: &str = "use 1 to 64 of a-z, 0-9, '_' and '-'";
const DEPENDENCY_FIX: &str = "write \"agent\", \"agent/capability\" or \"*/capability\"";

/// Each of them is a broker subject or a line in a sorted list; a registration with more is generated by mistake.
const NAMES_MAX: usize = 1_024;

/// An instance with more slots than this is not bounded by its slots any more.
const CONCURRENT_MAX: u32 = 1_000_000;

/// An hour: the longest budget of a request in the default policy.
const SLA_MS_MAX: u32 = 3_600_000;

/// The most instances of one agent; their heartbeats come each second to one home.
const INSTANCES_MAX: u32 = 10_000;

/// A fallback travels with the registration, which is one message of the broker.
const FALLBACK_BYTES_MAX: usize = 65_536;

#[cfg(test)]
mod tests;
