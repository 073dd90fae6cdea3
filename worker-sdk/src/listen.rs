//! Listening: what reaches an instance beside its inbox. Owns the four subscriptions: replies, progress, signals,
//! revocations.
//!
//! The rule it keeps: a reply is confirmed only after it was handed to those who wait for it.

use std::sync::Arc;

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{SelectAll, select_all};
use governance::{DispatchId, Timestamp};
use protocol::FrameError;
use protocol::completion::{self, Replies};
use protocol::control::{Progress, Revoke, Signal};
use protocol::subjects;

use crate::clock;
use crate::core::{Core, DEADLINE_NOTE};
use crate::error::{Error, ErrorKind};
use crate::reply::Reply;

/// Subscribes to all that concerns an instance.
///
/// # Errors
/// When the connection is closed.
pub(crate) async fn subscribe(core: &Core) -> Result<SelectAll<Subscriber>, Error> {
    let subjects = [
        subjects::reply(&core.name, core.instance),
        subjects::progress(&core.name, core.instance),
        subjects::signal(&core.name),
        subjects::revoke(&core.name),
    ];
    let mut subscribers = Vec::with_capacity(subjects.len());
    for subject in subjects {
        let subscriber = core.client.subscribe(subject).await;
        subscribers.push(
            subscriber.map_err(|e| Error::caused(ErrorKind::Connection, "the connection is closed", e))?,
        );
    }
    Ok(select_all(subscribers))
}

/// Hears what comes until the agent ends.
pub(crate) async fn listen(core: Arc<Core>, mut messages: SelectAll<Subscriber>) {
    while let Some(message) = messages.next().await {
        let what = message.subject.split('.').nth(1).unwrap_or_default();
        let result = match what {
            "reply" => on_reply(&core, &message).await,
            "progress" => on_progress(&core, &message.payload),
            "signal" => on_signal(&core, &message.payload),
            "revoke" => on_revoke(&core, &message.payload),
            _ => Ok(()),
        };
        if let Err(error) = result {
            tracing::warn!(subject = %message.subject, %error, "a message cannot be read");
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("not a frame of replies")]
    Frame(#[from] FrameError),
    #[error("not the JSON that belongs there: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{0}")]
    Id(#[from] governance::names::IdError),
}

async fn on_reply(core: &Core, message: &Message) -> Result<(), Unreadable> {
    let replies = Replies::parse(&message.payload)?;
    for row in 0..replies.len() {
        hand_over(core, &message.payload, &replies.row(row));
    }
    if let Some(confirm) = &message.reply
        && let Err(error) = core.client.publish(confirm.clone(), Bytes::new()).await
    {
        tracing::debug!(%error, "replies unconfirmed; they come again");
    }
    Ok(())
}

/// Hands a row of replies to those who wait. Nobody waits for what came a second time, or whose caller has gone.
fn hand_over(core: &Core, message: &Bytes, row: &completion::Reply<'_>) {
    if row.first.instance != core.instance {
        return;
    }
    for offset in 0..row.count {
        let id = DispatchId { slot: row.first.slot + offset, ..row.first };
        let Some(waiter) = core.waiters.take(id.sequence, id.slot) else { continue };
        let micros = |us: u32| std::time::Duration::from_micros(us.into());
        let reply = Reply {
            id,
            outcome: row.outcome,
            reason: row.reason,
            target: row.target.to_owned(),
            lane: micros(row.lane_us),
            inbox: micros(row.inbox_us),
            ran: micros(row.ran_us),
            payload: message.slice_ref(row.payload),
            content_type: row.content_type.to_owned(),
        };
        // The caller may have gone.
        drop(waiter.reply.send(reply.into_result()));
    }
}

fn on_progress(core: &Core, payload: &[u8]) -> Result<(), Unreadable> {
    let progress: Progress = serde_json::from_slice(payload)?;
    let id: DispatchId = progress.id.parse()?;
    if let Some(deadline) = progress.note.get(DEADLINE_NOTE).and_then(serde_json::Value::as_u64) {
        core.waiters.extend(id.sequence, clock::until(Timestamp(deadline)));
    } else {
        core.waiters.note(id.sequence, id.slot, progress.note);
    }
    Ok(())
}

fn on_signal(core: &Core, payload: &[u8]) -> Result<(), Unreadable> {
    let signal: Signal = serde_json::from_slice(payload)?;
    tracing::debug!(agent = %core.name, ?signal, "signal");
    core.signals.hear(signal);
    Ok(())
}

fn on_revoke(core: &Core, payload: &[u8]) -> Result<(), Unreadable> {
    let revoke: Revoke = serde_json::from_slice(payload)?;
    core.ledger.revoke(revoke.first.parse()?, revoke.count);
    Ok(())
}
