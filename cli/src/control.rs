//! Asking all coordinators at once. Owns how long to wait for them; knows no command.
//!
//! The rule it keeps: what one replica does not own another answers for, so an answer is complete when all live replicas
//! have spoken; a replica that stands by may keep silent and costs a moment only.

use std::time::Duration;

use anyhow::{Context, bail};
use async_nats::{Client, StatusCode};
use futures::StreamExt;
use protocol::control::{Answer, Operation};
use protocol::subjects;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

/// The longest wait for the first answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long other replicas have once one has said something: they answer from memory, within milliseconds.
const GRACE: Duration = Duration::from_millis(300);

/// What the replicas said.
#[derive(Debug)]
pub(crate) struct Answers<T> {
    /// What those said that own something of it.
    pub(crate) bodies: Vec<T>,
    /// What is wrong with the command, in the words of those that cannot do it.
    pub(crate) errors: Vec<String>,
}

/// Asks without naming an agent.
///
/// # Errors
/// When no coordinator answers.
pub(crate) async fn ask<T: DeserializeOwned>(client: &Client, verb: &str) -> anyhow::Result<Answers<T>> {
    let nothing = Operation { agent: String::new(), reason: String::new(), operator: String::new() };
    command(client, verb, &nothing).await
}

/// Gives a command to all coordinators and collects their answers.
///
/// # Errors
/// When none answers, or an answer cannot be read.
pub(crate) async fn command<T: DeserializeOwned>(
    client: &Client,
    verb: &str,
    operation: &Operation,
) -> anyhow::Result<Answers<T>> {
    let inbox = client.new_inbox();
    let mut replies = client.subscribe(inbox.clone()).await?;
    let body = serde_json::to_vec(operation)?;
    client.publish_with_reply(subjects::control(verb), inbox, body.into()).await?;

    let mut answers = Answers { bodies: Vec::new(), errors: Vec::new() };
    let mut until = Instant::now() + PATIENCE;
    let (mut heard, mut replicas) = (0, 1);
    while heard < replicas {
        let Ok(Some(message)) = tokio::time::timeout_at(until, replies.next()).await else { break };
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            bail!("no coordinator is connected to the broker; start one, or see: mesh doctor");
        }
        let answer: Answer<T> = serde_json::from_slice(&message.payload).context(
            "the answer of a coordinator cannot be read; is it of another version? see: mesh doctor",
        )?;
        heard += 1;
        replicas = replicas.max(answer.replicas);
        answers.errors.extend(answer.error);
        if let Some(body) = answer.body {
            answers.bodies.push(body);
            until = until.min(Instant::now() + GRACE);
        }
    }
    if heard == 0 {
        bail!("no coordinator answered within {} s; see: mesh doctor", PATIENCE.as_secs());
    }
    Ok(answers)
}

/// Asks for a list of which each replica has a part.
///
/// # Errors
/// When no coordinator answers, or none has a list.
pub(crate) async fn list<T: DeserializeOwned>(client: &Client, verb: &str) -> anyhow::Result<Vec<T>> {
    let answers: Answers<Vec<T>> = ask(client, verb).await?;
    if answers.bodies.is_empty() {
        bail!("no coordinator could say: {}", answers.errors.join("; "));
    }
    Ok(answers.bodies.into_iter().flatten().collect())
}
