//! The local supervisor with real children: shells that write down what happens to them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::*;

/// How long anything may take before the test has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// A grace that no test waits for.
const LONG: Duration = Duration::from_secs(600);
/// A child that says when it begins, works until it is asked to end, and says so.
const OBEDIENT: &str = "trap 'say drained; exit 0' TERM; say started; while :; do sleep 0.02; done";

/// A folder in which children write down what they do, and the actuator that starts them.
struct Stage {
    folder: PathBuf,
    actuator: LocalActuator,
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Left to the system's own cleaning where it cannot be removed.
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

impl Stage {
    fn new(name: &str, script: &str, grace: Duration) -> Self {
        let folder = std::env::temp_dir().join(format!("mesh-run-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let log = folder.join("log").display().to_string();
        let script = format!("say() {{ echo \"$1 $MESH_INSTANCE_NUMBER\" >>\"$LOG\"; }}; {script}");
        let plan = Plan {
            agent: "lead_bot".into(),
            command: ["sh", "-c", &script].map(OsString::from).to_vec(),
            variables: vec![("LOG".into(), log)],
        };
        Self { folder, actuator: LocalActuator::new(plan, grace, Duration::from_millis(100)) }
    }

    fn said(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    fn count(&self, line: &str) -> usize {
        self.said().iter().filter(|said| *said == line).count()
    }

    /// Waits until a line was written so often.
    async fn until_said(&self, line: &str, times: usize) {
        let said = async {
            while self.count(line) < times {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, said)
            .await
            .unwrap_or_else(|_| panic!("not in time: {line}: {:?}", self.said()));
    }

    async fn start(&mut self, instances: u32) {
        for number in 1..=instances {
            self.actuator.start_one().await.unwrap();
            self.until_said(&format!("started {number}"), 1).await;
        }
    }

    /// Waits until so many run and so many drain.
    async fn until_fleet(&mut self, running: u32, draining: u32) {
        let wanted = Fleet { running, draining };
        let settled = async {
            while self.actuator.instances().await.unwrap() != wanted {
                self.actuator.wait_change().await;
            }
        };
        tokio::time::timeout(PATIENCE, settled).await.unwrap_or_else(|_| panic!("not in time: {wanted:?}"));
    }
}

#[tokio::test]
async fn instances_are_numbered_and_the_newest_drains_first() {
    let mut stage = Stage::new("newest", OBEDIENT, LONG);
    stage.start(3).await;
    stage.actuator.stop_one().await.unwrap();
    stage.until_fleet(2, 0).await;
    assert_eq!((stage.count("drained 3"), stage.count("drained 1")), (1, 0));
    stage.actuator.start_one().await.unwrap();
    stage.until_said("started 3", 2).await;
    stage.actuator.end().await;
    assert_eq!(stage.actuator.instances().await.unwrap(), Fleet::default());
    assert_eq!([1, 2, 3].map(|n| stage.count(&format!("drained {n}"))), [1, 1, 2]);
}

#[tokio::test]
async fn an_instance_that_crashes_is_started_again_under_its_number_and_counts_meanwhile() {
    let script = "say started; [ -e \"$LOG.well\" ] || { touch \"$LOG.well\"; exit 3; }; trap 'exit 0' TERM; while :; do sleep 0.02; done";
    let mut stage = Stage::new("crash", script, LONG);
    stage.actuator.start_one().await.unwrap();
    stage.until_said("started 1", 2).await;
    assert_eq!(stage.actuator.instances().await.unwrap(), Fleet { running: 1, draining: 0 });
    stage.actuator.end().await;
    assert_eq!(stage.count("started 1"), 2);
}

#[tokio::test]
async fn one_that_does_not_end_is_killed_after_the_grace_with_all_it_started() {
    // The child ignores the signal, and so does the one that it starts.
    let script = "trap '' TERM; (trap '' TERM; say started; while :; do sleep 0.02; say alive; done) & wait";
    let mut stage = Stage::new("stubborn", script, Duration::from_millis(200));
    stage.start(1).await;
    stage.actuator.stop_one().await.unwrap();
    assert_eq!(stage.actuator.instances().await.unwrap(), Fleet { running: 0, draining: 1 });
    stage.until_fleet(0, 0).await;
    let alive = stage.count("alive 1");
    tokio::time::sleep(Duration::from_millis(200)).await;
    // One line may have been under way when it was killed.
    assert!(stage.count("alive 1") <= alive + 1, "its own child lives on");
}

#[tokio::test]
async fn what_an_instance_started_may_finish_within_the_grace() {
    // The shell ends at once when it is asked to; what it started takes a moment longer.
    let script =
        "(trap 'sleep 0.3; say finished; exit 0' TERM; say started; while :; do sleep 0.02; done) & wait";
    let mut stage = Stage::new("wrapper", script, LONG);
    stage.start(1).await;
    stage.actuator.stop_one().await.unwrap();
    stage.until_fleet(0, 0).await;
    assert_eq!(stage.count("finished 1"), 1);
}

#[tokio::test]
async fn one_that_pauses_after_a_crash_can_be_stopped_at_once() {
    let mut stage = Stage::new("pausing", "say started; exit 1", LONG);
    stage.start(1).await;
    stage.until_said("started 1", 3).await;
    stage.actuator.stop_one().await.unwrap();
    stage.until_fleet(0, 0).await;
}

#[tokio::test]
async fn a_program_that_is_not_there_cannot_be_started() {
    let mut stage = Stage::new("missing", "", LONG);
    let plan = Plan { agent: "a".into(), command: vec!["no-such-program".into()], variables: vec![] };
    stage.actuator = LocalActuator::new(plan, LONG, LONG);
    let error = format!("{:#}", stage.actuator.start_one().await.unwrap_err());
    assert!(error.starts_with("no-such-program cannot be run"), "{error}");
    assert_eq!(stage.actuator.instances().await.unwrap(), Fleet::default());
}
