//! An export that proves itself: lines of the log, the blocks that they follow from, and the checkpoints that sign those. Owns the
//! form of the file, its writing and its check, which needs no server.
//!
//! One JSON object in a line: a header, then `checkpoint` lines as they were signed, then `block`s byte for byte, shard by shard, then
//! `line`s of the log. The rule it keeps: nothing in the file is believed but the public key that the reader brings.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use futures::TryStreamExt;
use governance::{DispatchId, Timestamp};
use protocol::audit::{self, Block, BlockHash, CompletionRow};
use protocol::redis::{EntryId, Head};
use protocol::text::{hex, rfc3339, unhex};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Error;
use super::snapshot::{Snapshot, id};
use crate::archive::{LogRow, SinceMoment, rows_since};
use crate::checkpoint::{Checkpoint, PublicKey, Signed, read_folders, read_line};
use crate::day::{self, Day};

/// The form that this code writes and reads.
const FORM: u8 = 1;
/// Problems that are named one by one.
const NAMED_MAX: usize = 50;
/// How much earlier than its dispatches a block may say it was written.
const SLACK_NANOS: u64 = 60_000_000_000;

/// One line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Entry {
    Header { bundle: u8, since_ns: u64, made_at: String },
    Checkpoint { checkpoint: String },
    Block { shard: u8, block: String, data: String },
    Line { line: Value },
}

/// How much a bundle holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Bundled {
    /// Blocks.
    pub blocks: u64,
    /// Lines of the log.
    pub lines: u64,
    /// Signed checkpoints.
    pub checkpoints: u64,
}

/// Something wrong with a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The line of the file, from 1; 0 where something is missing.
    pub line: u64,
    /// What is wrong.
    pub problem: String,
}

/// The answer about a bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BundleVerdict {
    /// Whether nothing is wrong.
    pub whole: bool,
    /// What is wrong, the first fifty.
    pub faults: Vec<Fault>,
    /// How many more.
    pub further: u64,
    /// What is no fault and good to know.
    pub remarks: Vec<String>,
    /// How much was checked.
    pub checked: Bundled,
    /// Blocks behind the last signed head of their shard.
    pub unsigned_blocks: u64,
}

/// Writes the log since a moment with everything that proves it.
///
/// # Errors
/// When PostgreSQL or the folders cannot be read, or the file cannot be written.
pub async fn export(
    postgres_url: &str,
    since: Timestamp,
    checkpoints: &[PathBuf],
    keys: &[PublicKey],
    out: &mut impl Write,
) -> Result<Bundled, Error> {
    // Before the snapshot, so that no head is newer than what is read.
    let found = read_folders(checkpoints, keys, Day::of(since))?;
    let snapshot = Snapshot::take(postgres_url).await?;
    let header = Entry::Header { bundle: FORM, since_ns: since.0, made_at: rfc3339(day::now()) };
    write(out, &header)?;
    let first = first_blocks(&snapshot, since).await?;
    let mut bundled = Bundled::default();
    for signed in covering(&found.signed, &first, &snapshot.cursors) {
        write(out, &Entry::Checkpoint { checkpoint: signed.line() })?;
        bundled.checkpoints += 1;
    }
    let query = "SELECT epoch, sequence, data FROM audit_block WHERE shard = $1 AND (epoch, sequence) >= ($2, $3) \
                 ORDER BY epoch, sequence";
    for (shard, from) in &first {
        let of = (i16::from(*shard), from.epoch.cast_signed(), from.sequence.cast_signed());
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 3] = [&of.0, &of.1, &of.2];
        let rows = snapshot.client().query_raw(query, parameters).await?;
        futures::pin_mut!(rows);
        while let Some(row) = rows.try_next().await? {
            let (block, data) = (id(row.get(0), row.get(1)).to_string(), hex(row.get(2)));
            write(out, &Entry::Block { shard: *shard, block, data })?;
            bundled.blocks += 1;
        }
    }
    let rows = rows_since(snapshot.client(), SinceMoment(since)).await?;
    futures::pin_mut!(rows);
    while let Some(row) = rows.try_next().await? {
        write(out, &Entry::Line { line: json(&row) })?;
        bundled.lines += 1;
    }
    out.flush()?;
    Ok(bundled)
}

fn write(out: &mut impl Write, entry: &Entry) -> io::Result<()> {
    serde_json::to_writer(&mut *out, entry)?;
    out.write_all(b"\n")
}

/// From which block on each shard is exported.
async fn first_blocks(snapshot: &Snapshot, since: Timestamp) -> Result<BTreeMap<u8, EntryId>, Error> {
    let query = "SELECT s.shard, b.epoch, b.sequence FROM generate_series(0, 63) s(shard) \
         CROSS JOIN LATERAL (SELECT epoch, sequence FROM audit_block WHERE shard = s.shard AND at >= $1 \
             ORDER BY epoch, sequence LIMIT 1) b";
    let from = SinceMoment(Timestamp(since.0.saturating_sub(SLACK_NANOS))).moment();
    let rows = snapshot.client().query(query, &[&from]).await?;
    Ok(rows.iter().map(|row| (row.get::<_, i32>(0) as u8, id(row.get(1), row.get(2)))).collect())
}

