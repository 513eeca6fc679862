//! Puts sentences together from a grammar, each with the command it means.

use std::collections::{BTreeSet, HashSet};

use super::draw::Draw;
use super::grammar::{GrammarSet, Part, Phrase, Rule, slots_of};
use super::{Pair, Split};
use crate::{Error, Result};

/// One example, with the template it was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) pair: Pair,
    /// The phrases that the sentence is made of, as written and in order. Openings, closings, joins, corrections and choices
    /// of wording are left out, so that two sentences which differ only in those have the same template.
    pub(super) template: String,
}

/// So many draws in a row without a new sentence mean that there is none left.
const FRUITLESS_DRAWS: usize = 10_000;

/// The rows of one split. No two rows of any splits have the same prompt, and no two splits share a template.
///
/// # Errors
/// [`Error::Malformed`] when the grammar has fewer different sentences than the split asks for.
pub(super) fn rows(grammar: &GrammarSet, split: Split, seed: u64) -> Result<Vec<Row>> {
    let known_words = known_words(grammar);
    // Only looked up, never walked: its order can't reach the rows.
    let mut prompts: HashSet<String> = HashSet::new();
    // Two templates can end in the same words, so a split must know the sentences of the ones before it. The small ones come
    // first and stay as they are when the number of train rows changes.
    for current in [Split::Test, Split::Valid, Split::Train] {
        let mut draw = Draw::new("rows of a grammar", seed, current as u64);
        let wanted = grammar.rows(current);
        let mut rows = Vec::with_capacity(wanted);
        let mut fruitless = 0;
        while rows.len() < wanted {
            let sentence = Sentence::draw(grammar, &mut draw);
            if split_of(&sentence.template(), grammar) == current {
                let row = sentence.say(grammar, &known_words, &mut draw);
                if prompts.insert(row.pair.prompt.clone()) {
                    rows.push(row);
                    fruitless = 0;
                    continue;
                }
            }
            fruitless += 1;
            if fruitless == FRUITLESS_DRAWS {
                let what = format!(
                    "the {} split asks for {wanted} different sentences, and after {FRUITLESS_DRAWS} draws without a new one \
                     there are {}; ask for fewer rows or add phrases",
                    current.name(),
                    rows.len()
                );
                return Err(Error::malformed(grammar.path(), what));
            }
        }
        if current == split {
            return Ok(rows);
        }
    }
    unreachable!("the loop goes through all three splits and returns at the one asked for")
}

/// The split that a template belongs to: its own text decides, so that neither a seed nor a new phrase moves it.
fn split_of(template: &str, grammar: &GrammarSet) -> Split {
    let hash = blake3::hash(template.as_bytes());
    let mut word = [0; 8];
    word.copy_from_slice(&hash.as_bytes()[..8]);
    let place = (u64::from_le_bytes(word) >> 11) as f64 / (1_u64 << 53) as f64; // even in 0–1
    if place < grammar.test_share {
        Split::Test
    } else if place < grammar.test_share + grammar.valid_share {
        Split::Valid
    } else {
        Split::Train
    }
}

/// A sentence before its slots are filled.
struct Sentence<'g> {
    lead: Lead<'g>,
    clauses: Vec<Clause<'g>>,
    /// Clause, and slot counted through the clause: the one that is said twice.
    corrected: Option<(usize, usize)>,
}

/// What is said first and does not count.
enum Lead<'g> {
    Nothing,
    Aside(&'g Phrase),
    TakenBack(&'g Phrase),
}

struct Clause<'g> {
    action: Said<'g>,
    time: Option<Said<'g>>,
    time_first: bool,
}

enum Role {
    Action,
    Time,
}

/// A rule in one of its phrases.
#[derive(Clone, Copy)]
struct Said<'g> {
    rule: &'g Rule,
    phrase: &'g Phrase,
}

impl<'g> Said<'g> {
    fn draw(rules: &'g [Rule], draw: &mut Draw) -> Option<Self> {
        let rule = draw.pick(rules)?;
        Some(Self { rule, phrase: draw.pick(&rule.phrases)? })
    }
}

