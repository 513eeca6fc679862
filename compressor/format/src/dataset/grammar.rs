//! A generated set as its description gives it: slots, phrases and chances, read and checked.
//!
//! How sentences are put together from them is in `sentence.rs`; what the parts mean is told in
//! `datasets/home-commands.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::mistake::{Source, nearest};
use super::{Pair, Split, sentence};
use crate::Result;

/// A grammar, checked: every slot that a phrase or a command names exists, and no list is empty.
#[derive(Debug, Clone)]
pub struct GrammarSet {
    path: PathBuf,
    rows: [usize; 3], // by `Split::ALL`
    pub(super) valid_share: f64,
    pub(super) test_share: f64,
    pub(super) noise: f64,
    pub(super) chance: Chances,
    pub(super) wording: Wording,
    pub(super) slots: Vec<Slot>,
    pub(super) actions: Vec<Rule>,
    pub(super) times: Vec<Rule>,
    pub(super) asides: Vec<Phrase>,
}

/// `[grammar]` as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Description {
    train_rows: Spanned<usize>,
    valid_rows: Spanned<usize>,
    test_rows: Spanned<usize>,
    valid_share: Spanned<f64>,
    test_share: Spanned<f64>,
    noise: Spanned<f64>,
    chance: ChancesDescription,
    wording: Spanned<WordingDescription>,
    slots: BTreeMap<Spanned<String>, BTreeMap<Spanned<String>, Vec<String>>>,
    #[serde(default)]
    action: Vec<ActionDescription>,
    #[serde(default)]
    time: Vec<TimeDescription>,
    aside: Option<AsideDescription>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChancesDescription {
    opening: Spanned<f64>,
    closing: Spanned<f64>,
    time: Spanned<f64>,
    second: Spanned<f64>,
    aside: Spanned<f64>,
    taken_back: Spanned<f64>,
    corrected: Spanned<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WordingDescription {
    openings: Vec<String>,
    closings: Vec<String>,
    joins: Vec<String>,
    corrections: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ActionDescription {
    command: Spanned<String>,
    phrases: Spanned<Vec<Spanned<String>>>,
    /// Whether its clauses can say when.
    #[serde(default = "timed")]
    timed: bool,
}

fn timed() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TimeDescription {
    command: Spanned<String>,
    phrases: Spanned<Vec<Spanned<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AsideDescription {
    phrases: Spanned<Vec<Spanned<String>>>,
}

/// How often a sentence has each of its optional parts, 0–1.
#[derive(Debug, Clone)]
pub(super) struct Chances {
    pub(super) opening: f64,
    pub(super) closing: f64,
    pub(super) time: f64,
    pub(super) second: f64,
    pub(super) aside: f64,
    pub(super) taken_back: f64,
    pub(super) corrected: f64,
}

/// What stands around and between phrases without a meaning of its own.
#[derive(Debug, Clone)]
pub(super) struct Wording {
    pub(super) openings: Vec<String>,
    pub(super) closings: Vec<String>,
    pub(super) joins: Vec<String>,
    pub(super) corrections: Vec<String>,
}

/// A named set of values.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) values: Vec<Value>,
}

/// What a command says and how people say it.
#[derive(Debug, Clone)]
pub(super) struct Value {
    pub(super) word: String,
    pub(super) spoken: Vec<String>,
}

/// A command with the phrases that mean it.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) command: Vec<Part>,
    pub(super) phrases: Vec<Phrase>,
    /// Whether a time can be said with it; never of a time itself.
    pub(super) timed: bool,
}

/// One way to say something.
#[derive(Debug, Clone)]
pub(super) struct Phrase {
    /// As written in the description: its part of a template's identity.
    pub(super) written: String,
    pub(super) parts: Vec<Part>,
}

/// A stretch of a phrase or a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// Said as it stands, with the spaces around it.
    Text(String),
    /// One of these is said.
    Choice(Vec<String>),
    /// Index into `GrammarSet::slots`.
    Slot(usize),
}

/// All rows are in memory at once: these are some gigabytes of short sentences.
const MOST_ROWS: usize = 10_000_000;

