//! The audit ledger in Redis: appending blocks with the fence, storing snapshots, reading both back.
//!
//! Owns the retries; interprets nothing. The rule it keeps: a block counts as durable only when Redis said so, and a
//! refusal means that this home was deposed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use home::{Appended, Input, Write};
use protocol::redis::{self as keys, EntryId, Head};
use protocol::room::Memory;
use redis::aio::ConnectionManager;
use tokio::sync::mpsc;

/// The pause before an append that got no answer is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// One line for so many failed tries of a block: an outage should not fill the log.
const COMPLAIN_EVERY: u64 = 50;
/// Far above what `appendfsync always` takes on a slow disk; a timeout only leads to the same append again.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Who asks whether Redis answers does not want to wait for it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Entries read at once when rebuilding.
const READ_COUNT: usize = 256;

/// The connection to the ledger.
#[derive(Clone)]
pub(crate) struct Ledger {
    redis: ConnectionManager,
    append: redis::Script,
    snapshot: redis::Script,
    /// Blocks that wait because Redis refused them or gave no answer.
    waiting: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ledger")
    }
}

impl Ledger {
    pub(crate) async fn connect(url: &str) -> anyhow::Result<Self> {
        let client = redis::Client::open(url)?;
        let config = redis::aio::ConnectionManagerConfig::new()
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_max_delay(Duration::from_millis(500));
        let redis = ConnectionManager::new_with_config(client, config).await?;
        Ok(Self {
            redis,
            append: redis::Script::new(keys::APPEND),
            snapshot: redis::Script::new(keys::SNAPSHOT),
            waiting: Arc::default(),
        })
    }

    /// Whether Redis answers now.
    pub(crate) async fn answers(&self) -> bool {
        let mut connection = self.redis.clone();
        let ping = redis::cmd("PING");
        let asked = ping.query_async::<String>(&mut connection);
        tokio::time::timeout(ANSWER_TIMEOUT, asked).await.is_ok_and(|answer| answer.is_ok())
    }

    /// Whether Redis takes no blocks at present, though it may answer: it is full, or cannot write.
    pub(crate) fn refuses(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// What Redis says of its memory.
    pub(crate) async fn memory(&self) -> redis::RedisResult<Memory> {
        let mut connection = self.redis.clone();
        let info: String = redis::cmd("INFO").arg("memory").query_async(&mut connection).await?;
        Ok(Memory::parse(&info))
    }

    /// Appends a block, trying again for as long as Redis gives no answer: a retry is answered `same`.
    pub(crate) async fn append(&self, shard: u8, expected: Head, new: Head, block: &[u8]) -> Appended {
        let mut tries = 0_u64;
        let mut waits = None;
        loop {
            let mut connection = self.redis.clone();
            let answer: redis::RedisResult<String> = self
                .append
                .prepare_invoke()
                .key(keys::stream(shard))
                .key(keys::head(shard))
                .arg(expected.to_string())
                .arg(new.to_string())
                .arg(new.id.to_string())
                .arg(block)
                .arg(keys::empty_head())
                .invoke_async(&mut connection)
                .await;
            match answer {
                Ok(word) if word == "ok" || word == "same" => return Appended::Durable,
                Ok(head) => return Appended::Deposed(head),
                Err(e) => {
                    if tries.is_multiple_of(COMPLAIN_EVERY) {
                        tracing::warn!(shard, error = %e, "the audit ledger does not take a block; dispatches wait");
                    }
                    tries += 1;
                    waits.get_or_insert_with(|| Waiting::begin(&self.waiting));
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn store_snapshot(&self, shard: u8, epoch: u64, snapshot: &str) {
        let mut connection = self.redis.clone();
        let answer: redis::RedisResult<String> = self
            .snapshot
            .prepare_invoke()
            .key(keys::snapshot(shard))
            .key(keys::head(shard))
            .arg(epoch)
            .arg(snapshot)
            .invoke_async(&mut connection)
            .await;
        // The former snapshot still serves; the next one comes in seconds.
        if let Err(e) = answer {
            tracing::warn!(shard, error = %e, "a snapshot was not stored");
        }
    }

    /// The head of a shard.
    pub(crate) async fn head(&self, shard: u8) -> anyhow::Result<Head> {
        let mut connection = self.redis.clone();
        let text: Option<String> =
            redis::cmd("GET").arg(keys::head(shard)).query_async(&mut connection).await?;
        text.map_or_else(
            || Ok(Head::default()),
            |t| Head::parse(&t).ok_or_else(|| anyhow::anyhow!("the head of shard {shard} is damaged: {t:?}")),
        )
    }

    /// The snapshot of a shard: head, oldest block needed, state.
    pub(crate) async fn snapshot(&self, shard: u8) -> anyhow::Result<Option<(Head, EntryId, String)>> {
        let mut connection = self.redis.clone();
        let text: Option<String> =
            redis::cmd("GET").arg(keys::snapshot(shard)).query_async(&mut connection).await?;
        let Some(text) = text else { return Ok(None) };
        let (head, oldest, state) = keys::read_snapshot(&text)
            .ok_or_else(|| anyhow::anyhow!("the snapshot of shard {shard} is damaged"))?;
        Ok(Some((head, oldest, state.to_owned())))
    }

    /// The blocks of a shard from `from` on, in order.
    pub(crate) async fn blocks(&self, shard: u8, from: EntryId) -> anyhow::Result<Vec<(EntryId, Vec<u8>)>> {
        let mut connection = self.redis.clone();
        let mut blocks = Vec::new();
        let mut start = from.to_string();
        loop {
            let reply: redis::streams::StreamRangeReply = redis::cmd("XRANGE")
                .arg(keys::stream(shard))
                .arg(&start)
                .arg("+")
                .arg("COUNT")
                .arg(READ_COUNT)
                .query_async(&mut connection)
                .await?;
            let read = reply.ids.len();
            for entry in reply.ids {
                let id =
                    EntryId::parse(&entry.id).ok_or_else(|| anyhow::anyhow!("entry id {:?}", entry.id))?;
                let block: Vec<u8> = entry
                    .get(keys::BLOCK_FIELD)
                    .ok_or_else(|| anyhow::anyhow!("entry {id} of shard {shard} holds no block"))?;
                start = format!("({id}");
                blocks.push((id, block));
            }
            if read < READ_COUNT {
                return Ok(blocks);
            }
        }
    }
}

/// Counts a block that waits for as long as this lives, however the waiting ends.
struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn begin(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Writes what the home of one shard hands over. Appends never overlap, because a home has one block under way; those of
/// different shards run at once, since Redis syncs them together.
pub(crate) async fn run(
    ledger: Ledger,
    shard: u8,
    mut writes: mpsc::Receiver<Write>,
    home: mpsc::Sender<Input>,
) -> anyhow::Result<()> {
    while let Some(write) = writes.recv().await {
        match write {
            Write::Append { expected, new, block } => {
                let appended = ledger.append(shard, expected, new, &block).await;
                if home.send(Input::Appended(appended)).await.is_err() {
                    return Ok(());
                }
            }
            Write::Snapshot { epoch, snapshot } => ledger.store_snapshot(shard, epoch, &snapshot).await,
        }
    }
    Ok(())
}
