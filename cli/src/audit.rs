//! `mesh audit`: the log under the article's names. Owns how it is followed and printed; the archive owns what is in it.
//!
//! The rule it keeps: an exported line begins with the article's fields in the article's order; further ones stand behind.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use audit_archiver::archive::{Archive, LogRow};
use clap::{Args, Subcommand};
use futures::TryStreamExt;
use governance::Timestamp;
use protocol::text::rfc3339;

use crate::answer::Answer;
use crate::mesh::Mesh;
use crate::moment;
use crate::output::{Lines, Output};
use crate::verify;

/// How often a followed log is looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);
/// How far behind the newest row others may still come: shards are archived one by one, and late ones are behind.
const STRAGGLERS: Duration = Duration::from_secs(10);
/// How long an open dispatch is followed for its end. What takes longer is found in the log later.
const OPEN_FOLLOWED: Duration = Duration::from_secs(300);

/// Among how many rows, for each that is wanted, those of one agent or conversation are looked for; and among how many at
/// least.
const SEARCHED: u32 = 100;
const SEARCHED_MIN: u32 = 10_000;

const EXPORT_EXAMPLES: &str = concat!(
    "A line has, in this order: dispatch_id, timestamp, source, target, type, capability, latency_ms, outcome, priority; ",
    "behind them payload_hash, reason, decision, lane, lane_ms, inbox_ms, ran_ms, attempt, root, parent, conversation, ",
    "policy_version, shard, epoch, block. The reply of a request has a line of its own, of type response or error. ",
    "Payloads are never in it.\n\n",
    "Examples:\n",
    "  mesh audit export --since 24h > day.jsonl\n",
    "  mesh audit export --since 2026-02-14T09:00:00Z --conversation sms-17\n",
    "  mesh audit export --since 24h --proof day.bundle\n",
    "  mesh audit export --since 1h | jq -r 'select(.outcome == \"timeout\") | .dispatch_id'",
);

#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The newest rows of the log.
    Tail {
        /// Goes on with what comes, until Ctrl-C.
        #[arg(short, long)]
        follow: bool,
        /// How many rows to begin with.
        #[arg(short = 'n', long, default_value_t = 20, value_name = "N")]
        rows: u32,
        #[command(flatten)]
        only: Only,
    },
    /// The log as JSON, one object in a line, oldest first.
    #[command(after_help = EXPORT_EXAMPLES)]
    Export {
        /// Begins there: a time back, as 15m or 24h, a moment, or `all`.
        #[arg(long, value_parser = moment::parse_since, value_name = "TIME")]
        since: Timestamp,
        /// Writes a bundle there instead: the lines, the audit blocks that they follow from, and the signed checkpoints of
        /// those. `mesh verify --offline` checks it on any machine.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["agent", "conversation"])]
        proof: Option<PathBuf>,
        #[command(flatten)]
        only: Only,
    },
}

/// Which rows are wanted.
#[derive(Debug, Clone, Default, Args)]
struct Only {
    /// Only what this agent sent or received.
    #[arg(long, value_name = "AGENT")]
    agent: Option<String>,
    /// Only this conversation.
    #[arg(long, value_name = "KEY")]
    conversation: Option<String>,
}

impl Only {
    const fn takes_all(&self) -> bool {
        self.agent.is_none() && self.conversation.is_none()
    }

    fn takes(&self, row: &LogRow) -> bool {
        let agent = |a: &String| row.source == *a || row.target.as_ref() == Some(a);
        let conversation = |c: &String| row.conversation.as_ref() == Some(c);
        self.agent.as_ref().is_none_or(agent) && self.conversation.as_ref().is_none_or(conversation)
    }
}

pub(crate) async fn run(args: &AuditArgs, mesh: &Mesh, output: &Output) -> anyhow::Result<Answer> {
    let archive = mesh.archive().await?;
    match &args.verb {
        Verb::Tail { follow, rows, only } => {
            let mut printer = Printer::new(output, only.clone());
            let newest = newest(&archive, *rows, only).await?;
            newest.iter().try_for_each(|row| printer.print(row))?;
            printer.lines.flush()?;
            if *follow {
                follow_log(&archive, &mut printer, &newest).await?;
            }
        }
        Verb::Export { since, proof: Some(file), .. } => verify::export(*since, file, mesh, output).await?,
        Verb::Export { since, only, proof: None } => {
            let mut lines = Lines::new();
            let mut rows = std::pin::pin!(archive.export(*since).await?);
            while let Some(row) = rows.try_next().await? {
                if only.takes(&row) {
                    lines.json(&row)?;
                }
            }
            lines.flush()?;
        }
    }
    Ok(Answer::Yes)
}

