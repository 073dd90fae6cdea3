//! Fences, on the broker under test: what a home publishes is stored while its fence lies where it was, and refused from
//! the moment another home has moved it; what the broker turned away for another reason is never taken for that.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use broker::{Fence, PublishError, Publisher};
use futures::future::join_all;
use mesh_tests::{PATIENCE, Stage, eventually, until};

/// Publishes of one home at once: many more than a cluster takes of one fence.
const AT_ONCE: usize = 50;

struct Inboxes {
    name: String,
    js: jetstream::Context,
    publisher: Publisher,
}

impl Inboxes {
    /// A stream of its own with as many copies as those of the mesh.
    async fn make(stage: &Stage) -> anyhow::Result<Self> {
        let copies = std::env::var("MESH_STREAM_REPLICAS").map_or(Ok(1), |copies| copies.parse())?;
        let client = broker::connect(&stage.settings.nats_url, "fences").await?;
        let js = jetstream::new(client.clone());
        let name = stage.name("fences");
        let config = stream::Config {
            name: name.clone(),
            subjects: vec![format!("{name}.>")],
            retention: stream::RetentionPolicy::WorkQueue,
            duplicate_window: Duration::from_secs(30),
            num_replicas: copies,
            ..Default::default()
        };
        js.create_stream(config).await?;
        Ok(Self { name, js, publisher: Publisher::start(client).await? })
    }

    /// A home takes over: whatever a former one still publishes is refused from here on.
    async fn move_fence(&self) -> Fence {
        let subject = format!("{}.fence", self.name);
        eventually("the fence lies", PATIENCE, || async {
            let ack = self.publisher.publish(subject.clone(), None, None, "epoch".into()).await.await.ok()?;
            Some(Fence { subject: subject.clone(), sequence: ack.sequence })
        })
        .await
    }

    async fn publish(&self, n: usize, fence: &Fence) -> Result<bool, PublishError> {
        let (subject, id) = (format!("{}.inbox", self.name), format!("message-{n}"));
        let ack = self.publisher.publish(subject, Some(&id), Some(fence), "work".into()).await.await?;
        Ok(!ack.duplicate)
    }

    async fn messages(&self) -> anyhow::Result<u64> {
        Ok(self.js.get_stream(&self.name).await?.cached_info().state.messages)
    }
}

#[tokio::test]
async fn what_is_published_at_once_under_one_fence_is_stored_once_and_deposes_nobody() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let inboxes = Inboxes::make(&stage).await?;
    let fence = inboxes.move_fence().await;
    let first = join_all((0..AT_ONCE).map(|n| inboxes.publish(n, &fence))).await;
    for (n, result) in first.into_iter().enumerate() {
        match result {
            Ok(new) => assert!(new, "message {n} was stored for the first time"),
            Err(PublishError::Unconfirmed(_)) => {
                until("it is stored at last", PATIENCE, || async {
                    inboxes.publish(n, &fence).await.is_ok()
                })
                .await;
            }
            Err(error) => panic!("message {n}: {error}"),
        }
    }
    for n in 0..AT_ONCE {
        let again =
            eventually("an answer", PATIENCE, || async { inboxes.publish(n, &fence).await.ok() }).await;
        assert!(!again, "message {n} was known");
    }
    assert_eq!(inboxes.messages().await?, AT_ONCE as u64 + 1, "each once, and the fence");
    Ok(())
}

#[tokio::test]
async fn a_former_home_stores_nothing_once_its_fence_was_moved() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let inboxes = Inboxes::make(&stage).await?;
    for round in 0..20 {
        let former = inboxes.move_fence().await;
        // The one is not waited for before the other is sent.
        let subject = former.subject.clone();
        let moved = inboxes.publisher.publish(subject, None, None, "epoch".into()).await;
        let late = inboxes.publish(round, &former).await;
        assert!(late.is_err(), "round {round}: {late:?}");
        moved.await?;
        assert_eq!(inboxes.publish(round, &former).await, Err(PublishError::Fenced), "round {round}");
    }
    let kept = inboxes.messages().await?;
    assert_eq!(kept, 40, "fences, and nothing of a former home");
    Ok(())
}
