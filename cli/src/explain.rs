//! `mesh explain`: what the reasons mean that stand in replies, in the audit and in metrics. Owns the sentences for people;
//! the list itself is the rules'.
//!
//! The rule it keeps: every reason has a sentence that says what it means and, where something is to be done, what.

use clap::Args;
use governance::Reason;
use serde_json::{Value, json};

use crate::answer::{Answer, Usage};
use crate::output::{Column, Output, table};

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The name of a reason, as in `undeclared_dependency`; all where left out.
    reason: Option<String>,
}

pub(crate) fn run(args: &ExplainArgs, output: &Output) -> anyhow::Result<Answer> {
    let reasons: Vec<Reason> = match &args.reason {
        Some(name) => vec![name.parse().map_err(|e: governance::words::WordError| Usage(e.to_string()))?],
        None => Reason::ALL.to_vec(),
    };
    let value = |r: &Reason| json!({"reason": r, "violation": r.is_violation(), "meaning": meaning(*r)});
    let values: Vec<Value> = reasons.iter().map(value).collect();
    output.show(&values, || match reasons.as_slice() {
        [one] => meaning(*one).to_owned(),
        all => {
            let rows = all.iter().map(|r| vec![r.to_string(), meaning(*r).to_owned()]);
            table(&[Column::Text("REASON"), Column::Text("MEANING")], rows)
        }
    })?;
    Ok(Answer::Yes)
}

/// The sentence of a reason.
fn meaning(reason: Reason) -> &'static str {
    const NEWER: &str = "A newer build of the mesh wrote it; its own `mesh explain` says what it means.";
    MEANINGS.iter().find(|(of, _)| *of == reason).map_or(NEWER, |(_, meaning)| meaning)
}

/// All sentences, in the order of the reasons' numbers.
const MEANINGS: &[(Reason, &str)] = &[
    (Reason::Ok, "Declared, within quota, and the target passes."),
    (Reason::RoutedByCapability, "The mesh chose the target by capability: passing, then least loaded."),
    (
        Reason::DemotedFromP0,
        "P0 was claimed without the right to it, and it went as P1. The policy's `p0` lists give the right.",
    ),
    (Reason::Probe, "It went as the probe of a tripped target: its success lets dispatches pass again."),
    (Reason::FallbackAgent, "The target is cut off; its fallback agent took it."),
    (Reason::FallbackStatic, "The target is cut off; its registered fallback answered."),
    (Reason::TopicCopy, "It is the copy of an event for one subscriber of its topic."),
    (Reason::AgedUp, "It waited for its whole latency budget and moved up one class."),
    (Reason::UnknownSource, "The sender is not registered. Register it before it sends."),
    (Reason::UnknownTarget, "The named target is not registered. Check the name; start the agent."),
    (Reason::UnknownCapability, "The target does not offer the capability. See: mesh agents TARGET"),
    (Reason::UndeclaredDependency, "The sender did not declare the call. Add it to its dependencies."),
    (Reason::NoProvider, "Nobody offers the capability. Start an agent that does."),
    (Reason::NoSubscriber, "Nobody is registered for the topic: the event ends as delivered to nobody."),
    (Reason::TooManyHops, "The call went through more hops than the policy's `lineage.hops_max`."),
    (
        Reason::Loop,
        "The same agent and capability stand in the ancestry too often: the agents call in a circle.",
    ),
    (
        Reason::InvalidLineage,
        "The lineage was not sealed by this mesh: it is forged or damaged. Pass it on as received.",
    ),
    (Reason::Malformed, "The bytes could not be read; the error names the field."),
    (
        Reason::DuplicateKey,
        "A dispatch with the same idempotency key was accepted within the policy's window.",
    ),
    (
        Reason::LaneFull,
        "The sender's lane for this target is full; the broker refused the message. Send slower.",
    ),
    (
        Reason::BreakerTripped,
        "The target is cut off and has no fallback for the capability. See: mesh breakers",
    ),
    (Reason::QuotaExceeded, "The sender is over its quota; it waits in its lane until the quota lets it go."),
    (Reason::TargetRate, "The target takes no more than its hard rate (`max_rate_per_s` in the policy)."),
    (Reason::InboxFull, "The target's inbox is full: it has too few slots or instances for what comes."),
    (Reason::OrderKeyBusy, "An earlier dispatch with the same order key still runs."),
    (Reason::Deferred, "P3 steps back while P0 suffers; a trickle goes on."),
    (Reason::Paused, "An operator or the policy paused the target. See: mesh resume"),
    (Reason::NoInstance, "No instance of the target is alive. Start one."),
    (Reason::AwaitsRecovery, "An event waits until the breaker of its target passes. See: mesh breakers"),
    (Reason::WindowFull, "The coordinator has as much in flight as it may."),
    (
        Reason::ExpiredInLane,
        "The deadline passed while it waited in its lane, for quota, rate or room. See: mesh lanes",
    ),
    (Reason::ExpiredRunning, "The deadline passed while the handler ran."),
    (Reason::HandlerFailed, "The handler returned an error."),
    (Reason::HandlerCrashed, "The handler panicked; the log of the instance says where."),
    (
        Reason::NotHandled,
        "The instance has no handler for the capability: instances of two versions may be running.",
    ),
    (Reason::AttemptsExhausted, "Every attempt at the event failed; it is a dead letter. See: mesh dlq"),
    (Reason::CancelledByCaller, "The sender withdrew it."),
    (
        Reason::ExpiredUnknown,
        "The deadline passed after it was admitted, and whether a handler ran is unknown: no instance gave word, or took it.",
    ),
    (
        Reason::RunnerLost,
        "Instances were lost one after the other while they ran it, as many as the policy allows; it is a dead letter. See: mesh dlq",
    ),
    (Reason::ErrorRate, "Of the runs in the breaker's window more failed than the policy allows."),
    (Reason::SlaExceeded, "Of the runs in the breaker's window too many took longer than the SLA allows."),
    (
        Reason::FailuresInRow,
        "So many runs failed one after another that the breaker tripped whatever the rate.",
    ),
    (Reason::ProbeSucceeded, "A probe succeeded; dispatches pass again."),
    (Reason::ProbeFailed, "A probe failed; the next one comes after the policy's interval."),
    (Reason::Operator, "An operator did it; the audit has the name and the reason."),
    (Reason::ProbeDue, "The time for a probe has come: the next dispatch goes as one."),
    (Reason::DepthSustained, "The queue was deep for so long that one more instance is wanted."),
    (Reason::UtilisationLow, "The instances were idle for so long that one less is enough."),
    (
        Reason::TargetFrozen,
        "Runs are under way and none has succeeded for long: the agent waits for something that more instances do not help.",
    ),
    (
        Reason::ScalingNoGain,
        "The last instance more did not let more succeed, so one more is not started: look at what the agent depends on.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_sentence_of_its_own() {
        let explained: Vec<Reason> = MEANINGS.iter().map(|(reason, _)| *reason).collect();
        assert_eq!(explained, Reason::ALL);
        let mut sentences: Vec<&str> = Reason::ALL.iter().map(|r| meaning(*r)).collect();
        sentences.sort_unstable();
        sentences.dedup();
        assert_eq!(sentences.len(), Reason::ALL.len());
        assert!(sentences.iter().all(|s| s.len() > 10));
    }
}
