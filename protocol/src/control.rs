//! Control messages: the small JSON that goes beside dispatches. Owns their forms.
//!
//! The rule it keeps: every field that a stranger may leave out has a default, and a field that this build does not know
//! is passed over, so that a newer peer may say more.

use std::collections::BTreeMap;

use governance::{BreakerState, Kind, Outcome, Priority, Reason};
use serde::{Deserialize, Serialize};

/// What `/readyz` of a coordinator says that keeps no audit, which is for measuring only.
pub const READY_WITHOUT_AUDIT: &str = "ready, WITHOUT AN AUDIT: for measuring only\n";

/// A heartbeat on `mesh.beat.<agent>`, each second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// The instance, 16 hexadecimal digits.
    pub instance: String,
    /// How many dispatches it runs at once, at most.
    pub slots: u32,
    /// How many run now.
    #[serde(default)]
    pub running: u32,
    /// How many of them run longer than 120 % of the SLA.
    #[serde(default)]
    pub running_over: u32,
    /// It takes no more work and goes.
    #[serde(default)]
    pub leaving: bool,
}

/// The answer to a registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether it is in force.
    pub accepted: bool,
    /// What is wrong, all of it; empty where accepted.
    #[serde(default)]
    pub problems: Vec<Problem>,
    /// What is suspicious but allowed.
    #[serde(default)]
    pub warnings: Vec<Problem>,
    /// The rules that hold for the agent, where accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<Terms>,
}

/// One thing that is wrong with an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Which field.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
    /// What to do about it.
    pub fix: String,
}

/// The rules that hold for an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Its role, from the policy.
    pub role: String,
    /// Dispatches per second.
    pub rate_per_s: u32,
    /// Dispatches at once.
    pub burst: u32,
    /// The longest time a handler may be silent, before its dispatch is given to others, in milliseconds.
    pub inbox_ack_wait_ms: u64,
    /// The version of the policy.
    pub policy_version: u32,
}

/// On `mesh.signal.<agent>`: the source should slow down, or may go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "signal", rename_all = "snake_case")]
pub enum Signal {
    /// It is over its quota; what it sent waits.
    SlowDown {
        /// Its quota.
        rate_per_s: u32,
        /// Dispatches waiting.
        queued: u32,
        /// How long the last of them waits at this rate, in milliseconds.
        wait_ms: u64,
    },
    /// Nothing waits any more.
    Resume,
    /// A message that was accepted cannot be read; it ends as rejected.
    Refused {
        /// The stream that acknowledged it.
        stream: String,
        /// The sequence it got there.
        sequence: u64,
        /// What is wrong: the field and what is allowed there.
        message: String,
    },
}

/// On `mesh.revoke.<target>`: work on these is of no use any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoke {
    /// The first dispatch.
    pub first: String,
    /// How many consecutive slots.
    pub count: u16,
}

/// On `mesh.open.<source>`: which of these are still open? Asked about redelivered messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenQuestion {
    /// First dispatch and number of consecutive slots.
    pub runs: Vec<(String, u16)>,
    /// How often their message was delivered: from the second time on the home counts who was lost with them.
    #[serde(default = "again")]
    pub delivered: u64,
    /// The instance that asks, 16 hexadecimal digits; empty for one that does not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub runner: String,
    /// Nothing else that had to be asked for alone runs in that instance.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub alone: bool,
    /// Where their message is acknowledged: from there its home takes the payload of a dead letter.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub inbox: String,
}

/// Who does not say how often a message came asks because it came again.
const fn again() -> u64 {
    2
}

/// The answer: which still are, slot by slot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenAnswer {
    /// For each asked run, one flag for each slot.
    pub open: Vec<Vec<bool>>,
    /// Likewise, of those that are open: one loss more would end it, so that it has to be asked for by itself, with `alone`,
    /// once no other of this kind runs there. Left out where there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alone: Vec<Vec<bool>>,
}

/// On `mesh.cancel.<source>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// Which dispatch.
    pub id: String,
}

/// On `mesh.extend.<source>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extend {
    /// Which dispatch.
    pub id: String,
    /// How much longer, in milliseconds.
    pub by_ms: u64,
}

/// The answer to `Extend`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extended {
    /// The deadline now in force, in nanoseconds since the epoch; none where the dispatch is not open.
    pub deadline_ns: Option<u64>,
}

/// On `mesh.progress.<source>.<instance>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Which dispatch.
    pub id: String,
    /// What the handler says about it.
    pub note: serde_json::Value,
}

/// On `mesh.alert.<kind>`, and posted to the webhook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// What happened: `breaker`, `deferral`, `instance_lost`, `dead_letter`, `scale`, `outage`, `redis_full`.
    pub kind: String,
    /// RFC 3339, milliseconds.
    pub at: String,
    /// Who it is about; empty for the mesh.
    pub agent: String,
    /// One sentence.
    pub text: String,
    /// The figures behind it.
    #[serde(default)]
    pub figures: BTreeMap<String, u64>,
}

/// A breaker as stored in its bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Breaker {
    /// Its state.
    pub state: BreakerState,
    /// Why it is in it.
    pub reason: Reason,
    /// Since when, in nanoseconds since the epoch.
    pub since_ns: u64,
    /// The epoch of the home that wrote it.
    pub epoch: u64,
}

