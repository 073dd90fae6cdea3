//! Delegation: a handler calls other agents. What it sends is part of the same tree, ends no later than its own dispatch,
//! and while it waits, its slot is free for others.

use worker_sdk::{Context, Error, ErrorKind, Failure, Mesh};

async fn quote(ctx: Context, area: String) -> Result<String, Failure> {
    // Two children at once; `dispatch_to_any` leaves it to the mesh which agent answers.
    let (median, stock) = tokio::join!(
        ctx.dispatch("example_market", "median_rent").json(&area)?.call::<u32>(),
        ctx.dispatch_to_any("count_listings").json(&area)?.call::<u32>(),
    );
    // An error of a child can be handled, or passed on with `?`.
    let stock = match stock {
        Ok(stock) => stock,
        Err(e) if e.kind() == ErrorKind::CircuitBroken => 0,
        Err(e) => return Err(e.into()),
    };
    Ok(format!("{stock} homes in {area}, median rent {}", median?))
}

async fn median_rent(_: Context, area: String) -> Result<u32, Failure> {
    match area.as_str() {
        "San Rafael" => Ok(2_450),
        _ => Err(Failure::new(format!("nothing is known about {area}")).with_code("unknown_area")),
    }
}

async fn count_listings(_: Context, area: String) -> Result<u32, Failure> {
    Ok(area.len() as u32)
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example talks to its reader")]
async fn main() -> Result<(), Error> {
    let mesh = Mesh::from_env().await?;
    let market = mesh.agent("example_market").capability("median_rent", median_rent).register().await?;
    let index = mesh.agent("example_index").capability("count_listings", count_listings).register().await?;
    let broker = mesh
        .agent("example_broker")
        .capability("quote", quote)
        .depends_on("example_market")
        .depends_on("*/count_listings")
        .register()
        .await?;
    let person = mesh.agent("example_person").depends_on("example_broker").register().await?;

    for area in ["San Rafael", "Atlantis"] {
        match person.dispatch("example_broker", "quote").json(&area)?.request().await {
            Ok(reply) => println!("{}   (see it all: mesh trace {})", reply.json::<String>()?, reply.id()),
            Err(error) => println!("{error}   (see why: mesh trace {:?})", error.id()),
        }
    }
    futures::future::try_join_all(
        [person, broker, index, market].map(|agent| async move { agent.stop().await }),
    )
    .await?;
    Ok(())
}
