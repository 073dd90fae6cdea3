//! One instance as a process on this machine: its group, its output, its end. Owns signals; decides nothing.
//!
//! The rule it keeps: an instance is a process group of its own. A signal that the terminal sends to the supervisor does not
//! reach it, so that it ends only when it is told to, and whatever it started ends with it.

use std::ffi::OsString;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

use crate::output::{self, Stream};

/// A longer line of an instance is shown in pieces, so that one without line ends cannot fill the memory.
const LINE_BYTES_MAX: u64 = 64 * 1024;
/// How often to look whether the last process of a group has ended: nothing tells of those that are not our children.
const GROUP_LOOK: Duration = Duration::from_millis(20);

/// How to start an instance.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The agent, for the prefix of what it says.
    pub(crate) agent: String,
    /// The program and its arguments.
    pub(crate) command: Vec<OsString>,
    /// What it finds in its environment beside ours.
    pub(crate) variables: Vec<(String, String)>,
}

/// A running instance.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    group: Option<Pid>,
    /// Since when it runs.
    pub(crate) since: Instant,
}

impl Process {
    /// Starts one under a number.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub(crate) fn start(plan: &Plan, number: u32) -> std::io::Result<Self> {
        let (program, arguments) = plan.command.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
        let mut child = Command::new(program)
            .args(arguments)
            .envs(plan.variables.iter().map(|(name, value)| (name, value)))
            .env(super::NUMBER_VARIABLE, number.to_string())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let prefix = format!("{}-{number} | ", plan.agent);
        if let Some(out) = child.stdout.take() {
            tokio::spawn(forward(out, prefix.clone(), Stream::Out));
        }
        if let Some(err) = child.stderr.take() {
            tokio::spawn(forward(err, prefix, Stream::Err));
        }
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Ok(Self { child, group, since: Instant::now() })
    }

    /// Waits until it has ended by itself. Cancellation-safe.
    pub(crate) async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Asks the whole group to end, and kills what is left of it after the grace; says whether that was needed.
    pub(crate) async fn end(mut self, grace: Duration) -> bool {
        self.signal(Signal::TERM);
        let gone = timeout(grace, async {
            // Reaped first: a child that has ended and was not waited for still counts as one of its group.
            drop(self.child.wait().await);
            while self.group.is_some_and(|group| test_kill_process_group(group).is_ok()) {
                tokio::time::sleep(GROUP_LOOK).await;
            }
        });
        let killed = gone.await.is_err();
        if killed {
            self.signal(Signal::KILL);
            drop(self.child.wait().await);
        }
        self.group = None;
        killed
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group
            && let Err(error) = kill_process_group(group, signal)
        {
            tracing::debug!(%error, "the group has ended already");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The supervisor gives up, and nobody would look after it.
        self.signal(Signal::KILL);
    }
}

/// Shows what an instance says, line by line under its name. Goes on when nobody reads ours: it must never wait for us.
async fn forward(from: impl AsyncRead + Unpin, prefix: String, stream: Stream) {
    let mut from = BufReader::new(from);
    let mut line = prefix.clone().into_bytes();
    loop {
        line.truncate(prefix.len());
        let read = (&mut from).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
        if !matches!(read, Ok(1..)) {
            return;
        }
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        output::forward(stream, &line);
    }
}
