//! Owns the one thing that talks to a language model: a draft of an answer from an OpenAI-compatible endpoint. It
//! decides nothing and is never needed. Rule kept: any failure is only a missing draft, and the key is in no message and no log.

use std::{fmt, time::Duration};

use serde::Deserialize;
use serde_json::json;

use crate::reply::Facts;

/// An answer that takes longer than this is written by the rules: a person waits for it.
const TIMEOUT: Duration = Duration::from_secs(8);

/// What the orchestrator promises when it waits for drafts.
pub const SLA: Duration = Duration::from_secs(10);

/// A draft is cut to this many characters, four text messages.
const DRAFT_CHARS_MAX: usize = 640;

/// How large a language model's response may be before it is refused.
const RESPONSE_BYTES_MAX: u64 = 1 << 20;

const SYSTEM_PROMPT: &str = "You answer text messages of people who look for a home or want to sell one. \
    Use only the facts given as JSON. Answer in at most three short sentences, without markup.";

/// Why there is no draft.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint did not answer in time or refused.
    #[error("the language model did not answer")]
    Request(#[source] reqwest::Error),
    /// The endpoint answered something that holds no text.
    #[error("the language model answered without a text")]
    Empty,
    /// The endpoint's answer is too large to be one.
    #[error("the language model answered more than {RESPONSE_BYTES_MAX} bytes")]
    TooLarge,
}

/// A client of one endpoint.
#[derive(Clone)]
pub struct Llm {
    http: reqwest::Client,
    url: String,
    model: String,
    key: Option<String>,
}

impl fmt::Debug for Llm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Llm").field("url", &self.url).field("model", &self.model).finish_non_exhaustive()
    }
}

impl Llm {
    /// A client of `url`, the base of an OpenAI-compatible API (`http://host:port/v1`).
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(url: &str, model: &str, key: Option<String>) -> Result<Self, Error> {
        let http = reqwest::Client::builder().timeout(TIMEOUT).build().map_err(Error::Request)?;
        let base = url.trim_end_matches('/').trim_end_matches("/chat/completions");
        Ok(Self { http, url: format!("{base}/chat/completions"), model: model.to_owned(), key })
    }

    /// Drafts an answer to `text` from `facts`.
    ///
    /// # Errors
    /// When there is no usable answer in time; the caller goes on without a draft.
    pub async fn draft(&self, text: &str, facts: &Facts) -> Result<String, Error> {
        let facts = json!({ "facts": facts, "message": text }).to_string();
        let body = json!({
            "model": self.model,
            "temperature": 0,
            "max_tokens": 160,
            "messages": [{ "role": "system", "content": SYSTEM_PROMPT }, { "role": "user", "content": facts }],
        });
        let mut request = self.http.post(&self.url).json(&body);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.and_then(reqwest::Response::error_for_status);
        let response = response.map_err(|source| Error::Request(source.without_url()))?;
        if response.content_length().is_some_and(|bytes| bytes > RESPONSE_BYTES_MAX) {
            return Err(Error::TooLarge);
        }
        let completion: Completion =
            response.json().await.map_err(|source| Error::Request(source.without_url()))?;
        completion.text().ok_or(Error::Empty)
    }
}

#[derive(Deserialize)]
struct Completion {
    #[serde(default)]
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    message: Answer,
}

#[derive(Deserialize)]
struct Answer {
    content: Option<String>,
}

impl Completion {
    fn text(self) -> Option<String> {
        let content = self.choices.into_iter().next()?.message.content?;
        let text: String = content.trim().chars().take(DRAFT_CHARS_MAX).collect();
        (!text.is_empty()).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// Answers one HTTP request with `body` and hands back what was asked.
    fn endpoint(status: &'static str, body: &'static str) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1/", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            let mut chunk = [0; 4096];
            while !asked.ends_with(b"}") {
                let read = stream.read(&mut chunk).unwrap();
                asked.extend_from_slice(&chunk[..read]);
            }
            let length = body.len();
            write!(stream, "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
            String::from_utf8(asked).unwrap()
        });
        (url, server)
    }

    #[tokio::test]
    async fn a_draft_is_asked_for_and_read() {
        let (url, server) = endpoint("200 OK", r#"{"choices": [{"message": {"content": " Hello! "}}]}"#);
        let llm = Llm::new(&url, "small", Some("sesame".to_owned())).unwrap();
        assert_eq!(llm.draft("hi", &Facts::default()).await.unwrap(), "Hello!");
        let asked = server.join().unwrap();
        assert!(
            asked.starts_with("POST /v1/chat/completions") && asked.contains("authorization: Bearer sesame")
        );
        assert!(!format!("{llm:?}").contains("sesame"));
    }

    #[tokio::test]
    async fn failures_are_errors_without_the_key() {
        for (status, body) in [("500 Oops", "{}"), ("200 OK", "{}"), ("200 OK", "[]")] {
            let (url, server) = endpoint(status, body);
            let llm = Llm::new(&url, "small", Some("sesame".to_owned())).unwrap();
            let error = llm.draft("hi", &Facts::default()).await.unwrap_err();
            assert!(!format!("{error:?}").contains("sesame"));
            server.join().unwrap();
        }
    }
}
