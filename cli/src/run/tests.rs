//! The loop with an actuator that is played: what it makes of wishes, failures and signals.

use governance::Reason;

use super::reconcile::Fleet;
use super::*;

/// How long anything may take before the test has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// An actuator that only counts, and shows its count.
struct Played {
    count: watch::Sender<u32>,
    /// How many more orders fail.
    failing: u32,
}

impl Played {
    fn order(&mut self, change: i32) -> anyhow::Result<()> {
        if self.failing > 0 {
            self.failing -= 1;
            anyhow::bail!("the engine is away");
        }
        self.count.send_modify(|n| *n = n.checked_add_signed(change).unwrap());
        Ok(())
    }
}

impl Actuator for Played {
    async fn instances(&mut self) -> anyhow::Result<Fleet> {
        Ok(Fleet { running: *self.count.borrow(), draining: 0 })
    }

    async fn start_one(&mut self) -> anyhow::Result<()> {
        self.order(1)
    }

    async fn stop_one(&mut self) -> anyhow::Result<()> {
        self.order(-1)
    }

    async fn wait_change(&mut self) {
        std::future::pending().await
    }

    async fn end(&mut self) {
        self.count.send_replace(0);
    }
}

/// A supervisor at work, with what moves it.
struct Stage {
    wish: watch::Sender<Option<Scale>>,
    signal: mpsc::Sender<&'static str>,
    count: watch::Receiver<u32>,
    ended: tokio::task::JoinHandle<anyhow::Result<Answer>>,
}

fn start(failing: u32) -> Stage {
    let (wish, wanted) = watch::channel(None);
    let (signal, signals) = mpsc::channel(SIGNALS_MAX);
    let (counting, count) = watch::channel(0);
    let supervisor =
        Supervisor { agent: "lead_bot".into(), bounds: Bounds { min: 2, max: 6 }, wanted, signals };
    let actuator = Played { count: counting, failing };
    Stage { wish, signal, count, ended: tokio::spawn(supervisor.supervise(actuator)) }
}

impl Stage {
    fn wish(&self, wanted: u32) {
        let reason = Reason::DepthSustained;
        self.wish.send_replace(Some(Scale { wanted, reason, epoch: 1, at_ns: 0 }));
    }

    async fn until(&mut self, instances: u32) {
        let reached = self.count.wait_for(|n| *n == instances);
        let reached = tokio::time::timeout(PATIENCE, reached).await;
        reached.unwrap_or_else(|_| panic!("not in time: {instances}")).unwrap();
    }
}

#[tokio::test]
async fn the_fleet_follows_the_wish_within_its_bounds_and_ends_with_the_supervisor() {
    let mut stage = start(0);
    stage.until(2).await;
    stage.wish(5);
    stage.until(5).await;
    stage.wish(99);
    stage.until(6).await;
    stage.wish(0);
    stage.until(2).await;
    stage.signal.send("SIGTERM").await.unwrap();
    stage.until(0).await;
    assert_eq!(stage.ended.await.unwrap().unwrap(), Answer::Yes);
}

#[tokio::test]
async fn what_fails_at_the_very_first_ends_it_as_nothing_was_ever_right() {
    let stage = start(1);
    assert_eq!(stage.ended.await.unwrap().unwrap_err().to_string(), "the engine is away");
}

#[tokio::test]
async fn what_fails_once_it_has_worked_is_tried_again() {
    let mut played = Played { count: watch::channel(2).0, failing: 3 };
    let bounds = Bounds { min: 2, max: 6 };
    assert!(step(&mut played, bounds, None).await.unwrap(), "it rests");
    let mut failures = 0;
    while let Err(error) = step(&mut played, bounds, Some(3)).await {
        assert_eq!(error.to_string(), "the engine is away");
        failures += 1;
    }
    assert_eq!((failures, *played.count.borrow()), (3, 3));
}
