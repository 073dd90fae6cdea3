//! Batches: many dispatches that one call of a handler takes, and what it answers. Owns no I/O.
//!
//! The rule it keeps: a batch is a convenience of this instance. In the mesh each of its dispatches has an id, a deadline and
//! an outcome of its own, and may be run by itself, in a batch of one.

use std::sync::Arc;
use std::time::Duration;

use governance::{DispatchId, Kind, Priority, Timestamp};
use serde::de::DeserializeOwned;

use crate::context::{Context, Facts};
use crate::dispatch::Link;
use crate::error::Failure;
use crate::handler::Response;
use crate::row::Piece;
use crate::run::Run;

/// Dispatches of one source that came together, alike in all but id, payload and what a [`Context`] tells of each: what the
/// handler of [`AgentBuilder::capability_batch`](crate::AgentBuilder::capability_batch) is given. Cheap to clone.
///
/// It holds a slot for each of them while the handler runs, and the run of the handler counts as the run of each, also
/// against the SLA. Whatever was delivered before, because an attempt failed or contact with an instance was lost, comes in a
/// batch of one, so that what fails always drags nothing else along.
///
/// ```
/// use worker_sdk::{Answers, Batch, Failure, Response};
///
/// async fn sum(batch: Batch) -> Result<Answers, Failure> {
///     let sums = (0..batch.len()).map(|nth| {
///         let numbers: Vec<u64> = batch.payload_json(nth)?;
///         Response::json(&numbers.iter().sum::<u64>())
///     });
///     Ok(Answers::each(sums))
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let script = worker_sdk::testing::Script::new();
/// let answers = sum(script.batch(["[1,2]".into(), "true".into()])).await.unwrap();
/// assert_eq!(answers.nth(0).unwrap().payload(), "3");
/// assert_eq!(answers.nth(1).unwrap_err().code(), Some("bad_payload"));
/// # });
/// ```
#[derive(Debug, Clone)]
pub struct Batch(Arc<Rows>);

#[derive(Debug)]
enum Rows {
    /// At least one.
    Listed(Vec<Context>),
    Piece {
        link: Link,
        run: Arc<Run>,
        ceiling: Priority,
        piece: Piece,
    },
}

impl Batch {
    /// A batch of dispatches that run by themselves; there is at least one.
    pub(crate) fn of(contexts: Vec<Context>) -> Self {
        Self(Arc::new(Rows::Listed(contexts)))
    }

    pub(crate) fn of_piece(link: Link, run: Arc<Run>, ceiling: Priority, piece: Piece) -> Self {
        Self(Arc::new(Rows::Piece { link, run, ceiling, piece }))
    }

    fn run(&self) -> &Run {
        match &*self.0 {
            Rows::Listed(contexts) => &contexts[0].0.run,
            Rows::Piece { run, .. } => run,
        }
    }

