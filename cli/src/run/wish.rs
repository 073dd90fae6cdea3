//! The wish: how many instances the mesh wants. Owns how it is read; decides nothing.
//!
//! The rule it keeps: it reads the level again and again and waits for no message, so that nothing can be missed. While the
//! broker is away the last wish stays.

use std::time::Duration;

use anyhow::Context;
use async_nats::jetstream::{self, kv::Store};
use protocol::control::Scale;
use protocol::streams::SCALE_BUCKET;
use tokio::sync::watch;

use crate::mesh::Mesh;

/// How often the wish is read: far more often than it may change, and next to nothing for the broker.
const LOOK: Duration = Duration::from_millis(500);
/// The pause after the broker could not be asked.
const PAUSE: Duration = Duration::from_secs(2);

/// Follows the wish for an agent until nobody wants to know it.
pub(crate) async fn follow(mesh: Mesh, agent: String, wish: watch::Sender<Option<Scale>>) {
    let mut away = false;
    let mut store = None;
    while !wish.is_closed() {
        let looked = match &store {
            Some(store) => look(store, &agent).await,
            None => match open(&mesh).await {
                Ok(opened) => look(store.insert(opened), &agent).await,
                Err(error) => Err(error),
            },
        };
        match looked {
            Ok(now) => {
                if std::mem::take(&mut away) {
                    tracing::info!(agent, "the broker answers again");
                }
                wish.send_if_modified(|known| {
                    let changed = *known != now;
                    *known = now;
                    changed
                });
                tokio::time::sleep(LOOK).await;
            }
            Err(error) => {
                if !std::mem::replace(&mut away, true) {
                    let error = crate::answer::in_words(&error);
                    tracing::warn!(
                        agent,
                        error,
                        "the broker does not say how many are wanted; what was wanted stays"
                    );
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn open(mesh: &Mesh) -> anyhow::Result<Store> {
    let js = jetstream::new(mesh.broker().await?);
    js.get_key_value(SCALE_BUCKET).await.context("there is no bucket of scales; a coordinator makes it")
}

async fn look(store: &Store, agent: &str) -> anyhow::Result<Option<Scale>> {
    let value = store.get(agent).await.context("the bucket of scales cannot be read")?;
    value.map(|bytes| serde_json::from_slice(&bytes).context("a wish cannot be read")).transpose()
}
