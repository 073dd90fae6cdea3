//! The schema of the archive. Owns that it is brought to the newest version, forward only and by one process at a time, and that the
//! names of the closed lists are known to it.

use governance::{Decision, Kind, Outcome, Priority, Reason};
use refinery::Target;
use tokio_postgres::Client;

/// Held while migrations run, since the migration library itself takes no lock.
const MIGRATION_LOCK: i64 = 0x6d65_7368_6d69_6772;

/// The schema could not be brought to the newest version.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// PostgreSQL refused or went away. Try again.
    #[error("PostgreSQL did not let the schema be migrated")]
    Postgres(#[from] tokio_postgres::Error),
    /// A migration failed, or one that was applied has been changed since.
    #[error("a migration of the schema failed")]
    Migration(#[from] refinery::Error),
}

mod embedded {
    refinery::embed_migrations!("../migrations");
}

/// Brings the schema to the newest version; waits where another process is doing so.
///
/// # Errors
/// When PostgreSQL refuses, or when an applied migration was changed.
pub async fn migrate(client: &mut Client) -> Result<(), Error> {
    migrate_to(client, Target::Latest).await
}

/// Brings the schema to an older version, as an archive of before has it: for tests of what comes after.
///
/// # Errors
/// As [`migrate`].
#[doc(hidden)]
pub async fn migrate_to_version(client: &mut Client, version: i32) -> Result<(), Error> {
    migrate_to(client, Target::Version(version)).await
}

async fn migrate_to(client: &mut Client, target: Target) -> Result<(), Error> {
    client.execute("SELECT pg_advisory_lock($1)", &[&MIGRATION_LOCK]).await?;
    let result = migrate_locked(client, target).await;
    client.execute("SELECT pg_advisory_unlock($1)", &[&MIGRATION_LOCK]).await?;
    result
}

async fn migrate_locked(client: &mut Client, target: Target) -> Result<(), Error> {
    let report = embedded::migrations::runner().set_target(target).run_async(client).await?;
    for migration in report.applied_migrations() {
        tracing::info!(migration = %migration, "schema migrated");
    }
    let words = words();
    let lists: Vec<&str> = words.iter().map(|w| w.0).collect();
    let codes: Vec<i16> = words.iter().map(|w| w.1).collect();
    let names: Vec<&str> = words.iter().map(|w| w.2).collect();
    let upsert = "INSERT INTO word (list, code, name) SELECT * FROM unnest($1::text[], $2::smallint[], $3::text[]) \
                  ON CONFLICT (list, code) DO UPDATE SET name = excluded.name \
                  WHERE word.name <> excluded.name AND excluded.name <> excluded.list || '_' || excluded.code";
    client.execute(upsert, &[&lists, &codes, &names]).await?;
    Ok(())
}

/// All lists that stand in tables as numbers. Reasons that only a newer build knows have a name as well, which takes the place of
/// no other: archivers of two builds may share the tables.
fn words() -> Vec<(&'static str, i16, &'static str)> {
    let mut words = Vec::new();
    words.extend(Kind::ALL.iter().map(|w| ("kind", i16::from(w.code()), w.name())));
    words.extend(Priority::ALL.iter().map(|w| ("priority", i16::from(w.code()), w.name())));
    words.extend(Decision::ALL.iter().map(|w| ("decision", i16::from(w.code()), w.name())));
    words.extend(Outcome::ALL.iter().map(|w| ("outcome", i16::from(w.code()), w.name())));
    words.extend((0..=u8::MAX).map(|code| ("reason", i16::from(code), Reason::from_code(code).name())));
    words
}
