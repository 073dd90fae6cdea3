//! Owns how one agent of the platform calls another: the dispatch, its reply, and the entry in the ledger. It knows no
//! payload. Rule kept: every dispatch that the mesh accepted is in the ledger from that moment on, however it ends.

use governance::Outcome;
use serde::{Serialize, de::DeserializeOwned};
use worker_sdk::{Dispatch, Error, ErrorKind};

use crate::ledger::Ledger;

/// A reply with what it says about its own way.
#[derive(Debug)]
pub struct Replied<T> {
    /// The dispatch that was answered.
    pub id: String,
    pub value: T,
    /// The target was cut off, and its registered fallback answered.
    pub fallback: bool,
}

/// Sends a request and waits for its reply.
///
/// # Errors
/// As the SDK's; the ledger knows of the end all the same.
pub async fn request<P: Serialize, T: DeserializeOwned>(
    ledger: &Ledger,
    dispatch: Dispatch,
    payload: &P,
) -> Result<Replied<T>, Error> {
    let replied = async {
        let pending = dispatch.json(payload)?.start().await?;
        ledger.accepted(&pending.id().to_string());
        pending.reply().await
    };
    let reply = replied.await.inspect_err(|error| enter(ledger, error))?;
    let id = reply.id().to_string();
    ledger.ended(&id, reply.outcome().name());
    Ok(Replied { fallback: reply.is_fallback(), value: reply.json()?, id })
}

/// Sends an event; done when the mesh has it.
///
/// # Errors
/// As the SDK's.
pub async fn send<P: Serialize>(ledger: &Ledger, dispatch: Dispatch, payload: &P) -> Result<(), Error> {
    let accepted = dispatch.json(payload)?.send().await.inspect_err(|error| enter(ledger, error))?;
    ledger.accepted(&accepted.id().to_string());
    Ok(())
}

/// Enters what an error says of the dispatch that it is about.
fn enter(ledger: &Ledger, error: &Error) {
    let outcome = match error.kind() {
        ErrorKind::Rejected(_) => Outcome::Rejected,
        ErrorKind::TimedOut(_) => Outcome::Timeout,
        ErrorKind::CircuitBroken => Outcome::CircuitBroken,
        ErrorKind::Cancelled => Outcome::Cancelled,
        ErrorKind::Failed(_) => Outcome::Failure,
        ErrorKind::Unknown => return ledger.unconfirmed(error.id().map(|id| id.to_string())),
        // The mesh has not accepted it, or is not heard any more; what was accepted is in the ledger already.
        ErrorKind::LaneFull
        | ErrorKind::Registration
        | ErrorKind::Connection
        | ErrorKind::Encoding
        | ErrorKind::Closed
        | _ => return,
    };
    if let Some(id) = error.id() {
        ledger.ended(&id.to_string(), outcome.name());
    }
}