impl GrammarSet {
    pub(super) fn new(description: Description, source: &Source) -> Result<Self> {
        let Description { train_rows, valid_rows, test_rows, valid_share, test_share, noise, .. } = &description;
        let shares = ratio("valid_share", valid_share, source)? + ratio("test_share", test_share, source)?;
        if shares >= 1.0 {
            let what = format!("valid_share and test_share together are {shares}; no template is left for train");
            return Err(source.mistake(test_share.span(), what));
        }
        for (name, rows, share) in [("valid_rows", valid_rows, valid_share), ("test_rows", test_rows, test_share)] {
            if *rows.get_ref() > 0 && *share.get_ref() == 0.0 {
                let what = format!("{name} is {} and the split's share of the templates is 0", rows.get_ref());
                return Err(source.mistake(rows.span(), what));
            }
        }
        for (name, rows) in [("train_rows", train_rows), ("valid_rows", valid_rows), ("test_rows", test_rows)] {
            if *rows.get_ref() > MOST_ROWS {
                let what = format!("{name} is {}; at most {MOST_ROWS} rows are made", rows.get_ref());
                return Err(source.mistake(rows.span(), what));
            }
        }
        if *train_rows.get_ref() == 0 {
            return Err(source.mistake(train_rows.span(), "train_rows is 0; there is nothing to learn from"));
        }
        let noise = ratio("noise", noise, source)?;
        let rows = [*train_rows.get_ref(), *valid_rows.get_ref(), *test_rows.get_ref()];

        let chance = Chances::new(&description.chance, source)?;
        let slots = slots(&description.slots, source)?;
        if description.action.is_empty() {
            return Err(crate::Error::malformed(source.path, "there is no [[grammar.action]]; a sentence needs one"));
        }
        let action = |rule: &ActionDescription| Rule::new(&rule.command, &rule.phrases, rule.timed, &slots, source);
        let actions = description.action.iter().map(action).collect::<Result<Vec<_>>>()?;
        let time = |rule: &TimeDescription| Rule::new(&rule.command, &rule.phrases, false, &slots, source);
        let times = description.time.iter().map(time).collect::<Result<Vec<_>>>()?;
        let asides = match &description.aside {
            None => Vec::new(),
            Some(aside) => phrases(&aside.phrases, &slots, source)?,
        };

        // A chance for something that does not exist would silently do nothing.
        let wording = description.wording.get_ref();
        let chances = &description.chance;
        for (name, chance, what, exists) in [
            ("opening", &chances.opening, "wording.openings is empty", !wording.openings.is_empty()),
            ("closing", &chances.closing, "wording.closings is empty", !wording.closings.is_empty()),
            ("second", &chances.second, "wording.joins is empty", !wording.joins.is_empty()),
            ("taken_back", &chances.taken_back, "wording.corrections is empty", !wording.corrections.is_empty()),
            ("corrected", &chances.corrected, "wording.corrections is empty", !wording.corrections.is_empty()),
            ("time", &chances.time, "there is no [[grammar.time]]", !times.is_empty()),
            ("aside", &chances.aside, "there is no [grammar.aside]", !asides.is_empty()),
        ] {
            if *chance.get_ref() > 0.0 && !exists {
                let what = format!("chance.{name} is {} and {what}", chance.get_ref());
                return Err(source.mistake(chance.span(), what));
            }
        }
        let wording = Wording {
            openings: wording.openings.clone(),
            closings: wording.closings.clone(),
            joins: wording.joins.clone(),
            corrections: wording.corrections.clone(),
        };
        Ok(Self {
            path: source.path.to_owned(),
            rows,
            valid_share: *valid_share.get_ref(),
            test_share: *test_share.get_ref(),
            noise,
            chance,
            wording,
            slots,
            actions,
            times,
            asides,
        })
    }

    /// The description's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many rows the description asks for.
    pub fn rows(&self, split: Split) -> usize {
        self.rows[split as usize]
    }

    pub(super) fn split(&self, split: Split, seed: u64) -> Result<Vec<Pair>> {
        Ok(sentence::rows(self, split, seed)?.into_iter().map(|row| row.pair).collect())
    }
}

