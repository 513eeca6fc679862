//! What stages read: one vocabulary for teacher and student, a tokenizer that fits model and dataset, no example too long, and text
//! enough.

use std::rc::Rc;

use compressor_format::{Mistake, Place, Split, Student, Tokenizer, TrainingKeys, Verify};

use super::Planner;
use crate::plan::ModelSize;
use crate::rows::{TokenizerOf, TooLong, beginning, has_tokens};

/// Text that a quantization asks for.
pub(super) struct Asked {
    /// The key that says how much.
    pub(super) key: &'static str,
    /// Tokens among them that candidates are fitted to.
    pub(super) fitted: usize,
    /// Tokens of all windows.
    pub(super) wanted: usize,
    /// Tokens that will do.
    pub(super) least: usize,
}

impl Planner<'_> {
    /// Whether student and teacher predict the same tokens; refuses those that do not.
    pub(super) fn have_one_vocabulary(
        &mut self,
        student: &ModelSize,
        teacher: &ModelSize,
        named: Option<&Student>,
        place: &Place,
    ) -> bool {
        let key = if named.is_some() { "student" } else { "teacher" };
        let place = place.then(key);
        let (ours, theirs) = (student.architecture.vocab_size, teacher.architecture.vocab_size);
        if ours != theirs && !self.are_padded(student, teacher) {
            let message = format!("the student's vocabulary of {ours} tokens differs from the teacher's {theirs}");
            let hint = match named {
                Some(Student::New(_)) => "both must predict the same tokens; give the student the teacher's vocab_size",
                Some(Student::Layers(_) | Student::Checkpoint(_)) | None => {
                    "both must predict the same tokens; choose another teacher"
                }
            };
            self.refuse(&place, Mistake::new(message).hint(hint));
            return false;
        }
        if student.tokenizer == teacher.tokenizer {
            return true;
        }
        if let (Some(our_tokens), Some(their_tokens)) = (self.tokenizer(&student.tokenizer), self.tokenizer(&teacher.tokenizer))
            && !our_tokens.does_the_same_as(&their_tokens)
        {
            let called = |tokenizer: &TokenizerOf| match tokenizer {
                TokenizerOf::Model(path) => path.display().to_string(),
                TokenizerOf::Trained(_) => "(new)".to_owned(),
            };
            let (ours, theirs) = (called(&student.tokenizer), called(&teacher.tokenizer));
            let mistake = Mistake::new(format!("student {ours} and teacher {theirs} have different tokenizers"));
            self.refuse(&place, mistake.hint("both must predict the same tokens; choose a teacher with the student's tokenizer"));
            return false;
        }
        true
    }

    /// Whether two models whose vocabularies differ in size have a row for every token of their tokenizers: the rest is padding.
    fn are_padded(&mut self, student: &ModelSize, teacher: &ModelSize) -> bool {
        let rows = student.architecture.vocab_size.min(teacher.architecture.vocab_size);
        [student, teacher].into_iter().all(|model| {
            // What a tokenizer that is trained in the run will have is a bound, and what it was given rows for.
            matches!(model.tokenizer, TokenizerOf::Model(_))
                && self.tokenizer(&model.tokenizer).is_some_and(|tokenizer| (tokenizer.largest_id() as usize) < rows)
        })
    }

    /// A model's tokenizer, where there is one or it is trained cheaply. One that can't be opened is refused where its model is named.
    pub(super) fn tokenizer(&mut self, of: &TokenizerOf) -> Option<Rc<Tokenizer>> {
        if let Some(known) = self.tokenizers.get(of) {
            return known.clone();
        }
        let opened = match of {
            TokenizerOf::Model(path) => crate::open_tokenizer(path).map(Some),
            TokenizerOf::Trained(vocab_size) => self.rows.train_tokenizer(*vocab_size).map_err(crate::Error::from),
        };
        let tokenizer = match opened {
            Ok(tokenizer) => tokenizer.map(Rc::new),
            Err(error) => {
                let mut mistake = Mistake::new(error.to_string());
                if self.recipe.has_data() {
                    mistake = mistake.hint("the dataset is read with the model's tokenizer");
                }
                self.refuse(&self.named_at(of), mistake);
                None
            }
        };
        self.tokenizers.insert(of.clone(), tokenizer.clone());
        tokenizer
    }

    /// Where the recipe names the model that a tokenizer belongs to.
    fn named_at(&self, of: &TokenizerOf) -> Place {
        match of {
            TokenizerOf::Model(path) => self.named.get(path).cloned().unwrap_or_else(|| Place::root("model")),
            TokenizerOf::Trained(_) => Place::root("dataset"),
        }
    }

    pub(super) fn check_training(&mut self, keys: &TrainingKeys, model: &ModelSize, place: &Place) {
        let (length, rows) = (keys.sequence_length, keys.batch_size);
        let most = model.architecture.max_position_embeddings;
        if length > most {
            let message = format!("sequence_length {length} is longer than the model's max_position_embeddings {most}");
            self.refuse(&place.then("sequence_length"), Mistake::new(message));
        }
        if let Some(pairs) = self.rows.pairs(Split::Train).map(<[_]>::len).filter(|pairs| *pairs < rows) {
            let message = format!("batch_size {rows} is more than the train split's {pairs} examples");
            let mistake = Mistake::new(message).hint("lower it; gradient_accumulation puts several batches into one step");
            self.refuse(&place.then("batch_size"), mistake);
        }
        if let Some(TooLong { count, of, longest, first }) = self.too_long(Split::Train, usize::MAX, model, length) {
            let message = format!(
                "{count} of {of} examples predict more tokens than sequence_length {length}, the longest {longest}; the first is \
                 \"{first}\""
            );
            let hint = match longest <= most {
                true => format!("raise sequence_length to {longest}, or shorten or leave out those examples"),
                false => format!("shorten or leave out those examples; the model holds {most} tokens"),
            };
            self.refuse(&place.then("sequence_length"), Mistake::new(message).hint(hint));
        }
        let needed = rows.saturating_mul(length).saturating_add(1);
        if let Some(tokens) = self.too_few(Split::Train, model, needed) {
            let message = format!(
                "the train split has {tokens} tokens, a batch of {rows} windows of sequence_length {length} takes {needed}"
            );
            let mistake = Mistake::new(message).hint("lower sequence_length or batch_size, or give more text");
            self.refuse(&place.then("sequence_length"), mistake);
        }
    }

    /// Pruning looks at text in windows of one size, examples whole.
    ///
    /// The mistake stands at `place`; `otherwise` is the way out beside another text.
    pub(super) fn check_calibration(&mut self, model: &ModelSize, place: &Place, otherwise: &str) {
        let length = crate::run::calibration_window(&model.architecture);
        self.check_examples_fit(model, length, place, otherwise);
        if let Some(tokens) = self.too_few(Split::Train, model, length) {
            let message = format!("the train split has {tokens} tokens, calibration reads windows of {length}");
            self.refuse(place, Mistake::new(message).hint(format!("give more text, or {otherwise}")));
        }
    }

    /// Quantizing looks at so many tokens as a key of the stage at `place` says, in whole windows.
    pub(super) fn check_quantization_text(&mut self, model: &ModelSize, place: &Place, asked: Asked, otherwise: &str) {
        let Asked { key, fitted, wanted, least } = asked;
        let window = crate::run::calibration_window(&model.architecture);
        let place = place.then(key);
        self.check_examples_fit(model, window, &place, otherwise);
        let Some(tokens) = self.too_few(Split::Train, model, least).or_else(|| self.too_few_in_pairs(model, least)) else {
            return;
        };
        let whole = tokens / window * window;
        let (asks, lower, is_enough) = match fitted {
            0 => (format!("{key} asks for {wanted}"), format!("set it to {whole}"), whole >= window),
            _ => {
                let asks = format!("{key} and the {fitted} that candidates are fitted to ask for {wanted}");
                (asks, "set it lower".to_owned(), whole >= 2 * window)
            }
        };
        let message = format!("the train split has {tokens} tokens, {asks} in windows of {window}");
        let hint = match is_enough {
            false => format!("give more text, or {otherwise}"),
            true => format!("{lower}, give more text, or allow = [\"less_text\"], which takes the {whole} and lists it"),
        };
        self.refuse(&place, Mistake::new(message).hint(hint));
    }

    fn check_examples_fit(&mut self, model: &ModelSize, length: usize, place: &Place, otherwise: &str) {
        if let Some(TooLong { count, of, longest, first }) = self.too_long(Split::Train, usize::MAX, model, length) {
            let message = format!(
                "{count} of {of} examples have more than the {length} tokens that calibration reads at once, the longest {longest}; \
                 the first is \"{first}\""
            );
            let hint = format!("shorten or leave out those examples, or {otherwise}");
            self.refuse(place, Mistake::new(message).hint(hint));
        }
    }

    /// The tokens of all examples of the train split one after the other, where those are fewer than `needed`.
    fn too_few_in_pairs(&mut self, model: &ModelSize, needed: usize) -> Option<usize> {
        self.rows.pairs(Split::Train)?;
        let tokenizer = self.tokenizer(&model.tokenizer)?;
        match self.rows.examples(Split::Train)?.first_tokens(&tokenizer, needed) {
            Ok(tokens) => (tokens.len() < needed).then_some(tokens.len()),
            Err(error) => {
                self.refuse(&self.named_at(&model.tokenizer), Mistake::new(error.to_string()));
                None
            }
        }
    }

    /// Every model that a step makes is measured on the test split; learnt scales on the valid split too.
    pub(super) fn check_measuring(&mut self, split: Split, model: &ModelSize) {
        let (measured_by, place) = (self.measured_by.clone(), self.measured_at.clone());
        self.check_measuring_by(&measured_by, &place, split, model);
    }

    /// The same, as the verification at `place` measures, or as is usual where that is the dataset.
    pub(super) fn check_measuring_by(&mut self, measured_by: &Verify, place: &Place, split: Split, model: &ModelSize) {
        let most = model.architecture.max_position_embeddings;
        let window = measured_by.window;
        if self.rows.text(split).is_some() {
            if window > most && *place != Place::root("dataset") {
                let message = format!("window {window} is longer than the model's max_position_embeddings {most}");
                self.refuse(place, Mistake::new(message));
            }
            let window = window.min(most);
            if let Some(tokens) = self.too_few(split, model, window) {
                let message = format!("the {} split has {tokens} tokens, one window takes {window}", split.name());
                let hint = match *place == Place::root("dataset") {
                    true if split == Split::Test => {
                        "give it more text, or leave the test split out: every model is measured on it"
                    }
                    true => "give it more text",
                    false => "set `window` lower, or give more text",
                };
                self.refuse(place, Mistake::new(message).hint(hint));
            }
        }
        if let Some(TooLong { count, of, longest, first }) = self.too_long(split, measured_by.examples, model, most) {
            let message = format!(
                "{count} of {of} examples of the {} split have more tokens than the {most} that the model takes, the longest \
                 {longest}; the first is \"{first}\"",
                split.name()
            );
            self.refuse(&Place::root("dataset"), Mistake::new(message).hint("shorten or leave out those examples"));
        }
    }

    /// Which of the first `count` pairs of a split predict more than `most` tokens; refuses a tokenizer that can't read them.
    fn too_long(&mut self, split: Split, count: usize, model: &ModelSize, most: usize) -> Option<TooLong> {
        self.rows.pairs(split)?;
        if matches!(model.tokenizer, TokenizerOf::Trained(_)) && self.rows.surely_fit(split, most) {
            return None;
        }
        let tokenizer = self.tokenizer(&model.tokenizer)?;
        let counted = match self.rows.count(split, count, most, &model.tokenizer, &tokenizer) {
            Ok(counted) => counted,
            Err(error) => {
                self.refuse(&self.named_at(&model.tokenizer), Mistake::new(error.to_string()));
                return None;
            }
        };
        self.check_ids(counted.largest_id, model);
        self.rows.too_long(split, &counted, most)
    }

    /// The tokens of a text that has fewer than `needed`.
    fn too_few(&mut self, split: Split, model: &ModelSize, needed: usize) -> Option<usize> {
        let text = self.rows.text(split)?;
        if matches!(model.tokenizer, TokenizerOf::Trained(_)) && has_tokens(text, needed) == Some(true) {
            return None;
        }
        let tokenizer = self.tokenizer(&model.tokenizer)?;
        // Where the tokenizer knows more tokens than the model, any of the text can hold one of those.
        let is_larger = tokenizer.largest_id() as usize >= model.architecture.vocab_size;
        let tokens = beginning(self.rows.text(split)?, &tokenizer, if is_larger { usize::MAX } else { needed });
        match tokens {
            Ok(tokens) => {
                self.check_ids(tokens.iter().copied().max().unwrap_or(0), model);
                (tokens.len() < needed).then_some(tokens.len())
            }
            Err(error) => {
                self.refuse(&self.named_at(&model.tokenizer), Mistake::new(error.to_string()));
                None
            }
        }
    }

    /// The model must know every token that its tokenizer gives.
    fn check_ids(&mut self, largest: u32, model: &ModelSize) {
        let vocab_size = model.architecture.vocab_size;
        if largest as usize >= vocab_size {
            let message = format!("the tokenizer gives token {largest}, and the model's vocabulary has {vocab_size}");
            let mistake =
                Mistake::new(message).hint("the tokenizer belongs to another model; put the model's own beside its weights");
            self.refuse(&self.named_at(&model.tokenizer), mistake);
        }
    }
}
