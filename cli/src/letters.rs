//! `mesh dlq redrive` and `drop`: dead letters sent again, or removed, on an operator's order. Owns the selection and what is said of each;
//! the home of a letter's source records the order and does it.
//!
//! The rule it keeps: nothing is chosen by default: an order names one letter, or says which ones.

use clap::Args;
use governance::{AgentId, DispatchId, Reason};
use protocol::control::{DeadLetter, LetterPlace, Operation};
use protocol::subjects;
use serde_json::{Value, json};

use crate::answer::{Answer, Usage};
use crate::control::{self, Answers};
use crate::dlq::read;
use crate::mesh::Mesh;
use crate::output::{Column, Output, table};

/// What to do with letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Send them again.
    Redrive,
    /// Remove them.
    Drop,
}

#[derive(Debug, Args)]
pub(crate) struct LettersArgs {
    /// The id of the dispatch that died.
    #[arg(value_name = "ID", conflicts_with_all = ["target", "failed_as"], required_unless_present_any = ["target", "failed_as"])]
    id: Option<String>,
    /// All letters of this target.
    #[arg(long, value_name = "AGENT")]
    target: Option<String>,
    /// All letters with this reason, such as `handler_failed` or `runner_lost`.
    #[arg(long, value_name = "REASON")]
    failed_as: Option<Reason>,
    /// Why; it is recorded in the audit, with your name.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Who you are.
    #[arg(long, env = "USER", value_name = "NAME")]
    operator: String,
    /// Shows which letters are meant, and does nothing.
    #[arg(long)]
    dry_run: bool,
    /// At most so many, the oldest first.
    #[arg(short = 'n', long, default_value_t = 1_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

/// A letter that is meant, and what became of it.
struct Meant {
    sequence: u64,
    letter: DeadLetter,
    told: Option<Result<Value, String>>,
}

pub(crate) async fn run(
    verb: Verb,
    args: &LettersArgs,
    mesh: &Mesh,
    output: &Output,
) -> anyhow::Result<Answer> {
    let (mut meant, more) = choose(args, mesh).await?;
    if meant.is_empty() {
        output.note("there is no such dead letter");
        return Ok(Answer::No);
    }
    if !args.dry_run {
        let client = mesh.broker().await?;
        for meant in &mut meant {
            let operation = Operation {
                agent: meant.letter.source.clone(),
                reason: args.reason.clone(),
                operator: args.operator.clone(),
                letter: Some(LetterPlace { sequence: meant.sequence, id: meant.letter.id.clone() }),
            };
            let word = if verb == Verb::Drop { "drop" } else { "redrive" };
            let answers: Answers<Value> = control::command(&client, word, &operation).await?;
            meant.told = Some(answers.of_one(&meant.letter.source)?);
        }
    }
    let shown: Vec<Value> = meant.iter().map(line).collect();
    output.show(&shown, || render(verb, &meant))?;
    if more > 0 {
        output.note(&format!("{more} more are meant and were left; -n takes more at once"));
    }
    Ok(Answer::when(meant.iter().all(|m| !matches!(m.told, Some(Err(_))))))
}

/// The letters that are meant, and how many beyond the limit.
async fn choose(args: &LettersArgs, mesh: &Mesh) -> anyhow::Result<(Vec<Meant>, u64)> {
    let id = args.id.as_ref().map(|id| id.parse::<DispatchId>().map_err(|e| Usage(e.to_string())));
    let id = id.transpose()?.map(|id| id.to_string());
    let target = args.target.as_ref().map(|name| AgentId::new(name).map_err(|e| Usage(e.to_string())));
    let filter = target.transpose()?.map(|target| subjects::dlq(&target));
    let (mut meant, mut more) = (Vec::new(), 0);
    read(mesh, filter, |sequence, letter| {
        let is_it = id.as_ref().is_none_or(|id| letter.id == *id)
            && args.failed_as.is_none_or(|reason| letter.reason == reason);
        if is_it && meant.len() < args.limit as usize {
            meant.push(Meant { sequence, letter, told: None });
        } else {
            more += u64::from(is_it);
        }
    })
    .await?;
    Ok((meant, more))
}

fn line(meant: &Meant) -> Value {
    let letter = &meant.letter;
    let mut line = json!({
        "id": letter.id, "source": letter.source, "target": letter.target, "reason": letter.reason, "done": false,
    });
    match &meant.told {
        None => {}
        Some(Ok(body)) => {
            line["done"] = json!(true);
            line["as"] = body.get("as").cloned().unwrap_or(Value::Null);
        }
        Some(Err(why)) => line["error"] = json!(why),
    }
    line
}

fn render(verb: Verb, all: &[Meant]) -> String {
    let columns = [
        Column::Text("ID"),
        Column::Text("SOURCE"),
        Column::Text("TARGET"),
        Column::Text("REASON"),
        Column::Text("WHAT BECAME OF IT"),
    ];
    let became = |meant: &Meant| match (&meant.told, verb) {
        (None, Verb::Redrive) => "would be sent again".to_owned(),
        (None, Verb::Drop) => "would be dropped".to_owned(),
        (Some(Ok(body)), Verb::Redrive) => {
            format!("sent again as {}", body.get("as").and_then(Value::as_str).unwrap_or("-"))
        }
        (Some(Ok(_)), Verb::Drop) => "dropped".to_owned(),
        (Some(Err(why)), _) => format!("left: {why}"),
    };
    let rows = all.iter().map(|m| {
        let l = &m.letter;
        vec![l.id.clone(), l.source.clone(), l.target.clone(), l.reason.to_string(), became(m)]
    });
    table(&columns, rows)
}
