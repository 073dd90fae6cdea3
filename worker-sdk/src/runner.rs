//! Running: one dispatch through its handler, or a batch. Owns what becomes of panics, deadlines and oversized responses.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use governance::{AgentId, DispatchId, Kind, Outcome, Priority, Reason};
use protocol::streams::PAYLOAD_BYTES_MAX;

use crate::batch::{Answers, Batch, Given, miscounted};
use crate::clock;
use crate::completer::{Alone, Done};
use crate::context::{Context, Facts};
use crate::core::Core;
use crate::dispatch::Link;
use crate::error::Failure;
use crate::handler::{Handler, ManyHandler, Response};
use crate::held::Held;
use crate::row::{Part, Piece, Row};
use crate::run::Run;

/// What one dispatch needs to run, beside its own row.
pub(crate) struct Turn {
    pub(crate) held: Arc<Held>,
    pub(crate) attempt: u8,
    pub(crate) alone: Option<Alone>,
}

/// Runs a dispatch in a slot that was taken for it, and reports how it ended.
pub(crate) async fn run(core: Arc<Core>, class: Priority, row: Row, turn: Turn) {
    let Turn { held, attempt, alone } = turn;
    let inbox_us = clock::micros(clock::now().since(row.admitted));
    let run = Arc::new(Run::new(class, row.deadline, Arc::clone(&core.slots), 1));
    let id = row.id;
    if held.is_closed() {
        // It was given up while it waited for its turn, and another instance may run it.
        core.ledger.forget(id, 1);
        return run.end();
    }
    if run.is_cancelled() || !core.ledger.start(id, &run) {
        // Its home has ended it, or will: at the deadline, without anybody's help.
        run.end();
        held.settle(&core, 1).await;
        return;
    }
    let (kind, lane, source) = (row.kind, row.lane, Arc::clone(&row.source));
    let result = match core.handlers.find(&row.capability, &row.topic) {
        Some(handler) => {
            // A dispatch that aged up hands its own priority on; one that was demoted, what it was given.
            let ceiling = lane.max(class);
            let facts =
                Facts { link: Link::Mesh(Arc::clone(&core)), run: Arc::clone(&run), ceiling, row, attempt };
            run.bound(call(Arc::clone(handler), Context(Arc::new(facts)))).await
        }
        None => Some(Err(Failure::because(Reason::NotHandled, "this instance has no handler for it"))),
    };
    let ran_us = clock::micros(run.started.elapsed());
    core.ledger.end(id);
    run.end();
    let Some(result) = result else {
        tracing::warn!(dispatch = %id, "the handler did not end after its cancellation; it was dropped");
        held.settle(&core, 1).await;
        return;
    };
    let (outcome, reason, payload, content_type) = ending(result, kind);
    let done = Done {
        first: id,
        count: 1,
        lane,
        source,
        outcome,
        reason,
        ran_us,
        inbox_us,
        attempt,
        payload,
        content_type,
        inbox_ack: String::new(),
        held: Arc::clone(&held),
        alone,
    };
    if kind == Kind::Event && outcome == Outcome::Failure {
        // Others of its message are waited for before this is told, and one of them may wait for its turn.
        held.defer(&core, Done { alone: None, ..done });
    } else {
        core.complete(done);
    }
}

/// Calls a handler; one that panics has failed.
pub(crate) async fn call(handler: Handler, context: Context) -> Result<Response, Failure> {
    let id = context.id();
    // The handler's own state may be torn by a panic; it is shared by reference at most, as in any server.
    let guarded = AssertUnwindSafe(async move { handler(context).await });
    guarded.catch_unwind().await.unwrap_or_else(|panic| {
        let words = panic_words(&*panic);
        tracing::error!(dispatch = %id, panic = words, "the handler panicked");
        Err(Failure::because(Reason::HandlerCrashed, format!("the handler panicked: {words}")))
    })
}

