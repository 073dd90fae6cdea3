//! The steps of a random history.

use proptest::prelude::*;

/// One step of a history.
#[derive(Debug, Clone)]
pub(super) enum Action {
    Send {
        source: usize,
        priority: usize,
        to: usize,
        count: u16,
        event: bool,
        budget: usize,
        key: u64,
        lineage: usize,
    },
    Redeliver {
        nth: usize,
    },
    Turn {
        room: u32,
    },
    Pass {
        ms: u64,
    },
    Complete {
        nth: usize,
        part: (u16, u16),
        good: bool,
        ran_ms: u64,
    },
    Beat {
        target: usize,
        slots: u32,
        over: u32,
    },
    Pause {
        target: usize,
        paused: bool,
    },
    Trip {
        target: usize,
        trip: bool,
    },
    Inbox {
        target: usize,
        full: bool,
    },
    Cancel {
        nth: usize,
        slot: u16,
    },
    EndPull {
        lane: usize,
    },
    Extend {
        nth: usize,
        by_ms: u64,
    },
    TakeOver,
    Faster {
        rate: u32,
    },
}

pub(super) fn action() -> impl Strategy<Value = Action> {
    let send =
        (0..5_usize, 0..4_usize, 0..9_usize, 1..24_u16, any::<bool>(), 0..4_usize, 0..6_u64, 0..5_usize);
    prop_oneof![
        8 => send.prop_map(|(source, priority, to, count, event, budget, key, lineage)| Action::Send {
            source, priority, to, count, event, budget, key: key.saturating_sub(3), lineage,
        }),
        1 => (0..64_usize).prop_map(|nth| Action::Redeliver { nth }),
        4 => prop_oneof![Just(0), 1..40_u32, Just(100_000)].prop_map(|room| Action::Turn { room }),
        4 => prop_oneof![1..50_u64, 100..3_000_u64, Just(31_000)].prop_map(|ms| Action::Pass { ms }),
        6 => (0..64_usize, (0..24_u16, 1..24_u16), prop::bool::weighted(0.7), prop_oneof![Just(5_u64), Just(900)])
            .prop_map(|(nth, part, good, ran_ms)| Action::Complete { nth, part, good, ran_ms }),
        2 => (0..5_usize, 0..20_u32, 0..3_u32).prop_map(|(target, slots, over)| Action::Beat { target, slots, over }),
        1 => (0..5_usize, any::<bool>()).prop_map(|(target, paused)| Action::Pause { target, paused }),
        1 => (0..5_usize, any::<bool>()).prop_map(|(target, trip)| Action::Trip { target, trip }),
        1 => (0..5_usize, any::<bool>()).prop_map(|(target, full)| Action::Inbox { target, full }),
        1 => (0..64_usize, 0..24_u16).prop_map(|(nth, slot)| Action::Cancel { nth, slot }),
        1 => (0..20_usize).prop_map(|lane| Action::EndPull { lane }),
        1 => (0..64_usize, 1..5_000_u64).prop_map(|(nth, by_ms)| Action::Extend { nth, by_ms }),
        1 => Just(Action::TakeOver),
        1 => (20..100_u32).prop_map(|rate| Action::Faster { rate }),
    ]
}
