//! A graceful stop: on Ctrl-C or SIGTERM the agent takes nothing new, finishes what runs, confirms it, and says goodbye.
//! What it has not begun goes to other instances. Start two of them and stop one while `mesh call` goes on.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use worker_sdk::{Context, Error, ErrorKind, Failure, Mesh};

async fn work(ctx: Context, minutes: u32) -> Result<String, Failure> {
    tokio::time::sleep(Duration::from_millis(u64::from(minutes) * 100)).await;
    Ok(format!("{} done, {:?} before its deadline", ctx.id(), ctx.time_left()))
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example talks to its reader")]
async fn main() -> Result<(), Error> {
    let mesh = Mesh::from_env().await?;
    let worker = mesh
        .agent("example_worker")
        .capability("work", work)
        .max_concurrent(4)
        .instances(1, 4)
        .drain_within(Duration::from_secs(10))
        .register()
        .await?;
    println!("instance {} works; stop it with Ctrl-C", worker.instance());

    let mut terminate = signal(SignalKind::terminate())
        .unwrap_or_else(|e| unreachable!("a process can listen to its own signals: {e}"));
    let shutdown = async {
        // Either is a wish to stop; an error of the first means that it cannot be sent.
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        println!("stopping: no new work");
    };
    match worker.run_until(shutdown).await {
        Ok(()) => println!("all that ran is finished and confirmed"),
        Err(e) if e.kind() == ErrorKind::Unknown => println!("out of time; the rest goes to other instances"),
        Err(e) => return Err(e),
    }
    Ok(())
}
