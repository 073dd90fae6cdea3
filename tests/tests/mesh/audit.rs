//! The audit: whole, chained, and without a word of what agents say to each other.

use std::collections::BTreeMap;

use mesh_tests::{SOON, Stage, until};
use protocol::audit::{self, Block};
use protocol::redis as keys;
use redis::aio::MultiplexedConnection;
use worker_sdk::{Context, Failure};

/// Stands in payloads, responses and errors, and nowhere else.
const MARKER: &str = "Mrs Havisham 415-555-0134";

#[tokio::test]
async fn the_audit_holds_no_payload() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let parrot = stage
        .mesh
        .agent(&stage.name("parrot"))
        .capability("repeat", |_: Context, words: String| async move { Ok::<_, Failure>(words) })
        .capability("refuse", |_: Context, words: String| async move { Err::<(), _>(Failure::new(words)) })
        .on_topic(&stage.name("gossip"), |_: Context, _: String| async { Ok(()) })
        .register()
        .await?;
    let person = stage.mesh.agent(&stage.name("person")).depends_on(parrot.name()).register().await?;
    let to = |capability: &str| person.dispatch(parrot.name(), capability).json(&MARKER);
    assert_eq!(to("repeat")?.call::<String>().await?, MARKER);
    assert!(to("refuse")?.request().await.unwrap_err().message().contains(MARKER));
    let event = person.emit(&stage.name("gossip")).json(&MARKER)?.send().await?;
    stage.record(event.id()).await;
    stage.archived().await;

    let mut redis = redis_of(&stage).await?;
    let mut looked_at = 0;
    let all: Vec<String> = ::redis::cmd("KEYS").arg("mesh:*").query_async(&mut redis).await?;
    for key in all {
        looked_at += 1;
        let kind: String = ::redis::cmd("TYPE").arg(&key).query_async(&mut redis).await?;
        let text = match kind.as_str() {
            "stream" => {
                let blocks = blocks_in_redis(&mut redis, &key).await?;
                blocks.iter().map(|block| format!("{:?}", Block::decode(block))).collect::<String>()
            }
            "string" => {
                let value: Vec<u8> = ::redis::cmd("GET").arg(&key).query_async(&mut redis).await?;
                String::from_utf8_lossy(&value).into_owned()
            }
            other => panic!("{key} is a {other}, which this test cannot read"),
        };
        assert!(!has_marker(&text), "{key} holds a payload");
    }
    assert!(looked_at > 0);

    let archived = archived_blocks(&stage).await?;
    assert!(archived.values().any(|blocks| !blocks.is_empty()));
    for block in archived.values().flatten() {
        assert!(!has_marker(&format!("{:?}", Block::decode(&block.data)?)));
    }
    // Blocks are read above; every other column of the archive as the text that PostgreSQL makes of it.
    let rows = "SELECT count(*) FROM (SELECT d::text AS t FROM dispatch_decision d UNION ALL \
                SELECT c::text FROM dispatch_completion c UNION ALL SELECT n::text FROM audit_note n) \
                rows WHERE position($1 IN t) > 0";
    assert_eq!(stage.number(rows, &[&MARKER]).await, 0);
    Ok(())
}

#[tokio::test]
async fn the_chain_of_archived_blocks_is_whole() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let agent = stage
        .mesh
        .agent(&stage.name("agent"))
        .capability("echo", |_: Context, n: u32| async move { Ok::<_, Failure>(n) })
        .register()
        .await?;
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(agent.name()).register().await?;
    for n in 0..10 {
        caller.dispatch(agent.name(), "echo").json(&n)?.request().await?;
    }
    stage.archived().await;
    let mut compared = 0;
    for (shard, blocks) in archived_blocks(&stage).await? {
        for pair in blocks.windows(2) {
            let block = Block::decode(&pair[1].data)?;
            assert_eq!(
                audit::hash(&pair[0].data),
                block.previous,
                "shard {shard} after {}",
                pair[0].sequence
            );
            assert_eq!(pair[1].hash, audit::hash(&pair[1].data), "shard {shard}");
            let follows = pair[1].epoch > pair[0].epoch || pair[1].sequence == pair[0].sequence + 1;
            assert!(follows, "shard {shard}: {} does not follow {}", pair[1].sequence, pair[0].sequence);
            compared += 1;
        }
    }
    assert!(compared >= 10, "only {compared} links were compared");
    let stopped = "SELECT count(*) FROM archive_cursor WHERE stopped IS NOT NULL";
    assert_eq!(stage.number(stopped, &[]).await, 0);
    Ok(())
}

#[tokio::test]
async fn every_dispatch_of_a_conversation_is_found_by_its_key() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let agent = stage
        .mesh
        .agent(&stage.name("agent"))
        .capability("echo", |_: Context, n: u32| async move { Ok::<_, Failure>(n) })
        .register()
        .await?;
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(agent.name()).register().await?;
    let key = stage.name("lead");
    for n in 0..3 {
        caller.dispatch(agent.name(), "echo").conversation(&key).json(&n)?.request().await?;
    }
    until("they are archived", SOON, || async {
        let found = stage.archive.by_conversation(&key).await.expect("the archive answers");
        found.iter().filter(|d| d.outcome.as_deref() == Some("success")).count() == 3
    })
    .await;
    Ok(())
}

fn has_marker(text: &str) -> bool {
    // Bytes in debug output stand as numbers.
    let as_numbers = format!("{:?}", MARKER.as_bytes());
    text.contains(MARKER) || text.contains(as_numbers.trim_matches(['[', ']']))
}

async fn redis_of(stage: &Stage) -> anyhow::Result<MultiplexedConnection> {
    let client = ::redis::Client::open(stage.settings.redis_url.as_str())?;
    Ok(client.get_multiplexed_async_connection().await?)
}

async fn blocks_in_redis(redis: &mut MultiplexedConnection, key: &str) -> anyhow::Result<Vec<Vec<u8>>> {
    let entries: ::redis::streams::StreamRangeReply =
        ::redis::cmd("XRANGE").arg(key).arg("-").arg("+").query_async(redis).await?;
    let block =
        |entry: &::redis::streams::StreamId| entry.get(keys::BLOCK_FIELD).expect("an entry has a block");
    Ok(entries.ids.iter().map(block).collect())
}

struct ArchivedBlock {
    epoch: i64,
    sequence: i64,
    hash: Vec<u8>,
    data: Vec<u8>,
}

async fn archived_blocks(stage: &Stage) -> anyhow::Result<BTreeMap<i16, Vec<ArchivedBlock>>> {
    let client = audit_archiver::connect(&stage.settings.postgres_url, "mesh-tests").await?;
    let query = "SELECT shard, epoch, sequence, hash, data FROM audit_block ORDER BY shard, epoch, sequence";
    let mut blocks: BTreeMap<i16, Vec<ArchivedBlock>> = BTreeMap::new();
    for row in client.query(query, &[]).await? {
        let block =
            ArchivedBlock { epoch: row.get(1), sequence: row.get(2), hash: row.get(3), data: row.get(4) };
        blocks.entry(row.get(0)).or_default().push(block);
    }
    Ok(blocks)
}
