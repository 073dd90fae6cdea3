//! `trace`: a recording of conversations with a language model, sent again: when each request came, how long its context and
//! its answer were, how long the answer took to generate.
//!
//! Owns how the recording is read and what its numbers become. The rule it keeps: arrivals and running times are the
//! recording's, divided by one factor; nothing else is left out or evened.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use governance::Priority;
use time::PrimitiveDateTime;
use time::macros::format_description;

use crate::args::{Args, Trace};
use crate::books;
use crate::course::{Recent, Recording, Watched};
use crate::load::{Asked, interleaved, pace_at};
use crate::mesh::{self, CAPABILITY, OCTETS, Pair};
use crate::output;
use crate::payload::Payloads;
use crate::report::{Common, Percentiles};

/// A token of English is four bytes of text, as a rule of thumb.
const BYTES_PER_TOKEN: usize = 4;
/// What a target runs at once; a request that finds no slot waits in the inbox, and that counts as the mesh's time.
const CONCURRENT: u32 = 512;
/// Longer than any answer takes to generate at real speed.
const BUDGET: Duration = Duration::from_secs(600);
/// What the handler is to do stands in front of the payload: how long to run in microseconds, and the bytes of its reply.
const ORDER_BYTES: usize = 8;
/// The most tokens of a context or an answer: a payload must fit into a message of the broker.
const TOKENS_MAX: usize = 200_000;

/// One request of the recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    /// Since the first one, at real speed.
    at: Duration,
    context_tokens: usize,
    generated_tokens: usize,
}

/// Runs the scenario; whether the books balance.
pub(crate) async fn run(scenario: &Trace, args: &Args) -> anyhow::Result<bool> {
    let order = interleaved(&scenario.mix)?;
    let mut rows = read(&scenario.file)?;
    for row in &mut rows {
        row.at = row.at.div_f64(scenario.speed);
    }
    if let Some(seconds) = scenario.seconds {
        rows.retain(|row| row.at < Duration::from_secs(seconds));
    }
    let longest = rows.iter().map(|row| row.context_tokens.max(row.generated_tokens)).max().unwrap_or(0);
    let noise = Payloads::new(longest * BYTES_PER_TOKEN).next();
    let answers = noise.clone();
    let pairs = mesh::pairs_with(&args.nats_url, "trace", scenario.agents, CONCURRENT, move |order| {
        let answers = answers.clone();
        async move { obey(&order, &answers).await }
    })
    .await?;
    let (since, duration) = (SystemTime::now(), rows.last().map_or(Duration::ZERO, |row| row.at));
    let recent = Recent::new();
    let watched = Watched::pairs(&pairs).loops(&recent).shown(output::clock(duration, "asking"));
    let recording = Recording::start(args, watched).await;
    let asked = ask(scenario, &pairs, &order, (rows, &recent), &noise).await?;
    let course = recording.end().await?;
    let books = books::close(&args.postgres_url, since, &asked.accepted, &pairs).await?;
    mesh::stop(&pairs).await?;

    let [t0, t1, t2, t3] = asked.latency.each_ref().map(Percentiles::of);
    let mut report = serde_json::json!({
        "file": scenario.file.file_name().map(|name| name.to_string_lossy()),
        "speed": scenario.speed,
        "ms_per_token": scenario.ms_per_token,
        "seconds": duration.as_secs_f64().round(),
        "requests_per_s": (asked.sent as f64 / duration.as_secs_f64().max(f64::EPSILON)).round(),
        "with_handler": { "p0": t0, "p1": t1, "p2": t2, "p3": t3 },
        "distributions": asked.distributions([]),
        "course": course,
    });
    output::add(&mut report, &asked.told_of_mesh())?;
    output::add(&mut report, &books)?;
    output::finish(args, &Common::gather("trace", args), report)?;
    Ok(books.balance() && asked.failed == 0)
}

/// Sends each request at its time and waits for all replies.
async fn ask(
    scenario: &Trace,
    pairs: &[Pair],
    order: &[Priority],
    (rows, recent): (Vec<Row>, &Arc<Recent>),
    noise: &Bytes,
) -> anyhow::Result<Asked> {
    let epoch = Instant::now();
    let mut times = pace_at(epoch, rows.into_iter(), |row| row.at)?;
    let mut asked = Asked::new(epoch, Duration::ZERO).watched(recent);
    let per_token = Duration::from_millis(scenario.ms_per_token.into());
    while let Some(row) = times.recv().await {
        let number = asked.sent as usize;
        let pair = &pairs[number % pairs.len()];
        let ran = (per_token * row.generated_tokens as u32).div_f64(scenario.speed);
        let payload = command(
            ran,
            row.generated_tokens * BYTES_PER_TOKEN,
            &noise[..row.context_tokens * BYTES_PER_TOKEN],
        );
        let request =
            pair.source.dispatch(pair.target.name(), CAPABILITY).budget(BUDGET).bytes(payload, OCTETS);
        asked.ask(row.at, order[number / pairs.len() % order.len()], request)?;
    }
    asked.finish().await?;
    Ok(asked)
}

