//! Streams: messages by sequence, bounded by subject, filtered by message id, fenced by another subject.
//!
//! The rule it keeps: what was stored stays until it is acknowledged, and a sequence is given once.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use governance::Timestamp;
use protocol::streams::{DUPLICATE_WINDOW, Retention};

use super::consumer::Consumer;
use super::{Answer, Expected, Outcome};

/// A message in a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its subject.
    pub subject: String,
    /// Its bytes.
    pub payload: Bytes,
    /// When it was stored.
    pub at: Timestamp,
    /// Its place.
    pub sequence: u64,
    id: Option<String>,
}

/// One stream.
#[derive(Debug)]
pub struct Stream {
    pub(super) name: String,
    pub(super) messages: BTreeMap<u64, Stored>,
    pub(super) consumers: BTreeMap<String, Consumer>,
    /// Sequences by the filter under which a consumer would read them.
    pub(super) by_filter: HashMap<String, BTreeSet<u64>>,
    by_subject: HashMap<String, BTreeSet<u64>>,
    remembered: HashMap<String, (u64, Timestamp)>,
    pub(super) last: u64,
    per_subject_max: usize,
    is_work_queue: bool,
}

/// The stream that stores a subject.
pub(super) fn name_of(subject: &str) -> String {
    let mut tokens = subject.split('.').skip(1);
    let what = tokens.next().unwrap_or_default();
    let class = || tokens.clone().next().unwrap_or_default().to_uppercase();
    match what {
        "in" => format!("MESH_IN_{}", class()),
        "out" | "fence" => format!("MESH_OUT_{}", class()),
        "done" => protocol::streams::DONE.to_owned(),
        "dlq" => protocol::streams::DLQ.to_owned(),
        other => panic!("no stream stores {other:?}"),
    }
}

/// The filter of the consumer that reads a subject: lanes and completions are read over all their last tokens.
fn filter_of(subject: &str) -> String {
    let lane = subject.starts_with("mesh.in.") || subject.starts_with("mesh.done.");
    match subject.rsplit_once('.').filter(|_| lane) {
        Some((head, _)) => format!("{head}.*"),
        None => subject.to_owned(),
    }
}

impl Stream {
    pub(super) fn new(form: protocol::streams::Stream) -> Self {
        Self {
            name: form.name,
            messages: BTreeMap::new(),
            consumers: BTreeMap::new(),
            by_filter: HashMap::new(),
            by_subject: HashMap::new(),
            remembered: HashMap::new(),
            last: 0,
            per_subject_max: usize::try_from(form.messages_per_subject_max).unwrap_or(usize::MAX),
            is_work_queue: form.retention == Retention::WorkQueue,
        }
    }

    /// How many messages it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The first message from a sequence on that a filter lets through.
    pub(super) fn next_of(&self, filter: &str, from: u64) -> Option<&Stored> {
        let sequence = self.by_filter.get(filter)?.range(from..).next()?;
        self.messages.get(sequence)
    }

    /// All messages, the oldest first.
    pub fn messages(&self) -> impl Iterator<Item = &Stored> {
        self.messages.values()
    }

    /// The last message of a subject.
    #[must_use]
    pub fn last(&self, subject: &str) -> Option<&Stored> {
        let sequence = self.by_subject.get(subject)?.last()?;
        self.messages.get(sequence)
    }

    pub(super) const fn is_work_queue(&self) -> bool {
        self.is_work_queue
    }

    pub(super) fn publish(
        &mut self,
        now: Timestamp,
        subject: &str,
        id: Option<&str>,
        expected: Option<&Expected>,
        payload: Bytes,
        out: &mut Outcome,
    ) -> Answer {
        if let Some((sequence, at)) = id.and_then(|id| self.remembered.get(id))
            && now.since(*at) < DUPLICATE_WINDOW
        {
            // The real broker looks for the message id first: a stale publish of what is stored is a duplicate, not an error.
            return Answer::Stored { sequence: *sequence, duplicate: true };
        }
        if let Some(Expected { subject, sequence }) = expected
            && self.last(subject).map_or(0, |m| m.sequence) != *sequence
        {
            return Answer::Fenced;
        }
        let of_subject = self.by_subject.entry(subject.to_owned()).or_default();
        if of_subject.len() >= self.per_subject_max {
            return Answer::Full;
        }
        self.last += 1;
        let sequence = self.last;
        of_subject.insert(sequence);
        let filter = filter_of(subject);
        self.by_filter.entry(filter.clone()).or_default().insert(sequence);
        if let Some(id) = id {
            self.remembered.insert(id.to_owned(), (sequence, now));
        }
        let id = id.map(str::to_owned);
        self.messages
            .insert(sequence, Stored { subject: subject.to_owned(), payload, at: now, sequence, id });
        self.serve_filter(now, &filter, out);
        Answer::Stored { sequence, duplicate: false }
    }

    /// Takes a message out.
    pub(super) fn remove(&mut self, sequence: u64) {
        let Some(message) = self.messages.remove(&sequence) else { return };
        if let Some(of_subject) = self.by_subject.get_mut(&message.subject) {
            of_subject.remove(&sequence);
        }
        if let Some(of_filter) = self.by_filter.get_mut(&filter_of(&message.subject)) {
            of_filter.remove(&sequence);
        }
    }

    pub(super) fn keep_last(&mut self, subject: &str) {
        let Some(of_subject) = self.by_subject.get(subject) else { return };
        let older: Vec<u64> = of_subject.iter().rev().skip(1).copied().collect();
        older.into_iter().for_each(|sequence| self.remove(sequence));
    }

    /// After a restart only the ids of messages that are still there are known.
    pub(super) fn restart(&mut self, now: Timestamp, out: &mut Outcome) {
        let messages = &self.messages;
        self.remembered.retain(|id, (sequence, _)| {
            messages.get(sequence).is_some_and(|m| m.id.as_deref() == Some(id.as_str()))
        });
        for consumer in self.consumers.values_mut() {
            consumer.drop_all_pulls();
        }
        self.rearm(now, out);
    }
}
