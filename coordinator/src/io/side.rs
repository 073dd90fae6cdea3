//! What goes beside dispatches: acknowledgements, signals, stored breakers and orders, dead letters.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{Store, UpdateErrorKind};
use async_nats::{Client, Request};
use broker::{PublishError, Publisher};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use governance::{AgentId, AgentIx, Ask, DispatchId, Timestamp};
use home::{Input, Side, Stored};
use protocol::control::{DeadLetter, Operation};
use protocol::envelope::column;
use protocol::inbox::{self, Parcel};
use protocol::know::{GrantAnswer, GrantQuestion};
use protocol::{json, streams, subjects, text};
use tokio::sync::{mpsc, oneshot};

/// How long a target's home may take to answer; the rules wait no longer either.
const GRANT_TIMEOUT: Duration = Duration::from_millis(250);

/// What the task works with.
#[derive(Debug, Clone)]
pub(crate) struct SideDoor {
    pub(crate) client: Client,
    pub(crate) js: Context,
    pub(crate) publisher: Publisher,
    pub(crate) breakers: Store,
    pub(crate) scales: Store,
    pub(crate) orders: Store,
}

/// Performs what the home hands over; what takes an answer runs beside the rest.
pub(crate) async fn run(
    door: SideDoor,
    mut side: mpsc::Receiver<Side>,
    home: mpsc::Sender<Input>,
) -> anyhow::Result<()> {
    let mut under_way: FuturesUnordered<BoxFuture<'static, Input>> = FuturesUnordered::new();
    loop {
        tokio::select! {
            next = side.recv() => {
                let Some(next) = next else { return Ok(()) };
                match next {
                    Side::Tell { subject, payload } => door.client.publish(subject, payload).await?,
                    Side::Ack(ack) => broker::ack(&door.client, &ack).await?,
                    Side::Nak { ack, delay } => broker::nak(&door.client, &ack, delay).await?,
                    Side::StoreBreaker { agent, breaker } => {
                        if let Err(error) = store_level(&door.breakers, &agent, breaker.epoch, &breaker).await {
                            tracing::warn!(agent = &*agent, %error, "a breaker was not stored");
                        }
                    }
                    Side::StoreScale { agent, scale } => {
                        if let Err(error) = store_level(&door.scales, &agent, scale.epoch, &scale).await {
                            tracing::warn!(agent = &*agent, %error, "a scaling wish was not stored");
                        }
                    }
                    Side::AskGrant { target, name, ask, asked } => {
                        under_way.push(ask_grant(door.client.clone(), target, name, ask, asked).boxed());
                    }
                    Side::StorePause { agent, order } => {
                        if let Err(error) = store_pause(&door.orders, &agent, order).await {
                            tracing::warn!(agent, %error, "an operator's order was not stored");
                        }
                    }
                    Side::Letter { send, sequence, done, respond } => {
                        // An order may take as long as its lane is slow, and is nothing that the home waits for.
                        tokio::spawn(order_letter(door.clone(), send, sequence, done, respond));
                    }
                    Side::DeadLetter { letter, id, inbox_ack, done } => {
                        under_way.push(dead_letter(door.clone(), *letter, id, inbox_ack, done).boxed());
                    }
                }
            }
            Some(input) = under_way.next(), if !under_way.is_empty() => {
                // A home that has ended needs no answer; what it still wants sent is sent all the same.
                home.send(input).await.ok();
            }
        }
    }
}

/// What a stored level says about who stored it.
#[derive(serde::Deserialize)]
struct Written {
    epoch: u64,
}

