//! The network between the processes of a run: a TCP proxy with a link for each pair of a client and a server.
//!
//! Owns the forwarding and the state of each link; which link suffers what is the plan's. It is a process of its own, started
//! before its clients, and writes for each of them an environment that leads through it: `STACK/<client>.env`.
//! The rule it keeps: on a link that is open, or slow, bytes arrive whole and in order.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::random::Random;

/// What a link holds in each direction before its sender has to wait: chunks of at most [`CHUNK_BYTES`].
const CHUNKS_MAX: usize = 256;
const CHUNK_BYTES: usize = 32 * 1024;
/// The servers, with the variable that says where each is.
const SERVERS: [(&str, &str); 3] =
    [("nats", "MESH_NATS_URL"), ("redis", "MESH_REDIS_URL"), ("postgres", "MESH_POSTGRES_URL")];

/// How a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// As if it were not there.
    Open,
    /// What is connected is disconnected, and whoever connects is sent away.
    Cut,
    /// Connections stay and are taken, and nothing goes through until the link is open again.
    Silent,
    /// Everything takes so much longer, and up to as much again, as the seed has it.
    Slow(Duration, u64),
}

impl State {
    /// As [`State::parse`] reads it.
    fn command(self) -> String {
        match self {
            Self::Open => "open".to_owned(),
            Self::Cut => "cut".to_owned(),
            Self::Silent => "silent".to_owned(),
            Self::Slow(delay, seed) => format!("slow {} {seed}", delay.as_micros()),
        }
    }

    fn parse(words: &[&str]) -> Option<Self> {
        Some(match words {
            ["open"] => Self::Open,
            ["cut"] => Self::Cut,
            ["silent"] => Self::Silent,
            ["slow", micros, seed] => {
                Self::Slow(Duration::from_micros(micros.parse().ok()?), seed.parse().ok()?)
            }
            _ => return None,
        })
    }
}

type Links = BTreeMap<String, watch::Sender<State>>;

/// Forwards for these clients until the process is killed.
///
/// # Errors
/// When the environment does not say where the servers are, or nothing can be listened on.
pub async fn run(stack: &Path, clients: &[String]) -> anyhow::Result<()> {
    let mut links = Links::new();
    for client in clients {
        let mut environment = std::fs::read_to_string(stack.join("mesh.env"))?;
        for (server, variable) in SERVERS {
            let url = std::env::var(variable).with_context(|| format!("{variable} is not set"))?;
            let (state, _) = watch::channel(State::Open);
            let url = led_through(&url, &state).await.with_context(|| format!("{variable} is no address"))?;
            writeln!(environment, "{variable}={url}")?;
            links.insert(format!("{client}/{server}"), state);
        }
        let path = stack.join(format!("{client}.env"));
        // It has the password of the archive in it.
        let file =
            std::fs::OpenOptions::new().mode(0o600).write(true).create(true).truncate(true).open(&path);
        std::io::Write::write_all(&mut file?, environment.as_bytes())?;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    std::fs::write(stack.join("run/proxy.addr"), listener.local_addr()?.to_string())?;
    let links = Arc::new(links);
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(obey(stream, Arc::clone(&links)));
    }
}

/// Puts a link into a state, and waits until the proxy says that it is.
///
/// # Errors
/// When there is no such link, or no proxy.
pub(super) async fn set(stack: &Path, link: &str, state: State) -> anyhow::Result<()> {
    let address = std::fs::read_to_string(stack.join("run/proxy.addr")).context("there is no proxy")?;
    let mut stream = TcpStream::connect(address.trim()).await?;
    stream.write_all(format!("{link} {}\n", state.command()).as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    anyhow::ensure!(answer == "done\n", "the proxy on {link}: {answer}");
    Ok(())
}

async fn obey(stream: TcpStream, links: Arc<Links>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let order = words.split_first().and_then(|(link, rest)| Some((links.get(*link)?, State::parse(rest)?)));
    let answer = order.map_or("there is no such link or state\n", |(link, state)| {
        link.send_replace(state);
        "done\n"
    });
    stream.write_all(answer.as_bytes()).await
}

/// Listens for each server that a URL names, and gives the URL with these addresses in their places.
///
/// # Errors
/// When the URL names no addresses, or nothing can be listened on.
pub async fn led_through(url: &str, state: &watch::Sender<State>) -> anyhow::Result<String> {
    let mut servers = Vec::new();
    for one in url.split(',') {
        let (from, to) = host(one).with_context(|| format!("`{one}` names no host and port"))?;
        let server: SocketAddr = one[from..to].parse()?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        servers.push(format!("{}{}{}", &one[..from], listener.local_addr()?, &one[to..]));
        tokio::spawn(listen(listener, server, state.subscribe()));
    }
    Ok(servers.join(","))
}

/// Where in a URL `host:port` stands.
fn host(url: &str) -> Option<(usize, usize)> {
    let scheme = url.find("://")? + 3;
    let end = url[scheme..].find('/').map_or(url.len(), |at| scheme + at);
    let from = url[scheme..end].rfind('@').map_or(scheme, |at| scheme + at + 1);
    Some((from, end))
}

async fn listen(listener: TcpListener, server: SocketAddr, state: watch::Receiver<State>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        if *state.borrow() == State::Cut {
            continue;
        }
        tokio::spawn(forward(client, server, state.clone()));
    }
}

