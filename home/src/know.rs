//! What this home tells other homes: collected while inputs are taken, sent with the next flush.
//!
//! Owns the packing; decides neither what is worth telling nor when.

use std::collections::BTreeMap;
use std::time::Duration;

use governance::{AgentIx, HomeId, TargetReport};
use protocol::know::{Knowledge, Probe, Report};
use protocol::subjects;

use crate::home::Home;
use crate::out::Side;

/// What is to be told, by the shard that should hear it.
#[derive(Debug, Default)]
pub(crate) struct Told {
    by_shard: BTreeMap<u8, Knowledge>,
    p0_delay: Option<Duration>,
}

impl Home {
    pub(crate) const fn id(&self) -> HomeId {
        HomeId { shard: self.number, epoch: self.epoch }
    }

    pub(crate) fn report(&mut self, target: AgentIx, report: TargetReport) {
        let Some(agent) = self.agents.get(&target) else { return };
        let (shard, name) = (agent.shard, agent.name.to_string());
        self.knowledge_for(shard).reports.push(Report::new(name, report));
    }

    pub(crate) fn probe_ended(&mut self, target: AgentIx, succeeded: Option<bool>) {
        let Some(agent) = self.agents.get(&target) else { return };
        let (shard, name) = (agent.shard, agent.name.to_string());
        self.knowledge_for(shard).probes.push(Probe { agent: name, succeeded });
    }

    pub(crate) const fn p0_suffers(&mut self, delay: Duration) {
        self.told.p0_delay = Some(delay);
    }

    fn knowledge_for(&mut self, shard: u8) -> &mut Knowledge {
        let home = self.id();
        self.told.by_shard.entry(shard).or_insert_with(|| Knowledge::from(home))
    }

    pub(crate) fn tell_homes(&mut self) {
        while let Some((shard, knowledge)) = self.told.by_shard.pop_first() {
            self.tell_home(subjects::know(shard), &knowledge);
        }
        if let Some(delay) = self.told.p0_delay.take() {
            let delay_us = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
            let knowledge = Knowledge { p0_delay_us: Some(delay_us), ..Knowledge::from(self.id()) };
            self.tell_home(subjects::KNOW_P0.to_owned(), &knowledge);
        }
    }

    fn tell_home(&mut self, subject: String, knowledge: &Knowledge) {
        let payload = serde_json::to_vec(knowledge).expect("plain data serialises").into();
        self.out.side.push_back(Side::Tell { subject, payload });
    }
}
