//! `mesh replay`: steps through the event log of a simulated run. Owns how it is read, searched and shown; simulates nothing.
//!
//! The rule it keeps: the log is shown as it was written, in its order; what is left out was not asked for.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::answer::{Answer, Usage};
use crate::output::{Column, Output, table};

pub(crate) const EXAMPLES: &str = concat!(
    "On a terminal, and where nothing is searched for, it steps: Enter shows the next event, b the one before, a number ",
    "jumps to that step, /TEXT to the next event with that text, q ends.\n\n",
    "Examples:\n",
    "  cargo run -p simulator -- --seed 7 --steps 5000 --log events.jsonl\n",
    "  mesh replay events.jsonl --from 1200\n",
    "  mesh replay events.jsonl --actor replica-1 --grep deposed --around 3",
);
/// A longer detail is cut in the table; stepping and `--json` show it whole.
const DETAIL_CHARS_MAX: usize = 120;

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// The log: one JSON object in a line with step, at_ms, actor, event, detail.
    file: PathBuf,
    /// Begins at this step.
    #[arg(long, value_name = "STEP", default_value_t = 0)]
    from: u64,
    /// Lists what this actor did.
    #[arg(long, value_name = "NAME")]
    actor: Option<String>,
    /// Lists the events with this text in them.
    #[arg(long, value_name = "TEXT")]
    grep: Option<String>,
    /// Lists so many events before and after each as well.
    #[arg(long, value_name = "N")]
    around: Option<usize>,
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Entry {
    step: u64,
    at_ms: f64,
    actor: String,
    event: String,
    #[serde(default)]
    detail: Value,
}

impl Entry {
    fn detail(&self) -> String {
        match &self.detail {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            detail @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                detail.to_string()
            }
        }
    }

    fn has(&self, text: &str) -> bool {
        self.event.contains(text) || self.actor.contains(text) || self.detail().contains(text)
    }

    fn in_full(&self) -> String {
        let detail = match &self.detail {
            Value::Null => String::new(),
            Value::String(text) => format!("\n  {text}"),
            detail @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                format!("\n{detail:#}").replace('\n', "\n  ")
            }
        };
        format!("{} at {}  {}  {}{detail}", self.step, at(self.at_ms), self.actor, self.event)
    }
}

pub(crate) fn run(args: &ReplayArgs, output: &Output) -> anyhow::Result<Answer> {
    let file = File::open(&args.file).with_context(|| format!("{} cannot be read", args.file.display()))?;
    let entries = read(BufReader::new(file))?;
    let searches = args.actor.is_some() || args.grep.is_some() || args.around.is_some();
    if !searches && !output.is_json() && std::io::stdin().is_terminal() {
        return step_through(&entries, args.from, std::io::stdin().lock(), output);
    }
    let chosen = choose(&entries, args);
    output.show(&chosen, || render(&chosen))?;
    if chosen.is_empty() {
        output.note(&format!("none of the {} events is like that", entries.len()));
    }
    Ok(Answer::when(!chosen.is_empty()))
}

/// Reads a log. Its last line may be cut off, where the run was ended or still goes on.
fn read(lines: impl BufRead) -> anyhow::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut unreadable = None;
    for (number, line) in lines.lines().enumerate() {
        let line = line.context("the log cannot be read")?;
        if line.trim().is_empty() {
            continue;
        }
        if let Some(usage) = unreadable.take() {
            return Err(Usage(usage).into());
        }
        match serde_json::from_str(&line) {
            Ok(entry) => entries.push(entry),
            Err(e) => {
                unreadable = Some(format!("line {} is not an event of a simulated run: {e}", number + 1))
            }
        }
    }
    match unreadable {
        Some(usage) if entries.is_empty() => Err(Usage(usage).into()),
        Some(_) | None => Ok(entries),
    }
}

/// What is asked for, with its surroundings.
fn choose<'a>(entries: &'a [Entry], args: &ReplayArgs) -> Vec<&'a Entry> {
    let is_meant = |e: &Entry| {
        e.step >= args.from
            && args.actor.as_ref().is_none_or(|actor| e.actor == *actor)
            && args.grep.as_ref().is_none_or(|text| e.has(text))
    };
    let around = args.around.unwrap_or_default();
    let mut chosen = Vec::new();
    let mut next = 0;
    for (at, _) in entries.iter().enumerate().filter(|(_, e)| is_meant(e)) {
        let end = at.saturating_add(around).saturating_add(1).min(entries.len());
        chosen.extend(entries[next.max(at.saturating_sub(around)).min(end)..end].iter());
        next = next.max(end);
    }
    chosen
}

fn render(entries: &[&Entry]) -> String {
    if entries.is_empty() {
        return String::new();
    }
    let columns = [
        Column::Number("STEP"),
        Column::Number("AT"),
        Column::Text("ACTOR"),
        Column::Text("EVENT"),
        Column::Text("DETAIL"),
    ];
    let rows = entries.iter().map(|e| {
        let mut detail = e.detail().replace('\n', " ");
        if let Some((cut, _)) = detail.char_indices().nth(DETAIL_CHARS_MAX) {
            detail.truncate(cut);
            detail.push('…');
        }
        vec![e.step.to_string(), at(e.at_ms), e.actor.clone(), e.event.clone(), detail]
    });
    table(&columns, rows)
}

fn at(ms: f64) -> String {
    format!("{:.3} s", ms / 1_000.0)
}

