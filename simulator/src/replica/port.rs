//! The port: how futures of a replica reach broker and Redis, and an executor without threads that runs them.
//!
//! Owns the questions under way and the tasks that wait for answers. The rule it keeps: a future advances only when an answer
//! has come or its time is up, in the order in which that happened; nothing else wakes it.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use governance::Timestamp;
use home::Input;

use crate::{broker, redis};

/// How long an answer may take before the question counts as lost.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// The same for the ledger.
const LEDGER_PATIENCE: Duration = Duration::from_secs(1);

/// No answer came in time, or the connection broke: whether it was done is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lost;

/// A question on its way out.
#[derive(Debug)]
pub(super) enum Question {
    /// To the broker, on one of the connections.
    Broker(usize, broker::Op),
    /// To Redis.
    Redis(redis::Op),
    /// To nobody: the answer is that time has passed.
    Time,
}

/// An answer.
#[derive(Debug)]
pub(super) enum Reply {
    /// The broker's.
    Broker(broker::Answer),
    /// That of Redis.
    Redis(redis::Answer),
    /// None came.
    None,
}

#[derive(Debug, Default)]
struct Shared {
    next: u64,
    now: Timestamp,
    running: u64,
    questions: Vec<(u64, Question, Duration)>,
    waiting: BTreeMap<u64, (u64, Waker)>,
    replies: BTreeMap<u64, Reply>,
    told: Vec<(Place, Input)>,
}

/// A home of this replica: its shard and the epoch of the ownership.
pub(super) type Place = (u8, u64);

/// Where futures ask. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Port(Arc<Mutex<Shared>>);

impl Port {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Timestamp {
        self.shared().now
    }

    pub(super) fn set_now(&self, now: Timestamp) {
        self.shared().now = now;
    }

    /// Gives a home an input before the future ends.
    pub(super) fn tell(&self, place: Place, input: Input) {
        self.shared().told.push((place, input));
    }

    pub(super) fn take_told(&self) -> Vec<(Place, Input)> {
        std::mem::take(&mut self.shared().told)
    }

    pub(super) fn take_questions(&self) -> Vec<(u64, Question, Duration)> {
        std::mem::take(&mut self.shared().questions)
    }

    /// A number that no question has.
    pub(super) fn draw(&self) -> u64 {
        let mut shared = self.shared();
        shared.next += 1;
        shared.next
    }

    async fn ask(&self, patience: Duration, question: impl FnOnce(u64) -> Question) -> Reply {
        let token = self.draw();
        let question = question(token);
        self.shared().questions.push((token, question, patience));
        poll_fn(|cx| {
            let mut shared = self.shared();
            if let Some(reply) = shared.replies.remove(&token) {
                return Poll::Ready(reply);
            }
            let running = shared.running;
            shared.waiting.insert(token, (running, cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// Asks the broker.
    pub(super) async fn broker(
        &self,
        channel: usize,
        patience: Duration,
        op: impl FnOnce(u64) -> broker::Op,
    ) -> Result<broker::Answer, Lost> {
        match self.ask(patience, |token| Question::Broker(channel, op(token))).await {
            Reply::Broker(answer) => Ok(answer),
            Reply::Redis(_) | Reply::None => Err(Lost),
        }
    }

    /// Asks Redis.
    pub(super) async fn redis(&self, op: impl FnOnce(u64) -> redis::Op) -> Result<redis::Answer, Lost> {
        match self.ask(LEDGER_PATIENCE, |token| Question::Redis(op(token))).await {
            Reply::Redis(answer) => Ok(answer),
            Reply::Broker(_) | Reply::None => Err(Lost),
        }
    }

    /// Waits.
    pub(super) async fn sleep(&self, time: Duration) {
        self.ask(time, |_| Question::Time).await;
    }

    /// An answer has come; gives the task that waits for it.
    fn answer(&self, token: u64, reply: Reply) -> Option<u64> {
        let mut shared = self.shared();
        let (task, waker) = shared.waiting.remove(&token)?;
        shared.replies.insert(token, reply);
        drop(shared);
        waker.wake();
        Some(task)
    }

    /// The questions of the broker's connection are lost with it.
    fn waiting(&self) -> Vec<u64> {
        self.shared().waiting.keys().copied().collect()
    }
}

/// What a task leaves when it ends.
pub(super) type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The tasks of one replica.
pub(super) struct Tasks<T> {
    tasks: BTreeMap<u64, (Place, Task<T>)>,
    next: u64,
    /// Which questions went to the broker: they are lost with its connection.
    to_broker: std::collections::BTreeSet<u64>,
}

impl<T> std::fmt::Debug for Tasks<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tasks").field("under_way", &self.tasks.len()).finish_non_exhaustive()
    }
}

impl<T> Default for Tasks<T> {
    fn default() -> Self {
        Self { tasks: BTreeMap::new(), next: 0, to_broker: std::collections::BTreeSet::new() }
    }
}

impl<T> Tasks<T> {
    /// Starts a task of a home; gives what it leaves where it ends at once.
    pub(super) fn start(&mut self, port: &Port, place: Place, task: Task<T>) -> Option<T> {
        self.next += 1;
        self.tasks.insert(self.next, (place, task));
        self.advance(port, self.next)
    }

    fn advance(&mut self, port: &Port, number: u64) -> Option<T> {
        let (_, task) = self.tasks.get_mut(&number)?;
        port.shared().running = number;
        match task.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(left) => {
                self.tasks.remove(&number);
                Some(left)
            }
            Poll::Pending => None,
        }
    }

    /// An answer has come; gives what its task leaves where it ended with it.
    pub(super) fn answer(&mut self, port: &Port, token: u64, reply: Reply) -> Option<T> {
        self.to_broker.remove(&token);
        let number = port.answer(token, reply)?;
        self.advance(port, number)
    }

    /// A question went to the broker.
    pub(super) fn went_to_broker(&mut self, token: u64) {
        self.to_broker.insert(token);
    }

    /// The connection to the broker broke: nothing that was asked on it is answered any more.
    pub(super) fn lose_connection(&mut self, port: &Port) -> Vec<T> {
        let waiting = port.waiting();
        let lost: Vec<u64> = waiting.into_iter().filter(|token| self.to_broker.contains(token)).collect();
        self.to_broker.clear();
        lost.into_iter().filter_map(|token| self.answer(port, token, Reply::None)).collect()
    }

    /// Drops the tasks of a home that has ended.
    pub(super) fn drop_of(&mut self, place: Place) {
        self.tasks.retain(|_, (of, _)| *of != place);
    }
}
