//! Errors: what a caller gets, and what a handler reports. Owns both types; decides nothing.
//!
//! The rule it keeps: one error type for callers, small and stable, whose kind says what to do next.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use governance::{DispatchId, Outcome, Reason};
use protocol::control::Problem;
use serde::{Deserialize, Serialize};

type Source = Arc<dyn std::error::Error + Send + Sync>;

/// What kind of error it is; what to do follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The rules refused the dispatch. Declare what is missing, or do not send it.
    Rejected(Reason),
    /// The deadline passed first; the reason says where the time went.
    TimedOut(Reason),
    /// The target's breaker is tripped and it has no fallback. Try later, or go on without.
    CircuitBroken,
    /// The dispatch was withdrawn.
    Cancelled,
    /// The handler failed; the message is its own.
    Failed(Reason),
    /// The lane for this target is full, and the caller did not want to wait.
    LaneFull,
    /// Whether it was stored, or how it ended, is unknown; the audit knows, by the id.
    Unknown,
    /// The registration was refused; [`Error::problems`] lists every problem.
    Registration,
    /// No broker, or no coordinator, could be reached in time.
    Connection,
    /// A payload could not be written or read, is too large, or a name is not a name.
    Encoding,
    /// The agent is stopping and sends nothing more.
    Closed,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(reason) => write!(f, "rejected ({reason})"),
            Self::TimedOut(reason) => write!(f, "timed out ({reason})"),
            Self::CircuitBroken => f.write_str("circuit broken"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::Failed(reason) => write!(f, "failed ({reason})"),
            Self::LaneFull => f.write_str("lane full"),
            Self::Unknown => f.write_str("outcome unknown"),
            Self::Registration => f.write_str("registration refused"),
            Self::Connection => f.write_str("no connection"),
            Self::Encoding => f.write_str("bad input"),
            Self::Closed => f.write_str("agent stopped"),
        }
    }
}

/// What went wrong. Cheap to clone; compare its [`kind`](Error::kind).
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Error(Box<Parts>);

#[derive(Debug, Clone)]
struct Parts {
    kind: ErrorKind,
    message: Cow<'static, str>,
    code: Option<String>,
    id: Option<DispatchId>,
    target: String,
    problems: Vec<Problem>,
    source: Option<Source>,
}

impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if !self.target.is_empty() {
            write!(f, " at {}", self.target)?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        for p in &self.problems {
            write!(f, "\n  {}: {}; {}", p.field, p.message, p.fix)?;
        }
        Ok(())
    }
}

impl Error {
    /// An error of a kind, in words. Useful in tests that script replies.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Parts {
            kind,
            message: message.into(),
            code: None,
            id: None,
            target: String::new(),
            problems: Vec::new(),
            source: None,
        }))
    }

    pub(crate) fn caused(
        kind: ErrorKind,
        message: impl Into<Cow<'static, str>>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        let mut error = Self::new(kind, message);
        error.0.message = format!("{}: {source}", error.0.message).into();
        error.0.source = Some(Arc::new(source));
        error
    }

    pub(crate) fn refused(problems: Vec<Problem>) -> Self {
        let mut error = Self::new(ErrorKind::Registration, "");
        error.0.problems = problems;
        error
    }

    pub(crate) fn closed() -> Self {
        Self::new(ErrorKind::Closed, "the agent takes no more dispatches to send")
    }

    /// The error in which a dispatch ended, from its reply.
    pub(crate) fn ended(
        id: DispatchId,
        outcome: Outcome,
        reason: Reason,
        target: &str,
        payload: &[u8],
        content_type: &str,
    ) -> Self {
        let kind = match outcome {
            Outcome::Success | Outcome::Failure => ErrorKind::Failed(reason),
            Outcome::Timeout => ErrorKind::TimedOut(reason),
            Outcome::CircuitBroken => ErrorKind::CircuitBroken,
            Outcome::Rejected => ErrorKind::Rejected(reason),
            Outcome::Cancelled => ErrorKind::Cancelled,
        };
        let (message, code) = match outcome {
            Outcome::Success | Outcome::Failure => {
                let failure = Failure::read(payload, content_type);
                (failure.message, failure.code)
            }
            Outcome::Timeout | Outcome::CircuitBroken | Outcome::Rejected | Outcome::Cancelled => {
                (refusal_words(payload), None)
            }
        };
        let mut error = Self::new(kind, message);
        error.0.code = code;
        error.0.id = Some(id);
        target.clone_into(&mut error.0.target);
        error
    }

    pub(crate) fn with_id(mut self, id: DispatchId) -> Self {
        self.0.id = Some(id);
        self
    }

    /// What kind of error it is.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The words: of the mesh, or of the handler that failed.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The code that the failing handler gave, if any.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }

    /// The dispatch it is about, where there is one: what `mesh trace` takes.
    #[must_use]
    pub const fn id(&self) -> Option<DispatchId> {
        self.0.id
    }

    /// The agent that ran the dispatch, or would have; empty where none was chosen.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.0.target
    }

    /// All that is wrong with a registration that was refused.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.0.problems
    }
}