impl Chances {
    fn new(written: &ChancesDescription, source: &Source) -> Result<Self> {
        let chances = Self {
            opening: ratio("chance.opening", &written.opening, source)?,
            closing: ratio("chance.closing", &written.closing, source)?,
            time: ratio("chance.time", &written.time, source)?,
            second: ratio("chance.second", &written.second, source)?,
            aside: ratio("chance.aside", &written.aside, source)?,
            taken_back: ratio("chance.taken_back", &written.taken_back, source)?,
            corrected: ratio("chance.corrected", &written.corrected, source)?,
        };
        // A sentence asks for two things, or begins with an aside, or with something taken back: at most one of the three.
        let together = chances.second + chances.aside + chances.taken_back;
        if together > 1.0 {
            let what = format!("chance.second, chance.aside and chance.taken_back exclude each other and add up to {together}");
            return Err(source.mistake(written.second.span(), what));
        }
        Ok(chances)
    }
}

impl Rule {
    fn new(
        written: &Spanned<String>,
        said: &Spanned<Vec<Spanned<String>>>,
        timed: bool,
        slots: &[Slot],
        source: &Source,
    ) -> Result<Self> {
        let command = parts(written, slots, source)?;
        let phrases = phrases(said, slots, source)?;
        if command.iter().any(|part| matches!(part, Part::Choice(_))) {
            let what = format!("the command `{}` offers a choice; a command says one thing", written);
            return Err(source.mistake(written.span(), what));
        }
        for (phrase, at) in phrases.iter().zip(said.get_ref()) {
            let missing = |here, there: &[Part]| slots_of(here).find(|slot| !slots_of(there).any(|other| other == *slot));
            if let Some(slot) = missing(&command, &phrase.parts) {
                let slot = &slots[slot].name;
                let what = format!("the command `{}` needs slot `{slot}`, and the phrase \"{at}\" does not say it", written);
                return Err(source.mistake(at.span(), what));
            }
            if let Some(slot) = missing(&phrase.parts, &command) {
                let slot = &slots[slot].name;
                let what = format!("the phrase \"{at}\" says slot `{slot}`, and the command `{}` has no use for it", written);
                return Err(source.mistake(at.span(), what));
            }
        }
        Ok(Self { command, phrases, timed })
    }
}

pub(super) fn slots_of(parts: &[Part]) -> impl Iterator<Item = usize> {
    parts.iter().filter_map(|part| match part {
        Part::Slot(slot) => Some(*slot),
        Part::Text(_) | Part::Choice(_) => None,
    })
}

fn ratio(name: &str, value: &Spanned<f64>, source: &Source) -> Result<f64> {
    let number = *value.get_ref();
    if (0.0..=1.0).contains(&number) {
        return Ok(number);
    }
    Err(source.mistake(value.span(), format!("{name} is {number}; it must lie between 0 and 1")))
}

fn slots(written: &BTreeMap<Spanned<String>, BTreeMap<Spanned<String>, Vec<String>>>, source: &Source) -> Result<Vec<Slot>> {
    let mut slots = Vec::new();
    for (name, values) in written {
        if values.is_empty() {
            return Err(source.mistake(name.span(), format!("slot `{name}` has no values; give it one or remove it")));
        }
        let mut meaning: BTreeMap<&str, &str> = BTreeMap::new();
        for (word, spoken) in values {
            if word.get_ref().is_empty() || word.get_ref().contains(|c: char| c.is_whitespace() || "{}[];".contains(c)) {
                let what = format!("the value `{word}` of slot `{name}` must be one word without {{ }} [ ] or ;");
                return Err(source.mistake(word.span(), what));
            }
            if spoken.is_empty() {
                return Err(source.mistake(word.span(), format!("the value `{word}` of slot `{name}` has no spoken form")));
            }
            for form in spoken {
                if form.trim().is_empty() {
                    let what = format!("a spoken form of the value `{word}` of slot `{name}` is empty");
                    return Err(source.mistake(word.span(), what));
                }
                if let Some(other) = meaning.insert(form, word.get_ref()) {
                    let what = format!("\"{form}\" is spoken for both `{other}` and `{word}` of slot `{name}`");
                    return Err(source.mistake(word.span(), what));
                }
            }
        }
        let values = values.iter().map(|(word, spoken)| Value { word: word.get_ref().clone(), spoken: spoken.clone() }).collect();
        slots.push(Slot { name: name.get_ref().clone(), values });
    }
    Ok(slots)
}

