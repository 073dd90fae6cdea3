//! Questions to the archive. Owns every query that the CLI, the demo and the benchmarks ask; changes nothing but legal holds.
//!
//! The rule it keeps: a figure has one definition, beside the query that computes it.

mod books;
mod compliance;
mod dispatches;
mod holds;
mod lag;
mod log;
mod quota;
mod report;
mod storage;
mod tree;

use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use governance::Timestamp;
use time::OffsetDateTime;
use tokio_postgres::error::SqlState;
use tokio_postgres::{NoTls, Row};

pub use books::Books;
pub use compliance::{Compliance, DayOf, Kept, MonthOf, Unended, Violation};
pub use dispatches::{Dispatch, Edge, Note};
pub use holds::{Hold, HoldRequest};
pub use lag::{Cursor, Lag};
pub use log::LogRow;
pub(crate) use log::{SinceMoment, rows_since};
pub use quota::QuotaCheck;
pub use report::{Percentiles, Report, ReportRow};
pub use storage::Storage;
pub use tree::{Hop, Tree};

/// Queries run at the same time, at most; more wait.
const CONNECTIONS_MAX: usize = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address of PostgreSQL cannot be read.
    #[error("the address of PostgreSQL cannot be read")]
    Address(#[source] tokio_postgres::Error),
    /// PostgreSQL does not answer. Try again.
    #[error("PostgreSQL does not answer")]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The schema is missing: no archiver has run on this database.
    #[error("the database holds no archive yet; start an audit-archiver, or run `audit-archiver migrate`")]
    NoArchive,
    /// A query failed.
    #[error("a query of the archive failed")]
    Query(#[source] tokio_postgres::Error),
    /// The text is not an id.
    #[error(transparent)]
    Id(#[from] governance::names::IdError),
    /// The text is not a day.
    #[error("{0:?} is not a day; write it as 2026-02-14")]
    Day(String),
    /// There is no hold with this number that is in force.
    #[error("there is no legal hold {0} in force")]
    NoHold(i64),
    /// Redis, which was asked how far the trail goes, does not answer.
    #[error("Redis does not answer")]
    Redis(#[from] redis::RedisError),
    /// The trail was not archived in time, or is damaged.
    #[error("the archive is not complete: {0}")]
    Behind(Lag),
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        let missing = [SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_FUNCTION];
        if error.code().is_some_and(|code| missing.contains(code)) {
            Self::NoArchive
        } else if error.is_closed() {
            Self::Away(Box::new(error))
        } else {
            Self::Query(error)
        }
    }
}

impl From<deadpool_postgres::PoolError> for Error {
    fn from(error: deadpool_postgres::PoolError) -> Self {
        Self::Away(Box::new(error))
    }
}

/// The archive, for questions.
#[derive(Debug, Clone)]
pub struct Archive {
    pool: Pool,
}

impl Archive {
    /// Connects, and finds out whether PostgreSQL answers.
    ///
    /// # Errors
    /// When the address cannot be read, or PostgreSQL does not answer.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        let mut config: tokio_postgres::Config = url.parse().map_err(Error::Address)?;
        config.application_name("mesh archive").connect_timeout(CONNECT_TIMEOUT);
        let manager = ManagerConfig { recycling_method: RecyclingMethod::Verified };
        let pool = Pool::builder(Manager::from_config(config, NoTls, manager))
            .max_size(CONNECTIONS_MAX)
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| Error::Away(Box::new(error)))?;
        let archive = Self { pool };
        drop(archive.client().await?);
        Ok(archive)
    }

    async fn client(&self) -> Result<Object, Error> {
        Ok(self.pool.get().await?)
    }
}

/// A moment as PostgreSQL takes it.
fn moment(at: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0)).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// A moment as PostgreSQL gives it.
fn timestamp(at: OffsetDateTime) -> Timestamp {
    Timestamp(u64::try_from(at.unix_timestamp_nanos()).unwrap_or_default())
}

fn optional_timestamp(row: &Row, column: &str) -> Option<Timestamp> {
    row.get::<_, Option<OffsetDateTime>>(column).map(timestamp)
}

/// A count as PostgreSQL gives it.
fn count(row: &Row, column: &str) -> u64 {
    row.get::<_, i64>(column).max(0).cast_unsigned()
}

/// Writes a timestamp as RFC 3339 with milliseconds.
fn as_rfc3339<S: serde::Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&protocol::text::rfc3339(*at))
}

fn as_optional_rfc3339<S: serde::Serializer>(
    at: &Option<Timestamp>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => as_rfc3339(at, serializer),
        None => serializer.serialize_none(),
    }
}
