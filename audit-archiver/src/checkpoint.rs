//! Checkpoints: signed lines that say where every shard's trail stood at a moment. Owns their form, their signature and their
//! order; reads no server.
//!
//! The rule it keeps: a line is signed by a key that PostgreSQL does not have and carries the hash of the line before, so that
//! a history rewritten as a whole still differs from what was signed, and no line goes without a trace.

mod folder;
mod writer;

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use governance::Timestamp;
use protocol::audit::BlockHash;
use protocol::redis::{EntryId, Head};
use protocol::text::{hex, rfc3339, unhex};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub use folder::{Found, Trouble, newest_line, read_folders};
pub(crate) use writer::Writer;

/// The form that this code writes and reads.
const FORM: u8 = 1;
/// What a signature is over begins with this, so that it is of use for nothing else.
const DOMAIN: &str = "agent-mesh audit checkpoint\n";
/// Between what is signed and the signature.
const SEAM: &str = ",\"signature\":\"";

/// The hash of a line: BLAKE3 of all its bytes but the end of line.
pub type LineHash = [u8; 32];

/// Where one shard stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardHead {
    /// The shard.
    pub shard: u8,
    /// The id of its last block in Redis.
    #[serde(serialize_with = "as_text", deserialize_with = "id_from_text")]
    pub head: EntryId,
    /// The hash of that block.
    #[serde(serialize_with = "as_hex", deserialize_with = "hash_from_hex")]
    pub hash: BlockHash,
    /// The last block that PostgreSQL had committed, as Redis was told.
    #[serde(serialize_with = "as_text", deserialize_with = "id_from_text")]
    pub archived: EntryId,
}

impl ShardHead {
    /// The head as the trail has it.
    #[must_use]
    pub const fn trail(&self) -> Head {
        Head { id: self.head, hash: self.hash }
    }
}

/// Where every shard stood. A shard without a block is not named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The form of the line.
    #[serde(rename = "checkpoint")]
    pub form: u8,
    /// The run of an archiver that wrote it, sixteen hexadecimal digits.
    pub series: String,
    /// Dense from 1 within a series.
    pub number: u64,
    /// When the heads were read, by the archiver's clock.
    #[serde(serialize_with = "as_rfc3339", deserialize_with = "moment_from_text")]
    pub at: Timestamp,
    /// The hash of the line before: of this series, or, for the first of one, of the newest line that its folder held then. All zero
    /// where there was none.
    #[serde(serialize_with = "as_hex", deserialize_with = "hash_from_hex")]
    pub previous: LineHash,
    /// The shards that have blocks.
    pub shards: Vec<ShardHead>,
}

/// A line whose signature holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// What it says.
    pub checkpoint: Checkpoint,
    /// Its hash.
    pub hash: LineHash,
    signature: [u8; 64],
}

impl Signed {
    /// The line as it was signed.
    ///
    /// # Panics
    /// Never: a checkpoint always has a form as JSON.
    #[must_use]
    pub fn line(&self) -> String {
        sealed(&self.checkpoint, |_| self.signature)
    }
}

/// The line of a checkpoint with a signature over its text.
fn sealed(checkpoint: &Checkpoint, signature: impl FnOnce(&str) -> [u8; 64]) -> String {
    let mut line = serde_json::to_string(checkpoint).expect("numbers and texts are always JSON");
    line.pop();
    let signature = signature(&line);
    line.push_str(SEAM);
    line.push_str(&hex(&signature));
    line.push_str("\"}");
    line
}

/// Why a line is not a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// It does not have the form.
    #[error("the line is not a checkpoint of form {FORM}")]
    Form,
    /// None of the keys made the signature.
    #[error("no given public key made the signature: the line was changed, or signed by another")]
    Signature,
}

/// A text that is not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a private one.
    #[error("a checkpoint key is written as 64 hexadecimal digits; make one with: openssl rand -hex 32")]
    Private,
    /// Not a public one.
    #[error("a public key is written as 64 hexadecimal digits; `audit-archiver checkpoint-key` prints it")]
    Public,
}

/// The key that signs. Whoever has it can sign any history.
pub struct CheckpointKey(SigningKey);

impl CheckpointKey {
    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// The signed line of a checkpoint, without an end of line.
    ///
    /// # Panics
    /// Never: a checkpoint always has a form as JSON.
    #[must_use]
    pub fn sign(&self, checkpoint: &Checkpoint) -> String {
        sealed(checkpoint, |text| self.0.sign(message(text).as_bytes()).to_bytes())
    }
}

