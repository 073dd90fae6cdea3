//! The audit's trail in Redis, read side and trimming. Owns the commands; judges no block.
//!
//! The rule it keeps: how much is read at once is bounded, whatever has piled up.

use std::collections::BTreeMap;
use std::time::Duration;

use governance::Timestamp;
use protocol::audit;
use protocol::redis::{self as keys, BLOCK_FIELD, EntryId, Head};
use protocol::room::Memory;
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamId, StreamRangeReply, StreamReadReply};
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo, RedisError, RedisResult, Value};

/// How long a read waits for a first block; also the longest that a shutdown or a new share of shards waits for a worker.
const BLOCK: Duration = Duration::from_millis(500);
/// An answer that takes longer is lost: the connection is made anew. Well beyond [`BLOCK`].
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// A batch is full with so many bytes: in bulk some hundred thousand records, a transaction of a fraction of a second.
const BATCH_BYTES: usize = 4 << 20;
/// Blocks of one shard in one answer. With blocks of at most a megabyte it bounds what can exceed [`BATCH_BYTES`].
const ANSWER_BLOCKS: usize = 64;
/// A head, or the first two lines of a snapshot, are shorter than this.
const TEXT_BYTES: usize = 255;

/// One entry of a shard's stream.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) id: EntryId,
    pub(crate) bytes: Vec<u8>,
}

/// A connection to the trail.
pub(crate) struct Trail {
    connection: MultiplexedConnection,
}

