//! Quantization-aware training: what it rounds to, what is written and what the engine runs are the same, and it helps.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use compressor_engine::{ActivationType, Engine, Logits, Options};
use compressor_format::{
    Artifact, Batch, Checkpoint, Clipping, Dtype, EmbeddingScheme, Family, Model, Override, TensorId, Weights,
};
use compressor_pipeline::quantize::{FakeQuantizer, Quantization, quantize};
use compressor_train::{Descent, Objective, Training, logits, train};

use crate::command::root;
use crate::parity::WORST_DIFFERENCE;

fn round(fake: &FakeQuantizer, id: TensorId, values: &[f32]) -> Result<Option<Vec<f32>>, String> {
    fake.round(id, values).map_err(|overflow| overflow.to_string())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn a_forward_pass_sees_what_the_artifact_holds_and_the_engine_runs() {
    let int3 = Quantization {
        bits: 3,
        group_size: Some(4),
        symmetric: false,
        embedding: EmbeddingScheme::Int4,
        embedding_group_size: 4,
        clipping: Clipping::Mse,
        ..Quantization::default()
    };
    let layer = |pattern: &str, bits, dense| Override {
        pattern: pattern.to_owned(),
        bits,
        group_size: None,
        symmetric: bits.map(|bits| bits == 6),
        dense,
    };
    let quantizations = [
        Quantization { overrides: vec![layer("*.0.*", Some(6), false), layer("*.1.*", Some(2), false)], ..int3.clone() },
        Quantization { embedding: EmbeddingScheme::Dense, scale_dtype: Dtype::F32, ..int3 },
        Quantization { embedding_group_size: 8, ..Quantization::default() },
    ];
    let mut count = 0;
    for entry in fs_err::read_dir(root().join("tests/golden/models")).unwrap() {
        let Ok(checkpoint) = Checkpoint::open(&entry.unwrap().path()) else { continue };
        // Stored as a training leaves it.
        let [dense, folder] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        checkpoint.weights().unwrap().write(dense.path(), Dtype::F32).unwrap();
        checkpoint.copy_companions(dense.path()).unwrap();
        let checkpoint = Checkpoint::open(dense.path()).unwrap();
        let weights = checkpoint.weights().unwrap();
        let (architecture, config) = (checkpoint.architecture().clone(), checkpoint.config().clone());
        let tokens: Vec<u32> = (0..24).map(|place| (place * 7 + 3) % architecture.vocab_size as u32).collect();
        for quantization in &quantizations {
            let name = format!("{}, {}", checkpoint.path().display(), quantization.name());
            let out = folder.path().join(count.to_string());
            quantize(&checkpoint, quantization, None, &out, &mut |_, _, _| {}).unwrap();
            let artifact = Artifact::open(&out).unwrap();

            let fake = FakeQuantizer::new(quantization, &architecture).unwrap();
            let seen: RefCell<BTreeMap<TensorId, Vec<f32>>> = RefCell::default();
            let rounding = |id: TensorId, values: &[f32]| {
                let rounded = round(&fake, id, values)?;
                seen.borrow_mut().insert(id, rounded.clone().unwrap_or_else(|| values.to_vec()));
                Ok(rounded)
            };
            let training = Training { steps: 1, ..Training::default() };
            let batch = |_| Batch {
                tokens: tokens.clone(),
                targets: tokens.clone(),
                weights: vec![1.0; tokens.len()],
                rows: 1,
                length: tokens.len(),
            };
            let descent = Descent {
                objective: Objective::CrossEntropy,
                training: &training,
                batches: &batch,
                device: "cpu",
                state_folder: None,
                fingerprint: "",
                before_save: &|| Ok(()),
            };
            train(weights.clone(), Some(&rounding), &descent, &mut |_| ControlFlow::Continue(())).unwrap();
            let seen = seen.into_inner();
            assert_eq!(seen.len(), architecture.tensors().len(), "{name}");
            for (id, values) in &seen {
                assert!(bits(values) == bits(&artifact.values(*id).unwrap()), "{name}: {id}");
            }

            let options = Options { activations: ActivationType::F32, ..Options::default() };
            let engine = Engine::load(&Model::Artifact(artifact), options).unwrap();
            let ours = engine.forward(&mut engine.cache(tokens.len()), &tokens, Logits::All).unwrap();
            let seen = Weights::new(architecture.clone(), config.clone(), seen);
            let theirs = logits(&seen, &tokens, 1, tokens.len(), "cpu").unwrap();
            let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= WORST_DIFFERENCE, "{name}: {worst}");
            count += 1;
        }
    }
    assert_eq!(count, 24, "new golden model? count it here");
}

