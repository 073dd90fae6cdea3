//! Rows in PostgreSQL's binary COPY format. Owns the bytes of the format; knows no table.
//!
//! Rows are encoded straight into one buffer, since the driver's own writer boxes every value and sends small pieces.
//! The rule it keeps: a row has as many values as it announced.

use bytes::Bytes;
use governance::Timestamp;

/// Microseconds from the Unix epoch to PostgreSQL's, the beginning of the year 2000.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;
/// Dimensions, whether anything is null, the type of the elements; then how many, and the index of the first.
const ARRAY_HEAD_BYTES: usize = 20;
/// The type `integer` in PostgreSQL's catalogue.
const INT4_OID: i32 = 23;
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

    /// Begins a row.
    pub(crate) fn row(&mut self, columns: u16) {
        self.bytes.extend_from_slice(&columns.to_be_bytes());
    }

    pub(crate) fn value<const N: usize>(&mut self, value: [u8; N]) {
        self.bytes.extend_from_slice(&(N as i32).to_be_bytes());
        self.bytes.extend_from_slice(&value);
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

    /// An array of integers, none of them null.
    pub(crate) fn i32_array(&mut self, numbers: impl Iterator<Item = i32>) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4 + ARRAY_HEAD_BYTES]);
        let mut count = 0_i32;
        for number in numbers {
            self.value(number.to_be_bytes());
            count += 1;
        }
        let len = (self.bytes.len() - start - 4) as i32;
        // One dimension, nothing null, of integers; so many, counted from one.
        for (i, field) in [len, 1, 0, INT4_OID, count, 1].into_iter().enumerate() {
            let at = start + i * 4;
            self.bytes[at..at + 4].copy_from_slice(&field.to_be_bytes());
        }
    }

    /// A text of so many bits, of which these are set.
    pub(crate) fn bit_text(&mut self, len: usize, set: impl Iterator<Item = usize>) {
        let mut bits = vec![0_u8; len.div_ceil(8)];
        set.for_each(|i| bits[i / 8] |= 0x80 >> (i % 8));
        self.bytes.extend_from_slice(&(bits.len() as i32 + 4).to_be_bytes());
        self.bytes.extend_from_slice(&(len as i32).to_be_bytes());
        self.bytes.extend_from_slice(&bits);
    }

    /// The rows so far, one by one.
    pub(crate) fn each_row(&self, mut each: impl FnMut(&[u8])) {
        CopyReader::default().feed(&self.bytes, &mut each);
    }

    /// The whole COPY, with its end mark.
    pub(crate) fn finish(mut self) -> Bytes {
        self.bytes.extend_from_slice(&(-1_i16).to_be_bytes());
        self.bytes.into()
    }
}

/// The signature, the flags and the length of the header's extension, which is none.
const HEADER_BYTES: usize = SIGNATURE.len() + 8;

/// Takes a COPY apart into rows, in whatever pieces it comes.
#[derive(Debug, Default)]
pub(crate) struct CopyReader {
    begun: bool,
    /// The beginning of a row whose end has not come.
    rest: Vec<u8>,
}

impl CopyReader {
    /// Hands out each row that is complete, as it stands in the COPY.
    pub(crate) fn feed(&mut self, piece: &[u8], each: &mut impl FnMut(&[u8])) {
        if self.rest.is_empty() {
            let taken = self.take(piece, each);
            self.rest.extend_from_slice(&piece[taken..]);
        } else {
            let mut whole = std::mem::take(&mut self.rest);
            whole.extend_from_slice(piece);
            let taken = self.take(&whole, each);
            whole.drain(..taken);
            self.rest = whole;
        }
    }

    fn take(&mut self, bytes: &[u8], each: &mut impl FnMut(&[u8])) -> usize {
        let mut at = 0;
        if !self.begun {
            if bytes.len() < HEADER_BYTES {
                return 0;
            }
            self.begun = true;
            at = HEADER_BYTES;
        }
        while let Some(end) = row_end(&bytes[at..]) {
            each(&bytes[at..at + end]);
            at += end;
        }
        at
    }
}

/// Where the row at the beginning ends; none where that has not come, or what comes is the end mark.
fn row_end(bytes: &[u8]) -> Option<usize> {
    let columns = i16::from_be_bytes(bytes.get(..2)?.try_into().ok()?);
    let mut at = 2;
    if columns < 0 {
        return None;
    }
    for _ in 0..columns {
        let len = i32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?);
        at += 4 + usize::try_from(len).unwrap_or(0);
    }
    (at <= bytes.len()).then_some(at)
}

