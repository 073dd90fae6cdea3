//! Replies that nobody confirmed: kept until their instance is heard of again.
//!
//! Owns how many are kept and how long. An instance whose connection was cut lives, and its callers wait; what ended meanwhile
//! is told with its next heartbeat. The rule it keeps: nothing waits for it. The outcome is recorded, the completion
//! acknowledged, and what does not fit is given up; its caller learns that the outcome is unknown.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use governance::{InstanceId, Timestamp};

/// As long as the SDK's callers wait beyond their budget.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// Of one home, its payloads and what they are kept in: a replica that is home of every shard keeps 256 MiB at most.
const BYTES_MAX: usize = 4 << 20;
/// How often it is looked through for what is old.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What a reply takes beside its payload.
const OVERHEAD_BYTES: usize = 128;

/// A reply message for an instance.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) instance: InstanceId,
    pub(crate) subject: String,
    pub(crate) payload: Bytes,
}

impl Message {
    const fn bytes(&self) -> usize {
        self.payload.len() + OVERHEAD_BYTES
    }
}

/// Those of one home.
#[derive(Debug, Default)]
pub(crate) struct Undelivered {
    by_instance: BTreeMap<InstanceId, Vec<(Timestamp, Message)>>,
    bytes: usize,
    looked_at: Timestamp,
}

impl Undelivered {
    /// Keeps a reply, where there is room.
    pub(crate) fn keep(&mut self, now: Timestamp, message: Message) {
        if self.bytes + message.bytes() > BYTES_MAX {
            return;
        }
        self.bytes += message.bytes();
        self.by_instance.entry(message.instance).or_default().push((now, message));
    }

    /// What an instance missed, in the order in which it was sent; it is kept no longer.
    pub(crate) fn take(&mut self, instance: InstanceId) -> Vec<Message> {
        let taken = self.by_instance.remove(&instance).unwrap_or_default();
        self.bytes -= taken.iter().map(|(_, message)| message.bytes()).sum::<usize>();
        taken.into_iter().map(|(_, message)| message).collect()
    }

    /// Forgets what nobody waits for any more.
    pub(crate) fn expire(&mut self, now: Timestamp) {
        if now.since(self.looked_at) < LOOK_EVERY {
            return;
        }
        self.looked_at = now;
        let bytes = &mut self.bytes;
        self.by_instance.retain(|_, kept| {
            kept.retain(|(at, message)| {
                let stays = now.since(*at) < KEPT_FOR;
                *bytes -= if stays { 0 } else { message.bytes() };
                stays
            });
            !kept.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(instance: u64, payload: usize) -> Message {
        Message {
            instance: InstanceId(instance),
            subject: "mesh.reply.a.1".to_owned(),
            payload: vec![0; payload].into(),
        }
    }

    #[test]
    fn an_instance_gets_what_it_missed_once_and_in_order() {
        let mut kept = Undelivered::default();
        for (instance, payload) in [(1, 10), (2, 20), (1, 30)] {
            kept.keep(Timestamp::ZERO, message(instance, payload));
        }
        let lengths: Vec<usize> = kept.take(InstanceId(1)).iter().map(|m| m.payload.len()).collect();
        assert_eq!(lengths, [10, 30]);
        assert!(kept.take(InstanceId(1)).is_empty());
        assert_eq!(kept.bytes, 20 + OVERHEAD_BYTES);
    }

    #[test]
    fn what_is_old_or_too_much_is_given_up_and_leaves_its_room() {
        let mut kept = Undelivered::default();
        kept.keep(Timestamp::ZERO, message(1, BYTES_MAX - OVERHEAD_BYTES));
        kept.keep(Timestamp::ZERO, message(2, 1));
        assert!(kept.take(InstanceId(2)).is_empty(), "there was no room");
        kept.expire(Timestamp::ZERO.after(KEPT_FOR));
        assert_eq!(kept.bytes, 0);
        assert!(kept.take(InstanceId(1)).is_empty());
        kept.keep(Timestamp::ZERO, message(2, 1));
        assert_eq!(kept.take(InstanceId(2)).len(), 1);
    }
}
