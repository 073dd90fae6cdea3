//! Owns the lead bots' processes: `mesh run`, which starts and stops them as the mesh decides, and what they wrote down.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::ledger::Ledger;

/// What a bot may take to finish what it runs, and the supervisor to see all of them end.
const STOP_PATIENCE: Duration = Duration::from_secs(40);
const GRACE: &str = "15s";

/// The supervisor and its children.
#[derive(Debug)]
pub(crate) struct Troop {
    supervisor: Child,
    effects: PathBuf,
}

impl Troop {
    /// Starts `mesh run`, which lies beside this program, with as many bots as there are at least.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(speed: u32, bots: (u32, u32)) -> anyhow::Result<Self> {
        let effects = std::env::temp_dir().join(format!("real-estate-peak-{}", std::process::id()));
        fs::create_dir_all(&effects).with_context(|| format!("{} cannot be made", effects.display()))?;
        let me = std::env::current_exe().context("this program has no path")?;
        let supervisor = Command::new(me.with_file_name("mesh"))
            .args(["run", "--agent", "lead_bot", "--min", &bots.0.to_string(), "--max", &bots.1.to_string()])
            .args(["--grace", GRACE, "--"])
            .arg(&me)
            .args(["lead-bot", "--speed", &speed.to_string(), "--effects"])
            .arg(&effects)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("`mesh run` cannot be started; is `mesh` beside this program?")?;
        Ok(Self { supervisor, effects })
    }

    /// Asks the supervisor to end, which ends the bots in order.
    ///
    /// # Errors
    /// When it does not end.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.supervisor.id() {
            let asked = Command::new("kill").args(["-TERM", &pid.to_string()]).status().await;
            anyhow::ensure!(asked.is_ok_and(|status| status.success()), "`mesh run` cannot be asked to end");
        }
        let ended = timeout(STOP_PATIENCE, self.supervisor.wait()).await;
        ended.context("`mesh run` does not end")?.context("`mesh run` cannot be waited for")?;
        Ok(())
    }

    /// Enters what the bots wrote down.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn effects(&self, ledger: &Ledger) -> anyhow::Result<()> {
        for file in fs::read_dir(&self.effects).context("the effects cannot be read")? {
            let text = fs::read_to_string(file?.path()).context("the effects cannot be read")?;
            text.lines().for_each(|id| ledger.effect(id));
        }
        Ok(())
    }
}

impl Drop for Troop {
    fn drop(&mut self) {
        // What cannot be removed is a few small files among the temporary ones.
        drop(fs::remove_dir_all(&self.effects));
    }
}
