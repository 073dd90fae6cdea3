//! How long PostgreSQL keeps days. Owns the dropping of partitions; a legal hold overrules it.
//!
//! The rule it keeps: whether a day is under hold is asked in the transaction that drops it, under a lock that placing a
//! hold takes as well. All tables of a day go together, so that no row outlives its proof.

use std::collections::BTreeSet;

use tokio_postgres::Client;

use crate::day::Day;
use crate::rows::Table;

/// Held while a day is dropped, and while a hold is placed.
pub(crate) const HOLD_LOCK: i64 = 0x6d65_7368_686f_6c64;

/// The note that says that a day was dropped, and why.
pub(crate) const DAY_DROPPED: &str = "day_dropped";

/// What one round did.
#[derive(Debug, Default)]
pub(crate) struct Round {
    pub(crate) dropped: Vec<Day>,
    pub(crate) held: Vec<Day>,
}

/// Drops days older than `days`, as of `today`.
pub(crate) async fn drop_old(
    client: &mut Client,
    today: Day,
    days: u32,
) -> Result<Round, tokio_postgres::Error> {
    let mut round = Round::default();
    for day in partitioned_days(client).await?.into_iter().filter(|day| *day < today.before(days)) {
        let transaction = client.transaction().await?;
        // Dropping waits for readers; who comes after would wait behind it, so it gives up soon and tries next time. Sooner than the
        // second after which PostgreSQL looks for a deadlock, since readers lock tables in orders of their own, and would be the ones to fail.
        transaction.batch_execute("SET LOCAL lock_timeout = '500ms'").await?;
        transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&HOLD_LOCK]).await?;
        let held = transaction.query_one("SELECT day_is_held($1)", &[&day.date()]).await?;
        if held.get(0) {
            round.held.push(day);
            continue;
        }
        for table in Table::ALL {
            transaction.batch_execute(&format!("DROP TABLE IF EXISTS {}", table.partition(day))).await?;
        }
        let body = serde_json::json!({ "day": day.to_string(), "retention_days": days }).to_string();
        let note = "INSERT INTO audit_note (at, epoch, block, shard, kind, agent, body) \
                    VALUES (now(), 0, 0, 0, $1, NULL, $2)";
        transaction.execute(note, &[&DAY_DROPPED, &body]).await?;
        transaction.commit().await?;
        round.dropped.push(day);
    }
    Ok(round)
}

/// The days that have partitions.
pub(crate) async fn partitioned_days(client: &Client) -> Result<BTreeSet<Day>, tokio_postgres::Error> {
    let tables: Vec<&str> = Table::ALL.iter().map(|table| table.name()).collect();
    let query = "SELECT child.relname FROM pg_inherits \
         JOIN pg_class child ON child.oid = inhrelid JOIN pg_class parent ON parent.oid = inhparent \
         WHERE parent.relname = ANY($1) AND parent.relnamespace = current_schema()::regnamespace";
    let rows = client.query(query, &[&tables]).await?;
    Ok(rows.iter().filter_map(|row| Day::parse_compact(row.get::<_, &str>(0).rsplit('_').next()?)).collect())
}
