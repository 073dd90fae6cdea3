//! Redis and PostgreSQL: versions, durability, room, clocks, and whether the archive keeps up with the trail.

use std::collections::BTreeMap;
use std::time::Duration;

use audit_archiver::archive::{self, Archive, Lag};
use governance::Timestamp;
use protocol::room::{ALARM, Memory, in_words as in_words_of_time};
use redis::aio::MultiplexedConnection;
use tokio::time::timeout;

use super::{Check, PATIENCE, clock, version};
use crate::answer::in_words;
use crate::mesh::{Mesh, shown};
use crate::moment;

const REDIS_MIN: (u32, u32) = (7, 0);
const POSTGRES_MIN: u32 = 14;
/// Whether PostgreSQL stores what it is given: a table that is gone again with its transaction.
const STORE_PROBE: &str = "BEGIN; CREATE TEMPORARY TABLE mesh_doctor ON COMMIT DROP AS \
    SELECT repeat(md5(n::text), 64) FROM generate_series(1, 64) n; ROLLBACK";
/// A Redis fuller than this should be given more, or a shorter retention.
const MEMORY_WARN_PERCENT: u64 = 80;

pub(super) async fn check(mesh: &Mesh) -> Vec<Check> {
    let (redis, postgres) = tokio::join!(Box::pin(redis(mesh)), Box::pin(postgres(mesh)));
    let (redis_ok, postgres_ok) = (redis.is_ok(), postgres.is_ok());
    let mut checks = redis.unwrap_or_else(|check| vec![check]);
    checks.extend(postgres.unwrap_or_else(|check| vec![check]));
    if redis_ok && postgres_ok {
        checks.push(archiver(mesh).await);
    }
    checks
}

/// What is found out about Redis; the error is the check that failed because it is away.
async fn redis(mesh: &Mesh) -> Result<Vec<Check>, Check> {
    let away = |why: String| {
        let text = format!("{}: {why}", shown(&mesh.redis_url));
        let fix = "start it (./dev up), or name it with MESH_REDIS_URL; one that ends at every block has a full disk, as its log says";
        Check::fail("redis", text, fix)
    };
    let asking = async {
        let client = redis::Client::open(mesh.redis_url.as_str())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let info: String = redis::cmd("INFO").query_async(&mut connection).await?;
        let asked = moment::now();
        let (s, us): (u64, u64) = redis::cmd("TIME").query_async(&mut connection).await?;
        let read = Timestamp((s * 1_000_000 + us) * 1_000);
        let skew = clock("clock", "Redis", read, asked, moment::now());
        let settings = settings(&mut connection).await;
        Ok::<_, redis::RedisError>((info, skew, settings))
    };
    let (info, skew, settings) = match timeout(PATIENCE, asking).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(away(error.to_string())),
        Err(_) => return Err(away("no answer in time".to_owned())),
    };
    let mut checks = vec![redis_version(&fields(&info), &mesh.redis_url)];
    checks.extend(durability(settings.as_ref()));
    checks.extend(memory(&info, time_left(&mesh.coordinators).await));
    checks.push(skew);
    Ok(checks)
}

/// The settings that matter; none where the server does not let them be seen.
async fn settings(connection: &mut MultiplexedConnection) -> Option<BTreeMap<String, String>> {
    let names = ["appendonly", "appendfsync", "maxmemory-policy"];
    redis::cmd("CONFIG").arg("GET").arg(&names).query_async(connection).await.ok()
}

/// The `name:value` lines of `INFO`.
fn fields(info: &str) -> BTreeMap<&str, &str> {
    info.lines().filter_map(|line| line.trim().split_once(':')).collect()
}

fn redis_version(info: &BTreeMap<&str, &str>, url: &str) -> Check {
    let found = info.get("redis_version").copied().unwrap_or("of unknown version");
    let text = format!("Redis {found} at {}", shown(url));
    if version(found).is_none_or(|v| v < REDIS_MIN) {
        return Check::fail("redis", text, format!("install Redis {} or newer", REDIS_MIN.0));
    }
    Check::ok("redis", text)
}