/// Stores a level, unless a later home of the agent has stored one: what a deposed home still wants changes nothing.
async fn store_level<T: serde::Serialize + Sync>(
    levels: &Store,
    agent: &str,
    epoch: u64,
    level: &T,
) -> anyhow::Result<()> {
    let body = Bytes::from(serde_json::to_vec(level)?);
    loop {
        let entry = levels.entry(agent).await?;
        let later = entry
            .as_ref()
            .and_then(|e| serde_json::from_slice::<Written>(&e.value).ok())
            .is_some_and(|written| written.epoch > epoch);
        if later {
            return Ok(());
        }
        match levels.update(agent, body.clone(), entry.map_or(0, |e| e.revision)).await {
            Ok(_) => return Ok(()),
            // Somebody wrote in between: look again who it was.
            Err(e) if e.kind() == UpdateErrorKind::WrongLastRevision => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Asks a target's home for a share of what it limits. No answer in time is an answer too.
async fn ask_grant(client: Client, target: AgentIx, name: Arc<str>, ask: Ask, asked: Timestamp) -> Input {
    let question = serde_json::to_vec(&GrantQuestion::from(ask)).expect("plain data serialises");
    let request = Request::new().payload(question.into()).timeout(Some(GRANT_TIMEOUT));
    let answer = client.send_request(subjects::grant(&name), request).await.ok();
    let grant = answer
        .and_then(|answer| serde_json::from_slice::<GrantAnswer>(&answer.payload).ok())
        .map(governance::Grant::from);
    Input::GrantAnswered { target, ask, asked, grant }
}

/// Keeps an operator's order for the next home, until it is taken back.
async fn store_pause(orders: &Store, agent: &str, order: Option<Operation>) -> anyhow::Result<()> {
    let key = streams::pause_key(agent);
    match order {
        Some(order) => drop(orders.put(key, serde_json::to_vec(&order)?.into()).await?),
        None => orders.delete(key).await?,
    }
    Ok(())
}

/// Copies a dispatch from its inbox message to the dead-letter queue, trying until it is stored.
async fn dead_letter(
    door: SideDoor,
    mut letter: DeadLetter,
    id: DispatchId,
    inbox_ack: String,
    done: Option<usize>,
) -> Input {
    if let Some(message) = inbox_message(&door.js, &inbox_ack).await {
        fill(&mut letter, id, &message);
    }
    let target = AgentId::new(&letter.target).expect("a registered agent has a good name");
    let mut body = Bytes::from(serde_json::to_vec(&letter).expect("plain data serialises"));
    let message_id = format!("dlq:{id}");
    loop {
        let stored =
            door.publisher.publish(subjects::dlq(&target), Some(&message_id), None, body.clone()).await.await;
        match stored {
            Ok(_) => return Input::DeadLettered { id, inbox_ack, done },
            Err(PublishError::Refused(why)) if !letter.payload_hex.is_empty() => {
                // In base 16 a large payload outgrows a message: the letter goes without it, and says so.
                letter.error = format!("{} (the payload was too large to keep: {why})", letter.error);
                letter.payload_hex.clear();
                body = Bytes::from(serde_json::to_vec(&letter).expect("plain data serialises"));
                continue;
            }
            Err(e) => tracing::warn!(%id, error = %e, "a dead letter is not stored yet"),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Sends a letter's dispatch, where it is sent again, and removes the letter.
async fn order_letter(
    door: SideDoor,
    send: Option<Stored>,
    sequence: u64,
    done: serde_json::Value,
    respond: oneshot::Sender<Result<serde_json::Value, String>>,
) {
    let result = async {
        if let Some(Stored { subject, message_id, payload }) = send {
            let sent = door.publisher.publish(subject, Some(&message_id), None, payload).await.await;
            sent.map_err(|e| format!("it was not sent again, and stays: {e}"))?;
        }
        let left =
            |e: &dyn std::fmt::Display| format!("the letter could not be removed; give the order again: {e}");
        let stream = door.js.get_stream_no_info(streams::DLQ).await.map_err(|e| left(&e))?;
        stream.delete_message(sequence).await.map_err(|e| left(&e))?;
        Ok::<_, String>(done)
    };
    // Who gave up waiting finds the letter gone.
    respond.send(result.await).ok();
}

/// The inbox message that an acknowledgement subject names: `$JS.ACK.<stream>.<consumer>.<delivered>.<sequence>…`.
async fn inbox_message(js: &Context, ack: &str) -> Option<Bytes> {
    let tokens: Vec<&str> = ack.split('.').collect();
    let at = if tokens.len() >= 11 { 4 } else { 2 };
    let (stream, sequence) = (tokens.get(at)?, tokens.get(at + 3)?.parse().ok()?);
    let stream = js.get_stream_no_info(*stream).await.ok()?;
    Some(stream.get_raw_message(sequence).await.ok()?.payload)
}

fn fill(letter: &mut DeadLetter, id: DispatchId, message: &Bytes) {
    if json::is_json(message) {
        let Ok(item) = serde_json::from_slice::<serde_json::Value>(message) else { return };
        let text = |name: &str| item.get(name).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        letter.root = text("root");
        letter.topic = text("topic");
        letter.conversation = text("conversation");
        letter.content_type = text("content_type");
        let payload = item.get("payload").map(|p| p.to_string().into_bytes());
        letter.payload_hex = payload.map_or_else(|| text("payload_hex"), |p| text::hex(&p));
        return;
    }
    let Ok(parcels) = inbox::split(message) else { return };
    for bytes in &parcels {
        let Ok(parcel) = Parcel::parse(bytes) else { continue };
        let Some(row) = (0..parcel.frame.rows()).find(|row| parcel.id(*row) == id) else { continue };
        letter.root = parcel.root(row).to_string();
        letter.topic = parcel.text(column::TOPIC, row).to_owned();
        letter.conversation = parcel.text(column::CONVERSATION, row).to_owned();
        letter.content_type = parcel.text(column::CONTENT_TYPE, row).to_owned();
        letter.payload_hex = text::hex(parcel.payload(row));
        return;
    }
}
