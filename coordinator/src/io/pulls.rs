//! Pulling lanes and completions: one task for each connection, which gives what arrives to the home.

use std::time::Duration;

use async_nats::Client;
use broker::{Pulled, Pump};
use governance::{AgentIx, Priority};
use home::{Delivered, Ended, Input, Pull, Source};
use tokio::sync::mpsc;

/// How long a pull stays open at the broker when nothing comes.
const EXPIRES: Duration = Duration::from_secs(20);

const DONE_BIT: u64 = 1 << 40;

/// What a pull is for, packed into the key that the pump hands back.
fn key(source: Source) -> u64 {
    let (agent, p, done) = match source {
        Source::Lane(agent, p) => (agent, p, 0),
        Source::Done(agent, p) => (agent, p, DONE_BIT),
    };
    u64::from(agent.0) | u64::from(p.code()) << 32 | done
}

fn source(key: u64) -> Source {
    let agent = AgentIx(key as u32);
    let p = Priority::from_code((key >> 32) as u8).unwrap_or(Priority::P3);
    if key & DONE_BIT == 0 { Source::Lane(agent, p) } else { Source::Done(agent, p) }
}

fn input(pulled: Pulled) -> Input {
    match pulled {
        Pulled::Message(m) => {
            let delivered = Delivered {
                subject: m.subject.into_string(),
                payload: m.payload,
                ack: m.ack.into_string(),
                stream_sequence: m.stream_sequence,
                published: m.published,
                pending: m.pending,
            };
            Input::Message(source(m.key), delivered)
        }
        Pulled::Ended { key, unfilled, why } => {
            let why = match why {
                broker::Ended::Expired => Ended::Expired,
                broker::Ended::NoConsumer | broker::Ended::Refused => Ended::Refused,
            };
            Input::PullEnded(source(key), unfilled, why)
        }
    }
}

/// Runs pulls on one connection until the channel of pulls closes.
pub(crate) async fn run(
    client: Client,
    mut pulls: mpsc::Receiver<Pull>,
    home: mpsc::Sender<Input>,
) -> anyhow::Result<()> {
    let mut pump = Pump::start(client).await?;
    loop {
        // Both arms are cancellation-safe: a channel and the pump keep what they have not yielded.
        tokio::select! {
            pull = pulls.recv() => {
                let Some(pull) = pull else { return Ok(()) };
                pump.pull(key(pull.source), &pull.stream, &pull.consumer, pull.messages, EXPIRES).await?;
            }
            pulled = pump.next() => {
                let Some(pulled) = pulled else { anyhow::bail!("the subscription to pulls ended") };
                if home.send(input(pulled)).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_what_a_pull_was_for() {
        for p in Priority::ALL {
            for what in [Source::Lane(AgentIx(u32::MAX), *p), Source::Done(AgentIx(7), *p)] {
                assert_eq!(source(key(what)), what);
            }
        }
    }
}
