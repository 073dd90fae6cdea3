//! A hash map that is the same in every process. Owns the hasher; the map is looked up, never walked.
//!
//! The rule it keeps: no seed. The keys are numbers that the mesh drew or counted itself, so nobody can choose them to
//! collide, and a fixed multiplication is enough (the method of the Firefox and rustc hashers).

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map for integer keys with a fixed hash.
pub(crate) type FastMap<K, V> = HashMap<K, V, BuildHasherDefault<IntegerHasher>>;

/// Mixes integers by rotation, exclusive or and multiplication.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct IntegerHasher(u64);

impl IntegerHasher {
    const fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl Hasher for IntegerHasher {
    fn finish(&self) -> u64 {
        // The map takes its bucket from the low bits, the multiplication leaves its best in the high ones.
        self.0.rotate_left(26)
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.add(u64::from(*byte));
        }
    }
    fn write_u8(&mut self, n: u8) {
        self.add(u64::from(n));
    }
    fn write_u16(&mut self, n: u16) {
        self.add(u64::from(n));
    }
    fn write_u32(&mut self, n: u32) {
        self.add(u64::from(n));
    }
    fn write_u64(&mut self, n: u64) {
        self.add(n);
    }
    fn write_u128(&mut self, n: u128) {
        self.add(n as u64);
        self.add((n >> 64) as u64);
    }
}
