//! A model of broker, agents and rules beside the core, which knows what must hold.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use governance::{
    Admission, AgentIx, Arrival, Beat, Completion, Destination, DispatchId, Effect, Event, Fallback,
    InstanceId, Kind, Lane, Lineage, MessageIx, Outcome, Policy, Priority, Reason, Registration, Run,
    Timestamp,
};

mod checks;

use super::action::Action;
use crate::kit::{self, Refine, World, agent};

const AGENTS: [&str; 5] = ["bot", "orchestrator", "worker", "backup", "crm"];

fn registrations() -> Vec<Registration> {
    vec![
        agent("bot").needs(&["worker/score", "crm", "*/plan"]).wants(&["news"]),
        agent("orchestrator").offers(&["plan"]).needs(&["worker", "bot"]),
        agent("worker")
            .offers(&["score", "secret", "plan"])
            .needs(&["crm/sync"])
            .wants(&["news"])
            .falls_back("score", Fallback::Agent("backup".to_owned()))
            .falls_back("plan", Fallback::Static("later".to_owned())),
        agent("backup").offers(&["score", "plan"]).needs(&["*/score"]),
        agent("crm").offers(&["sync"]).wants(&["news"]),
    ]
}

const POLICY: &str = r#"
    [agents.bot]
    rate_per_s = 70
    burst = 7
    p0 = ["score"]
    [agents.orchestrator]
    rate_per_s = 200
    [agents.worker]
    rate_per_s = 30
    burst = 1
    [agents.crm]
    role = "crm_sync"
    max_rate_per_s = 20
    [in_flight]
    min = 24
"#;

/// A message in the broker.
#[derive(Debug, Clone)]
struct Message {
    sequence: u64,
    accepted: Timestamp,
    run: Run,
}

/// What became of one dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Waiting,
    Admitted,
    Ended,
}

/// Inside which order holds: lane, whether demoted, target, order key.
type QueueName = (Lane, u8, Option<u32>, u64);

/// The core beside a model that knows what must hold.
pub(super) struct Model {
    world: World,
    /// What is in the broker, by lane.
    backlog: BTreeMap<Lane, VecDeque<Message>>,
    credits: BTreeMap<Lane, u32>,
    sent: Vec<(Lane, Message)>,
    sequences: BTreeMap<u32, u64>,
    messages: u32,
    by_message: BTreeMap<u32, (Lane, Message)>,
    pub(super) fates: BTreeMap<DispatchId, Fate>,
    /// Admissions by source and by target, for the rates.
    pub(super) admitted: Vec<(Timestamp, Admission)>,
    last_of_queue: BTreeMap<QueueName, (u64, u16)>,
    rates_changed: bool,
    /// Nothing is delivered while another home rebuilds its state.
    restart: bool,
    pub(super) log: String,
}

impl Model {
    pub(super) fn new() -> Self {
        let policy = Policy::parse(POLICY).expect("the policy is good");
        let mut model = Self {
            world: World::new(policy),
            backlog: BTreeMap::new(),
            credits: BTreeMap::new(),
            sent: Vec::new(),
            sequences: BTreeMap::new(),
            messages: 0,
            by_message: BTreeMap::new(),
            fates: BTreeMap::new(),
            admitted: Vec::new(),
            last_of_queue: BTreeMap::new(),
            rates_changed: false,
            restart: false,
            log: String::new(),
        };
        for registration in registrations() {
            model.apply(Event::AgentRegistered { registration: &registration });
        }
        model
    }

    fn ix(&self, nth: usize) -> AgentIx {
        self.world.ix(AGENTS[nth])
    }

