//! Training through the public functions: what a caller relies on.

#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::path::Path;

use compressor_format::{Batch, Family, StepLosses, TensorId, Weights};
use compressor_train::{Descent, Error, Objective, Rounding, Training, logits, train};
use serde_json::json;

const VOCAB: usize = 40;

fn tiny(seed: u64) -> Weights {
    let config = json!({
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 24, "num_hidden_layers": 2, "head_dim": 8, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64, "tie_word_embeddings": true
    });
    Weights::random(Family::read(&config, Path::new("config.json")).unwrap(), seed)
}

/// Counting sequences: every token is followed by the one after it. The first tokens of each row are masked.
struct Counting {
    rows: usize,
    length: usize,
}

impl Counting {
    fn batch(&self, index: u64) -> Batch {
        let elements = self.rows * self.length;
        let token = |i: usize, ahead: usize| {
            let (row, position) = (i / self.length, i % self.length);
            ((index as usize * 13 + row * 7 + position + ahead) % VOCAB) as u32
        };
        Batch {
            tokens: (0..elements).map(|i| token(i, 0)).collect(),
            targets: (0..elements).map(|i| token(i, 1)).collect(),
            weights: (0..elements).map(|i| if i % self.length < 2 + i / self.length % 2 { 0.0 } else { 1.0 }).collect(),
            rows: self.rows,
            length: self.length,
        }
    }
}

const BATCHES: Counting = Counting { rows: 4, length: 9 };

fn settings(steps: u64) -> Training {
    Training { steps, learning_rate: 5e-3, warmup_steps: 3, ..Training::default() }
}

fn run(
    start: Weights,
    objective: Objective<'_>,
    training: &Training,
    batches: &dyn Fn(u64) -> Batch,
    state: Option<&Path>,
    stop_after: u64,
) -> (Result<Weights, Error>, Vec<StepLosses>) {
    run_rounded(start, None, objective, training, batches, state, stop_after)
}