/// A payload that tells its handler what to do, before the context.
fn command(ran: Duration, reply_bytes: usize, context: &[u8]) -> Bytes {
    let mut payload = BytesMut::with_capacity(ORDER_BYTES + context.len());
    payload.put_u32_le(ran.as_micros() as u32);
    payload.put_u32_le(reply_bytes as u32);
    payload.put_slice(context);
    payload.freeze()
}

/// Does what a payload asks for: runs as long, answers as much.
async fn obey(payload: &Bytes, answers: &Bytes) -> Bytes {
    let number = |at: usize| {
        let bytes = payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        u32::from_le_bytes(bytes.unwrap_or_default())
    };
    tokio::time::sleep(Duration::from_micros(number(0).into())).await;
    answers.slice(..(number(4) as usize).min(answers.len()))
}

fn read(path: &Path) -> anyhow::Result<Vec<Row>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("failed to read the recording {} (--file)", path.display()))?;
    parse(&text).with_context(|| format!("{} is not a recording", path.display()))
}

fn parse(text: &str) -> anyhow::Result<Vec<Row>> {
    let mut lines = text.lines().enumerate();
    let header = lines.next().map(|(_, line)| line.trim_end()).unwrap_or_default();
    ensure!(
        header == "TIMESTAMP,ContextTokens,GeneratedTokens",
        "its first line must be TIMESTAMP,ContextTokens,GeneratedTokens, and is {header:?}"
    );
    let mut first = None;
    let mut rows: Vec<Row> = Vec::new();
    for (number, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        let (moment, context_tokens, generated_tokens) =
            fields(line.trim_end()).with_context(|| format!("line {}: {line:?}", number + 1))?;
        let since = moment - *first.get_or_insert(moment);
        let after = rows.last().map_or(Duration::ZERO, |row| row.at);
        let at = Duration::try_from(since).ok().filter(|at| *at >= after);
        let at = at.with_context(|| format!("line {}: it is earlier than the one before", number + 1))?;
        rows.push(Row { at, context_tokens, generated_tokens });
    }
    ensure!(!rows.is_empty(), "it has no request");
    Ok(rows)
}

fn fields(line: &str) -> anyhow::Result<(PrimitiveDateTime, usize, usize)> {
    let mut fields = line.split(',');
    let (Some(moment), Some(context), Some(generated), None) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        bail!("a request has three fields: TIMESTAMP, ContextTokens, GeneratedTokens");
    };
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond]");
    let moment = PrimitiveDateTime::parse(moment, format)
        .context("TIMESTAMP is written 2023-11-16 18:15:46.6805900")?;
    let tokens = |name: &str, text: &str| {
        let tokens = text.parse().ok().filter(|tokens| *tokens <= TOKENS_MAX);
        tokens.with_context(|| format!("{name} is a number from 0 to {TOKENS_MAX}, not {text:?}"))
    };
    Ok((moment, tokens("ContextTokens", context)?, tokens("GeneratedTokens", generated)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "TIMESTAMP,ContextTokens,GeneratedTokens\n";

    #[test]
    fn a_recording_is_read_relative_to_its_first_request() {
        let text =
            format!("{HEADER}2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.9951690,396,109\n");
        let rows = parse(&text).unwrap();
        assert_eq!(rows[0], Row { at: Duration::ZERO, context_tokens: 374, generated_tokens: 44 });
        assert_eq!(
            rows[1],
            Row { at: Duration::from_nanos(4_314_579_000), context_tokens: 396, generated_tokens: 109 }
        );
    }

    #[test]
    fn what_is_no_recording_is_refused_with_line_and_field() {
        for (text, said) in [
            (String::new(), "first line"),
            (HEADER.to_owned(), "no request"),
            (format!("{HEADER}2023-11-16,1,2\n"), "line 2"),
            (format!("{HEADER}2023-11-16 18:15:46.1,1\n"), "three fields"),
            (format!("{HEADER}2023-11-16 18:15:46.1,many,2\n"), "ContextTokens"),
            (
                format!("{HEADER}2023-11-16 18:15:46.2,1,2\n2023-11-16 18:15:46.1,1,2\n"),
                "line 3: it is earlier",
            ),
        ] {
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.contains(said), "{error}");
        }
    }

    #[tokio::test]
    async fn a_handler_answers_as_much_as_it_is_asked_for() {
        let answers = Bytes::from_static(&[7; 100]);
        let payload = command(Duration::from_micros(10), 12, b"context");
        assert_eq!(payload.len(), ORDER_BYTES + 7);
        assert_eq!(obey(&payload, &answers).await, answers.slice(..12));
        assert_eq!(obey(&command(Duration::ZERO, 500, b""), &answers).await.len(), 100);
        assert_eq!(obey(&Bytes::new(), &answers).await.len(), 0);
    }
}
