//! A topic: one event, a copy for each agent that wants it. A handler that fails gets its copy again, with growing pauses,
//! and after five attempts the event is in the dead-letter queue (`mesh dlq`).

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use worker_sdk::{Agent, Context, Error, Failure, Mesh, Priority};

#[derive(Clone, Serialize, Deserialize)]
struct LeadChanged {
    lead: String,
    temperature: String,
}

/// An agent that says on a channel what it was told; at its first attempt it fails, if it is the forgetful one.
async fn listener(mesh: &Mesh, name: &'static str, said: mpsc::Sender<String>) -> Result<Agent, Error> {
    let said = Arc::new(said);
    mesh.agent(name)
        .on_topic("example_leads", move |ctx: Context, event: LeadChanged| {
            let said = Arc::clone(&said);
            async move {
                if name == "example_forgetful" && ctx.attempt() == 1 {
                    return Err(Failure::new("the first time is not remembered"));
                }
                let words =
                    format!("{name}: {} is {}, attempt {}", event.lead, event.temperature, ctx.attempt());
                Ok(said.send(words).await?)
            }
        })
        .register()
        .await
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example talks to its reader")]
async fn main() -> Result<(), Error> {
    let mesh = Mesh::from_env().await?;
    let (said, mut heard) = mpsc::channel(8);
    let dashboard = listener(&mesh, "example_dashboard", said.clone()).await?;
    let forgetful = listener(&mesh, "example_forgetful", said).await?;
    // Who sends to a topic need not declare it, nor know who listens.
    let scorer = mesh.agent("example_scorer").register().await?;

    let event = LeadChanged { lead: "Ada".into(), temperature: "hot".into() };
    let accepted = scorer.emit("example_leads").priority(Priority::P3).json(&event)?.send().await?;
    println!("{} is accepted: each listener will get it, whatever fails meanwhile", accepted.id());
    for _ in 0..2 {
        println!("{}", heard.recv().await.unwrap_or_default());
    }
    for agent in [scorer, forgetful, dashboard] {
        agent.stop().await?;
    }
    Ok(())
}
