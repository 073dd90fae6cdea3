//! Payloads. Owns their bytes: as long as asked, and different from dispatch to dispatch.
//!
//! The rule it keeps: neither the mesh's columns nor anything else can pack them, as equal payloads would stand in an
//! envelope only once.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

/// How many different payloads there are: more than any envelope or block holds, so that equal ones never meet.
const VARIANTS: usize = 1 << 16;

/// Payloads of one length: overlapping slices of one run of noise, so that making one copies nothing.
#[derive(Debug)]
pub(crate) struct Payloads {
    noise: Bytes,
    bytes: usize,
    next: AtomicUsize,
}

impl Payloads {
    pub(crate) fn new(bytes: usize) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut noise = Vec::with_capacity(bytes + VARIANTS + 8);
        while noise.len() < bytes + VARIANTS {
            // Marsaglia's xorshift: noise without a dependency, the same in every run.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            noise.extend_from_slice(&state.to_le_bytes());
        }
        Self { noise: noise.into(), bytes, next: AtomicUsize::new(0) }
    }

    /// The next one.
    pub(crate) fn next(&self) -> Bytes {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % VARIANTS;
        self.noise.slice(at..at + self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn payloads_differ_within_any_envelope() {
        let payloads = Payloads::new(16);
        let all: HashSet<Bytes> = (0..VARIANTS).map(|_| payloads.next()).collect();
        assert_eq!(all.len(), VARIANTS);
        assert!(all.iter().all(|p| p.len() == 16));
    }
}
