//! Patterns of module names: Python's regular expressions, as far as recipes of llm-compressor use them.
//!
//! What is not listed in [`Pattern::new`] is refused by name: a pattern that means something else there must not match here.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;
use core::iter::Peekable;
use core::str::Chars;

/// A pattern, matched from the start of a name as `re.match` does; what comes after it in the name is free.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pattern(Alternatives);

/// Sequences, one of which must match.
type Alternatives = Vec<Vec<Node>>;

#[derive(Clone, Debug, PartialEq)]
enum Node {
    /// One character.
    One(Set),
    Group(Alternatives),
    /// What follows does, or does not, match; nothing is taken.
    Ahead {
        matches: bool,
        alternatives: Alternatives,
    },
    Repeat {
        node: Box<Node>,
        least: u32,
        most: u32,
    },
    Start,
    End,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Set {
    is_negated: bool,
    /// First and last, both included.
    ranges: Vec<(char, char)>,
}

/// Longer ones are no pattern of names.
const MOST_CHARACTERS: usize = 1000;
const MOST_NESTED: usize = 20;
/// Python's own limit is higher; no name is as long.
const MOST_REPEATS: u32 = 1000;

impl Pattern {
    /// Reads a pattern: characters, `.`, `[…]`, `\d \w \s` and their opposites, escaped punctuation, `^ $`, `(…)`, `(?:…)`, `(?=…)`,
    /// `(?!…)`, `|`, and `* + ? {m,n}`, lazy or not.
    ///
    /// # Errors
    /// What is not one of these, in words.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        if text.chars().count() > MOST_CHARACTERS {
            return Err(format!("is longer than {MOST_CHARACTERS} characters"));
        }
        let mut parser = Parser { rest: text.chars().peekable() };
        let alternatives = parser.alternatives(0)?;
        match parser.rest.next() {
            None => Ok(Self(alternatives)),
            Some(_) => Err("closes a bracket that is not open".to_string()),
        }
    }

    /// Whether a name begins with what the pattern says; `None` where that takes more than what is left of `steps`: patterns can be
    /// written that take for ever.
    pub(super) fn matches(&self, name: &str, steps: &Cell<u32>) -> Option<bool> {
        let name: Vec<char> = name.chars().collect();
        let found = Matcher { name: &name, steps }.any(&self.0, 0, &mut |_| true);
        (steps.get() > 0).then_some(found)
    }
}

struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
}

