//! Names and declarations. Owns the interning of names, who offers what, who wants which topic, who may call whom.
//!
//! The rule it keeps: what is asked for each run of dispatches is answered by a binary search over a few numbers; names
//! are compared only when an agent registers. An index, once given, always means the same name.

use std::collections::BTreeMap;
use std::fmt::Debug;

use crate::names::{AgentId, AgentIx, Capability, CapabilityIx, Topic, TopicIx};
use crate::registration::{Fallback, Registration};

/// Names under dense indices.
#[derive(Debug)]
struct Names<N> {
    names: Vec<N>,
    index: BTreeMap<N, u32>,
}

impl<N: Ord + Clone + std::borrow::Borrow<str> + std::str::FromStr> Names<N> {
    const fn new() -> Self {
        Self { names: Vec::new(), index: BTreeMap::new() }
    }

    fn find(&self, name: &str) -> Option<u32> {
        self.index.get(name).copied()
    }

    /// The index of a name, given now if it is new; none where the text is not a name.
    fn intern(&mut self, name: &str) -> Option<u32> {
        if let Some(ix) = self.find(name) {
            return Some(ix);
        }
        let name: N = name.parse().ok()?;
        let ix = self.names.len() as u32;
        self.names.push(name.clone());
        self.index.insert(name, ix);
        Some(ix)
    }
}

/// One agent as it declared itself.
#[derive(Debug, Default)]
struct Declared {
    registration: Option<Registration>,
    capabilities: Vec<CapabilityIx>,
    topics: Vec<TopicIx>,
    /// Agents of which every capability may be called.
    any_of: Vec<AgentIx>,
    /// Capabilities that may be called of every agent.
    of_any: Vec<CapabilityIx>,
    pairs: Vec<(AgentIx, CapabilityIx)>,
    fallbacks: BTreeMap<CapabilityIx, FallbackIx>,
}

/// A fallback with its names interned.
#[derive(Debug, Clone)]
pub(crate) enum FallbackIx {
    Static(std::sync::Arc<str>),
    Agent(AgentIx),
}

/// All names and declarations.
#[derive(Debug)]
pub(crate) struct Registry {
    agents: Names<AgentId>,
    capabilities: Names<Capability>,
    topics: Names<Topic>,
    declared: Vec<Declared>,
    providers: Vec<Vec<AgentIx>>,
    subscribers: Vec<Vec<AgentIx>>,
}

impl Registry {
    pub(crate) const fn new() -> Self {
        Self {
            agents: Names::new(),
            capabilities: Names::new(),
            topics: Names::new(),
            declared: Vec::new(),
            providers: Vec::new(),
            subscribers: Vec::new(),
        }
    }

    /// Takes a registration in the place of what the agent declared before. None where its name is not a name, which
    /// the check of registrations excludes. Parts that are not names are left out for the same reason.
    pub(crate) fn register(&mut self, registration: &Registration) -> Option<AgentIx> {
        let agent = self.intern_agent(&registration.agent)?;
        self.withdraw(agent);
        let capabilities: Vec<_> =
            registration.capabilities.iter().filter_map(|c| self.intern_capability(c)).collect();
        let topics: Vec<_> = registration.topics.iter().filter_map(|t| self.intern_topic(t)).collect();
        for capability in &capabilities {
            insert_sorted(&mut self.providers[capability.ix()], agent);
        }
        for topic in &topics {
            self.subscribe(*topic, agent);
        }
        let mut declared = Declared { capabilities, topics, ..Declared::default() };
        for dependency in &registration.dependencies {
            self.declare(&mut declared, dependency);
        }
        for (capability, fallback) in &registration.fallbacks {
            let fallback = match fallback {
                Fallback::Static(text) => Some(FallbackIx::Static(text.as_str().into())),
                Fallback::Agent(name) => self.intern_agent(name).map(FallbackIx::Agent),
            };
            if let (Some(capability), Some(fallback)) = (self.intern_capability(capability), fallback) {
                declared.fallbacks.insert(capability, fallback);
            }
        }
        declared.capabilities.sort_unstable();
        declared.any_of.sort_unstable();
        declared.of_any.sort_unstable();
        declared.pairs.sort_unstable();
        declared.registration = Some(registration.clone());
        self.declared[agent.ix()] = declared;
        Some(agent)
    }

    /// Forgets what an agent declared; its index stays.
    pub(crate) fn withdraw(&mut self, agent: AgentIx) {
        let former = std::mem::take(&mut self.declared[agent.ix()]);
        for capability in former.capabilities {
            self.providers[capability.ix()].retain(|a| *a != agent);
        }
        for topic in former.topics {
            self.subscribers[topic.ix()].retain(|a| *a != agent);
        }
    }