    fn apply(&mut self, event: Event<'_>) {
        let turn = matches!(event, Event::Turn { .. });
        let effects = self.world.apply(event);
        self.log.push_str(&format!("{effects:?}\n"));
        let mut beyond_p0 = false;
        for effect in &effects {
            match effect {
                Effect::Pull { lane, messages } => *self.credits.entry(*lane).or_default() += messages,
                Effect::Admit(admission) => {
                    if turn {
                        assert!(admission.class != Priority::P0 || !beyond_p0, "P0 goes first in a turn");
                        beyond_p0 |= admission.class != Priority::P0;
                    }
                    self.on_admit(admission);
                }
                Effect::End(end) => {
                    let (_, message) = self.by_message[&end.message.0].clone();
                    let instance = kit::instance_of(end.source);
                    for slot in end.first..end.first + end.count {
                        let id = DispatchId { instance, sequence: message.sequence, slot, copy: end.copy };
                        let topic = matches!(message.run.to, Destination::Topic(_));
                        let former = self.fates.insert(id, Fate::Ended);
                        let fine = former == Some(Fate::Waiting) || topic && end.copy > 0 && former.is_none();
                        assert!(fine, "{id} ended after {former:?}");
                    }
                }
                Effect::Close(close) => {
                    for slot in close.id.slot..close.id.slot + close.count {
                        let id = DispatchId { slot, ..close.id };
                        assert_eq!(
                            self.fates.insert(id, Fate::Ended),
                            Some(Fate::Admitted),
                            "{id} ends once"
                        );
                    }
                }
                Effect::Duplicate { .. }
                | Effect::Forget { .. }
                | Effect::Late { .. }
                | Effect::Retry { .. }
                | Effect::DeadLetter { .. }
                | Effect::Runner { .. }
                | Effect::Condemn { .. }
                | Effect::Permit(_)
                | Effect::Revoke { .. }
                | Effect::Extended { .. }
                | Effect::SlowDown { .. }
                | Effect::Resume { .. }
                | Effect::Breaker(_)
                | Effect::Ping { .. }
                | Effect::Scale(_)
                | Effect::InstanceLost { .. }
                | Effect::Deferral { .. }
                | Effect::Demoted { .. }
                | Effect::ScaleHeld { .. } => {}
                Effect::Report { .. }
                | Effect::ProbeEnded { .. }
                | Effect::AskGrant { .. }
                | Effect::Granted(_)
                | Effect::P0Suffers { .. } => panic!("a core alone has nobody to tell: {effect:?}"),
            }
        }
        self.deliver();
    }

    /// Everything that must hold for an admission by itself, and its place in its queue.
    fn on_admit(&mut self, admission: &Admission) {
        let (lane, message) = self.by_message[&admission.message.0].clone();
        let instance = kit::instance_of(admission.source);
        let source = self.world.governor.registration(admission.source).cloned().expect("it registered");
        let target = self.world.name(admission.target).to_owned();
        assert_eq!(lane.source, admission.source);
        assert!(admission.deadline > self.world.now, "what has expired is not admitted");
        if let Some(capability) = admission.capability {
            let capability = self.world.governor.capability_name(capability).as_str();
            let declared = [target.clone(), format!("{target}/{capability}"), format!("*/{capability}")];
            let stand_in = admission.reason == Reason::FallbackAgent;
            let allowed = stand_in || source.dependencies.iter().any(|d| declared.contains(d));
            assert!(allowed, "{} never declared {target}/{capability}", source.agent);
        }
        for slot in admission.first..admission.first + admission.count {
            let id = DispatchId { instance, sequence: message.sequence, slot, copy: admission.copy };
            let former = self.fates.insert(id, Fate::Admitted);
            let fine = former == Some(Fate::Waiting) || admission.copy > 0 && former.is_none();
            assert!(fine, "{id} admitted after {former:?}");
        }
        let to = match message.run.to {
            Destination::Capability(_) | Destination::Nowhere(_) => None,
            Destination::Agent(..) if admission.reason == Reason::FallbackAgent => None,
            Destination::Agent(..) | Destination::Topic(_) => Some(admission.target.0),
        };
        if to.is_some() {
            let demoted = u8::from(lane.priority == Priority::P0 && admission.class == Priority::P1);
            let queue = (lane, demoted, to, message.run.order_key);
            let place = (message.sequence, admission.first);
            let former = self.last_of_queue.insert(queue, place);
            assert!(former.is_none_or(|former| former < place), "{place:?} overtook {former:?} in {queue:?}");
        }
        self.admitted.push((self.world.now, *admission));
    }

    /// Delivers from the broker what the core has asked for.
    fn deliver(&mut self) {
        if self.restart {
            return;
        }
        let lanes: Vec<Lane> = self.backlog.keys().copied().collect();
        for lane in lanes {
            while self.credits.get(&lane).is_some_and(|c| *c > 0) {
                let Some(message) = self.backlog.get_mut(&lane).and_then(VecDeque::pop_front) else { break };
                *self.credits.entry(lane).or_default() -= 1;
                self.arrive(lane, message);
            }
        }
    }

    fn arrive(&mut self, lane: Lane, message: Message) {
        let run = message.run;
        self.arrive_as(lane, message, false, &[run]);
    }

    fn arrive_as(&mut self, lane: Lane, message: Message, resumed: bool, runs: &[Run]) {
        self.messages += 1;
        self.by_message.insert(self.messages, (lane, message.clone()));
        self.apply(Event::Arrived(Arrival {
            lane,
            message: MessageIx(self.messages),
            instance: kit::instance_of(lane.source),
            sequence: message.sequence,
            accepted: message.accepted,
            resumed,
            runs,
        }));
    }

