//! Names and numbers that identify things. Owns their alphabets and printed forms; interns nothing.
//!
//! The rule it keeps: a name that exists is a valid NATS subject token, so that no check is needed after the door.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name of an agent, capability or topic, in bytes: it keeps every subject well under the broker's bound.
pub const NAME_BYTES_MAX: usize = 64;

/// How many shards the agents are spread over; the unit of ownership. Part of the persistent format: never change it.
pub const SHARDS: u8 = 64;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Give it at least one character.
    #[error("a name must not be empty")]
    Empty,
    /// Shorten it.
    #[error("a name has at most {NAME_BYTES_MAX} characters; this one has {0}")]
    TooLong(usize),
    /// Use only the allowed characters.
    #[error("a name consists of a-z, 0-9, '_' and '-'; found {found:?} in {name:?}")]
    BadCharacter {
        /// The whole text.
        name: String,
        /// The first character outside the alphabet.
        found: char,
    },
}

fn check(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if let Some(found) = name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '_' | '-')) {
        return Err(NameError::BadCharacter { name: name.chars().take(NAME_BYTES_MAX).collect(), found });
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong(name.len()));
    }
    // A lone underscore stands for "no target named" in lane subjects.
    if name == "_" {
        return Err(NameError::BadCharacter { name: name.to_owned(), found: '_' });
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Box<str>);

        impl $type {
            /// Parses a name.
            ///
            /// # Errors
            /// When the text is empty, too long or has a character outside `[a-z0-9_-]`.
            pub fn new(name: &str) -> Result<Self, NameError> {
                check(name)?;
                Ok(Self(name.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                Self::new(&name)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0.into()
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

name!(
    /// The name of an agent, `[a-z0-9_-]{1,64}`.
    AgentId
);
name!(
    /// The name of something an agent offers.
    Capability
);
name!(
    /// The name of a topic of events.
    Topic
);

macro_rules! index {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $type(pub u32);

        impl $type {
            /// The index for a slice.
            #[must_use]
            pub const fn ix(self) -> usize {
                self.0 as usize
            }
        }
    };
}

index!(
    /// An interned agent: dense from 0, valid within one governor.
    AgentIx
);
index!(
    /// An interned capability name: dense from 0, valid within one governor.
    CapabilityIx
);
index!(
    /// An interned topic: dense from 0, valid within one governor.
    TopicIx
);
index!(
    /// The shell's handle of a lane message that it holds; opaque to the core.
    MessageIx
);
index!(
    /// The core's handle of one admitted run of dispatches; the shell keeps its own data under the same index.
    OpenIx
);

/// One running instance of an agent: a number it draws when it connects. Hexadecimal digits 2 to 7 are its agent's, the last
/// six of the FNV-1a hash of the name, so that every home sees at a glance whether an instance is its sender's own; the
/// others are random.
///
/// ```
/// use governance::{AgentId, InstanceId};
///
/// let bot = AgentId::new("lead_bot").unwrap();
/// let instance = InstanceId::of(&bot, 0x1234_5678_9abc_def0);
/// assert!(instance.is_of(&bot) && !instance.is_derived());
/// assert!(!instance.is_of(&AgentId::new("crm_client").unwrap()));
/// ```
///
/// Dispatches that came as JSON without an instance have one derived from agent and stream, with the top bit set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct InstanceId(pub u64);

impl InstanceId {
    /// The bit that marks an instance that was derived at the JSON door: its sequences are those of the stream.
    pub const DERIVED: u64 = 1 << 63;
    const AGENT: u64 = 0xff_ffff << Self::AGENT_SHIFT;
    const AGENT_SHIFT: u32 = 36;

    /// An instance of an agent, from 64 random bits.
    #[must_use]
    pub fn of(agent: &AgentId, random: u64) -> Self {
        let own = u64::from(fnv1a(agent.as_str().as_bytes())) << Self::AGENT_SHIFT & Self::AGENT;
        Self(random & !Self::DERIVED & !Self::AGENT | own)
    }

    /// Whether this may be an instance of an agent, as far as the number tells.
    #[must_use]
    pub fn is_of(self, agent: &AgentId) -> bool {
        Self::of(agent, self.0) == self
    }

    /// Whether the sequences of this instance are stream sequences, hence not dense.
    #[must_use]
    pub const fn is_derived(self) -> bool {
        self.0 & Self::DERIVED != 0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for InstanceId {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        if s.len() != 16 {
            return Err(IdError(s.into()));
        }
        u64::from_str_radix(s, 16).map(Self).map_err(|_| IdError(s.into()))
    }
}

/// The identity of one dispatch: who packed it, in which envelope, at which place; and which copy, for topics.
///
/// Printed as `d-<instance>-<sequence>-<slot>` in hexadecimal, with `.<copy>` behind a copy that a topic made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DispatchId {
    /// The instance that sent it.
    pub instance: InstanceId,
    /// The envelope, dense from 1 within an instance.
    pub sequence: u64,
    /// The place in the envelope.
    pub slot: u16,
    /// 0 for the dispatch itself; 1.. for the copy for each subscriber of a topic.
    pub copy: u16,
}

impl DispatchId {
    /// The bytes of an id on the wire.
    pub const BYTES: usize = 20;

    /// The wire form: instance, sequence, slot, copy, little-endian.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..8].copy_from_slice(&self.instance.0.to_le_bytes());
        out[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        out[16..18].copy_from_slice(&self.slot.to_le_bytes());
        out[18..].copy_from_slice(&self.copy.to_le_bytes());
        out
    }

    /// Reads the wire form; every bit pattern is an id.
    #[must_use]
    pub fn from_bytes(b: &[u8; Self::BYTES]) -> Self {
        let u64_at = |i: usize| u64::from_le_bytes(b[i..i + 8].try_into().expect("eight bytes"));
        Self {
            instance: InstanceId(u64_at(0)),
            sequence: u64_at(8),
            slot: u16::from_le_bytes([b[16], b[17]]),
            copy: u16::from_le_bytes([b[18], b[19]]),
        }
    }
}

/// A text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id; a dispatch is written d-<16 hex digits>-<hex>-<hex>")]
pub struct IdError(pub String);

impl fmt::Display for DispatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d-{}-{:x}-{:x}", self.instance, self.sequence, self.slot)?;
        if self.copy != 0 {
            write!(f, ".{:x}", self.copy)?;
        }
        Ok(())
    }
}

impl fmt::Debug for DispatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for DispatchId {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let bad = || IdError(s.chars().take(80).collect());
        let mut parts = s.strip_prefix("d-").ok_or_else(bad)?.split('-');
        let instance = parts.next().ok_or_else(bad)?.parse()?;
        let sequence = parts.next().and_then(|p| u64::from_str_radix(p, 16).ok()).ok_or_else(bad)?;
        let last = parts.next().ok_or_else(bad)?;
        if parts.next().is_some() {
            return Err(bad());
        }
        let (slot, copy) = last.split_once('.').unwrap_or((last, "0"));
        let slot = u16::from_str_radix(slot, 16).map_err(|_| bad())?;
        let copy = u16::from_str_radix(copy, 16).map_err(|_| bad())?;
        Ok(Self { instance, sequence, slot, copy })
    }
}

/// The shard of an agent: `fnv1a(agent) % 64`, 32-bit FNV-1a as the broker's own `partition` function computes it.
#[must_use]
pub fn shard_of(agent: &str) -> u8 {
    (fnv1a(agent.as_bytes()) % u32::from(SHARDS)) as u8
}

/// 32-bit FNV-1a (<https://www.rfc-editor.org/rfc/rfc9923>).
#[must_use]
pub fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}