    fn declare(&mut self, declared: &mut Declared, dependency: &str) {
        let Some((agent, capability)) = dependency.split_once('/') else {
            declared.any_of.extend(self.intern_agent(dependency));
            return;
        };
        let Some(capability) = self.intern_capability(capability) else { return };
        if agent == "*" {
            declared.of_any.push(capability);
        } else if let Some(agent) = self.intern_agent(agent) {
            declared.pairs.push((agent, capability));
        }
    }

    /// Subscribers stand in the order of their names, so that copies are numbered alike wherever they are made.
    fn subscribe(&mut self, topic: TopicIx, agent: AgentIx) {
        let names = &self.agents.names;
        let subscribers = &mut self.subscribers[topic.ix()];
        if let Err(place) = subscribers.binary_search_by(|a| names[a.ix()].cmp(&names[agent.ix()])) {
            subscribers.insert(place, agent);
        }
    }

    fn intern_agent(&mut self, name: &str) -> Option<AgentIx> {
        let ix = self.agents.intern(name)?;
        self.declared.resize_with(self.agents.names.len(), Declared::default);
        Some(AgentIx(ix))
    }

    pub(crate) fn intern_capability(&mut self, name: &str) -> Option<CapabilityIx> {
        let ix = self.capabilities.intern(name)?;
        self.providers.resize_with(self.capabilities.names.len(), Vec::new);
        Some(CapabilityIx(ix))
    }

    fn intern_topic(&mut self, name: &str) -> Option<TopicIx> {
        let ix = self.topics.intern(name)?;
        self.subscribers.resize_with(self.topics.names.len(), Vec::new);
        Some(TopicIx(ix))
    }

    pub(crate) fn agent(&self, name: &str) -> Option<AgentIx> {
        self.agents.find(name).map(AgentIx)
    }

    pub(crate) fn capability(&self, name: &str) -> Option<CapabilityIx> {
        self.capabilities.find(name).map(CapabilityIx)
    }

    pub(crate) fn topic(&self, name: &str) -> Option<TopicIx> {
        self.topics.find(name).map(TopicIx)
    }

    pub(crate) fn agent_name(&self, ix: AgentIx) -> &AgentId {
        &self.agents.names[ix.ix()]
    }

    pub(crate) fn capability_name(&self, ix: CapabilityIx) -> &Capability {
        &self.capabilities.names[ix.ix()]
    }

    pub(crate) fn topic_name(&self, ix: TopicIx) -> &Topic {
        &self.topics.names[ix.ix()]
    }

    /// How many agents have an index, registered or only named by others.
    pub(crate) fn agents_len(&self) -> usize {
        self.agents.names.len()
    }

    pub(crate) fn registration(&self, agent: AgentIx) -> Option<&Registration> {
        self.declared.get(agent.ix())?.registration.as_ref()
    }

    pub(crate) fn is_registered(&self, agent: AgentIx) -> bool {
        self.registration(agent).is_some()
    }

    /// The registered agents in the order of their names.
    pub(crate) fn registered(&self) -> impl Iterator<Item = AgentIx> {
        self.agents.index.values().map(|ix| AgentIx(*ix)).filter(|a| self.is_registered(*a))
    }

    pub(crate) fn offers(&self, agent: AgentIx, capability: CapabilityIx) -> bool {
        self.declared[agent.ix()].capabilities.binary_search(&capability).is_ok()
    }

    /// Whether `source` declared that it calls this capability of this agent.
    pub(crate) fn declares(&self, source: AgentIx, target: AgentIx, capability: CapabilityIx) -> bool {
        let declared = &self.declared[source.ix()];
        declared.any_of.binary_search(&target).is_ok()
            || declared.pairs.binary_search(&(target, capability)).is_ok()
            || declared.of_any.binary_search(&capability).is_ok()
    }

    /// Who offers a capability, in the order of their indices.
    pub(crate) fn providers(&self, capability: CapabilityIx) -> &[AgentIx] {
        self.providers.get(capability.ix()).map_or(&[], Vec::as_slice)
    }

    /// Who wants a topic, in the order of their names.
    pub(crate) fn subscribers(&self, topic: TopicIx) -> &[AgentIx] {
        self.subscribers.get(topic.ix()).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn fallback(&self, agent: AgentIx, capability: CapabilityIx) -> Option<&FallbackIx> {
        self.declared[agent.ix()].fallbacks.get(&capability)
    }

    pub(crate) fn check_invariants(&self) {
        for (capability, providers) in self.providers.iter().enumerate() {
            for agent in providers {
                assert!(
                    self.offers(*agent, CapabilityIx(capability as u32)),
                    "a provider offers what it is listed for"
                );
            }
        }
    }
}

fn insert_sorted<T: Ord>(list: &mut Vec<T>, value: T) {
    if let Err(place) = list.binary_search(&value) {
        list.insert(place, value);
    }
}
