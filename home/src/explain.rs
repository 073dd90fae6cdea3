//! Words for refusals: what went wrong, with the names in it, and what to do. Owns no reason; those are the rules'.

use governance::Reason;

/// The JSON text that a caller gets in place of a response.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a reason without words of its own is told by its stable name"
)]
pub(crate) fn refusal(reason: Reason, source: &str, target: &str, callee: &str) -> String {
    let message = match reason {
        Reason::UndeclaredDependency if target.is_empty() => {
            format!("{source} did not declare */{callee}: add it to the registration's dependencies")
        }
        Reason::UndeclaredDependency => {
            format!("{source} did not declare {target}/{callee}: add it to the registration's dependencies")
        }
        Reason::UnknownSource => format!("{source} is not registered"),
        Reason::UnknownTarget => {
            format!("the target of {callee} is not registered: is its name right, does it run?")
        }
        Reason::UnknownCapability => format!("{target} does not offer {callee}"),
        Reason::NoProvider => format!("nobody offers {callee}"),
        Reason::TooManyHops => "the call went through more hops than the policy allows".to_owned(),
        Reason::Loop => format!(
            "{target}/{callee} stands in the ancestry of this call too often: the agents call in a circle"
        ),
        Reason::InvalidLineage => {
            "the lineage was not sealed by this mesh for this agent: pass it on as received".to_owned()
        }
        Reason::DuplicateKey => "a dispatch with this idempotency key was accepted before".to_owned(),
        Reason::BreakerTripped => {
            format!("the breaker of {target} is tripped and it has no fallback for {callee}")
        }
        Reason::ExpiredInLane => "the deadline passed while it waited in its lane".to_owned(),
        Reason::ExpiredRunning | Reason::ExpiredUnknown => {
            format!("{target} did not answer {callee} before the deadline")
        }
        Reason::RunnerLost => {
            format!(
                "instances of {target} were lost one after the other while they ran {callee}: see mesh dlq"
            )
        }
        Reason::CancelledByCaller => "the caller withdrew it".to_owned(),
        other => other.name().replace('_', " "),
    };
    serde_json::json!({"error": reason.name(), "message": message}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_undeclared_call_is_answered_with_the_missing_declaration() {
        let text = refusal(Reason::UndeclaredDependency, "lead_bot", "billing", "charge");
        assert!(text.contains("\"error\":\"undeclared_dependency\""), "{text}");
        assert!(text.contains("lead_bot did not declare billing/charge"), "{text}");
    }
}
