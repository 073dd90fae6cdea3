//! Publishing to inboxes until the broker has confirmed.
//!
//! Owns the retries and the turns; interprets nothing. The rule it keeps: a publish is tried under one message id until it
//! is stored or the fence lies elsewhere; a refusal that compared nothing is no deposal.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use broker::{Fence, PubAck, PublishError, Publisher};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use home::{Input, Publish};
use tokio::sync::mpsc;

/// The pause before an unconfirmed publish is tried again.
const RETRY: Duration = Duration::from_millis(50);
/// The pause before a full inbox is tried again.
const RETRY_FULL: Duration = Duration::from_millis(100);
/// The pause before a publish that the broker refused for an unknown reason is tried again: someone should look.
const RETRY_REFUSED: Duration = Duration::from_secs(1);

/// Publishes what the home hands over, in that order. `copies` is how many the broker keeps of each stream.
pub(crate) async fn run(
    publisher: Publisher,
    mut publishes: mpsc::Receiver<Publish>,
    home: mpsc::Sender<Input>,
    copies: usize,
) -> anyhow::Result<()> {
    let mut turns = Turns::new(copies);
    let mut under_way: FuturesUnordered<BoxFuture<'static, Step>> = FuturesUnordered::new();
    loop {
        let next = tokio::select! {
            publish = publishes.recv() => match publish {
                None => return Ok(()),
                Some(publish) => turns.begin(Attempt { publish, was_full: false }),
            },
            Some(step) = under_way.next(), if !under_way.is_empty() => match step {
                Step::Rested(attempt) => turns.begin(attempt),
                Step::Tried(attempt, result) => {
                    let next = turns.end(&attempt.publish.fence.subject);
                    match judge(attempt, result) {
                        Verdict::Tell(input) => {
                            if home.send(input).await.is_err() {
                                return Ok(());
                            }
                        }
                        Verdict::Rest { attempt, pause, tell } => {
                            under_way.push(Box::pin(rest(attempt, pause)));
                            if let Some(input) = tell && home.send(input).await.is_err() {
                                return Ok(());
                            }
                        }
                    }
                    next
                }
            },
        };
        if let Some(attempt) = next {
            // Sent before the next one is looked at, so that the order of the home is the order at the broker.
            let ack = send(&publisher, &attempt.publish).await;
            under_way.push(Box::pin(async move { Step::Tried(attempt, ack.await) }));
        }
    }
}

/// A publish and what became of it so far.
#[derive(Debug)]
struct Attempt {
    publish: Publish,
    was_full: bool,
}

#[derive(Debug)]
enum Step {
    Tried(Attempt, Result<PubAck, PublishError>),
    Rested(Attempt),
}

#[derive(Debug)]
enum Verdict {
    Tell(Input),
    Rest { attempt: Attempt, pause: Duration, tell: Option<Input> },
}

async fn rest(attempt: Attempt, pause: Duration) -> Step {
    tokio::time::sleep(pause).await;
    Step::Rested(attempt)
}

async fn send(
    publisher: &Publisher,
    p: &Publish,
) -> impl Future<Output = Result<PubAck, PublishError>> + Send + use<> {
    let fence = Fence { subject: p.fence.subject.clone(), sequence: p.fence.sequence };
    publisher.publish(p.subject.clone(), Some(&p.message_id), Some(&fence), p.payload.clone()).await
}

fn judge(mut attempt: Attempt, result: Result<PubAck, PublishError>) -> Verdict {
    let Attempt { publish, was_full } = &attempt;
    let (handle, target, was_full) = (publish.handle, publish.target, *was_full);
    let (pause, tell) = match result {
        Ok(_) => return Verdict::Tell(Input::Published { handle, target, was_full }),
        Err(PublishError::Fenced) => {
            return Verdict::Tell(Input::Deposed("an inbox stream refused the fence".to_owned()));
        }
        Err(PublishError::Full) => {
            attempt.was_full = true;
            (RETRY_FULL, (!was_full).then_some(Input::InboxFull(target)))
        }
        Err(PublishError::Unconfirmed(why)) => {
            tracing::debug!(subject = publish.subject, why, "a publish was not confirmed; trying again");
            (RETRY, None)
        }
        Err(PublishError::Refused(why)) => {
            tracing::error!(subject = publish.subject, why, "the broker refuses a message; trying again");
            (RETRY_REFUSED, None)
        }
    };
    Verdict::Rest { attempt, pause, tell }
}

