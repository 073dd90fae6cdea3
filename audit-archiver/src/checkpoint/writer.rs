//! The archiver's writing of checkpoints. Owns its rhythm and its files: one for each run of an archiver and UTC day, appended to and
//! brought to the disk line by line.
//!
//! The rule it keeps: nothing here can hold up archiving. What cannot be written is an alarm, and is tried again.

use std::fs::{File, OpenOptions};
use std::hash::BuildHasher;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use governance::{SHARDS, Timestamp};
use protocol::redis::Head;
use tokio_util::sync::CancellationToken;

use super::folder::{file_name, newest_hash};
use super::{Checkpoint, CheckpointKey, FORM, LineHash, ShardHead, line_hash};
use crate::day::{self, Day};
use crate::metrics::Metrics;
use crate::trail::Trail;
use crate::worker::Chain;

/// After so many intervals without a checkpoint the alarm is on.
const OVERDUE_INTERVALS: u32 = 3;
/// The longest pause after a checkpoint that could not be written.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Writes a checkpoint at each interval until told to stop.
pub(crate) struct Writer {
    pub(crate) folder: PathBuf,
    pub(crate) key: CheckpointKey,
    pub(crate) every: Duration,
    pub(crate) redis_url: String,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stop: CancellationToken,
}

/// Why there is no checkpoint this time.
#[derive(Debug, thiserror::Error)]
enum Missed {
    #[error("Redis did not say where the trail stands")]
    Redis(#[from] redis::RedisError),
    #[error("the line could not be written")]
    File(#[from] io::Error),
}

impl Writer {
    pub(crate) async fn run(self) {
        let mut series = Some(Series::new(self.folder.clone()));
        // From the start on, so that a folder that was never writable is an alarm as well.
        let mut newest = day::now();
        while !self.stop.is_cancelled() {
            let missed = match self.stop.run_until_cancelled(self.write(&mut series)).await {
                None => return,
                Some(Ok(at)) => {
                    newest = at;
                    self.metrics.checkpoint_at.set((at.as_micros() / 1_000_000) as i64);
                    None
                }
                Some(Err(missed)) => Some(missed),
            };
            let overdue = day::now().since(newest) > self.every * OVERDUE_INTERVALS;
            self.metrics.checkpoint_overdue.set(i64::from(overdue));
            if let Some(missed) = &missed {
                self.metrics.checkpoints_missed.inc();
                tracing::error!(error = %Chain(missed), folder = %self.folder.display(), overdue, "no checkpoint was written");
            }
            let pause = if missed.is_some() { self.every.min(RETRY_MAX) } else { self.every };
            self.stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
    }

    async fn write(&self, series: &mut Option<Series>) -> Result<Timestamp, Missed> {
        let shards = self.read_heads().await?;
        let at = Timestamp::from_millis(day::now().as_micros() / 1_000);
        let mut of = series.take().unwrap_or_else(|| Series::new(self.folder.clone()));
        // A disk may take its time.
        let written = tokio::task::spawn_blocking(move || {
            let opened = of.open(Day::of(at));
            (opened, of)
        })
        .await;
        let (opened, mut of) = written.expect("opening a file does not panic");
        if let Err(error) = opened {
            *series = Some(of);
            return Err(error.into());
        }
        let line = self.key.sign(&of.next(at, shards));
        let written = tokio::task::spawn_blocking(move || {
            let written = of.append(&line);
            (written, of)
        })
        .await;
        let (written, of) = written.expect("writing a line does not panic");
        *series = Some(of);
        written?;
        Ok(at)
    }

    async fn read_heads(&self) -> Result<Vec<ShardHead>, Missed> {
        let shards: Vec<u8> = (0..SHARDS).collect();
        let mut trail = Trail::connect(&self.redis_url).await?;
        // How far it is archived first: what is said to be archived is then never ahead of the head beside it.
        let archived = trail.archived(&shards).await?;
        let heads = trail.heads(&shards).await?;
        let known = heads.into_iter().filter(|(_, head)| *head != Head::default());
        Ok(known
            .map(|(shard, head)| ShardHead {
                shard,
                head: head.id,
                hash: head.hash,
                archived: archived.get(&shard).copied().unwrap_or_default(),
            })
            .collect())
    }
}

/// The lines of one run of an archiver.
struct Series {
    folder: PathBuf,
    name: String,
    /// Lines that were written.
    number: u64,
    /// The hash of the last one; none before the folder was looked at.
    previous: Option<LineHash>,
    file: Option<DayFile>,
}

/// The file of a day, and how much of it is whole lines.
struct DayFile {
    day: Day,
    file: File,
    whole: u64,
}

impl Series {
    fn new(folder: PathBuf) -> Self {
        // Random, so that no two runs write into one file, whatever their clocks and process ids are.
        let name = format!("{:016x}", std::hash::RandomState::new().hash_one(day::now().0));
        Self { folder, name, number: 0, previous: None, file: None }
    }

    /// Has the file of a day at hand.
    fn open(&mut self, day: Day) -> io::Result<()> {
        if self.previous.is_none() {
            std::fs::create_dir_all(&self.folder)?;
            self.previous = Some(newest_hash(&self.folder)?.unwrap_or_default());
        }
        if self.file.as_ref().is_none_or(|open| open.day != day) {
            let path = self.folder.join(file_name(day, &self.name));
            let file = OpenOptions::new().append(true).create(true).open(path)?;
            sync_folder(&self.folder)?;
            let whole = file.metadata()?.len();
            self.file = Some(DayFile { day, file, whole });
        }
        Ok(())
    }

    fn next(&self, at: Timestamp, shards: Vec<ShardHead>) -> Checkpoint {
        Checkpoint {
            form: FORM,
            series: self.name.clone(),
            number: self.number + 1,
            at,
            previous: self.previous.unwrap_or_default(),
            shards,
        }
    }

    /// Appends a line, on the disk when this returns. What was written of a line that failed is taken back.
    fn append(&mut self, line: &str) -> io::Result<()> {
        let Some(open) = &mut self.file else { return Err(io::Error::other("no file is open")) };
        // Also what an earlier try could not take back.
        open.file.set_len(open.whole)?;
        let written = open.file.write_all(format!("{line}\n").as_bytes()).and_then(|()| open.file.sync_all());
        if let Err(error) = written {
            if let Err(error) = open.file.set_len(open.whole) {
                tracing::warn!(%error, "half a line stays until the next one");
            }
            return Err(error);
        }
        open.whole += line.len() as u64 + 1;
        self.number += 1;
        self.previous = Some(line_hash(line));
        Ok(())
    }
}

/// A new file's name is on the disk only with its folder.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::super::{PublicKey, read_folders};
    use super::*;

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("mesh-checkpoints-{name}-{}", std::process::id()));
            drop(std::fs::remove_dir_all(&path));
            Self(path)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }

