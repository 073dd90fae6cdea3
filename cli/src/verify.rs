//! `mesh verify`: whether the audit is what was written. Owns the options and how the answer is shown; the proof is the archiver's
//! library.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use audit_archiver::checkpoint::PublicKey;
use audit_archiver::verify::bundle::{self, BundleVerdict, Bundled};
use audit_archiver::verify::{Request, Verdict, verify};
use clap::Args;
use governance::Timestamp;

use crate::answer::{Answer, Usage};
use crate::mesh::{Mesh, shown};
use crate::moment;
use crate::output::Output;

pub(crate) const EXAMPLES: &str = concat!(
    "Compared are: the ids and hashes of all blocks, in PostgreSQL and on into Redis to its head; each row with its block; the copies ",
    "in both stores; the cursors; and, where checkpoints are given, each signed line and each head it names. ",
    "It changes nothing, and a mesh at work is no break.\n\n",
    "Exit codes: 0 nothing is broken; 1 something is, and the first break of each shard is named; 69 a store cannot be read.\n\n",
    "Examples:\n",
    "  mesh verify\n",
    "  mesh verify --since 7d --checkpoints /mnt/witness/checkpoints --public-key checkpoint.pub\n",
    "  mesh verify --json | jq .breaks\n",
    "  mesh verify --offline day.bundle --public-key checkpoint.pub",
);

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Only since the beginning of this time's UTC day: a time back, as 15m or 24h, a moment, or `all`.
    #[arg(long, default_value = "all", value_parser = moment::parse_since, value_name = "TIME")]
    since: Timestamp,
    /// A folder of signed checkpoints; more than one may be given [else MESH_CHECKPOINTS].
    #[arg(long, value_name = "DIR")]
    checkpoints: Vec<PathBuf>,
    /// The public key of the checkpoints, or a file with it; more than one where the key was changed
    /// [else MESH_CHECKPOINT_PUBLIC_KEY].
    #[arg(long, value_name = "HEX|FILE")]
    public_key: Vec<String>,
    /// Checks a bundle that `mesh audit export --proof` wrote, by itself: no server is asked.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["since", "checkpoints"])]
    offline: Option<PathBuf>,
}

pub(crate) async fn run(args: &VerifyArgs, mesh: &Mesh, output: &Output) -> anyhow::Result<Answer> {
    if let Some(file) = &args.offline {
        return check(file, &public_keys(&args.public_key, mesh)?, output);
    }
    let request = request(args, mesh)?;
    let started = Instant::now();
    let verdict = verify(&request)
        .await
        .with_context(|| format!("cannot verify the archive at {}", shown(&mesh.postgres_url)))?;
    output.show(&verdict, || render(&verdict))?;
    output.note(&format!("in {}", moment::millis(i64::try_from(started.elapsed().as_micros())?)));
    Ok(Answer::when(verdict.whole))
}

/// Writes a bundle, whole or not at all.
pub(crate) async fn export(
    since: Timestamp,
    file: &Path,
    mesh: &Mesh,
    output: &Output,
) -> anyhow::Result<()> {
    let checkpoints = existing(mesh);
    let keys = if checkpoints.is_empty() { Vec::new() } else { public_keys(&[], mesh)? };
    let mut name = file.as_os_str().to_owned();
    name.push(".new");
    let unfinished = PathBuf::from(name);
    let cannot = || format!("cannot write {}", unfinished.display());
    let mut out = BufWriter::new(File::create(&unfinished).with_context(cannot)?);
    let exported = bundle::export(&mesh.postgres_url, since, &checkpoints, &keys, &mut out).await;
    let exported = match exported {
        Ok(exported) => exported,
        Err(error) => {
            // The reason for having no bundle is the error; half a one is of no use.
            drop(std::fs::remove_file(&unfinished));
            return Err(error).context("no bundle was written");
        }
    };
    out.into_inner()
        .map_err(std::io::IntoInnerError::into_error)
        .and_then(|file| file.sync_all())
        .with_context(cannot)?;
    std::fs::rename(&unfinished, file).with_context(|| format!("cannot write {}", file.display()))?;
    if exported.checkpoints == 0 {
        output.note("mesh: no checkpoint signs any of it, so the bundle proves nothing yet; see --checkpoints of the archiver");
    }
    output.show(&exported, || {
        let Bundled { lines, blocks, checkpoints } = exported;
        format!("{}: {lines} lines, {blocks} blocks, {checkpoints} checkpoints", file.display())
    })?;
    Ok(())
}

fn check(file: &Path, keys: &[PublicKey], output: &Output) -> anyhow::Result<Answer> {
    if keys.is_empty() {
        let words =
            "name the key that signed the checkpoints with --public-key: without one a bundle proves nothing";
        return Err(Usage(words.into()).into());
    }
    let cannot = || format!("cannot read {}", file.display());
    let verdict =
        bundle::check(BufReader::new(File::open(file).with_context(cannot)?), keys).with_context(cannot)?;
    output.show(&verdict, || render_bundle(&verdict))?;
    Ok(Answer::when(verdict.whole))
}

