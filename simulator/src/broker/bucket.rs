//! Buckets: keys with revisions, compare-and-set, and everybody told of each change.
//!
//! The rule it keeps: revisions of one bucket only grow, and a change is told after it is stored.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use governance::Timestamp;
use protocol::streams;

use super::{Answer, Broker, Heard};
use crate::net::Actor;

/// How long the bucket of replicas remembers an announcement.
const REPLICA_TTL: Duration = Duration::from_secs(3);

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its bytes.
    pub value: Bytes,
    /// Its revision.
    pub revision: u64,
    /// When it was stored.
    pub at: Timestamp,
}

#[derive(Debug, Default)]
pub(super) struct Bucket {
    entries: BTreeMap<String, Entry>,
    /// The last revision of each key, deleted ones included: what a compare-and-set compares with.
    revisions: BTreeMap<String, u64>,
    last: u64,
}

impl Bucket {
    fn put(&mut self, now: Timestamp, key: &str, value: Bytes, expected: Option<u64>) -> Option<Entry> {
        if expected.is_some_and(|e| e != self.revisions.get(key).copied().unwrap_or(0)) {
            return None;
        }
        self.last += 1;
        let entry = Entry { value, revision: self.last, at: now };
        self.entries.insert(key.to_owned(), entry.clone());
        self.revisions.insert(key.to_owned(), self.last);
        Some(entry)
    }

    fn drop(&mut self, key: &str) {
        self.last += 1;
        self.entries.remove(key);
        self.revisions.insert(key.to_owned(), self.last);
    }
}

impl Broker {
    /// Stores an entry before the run begins, as the operator of the mesh did.
    pub fn provide(&mut self, bucket: &'static str, key: &str, value: Bytes) {
        self.bucket(bucket).put(Timestamp::ZERO, key, value, None);
    }

    /// The entries of a bucket, for looking at them.
    #[must_use]
    pub fn entries(&self, bucket: &'static str) -> Vec<(String, Entry)> {
        self.buckets[bucket].entries.iter().map(|(k, e)| (k.clone(), e.clone())).collect()
    }

    fn bucket(&mut self, name: &'static str) -> &mut Bucket {
        self.buckets.get_mut(name).unwrap_or_else(|| panic!("the mesh has no bucket {name}"))
    }

    pub(super) fn put(
        &mut self,
        now: Timestamp,
        bucket: &'static str,
        key: &str,
        value: Bytes,
        revision: Option<u64>,
    ) -> Answer {
        let Some(entry) = self.bucket(bucket).put(now, key, value, revision) else {
            return Answer::Refused("another revision is the last");
        };
        self.changed(bucket, key, Some(&entry));
        Answer::Done { revision: entry.revision }
    }

    pub(super) fn drop_entry(&mut self, bucket: &'static str, key: &str) {
        self.bucket(bucket).drop(key);
        self.changed(bucket, key, None);
    }

    pub(super) fn entry(&self, now: Timestamp, bucket: &'static str, key: &str) -> Option<Entry> {
        self.live(now, bucket).into_iter().find(|(k, _)| k == key).map(|(_, entry)| entry)
    }

    pub(super) fn live(&self, now: Timestamp, bucket: &'static str) -> Vec<(String, Entry)> {
        let mut entries = self.entries(bucket);
        if bucket == streams::REPLICAS_BUCKET {
            entries.retain(|(_, e)| now.since(e.at) < REPLICA_TTL);
        }
        entries
    }

    fn changed(&mut self, bucket: &'static str, key: &str, entry: Option<&Entry>) {
        let listeners: Vec<Actor> = self.subscriptions.actors().filter(|a| a.is_replica()).collect();
        for actor in listeners {
            let heard = Heard::Changed { bucket, key: key.to_owned(), entry: entry.cloned() };
            self.out.heard.push((actor, heard));
        }
    }
}
