//! Echo: one agent offers a capability, another calls it. Run it beside a mesh: `./dev up`, then
//! `cargo run -p worker-sdk --example echo`.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use worker_sdk::{Context, Error, Failure, Mesh, Priority};

#[derive(Serialize, Deserialize)]
struct Words {
    text: String,
}

async fn echo(_: Context, words: Words) -> Result<Words, Failure> {
    if words.text.is_empty() {
        return Err(Failure::new("there is nothing to echo").with_code("empty"));
    }
    Ok(Words { text: words.text.to_uppercase() })
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example talks to its reader")]
async fn main() -> Result<(), Error> {
    let mesh = Mesh::from_env().await?;
    let parrot = mesh
        .agent("example_parrot")
        .capability("echo", echo)
        .max_concurrent(8)
        .sla_p95(Duration::from_millis(100))
        .register()
        .await?;
    let person = mesh.agent("example_person").depends_on("example_parrot/echo").register().await?;

    let begun = Instant::now();
    let words = Words { text: "what's my home worth?".into() };
    let reply =
        person.dispatch("example_parrot", "echo").priority(Priority::P1).json(&words)?.request().await?;
    println!("{} said {:?}", reply.target(), reply.json::<Words>()?.text);
    println!("{} took {:?}, of which {:?} in the handler", reply.id(), begun.elapsed(), reply.ran());

    let silence = Words { text: String::new() };
    if let Err(error) = person.dispatch("example_parrot", "echo").json(&silence)?.request().await {
        println!("silence: {error} (code {:?})", error.code());
    }

    // What was not declared is rejected, with the reason and what is missing.
    if let Err(error) = person.dispatch("example_parrot", "sing").json(&words)?.request().await {
        println!("undeclared: {error}");
    }

    person.stop().await?;
    parrot.stop().await
}
