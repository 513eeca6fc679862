//! Everything that the command writes to standard output and standard error; no other file prints.
//!
//! A write never panics and never ends a command's work, so neither stream changes what is computed:
//!
//! - standard error can't be written: what was to be said there is lost, and nothing else
//! - the reader of standard output went away (`| head -1`): the rest is left out, and the exit code is the command's own
//! - standard output can't be written (a full disk): the work is finished, then [`lost`] tells why, and the exit code is 2
//!
//! Text for people goes through [`line()`] and [`note`], which escape control characters: names of tensors, files and metadata are
//! other people's, and a terminal obeys them.

#![allow(clippy::disallowed_methods)]

use std::borrow::Cow;
use std::fmt::{Arguments, Write as _};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::OnceLock;

use clap::ColorChoice;
use serde::Serialize;

/// A line on standard output.
macro_rules! outln {
    () => { $crate::out::line(format_args!("")) };
    ($($text:tt)+) => { $crate::out::line(format_args!($($text)+)) };
}

/// A line on standard error.
macro_rules! errln {
    () => { $crate::out::note(format_args!("")) };
    ($($text:tt)+) => { $crate::out::note(format_args!($($text)+)) };
}

pub(crate) use {errln, outln};

/// The first failure of standard output; nothing is written there after it.
static FAILED: OnceLock<io::Error> = OnceLock::new();

/// Writes one line for people to standard output.
pub(crate) fn line(text: Arguments<'_>) {
    bytes(format!("{}\n", escaped(&text.to_string())).as_bytes());
}

/// Writes one line whose last word, `passed` or `FAILED`, a terminal shows in colour; it can be read without.
pub(crate) fn verdict_line(text: &str, word: &str, colour: Colour) {
    let text = escaped(text);
    match text.strip_suffix(word).filter(|_| has_colours(io::stdout().is_terminal())) {
        Some(before) => bytes(format!("{before}{}\n", colour.on(word)).as_bytes()),
        None => bytes(format!("{text}\n").as_bytes()),
    }
}

/// Writes a value as JSON over several lines to standard output.
///
/// # Errors
/// A value that has no JSON form.
pub(crate) fn json(value: &impl Serialize) -> serde_json::Result<()> {
    let json = serde_json::to_string_pretty(value)?;
    bytes(format!("{}\n", escaped_json(&json)).as_bytes());
    Ok(())
}

/// Writes a piece of text as it comes, and at once: a reader waits for each. A terminal gets it without the characters that it obeys.
pub(crate) fn piece(text: &str) {
    match io::stdout().is_terminal() {
        true => bytes(text.split_inclusive(['\n', '\t']).map(escaped_before_break).collect::<String>().as_bytes()),
        false => bytes(text.as_bytes()),
    }
}

/// Writes bytes to standard output, just as they are.
pub(crate) fn bytes(bytes: &[u8]) {
    if FAILED.get().is_none() {
        let mut out = io::stdout().lock();
        if let Err(error) = out.write_all(bytes).and_then(|()| out.flush()) {
            // Another thread's failure came first: one is enough.
            let _ = FAILED.set(error);
        }
    }
}

/// True once nothing more can be written to standard output: what is made only to be shown need not be made.
pub(crate) fn is_closed() -> bool {
    FAILED.get().is_some()
}

/// Why results are missing from standard output; a reader that has seen enough is no reason.
pub(crate) fn lost() -> Option<&'static io::Error> {
    FAILED.get().filter(|error| error.kind() != ErrorKind::BrokenPipe)
}

/// Writes one line for people to standard error.
pub(crate) fn note(text: Arguments<'_>) {
    let _ = Stderr.write_all(format!("{}\n", escaped(&text.to_string())).as_bytes());
}

/// Writes one line that begins with `error:`, in colour on a terminal.
pub(crate) fn error(text: Arguments<'_>) {
    let word = if stderr_has_colours() { Colour::Red.on("error:") } else { "error:".to_owned() };
    let _ = Stderr.write_all(format!("{word} {}\n", escaped(&text.to_string())).as_bytes());
}

/// Standard error for libraries: the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The whole at once, so that lines of several threads stay lines.
        let _ = io::stderr().lock().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what clap has to say, help and version among it, to the stream that it belongs to.
