//! Owns how a message is cut into words, and how phrases are looked for in them. It knows no domain: which
//! phrases mean what is for [`crate::intent`] and [`crate::slots`]. Rule kept: the same text always gives the
//! same words.

/// What a longer message is cut to before it is read; a person's message is never this long.
const WORDS_MAX: usize = 512;

/// A message as lower-case words. Numbers keep `:` `,` and `.` between digits and a leading `$`; a question mark
/// is a word of its own; `3br` is two words, `8th` is one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Words(Vec<String>);

impl Words {
    /// Cuts `text` into words.
    pub fn of(text: &str) -> Self {
        let mut cutter = Cutter::default();
        let chars: Vec<char> = text.chars().flat_map(char::to_lowercase).collect();
        for (at, &char) in chars.iter().enumerate() {
            if cutter.words.len() >= WORDS_MAX {
                break;
            }
            let next = chars.get(at + 1).copied().unwrap_or(' ');
            cutter.take(if char == '’' { '\'' } else { char }, next);
        }
        cutter.end_word();
        Self(cutter.words)
    }

    /// The words in order.
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }

    /// The word at `at`, or an empty text beyond the end.
    pub fn at(&self, at: usize) -> &str {
        self.0.get(at).map_or("", String::as_str)
    }

    /// How many words there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the message has no words.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where `phrase` (words separated by single spaces) starts for the first time.
    pub fn find(&self, phrase: &str) -> Option<usize> {
        (0..self.0.len()).find(|&at| self.starts_at(at, phrase))
    }

    /// Whether `phrase` begins at word `at`.
    pub fn starts_at(&self, at: usize, phrase: &str) -> bool {
        phrase.split(' ').enumerate().all(|(offset, word)| self.at(at + offset) == word)
    }

    /// Whether `phrase` occurs as whole words.
    pub fn has(&self, phrase: &str) -> bool {
        self.find(phrase).is_some()
    }

    /// Whether any of `phrases` (alternatives between bars) occurs as whole words.
    pub fn has_any(&self, phrases: &str) -> bool {
        phrases.split('|').any(|phrase| self.has(phrase.trim()))
    }
}

#[derive(Default)]
struct Cutter {
    words: Vec<String>,
    current: String,
}

impl Cutter {
    fn take(&mut self, char: char, next: char) {
        let last = self.current.chars().last().unwrap_or(' ');
        match char {
            '?' => {
                self.end_word();
                self.words.push("?".to_owned());
            }
            '$' => {
                self.end_word();
                self.current.push(char);
            }
            ':' | ',' | '.' if last.is_ascii_digit() && next.is_ascii_digit() => self.current.push(char),
            '\'' | '"' if last.is_alphabetic() && next.is_alphabetic() => self.current.push('\''),
            '#' => self.end_word(),
            _ if char.is_alphanumeric() => {
                if last.is_ascii_digit() && char.is_alphabetic() && !is_ordinal_ending(char, next) {
                    self.end_word();
                }
                self.current.push(char);
            }
            _ => self.end_word(),
        }
    }

    fn end_word(&mut self) {
        if !self.current.is_empty() {
            self.words.push(std::mem::take(&mut self.current));
        }
    }
}

fn is_ordinal_ending(char: char, next: char) -> bool {
    matches!((char, next), ('s', 't') | ('n', 'd') | ('r', 'd') | ('t', 'h'))
}

/// The number that `word` names: digits (with thousands commas, with `$`), or a word up to twelve.
pub fn number(word: &str) -> Option<u32> {
    const NAMES: [&str; 13] = [
        "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
        "twelve",
    ];
    if let Some(at) = NAMES.iter().position(|name| *name == word) {
        return u32::try_from(at).ok();
    }
    match word {
        "single" => Some(1),
        "couple" => Some(2),
        _ => word.trim_start_matches('$').replace(',', "").parse().ok(),
    }
}

/// The day of a month that an ordinal like `8th` or `1st` names.
pub fn ordinal(word: &str) -> Option<u32> {
    let digits = ["st", "nd", "rd", "th"].iter().find_map(|ending| word.strip_suffix(ending))?;
    digits.parse().ok().filter(|day| (1..=31).contains(day))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        Words::of(text).0
    }

    #[test]
    fn a_message_is_cut_into_lower_case_words() {
        assert_eq!(words("What's the RENT, please?"), ["what's", "the", "rent", "please", "?"]);
        assert_eq!(
            words("3br/2ba at $3,900.50 by 9:30am"),
            ["3", "br", "2", "ba", "at", "$3,900.50", "by", "9:30", "am"]
        );
        assert_eq!(words("the 8th, o\"clock"), ["the", "8th", "o'clock"]);
        assert!(words("  ... !!").is_empty());
    }

    #[test]
    fn a_phrase_is_found_only_as_whole_words() {
        let words = Words::of("I would like a phone number in Santa Rosa");
        assert!(words.has("phone number") && words.has_any("fax | santa rosa"));
        assert!(!words.has("phone num") && !words.has("rosa santa"));
        assert_eq!(words.find("santa rosa"), Some(7));
    }

    #[test]
    fn numbers_and_ordinals_are_read() {
        assert_eq!(
            [number("three"), number("12"), number("$3,900"), number("x")],
            [Some(3), Some(12), Some(3_900), None]
        );
        assert_eq!(
            [ordinal("1st"), ordinal("22nd"), ordinal("40th"), ordinal("th")],
            [Some(1), Some(22), None, None]
        );
    }

    #[test]
    fn a_very_long_message_is_cut() {
        assert_eq!(Words::of(&"a ".repeat(5_000)).len(), WORDS_MAX);
    }
}
