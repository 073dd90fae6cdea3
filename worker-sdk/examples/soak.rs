//! scratch
use futures::StreamExt;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use worker_sdk::*;
#[tokio::main]
#[expect(clippy::print_stdout, clippy::unwrap_used, reason = "scratch")]
async fn main() -> Result<(), Error> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let args: Vec<String> = std::env::args().collect();
    let mesh = Mesh::from_env().await?;
    if args[1] == "agent" {
        let path = format!("{}/ran-{}", args[2], std::process::id());
        let file = Arc::new(Mutex::new(std::fs::File::create(path).unwrap()));
        let ms: u64 = args[3].parse().unwrap();
        let agent = mesh
            .agent("soak_worker")
            .capability("double", move |ctx: Context, n: u64| {
                let file = file.clone();
                async move {
                    writeln!(file.lock().unwrap(), "{} {} {}", ctx.id(), n, ctx.attempt()).unwrap();
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    writeln!(file.lock().unwrap(), "end {}", ctx.id()).unwrap();
                    Ok(n * 2)
                }
            })
            .max_concurrent(args.get(4).map_or(32, |a| a.parse().unwrap()))
            .instances(1, 8)
            .sla_p95(Duration::from_secs(2))
            .register()
            .await?;
        println!("agent up {}", agent.instance());
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        let t = agent.run_until(term.recv()).await;
        println!("agent stopped {t:?}");
        return Ok(());
    }
    let seconds: u64 = args[2].parse().unwrap();
    let outstanding: usize = args[3].parse().unwrap();
    let callers: usize = args.get(4).map_or(1, |a| a.parse().unwrap());
    let begun = Instant::now();
    let mut agents = Vec::new();
    for c in 0..callers {
        agents.push(mesh.agent(&format!("soak_caller_{c}")).depends_on("soak_worker").register().await?);
    }
    let counts = Arc::new(Mutex::new(BTreeMap::<String, u64>::new()));
    let lat = Arc::new(Mutex::new(Vec::new()));
    futures::stream::iter(0u64..)
        .take_while(|_| {
            let go = begun.elapsed().as_secs() < seconds;
            async move { go }
        })
        .for_each_concurrent(outstanding, |n| {
            let agent = agents[n as usize % callers].clone();
            let counts = counts.clone();
            let lat = lat.clone();
            async move {
                let t = Instant::now();
                let r = agent.dispatch("soak_worker", "double").json(&n).unwrap().call::<u64>().await;
                lat.lock().unwrap().push(t.elapsed());
                let key = match r {
                    Ok(v) if v == n * 2 => "ok".into(),
                    Ok(v) => format!("WRONG {n} {v}"),
                    Err(e) => {
                        let s = format!("{:?} {}", e.kind(), e.message());
                        if !matches!(e.kind(), ErrorKind::Unknown) { s } else { format!("{s} {:?}", e.id()) }
                    }
                };
                *counts.lock().unwrap().entry(key).or_default() += 1;
            }
        })
        .await;
    let mut l = lat.lock().unwrap().clone();
    l.sort();
    println!(
        "caller: {:?} in {:?}; p50 {:?} p99 {:?} max {:?}",
        counts.lock().unwrap(),
        begun.elapsed(),
        l[l.len() / 2],
        l[l.len() * 99 / 100],
        l[l.len() - 1]
    );
    for a in agents {
        a.stop().await?;
    }
    Ok(())
}