/// Forwards one connection until an end closes it, or it is cut.
async fn forward(client: TcpStream, server: SocketAddr, state: watch::Receiver<State>) {
    let mut until_cut = state.clone();
    let whole = async {
        if !passable(&mut state.clone()).await {
            return;
        }
        let Ok(server) = TcpStream::connect(server).await else { return };
        // What is small and urgent is not to wait for more of it.
        drop((client.set_nodelay(true), server.set_nodelay(true)));
        let (client_in, client_out) = client.into_split();
        let (server_in, server_out) = server.into_split();
        // One direction that ends ends both: nobody here closes one half only.
        tokio::select! {
            () = pass(client_in, server_out, state.clone(), 0) => {}
            () = pass(server_in, client_out, state.clone(), 1) => {}
        }
    };
    tokio::select! {
        () = whole => {}
        _ = until_cut.wait_for(|state| *state == State::Cut) => {}
    }
}

/// Waits while a link is silent; whether it is still of use then.
async fn passable(state: &mut watch::Receiver<State>) -> bool {
    state.wait_for(|state| *state != State::Silent).await.is_ok()
}

/// Passes on what comes, in order, each chunk when it is due.
async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut state: watch::Receiver<State>,
    direction: u64,
) {
    let (chunks, mut held) = mpsc::channel::<(Instant, Bytes)>(CHUNKS_MAX);
    let mut jitter = None;
    let read_state = state.clone();
    let read = async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK_BYTES);
            if !matches!(from.read_buf(&mut buffer).await, Ok(count) if count > 0) {
                return;
            }
            let due = Instant::now() + later(*read_state.borrow(), direction, &mut jitter);
            if chunks.send((due, buffer.split().freeze())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, chunk)) = held.recv().await {
            tokio::time::sleep_until(due).await;
            if !passable(&mut state).await || to.write_all(&chunk).await.is_err() {
                return;
            }
        }
    };
    // What was read before an end closed is still written.
    tokio::join!(read, write);
}

/// How much later than it came a chunk goes on.
fn later(state: State, direction: u64, jitter: &mut Option<(u64, Random)>) -> Duration {
    let State::Slow(delay, seed) = state else { return Duration::ZERO };
    let fresh = (seed, Random::new(seed ^ direction));
    let (of, random) = jitter.get_or_insert(fresh.clone());
    if *of != seed {
        (*of, *random) = fresh;
    }
    random.between(delay, delay * 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_each_url_is_found() {
        let host = |url: &str| host(url).map(|(from, to)| url[from..to].to_owned());
        assert_eq!(host("nats://127.0.0.1:4222").unwrap(), "127.0.0.1:4222");
        assert_eq!(host("postgres://mesh:secret@127.0.0.1:5432/mesh").unwrap(), "127.0.0.1:5432");
        assert_eq!(host("127.0.0.1"), None);
    }

    #[test]
    fn a_state_is_read_as_it_is_written() {
        for state in [State::Open, State::Cut, State::Silent, State::Slow(Duration::from_millis(30), 9)] {
            assert_eq!(State::parse(&state.command().split(' ').collect::<Vec<_>>()), Some(state));
        }
        assert_eq!(State::parse(&["slow", "much"]), None);
    }

    /// A server that gives back what it gets, and the way to it.
    async fn echo() -> (String, watch::Sender<State>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        let (state, _) = watch::channel(State::Open);
        let url = led_through(&format!("nats://{address}"), &state).await.unwrap();
        (url["nats://".len()..].to_owned(), state)
    }

    async fn says(stream: &mut TcpStream, word: &[u8]) -> std::io::Result<Vec<u8>> {
        stream.write_all(word).await?;
        let mut heard = vec![0; word.len()];
        stream.read_exact(&mut heard).await?;
        Ok(heard)
    }

    #[tokio::test]
    async fn what_goes_through_is_whole_and_late_and_cut() {
        let (address, state) = echo().await;
        let mut stream = TcpStream::connect(&address).await.unwrap();
        assert_eq!(says(&mut stream, b"open").await.unwrap(), b"open");
        state.send_replace(State::Slow(Duration::from_millis(20), 1));
        let begun = Instant::now();
        assert_eq!(says(&mut stream, b"slow").await.unwrap(), b"slow");
        assert!(begun.elapsed() >= Duration::from_millis(40), "there and back");
        state.send_replace(State::Silent);
        let patience = Duration::from_millis(100);
        assert!(tokio::time::timeout(patience, says(&mut stream, b"shhh")).await.is_err(), "nothing comes");
        state.send_replace(State::Open);
        let mut heard = [0; 4];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"shhh", "and nothing is lost");
        state.send_replace(State::Cut);
        assert!(says(&mut stream, b"gone").await.is_err());
        let again = async { says(&mut TcpStream::connect(&address).await?, b"again").await };
        assert!(again.await.is_err(), "and nobody is let in");
    }
}
