//! `mesh call`: a request from the command line, governed like any other. Owns the caller's agent and how a reply is shown.
//!
//! The rule it keeps: it never takes the name of an agent that offers something, since registering under a name replaces
//! what was registered there.

use std::io::Read;
use std::time::Duration;

use anyhow::Context;
use async_nats::jetstream;
use clap::Args;
use governance::{DispatchId, Outcome, Priority, Reason, Registration};
use protocol::control::ReplyView;
use protocol::{json, streams};
use serde_json::value::RawValue;
use worker_sdk::{Agent, Dispatch, Error, ErrorKind, Pending, Reply};

use crate::answer::{Answer, Usage};
use crate::mesh::{CONNECT_TIMEOUT, Mesh};
use crate::moment;
use crate::output::Output;

pub(crate) const EXAMPLES: &str = concat!(
    "The payload of the reply goes to stdout, how it came about to stderr. With --json stdout holds one object ",
    "with id, outcome, reason, target, lane_ms, inbox_ms, ran_ms and payload, for failures too. ",
    "Ctrl-C withdraws the request.\n\n",
    "Examples:\n",
    "  mesh call scoring_engine score '{\"budget\": 500000}'\n",
    "  mesh call --any score '{\"budget\": 500000}' --priority P1 --budget 2s\n",
    "  mesh call lead_bot converse - --conversation sms-17 < message.json",
);

pub(crate) const USAGE: &str =
    "mesh call [OPTIONS] TARGET CAPABILITY [JSON]\n       mesh call [OPTIONS] --any CAPABILITY [JSON]";

/// Who calls where nothing is said.
const CALLER: &str = "mesh_cli";
/// How many calls of the usual caller stay declared: more than are under way at once, and few enough to read.
const DECLARATIONS_KEPT: usize = 16;

#[derive(Debug, Args)]
pub(crate) struct CallArgs {
    /// The agent (left out with --any), the capability, and the payload: JSON, or - to read it from stdin [default: null]
    #[arg(value_names = ["TARGET", "CAPABILITY", "JSON"], num_args = 1..=3, required = true)]
    words: Vec<String>,
    /// Lets the mesh choose an agent that offers the capability: passing, then least loaded.
    #[arg(long)]
    any: bool,
    /// How urgent it is. P0 needs a right in the policy.
    #[arg(long, default_value = "P2", value_name = "P0..P3")]
    priority: Priority,
    /// How long it may take, from acceptance to outcome, as 500ms or 30s [default: what the policy says]
    #[arg(long, value_parser = moment::parse_duration, value_name = "TIME")]
    budget: Option<Duration>,
    /// The key of the conversation that it belongs to.
    #[arg(long, value_name = "KEY")]
    conversation: Option<String>,
    /// The name of the calling agent; it is registered with the dependency that the call needs.
    #[arg(long = "as", default_value = CALLER, value_name = "NAME")]
    name: String,
}

pub(crate) async fn run(args: CallArgs, mesh: &Mesh, output: &Output) -> anyhow::Result<Answer> {
    let call = Call::read(&args, &mut std::io::stdin())?;
    let connecting = worker_sdk::Mesh::connect(&mesh.nats_url);
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.with_context(|| {
        format!("the broker at {} does not answer in time", crate::mesh::shown(&mesh.nats_url))
    })?;
    let sdk = connected.with_context(|| format!("the address is {}", mesh.found))?;
    let agent = match register(&sdk, &args.name, &call.dependency()).await? {
        Ok(agent) => agent,
        Err(error) => return failed(&error, output),
    };
    let answer = match dispatch(&agent, &call, &args).start().await {
        Ok(pending) => finish(pending, output).await?,
        Err(error) => failed(&error, output)?,
    };
    if let Err(error) = agent.stop().await {
        tracing::debug!(%error, "the caller did not say goodbye");
    }
    Ok(answer)
}

/// What is called, with what.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    target: Option<String>,
    capability: String,
    payload: String,
}