impl<'g> Clause<'g> {
    fn draw(grammar: &'g GrammarSet, draw: &mut Draw) -> Self {
        let action = Said::draw(&grammar.actions, draw).expect("checked by GrammarSet::new: there are actions with phrases");
        let says_when = draw.chance(grammar.chance.time) && action.rule.timed;
        let time = says_when.then(|| Said::draw(&grammar.times, draw)).flatten();
        let time_first = time.is_some() && draw.chance(0.5);
        Self { action, time, time_first }
    }

    /// What is said, in order: the action, and the time before or after it.
    fn said(&self) -> impl Iterator<Item = (Role, Said<'g>)> {
        let time = self.time.map(|time| (Role::Time, time));
        let (first, last) = if self.time_first { (time, None) } else { (None, time) };
        first.into_iter().chain([(Role::Action, self.action)]).chain(last)
    }

    /// Whether its phrase alone means two commands.
    fn is_double(&self) -> bool {
        self.action.rule.command.iter().any(|part| matches!(part, Part::Text(text) if text.contains(';')))
    }
}

impl<'g> Sentence<'g> {
    fn draw(grammar: &'g GrammarSet, draw: &mut Draw) -> Self {
        let chance = &grammar.chance;
        let mut clauses = vec![Clause::draw(grammar, draw)];
        let kind = draw.below(1 << 32) as f64 / (1_u64 << 32) as f64;
        let lead = if kind < chance.second {
            let mut second = Clause::draw(grammar, draw);
            second.time_first = false; // In "… and after nine dim …" the time could belong to either clause.
            // Four commands would be half again as long as any other row, and every row of a batch is padded to the longest.
            if !clauses[0].is_double() && !second.is_double() {
                clauses.push(second);
            }
            Lead::Nothing
        } else if kind < chance.second + chance.aside {
            draw.pick(&grammar.asides).map_or(Lead::Nothing, Lead::Aside)
        } else if kind < chance.second + chance.aside + chance.taken_back {
            Said::draw(&grammar.actions, draw).map_or(Lead::Nothing, |said| Lead::TakenBack(said.phrase))
        } else {
            Lead::Nothing
        };
        let corrected = draw.chance(chance.corrected).then(|| {
            let clause = draw.below(clauses.len());
            let slots: Vec<usize> = clauses[clause].said().flat_map(|(_, said)| slots_of(&said.phrase.parts)).collect();
            let correctable: Vec<usize> = (0..slots.len()).filter(|at| grammar.slots[slots[*at]].values.len() > 1).collect();
            draw.pick(&correctable).map(|at| (clause, *at))
        });
        Self { lead, clauses, corrected: corrected.flatten() }
    }

    fn template(&self) -> String {
        let mut template = match self.lead {
            Lead::Nothing => String::new(),
            Lead::Aside(phrase) => format!("(aside) {} ", phrase.written),
            Lead::TakenBack(phrase) => format!("(taken back) {} ", phrase.written),
        };
        for (index, clause) in self.clauses.iter().enumerate() {
            if index > 0 {
                template.push_str(" (and) ");
            }
            let said: Vec<&str> = clause.said().map(|(_, said)| said.phrase.written.as_str()).collect();
            template.push_str(&said.join(" "));
        }
        if let Some((clause, slot)) = self.corrected {
            template.push_str(&format!(" (slot {slot} of clause {clause} corrected)"));
        }
        template
    }

