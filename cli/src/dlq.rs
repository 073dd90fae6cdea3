//! `mesh dlq`: the dead letters, as they stand in their stream. Reads; what is sent again or removed, `letters` orders.
//!
//! The rule it keeps: a list shows no payload; that takes asking for one letter.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Context;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{self, stream};
use clap::{Args, Subcommand};
use futures::TryStreamExt;
use governance::{AgentId, Timestamp};
use protocol::control::DeadLetter;
use protocol::text::{rfc3339, unhex};
use protocol::{json, streams, subjects};
use serde_json::{Value, json};

use crate::answer::{Answer, Usage};
use crate::letters::{self, LettersArgs};
use crate::mesh::Mesh;
use crate::output::{Column, Output, table};

/// Letters in one pull: each may be as large as two payloads.
const PULL_MAX: usize = 64;
/// How long to wait until what an operator had done is archived.
const ARCHIVE_PATIENCE: Duration = Duration::from_secs(3);
/// How long the broker keeps the consumer of a reader that went away.
const READER_KEPT: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(crate) struct DlqArgs {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The newest letters, without their payloads. This is what `mesh dlq` alone does.
    List(ListArgs),
    /// One letter as a whole, with its payload.
    Show {
        /// The id of the dispatch.
        id: String,
    },
    /// Sends letters again: as new dispatches of their sources, with the rights and quotas that hold for these.
    Redrive(LettersArgs),
    /// Removes letters.
    Drop(LettersArgs),
}