impl Call {
    fn read(args: &CallArgs, stdin: &mut impl Read) -> anyhow::Result<Self> {
        let mut words = args.words.iter().cloned();
        let target = if args.any { None } else { words.next() };
        let Some(capability) = words.next() else {
            return Err(Usage("name a capability: mesh call TARGET CAPABILITY [JSON]".to_owned()).into());
        };
        let mut payload = words.next().unwrap_or_else(|| "null".to_owned());
        if words.next().is_some() {
            return Err(Usage("--any takes a capability and a payload, and no target".to_owned()).into());
        }
        if payload == "-" {
            payload.clear();
            stdin.read_to_string(&mut payload).map_err(|e| Usage(format!("stdin cannot be read: {e}")))?;
        }
        if let Err(e) = serde_json::from_str::<&RawValue>(&payload) {
            return Err(Usage(format!("the payload is not JSON ({e}); a text is written '\"text\"'")).into());
        }
        Ok(Self { target, capability, payload })
    }

    /// What the caller has to declare.
    fn dependency(&self) -> String {
        format!("{}/{}", self.target.as_deref().unwrap_or("*"), self.capability)
    }
}

/// Registers the caller, with what it declared before and what this call needs.
async fn register(
    sdk: &worker_sdk::Mesh,
    name: &str,
    dependency: &str,
) -> anyhow::Result<Result<Agent, Error>> {
    let known = known(sdk, name).await?;
    if let Some(known) = &known
        && !(known.capabilities.is_empty() && known.topics.is_empty())
    {
        let words = format!("{name} is an agent that others call; choose another name with --as");
        return Err(Usage(words).into());
    }
    let mut builder = sdk.agent(name).register_within(CONNECT_TIMEOUT);
    for other in dependencies(name, known.as_ref(), dependency) {
        builder = builder.depends_on(&other);
    }
    Ok(builder.register().await)
}

