//! Lineage: what a dispatch hands to those sent while it runs. Owns its bytes and its seal.
//!
//! The rule it keeps: an agent can pass its lineage on but not invent one, since only coordinators hold the key of the
//! seal. The seal is SipHash-2-4 (Aumasson and Bernstein, 2012), keyed, 64 bits: a guess succeeds once in 2^64.

use std::hash::Hasher;

use governance::{DispatchId, Timestamp};
use siphasher::sip::SipHasher24;

use crate::key::AuditKey;

/// The ancestry that a lineage can carry: one hash for each hop. A policy's bound on hops lies at or below it.
pub const HOPS_MAX: usize = 64;

/// Root, parent, deadline; then one byte each: serves a person, hops, zero.
const FIXED_BYTES: usize = 2 * DispatchId::BYTES + 8 + 3;
const SEAL_BYTES: usize = 8;
/// The longest lineage with its seal, in bytes.
pub const LINEAGE_BYTES_MAX: usize = FIXED_BYTES + HOPS_MAX * 4 + SEAL_BYTES;

/// What a child inherits from the dispatch during which it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    /// The dispatch at the top of the tree.
    pub root: DispatchId,
    /// The dispatch during which the child is sent.
    pub parent: DispatchId,
    /// The parent's deadline: no child's is later.
    pub deadline: Timestamp,
    /// Whether the tree serves a waiting person, so that P0 may be claimed.
    pub serves_person: bool,
    /// One hash of agent and capability for each hop from the root to the parent, both included.
    pub ancestry: Vec<u32>,
}

/// Hash of an agent and a capability, as it stands in an ancestry.
#[must_use]
pub fn hop(agent: &str, capability: &str) -> u32 {
    let mut bytes = Vec::with_capacity(agent.len() + capability.len() + 1);
    bytes.extend_from_slice(agent.as_bytes());
    bytes.push(b'/');
    bytes.extend_from_slice(capability.as_bytes());
    governance::names::fnv1a(&bytes)
}

impl Lineage {
    /// The bytes that children carry, without the seal.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED_BYTES + self.ancestry.len() * 4 + SEAL_BYTES);
        out.extend_from_slice(&self.root.to_bytes());
        out.extend_from_slice(&self.parent.to_bytes());
        out.extend_from_slice(&self.deadline.0.to_le_bytes());
        out.extend_from_slice(&[u8::from(self.serves_person), self.ancestry.len() as u8, 0]);
        for hop in &self.ancestry {
            out.extend_from_slice(&hop.to_le_bytes());
        }
        out
    }

    /// The bytes that children carry.
    #[must_use]
    pub fn with_seal(&self, seal: u64) -> Vec<u8> {
        let mut out = self.encode();
        out.extend_from_slice(&seal.to_le_bytes());
        out
    }

    /// The seal that makes this lineage good for dispatches of `holder`.
    #[must_use]
    pub fn seal(&self, key: &AuditKey, holder: &str) -> u64 {
        seal_bytes(key, holder, &self.encode())
    }

    /// Seals for dispatches of `holder` that are to carry this lineage but for root and parent.
    pub(crate) fn sealing<'k>(&self, key: &'k AuditKey, holder: &'k str) -> Sealing<'k> {
        Sealing { key, holder, body: self.encode() }
    }

    /// Reads what a child carries, without judging the seal. None where the bytes are not a lineage.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<(Self, u64)> {
        let body = bytes.len().checked_sub(SEAL_BYTES)?;
        let (body, seal) = bytes.split_at(body);
        if body.len() < FIXED_BYTES {
            return None;
        }
        let id = |at: usize| -> Option<DispatchId> {
            Some(DispatchId::from_bytes(body.get(at..at + DispatchId::BYTES)?.try_into().ok()?))
        };
        let (head, hops) = body.split_at(FIXED_BYTES);
        let count = usize::from(head[FIXED_BYTES - 2]);
        let flags_known = head[FIXED_BYTES - 3] <= 1 && head[FIXED_BYTES - 1] == 0;
        if count > HOPS_MAX || hops.len() != count * 4 || !flags_known {
            return None;
        }
        let lineage = Self {
            root: id(0)?,
            parent: id(DispatchId::BYTES)?,
            deadline: Timestamp(u64::from_le_bytes(head[40..48].try_into().ok()?)),
            serves_person: head[FIXED_BYTES - 3] == 1,
            ancestry: hops.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect(),
        };
        Some((lineage, u64::from_le_bytes(seal.try_into().ok()?)))
    }

    /// Reads what a child of `holder` carries and checks that the mesh sealed it.
    #[must_use]
    pub fn verify(bytes: &[u8], key: &AuditKey, holder: &str) -> Option<Self> {
        let (lineage, seal) = Self::decode(bytes)?;
        (seal_bytes(key, holder, &bytes[..bytes.len() - SEAL_BYTES]) == seal).then_some(lineage)
    }
}

/// Lineages that are sealed one after the other, of which only root and parent differ.
#[derive(Debug)]
pub(crate) struct Sealing<'k> {
    key: &'k AuditKey,
    holder: &'k str,
    body: Vec<u8>,
}

impl Sealing<'_> {
    /// The seal for one of them.
    pub(crate) fn seal_for(&mut self, root: DispatchId, parent: DispatchId) -> u64 {
        self.body[..DispatchId::BYTES].copy_from_slice(&root.to_bytes());
        self.body[DispatchId::BYTES..2 * DispatchId::BYTES].copy_from_slice(&parent.to_bytes());
        seal_bytes(self.key, self.holder, &self.body)
    }
}

fn seal_bytes(key: &AuditKey, holder: &str, body: &[u8]) -> u64 {
    let mut hasher = SipHasher24::new_with_key(key.seal_key());
    hasher.write(holder.as_bytes());
    hasher.write(&[0]);
    hasher.write(body);
    hasher.finish()
}
