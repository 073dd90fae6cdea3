//! What the archive costs.

use serde::Serialize;

use super::{Archive, Error, count};
use crate::rows::Table;

/// Sizes, indexes included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Storage {
    /// Records: decided dispatches, ends, notes.
    pub records: u64,
    /// Bytes of the blocks.
    pub block_bytes: u64,
    /// Bytes of the rows.
    pub row_bytes: u64,
}

impl Archive {
    /// What the archive holds and what that takes on disk.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn storage(&self) -> Result<Storage, Error> {
        let client = self.client().await?;
        let query = "SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint AS bytes \
             FROM pg_inherits WHERE inhparent = ANY(SELECT to_regclass(t) FROM unnest($1::text[]) t)";
        let rows = [Table::Decisions, Table::Completions, Table::Notes].map(Table::name);
        let blocks = client.query_one(query, &[&vec![Table::Blocks.name()]]).await?;
        let rows = client.query_one(query, &[&rows.to_vec()]).await?;
        let records = "SELECT coalesce(sum(records), 0)::bigint AS records FROM audit_block";
        let records = client.query_one(records, &[]).await?;
        Ok(Storage {
            records: count(&records, "records"),
            block_bytes: count(&blocks, "bytes"),
            row_bytes: count(&rows, "bytes"),
        })
    }
}