/// The words in which the mesh explains why it ended a dispatch.
fn refusal_words(payload: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        message: String,
    }
    serde_json::from_slice::<Refusal>(payload)
        .map_or_else(|_| String::from_utf8_lossy(payload).into_owned(), |refusal| refusal.message)
}

/// The error of a handler: its words, and a code that callers can compare.
///
/// Anything that is a standard error becomes one with `?`. It is not itself a standard error, for that reason.
///
/// ```
/// use worker_sdk::Failure;
///
/// fn parse(text: &str) -> Result<u32, Failure> {
///     let number: u32 = text.parse()?;
///     if number == 0 {
///         return Err(Failure::new("zero is not for sale").with_code("nothing_to_sell"));
///     }
///     Ok(number)
/// }
/// assert_eq!(parse("0").unwrap_err().code(), Some("nothing_to_sell"));
/// assert!(parse("x").is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    message: String,
    code: Option<String>,
    pub(crate) reason: Reason,
}

/// The content type of a failure that has a code.
pub(crate) const PROBLEM: &str = "application/problem+json";
/// The content type of a failure without one.
pub(crate) const TEXT: &str = "text/plain";
/// The most bytes of an error's words: they are for people.
const MESSAGE_BYTES_MAX: usize = 4_096;

#[derive(Serialize, Deserialize)]
struct ProblemBody<'a> {
    #[serde(borrow)]
    detail: Cow<'a, str>,
    #[serde(borrow, default)]
    code: Option<Cow<'a, str>>,
}

impl Failure {
    /// A failure in words.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: None, reason: Reason::HandlerFailed }
    }

    /// Adds a code for programs to compare.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    pub(crate) fn because(reason: Reason, message: impl Into<String>) -> Self {
        Self { message: message.into(), code: None, reason }
    }

    /// The words.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The code.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// The payload and content type that carry it.
    pub(crate) fn write(&self) -> (Vec<u8>, &'static str) {
        let end = self.message.floor_char_boundary(MESSAGE_BYTES_MAX);
        let message = &self.message[..end];
        match &self.code {
            None => (message.as_bytes().to_vec(), TEXT),
            Some(code) => {
                let body = ProblemBody { detail: message.into(), code: Some(code.as_str().into()) };
                (serde_json::to_vec(&body).unwrap_or_default(), PROBLEM)
            }
        }
    }

    pub(crate) fn read(payload: &[u8], content_type: &str) -> Self {
        if content_type == PROBLEM
            && let Ok(body) = serde_json::from_slice::<ProblemBody<'_>>(payload)
        {
            let mut failure = Self::new(body.detail);
            failure.code = body.code.map(Cow::into_owned);
            return failure;
        }
        Self::new(String::from_utf8_lossy(payload))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.code.as_ref().map_or(Ok(()), |code| write!(f, " ({code})"))
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Some errors repeat their cause in their own words.
            if !message.contains(&cause_text) {
                message = format!("{message}: {cause_text}");
            }
            source = cause.source();
        }
        Self::new(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_travels_with_its_code() {
        let failure = Failure::new("no such house").with_code("unknown_house");
        let (payload, content_type) = failure.write();
        assert_eq!(Failure::read(&payload, content_type), failure);
    }

    #[test]
    fn a_failure_without_a_code_travels_as_plain_text() {
        let (payload, content_type) = Failure::new("no such house").write();
        assert_eq!(payload, b"no such house");
        assert_eq!(Failure::read(&payload, content_type).message(), "no such house");
    }

    #[test]
    fn a_standard_error_becomes_a_failure_with_its_causes() {
        let error = "x".parse::<u32>().unwrap_err();
        assert_eq!(Failure::from(error).message(), "invalid digit found in string");
    }

    #[test]
    fn every_problem_of_a_registration_is_shown() {
        let problem = |field: &str| Problem {
            field: field.into(),
            message: "is wrong".into(),
            fix: "put it right".into(),
        };
        let text = Error::refused(vec![problem("agent"), problem("dependencies[2]")]).to_string();
        assert!(text.contains("agent: is wrong; put it right"));
        assert!(text.contains("dependencies[2]"));
    }
}
