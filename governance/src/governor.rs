//! The core's table of contents: the state, `apply` with one line for each event, and `next_wakeup`.
//!
//! Each concern has a file with its state; what needs several of them is a method of the governor in the file that is named
//! after it: `arrival`, `scheduler`, `admission`, `completion`, `losses`, `waiting`, `membership`, `breakers`, `instances`; `reports` and
//! `grants` for what homes tell and ask each other.
//!
//! The rule it keeps: one event, then the reports and pulls that follow from it. Time never runs backwards: an earlier `now` counts as the
//! latest one seen.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::deferral::Deferral;
use crate::effect::Effect;
use crate::event::{Event, Restored};
use crate::idempotency::Idempotency;
use crate::knowledge::Shards;
use crate::lanes::Lanes;
use crate::losses::Losses;
use crate::names::{
    AgentId, AgentIx, Capability, CapabilityIx, DispatchId, InstanceId, OpenIx, Topic, TopicIx,
};
use crate::open::Open;
use crate::order::OrderKeys;
use crate::policy::Policy;
use crate::registration::Registration;
use crate::registry::Registry;
use crate::scheduler::Scheduler;
use crate::seen::Seen;
use crate::sources::Source;
use crate::targets::Targets;
use crate::time::Timestamp;
use crate::timers::{Timer, Timers};

/// The rules with their state.
#[derive(Debug)]
pub struct Governor {
    pub(crate) now: Timestamp,
    /// The moment of its first event.
    pub(crate) began: Timestamp,
    pub(crate) policy: Arc<Policy>,
    /// The shards whose agents this core is home of.
    pub(crate) shards: Shards,
    pub(crate) registry: Registry,
    pub(crate) sources: Vec<Source>,
    pub(crate) targets: Targets,
    pub(crate) lanes: Lanes,
    pub(crate) scheduler: Scheduler,
    pub(crate) deferral: Deferral,
    pub(crate) open: Open,
    pub(crate) losses: Losses,
    pub(crate) order_keys: OrderKeys,
    pub(crate) seen: Seen,
    pub(crate) idempotency: Idempotency,
    /// Copies that a former home decided about, until the message of their event comes.
    pub(crate) decided_copies: BTreeSet<DispatchId>,
    pub(crate) timers: Timers,
    pub(crate) trickle_armed: bool,
    /// The last turn ended for lack of room.
    pub(crate) window_full: bool,
    pub(crate) sweeps: u64,
    /// Targets of other homes of which something is told at the end of this event.
    pub(crate) reports_due: Vec<AgentIx>,
    /// Targets of other homes whose hard rate this turn found wanting.
    pub(crate) rates_wanted: Vec<AgentIx>,
}

/// When the core wants to be called again, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wakeup {
    /// The moment.
    pub at: Timestamp,
    /// What is due then.
    pub reason: WakeReason,
}

/// What is due at a wake-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WakeReason {
    /// A source's quota gives again.
    Quota,
    /// A target's hard rate gives again.
    TargetRate,
    /// A held dispatch expires.
    HeldDeadline,
    /// An open dispatch expires.
    OpenDeadline,
    /// A breaker may be probed, or its probe takes too long.
    Probe,
    /// No dispatch came to serve as a probe.
    Ping,
    /// An instance may be lost.
    Silence,
    /// Deferred P3 gets its trickle.
    Trickle,
    /// A source may have drained.
    Resume,
    /// Another home is told of its target.
    Report,
    /// A grant of another home went unused, or an ask for one unanswered.
    Grant,
    /// Housekeeping and scaling.
    Sweep,
}

