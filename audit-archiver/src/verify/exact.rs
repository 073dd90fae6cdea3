//! Records in rows against blocks, one by one, where their sums did not agree. Owns how a record is named and shown.
//!
//! The rule it keeps: how much is compared so is bounded; what is beyond is named by its block alone.

use std::collections::{BTreeMap, HashMap};

use governance::{DispatchId, InstanceId};
use protocol::audit::{self, Block};
use protocol::redis::{EntryId, Head};
use protocol::text::{hex, rfc3339};

use super::Error;
use super::records;
use super::scan::is_archivers_own;
use super::snapshot::{Snapshot, id, scan};
use super::verdict::{Break, Kind, Store};
use crate::chain::Checked;
use crate::copy::{moment, number, values};
use crate::day::Day;
use crate::rows::{Rows, Table};

/// Blocks whose records are compared one by one.
const BLOCKS_MAX: usize = 512;
/// Characters of a value that are shown.
const SHOWN_MAX: usize = 80;

const TABLES: [Table; 3] = [Table::Decisions, Table::Completions, Table::Notes];

/// The records of a block: which table, which day where it is asked for, and how often more asked for than there.
type Book = HashMap<Vec<u8>, (Table, Option<Day>, i64)>;

/// A record that is asked for, or there, once too often.
struct Odd {
    table: Table,
    day: Option<Day>,
    record: Vec<u8>,
}

impl Odd {
    /// The dispatch it is about; none for a note.
    fn id(&self) -> Option<DispatchId> {
        (self.table != Table::Notes).then(|| dispatch(&self.record))
    }

    /// Whether it says of the next slot what another says of its own.
    fn continues(&self, before: &Self) -> bool {
        let (Some(before), Some(id)) = (before.id().filter(|_| before.table == self.table), self.id()) else {
            return false;
        };
        id == DispatchId { slot: before.slot.wrapping_add(1), ..before }
    }
}

/// Compares the records of some blocks.
pub(super) async fn compare(snapshot: &Snapshot, doubtful: &[(u8, EntryId)]) -> Result<Vec<Break>, Error> {
    let mut breaks = Vec::new();
    if doubtful.is_empty() {
        return Ok(breaks);
    }
    let (near, far) = doubtful.split_at(doubtful.len().min(BLOCKS_MAX));
    let mut books: BTreeMap<(u8, EntryId), Book> = BTreeMap::new();
    for (shard, id) in near {
        books.insert((*shard, *id), asked(snapshot, *shard, *id).await?);
    }
    let list: Vec<String> = near
        .iter()
        .map(|(shard, id)| format!("({shard}, {}, {})", id.epoch.cast_signed(), id.sequence.cast_signed()))
        .collect();
    for table in TABLES {
        let query = format!(
            "SELECT {} FROM {} WHERE (shard, epoch, block) IN ({})",
            table.columns(),
            table.name(),
            list.join(", ")
        );
        scan(snapshot.client(), &query, |row| {
            if let Some(book) = books.get_mut(&place(table, row))
                && !is_archivers_own(table, row)
            {
                records::each(table, row, |record| book.entry(record).or_insert((table, None, 0)).2 -= 1);
            }
        })
        .await?;
    }
    for ((shard, id), book) in books {
        let (mut missing, mut surplus) = (Vec::new(), Vec::new());
        for (record, (table, day, count)) in book {
            let side = if count > 0 { &mut missing } else { &mut surplus };
            side.extend((0..count.unsigned_abs()).map(|_| Odd { table, day, record: record.clone() }));
        }
        // A row may have gone by retention before its block, where it stands in the day before.
        let kept = |odd: &Odd| {
            odd.day.is_none_or(|day| snapshot.days.get(&odd.table).is_some_and(|days| days.contains(&day)))
        };
        missing.retain(|odd| kept(odd));
        breaks.extend(name(shard, id, missing, surplus));
    }
    breaks.extend(far.iter().map(|(shard, id)| Break {
        shard: *shard,
        block: *id,
        kind: Kind::RowChanged,
        record: None,
        store: Store::Postgres,
        expected: "the records that the block asks for".to_owned(),
        found: "others".to_owned(),
    }));
    Ok(breaks)
}

/// The records that a block asks for; none where it is not there or cannot be read.
async fn asked(snapshot: &Snapshot, shard: u8, id: EntryId) -> Result<Book, Error> {
    let mut asked = HashMap::new();
    let query = "SELECT data FROM audit_block WHERE shard = $1 AND epoch = $2 AND sequence = $3";
    let (epoch, sequence) = (id.epoch.cast_signed(), id.sequence.cast_signed());
    for row in snapshot.client().query(query, &[&i16::from(shard), &epoch, &sequence]).await? {
        let data: &[u8] = row.get(0);
        let Ok(block) = Block::decode(data) else { continue };
        let mut rows = Rows::default();
        rows.add(&Checked { block, head: Head { id, hash: audit::hash(data) } }, data);
        rows.each(|table, day, row| {
            if table != Table::Blocks {
                let ask = |record| asked.entry(record).or_insert((table, Some(day), 0)).2 += 1;
                records::each(table, row, ask);
            }
        });
    }
    Ok(asked)
}

