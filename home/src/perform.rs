//! Effects: the one table that maps what the rules want to what is staged or sent. No policy in it.

use std::sync::Arc;

use bytes::Bytes;
use governance::{
    Admission, AgentIx, BreakerChange, Decision, DispatchId, Effect, Ending, Kind, Outcome, Reason,
    ScaleChange, Timestamp,
};
use protocol::audit::{DecisionRow, Note};
use protocol::control::{Alert, Breaker, Revoke, Scale, Signal};
use protocol::envelope::{LaneEnvelope, column};
use protocol::inbox::{self, Parcel, Stamp};
use protocol::{json, lineage, subjects};

use crate::complete::Reported;
use crate::explain;
use crate::home::{Home, OpenShell};
use crate::out::Side;
use crate::settle::{Origin, OwnedReply};
use crate::shard::{Packing, Stage};

/// An inbox message is closed when it holds this many bytes: large enough to amortise the broker's cost per message.
const ENVELOPE_BYTES_MAX: usize = 64 * 1024;

impl Home {
    pub(crate) fn perform(&mut self, now: Timestamp, effect: Effect, reported: Option<&Reported<'_>>) {
        match effect {
            Effect::Pull { lane, messages } => self.pull_lane(lane, messages),
            Effect::Admit(admission) => self.admit(now, &admission),
            Effect::End(ending) => self.end(now, &ending),
            Effect::Duplicate { message } => self.duplicate(message.ix()),
            Effect::Close(closing) => self.close(now, &closing, reported),
            Effect::Forget { open } => drop(self.opens.clear(open.ix())),
            Effect::Late { row, id, count } => self.late(now, row, id, count, reported),
            Effect::Retry { row, id, attempt, delay, .. } => {
                self.retry(now, row, id, attempt, delay, reported)
            }
            Effect::DeadLetter { row, open, id, attempts } => {
                self.dead_letter(now, row, open.ix(), id, attempts, reported)
            }
            Effect::Runner { open, id, loss } => self.runner_changed(open, id, loss),
            Effect::Condemn { open, id, lost } => self.condemn(now, open, id, lost),
            Effect::Permit(permit) => self.permitted(permit),
            Effect::Revoke { target, first, count } => self.revoke(target, first, count),
            Effect::Extended { deadline, .. } => self.extended = Some(deadline),
            Effect::SlowDown { source, rate_per_s, queued, wait } => {
                let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                self.signal(source, &Signal::SlowDown { rate_per_s, queued, wait_ms });
            }
            Effect::Resume { source } => self.signal(source, &Signal::Resume),
            Effect::Breaker(change) => self.breaker_changed(now, change),
            Effect::Ping { target } => self.ping(target),
            Effect::Scale(change) => self.scale_changed(now, change),
            Effect::ScaleHeld { agent, instances, reason, depth, utilisation_bp } => {
                self.scale_held(now, (agent, instances), reason, (depth, utilisation_bp));
            }
            Effect::InstanceLost { agent, instance } => {
                let text = format!("instance {instance} has been silent for too long");
                self.note(
                    now,
                    "instance_lost",
                    agent,
                    &serde_json::json!({"instance": instance.to_string()}),
                );
                self.alert(now, "instance_lost", Some(agent), text, &[]);
            }
            Effect::Deferral { on, own, p0_delay } => self.deferral_changed(now, on, own, p0_delay),
            Effect::Report { target, report } => self.report(target, report),
            Effect::ProbeEnded { target, succeeded } => self.probe_ended(target, succeeded),
            Effect::P0Suffers { delay } => self.p0_suffers(delay),
            Effect::Granted(grant) => self.granted = Some(grant),
            Effect::AskGrant { target, ask } => {
                let name = self.name(target);
                self.out.side.push_back(Side::AskGrant { target, name, ask, asked: now });
            }
            Effect::Demoted { message, first, count, source } => {
                self.meter.demoted(u32::from(count));
                let instance = self.held.get(message.ix()).map(|h| h.instance.to_string());
                let body = serde_json::json!({"instance": instance, "first_slot": first, "count": count});
                self.note(now, "demotion", source, &body);
            }
        }
    }

