//! A small archive with its checkpoints, for tests that tamper with it or prove it.

use std::path::PathBuf;

use audit_archiver::checkpoint::{CheckpointKey, PublicKey};
use audit_archiver::verify::{Break, Request, Verdict, verify};
use governance::Timestamp;
use protocol::redis::{self as keys, EntryId, Head};

use crate::home::{Home, now};
use crate::stage::{Archiver, PATIENCE, Stage, eventually};

/// The seed of the key that signs in these tests.
pub(crate) const SEED: &str = "4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d";
/// The shard that is tampered with; another stays as it is.
pub(crate) const SHARD: u8 = 5;
pub(crate) const OTHER: u8 = 6;
/// Blocks of each, and requests in a block.
pub(crate) const BLOCKS: u64 = 6;
pub(crate) const REQUESTS: u16 = 3;

/// A stage with an archive, checkpoints and nobody at work.
pub(crate) struct Scene {
    pub(crate) stage: Stage,
    pub(crate) homes: [Home; 2],
    pub(crate) folder: PathBuf,
}

impl Scene {
    /// Six blocks in each of two shards, archived and signed; the archiver has ended.
    pub(crate) async fn set() -> Option<Self> {
        let mut scene = Self::empty().await?;
        for home in &mut scene.homes {
            for _ in 0..BLOCKS {
                home.serve(now(), REQUESTS, "").await;
            }
        }
        let archiver = scene.archiver(&[]);
        scene.stage.archive.until_archived(&scene.stage.redis_url, PATIENCE).await.unwrap();
        scene.signed(2).await;
        assert!(archiver.terminate().await.success());
        Some(scene)
    }

    pub(crate) async fn empty() -> Option<Self> {
        let stage = Stage::set().await?;
        let name = stage.postgres_url.rsplit('/').next().unwrap();
        let folder = std::env::temp_dir().join(format!("mesh-tampering-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&folder));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("key"), SEED).unwrap();
        let homes = [Home::of(&stage, SHARD), Home::of(&stage, OTHER)];
        Some(Self { stage, homes, folder })
    }

    pub(crate) fn archiver(&self, flags: &[&str]) -> Archiver {
        let (checkpoints, key) = (self.checkpoints(), self.folder.join("key"));
        let own =
            ["--checkpoints", checkpoints.to_str().unwrap(), "--checkpoint-key-file", key.to_str().unwrap()];
        self.stage.archiver(&[&own[..], &["--checkpoint-every", "100ms"], flags].concat())
    }

    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.folder.join("checkpoints")
    }

    /// Waits for so many more checkpoints.
    pub(crate) async fn signed(&self, more: usize) {
        let lines = || self.lines().iter().map(|(_, lines)| lines.len()).sum::<usize>();
        let before = lines();
        eventually("checkpoints are written", async || lines() >= before + more).await;
    }

    /// The files of checkpoints, oldest first, with their lines.
    pub(crate) fn lines(&self) -> Vec<(PathBuf, Vec<String>)> {
        let Ok(entries) = std::fs::read_dir(self.checkpoints()) else { return Vec::new() };
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let read = |file: &PathBuf| std::fs::read_to_string(file).unwrap();
        files.iter().map(|f| (f.clone(), read(f).lines().map(Into::into).collect())).collect()
    }

    pub(crate) async fn verify(&self) -> Verdict {
        self.verify_with(vec![self.checkpoints()], Timestamp::ZERO).await
    }

    pub(crate) async fn verify_with(&self, checkpoints: Vec<PathBuf>, since: Timestamp) -> Verdict {
        let request = Request {
            postgres_url: self.stage.postgres_url.clone(),
            redis_url: self.stage.redis_url.clone(),
            since,
            checkpoints,
            keys: vec![public()],
        };
        verify(&request).await.unwrap()
    }

    /// The one break that there is, in the tampered shard.
    pub(crate) async fn found(&self) -> Break {
        let verdict = self.verify().await;
        assert!(!verdict.whole);
        let [found] = verdict.breaks.as_slice() else { panic!("one shard is broken: {verdict:#?}") };
        assert_eq!(found.shard, SHARD, "{found}");
        found.clone()
    }

    pub(crate) async fn sql(&self, statement: &str) -> u64 {
        let client = audit_archiver::connect(&self.stage.postgres_url, "test").await.unwrap();
        client.execute(statement, &[]).await.unwrap()
    }

    pub(crate) async fn redis(&self, command: &mut redis::Cmd) {
        let _: redis::Value = command.query_async(&mut self.stage.redis.clone()).await.unwrap();
    }

    pub(crate) async fn block(&self, sequence: u64) -> Vec<u8> {
        let id = format!("1-{sequence}");
        let reply: redis::streams::StreamRangeReply = redis::cmd("XRANGE")
            .arg(keys::stream(SHARD))
            .arg(&id)
            .arg(&id)
            .query_async(&mut self.stage.redis.clone())
            .await
            .unwrap();
        reply.ids[0].get("b").unwrap()
    }

    /// Writes the shard's stream in Redis anew, with these blocks.
    pub(crate) async fn put(&self, blocks: &[(u64, Vec<u8>)]) {
        self.redis(redis::cmd("DEL").arg(keys::stream(SHARD))).await;
        for (sequence, bytes) in blocks {
            let id = format!("1-{sequence}");
            self.redis(redis::cmd("XADD").arg(keys::stream(SHARD)).arg(id).arg("b").arg(bytes)).await;
        }
    }

    pub(crate) async fn blocks(&self) -> Vec<(u64, Vec<u8>)> {
        let mut blocks = Vec::new();
        for sequence in 1..=self.homes[0].head.id.sequence {
            blocks.push((sequence, self.block(sequence).await));
        }
        blocks
    }

    pub(crate) async fn set_head(&self, head: Head) {
        self.redis(redis::cmd("SET").arg(keys::head(SHARD)).arg(head.to_string())).await;
        self.redis(redis::cmd("SET").arg(keys::archived(SHARD)).arg(head.id.to_string())).await;
    }

    /// Takes the last blocks of the shard out of PostgreSQL, rows and all, and moves the cursor back.
    pub(crate) async fn truncate_postgres(&self, last: u64) {
        for table in ["decision_run", "completion_run", "audit_note"] {
            self.sql(&format!("DELETE FROM {table} WHERE shard = {SHARD} AND block > {last}")).await;
        }
        self.sql(&format!("DELETE FROM audit_block WHERE shard = {SHARD} AND sequence > {last}")).await;
        let cursor = format!(
            "UPDATE archive_cursor c SET sequence = b.sequence, hash = b.hash FROM audit_block b \
             WHERE c.shard = {SHARD} AND b.shard = {SHARD} AND b.sequence = {last}"
        );
        assert_eq!(self.sql(&cursor).await, 1);
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

pub(crate) fn public() -> PublicKey {
    SEED.parse::<CheckpointKey>().unwrap().public()
}

pub(crate) const fn id(sequence: u64) -> EntryId {
    EntryId { epoch: 1, sequence }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    protocol::text::hex(bytes)
}
