//! Asking all coordinators at once. Owns how long to wait for them, and how their answers become one; knows no command.
//!
//! The rule it keeps: what one replica does not own another answers for, so an answer is complete when all live replicas
//! have spoken. One that keeps silent costs a moment, and it is said that its part is missing.

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
    /// What is wrong with the command, in the words of those that cannot do it, each once.
    pub(crate) errors: Vec<String>,
    /// So many live replicas did not answer in time.
    pub(crate) silent: u32,
}

impl<T> Answers<T> {
    const fn none() -> Self {
        Self { bodies: Vec::new(), errors: Vec::new(), silent: 0 }
    }

    fn hear(&mut self, answer: Answer<T>) {
        self.bodies.extend(answer.body);
        if let Some(error) = answer.error.filter(|e| !self.errors.contains(e)) {
            self.errors.push(error);
        }
    }

    /// What became of a command about one agent: the home's word counts, and what others say is wrong counts only where no
    /// home did it.
    ///
    /// # Errors
    /// When no replica is home of the agent at this moment, or its home keeps silent.
    pub(crate) fn of_one(self, agent: &str) -> anyhow::Result<Result<T, String>> {
        if let Some(body) = self.bodies.into_iter().next() {
            return Ok(Ok(body));
        }
        if self.silent > 0 {
            bail!(
                "{} did not answer, which may be home of {agent}; see: mesh doctor",
                coordinators(self.silent)
            );
        }
        if self.errors.is_empty() {
            bail!(
                "no coordinator is home of {agent} at this moment; try again in a few seconds, or see: mesh shards"
            );
        }
        Ok(Err(self.errors.join("; ")))
    }
}

fn coordinators(count: u32) -> String {
    if count == 1 { "a coordinator".to_owned() } else { format!("{count} coordinators") }
}

/// Asks without naming an agent.
///
/// # Errors
/// When no coordinator answers.
pub(crate) async fn ask<T: DeserializeOwned>(client: &Client, verb: &str) -> anyhow::Result<Answers<T>> {
    let nothing = Operation::default();
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

    let mut answers = Answers::none();
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
        if answer.body.is_some() {
            until = until.min(Instant::now() + GRACE);
        }
        answers.hear(answer);
    }
    if heard == 0 {
        bail!("no coordinator answered within {} s; see: mesh doctor", PATIENCE.as_secs());
    }
    answers.silent = replicas.saturating_sub(heard);
    Ok(answers)
}

/// Asks for a list of which each replica has a part; says on stderr where a part is missing.
///
/// # Errors
/// When no coordinator answers, or none has a list.
pub(crate) async fn list<T: DeserializeOwned>(client: &Client, verb: &str) -> anyhow::Result<Vec<T>> {
    let answers: Answers<Vec<T>> = ask(client, verb).await?;
    if answers.bodies.is_empty() {
        if answers.errors.is_empty() {
            bail!(
                "no coordinator is home of anything at this moment; try again in a few seconds, or see: mesh shards"
            );
        }
        bail!("no coordinator could say: {}", answers.errors.join("; "));
    }
    if answers.silent > 0 || !answers.errors.is_empty() {
        let (silent, errors) = (answers.silent, answers.errors.join("; "));
        tracing::warn!(silent, errors, "not every coordinator answered; what the others own is not shown");
    }
    Ok(answers.bodies.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(said: &[(Option<u32>, Option<&str>)], silent: u32) -> Answers<u32> {
        let mut answers = Answers { silent, ..Answers::none() };
        for (body, error) in said {
            let error = error.map(str::to_owned);
            answers.hear(Answer { replica: "r".into(), replicas: 3, body: *body, error });
        }
        answers
    }

    #[test]
    fn a_command_is_done_when_the_home_did_it_whatever_the_others_say() {
        let all = answers(&[(None, None), (Some(1), None), (None, Some("no agent \"x\""))], 0);
        assert_eq!(all.of_one("x").unwrap(), Ok(1));
        assert_eq!(answers(&[(Some(1), None)], 2).of_one("x").unwrap(), Ok(1));
    }

    #[test]
    fn an_agent_is_unknown_when_every_replica_has_spoken_and_none_knows_it() {
        let unknown = || (None, Some("no agent \"x\""));
        assert_eq!(
            answers(&[unknown(), unknown()], 0).of_one("x").unwrap(),
            Err("no agent \"x\"".to_owned())
        );
        let error = answers(&[unknown()], 1).of_one("x").unwrap_err();
        assert!(error.to_string().contains("may be home of x"), "{error}");
    }

    #[test]
    fn an_agent_without_a_home_is_told_apart_from_one_that_nobody_knows() {
        let error = answers(&[(None, None), (None, None)], 0).of_one("x").unwrap_err();
        assert!(error.to_string().starts_with("no coordinator is home of x"), "{error}");
    }
}
