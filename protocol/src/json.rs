//! The JSON door: the same schema as the binary frames, for any NATS client in any language.
//!
//! Owns the translation in both directions, and the check of what comes in; the schemas are in `docs/protocol.md`. The
//! rule it keeps: JSON becomes a binary frame at the door, so that one path governs both.

use std::time::Duration;

use governance::{Capability, DispatchId, InstanceId, Kind, Outcome, Reason, Topic};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::completion::{self, Completion, Reply};
use crate::control::ReplyView;
use crate::envelope::{self, KEY_BYTES_MAX, Outgoing, column};
use crate::inbox::Parcel;
use crate::streams::PAYLOAD_BYTES_MAX;
use crate::subjects::{REPLY_TOKEN_BYTES_MAX, acknowledges, done_between, is_reply_token};
use crate::text::{hex, rfc3339, unhex};

/// The content type of a payload that JSON cannot carry as a value: it travels as base 16 in `payload_hex`.
pub const OCTETS: &str = "application/octet-stream";
/// Dispatches of one JSON message.
pub const DISPATCHES_MAX: usize = 1_024;

/// Why JSON was refused: the field and the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not JSON, or a field is unknown, missing or of the wrong type; serde's words name it.
    #[error("not a message of the mesh: {0}")]
    Shape(String),
    /// A value that is out of range.
    #[error("field `{field}`: {message}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What is wrong and what is allowed.
        message: String,
    },
}

fn field(field: &'static str, message: impl Into<String>) -> JsonError {
    JsonError::Field { field, message: message.into() }
}

/// Whether bytes come from the JSON door.
#[must_use]
pub fn is_json(bytes: &[u8]) -> bool {
    bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{')
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DispatchIn<'a> {
    #[serde(default = "request")]
    kind: Kind,
    #[serde(default)]
    capability: String,
    #[serde(default)]
    topic: String,
    #[serde(default)]
    budget_ms: u32,
    #[serde(default)]
    lineage: String,
    #[serde(default)]
    conversation: String,
    #[serde(default)]
    order_key: String,
    #[serde(default)]
    idempotency_key: String,
    #[serde(default)]
    trace: String,
    #[serde(default)]
    content_type: String,
    #[serde(default, borrow)]
    payload: Option<&'a RawValue>,
    #[serde(default)]
    payload_hex: String,
    #[serde(default)]
    reply: String,
}

const fn request() -> Kind {
    Kind::Request
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchIn<'a> {
    #[serde(borrow)]
    dispatches: Vec<DispatchIn<'a>>,
    #[serde(default)]
    reply: String,
    #[serde(default)]
    instance: Option<String>,
    #[serde(default)]
    sequence: Option<u64>,
}

struct Prepared {
    lineage: Vec<u8>,
    payload: Vec<u8>,
}

fn prepare(d: &DispatchIn<'_>) -> Result<Prepared, JsonError> {
    if !matches!(d.kind, Kind::Request | Kind::Event) {
        return Err(field("kind", "is request or event; a response is sent as a completion"));
    }
    if d.capability.is_empty() == d.topic.is_empty() {
        return Err(field("capability", "exactly one of `capability` and `topic` must be given"));
    }
    for (name, text) in [
        ("conversation", &d.conversation),
        ("order_key", &d.order_key),
        ("idempotency_key", &d.idempotency_key),
        ("trace", &d.trace),
        ("content_type", &d.content_type),
    ] {
        if text.len() > KEY_BYTES_MAX {
            return Err(field(
                name,
                format!("has {} bytes; at most {KEY_BYTES_MAX} are allowed", text.len()),
            ));
        }
    }
    if !d.capability.is_empty() {
        Capability::new(&d.capability).map_err(|e| field("capability", e.to_string()))?;
    }
    if !d.topic.is_empty() {
        Topic::new(&d.topic).map_err(|e| field("topic", e.to_string()))?;
    }
    if d.payload.is_some() && !d.payload_hex.is_empty() {
        return Err(field("payload_hex", "stands in the place of `payload`; give one of them"));
    }
    let lineage =
        unhex(&d.lineage).ok_or_else(|| field("lineage", "is passed on unchanged, as it was received"))?;
    let payload = if d.payload_hex.is_empty() {
        d.payload.map_or_else(|| b"null".to_vec(), |p| p.get().as_bytes().to_vec())
    } else {
        unhex(&d.payload_hex)
            .ok_or_else(|| field("payload_hex", "is an even number of hexadecimal digits"))?
    };
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(payload_too_long(payload.len()));
    }
    Ok(Prepared { lineage, payload })
}

