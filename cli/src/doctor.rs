//! `mesh doctor`: looks at everything the mesh needs, and says how to mend it. Owns the list of checks and how it is shown;
//! each part has its own file. Leaves nothing changed.
//!
//! The rule it keeps: one line for each check, and a check that is not `ok` says what to do.

mod broker;
mod checkpoints;
mod coordinators;
mod files;
mod stores;

use std::time::Duration;

use governance::Timestamp;
use serde::Serialize;

use crate::answer::Answer;
use crate::mesh::Mesh;
use crate::moment;
use crate::output::Output;

/// How long one check may take: a part that needs longer is as good as away.
const PATIENCE: Duration = Duration::from_secs(5);

/// Clocks further apart than this blur what the audit says about the order of things.
const CLOCK_WARN: Duration = Duration::from_millis(250);
/// Clocks further apart than this make deadlines wrong: they are counted from the broker's time.
const CLOCK_FAIL: Duration = Duration::from_secs(2);

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    Warn,
    Fail,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    check: &'static str,
    state: State,
    text: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    fix: String,
}

impl Check {
    fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, state: State::Ok, text: text.into(), fix: String::new() }
    }

    fn warn(check: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, state: State::Warn, text: text.into(), fix: fix.into() }
    }

    fn fail(check: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, state: State::Fail, text: text.into(), fix: fix.into() }
    }
}

pub(crate) async fn run(mesh: &Mesh, output: &Output) -> anyhow::Result<Answer> {
    let mut checks = vec![
        Check::ok(
            "mesh",
            format!("mesh {}; the address of the broker is {}", env!("CARGO_PKG_VERSION"), mesh.found),
        ),
        files::policy(mesh),
        files::audit_key(mesh),
        checkpoints::check(mesh),
    ];
    let (of_broker, of_stores) = tokio::join!(Box::pin(broker::check(mesh)), Box::pin(stores::check(mesh)));
    checks.extend(of_broker);
    checks.extend(of_stores);
    output.show(&checks, || render(&checks))?;
    let worst = checks.iter().map(|c| c.state).max();
    if !output.is_json() {
        output.note(match worst {
            Some(State::Fail) => "the mesh needs help",
            Some(State::Warn) => "the mesh works; something should be looked at",
            Some(State::Ok) | None => "the mesh is well",
        });
    }
    Ok(Answer::when(worst != Some(State::Fail)))
}

fn render(checks: &[Check]) -> String {
    let line = |c: &Check| {
        let state = match c.state {
            State::Ok => "ok",
            State::Warn => "warn",
            State::Fail => "FAIL",
        };
        let fix = if c.fix.is_empty() { String::new() } else { format!(" → {}", c.fix) };
        format!("{state:<4}  {:<13}  {}{fix}", c.check, c.text)
    };
    checks.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Compares a clock with that of this machine. `asked` and `answered` enclose the moment at which it was read.
fn clock(check: &'static str, whose: &str, read: Timestamp, asked: Timestamp, answered: Timestamp) -> Check {
    let early = asked.since(read);
    let late = read.since(answered);
    let apart = early.max(late);
    let text = if apart.is_zero() {
        format!("{whose} and this machine agree")
    } else {
        let direction = if early > late { "behind" } else { "ahead of" };
        format!("the clock of {whose} is {} {direction} this machine's", moment::in_words(apart))
    };
    let fix = "let NTP set both clocks";
    if apart > CLOCK_FAIL {
        Check::fail(check, text, fix)
    } else if apart > CLOCK_WARN {
        Check::warn(check, text, fix)
    } else {
        Check::ok(check, text)
    }
}

/// Reads the first two numbers of a version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next().and_then(Result::ok).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_has_one_line_and_its_fix() {
        let checks = [Check::ok("redis", "7.0.15"), Check::fail("archiver", "3 shards behind", "start one")];
        assert_eq!(
            render(&checks),
            "ok    redis          7.0.15\nFAIL  archiver       3 shards behind → start one"
        );
    }

    #[test]
    fn clocks_agree_where_the_reading_lies_within_the_question() {
        let ms = Timestamp::from_millis;
        let state = |read| clock("clock", "the broker", ms(read), ms(10_000), ms(10_020)).state;
        assert_eq!(
            [state(10_010), state(9_900), state(10_400), state(7_000)],
            [State::Ok, State::Ok, State::Warn, State::Fail]
        );
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(version("2.15.1-beta"), Some((2, 15)));
        assert_eq!(version("17 (Debian 17.2)"), Some((17, 0)));
        assert_eq!(version("none"), None);
    }
}
