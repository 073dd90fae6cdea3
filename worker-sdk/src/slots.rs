//! Slots: how many dispatches an instance runs at once, and of which priority. Owns the counts; starts nothing.
//!
//! The rule it keeps: a tenth of the slots waits for P0, P3 has at most half, and a handler that waits for a child gives
//! its slot back meanwhile. It takes one again at once when the child has answered, so that the running ones may exceed
//! the slots for a moment: making it queue could lock up handlers that share a lock.

use std::sync::{Mutex, MutexGuard, PoisonError};

use governance::Priority;
use tokio::sync::Notify;

/// For each slot, so many dispatches may be alive: running, or waiting for a child.
pub(crate) const ALIVE_PER_SLOT: u32 = 4;
/// One in so many slots is kept for P0.
const URGENT_SHARE: u32 = 10;

#[derive(Debug, Default)]
struct Counts {
    running: [u32; 4],
    parked: u32,
}

impl Counts {
    fn leave(&mut self, class: Priority, slots: u32) {
        let running = &mut self.running[usize::from(class.code())];
        *running =
            running.checked_sub(slots).expect("a slot is given back once, in the class it was taken in");
    }
}

/// The slots of one instance.
#[derive(Debug)]
pub(crate) struct Slots {
    limit: u32,
    counts: Mutex<Counts>,
    freed: Notify,
}

impl Slots {
    pub(crate) fn new(limit: u32) -> Self {
        Self { limit, counts: Mutex::default(), freed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) const fn limit(&self) -> u32 {
        self.limit
    }

    /// Slots that only P0 may take.
    fn reserve(&self) -> u32 {
        if self.limit < 2 { 0 } else { (self.limit / URGENT_SHARE).max(1) }
    }

    fn room_in(&self, counts: &Counts, class: Priority) -> u32 {
        let [p0, p1, p2, p3] = counts.running;
        let ordinary = p1 + p2 + p3;
        let free = self.limit.saturating_sub(p0 + ordinary);
        let alive = (self.limit * ALIVE_PER_SLOT).saturating_sub(p0 + ordinary + counts.parked);
        let ordinary_free = free.min((self.limit - self.reserve()).saturating_sub(ordinary));
        let of_class = match class {
            Priority::P0 => free,
            Priority::P1 | Priority::P2 => ordinary_free,
            Priority::P3 => ordinary_free.min((self.limit / 2).max(1).saturating_sub(p3)),
        };
        of_class.min(alive)
    }

    /// How many dispatches of a priority could start now.
    pub(crate) fn room(&self, class: Priority) -> u32 {
        self.room_in(&self.lock(), class)
    }

    /// Takes slots for dispatches of a priority, at most `most` and only such as are free for it; how many it took.
    pub(crate) fn take(&self, class: Priority, most: u32) -> u32 {
        let mut counts = self.lock();
        let taken = self.room_in(&counts, class).min(most);
        counts.running[usize::from(class.code())] += taken;
        taken
    }

    /// Gives slots back for good.
    pub(crate) fn give_back(&self, class: Priority, slots: u32) {
        self.lock().leave(class, slots);
        self.freed.notify_one();
    }

    /// Gives slots back while who holds them waits for a child.
    pub(crate) fn park(&self, class: Priority, slots: u32) {
        let mut counts = self.lock();
        counts.leave(class, slots);
        counts.parked += slots;
        drop(counts);
        self.freed.notify_one();
    }

    /// Takes slots again, at once.
    pub(crate) fn unpark(&self, class: Priority, slots: u32) {
        let mut counts = self.lock();
        counts.running[usize::from(class.code())] += slots;
        counts.parked -= slots;
    }

    /// Dispatches running now, those that wait for a child left out.
    pub(crate) fn running(&self) -> u32 {
        self.lock().running.iter().sum()
    }

    /// Waits until a slot may have become free since the last call.
    pub(crate) async fn freed(&self) {
        self.freed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Priority::{P0, P1, P2, P3};

    fn take(slots: &Slots, class: Priority, n: u32) -> u32 {
        (0..n).map(|_| slots.take(class, 1)).sum()
    }

    #[test]
    fn a_tenth_of_the_slots_waits_for_p0() {
        let slots = Slots::new(20);
        assert_eq!(take(&slots, P2, 20), 18);
        assert_eq!(take(&slots, P1, 1), 0);
        assert_eq!(take(&slots, P0, 5), 2);
    }

    #[test]
    fn one_of_two_slots_waits_for_p0_and_a_single_one_is_for_all() {
        let two = Slots::new(2);
        assert_eq!((take(&two, P2, 2), take(&two, P0, 2)), (1, 1));
        assert_eq!(take(&Slots::new(1), P3, 2), 1);
    }

    #[test]
    fn p0_does_not_use_up_what_others_may_have() {
        let slots = Slots::new(10);
        assert_eq!(take(&slots, P0, 1), 1);
        assert_eq!(take(&slots, P2, 10), 9);
        slots.give_back(P0, 1);
        assert_eq!(take(&slots, P2, 1), 0, "the reserve is free, and stays so");
    }

    #[test]
    fn p3_takes_at_most_half() {
        let slots = Slots::new(10);
        assert_eq!(take(&slots, P3, 10), 5);
        assert_eq!(take(&slots, P2, 10), 4);
    }

    #[test]
    fn waiting_for_a_child_frees_a_slot_up_to_four_times_the_slots() {
        let slots = Slots::new(1);
        for _ in 0..ALIVE_PER_SLOT {
            assert_eq!(slots.take(P1, 1), 1);
            slots.park(P1, 1);
        }
        assert_eq!(slots.take(P1, 1), 0, "four are alive");
        slots.unpark(P1, 1);
        slots.give_back(P1, 1);
        assert_eq!(slots.take(P1, 1), 1);
    }

    #[test]
    fn a_batch_takes_what_is_free_and_gives_it_back_as_a_whole() {
        let slots = Slots::new(20);
        assert_eq!(slots.take(P2, 12), 12);
        assert_eq!(slots.take(P2, 12), 6, "the reserve of P0 is not for it");
        assert_eq!(slots.take(P0, 12), 2);
        slots.park(P2, 12);
        assert_eq!((slots.running(), slots.room(P2)), (8, 12));
        slots.unpark(P2, 12);
        slots.give_back(P2, 12);
        assert_eq!((slots.running(), slots.room(P2)), (8, 12));
    }
}