    pub(super) fn act(&mut self, action: &Action) {
        match *action {
            Action::Send { source, priority, to, count, event, budget, key, lineage } => {
                self.send(source, priority, to, count, event, budget, key, lineage);
            }
            Action::Redeliver { nth } => {
                if let Some((lane, message)) = self.sent.get(nth).cloned()
                    && !self
                        .backlog
                        .get(&lane)
                        .is_some_and(|b| b.iter().any(|m| m.sequence == message.sequence))
                {
                    self.arrive(lane, message);
                }
            }
            Action::Turn { room } => self.apply(Event::Turn { room }),
            Action::Pass { ms } => self.pass(ms),
            Action::Complete { nth, part, good, ran_ms } => self.complete(nth, part, good, ran_ms),
            Action::Beat { target, slots, over } => {
                let (agent, instance) = (self.ix(target), kit::instance_of(self.ix(target)));
                let beat = Beat { instance, slots, running: slots / 2, running_over: over };
                self.apply(Event::InstanceSeen { agent, beat });
            }
            Action::Pause { target, paused } => {
                self.apply(Event::SetPaused { target: self.ix(target), paused })
            }
            Action::Trip { target, trip } => self.apply(Event::SetBreaker { target: self.ix(target), trip }),
            Action::Inbox { target, full: true } => self.apply(Event::InboxFull { target: self.ix(target) }),
            Action::Inbox { target, full: false } => self.apply(Event::InboxRoom { target: self.ix(target) }),
            Action::Cancel { nth, slot } => {
                if let Some((lane, message)) = self.sent.get(nth).cloned() {
                    let instance = kit::instance_of(lane.source);
                    let id = DispatchId { instance, sequence: message.sequence, slot, copy: 0 };
                    self.apply(Event::Cancel { source: lane.source, id });
                }
            }
            Action::EndPull { lane } => {
                let lane = Lane { source: self.ix(lane / 4), priority: Priority::ALL[lane % 4] };
                let unfilled = std::mem::take(self.credits.entry(lane).or_default());
                self.apply(Event::PullEnded { lane, unfilled });
            }
            Action::Extend { nth, by_ms } => {
                if let Some(admission) = self.running(nth) {
                    let id = self.id(&admission);
                    self.apply(Event::Extend {
                        source: admission.source,
                        id,
                        by: Duration::from_millis(by_ms),
                    });
                }
            }
            Action::TakeOver => self.take_over(),
            Action::Faster { rate } => {
                self.rates_changed = true;
                let text = format!("{POLICY}\n[agents.backup]\nrate_per_s = {rate}\n");
                self.apply(Event::PolicyChanged {
                    policy: Policy::parse(&text).expect("the policy is good").into(),
                });
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one action")]
    fn send(
        &mut self,
        source: usize,
        priority: usize,
        to: usize,
        count: u16,
        event: bool,
        budget: usize,
        key: u64,
        lineage: usize,
    ) {
        let call = |target: &str, capability: &str| self.world.call(target, capability).run.to;
        let to = match to {
            0 | 1 => call("worker", "score"),
            2 => call("worker", "secret"),
            3 => call("crm", "sync"),
            4 => call("orchestrator", "plan"),
            5 | 6 => self.world.call_any("plan").run.to,
            7 => self.world.publish("news").run.to,
            _ => Destination::Nowhere(Reason::UnknownTarget),
        };
        let child = |hops, serves_person, ms: u64| Lineage::Child {
            hops,
            repeats: 0,
            serves_person,
            deadline: self.world.now.after(Duration::from_millis(ms)),
        };
        let run = Run {
            first: 0,
            count,
            kind: if event || matches!(to, Destination::Topic(_)) { Kind::Event } else { Kind::Request },
            to,
            budget: [
                Duration::ZERO,
                Duration::from_millis(80),
                Duration::from_secs(2),
                Duration::from_secs(60),
            ][budget],
            lineage: [
                Lineage::Root,
                child(1, true, 3_000),
                child(2, false, 30_000),
                child(17, true, 9),
                Lineage::Root,
            ][lineage],
            order_key: key,
            idempotency_key: 0,
        };
        let lane = Lane { source: self.ix(source), priority: Priority::ALL[priority] };
        let sequence = self.sequences.entry(lane.source.0).or_default();
        *sequence += 1;
        let message = Message { sequence: *sequence, accepted: self.world.now, run };
        let instance: InstanceId = kit::instance_of(lane.source);
        for slot in 0..count {
            let id = DispatchId { instance, sequence: message.sequence, slot, copy: 0 };
            self.fates.insert(id, Fate::Waiting);
        }
        self.sent.push((lane, message.clone()));
        self.backlog.entry(lane).or_default().push_back(message);
        self.deliver();
    }

    /// Another home goes on with what this one left: snapshot, open runs, and the messages that were not decided as a whole.
    fn take_over(&mut self) {
        let policy = Policy::clone(self.world.governor.policy());
        let former = std::mem::replace(&mut self.world, World::new(policy));
        self.world.now = former.now;
        self.credits.clear();
        self.restart = true;
        for registration in registrations() {
            self.apply(Event::AgentRegistered { registration: &registration });
        }
        for (source, arrival) in former.governor.quota_arrivals() {
            self.apply(Event::RestoreQuota { source, arrival });
        }
        for (instance, from, to) in former.governor.seen_ranges() {
            self.apply(Event::RestoreSeen { instance, from, to });
        }
        let mut handles = BTreeMap::new();
        for (nth, (open, mut restored)) in former.governor.open_runs().enumerate() {
            restored.open = governance::OpenIx(nth as u32);
            handles.insert(open, restored.open);
            self.apply(Event::Restore(&restored));
        }
        self.world.running = former.running;
        for admission in &mut self.world.running {
            admission.open = handles[&admission.open];
        }
        self.restart = false;
        self.deliver_again();
    }

    /// Delivers the messages that were not decided as a whole, without what was decided of them.
    fn deliver_again(&mut self) {
        for (lane, message) in self.sent.clone() {
            if self.backlog.get(&lane).is_some_and(|b| b.iter().any(|m| m.sequence == message.sequence)) {
                continue;
            }
            let instance = kit::instance_of(lane.source);
            let id = |slot, copy| DispatchId { instance, sequence: message.sequence, slot, copy };
            let slots = message.run.first..message.run.first + message.run.count;
            let waits = |slot: &u16| self.fates[&id(*slot, 0)] == Fate::Waiting;
            let runs: Vec<Run> =
                slots.clone().filter(waits).map(|first| Run { first, count: 1, ..message.run }).collect();
            if runs.is_empty() {
                continue;
            }
            let copies: Vec<DispatchId> = self.fates.keys().filter(|c| c.copy > 0).copied().collect();
            for copy in
                copies.into_iter().filter(|c| (c.instance, c.sequence) == (instance, message.sequence))
            {
                self.apply(Event::RestoreCopies { first: copy, count: 1 });
            }
            self.arrive_as(lane, message, true, &runs);
        }
        self.deliver();
    }

    fn running(&self, nth: usize) -> Option<Admission> {
        let running = &self.world.running;
        (!running.is_empty()).then(|| running[nth % running.len()])
    }

    fn id(&self, admission: &Admission) -> DispatchId {
        let (lane, message) = &self.by_message[&admission.message.0];
        let instance = kit::instance_of(lane.source);
        DispatchId { instance, sequence: message.sequence, slot: admission.first, copy: admission.copy }
    }

    fn complete(&mut self, nth: usize, (from, count): (u16, u16), good: bool, ran_ms: u64) {
        let Some(admission) = self.running(nth) else { return };
        let from = from.min(admission.count - 1);
        let first = self.id(&admission);
        let completion = Completion {
            first: DispatchId { slot: first.slot + from, ..first },
            count: count.min(admission.count - from),
            outcome: if good { Outcome::Success } else { Outcome::Failure },
            reason: if good { Reason::Ok } else { Reason::HandlerFailed },
            ran: Duration::from_millis(ran_ms),
            attempt: 1 + (nth % 5) as u8,
            reported: self.world.now,
            row: 0,
        };
        let Admission { source, target, .. } = admission;
        self.apply(Event::Completed { source, target, completions: &[completion] });
    }

    fn pass(&mut self, ms: u64) {
        let end = self.world.now.after(Duration::from_millis(ms));
        while let Some(wakeup) = self.world.governor.next_wakeup()
            && wakeup.at <= end
        {
            self.world.now = self.world.now.max(wakeup.at);
            self.apply(Event::Tick);
            self.apply(Event::Turn { room: 100_000 });
        }
        self.world.now = end;
        self.apply(Event::Tick);
    }

    /// Lets everything end: all obstacles are taken away, agents answer, time passes.
    pub(super) fn settle(&mut self) {
        for agent in 0..AGENTS.len() {
            self.act(&Action::Pause { target: agent, paused: false });
            self.act(&Action::Trip { target: agent, trip: false });
            self.act(&Action::Inbox { target: agent, full: false });
        }
        for _ in 0..1_200 {
            self.apply(Event::Turn { room: 100_000 });
            for nth in (0..self.world.running.len()).rev() {
                self.complete(nth, (0, u16::MAX), true, 5);
            }
            self.pass(100);
            let waits = self.fates.iter().any(|(_, fate)| *fate != Fate::Ended);
            if !waits {
                break;
            }
        }
    }
}
