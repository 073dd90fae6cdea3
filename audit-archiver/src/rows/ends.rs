//! Ends that belong in one row. Owns what it means that they are alike; encodes nothing.
//!
//! The rule it keeps: a run holds ends of one envelope that differ at most in slot, waiting time, running time and response, in the
//! order of their slots and each slot once; which ends are one run follows from the block alone.

use std::collections::HashMap;

use governance::{InstanceId, Outcome, Reason};
use protocol::audit::CompletionRow;

/// Slots of one row: there are no more in an envelope, whatever a block claims.
const SLOTS_MAX: usize = 1 << 16;

/// Ends of one row, at least one.
#[derive(Debug)]
pub(super) struct Run<'a> {
    /// The first: what it says beside slots, waiting, running and response holds for all.
    pub(super) of: &'a CompletionRow,
    /// By their first slots.
    parts: Vec<&'a CompletionRow>,
    count: usize,
}

/// What ends of one run have in common.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Alike<'a> {
    id: (InstanceId, u64, u16),
    times: (u64, u32, u64),
    how: (Outcome, Reason, bool, u8, InstanceId),
    source: &'a str,
    target: &'a str,
}

impl<'a> Alike<'a> {
    fn of(row: &'a CompletionRow) -> Self {
        Self {
            id: (row.first.instance, row.first.sequence, row.first.copy),
            times: (row.completed.0, row.lane_us, row.latency_us),
            how: (row.outcome, row.reason, row.late, row.attempt, row.runner),
            source: &row.source,
            target: &row.target,
        }
    }
}

/// The runs of a block, in the order of their first ends.
pub(super) fn runs(rows: &[CompletionRow]) -> Vec<Run<'_>> {
    let mut runs: Vec<Run<'_>> = Vec::new();
    let mut places: HashMap<Alike<'_>, usize> = HashMap::new();
    // Ends of one report mostly stand one behind the other, so that the last place is the likeliest.
    let mut last: Option<(Alike<'_>, usize)> = None;
    for row in rows {
        let alike = Alike::of(row);
        let place = match &last {
            Some((before, place)) if *before == alike => *place,
            Some(_) | None => *places.entry(Alike::of(row)).or_insert(runs.len()),
        };
        let fits = |run: &Run<'_>| run.count + usize::from(row.count) <= SLOTS_MAX;
        let place = if runs.get(place).is_some_and(fits) {
            place
        } else {
            places.insert(Alike::of(row), runs.len());
            runs.push(Run { of: row, parts: Vec::new(), count: 0 });
            runs.len() - 1
        };
        last = Some((alike, place));
        runs[place].parts.push(row);
        runs[place].count += usize::from(row.count);
    }
    let mut next = 0;
    while let Some(run) = runs.get_mut(next) {
        let again = run.arrange();
        runs.extend(again);
        next += 1;
    }
    runs
}

impl<'a> Run<'a> {
    /// Brings the ends into the order of their slots; what tells of a slot once more, as late ends may, is a run of its own.
    fn arrange(&mut self) -> Option<Self> {
        self.parts.sort_by_key(|part| part.first.slot);
        let mut free = 0;
        let (once, again): (Vec<_>, Vec<_>) = self.parts.iter().copied().partition(|part| {
            let first = usize::from(part.first.slot);
            let fits = first >= free;
            free = if fits { first + usize::from(part.count) } else { free };
            fits
        });
        let count = |parts: &[&CompletionRow]| parts.iter().map(|part| usize::from(part.count)).sum();
        (self.of, self.count) = (once.first().copied().unwrap_or(self.of), count(&once));
        self.parts = once;
        let of = again.first().copied()?;
        Some(Self { of, count: count(&again), parts: again })
    }

    pub(super) const fn first_slot(&self) -> u16 {
        self.of.first.slot
    }

    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// How many slots lie from the first to the last.
    pub(super) fn span(&self) -> usize {
        let end = |part: &&CompletionRow| usize::from(part.first.slot) + usize::from(part.count);
        self.parts.last().map_or(0, end) - usize::from(self.first_slot())
    }

    /// Whether the slots stand one behind the other.
    pub(super) fn is_dense(&self) -> bool {
        self.span() == self.count
    }

    /// The slots, counted from the first.
    pub(super) fn places(&self) -> impl Iterator<Item = usize> {
        self.parts.iter().flat_map(|part| {
            let first = usize::from(part.first.slot - self.first_slot());
            first..first + usize::from(part.count)
        })
    }

    /// What all have in common, if so.
    pub(super) fn same<T: PartialEq>(&self, pick: fn(&CompletionRow) -> T) -> Option<T> {
        let first = pick(self.of);
        self.parts.iter().all(|part| pick(part) == first).then_some(first)
    }

    /// What each slot has.
    pub(super) fn each<T: Clone>(&self, pick: fn(&CompletionRow) -> T) -> impl Iterator<Item = T> {
        self.parts.iter().flat_map(move |part| std::iter::repeat_n(pick(part), part.count.into()))
    }
}
