//! The Compose actuator against an engine that is played: what it asks of it, and in which order.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::*;

/// How long anything may take before the test has failed.
const PATIENCE: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(600);

/// A container as the played engine knows it.
#[derive(Debug, Clone)]
struct Played {
    id: String,
    number: String,
    state: &'static str,
}

/// What the played engine has and was asked.
#[derive(Debug, Default)]
struct Stage {
    containers: Vec<Played>,
    orders: Vec<String>,
    /// The engine refuses to start containers.
    refuses: bool,
}

impl Stage {
    fn find(&mut self, id: &str) -> &mut Played {
        self.containers.iter_mut().find(|c| c.id == id).unwrap()
    }

    fn labels(number: &str) -> Value {
        json!({"com.docker.compose.project": "shop", "com.docker.compose.service": "lead-bot",
               "com.docker.compose.container-number": number})
    }

    /// Answers one request: a status and a body.
    fn answer(&mut self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (path, _query) = path.split_once('?').unwrap_or((path, ""));
        if method != "GET" {
            self.orders.push(format!("{method} {path}"));
        }
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        match (method, parts.as_slice()) {
            ("GET", ["containers", "json"]) => {
                let listed =
                    |c: &Played| json!({"Id": c.id, "State": c.state, "Labels": Self::labels(&c.number)});
                (200, self.containers.iter().map(listed).collect())
            }
            ("GET", ["containers", id, "json"]) => {
                let number = self.find(id).number.clone();
                let config = json!({"Cmd": ["lead-bot"], "Env": [], "Labels": Self::labels(&number)});
                (
                    200,
                    json!({"Id": id, "Name": "/x", "Image": "sha256:feed", "Config": config, "HostConfig": {}}),
                )
            }
            ("POST", ["containers", "create"]) => {
                let body: Value = serde_json::from_str(body).unwrap();
                let number =
                    body["Labels"]["com.docker.compose.container-number"].as_str().unwrap().to_owned();
                let id = format!("made-{number}");
                self.containers.push(Played { id: id.clone(), number, state: "created" });
                (201, json!({ "Id": id }))
            }
            ("POST", ["containers", _, "start"]) if self.refuses => (500, json!({"message": "no room"})),
            ("POST", ["containers", id, "start"]) => {
                self.find(id).state = "running";
                (204, Value::Null)
            }
            ("POST", ["containers", id, "stop"]) => {
                self.find(id).state = "exited";
                (204, Value::Null)
            }
            ("DELETE", ["containers", id]) => {
                self.containers.retain(|c| c.id != *id);
                (204, Value::Null)
            }
            other => panic!("the engine was asked {other:?}"),
        }
    }
}

/// The played engine with the actuator on it.
struct Play {
    stage: Arc<Mutex<Stage>>,
    actuator: ComposeActuator,
    folder: PathBuf,
}

impl Drop for Play {
    fn drop(&mut self) {
        // Left to the system's own cleaning where it cannot be removed.
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

impl Play {
    fn new(name: &str, containers: &[(&str, &'static str)]) -> Self {
        let folder = std::env::temp_dir().join(format!("mesh-engine-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let socket = folder.join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let played = |(number, state): &(&str, &'static str)| Played {
            id: format!("up-{number}"),
            number: (*number).to_owned(),
            state,
        };
        let stage = Stage { containers: containers.iter().map(played).collect(), ..Stage::default() };
        let stage = Arc::new(Mutex::new(stage));
        let served = Arc::clone(&stage);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&served)));
            }
        });
        let service = Service { name: "lead-bot".into(), project: None };
        Self { stage, actuator: ComposeActuator::new(socket, service, LONG, LONG), folder }
    }

    fn orders(&self) -> Vec<String> {
        std::mem::take(&mut self.stage.lock().unwrap().orders)
    }

    async fn until_fleet(&mut self, running: u32, draining: u32) {
        let wanted = Fleet { running, draining };
        let settled = async {
            while self.actuator.instances().await.unwrap() != wanted {
                self.actuator.wait_change().await;
            }
        };
        tokio::time::timeout(PATIENCE, settled).await.unwrap_or_else(|_| panic!("not in time: {wanted:?}"));
    }
}

