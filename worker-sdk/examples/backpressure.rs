//! Backpressure: an agent sends far more than its quota. Nothing is dropped and nothing fails: the mesh tells it to slow
//! down, what it sends waits, and `mesh lanes` shows why.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use worker_sdk::{Context, Error, Failure, Mesh};

const CALLS: u32 = 300;

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example talks to its reader")]
async fn main() -> Result<(), Error> {
    let mesh = Mesh::from_env().await?;
    let counter = mesh
        .agent("example_counter")
        .capability("count", |_: Context, n: u32| async move { Ok::<_, Failure>(n + 1) })
        .register()
        .await?;
    let hasty = mesh.agent("example_hasty").depends_on("example_counter").register().await?;
    let rate = hasty.terms().map_or(0, |terms| terms.rate_per_s);
    println!("role {:?}, quota {rate}/s", hasty.terms().map(|terms| &terms.role));

    // The signals are obeyed in any case; listening is for those who can do something else meanwhile.
    let mut signals = hasty.signals();
    let told = tokio::spawn(async move {
        while let Some(signal) = signals.next().await {
            println!("signal: {signal:?}");
        }
    });

    let begun = Instant::now();
    let payloads = (0..CALLS).map(|n| Bytes::from(n.to_string()));
    let replies = hasty
        .dispatch("example_counter", "count")
        .budget(Duration::from_secs(60))
        .request_many(payloads)
        .await?;
    let answered = replies.iter().filter(|r| r.is_ok()).count();
    let longest = replies.iter().flatten().map(|r| r.waited_in_lane()).max().unwrap_or_default();
    println!("{answered} of {CALLS} answered in {:?}; the longest wait was {longest:?}", begun.elapsed());

    told.abort();
    hasty.stop().await?;
    counter.stop().await
}
