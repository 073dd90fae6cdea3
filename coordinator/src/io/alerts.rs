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
        let Some(url) = &webhook else { continue };
        // The address may hold a secret, so that errors are logged without it.
        match http.post(url).json(&alert).send().await {
            Ok(answer) if answer.status().is_success() => {}
            Ok(answer) => tracing::warn!(status = answer.status().as_u16(), "the webhook refused an alert"),
            Err(e) => tracing::warn!(error = %e.without_url(), "the webhook did not take an alert"),
        }
    }
    Ok(())
}
