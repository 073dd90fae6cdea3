//! Reporting: from the end of a handler to the confirmed report of it, one report for each lane at a time.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use governance::{AgentId, DispatchId, Outcome, Priority, Reason};
use protocol::completion::{self, Completion};
use protocol::subjects;

use super::intake::Key;
use super::{Asked, Instance, Mood, UNCONFIRMED};
use crate::broker::Op;
use crate::process::Ctx;

/// The lane that a dispatch came through: its completion goes there.
pub(super) type LaneKey = (Priority, AgentId);

/// One dispatch that has ended here.
#[derive(Debug, Clone)]
pub(super) struct Done {
    pub(super) id: DispatchId,
    pub(super) lane: LaneKey,
    pub(super) outcome: Outcome,
    pub(super) reason: Reason,
    pub(super) ran_us: u32,
    pub(super) inbox_us: u32,
    pub(super) attempt: u8,
    pub(super) inbox_ack: String,
    pub(super) held: Key,
}

#[derive(Debug)]
struct Flying {
    rows: Vec<Done>,
    payload: Bytes,
    id: String,
}

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Done>,
    flying: Option<Flying>,
}

/// What has ended and is not confirmed.
#[derive(Debug, Default)]
pub(super) struct Reports {
    lanes: BTreeMap<LaneKey, Lane>,
    made: u64,
}

impl Reports {
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.values().all(|l| l.flying.is_none() && l.waiting.is_empty())
    }
}

impl Instance {
    pub(super) fn report(&mut self, ctx: &mut Ctx<'_>, done: Done) {
        let key = done.lane.clone();
        self.reports.lanes.entry(key.clone()).or_default().waiting.push_back(done);
        self.next_report(ctx, &key);
    }

    fn next_report(&mut self, ctx: &mut Ctx<'_>, key: &LaneKey) {
        let runner = self.instance;
        let Some(lane) = self.reports.lanes.get_mut(key) else { return };
        if lane.flying.is_some() || lane.waiting.is_empty() {
            return;
        }
        let rows: Vec<Done> = lane.waiting.drain(..).collect();
        let completions: Vec<Completion<'_>> = rows
            .iter()
            .map(|d| Completion {
                first: d.id,
                count: 1,
                outcome: d.outcome,
                reason: d.reason,
                ran_us: d.ran_us,
                inbox_us: d.inbox_us,
                attempt: d.attempt,
                payload: b"\"done\"",
                content_type: "",
                inbox_ack: &d.inbox_ack,
            })
            .collect();
        let payload = completion::write(runner, &completions).into();
        let id = format!("{runner}:c{}", self.reports.made);
        self.reports.made += 1;
        lane.flying = Some(Flying { rows, payload, id });
        self.publish_report(ctx, key);
    }

    pub(super) fn publish_report(&mut self, ctx: &mut Ctx<'_>, key: &LaneKey) {
        let Some(flying) = self.reports.lanes.get(key).and_then(|l| l.flying.as_ref()) else { return };
        let (payload, id) = (flying.payload.clone(), Some(flying.id.clone()));
        let subject = subjects::done(key.0, &key.1, &self.member.id);
        self.ask(ctx, Asked::Report(key.clone()), UNCONFIRMED, |token| Op::Publish {
            token,
            subject,
            id,
            expected: None,
            payload,
        });
    }

    /// A report is confirmed: what it tells is settled in its messages.
    pub(super) fn reported(&mut self, ctx: &mut Ctx<'_>, mood: Mood, key: &LaneKey) {
        let Some(flying) = self.reports.lanes.get_mut(key).and_then(|l| l.flying.take()) else { return };
        for done in flying.rows {
            self.alone_over(ctx, done.id);
            self.settle(ctx, done.held, 1);
        }
        self.next_report(ctx, key);
        self.start_waiting(ctx, mood);
        self.end_if_drained(ctx);
    }
}
