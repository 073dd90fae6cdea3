//! Completions: what targets report becomes outcomes. The first recorded outcome wins; a later one is noted as late.

use std::time::Duration;

use bytes::Bytes;
use governance::{
    AgentIx, Closing, Completion, DispatchId, Event, InstanceId, Kind, Outcome, Priority, Reason, Timestamp,
};
use protocol::audit::CompletionRow;
use protocol::completion::{self, Completions};
use protocol::control::DeadLetter;
use protocol::{HASH_BYTES, json, streams, subjects};

use crate::home::{Done, Home, OpenShell};
use crate::input::Delivered;
use crate::out::Side;
use crate::perform::micros;
use crate::settle::{Origin, OwnedReply};

/// The message of completions whose effects are being performed.
#[derive(Debug)]
pub(crate) struct Reported<'a> {
    /// Its place among the held completions.
    at: usize,
    /// Who reports.
    target: AgentIx,
    bytes: &'a Bytes,
    rows: &'a Completions<'a>,
    /// For each row the number of slots before it: the rules count rows by slots.
    starts: &'a [u32],
}

impl Reported<'_> {
    fn row(&self, row: u32) -> completion::Completion<'_> {
        self.rows.row(self.starts.partition_point(|start| *start <= row).saturating_sub(1))
    }
}

impl Home {
    pub(crate) fn complete(&mut self, source: AgentIx, priority: Priority, message: Delivered) {
        let Some(route) = subjects::route(&message.subject) else { return };
        let target = route.target.and_then(|t| self.governor.agent(t));
        let name = self.name(source);
        self.recovered.unread.read(&name, priority);
        let credits = self.done_credits.entry((source, priority)).or_default();
        *credits = credits.saturating_sub(1);
        self.pull_done(source, priority);
        let bytes = if json::is_json(&message.payload) {
            json::to_completions(&message.payload).map(Bytes::from).map_err(|e| e.to_string())
        } else {
            Ok(message.payload.clone())
        };
        let read =
            bytes.and_then(|b| Completions::parse(&b).map(drop).map_err(|e| e.to_string()).map(|()| b));
        let (Ok(bytes), Some(target)) = (&read, target) else {
            let why = read.err().unwrap_or_else(|| "the target is not registered".to_owned());
            tracing::warn!(subject = %message.subject, why, "a completion cannot be read; it is dropped");
            self.meter.malformed_completion();
            self.mesh_note(
                self.now,
                "malformed_completion",
                &serde_json::json!({"subject": message.subject.as_str(), "why": why}),
            );
            return self.out.side.push_back(Side::Ack(message.ack));
        };
        let rows = Completions::parse(bytes).expect("parsed above");
        // The guard of this very call is the one pending.
        let at = self.done.insert(Done { ack: message.ack, pending: 1, source, blocks: Vec::new() });
        let mut starts = Vec::with_capacity(rows.len());
        let mut slots = 0;
        let completions: Vec<Completion> = (0..rows.len())
            .map(|i| {
                let row = rows.row(i);
                let start = slots;
                starts.push(start);
                slots += u32::from(row.count);
                Completion {
                    first: row.first,
                    count: row.count,
                    outcome: row.outcome,
                    reason: row.reason,
                    ran: Duration::from_micros(row.ran_us.into()),
                    attempt: row.attempt,
                    reported: message.published,
                    row: start,
                }
            })
            .collect();
        let reported = Reported { at, target, bytes, rows: &rows, starts: &starts };
        self.apply_reported(Event::Completed { source, target, completions: &completions }, Some(&reported));
        self.release_done(at);
    }