    /// A decision about slots of a held message, with what is the same for all decisions filled in.
    pub(crate) fn decision_row(
        &self,
        at: usize,
        now: Timestamp,
        (first, count, copy): (u16, u16, u16),
    ) -> DecisionRow {
        let held = self.held.get(at).expect("the rules name only messages that are held");
        let none: Arc<str> = "".into();
        let envelope = LaneEnvelope::parse(&held.bytes).ok();
        let id = DispatchId {
            instance: held.instance,
            sequence: envelope.as_ref().map_or(0, |e| e.sequence),
            slot: first,
            copy,
        };
        let above = envelope.as_ref().and_then(|e| lineage::Lineage::decode(e.lineage(first.into())));
        let conversation = envelope.as_ref().map_or("", |e| e.text(column::CONVERSATION, first.into()));
        DecisionRow {
            first: id,
            count,
            lane_sequence: held.stream_sequence,
            lane: held.lane.priority,
            class: held.lane.priority,
            accepted: held.accepted,
            decided: now,
            source: self.name(held.lane.source),
            target: Arc::clone(&held.named),
            capability: none,
            kind: Kind::Request,
            decision: Decision::Rejected,
            reason: Reason::Ok,
            outcome: None,
            deadline: Timestamp::MAX,
            serves_person: false,
            root: above
                .as_ref()
                .map(|(l, _)| l.root)
                .or_else(|| (copy != 0).then_some(DispatchId { copy: 0, ..id })),
            parent: above
                .as_ref()
                .map(|(l, _)| l.parent)
                .or_else(|| (copy != 0).then_some(DispatchId { copy: 0, ..id })),
            conversation: conversation.into(),
            order_key: envelope
                .as_ref()
                .map_or(0, |e| crate::arrive::key64(e.text(column::ORDER_KEY, first.into()))),
            envelope: None,
            hashes: Vec::new(),
            reply_token: Arc::clone(&held.reply_token),
        }
    }

    pub(crate) fn name(&self, agent: AgentIx) -> Arc<str> {
        self.agents.get(&agent).map_or_else(|| "".into(), |a| Arc::clone(&a.name))
    }

    fn admit(&mut self, now: Timestamp, a: &Admission) {
        let at = a.message.ix();
        let Some(held) = self.held.get(at) else { return };
        let bytes = held.bytes.clone();
        let envelope = LaneEnvelope::parse(&bytes).expect("parsed when it arrived");
        let callee: Arc<str> = callee(&envelope, a.first.into()).into();
        self.opens.put(
            a.open.ix(),
            OpenShell {
                source: a.source,
                target: a.target,
                capability: Arc::clone(&callee),
                kind: a.kind,
                class: a.class,
                lane: held.lane.priority,
                accepted: held.accepted,
                admitted: now,
                reason: a.reason,
                reply_token: Arc::clone(&held.reply_token),
            },
        );
        self.meter.admitted(a.class, a.reason, u32::from(a.count), now.since(held.accepted));
        self.in_window += u32::from(a.count);
        self.admitted_in.entry(held.lane).or_default().add(now, a.count.into());
        let most = a.pack_max.max(1);
        let mut first = a.first;
        let end = u32::from(a.first) + u32::from(a.count);
        while u32::from(first) < end {
            let count = (end - u32::from(first)).min(most) as u16;
            let part = Admission { first, count, ..*a };
            self.admit_part(now, &part, &envelope, &callee, most);
            first = first.wrapping_add(count);
        }
        if a.copy == 0 {
            self.decided(at, u32::from(a.count));
        }
    }

    /// Packs slots that go into one inbox message, and records them: one row for neighbours of one tree and conversation.
    fn admit_part(
        &mut self,
        now: Timestamp,
        a: &Admission,
        lane: &LaneEnvelope<'_>,
        callee: &Arc<str>,
        most: u32,
    ) {
        let at = a.message.ix();
        let target = self.agents[&a.target].clone();
        let rows = usize::from(a.first)..usize::from(a.first) + usize::from(a.count);
        let template = DecisionRow {
            class: a.class,
            target: Arc::clone(&target.name),
            capability: Arc::clone(callee),
            kind: a.kind,
            decision: Decision::Admitted,
            reason: a.reason,
            deadline: a.deadline,
            serves_person: a.serves_person,
            ..self.decision_row(at, now, (a.first, a.count, a.copy))
        };
        let parcel = parcel(&self.key, lane, rows.clone(), &template);
        let stage = self.shard.stage();
        let envelope = place(stage, at, a, parcel, (&target.name, target.json), most);
        for mut row in split(lane, rows, &template) {
            row.envelope = Some(envelope);
            let slots = usize::from(row.first.slot)..usize::from(row.first.slot) + usize::from(row.count);
            row.hashes = slots.map(|slot| self.key.hash(lane.payload(slot))).collect();
            stage.decisions.push(row);
        }
        stage.messages.push(at);
        if let Some(held) = self.held.get_mut(at) {
            held.pending += 1;
        }
    }