#[derive(Debug, Clone, Args)]
struct ListArgs {
    /// Shows only the letters of one target.
    #[arg(long, value_name = "AGENT")]
    target: Option<String>,
    /// Shows at most so many, the newest.
    #[arg(short = 'n', long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

pub(crate) async fn run(args: &DlqArgs, mesh: &Mesh, output: &Output) -> anyhow::Result<Answer> {
    match &args.verb {
        None => list(&ListArgs { target: None, limit: 50 }, mesh, output).await,
        Some(Verb::List(args)) => list(args, mesh, output).await,
        Some(Verb::Show { id }) => show(id, mesh, output).await,
        Some(Verb::Redrive(args)) => letters::run(letters::Verb::Redrive, args, mesh, output).await,
        Some(Verb::Drop(args)) => letters::run(letters::Verb::Drop, args, mesh, output).await,
    }
}

async fn list(args: &ListArgs, mesh: &Mesh, output: &Output) -> anyhow::Result<Answer> {
    let filter = args.target.as_ref().map(|name| AgentId::new(name).map_err(|e| Usage(e.to_string())));
    let filter = filter.transpose()?.map(|id| subjects::dlq(&id));
    let mut letters = VecDeque::new();
    let mut older: u64 = 0;
    read(mesh, filter, |_, letter| {
        if letters.len() == args.limit as usize {
            letters.pop_front();
            older += 1;
        }
        letters.push_back(letter);
    })
    .await?;
    let letters = Vec::from(letters);
    let shown: Vec<Value> = letters.iter().map(without_payload).collect();
    output.show(&shown, || render(&letters))?;
    match (letters.is_empty(), older) {
        (true, _) => output.note("there are no dead letters"),
        (false, 0) => {}
        (false, older) => output.note(&format!("{older} older letters are not shown; -n shows more")),
    }
    Ok(Answer::Yes)
}

async fn show(id: &str, mesh: &Mesh, output: &Output) -> anyhow::Result<Answer> {
    let id: governance::DispatchId =
        id.parse().map_err(|e: governance::names::IdError| Usage(e.to_string()))?;
    let id = id.to_string();
    let mut found = None;
    read(mesh, None, |_, letter| {
        if letter.id == id {
            found = Some(letter);
        }
    })
    .await?;
    let Some(letter) = found else { return show_order(&id, mesh, output).await };
    let payload = unhex(&letter.payload_hex).map_or(Value::Null, |bytes| json::value(&bytes));
    let mut whole = without_payload(&letter);
    whole["payload"] = payload.clone();
    output.show(&whole, || one(&letter, &payload))?;
    Ok(Answer::Yes)
}

/// What an operator had done with a letter that is there no more.
async fn show_order(id: &str, mesh: &Mesh, output: &Output) -> anyhow::Result<Answer> {
    let archive = mesh.archive().await?;
    if let Err(error) = archive.until_archived(&mesh.redis_url, ARCHIVE_PATIENCE).await {
        output.note(&format!("mesh: {error}; the newest may be missing here"));
    }
    let notes = archive.notes(Some("operator"), Timestamp::ZERO).await?;
    let Some(note) = notes.iter().rev().find(|note| note.body["letter"] == *id) else {
        output.note(&format!("there is no dead letter {id}"));
        return Ok(Answer::No);
    };
    let text = |name: &str| note.body[name].as_str().unwrap_or("-");
    output.show(note, || {
        let (at, by, why) = (rfc3339(note.at), text("operator"), text("reason"));
        match note.body["as"].as_str() {
            Some(new) => format!("sent again as {new} by {by} at {at}: {why}\nits fate: mesh trace {new}"),
            None => format!("dropped by {by} at {at}: {why}"),
        }
    })?;
    Ok(Answer::Yes)
}

/// Reads every letter there is with its place, oldest first.
pub(crate) async fn read(
    mesh: &Mesh,
    filter: Option<String>,
    mut each: impl FnMut(u64, DeadLetter),
) -> anyhow::Result<()> {
    let js = jetstream::new(mesh.broker().await?);
    let stream: stream::Stream =
        js.get_stream(streams::DLQ).await.context("the mesh has no dead-letter queue; see: mesh doctor")?;
    let config = pull::Config {
        ack_policy: AckPolicy::None,
        filter_subject: filter.unwrap_or_default(),
        inactive_threshold: READER_KEPT,
        ..Default::default()
    };
    let consumer = stream.create_consumer(config).await.context("the dead letters cannot be read")?;
    let mut left = usize::try_from(consumer.cached_info().num_pending).unwrap_or(usize::MAX);
    while left > 0 {
        let mut batch = consumer
            .fetch()
            .max_messages(PULL_MAX.min(left))
            .messages()
            .await
            .context("the dead letters cannot be read")?;
        let before = left;
        while let Some(message) = batch.try_next().await.map_err(|e| anyhow::anyhow!(e))? {
            left = left.saturating_sub(1);
            let place = message.info().map_or(0, |info| info.stream_sequence);
            match serde_json::from_slice(&message.payload) {
                Ok(letter) => each(place, letter),
                Err(error) => tracing::warn!(%error, "a dead letter cannot be read"),
            }
        }
        // What another reader or a limit took away does not come any more.
        if left == before {
            break;
        }
    }
    // It goes by itself as well, a little later.
    if let Err(error) = stream.delete_consumer(&consumer.cached_info().name).await {
        tracing::debug!(%error, "the reader was not removed");
    }
    Ok(())
}

fn without_payload(letter: &DeadLetter) -> Value {
    json!({
        "id": letter.id, "at": letter.at, "source": letter.source, "target": letter.target,
        "kind": letter.kind, "root": letter.root,
        "capability": letter.capability, "topic": letter.topic, "priority": letter.priority,
        "attempts": letter.attempts, "reason": letter.reason, "error": letter.error,
        "conversation": letter.conversation, "content_type": letter.content_type,
        "payload_bytes": letter.payload_hex.len() / 2,
    })
}

/// The words of an error; one with a code is written as a problem in JSON.
fn words(error: &str) -> String {
    let problem: Value = serde_json::from_str(error).unwrap_or_default();
    let field = |name: &str| problem.get(name).and_then(Value::as_str);
    match (field("detail"), field("code")) {
        (Some(detail), Some(code)) => format!("{detail} ({code})"),
        (Some(detail), None) => detail.to_owned(),
        (None, Some(_) | None) => error.to_owned(),
    }
}

fn called(letter: &DeadLetter) -> &str {
    if letter.topic.is_empty() { &letter.capability } else { &letter.topic }
}

fn render(letters: &[DeadLetter]) -> String {
    if letters.is_empty() {
        return String::new();
    }
    let columns = [
        Column::Text("AT"),
        Column::Text("SOURCE"),
        Column::Text("TARGET"),
        Column::Text("CAPABILITY"),
        Column::Number("ATTEMPTS"),
        Column::Text("REASON"),
        Column::Text("ID"),
        Column::Text("ERROR"),
    ];
    let rows = letters.iter().map(|l| {
        vec![
            l.at.clone(),
            l.source.clone(),
            l.target.clone(),
            called(l).to_owned(),
            l.attempts.to_string(),
            l.reason.to_string(),
            l.id.clone(),
            words(&l.error).lines().next().unwrap_or_default().chars().take(80).collect(),
        ]
    });
    table(&columns, rows)
}

fn one(letter: &DeadLetter, payload: &Value) -> String {
    let lines = [
        ("id", letter.id.as_str()),
        ("at", &letter.at),
        ("source", &letter.source),
        ("target", &letter.target),
        ("kind", letter.kind.name()),
        ("called", called(letter)),
        ("lane", letter.priority.name()),
        ("attempts", &letter.attempts.to_string()),
        ("reason", letter.reason.name()),
        ("error", &words(&letter.error)),
        ("conversation", if letter.conversation.is_empty() { "-" } else { &letter.conversation }),
        ("payload", &format!("{payload:#}")),
    ];
    lines.map(|(name, value)| format!("{name:<13} {value}")).join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use governance::{Kind, Priority, Reason};

    fn letter() -> DeadLetter {
        DeadLetter {
            id: "d-0000000000000001-2-0".into(),
            source: "lead_bot".into(),
            target: "crm_client".into(),
            capability: "sync_contact".into(),
            topic: String::new(),
            priority: Priority::P2,
            kind: Kind::Event,
            root: String::new(),
            attempts: 5,
            reason: Reason::HandlerFailed,
            error: "the CRM says no\nin two lines".into(),
            at: "2026-02-14T09:23:15.482Z".into(),
            conversation: "sms-17".into(),
            content_type: String::new(),
            payload_hex: "7b7d".into(),
        }
    }

    #[test]
    fn a_list_shows_no_payload() {
        let text = render(&[letter()]);
        assert_eq!(
            text.lines().nth(1),
            Some(
                "2026-02-14T09:23:15.482Z  lead_bot  crm_client  sync_contact         5  handler_failed  \
                 d-0000000000000001-2-0  the CRM says no"
            )
        );
        let value = without_payload(&letter());
        assert_eq!(value["payload_bytes"], 2);
        assert_eq!(value.get("payload_hex"), None);
    }

    #[test]
    fn an_error_is_shown_in_its_words() {
        assert_eq!(
            words("{\"detail\": \"no such house\", \"code\": \"unknown_house\"}"),
            "no such house (unknown_house)"
        );
        assert_eq!(words("no such house"), "no such house");
    }

    #[test]
    fn a_letter_is_shown_with_what_it_carries() {
        let text = one(&letter(), &json!({"name": "Ann"}));
        assert!(text.contains("called        sync_contact\n"), "{text}");
        assert!(text.contains("\"name\": \"Ann\""), "{text}");
    }
}
