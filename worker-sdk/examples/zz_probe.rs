//! scratch
use std::time::{Duration, Instant};
use worker_sdk::*;
#[tokio::main]
#[expect(clippy::print_stdout, clippy::unwrap_used, reason = "scratch")]
async fn main() -> Result<(), Error> {
    let mesh = Mesh::from_env().await?;
    let w = mesh.agent("probe_worker").capability("double", |_: Context, n: u64| async move { Ok::<_, Failure>(n * 2) }).register().await?;
    let c = mesh.agent("probe_caller").depends_on("probe_worker").register().await?;
    for p in [Priority::P0, Priority::P1, Priority::P2] {
    let mut rows = Vec::new();
    for n in 0..300u64 {
        let t = Instant::now();
        let pending = c.dispatch("probe_worker", "double").priority(p).json(&n)?.start().await?;
        let accepted = t.elapsed();
        let r = pending.reply().await?;
        rows.push((t.elapsed(), accepted, r.waited_in_lane(), r.waited_in_inbox(), r.ran()));
    }
    let med = |f: fn(&(Duration, Duration, Duration, Duration, Duration)) -> Duration| { let mut v: Vec<_> = rows.iter().map(f).collect(); v.sort(); (v[v.len()/2], v[v.len()*95/100]) };
    println!("{p}: total {:?} accepted {:?} lane {:?} inbox {:?} ran {:?}", med(|r| r.0), med(|r| r.1), med(|r| r.2), med(|r| r.3), med(|r| r.4));
    }
    w.stop().await.unwrap(); c.stop().await
}
