//! Writing frames. Owns the choice of the smallest encoding for each column.
//!
//! The rule it keeps: what it writes, [`Frame::parse`] accepts.

use std::ops::Range;

use super::{
    Column, ENTRY_BYTES, FIXED, FIXED_SAME, Frame, HEAD_BYTES, MAGIC, ROWS_MAX, TEXT, TEXT_DICT, TEXT_SAME,
    TEXT_UNIFORM, VERSION,
};

/// Writes a frame, column by column.
#[derive(Debug)]
pub struct FrameWriter {
    kind: u8,
    rows: usize,
    directory: Vec<u8>,
    data: Vec<u8>,
}

impl FrameWriter {
    /// A frame of `rows` rows.
    #[must_use]
    pub fn new(kind: u8, rows: usize) -> Self {
        debug_assert!(rows <= ROWS_MAX, "the caller bounds its batches");
        Self { kind, rows, directory: Vec::with_capacity(128), data: Vec::with_capacity(256) }
    }

    fn entry(&mut self, id: u8, encoding: u8, width: usize, bytes: usize) {
        self.directory.extend_from_slice(&[id, encoding]);
        self.directory.extend_from_slice(&(width as u16).to_le_bytes());
        self.directory.extend_from_slice(&(bytes as u32).to_le_bytes());
        self.data.reserve(bytes);
    }

    /// One fixed-width value for all rows.
    pub fn same<const N: usize>(&mut self, id: u8, value: [u8; N]) {
        self.entry(id, FIXED_SAME, N, N);
        self.data.extend_from_slice(&value);
    }

    /// One text for all rows.
    pub fn text_same(&mut self, id: u8, value: &[u8]) {
        self.entry(id, TEXT_SAME, 0, value.len());
        self.data.extend_from_slice(value);
    }

    /// A fixed-width value for each row; written once where all are equal.
    pub fn fixed<const N: usize>(&mut self, id: u8, values: impl ExactSizeIterator<Item = [u8; N]> + Clone) {
        debug_assert_eq!(values.len(), self.rows, "one value for each row");
        let mut probe = values.clone();
        if let Some(first) = probe.next()
            && probe.all(|v| v == first)
        {
            return self.same(id, first);
        }
        self.entry(id, FIXED, N, N * self.rows);
        for value in values {
            self.data.extend_from_slice(&value);
        }
    }

    /// A text for each row, in the smallest of the encodings: same, uniform, dictionary, plain.
    pub fn text<'v>(&mut self, id: u8, values: impl ExactSizeIterator<Item = &'v [u8]> + Clone) {
        debug_assert_eq!(values.len(), self.rows, "one value for each row");
        let Some(first) = values.clone().next() else {
            return self.text_same(id, &[]);
        };
        if values.clone().all(|v| v == first) {
            return self.text_same(id, first);
        }
        if let Some((words, index)) = dictionary(values.clone()) {
            let bytes: usize = words.iter().map(|w| w.len()).sum();
            self.entry(id, TEXT_DICT, words.len(), self.rows + words.len() * 4 + bytes);
            self.data.extend_from_slice(&index);
            self.ends_and_bytes(words.into_iter());
            return;
        }
        if values.clone().all(|v| v.len() == first.len()) {
            self.entry(id, TEXT_UNIFORM, 0, 4 + first.len() * self.rows);
            self.data.extend_from_slice(&(first.len() as u32).to_le_bytes());
            for value in values {
                self.data.extend_from_slice(value);
            }
            return;
        }
        let bytes: usize = values.clone().map(<[u8]>::len).sum();
        self.entry(id, TEXT, 0, self.rows * 4 + bytes);
        self.ends_and_bytes(values);
    }

    fn ends_and_bytes<'v>(&mut self, values: impl Iterator<Item = &'v [u8]> + Clone) {
        let mut end = 0_u32;
        for value in values.clone() {
            end += value.len() as u32;
            self.data.extend_from_slice(&end.to_le_bytes());
        }
        for value in values {
            self.data.extend_from_slice(value);
        }
    }

    /// Copies rows of a column of another frame, in its own encoding; nothing where it is absent there.
    pub fn copy(&mut self, from: &Frame<'_>, id: u8, rows: Range<usize>) {
        debug_assert_eq!(rows.len(), self.rows, "as many rows as this frame has");
        match from.column(id) {
            Column::Absent => {}
            Column::FixedSame(data) => {
                self.entry(id, FIXED_SAME, data.len(), data.len());
                self.data.extend_from_slice(data);
            }
            Column::Fixed { width, data } => {
                self.entry(id, FIXED, width, width * rows.len());
                self.data.extend_from_slice(&data[rows.start * width..rows.end * width]);
            }
            Column::TextSame(data) => self.text_same(id, data),
            Column::TextUniform { width, data } => {
                self.entry(id, TEXT_UNIFORM, 0, 4 + width * rows.len());
                self.data.extend_from_slice(&(width as u32).to_le_bytes());
                self.data.extend_from_slice(&data[rows.start * width..rows.end * width]);
            }
            Column::TextDict { ends, words, index } => {
                self.entry(id, TEXT_DICT, ends.len() / 4, rows.len() + ends.len() + words.len());
                self.data.extend_from_slice(&index[rows]);
                self.data.extend_from_slice(ends);
                self.data.extend_from_slice(words);
            }
            Column::Text { .. } => {
                let slice = rows.map(|row| from.text(id, row).unwrap_or_default());
                let bytes: usize = slice.clone().map(<[u8]>::len).sum();
                self.entry(id, TEXT, 0, self.rows * 4 + bytes);
                self.ends_and_bytes(slice);
            }
        }
    }

    /// The finished bytes.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES + self.directory.len() + self.data.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, self.kind]);
        out.extend_from_slice(&(self.rows as u32).to_le_bytes());
        out.extend_from_slice(&[(self.directory.len() / ENTRY_BYTES) as u8, 0, 0, 0]);
        out.extend_from_slice(&self.directory);
        out.extend_from_slice(&self.data);
        out
    }
}

/// More distinct words than this are not worth a dictionary, and looking for them would be slow.
const DICTIONARY_WORDS_MAX: usize = 32;

/// The distinct words and each row's index, where there are few of them and they repeat.
fn dictionary<'v>(values: impl ExactSizeIterator<Item = &'v [u8]>) -> Option<(Vec<&'v [u8]>, Vec<u8>)> {
    let rows = values.len();
    let mut words: Vec<&[u8]> = Vec::new();
    let mut index = Vec::with_capacity(rows);
    for value in values {
        let at = match words.iter().position(|w| *w == value) {
            Some(at) => at,
            None if words.len() == DICTIONARY_WORDS_MAX || words.len() * 2 >= rows => return None,
            None => {
                words.push(value);
                words.len() - 1
            }
        };
        index.push(at as u8);
    }
    Some((words, index))
}
