//! Replies to waiting instances: a core request, confirmed by its receiver.
//!
//! The rule it keeps: a reply is tried a few times and then given back to its home, which may try again when the instance is heard
//! of; the outcome it tells is recorded all the same.

use std::time::Duration;

use async_nats::{Client, Request, RequestErrorKind};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use home::{Input, Reply};
use tokio::sync::mpsc;

/// How long a receiver may take to confirm. It confirms before it does anything else with a reply.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a reply is tried.
const TRIES: usize = 3;

/// Sends what the home hands over, any number at once.
pub(crate) async fn run(
    client: Client,
    mut replies: mpsc::Receiver<Reply>,
    home: mpsc::Sender<Input>,
) -> anyhow::Result<()> {
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            reply = replies.recv() => match reply {
                None => return Ok(()),
                Some(reply) => under_way.push(deliver(&client, reply)),
            },
            Some(input) = under_way.next(), if !under_way.is_empty() => {
                if home.send(input).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

async fn deliver(client: &Client, reply: Reply) -> Input {
    for _ in 0..TRIES {
        let request = Request::new().payload(reply.payload.clone()).timeout(Some(CONFIRM_TIMEOUT));
        match client.send_request(reply.subject.clone(), request).await {
            Ok(_) => return Input::Replied { handle: reply.handle, confirmed: true },
            // Nobody listens: the instance is gone, or cut off.
            Err(e) if matches!(e.kind(), RequestErrorKind::NoResponders) => break,
            Err(e) => tracing::debug!(subject = reply.subject, error = %e, "a reply was not confirmed"),
        }
    }
    Input::Replied { handle: reply.handle, confirmed: false }
}
