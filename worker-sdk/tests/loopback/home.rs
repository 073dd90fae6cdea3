//! A home that does what a test tells it, on a real nats-server: it sees lane messages and completions as they come, and
//! puts messages into inboxes. It governs nothing.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::{self, consumer};
use async_nats::{Client, Message};
use bytes::Bytes;
use futures::StreamExt;
use governance::{AgentId, DispatchId, InstanceId, Kind, Priority, Reason, Registration, Timestamp};
use protocol::completion::Completions;
use protocol::control::{OpenAnswer, OpenQuestion, Revoke, Terms, Verdict};
use protocol::envelope::{self, LaneEnvelope, Outgoing};
use protocol::inbox::{self, Stamp};
use protocol::{streams, subjects};

/// How long anything may take before the test has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// The instance that the test's own dispatches come from.
pub(crate) const SENDER: InstanceId = InstanceId(7);

struct Server {
    process: Child,
    folder: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to clear away but its folder.
        drop(self.process.kill());
        drop(self.process.wait());
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

fn nats_server() -> Option<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools");
    let brought = std::fs::read_dir(tools).ok().into_iter().flatten().flatten().map(|entry| entry.path());
    let installed = std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join("nats-server"))
        .collect::<Vec<_>>();
    brought
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("nats-server")))
        .chain(installed)
        .find(|path| path.is_file())
}

/// Waits until a condition holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let holds = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, holds).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

async fn start_server() -> Option<(Server, String)> {
    let Some(binary) = nats_server() else {
        println!("skipped: there is no nats-server; `./dev setup` brings one");
        return None;
    };
    let folder = std::env::temp_dir().join(format!("mesh-sdk-{}", uuid::Uuid::new_v4().simple()));
    std::fs::create_dir_all(&folder).unwrap();
    // The streams reserve more than a server offers by default; nothing near it is used.
    let limits = "max_memory_store: 1TB, max_file_store: 1TB";
    let config = format!("jetstream {{ store_dir: {folder:?}, {limits} }}");
    std::fs::write(folder.join("nats.conf"), config).unwrap();
    let process = Command::new(binary)
        .args(["-a", "127.0.0.1", "-p", "-1", "-c"])
        .arg(folder.join("nats.conf"))
        .arg("--ports_file_dir")
        .arg(&folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let server = Server { process, folder };
    let url = || {
        let ports = std::fs::read_dir(&server.folder)
            .ok()?
            .flatten()
            .find(|e| e.path().extension().is_some_and(|x| x == "ports"))?;
        let ports: serde_json::Value = serde_json::from_slice(&std::fs::read(ports.path()).ok()?).ok()?;
        ports["nats"][0].as_str().map(str::to_owned)
    };
    eventually("the server names its port", || std::future::ready(url().is_some())).await;
    let url = url().unwrap();
    Some((server, url))
}

/// A dispatch that the test sends.
pub(crate) struct Sending {
    pub(crate) kind: Kind,
    pub(crate) capability: &'static str,
    pub(crate) payload: &'static str,
}

pub(crate) fn request(capability: &'static str, payload: &'static str) -> Sending {
    Sending { kind: Kind::Request, capability, payload }
}

pub(crate) fn event(capability: &'static str, payload: &'static str) -> Sending {
    Sending { kind: Kind::Event, capability, payload }
}

pub(crate) fn id(sequence: u64, slot: u16) -> DispatchId {
    DispatchId { instance: SENDER, sequence, slot, copy: 0 }
}

/// One completion, as the home reads it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Completed {
    pub(crate) id: DispatchId,
    pub(crate) count: u16,
    pub(crate) reason: Reason,
    pub(crate) attempt: u8,
    pub(crate) payload: String,
    pub(crate) inbox_ack: String,
}

type Taken = Arc<tokio::sync::Mutex<pull::Stream>>;

/// The home, and the server it runs on.
pub(crate) struct Home {
    pub(crate) url: String,
    pub(crate) client: Client,
    pub(crate) js: jetstream::Context,
    ended: Arc<Mutex<HashSet<String>>>,
    done: Taken,
    lanes: Taken,
    _server: Server,
}

impl Home {
    /// Starts a server and a home on it; none, with a printed message, where there is no server to start.
    pub(crate) async fn start() -> Option<Self> {
        let (server, url) = start_server().await?;
        let client = broker::connect(&url, "home").await.unwrap();
        let js = jetstream::new(client.clone());
        broker::ensure(&js, broker::Storage::Memory, 1).await.unwrap();
        let ended: Arc<Mutex<HashSet<String>>> = Arc::default();
        register_all(client.clone(), js.clone()).await;
        answer_what_is_open(&client, Arc::clone(&ended)).await;
        let done = take(&js, streams::DONE).await;
        let lanes = take(&js, &streams::lanes(Priority::P2)).await;
        Some(Self { url, client, js, ended, done, lanes, _server: server })
    }

    /// From here on these are not open any more.
    pub(crate) fn end(&self, ids: impl IntoIterator<Item = DispatchId>) {
        self.ended.lock().unwrap().extend(ids.into_iter().map(|id| id.to_string()));
    }