impl Trail {
    pub(crate) async fn connect(url: &str) -> RedisResult<Self> {
        let info = url.into_connection_info()?;
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let client = Client::open(info.set_tcp_settings(tcp))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(5)))
            .set_response_timeout(Some(ANSWER_TIMEOUT));
        Ok(Self { connection: client.get_multiplexed_async_connection_with_config(&config).await? })
    }

    /// The next blocks behind these cursors, shard by shard; nothing where none came within half a second.
    pub(crate) async fn next(&mut self, cursors: &BTreeMap<u8, Head>) -> RedisResult<Vec<(u8, Vec<Entry>)>> {
        let mut batch = self.first(cursors).await?;
        let mut bytes: usize = batch.iter().flat_map(|(_, entries)| entries).map(|e| e.bytes.len()).sum();
        for (shard, entries) in &mut batch {
            while bytes < BATCH_BYTES {
                let Some(last) = entries.last() else { break };
                let more = self.after(*shard, last.id).await?;
                let ended = more.len() < ANSWER_BLOCKS;
                bytes += more.iter().map(|e| e.bytes.len()).sum::<usize>();
                entries.extend(more);
                if ended {
                    break;
                }
            }
        }
        Ok(batch)
    }

    /// Waits for the first block behind any of the cursors.
    async fn first(&mut self, cursors: &BTreeMap<u8, Head>) -> RedisResult<Vec<(u8, Vec<Entry>)>> {
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(1).arg("BLOCK").arg(BLOCK.as_millis() as u64).arg("STREAMS");
        for shard in cursors.keys() {
            command.arg(keys::stream(*shard));
        }
        for cursor in cursors.values() {
            command.arg(cursor.id.to_string());
        }
        let reply: Option<StreamReadReply> = command.query_async(&mut self.connection).await?;
        let mut found = BTreeMap::new();
        for stream in reply.into_iter().flat_map(|r| r.keys) {
            let shard = cursors.keys().find(|shard| keys::stream(**shard) == stream.key);
            if let Some(shard) = shard {
                found.insert(*shard, entries(stream.ids)?);
            }
        }
        Ok(found.into_iter().filter(|(_, entries)| !entries.is_empty()).collect())
    }

    /// Whether there is any block behind this one.
    pub(crate) async fn goes_beyond(&mut self, shard: u8, id: EntryId) -> RedisResult<bool> {
        let mut command = redis::cmd("XRANGE");
        command.arg(keys::stream(shard)).arg(format!("({id}")).arg("+").arg("COUNT").arg(1);
        let reply: StreamRangeReply = command.query_async(&mut self.connection).await?;
        Ok(!reply.ids.is_empty())
    }

    async fn after(&mut self, shard: u8, id: EntryId) -> RedisResult<Vec<Entry>> {
        let mut command = redis::cmd("XRANGE");
        command.arg(keys::stream(shard)).arg(format!("({id}")).arg("+").arg("COUNT").arg(ANSWER_BLOCKS);
        let reply: StreamRangeReply = command.query_async(&mut self.connection).await?;
        entries(reply.ids)
    }

    /// Says how far shards are archived.
    pub(crate) async fn mark_archived(
        &mut self,
        archived: impl IntoIterator<Item = (u8, EntryId)>,
    ) -> RedisResult<()> {
        let mut pipe = redis::pipe();
        for (shard, id) in archived {
            pipe.set(keys::archived(shard), id.to_string()).ignore();
        }
        if pipe.is_empty() {
            return Ok(());
        }
        match pipe.query_async(&mut self.connection).await {
            // It is told for people; a Redis that is full takes it when archived blocks were trimmed.
            Err(error) if error.code() == Some("OOM") => Ok(()),
            told => told,
        }
    }

    pub(crate) async fn ping(&mut self) -> RedisResult<()> {
        redis::cmd("PING").query_async(&mut self.connection).await
    }

    /// The heads of shards; zero where a shard has no block.
    pub(crate) async fn heads(&mut self, shards: &[u8]) -> RedisResult<BTreeMap<u8, Head>> {
        let mut heads = BTreeMap::new();
        for (shard, text) in self.texts(shards, keys::head).await? {
            let head = match text {
                Some(text) => Head::parse(&text).ok_or_else(|| malformed("a head", &keys::head(shard)))?,
                None => Head::default(),
            };
            heads.insert(shard, head);
        }
        Ok(heads)
    }

    /// How far shards are archived, as far as Redis was told.
    pub(crate) async fn archived(&mut self, shards: &[u8]) -> RedisResult<BTreeMap<u8, EntryId>> {
        let mut archived = BTreeMap::new();
        for (shard, text) in self.texts(shards, keys::archived).await? {
            let Some(text) = text else { continue };
            let id = EntryId::parse(&text).ok_or_else(|| malformed("an id", &keys::archived(shard)))?;
            archived.insert(shard, id);
        }
        Ok(archived)
    }

    /// The blocks from one id to another, both included; as many as one answer holds.
    pub(crate) async fn page(&mut self, shard: u8, from: EntryId, to: EntryId) -> RedisResult<Vec<Entry>> {
        let mut command = redis::cmd("XRANGE");
        command
            .arg(keys::stream(shard))
            .arg(from.to_string())
            .arg(to.to_string())
            .arg("COUNT")
            .arg(ANSWER_BLOCKS);
        let reply: StreamRangeReply = command.query_async(&mut self.connection).await?;
        entries(reply.ids)
    }

    /// The oldest block that a new home of the shard needs, where there is a snapshot.
    pub(crate) async fn oldest_needed(&mut self, shards: &[u8]) -> RedisResult<BTreeMap<u8, EntryId>> {
        let mut needed = BTreeMap::new();
        for (shard, text) in self.texts(shards, keys::snapshot).await? {
            let Some(text) = text else { continue };
            let id = text.lines().nth(1).and_then(EntryId::parse);
            needed.insert(shard, id.ok_or_else(|| malformed("a snapshot", &keys::snapshot(shard)))?);
        }
        Ok(needed)
    }

    /// The beginning of a small text under a key of each shard. Snapshots are long; only their first lines matter here.
    async fn texts(
        &mut self,
        shards: &[u8],
        key: fn(u8) -> String,
    ) -> RedisResult<Vec<(u8, Option<String>)>> {
        if shards.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for shard in shards {
            pipe.cmd("GETRANGE").arg(key(*shard)).arg(0).arg(TEXT_BYTES);
        }
        let texts: Vec<Vec<u8>> = pipe.query_async(&mut self.connection).await?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(shards
            .iter()
            .copied()
            .zip(texts.into_iter().map(|t| Some(text(t)).filter(|t| !t.is_empty())))
            .collect())
    }

    /// Removes what lies before `keep`; returns how many blocks that were.
    pub(crate) async fn trim(&mut self, shard: u8, keep: EntryId) -> RedisResult<u64> {
        let mut command = redis::cmd("XTRIM");
        command.arg(keys::stream(shard)).arg("MINID").arg("=").arg(keep.to_string());
        command.query_async(&mut self.connection).await
    }

    /// What Redis says of its memory.
    pub(crate) async fn memory(&mut self) -> RedisResult<Memory> {
        let info: String = redis::cmd("INFO").arg("memory").query_async(&mut self.connection).await?;
        Ok(Memory::parse(&info))
    }

    /// When the oldest block that any of these shards still holds was written; none where there is none that can be read.
    pub(crate) async fn oldest(&mut self, shards: &[u8]) -> RedisResult<Option<Timestamp>> {
        if shards.is_empty() {
            return Ok(None);
        }
        let mut pipe = redis::pipe();
        for shard in shards {
            pipe.cmd("XRANGE").arg(keys::stream(*shard)).arg("-").arg("+").arg("COUNT").arg(1);
        }
        let replies: Vec<StreamRangeReply> = pipe.query_async(&mut self.connection).await?;
        let mut oldest = None;
        for entry in
            replies.into_iter().map(|reply| entries(reply.ids)).collect::<RedisResult<Vec<_>>>()?.concat()
        {
            let at = audit::Head::decode(&entry.bytes).map(|head| head.at).ok();
            oldest = [oldest, at].into_iter().flatten().min();
        }
        Ok(oldest)
    }
}

/// The entries of an answer. One without the block's field counts as an empty block, which nobody can read.
fn entries(ids: Vec<StreamId>) -> RedisResult<Vec<Entry>> {
    ids.into_iter()
        .map(|mut entry| {
            let id = EntryId::parse(&entry.id).ok_or_else(|| malformed("an entry id", &entry.id))?;
            let bytes = match entry.map.remove(BLOCK_FIELD) {
                Some(Value::BulkString(bytes)) => bytes,
                _ => Vec::new(),
            };
            Ok(Entry { id, bytes })
        })
        .collect()
}

fn malformed(what: &str, found: &str) -> RedisError {
    (redis::ErrorKind::Parse, "Redis holds what no home wrote", format!("{what}: {found}")).into()
}
