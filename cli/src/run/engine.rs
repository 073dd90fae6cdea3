//! The Docker engine: its HTTP API over its socket. Owns requests, time limits and what an error answer says; knows nothing
//! of Compose.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long the engine may take for an answer; it makes and starts containers within seconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// An answer with a thousand containers has a few megabytes; more is not an answer of an engine.
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// The engine behind a socket.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    socket: PathBuf,
}

impl Engine {
    pub(crate) const fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Asks for something.
    ///
    /// # Errors
    /// When the engine is away, or says no.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.call(Method::GET, path, None, PATIENCE).await
    }

    /// Orders something, within `limit`.
    ///
    /// # Errors
    /// When the engine is away, says no, or does not answer in time.
    pub(crate) async fn post(
        &self,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> anyhow::Result<Value> {
        self.call(Method::POST, path, body, limit).await
    }

    /// Takes something away.
    ///
    /// # Errors
    /// When the engine is away, or says no.
    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<Value> {
        self.call(Method::DELETE, path, None, PATIENCE).await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> anyhow::Result<Value> {
        let what = format!("{method} {path}");
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "docker")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        match timeout(limit, exchange(&self.socket, request)).await {
            Ok(answer) => answer.and_then(|(status, body)| read(status, &body)).with_context(|| what),
            Err(_) => bail!("{what}: the Docker engine did not answer within {} s", limit.as_secs()),
        }
    }
}

/// One request on a connection of its own: there are few, and none is left open to a restarted engine.
async fn exchange(socket: &Path, request: Request<Full<Bytes>>) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = UnixStream::connect(socket)
        .await
        .with_context(|| format!("no Docker engine at {}", socket.display()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|e| anyhow::anyhow!("the answer cannot be read: {e}"))?;
        Ok((status, body.to_bytes()))
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection may end before the body was handed over.
        closed = connection => { closed?; exchange.await }
    }
}

/// Reads an answer; one that is already so is as good as one that became so.
fn read(status: StatusCode, body: &[u8]) -> anyhow::Result<Value> {
    if status.is_client_error() || status.is_server_error() {
        let message = serde_json::from_slice::<Value>(body).ok();
        let message = message.as_ref().and_then(|m| m["message"].as_str()).unwrap_or("no reason given");
        bail!("the Docker engine refused ({}): {message}", status.as_u16());
    }
    if body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(body).context("the Docker engine's answer is not JSON")
}

/// A text as it may stand in the query of an address.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte))
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_the_engine_s_words() {
        let error = read(StatusCode::CONFLICT, br#"{"message": "the name is in use"}"#).unwrap_err();
        assert_eq!(error.to_string(), "the Docker engine refused (409): the name is in use");
        assert!(read(StatusCode::BAD_GATEWAY, b"<html>").is_err());
        assert_eq!(read(StatusCode::NOT_MODIFIED, b"").unwrap(), Value::Null);
        assert_eq!(read(StatusCode::OK, b"[1]").unwrap()[0], 1);
    }

    #[test]
    fn a_query_is_escaped() {
        assert_eq!(escaped("{\"label\":[\"a=b\"]}"), "%7B%22label%22%3A%5B%22a%3Db%22%5D%7D");
    }

    #[tokio::test]
    async fn an_engine_that_is_away_is_named_by_its_socket() {
        let engine = Engine::new("no-such-folder/docker.sock".into());
        let error = crate::answer::in_words(&engine.get("/info").await.unwrap_err());
        assert!(error.contains("no Docker engine at no-such-folder/docker.sock"), "{error}");
    }
}