/// Runs a batch in slots that were taken for it, and reports how each of it ended. Where some of it were withdrawn while it
/// waited, the others run one by one.
pub(crate) async fn run_many(core: Arc<Core>, class: Priority, piece: Piece, held: Arc<Held>) {
    let (first, count) = (piece.first, piece.count);
    let run = Arc::new(Run::new(class, piece.deadline, Arc::clone(&core.slots), count.into()));
    if held.is_closed() {
        // It was given up while it waited for its turn, and another instance may run it.
        core.ledger.forget(first, count);
        return run.end();
    }
    if run.is_cancelled() {
        // Its home ends it at the deadline, without anybody's help.
        run.end();
        return held.settle(&core, count.into()).await;
    }
    let handler = core.handlers.find_many(&piece.capability, &piece.topic).map(Arc::clone);
    let (Some(handler), true) = (handler, core.ledger.start(first, &run)) else {
        run.hand_over();
        for row in Part::Many(piece).rows() {
            let turn = Turn { held: Arc::clone(&held), attempt: 1, alone: None };
            core.supervisor.spawn(self::run(Arc::clone(&core), class, row, turn));
        }
        return;
    };
    let inbox_us = clock::micros(clock::now().since(piece.admitted));
    let ceiling = piece.lane.max(class);
    let ended = Ended { first, count, kind: piece.kind, lane: piece.lane, source: Arc::clone(&piece.source) };
    let batch = Batch::of_piece(Link::Mesh(Arc::clone(&core)), Arc::clone(&run), ceiling, piece);
    let result = run.bound(call_many(handler, batch)).await;
    let ran_us = clock::micros(run.started.elapsed());
    core.ledger.end(first);
    run.end();
    let Some(result) = result else {
        tracing::warn!(dispatch = %first, count, "the handler did not end after its cancellation; it was dropped");
        return held.settle(&core, count.into()).await;
    };
    ended.report(&core, &held, result, (inbox_us, ran_us));
}

/// Calls a handler of batches; one that panics has failed.
async fn call_many(handler: ManyHandler, batch: Batch) -> Result<Answers, Failure> {
    let first = batch.id(0);
    // As for a single dispatch.
    let guarded = AssertUnwindSafe(async move { handler(batch).await });
    guarded.catch_unwind().await.unwrap_or_else(|panic| {
        let words = panic_words(&*panic);
        tracing::error!(dispatch = %first, panic = words, "the handler of batches panicked");
        Err(Failure::because(Reason::HandlerCrashed, format!("the handler panicked: {words}")))
    })
}

/// A batch whose handler has ended.
struct Ended {
    first: DispatchId,
    count: u16,
    kind: Kind,
    lane: Priority,
    source: Arc<AgentId>,
}

impl Ended {
    fn report(
        &self,
        core: &Arc<Core>,
        held: &Arc<Held>,
        result: Result<Answers, Failure>,
        (inbox_us, ran_us): (u32, u32),
    ) {
        for (nth, count, (outcome, reason, payload, content_type)) in endings(result, self.count, self.kind) {
            let done = Done {
                first: DispatchId { slot: self.first.slot + nth, ..self.first },
                count,
                lane: self.lane,
                source: Arc::clone(&self.source),
                outcome,
                reason,
                ran_us,
                inbox_us,
                attempt: 1,
                payload,
                content_type,
                inbox_ack: String::new(),
                held: Arc::clone(held),
                alone: None,
            };
            if self.kind == Kind::Event && outcome == Outcome::Failure {
                held.defer(core, done);
            } else {
                core.complete(done);
            }
        }
    }
}

type Ending = (Outcome, Reason, Bytes, String);

/// How a batch ended: stretches that ended alike, by the place of the first and their length. Each failed event stands by itself,
/// since it is tried again by itself.
fn endings(result: Result<Answers, Failure>, count: u16, kind: Kind) -> Vec<(u16, u16, Ending)> {
    let given = match result.map(|answers| answers.0) {
        Ok(Given::Each(each)) if each.len() != usize::from(count) => {
            Err(miscounted(each.len(), count.into()))
        }
        Ok(Given::Each(each)) => Ok(each),
        Ok(Given::Same(response)) => return alike(ending(Ok(response), kind), count, kind),
        Err(failure) => Err(failure),
    };
    let each = match given {
        Ok(each) => each,
        Err(failure) => return alike(ending(Err(failure), kind), count, kind),
    };
    let mut endings: Vec<(u16, u16, Ending)> = Vec::new();
    for (nth, result) in (0..count).zip(each) {
        let next = ending(result, kind);
        match endings.last_mut() {
            Some((_, count, last)) if *last == next && !is_tried_again(&next, kind) => *count += 1,
            Some(_) | None => endings.push((nth, 1, next)),
        }
    }
    endings
}