const VOCAB: usize = 40;

fn tiny(seed: u64) -> Weights {
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "head_dim": 8, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64, "tie_word_embeddings": true
    });
    Weights::random(Family::read(&config, Path::new("config.json")).unwrap(), seed)
}

/// Rows that go on by 1, 2 or 3, which the model has to find out.
fn steps_of(index: u64) -> Batch {
    let (rows, length) = (6, 12);
    let token = |i: usize, ahead: usize| {
        let (row, position) = (i / length, i % length);
        ((index as usize * 13 + row * 7 + (position + ahead) * (1 + (row + index as usize) % 3)) % VOCAB) as u32
    };
    Batch {
        tokens: (0..rows * length).map(|i| token(i, 0)).collect(),
        targets: (0..rows * length).map(|i| token(i, 1)).collect(),
        weights: (0..rows * length).map(|i| if i % length == 0 { 0.0 } else { 1.0 }).collect(),
        rows,
        length,
    }
}

/// Mean KL(teacher ‖ student) over batches that no training reads.
fn divergence(teacher: &Weights, student: &Weights) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for batch in (5000..5010).map(steps_of) {
        let [ours, theirs] =
            [student, teacher].map(|weights| logits(weights, &batch.tokens, batch.rows, batch.length, "cpu").unwrap());
        let rows = ours.chunks(VOCAB).zip(theirs.chunks(VOCAB)).zip(&batch.weights);
        for ((ours, theirs), _) in rows.filter(|(_, weight)| **weight > 0.0) {
            let log_sum = |row: &[f32]| row.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
            let (our_sum, their_sum) = (log_sum(ours), log_sum(theirs));
            let terms = ours.iter().zip(theirs).map(|(ours, theirs)| {
                let (log_q, log_p) = (f64::from(*ours) - our_sum, f64::from(*theirs) - their_sum);
                log_p.exp() * (log_p - log_q)
            });
            sum += terms.sum::<f64>();
            count += 1;
        }
    }
    sum / f64::from(count)
}

#[test]
fn two_bits_are_nearer_to_the_teacher_after_a_distillation_that_knew_of_them() {
    let training = Training { steps: 600, learning_rate: 5e-3, warmup_steps: 10, weight_decay: 0.0, ..Training::default() };
    let descend = |start: Weights, fake: Option<&FakeQuantizer>, objective| {
        let rounding = fake.map(|fake| |id: TensorId, values: &[f32]| round(fake, id, values));
        let rounding = rounding.as_ref().map(|rounding| rounding as &compressor_train::Rounding<'_>);
        let descent = Descent {
            objective,
            training: &training,
            batches: &steps_of,
            device: "cpu",
            state_folder: None,
            fingerprint: "",
            before_save: &|| Ok(()),
        };
        train(start, rounding, &descent, &mut |_| ControlFlow::Continue(())).unwrap()
    };
    // Other seeds and 900 steps were tried too: a seventh of the divergence at most.
    let teacher = descend(tiny(1), None, Objective::CrossEntropy);
    let objective =
        Objective::Distill { teacher: &teacher, vocab_size: teacher.architecture().vocab_size, temperature: 2.0, kd_ratio: 1.0 };
    for clipping in [Clipping::None, Clipping::Mse] {
        let quantization =
            Quantization { bits: 2, group_size: Some(16), clipping, embedding_group_size: 16, ..Quantization::default() };
        let fake = FakeQuantizer::new(&quantization, teacher.architecture()).unwrap();
        let rounded = |weights: &Weights| {
            let tensors =
                weights.iter().map(|(id, values)| (id, round(&fake, id, values).unwrap().unwrap_or_else(|| values.to_vec())));
            Weights::new(weights.architecture().clone(), serde_json::json!({}), tensors.collect())
        };
        let [plain, aware] = [None, Some(&fake)].map(|fake| descend(tiny(2), fake, objective));
        let [dense, before, after] = [&plain, &rounded(&plain), &rounded(&aware)].map(|student| divergence(&teacher, student));
        assert!(dense < 0.1 * before, "{clipping:?}: {dense} of {before} is not due to rounding");
        assert!(after < 0.5 * before, "{clipping:?}: {before} fell to {after} only");
    }
}