    fn end(&mut self, now: Timestamp, e: &Ending) {
        let at = e.message.ix();
        let Some(held) = self.held.get(at) else { return };
        let bytes = held.bytes.clone();
        let (source, instance, accepted) = (held.lane.source, held.instance, held.accepted);
        let envelope = LaneEnvelope::parse(&bytes).expect("parsed when it arrived");
        let callee: Arc<str> = callee(&envelope, e.first.into()).into();
        let rows = usize::from(e.first)..usize::from(e.first) + usize::from(e.count);
        let template = DecisionRow {
            class: e.class,
            target: e.target.map_or_else(|| Arc::clone(&held.named), |t| self.name(t)),
            capability: Arc::clone(&callee),
            kind: e.kind,
            decision: decision(e),
            reason: e.reason,
            outcome: Some(e.outcome),
            ..self.decision_row(at, now, (e.first, e.count, e.copy))
        };
        self.meter.ended(e.reason, e.class, u32::from(e.count));
        let reply = (e.kind == Kind::Request).then(|| {
            let text = e.fallback.as_deref().map_or_else(
                || explain::refusal(e.reason, &template.source, &template.target, &callee),
                ToOwned::to_owned,
            );
            OwnedReply {
                source,
                instance,
                token: Arc::clone(&template.reply_token),
                first: template.first,
                count: e.count,
                outcome: e.outcome,
                reason: e.reason,
                target: Arc::clone(&template.target),
                lane_us: micros(now, accepted),
                inbox_us: 0,
                ran_us: 0,
                payload: Bytes::from(text),
                content_type: String::new(),
                origin: Origin::Held(at),
            }
        });
        let stage = self.shard.stage();
        for mut row in split(&envelope, rows, &template) {
            let slots = usize::from(row.first.slot)..usize::from(row.first.slot) + usize::from(row.count);
            row.hashes = slots.map(|slot| self.key.hash(envelope.payload(slot))).collect();
            stage.decisions.push(row);
        }
        stage.messages.push(at);
        stage.replies.extend(reply);
        if let Some(held) = self.held.get_mut(at) {
            held.pending += 1;
        }
        if e.copy == 0 {
            self.decided(at, u32::from(e.count));
        }
    }

    /// Counts slots of a held message about which is decided; the caller has made the message pending.
    fn decided(&mut self, at: usize, count: u32) {
        if let Some(held) = self.held.get_mut(at) {
            held.decided += count;
        }
    }

    fn duplicate(&mut self, at: usize) {
        if let Some(held) = self.held.get_mut(at) {
            held.decided = held.rows;
            self.meter.duplicate();
        }
    }

    fn revoke(&mut self, target: AgentIx, first: DispatchId, count: u16) {
        if let Some(agent) = self.agents.get(&target) {
            let subject = subjects::revoke(&agent.id);
            self.tell(subject, &Revoke { first: first.to_string(), count });
        }
    }

    fn signal(&mut self, source: AgentIx, signal: &Signal) {
        if let Some(agent) = self.agents.get(&source) {
            let subject = subjects::signal(&agent.id);
            self.tell(subject, signal);
        }
    }

    /// A tripped target shows that it lives by its next heartbeat, which this asks for at once.
    fn ping(&mut self, target: AgentIx) {
        if let Some(agent) = self.agents.get(&target) {
            let subject = subjects::ping(&agent.id);
            self.out.side.push_back(Side::Tell { subject, payload: Bytes::new() });
        }
    }

    fn breaker_changed(&mut self, now: Timestamp, c: BreakerChange) {
        let Some(agent) = self.agents.get(&c.target).cloned() else { return };
        let body = serde_json::json!({
            "from": c.from.name(), "to": c.to.name(), "reason": c.reason.name(),
            "samples": c.samples, "errors": c.errors, "over": c.over,
        });
        self.note(now, "breaker", c.target, &body);
        self.meter.breaker(&agent.name, c.from, c.to);
        let breaker = Breaker { state: c.to, reason: c.reason, since_ns: now.0, epoch: self.epoch };
        self.shard.stage().side.push(Side::StoreBreaker { agent: Arc::clone(&agent.name), breaker });
        let text = format!("the breaker of {} went from {} to {}: {}", agent.name, c.from, c.to, c.reason);
        let figures = [("samples", c.samples), ("errors", c.errors), ("over", c.over)];
        self.alert(now, "breaker", Some(c.target), text, &figures);
    }

