//! Routing: what reaches this replica on core subjects, and which of its homes is meant.
//!
//! The rule it keeps: questions are answered only by the home they are for; who is not home says nothing.

use std::time::Duration;

use bytes::Bytes;
use governance::{Ask, Beat, Grant, InstanceId, Timestamp, shard_of};
use home::{Asking, Command, Input};
use protocol::control::{self, Breaker, OpenAnswer, OpenQuestion};
use protocol::know::{GrantAnswer, GrantQuestion, Knowledge};
use protocol::subjects;
use tokio::sync::oneshot;

use super::{Hosted, Replica};
use crate::broker::{Op, ReplyTo};
use crate::process::Ctx;

impl Replica {
    pub(super) fn on_told(
        &mut self,
        ctx: &mut Ctx<'_>,
        subject: &str,
        payload: &Bytes,
        reply: Option<ReplyTo>,
    ) {
        let about = subjects::last_token(subject);
        match subject.split('.').nth(1).unwrap_or_default() {
            "beat" => self.on_beat(ctx, about, payload),
            "open" => self.on_open(ctx, about, payload, reply),
            "grant" => self.on_grant(ctx, about, payload, reply),
            "know" => self.on_knowledge(ctx, about, payload),
            _ => {}
        }
    }

    fn on_beat(&mut self, ctx: &mut Ctx<'_>, agent: &str, payload: &Bytes) {
        let beat: control::Beat =
            serde_json::from_slice(payload).expect("instances write beats that can be read");
        let instance: InstanceId = beat.instance.parse().expect("an instance");
        let leaving = beat.leaving;
        let beat =
            Beat { instance, slots: beat.slots, running: beat.running, running_over: beat.running_over };
        self.give_all(ctx, || Input::Command(Command::Beat { agent: agent.to_owned(), beat, leaving }));
    }

    fn has_home(&self, shard: u8) -> bool {
        matches!(self.hosted.get(&shard), Some(Hosted::Home(_)))
    }

    fn on_open(&mut self, ctx: &mut Ctx<'_>, source: &str, payload: &Bytes, reply: Option<ReplyTo>) {
        let shard = shard_of(source);
        if !self.has_home(shard) {
            return;
        }
        let question: OpenQuestion = serde_json::from_slice(payload).expect("instances ask what can be read");
        let asking = Asking::read(question).expect("instances ask what can be read");
        let (respond, mut told) = oneshot::channel::<OpenAnswer>();
        self.give_shard(ctx, shard, Input::Command(Command::Open { asking, respond }));
        match told.try_recv() {
            Ok(answer) => respond_with(ctx, reply, &answer),
            // As the coordinator's task does: who asked asks again.
            Err(_) => respond_with(ctx, reply, &serde_json::json!({"error": "not now"})),
        }
    }

    fn on_grant(&mut self, ctx: &mut Ctx<'_>, agent: &str, payload: &Bytes, reply: Option<ReplyTo>) {
        let shard = shard_of(agent);
        if !self.has_home(shard) {
            return;
        }
        let question: GrantQuestion = serde_json::from_slice(payload).expect("homes ask what can be read");
        let (respond, mut told) = oneshot::channel::<Grant>();
        let command = Command::Grant { agent: agent.to_owned(), ask: Ask::from(question), respond };
        self.give_shard(ctx, shard, Input::Command(command));
        if let Ok(grant) = told.try_recv() {
            respond_with(ctx, reply, &GrantAnswer::from(grant));
        }
    }

    fn on_knowledge(&mut self, ctx: &mut Ctx<'_>, about: &str, payload: &Bytes) {
        let knowledge: Knowledge = serde_json::from_slice(payload).expect("homes tell what can be read");
        let from = knowledge.home();
        if let Some(us) = knowledge.p0_delay_us {
            let delay = Duration::from_micros(us);
            let shards: Vec<u8> = self.hosted.keys().copied().filter(|s| *s != from.shard).collect();
            for shard in shards {
                self.give_shard(ctx, shard, Input::Command(Command::P0Suffered { delay }));
            }
        }
        let Ok(shard) = about.parse::<u8>() else { return };
        for report in knowledge.reports {
            let (agent, report) = (report.agent.clone(), report.figures());
            self.give_shard(ctx, shard, Input::Command(Command::Reported { agent, from, report }));
        }
        for probe in knowledge.probes {
            let command = Command::ProbeEnded { agent: probe.agent, succeeded: probe.succeeded };
            self.give_shard(ctx, shard, Input::Command(command));
        }
    }

    pub(super) fn tell_breaker(&mut self, ctx: &mut Ctx<'_>, agent: &str, breaker: &Breaker) {
        let Breaker { state, reason, since_ns, .. } = *breaker;
        self.give_all(ctx, || {
            let since = Timestamp(since_ns);
            Input::Command(Command::BreakerKnown { agent: agent.to_owned(), state, reason, since })
        });
    }
}

fn respond_with<T: serde::Serialize>(ctx: &mut Ctx<'_>, reply: Option<ReplyTo>, answer: &T) {
    let Some(to) = reply else { return };
    let payload = serde_json::to_vec(answer).expect("plain data serialises").into();
    ctx.broker(0, Op::Respond { to, payload });
}
