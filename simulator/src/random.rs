//! Randomness from one seed. Owns the generator and the list of streams; decides nothing.
//!
//! The rule it keeps: each purpose draws from a stream of its own, and streams are appended, never inserted, so that a
//! further purpose changes no old run.

/// One stream: xoshiro256++ (Blackman and Vigna, 2019), seeded by SplitMix64.
#[derive(Debug, Clone)]
pub struct Random([u64; 4]);

impl Random {
    /// A stream of a seed.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut state = seed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(std::array::from_fn(|_| split_mix(&mut state)))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.0;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// A number below `bound`, which is not 0. The bias of the multiplication is far below what a run could show.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// Whether something happens that happens so often in ten thousand times.
    pub fn happens(&mut self, in_ten_thousand: u64) -> bool {
        self.below(10_000) < in_ten_thousand
    }

    /// One of a list that is not empty.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    /// A span around `mean`, of which short ones are frequent and long ones are rare; at most eight times the mean.
    pub fn around(&mut self, mean: u64) -> u64 {
        // The sum of leading zeros is geometric: halving the mean for each draw gives the long tail without floats.
        let doublings = u64::from(self.bits().leading_zeros().min(3));
        let top = (mean / 2).max(1) << doublings;
        self.between(top / 2, top).max(1)
    }
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The streams of a run, in the order in which they were added.
#[derive(Debug)]
pub struct Streams {
    /// Who takes part and what they declare.
    pub cast: Random,
    /// How long messages travel.
    pub network: Random,
    /// Which faults strike when.
    pub faults: Random,
    /// What senders send.
    pub load: Random,
    /// How handlers end.
    pub handlers: Random,
    /// What the servers do.
    pub servers: Random,
    /// When processes get to run.
    pub processes: Random,
    /// Who is struck in the worst moment.
    pub ambushes: Random,
}

impl Streams {
    /// The streams of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut next = 0;
        let mut stream = || {
            next += 1;
            Random::new(seed, next)
        };
        Self {
            cast: stream(),
            network: stream(),
            faults: stream(),
            load: stream(),
            handlers: stream(),
            servers: stream(),
            processes: stream(),
            ambushes: stream(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_and_streams_differ() {
        let draw = |seed, stream| {
            (0..4)
                .map({
                    let mut random = Random::new(seed, stream);
                    move |_| random.bits()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(7, 1), draw(7, 1));
        assert_ne!(draw(7, 1), draw(7, 2));
        assert_ne!(draw(7, 1), draw(8, 1));
    }

    #[test]
    fn numbers_stay_within_their_bounds() {
        let mut random = Random::new(1, 1);
        for _ in 0..1_000 {
            assert!((3..=5).contains(&random.between(3, 5)));
            assert!(random.around(1_000) <= 8_000);
            assert!(!random.happens(0));
            assert!(random.happens(10_000));
        }
    }
}