    fn scale_changed(&mut self, now: Timestamp, c: ScaleChange) {
        let body = serde_json::json!({
            "from": c.from, "to": c.to, "reason": c.reason.name(),
            "depth": c.depth, "utilisation_bp": c.utilisation_bp,
        });
        self.note(now, "scale", c.agent, &body);
        let scale = Scale { wanted: c.to, reason: c.reason, epoch: self.epoch, at_ns: now.0 };
        let agent = self.name(c.agent);
        self.shard.stage().side.push(Side::StoreScale { agent, scale });
        let text = format!(
            "{} should have {} instances instead of {}: {}",
            self.name(c.agent),
            c.to,
            c.from,
            c.reason
        );
        let figures =
            [("from", c.from), ("to", c.to), ("depth", c.depth), ("utilisation_bp", c.utilisation_bp)];
        self.alert(now, "scale", Some(c.agent), text, &figures);
    }

    /// A step up that was due is not taken: more instances would not help.
    fn scale_held(
        &mut self,
        now: Timestamp,
        (agent, instances): (AgentIx, u32),
        reason: Reason,
        (depth, utilisation_bp): (u32, u32),
    ) {
        let body = serde_json::json!({
            "instances": instances, "reason": reason.name(), "depth": depth, "utilisation_bp": utilisation_bp,
        });
        self.note(now, "scale_held", agent, &body);
        let text = format!("{} stays at {instances} instances: {reason}", self.name(agent));
        let figures = [("instances", instances), ("depth", depth), ("utilisation_bp", utilisation_bp)];
        self.alert(now, "scale_held", Some(agent), text, &figures);
    }

    /// P3 is deferred in this shard, or no longer; recorded where the cause was seen, and only there.
    fn deferral_changed(&mut self, now: Timestamp, on: bool, own: bool, p0_delay: std::time::Duration) {
        self.meter.deferral(self.number, on);
        if !own {
            return;
        }
        let ms = u32::try_from(p0_delay.as_millis()).unwrap_or(u32::MAX);
        let text = if on { "P3 is deferred to protect P0" } else { "P3 is no longer deferred" };
        self.mesh_note(now, "deferral", &serde_json::json!({"on": on, "p0_delay_ms": ms}));
        self.alert(now, "deferral", None, text.to_owned(), &[("p0_delay_ms", ms)]);
    }

    /// Records something about an agent.
    pub(crate) fn note(&mut self, now: Timestamp, kind: &str, agent: AgentIx, body: &serde_json::Value) {
        let Some(shell) = self.agents.get(&agent) else { return };
        let note =
            Note { kind: kind.into(), at: now, agent: Arc::clone(&shell.name), body: body.to_string() };
        self.shard.stage().notes.push(note);
    }

    /// Records something about the shard as a whole.
    pub(crate) fn mesh_note(&mut self, now: Timestamp, kind: &str, body: &serde_json::Value) {
        let note = Note { kind: kind.into(), at: now, agent: "".into(), body: body.to_string() };
        self.shard.stage().notes.push(note);
    }

    /// Tells people, once what it is about is recorded.
    pub(crate) fn alert(
        &mut self,
        now: Timestamp,
        kind: &str,
        agent: Option<AgentIx>,
        text: String,
        figures: &[(&str, u32)],
    ) {
        let alert = Alert {
            kind: kind.to_owned(),
            at: protocol::text::rfc3339(now),
            agent: agent.map(|a| self.name(a).to_string()).unwrap_or_default(),
            text,
            figures: figures.iter().map(|(k, v)| ((*k).to_owned(), u64::from(*v))).collect(),
        };
        self.shard.stage().alerts.push(alert);
    }
}

pub(crate) fn micros(now: Timestamp, earlier: Timestamp) -> u32 {
    u32::try_from(now.since(earlier).as_micros()).unwrap_or(u32::MAX)
}

fn callee<'a>(envelope: &LaneEnvelope<'a>, row: usize) -> &'a str {
    let capability = envelope.text(column::CAPABILITY, row);
    if capability.is_empty() { envelope.text(column::TOPIC, row) } else { capability }
}

const fn decision(e: &Ending) -> Decision {
    match e.outcome {
        Outcome::Success => Decision::FannedOut,
        Outcome::Timeout | Outcome::Cancelled => Decision::Expired,
        Outcome::CircuitBroken if e.fallback.is_some() => Decision::Fallback,
        Outcome::CircuitBroken | Outcome::Rejected | Outcome::Failure => Decision::Rejected,
    }
}

