//! Texts that end a generation, found in pieces of text as they come.

use alloc::string::String;
use alloc::vec::Vec;

/// Looks for texts that end a generation, however pieces cut them.
///
/// What may be the beginning of one is held back, so that nothing of it has been shown when it is whole.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    strings: Vec<String>,
    held: String,
}

/// What may be shown of the text so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// This, and more can follow.
    Text(String),
    /// This, and then the text ends: a stop string stood behind it.
    Last(String),
}

impl StopStrings {
    /// Ends a text before the first of `strings` that is whole in it; empty ones end nothing.
    pub fn new(strings: impl IntoIterator<Item = String>) -> Self {
        Self { strings: strings.into_iter().filter(|string| !string.is_empty()).collect(), held: String::new() }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, piece: &str) -> Piece {
        self.held.push_str(piece);
        // The first that is whole, as if the text came letter by letter; where two end there, the longer one.
        let found = self.strings.iter().filter_map(|string| self.held.find(string.as_str()).map(|at| (at + string.len(), at)));
        if let Some((_, at)) = found.min() {
            self.held.truncate(at);
            return Piece::Last(core::mem::take(&mut self.held));
        }
        let certain = self.held.len() - self.beginning();
        let rest = self.held.split_off(certain);
        Piece::Text(core::mem::replace(&mut self.held, rest))
    }

    /// What is held back, when nothing more comes.
    pub fn finish(&mut self) -> String {
        core::mem::take(&mut self.held)
    }

    /// Bytes at the end of the text that a stop string may begin with; the most that any does.
    fn beginning(&self) -> usize {
        let longest = |string: &String| {
            let mut lengths = string.char_indices().map(|(at, _)| at).rev();
            lengths.find(|length| self.held.as_bytes().ends_with(&string.as_bytes()[..*length])).unwrap_or(0)
        };
        self.strings.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use alloc::borrow::ToOwned;
    use alloc::string::ToString;
    use alloc::vec;

    use super::*;

    fn stops(strings: &[&str]) -> StopStrings {
        StopStrings::new(strings.iter().map(ToString::to_string))
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.to_owned())
    }

    fn last(text: &str) -> Piece {
        Piece::Last(text.to_owned())
    }

    /// All that is shown of pieces, and whether a stop string ended them.
    fn shown(strings: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut stops = stops(strings);
        let mut shown = String::new();
        for piece in pieces {
            match stops.push(piece) {
                Piece::Text(text) => shown += &text,
                Piece::Last(text) => return (shown + &text, true),
            }
        }
        (shown + &stops.finish(), false)
    }

    #[test]
    fn a_stop_string_across_pieces_is_not_shown() {
        let mut stops = stops(&["\n\nUser:"]);
        assert_eq!(stops.push("Hello.\n"), text("Hello."));
        assert_eq!(stops.push("\nUs"), text(""));
        assert_eq!(stops.push("er: hi"), last(""));
    }

    #[test]
    fn what_turns_out_to_be_no_beginning_is_shown() {
        let mut stops = stops(&["aab"]);
        assert_eq!(stops.push("xa"), text("x"));
        assert_eq!(stops.push("a"), text(""));
        assert_eq!(stops.push("a"), text("a"), "`aa` may still begin it");
        assert_eq!(stops.push("c"), text("aac"));
        assert_eq!(stops.push("aa"), text(""));
        assert_eq!(stops.finish(), "aa");
    }

    #[test]
    fn letters_of_several_bytes_are_held_whole() {
        let mut stops = stops(&["€é"]);
        // `€` is E2 82 AC, `₫` is E2 82 AB.
        assert_eq!(stops.push("₫€"), text("₫"));
        assert_eq!(stops.push("è"), text("€è"));
        assert_eq!(stops.push("€é"), last(""));
    }

    #[test]
    fn without_stop_strings_everything_is_shown_at_once() {
        assert_eq!(StopStrings::default().push("abc"), text("abc"));
        assert_eq!(stops(&[""]).push("abc"), text("abc"));
    }

    #[test]
    fn the_end_does_not_depend_on_where_pieces_are_cut() {
        let all = ["xab|y", "x", "xabcab"];
        let strings = ["abc", "b|", "xabx", "ab|"];
        for whole in all {
            let letters: Vec<String> = whole.chars().map(String::from).collect();
            let expected = shown(&strings, &letters.iter().map(String::as_str).collect::<Vec<_>>());
            for cut in 0..=whole.len() {
                for second in cut..=whole.len() {
                    let pieces = vec![&whole[..cut], &whole[cut..second], &whole[second..]];
                    assert_eq!(shown(&strings, &pieces), expected, "{pieces:?}");
                }
            }
        }
        // `b|` and `ab|` end together: the longer one is the stop string.
        assert_eq!(shown(&strings, &["xab|y"]), ("x".to_owned(), true));
        assert_eq!(shown(&strings, &["xabcab"]), ("x".to_owned(), true));
        assert_eq!(shown(&["b", "xabc"], &["xabc"]), ("xa".to_owned(), true), "`b` is whole first");
    }
}
