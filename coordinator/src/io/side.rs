//! What goes beside dispatches: acknowledgements, signals, stored breakers and orders, dead letters.

use async_nats::Client;
use async_nats::jetstream::Context;
use async_nats::jetstream::kv::Store;
use broker::{PublishError, Publisher};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use governance::{AgentId, DispatchId};
use protocol::control::{DeadLetter, Operation};
use protocol::envelope::column;
use protocol::inbox::{self, Parcel};
use protocol::{json, streams, subjects, text};
use tokio::sync::mpsc;

use crate::home::{Input, Side};

/// What the task works with.
#[derive(Debug, Clone)]
pub(crate) struct SideDoor {
    pub(crate) client: Client,
    pub(crate) js: Context,
    pub(crate) publisher: Publisher,
    pub(crate) breakers: Store,
    pub(crate) orders: Store,
}

/// Performs what the home hands over; what takes an answer runs beside the rest.
pub(crate) async fn run(
    door: SideDoor,
    mut side: mpsc::Receiver<Side>,
    home: mpsc::Sender<Input>,
) -> anyhow::Result<()> {
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            next = side.recv() => {
                let Some(next) = next else { return Ok(()) };
                match next {
                    Side::Tell { subject, payload } => door.client.publish(subject, payload).await?,
                    Side::Ack(ack) => broker::ack(&door.client, &ack).await?,
                    Side::Nak { ack, delay } => broker::nak(&door.client, &ack, delay).await?,
                    Side::StoreBreaker { agent, breaker } => {
                        let body = serde_json::to_vec(&breaker)?;
                        if let Err(e) = door.breakers.put(&*agent, body.into()).await {
                            tracing::warn!(agent = &*agent, error = %e, "a breaker was not stored");
                        }
                    }
                    Side::StorePause { agent, order } => {
                        if let Err(error) = store_pause(&door.orders, &agent, order).await {
                            tracing::warn!(agent, %error, "an operator's order was not stored");
                        }
                    }
                    Side::DeadLetter { letter, id, inbox_ack, done } => {
                        under_way.push(dead_letter(door.clone(), *letter, id, inbox_ack, done));
                    }
                }
            }
            Some(input) = under_way.next(), if !under_way.is_empty() => home.send(input).await?,
        }
    }
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
    done: usize,
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
            Ok(_) => return Input::DeadLettered { inbox_ack, done },
            Err(PublishError::Refused(why)) if !letter.payload_hex.is_empty() => {
                // In base 16 a large payload outgrows a message: the letter goes without it, and says so.
                letter.error = format!("{} (the payload was too large to keep: {why})", letter.error);
                letter.payload_hex.clear();
                body = Bytes::from(serde_json::to_vec(&letter).expect("plain data serialises"));
                continue;
            }
            Err(e) => tracing::warn!(%id, error = %e, "a dead letter is not stored yet"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
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
        letter.topic = parcel.text(column::TOPIC, row).to_owned();
        letter.conversation = parcel.text(column::CONVERSATION, row).to_owned();
        letter.content_type = parcel.text(column::CONTENT_TYPE, row).to_owned();
        letter.payload_hex = text::hex(parcel.payload(row));
        return;
    }
}
