//! Nearest names. Owns the distance between two names, for messages that say what was probably meant.

/// The candidate that a name was probably meant to be: at most a third of its letters are wrong, swapped or missing.
pub(crate) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let bound = (name.len() / 3).max(1);
    let near = candidates.map(|c| (distance(name, c), c)).filter(|(d, _)| *d <= bound);
    near.min().map(|(_, c)| c)
}

/// The number of letters to insert, remove, replace or swap with a neighbour (restricted Damerau-Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) =
        (a.chars().take(NAME_CHARS_MAX).collect(), b.chars().take(NAME_CHARS_MAX).collect());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let replaced = above[j] + usize::from(x != y);
            let mut best = replaced.min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

/// Names are at most 64 characters long; what is longer is no near miss.
const NAME_CHARS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_its_name() {
        let known = ["window_s", "samples_min", "error_rate_percent"];
        assert_eq!(nearest("windows_s", known.into_iter()), Some("window_s"));
        assert_eq!(nearest("wnidow_s", known.into_iter()), Some("window_s"));
        assert_eq!(nearest("colour", known.into_iter()), None);
    }

    #[test]
    fn distances_are_counted_in_single_changes() {
        assert_eq!(distance("abc", "abc"), 0);
        assert_eq!(distance("abc", "acb"), 1);
        assert_eq!(distance("abc", "ab"), 1);
        assert_eq!(distance("", "abc"), 3);
    }
}