impl Governor {
    /// An empty mesh under a policy, in a core that is home of the agents of these shards.
    #[must_use]
    pub fn new(policy: Arc<Policy>, shards: Shards) -> Self {
        let mut timers = Timers::default();
        timers.arm(Timestamp::ZERO, Timer::Sweep);
        Self {
            now: Timestamp::ZERO,
            began: Timestamp::MAX,
            shards,
            registry: Registry::new(),
            sources: Vec::new(),
            targets: Targets::default(),
            lanes: Lanes::new(),
            scheduler: Scheduler::default(),
            deferral: Deferral::new(&policy.deferral),
            open: Open::new(),
            losses: Losses::default(),
            order_keys: OrderKeys::default(),
            seen: Seen::default(),
            idempotency: Idempotency::default(),
            decided_copies: BTreeSet::new(),
            timers,
            trickle_armed: false,
            window_full: false,
            sweeps: 0,
            reports_due: Vec::new(),
            rates_wanted: Vec::new(),
            policy,
        }
    }

    /// Decides about one event; what is to be done is appended to `effects`, in order.
    pub fn apply(&mut self, now: Timestamp, event: Event<'_>, effects: &mut Vec<Effect>) {
        let now = now.max(self.now);
        self.now = now;
        self.began = self.began.min(now);
        self.fire_timers(now, effects);
        match event {
            Event::PolicyChanged { policy } => self.on_policy(now, policy),
            Event::AgentRegistered { registration } => self.on_registered(now, registration),
            Event::AgentRemoved { agent } => self.on_removed(now, agent, effects),
            Event::InstanceSeen { agent, beat } => self.on_beat(now, agent, beat, effects),
            Event::InstanceLeft { agent, instance } => self.on_left(agent, instance),
            Event::Arrived(arrival) => self.on_arrived(now, &arrival, effects),
            Event::PullEnded { lane, unfilled } => self.on_pull_ended(lane, unfilled),
            Event::Turn { room } => self.on_turn(now, room, effects),
            Event::Completed { source, target, completions } => {
                self.on_completed(now, source, target, completions, effects);
            }
            Event::InboxFull { target } => self.on_inbox(target, true),
            Event::InboxRoom { target } => self.on_inbox(target, false),
            Event::Cancel { source, id } => self.on_cancel(now, source, id, effects),
            Event::Extend { source, id, by } => self.on_extend(source, id, by, effects),
            Event::AskedToRun(asked) => self.on_asked_to_run(now, &asked, effects),
            Event::Condemned { id } => self.on_condemned(now, id, effects),
            Event::RestoreLoss { id, loss } => self.losses.restore(id, loss),
            Event::SetBreaker { target, trip } => self.on_set_breaker(now, target, trip, effects),
            Event::SetPaused { target, paused } => self.on_set_paused(target, paused),
            Event::Restore(restored) => self.on_restore(restored),
            Event::RestoreQuota { source, arrival } => self.source_mut(source).quota.restore(arrival),
            Event::RestoreCharge { source, admitted, count } => {
                self.source_mut(source).quota.charge(admitted, count);
            }
            Event::RestoreCopies { first, count } => self.on_restore_copies(first, count),
            Event::RestoreSeen { instance, from, to } => self.seen.insert(now, instance, from, to),
            Event::RestoreBreaker { target, state, reason } => {
                self.on_restore_breaker(now, target, state, reason);
            }
            Event::TargetReported { target, from, report } => {
                self.on_target_reported(now, target, from, &report, effects);
            }
            Event::ProbeEnded { target, succeeded } => self.on_probe_ended(now, target, succeeded, effects),
            Event::GrantAsked { target, ask } => self.on_grant_asked(now, target, ask, effects),
            Event::GrantAnswered { target, ask, asked, grant } => {
                self.on_grant_answered(now, target, ask, asked, grant, effects);
            }
            Event::BreakerKnown { target, state, reason, since } => {
                self.on_breaker_known(target, state, reason, since);
            }
            Event::P0Suffered { delay } => self.on_p0_suffered(now, delay, effects),
            Event::Tick => self.expire_open(now, effects),
        }
        self.tell_reports(now, effects);
        self.pull(effects);
    }

    /// When time alone will change something. Call `apply` with a `Tick` then, and with a `Turn` after it.
    #[must_use]
    pub fn next_wakeup(&self) -> Option<Wakeup> {
        let timer = self.timers.first().map(|(at, timer)| Wakeup { at, reason: timer.reason() });
        let open = self.open.next_wakeup().map(|at| Wakeup { at, reason: WakeReason::OpenDeadline });
        [timer, open].into_iter().flatten().min_by_key(|wakeup| wakeup.at)
    }