/// For each shard the newest checkpoint whose head is exported: by the chain it vouches for all before.
fn covering<'a>(
    signed: &'a [Signed],
    first: &BTreeMap<u8, EntryId>,
    cursors: &BTreeMap<u8, Head>,
) -> Vec<&'a Signed> {
    let mut open: Vec<u8> = first.keys().copied().collect();
    let mut chosen = Vec::new();
    for (i, one) in signed.iter().rev().enumerate() {
        let before = open.len();
        open.retain(|shard| {
            let head = one.checkpoint.shards.iter().find(|of| of.shard == *shard).map(|of| of.head);
            let last = cursors.get(shard).map(|cursor| cursor.id).unwrap_or_default();
            !head.is_some_and(|head| first.get(shard).is_some_and(|first| *first <= head) && head <= last)
        });
        // The newest also says how far everything was archived.
        if i == 0 || open.len() < before {
            chosen.push(one);
        }
        if open.is_empty() {
            break;
        }
    }
    chosen.reverse();
    chosen
}

fn json(row: &LogRow) -> Value {
    serde_json::to_value(row).unwrap_or_default()
}

/// Checks a bundle by itself.
///
/// # Errors
/// When the file cannot be read.
pub fn check(file: impl BufRead, keys: &[PublicKey]) -> io::Result<BundleVerdict> {
    let mut check = Check { keys: keys.to_vec(), ..Check::default() };
    for (i, line) in file.lines().enumerate() {
        check.take(i as u64 + 1, &line?);
    }
    Ok(check.finish())
}

/// One shard of a bundle.
#[derive(Debug, Default)]
struct Chain {
    begun: bool,
    last: Head,
    /// The hashes of the blocks, for the heads that checkpoints name.
    hashes: BTreeMap<EntryId, BlockHash>,
}

/// What was read of a bundle.
#[derive(Debug, Default)]
struct Check {
    keys: Vec<PublicKey>,
    since: Option<Timestamp>,
    verdict: BundleVerdict,
    checkpoints: Vec<(u64, Checkpoint)>,
    chains: BTreeMap<u8, Chain>,
    decisions: Vec<Block>,
    ends: HashMap<DispatchId, Vec<CompletionRow>>,
    lines: Vec<(u64, Value)>,
}

impl Check {
    fn fault(&mut self, line: u64, problem: String) {
        if self.verdict.faults.len() < NAMED_MAX {
            self.verdict.faults.push(Fault { line, problem });
        } else {
            self.verdict.further += 1;
        }
    }

    fn take(&mut self, number: u64, line: &str) {
        match serde_json::from_str(line) {
            Ok(Entry::Header { bundle: FORM, since_ns, .. }) if number == 1 => {
                self.since = Some(Timestamp(since_ns));
            }
            Ok(Entry::Checkpoint { checkpoint }) => match read_line(&checkpoint, &self.keys) {
                Ok(signed) => self.checkpoints.push((number, signed.checkpoint)),
                Err(error) => self.fault(number, format!("checkpoint: {error}")),
            },
            Ok(Entry::Block { shard, block, data }) => self.block(number, shard, &block, &data),
            Ok(Entry::Line { line }) => self.lines.push((number, line)),
            Ok(Entry::Header { .. }) | Err(_) => self.fault(number, "this is no line of a bundle".to_owned()),
        }
    }

    fn block(&mut self, number: u64, shard: u8, name: &str, data: &str) {
        let (Some(id), Some(bytes)) = (EntryId::parse(name), unhex(data)) else {
            return self.fault(number, format!("block {name} of shard {shard} cannot be read"));
        };
        let before = self.chains.get(&shard).filter(|chain| chain.begun).map(|chain| chain.last);
        let from = match (before, audit::Head::decode(&bytes)) {
            (Some(before), _) => before,
            // The first one may follow any: whether it is the right one, a signed head behind it says.
            (None, Ok(head)) => Head { id: preceding(id), hash: head.previous },
            (None, Err(_)) => Head::default(),
        };
        match crate::chain::check(shard, from, id, &bytes) {
            Ok(checked) => {
                let chain = self.chains.entry(shard).or_default();
                chain.begun = true;
                chain.last = checked.head;
                chain.hashes.insert(id, checked.head.hash);
                for end in checked.block.completions.iter().filter(|end| !end.late) {
                    for i in 0..end.count {
                        let of = DispatchId { slot: end.first.slot + i, ..end.first };
                        self.ends.entry(of).or_default().push(end.clone());
                    }
                }
                self.decisions.push(checked.block);
            }
            Err(broken) => {
                self.fault(number, format!("shard {shard}: {broken}"));
                // On from here, so that one break is named once.
                let chain = self.chains.entry(shard).or_default();
                chain.begun = true;
                chain.last = Head { id, hash: audit::hash(&bytes) };
                chain.hashes.insert(id, chain.last.hash);
            }
        }
        self.verdict.checked.blocks += 1;
    }