    /// How many there are: at least one.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        match &*self.0 {
            Rows::Listed(contexts) => contexts.len(),
            Rows::Piece { piece, .. } => piece.count.into(),
        }
    }

    /// One of the dispatches: what `mesh trace` takes.
    ///
    /// # Panics
    /// When there are not so many.
    #[must_use]
    pub fn id(&self, nth: usize) -> DispatchId {
        assert!(nth < self.len(), "a batch of {} has no dispatch {nth}", self.len());
        match &*self.0 {
            Rows::Listed(contexts) => contexts[nth].id(),
            Rows::Piece { piece, .. } => piece.id(nth as u16),
        }
    }

    /// The dispatches in stretches of consecutive slots: the first of each, and how many.
    #[must_use]
    pub fn runs(&self) -> Vec<(DispatchId, u16)> {
        match &*self.0 {
            Rows::Listed(contexts) => contexts.iter().map(|c| (c.id(), 1)).collect(),
            Rows::Piece { piece, .. } => vec![(piece.first, piece.count)],
        }
    }

    /// Request or event: all are the one or the other.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match &*self.0 {
            Rows::Listed(contexts) => contexts[0].kind(),
            Rows::Piece { piece, .. } => piece.kind,
        }
    }

    /// Who sent them.
    #[must_use]
    pub fn source(&self) -> &str {
        match &*self.0 {
            Rows::Listed(contexts) => contexts[0].source(),
            Rows::Piece { piece, .. } => piece.source.as_str(),
        }
    }

    /// The capability that is called; empty for events of a topic.
    #[must_use]
    pub fn capability(&self) -> &str {
        match &*self.0 {
            Rows::Listed(contexts) => contexts[0].capability(),
            Rows::Piece { piece, .. } => &piece.capability,
        }
    }

    /// The topic; empty where the dispatches named their target.
    #[must_use]
    pub fn topic(&self) -> &str {
        match &*self.0 {
            Rows::Listed(contexts) => contexts[0].topic(),
            Rows::Piece { piece, .. } => &piece.topic,
        }
    }

    /// A payload as it came; empty where there are not so many.
    #[must_use]
    pub fn payload(&self, nth: usize) -> &[u8] {
        match &*self.0 {
            Rows::Listed(contexts) => contexts.get(nth).map_or(&[], |c| c.payload()),
            Rows::Piece { piece, .. } => piece.payload(nth),
        }
    }

    /// The payloads in order.
    pub fn payloads(&self) -> impl ExactSizeIterator<Item = &[u8]> + '_ {
        (0..self.len()).map(|nth| self.payload(nth))
    }

    /// A payload as JSON.
    ///
    /// # Errors
    /// When it is not JSON of this type; given as the answer to this dispatch, it tells the caller so.
    pub fn payload_json<T: DeserializeOwned>(&self, nth: usize) -> Result<T, Failure> {
        let callee = if self.topic().is_empty() { self.capability() } else { self.topic() };
        crate::context::read_json(self.payload(nth), callee)
    }

    /// When all of it ends at the latest.
    #[must_use]
    pub fn deadline(&self) -> Timestamp {
        self.run().deadline()
    }

    /// How much time is left.
    #[must_use]
    pub fn time_left(&self) -> Duration {
        crate::clock::until(self.deadline())
    }

    /// Whether all of it has ended, by the deadline or because each was withdrawn.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.run().is_cancelled()
    }

    /// Waits until all of it has ended. One second later the handler is dropped.
    pub async fn cancelled(&self) {
        self.run().cancelled().await;
    }

    /// Whether one of the dispatches was withdrawn: what is made of it is of no use any more.
    #[must_use]
    pub fn is_withdrawn(&self, nth: usize) -> bool {
        match &*self.0 {
            Rows::Listed(contexts) => contexts.get(nth).is_none_or(Context::is_cancelled),
            Rows::Piece { link: Link::Mesh(core), .. } => core.ledger.is_revoked(self.id(nth), 1),
            Rows::Piece { link: Link::Scripted(_), .. } => self.is_cancelled(),
        }
    }

    /// One of the dispatches by itself, for what is sent on its behalf and for all that else is known of it. The slots of the
    /// whole batch are free for others while the reply to what is sent so is awaited. Made anew at each call, so keep it
    /// where it is needed more than once.
    ///
    /// # Panics
    /// When there are not so many.
    #[must_use]
    pub fn context(&self, nth: usize) -> Context {
        assert!(nth < self.len(), "a batch of {} has no dispatch {nth}", self.len());
        match &*self.0 {
            Rows::Listed(contexts) => contexts[nth].clone(),
            Rows::Piece { link, run, ceiling, piece } => Context(Arc::new(Facts {
                link: link.clone(),
                run: Arc::clone(run),
                ceiling: *ceiling,
                row: piece.row(nth as u16).expect("it was read before"),
                attempt: 1,
            })),
        }
    }
}

/// What the handler of a [`Batch`] answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Answers(pub(crate) Given);

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Given {
    Same(Response),
    Each(Vec<Result<Response, Failure>>),
}

impl Answers {
    /// Nothing, to each: for events, whose response nobody reads.
    #[must_use]
    pub const fn empty() -> Self {
        Self(Given::Same(Response::empty()))
    }

    /// The same to each. It is stored and sent once.
    #[must_use]
    pub const fn same(response: Response) -> Self {
        Self(Given::Same(response))
    }

    /// To each its own, in the order of the batch. Where they are more or fewer than the batch, each of it has failed.
    pub fn each(answers: impl IntoIterator<Item = Result<Response, Failure>>) -> Self {
        Self(Given::Each(answers.into_iter().collect()))
    }

    /// The answer to one of the dispatches.
    ///
    /// # Errors
    /// The failure that is its answer, or that there is none.
    pub fn nth(&self, nth: usize) -> Result<&Response, Failure> {
        match &self.0 {
            Given::Same(response) => Ok(response),
            Given::Each(each) => each.get(nth).map_or_else(
                || Err(miscounted(each.len(), nth + 1)),
                |answer| answer.as_ref().map_err(Clone::clone),
            ),
        }
    }

    /// The answer to a batch of one.
    pub(crate) fn only(self) -> Result<Response, Failure> {
        match self.0 {
            Given::Same(response) => Ok(response),
            Given::Each(mut each) if each.len() == 1 => each.remove(0),
            Given::Each(each) => Err(miscounted(each.len(), 1)),
        }
    }
}

pub(crate) fn miscounted(answers: usize, dispatches: usize) -> Failure {
    Failure::new(format!("the handler gave {answers} answers to {dispatches} dispatches"))
}