/// What a reader wishes to see.
#[derive(Debug, PartialEq, Eq)]
enum Wish<'a> {
    Next,
    Back,
    Step(u64),
    Find(&'a str),
    Quit,
    Unclear,
}

fn wish(line: &str) -> Wish<'_> {
    match line.trim() {
        "" | "n" => Wish::Next,
        "b" => Wish::Back,
        "q" => Wish::Quit,
        other => match (other.strip_prefix('/'), other.parse()) {
            (Some(text), _) => Wish::Find(text),
            (None, Ok(step)) => Wish::Step(step),
            (None, Err(_)) => Wish::Unclear,
        },
    }
}

fn step_through(
    entries: &[Entry],
    from: u64,
    answers: impl BufRead,
    output: &Output,
) -> anyhow::Result<Answer> {
    let first_from = |step: u64| entries.partition_point(|e| e.step < step);
    let mut here = first_from(from);
    if here == entries.len() {
        output.note(&format!("the log has {} events and none from step {from} on", entries.len()));
        return Ok(Answer::No);
    }
    output.note("Enter: next, b: back, a number: that step, /TEXT: find, q: end");
    output.text(&entries[here].in_full())?;
    for answer in answers.lines() {
        let answer = answer.context("the terminal cannot be read")?;
        let there = match wish(&answer) {
            Wish::Quit => break,
            Wish::Next => Some(here + 1),
            Wish::Back => here.checked_sub(1),
            Wish::Step(step) => Some(first_from(step)),
            Wish::Find(text) => (here + 1..entries.len()).find(|at| entries[*at].has(text)),
            Wish::Unclear => {
                output.note("Enter: next, b: back, a number: that step, /TEXT: find, q: end");
                continue;
            }
        };
        match there.and_then(|at| Some((at, entries.get(at)?))) {
            Some((at, entry)) => {
                here = at;
                output.text(&entry.in_full())?;
            }
            None => output.note("there is none"),
        }
    }
    Ok(Answer::Yes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> Vec<Entry> {
        let lines = (0..10).map(|n| {
            let detail = if n == 4 { serde_json::json!({"why": "deposed"}) } else { "fine".into() };
            let actor = format!("replica-{}", n % 2);
            serde_json::json!({"step": n * 10, "at_ms": n * 250, "actor": actor, "event": "append", "detail": detail})
                .to_string()
        });
        read(lines.collect::<Vec<_>>().join("\n").as_bytes()).unwrap()
    }

    fn args(from: u64, actor: Option<&str>, grep: Option<&str>, around: usize) -> ReplayArgs {
        ReplayArgs {
            file: PathBuf::new(),
            from,
            actor: actor.map(Into::into),
            grep: grep.map(Into::into),
            around: Some(around),
        }
    }

    fn steps(args: &ReplayArgs) -> Vec<u64> {
        choose(&log(), args).iter().map(|e| e.step).collect()
    }

    #[test]
    fn events_are_chosen_by_step_actor_and_text() {
        assert_eq!(steps(&args(75, None, None, 0)), [80, 90]);
        assert_eq!(steps(&args(30, Some("replica-1"), None, 0)), [30, 50, 70, 90]);
        assert_eq!(steps(&args(0, None, Some("deposed"), 0)), [40]);
        assert!(steps(&args(50, None, Some("deposed"), 3)).is_empty());
    }

    #[test]
    fn surroundings_are_shown_once() {
        assert_eq!(steps(&args(0, None, Some("deposed"), 2)), [20, 30, 40, 50, 60]);
        assert_eq!(steps(&args(0, Some("replica-0"), None, 1)), (0..10).map(|n| n * 10).collect::<Vec<_>>());
        assert_eq!(steps(&args(0, None, Some("deposed"), usize::MAX)).len(), 10);
    }

    #[test]
    fn a_listing_has_one_line_for_each_event() {
        let log = log();
        let text = render(&[&log[4], &log[5]]);
        assert_eq!(
            text,
            "STEP       AT  ACTOR      EVENT   DETAIL\n  40  1.000 s  replica-0  append  {\"why\":\"deposed\"}\n  \
             50  1.250 s  replica-1  append  fine"
        );
    }

    #[test]
    fn a_reader_steps_jumps_finds_and_ends() {
        assert_eq!(wish(""), Wish::Next);
        assert_eq!(wish(" 120\r"), Wish::Step(120));
        assert_eq!(wish("/no room"), Wish::Find("no room"));
        assert_eq!((wish("q"), wish("b"), wish("what")), (Wish::Quit, Wish::Back, Wish::Unclear));
        let answers = "\n40\n/nowhere\nb\nwhat\n9999\nq\nnever read\n";
        let ended = step_through(&log(), 20, answers.as_bytes(), &Output::new(false)).unwrap();
        assert_eq!(ended, Answer::Yes);
        let none = step_through(&log(), 999, "".as_bytes(), &Output::new(false)).unwrap();
        assert_eq!(none, Answer::No);
    }

    #[test]
    fn a_line_that_is_no_event_is_named_unless_it_is_a_last_one_cut_off() {
        let line = "{\"step\":1,\"at_ms\":0,\"actor\":\"a\",\"event\":\"e\"}";
        let error = read(format!("{line}\n\nnonsense\n{line}\n").as_bytes()).unwrap_err();
        assert!(error.to_string().starts_with("line 3 is not an event"), "{error}");
        assert!(error.is::<Usage>());
        assert!(read("nonsense".as_bytes()).is_err());
        assert_eq!(read(format!("{line}\n{line}\n{{\"step\":2,\"at").as_bytes()).unwrap().len(), 2);
    }
}
