//! The I/O of a home: publishes, appends, replies, dead letters, levels and questions, each until it is answered or given up.
//!
//! Owns the retries, as the coordinator's tasks do; interprets nothing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use governance::{AgentId, AgentIx, Ask, Grant, Timestamp};
use home::{Input, Publish, Write};
use protocol::control::DeadLetter;
use protocol::know::{GrantAnswer, GrantQuestion};
use protocol::subjects;

use super::port::{Lost, PATIENCE, Place, Port};
use super::taking::append;
use crate::broker::{Answer, Expected, Op};
use crate::redis;

/// The pause before an unconfirmed publish is tried again.
const RETRY: Duration = Duration::from_millis(50);
/// The pause before a full inbox is tried again.
const RETRY_FULL: Duration = Duration::from_millis(100);
/// How long the receiver of a reply may take to confirm it.
const CONFIRM: Duration = Duration::from_secs(2);
/// How often a reply is tried.
const REPLY_TRIES: usize = 3;
/// How long a target's home may take to answer.
const GRANT: Duration = Duration::from_millis(250);

/// Publishes until the message is stored or the fence refuses it.
pub(super) async fn publish(port: Port, place: Place, channel: usize, p: Publish) -> Input {
    let mut was_full = false;
    loop {
        let (subject, id, payload) = (p.subject.clone(), Some(p.message_id.clone()), p.payload.clone());
        let expected = Some(Expected { subject: p.fence.subject.clone(), sequence: p.fence.sequence });
        let op = |token| Op::Publish { token, subject, id, expected, payload };
        match port.broker(channel, PATIENCE, op).await {
            Ok(Answer::Stored { .. }) => {
                return Input::Published { handle: p.handle, target: p.target, was_full };
            }
            Ok(Answer::Fenced) => return Input::Deposed("an inbox stream refused the fence".to_owned()),
            Ok(Answer::Full) => {
                if !was_full {
                    port.tell(place, Input::InboxFull(p.target));
                }
                was_full = true;
                port.sleep(RETRY_FULL).await;
            }
            Ok(_) | Err(Lost) => port.sleep(RETRY).await,
        }
    }
}

/// Writes to the audit ledger.
pub(super) async fn write(port: Port, shard: u8, write: Write) -> Option<Input> {
    match write {
        Write::Append { expected, new, block } => {
            Some(Input::Appended(append(&port, shard, expected, new, &block).await))
        }
        Write::Snapshot { epoch, snapshot } => {
            // The former snapshot still serves; the next one comes in seconds.
            let op = |token| redis::Op::Snapshot { token, shard, epoch, text: snapshot };
            drop(port.redis(op).await);
            None
        }
    }
}

/// Delivers a reply, or gives it up.
pub(super) async fn reply(port: Port, reply: home::Reply) -> Input {
    for _ in 0..REPLY_TRIES {
        let (subject, payload) = (reply.subject.clone(), reply.payload.clone());
        match port.broker(0, CONFIRM, |token| Op::Ask { token, subject, payload }).await {
            Ok(Answer::NoResponders) => break,
            Ok(_) => return Input::Replied { handle: reply.handle, confirmed: true },
            Err(Lost) => {}
        }
    }
    Input::Replied { handle: reply.handle, confirmed: false }
}

/// Stores a dead letter.
pub(super) async fn dead_letter(
    port: Port,
    letter: DeadLetter,
    id: governance::DispatchId,
    inbox_ack: String,
    done: Option<usize>,
) -> Input {
    let target = AgentId::new(&letter.target).expect("a registered agent has a good name");
    let body: Bytes = serde_json::to_vec(&letter).expect("plain data serialises").into();
    loop {
        let (subject, payload) = (subjects::dlq(&target), body.clone());
        let name = Some(format!("dlq:{id}"));
        let op = |token| Op::Publish { token, subject, id: name, expected: None, payload };
        if let Ok(Answer::Stored { .. }) = port.broker(3, PATIENCE, op).await {
            return Input::DeadLettered { id, inbox_ack, done };
        }
        port.sleep(RETRY_FULL).await;
    }
}

/// What a stored level says about who stored it.
#[derive(serde::Deserialize)]
struct Written {
    epoch: u64,
}

/// Stores a level, unless a later home of the agent has stored one.
pub(super) async fn store_level(port: Port, bucket: &'static str, agent: Arc<str>, epoch: u64, value: Bytes) {
    loop {
        let key = agent.to_string();
        let get = |token| Op::Get { token, bucket, key };
        let Ok(Answer::Entry(entry)) = port.broker(3, PATIENCE, get).await else { return };
        let written = entry.as_ref().and_then(|e| serde_json::from_slice::<Written>(&e.value).ok());
        if written.is_some_and(|w| w.epoch > epoch) {
            return;
        }
        let (key, value, revision) = (agent.to_string(), value.clone(), entry.map_or(0, |e| e.revision));
        let put = |token| Op::Put { token, bucket, key, value, revision: Some(revision) };
        match port.broker(3, PATIENCE, put).await {
            // Somebody wrote in between: look again who it was.
            Ok(Answer::Refused(_)) => {}
            Ok(_) | Err(Lost) => return,
        }
    }
}

/// Asks a target's home for a share of what it limits. No answer in time is an answer too.
pub(super) async fn ask_grant(
    port: Port,
    target: AgentIx,
    name: Arc<str>,
    ask: Ask,
    asked: Timestamp,
) -> Input {
    let payload: Bytes = serde_json::to_vec(&GrantQuestion::from(ask)).expect("plain data serialises").into();
    let subject = subjects::grant(&name);
    let answer = port.broker(0, GRANT, |token| Op::Ask { token, subject, payload }).await;
    let grant = match answer {
        Ok(Answer::Reply(bytes)) => serde_json::from_slice::<GrantAnswer>(&bytes).ok().map(Grant::from),
        Ok(_) | Err(Lost) => None,
    };
    Input::GrantAnswered { target, ask, asked, grant }
}
