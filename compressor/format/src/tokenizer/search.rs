//! Looking for a pattern in a text, within a time that the text's length allows.
//!
//! A pattern from elsewhere can be made so that it takes ages: by going back again and again, which [`fancy_regex`] ends after
//! [`MOST_STEPS_BACK`], or by looking at the whole rest of a text at each of its characters, which a clock ends.

use std::cell::Cell;
use std::time::{Duration, Instant};

use fancy_regex::{Regex, RegexBuilder};
use tokenizers::pattern::Pattern;
use tokenizers::{Offsets, Result};

use super::description;

/// For one match; what the `tokenizers` crate has.
const MOST_STEPS_BACK: usize = 1_000_000;
/// Bytes of a part of a pattern, compiled; those of real tokenizers have some hundred thousand.
const MOST_COMPILED_BYTES: usize = 4 << 20;
/// Real patterns take some 0.2 µs for a byte. This is for slow machines too.
const LONGEST: Duration = Duration::from_secs(10);
const LONGEST_FOR_A_BYTE: Duration = Duration::from_micros(20);

pub(super) fn compile(pattern: &description::Pattern) -> Result<Regex> {
    let mut builder = RegexBuilder::new(&pattern.expression());
    builder.backtrack_limit(MOST_STEPS_BACK).delegate_size_limit(MOST_COMPILED_BYTES);
    Ok(builder.build()?)
}

/// The time that looking through one text takes.
pub(super) struct Clock {
    started: Instant,
    bytes: Cell<u32>,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { started: Instant::now(), bytes: Cell::new(0) }
    }

    fn is_over(&self) -> bool {
        self.started.elapsed() > LONGEST + LONGEST_FOR_A_BYTE * self.bytes.get()
    }
}

/// A pattern, looked for while the clock runs.
pub(super) struct Search<'a> {
    pub(super) regex: &'a Regex,
    pub(super) clock: &'a Clock,
}

impl Pattern for Search<'_> {
    fn find_matches(&self, inside: &str) -> Result<Vec<(Offsets, bool)>> {
        if inside.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        self.clock.bytes.set(self.clock.bytes.get().saturating_add(u32::try_from(inside.len()).unwrap_or(u32::MAX)));
        let mut parts = Vec::with_capacity(inside.len());
        let mut end = 0;
        for found in self.regex.find_iter(inside) {
            let found =
                found.map_err(|error| format!("the pattern `{}` fails at byte {end} of a text: {error}", self.regex.as_str()))?;
            if self.clock.is_over() {
                let bytes = self.clock.bytes.get();
                return Err(format!("the pattern `{}` takes too long for a text of {bytes} bytes", self.regex.as_str()).into());
            }
            if end != found.start() {
                parts.push(((end, found.start()), false));
            }
            parts.push(((found.start(), found.end()), true));
            end = found.end();
        }
        if end != inside.len() {
            parts.push(((end, inside.len()), false));
        }
        Ok(parts)
    }
}

/// What was found before.
pub(super) struct Found(pub(super) Vec<(Offsets, bool)>);

impl Pattern for Found {
    fn find_matches(&self, _: &str) -> Result<Vec<(Offsets, bool)>> {
        Ok(self.0.clone())
    }
}