    pub(crate) fn close(&mut self, now: Timestamp, c: &Closing, reported: Option<&Reported<'_>>) {
        let Some(open) = self.opens.get(c.open.ix()).cloned() else { return };
        let row = c.row.zip(reported).map(|(row, reported)| (reported.row(row), reported));
        let (inbox_us, ran_us, attempt) =
            row.as_ref().map_or((0, 0, 0), |(r, _)| (r.inbox_us, r.ran_us, r.attempt));
        let target = self.name(open.target);
        let lane_us = micros(open.admitted, open.accepted);
        let record = CompletionRow {
            first: c.id,
            count: c.count,
            completed: now,
            source: self.name(open.source),
            target: target.clone(),
            outcome: c.outcome,
            reason: c.reason,
            late: false,
            lane_us,
            inbox_us,
            ran_us,
            latency_us: u64::try_from(now.since(open.accepted).as_micros()).unwrap_or(u64::MAX),
            attempt,
            runner: row.as_ref().map_or(InstanceId(0), |(_, r)| r.rows.runner),
            response: row.as_ref().map_or([0; HASH_BYTES], |(r, _)| self.key.hash(r.payload)),
        };
        self.meter.completed(c.outcome, open.class, u32::from(c.count), now.since(open.accepted));
        let stage = self.shard.stage();
        stage.completions.push(record);
        if let Some((_, reported)) = &row {
            stage.dones.push(reported.at);
            self.hold_done(reported.at);
        }
        if open.kind != Kind::Request {
            return;
        }
        let payload = row.as_ref().map_or_else(
            || Bytes::from(crate::explain::refusal(c.reason, "", &target, &open.capability)),
            |(r, reported)| reported.bytes.slice_ref(r.payload),
        );
        let reply = OwnedReply {
            source: open.source,
            instance: c.id.instance,
            token: open.reply_token.clone(),
            first: c.id,
            count: c.count,
            outcome: c.outcome,
            reason: c.reason,
            target,
            lane_us,
            inbox_us,
            ran_us,
            payload,
            content_type: row.as_ref().map(|(r, _)| r.content_type.to_owned()).unwrap_or_default(),
            origin: row.as_ref().map_or(Origin::Nothing, |(_, r)| Origin::Done(r.at)),
        };
        match row {
            // The done lane is durable and replays to the same outcome, so that this reply need not wait for the block.
            Some((_, reported)) => {
                self.hold_done(reported.at);
                self.ready_replies.push(reply);
            }
            None => self.shard.stage().replies.push(reply),
        }
    }

    fn hold_done(&mut self, at: usize) {
        if let Some(done) = self.done.get_mut(at) {
            done.pending += 1;
        }
    }

    /// Completions of what has ended: told once more where a former home recorded just this and perhaps did not get to tell,
    /// otherwise noted as late.
    pub(crate) fn late(
        &mut self,
        now: Timestamp,
        row: u32,
        id: DispatchId,
        count: u16,
        reported: Option<&Reported<'_>>,
    ) {
        let Some(reported) = reported else { return };
        let r = reported.row(row);
        let Some(source) = self.done.get(reported.at).map(|d| d.source) else { return };
        let nth = |offset: u16| DispatchId { slot: id.slot.saturating_add(offset), ..id };
        let mut offset = 0;
        while offset < count {
            let recorded = |o: &u16| self.recovered.closed.get(&nth(*o)) == Some(&r.outcome);
            let untold = recorded(&offset);
            let alike = (offset..count).take_while(|o| recorded(o) == untold).count() as u16;
            if untold {
                for slot in offset..offset + alike {
                    self.recovered.closed.remove(&nth(slot));
                }
                self.tell_again(source, nth(offset), alike, &r, reported);
            } else {
                self.note_late(now, source, nth(offset), alike, &r, reported);
            }
            offset += alike;
        }
    }

    fn tell_again(
        &mut self,
        source: AgentIx,
        first: DispatchId,
        count: u16,
        r: &completion::Completion<'_>,
        reported: &Reported<'_>,
    ) {
        if !matches!(r.outcome, Outcome::Success | Outcome::Failure) || first.instance.is_derived() {
            return;
        }
        self.hold_done(reported.at);
        self.ready_replies.push(OwnedReply {
            source,
            instance: first.instance,
            token: "".into(),
            first,
            count,
            outcome: r.outcome,
            reason: r.reason,
            target: "".into(),
            lane_us: 0,
            inbox_us: r.inbox_us,
            ran_us: r.ran_us,
            payload: reported.bytes.slice_ref(r.payload),
            content_type: r.content_type.to_owned(),
            origin: Origin::Done(reported.at),
        });
    }

    fn note_late(
        &mut self,
        now: Timestamp,
        source: AgentIx,
        first: DispatchId,
        count: u16,
        r: &completion::Completion<'_>,
        reported: &Reported<'_>,
    ) {
        self.meter.late(u32::from(count));
        let record = CompletionRow {
            first,
            count,
            completed: now,
            source: self.name(source),
            target: "".into(),
            outcome: r.outcome,
            reason: r.reason,
            late: true,
            lane_us: 0,
            inbox_us: r.inbox_us,
            ran_us: r.ran_us,
            latency_us: 0,
            attempt: r.attempt,
            runner: reported.rows.runner,
            response: self.key.hash(r.payload),
        };
        let stage = self.shard.stage();
        stage.completions.push(record);
        stage.dones.push(reported.at);
        self.hold_done(reported.at);
    }