fn render_bundle(verdict: &BundleVerdict) -> String {
    let mut lines: Vec<String> = Vec::new();
    for fault in &verdict.faults {
        let place = if fault.line == 0 { "at its end".to_owned() } else { format!("line {}", fault.line) };
        lines.push(format!("BROKEN  {place}: {}", fault.problem));
    }
    if verdict.further > 0 {
        lines.push(format!("        and {} more", verdict.further));
    }
    lines.extend(verdict.remarks.iter().map(|remark| format!("note    {remark}")));
    let Bundled { lines: log, blocks, checkpoints } = verdict.checked;
    lines.push(format!("checked {log} lines of the log, {blocks} blocks, {checkpoints} checkpoints"));
    lines.push(if verdict.whole { "whole: nothing is broken".to_owned() } else { "broken".to_owned() });
    lines.join("\n")
}

/// Verifies since a moment, with the checkpoints and the key that the mesh names.
pub(crate) async fn since(since: Timestamp, mesh: &Mesh) -> anyhow::Result<Verdict> {
    let args = VerifyArgs { since, checkpoints: Vec::new(), public_key: Vec::new(), offline: None };
    Ok(verify(&request(&args, mesh)?).await?)
}

fn request(args: &VerifyArgs, mesh: &Mesh) -> anyhow::Result<Request> {
    let checkpoints = if args.checkpoints.is_empty() { existing(mesh) } else { args.checkpoints.clone() };
    let keys = if checkpoints.is_empty() { Vec::new() } else { public_keys(&args.public_key, mesh)? };
    if keys.is_empty() && !checkpoints.is_empty() {
        let words = "checkpoints are of no use without the key that signed them: name it with --public-key; \
                     `audit-archiver checkpoint-key` prints it";
        return Err(Usage(words.into()).into());
    }
    Ok(Request {
        postgres_url: mesh.postgres_url.clone(),
        redis_url: mesh.redis_url.clone(),
        since: args.since,
        checkpoints,
        keys,
    })
}

/// The folder that the mesh names, once an archiver has made it.
fn existing(mesh: &Mesh) -> Vec<PathBuf> {
    mesh.checkpoints.iter().filter(|folder| folder.is_dir()).cloned().collect()
}

/// The keys that were named, each as it stands or in a file; else that of the mesh.
pub(crate) fn public_keys(named: &[String], mesh: &Mesh) -> anyhow::Result<Vec<PublicKey>> {
    let of_the_mesh = if named.is_empty() { mesh.checkpoint_public_key.as_slice() } else { &[] };
    named.iter().chain(of_the_mesh).map(|text| public_key(text)).collect()
}

fn public_key(text: &str) -> anyhow::Result<PublicKey> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    let read = std::fs::read_to_string(Path::new(text)).map_err(|error| {
        Usage(format!("--public-key {text:?} is neither 64 hexadecimal digits nor a file: {error}"))
    })?;
    read.parse().map_err(|error| Usage(format!("{text}: {error}")).into())
}

pub(crate) fn render(verdict: &Verdict) -> String {
    let mut lines: Vec<String> = verdict.breaks.iter().map(|found| format!("BROKEN  {found}")).collect();
    if verdict.further > 0 {
        lines.push(format!("        and {} more behind these", verdict.further));
    }
    for trouble in &verdict.checkpoints {
        let (file, line) = (trouble.file.display(), trouble.line);
        lines.push(format!("BROKEN  checkpoint {file}, line {line}: {}", trouble.problem));
    }
    lines.extend(verdict.remarks.iter().map(|remark| format!("note    {remark}")));
    let c = &verdict.compared;
    lines.push(format!(
        "compared {} blocks of {} shards ({} also or only in Redis, {} not archived yet), {} records with {} rows, {} \
         checkpoints with {} heads",
        c.blocks, c.shards, c.blocks_in_redis, c.blocks_not_archived, c.records, c.rows, c.checkpoints, c.heads
    ));
    lines.push(if verdict.whole { "whole: nothing is broken".to_owned() } else { "broken".to_owned() });
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use audit_archiver::verify::{Break, Kind, Store};
    use protocol::redis::EntryId;

    #[test]
    fn a_break_is_one_line_that_names_everything() {
        let found = Break {
            shard: 3,
            block: EntryId { epoch: 2, sequence: 17 },
            kind: Kind::RowChanged,
            record: Some("decision of d-0000000000001003-1-4".into()),
            store: Store::Postgres,
            expected: "reason 0".into(),
            found: "reason 23".into(),
        };
        let verdict = Verdict { breaks: vec![found], further: 2, ..Verdict::default() };
        let text = render(&verdict);
        assert!(
            text.starts_with(
                "BROKEN  shard 3, block 2-17, decision of d-0000000000001003-1-4, in PostgreSQL: row changed: expected \
                 reason 0; found reason 23\n        and 2 more"
            ),
            "{text}"
        );
        assert!(text.ends_with("\nbroken"));
        let json = serde_json::to_value(&verdict).unwrap();
        assert_eq!(json["breaks"][0]["kind"], "row_changed");
        assert_eq!(json["breaks"][0]["block"], "2-17");
    }

    #[test]
    fn a_key_is_digits_or_a_file_of_them() {
        assert!(public_key("nowhere").unwrap_err().to_string().contains("neither"));
        // The base point of the curve: a key that is one.
        let digits = format!("58{}", "66".repeat(31));
        assert!(public_key(&digits).is_ok());
    }
}
