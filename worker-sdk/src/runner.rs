//! Running: one dispatch through its handler. Owns what becomes of panics, deadlines and oversized responses.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use governance::{Kind, Outcome, Priority, Reason};
use protocol::streams::PAYLOAD_BYTES_MAX;

use crate::clock;
use crate::completer::Done;
use crate::context::{Context, Facts};
use crate::core::Core;
use crate::dispatch::Link;
use crate::error::Failure;
use crate::handler::{Handler, Response};
use crate::intake::Waiting;
use crate::run::Run;

/// Runs a dispatch in a slot that was taken for it, and reports how it ended.
pub(crate) async fn run(core: Arc<Core>, class: Priority, waiting: Waiting) {
    let Waiting { held, row, attempt, alone } = waiting;
    let inbox_us = clock::micros(clock::now().since(row.admitted));
    let run = Arc::new(Run::new(class, row.deadline, Arc::clone(&core.slots)));
    let id = row.id;
    if held.is_closed() {
        // It was given up while it waited for its turn, and another instance may run it.
        core.ledger.forget(id);
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
        id,
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

fn panic_words(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without words")
}

fn ending(result: Result<Response, Failure>, kind: Kind) -> (Outcome, Reason, Bytes, String) {
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
}