fn run_rounded(
    start: Weights,
    rounding: Option<&Rounding<'_>>,
    objective: Objective<'_>,
    training: &Training,
    batches: &dyn Fn(u64) -> Batch,
    state: Option<&Path>,
    stop_after: u64,
) -> (Result<Weights, Error>, Vec<StepLosses>) {
    let mut seen = Vec::new();
    let fingerprint = "a fingerprint";
    let descent =
        Descent { objective, training, batches, device: "cpu", state_folder: state, fingerprint, before_save: &|| Ok(()) };
    let trained = train(start, rounding, &descent, &mut |losses| {
        seen.push(*losses);
        if losses.step == stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    (trained, seen)
}

fn bits(weights: &Weights) -> Vec<(TensorId, Vec<u32>)> {
    weights.iter().map(|(id, values)| (id, values.iter().map(|value| value.to_bits()).collect())).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Mean −log softmax of the targets that count, in f64.
fn cross_entropy(weights: &Weights, batch: &Batch) -> f64 {
    let logits = logits(weights, &batch.tokens, batch.rows, batch.length, "cpu").unwrap();
    let rows = logits.chunks(weights.architecture().vocab_size).zip(&batch.targets).zip(&batch.weights);
    let (mut sum, mut count) = (0.0, 0.0);
    for ((row, target), weight) in rows.filter(|(_, weight)| **weight > 0.0) {
        let normalizer: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
        sum += normalizer.ln() - f64::from(row[*target as usize]);
        count += f64::from(*weight);
    }
    sum / count
}

#[test]
fn a_model_learns_to_count_and_a_student_learns_it_from_it() {
    let (teacher, seen) = run(tiny(1), Objective::CrossEntropy, &settings(300), &|index| BATCHES.batch(index), None, 0);
    let teacher = teacher.unwrap();
    // The first loss is that of the untrained weights, worked out again from their logits.
    let expected = cross_entropy(&tiny(1), &BATCHES.batch(0));
    assert!((seen[0].cross_entropy - expected).abs() < 1e-5 * expected, "{:?}, expected {expected}", seen[0]);
    assert!(seen[299].cross_entropy < 0.05, "{:?}", seen[299]);
    assert_eq!(seen[0].kl, None);
    assert_eq!(seen[0].tokens, 36);
    assert_eq!(seen.iter().map(|losses| losses.step).collect::<Vec<_>>(), (1..=300).collect::<Vec<_>>());

    let objective =
        Objective::Distill { teacher: &teacher, vocab_size: teacher.architecture().vocab_size, temperature: 2.0, kd_ratio: 1.0 };
    let (_, seen) = run(tiny(2), objective, &settings(300), &|index| BATCHES.batch(index), None, 0);
    assert!(seen[0].kl.unwrap() > 0.5, "{:?}", seen[0]);
    assert!(seen[299].kl.unwrap() < 0.02, "{:?}", seen[299]);
    assert!(seen[299].cross_entropy < 0.2, "reported and learnt, although only the divergence was made small");
}

#[test]
fn a_student_that_is_its_teacher_has_no_divergence() {
    let teacher = tiny(1);
    let objective =
        Objective::Distill { teacher: &teacher, vocab_size: teacher.architecture().vocab_size, temperature: 2.0, kd_ratio: 1.0 };
    let (_, seen) = run(tiny(1), objective, &settings(1), &|index| BATCHES.batch(index), None, 0);
    assert_eq!(seen[0].kl, Some(0.0));
    assert_eq!(seen[0].loss, 0.0);
    assert!(seen[0].gradient_norm < 1e-6);
}

#[test]
fn stopped_and_continued_is_the_same_bit_for_bit_as_left_alone() {
    let teacher = tiny(1);
    let objective =
        Objective::Distill { teacher: &teacher, vocab_size: teacher.architecture().vocab_size, temperature: 2.0, kd_ratio: 0.5 };
    let training = Training { save_every: Some(3), ..settings(12) };
    let whole_folder = tempfile::tempdir().unwrap();
    let (whole, all_losses) = run(tiny(2), objective, &training, &|index| BATCHES.batch(index), Some(whole_folder.path()), 0);

    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let (stopped, first_losses) = run(tiny(2), objective, &training, &|index| BATCHES.batch(index), Some(&state), 7);
    assert_eq!(stopped.unwrap_err().to_string(), "stopped after step 7");
    assert_eq!(names(&state), ["state-7"]);
    // What a kill while saving leaves behind is not read, and is removed by the next save.
    std::fs::create_dir(state.join("state-9.tmp")).unwrap();
    std::fs::write(state.join("state-9.tmp/state.json"), "{").unwrap();
    let (continued, last_losses) = run(tiny(2), objective, &training, &|index| BATCHES.batch(index), Some(&state), 0);
    assert_eq!(bits(&continued.unwrap()), bits(&whole.unwrap()));
    assert_eq!(names(&state), ["state-9"]);

    let losses = |seen: &[StepLosses]| seen.iter().map(|losses| (losses.step, losses.loss, losses.kl)).collect::<Vec<_>>();
    assert_eq!([losses(&first_losses), losses(&last_losses)].concat(), losses(&all_losses));
}

/// Every weight of a matrix to the nearest sixteenth.
fn to_sixteenths(id: TensorId, values: &[f32]) -> Result<Option<Vec<f32>>, String> {
    let is_matrix = id == TensorId::Embedding || id.is_projection();
    Ok(is_matrix.then(|| values.iter().map(|value| (value * 16.0).round() / 16.0).collect()))
}

#[test]
fn a_step_takes_the_gradients_of_rounded_weights_and_changes_those_that_are_not() {
    let teacher = tiny(1);
    let objective =
        Objective::Distill { teacher: &teacher, vocab_size: teacher.architecture().vocab_size, temperature: 2.0, kd_ratio: 0.5 };
    let training = Training { warmup_steps: 0, weight_decay: 0.0, ..settings(1) };
    let batches = |index| BATCHES.batch(index);
    let (architecture, config, tensors) = tiny(2).into_parts();
    let rounded =
        tensors.iter().map(|(id, values)| (*id, to_sixteenths(*id, values).unwrap().unwrap_or(values.clone()))).collect();
    let rounded = Weights::new(architecture, config, rounded);
    assert_ne!(bits(&rounded), bits(&tiny(2)));
    let (aware, seen) = run_rounded(tiny(2), Some(&to_sixteenths), objective, &training, &batches, None, 0);
    let (beside, expected) = run(rounded.clone(), objective, &training, &batches, None, 0);
    let figures = |seen: &[StepLosses]| (seen[0].loss, seen[0].cross_entropy, seen[0].kl, seen[0].gradient_norm);
    assert_eq!(figures(&seen), figures(&expected), "the same forward and backward pass, bit for bit");
    // Not rounded again: each weight has gone as far as its rounded neighbour went.
    let (aware, beside) = (aware.unwrap(), beside.unwrap());
    let start = tiny(2);
    let pairs = aware.iter().zip(start.iter().zip(beside.iter().zip(rounded.iter())));
    let mut moved = 0;
    for ((id, after), ((_, before), ((_, after_rounded), (_, before_rounded)))) in pairs {
        for index in 0..after.len() {
            let (ours, theirs) = (after[index] - before[index], after_rounded[index] - before_rounded[index]);
            assert!((ours - theirs).abs() < 1e-6, "{id} {index}: {ours}, {theirs}");
            moved += usize::from(ours != 0.0);
        }
    }
    assert!(moved > 1000, "{moved} weights moved");
}

/// `weights` with rows more in the vocabulary than any token needs.
fn padded(weights: Weights, rows: usize) -> Weights {
    let (mut architecture, config, mut tensors) = weights.into_parts();
    architecture.vocab_size += rows;
    let embedding = tensors.get_mut(&TensorId::Embedding).unwrap();
    embedding.extend((0..rows * architecture.hidden_size).map(|_| 3.0));
    Weights::new(architecture, config, tensors)
}

#[test]
fn rows_that_no_token_has_are_in_neither_softmax() {
    let training = Training { weight_decay: 0.0, ..settings(5) };
    let learn = |student: Weights, teacher: &Weights| {
        let objective = Objective::Distill { teacher, vocab_size: VOCAB, temperature: 2.0, kd_ratio: 0.5 };
        let (trained, seen) = run(student, objective, &training, &|index| BATCHES.batch(index), None, 0);
        (trained.unwrap(), seen)
    };
    let (expected, expected_losses) = learn(tiny(2), &tiny(1));
    for (ours, theirs) in [(0, 5), (7, 0), (7, 5)] {
        let (trained, losses) = learn(padded(tiny(2), ours), &padded(tiny(1), theirs));
        for (found, expected) in losses.iter().zip(&expected_losses) {
            assert!((found.loss - expected.loss).abs() < 1e-6 && (found.kl.unwrap() - expected.kl.unwrap()).abs() < 1e-6);
        }
        for ((id, found), (_, expected)) in trained.iter().zip(expected.iter()) {
            let (same, rest) = found.split_at(expected.len());
            assert!(same.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{id}");
            assert!(rest.iter().all(|value| *value == 3.0), "{id}: what nothing learns stays");
        }
    }
}

#[test]
fn rounded_weights_stopped_and_continued_are_the_same_bit_for_bit_as_left_alone() {
    let teacher = tiny(1);
    let objective =
        Objective::Distill { teacher: &teacher, vocab_size: teacher.architecture().vocab_size, temperature: 2.0, kd_ratio: 0.5 };
    let training = Training { save_every: Some(3), ..settings(12) };
    let rounded = |state, stop_after| {
        run_rounded(tiny(2), Some(&to_sixteenths), objective, &training, &|index| BATCHES.batch(index), state, stop_after)
    };
    let (whole, all) = rounded(None, 0);
    let state = tempfile::tempdir().unwrap();
    let (stopped, first) = rounded(Some(state.path()), 7);
    assert_eq!(stopped.unwrap_err().to_string(), "stopped after step 7");
    let (continued, last) = rounded(Some(state.path()), 0);
    let losses = |seen: &[StepLosses]| seen.iter().map(|losses| (losses.step, losses.loss, losses.kl)).collect::<Vec<_>>();
    assert_eq!([losses(&first), losses(&last)].concat(), losses(&all));
    assert_eq!(bits(&continued.unwrap()), bits(&whole.unwrap()));
}

#[test]
fn weights_that_can_not_be_rounded_stop_a_training_with_the_reason() {
    let calls = std::cell::Cell::new(0);
    let rounding = |id: TensorId, values: &[f32]| -> Result<Option<Vec<f32>>, String> {
        calls.set(calls.get() + usize::from(id == TensorId::Embedding));
        if calls.get() == 3 { Err("they are too large".to_owned()) } else { to_sixteenths(id, values) }
    };
    let batches = |index| BATCHES.batch(index);
    let (stopped, seen) = run_rounded(tiny(2), Some(&rounding), Objective::CrossEntropy, &settings(9), &batches, None, 0);
    assert_eq!(stopped.unwrap_err().to_string(), "step 3: they are too large");
    assert_eq!(seen.len(), 2);
}

#[test]
fn a_state_of_another_fingerprint_is_left_alone_until_the_next_save() {
    let folder = tempfile::tempdir().unwrap();
    let training = Training { save_every: Some(2), ..settings(4) };
    run(tiny(2), Objective::CrossEntropy, &training, &|index| BATCHES.batch(index), Some(folder.path()), 3).0.unwrap_err();
    assert_eq!(names(folder.path()), ["state-3"]);
    let mut steps = Vec::new();
    let mut observe = |losses: &StepLosses| {
        steps.push(losses.step);
        ControlFlow::Continue(())
    };
    let descent = Descent {
        objective: Objective::CrossEntropy,
        training: &training,
        batches: &|index| BATCHES.batch(index),
        device: "cpu",
        state_folder: Some(folder.path()),
        fingerprint: "another",
        before_save: &|| Ok(()),
    };
    train(tiny(2), None, &descent, &mut observe).unwrap();
    assert_eq!(steps, [1, 2, 3, 4]);
    assert_eq!(names(folder.path()), ["state-2"]);
}

#[test]
fn a_damaged_state_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    run(tiny(2), Objective::CrossEntropy, &settings(4), &|index| BATCHES.batch(index), Some(folder.path()), 3).0.unwrap_err();
    let state = folder.path().join("state-3");
    let refusal = || {
        run(tiny(2), Objective::CrossEntropy, &settings(4), &|index| BATCHES.batch(index), Some(folder.path()), 0)
            .0
            .unwrap_err()
            .to_string()
    };

    let tensors = state.join("model.safetensors");
    let whole = std::fs::read(&tensors).unwrap();
    std::fs::write(&tensors, &whole[..whole.len() - 1]).unwrap();
    let expected = format!(
        "{}: {}: its {} bytes are not what the header says: the file is cut short or has a tail; remove this folder to train from the \
         beginning",
        state.display(),
        tensors.display(),
        whole.len() - 1
    );
    assert_eq!(refusal(), expected);
    std::fs::write(&tensors, &whole).unwrap();

    std::fs::write(state.join("state.json"), r#"{"version": 9, "step": 3, "fingerprint": "a fingerprint"}"#).unwrap();
    let expected = format!(
        "{}: was written in version 9, this program reads version 1; remove this folder to train from the beginning",
        state.display()
    );
    assert_eq!(refusal(), expected);
}

#[test]
fn accumulated_batches_are_one_large_batch() {
    // Batch k of the large ones is batches 2k and 2k + 1 of the small ones, which mask different numbers of tokens.
    struct Small;
    impl Small {
        fn batch(&self, index: u64) -> Batch {
            let mut batch = BATCHES.batch(index);
            if index.is_multiple_of(2) {
                batch.weights[..20].fill(0.0);
            }
            batch
        }
    }
    struct Large;
    impl Large {
        fn batch(&self, index: u64) -> Batch {
            let (mut first, second) = (Small.batch(2 * index), Small.batch(2 * index + 1));
            first.tokens.extend(second.tokens);
            first.targets.extend(second.targets);
            first.weights.extend(second.weights);
            first.rows += second.rows;
            first
        }
    }
    let (large, large_losses) = run(tiny(3), Objective::CrossEntropy, &settings(4), &|index| Large.batch(index), None, 0);
    let training = Training { gradient_accumulation: 2, ..settings(4) };
    let (small, small_losses) = run(tiny(3), Objective::CrossEntropy, &training, &|index| Small.batch(index), None, 0);
    for (large, small) in large_losses.iter().zip(&small_losses) {
        assert!((large.loss - small.loss).abs() < 1e-5, "{large:?} {small:?}");
        assert!((large.gradient_norm - small.gradient_norm).abs() < 1e-5 * large.gradient_norm);
        assert_eq!(large.tokens, small.tokens);
    }
    let (large, small) = (large.unwrap(), small.unwrap());
    for ((id, large), (_, small)) in large.iter().zip(small.iter()) {
        for (large, small) in large.iter().zip(small) {
            assert!((large - small).abs() < 2e-5, "{id}: {large} {small}");
        }
    }
}

#[test]
fn what_is_masked_teaches_nothing() {
    struct Padded(u32);
    impl Padded {
        fn batch(&self, index: u64) -> Batch {
            let mut batch = BATCHES.batch(index);
            for row in 0..batch.rows {
                for position in 6..batch.length {
                    let i = row * batch.length + position;
                    (batch.tokens[i], batch.targets[i], batch.weights[i]) = (self.0, self.0, 0.0);
                }
            }
            batch
        }
    }
    let trained =
        |filler| run(tiny(4), Objective::CrossEntropy, &settings(3), &|index| Padded(filler).batch(index), None, 0).0.unwrap();
    assert_eq!(bits(&trained(0)), bits(&trained(17)));
}

#[test]
fn a_learning_rate_that_breaks_the_model_is_said_with_its_step() {
    let (architecture, config, mut tensors) = tiny(5).into_parts();
    tensors.get_mut(&TensorId::Embedding).unwrap()[0] = f32::INFINITY;
    let broken = Weights::new(architecture, config, tensors);
    let (trained, seen) = run(broken, Objective::CrossEntropy, &settings(3), &|index| BATCHES.batch(index), None, 0);
    let message = trained.unwrap_err().to_string();
    assert_eq!(
        message,
        "step 1: the loss is NaN; try a lower learning_rate (it is 0.0016666666666666668), more warmup_steps, or a smaller gradient_clip"
    );
    assert!(seen.is_empty());
}

#[test]
fn what_does_not_fit_together_is_refused_before_any_step() {
    let teacher = tiny(1);
    let refusal = |start: Weights, objective: Objective<'_>, batches: &dyn Fn(u64) -> Batch| {
        let (trained, seen) = run(start, objective, &settings(3), batches, None, 0);
        assert!(seen.is_empty());
        trained.unwrap_err().to_string()
    };
    let distill = |temperature, kd_ratio| Objective::Distill { teacher: &teacher, vocab_size: 40, temperature, kd_ratio };
    assert_eq!(refusal(tiny(2), distill(0.0, 0.5), &|index| BATCHES.batch(index)), "temperature is 0; it must be above 0");
    assert_eq!(refusal(tiny(2), distill(2.0, 1.5), &|index| BATCHES.batch(index)), "kd_ratio is 1.5; it must be from 0 to 1");
    let config = json!({
        "model_type": "llama", "vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 8, "max_position_embeddings": 64, "tie_word_embeddings": true
    });
    let other = Weights::random(Family::read(&config, Path::new("config.json")).unwrap(), 1);
    let all_of_the_students = Objective::Distill { teacher: &teacher, vocab_size: 50, temperature: 2.0, kd_ratio: 0.5 };
    assert_eq!(
        refusal(other, all_of_the_students, &|index| BATCHES.batch(index)),
        "the teacher has 40 tokens, the student 50; both must have the 50 that are learnt"
    );
    let few = Objective::Distill { teacher: &teacher, vocab_size: 30, temperature: 2.0, kd_ratio: 0.5 };
    let beyond = refusal(tiny(2), few, &|index| BATCHES.batch(index));
    assert!(beyond.ends_with(" is outside the vocabulary of 30"), "{beyond}");

    struct Wrong(fn(&mut Batch));
    impl Wrong {
        fn batch(&self, index: u64) -> Batch {
            let mut batch = BATCHES.batch(index);
            (self.0)(&mut batch);
            batch
        }
    }
    let of = |change: fn(&mut Batch)| refusal(tiny(2), Objective::CrossEntropy, &|index| Wrong(change).batch(index));
    assert_eq!(of(|batch| batch.tokens[3] = 40), "batch 0: token 40 is outside the vocabulary of 40");
    assert_eq!(of(|batch| batch.targets[3] = 99), "batch 0: target 99 is outside the vocabulary of 40");
    assert_eq!(of(|batch| batch.weights[3] = 0.5), "batch 0: holds the weight 0.5; a loss mask is 0 or 1");
    assert_eq!(of(|batch| batch.weights.truncate(3)), "batch 0: has 3 weights, and 4 rows of 9 ask for 36");
    assert_eq!(of(|batch| batch.weights.fill(0.0)), "batch 0: masks every position: there is nothing to learn from");
}

#[test]
fn logits_are_of_every_position_and_causal() {
    let weights = tiny(6);
    let tokens: Vec<u32> = (0..14).collect();
    let both = logits(&weights, &tokens, 2, 7, "cpu").unwrap();
    assert_eq!(both.len(), 14 * VOCAB);
    // The second row alone, and its first three tokens alone, give the same.
    let second = logits(&weights, &tokens[7..], 1, 7, "cpu").unwrap();
    let beginning = logits(&weights, &tokens[7..10], 1, 3, "cpu").unwrap();
    for (found, expected) in second.iter().zip(&both[7 * VOCAB..]).chain(beginning.iter().zip(&both[7 * VOCAB..])) {
        assert!((found - expected).abs() < 1e-6);
    }
    let refused = logits(&weights, &tokens, 3, 7, "cpu").unwrap_err().to_string();
    assert_eq!(refused, "batch 0: has 14 tokens, and 3 rows of 7 ask for 21");
}
