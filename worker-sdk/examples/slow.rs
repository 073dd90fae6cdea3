//! A slow handler: it reports progress, asks for more time, and notices when nobody wants its result any more.

use std::time::Duration;

use serde_json::json;
use worker_sdk::{Context, Error, Failure, Mesh};

const STEP: Duration = Duration::from_millis(300);

async fn survey(ctx: Context, rooms: u32) -> Result<u32, Failure> {
    for room in 1..=rooms {
        // When the time left is too short for the rest, ask for more; the rules may grant less.
        if ctx.time_left() < STEP * 2 {
            ctx.extend(STEP * (rooms - room + 2)).await?;
        }
        tokio::select! {
            () = tokio::time::sleep(STEP) => {}
            // The caller has withdrawn the request, or the deadline has passed: one second is left to tidy up.
            () = ctx.cancelled() => return Err(Failure::new("the survey was stopped").with_code("stopped")),
        }
        ctx.progress(&json!({ "room": room, "of": rooms })).await?;
    }
    Ok(rooms * 12)
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example talks to its reader")]
async fn main() -> Result<(), Error> {
    let mesh = Mesh::from_env().await?;
    let surveyor =
        mesh.agent("example_surveyor").capability("survey", survey).sla_p95(STEP * 20).register().await?;
    let person = mesh.agent("example_person").depends_on("example_surveyor").register().await?;
    let survey = |rooms: u32| {
        let dispatch = person.dispatch("example_surveyor", "survey").budget(Duration::from_secs(1));
        dispatch.json(&rooms)
    };

    // One second is not enough for six rooms: the handler asks for more.
    let mut pending = survey(6)?.start().await?;
    println!("{} is accepted", pending.id());
    while let Some(note) = pending.progress().await {
        println!("progress: {note}");
    }
    println!("area: {} m²", pending.reply().await?.json::<u32>()?);

    // Withdrawn after the first room.
    let mut pending = survey(100)?.start().await?;
    println!("progress: {:?}", pending.progress().await);
    pending.cancel().await?;
    println!("withdrawn: {}", pending.reply().await.expect_err("it cannot have surveyed a hundred rooms"));

    person.stop().await?;
    surveyor.stop().await
}
