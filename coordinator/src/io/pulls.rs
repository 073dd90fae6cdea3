//! Pulling lanes and completions: one task for each connection, which gives what arrives to the home.

use std::time::Duration;

use async_nats::Client;
use broker::{Pulled, Pump};
use governance::{AgentIx, Priority};
use tokio::sync::mpsc;

use crate::home::Input;

/// How long a pull stays open at the broker when nothing comes.
const EXPIRES: Duration = Duration::from_secs(20);

/// What a pull is for, packed into the key that the pump hands back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// A lane of this agent.
    Lane(AgentIx, Priority),
    /// The completions for this agent.
    Done(AgentIx, Priority),
}

const DONE_BIT: u64 = 1 << 40;

impl Source {
    pub(crate) fn key(self) -> u64 {
        match self {
            Self::Lane(agent, p) => u64::from(agent.0) | u64::from(p.code()) << 32,
            Self::Done(agent, p) => u64::from(agent.0) | u64::from(p.code()) << 32 | DONE_BIT,
        }
    }

    pub(crate) fn from_key(key: u64) -> Self {
        let agent = AgentIx(key as u32);
        let p = Priority::from_code((key >> 32) as u8).unwrap_or(Priority::P3);
        if key & DONE_BIT == 0 { Self::Lane(agent, p) } else { Self::Done(agent, p) }
    }
}

/// A pull to make.
#[derive(Debug)]
pub(crate) struct Pull {
    pub(crate) source: Source,
    pub(crate) stream: String,
    pub(crate) consumer: String,
    pub(crate) messages: u32,
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
                pump.pull(pull.source.key(), &pull.stream, &pull.consumer, pull.messages, EXPIRES).await?;
            }
            pulled = pump.next() => {
                let Some(pulled) = pulled else { anyhow::bail!("the subscription to pulls ended") };
                let input = match pulled {
                    Pulled::Message(message) => Input::Message(Source::from_key(message.key), message),
                    Pulled::Ended { key, unfilled, why } => Input::PullEnded(Source::from_key(key), unfilled, why),
                };
                if home.send(input).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}