    /// Fills the slots and says the sentence.
    fn say(&self, grammar: &GrammarSet, known_words: &BTreeSet<&str>, draw: &mut Draw) -> Row {
        let wording = &grammar.wording;
        let mut mouth = Mouth { grammar, words: Vec::new(), draw };
        if mouth.draw.chance(grammar.chance.opening) {
            mouth.say_one_of(&wording.openings);
        }
        match self.lead {
            Lead::Nothing => {}
            Lead::Aside(phrase) => {
                mouth.say(phrase, None);
            }
            Lead::TakenBack(phrase) => {
                mouth.say(phrase, None);
                mouth.say_one_of(&wording.corrections);
            }
        }
        let mut commands = Vec::new();
        for (index, clause) in self.clauses.iter().enumerate() {
            if index > 0 {
                mouth.say_one_of(&wording.joins);
            }
            let mut corrected = self.corrected.filter(|(at, _)| *at == index).map(|(_, slot)| slot);
            let (mut action, mut time) = (String::new(), String::new());
            for (role, said) in clause.said() {
                let meant = mouth.say(said.phrase, corrected);
                corrected = corrected.and_then(|slot| slot.checked_sub(meant.len()));
                let means = command(grammar, said.rule, &meant);
                match role {
                    Role::Action => action = means,
                    Role::Time => time = means,
                }
            }
            // The time belongs to every command of its clause.
            commands.extend(action.split("; ").map(|action| format!("{action} {time}").trim_end().to_owned()));
        }
        if mouth.draw.chance(grammar.chance.closing) {
            mouth.say_one_of(&wording.closings);
        }
        let mut words = mouth.words;
        for word in &mut words {
            if draw.chance(grammar.noise) {
                *word = misspelt(word, known_words, draw);
            }
        }
        Row { pair: Pair { prompt: words.join(" "), completion: commands.join("; ") }, template: self.template() }
    }
}

/// What a phrase said: slot and value, as indices.
type Meant = Vec<(usize, usize)>;

struct Mouth<'a> {
    grammar: &'a GrammarSet,
    words: Vec<String>,
    draw: &'a mut Draw,
}

impl Mouth<'_> {
    fn say(&mut self, phrase: &Phrase, corrected: Option<usize>) -> Meant {
        let mut meant = Meant::new();
        for part in &phrase.parts {
            match part {
                Part::Text(text) => self.say_text(text),
                Part::Choice(choices) => self.say_one_of(choices),
                Part::Slot(slot) => {
                    let values = &self.grammar.slots[*slot].values;
                    let value = self.draw.below(values.len());
                    if corrected == Some(meant.len()) {
                        let wrong = (value + 1 + self.draw.below(values.len() - 1)) % values.len();
                        self.say_one_of(&values[wrong].spoken);
                        self.say_one_of(&self.grammar.wording.corrections);
                    }
                    self.say_one_of(&values[value].spoken);
                    meant.push((*slot, value));
                }
            }
        }
        meant
    }

    fn say_one_of(&mut self, texts: &[String]) {
        if let Some(text) = self.draw.pick(texts) {
            self.say_text(text);
        }
    }

    fn say_text(&mut self, text: &str) {
        self.words.extend(text.split_whitespace().map(str::to_owned));
    }
}

/// The rule's command with the values that were meant.
fn command(grammar: &GrammarSet, rule: &Rule, meant: &Meant) -> String {
    let part = |part: &Part| match part {
        Part::Text(text) => text.clone(),
        Part::Slot(slot) => {
            let (_, value) = meant.iter().find(|(said, _)| said == slot).expect("checked by Rule::new: the phrase says it");
            grammar.slots[*slot].values[*value].word.clone()
        }
        Part::Choice(_) => unreachable!("refused by Rule::new"),
    };
    rule.command.iter().map(part).collect()
}

/// One slip of the pen: a letter lost, doubled, or swapped with the next. The first letter stays, as it mostly does; words
/// under four letters and anything with digits stay whole, and a slip never makes another word that the grammar knows.
fn misspelt(word: &str, known_words: &BTreeSet<&str>, draw: &mut Draw) -> String {
    let (kind, place) = (draw.below(3), draw.below(1 << 16));
    let mut letters: Vec<char> = word.chars().collect();
    if letters.len() < 4 || !letters.iter().all(|letter| letter.is_alphabetic()) {
        return word.to_owned();
    }
    let at = 1 + place % (letters.len() - 2); // neither the first letter nor the last
    match kind {
        0 => {
            letters.remove(at);
        }
        1 => letters.insert(at, letters[at]),
        _ => letters.swap(at, at + 1),
    }
    let slip: String = letters.into_iter().collect();
    if known_words.contains(slip.as_str()) { word.to_owned() } else { slip }
}