    /// Puts dispatches of one envelope into an inbox as one message.
    pub(crate) async fn deliver(&self, target: &str, sequence: u64, dispatches: &[Sending]) {
        let rows: Vec<Outgoing<'_>> = dispatches
            .iter()
            .map(|d| Outgoing {
                kind: d.kind,
                capability: d.capability,
                topic: "",
                budget: Duration::ZERO,
                lineage: b"",
                conversation: "talk",
                order_key: "",
                idempotency_key: "",
                trace: "",
                content_type: "",
                payload: d.payload.as_bytes(),
            })
            .collect();
        let bytes = envelope::write(SENDER, sequence, "", &rows);
        self.forward(target, "tester", &LaneEnvelope::parse(&bytes).unwrap()).await;
    }

    /// Forwards a lane envelope to an inbox.
    pub(crate) async fn forward(&self, target: &str, source: &str, lane: &LaneEnvelope<'_>) {
        let rows = lane.frame.rows();
        let now = Timestamp(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
        let stamp = Stamp {
            source,
            copy: 0,
            lane: Priority::P2,
            accepted: now,
            admitted: now,
            reason: Reason::Ok,
            deadlines: &vec![now.after(PATIENCE); rows],
            serves_person: false,
            seals: &vec![42; rows],
        };
        let message = inbox::write(&[inbox::parcel(lane, 0..rows, &stamp)]);
        let subject = subjects::inbox(Priority::P2, &AgentId::new(target).unwrap());
        self.js.publish(subject, message.into()).await.unwrap().await.unwrap();
    }

    /// The next lane message.
    pub(crate) async fn lane(&self) -> Bytes {
        next(&self.lanes).await.payload.clone()
    }

    /// The completions of the next report.
    pub(crate) async fn completions(&self) -> Vec<Completed> {
        let message = next(&self.done).await;
        let rows = Completions::parse(&message.payload).unwrap();
        (0..rows.len())
            .map(|i| rows.row(i))
            .map(|row| Completed {
                id: row.first,
                count: row.count,
                reason: row.reason,
                attempt: row.attempt,
                payload: String::from_utf8_lossy(row.payload).into_owned(),
                inbox_ack: row.inbox_ack.to_owned(),
            })
            .collect()
    }

    /// The next completion where each comes in a report of its own or together.
    pub(crate) async fn completions_of(&self, count: usize) -> Vec<Completed> {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend(self.completions().await);
        }
        all.sort_by_key(|c| (c.id.sequence, c.id.slot));
        all
    }

    /// Waits until so many messages are left in the inboxes of priority P2.
    pub(crate) async fn left_in_inboxes(&self, messages: u64) {
        eventually("the inbox holds what is left", || async {
            let mut stream = self.js.get_stream(streams::inboxes(Priority::P2)).await.unwrap();
            stream.info().await.unwrap().state.messages == messages
        })
        .await;
    }

    /// Tells the instances of a target that dispatches have ended.
    pub(crate) async fn revoke(&self, target: &str, first: DispatchId, count: u16) {
        let revoke = Revoke { first: first.to_string(), count };
        let subject = subjects::revoke(&AgentId::new(target).unwrap());
        self.client.publish(subject, serde_json::to_vec(&revoke).unwrap().into()).await.unwrap();
    }
}

async fn take(js: &jetstream::Context, stream: &str) -> Taken {
    let config = pull::Config { durable_name: Some("home".into()), ..Default::default() };
    let consumer: consumer::PullConsumer = js.create_consumer_on_stream(config, stream).await.unwrap();
    Arc::new(tokio::sync::Mutex::new(consumer.messages().await.unwrap()))
}

async fn next(taken: &Taken) -> jetstream::Message {
    let mut messages = taken.lock().await;
    let message = tokio::time::timeout(PATIENCE, messages.next()).await.expect("a message in time");
    let message = message.unwrap().unwrap();
    message.ack().await.unwrap();
    message
}

async fn respond(client: &Client, message: &Message, body: &impl serde::Serialize) {
    let reply = message.reply.clone().unwrap();
    client.publish(reply, serde_json::to_vec(body).unwrap().into()).await.unwrap();
}

async fn register_all(client: Client, js: jetstream::Context) {
    let mut requests = client.subscribe(subjects::REGISTER).await.unwrap();
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let registration: Registration = serde_json::from_slice(&request.payload).unwrap();
            broker::ensure_inbox_consumers(&js, &AgentId::new(&registration.agent).unwrap()).await.unwrap();
            let terms = Terms {
                role: "bot".into(),
                rate_per_s: 100,
                burst: 10,
                inbox_ack_wait_ms: 3_000,
                policy_version: 1,
            };
            let verdict = Verdict { accepted: true, problems: vec![], warnings: vec![], terms: Some(terms) };
            respond(&client, &request, &verdict).await;
        }
    });
}

async fn answer_what_is_open(client: &Client, ended: Arc<Mutex<HashSet<String>>>) {
    let mut questions = client.subscribe(subjects::OPENS).await.unwrap();
    let client = client.clone();
    tokio::spawn(async move {
        while let Some(question) = questions.next().await {
            let asked: OpenQuestion = serde_json::from_slice(&question.payload).unwrap();
            let is_open = |first: &DispatchId, slot: u16| {
                !ended.lock().unwrap().contains(&DispatchId { slot: first.slot + slot, ..*first }.to_string())
            };
            let open = asked.runs.iter().map(|(first, count)| {
                let first: DispatchId = first.parse().unwrap();
                (0..*count).map(|slot| is_open(&first, slot)).collect()
            });
            respond(&client, &question, &OpenAnswer { open: open.collect(), alone: Vec::new() }).await;
        }
    });
}