    /// The index of an agent that registered or that a registration names; none for a name never heard of.
    #[must_use]
    pub fn agent(&self, name: &str) -> Option<AgentIx> {
        self.registry.agent(name)
    }

    /// The index of a capability that a registration names.
    #[must_use]
    pub fn capability(&self, name: &str) -> Option<CapabilityIx> {
        self.registry.capability(name)
    }

    /// The index of a topic that a registration names.
    #[must_use]
    pub fn topic(&self, name: &str) -> Option<TopicIx> {
        self.registry.topic(name)
    }

    /// The name behind an index.
    #[must_use]
    pub fn agent_name(&self, ix: AgentIx) -> &AgentId {
        self.registry.agent_name(ix)
    }

    /// The name behind an index.
    #[must_use]
    pub fn capability_name(&self, ix: CapabilityIx) -> &Capability {
        self.registry.capability_name(ix)
    }

    /// The name behind an index.
    #[must_use]
    pub fn topic_name(&self, ix: TopicIx) -> &Topic {
        self.registry.topic_name(ix)
    }

    /// Whether this core is home of an agent: of what it sends, and of what is decided about it as a target.
    #[must_use]
    pub fn is_home(&self, agent: AgentIx) -> bool {
        self.targets.at(agent).is_here()
    }

    /// What an agent declared; none where it is only named by others, or left.
    #[must_use]
    pub fn registration(&self, ix: AgentIx) -> Option<&Registration> {
        self.registry.registration(ix)
    }

    /// The registered agents in the order of their names.
    pub fn agents(&self) -> impl Iterator<Item = AgentIx> {
        self.registry.registered()
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// The quota state of each source, for a snapshot.
    pub fn quota_arrivals(&self) -> impl Iterator<Item = (AgentIx, Timestamp)> {
        let used = |(ix, source): (usize, &Source)| (AgentIx(ix as u32), source.quota.arrival());
        self.sources.iter().enumerate().map(used).filter(|(_, arrival)| *arrival > Timestamp::ZERO)
    }

    /// The sequences that are decided about, for a snapshot.
    pub fn seen_ranges(&self) -> impl Iterator<Item = (InstanceId, u64, u64)> {
        self.seen.ranges()
    }

    /// Whether a dispatch was admitted and has not ended.
    #[must_use]
    pub fn is_open(&self, id: DispatchId) -> bool {
        self.open.is_open(id)
    }

    /// How many dispatches were admitted and have not ended.
    #[must_use]
    pub const fn open_dispatches(&self) -> u64 {
        self.open.slots()
    }

    /// The admitted runs that have not ended, for a snapshot.
    pub fn open_runs(&self) -> impl Iterator<Item = (OpenIx, Restored)> {
        self.open.runs()
    }

    /// Checks what must hold between events; for tests.
    ///
    /// # Panics
    /// When an invariant does not hold, which only a defect of the core can cause.
    pub fn check_invariants(&self) {
        self.registry.check_invariants();
        self.targets.check_invariants();
        self.lanes.check_invariants(&self.policy.lanes);
        self.open.check_invariants();
        self.seen.check_invariants();
        self.idempotency.check_invariants();
        for (ix, source) in self.sources.iter().enumerate() {
            source.quota.check_invariants(self.now);
            let queues = self.lanes.queues.iter().filter(|q| q.lane.source.ix() == ix);
            assert_eq!(
                source.held,
                queues.map(|q| q.queued).sum::<u32>(),
                "the dispatches of a source are counted"
            );
        }
        let in_flight: u64 = (0..self.targets.len())
            .map(|t| u64::from(self.targets.at(AgentIx(t as u32)).in_flight_total()))
            .sum();
        assert_eq!(in_flight, self.open.slots(), "what is open is in flight to exactly one target");
    }
}