/// Whether what Redis confirmed is on the disk, and stays.
fn durability(settings: Option<&BTreeMap<String, String>>) -> Vec<Check> {
    let Some(settings) = settings else {
        let fix = "allow this user CONFIG GET, or look yourself: appendonly yes, maxmemory-policy noeviction";
        return vec![Check::warn("trail", "Redis does not show its settings", fix)];
    };
    let value = |name: &str| settings.get(name).map_or("unset", String::as_str);
    let mut checks = Vec::new();
    if value("appendonly") != "yes" {
        let text = "the trail is kept in memory only: a crash of Redis loses it";
        checks.push(Check::fail("trail", text, "set appendonly yes and appendfsync always"));
    } else if value("appendfsync") != "always" {
        let text = format!("appendfsync is {}: a power failure loses the last records", value("appendfsync"));
        checks.push(Check::warn("trail", text, "set appendfsync always"));
    }
    if value("maxmemory-policy") != "noeviction" {
        let text = format!("Redis may drop the trail: maxmemory-policy is {}", value("maxmemory-policy"));
        checks.push(Check::fail("trail", text, "set maxmemory-policy noeviction"));
    }
    if checks.is_empty() {
        checks.push(Check::ok("trail", "on the disk before it is confirmed, never evicted"));
    }
    checks
}

/// How full Redis is, and for how long it has room where a coordinator says so.
fn memory(info: &str, left: Option<Duration>) -> Option<Check> {
    let memory = Memory::parse(info);
    let percent = (memory.used * 100).checked_div(memory.limit)?;
    let of = if memory.is_set { "its" } else { "the machine's" };
    let mut text = format!("Redis uses {percent} % of {of} {} MB", memory.limit >> 20);
    if let Some(left) = left {
        text = format!("{text}, and is full in {} as it grows now", in_words_of_time(left));
    }
    let fix = "see that an archiver works; raise maxmemory, or shorten the archiver's --hot-retention";
    Some(if memory.is_full() {
        Check::fail("memory", format!("{text}: dispatches wait until it has room"), fix)
    } else if percent < MEMORY_WARN_PERCENT && left.is_none_or(|left| left > ALARM) {
        Check::ok("memory", text)
    } else {
        Check::warn("memory", text, fix)
    })
}

/// How long Redis has room, as the coordinators see it; none where it does not grow, or nobody says.
async fn time_left(urls: &[String]) -> Option<Duration> {
    let asked = urls.iter().map(|url| async move {
        let text =
            reqwest::get(format!("{}/metrics", url.trim_end_matches('/'))).await.ok()?.text().await.ok()?;
        left_in(&text)
    });
    let asked = timeout(PATIENCE, futures::future::join_all(asked)).await.unwrap_or_default();
    asked.into_iter().flatten().min()
}

fn left_in(metrics: &str) -> Option<Duration> {
    let value = metrics.lines().find_map(|line| line.strip_prefix("mesh_redis_full_in_seconds "))?;
    Duration::try_from_secs_f64(value.trim().parse().ok()?).ok()
}

/// What is found out about PostgreSQL; the error is the check that failed because it is away.
async fn postgres(mesh: &Mesh) -> Result<Vec<Check>, Check> {
    let away = |why: String| {
        let text = format!("{}: {why}", shown(&mesh.postgres_url));
        let fix =
            "start it (./dev up), or name it with MESH_POSTGRES_URL; the mesh goes on without it meanwhile";
        Check::fail("postgres", text, fix)
    };
    let asking = async {
        let client = audit_archiver::connect(&mesh.postgres_url, "mesh doctor").await?;
        let asked = moment::now();
        let query = "SELECT current_setting('server_version'), (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
        let row = client.query_one(query, &[]).await?;
        let read = Timestamp(row.get::<_, i64>(1).max(0).cast_unsigned() * 1_000);
        let skew = clock("clock", "PostgreSQL", read, asked, moment::now());
        let stores = client.batch_execute(STORE_PROBE).await;
        Ok::<_, tokio_postgres::Error>((row.get::<_, String>(0), skew, stores))
    };
    let (found, skew, stores) = match timeout(PATIENCE, asking).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(away(in_words(&error.into()))),
        Err(_) => return Err(away("no answer in time".to_owned())),
    };
    let text = format!("PostgreSQL {found} at {}", shown(&mesh.postgres_url));
    let of_version = if version(&found).is_none_or(|(major, _)| major < POSTGRES_MIN) {
        Check::fail("postgres", text, format!("install PostgreSQL {POSTGRES_MIN} or newer"))
    } else {
        Check::ok("postgres", text)
    };
    let mut checks = vec![of_version, skew];
    if let Err(error) = stores {
        let fix = "make room on its disk, or see its log; the trail stays in Redis meanwhile, as long as that has room";
        checks.push(Check::fail("archive store", in_words(&error.into()), fix));
    }
    Ok(checks)
}