pub(crate) fn usage(message: &clap::Error) {
    let rendered = message.render();
    let plain = rendered.to_string();
    let to_stderr = message.use_stderr();
    let is_terminal = if to_stderr { io::stderr().is_terminal() } else { io::stdout().is_terminal() };
    // Arguments are quoted in it, names of files among them: with a character that a terminal obeys, no colours.
    let is_clean = plain.lines().all(|line| matches!(escaped(line), Cow::Borrowed(_)));
    let text = match has_colours(is_terminal) && is_clean {
        true => rendered.ansi().to_string(),
        false => plain.split_inclusive('\n').map(escaped_before_break).collect(),
    };
    match to_stderr {
        true => drop(Stderr.write_all(text.as_bytes())),
        false => bytes(text.as_bytes()),
    }
}

/// True where what is written to standard error gets colours.
pub(crate) fn stderr_has_colours() -> bool {
    has_colours(stderr_is_terminal())
}

/// True where standard error is read by a person.
pub(crate) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// What `--color` says, once it is read.
static COLOURS: OnceLock<ColorChoice> = OnceLock::new();

/// Takes `--color` for everything from now on.
pub(crate) fn choose_colours(choice: ColorChoice) {
    // Set once, by `main`.
    let _ = COLOURS.set(choice);
}

/// Whether a stream gets colours: `--color`, then `NO_COLOR` (<https://no-color.org>) and `CLICOLOR_FORCE`, then terminals alone, unless
/// `CLICOLOR` is 0 (<https://bixense.com/clicolors>).
fn has_colours(is_terminal: bool) -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
    match COLOURS.get().unwrap_or(&ColorChoice::Auto) {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) => false,
        ColorChoice::Auto if is_set("CLICOLOR_FORCE") => true,
        ColorChoice::Auto => is_terminal && std::env::var_os("CLICOLOR").is_none_or(|value| value != "0"),
    }
}

/// The colours that words get.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Colour {
    Red,
    Yellow,
    Green,
}

impl Colour {
    /// `word` in this colour, and what follows as before.
    fn on(self, word: &str) -> String {
        let code = match self {
            Self::Red => "1;31",
            Self::Yellow => "1;33",
            Self::Green => "32",
        };
        format!("\u{1b}[{code}m{word}\u{1b}[0m")
    }
}

/// A line without characters that a terminal obeys or that reorder what is read: `\u{1b}` for an escape.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match is_obeyed(character) {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    Cow::Owned(shown)
}

/// The same of a piece of text that may end with a line break or a tab.
fn escaped_before_break(piece: &str) -> String {
    let text = piece.trim_end_matches(['\n', '\t']);
    format!("{}{}", escaped(text), &piece[text.len()..])
}

/// The same of JSON, whose own escapes mean the same text; its line breaks stand between values.
fn escaped_json(json: &str) -> Cow<'_, str> {
    let is_in_text = |character: char| character != '\n' && is_obeyed(character);
    if !json.contains(is_in_text) {
        return Cow::Borrowed(json);
    }
    let mut shown = String::with_capacity(json.len() + 8);
    for character in json.chars() {
        match is_in_text(character) {
            true => write!(shown, "\\u{:04x}", u32::from(character)).expect("a string takes all"),
            false => shown.push(character),
        }
    }
    Cow::Owned(shown)
}

/// Control characters, and what Unicode has to change the direction of text or to break lines.
fn is_obeyed(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_shown_and_the_rest_is_left_alone() {
        assert!(matches!(escaped("größe ~12.3 MB ≤ 3×, שלום"), Cow::Borrowed(_)));
        assert_eq!(escaped("a\u{1b}[31mb\nerror: c\td\u{9b}e\u{7f}"), r"a\u{1b}[31mb\nerror: c\td\u{9b}e\u{7f}");
        assert_eq!(escaped("nur\u{202e}txt.exe\u{2069}\u{200f}"), r"nur\u{202e}txt.exe\u{2069}\u{200f}");
    }

    #[test]
    fn json_says_the_same_without_characters_that_a_terminal_obeys() {
        let value = serde_json::json!({ "name": "a\u{9b}31m\u{202e}b\u{7f}\u{1b}\n" });
        let text = serde_json::to_string_pretty(&value).unwrap();
        let shown = escaped_json(&text);
        assert_eq!(shown, "{\n  \"name\": \"a\\u009b31m\\u202eb\\u007f\\u001b\\n\"\n}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }

    #[test]
    fn line_breaks_and_tabs_of_a_text_stay() {
        let text = "one\ttwo\u{1b}\nthree\r\n";
        let shown: String = text.split_inclusive(['\n', '\t']).map(escaped_before_break).collect();
        assert_eq!(shown, "one\ttwo\\u{1b}\nthree\\r\n");
    }
}
