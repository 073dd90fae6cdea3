//! What streams out of PostgreSQL, taken up row by row. Owns the sums; judges no shard as a whole.
//!
//! The rule it keeps: what a block asks for is encoded by the very code that archives, so that a record agrees when its bytes do.
//! Records are summed, however they are cut into rows, under keys that are drawn for each verification, so that nobody can choose
//! records whose sum is that of others.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use governance::SHARDS;
use protocol::audit::{self, Block};
use protocol::redis::{EntryId, Head};
use protocol::text::hex;
use siphasher::sip128::SipHasher13;
use tokio_postgres::Client;

use super::Error;
use super::records;
use super::snapshot::{id, scan};
use super::tally::{Balance, Link, Tally, Wanted};
use super::verdict::{Break, Breaks, Compared, Kind, Store};
use crate::chain::Checked;
use crate::copy::{moment, number, values};
use crate::day::Day;
use crate::retention::DAY_DROPPED;
use crate::rows::{self, Rows, Table};
use crate::store::ARCHIVE_STOPPED;

/// Notes that archivers write into PostgreSQL themselves: no block asks for them.
const ARCHIVER_NOTES: [&[u8]; 2] = [ARCHIVE_STOPPED.as_bytes(), DAY_DROPPED.as_bytes()];

/// The sums of all shards.
pub(super) struct Scan {
    tallies: Vec<Mutex<Tally>>,
    breaks: Mutex<Breaks>,
    sip: SipHasher13,
    pub(super) counts: Counts,
}

/// How much was looked at.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) blocks: AtomicU64,
    pub(super) in_redis: AtomicU64,
    pub(super) not_archived: AtomicU64,
    pub(super) records: AtomicU64,
    pub(super) rows: AtomicU64,
}

impl Scan {
    pub(super) fn new(wanted: Vec<BTreeMap<EntryId, Wanted>>) -> Self {
        let random = std::hash::RandomState::new();
        Self {
            tallies: wanted.into_iter().map(|wanted| Mutex::new(Tally::wanting(wanted))).collect(),
            breaks: Mutex::default(),
            sip: SipHasher13::new_with_keys(random.hash_one(0_u8), random.hash_one(1_u8)),
            counts: Counts::default(),
        }
    }

