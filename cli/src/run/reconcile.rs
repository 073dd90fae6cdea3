//! Reconciling: what is wanted against what runs. Pure: the actuators do what it says.
//!
//! The rule it keeps: it looks at levels, never at what was said or done before, so that a lost message or a crashed
//! instance is made good by looking once more. Instances that drain count against the maximum: they still use what it bounds.

/// Between how many instances an agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// At least so many, whatever is wanted.
    pub(crate) min: u32,
    /// At most so many, those that drain included.
    pub(crate) max: u32,
}

impl Bounds {
    /// How many instances should run; without a wish as few as may be.
    pub(crate) fn level(self, wanted: Option<u32>) -> u32 {
        wanted.unwrap_or(self.min).clamp(self.min, self.max)
    }
}

/// The instances there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Fleet {
    /// Those that run, or will by themselves: one that pauses after a crash is among them.
    pub(crate) running: u32,
    /// Those that were told to stop and have not ended.
    pub(crate) draining: u32,
}

/// What to do about the difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Start so many.
    Start(u32),
    /// Let so many drain.
    Stop(u32),
    /// Nothing, until something changes.
    Rest,
}

/// Compares the level with the fleet.
pub(crate) fn reconcile(bounds: Bounds, wanted: Option<u32>, fleet: Fleet) -> Step {
    let level = bounds.level(wanted);
    if fleet.running > level {
        return Step::Stop(fleet.running - level);
    }
    let room = bounds.max.saturating_sub(fleet.running + fleet.draining);
    match (level - fleet.running).min(room) {
        0 => Step::Rest,
        missing => Step::Start(missing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { min: 2, max: 6 };

    fn fleet(running: u32, draining: u32) -> Fleet {
        Fleet { running, draining }
    }

    #[test]
    fn without_a_wish_as_few_run_as_may() {
        assert_eq!(reconcile(BOUNDS, None, fleet(0, 0)), Step::Start(2));
        assert_eq!(reconcile(BOUNDS, None, fleet(2, 0)), Step::Rest);
        assert_eq!(reconcile(BOUNDS, None, fleet(5, 0)), Step::Stop(3));
    }

    #[test]
    fn a_wish_is_kept_within_the_bounds() {
        let level = |wanted| BOUNDS.level(Some(wanted));
        assert_eq!([level(0), level(1), level(4), level(9)], [2, 2, 4, 6]);
        assert_eq!(reconcile(BOUNDS, Some(9), fleet(2, 0)), Step::Start(4));
        assert_eq!(reconcile(BOUNDS, Some(0), fleet(3, 0)), Step::Stop(1));
    }

    #[test]
    fn what_drains_leaves_no_room_above_the_maximum() {
        assert_eq!(reconcile(BOUNDS, Some(6), fleet(3, 2)), Step::Start(1));
        assert_eq!(reconcile(BOUNDS, Some(6), fleet(2, 4)), Step::Rest);
        assert_eq!(reconcile(BOUNDS, Some(6), fleet(2, 9)), Step::Rest);
        assert_eq!(reconcile(BOUNDS, Some(3), fleet(2, 1)), Step::Start(1));
    }

    #[test]
    fn doing_what_it_says_ends_at_the_level_from_wherever_one_begins() {
        let mut looked_at = 0;
        for wanted in (0..9).map(Some).chain([None]) {
            for (running, draining) in (0..9).flat_map(|r| (0..9).map(move |d| (r, d))) {
                let after = match reconcile(BOUNDS, wanted, fleet(running, draining)) {
                    Step::Start(n) => fleet(running + n, 0),
                    Step::Stop(n) => fleet(running - n, 0),
                    Step::Rest => fleet(running, 0),
                };
                // Once what drained has ended, the second look makes up for what had no room.
                let settled = match reconcile(BOUNDS, wanted, after) {
                    Step::Start(n) => after.running + n,
                    Step::Stop(_) => panic!("nothing is stopped that was just kept: {after:?}"),
                    Step::Rest => after.running,
                };
                assert_eq!(settled, BOUNDS.level(wanted));
                looked_at += 1;
            }
        }
        assert_eq!(looked_at, 810);
    }
}