/// What is registered under a name.
async fn known(sdk: &worker_sdk::Mesh, name: &str) -> anyhow::Result<Option<Registration>> {
    let js = jetstream::new(sdk.nats().clone());
    let agents = js
        .get_key_value(streams::AGENTS_BUCKET)
        .await
        .context("the mesh has no registrations; has a coordinator run? see: mesh doctor")?;
    // A name that is none is refused by the registration, which says why.
    let Ok(id) = governance::AgentId::new(name) else { return Ok(None) };
    let entry = agents.get(id.as_str()).await.context("the registrations cannot be read")?;
    Ok(entry.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// The declarations of a caller: the former ones stay, since another call under this name may be under way; of the usual
/// caller only the newest, or they would pile up.
fn dependencies(name: &str, known: Option<&Registration>, dependency: &str) -> Vec<String> {
    let mut all = known.map(|r| r.dependencies.clone()).unwrap_or_default();
    all.retain(|d| d != dependency);
    all.push(dependency.to_owned());
    if name == CALLER {
        all.drain(..all.len().saturating_sub(DECLARATIONS_KEPT));
    }
    all
}

fn dispatch(agent: &Agent, call: &Call, args: &CallArgs) -> Dispatch {
    let mut dispatch = match &call.target {
        Some(target) => agent.dispatch(target, &call.capability),
        None => agent.dispatch_to_any(&call.capability),
    };
    dispatch = dispatch.priority(args.priority).bytes(call.payload.clone().into_bytes(), "");
    if let Some(budget) = args.budget {
        dispatch = dispatch.budget(budget);
    }
    if let Some(key) = &args.conversation {
        dispatch = dispatch.conversation(key);
    }
    dispatch
}

/// Waits for the reply; shows progress, and withdraws the request on Ctrl-C.
async fn finish(mut pending: Pending, output: &Output) -> anyhow::Result<Answer> {
    let interrupted = tokio::signal::ctrl_c();
    let mut interrupted = std::pin::pin!(interrupted);
    loop {
        // Both arms may be dropped at any time: a note stays in its channel, and a signal is asked for once more.
        tokio::select! {
            note = pending.progress() => match note {
                Some(note) => output.note(&format!("progress: {note}")),
                None => break,
            },
            _ = &mut interrupted => {
                output.note("withdrawing the request");
                pending.cancel().await?;
                break;
            }
        }
    }
    match pending.reply().await {
        Ok(reply) => replied(&reply, output),
        Err(error) => failed(&error, output),
    }
}

fn replied(reply: &Reply, output: &Output) -> anyhow::Result<Answer> {
    let ms = |d: Duration| moment::rounded(d.as_secs_f64() * 1_000.0);
    let view = ReplyView {
        id: reply.id().to_string(),
        outcome: reply.outcome(),
        reason: reply.reason(),
        target: reply.target().to_owned(),
        lane_ms: ms(reply.waited_in_lane()),
        inbox_ms: ms(reply.waited_in_inbox()),
        ran_ms: ms(reply.ran()),
        payload: json::value(reply.payload()),
    };
    output.show(&view, || format!("{:#}", view.payload))?;
    if !output.is_json() {
        output.note(&summary(&view));
    }
    Ok(Answer::Yes)
}

fn failed(error: &Error, output: &Output) -> anyhow::Result<Answer> {
    let (outcome, reason) = match meaning(error.kind()) {
        Meaning::Ended(outcome, reason) => (outcome, reason),
        Meaning::Refused => {
            output.note(&format!("mesh: {error}"));
            return Ok(Answer::No);
        }
        Meaning::AskedWrongly => return Err(Usage(error.to_string()).into()),
        Meaning::NotKnown => return Err(error.clone().into()),
    };
    let view = ReplyView {
        id: error.id().as_ref().map(DispatchId::to_string).unwrap_or_default(),
        outcome,
        reason,
        target: error.target().to_owned(),
        lane_ms: 0.0,
        inbox_ms: 0.0,
        ran_ms: 0.0,
        payload: json::value(error.message().as_bytes()),
    };
    if output.is_json() {
        output.json(&view)?;
    } else {
        output.note(&failure(&view));
    }
    Ok(Answer::No)
}

/// What an error means to the one who called.
enum Meaning {
    /// The dispatch has an outcome, which is recorded.
    Ended(Outcome, Reason),
    /// The mesh said no before it took the dispatch.
    Refused,
    /// What was asked cannot be sent.
    AskedWrongly,
    /// The mesh could not be asked, or whether it took the dispatch is unknown.
    NotKnown,
}

fn meaning(kind: ErrorKind) -> Meaning {
    match kind {
        ErrorKind::Rejected(reason) => Meaning::Ended(Outcome::Rejected, reason),
        ErrorKind::TimedOut(reason) => Meaning::Ended(Outcome::Timeout, reason),
        ErrorKind::CircuitBroken => Meaning::Ended(Outcome::CircuitBroken, Reason::BreakerTripped),
        ErrorKind::Cancelled => Meaning::Ended(Outcome::Cancelled, Reason::CancelledByCaller),
        ErrorKind::Failed(reason) => Meaning::Ended(Outcome::Failure, reason),
        ErrorKind::LaneFull | ErrorKind::Registration => Meaning::Refused,
        ErrorKind::Encoding => Meaning::AskedWrongly,
        ErrorKind::Connection | ErrorKind::Closed | ErrorKind::Unknown => Meaning::NotKnown,
        // The SDK may learn further kinds; what is not known here says nothing about the outcome.
        _ => Meaning::NotKnown,
    }
}

fn summary(view: &ReplyView) -> String {
    let because = if view.reason == Reason::Ok { String::new() } else { format!(" ({})", view.reason) };
    format!(
        "{}{because} by {}: lane {:.2} ms, inbox {:.2} ms, ran {:.2} ms\ntrace it: mesh trace {}",
        view.outcome, view.target, view.lane_ms, view.inbox_ms, view.ran_ms, view.id
    )
}

fn failure(view: &ReplyView) -> String {
    let by = if view.target.is_empty() { String::new() } else { format!(" by {}", view.target) };
    // A refusal of the mesh says what to do; a handler's error is what it wrote.
    let words = view.payload.get("message").unwrap_or(&view.payload);
    let words = words.as_str().map_or_else(|| words.to_string(), str::to_owned);
    let mut text = format!("{}{by} ({}): {words}", view.outcome, view.reason);
    if !view.id.is_empty() {
        text.push_str(&format!("\ntrace it: mesh trace {}", view.id));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        call: CallArgs,
    }

    fn read(words: &[&str], mut stdin: &[u8]) -> anyhow::Result<Call> {
        let only = Only::try_parse_from([&["call"], words].concat())?;
        Call::read(&only.call, &mut stdin)
    }

    #[test]
    fn a_call_names_target_capability_and_payload() {
        let call = read(&["scoring_engine", "score", "{\"a\": 1}"], b"").unwrap();
        assert_eq!(call.dependency(), "scoring_engine/score");
        assert_eq!(call.payload, "{\"a\": 1}");
        assert_eq!(read(&["scoring_engine", "score"], b"").unwrap().payload, "null");
        assert_eq!(read(&["scoring_engine", "score", "-"], b"[1]").unwrap().payload, "[1]");
    }

    #[test]
    fn any_leaves_the_target_out() {
        let call = read(&["--any", "score", "-5"], b"").unwrap_err();
        assert!(call.to_string().contains("-5"), "a number below zero looks like an option: {call}");
        let call = read(&["--any", "score", "5"], b"").unwrap();
        assert_eq!((call.target, call.capability.as_str()), (None, "score"));
        assert!(read(&["--any", "scoring_engine", "score", "5"], b"").is_err());
    }

    #[test]
    fn a_payload_that_is_not_json_is_refused_before_anything_is_asked() {
        let error = read(&["scoring_engine", "score", "{a: 1}"], b"").unwrap_err();
        assert_eq!(crate::answer::exit_code_of(&error), crate::answer::USAGE);
        assert!(read(&["scoring_engine"], b"").is_err());
    }

    #[test]
    fn former_declarations_stay() {
        let known: Registration =
            serde_json::from_value(serde_json::json!({"agent": "x", "dependencies": ["a/b"]})).unwrap();
        assert_eq!(dependencies("x", Some(&known), "c/d"), ["a/b", "c/d"]);
        assert_eq!(dependencies("x", Some(&known), "a/b"), ["a/b"]);
        assert_eq!(dependencies("x", None, "a/b"), ["a/b"]);
    }

    #[test]
    fn declarations_of_the_usual_caller_do_not_pile_up() {
        let many: Vec<String> = (0..40).map(|n| format!("agent_{n}")).collect();
        let known: Registration =
            serde_json::from_value(serde_json::json!({"agent": CALLER, "dependencies": many})).unwrap();
        let kept = dependencies(CALLER, Some(&known), "a/b");
        assert_eq!(kept.len(), DECLARATIONS_KEPT);
        assert_eq!(kept.last().map(String::as_str), Some("a/b"));
        assert_eq!(dependencies("people", Some(&known), "a/b").len(), 41);
    }

    #[test]
    fn a_refusal_is_shown_in_the_words_of_the_mesh() {
        let view = ReplyView {
            id: "d-0000000000000001-1-0".into(),
            outcome: Outcome::Rejected,
            reason: Reason::UnknownCapability,
            target: "scoring_engine".into(),
            lane_ms: 0.0,
            inbox_ms: 0.0,
            ran_ms: 0.0,
            payload: serde_json::json!({"error": "unknown_capability", "message": "it does not offer scoer"}),
        };
        assert_eq!(
            failure(&view),
            "rejected by scoring_engine (unknown_capability): it does not offer scoer\n\
             trace it: mesh trace d-0000000000000001-1-0"
        );
    }
}
