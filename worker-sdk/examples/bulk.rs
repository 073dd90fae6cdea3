//! Bulk: many readings go through the mesh, each with an id, an outcome and a record of its own, and neither side does anything
//! for each of them that it can do for all that go together. How many these are follows from the quota: five at the 100/s of
//! a bot, thousands for a role with a hundred thousand. Run it beside a mesh: `./dev up`, then
//! `cargo run -p worker-sdk --example bulk`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use worker_sdk::{Answers, Batch, Error, Mesh};

const READINGS: u64 = 500;

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example talks to its reader")]
async fn main() -> Result<(), Error> {
    let mesh = Mesh::from_env().await?;
    let (sum, seen) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (adds, counts) = (Arc::clone(&sum), Arc::clone(&seen));
    let meter = mesh
        .agent("example_meter")
        // Called with as many readings as came together and as there are slots for.
        .capability_batch("read", move |batch: Batch| {
            let readings = batch.payloads().filter_map(|p| Some(u64::from_le_bytes(p.try_into().ok()?)));
            adds.fetch_add(readings.sum(), Ordering::Relaxed);
            counts.fetch_add(batch.len() as u64, Ordering::Relaxed);
            std::future::ready(Ok(Answers::empty()))
        })
        .max_concurrent(512)
        .register()
        .await?;
    let field = mesh.agent("example_field").depends_on("example_meter/read").register().await?;

    let begun = Instant::now();
    let readings = (0..READINGS).map(|n| Bytes::copy_from_slice(&n.to_le_bytes()));
    let event = field.publish_event("example_meter", "read").bytes(Bytes::new(), "application/octet-stream");
    // Waits until all are accepted. What is above the quota of `example_field` waits in its lane.
    let accepted = event.send_many(readings).await?;
    println!("{} accepted in {} envelopes", accepted.count(), accepted.runs().len());
    while seen.load(Ordering::Relaxed) < READINGS {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("all were read after {:?}; their sum is {}", begun.elapsed(), sum.load(Ordering::Relaxed));
    field.stop().await?;
    meter.stop().await
}