impl Parser<'_> {
    fn takes(&mut self, wanted: char) -> bool {
        self.rest.next_if_eq(&wanted).is_some()
    }

    fn alternatives(&mut self, depth: usize) -> Result<Alternatives, String> {
        if depth > MOST_NESTED {
            return Err(format!("nests brackets deeper than {MOST_NESTED}"));
        }
        let mut found = vec![Vec::new()];
        while let Some(next) = self.rest.next_if(|next| *next != ')') {
            if next == '|' {
                found.push(Vec::new());
                continue;
            }
            let node = self.node(next, depth)?;
            let node = self.repeated(node)?;
            found.last_mut().expect("there is one from the start").push(node);
        }
        Ok(found)
    }

    fn node(&mut self, first: char, depth: usize) -> Result<Node, String> {
        let one = |character| Node::One(Set { is_negated: false, ranges: vec![(character, character)] });
        Ok(match first {
            '.' => Node::One(Set { is_negated: true, ranges: vec![('\n', '\n')] }),
            '^' => Node::Start,
            '$' => Node::End,
            '[' => Node::One(self.set()?),
            '\\' => Node::One(self.escaped()?),
            '(' => {
                let node = match self.takes('?') {
                    false => Node::Group(self.alternatives(depth + 1)?),
                    true => match self.rest.next() {
                        Some(':') => Node::Group(self.alternatives(depth + 1)?),
                        Some(sign @ ('=' | '!')) => {
                            Node::Ahead { matches: sign == '=', alternatives: self.alternatives(depth + 1)? }
                        }
                        other => return Err(format!("has `(?{}`", other.map(String::from).unwrap_or_default())),
                    },
                };
                if !self.takes(')') {
                    return Err("leaves a bracket open".to_string());
                }
                node
            }
            '*' | '+' | '?' | '{' => return Err(format!("has `{first}` where there is nothing to repeat")),
            other => one(other),
        })
    }

    fn repeated(&mut self, node: Node) -> Result<Node, String> {
        let (least, most) = match self.rest.peek() {
            Some('*') => (0, u32::MAX),
            Some('+') => (1, u32::MAX),
            Some('?') => (0, 1),
            Some('{') => return self.counted(node),
            _ => return Ok(node),
        };
        self.rest.next();
        self.end_of_repeat(Node::Repeat { node: Box::new(node), least, most })
    }

    /// `{m}`, `{m,}`, `{,n}` or `{m,n}`.
    fn counted(&mut self, node: Node) -> Result<Node, String> {
        self.rest.next();
        let mut text = String::new();
        while let Some(next) = self.rest.next_if(|next| *next != '}') {
            text.push(next);
        }
        let wrong = || format!("has `{{{text}}}`, which is no number of repeats up to {MOST_REPEATS}");
        let number = |text: &str, otherwise: u32| match text {
            "" => Some(otherwise),
            _ => text.parse().ok().filter(|number| *number <= MOST_REPEATS && !text.starts_with('+')),
        };
        let (least, most) = match text.split_once(',') {
            Some((least, most)) => (number(least, 0), number(most, u32::MAX)),
            None => (number(&text, u32::MAX), number(&text, u32::MAX)),
        };
        match (least, most, self.takes('}')) {
            (Some(least), Some(most), true) if least <= most && least <= MOST_REPEATS => {
                self.end_of_repeat(Node::Repeat { node: Box::new(node), least, most })
            }
            _ => Err(wrong()),
        }
    }

    fn end_of_repeat(&mut self, repeat: Node) -> Result<Node, String> {
        // Lazy or not, the same names match.
        self.takes('?');
        match self.rest.peek() {
            Some(twice @ ('*' | '+' | '?' | '{')) => Err(format!("repeats a repeat with `{twice}`")),
            _ => Ok(repeat),
        }
    }

    fn escaped(&mut self) -> Result<Set, String> {
        let next = self.rest.next();
        let of = |ranges: &[(char, char)], is_negated| Set { is_negated, ranges: ranges.to_vec() };
        const WORD: [(char, char); 4] = [('a', 'z'), ('A', 'Z'), ('0', '9'), ('_', '_')];
        const SPACE: [(char, char); 2] = [('\t', '\r'), (' ', ' ')];
        Ok(match next {
            Some(class @ ('d' | 'D')) => of(&[('0', '9')], class == 'D'),
            Some(class @ ('w' | 'W')) => of(&WORD, class == 'W'),
            Some(class @ ('s' | 'S')) => of(&SPACE, class == 'S'),
            Some(mark) if mark.is_ascii_punctuation() => of(&[(mark, mark)], false),
            other => return Err(format!("has `\\{}`", other.map(String::from).unwrap_or_default())),
        })
    }

    /// What follows a `[`.
    fn set(&mut self) -> Result<Set, String> {
        let mut set = Set { is_negated: self.takes('^'), ranges: Vec::new() };
        loop {
            let first = match self.rest.next() {
                None => return Err("leaves `[` open".to_string()),
                Some(']') if !set.ranges.is_empty() => return Ok(set),
                Some('\\') => {
                    let Set { is_negated, ranges } = self.escaped()?;
                    if is_negated {
                        return Err("has an opposite inside of `[…]`".to_string());
                    }
                    if let [(first, last)] = *ranges
                        && first == last
                    {
                        first
                    } else {
                        set.ranges.extend(ranges);
                        continue;
                    }
                }
                Some(other) => other,
            };
            let mut ahead = self.rest.clone();
            let last = match (ahead.next(), ahead.next()) {
                (Some('-'), Some(last)) if last != ']' => {
                    self.rest = ahead;
                    last
                }
                _ => first,
            };
            if last == '\\' || last < first {
                return Err(format!("has the range `{first}-{last}`"));
            }
            set.ranges.push((first, last));
        }
    }
}

struct Matcher<'a> {
    name: &'a [char],
    /// What is left.
    steps: &'a Cell<u32>,
}

/// What has to match from a place on.
type Rest<'r> = &'r mut dyn FnMut(usize) -> bool;

impl Matcher<'_> {
    fn any(&self, alternatives: &Alternatives, at: usize, rest: Rest<'_>) -> bool {
        alternatives.iter().any(|nodes| self.all(nodes, at, rest))
    }

    fn all(&self, nodes: &[Node], at: usize, rest: Rest<'_>) -> bool {
        self.steps.set(self.steps.get().saturating_sub(1));
        if self.steps.get() == 0 {
            return false;
        }
        let Some((first, nodes)) = nodes.split_first() else { return rest(at) };
        self.one(first, at, &mut |at| self.all(nodes, at, rest))
    }

    fn one(&self, node: &Node, at: usize, rest: Rest<'_>) -> bool {
        match node {
            Node::One(set) => self.name.get(at).is_some_and(|found| set.holds(*found)) && rest(at + 1),
            Node::Group(alternatives) => self.any(alternatives, at, rest),
            Node::Ahead { matches, alternatives } => self.any(alternatives, at, &mut |_| true) == *matches && rest(at),
            Node::Start => at == 0 && rest(at),
            Node::End => at == self.name.len() && rest(at),
            Node::Repeat { node, least, most } => self.repeat(node, (*least, *most), at, rest),
        }
    }

    fn repeat(&self, node: &Node, (least, most): (u32, u32), at: usize, rest: Rest<'_>) -> bool {
        self.steps.set(self.steps.get().saturating_sub(1));
        if self.steps.get() == 0 {
            return false;
        }
        let again = most > 0
            && self.one(node, at, &mut |next| match next > at {
                true => self.repeat(node, (least.saturating_sub(1), most.saturating_sub(1)), next, rest),
                // Where nothing was taken, all further rounds can take nothing either.
                false => least > 0 && rest(at),
            });
        again || least == 0 && rest(at)
    }
}