fn known_words(grammar: &GrammarSet) -> BTreeSet<&str> {
    let wording = &grammar.wording;
    let fixed = [&wording.openings, &wording.closings, &wording.joins, &wording.corrections].into_iter().flatten();
    let spoken = grammar.slots.iter().flat_map(|slot| &slot.values).flat_map(|value| &value.spoken);
    let rules = grammar.actions.iter().chain(&grammar.times).flat_map(|rule| &rule.phrases);
    let phrases = rules.chain(&grammar.asides).flat_map(|phrase| &phrase.parts).flat_map(|part| match part {
        Part::Text(text) => std::slice::from_ref(text),
        Part::Choice(texts) => texts,
        Part::Slot(_) => &[],
    });
    fixed.chain(spoken).chain(phrases).flat_map(|text| text.split_whitespace()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::Dataset;

    fn home_commands() -> GrammarSet {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/home-commands.toml");
        match Dataset::load(&path).unwrap() {
            Dataset::Grammar(set) => set,
            other => panic!("{other:?}"),
        }
    }

    fn hash(rows: &[Row]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for row in rows {
            hasher.update(format!("{}\t{}\n", row.pair.prompt, row.pair.completion).as_bytes());
        }
        hasher.finalize()
    }

    #[test]
    fn the_seed_alone_decides_about_the_bytes() {
        let grammar = home_commands();
        for split in Split::ALL {
            let seven = hash(&rows(&grammar, split, 7).unwrap());
            assert_eq!(seven, hash(&rows(&home_commands(), split, 7).unwrap()));
            assert_ne!(seven, hash(&rows(&grammar, split, 8).unwrap()));
        }
    }

    #[test]
    fn splits_have_their_sizes_and_share_neither_template_nor_prompt() {
        let grammar = home_commands();
        let mut owner_of_template: BTreeMap<String, Split> = BTreeMap::new();
        let mut owner_of_prompt: BTreeMap<String, Split> = BTreeMap::new();
        // Train of one seed and test of another share no template either.
        for (split, seed, size) in [(Split::Train, 7, 40_000), (Split::Valid, 8, 2_000), (Split::Test, 9, 2_000)] {
            let rows = rows(&grammar, split, seed).unwrap();
            assert_eq!(rows.len(), size);
            for row in rows {
                let owner = *owner_of_template.entry(row.template).or_insert(split);
                assert_eq!(owner, split, "{}", row.pair.prompt);
            }
        }
        for split in Split::ALL {
            for row in rows(&grammar, split, 7).unwrap() {
                let before = owner_of_prompt.insert(row.pair.prompt.clone(), split);
                assert_eq!(before, None, "{}", row.pair.prompt);
            }
        }
        assert_eq!(owner_of_prompt.len(), 44_000);
        let templates = |split| owner_of_template.values().filter(|owner| **owner == split).count();
        assert!(templates(Split::Test) > 500, "{}", templates(Split::Test));
    }

    #[test]
    fn every_word_of_the_test_split_occurs_in_train() {
        let mut grammar = home_commands();
        grammar.noise = 0.0;
        let words = |split| -> BTreeSet<String> {
            let rows = rows(&grammar, split, 7).unwrap();
            rows.iter().flat_map(|row| row.pair.prompt.split(' ')).map(str::to_owned).collect()
        };
        let (train, test) = (words(Split::Train), words(Split::Test));
        assert!(test.len() > 200, "{}", test.len());
        assert_eq!(test.difference(&train).collect::<Vec<_>>(), Vec::<&String>::new());
    }

    #[test]
    fn noise_changes_no_command_and_no_known_word_into_another() {
        let noisy = home_commands();
        let mut clean = noisy.clone();
        clean.noise = 0.0;
        let known = known_words(&clean);
        let mut draw = Draw::new("test", 1, 0);
        let mut changed = 0;
        for word in &known {
            for _ in 0..50 {
                let slip = misspelt(word, &known, &mut draw);
                assert!(slip == **word || !known.contains(slip.as_str()), "{word} became {slip}");
                assert_eq!(slip.chars().next(), word.chars().next());
                changed += usize::from(slip != **word);
            }
        }
        assert!(changed > 1_000);
        let rate = |grammar: &GrammarSet| {
            let rows = rows(grammar, Split::Test, 7).unwrap();
            let words: Vec<&str> = rows.iter().flat_map(|row| row.pair.prompt.split(' ')).collect();
            words.iter().filter(|word| !known.contains(**word)).count() as f64 / words.len() as f64
        };
        assert_eq!(rate(&clean), 0.0);
        // Short words stay whole, so fewer words than the chance says are misspelt.
        assert!((0.3 * noisy.noise..noisy.noise).contains(&rate(&noisy)), "{}", rate(&noisy));
    }

    #[test]
    fn slips_are_a_lost_a_doubled_or_a_swapped_letter() {
        let none = BTreeSet::new();
        let mut draw = Draw::new("test", 4, 0);
        let slips: BTreeSet<String> = (0..500).map(|_| misspelt("lamp", &none, &mut draw)).collect();
        let expected = ["lamp", "lmp", "lap", "laamp", "lammp", "lmap", "lapm"].map(str::to_owned);
        assert_eq!(slips, expected.into_iter().skip(1).collect());
        for whole in ["dim", "don't", "2100"] {
            assert_eq!(misspelt(whole, &none, &mut draw), whole);
        }
    }

    /// A second reading of what a command is, written without the grammar.
    fn parses(command: &str) -> Result<(), String> {
        let words: Vec<&str> = command.split(' ').collect();
        let (body, time) = match words.iter().position(|word| ["at", "after", "before", "until", "in", "for"].contains(word)) {
            Some(at) => (&words[..at], &words[at..]),
            None => (&words[..], &[][..]),
        };
        let number = |word: &str, low: u32, high: u32| word.parse::<u32>().is_ok_and(|number| (low..=high).contains(&number));
        let name = |word: &str| word.len() > 1 && word.bytes().all(|byte| byte.is_ascii_lowercase());
        let minutes = |word: &str| word.strip_suffix('m').is_some_and(|word| number(word, 1, 90));
        let clock = |word: &str| {
            word.split_once(':').is_some_and(|(hour, minute)| {
                hour.len() == 2 && minute.len() == 2 && number(hour, 0, 23) && number(minute, 0, 59)
            })
        };
        let body = match body {
            ["on" | "off" | "open" | "close", room, device] => name(room) && name(device),
            ["dim" | "open", room, device, value] => name(room) && name(device) && number(value, 5, 100),
            ["paint", room, light, colour] => name(room) && name(light) && name(colour),
            ["heat", room, value] => name(room) && number(value, 16, 24),
            ["warmer" | "cooler", room, value] => name(room) && number(value, 1, 3),
            ["lock" | "unlock" | "scene", name_] => name(name_),
            ["play", room, music] => name(room) && name(music),
            ["volume", room, value] => name(room) && number(value, 5, 100),
            ["timer", length] => minutes(length),
            _ => false,
        };
        let time = match time {
            [] => true,
            ["at" | "after" | "before" | "until", at] => clock(at),
            ["in" | "for", length] => minutes(length),
            _ => false,
        };
        if body && time { Ok(()) } else { Err(command.to_owned()) }
    }

    #[test]
    fn every_completion_is_one_or_two_commands() {
        let grammar = home_commands();
        let mut doubles = 0;
        for split in Split::ALL {
            for row in rows(&grammar, split, 7).unwrap() {
                let commands: Vec<&str> = row.pair.completion.split("; ").collect();
                assert!(commands.len() <= 2, "{}", row.pair.completion);
                doubles += usize::from(commands.len() == 2);
                for command in commands {
                    parses(command).unwrap();
                }
            }
        }
        assert!((5_000..20_000).contains(&doubles), "{doubles}");
        for wrong in ["", "on study", "dim study lamp 101", "heat study 20 at 24:00", "timer 5", "on study lamp; on hall lamp"] {
            parses(wrong).unwrap_err();
        }
    }

    /// A grammar with one sentence of each kind, so that the words and the command can be worked out by hand.
    fn one_sentence(chances: &str, phrase: &str) -> Row {
        let toml = format!(
            r#"[grammar]
train_rows = 1
valid_rows = 0
test_rows = 0
valid_share = 0.0
test_share = 0.0
noise = 0.0
chance = {{ opening = 0, closing = 0, time = 0, second = 0, aside = 0, taken_back = 0, corrected = 0 }}
[grammar.wording]
openings = ["please"]
closings = ["thanks"]
joins = ["then"]
corrections = ["no"]
[grammar.slots.room]
study = ["den"]
[grammar.slots.switch]
on = ["on"]
off = ["off"]
[grammar.slots.minutes]
5 = ["five"]
[[grammar.action]]
command = "{phrase}"
phrases = ["turn {{switch}} the {{room}}"]
[[grammar.time]]
command = "in {{minutes}}m"
phrases = ["in {{minutes}} minutes"]
[grammar.aside]
phrases = ["leave the {{room}} but"]
"#
        );
        let mut toml = toml;
        for name in chances.split_whitespace() {
            toml = toml.replacen(&format!("{name} = 0"), &format!("{name} = 1"), 1);
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one.toml");
        fs_err::write(&path, toml).unwrap();
        let Dataset::Grammar(set) = Dataset::load(&path).unwrap() else { unreachable!() };
        rows(&set, Split::Train, 1).unwrap().remove(0)
    }

    #[test]
    fn openings_and_closings_mean_nothing_and_make_no_template() {
        let row = one_sentence("opening closing", "{switch} {room}");
        let switch = row.pair.completion.strip_suffix(" study").unwrap();
        assert_eq!(row.pair.prompt, format!("please turn {switch} the den thanks"));
        assert_eq!(row.template, "turn {switch} the {room}");
    }

    #[test]
    fn an_aside_means_no_command() {
        let row = one_sentence("aside", "{switch} {room}");
        let switch = row.pair.completion.strip_suffix(" study").unwrap();
        assert_eq!(row.pair.prompt, format!("leave the den but turn {switch} the den"));
        assert_eq!(row.template, "(aside) leave the {room} but turn {switch} the {room}");
    }

    #[test]
    fn what_is_taken_back_means_no_command() {
        let row = one_sentence("taken_back", "{switch} {room}");
        let switch = row.pair.completion.strip_suffix(" study").unwrap();
        assert!(row.pair.prompt.ends_with(&format!(" the den no turn {switch} the den")), "{}", row.pair.prompt);
    }

    #[test]
    fn the_last_of_two_values_counts() {
        // `room` has one value and can't be corrected, so it is always the switch.
        let row = one_sentence("corrected", "{switch} {room}");
        let (right, wrong) = if row.pair.completion == "on study" { ("on", "off") } else { ("off", "on") };
        assert_eq!(row.pair.completion, format!("{right} study"));
        assert_eq!(row.pair.prompt, format!("turn {wrong} no {right} the den"));
    }

    #[test]
    fn a_time_belongs_to_every_command_of_its_clause() {
        let row = one_sentence("time", "{switch} {room}; dim {room}");
        let switch = row.pair.completion.split(' ').next().unwrap();
        assert_eq!(row.pair.completion, format!("{switch} study in 5m; dim study in 5m"));
        let (clause, time) = (format!("turn {switch} the den"), "in five minutes");
        assert!([format!("{time} {clause}"), format!("{clause} {time}")].contains(&row.pair.prompt), "{}", row.pair.prompt);
    }

    #[test]
    fn an_action_that_is_not_timed_never_says_when() {
        let row = one_sentence("time", "{switch} {room}\"\ntimed = false #\"");
        let switch = row.pair.completion.strip_suffix(" study").unwrap();
        assert_eq!(row.pair.prompt, format!("turn {switch} the den"));
    }

    #[test]
    fn two_requests_give_two_commands_in_the_order_they_were_said() {
        let row = one_sentence("second", "{switch} {room}");
        let switches: Vec<&str> =
            row.pair.completion.split("; ").map(|command| command.strip_suffix(" study").unwrap()).collect();
        assert_eq!(row.pair.prompt, format!("turn {} the den then turn {} the den", switches[0], switches[1]));
    }
}