fn phrases(written: &Spanned<Vec<Spanned<String>>>, slots: &[Slot], source: &Source) -> Result<Vec<Phrase>> {
    if written.get_ref().is_empty() {
        return Err(source.mistake(written.span(), "`phrases` is empty; give it at least one"));
    }
    let mut phrases: Vec<Phrase> = Vec::new();
    for phrase in written.get_ref() {
        let parts = parts(phrase, slots, source)?;
        let mut said: Vec<usize> = slots_of(&parts).collect();
        said.sort_unstable();
        if let Some(twice) = said.windows(2).find(|pair| pair[0] == pair[1]) {
            let what = format!("the phrase \"{phrase}\" says slot `{}` twice; which one would count?", slots[twice[0]].name);
            return Err(source.mistake(phrase.span(), what));
        }
        phrases.push(Phrase { written: phrase.get_ref().clone(), parts });
    }
    Ok(phrases)
}

/// Cuts "dim the {light} to [about|] {percent}" at its slots and choices.
fn parts(written: &Spanned<String>, slots: &[Slot], source: &Source) -> Result<Vec<Part>> {
    let mistake = |what: String| source.mistake(written.span(), format!("\"{written}\" {what}"));
    let mut parts = Vec::new();
    let mut rest = written.get_ref().as_str();
    while !rest.is_empty() {
        let opens = rest.find(['{', '[']).unwrap_or(rest.len());
        let (text, marked) = rest.split_at(opens);
        if let Some(stray) = text.chars().find(|c| "}]|".contains(*c)) {
            return Err(mistake(format!("has `{stray}` outside of a slot or a choice")));
        }
        if !text.is_empty() {
            parts.push(Part::Text(text.to_owned()));
        }
        let Some(open) = marked.chars().next() else { break };
        let close = if open == '{' { '}' } else { ']' };
        let Some(end) = marked.find(close) else {
            return Err(mistake(format!("opens `{open}` and never closes it")));
        };
        let inside = &marked[1..end];
        if open == '{' {
            let Some(slot) = slots.iter().position(|slot| slot.name == inside) else {
                let known = nearest(inside, slots.iter().map(|slot| slot.name.as_str()));
                let hint = known.map(|name| format!("; the nearest is `{name}`")).unwrap_or_default();
                return Err(mistake(format!("names slot `{inside}`, which does not exist{hint}")));
            };
            parts.push(Part::Slot(slot));
        } else {
            if let Some(stray) = inside.chars().find(|c| "{}[".contains(*c)) {
                return Err(mistake(format!("has `{stray}` inside of a choice; a choice holds words only")));
            }
            parts.push(Part::Choice(inside.split('|').map(|choice| choice.trim().to_owned()).collect()));
        }
        rest = &marked[end + 1..];
    }
    if written.get_ref().trim().is_empty() {
        return Err(mistake("says nothing".to_owned()));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use fs_err as fs;

    use super::*;
    use crate::Dataset;

    const SMALL: &str = r#"[grammar]
train_rows  = 20
valid_rows  = 0
test_rows   = 0
valid_share = 0.1
test_share  = 0.1
noise       = 0.0
[grammar.chance]
opening    = 0.0
closing    = 0.0
time       = 0.0
second     = 0.0
aside      = 0.0
taken_back = 0.0
corrected  = 0.0
[grammar.wording]
openings    = []
closings    = []
joins       = []
corrections = []
[grammar.slots.room]
living = ["living room", "lounge"]
study  = ["study"]
[grammar.slots.light]
lamp = ["lamp"]
[[grammar.action]]
command = "on {room} {light}"
phrases = ["light the {light} in the {room}", "i need [some|] light from the {room} {light}"]
"#;

    fn load(toml: &str) -> Result<GrammarSet, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("home.toml");
        fs::write(&path, toml).unwrap();
        match Dataset::load(&path) {
            Ok(Dataset::Grammar(set)) => Ok(set),
            Ok(_) => unreachable!(),
            Err(error) => Err(error.to_string().replace(&format!("{}/", folder.path().display()), "")),
        }
    }

    /// What is said about `SMALL` with one stretch of it replaced.
    fn mistake(from: &str, to: &str) -> String {
        assert_eq!(SMALL.matches(from).count(), 1, "{from}");
        load(&SMALL.replace(from, to)).unwrap_err()
    }

    #[test]
    fn a_phrase_is_cut_at_its_slots_and_choices() {
        let set = load(SMALL).unwrap();
        let names: Vec<&str> = set.slots.iter().map(|slot| slot.name.as_str()).collect();
        assert_eq!(names, ["light", "room"]);
        assert_eq!(
            set.actions[0].phrases[1].parts,
            [
                Part::Text("i need ".into()),
                Part::Choice(vec!["some".into(), String::new()]),
                Part::Text(" light from the ".into()),
                Part::Slot(1),
                Part::Text(" ".into()),
                Part::Slot(0),
            ]
        );
    }

    #[test]
    fn a_slot_that_does_not_exist_is_named_with_its_neighbour() {
        assert_eq!(
            mistake("light the {light}", "light the {lihgt}"),
            "home.toml:28: \"light the {lihgt} in the {room}\" names slot `lihgt`, which does not exist; the nearest is `light`"
        );
        assert_eq!(
            mistake("on {room}", "on {romo}"),
            "home.toml:27: \"on {romo} {light}\" names slot `romo`, which does not exist; the nearest is `room`"
        );
    }

    #[test]
    fn rows_and_names_that_no_memory_holds_are_refused() {
        assert_eq!(
            mistake("train_rows  = 20", "train_rows  = 9000000000000000000"),
            "home.toml:2: train_rows is 9000000000000000000; at most 10000000 rows are made"
        );
        // Comparing two names takes memory in proportion to the product of their lengths.
        let (long, longer) = ("a".repeat(200_000), "b".repeat(200_000));
        let toml = SMALL.replace("[grammar.slots.light]", &format!("[grammar.slots.{long}]\nx = [\"x\"]\n[grammar.slots.light]"));
        let refused = load(&toml.replace("light the {light}", &format!("light the {{{longer}}}"))).unwrap_err();
        assert!(refused.ends_with(&format!("names slot `{longer}`, which does not exist")), "{}", &refused[refused.len() - 80..]);
    }

    #[test]
    fn a_phrase_and_its_command_say_the_same_slots() {
        assert_eq!(
            mistake("light the {light}", "light up"),
            "home.toml:28: the command `on {room} {light}` needs slot `light`, and the phrase \"light up in the {room}\" does \
             not say it"
        );
        assert_eq!(
            mistake("on {room} {light}", "on {light}"),
            "home.toml:28: the phrase \"light the {light} in the {room}\" says slot `room`, and the command `on {light}` has no \
             use for it"
        );
        assert_eq!(
            mistake("light the {light}", "{room} the {light}"),
            "home.toml:28: the phrase \"{room} the {light} in the {room}\" says slot `room` twice; which one would count?"
        );
    }

    #[test]
    fn a_command_says_one_thing() {
        assert_eq!(
            mistake("on {room} {light}", "[on|off] {room} {light}"),
            "home.toml:27: the command `[on|off] {room} {light}` offers a choice; a command says one thing"
        );
    }

    #[test]
    fn marks_that_do_not_pair_are_refused() {
        assert_eq!(
            mistake("[some|]", "[some|"),
            "home.toml:28: \"i need [some| light from the {room} {light}\" opens `[` and never closes it"
        );
        assert_eq!(
            mistake("[some|]", "some|"),
            "home.toml:28: \"i need some| light from the {room} {light}\" has `|` outside of a slot or a choice"
        );
        assert_eq!(
            mistake("[some|]", "[{room}|]"),
            "home.toml:28: \"i need [{room}|] light from the {room} {light}\" has `{` inside of a choice; a choice holds words only"
        );
        assert_eq!(mistake("light the {light} in the {room}", " "), "home.toml:28: \" \" says nothing");
    }

    #[test]
    fn empty_lists_are_refused() {
        assert_eq!(mistake("lamp = [\"lamp\"]\n", ""), "home.toml:24: slot `light` has no values; give it one or remove it");
        assert_eq!(mistake("[\"study\"]", "[]"), "home.toml:23: the value `study` of slot `room` has no spoken form");
        assert_eq!(mistake("[\"study\"]", "[\" \"]"), "home.toml:23: a spoken form of the value `study` of slot `room` is empty");
        let phrases = SMALL.lines().last().unwrap();
        assert_eq!(mistake(phrases, "phrases = []"), "home.toml:28: `phrases` is empty; give it at least one");
        let action = &SMALL[SMALL.find("[[grammar").unwrap()..];
        assert_eq!(mistake(action, ""), "home.toml: there is no [[grammar.action]]; a sentence needs one");
    }

    #[test]
    fn values_are_one_word_and_spoken_forms_mean_one_thing() {
        assert_eq!(
            mistake("study  =", "\"my study\" ="),
            "home.toml:23: the value `my study` of slot `room` must be one word without { } [ ] or ;"
        );
        assert_eq!(
            mistake("[\"study\"]", "[\"study\", \"lounge\"]"),
            "home.toml:23: \"lounge\" is spoken for both `living` and `study` of slot `room`"
        );
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert_eq!(mistake("noise       = 0.0", "noise = 1.5"), "home.toml:7: noise is 1.5; it must lie between 0 and 1");
        assert_eq!(
            mistake("opening    = 0.0", "opening = -0.1"),
            "home.toml:9: chance.opening is -0.1; it must lie between 0 and 1"
        );
        assert_eq!(mistake("noise       = 0.0", "noise = nan"), "home.toml:7: noise is NaN; it must lie between 0 and 1");
        assert_eq!(
            mistake("test_share  = 0.1", "test_share = 0.9"),
            "home.toml:6: valid_share and test_share together are 1; no template is left for train"
        );
        assert_eq!(mistake("train_rows  = 20", "train_rows = 0"), "home.toml:2: train_rows is 0; there is nothing to learn from");
        assert_eq!(
            mistake(
                "test_rows   = 0\nvalid_share = 0.1\ntest_share  = 0.1",
                "test_rows = 5\nvalid_share = 0.1\ntest_share = 0.0"
            ),
            "home.toml:4: test_rows is 5 and the split's share of the templates is 0"
        );
        let negative = mistake("train_rows  = 20", "train_rows = -1");
        assert!(negative.starts_with("home.toml:2: invalid value: integer `-1`"), "{negative}");
    }

    #[test]
    fn chances_need_what_they_are_chances_of() {
        assert_eq!(
            mistake("opening    = 0.0", "opening = 0.5"),
            "home.toml:9: chance.opening is 0.5 and wording.openings is empty"
        );
        assert_eq!(
            mistake("time       = 0.0", "time = 0.5"),
            "home.toml:11: chance.time is 0.5 and there is no [[grammar.time]]"
        );
        assert_eq!(
            mistake("second     = 0.0\naside      = 0.0", "second = 0.75\naside = 0.5"),
            "home.toml:12: chance.second, chance.aside and chance.taken_back exclude each other and add up to 1.25"
        );
    }

    #[test]
    fn unknown_and_missing_keys_are_named() {
        assert_eq!(
            mistake("train_rows  = 20", "train_row = 20"),
            "home.toml:2: unknown key `train_row`; the nearest is `train_rows`"
        );
        assert_eq!(
            mistake("opening    = 0.0", "openings = 0.0"),
            "home.toml:9: unknown key `openings`; the nearest is `opening`"
        );
        assert_eq!(mistake("noise       = 0.0\n", ""), "home.toml:1: missing field `noise`");
    }

    #[test]
    fn more_rows_than_there_are_sentences_are_refused() {
        let set = load(&SMALL.replace("train_rows  = 20", "train_rows  = 10")).unwrap();
        let refused = set.split(Split::Train, 1).unwrap_err().to_string();
        assert!(
            refused.ends_with("the train split asks for 10 different sentences, and after 10000 draws without a new one there are 9; ask for fewer rows or add phrases"),
            "{refused}"
        );
    }
}
