//! Rows taken apart into records. Owns how a run is read, and how a single dispatch of it is written down to be compared.
//!
//! The rule it keeps: a record is written down in the same way however long the run is that holds it. A row whose columns do not fit
//! each other is no run, and stands for itself.

use siphasher::sip128::SipHasher13;

use crate::copy::{bits, i32_array, number, values};
use crate::rows::Table;

const HASH_BYTES: usize = protocol::HASH_BYTES;
/// The places of the columns that say something about single slots, in [`Table::columns`].
const SLOT: usize = 2;
const COUNT: usize = 4;
const SLOTS: usize = 5;
const INBOX: [usize; 2] = [8, 9];
const RAN: [usize; 2] = [10, 11];
/// The number of columns of a run, which ends with its hashes.
const DECISION_COLUMNS: usize = 31;
const COMPLETION_COLUMNS: usize = 24;
/// An envelope has no more slots.
const SLOTS_MAX: i64 = 1 << 16;

/// The columns of a record, as it is written down.
pub(super) const fn columns(table: Table) -> &'static str {
    match table {
        Table::Decisions => {
            "instance, sequence, slot, copy, accepted, decided, deadline, \
             root_instance, root_sequence, root_slot, root_copy, \
             parent_instance, parent_sequence, parent_slot, parent_copy, \
             epoch, block, shard, policy_version, kind, lane, class, decision, reason, outcome, \
             source, target, capability, conversation, payload_hash"
        }
        Table::Completions => {
            "instance, sequence, slot, copy, completed, lane_us, inbox_us, ran_us, latency_us, runner, \
             epoch, block, shard, outcome, reason, attempt, late, source, target, response_hash"
        }
        Table::Blocks | Table::Notes => table.columns(),
    }
}

/// A run, with what is not the same for all its slots.
struct Run<'a> {
    table: Table,
    columns: Vec<Option<&'a [u8]>>,
    count: usize,
    slots: Option<Vec<i32>>,
    inbox: Option<Vec<i32>>,
    ran: Option<Vec<i32>>,
}

impl<'a> Run<'a> {
    /// None for what is no run, or a row whose columns do not fit each other.
    fn read(table: Table, row: &'a [u8]) -> Option<Self> {
        let width = match table {
            Table::Decisions => DECISION_COLUMNS,
            Table::Completions => COMPLETION_COLUMNS,
            Table::Blocks | Table::Notes => return None,
        };
        let columns: Vec<Option<&[u8]>> = values(row).collect();
        let count = number(columns.get(COUNT).copied().flatten()?);
        if columns.len() != width || !(1..=SLOTS_MAX).contains(&count) {
            return None;
        }
        let count = usize::try_from(count).ok()?;
        let mut run = Self { table, columns, count, slots: None, inbox: None, ran: None };
        let hashes = run.columns[width - 1].map(<[u8]>::len);
        let fits = match table {
            Table::Decisions => hashes == Some(count * HASH_BYTES),
            Table::Blocks | Table::Completions | Table::Notes => {
                hashes.is_none_or(|len| len == HASH_BYTES || len == count * HASH_BYTES)
            }
        };
        if !fits {
            return None;
        }
        if table == Table::Completions {
            run.slots = run.places()?;
            run.inbox = run.array(INBOX[1])?;
            run.ran = run.array(RAN[1])?;
            let either = |pair: [usize; 2]| run.columns[pair[0]].is_some() != run.columns[pair[1]].is_some();
            if !either(INBOX) || !either(RAN) {
                return None;
            }
        }
        Some(run)
    }

    /// An array of as many numbers as there are slots, where there is one; none where it is something else.
    fn array(&self, column: usize) -> Option<Option<Vec<i32>>> {
        match self.columns[column] {
            None => Some(None),
            Some(value) => i32_array(value).filter(|numbers| numbers.len() == self.count).map(Some),
        }
    }

    /// The slots counted from the first, where they do not stand one behind the other; none where they are not so many.
    fn places(&self) -> Option<Option<Vec<i32>>> {
        match self.columns[SLOTS] {
            None => Some(None),
            Some(value) => bits(value).filter(|places| places.len() == self.count).map(Some),
        }
    }

    fn number(&self, column: usize) -> i64 {
        number(self.columns[column].unwrap_or_default())
    }