/// Whose turn it is. One copy of each stream: everybody's at once, in order. Three: one of each fence at a time, since the
/// broker turns the others away undecided; whoever rests gives up its turn, so that a full inbox holds up no other.
#[derive(Debug)]
struct Turns {
    one_at_a_time: bool,
    /// Fences with one under way, and what waits for its end.
    waiting: HashMap<String, VecDeque<Attempt>>,
}

impl Turns {
    fn new(copies: usize) -> Self {
        Self { one_at_a_time: copies > 1, waiting: HashMap::new() }
    }

    /// Gives it back where it may be sent now.
    fn begin(&mut self, attempt: Attempt) -> Option<Attempt> {
        if !self.one_at_a_time {
            return Some(attempt);
        }
        if let Some(waiting) = self.waiting.get_mut(&attempt.publish.fence.subject) {
            waiting.push_back(attempt);
            return None;
        }
        self.waiting.insert(attempt.publish.fence.subject.clone(), VecDeque::new());
        Some(attempt)
    }

    /// One of this fence has ended; gives the next one.
    fn end(&mut self, fence: &str) -> Option<Attempt> {
        let next = self.waiting.get_mut(fence)?.pop_front();
        if next.is_none() {
            self.waiting.remove(fence);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use governance::{AgentIx, Priority};

    use super::*;

    fn attempt(fence: &str, handle: usize) -> Attempt {
        let fence = home::Fence { subject: fence.to_owned(), sequence: 7 };
        let publish = Publish {
            handle,
            target: AgentIx(0),
            class: Priority::P1,
            subject: "mesh.out.p1.worker".to_owned(),
            message_id: handle.to_string(),
            fence,
            payload: bytes::Bytes::new(),
        };
        Attempt { publish, was_full: false }
    }

    fn handle(attempt: Option<Attempt>) -> Option<usize> {
        attempt.map(|a| a.publish.handle)
    }

    #[test]
    fn with_three_copies_one_of_each_fence_is_under_way_and_the_others_keep_their_order() {
        let mut turns = Turns::new(3);
        assert_eq!(handle(turns.begin(attempt("a", 1))), Some(1));
        assert_eq!(handle(turns.begin(attempt("a", 2))), None);
        assert_eq!(handle(turns.begin(attempt("a", 3))), None);
        assert_eq!(handle(turns.begin(attempt("b", 4))), Some(4));
        assert_eq!(handle(turns.end("a")), Some(2));
        assert_eq!(handle(turns.begin(attempt("a", 5))), None);
        assert_eq!(handle(turns.end("a")), Some(3));
        assert_eq!(handle(turns.end("a")), Some(5));
        assert_eq!(handle(turns.end("a")), None);
        assert_eq!(handle(turns.end("b")), None);
        assert!(turns.waiting.is_empty(), "a fence that nobody uses costs nothing");
        assert_eq!(handle(turns.begin(attempt("a", 6))), Some(6));
    }

    #[test]
    fn with_one_copy_nobody_waits() {
        let mut turns = Turns::new(1);
        for n in 0..3 {
            assert_eq!(handle(turns.begin(attempt("a", n))), Some(n));
        }
        assert_eq!(handle(turns.end("a")), None);
    }

    #[test]
    fn only_a_fence_that_lies_elsewhere_deposes() {
        let refused = judge(attempt("a", 1), Err(PublishError::Fenced));
        assert!(matches!(refused, Verdict::Tell(Input::Deposed(_))));
        let unsure = judge(attempt("a", 1), Err(PublishError::Unconfirmed("wrong last sequence".to_owned())));
        assert!(matches!(unsure, Verdict::Rest { tell: None, .. }));
    }

    #[test]
    fn a_full_inbox_is_told_once() {
        let full = judge(attempt("a", 1), Err(PublishError::Full));
        let Verdict::Rest { attempt, tell: Some(Input::InboxFull(_)), .. } = full else { panic!("{full:?}") };
        let again = judge(attempt, Err(PublishError::Full));
        let Verdict::Rest { attempt, tell: None, .. } = again else { panic!("{again:?}") };
        let stored = PubAck { stream: String::new(), sequence: 1, duplicate: false };
        let told = judge(attempt, Ok(stored));
        assert!(matches!(told, Verdict::Tell(Input::Published { handle: 1, was_full: true, .. })));
    }
}
