//! The only place that prints. Owns the forms of tables and JSON; knows nothing of what they say.
//!
//! The rule it keeps: data goes to stdout, words about it go to stderr, and nothing is coloured or wrapped, so that what
//! people see can be cut and searched as well.

use std::io::{self, Write};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// Where a command prints.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether a script reads.
    pub(crate) const fn is_json(&self) -> bool {
        self.json
    }

    /// The value as JSON for scripts, or its text for people.
    ///
    /// # Errors
    /// When stdout is closed.
    pub(crate) fn show(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> io::Result<()> {
        if self.json { self.json(value) } else { self.text(&text()) }
    }

    /// One JSON value in one line.
    ///
    /// # Errors
    /// When stdout is closed.
    pub(crate) fn json(&self, value: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        write_out(&line)
    }

    /// Text, with an end of line; nothing where there is none.
    ///
    /// # Errors
    /// When stdout is closed.
    pub(crate) fn text(&self, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        write_out(format!("{}\n", text.trim_end_matches('\n')).as_bytes())
    }

    /// Words that are no data: on stderr.
    pub(crate) fn note(&self, text: &str) {
        // Nobody is left to be told when stderr is closed.
        drop(writeln!(io::stderr(), "{text}"));
    }
}

fn write_out(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// Passes on bytes that another program said. Whoever reads them may be gone, and that program works on.
pub(crate) fn forward(stream: Stream, bytes: &[u8]) {
    let written = match stream {
        Stream::Out => write_out(bytes),
        Stream::Err => io::stderr().lock().write_all(bytes),
    };
    if let Err(error) = written {
        tracing::trace!(%error, "nobody reads it");
    }
}

/// Many lines to stdout without a flush for each.
pub(crate) struct Lines(io::BufWriter<io::Stdout>);

impl Lines {
    pub(crate) fn new() -> Self {
        Self(io::BufWriter::new(io::stdout()))
    }

    /// Adds one JSON value.
    ///
    /// # Errors
    /// When stdout is closed.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, value)?;
        self.0.write_all(b"\n")
    }

    /// Adds one line of text.
    ///
    /// # Errors
    /// When stdout is closed.
    pub(crate) fn text(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.0, "{line}")
    }

    /// Gives everything to the reader.
    ///
    /// # Errors
    /// When stdout is closed.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A column: its title, and whether it holds numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Column {
    /// Aligned to the left.
    Text(&'static str),
    /// Aligned to the right.
    Number(&'static str),
}

/// A table for people: a line of titles, then one line for each row.
pub(crate) fn table(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(columns.iter().map(|c| match c {
        Column::Text(title) | Column::Number(title) => *title,
    }));
    table.add_rows(rows);
    for (column, kind) in table.column_iter_mut().zip(columns) {
        column.set_padding((0, 2));
        if matches!(kind, Column::Number(_)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_has_no_blanks_at_the_ends_of_lines() {
        let rows =
            [vec!["crm_client".to_owned(), "7".to_owned()], vec!["lead_bot".to_owned(), "120".to_owned()]];
        let text = table(&[Column::Text("AGENT"), Column::Number("DEPTH")], rows);
        assert_eq!(text, "AGENT       DEPTH\ncrm_client      7\nlead_bot      120");
    }
}