/// The values of a row; none for null.
pub(crate) fn values(row: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    let mut rest = row.get(2..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (len, tail) = rest.split_at_checked(4)?;
        let len = i32::from_be_bytes(len.try_into().ok()?);
        let (value, tail) = match usize::try_from(len) {
            Ok(len) => {
                let (value, tail) = tail.split_at_checked(len)?;
                (Some(value), tail)
            }
            Err(_) => (None, tail),
        };
        rest = tail;
        Some(value)
    })
}

/// A number of two, four or eight bytes.
pub(crate) fn number(value: &[u8]) -> i64 {
    match *value {
        [a, b] => i16::from_be_bytes([a, b]).into(),
        [a, b, c, d] => i32::from_be_bytes([a, b, c, d]).into(),
        [a, b, c, d, e, f, g, h] => i64::from_be_bytes([a, b, c, d, e, f, g, h]),
        _ => 0,
    }
}

/// The places of the bits that are set, from 0; none where it is no text of bits.
pub(crate) fn bits(value: &[u8]) -> Option<Vec<i32>> {
    let (len, bytes) = value.split_at_checked(4)?;
    let len = i32::from_be_bytes(len.try_into().ok()?);
    if usize::try_from(len).ok()?.div_ceil(8) != bytes.len() {
        return None;
    }
    Some((0..len).filter(|i| bytes[*i as usize / 8] & (0x80 >> (i % 8)) != 0).collect())
}

/// The integers of an array; none where it is not one of integers without a null.
pub(crate) fn i32_array(value: &[u8]) -> Option<Vec<i32>> {
    let field = |bytes: &[u8]| Some(i32::from_be_bytes(bytes.try_into().ok()?));
    let (head, elements) = value.split_at_checked(ARRAY_HEAD_BYTES)?;
    let (dimensions, count) = (field(&head[..4])?, field(&head[12..16])?);
    if dimensions != 1
        || field(&head[8..12])? != INT4_OID
        || usize::try_from(count).ok()? * 8 != elements.len()
    {
        return None;
    }
    // Each behind its length.
    elements.chunks_exact(8).map(|e| if field(&e[..4])? == 4 { field(&e[4..]) } else { None }).collect()
}

/// A moment, from PostgreSQL's own count.
pub(crate) fn moment(value: &[u8]) -> Timestamp {
    Timestamp(number(value).saturating_add(POSTGRES_EPOCH_US).max(0).cast_unsigned().saturating_mul(1_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_out_as_they_went_in_whatever_the_pieces() {
        let mut buffer = CopyBuffer::new();
        let mut expected = Vec::new();
        for n in 0..3_i16 {
            let start = buffer.bytes.len();
            buffer.row(3);
            buffer.i16(n);
            buffer.null();
            buffer.text("abc");
            expected.push(buffer.bytes[start..].to_vec());
        }
        let copy = buffer.finish();
        for piece in 1..copy.len() {
            let (mut reader, mut found) = (CopyReader::default(), Vec::new());
            copy.chunks(piece)
                .for_each(|bytes| reader.feed(bytes, &mut |row: &[u8]| found.push(row.to_vec())));
            assert_eq!(found, expected, "in pieces of {piece}");
        }
        let row: Vec<_> = values(&expected[2]).collect();
        assert_eq!(row, [Some(&[0, 2][..]), None, Some(&b"abc"[..])]);
        assert_eq!(number(row[0].unwrap()), 2);
    }

    #[test]
    fn an_array_reads_back_and_nothing_else_is_one() {
        let mut buffer = CopyBuffer::new();
        buffer.i32_array([7, -1, 0].into_iter());
        let array = &buffer.bytes[HEADER_BYTES + 4..];
        assert_eq!(i32_array(array), Some(vec![7, -1, 0]));
        assert_eq!(i32_array(&array[..array.len() - 1]), None);
        assert_eq!(i32_array(b"16 bytes of hash"), None);
    }

    #[test]
    fn bits_read_back() {
        let mut buffer = CopyBuffer::new();
        buffer.bit_text(10, [0, 7, 9].into_iter());
        let text = &buffer.bytes[HEADER_BYTES + 4..];
        assert_eq!(text, [0, 0, 0, 10, 0b1000_0001, 0b0100_0000]);
        assert_eq!(bits(text), Some(vec![0, 7, 9]));
        assert_eq!(bits(&text[..5]), None);
    }
}