    fn key() -> CheckpointKey {
        "5".repeat(64).parse().unwrap()
    }

    fn write(series: &mut Series, seconds: u64) {
        let at = Timestamp::from_millis(1_771_060_995_000 + seconds * 1_000);
        series.open(Day::of(at)).unwrap();
        let line = key().sign(&series.next(at, Vec::new()));
        series.append(&line).unwrap();
    }

    fn troubles(place: &Place) -> Vec<String> {
        let keys: [PublicKey; 1] = [key().public()];
        read_folders(std::slice::from_ref(&place.0), &keys, Day(0))
            .unwrap()
            .troubles
            .into_iter()
            .map(|t| t.problem)
            .collect()
    }

    fn edit(place: &Place, file: usize, change: impl FnOnce(Vec<&str>) -> Vec<String>) {
        let path = super::super::folder::files(&place.0).unwrap().remove(file);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: String = change(text.lines().collect()).into_iter().map(|line| line + "\n").collect();
        std::fs::write(&path, lines).unwrap();
    }

    /// Two runs, the first over midnight: three files.
    fn three_files(name: &str) -> Place {
        let place = Place::new(name);
        let mut first = Series::new(place.0.clone());
        (0..3).for_each(|i| write(&mut first, i));
        (86_400..86_403).for_each(|i| write(&mut first, i));
        let mut second = Series::new(place.0.clone());
        (86_500..86_503).for_each(|i| write(&mut second, i));
        place
    }

    #[test]
    fn runs_and_days_are_one_chain() {
        let place = three_files("whole");
        assert_eq!(troubles(&place), Vec::<String>::new());
        let keys = [key().public()];
        let found = read_folders(std::slice::from_ref(&place.0), &keys, Day(0)).unwrap();
        assert_eq!((found.signed.len(), found.remarks.len()), (9, 0));
    }

    #[test]
    fn a_line_that_is_missing_is_noticed_by_the_next() {
        for gone in [0, 1, 2] {
            let place = three_files(&format!("gone-{gone}"));
            edit(&place, 0, |mut lines| {
                lines.remove(gone);
                lines.into_iter().map(Into::into).collect()
            });
            let expected = usize::from(gone > 0);
            assert_eq!(troubles(&place).len(), expected, "the oldest may go, and is then said to be gone");
        }
    }

    #[test]
    fn a_whole_file_that_is_missing_is_noticed() {
        let place = three_files("file");
        // The one in the middle: its first line is the fourth of its series.
        let is_second = |file: &&PathBuf| std::fs::read_to_string(file).unwrap().contains("\"number\":4");
        let files = super::super::folder::files(&place.0).unwrap();
        std::fs::remove_file(files.iter().find(is_second).unwrap()).unwrap();
        assert_eq!(troubles(&place).len(), 1, "{:?}", troubles(&place));
    }

    #[test]
    fn a_changed_line_is_named() {
        let place = three_files("changed");
        edit(&place, 0, |lines| {
            lines.iter().map(|line| line.replace("\"number\":2", "\"number\":7")).collect()
        });
        let found = troubles(&place);
        assert!(found[0].contains("signature"), "{found:?}");
    }

    #[test]
    fn half_a_line_is_taken_back_before_the_next() {
        let place = Place::new("half");
        let mut series = Series::new(place.0.clone());
        write(&mut series, 0);
        series.file.as_mut().unwrap().file.write_all(b"{\"checkpoint\":1,").unwrap();
        write(&mut series, 1);
        assert_eq!(troubles(&place), Vec::<String>::new());
    }
}