/// Whether an archiver is at work: what is behind now must move on, or be caught up with.
async fn archiver(mesh: &Mesh) -> Check {
    match timeout(PATIENCE * 2, progress(mesh)).await {
        Ok(Ok((lag, moved))) => archive_check(&lag, moved),
        Ok(Err(archive::Error::NoArchive)) => {
            Check::fail("archiver", "the database holds no archive", "audit-archiver migrate, then start it")
        }
        Ok(Err(error)) => Check::fail("archiver", in_words(&error.into()), "see the log of the archiver"),
        Err(_) => Check::fail("archiver", "no answer in time", "see the log of the archiver"),
    }
}

/// What is not archived, and whether any of it was archived while we looked.
async fn progress(mesh: &Mesh) -> Result<(Lag, bool), archive::Error> {
    let archive = Archive::connect(&mesh.postgres_url).await?;
    let before = archive.cursors().await?;
    match archive.until_archived(&mesh.redis_url, PATIENCE / 2).await {
        Ok(()) => Ok((Lag::default(), true)),
        Err(archive::Error::Behind(lag)) => {
            let moved = archive.cursors().await? != before;
            Ok((lag, moved))
        }
        Err(error) => Err(error),
    }
}

fn archive_check(lag: &Lag, moved: bool) -> Check {
    if let Some((shard, why)) = lag.stopped.first_key_value() {
        let text = format!("{} shards are stopped; shard {shard}: {why}", lag.stopped.len());
        let fix = "the trail is damaged there: keep Redis as it is and find out before anything else";
        return Check::fail("archiver", text, fix);
    }
    match (lag.behind.len(), moved) {
        (0, _) => Check::ok("archiver", "everything is archived"),
        (n, true) => Check::ok("archiver", format!("at work; {n} shards have newer records")),
        (n, false) => {
            let text = format!("{n} shards are not archived, and nobody does");
            Check::fail("archiver", text, "start an audit-archiver (./dev up)")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    fn settings_of(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_trail_that_can_be_lost_is_a_failure() {
        let good = settings_of(&[
            ("appendonly", "yes"),
            ("appendfsync", "always"),
            ("maxmemory-policy", "noeviction"),
        ]);
        let states = |settings| durability(Some(&settings)).into_iter().map(|c| c.state).collect::<Vec<_>>();
        assert_eq!(states(good.clone()), [State::Ok]);
        let mut each_second = good.clone();
        each_second.insert("appendfsync".into(), "everysec".into());
        assert_eq!(states(each_second), [State::Warn]);
        let volatile = settings_of(&[("appendonly", "no"), ("maxmemory-policy", "allkeys-lru")]);
        assert_eq!(states(volatile), [State::Fail, State::Fail]);
        assert_eq!(durability(None)[0].state, State::Warn);
    }

    #[test]
    fn redis_tells_about_itself() {
        let info = fields("# Server\r\nredis_version:7.0.15\r\nused_memory:900\r\nmaxmemory:1000\r\n");
        assert_eq!(redis_version(&info, "redis://h").state, State::Ok);
        assert_eq!(redis_version(&fields("redis_version:6.2.1"), "redis://h").state, State::Fail);
    }

    #[test]
    fn memory_that_is_short_or_soon_will_be_is_said() {
        let of = |used: u64, left: Option<u64>| {
            let info = format!("used_memory:{used}\r\nmaxmemory:1000\r\n");
            memory(&info, left.map(Duration::from_secs)).unwrap()
        };
        let states =
            [of(500, None), of(900, None), of(500, Some(600)), of(500, Some(9_000)), of(1_000, None)];
        let states = states.map(|check| check.state);
        assert_eq!(states, [State::Ok, State::Warn, State::Warn, State::Ok, State::Fail]);
        assert!(of(500, Some(600)).text.ends_with("full in 10 min as it grows now"));
        assert_eq!(memory("used_memory:900\nmaxmemory:0", None), None);
        assert_eq!(left_in("mesh_redis_full_in_seconds 12.5\n"), Some(Duration::from_millis(12_500)));
        assert_eq!(left_in("mesh_redis_full_in_seconds inf\n"), None);
    }

    #[test]
    fn an_archive_that_stands_still_behind_the_trail_is_a_failure() {
        let lag = |behind: Vec<u8>| Lag { behind, stopped: BTreeMap::new() };
        assert_eq!(archive_check(&lag(vec![]), false).state, State::Ok);
        assert_eq!(archive_check(&lag(vec![1, 2]), true).state, State::Ok);
        assert_eq!(archive_check(&lag(vec![1, 2]), false).state, State::Fail);
        let stopped = Lag { behind: vec![3], stopped: BTreeMap::from([(3, "a gap".to_owned())]) };
        assert!(archive_check(&stopped, true).text.contains("shard 3: a gap"));
    }
}