fn payload_too_long(bytes: usize) -> JsonError {
    field("payload", format!("has {bytes} bytes; at most {PAYLOAD_BYTES_MAX} are allowed"))
}

/// A batch has `dispatches`; anything else is one dispatch, whose error is the more helpful one.
fn batch(bytes: &[u8]) -> Result<BatchIn<'_>, JsonError> {
    let batch_error = match serde_json::from_slice::<BatchIn<'_>>(bytes) {
        Ok(batch) if batch.dispatches.iter().any(|d| !d.reply.is_empty()) => {
            return Err(field("reply", "is given once for a batch, beside `dispatches`"));
        }
        Ok(batch) => return Ok(batch),
        Err(error) => error,
    };
    match serde_json::from_slice::<DispatchIn<'_>>(bytes) {
        Ok(one) => {
            Ok(BatchIn { reply: one.reply.clone(), dispatches: vec![one], instance: None, sequence: None })
        }
        Err(error) => {
            let is_batch = serde_json::from_slice::<serde_json::Value>(bytes)
                .is_ok_and(|v| v.get("dispatches").is_some());
            Err(JsonError::Shape(if is_batch { batch_error } else { error }.to_string()))
        }
    }
}

/// Turns a JSON lane message into a binary lane envelope.
///
/// A message without `instance` and `sequence` is given `derived` and the sequence that the stream gave it.
///
/// # Errors
/// Names the field and what is allowed there.
pub fn to_lane(bytes: &[u8], derived: InstanceId, stream_sequence: u64) -> Result<Vec<u8>, JsonError> {
    let batch = batch(bytes)?;
    if batch.dispatches.is_empty() || batch.dispatches.len() > DISPATCHES_MAX {
        return Err(field("dispatches", format!("holds 1 to {DISPATCHES_MAX} dispatches")));
    }
    if !is_reply_token(&batch.reply) {
        let message =
            format!("is a token of letters, digits, '_' and '-', at most {REPLY_TOKEN_BYTES_MAX} of them");
        return Err(field("reply", message));
    }
    let instance = match &batch.instance {
        None => derived,
        Some(text) => match text.parse::<InstanceId>() {
            Ok(id) if !id.is_derived() => id,
            Ok(_) | Err(_) => {
                return Err(field("instance", "is 16 hexadecimal digits, the first of them below 8"));
            }
        },
    };
    let sequence = match (batch.instance.is_some(), batch.sequence) {
        (false, None) => stream_sequence,
        (true, Some(0)) => return Err(field("sequence", "counts from 1")),
        (true, Some(sequence)) => sequence,
        (true, None) | (false, Some(_)) => {
            return Err(field("sequence", "is given together with `instance`, or not at all"));
        }
    };
    let prepared = batch.dispatches.iter().map(prepare).collect::<Result<Vec<_>, _>>()?;
    let outgoing: Vec<Outgoing<'_>> = batch
        .dispatches
        .iter()
        .zip(&prepared)
        .map(|(d, p)| Outgoing {
            kind: d.kind,
            capability: &d.capability,
            topic: &d.topic,
            budget: Duration::from_millis(d.budget_ms.into()),
            lineage: &p.lineage,
            conversation: &d.conversation,
            order_key: &d.order_key,
            idempotency_key: &d.idempotency_key,
            trace: &d.trace,
            content_type: if d.content_type.is_empty() && !d.payload_hex.is_empty() {
                OCTETS
            } else {
                &d.content_type
            },
            payload: &p.payload,
        })
        .collect();
    Ok(envelope::write(instance, sequence, &batch.reply, &outgoing))
}

/// A dispatch as a JSON agent finds it in its inbox.
#[derive(Debug, Serialize)]
struct InboxOut<'a> {
    v: u8,
    id: String,
    kind: Kind,
    source: &'a str,
    capability: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    topic: &'a str,
    root: String,
    lineage: String,
    deadline: String,
    accepted: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    conversation: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    trace: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    content_type: &'a str,
    /// Where to publish the completion.
    done: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "String::is_empty")]
    payload_hex: String,
}