    /// Whether a column is about the run as a whole.
    fn is_common(&self, column: usize) -> bool {
        let own: &[usize] = match self.table {
            Table::Completions => &[SLOT, COUNT, SLOTS, INBOX[0], INBOX[1], RAN[0], RAN[1]],
            Table::Blocks | Table::Decisions | Table::Notes => &[SLOT, COUNT],
        };
        column + 1 < self.columns.len() && !own.contains(&column)
    }

    fn slot(&self, i: usize) -> i32 {
        self.number(SLOT) as i32 + self.slots.as_ref().map_or(i as i32, |slots| slots[i])
    }

    fn micros(&self, each: Option<&Vec<i32>>, column: usize, i: usize) -> i64 {
        each.map_or_else(|| self.number(column), |each| each[i].cast_unsigned().into())
    }

    fn inbox_us(&self, i: usize) -> i64 {
        self.micros(self.inbox.as_ref(), INBOX[0], i)
    }

    fn ran_us(&self, i: usize) -> i64 {
        self.micros(self.ran.as_ref(), RAN[0], i)
    }

    /// The hash of a payload or response; none where there is none.
    fn hash(&self, i: usize) -> Option<&'a [u8]> {
        let hashes = self.columns.last().copied().flatten()?;
        let of_all = self.table == Table::Completions && hashes.len() == HASH_BYTES;
        let hash = if of_all { hashes } else { &hashes[i * HASH_BYTES..(i + 1) * HASH_BYTES] };
        (self.table == Table::Decisions || hash != [0; HASH_BYTES]).then_some(hash)
    }
}

/// A number for each record of a row, that of any other record but by chance another.
pub(super) fn sums(sip: &SipHasher13, table: Table, row: &[u8], mut each: impl FnMut(u128)) {
    let Some(run) = Run::read(table, row) else { return each(sip.hash(row).as_u128()) };
    // What all have in common is hashed once.
    let mut bytes = Vec::with_capacity(row.len());
    bytes.push(table as u8);
    for (_, value) in run.columns.iter().enumerate().filter(|(i, _)| run.is_common(*i)) {
        bytes.extend_from_slice(&value.map_or(u32::MAX, |value| value.len() as u32).to_be_bytes());
        bytes.extend_from_slice(value.unwrap_or_default());
    }
    let common = sip.hash(&bytes).as_bytes();
    let timed = table == Table::Completions;
    for i in 0..run.count {
        bytes.clear();
        bytes.extend_from_slice(&common);
        bytes.extend_from_slice(&run.slot(i).to_be_bytes());
        if timed {
            bytes.extend_from_slice(&run.inbox_us(i).to_be_bytes());
            bytes.extend_from_slice(&run.ran_us(i).to_be_bytes());
        }
        bytes.extend_from_slice(run.hash(i).unwrap_or_default());
        each(sip.hash(&bytes).as_u128());
    }
}

/// Each record of a row, written down as a row of a COPY with [`columns`]; the row itself where it is no run.
pub(super) fn each(table: Table, row: &[u8], mut each: impl FnMut(Vec<u8>)) {
    let Some(run) = Run::read(table, row) else { return each(row.to_vec()) };
    let width = columns(table).split(',').count() as u16;
    for i in 0..run.count {
        let mut record = width.to_be_bytes().to_vec();
        for column in 0..run.columns.len() - 1 {
            if run.is_common(column) {
                put(&mut record, run.columns[column]);
            } else if column == SLOT {
                put(&mut record, Some(&run.slot(i).to_be_bytes()));
            } else if column == INBOX[0] && table == Table::Completions {
                put(&mut record, Some(&run.inbox_us(i).to_be_bytes()));
            } else if column == RAN[0] && table == Table::Completions {
                put(&mut record, Some(&run.ran_us(i).to_be_bytes()));
            }
        }
        put(&mut record, run.hash(i));
        each(record);
    }
}

fn put(record: &mut Vec<u8>, value: Option<&[u8]>) {
    record.extend_from_slice(&value.map_or(-1, |value| value.len() as i32).to_be_bytes());
    record.extend_from_slice(value.unwrap_or_default());
}

/// Whether a row of runs is none, since its columns do not fit each other.
pub(super) fn is_torn(table: Table, record: &[u8]) -> bool {
    matches!(table, Table::Decisions | Table::Completions)
        && values(record).count() == table.columns().split(',').count()
}
