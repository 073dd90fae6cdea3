//! Outages: whether the broker and the audit ledger do their work, as a metric, in the log and as alerts.
//!
//! Owns the looking and the telling; mends nothing, and no dispatch waits for it. The rule it keeps: a server counts as away
//! when it does not do what the mesh needs of it, which is more than to answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_nats::Client;
use protocol::control::Alert;
use tokio::sync::mpsc;

use crate::clock;
use crate::io::ledger::Ledger;
use crate::metrics::{Metrics, Server};

/// How often the servers are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// What lasts no longer is no outage: a restart of a server on a quiet machine.
const TELL_AFTER: Duration = Duration::from_secs(2);

/// What is looked at. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    pub(crate) broker: Client,
    pub(crate) ledger: Ledger,
    /// Whether the broker stored the last announcement of this replica: it writes one each second.
    pub(crate) stored: Arc<AtomicBool>,
}

impl Look {
    /// Why the broker does not do its work; nothing where it does.
    pub(crate) fn broker(&self) -> Option<&'static str> {
        if self.broker.connection_state() != async_nats::connection::State::Connected {
            return Some("the broker is away");
        }
        let stored = self.stored.load(Ordering::Relaxed);
        (!stored).then_some("the broker stores nothing")
    }

    /// Why the ledger does not do its work; nothing where it does.
    pub(crate) async fn ledger(&self) -> Option<&'static str> {
        if !self.ledger.answers().await {
            return Some("the audit ledger is away");
        }
        self.ledger.refuses().then_some("the audit ledger takes no blocks")
    }
}

/// Looks until the process ends, and tells of each outage when it has lasted and when it is over.
pub(crate) async fn watch(
    look: Look,
    metrics: Arc<Metrics>,
    alerts: mpsc::Sender<Alert>,
) -> anyhow::Result<()> {
    let mut servers = [Watched::new(Server::Broker), Watched::new(Server::Ledger)];
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let whys = [look.broker(), look.ledger().await];
        for (server, why) in servers.iter_mut().zip(whys) {
            metrics.server_up(server.server, why.is_none());
            if let Some(text) = server.see(Instant::now(), why) {
                // A full channel of alerts has older news; the metric has this one.
                drop(alerts.try_send(alert(text)));
            }
        }
    }
}

/// One server, as it was seen so far.
#[derive(Debug)]
struct Watched {
    server: Server,
    since: Option<Instant>,
    told: bool,
}

impl Watched {
    const fn new(server: Server) -> Self {
        Self { server, since: None, told: false }
    }

    /// What is to be told after a look.
    fn see(&mut self, now: Instant, why: Option<&str>) -> Option<String> {
        let Some(why) = why else {
            let since = self.since.take()?;
            let name = self.server.name();
            return std::mem::take(&mut self.told)
                .then(|| format!("{name} works again after {} s", now.duration_since(since).as_secs()));
        };
        let lasted = now.duration_since(*self.since.get_or_insert(now));
        if self.told || lasted < TELL_AFTER {
            return None;
        }
        self.told = true;
        Some(format!("{}: {why}; dispatches wait", self.server.name()))
    }
}

fn alert(text: String) -> Alert {
    Alert {
        kind: "outage".to_owned(),
        at: protocol::text::rfc3339(clock::now()),
        agent: String::new(),
        text,
        figures: std::collections::BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_once_when_it_has_lasted_and_once_when_it_is_over() {
        let mut redis = Watched::new(Server::Ledger);
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        assert_eq!(redis.see(at(0), None), None);
        assert_eq!(redis.see(at(500), Some("away")), None);
        assert_eq!(redis.see(at(1_000), None), None, "it was back before anybody was told");
        assert_eq!(redis.see(at(2_000), Some("away")), None);
        assert_eq!(redis.see(at(4_000), Some("away")).as_deref(), Some("redis: away; dispatches wait"));
        assert_eq!(redis.see(at(4_500), Some("away")), None);
        assert_eq!(redis.see(at(9_000), None).as_deref(), Some("redis works again after 7 s"));
        assert_eq!(redis.see(at(9_500), None), None);
    }
}
