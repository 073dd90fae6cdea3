//! A reader of TOML tables that collects every problem instead of stopping at the first.
//!
//! The rule it keeps: a key that nobody asked for is a problem too, with the nearest key that somebody did ask for.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Problem;
use crate::text::nearest;

/// One file with the problems found so far.
pub(super) struct Reader<'t> {
    text: &'t str,
    pub(super) problems: Vec<Problem>,
}

/// One table of the file, with the keys that were asked for.
pub(super) struct Table<'r, 'd, 't> {
    reader: &'r mut Reader<'t>,
    table: &'d DeTable<'t>,
    path: String,
    line: u32,
    known: Vec<&'static str>,
    /// The keys are the user's own names.
    own_names: bool,
}

impl<'t> Reader<'t> {
    pub(super) const fn new(text: &'t str) -> Self {
        Self { text, problems: Vec::new() }
    }

    pub(super) fn problem_at(&mut self, span: &Range<usize>, field: &str, message: String) {
        let line = self.line_of(span.start);
        self.problems.push(Problem { line, field: field.to_owned(), message });
    }

    fn line_of(&self, offset: usize) -> u32 {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        before.iter().filter(|byte| **byte == b'\n').count() as u32 + 1
    }

    /// Reads the whole file by `read`, then reports what nobody asked for.
    pub(super) fn root<'d>(&mut self, table: &'d DeTable<'t>, read: impl FnOnce(&mut Table<'_, 'd, 't>)) {
        let mut root =
            Table { reader: self, table, path: String::new(), line: 1, known: Vec::new(), own_names: false };
        read(&mut root);
        root.finish();
    }
}

impl<'d, 't> Table<'_, 'd, 't> {
    /// A table in this one; skipped where it is not there.
    pub(super) fn table(&mut self, key: &'static str, read: impl FnOnce(&mut Table<'_, 'd, 't>)) {
        let Some(value) = self.find(key) else { return };
        let DeValue::Table(table) = value.get_ref() else {
            return self.wrong(key, value, "a table");
        };
        let (path, line) = (self.path_of(key), self.reader.line_of(value.span().start));
        let mut inner = Table { reader: self.reader, table, path, line, known: Vec::new(), own_names: false };
        read(&mut inner);
        inner.finish();
    }

    /// Each table in this one, by names that are the user's own.
    pub(super) fn each(&mut self, mut read: impl FnMut(&str, &mut Table<'_, 'd, 't>)) {
        for (key, value) in self.table {
            let name: &str = key.get_ref();
            let DeValue::Table(table) = value.get_ref() else {
                self.wrong(name, value, "a table");
                continue;
            };
            let (path, line) = (self.path_of(name), self.reader.line_of(key.span().start));
            let mut inner =
                Table { reader: self.reader, table, path, line, known: Vec::new(), own_names: false };
            read(name, &mut inner);
            inner.finish();
        }
        self.own_names = true;
    }

    /// A whole number in a range.
    pub(super) fn number<N: TryFrom<u64>>(
        &mut self,
        key: &'static str,
        accepted: RangeInclusive<u64>,
        into: &mut N,
    ) {
        let Some(value) = self.find(key) else { return };
        let number = match value.get_ref() {
            DeValue::Integer(digits) => u64::from_str_radix(digits.as_str(), digits.radix()).ok(),
            DeValue::String(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_)
            | DeValue::Table(_) => None,
        };
        match number.filter(|n| accepted.contains(n)).and_then(|n| N::try_from(n).ok()) {
            Some(number) => *into = number,
            None => {
                let range = format!("a whole number from {} to {}", accepted.start(), accepted.end());
                self.wrong(key, value, &range);
            }
        }
    }

    /// A number of percent, kept in basis points.
    pub(super) fn percent(&mut self, key: &'static str, accepted: RangeInclusive<u64>, into: &mut u32) {
        let mut percent = u64::from(*into) / 100;
        self.number(key, accepted, &mut percent);
        *into = percent as u32 * 100;
    }

    /// A number of seconds.
    pub(super) fn seconds(&mut self, key: &'static str, accepted: RangeInclusive<u64>, into: &mut Duration) {
        let mut seconds = into.as_secs();
        self.number(key, accepted, &mut seconds);
        if seconds != into.as_secs() {
            *into = Duration::from_secs(seconds);
        }
    }

    /// A number of milliseconds.
    pub(super) fn millis(&mut self, key: &'static str, accepted: RangeInclusive<u64>, into: &mut Duration) {
        let mut millis = into.as_millis() as u64;
        self.number(key, accepted, &mut millis);
        *into = Duration::from_millis(millis);
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, key: &'static str, into: &mut bool) {
        let Some(value) = self.find(key) else { return };
        match value.get_ref().as_bool() {
            Some(is) => *into = is,
            None => self.wrong(key, value, "true or false"),
        }
    }

    /// A text.
    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        let value = self.find(key)?;
        let text = value.get_ref().as_str().map(str::to_owned);
        if text.is_none() {
            self.wrong(key, value, "a text in quotes");
        }
        text
    }

    /// A list of texts, each read by `parse`, whose error says what is wrong.
    pub(super) fn texts<V>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<V, String>,
        into: &mut Vec<V>,
    ) {
        let Some(value) = self.find(key) else { return };
        let DeValue::Array(items) = value.get_ref() else {
            return self.wrong(key, value, "a list of texts");
        };
        into.clear();
        for item in items.iter() {
            match item.get_ref().as_str().map(&parse) {
                Some(Ok(parsed)) => into.push(parsed),
                Some(Err(message)) => self.problem(key, message),
                None => self.wrong(key, item, "a text in quotes"),
            }
        }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// A problem with a key of this table, or with the table where the key is not there.
    pub(super) fn problem(&mut self, key: &str, message: String) {
        let field = self.path_of(key);
        match self.table.get_key_value(key) {
            Some((key, _)) => self.reader.problem_at(&key.span(), &field, message),
            None => self.reader.problems.push(Problem { line: self.line, field, message }),
        }
    }

    fn find(&mut self, key: &'static str) -> Option<&'d Spanned<DeValue<'t>>> {
        self.known.push(key);
        self.table.get(key)
    }

    fn wrong(&mut self, key: &str, value: &Spanned<DeValue<'_>>, accepted: &str) {
        let found = self.reader.text.get(value.span()).unwrap_or("this").lines().next().unwrap_or_default();
        let found: String = found.chars().take(FOUND_CHARS_MAX).collect();
        let field = self.path_of(key);
        self.reader.problem_at(&value.span(), &field, format!("{found} is not accepted; give {accepted}"));
    }

    fn path_of(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            ("", key) => key.to_owned(),
            (path, "") => path.to_owned(),
            (path, key) => format!("{path}.{key}"),
        }
    }

    fn finish(self) {
        for key in self.table.keys() {
            let name: &str = key.get_ref();
            if self.own_names || self.known.contains(&name) {
                continue;
            }
            let field = self.path_of(name);
            let message = match nearest(name, self.known.iter().copied()) {
                Some(near) => format!("unknown key; did you mean {near:?}?"),
                None => format!("unknown key; known are {}", self.known.join(", ")),
            };
            self.reader.problem_at(&key.span(), &field, message);
        }
    }
}

/// So much of a wrong value is repeated in the message.
const FOUND_CHARS_MAX: usize = 40;