fn alike(ending: Ending, count: u16, kind: Kind) -> Vec<(u16, u16, Ending)> {
    if is_tried_again(&ending, kind) {
        return (0..count).map(|nth| (nth, 1, ending.clone())).collect();
    }
    vec![(0, count, ending)]
}

fn is_tried_again(ending: &Ending, kind: Kind) -> bool {
    kind == Kind::Event && ending.0 == Outcome::Failure
}

fn panic_words(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without words")
}

fn ending(result: Result<Response, Failure>, kind: Kind) -> Ending {
    let result = result.and_then(|response| {
        let bytes = response.payload.len();
        if bytes > PAYLOAD_BYTES_MAX {
            return Err(Failure::new(format!(
                "the response has {bytes} bytes; at most {PAYLOAD_BYTES_MAX} are allowed"
            )));
        }
        Ok(response)
    });
    match result {
        // Nobody reads the response to an event.
        Ok(_) if kind == Kind::Event => (Outcome::Success, Reason::Ok, Bytes::new(), String::new()),
        Ok(response) => (Outcome::Success, Reason::Ok, response.payload, response.content_type),
        Err(failure) => {
            let (payload, content_type) = failure.write();
            (Outcome::Failure, failure.reason, payload.into(), content_type.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_that_is_too_large_is_a_failure() {
        let response = Response::bytes(vec![0; PAYLOAD_BYTES_MAX + 1], "");
        let (outcome, reason, payload, _) = ending(Ok(response), Kind::Request);
        assert_eq!((outcome, reason), (Outcome::Failure, Reason::HandlerFailed));
        assert!(String::from_utf8_lossy(&payload).contains("are allowed"));
    }

    #[test]
    fn the_response_to_an_event_is_not_sent() {
        let (outcome, _, payload, _) = ending(Ok(Response::bytes("unread", "")), Kind::Event);
        assert_eq!((outcome, payload.len()), (Outcome::Success, 0));
    }

    fn lengths(endings: &[(u16, u16, Ending)]) -> Vec<(u16, u16, Outcome)> {
        endings.iter().map(|(nth, count, ending)| (*nth, *count, ending.0)).collect()
    }

    #[test]
    fn a_batch_that_is_answered_alike_ends_as_one_stretch() {
        let same = Ok(Answers::same(Response::bytes("yes", "")));
        assert_eq!(lengths(&endings(same, 500, Kind::Request)), [(0, 500, Outcome::Success)]);
        let failed = Err(Failure::new("no"));
        assert_eq!(lengths(&endings(failed, 500, Kind::Request)), [(0, 500, Outcome::Failure)]);
        let each = ["a", "a", "b"].map(|text| Ok(Response::bytes(text, "")));
        let ended = endings(Ok(Answers::each(each)), 3, Kind::Request);
        assert_eq!(lengths(&ended), [(0, 2, Outcome::Success), (2, 1, Outcome::Success)]);
    }

    #[test]
    fn events_of_a_batch_that_failed_are_told_one_by_one() {
        let failed = endings(Err(Failure::new("no")), 3, Kind::Event);
        let one = |nth| (nth, 1, Outcome::Failure);
        assert_eq!(lengths(&failed), [one(0), one(1), one(2)]);
        let mixed = [Ok(Response::empty()), Ok(Response::empty()), Err(Failure::new("no"))];
        let ended = endings(Ok(Answers::each(mixed)), 3, Kind::Event);
        assert_eq!(lengths(&ended), [(0, 2, Outcome::Success), one(2)]);
    }

    #[test]
    fn answers_that_do_not_fit_the_batch_fail_it() {
        let few = endings(Ok(Answers::each([Ok(Response::empty())])), 2, Kind::Request);
        assert_eq!(lengths(&few), [(0, 2, Outcome::Failure)]);
        assert_eq!(few[0].2.2, "the handler gave 1 answers to 2 dispatches");
    }
}
