//! Folders of checkpoints: their files, and whether the lines in them are all there. Owns the names of files and the order of
//! lines.
//!
//! The rule it keeps: each line names the one before by its hash, so one that was changed, removed or put elsewhere is noticed by
//! the next. What only the newest line could show, its age shows.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use governance::Timestamp;
use serde::Serialize;

use super::{LineHash, PublicKey, Signed, line_hash, read_line};
use crate::day::Day;

const PREFIX: &str = "checkpoints-";
const SUFFIX: &str = ".jsonl";

/// What is wrong with a line, or missing before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// The file.
    pub file: PathBuf,
    /// The line in it, from 1.
    pub line: usize,
    /// What is wrong.
    pub problem: String,
}

/// The checkpoints of some folders.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Those whose signature holds, by their moments.
    pub signed: Vec<Signed>,
    /// What is wrong with others, or missing between them.
    pub troubles: Vec<Trouble>,
    /// What is no fault, and good to know.
    pub remarks: Vec<String>,
}

/// The name of a series' file of a day.
pub(super) fn file_name(day: Day, series: &str) -> String {
    format!("{PREFIX}{}-{series}{SUFFIX}", day.compact())
}

/// The files of a folder, oldest day first.
pub(super) fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let ours = |name: &str| name.starts_with(PREFIX) && name.ends_with(SUFFIX);
        if path.file_name().and_then(|name| name.to_str()).is_some_and(ours) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The day that the name of a file says.
fn day_of(file: &Path) -> Option<Day> {
    let name = file.file_name()?.to_str()?;
    Day::parse_compact(name.get(PREFIX.len()..PREFIX.len() + 8)?)
}

/// The hash of the newest line of a folder: what the first line of a new series names as the one before.
pub(super) fn newest_hash(folder: &Path) -> io::Result<Option<LineHash>> {
    Ok(newest_line(folder)?.map(|line| line_hash(&line)))
}

/// The newest line of a folder, unchecked; none where it has no lines.
///
/// # Errors
/// When the folder or a file cannot be read.
pub fn newest_line(folder: &Path) -> io::Result<Option<String>> {
    let mut newest: Option<(Timestamp, String)> = None;
    let mut day = None;
    for file in files(folder)?.into_iter().rev() {
        // Older days hold older lines.
        let of = day_of(&file);
        if newest.is_some() && of != day {
            break;
        }
        day = of;
        let text = std::fs::read_to_string(&file)?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let Some(line) = whole.lines().next_back() else { continue };
        let at = serde_json::from_str::<super::Checkpoint>(line).map(|c| c.at).unwrap_or_default();
        if newest.as_ref().is_none_or(|(before, _)| at >= *before) {
            newest = Some((at, line.to_owned()));
        }
    }
    Ok(newest.map(|(_, line)| line))
}

/// Reads all lines of all folders from a UTC day on, checks each signature, and that no line is missing between two others.
///
/// # Errors
/// When a folder or a file cannot be read.
pub fn read_folders(folders: &[PathBuf], keys: &[PublicKey], from: Day) -> io::Result<Found> {
    let mut found = Found::default();
    let mut lines = Vec::new();
    for folder in folders {
        let files =
            files(folder).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", folder.display())))?;
        for file in files.into_iter().filter(|file| day_of(file).is_none_or(|day| day >= from)) {
            read_file(&file, keys, &mut lines, &mut found)
                .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", file.display())))?;
        }
    }
    look_for_gaps(&lines, &mut found);
    found.signed = lines.into_iter().map(|line| line.signed).collect();
    found.signed.sort_by_key(|signed| signed.checkpoint.at);
    Ok(found)
}

/// A line and its place.
struct Line {
    file: PathBuf,
    number: usize,
    signed: Signed,
}

fn read_file(file: &Path, keys: &[PublicKey], lines: &mut Vec<Line>, found: &mut Found) -> io::Result<()> {
    let text = std::fs::read_to_string(file)?;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let Some(line) = line.strip_suffix('\n') else {
            found.remarks.push(format!(
                "{} ends within a line: it is being written, or the archiver died in it",
                file.display()
            ));
            continue;
        };
        match read_line(line, keys) {
            Ok(signed) => lines.push(Line { file: file.to_owned(), number: index + 1, signed }),
            Err(error) => {
                found.troubles.push(Trouble {
                    file: file.to_owned(),
                    line: index + 1,
                    problem: error.to_string(),
                });
            }
        }
    }
    Ok(())
}

fn look_for_gaps(lines: &[Line], found: &mut Found) {
    let hashes: HashSet<LineHash> = lines.iter().map(|line| line.signed.hash).collect();
    let mut series: BTreeMap<&str, Vec<&Line>> = BTreeMap::new();
    for line in lines {
        series.entry(&line.signed.checkpoint.series).or_default().push(line);
    }
    let oldest = lines.iter().map(|line| line.signed.checkpoint.at).min();
    for of_one in series.values_mut() {
        of_one.sort_by_key(|line| line.signed.checkpoint.number);
        let mut before: Option<&Line> = None;
        for line in of_one {
            let checkpoint = &line.signed.checkpoint;
            let problem = match before {
                Some(before) if checkpoint.number != before.signed.checkpoint.number + 1 => Some(format!(
                    "it is number {} of its series and comes after number {}: lines between them are missing, or one is \
                     there twice",
                    checkpoint.number, before.signed.checkpoint.number
                )),
                Some(before) if checkpoint.previous != before.signed.hash => {
                    Some("the line before it is not the one that it names".to_owned())
                }
                None if checkpoint.previous != [0; 32] && !hashes.contains(&checkpoint.previous) => {
                    if Some(checkpoint.at) == oldest {
                        found.remarks.push(format!(
                            "the checkpoints begin with number {} of series {}; older lines are not here",
                            checkpoint.number, checkpoint.series
                        ));
                        None
                    } else {
                        Some("the line before it is missing, and older ones are there".to_owned())
                    }
                }
                Some(_) | None => None,
            };
            if let Some(problem) = problem {
                found.troubles.push(Trouble { file: line.file.clone(), line: line.number, problem });
            }
            before = Some(line);
        }
    }
}
