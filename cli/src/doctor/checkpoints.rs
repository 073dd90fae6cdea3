//! Signed checkpoints: whether there are any, how old the newest is, and whether its signature can be checked. Reads the newest
//! line alone; `mesh verify` reads them all.

use std::path::Path;
use std::time::Duration;

use audit_archiver::checkpoint::{self, LineError, PublicKey};

use super::Check;
use crate::answer::in_words;
use crate::mesh::Mesh;
use crate::moment;
use crate::verify::public_keys;

/// Three of the archiver's intervals, unless it was told another one.
const OVERDUE: Duration = Duration::from_secs(180);
const NAME: &str = "checkpoints";

pub(super) fn check(mesh: &Mesh) -> Check {
    let Some(folder) = mesh.checkpoints.first() else {
        let text = "no folder is named here: where none is written, nobody can show that both stores were not rewritten";
        let fix = "give an archiver --checkpoints and --checkpoint-key-file; name the folder here with MESH_CHECKPOINTS";
        return Check::warn(NAME, text, fix);
    };
    match public_keys(&[], mesh) {
        Ok(keys) => of_folder(folder, &keys),
        Err(error) => Check::warn(NAME, in_words(&error), "correct MESH_CHECKPOINT_PUBLIC_KEY"),
    }
}

fn of_folder(folder: &Path, keys: &[PublicKey]) -> Check {
    let shown = folder.display();
    let line = match checkpoint::newest_line(folder) {
        Ok(Some(line)) => line,
        Ok(None) => {
            let fix = "start an archiver with --checkpoints and its key; its log says why where it runs";
            return Check::warn(NAME, format!("{shown} holds none"), fix);
        }
        Err(error) => {
            let fix = "correct MESH_CHECKPOINTS; the folder may be on the archiver's machine alone";
            return Check::warn(NAME, format!("{shown}: {error}"), fix);
        }
    };
    let Ok(newest) = serde_json::from_str::<checkpoint::Checkpoint>(&line) else {
        return Check::fail(NAME, format!("the newest line in {shown} is none"), "mesh verify");
    };
    let age = moment::now().since(newest.at);
    let text = format!("the newest in {shown} is {} old", moment::in_words(age));
    if checkpoint::read_line(&line, keys) == Err(LineError::Signature) && !keys.is_empty() {
        let text = format!("{text} and is not signed by the key that is named here");
        return Check::fail(NAME, text, "mesh verify; where the key was changed, name the new public key");
    }
    if age > OVERDUE {
        let fix =
            "see the log of the archiver: its folder is away or full, or Redis is away; archiving goes on";
        return Check::warn(NAME, text, fix);
    }
    if keys.is_empty() {
        let fix = "name the key with MESH_CHECKPOINT_PUBLIC_KEY; `audit-archiver checkpoint-key` prints it";
        return Check::warn(NAME, format!("{text}; no public key is named here to check it with"), fix);
    }
    Check::ok(NAME, format!("{text}, and its signature holds"))
}

#[cfg(test)]
mod tests {
    use audit_archiver::checkpoint::{Checkpoint, CheckpointKey};
    use governance::Timestamp;

    use super::super::State;
    use super::*;

    fn key(digit: &str) -> CheckpointKey {
        digit.repeat(64).parse().unwrap()
    }

    /// What is said of a folder with one line of that age.
    fn said(name: &str, age: Option<Duration>, keys: &[PublicKey]) -> (State, String) {
        let folder = std::env::temp_dir().join(format!("mesh-doctor-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        if let Some(age) = age {
            let at = Timestamp(moment::now().0 - age.as_nanos() as u64);
            let series = "0123456789abcdef".to_owned();
            let checkpoint =
                Checkpoint { form: 1, series, number: 1, at, previous: [0; 32], shards: Vec::new() };
            let line = key("5").sign(&checkpoint) + "\n";
            std::fs::write(folder.join("checkpoints-20260214-0123456789abcdef.jsonl"), line).unwrap();
        }
        let check = of_folder(&folder, keys);
        std::fs::remove_dir_all(&folder).unwrap();
        (check.state, check.text)
    }

    #[test]
    fn the_age_of_the_newest_and_its_signature_are_said() {
        let (own, other) = (key("5").public(), key("6").public());
        let minute = Some(Duration::from_secs(60));
        assert_eq!(said("good", minute, std::slice::from_ref(&own)).0, State::Ok);
        assert_eq!(said("unsigned", minute, &[other]).0, State::Fail);
        assert_eq!(said("no-key", minute, &[]).0, State::Warn);
        assert_eq!(said("none", None, std::slice::from_ref(&own)).0, State::Warn);
        let (state, text) = said("old", Some(Duration::from_secs(600)), &[own]);
        assert_eq!(state, State::Warn);
        assert!(text.contains("10 min old"), "{text}");
    }
}