/// One row of a parcel as the JSON that an agent of encoding `json` finds in its inbox.
#[must_use]
pub fn inbox(parcel: &Parcel<'_>, row: usize, target: &str) -> Vec<u8> {
    let bytes = parcel.payload(row);
    let payload = serde_json::from_slice::<&RawValue>(bytes).ok();
    let out = InboxOut {
        v: 1,
        id: parcel.id(row).to_string(),
        kind: parcel.kind(row),
        source: parcel.source,
        capability: parcel.text(column::CAPABILITY, row),
        topic: parcel.text(column::TOPIC, row),
        root: parcel.root(row).to_string(),
        lineage: hex(&parcel.child_lineage(row, target)),
        deadline: rfc3339(parcel.deadline(row)),
        accepted: rfc3339(parcel.accepted()),
        conversation: parcel.text(column::CONVERSATION, row),
        trace: parcel.text(column::TRACE, row),
        content_type: parcel.text(column::CONTENT_TYPE, row),
        done: done_between(parcel.lane, parcel.source, target),
        payload_hex: if payload.is_none() { hex(bytes) } else { String::new() },
        payload,
    };
    serde_json::to_vec(&out).expect("plain data serialises")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CompletionIn<'a> {
    id: String,
    outcome: Outcome,
    #[serde(default, borrow)]
    payload: Option<&'a RawValue>,
    #[serde(default)]
    error: String,
    #[serde(default)]
    ran_ms: f64,
    #[serde(default)]
    inbox_ms: f64,
    #[serde(default = "one")]
    attempt: u8,
    #[serde(default)]
    inbox: String,
}

const fn one() -> u8 {
    1
}

fn micros(ms: f64) -> u32 {
    // A cast from a float saturates; what is not a number becomes zero.
    (ms * 1_000.0) as u32
}

/// Turns a JSON completion into a binary one.
///
/// # Errors
/// Names the field and what is allowed there.
pub fn to_completions(bytes: &[u8]) -> Result<Vec<u8>, JsonError> {
    let c: CompletionIn<'_> = serde_json::from_slice(bytes).map_err(|e| JsonError::Shape(e.to_string()))?;
    let first: DispatchId =
        c.id.parse().map_err(|e: governance::names::IdError| field("id", e.to_string()))?;
    let (reason, payload) = match c.outcome {
        Outcome::Success => (Reason::Ok, c.payload.map_or("null", RawValue::get).as_bytes().to_vec()),
        Outcome::Failure => (Reason::HandlerFailed, c.error.clone().into_bytes()),
        Outcome::Timeout | Outcome::CircuitBroken | Outcome::Rejected | Outcome::Cancelled => {
            return Err(field("outcome", "is success or failure; the mesh decides about the others"));
        }
    };
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(payload_too_long(payload.len()));
    }
    if !c.inbox.is_empty() && acknowledges(&c.inbox).is_none() {
        return Err(field("inbox", "is the reply subject of the inbox message, unchanged"));
    }
    Ok(completion::write(
        InstanceId(0),
        &[Completion {
            first,
            count: 1,
            outcome: c.outcome,
            reason,
            ran_us: micros(c.ran_ms),
            inbox_us: micros(c.inbox_ms),
            attempt: c.attempt.max(1),
            payload: &payload,
            content_type: "",
            inbox_ack: &c.inbox,
        }],
    ))
}

/// A payload as a JSON value: itself where it is JSON, a string where it is text, base 16 otherwise.
#[must_use]
pub fn value(payload: &[u8]) -> serde_json::Value {
    if payload.is_empty() {
        return serde_json::Value::Null;
    }
    serde_json::from_slice(payload).unwrap_or_else(|_| match std::str::from_utf8(payload) {
        Ok(text) => text.into(),
        Err(_) => hex(payload).into(),
    })
}

/// A reply as people and JSON callers see it.
#[must_use]
pub fn reply_view(reply: &Reply<'_>) -> ReplyView {
    let ms = |us: u32| f64::from(us) / 1_000.0;
    ReplyView {
        id: reply.first.to_string(),
        outcome: reply.outcome,
        reason: reply.reason,
        target: reply.target.to_owned(),
        lane_ms: ms(reply.lane_us),
        inbox_ms: ms(reply.inbox_us),
        ran_ms: ms(reply.ran_us),
        payload: value(reply.payload),
    }
}
