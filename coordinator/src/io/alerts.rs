//! Alerts: on their subject for whoever listens, and to the webhook where one is configured.

use std::time::Duration;

use async_nats::Client;
use protocol::control::Alert;
use protocol::subjects;
use tokio::sync::mpsc;

/// How long a webhook may take: alerts behind it wait, dispatches do not.
const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends alerts until their channel closes.
pub(crate) async fn run(
    client: Client,
    webhook: Option<String>,
    mut alerts: mpsc::Receiver<Alert>,
) -> anyhow::Result<()> {
    let http = reqwest::Client::builder().timeout(WEBHOOK_TIMEOUT).build()?;
    while let Some(alert) = alerts.recv().await {
        tracing::warn!(kind = alert.kind, agent = alert.agent, text = alert.text, "alert");
        let body = serde_json::to_vec(&alert)?;
        client.publish(subjects::alert(&alert.kind), body.into()).await?;
        if let Some(url) = &webhook {
            post(&http, url, &alert).await;
        }
    }
    Ok(())
}

/// Posts one alert. A webhook that fails loses this alert and nothing else; the log and the subject have it.
async fn post(http: &reqwest::Client, url: &str, alert: &Alert) {
    // The address may hold a secret, so that errors are logged without it.
    match http.post(url).json(alert).send().await {
        Ok(answer) if answer.status().is_success() => {}
        Ok(answer) => tracing::warn!(status = answer.status().as_u16(), "the webhook refused an alert"),
        Err(e) => tracing::warn!(error = %e.without_url(), "the webhook did not take an alert"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_alert_is_posted_to_the_webhook_as_json() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let alert = Alert {
            kind: "breaker".into(),
            at: "2026-02-14T09:23:15.482Z".into(),
            agent: "handoff_service".into(),
            text: "tripped".into(),
            figures: std::collections::BTreeMap::new(),
        };
        let received = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = String::new();
            while !request.contains("\"figures\":{}}") {
                let mut part = [0; 4_096];
                let read = stream.read(&mut part).await.unwrap();
                assert_ne!(read, 0, "the request ended early: {request}");
                request.push_str(std::str::from_utf8(&part[..read]).unwrap());
            }
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            request
        };
        let http = reqwest::Client::new();
        let (request, ()) = tokio::join!(received, post(&http, &url, &alert));
        assert!(request.starts_with("POST /hook HTTP/1.1\r\n"), "{request}");
        let body = request.split("\r\n\r\n").nth(1).unwrap();
        assert_eq!(serde_json::from_str::<Alert>(body).unwrap(), alert);
    }
}