impl FromStr for CheckpointKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let seed: [u8; 32] = unhex(text.trim()).and_then(|b| b.try_into().ok()).ok_or(KeyError::Private)?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }
}

impl fmt::Debug for CheckpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CheckpointKey(..)")
    }
}

/// The key that checks signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes: [u8; 32] = unhex(text.trim()).and_then(|b| b.try_into().ok()).ok_or(KeyError::Public)?;
        VerifyingKey::from_bytes(&bytes).map(Self).map_err(|_| KeyError::Public)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(self.0.as_bytes()))
    }
}

/// Reads a line, and checks its signature.
///
/// # Errors
/// When it has not the form, or none of the keys made its signature.
pub fn read_line(line: &str, keys: &[PublicKey]) -> Result<Signed, LineError> {
    let (signed, rest) = line.rsplit_once(SEAM).ok_or(LineError::Form)?;
    let signature: [u8; 64] = rest
        .strip_suffix("\"}")
        .and_then(unhex)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(LineError::Form)?;
    let message = message(signed);
    let by =
        |key: &PublicKey| key.0.verify_strict(message.as_bytes(), &Signature::from_bytes(&signature)).is_ok();
    if !keys.iter().any(by) {
        return Err(LineError::Signature);
    }
    let checkpoint: Checkpoint = serde_json::from_str(&format!("{signed}}}")).map_err(|_| LineError::Form)?;
    if checkpoint.form != FORM {
        return Err(LineError::Form);
    }
    Ok(Signed { checkpoint, hash: line_hash(line), signature })
}

fn message(signed: &str) -> String {
    format!("{DOMAIN}{signed}")
}

fn line_hash(line: &str) -> LineHash {
    *blake3::hash(line.as_bytes()).as_bytes()
}

fn as_text<S: Serializer>(id: &EntryId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

fn as_hex<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex(bytes))
}

fn as_rfc3339<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*at))
}

fn read_text<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    read(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} cannot be read")))
}

fn id_from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EntryId, D::Error> {
    read_text(deserializer, EntryId::parse)
}

fn hash_from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
    read_text(deserializer, |text| unhex(text)?.try_into().ok())
}

fn moment_from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    read_text(deserializer, |text| {
        let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        u64::try_from(at.unix_timestamp_nanos()).ok().map(Timestamp)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(digit: char) -> CheckpointKey {
        digit.to_string().repeat(64).parse().unwrap()
    }

    fn checkpoint() -> Checkpoint {
        let head = ShardHead {
            shard: 7,
            head: EntryId { epoch: 3, sequence: 12 },
            hash: [9; 32],
            archived: EntryId { epoch: 3, sequence: 11 },
        };
        Checkpoint {
            form: FORM,
            series: "00000000000000aa".into(),
            number: 1,
            at: Timestamp::from_millis(1_771_060_995_482),
            previous: [0; 32],
            shards: vec![head],
        }
    }

    #[test]
    fn a_line_reads_back_as_it_was_signed() {
        let line = key('7').sign(&checkpoint());
        let signed = read_line(&line, &[key('8').public(), key('7').public()]).unwrap();
        assert_eq!(signed.checkpoint, checkpoint());
        assert_eq!(signed.line(), line);
        let start = "{\"checkpoint\":1,\"series\":\"00000000000000aa\",\"number\":1,\"at\":\"2026-02-14T09:23:15.482Z\"";
        assert!(line.starts_with(start), "{line}");
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let line = key('7').sign(&checkpoint());
        let keys = [key('7').public()];
        for at in 0..line.len() {
            let mut bytes = line.clone().into_bytes();
            // To another digit where it is one, so that the form stays.
            bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(changed == line || read_line(&changed, &keys).is_err(), "byte {at}: {changed}");
        }
    }

    #[test]
    fn another_key_s_signature_counts_for_nothing() {
        let line = key('7').sign(&checkpoint());
        assert_eq!(read_line(&line, &[key('8').public()]), Err(LineError::Signature));
        assert_eq!(read_line(&line, &[]), Err(LineError::Signature));
    }

    #[test]
    fn keys_are_hexadecimal_and_say_so() {
        assert_eq!("70".parse::<CheckpointKey>().unwrap_err(), KeyError::Private);
        assert_eq!("xyz".parse::<PublicKey>().unwrap_err(), KeyError::Public);
        let public = key('7').public();
        assert_eq!(public.to_string().parse::<PublicKey>(), Ok(public));
        assert_eq!(format!("{:?}", key('7')), "CheckpointKey(..)");
    }
}
