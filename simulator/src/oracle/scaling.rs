//! Scaling: one step a record, from where the last one led, never sooner than the rules allow, and never back and forth with
//! the load.

use std::collections::BTreeMap;

use governance::Timestamp;
use protocol::audit::Note;

use super::Oracle;

/// The last step of an agent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    at: Timestamp,
    to: u64,
    up: bool,
}

/// Every agent's last step.
pub(super) type Steps = BTreeMap<String, Step>;

impl Oracle {
    pub(super) fn on_scale(&mut self, note: &Note) {
        let body: serde_json::Value = serde_json::from_str(&note.body).unwrap_or_default();
        let number = |field: &str| body[field].as_u64().unwrap_or_default();
        let (from, to, agent) = (number("from"), number("to"), note.agent.to_string());
        self.count("scale steps");
        let step = Step { at: note.at, to, up: to > from };
        let Some(before) = self.steps.insert(agent.clone(), step) else { return };
        if from.abs_diff(to) != 1 || from != before.to {
            return self.fail(format!("{agent} is scaled from {from} to {to}, and was at {}", before.to));
        }
        let scaling = &self.cast.policy.scaling;
        let turned = step.up != before.up;
        let least = if turned { scaling.utilisation_for } else { scaling.pause };
        if turned {
            self.count("scale turns");
        }
        let between = step.at.since(before.at);
        if between < least {
            self.fail(format!("{agent} is scaled from {from} to {to} only {between:?} after its last step"));
        }
    }
}