    fn finish(mut self) -> BundleVerdict {
        let Some(since) = self.since else {
            self.fault(1, "the file does not begin as a bundle".to_owned());
            return self.verdict;
        };
        self.heads();
        self.log(since);
        self.verdict.checked.lines = self.lines.len() as u64;
        self.verdict.checked.checkpoints = self.checkpoints.len() as u64;
        self.verdict.whole = self.verdict.faults.is_empty();
        self.verdict
    }

    /// Signed heads are the blocks that stand here, and nothing that was archived then is missing at the end.
    fn heads(&mut self) {
        let mut signed: BTreeMap<u8, EntryId> = BTreeMap::new();
        for (number, checkpoint) in std::mem::take(&mut self.checkpoints) {
            for of in &checkpoint.shards {
                let Some(chain) = self.chains.get(&of.shard) else { continue };
                let (hash, last) = (chain.hashes.get(&of.head).copied(), chain.last.id);
                let problem = match hash {
                    Some(hash) if hash != of.hash => Some(format!(
                        "shard {}: block {} has hash {}; signed is {}",
                        of.shard,
                        of.head,
                        hex(&hash),
                        hex(&of.hash)
                    )),
                    _ if of.archived > last => Some(format!(
                        "shard {}: the bundle ends with block {last}; archived up to {} is signed",
                        of.shard, of.archived
                    )),
                    Some(_) => {
                        let newest = signed.entry(of.shard).or_default();
                        *newest = (*newest).max(of.head);
                        None
                    }
                    None => None,
                };
                if let Some(problem) = problem {
                    self.fault(number, problem);
                }
            }
            self.checkpoints.push((number, checkpoint));
        }
        let mut unsigned_shards = Vec::new();
        for (shard, chain) in &self.chains {
            let newest = signed.get(shard).copied();
            let unsigned =
                chain.hashes.range(newest.unwrap_or_default()..).count() - usize::from(newest.is_some());
            self.verdict.unsigned_blocks += unsigned as u64;
            if newest.is_none() {
                let problem = format!(
                    "no checkpoint signs any of the {} blocks of shard {shard}: export again after the next checkpoint",
                    chain.hashes.len()
                );
                unsigned_shards.push(problem);
            }
        }
        unsigned_shards.into_iter().for_each(|problem| self.fault(0, problem));
        if self.verdict.unsigned_blocks > 0 {
            let text =
                "blocks stand behind the last signed head of their shard, and are shown by the chain alone";
            self.verdict.remarks.push(format!("{} {text}", self.verdict.unsigned_blocks));
        }
    }

    /// The lines are exactly those that follow from the blocks.
    fn log(&mut self, since: Timestamp) {
        let mut expected: HashMap<String, Vec<Value>> = HashMap::new();
        for block in &self.decisions {
            for row in super::lines::of_block(block, since, &self.ends) {
                expected.entry(row.dispatch_id.clone()).or_default().push(json(&row));
            }
        }
        let lines = std::mem::take(&mut self.lines);
        for (number, line) in &lines {
            let name = line.get("dispatch_id").and_then(Value::as_str).unwrap_or_default();
            let left = expected.get_mut(name);
            match left.and_then(|left| left.iter().position(|row| row == line).map(|at| left.swap_remove(at)))
            {
                Some(_) => {}
                None => {
                    let why = match expected.get_mut(name).and_then(Vec::pop) {
                        Some(row) => difference(&row, line),
                        None => "no block asks for it".to_owned(),
                    };
                    self.fault(*number, format!("line of {name}: {why}"));
                }
            }
        }
        let mut missing: Vec<&String> =
            expected.iter().filter(|(_, left)| !left.is_empty()).map(|(name, _)| name).collect();
        missing.sort();
        let missing: Vec<String> = missing.into_iter().cloned().collect();
        for name in missing {
            self.fault(0, format!("the line of {name} is missing"));
        }
        self.lines = lines;
    }
}

fn difference(expected: &Value, found: &Value) -> String {
    let fields = expected.as_object().into_iter().flatten();
    fields
        .filter(|(name, value)| found.get(name.as_str()) != Some(*value))
        .map(|(name, value)| {
            format!("{name} is {}, and {value} by its block", found.get(name).unwrap_or(&Value::Null))
        })
        .next()
        .unwrap_or_else(|| "it has fields that no line has".to_owned())
}

/// Some id that the given one may follow.
const fn preceding(id: EntryId) -> EntryId {
    if id.sequence == 1 {
        EntryId { epoch: id.epoch.saturating_sub(1), sequence: u64::MAX }
    } else {
        EntryId { epoch: id.epoch, sequence: id.sequence.saturating_sub(1) }
    }
}
