//! Beginning: the rules are told what was recovered, then what waits is asked for.

use std::sync::Arc;

use governance::{
    Decision, Encoding, Event, InstanceId, Kind, OpenIx, Priority, Reason, Registration, Restored, Timestamp,
    shard_of,
};
use protocol::audit::DecisionRow;
use protocol::control::Breaker;

use crate::explain;
use crate::home::{AgentShell, Home, OpenShell};
use crate::settle::{Origin, OwnedReply};
use crate::snapshot::OpenState;

impl Home {
    /// Tells the rules what was recovered, then asks for what waits.
    pub(crate) fn restore_all(&mut self) {
        let now = self.now;
        let recovered = std::mem::take(&mut self.recovered);
        for registration in &recovered.registrations {
            self.introduce(registration);
        }
        // The handles of restored runs are dense: one that cannot be restored takes none.
        let mut handle = 0;
        for open in &recovered.opens {
            if self.restore(handle, open) {
                handle += 1;
            }
        }
        for (id, loss) in &recovered.losses {
            if self.governor.is_open(*id) {
                self.apply(Event::RestoreLoss { id: *id, loss: *loss });
            }
        }
        for (source, arrival) in &recovered.quotas {
            if let Some(source) = self.governor.agent(source) {
                self.apply(Event::RestoreQuota { source, arrival: Timestamp(*arrival) });
            }
        }
        for (source, instance, from, to) in &recovered.seen {
            let instance = InstanceId(*instance);
            if let Some(source) = self.governor.agent(source) {
                self.sources_of_instances.insert(instance, source);
            }
            self.apply(Event::RestoreSeen { instance, from: *from, to: *to });
        }
        for (first, count) in &recovered.copies {
            self.apply(Event::RestoreCopies { first: *first, count: *count });
        }
        for (agent, breaker) in &recovered.breakers {
            if let Some(target) = self.governor.agent(agent) {
                let Breaker { state, reason, since_ns, .. } = *breaker;
                self.apply(if self.governor.is_home(target) {
                    Event::RestoreBreaker { target, state, reason }
                } else {
                    Event::BreakerKnown { target, state, reason, since: Timestamp(since_ns) }
                });
            }
        }
        for agent in &recovered.paused {
            if let Some(target) = self.governor.agent(agent) {
                self.apply(Event::SetPaused { target, paused: true });
            }
        }
        self.tell_ended(&recovered.ended);
        tracing::debug!(
            shard = self.number,
            epoch = self.epoch,
            open = recovered.opens.len(),
            replayed = recovered.covered.len(),
            "this replica is home of a shard"
        );
        self.recovered = recovered;
        let body = serde_json::json!({"replica": self.replica, "epoch": self.epoch});
        self.mesh_note(now, "takeover", &body);
    }

    /// Makes an agent known to the rules and to the shell, and reads its completions.
    pub(crate) fn introduce(&mut self, registration: &Registration) {
        let Ok(id) = governance::AgentId::new(&registration.agent) else { return };
        let now = self.now;
        let mut effects = std::mem::take(&mut self.effects);
        self.governor.apply(now, Event::AgentRegistered { registration }, &mut effects);
        if let Some(ix) = self.governor.agent(&registration.agent) {
            let shell = AgentShell {
                name: registration.agent.as_str().into(),
                shard: shard_of(&registration.agent),
                id,
                json: registration.encoding == Encoding::Json,
            };
            self.agents.insert(ix, shell);
            if self.governor.is_home(ix) {
                for priority in Priority::ALL {
                    self.pull_done(ix, *priority);
                }
            }
        }
        for effect in effects.drain(..) {
            self.perform(now, effect, None);
        }
        self.effects = effects;
    }

    /// Restores an open run under a handle; false where an agent in it is not registered.
    fn restore(&mut self, index: usize, open: &OpenState) -> bool {
        let agent = |name: &str| self.governor.agent(name);
        let (Some(source), Some(target), Ok(first)) =
            (agent(&open.source), agent(&open.target), open.first.parse())
        else {
            tracing::error!(id = open.first, "an open dispatch names an agent that nobody registered");
            return false;
        };
        let capability = self.governor.capability(&open.capability).unwrap_or(governance::NO_CAPABILITY);
        let restored = Restored {
            source,
            target,
            capability,
            kind: open.kind,
            class: open.class,
            serves_person: open.serves_person,
            stands_in: open.reason == Reason::FallbackAgent,
            first,
            count: open.count,
            deadline: Timestamp(open.deadline),
            admitted: Timestamp(open.admitted),
            order_key: open.order_key,
            ended: open.ended.clone(),
            open: OpenIx(index as u32),
        };
        self.opens.put(
            index,
            OpenShell {
                source,
                target,
                capability: open.capability.as_str().into(),
                kind: open.kind,
                class: open.class,
                lane: open.lane,
                accepted: Timestamp(open.accepted),
                admitted: Timestamp(open.admitted),
                reason: open.reason,
                reply_token: open.reply_token.as_str().into(),
            },
        );
        self.apply(Event::Restore(&restored));
        true
    }

    /// Tells ends that the former home recorded and perhaps did not get to tell.
    fn tell_ended(&mut self, rows: &[DecisionRow]) {
        for row in rows.iter().filter(|r| r.kind == Kind::Request) {
            let (Some(outcome), Some(source)) = (row.outcome, self.governor.agent(&row.source)) else {
                continue;
            };
            let text = self
                .governor
                .agent(&row.target)
                .and_then(|t| self.governor.registration(t))
                .and_then(|r| r.fallbacks.get(&*row.capability))
                .filter(|_| row.decision == Decision::Fallback)
                .and_then(|f| match f {
                    governance::Fallback::Static(text) => Some(text.clone()),
                    governance::Fallback::Agent(_) => None,
                })
                .unwrap_or_else(|| explain::refusal(row.reason, &row.source, &row.target, &row.capability));
            self.ready_replies.push(OwnedReply {
                source,
                instance: row.first.instance,
                token: Arc::clone(&row.reply_token),
                first: row.first,
                count: row.count,
                outcome,
                reason: row.reason,
                target: Arc::clone(&row.target),
                lane_us: 0,
                inbox_us: 0,
                ran_us: 0,
                payload: text.into(),
                content_type: String::new(),
                origin: Origin::Nothing,
            });
        }
    }
}
