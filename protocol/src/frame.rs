//! The columnar frame: the one byte layout under envelopes, completions, replies and audit blocks.
//!
//! Owns how columns are laid out and read without copying; knows no column's meaning. The rule it keeps: after
//! [`Frame::parse`] has accepted bytes, no accessor can fail or read outside them.
//!
//! ```text
//! 'A' 'M' version kind | rows u32 | columns u8, 3 zero | directory: (id u8, encoding u8, width u16, bytes u32) * | data *
//! ```
//! All integers are little-endian. Unknown column ids are kept out of reach and skipped, so that a newer writer can add
//! columns; an unknown version is refused.

mod write;

pub use write::FrameWriter;

/// The first two bytes of every frame; no JSON text begins with them.
pub const MAGIC: [u8; 2] = *b"AM";
/// The version this code writes and reads.
pub const VERSION: u8 = 1;
/// The most rows of a frame: slots are 16 bits wide.
pub const ROWS_MAX: usize = 65_535;
/// Column ids lie below this; it bounds the parsed directory.
pub const COLUMNS_MAX: usize = 32;

const HEAD_BYTES: usize = 12;
const ENTRY_BYTES: usize = 8;

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It is shorter or longer than what its head promises.
    #[error("the lengths lie: {need} bytes promised, {have} present")]
    Truncated {
        /// Bytes the head promises.
        need: usize,
        /// Bytes there are.
        have: usize,
    },
    /// It does not begin with the magic bytes.
    #[error("the bytes are neither a frame nor JSON")]
    NotAFrame,
    /// A version this code does not read.
    #[error("frame version {0} is unknown; this build reads version {VERSION}")]
    UnknownVersion(u8),
    /// A frame of another kind was expected.
    #[error("frame kind {found} where {expected} was expected")]
    WrongKind {
        /// The kind of the bytes.
        found: u8,
        /// The kind that was asked for.
        expected: u8,
    },
    /// More rows than slots can number, or than this kind of frame may have.
    #[error("{0} rows are more than there may be")]
    TooManyRows(usize),
    /// A column whose length, width or encoding contradicts the number of rows or its meaning, or that is there twice.
    #[error("column {0} contradicts the frame")]
    BadColumn(u8),
    /// A column that must be there is missing.
    #[error("column {0} is missing")]
    MissingColumn(u8),
    /// A value outside its closed list or range.
    #[error("column {column} row {row} has a value that means nothing")]
    BadValue {
        /// Which column.
        column: u8,
        /// Which row.
        row: usize,
    },
}

const FIXED_SAME: u8 = 0;
const FIXED: u8 = 1;
const TEXT_SAME: u8 = 2;
const TEXT: u8 = 3;
const TEXT_UNIFORM: u8 = 4;
const TEXT_DICT: u8 = 5;

/// One column of a parsed frame.
#[derive(Debug, Clone, Copy)]
enum Column<'a> {
    Absent,
    FixedSame(&'a [u8]),
    Fixed {
        width: usize,
        data: &'a [u8],
    },
    TextSame(&'a [u8]),
    /// Cumulative ends, then the bytes.
    Text {
        ends: &'a [u8],
        data: &'a [u8],
    },
    TextUniform {
        width: usize,
        data: &'a [u8],
    },
    /// Cumulative ends of the words, the words, an index byte for each row.
    TextDict {
        ends: &'a [u8],
        words: &'a [u8],
        index: &'a [u8],
    },
}

/// A frame that was checked; borrows the bytes.
#[derive(Debug, Clone)]
pub struct Frame<'a> {
    kind: u8,
    rows: usize,
    bytes: &'a [u8],
    columns: [Column<'a>; COLUMNS_MAX],
}

fn u16_at(b: &[u8], i: usize) -> u16 {
    u16::from_le_bytes([b[i], b[i + 1]])
}

fn u32_at(b: &[u8], i: usize) -> u32 {
    u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]])
}

/// Whether cumulative 32-bit ends ascend and finish exactly at `total`.
fn ends_fit(ends: &[u8], total: usize) -> bool {
    let mut last = 0;
    for chunk in ends.chunks_exact(4) {
        let end = u32_at(chunk, 0) as usize;
        if end < last {
            return false;
        }
        last = end;
    }
    last == total
}