    pub(super) fn tally(&self, shard: u8) -> MutexGuard<'_, Tally> {
        self.tallies[usize::from(shard)].lock().expect("nothing panics with a tally")
    }

    pub(super) fn breaks(&self) -> MutexGuard<'_, Breaks> {
        self.breaks.lock().expect("nothing panics with the breaks")
    }

    pub(super) fn compared(&self) -> Compared {
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Compared {
            blocks: count(&self.counts.blocks),
            blocks_in_redis: count(&self.counts.in_redis),
            blocks_not_archived: count(&self.counts.not_archived),
            records: count(&self.counts.records),
            rows: count(&self.counts.rows),
            ..Compared::default()
        }
    }

    /// Reads one partition.
    pub(super) async fn partition(&self, client: &Client, table: Table, day: Day) -> Result<(), Error> {
        let query = format!("SELECT {} FROM {}", table.columns(), table.partition(day));
        if table == Table::Blocks {
            return scan(client, &query, |row| self.block(row)).await;
        }
        let mut run = Run { scan: self, at: None, balance: Balance::default(), rows: 0 };
        scan(client, &query, |row| run.row(table, row)).await
    }

    /// Takes a row of the table of blocks.
    fn block(&self, row: &[u8]) {
        let columns: Vec<Option<&[u8]>> = values(row).collect();
        let column = |i: usize| columns.get(i).copied().flatten().unwrap_or_default();
        let (shard, id) = (number(column(0)), id(number(column(1)), number(column(2))));
        let Some(shard) = u8::try_from(shard).ok().filter(|shard| *shard < SHARDS) else {
            let found = format!("shard {shard}");
            self.accuse(u8::MAX, id, Kind::BlockMislabelled, format!("a shard below {SHARDS}"), found);
            return;
        };
        let data = column(7);
        let hash = audit::hash(data);
        if column(6) != hash {
            self.accuse(
                shard,
                id,
                Kind::BlockChanged,
                format!("bytes with hash {}", hex(column(6))),
                hex(&hash),
            );
        }
        let previous = match audit::Head::decode(data) {
            Ok(head) => {
                let says = EntryId { epoch: head.epoch, sequence: head.sequence };
                if (head.shard, says) != (shard, id) {
                    let found = format!("block {says} of shard {}", head.shard);
                    self.accuse(
                        shard,
                        id,
                        Kind::BlockMislabelled,
                        format!("block {id} of shard {shard}"),
                        found,
                    );
                }
                head.previous
            }
            Err(_) => column(5).try_into().unwrap_or_default(),
        };
        let balance = match Block::decode(data) {
            Ok(block) => self.ask(shard, Checked { block, head: Head { id, hash } }, data, row),
            Err(error) => {
                self.accuse(shard, id, Kind::BlockUnreadable, "a block".to_owned(), error.to_string());
                Balance::default()
            }
        };
        self.counts.blocks.fetch_add(1, Ordering::Relaxed);
        let mut tally = self.tally(shard);
        tally.link(Link { head: Head { id, hash }, previous, at: moment(column(3)) });
        tally.settle(id, balance);
    }

    /// The rows that a block asks for; its own row in the table of blocks is compared at once.
    fn ask(&self, shard: u8, checked: Checked, data: &[u8], row: &[u8]) -> Balance {
        self.counts.records.fetch_add(rows::records(&checked.block), Ordering::Relaxed);
        let mut rows = Rows::default();
        rows.add(&checked, data);
        let mut balance = Balance::default();
        rows.each(|table, _, asked| {
            if table != Table::Blocks {
                records::sums(&self.sip, table, asked, |sum| balance.ask(sum));
            } else if asked != row
                && let Some((column, expected, found)) =
                    super::exact::first_difference(table, table.columns(), asked, row)
            {
                let (expected, found) = (format!("{column} {expected}"), format!("{column} {found}"));
                self.accuse(shard, checked.head.id, Kind::ColumnChanged, expected, found);
            }
        });
        balance
    }

    fn accuse(&self, shard: u8, block: EntryId, kind: Kind, expected: String, found: String) {
        self.breaks().add(Break {
            shard,
            block,
            kind,
            record: None,
            store: Store::Postgres,
            expected,
            found,
        });
        if shard < SHARDS {
            self.tally(shard).accused.insert(block);
        }
    }
}

/// Whether a row is a note that an archiver wrote by itself.
pub(super) fn is_archivers_own(table: Table, row: &[u8]) -> bool {
    let kind = || values(row).nth(4).flatten();
    table == Table::Notes && kind().is_some_and(|kind| ARCHIVER_NOTES.contains(&kind))
}

/// Rows of one block that stand one behind the other, which they mostly do.
struct Run<'a> {
    scan: &'a Scan,
    at: Option<(u8, EntryId)>,
    balance: Balance,
    rows: u64,
}

impl Run<'_> {
    fn row(&mut self, table: Table, row: &[u8]) {
        let mut columns = values(row).skip(table.place()).map(|value| number(value.unwrap_or_default()));
        let (epoch, block) = (columns.next().unwrap_or_default(), columns.next().unwrap_or_default());
        let shard = columns.next().unwrap_or_default();
        if is_archivers_own(table, row) {
            return;
        }
        self.rows += 1;
        let id = id(epoch, block);
        let Some(shard) = u8::try_from(shard).ok().filter(|shard| *shard < SHARDS) else {
            let (expected, found) = (format!("a shard below {SHARDS}"), format!("shard {shard}"));
            self.scan.accuse(u8::MAX, id, Kind::RowSurplus, expected, found);
            return;
        };
        if self.at != Some((shard, id)) {
            self.flush();
            self.at = Some((shard, id));
        }
        records::sums(&self.scan.sip, table, row, |sum| self.balance.have(sum));
    }

    fn flush(&mut self) {
        if let Some((shard, id)) = self.at.take() {
            self.scan.tally(shard).settle(id, std::mem::take(&mut self.balance));
        }
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.flush();
        self.scan.counts.rows.fetch_add(self.rows, Ordering::Relaxed);
    }
}