/// How many instances an agent should have, as stored in the bucket of scales by the home of the agent.
///
/// It is a level and no step: an actuator that starts late, or missed a change, reads what is wanted now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale {
    /// So many; the actuator's own bounds hold beside it.
    pub wanted: u32,
    /// Why.
    pub reason: Reason,
    /// The epoch of the home that wrote it.
    pub epoch: u64,
    /// When it was decided, in nanoseconds since the epoch.
    pub at_ns: u64,
}

/// The owner of a shard as stored in its bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The replica; empty after a release.
    pub replica: String,
    /// The epoch of its ownership.
    pub epoch: u64,
    /// Its take-over is complete: the home decides.
    #[serde(default)]
    pub ready: bool,
}

/// A live replica as stored in its bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// The protocol version it speaks.
    pub protocol: u8,
    /// Where its HTTP endpoint is.
    pub http: String,
    /// Since when, in nanoseconds since the epoch.
    pub since_ns: u64,
    /// It is stopping: what it owns is going to others.
    #[serde(default)]
    pub leaving: bool,
}

/// A dead letter, the message on `mesh.dlq.<target>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The dispatch.
    pub id: String,
    /// Who sent it.
    pub source: String,
    /// Who failed at it.
    pub target: String,
    /// What was called; empty for a topic.
    pub capability: String,
    /// The topic; empty for none.
    #[serde(default)]
    pub topic: String,
    /// The priority of its lane.
    pub priority: Priority,
    /// Request or event.
    #[serde(default = "event")]
    pub kind: Kind,
    /// The top of its tree; empty for itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub root: String,
    /// How often it was tried; of `runner_lost`, how many instances were lost with it.
    pub attempts: u8,
    /// Why the last attempt failed.
    pub reason: Reason,
    /// The last error's text.
    pub error: String,
    /// RFC 3339, milliseconds.
    pub at: String,
    /// The conversation key.
    #[serde(default)]
    pub conversation: String,
    /// The content type; empty for JSON.
    #[serde(default)]
    pub content_type: String,
    /// The payload, base 16.
    pub payload_hex: String,
}

/// Letters once were of events only.
const fn event() -> Kind {
    Kind::Event
}

/// An operator's command with who gives it and why; extra fields by verb.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// The agent it is about.
    #[serde(default)]
    pub agent: String,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// Who.
    #[serde(default)]
    pub operator: String,
    /// Which dead letter: then `agent` is its source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub letter: Option<LetterPlace>,
}

/// Where a dead letter is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LetterPlace {
    /// Its place in its stream.
    pub sequence: u64,
    /// The dispatch that died.
    pub id: String,
}

/// What a replica answers to `mesh.ctl.<verb>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer<T> {
    /// Who answers.
    pub replica: String,
    /// How many live replicas it knows, so that the asker knows when all have answered.
    pub replicas: u32,
    /// What it says; none where it owns nothing that was asked about.
    pub body: Option<T>,
    /// What is wrong with the command, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A lane as `mesh.ctl.lanes` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneView {
    /// Who sends.
    pub source: String,
    /// In which priority.
    pub priority: Priority,
    /// Dispatches that its home holds and that wait.
    pub held: u64,
    /// Messages still in the broker.
    pub pending_messages: u64,
    /// The source's quota.
    pub rate_per_s: u32,
    /// The quota's burst.
    pub burst: u32,
    /// Dispatches admitted in the last second.
    pub admitted_last_s: u32,
    /// Why the first one waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Reason>,
    /// How long the first one has waited, in milliseconds.
    pub waited_ms: u64,
}

/// A target as `mesh.ctl.agents` and `mesh.ctl.breakers` show it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentView {
    /// Its name.
    pub agent: String,
    /// Its role.
    pub role: String,
    /// Its live instances.
    pub instances: u32,
    /// What they run at once, at most.
    pub slots: u32,
    /// What they run now.
    pub running: u32,
    /// Dispatches admitted and not ended.
    pub in_flight: u32,
    /// Dispatches waiting in its inbox and in lanes for it.
    pub depth: u32,
    /// Its breaker.
    pub breaker: BreakerState,
    /// Why the breaker is in that state.
    pub breaker_reason: Reason,
    /// Since when, in nanoseconds since the epoch.
    pub breaker_since_ns: u64,
    /// Runs in the breaker's window.
    pub samples: u32,
    /// Errors among them.
    pub errors: u32,
    /// Runs over 120 % of the SLA among them.
    pub over: u32,
    /// Whether an operator paused it.
    pub paused: bool,
    /// What it registered.
    pub registration: governance::Registration,
}

/// What a caller learns about an outcome, in JSON replies and in `mesh call --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplyView {
    /// The dispatch.
    pub id: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// Who ran it.
    pub target: String,
    /// Milliseconds in the lane.
    pub lane_ms: f64,
    /// Milliseconds in the inbox.
    pub inbox_ms: f64,
    /// Milliseconds in the handler.
    pub ran_ms: f64,
    /// The response, the fallback's payload, or the text of the error.
    pub payload: serde_json::Value,
}
