//! Commands: what agents, operators and other homes ask of a home beside dispatches, and the facts it shows them.
//!
//! The rule it keeps: it shows and changes what belongs to agents of its own shard; the rest it only hears of.

use governance::{AgentIx, Ask, Event, Grant, Lane, Registration};
use protocol::control::{AgentView, Extended, LaneView, Operation};
use serde_json::json;

use crate::home::Home;
use crate::input::Command;
use crate::out::Side;

impl Home {
    pub(crate) fn command(&mut self, command: Command) {
        match command {
            Command::Register { registration, respond } => {
                self.register(&registration);
                if let Some(respond) = respond {
                    // An agent that gave up waiting registers again.
                    respond.send(()).ok();
                }
            }
            Command::Beat { agent, beat, leaving } => {
                let Some(agent) = self.governor.agent(&agent) else { return };
                if leaving {
                    self.apply(Event::InstanceLeft { agent, instance: beat.instance });
                } else {
                    self.apply(Event::InstanceSeen { agent, beat });
                    self.tell_missed(beat.instance);
                }
            }
            Command::Cancel { source, id } => {
                if let Some(source) = self.governor.agent(&source) {
                    self.apply(Event::Cancel { source, id });
                }
            }
            Command::Extend { source, id, by, respond } => {
                self.extended = None;
                if let Some(source) = self.governor.agent(&source) {
                    self.apply(Event::Extend { source, id, by });
                }
                let deadline_ns = self.extended.take().map(|d| d.0);
                drop(respond.send(Extended { deadline_ns }));
            }
            Command::Open { asking, respond } => self.permit(&asking, respond),
            Command::Operate { verb, operation, respond } => {
                drop(respond.send(self.operate(&verb, &operation)));
            }
            Command::Letter(order) => self.order_letter(order),
            Command::Grant { agent, ask, respond } => {
                if let Some(grant) = self.grant(&agent, ask) {
                    // Who asked waits no longer: a grant that is lost is only unused.
                    respond.send(grant).ok();
                }
            }
            Command::Reported { agent, from, report } => {
                self.about(&agent, |target| Event::TargetReported { target, from, report });
            }
            Command::ProbeEnded { agent, succeeded } => {
                self.about(&agent, |target| Event::ProbeEnded { target, succeeded });
            }
            Command::BreakerKnown { agent, state, reason, since } => {
                if self.governor.agent(&agent).is_some_and(|ix| !self.governor.is_home(ix)) {
                    self.about(&agent, |target| Event::BreakerKnown { target, state, reason, since });
                }
            }
            Command::Paused { agent, paused } => {
                self.about(&agent, |target| Event::SetPaused { target, paused });
            }
            Command::P0Suffered { delay } => self.apply(Event::P0Suffered { delay }),
        }
    }

    /// Applies an event about an agent, where it is known.
    fn about(&mut self, agent: &str, event: impl FnOnce(AgentIx) -> Event<'static>) {
        if let Some(agent) = self.governor.agent(agent) {
            self.apply(event(agent));
        }
    }

    /// What the rules grant another home; none where the agent is not of this shard.
    fn grant(&mut self, agent: &str, ask: Ask) -> Option<Grant> {
        let target = self.governor.agent(agent).filter(|ix| self.governor.is_home(*ix))?;
        self.granted = None;
        self.apply(Event::GrantAsked { target, ask });
        self.granted.take()
    }

    fn register(&mut self, registration: &Registration) {
        let known = self.governor.agent(&registration.agent).and_then(|ix| self.governor.registration(ix));
        if known == Some(registration) {
            return;
        }
        self.introduce(registration);
        if let Some(agent) = self.governor.agent(&registration.agent).filter(|ix| self.governor.is_home(*ix))
        {
            let body = serde_json::to_value(registration).expect("plain data serialises");
            self.note(self.now, "registration", agent, &body);
        }
    }

    /// An operator's command.
    fn operate(&mut self, verb: &str, operation: &Operation) -> Result<serde_json::Value, String> {
        match verb {
            "agents" | "breakers" => Ok(json!(self.agent_views())),
            "lanes" => Ok(json!(self.lane_views())),
            "trip" | "reset" | "pause" | "resume" => self.change(verb, operation),
            other => Err(format!(
                "{other:?} is not a command; known are agents, breakers, lanes, trip, reset, pause, resume"
            )),
        }
    }

    fn change(&mut self, verb: &str, operation: &Operation) -> Result<serde_json::Value, String> {
        let target = self
            .governor
            .agent(&operation.agent)
            .filter(|ix| self.governor.registration(*ix).is_some())
            .ok_or_else(|| format!("no agent {:?} is registered; see: mesh agents", operation.agent))?;
        if operation.reason.trim().is_empty() {
            return Err("give a reason: it is recorded with your name".to_owned());
        }
        let body = json!({"verb": verb, "operator": operation.operator, "reason": operation.reason});
        self.note(self.now, "operator", target, &body);
        let order = (verb == "pause").then(|| operation.clone());
        if matches!(verb, "pause" | "resume") {
            self.shard.stage().side.push(Side::StorePause { agent: operation.agent.clone(), order });
        }
        self.apply(match verb {
            "trip" => Event::SetBreaker { target, trip: true },
            "reset" => Event::SetBreaker { target, trip: false },
            "pause" => Event::SetPaused { target, paused: true },
            _ => Event::SetPaused { target, paused: false },
        });
        Ok(json!({"agent": operation.agent, "done": verb}))
    }

    fn agent_views(&self) -> Vec<AgentView> {
        let facts = self.governor.target_facts(self.now);
        facts
            .into_iter()
            .filter(|f| self.governor.is_home(f.agent))
            .filter_map(|f| {
                Some(AgentView {
                    agent: self.governor.agent_name(f.agent).to_string(),
                    role: f.role,
                    instances: f.instances,
                    slots: f.slots,
                    running: f.running,
                    in_flight: f.in_flight.iter().sum(),
                    depth: f.depth,
                    breaker: f.breaker.state,
                    breaker_reason: f.breaker.reason,
                    breaker_since_ns: f.breaker.since.0,
                    samples: f.breaker.samples,
                    errors: f.breaker.errors,
                    over: f.breaker.over,
                    paused: f.paused,
                    registration: self.governor.registration(f.agent)?.clone(),
                })
            })
            .collect()
    }

    fn lane_views(&self) -> Vec<LaneView> {
        let now = self.now;
        let pending = |source: AgentIx, priority| {
            self.lane_pending.get(&Lane { source, priority }).copied().unwrap_or_default()
        };
        self.governor
            .lane_facts(now)
            .into_iter()
            .filter(|f| self.governor.is_home(f.lane.source))
            .map(|f| LaneView {
                source: self.governor.agent_name(f.lane.source).to_string(),
                priority: f.lane.priority,
                held: f.queued.into(),
                pending_messages: pending(f.lane.source, f.lane.priority),
                rate_per_s: f.quota.per_s,
                burst: f.quota.burst,
                admitted_last_s: self.admitted_in.get(&f.lane).map_or(0, |a| a.in_last_second(now)),
                waiting: f.waiting.map(|w| w.reason),
                waited_ms: f
                    .oldest
                    .map_or(0, |at| u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX)),
            })
            .collect()
    }
}