    pub(crate) fn retry(
        &mut self,
        now: Timestamp,
        row: u32,
        id: DispatchId,
        attempt: u8,
        delay: Duration,
        reported: Option<&Reported<'_>>,
    ) {
        let Some(reported) = reported else { return };
        let r = reported.row(row);
        if let Some(source) = self.done.get(reported.at).map(|d| d.source) {
            let body = serde_json::json!({
                "id": id.to_string(), "attempt": attempt, "delay_ms": delay.as_millis() as u64,
                "reason": r.reason.name(),
            });
            self.note(now, "retry", source, &body);
        }
        let Some(ack) = self.own_inbox(reported.target, r.inbox_ack) else { return };
        // Failed events of one message are reported together, and it is given back once: a second word that came late would
        // call it from whoever has it by then.
        match self.out.side.back_mut() {
            Some(Side::Nak { ack: before, delay: longest }) if *before == ack => {
                *longest = delay.max(*longest)
            }
            _ => self.out.side.push_back(Side::Nak { ack, delay }),
        }
    }

    /// The acknowledgement subject that a target gave, where it is one of its own inboxes: it may touch no other's messages.
    pub(crate) fn own_inbox(&self, target: AgentIx, ack: &str) -> Option<String> {
        let (stream, consumer) = subjects::acknowledges(ack)?;
        let agent = self.agents.get(&target)?;
        let inbox = Priority::ALL.iter().any(|p| streams::inboxes(*p) == stream);
        (inbox && consumer == streams::inbox_consumer(&agent.id)).then(|| ack.to_owned())
    }

    pub(crate) fn dead_letter(
        &mut self,
        now: Timestamp,
        row: u32,
        open: usize,
        id: DispatchId,
        attempts: u8,
        reported: Option<&Reported<'_>>,
    ) {
        let (Some(reported), Some(open)) = (reported, self.opens.get(open).cloned()) else { return };
        let r = reported.row(row);
        // The text of an error may quote the payload: it stays out of the audit, and is kept with the letter.
        let error = String::from_utf8_lossy(r.payload).into_owned();
        let letter = self.letter(now, &open, id, attempts, (r.reason, error));
        let body = serde_json::json!({"id": id.to_string(), "attempts": attempts, "reason": r.reason.name()});
        self.note(now, "dead_letter", open.target, &body);
        self.alert(now, "dead_letter", Some(open.target), format!("{id} failed {attempts} times"), &[]);
        self.hold_done(reported.at);
        let inbox_ack = self.own_inbox(reported.target, r.inbox_ack).unwrap_or_default();
        self.out.side.push_back(Side::DeadLetter {
            letter: Box::new(letter),
            id,
            inbox_ack,
            done: Some(reported.at),
        });
    }

    /// A letter without what stands in the inbox message.
    pub(crate) fn letter(
        &self,
        now: Timestamp,
        open: &OpenShell,
        id: DispatchId,
        attempts: u8,
        (reason, error): (Reason, String),
    ) -> DeadLetter {
        DeadLetter {
            id: id.to_string(),
            source: self.name(open.source).to_string(),
            target: self.name(open.target).to_string(),
            capability: open.capability.to_string(),
            topic: String::new(),
            priority: open.lane,
            kind: open.kind,
            root: String::new(),
            attempts,
            reason,
            error,
            at: protocol::text::rfc3339(now),
            conversation: String::new(),
            content_type: String::new(),
            payload_hex: String::new(),
        }
    }

    /// A dead letter is stored: where it was reported, its inbox message may come once more, finds nothing open, and goes. Who
    /// asked about one whose runners were lost holds its message, and asks again.
    pub(crate) fn dead_lettered(&mut self, id: DispatchId, inbox_ack: String, done: Option<usize>) {
        let Some(done) = done else { return self.apply(Event::Condemned { id }) };
        if !inbox_ack.is_empty() {
            self.out.side.push_back(Side::Nak { ack: inbox_ack, delay: Duration::ZERO });
        }
        self.release_done(done);
    }
}