impl Set {
    fn holds(&self, character: char) -> bool {
        self.ranges.iter().any(|(first, last)| (*first..=*last).contains(&character)) != self.is_negated
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const QUERY: &str = "model.layers.11.self_attn.q_proj";

    #[test]
    fn patterns_match_the_names_that_they_match_in_python() {
        for (pattern, name, matches) in [
            (".*_proj$", QUERY, true),
            ("_proj", QUERY, false),
            ("model", QUERY, true),
            (".*self_attn$", QUERY, false),
            (r".*\.self_attn\.[qkv]_proj", QUERY, true),
            (r".*\.self_attn\.[^q]_proj", QUERY, false),
            (r"model\.layers\.\d+\.", QUERY, true),
            (r"model\.layers\.\d\.", QUERY, false),
            (r"model\.layers\.(0|1|11)\.self_attn", QUERY, true),
            (r"model\.layers\.(?:0|1)\.", QUERY, false),
            (r"model\.layers\.[0-9]{2}\..*", QUERY, true),
            (r"model\.layers\.1{3,}", QUERY, false),
            (r"model\.layers\.1{,2}\.", QUERY, true),
            (r"^(?!.*lm_head).*", QUERY, true),
            (r"^(?!.*q_proj).*", QUERY, false),
            (r"(?=.*q_proj)model", QUERY, true),
            (r".*(gate|up|down)_proj", QUERY, false),
            (r".*lm_head", "lm_head", true),
            ("lm_head$", "lm_head", true),
            ("lm_hea$", "lm_head", false),
            ("(a*)*b", "aaac", false),
            ("(a*)+", "b", true),
            ("(|a){2}b", "b", true),
            ("(|a){2}b", "aab", true),
            ("[]a]", "]", true),
            ("[a-]", "-", true),
            (r"[\w.]+$", QUERY, true),
            (r"\S+?x?$", "ax", true),
            ("", QUERY, true),
            ("a|", QUERY, true),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap().matches(name, &Cell::new(10_000)), Some(matches), "{pattern} on {name}");
        }
    }

    #[test]
    fn what_is_not_interpreted_is_refused_by_name() {
        for (pattern, said) in [
            ("(?P<layer>a)", "has `(?P`"),
            ("(?i)a", "has `(?i`"),
            (r"\bq", r"has `\b`"),
            (r"a\", r"has `\`"),
            ("(a", "leaves a bracket open"),
            ("a)", "closes a bracket that is not open"),
            ("[a", "leaves `[` open"),
            ("[z-a]", "has the range `z-a`"),
            ("*", "has `*` where there is nothing to repeat"),
            ("a**", "repeats a repeat with `*`"),
            ("a*+", "repeats a repeat with `+`"),
            ("a{2,1}", "has `{2,1}`, which is no number of repeats up to 1000"),
            ("a{9999}", "has `{9999}`, which is no number of repeats up to 1000"),
            ("a{", "has `{}`, which is no number of repeats up to 1000"),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap_err(), said, "{pattern}");
        }
        assert_eq!(Pattern::new(&"a".repeat(1001)).unwrap_err(), "is longer than 1000 characters");
        assert_eq!(Pattern::new(&"(".repeat(40)).unwrap_err(), "nests brackets deeper than 20");
    }

    #[test]
    fn a_pattern_that_takes_for_ever_is_given_up() {
        let pattern = Pattern::new("(a*)*(a*)*(a*)*b").unwrap();
        assert_eq!(pattern.matches(&"a".repeat(60), &Cell::new(100_000)), None);
    }

    proptest! {
        #[test]
        fn any_text_is_a_pattern_or_refused_and_is_matched_or_given_up(
            pattern in r"[a.*+?(){}\[\]|^$\\dw0-2,!=:-]{0,24}",
            name in "[a0.]{0,40}",
        ) {
            if let Ok(pattern) = Pattern::new(&pattern) {
                let _ = pattern.matches(&name, &Cell::new(10_000));
            }
        }
    }
}