fn between<'a>(ends: &[u8], data: &'a [u8], i: usize) -> &'a [u8] {
    let start = if i == 0 { 0 } else { u32_at(ends, (i - 1) * 4) as usize };
    &data[start..u32_at(ends, i * 4) as usize]
}

fn column<'a>(
    id: u8,
    encoding: u8,
    width: usize,
    data: &'a [u8],
    rows: usize,
) -> Result<Column<'a>, FrameError> {
    let bad = FrameError::BadColumn(id);
    match encoding {
        FIXED_SAME if data.len() == width => Ok(Column::FixedSame(data)),
        FIXED if width > 0 && data.len() == width * rows => Ok(Column::Fixed { width, data }),
        TEXT_SAME => Ok(Column::TextSame(data)),
        TEXT => {
            let (ends, text) = data.split_at_checked(rows * 4).ok_or(FrameError::BadColumn(id))?;
            if ends_fit(ends, text.len()) { Ok(Column::Text { ends, data: text }) } else { Err(bad) }
        }
        TEXT_UNIFORM => {
            let (head, text) = data.split_at_checked(4).ok_or(FrameError::BadColumn(id))?;
            let width = u32_at(head, 0) as usize;
            if width.checked_mul(rows) == Some(text.len()) {
                Ok(Column::TextUniform { width, data: text })
            } else {
                Err(bad)
            }
        }
        TEXT_DICT => {
            // `width` is the number of words, at least one and at most 256, since an index is a byte.
            if width == 0 || width > 256 {
                return Err(bad);
            }
            let (index, rest) = data.split_at_checked(rows).ok_or(FrameError::BadColumn(id))?;
            let (ends, words) = rest.split_at_checked(width * 4).ok_or(FrameError::BadColumn(id))?;
            let known = index.iter().all(|i| usize::from(*i) < width);
            if known && ends_fit(ends, words.len()) {
                Ok(Column::TextDict { ends, words, index })
            } else {
                Err(bad)
            }
        }
        _ => Err(bad),
    }
}

impl<'a> Frame<'a> {
    /// Checks bytes and gives access to their columns.
    ///
    /// # Errors
    /// When they are not exactly one frame of this version and of `kind`, whatever they claim about their lengths.
    pub fn parse(bytes: &'a [u8], kind: u8) -> Result<Self, FrameError> {
        if bytes.len() < 4 || bytes[..2] != MAGIC {
            return Err(FrameError::NotAFrame);
        }
        if bytes[2] != VERSION {
            return Err(FrameError::UnknownVersion(bytes[2]));
        }
        if bytes[3] != kind {
            return Err(FrameError::WrongKind { found: bytes[3], expected: kind });
        }
        if bytes.len() < HEAD_BYTES {
            return Err(FrameError::Truncated { need: HEAD_BYTES, have: bytes.len() });
        }
        let rows = u32_at(bytes, 4) as usize;
        if rows > ROWS_MAX {
            return Err(FrameError::TooManyRows(rows));
        }
        if bytes[9..HEAD_BYTES] != [0; 3] {
            return Err(FrameError::NotAFrame);
        }
        let count = usize::from(bytes[8]);
        let mut at = HEAD_BYTES + count * ENTRY_BYTES;
        if bytes.len() < at {
            return Err(FrameError::Truncated { need: at, have: bytes.len() });
        }
        let mut columns = [Column::Absent; COLUMNS_MAX];
        for entry in bytes[HEAD_BYTES..at].chunks_exact(ENTRY_BYTES) {
            let (id, encoding, width) = (entry[0], entry[1], usize::from(u16_at(entry, 2)));
            let end = at + u32_at(entry, 4) as usize;
            let data = bytes.get(at..end).ok_or(FrameError::Truncated { need: end, have: bytes.len() })?;
            at = end;
            if let Some(known) = columns.get_mut(usize::from(id)) {
                // Two columns of one id would let two readers see two things in the same bytes.
                if !matches!(known, Column::Absent) {
                    return Err(FrameError::BadColumn(id));
                }
                *known = column(id, encoding, width, data, rows)?;
            }
        }
        if at != bytes.len() {
            return Err(FrameError::Truncated { need: at, have: bytes.len() });
        }
        Ok(Self { kind, rows, bytes, columns })
    }