/// The newest rows of those that are wanted.
async fn newest(archive: &Archive, rows: u32, only: &Only) -> anyhow::Result<Vec<LogRow>> {
    let among = if only.takes_all() { rows } else { rows.saturating_mul(SEARCHED).max(SEARCHED_MIN) };
    let mut found = archive.tail(among).await?;
    found.retain(|row| only.takes(row));
    let surplus = found.len().saturating_sub(rows as usize);
    found.drain(..surplus);
    Ok(found)
}

/// Prints what is new, until it is stopped.
async fn follow_log(archive: &Archive, printer: &mut Printer, printed: &[LogRow]) -> anyhow::Result<()> {
    let mut seen = Seen::after(printed, moment::now());
    loop {
        let mut rows = std::pin::pin!(archive.export(seen.look_from()).await?);
        while let Some(row) = rows.try_next().await? {
            if seen.is_news(&row) {
                printer.print(&row)?;
            }
        }
        printer.lines.flush()?;
        seen.forget();
        tokio::time::sleep(FOLLOW_EVERY).await;
    }
}

/// What was printed: each row once when it appears, and once more when it ends.
#[derive(Debug)]
struct Seen {
    /// By id: when it was accepted, and whether it had ended.
    rows: BTreeMap<String, (Timestamp, bool)>,
    newest: Timestamp,
    /// What is as old as this and turns up in the first look was there before: it was printed, or not asked for.
    old: Timestamp,
}

impl Seen {
    /// Begins behind rows that were printed.
    fn after(printed: &[LogRow], now: Timestamp) -> Self {
        let mut seen = Self { rows: BTreeMap::new(), newest: now, old: Timestamp::ZERO };
        for row in printed {
            seen.is_news(row);
        }
        seen.old = printed.last().map_or(Timestamp::ZERO, |row| row.timestamp);
        seen
    }

    fn is_news(&mut self, row: &LogRow) -> bool {
        self.newest = self.newest.max(row.timestamp);
        let ended = row.outcome.is_some();
        let before = self.rows.insert(row.dispatch_id.clone(), (row.timestamp, ended));
        before.map_or(row.timestamp > self.old, |(_, ended_before)| ended && !ended_before)
    }

    /// From when on rows may be news.
    fn look_from(&self) -> Timestamp {
        let before = |d: Duration| Timestamp(self.newest.0.saturating_sub(governance::time::nanos(d)));
        let open = self.rows.values().filter(|(_, ended)| !ended).map(|(at, _)| *at).min();
        before(STRAGGLERS).min(open.unwrap_or(Timestamp::MAX)).max(before(OPEN_FOLLOWED))
    }

    /// Forgets what is not looked at any more.
    fn forget(&mut self) {
        let from = self.look_from();
        self.rows.retain(|_, (at, _)| *at >= from);
        self.old = Timestamp::ZERO;
    }
}

/// Prints rows as they come: columns of fixed width, since the next rows are not known yet.
struct Printer {
    lines: Lines,
    json: bool,
    only: Only,
    titled: bool,
}

impl Printer {
    fn new(output: &Output, only: Only) -> Self {
        Self { lines: Lines::new(), json: output.is_json(), only, titled: false }
    }

    fn print(&mut self, row: &LogRow) -> std::io::Result<()> {
        if !self.only.takes(row) {
            return Ok(());
        }
        if self.json {
            return self.lines.json(row);
        }
        if !std::mem::replace(&mut self.titled, true) {
            self.lines.text(&columns([
                "TIMESTAMP",
                "TYPE",
                "P",
                "SOURCE → TARGET/CAPABILITY",
                "LATENCY",
                "OUTCOME",
                "ID",
            ]))?;
        }
        self.lines.text(&line(row))
    }
}

fn line(row: &LogRow) -> String {
    let who = format!(
        "{} → {}/{}",
        if row.source.is_empty() { "?" } else { &row.source },
        row.target.as_deref().unwrap_or("?"),
        row.capability.as_deref().unwrap_or("?")
    );
    let outcome = row.outcome.as_deref().unwrap_or("open");
    let because = if row.reason == "ok" { String::new() } else { format!(" ({})", row.reason) };
    let latency = row.latency_ms.map_or_else(|| "-".to_owned(), |ms| moment::millis((ms * 1_000.0) as i64));
    columns([
        &rfc3339(row.timestamp),
        &row.r#type,
        &row.priority,
        &who,
        &latency,
        &format!("{outcome}{because}"),
        &row.dispatch_id,
    ])
}

