//! `mesh trip`, `reset`, `pause`, `resume`: what operators do to an agent. Owns the words; the home does it and records it.

use clap::Args;
use protocol::control::Operation;
use serde_json::Value;

use crate::answer::Answer;
use crate::control::{self, Answers};
use crate::mesh::Mesh;
use crate::output::Output;

#[derive(Debug, Args)]
pub(crate) struct OperateArgs {
    /// Which agent.
    agent: String,
    /// Why; it is recorded in the audit, with your name.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Who you are.
    #[arg(long, env = "USER", value_name = "NAME")]
    operator: String,
}

pub(crate) async fn run(
    verb: &str,
    args: &OperateArgs,
    mesh: &Mesh,
    output: &Output,
) -> anyhow::Result<Answer> {
    let operation = Operation {
        agent: args.agent.clone(),
        reason: args.reason.clone(),
        operator: args.operator.clone(),
        letter: None,
    };
    let answers: Answers<Value> = control::command(&mesh.broker().await?, verb, &operation).await?;
    match answers.of_one(&args.agent)? {
        Ok(body) => output.show(&body, || done(verb, &args.agent))?,
        Err(why) => {
            output.note(&format!("mesh: {why}"));
            return Ok(Answer::No);
        }
    }
    Ok(Answer::Yes)
}

fn done(verb: &str, agent: &str) -> String {
    match verb {
        "trip" => format!("{agent} is cut off until: mesh reset {agent} --reason …"),
        "reset" => format!("dispatches pass to {agent}"),
        "pause" => format!("everything for {agent} waits until: mesh resume {agent} --reason …"),
        _ => format!("dispatches go on to {agent}"),
    }
}