    /// How many rows there are.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// The kind of the frame.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        self.kind
    }

    /// The bytes it was parsed from.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    fn column(&self, id: u8) -> Column<'a> {
        self.columns.get(usize::from(id)).copied().unwrap_or(Column::Absent)
    }

    /// Whether the column is there.
    #[must_use]
    pub fn has(&self, id: u8) -> bool {
        !matches!(self.column(id), Column::Absent)
    }

    /// Refuses a column that is there but holds no values of `N` bytes.
    ///
    /// # Errors
    /// Then, so that a reader with a default for what is absent cannot take a damaged column for an absent one.
    pub fn expect_fixed<const N: usize>(&self, id: u8) -> Result<(), FrameError> {
        let fits = match self.column(id) {
            Column::Absent => true,
            Column::FixedSame(data) => data.len() == N,
            Column::Fixed { width, .. } => width == N,
            Column::TextSame(_)
            | Column::Text { .. }
            | Column::TextUniform { .. }
            | Column::TextDict { .. } => false,
        };
        if fits { Ok(()) } else { Err(FrameError::BadColumn(id)) }
    }

    /// Refuses a column that is there but is no UTF-8 of at most `bytes_max` bytes in each row.
    ///
    /// # Errors
    /// Names the first row that is too long or not UTF-8, or the column where it holds no texts.
    pub fn expect_text(&self, id: u8, bytes_max: usize) -> Result<(), FrameError> {
        self.expect_bytes(id, bytes_max)?;
        let good = |value: &[u8]| std::str::from_utf8(value).is_ok();
        if self.stored(id).all(good) { Ok(()) } else { Err(self.bad_row(id, good)) }
    }

    /// Refuses a column that is there but holds no bytes, at most `bytes_max` in each row.
    ///
    /// # Errors
    /// Names the first row that is too long, or the column where it holds no texts.
    pub fn expect_bytes(&self, id: u8, bytes_max: usize) -> Result<(), FrameError> {
        if matches!(self.column(id), Column::FixedSame(_) | Column::Fixed { .. }) {
            return Err(FrameError::BadColumn(id));
        }
        let good = |value: &[u8]| value.len() <= bytes_max;
        if let Some((_, width)) = self.uniform(id) {
            // One look for all, as a bulk of small payloads comes by here several times on its way.
            let fits = width <= bytes_max || self.rows == 0;
            return if fits { Ok(()) } else { Err(self.bad_row(id, good)) };
        }
        if self.stored(id).all(good) { Ok(()) } else { Err(self.bad_row(id, good)) }
    }

    /// Each stored value of a text column once: what is the same for all rows, or a word of a dictionary, is not
    /// looked at for each row again.
    fn stored(&self, id: u8) -> impl Iterator<Item = &'a [u8]> + '_ {
        let column = self.column(id);
        let count = match column {
            Column::Absent | Column::FixedSame(_) | Column::Fixed { .. } => 0,
            Column::TextSame(_) => 1,
            Column::Text { .. } | Column::TextUniform { .. } => self.rows,
            Column::TextDict { ends, .. } => ends.len() / 4,
        };
        (0..count).map(move |i| match column {
            Column::TextSame(data) => data,
            Column::TextDict { ends, words, .. } => between(ends, words, i),
            Column::Absent
            | Column::FixedSame(_)
            | Column::Fixed { .. }
            | Column::Text { .. }
            | Column::TextUniform { .. } => self.text(id, i).unwrap_or_default(),
        })
    }

    /// The first row that is not good; a word of a dictionary that no row uses is charged to row 0.
    fn bad_row(&self, id: u8, good: impl Fn(&[u8]) -> bool) -> FrameError {
        let row = (0..self.rows).find(|row| !self.text(id, *row).is_none_or(&good)).unwrap_or(0);
        FrameError::BadValue { column: id, row }
    }

    /// Whether every row has the same value, so that one look serves for all; an absent column is the same everywhere.
    #[must_use]
    pub fn is_same(&self, id: u8) -> bool {
        match self.column(id) {
            Column::Absent | Column::FixedSame(_) | Column::TextSame(_) => true,
            Column::TextDict { ends, .. } => ends.len() == 4,
            Column::Fixed { .. } | Column::Text { .. } | Column::TextUniform { .. } => self.rows <= 1,
        }
    }

    /// The bytes of a text column whose rows are of one length and lie end to end, with that length; none where it is laid
    /// out otherwise.
    #[must_use]
    pub fn uniform(&self, id: u8) -> Option<(&'a [u8], usize)> {
        match self.column(id) {
            Column::TextUniform { width, data } => Some((data, width)),
            Column::Absent
            | Column::FixedSame(_)
            | Column::Fixed { .. }
            | Column::TextSame(_)
            | Column::Text { .. }
            | Column::TextDict { .. } => None,
        }
    }

    /// The fixed-width value of a row; none where the column is absent or of another width.
    #[must_use]
    pub fn fixed<const N: usize>(&self, id: u8, row: usize) -> Option<[u8; N]> {
        match self.column(id) {
            Column::FixedSame(data) => data.try_into().ok(),
            Column::Fixed { width, data } if width == N && row < self.rows => {
                data[row * N..(row + 1) * N].try_into().ok()
            }
            Column::Absent
            | Column::Fixed { .. }
            | Column::TextSame(_)
            | Column::Text { .. }
            | Column::TextUniform { .. }
            | Column::TextDict { .. } => None,
        }
    }

    /// A byte column.
    #[must_use]
    pub fn u8(&self, id: u8, row: usize) -> Option<u8> {
        self.fixed::<1>(id, row).map(|b| b[0])
    }

    /// A 16-bit column.
    #[must_use]
    pub fn u16(&self, id: u8, row: usize) -> Option<u16> {
        self.fixed(id, row).map(u16::from_le_bytes)
    }

    /// A 32-bit column.
    #[must_use]
    pub fn u32(&self, id: u8, row: usize) -> Option<u32> {
        self.fixed(id, row).map(u32::from_le_bytes)
    }

    /// A 64-bit column.
    #[must_use]
    pub fn u64(&self, id: u8, row: usize) -> Option<u64> {
        self.fixed(id, row).map(u64::from_le_bytes)
    }

    /// The bytes of a row of a text column; none where it is absent or of fixed width.
    #[must_use]
    pub fn text(&self, id: u8, row: usize) -> Option<&'a [u8]> {
        if row >= self.rows {
            return None;
        }
        match self.column(id) {
            Column::TextSame(data) => Some(data),
            Column::Text { ends, data } => Some(between(ends, data, row)),
            Column::TextUniform { width, data } => Some(&data[row * width..(row + 1) * width]),
            Column::TextDict { ends, words, index } => Some(between(ends, words, usize::from(index[row]))),
            Column::Absent | Column::FixedSame(_) | Column::Fixed { .. } => None,
        }
    }

    /// The text of a row as UTF-8.
    ///
    /// # Errors
    /// When the column is there but the row is not UTF-8.
    pub fn str(&self, id: u8, row: usize) -> Result<Option<&'a str>, FrameError> {
        self.text(id, row)
            .map(|b| std::str::from_utf8(b).map_err(|_| FrameError::BadValue { column: id, row }))
            .transpose()
    }

    /// The bytes of a text column if each row's were written out: more than there are where rows share them.
    #[must_use]
    pub fn spread(&self, id: u8) -> usize {
        match self.column(id) {
            Column::Absent | Column::FixedSame(_) | Column::Fixed { .. } => 0,
            Column::TextSame(data) => data.len() * self.rows,
            Column::Text { data, .. } | Column::TextUniform { data, .. } => data.len(),
            Column::TextDict { ends, words, index } => {
                index.iter().map(|word| between(ends, words, usize::from(*word)).len()).sum()
            }
        }
    }

    /// The bytes of a text column row by row, empty where there are none; for hashing without copying.
    pub fn texts(&self, id: u8) -> impl Iterator<Item = &'a [u8]> + '_ {
        (0..self.rows).map(move |row| self.text(id, row).unwrap_or_default())
    }
}