fn columns(cells: [&str; 7]) -> String {
    let [at, kind, priority, who, latency, outcome, id] = cells;
    format!("{at:<24}  {kind:<8}  {priority:<2}  {who:<50}  {latency:>9}  {outcome:<32}  {id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> LogRow {
        LogRow {
            dispatch_id: "d-7f3a2b1c00000001-2a-0".into(),
            timestamp: Timestamp::from_millis(1_771_060_995_482),
            source: "jorge_lead_bot".into(),
            target: Some("intent_decoder".into()),
            r#type: "request".into(),
            capability: Some("analyze_lead".into()),
            latency_ms: Some(142.25),
            outcome: Some("success".into()),
            priority: "P0".into(),
            payload_hash: Some("00ff".into()),
            reason: "ok".into(),
            decision: "admitted".into(),
            lane: "P0".into(),
            lane_ms: Some(0.25),
            inbox_ms: Some(0.5),
            ran_ms: Some(140.0),
            attempt: Some(1),
            root: "d-7f3a2b1c00000001-2a-0".into(),
            parent: None,
            conversation: Some("sms-17".into()),
            policy_version: 1,
            shard: 7,
            epoch: 3,
            block: 12,
        }
    }

    #[test]
    fn an_exported_line_begins_like_the_article_s_example() {
        assert_eq!(
            serde_json::to_string(&row()).unwrap(),
            "{\"dispatch_id\":\"d-7f3a2b1c00000001-2a-0\",\"timestamp\":\"2026-02-14T09:23:15.482Z\",\
             \"source\":\"jorge_lead_bot\",\"target\":\"intent_decoder\",\"type\":\"request\",\
             \"capability\":\"analyze_lead\",\"latency_ms\":142.25,\"outcome\":\"success\",\"priority\":\"P0\",\
             \"payload_hash\":\"00ff\",\"reason\":\"ok\",\"decision\":\"admitted\",\"lane\":\"P0\",\"lane_ms\":0.25,\
             \"inbox_ms\":0.5,\"ran_ms\":140.0,\"attempt\":1,\"root\":\"d-7f3a2b1c00000001-2a-0\",\"parent\":null,\
             \"conversation\":\"sms-17\",\"policy_version\":1,\"shard\":7,\"epoch\":3,\"block\":12}"
        );
    }

    #[test]
    fn a_row_for_people_is_one_line() {
        assert_eq!(
            line(&row()),
            "2026-02-14T09:23:15.482Z  request   P0  jorge_lead_bot → intent_decoder/analyze_lead         \
             \u{20} 142 ms  success                           d-7f3a2b1c00000001-2a-0"
        );
        let open = LogRow { outcome: None, latency_ms: None, reason: "demoted_from_p0".into(), ..row() };
        assert!(line(&open).contains("  open (demoted_from_p0)  "), "{}", line(&open));
    }

    #[test]
    fn rows_are_chosen_by_agent_and_conversation() {
        let only = |agent: Option<&str>, conversation: Option<&str>| Only {
            agent: agent.map(Into::into),
            conversation: conversation.map(Into::into),
        };
        assert!(only(None, None).takes(&row()));
        assert!(only(Some("intent_decoder"), Some("sms-17")).takes(&row()));
        assert!(!only(Some("crm_client"), None).takes(&row()));
        assert!(!only(None, Some("sms-18")).takes(&row()));
    }

    #[test]
    fn a_followed_row_is_news_when_it_appears_and_when_it_ends() {
        let mut seen = Seen::after(&[], Timestamp::ZERO);
        let open = LogRow { outcome: None, ..row() };
        assert!(seen.is_news(&open));
        assert!(!seen.is_news(&open));
        assert!(seen.is_news(&row()));
        assert!(!seen.is_news(&row()));
    }

    #[test]
    fn what_was_there_before_is_no_news_but_its_end_is() {
        let other = |id: &str, ms: u64| LogRow {
            dispatch_id: id.into(),
            timestamp: Timestamp::from_millis(1_771_060_995_482 + ms),
            ..row()
        };
        let mut seen = Seen::after(&[LogRow { outcome: None, ..row() }], Timestamp::ZERO);
        assert!(!seen.is_news(&other("d-older", 0)));
        assert!(seen.is_news(&other("d-newer", 1)));
        assert!(seen.is_news(&row()));
        seen.forget();
        assert!(seen.is_news(&other("d-straggler", 0)));
    }

    #[test]
    fn what_is_open_is_looked_at_again_but_not_for_ever() {
        let at = |s: u64, outcome: Option<&str>| LogRow {
            dispatch_id: format!("d-{s}"),
            timestamp: Timestamp::from_millis(s * 1_000),
            outcome: outcome.map(Into::into),
            ..row()
        };
        let mut seen = Seen::after(&[], Timestamp::ZERO);
        seen.is_news(&at(1_000, None));
        seen.is_news(&at(1_100, Some("success")));
        assert_eq!(seen.look_from(), Timestamp::from_millis(1_000_000));
        seen.is_news(&at(1_400, Some("success")));
        assert_eq!(seen.look_from(), Timestamp::from_millis(1_100_000));
        seen.forget();
        assert_eq!(seen.look_from(), Timestamp::from_millis(1_390_000));
        assert_eq!(seen.rows.len(), 2);
    }
}
