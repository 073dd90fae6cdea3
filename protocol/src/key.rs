//! The mesh's audit key and what is derived from it. Owns keyed hashing; never prints a key.
//!
//! The rule it keeps: payload hashes are keyed, since an unkeyed hash of "yes" or of a phone number can be guessed.

use std::fmt;

use crate::text::unhex;

/// Bytes of a payload hash: 128 bits, far beyond accidental equality within one mesh.
pub const HASH_BYTES: usize = 16;

/// A keyed BLAKE3 hash of a payload, shortened to 16 bytes.
pub type PayloadHash = [u8; HASH_BYTES];

/// The key of one mesh: 32 random bytes, kept in a file that only its operators read.
#[derive(Clone)]
pub struct AuditKey {
    /// None for a mesh without an audit.
    payload: Option<[u8; 32]>,
    seal: [u8; 16],
}

/// A text that is not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an audit key is written as 64 hexadecimal digits; make one with: openssl rand -hex 32")]
pub struct KeyError;

impl AuditKey {
    /// A key from its 32 bytes.
    #[must_use]
    pub fn new(bytes: &[u8; 32]) -> Self {
        let seal = blake3::derive_key("agent-mesh 2026 lineage seal", bytes);
        Self {
            payload: Some(blake3::derive_key("agent-mesh 2026 payload hash", bytes)),
            seal: seal[..16].try_into().expect("sixteen of thirty-two bytes"),
        }
    }

    /// A key from 64 hexadecimal digits; white space around them is ignored.
    ///
    /// # Errors
    /// When the text is anything else.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let bytes: [u8; 32] = unhex(text.trim()).and_then(|b| b.try_into().ok()).ok_or(KeyError)?;
        Ok(Self::new(&bytes))
    }

    /// The same key for a home that keeps no audit: lineages are sealed, nothing is hashed, and nothing is recorded. It exists
    /// so that the cost of the audit can be measured against the same mesh without it.
    #[must_use]
    pub fn without_audit(self) -> Self {
        Self { payload: None, ..self }
    }

    /// Whether what is decided under this key is recorded.
    #[must_use]
    pub const fn records(&self) -> bool {
        self.payload.is_some()
    }

    /// The hash of a payload as it stands in the audit; all zero without an audit.
    #[must_use]
    pub fn hash(&self, payload: &[u8]) -> PayloadHash {
        let mut out = [0; HASH_BYTES];
        if let Some(key) = &self.payload {
            out.copy_from_slice(&blake3::keyed_hash(key, payload).as_bytes()[..HASH_BYTES]);
        }
        out
    }

    pub(crate) const fn seal_key(&self) -> &[u8; 16] {
        &self.seal
    }
}

impl fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuditKey(..)")
    }
}
