//! The stage of one test: connections to the mesh under test, and names that no other test has.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use audit_archiver::archive::{Archive, Dispatch};
use futures::StreamExt;
use protocol::control::{AgentView, Answer, Operation};
use protocol::subjects;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::types::ToSql;
use worker_sdk::{DispatchId, Mesh, Timestamp};

use crate::{PATIENCE, SOON, Settings, eventually};

/// How long an answer to an operator's command may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Everything a test works with.
#[derive(Debug, Clone)]
pub struct Stage {
    /// Where everything is.
    pub settings: Settings,
    /// The mesh, as an agent author sees it.
    pub mesh: Mesh,
    /// The archive.
    pub archive: Archive,
    /// When this test began.
    pub since: Timestamp,
    tag: String,
}

impl Stage {
    /// Connects to everything.
    ///
    /// # Panics
    /// When the mesh cannot be reached, with a word on how these tests are run.
    pub async fn set() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let settings = Settings::read();
        let mesh = Mesh::connect(&settings.nats_url).await.expect("the broker under test answers");
        let archive = Archive::connect(&settings.postgres_url).await.expect("the archive under test answers");
        // Of the process and in it, so that tests run side by side and again on the same mesh.
        let tag = format!("{:x}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self { settings, mesh, archive, since: clock(), tag }
    }

    /// A name for an agent of this test.
    #[must_use]
    pub fn name(&self, role: &str) -> String {
        format!("{role}-{}", self.tag)
    }

    /// The record of a dispatch, once it has an outcome.
    ///
    /// # Panics
    /// When it has none soon, or the archive does not answer.
    pub async fn record(&self, id: DispatchId) -> Dispatch {
        eventually(&format!("an outcome of {id} in the archive"), SOON, || async {
            let found = self.archive.dispatch(&id.to_string()).await.expect("the archive answers");
            found.filter(|dispatch| dispatch.outcome.is_some())
        })
        .await
    }

    /// The one number that a query gives.
    ///
    /// # Panics
    /// When the query fails.
    pub async fn number(&self, query: &str, parameters: &[&(dyn ToSql + Sync)]) -> i64 {
        let client = audit_archiver::connect(&self.settings.postgres_url, "mesh-tests")
            .await
            .expect("the archive under test answers");
        client.query_one(query, parameters).await.expect("the query is right").get(0)
    }

    /// Waits until all that the trail holds is archived, and so checked: dense, whole, chained.
    ///
    /// # Panics
    /// When the archive stops at something, or stays behind.
    pub async fn archived(&self) {
        let done = self.archive.until_archived(&self.settings.redis_url, PATIENCE).await;
        done.expect("the whole trail is archived");
    }

    /// A counter, summed over the coordinators. 0 where none shows it.
    ///
    /// # Panics
    /// When a metric is no number.
    pub async fn metric(&self, name: &str) -> f64 {
        let mut sum = 0.0;
        for address in &self.settings.coordinators {
            // One that was killed is on its way back; what it counted is gone with it.
            let Ok(text) = self.http(address, "/metrics").await else { continue };
            for line in
                text.lines().filter(|line| line.strip_prefix(name).is_some_and(begins_labels_or_value))
            {
                let value = line.rsplit(' ').next().unwrap_or_default();
                sum += value.parse::<f64>().expect("a metric is a number");
            }
        }
        sum
    }

    /// What an HTTP endpoint answers, head and all.
    ///
    /// # Errors
    /// When nobody listens there, or the answer is no text.
    pub async fn http(&self, address: &str, path: &str) -> std::io::Result<String> {
        // Without a library: the endpoints are plain.
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }

    /// Gives an operator's command about an agent; what its home says.
    ///
    /// # Panics
    /// When nobody answers, or the command is refused.
    pub async fn operate(&self, verb: &str, agent: &str) -> Value {
        self.answer(verb, agent).await.body.expect("an answer without an error has a body")
    }

    /// The name of the replica that is home of an agent at present.
    ///
    /// # Panics
    /// When nobody answers.
    pub async fn home(&self, agent: &str) -> String {
        self.answer("agents", agent).await.replica
    }

    /// What the mesh knows of an agent.
    ///
    /// # Panics
    /// When it knows nothing of it.
    pub async fn view(&self, agent: &str) -> AgentView {
        let views: Vec<AgentView> =
            serde_json::from_value(self.operate("agents", agent).await).expect("the views are JSON");
        views.into_iter().find(|view| view.agent == agent).expect("the agent is registered")
    }

    async fn answer(&self, verb: &str, agent: &str) -> Answer<Value> {
        let operation = Operation {
            agent: agent.into(),
            reason: "a test".into(),
            operator: "mesh-tests".into(),
            letter: None,
        };
        let body = serde_json::to_vec(&operation).expect("plain data serialises");
        let subject = subjects::control(verb);
        eventually(&format!("an answer to {verb}"), PATIENCE, || async {
            let nats = self.mesh.nats();
            let inbox = nats.new_inbox();
            let mut answers = nats.subscribe(inbox.clone()).await.expect("the broker answers");
            nats.publish_with_reply(subject.clone(), inbox, body.clone().into()).await.expect("it is sent");
            // Each replica answers; one of them is home, or none while the shard moves.
            let home = async {
                while let Some(message) = answers.next().await {
                    let answer: Answer<Value> = serde_json::from_slice(&message.payload).ok()?;
                    assert_eq!(answer.error, None, "{verb} {agent}");
                    if answer.body.is_some() {
                        return Some(answer);
                    }
                }
                None
            };
            tokio::time::timeout(ANSWER_WITHIN, home).await.ok().flatten()
        })
        .await
    }
}

/// What may follow the name of a metric; a longer name is another metric.
fn begins_labels_or_value(rest: &str) -> bool {
    rest.starts_with(['{', ' '])
}

/// Now, as the broker on this machine sees it.
#[must_use]
pub fn clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("this is after 1970");
    Timestamp(u64::try_from(since.as_nanos()).expect("this is before 2554"))
}