/// Rows of the audit for slots of one decision: neighbours of one tree and conversation share a row.
fn split(lane: &LaneEnvelope<'_>, rows: std::ops::Range<usize>, template: &DecisionRow) -> Vec<DecisionRow> {
    if lane.frame.is_same(column::LINEAGE) && lane.frame.is_same(column::CONVERSATION) {
        return vec![template.clone()];
    }
    let key = |row: usize| (lane.lineage(row), lane.text(column::CONVERSATION, row));
    let mut out: Vec<DecisionRow> = Vec::new();
    for row in rows {
        match out.last_mut() {
            Some(last) if key(last.first.slot.into()) == key(row) => last.count += 1,
            Some(_) | None => {
                let above = lineage::Lineage::decode(lane.lineage(row)).map(|(l, _)| (l.root, l.parent));
                out.push(DecisionRow {
                    first: DispatchId { slot: row as u16, ..template.first },
                    count: 1,
                    root: above.map(|a| a.0).or_else(|| copy_of(template)),
                    parent: above.map(|a| a.1).or_else(|| copy_of(template)),
                    conversation: lane.text(column::CONVERSATION, row).into(),
                    ..template.clone()
                });
            }
        }
    }
    out
}

/// The dispatch of which a topic copy without a parent is one.
fn copy_of(template: &DecisionRow) -> Option<DispatchId> {
    (template.first.copy != 0).then_some(DispatchId { copy: 0, ..template.first })
}

/// The bytes that slots travel in: the source's columns with the home's stamp.
pub(crate) fn parcel(
    key: &protocol::AuditKey,
    lane: &LaneEnvelope<'_>,
    rows: std::ops::Range<usize>,
    decided: &DecisionRow,
) -> Vec<u8> {
    let deadlines = vec![decided.deadline; rows.len()];
    let seals = seals(key, lane, rows.clone(), decided);
    inbox::parcel(
        lane,
        rows,
        &Stamp {
            source: &decided.source,
            copy: decided.first.copy,
            lane: decided.lane,
            accepted: decided.accepted,
            admitted: decided.decided,
            reason: decided.reason,
            deadlines: &deadlines,
            serves_person: decided.serves_person,
            seals: &seals,
        },
    )
}

/// The seals of what the children of slots inherit.
fn seals(
    key: &protocol::AuditKey,
    lane: &LaneEnvelope<'_>,
    rows: std::ops::Range<usize>,
    decided: &DecisionRow,
) -> Vec<u64> {
    let children = |row: usize| {
        let id = DispatchId { slot: row as u16, ..decided.first };
        let (above, callee) = (lane.lineage(row), callee(lane, row));
        inbox::child_lineage(above, id, callee, &decided.target, decided.deadline, decided.serves_person)
    };
    if [column::LINEAGE, column::CAPABILITY, column::TOPIC].iter().all(|id| lane.frame.is_same(*id)) {
        // A lineage that cannot be read counts as none, here as in what the target makes of it.
        let is_root = lineage::Lineage::decode(lane.lineage(rows.start)).is_none();
        return inbox::child_seals(&children(rows.start), rows.len(), is_root, key, &decided.target);
    }
    rows.map(|row| children(row).seal(key, &decided.target)).collect()
}

/// Puts a parcel into an inbox message of the block being staged, and gives that message's place in the block.
fn place(
    stage: &mut Stage,
    at: usize,
    a: &Admission,
    parcel: Vec<u8>,
    (target, json): (&str, bool),
    most: u32,
) -> u16 {
    let (key, count) = ((a.target, a.class), u32::from(a.count));
    let open = stage.packing.get(&key).copied().filter(|ix| {
        let e = &stage.envelopes[*ix];
        !e.json && e.dispatches + count <= most && e.bytes + parcel.len() <= ENVELOPE_BYTES_MAX
    });
    let ix = open.unwrap_or_else(|| {
        stage.envelopes.push(Packing {
            target: a.target,
            class: a.class,
            parcels: Vec::new(),
            dispatches: 0,
            bytes: 0,
            messages: Vec::new(),
            json,
        });
        stage.packing.insert(key, stage.envelopes.len() - 1);
        stage.envelopes.len() - 1
    });
    let envelope = &mut stage.envelopes[ix];
    envelope.dispatches += count;
    envelope.bytes += parcel.len();
    envelope.parcels.push(if json { as_json(&parcel, target) } else { parcel });
    if envelope.messages.last() != Some(&at) {
        envelope.messages.push(at);
    }
    ix as u16
}

/// A parcel of one dispatch as the JSON that foreign agents read.
pub(crate) fn as_json(parcel: &[u8], target: &str) -> Vec<u8> {
    let parcel = Parcel::parse(parcel).expect("written by this process");
    json::inbox(&parcel, 0, target)
}