/// The breaks of one block: what is missing and what is there instead, by their records. Records of one run that are all missing, or
/// all too many, are one break.
fn name(shard: u8, block: EntryId, mut missing: Vec<Odd>, mut surplus: Vec<Odd>) -> Vec<Break> {
    let new = |kind, odd: &Odd, expected, found| Break {
        shard,
        block,
        kind,
        record: Some(record(odd.table, &odd.record)),
        store: Store::Postgres,
        expected,
        found,
    };
    let mut breaks = Vec::new();
    surplus.retain(|odd| {
        let torn = records::is_torn(odd.table, &odd.record);
        if torn {
            // What its run should have said of each dispatch cannot be told apart from what it says.
            let of = |id: DispatchId| DispatchId { slot: 0, ..id };
            missing.retain(|other| other.table != odd.table || other.id().map(of) != odd.id().map(of));
            let expected = format!("a run in {}", odd.table.name());
            breaks.push(new(
                Kind::RowChanged,
                odd,
                expected,
                "columns that do not fit each other".to_owned(),
            ));
        }
        !torn
    });
    let mut gone = Vec::new();
    for odd in missing {
        let same = |other: &Odd| {
            other.table == odd.table && record(other.table, &other.record) == record(odd.table, &odd.record)
        };
        match surplus.iter().position(same) {
            Some(at) => {
                let other = surplus.swap_remove(at);
                let columns = records::columns(odd.table);
                if let Some((column, expected, found)) =
                    first_difference(odd.table, columns, &odd.record, &other.record)
                {
                    let (expected, found) = (format!("{column} {expected}"), format!("{column} {found}"));
                    breaks.push(new(Kind::RowChanged, &odd, expected, found));
                }
            }
            None => gone.push(odd),
        }
    }
    for (first, count) in stretches(gone) {
        let expected = format!("{} in {}", many(count), first.table.name());
        breaks.push(new(Kind::RowMissing, &first, expected, "none".to_owned()));
    }
    for (first, count) in stretches(surplus) {
        let found = format!("{} in {}", many(count), first.table.name());
        breaks.push(new(Kind::RowSurplus, &first, "no such record".to_owned(), found));
    }
    breaks
}

/// The first of those that stand one behind the other, and how many.
fn stretches(mut odd: Vec<Odd>) -> Vec<(Odd, usize)> {
    odd.sort_by_key(|odd| (odd.table, odd.id()));
    let mut stretches: Vec<(Odd, usize)> = Vec::new();
    let mut last: Option<Odd> = None;
    for odd in odd {
        let before = last.replace(Odd { record: odd.record.clone(), ..odd });
        match stretches.last_mut() {
            Some((_, count)) if before.is_some_and(|before| odd.continues(&before)) => *count += 1,
            _ => stretches.push((odd, 1)),
        }
    }
    stretches
}

fn many(count: usize) -> String {
    if count == 1 { "a record".to_owned() } else { format!("the records of {count} dispatches from this on") }
}

/// The first column in which two rows differ, with both values.
pub(super) fn first_difference(
    table: Table,
    columns: &'static str,
    one: &[u8],
    other: &[u8],
) -> Option<(&'static str, String, String)> {
    let columns = columns.split(',').map(str::trim);
    let (column, (one, other)) =
        columns.zip(values(one).zip(values(other))).find(|(_, (one, other))| one != other)?;
    Some((column, shown(table, column, one), shown(table, column, other)))
}

fn shown(table: Table, column: &str, value: Option<&[u8]>) -> String {
    let Some(value) = value else { return "null".to_owned() };
    let text = match (table, column) {
        (_, "at" | "accepted" | "decided" | "deadline" | "completed") => rfc3339(moment(value)),
        (Table::Notes, "kind")
        | (_, "source" | "target" | "capability" | "conversation" | "agent" | "body") => {
            format!("{:?}", String::from_utf8_lossy(value))
        }
        (_, "data") => format!("{} bytes", value.len()),
        _ if value.len() > 8 => hex(value),
        _ => number(value).to_string(),
    };
    text.chars().take(SHOWN_MAX).collect()
}

fn place(table: Table, row: &[u8]) -> (u8, EntryId) {
    let mut columns = values(row).skip(table.place()).map(|value| number(value.unwrap_or_default()));
    let mut next = || columns.next().unwrap_or_default();
    let (epoch, block, shard) = (next(), next(), next());
    (u8::try_from(shard).unwrap_or(u8::MAX), id(epoch, block))
}

/// Which record a row is of, for people.
fn record(table: Table, row: &[u8]) -> String {
    let columns: Vec<Option<&[u8]>> = values(row).take(6).collect();
    let value = |i: usize| columns.get(i).copied().flatten().unwrap_or_default();
    if table == Table::Notes {
        let agent = if value(5).is_empty() { "the mesh".into() } else { String::from_utf8_lossy(value(5)) };
        return format!(
            "note {} about {agent} at {}",
            String::from_utf8_lossy(value(4)),
            rfc3339(moment(value(0)))
        );
    }
    let what = if table == Table::Decisions { "decision" } else { "end" };
    format!("{what} of {}", dispatch(row))
}

/// The dispatch that a record is of; the first, of a run.
fn dispatch(row: &[u8]) -> DispatchId {
    let mut columns = values(row).map(|value| number(value.unwrap_or_default()));
    let mut next = || columns.next().unwrap_or_default();
    let (instance, sequence, slot, copy) = (next(), next(), next(), next());
    DispatchId {
        instance: InstanceId(instance.cast_unsigned()),
        sequence: sequence.cast_unsigned(),
        slot: slot as u16,
        copy: copy as u16,
    }
}
