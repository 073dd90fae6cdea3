//! Rows in PostgreSQL's binary COPY format. Owns the bytes of the format; knows no table.
//!
//! Rows are encoded straight into one buffer, since the driver's own writer boxes every value and sends small pieces.
//! The rule it keeps: a row has as many values as it announced.

use bytes::Bytes;
use governance::Timestamp;

/// Microseconds from the Unix epoch to PostgreSQL's, the beginning of the year 2000.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// The rows of one COPY.
#[derive(Debug)]
pub(crate) struct CopyBuffer {
    bytes: Vec<u8>,
}

impl CopyBuffer {
    pub(crate) fn new() -> Self {
        let mut bytes = Vec::with_capacity(16 * 1024);
        bytes.extend_from_slice(SIGNATURE);
        // No flags, no header extension.
        bytes.extend_from_slice(&[0; 8]);
        Self { bytes }
    }

    /// Begins a row; returns where it begins.
    pub(crate) fn row(&mut self, columns: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&columns.to_be_bytes());
        start
    }

    /// Writes a value; returns where its bytes begin, for [`CopyBuffer::patch`].
    pub(crate) fn value<const N: usize>(&mut self, value: [u8; N]) -> usize {
        self.bytes.extend_from_slice(&(N as i32).to_be_bytes());
        self.bytes.extend_from_slice(&value);
        self.bytes.len() - N
    }

    pub(crate) fn null(&mut self) {
        self.bytes.extend_from_slice(&(-1_i32).to_be_bytes());
    }

    pub(crate) fn i16(&mut self, value: i16) {
        self.value(value.to_be_bytes());
    }

    pub(crate) fn i32(&mut self, value: i32) {
        self.value(value.to_be_bytes());
    }

    pub(crate) fn i64(&mut self, value: i64) {
        self.value(value.to_be_bytes());
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.value([u8::from(value)]);
    }

    /// A 64-bit number as the signed one with the same bits, since PostgreSQL has no other.
    pub(crate) fn bits(&mut self, value: u64) {
        self.i64(value.cast_signed());
    }

    pub(crate) fn timestamp(&mut self, at: Timestamp) {
        self.i64(at.as_micros().cast_signed() - POSTGRES_EPOCH_US);
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(&(value.len() as i32).to_be_bytes());
        self.bytes.extend_from_slice(value);
    }

    /// A text; null where it is empty.
    pub(crate) fn text(&mut self, value: &str) {
        if value.is_empty() { self.null() } else { self.text_or_empty(value) }
    }

    /// A text, empty where it is empty. PostgreSQL's texts cannot hold the zero byte, which is written as the replacement
    /// character: the block keeps the original.
    pub(crate) fn text_or_empty(&mut self, value: &str) {
        if value.contains('\0') {
            self.bytes(value.replace('\0', "\u{fffd}").as_bytes());
        } else {
            self.bytes(value.as_bytes());
        }
    }

    /// Writes the row that begins at `start` once more; returns where the copy begins.
    pub(crate) fn repeat(&mut self, start: usize, end: usize) -> usize {
        let copy = self.bytes.len();
        self.bytes.extend_from_within(start..end);
        copy
    }

    /// Overwrites the bytes of a value.
    pub(crate) fn patch(&mut self, at: usize, value: &[u8]) {
        self.bytes[at..at + value.len()].copy_from_slice(value);
    }

    pub(crate) const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The whole COPY, with its end mark.
    pub(crate) fn finish(mut self) -> Bytes {
        self.bytes.extend_from_slice(&(-1_i16).to_be_bytes());
        self.bytes.into()
    }
}
