//! The processes of the stack around a run: what each took of the processors and what it holds in memory, from /proc.
//!
//! Owns no figure. The rule it keeps: a process is measured with its children, and pages that several share count once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::args::Args;

/// The kernel counts processor time in hundredths of a second, on every architecture that this runs on.
const TICKS_PER_S: u64 = 100;
/// This process: senders and handlers on the worker SDK.
pub(crate) const OWN: &str = "loadgen (SDK)";

/// What a process has used so far, and what it holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Of all its threads and children, those that have ended included.
    pub(crate) cpu: Duration,
    /// Bytes in memory.
    pub(crate) resident: u64,
}

/// The processes that are measured: this one, and those whose ids are in the stack's folder.
#[derive(Debug, Clone)]
pub(crate) struct Processes {
    run: Option<PathBuf>,
}

impl Processes {
    pub(crate) fn of(args: &Args) -> Self {
        Self { run: args.stack_folder.as_ref().map(|folder| folder.join("run")) }
    }

    /// Each by its name. One that is down is left out.
    pub(crate) fn sample(&self) -> BTreeMap<String, Usage> {
        let mut all = BTreeMap::new();
        all.extend(usage(std::process::id()).map(|usage| (OWN.to_owned(), usage)));
        let files = self.run.iter().filter_map(|run| std::fs::read_dir(run).ok()).flatten().flatten();
        for path in files.map(|file| file.path()) {
            let name = path.file_stem().and_then(|stem| stem.to_str());
            if let (Some(name), true) = (name, path.extension().is_some_and(|e| e == "pid"))
                && let Some(usage) = process_id(&path).and_then(usage)
            {
                all.insert(name.to_owned(), usage);
            }
        }
        all
    }
}

fn process_id(path: &Path) -> Option<u32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A process with its children.
fn usage(pid: u32) -> Option<Usage> {
    let mut total = Usage { cpu: ended_children(pid)?, resident: 0 };
    let (mut shared, mut waiting) = (0, vec![pid]);
    while let Some(pid) = waiting.pop() {
        // One that has just ended is nobody's any more.
        let Some((cpu, memory)) = one(pid) else { continue };
        total.cpu += cpu;
        total.resident += memory.own;
        shared = shared.max(memory.shared);
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        waiting.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
    }
    total.resident += shared;
    Some(total)
}

/// Bytes that a process holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Memory {
    own: u64,
    /// Of files and of memory that it may share with its like.
    shared: u64,
}

fn one(pid: u32) -> Option<(Duration, Memory)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let [own, _] = cpu_of(&stat)?;
    Some((own, memory_of(&status)))
}

fn ended_children(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    cpu_of(&stat).map(|[_, children]| children)
}

/// What a process itself took, and what its children that have ended took, of `/proc/<pid>/stat`.
fn cpu_of(stat: &str) -> Option<[Duration; 2]> {
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let time = |user: usize, system: usize| {
        Some(Duration::from_millis((ticks(user)? + ticks(system)?) * 1_000 / TICKS_PER_S))
    };
    Some([time(11, 12)?, time(13, 14)?])
}

/// Of `/proc/<pid>/status`.
fn memory_of(status: &str) -> Memory {
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|value| value.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0)
            * 1_024
    };
    Memory { own: bytes("RssAnon"), shared: bytes("RssFile") + bytes("RssShmem") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 7 3 20 0 9 0 100 0 0";
        assert_eq!(cpu_of(stat), Some([Duration::from_secs(3), Duration::from_millis(100)]));
        let status = "Name:\tx\nVmRSS:\t  99 kB\nRssAnon:\t  40 kB\nRssFile:\t  8 kB\nRssShmem:\t 2 kB\n";
        assert_eq!(memory_of(status), Memory { own: 40 * 1_024, shared: 10 * 1_024 });
    }

    #[test]
    fn this_process_is_seen_and_one_that_is_gone_is_not() {
        let folder = std::env::temp_dir().join(format!("loadgen-processes-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("nats.pid"), format!("{}\n", std::process::id())).unwrap();
        std::fs::write(folder.join("gone.pid"), "4194305\n").unwrap();
        std::fs::write(folder.join("nats.ready"), "").unwrap();
        let all = Processes { run: Some(folder.clone()) }.sample();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), [OWN, "nats"]);
        assert!(all.values().all(|usage| usage.resident > 1 << 20), "{all:?}");
    }
}
