//! Answers and the exit codes that stand for them. Owns the codes; prints nothing.
//!
//! The rule it keeps: a script can tell "no" from "cannot be asked" from "asked wrongly".

use std::fmt;
use std::process::ExitCode;

use audit_archiver::archive;

/// The command line cannot be understood (`EX_USAGE`).
pub(crate) const USAGE: u8 = 64;
/// The mesh, or a part of it that is needed, cannot be asked (`EX_UNAVAILABLE`).
pub(crate) const UNAVAILABLE: u8 = 69;

/// What a command found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// All is well.
    Yes,
    /// The call failed, the check found problems, or nothing was found.
    No,
}

impl Answer {
    pub(crate) const fn when(good: bool) -> Self {
        if good { Self::Yes } else { Self::No }
    }

    pub(crate) fn exit_code(self) -> ExitCode {
        match self {
            Self::Yes => ExitCode::SUCCESS,
            Self::No => ExitCode::from(1),
        }
    }
}

/// The command was asked for something that cannot be: the words say what can.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// The exit code of an error; 0 where the reader of the output went away, who has what it wanted.
pub(crate) fn exit_code_of(error: &anyhow::Error) -> u8 {
    let reader_left = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    if error.chain().any(|e| e.downcast_ref().is_some_and(reader_left)) {
        return 0;
    }
    let asked_wrongly = |e: &archive::Error| {
        matches!(e, archive::Error::Id(_) | archive::Error::Day(_) | archive::Error::NoHold(_))
    };
    if error.is::<Usage>() || error.downcast_ref().is_some_and(asked_wrongly) { USAGE } else { UNAVAILABLE }
}

/// An error with its causes, in one line; causes that were quoted already are left out.
pub(crate) fn in_words(error: &anyhow::Error) -> String {
    let mut words = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if words.is_empty() {
            words = cause;
        } else if !words.contains(&cause) {
            words = format!("{words}: {cause}");
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn each_kind_of_error_has_its_code() {
        assert_eq!(exit_code_of(&Usage("no such thing".into()).into()), USAGE);
        assert_eq!(exit_code_of(&anyhow::anyhow!("the broker is away")), UNAVAILABLE);
        let id = archive::Error::Id(governance::names::IdError("x".into()));
        assert_eq!(exit_code_of(&anyhow::Error::new(id).context("asking")), USAGE);
        let pipe = Err::<(), _>(std::io::Error::from(std::io::ErrorKind::BrokenPipe)).context("printing");
        assert_eq!(exit_code_of(&pipe.unwrap_err()), 0);
    }

    #[test]
    fn causes_are_named_once() {
        let error = anyhow::anyhow!("connection refused")
            .context("the broker does not answer: connection refused")
            .context("no agents");
        assert_eq!(in_words(&error), "no agents: the broker does not answer: connection refused");
    }
}