/// Serves one request in the manner of the engine, which closes the connection after it.
async fn serve(mut stream: UnixStream, stage: Arc<Mutex<Stage>>) {
    let mut received = Vec::new();
    let (head, body_from) = loop {
        assert!(stream.read_buf(&mut received).await.unwrap() > 0, "the request is whole");
        if let Some(end) = received.windows(4).position(|w| w == b"\r\n\r\n") {
            break (String::from_utf8(received[..end].to_vec()).unwrap().to_lowercase(), end + 4);
        }
    };
    let length =
        head.lines().find_map(|l| l.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    while received.len() < body_from + length {
        assert!(stream.read_buf(&mut received).await.unwrap() > 0, "the body is whole");
    }
    let text = String::from_utf8(received).unwrap();
    let mut words = text.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let (status, body) = stage.lock().unwrap().answer(method, path, &text[body_from..]);
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let head =
        format!("HTTP/1.1 {status} Said\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
}

#[tokio::test]
async fn one_more_is_a_copy_under_the_next_number_and_the_newest_goes_first() {
    let mut play = Play::new("copy", &[("1", "running"), ("2", "running")]);
    assert_eq!(play.actuator.instances().await.unwrap(), Fleet { running: 2, draining: 0 });
    play.actuator.start_one().await.unwrap();
    assert_eq!(play.orders(), ["POST /containers/create", "POST /containers/made-3/start"]);
    play.until_fleet(3, 0).await;
    play.actuator.stop_one().await.unwrap();
    play.until_fleet(2, 0).await;
    assert_eq!(play.orders(), ["POST /containers/made-3/stop", "DELETE /containers/made-3"]);
}

#[tokio::test]
async fn one_that_ended_is_started_again_before_another_is_made() {
    let mut play = Play::new("again", &[("1", "running"), ("2", "exited")]);
    assert_eq!(play.actuator.instances().await.unwrap(), Fleet { running: 1, draining: 0 });
    play.actuator.start_one().await.unwrap();
    assert_eq!(play.orders(), ["POST /containers/up-2/start"]);
    play.until_fleet(2, 0).await;
}

#[tokio::test]
async fn the_last_container_is_stopped_and_stays_to_be_copied() {
    let mut play = Play::new("last", &[("1", "running")]);
    play.actuator.stop_one().await.unwrap();
    play.until_fleet(0, 0).await;
    assert_eq!(play.orders(), ["POST /containers/up-1/stop"]);
    play.actuator.start_one().await.unwrap();
    play.until_fleet(1, 0).await;
}

#[tokio::test]
async fn a_copy_that_cannot_be_started_is_taken_away() {
    let mut play = Play::new("refused", &[("1", "running")]);
    play.stage.lock().unwrap().refuses = true;
    let error = crate::answer::in_words(&play.actuator.start_one().await.unwrap_err());
    assert!(error.contains("no room"), "{error}");
    assert_eq!(play.orders().last().map(String::as_str), Some("DELETE /containers/made-2"));
    assert_eq!(play.actuator.instances().await.unwrap(), Fleet { running: 1, draining: 0 });
}

#[tokio::test]
async fn a_service_that_was_never_made_is_named() {
    let mut play = Play::new("nothing", &[]);
    let error = play.actuator.instances().await.unwrap_err().to_string();
    assert!(error.contains("docker compose up -d lead-bot"), "{error}");
}

#[test]
fn a_container_that_crashes_pauses_before_it_is_started_again() {
    let begin = Instant::now();
    let mut life = Life { backoff: Backoff::new(Duration::from_secs(30)), running_since: None, due: begin };
    life.look(false, begin);
    assert!(!life.pauses(begin), "one that had ended before we looked may start at once");
    life.look(true, begin);
    let crashed = begin + Duration::from_secs(5);
    life.look(false, crashed);
    assert!(life.pauses(crashed));
    assert!(!life.pauses(crashed + Duration::from_millis(250)));
    life.look(false, crashed + Duration::from_millis(300));
    assert!(!life.pauses(crashed + Duration::from_millis(300)), "its pause is not begun anew");
}
