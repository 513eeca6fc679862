//! The engine against other programs: Transformers on tiny models of every family, llm-compressor's artifacts, a real model.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use compressor_engine::{
    ActivationType, Blocks, Engine, Kernels, KvType, Logits, Observer, Options, Place, Sampler, Sequence, computation,
    generate_batch, generate_on, greedy,
};
use compressor_format::{
    Architecture, Checkpoint, CodebookMatrix, Codebooks, Dtype, Family, InputRounding, LayerShape, LayerTensor, Model,
    NewArtifact, NewArtifactTensor, Part, Positions, PromptCache, QuantizedMatrix, Scheme, StoredTensor, TensorFiles, TensorId,
    TensorSlice, Values, WeightBytes, Weights, pack,
};

/// Logits of the golden models are of size 1 to 10; both sides compute in f32 and differ in the order of their sums.
/// Measured: 7.3e-6.
const WORST_LOGIT_DIFFERENCE: f32 = 2e-5;

/// What some steps of keys and values in f16 or INT8 move these logits by. Measured: 1.6e-4.
const WORST_STEP_DIFFERENCE: f32 = 1e-3;

const GOLDEN: [&str; 8] = ["gpt2", "llama", "llama-head-dim", "llama-sharded-bf16", "llama3-rope", "mistral", "qwen2", "qwen3"];

fn golden_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models").join(name)
}

/// What Transformers computed: prompt, logits of each position, and a prefix of the prompt with its greedy continuation.
struct Golden {
    input_ids: Vec<u32>,
    logits: Vec<f32>,
    generated_ids: Vec<u32>,
}

impl Golden {
    fn read(name: &str) -> Self {
        let bytes = fs_err::read(golden_folder(name).join("golden.safetensors")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join("model.safetensors"), bytes).unwrap();
        let files = TensorFiles::open(folder.path()).unwrap();
        let ids = |name| {
            let integers =
                files.get(name).unwrap().bytes.chunks_exact(8).map(|eight| i64::from_le_bytes(eight.try_into().unwrap()));
            integers.map(|id| u32::try_from(id).unwrap()).collect::<Vec<u32>>()
        };
        Self {
            input_ids: ids("input_ids"),
            logits: files.get("logits").unwrap().to_f32().unwrap(),
            generated_ids: ids("generated_ids"),
        }
    }
}

fn open(path: &Path) -> Engine {
    Engine::open(path, Options::default()).unwrap()
}

fn all_logits(engine: &Engine, tokens: &[u32]) -> Vec<f32> {
    engine.forward(&mut engine.cache(tokens.len()), tokens, Logits::All).unwrap()
}

fn worst_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn every_golden_model_is_tested() {
    let mut names: Vec<String> = fs_err::read_dir(golden_folder("."))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, GOLDEN, "new golden model? list it here");
}

#[test]
fn logits_are_those_of_transformers() {
    for name in GOLDEN {
        let golden = Golden::read(name);
        for kernels in Kernels::available() {
            let engine = Engine::open(&golden_folder(name), Options { kernels: Some(kernels), ..Options::default() }).unwrap();
            let worst = worst_difference(&all_logits(&engine, &golden.input_ids), &golden.logits);
            println!("{name}, {}: logits differ by at most {worst:e}", kernels.name());
            assert!(worst <= WORST_LOGIT_DIFFERENCE, "{name}: {worst}");
        }
    }
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    for name in GOLDEN {
        let generated = Golden::read(name).generated_ids;
        let engine = open(&golden_folder(name));
        assert_eq!(greedy(&engine, &generated[..8], 16, &[]).unwrap(), generated[8..], "{name}");
    }
}

#[test]
fn token_by_token_and_in_pieces_is_the_whole_prompt() {
    for name in GOLDEN {
        let golden = Golden::read(name);
        let engine = open(&golden_folder(name));
        for kernels in Kernels::available() {
            let engine =
                Engine::open(&golden_folder(name), Options { kernels: Some(kernels), threads: Some(1), ..Options::default() })
                    .unwrap();
            let mut cache = engine.cache(0);
            let single: Vec<f32> =
                golden.input_ids.iter().flat_map(|token| engine.forward(&mut cache, &[*token], Logits::Last).unwrap()).collect();
            let worst = worst_difference(&single, &golden.logits);
            println!("{name}, {}, token by token: logits differ by at most {worst:e}", kernels.name());
            assert!(worst <= WORST_LOGIT_DIFFERENCE, "{name}, {}: {worst}", kernels.name());
        }
        let mut cache = engine.cache(24);
        let pieces: Vec<f32> = [&golden.input_ids[..5], &golden.input_ids[5..7], &golden.input_ids[7..]]
            .into_iter()
            .flat_map(|piece| engine.forward(&mut cache, piece, Logits::All).unwrap())
            .collect();
        assert!(worst_difference(&pieces, &golden.logits) <= WORST_LOGIT_DIFFERENCE, "{name}");
        cache.truncate(5);
        let again = engine.forward(&mut cache, &golden.input_ids[5..], Logits::From(18)).unwrap();
        let vocab_size = engine.architecture().vocab_size;
        assert_eq!(again.len(), vocab_size);
        assert!(worst_difference(&again, &golden.logits[23 * vocab_size..]) <= WORST_LOGIT_DIFFERENCE, "{name}");
    }
}

#[test]
fn sequences_of_a_batch_do_not_see_each_other() {
    for name in GOLDEN {
        let golden = Golden::read(name);
        let engine = open(&golden_folder(name));
        let (mut first, mut second) = (engine.cache(0), engine.cache(0));
        engine.forward(&mut second, &golden.input_ids[..9], Logits::Last).unwrap();
        let mut sequences = [
            Sequence { cache: &mut first, tokens: &golden.input_ids[..6] },
            Sequence { cache: &mut second, tokens: &golden.input_ids[9..10] },
        ];
        let logits = engine.forward_batch(&mut sequences, Logits::Last).unwrap();
        let vocab_size = engine.architecture().vocab_size;
        let row = |token: usize| &golden.logits[token * vocab_size..(token + 1) * vocab_size];
        assert!(worst_difference(&logits, &[row(5), row(9)].concat()) <= WORST_LOGIT_DIFFERENCE, "{name}");
        assert_eq!((first.tokens(), second.tokens()), (6, 10));
    }
}

#[test]
fn a_batch_of_prompts_continues_each_as_if_alone() {
    for name in GOLDEN {
        let golden = Golden::read(name);
        let engine = open(&golden_folder(name));
        // More than go through the model together, of different lengths.
        let prompts: Vec<Vec<u32>> = (0..70).map(|index| golden.input_ids[index % 7..8 + index % 13].to_vec()).collect();
        let stop = &golden.generated_ids[12..13];
        let expected: Vec<Vec<u32>> = prompts.iter().map(|prompt| greedy(&engine, prompt, 9, stop).unwrap()).collect();
        assert_eq!(generate_batch(&engine, &prompts, 9, stop).unwrap(), expected, "{name}");
        assert!(expected.iter().any(|tokens| tokens.len() < 9), "{name}: some continuation should meet the stop token");
    }
}

#[test]
fn a_continuation_ends_where_the_learned_positions_do() {
    let engine = open(&golden_folder("gpt2"));
    let positions = engine.architecture().max_position_embeddings;
    let prompt = vec![3; positions - 4];
    // Positions for four more tokens, and one that is predicted and never read.
    let expected = greedy(&engine, &prompt, 1000, &[]).unwrap();
    assert_eq!(expected.len(), 5);
    assert_eq!(generate_batch(&engine, &[prompt, vec![3; 2]], 6, &[]).unwrap()[0], expected);
    assert_eq!(greedy(&engine, &vec![3; positions], 9, &[]).unwrap().len(), 1);
}

/// A model large enough that its work is shared out among threads.
fn larger() -> Architecture {
    let tiny = Checkpoint::open(&golden_folder("llama")).unwrap();
    let layer = LayerShape { heads: 6, kv_heads: 3, intermediate_size: 200 };
    Architecture { vocab_size: 500, hidden_size: 96, head_dim: 32, layers: vec![layer; 2], ..tiny.architecture().clone() }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let weights = Weights::random(larger(), 3);
    // Longer than one block of queries.
    let tokens: Vec<u32> = (0..150).map(|index| index * 37 % 500).collect();
    let of = |threads| {
        let engine = Engine::from_weights(&weights, Options { threads: Some(threads), ..Options::default() }).unwrap();
        assert_eq!(engine.threads(), threads);
        let mut cache = engine.cache(0);
        let prompt = engine.forward(&mut cache, &tokens, Logits::All).unwrap();
        let next = engine.forward(&mut cache, &[7], Logits::Last).unwrap();
        let prompts: Vec<Vec<u32>> = tokens.chunks(3).map(<[u32]>::to_vec).collect();
        let generated = generate_batch(&engine, &prompts, 5, &[]).unwrap();
        let bits: Vec<u32> = prompt.into_iter().chain(next).map(f32::to_bits).collect();
        (bits, generated)
    };
    let one = of(1);
    assert!(of(2) == one);
    assert!(of(7) == one);
}

/// Activations as they are, so that the logits can be compared with those of real numbers.
fn weight_only(kernels: Kernels) -> Options {
    let activations = ActivationType::F32;
    Options { threads: Some(2), kernels: Some(kernels), activations, ..Options::default() }
}

/// What an artifact's projections do with their inputs.
type Rounds = fn(&Architecture) -> InputRounding;

const REAL: Rounds = |_| InputRounding::None;
const PER_TOKEN: Rounds = |_| InputRounding::PerToken;

/// Static scales, of each projection another. Inputs that a norm made reach 1.3 to 3.3 with them, and more is cut.
const STATIC: Rounds = |architecture| {
    let projections = Family::stored(architecture).into_iter().filter(|stored| stored.parts[0].is_projection());
    InputRounding::Static(projections.zip(10u8..).map(|(stored, at)| (stored.name, f32::from(at) / 1000.0)).collect())
};

/// The larger model with every matrix in integers.
fn larger_artifact(scheme: Scheme, rounds: Rounds) -> tempfile::TempDir {
    // A width that groups of 32 divide.
    let layers = vec![LayerShape { intermediate_size: 224, ..larger().layers[0] }; 2];
    let weights = Weights::random(Architecture { layers, ..larger() }, 3);
    let architecture = weights.architecture();
    let quantized = |stored: StoredTensor| {
        let id = stored.parts[0];
        let values: Vec<f32> = stored.parts.iter().flat_map(|part| weights.get(*part).to_vec()).collect();
        let shape = architecture.shape(id);
        let tensor = match shape.len() {
            2 => NewArtifactTensor::Quantized(quantize(&values, shape[1], scheme, packed)),
            _ => NewArtifactTensor::Dense(values),
        };
        (stored, tensor)
    };
    let folder = tempfile::tempdir().unwrap();
    let tensors = Family::stored(architecture).into_iter().map(quantized).collect();
    let (config, input_rounding) = (weights.config(), rounds(architecture));
    NewArtifact { architecture, config, dense_dtype: Dtype::F32, scale_dtype: Dtype::F32, tensors, input_rounding }
        .write(folder.path())
        .unwrap();
    folder
}

#[test]
fn integers_give_the_same_bits_on_any_threads_alone_and_in_a_prompt() {
    let tokens: Vec<u32> = (0..512).map(|index| index * 37 % 500).collect();
    for (scheme, rounds) in [
        (Scheme { bits: 4, group_size: Some(32), symmetric: true }, REAL),
        (Scheme { bits: 4, group_size: Some(8), symmetric: false }, REAL),
        (Scheme { bits: 8, group_size: None, symmetric: true }, REAL),
        (Scheme { bits: 8, group_size: None, symmetric: true }, PER_TOKEN),
        (Scheme { bits: 8, group_size: None, symmetric: true }, STATIC),
    ] {
        let folder = larger_artifact(scheme, rounds);
        for kv_type in [KvType::F32, KvType::F16, KvType::Int8] {
            let of = |threads, kernels| {
                let options = Options { threads: Some(threads), kernels: Some(kernels), kv_type, ..Options::default() };
                let engine = Engine::open(folder.path(), options).unwrap();
                let mut cache = engine.cache(512);
                let together = engine.forward(&mut cache, &tokens, Logits::All).unwrap();
                together.iter().map(|logit| logit.to_bits()).collect::<Vec<u32>>()
            };
            let one = of(1, Kernels::best());
            assert!(of(2, Kernels::best()) == one, "{scheme}, {kv_type:?}, two threads");
            assert!(of(7, Kernels::best()) == one, "{scheme}, {kv_type:?}, seven threads");
            for kernels in Kernels::available().into_iter().filter(|kernels| *kernels != Kernels::Scalar) {
                assert!(of(2, kernels) == one, "{scheme}, {kv_type:?}, {}", kernels.name());
            }
            let engine = Engine::open(folder.path(), Options { kv_type, ..Options::default() }).unwrap();
            let mut cache = engine.cache(0);
            let alone = tokens.iter().flat_map(|token| engine.forward(&mut cache, &[*token], Logits::Last).unwrap());
            assert!(alone.map(f32::to_bits).eq(one), "{scheme}, {kv_type:?}, token by token");
        }
    }
}

/// The logits of everything after the first `prefix` tokens, whose keys and values go through a file; `stored` tokens of another
/// prompt that begins alike stand in it.
fn after_a_file(folder: &Path, options: Options, tokens: &[u32], prefix: usize, stored: usize) -> Vec<f32> {
    let model = Model::open(folder).unwrap();
    let engine = Engine::load(&model, options).unwrap();
    let computed = computation(&model, options);
    let mut other = tokens[..prefix].to_vec();
    other.resize(stored, tokens[prefix] ^ 1);
    let mut cache = engine.cache(0);
    engine.forward(&mut cache, &other, Logits::Last).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompt.cache");
    cache.store(&other, computed.clone()).write(&path).unwrap();

    let found = PromptCache::open(&path, &computed).unwrap().unwrap();
    assert_eq!(found.common_tokens(tokens), prefix);
    let mut cache = engine.restore(&found, prefix, tokens.len()).unwrap();
    assert_eq!(cache.tokens(), prefix);
    engine.forward(&mut cache, &tokens[prefix..], Logits::All).unwrap()
}

const KV_TYPES: [KvType; 3] = [KvType::F32, KvType::F16, KvType::Int8];

#[test]
fn integers_after_a_stored_prefix_give_the_same_bits() {
    // Longer than a block of positions, and than the room that a cache has at first.
    let tokens: Vec<u32> = (0..90).map(|index| index * 37 % 500).collect();
    let bits = |logits: &[f32]| logits.iter().map(|logit| logit.to_bits()).collect::<Vec<u32>>();
    let folder = larger_artifact(Scheme { bits: 4, group_size: Some(32), symmetric: true }, REAL);
    for kv_type in KV_TYPES {
        let options = Options { threads: Some(2), kv_type, ..Options::default() };
        let whole = all_logits(&Engine::open(folder.path(), options).unwrap(), &tokens);
        for (prefix, stored) in [(1, 1), (16, 16), (17, 40), (37, 37), (89, 90)] {
            let after = after_a_file(folder.path(), options, &tokens, prefix, stored);
            assert!(bits(&after) == bits(&whole[prefix * 500..]), "{kv_type:?}, {prefix} of {stored}");
        }
    }
}

#[test]
fn dense_models_after_a_stored_prefix_give_the_same_logits() {
    for name in GOLDEN {
        let tokens = Golden::read(name).input_ids;
        for kv_type in KV_TYPES {
            let options = Options { kv_type, ..Options::default() };
            let engine = Engine::open(&golden_folder(name), options).unwrap();
            // The same pieces without a file: sums in the order that pieces have, keys and values in the same steps.
            let mut cache = engine.cache(0);
            engine.forward(&mut cache, &tokens[..9], Logits::Last).unwrap();
            let expected = engine.forward(&mut cache, &tokens[9..], Logits::All).unwrap();
            let after = after_a_file(&golden_folder(name), options, &tokens, 9, 9);
            assert_eq!(worst_difference(&after, &expected), 0.0, "{name}, {kv_type:?}");
            let whole = all_logits(&engine, &tokens);
            let worst = worst_difference(&after, &whole[9 * engine.architecture().vocab_size..]);
            // Where integers or halves lie between two steps, the last bit of a sum decides.
            let limit = if kv_type == KvType::F32 { WORST_LOGIT_DIFFERENCE } else { WORST_STEP_DIFFERENCE };
            println!("{name}, {kv_type:?}: logits differ by at most {worst:e}");
            assert!(worst <= limit, "{name}, {kv_type:?}: {worst}");
        }
    }
}

#[test]
fn a_generation_on_a_stored_prompt_is_the_same_generation() {
    let folder = golden_folder("llama");
    let model = Model::open(&folder).unwrap();
    let engine = Engine::load(&model, Options::default()).unwrap();
    let prompt = &Golden::read("llama").generated_ids[..8];
    let expected = greedy(&engine, prompt, 16, &[]).unwrap();
    let mut cache = engine.cache(0);
    for cached in [0, 7, 8 + 15] {
        assert_eq!(cache.tokens(), cached);
        let mut generated = Vec::new();
        generate_on(&engine, &mut cache, prompt, 16, &[], &mut Sampler::greedy(), |token| {
            generated.push(token);
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(generated, expected);
        let stored = cache.store(prompt, computation(&model, Options::default()));
        if cached == 0 {
            cache = engine.restore(&stored, 7, 0).unwrap();
        }
    }
    let error = generate_on(&engine, &mut cache, &[], 1, &[], &mut Sampler::greedy(), |_| ControlFlow::Break(())).unwrap_err();
    assert_eq!(error.to_string(), "no tokens: a forward pass needs at least one");
}

#[test]
fn stored_prompts_that_do_not_fit_are_refused() {
    let options = |kv_type| Options { kv_type, ..Options::default() };
    let stored = |name: &str, kv_type| {
        let model = Model::open(&golden_folder(name)).unwrap();
        let engine = Engine::load(&model, options(kv_type)).unwrap();
        let mut cache = engine.cache(0);
        engine.forward(&mut cache, &[1, 2, 3], Logits::Last).unwrap();
        cache.store(&[1, 2], computation(&model, options(kv_type)))
    };
    let llama = Engine::open(&golden_folder("llama"), options(KvType::Int8)).unwrap();
    let refused = |stored: &PromptCache, tokens| {
        let error = llama.restore(stored, tokens, 0).unwrap_err().to_string();
        error.strip_prefix("the stored prompt does not fit: ").unwrap().to_owned()
    };
    let own = stored("llama", KvType::Int8);
    assert_eq!(llama.restore(&own, 2, 0).unwrap().tokens(), 2);
    assert_eq!(refused(&own, 3), "it has 2 tokens, asked for are 3");
    assert_eq!(refused(&stored("llama", KvType::F16), 2), "layer 0 has f16 of [2, 2, 8], the model i8 of [2, 2, 8]");
    assert_eq!(refused(&stored("gpt2", KvType::Int8), 2), "layer 0 has i8 of [4, 2, 8], the model i8 of [2, 2, 8]");
    let mut shorter = own.clone();
    shorter.layers.pop();
    assert_eq!(refused(&shorter, 2), "it has 1 layers, the model 2");
    let mut bare = own;
    bare.layers[1].values.scales = None;
    assert_eq!(refused(&bare, 2), "layer 1 has no scales");
}

#[test]
fn smaller_keys_and_values_change_little() {
    let golden = Golden::read("llama");
    // Halves keep eleven bits, bytes seven; logits are of size 1 to 10.
    for (kv_type, limit, bytes) in [(KvType::F16, 2e-2, 2), (KvType::Int8, 0.4, 1)] {
        let engine = Engine::open(&golden_folder("llama"), Options { kv_type, ..Options::default() }).unwrap();
        let worst = worst_difference(&all_logits(&engine, &golden.input_ids), &golden.logits);
        println!("{kv_type:?}: logits differ by at most {worst:e}");
        assert!(worst > 0.0 && worst <= limit, "{kv_type:?}: {worst}");
        let full = open(&golden_folder("llama")).cache(64).memory_bytes();
        let small = engine.cache(64).memory_bytes();
        assert!(small >= full * bytes / 4 && small < full * bytes / 4 + full / 8, "{kv_type:?}: {small} of {full} bytes");
    }
}

#[test]
fn a_cache_with_room_for_everything_is_allocated_once() {
    let engine = open(&golden_folder("llama"));
    let mut cache = engine.cache(40);
    let before = cache.memory_bytes();
    engine.forward(&mut cache, &[5; 30], Logits::Last).unwrap();
    for _ in 0..10 {
        engine.forward(&mut cache, &[7], Logits::Last).unwrap();
    }
    assert_eq!((cache.tokens(), cache.memory_bytes()), (40, before));
}

#[test]
fn layers_of_different_sizes_run() {
    let mut architecture = larger();
    architecture.layers[1] = LayerShape { heads: 2, kv_heads: 1, intermediate_size: 33 };
    let engine = Engine::from_weights(&Weights::random(architecture, 4), Options::default()).unwrap();
    let tokens = [1, 2, 3, 4, 5, 6];
    let whole = all_logits(&engine, &tokens);
    let mut cache = engine.cache(0);
    let single = tokens.iter().flat_map(|token| engine.forward(&mut cache, &[*token], Logits::Last).unwrap());
    assert!(worst_difference(&whole, &single.collect::<Vec<f32>>()) < WORST_LOGIT_DIFFERENCE);
}

#[test]
fn a_damaged_weight_is_found_in_the_logits() {
    let (architecture, config, mut tensors) = Weights::random(larger(), 5).into_parts();
    tensors.get_mut(&TensorId::Layer(1, LayerTensor::Down(Part::Weight))).unwrap()[7] = f32::NAN;
    let engine = Engine::from_weights(&Weights::new(architecture, config, tensors), Options::default()).unwrap();
    let error = engine.forward(&mut engine.cache(0), &[1, 2, 3, 4, 5, 6], Logits::Last).unwrap_err();
    assert_eq!(error.to_string(), "the logits of position 0 are not finite: a weight of the model is damaged or overflows");
}

#[test]
fn sizes_that_contradict_each_other_are_refused_by_layer() {
    let refusal = |layer: LayerShape| {
        let mut architecture = larger();
        architecture.layers[1] = layer;
        let weights = Weights::random(architecture, 6);
        Engine::from_weights(&weights, Options::default()).unwrap_err().to_string()
    };
    let layer = larger().layers[0];
    assert_eq!(refusal(LayerShape { heads: 7, ..layer }), "layer 1: 7 query heads can't be shared out among 3 key/value heads");
    assert_eq!(refusal(LayerShape { intermediate_size: 0, ..layer }), "layer 1: the MLP has no intermediate channels");
}

#[test]
fn mistakes_are_refused_with_both_values() {
    let engine = open(&golden_folder("gpt2"));
    let message = |tokens: &[u32]| engine.forward(&mut engine.cache(0), tokens, Logits::Last).unwrap_err().to_string();
    let vocab_size = engine.architecture().vocab_size;
    let positions = engine.architecture().max_position_embeddings;
    assert_eq!(
        message(&[3, 4, 100_000]),
        format!("token 100000 at position 2, the vocabulary has {vocab_size}: was the text encoded with another tokenizer?")
    );
    assert_eq!(
        message(&vec![3; positions + 1]),
        format!("the sequence has {} tokens, the model takes at most {positions}: use a shorter text or window", positions + 1)
    );
    assert_eq!(message(&[]), "no tokens: a forward pass needs at least one");
    let other = open(&golden_folder("llama"));
    assert_eq!(
        engine.forward(&mut other.cache(0), &[3], Logits::Last).unwrap_err().to_string(),
        "the cache was made for another model: its layers have [(2, 8), (2, 8)] key/value heads and elements of each, this model's \
         [(4, 8), (4, 8)]"
    );
}

#[test]
fn a_cache_of_as_many_elements_in_other_heads_is_refused() {
    let (one, other) = (open(&golden_folder("gpt2")), open(&golden_folder("qwen3")));
    let error = other.forward(&mut one.cache(4), &[3], Logits::Last).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the cache was made for another model: its layers have [(4, 8), (4, 8)] key/value heads and elements of each, this model's \
         [(2, 16), (2, 16)]"
    );
}

#[test]
fn no_sequences_have_no_logits() {
    assert!(open(&golden_folder("llama")).forward_batch(&mut [], Logits::All).unwrap().is_empty());
}

#[test]
fn damage_is_forgotten_with_its_token() {
    // An untied head: a damaged row of the embedding is met with its own token alone.
    let untied = Architecture { tied_embeddings: false, ..larger() };
    let (architecture, config, mut tensors) = Weights::random(untied, 5).into_parts();
    let hidden_size = architecture.hidden_size;
    tensors.get_mut(&TensorId::Embedding).unwrap()[7 * hidden_size..8 * hidden_size].fill(f32::NAN);
    let weights = Weights::new(architecture, config, tensors);
    for kv_type in [KvType::F32, KvType::F16, KvType::Int8] {
        let engine = Engine::from_weights(&weights, Options { kv_type, ..Options::default() }).unwrap();
        let whole = engine.forward(&mut engine.cache(40), &[1, 2, 3], Logits::Last).unwrap();
        let mut cache = engine.cache(40);
        assert!(engine.forward(&mut cache, &[1, 2, 7, 4], Logits::Last).is_err());
        cache.truncate(2);
        let after = engine.forward(&mut cache, &[3], Logits::Last).unwrap();
        assert!(worst_difference(&after, &whole) < WORST_LOGIT_DIFFERENCE, "{kv_type:?}");
    }
}

#[test]
fn rotary_models_run_past_the_length_they_were_made_for() {
    let engine = open(&golden_folder("llama"));
    let tokens = vec![5; engine.architecture().max_position_embeddings + 10];
    assert_eq!(engine.forward(&mut engine.cache(0), &tokens, Logits::Last).unwrap().len(), engine.architecture().vocab_size);
}

/// Lays out integers with this many columns and bits.
type Pack = fn(Vec<i8>, usize, u8) -> Values;

/// Rounds to the nearest integers, with zero points that do not fit the values but are stored and read back all the same.
fn quantize(values: &[f32], columns: usize, scheme: Scheme, storage: Pack) -> QuantizedMatrix {
    let group_size = scheme.group_size.unwrap_or(columns);
    let (lowest, highest) = scheme.range();
    let scale = |group: &[f32]| group.iter().fold(f32::EPSILON, |largest, w| largest.max(w.abs())) / highest as f32;
    let scales: Vec<f32> = values.chunks(group_size).map(scale).collect();
    let points: Vec<i8> = (0..scales.len()).map(|group| (group % 5) as i8 - 2).collect();
    let round = |(group, w): (usize, f32)| {
        let point = if scheme.symmetric { 0.0 } else { f32::from(points[group]) };
        (w / scales[group] + point).round().clamp(lowest as f32, highest as f32) as i8
    };
    let integers = values.iter().enumerate().map(|(index, w)| round((index / group_size, *w))).collect();
    QuantizedMatrix {
        rows: values.len() / columns,
        columns,
        scheme,
        values: storage(integers, columns, scheme.bits),
        zero_points: (!scheme.symmetric).then_some(points),
        scales: scales.into(),
    }
}

fn packed(integers: Vec<i8>, columns: usize, bits: u8) -> Values {
    let bytes: Vec<u8> = integers.chunks(columns).flat_map(|row| pack(row, bits)).collect();
    Values::Packed(WeightBytes::Owned(bytes.into()))
}

fn signed(integers: Vec<i8>, _: usize, _: u8) -> Values {
    Values::Signed(WeightBytes::Owned(integers.into_iter().map(|q| q as u8).collect()))
}

/// A golden model with its projections and its embedding quantized, written to a folder.
fn artifact(name: &str, scheme: Scheme, storage: Pack, rounds: Rounds) -> tempfile::TempDir {
    let checkpoint = Checkpoint::open(&golden_folder(name)).unwrap();
    let architecture = checkpoint.architecture();
    let embedding = Scheme { bits: 8, group_size: Some(16), symmetric: true };
    let quantized = |stored: StoredTensor| {
        let id = stored.parts[0];
        let values: Vec<f32> = stored.parts.iter().flat_map(|part| checkpoint.tensor(*part).unwrap()).collect();
        let tensor = match id {
            _ if id.is_projection() => {
                NewArtifactTensor::Quantized(quantize(&values, architecture.shape(id)[1], scheme, storage))
            }
            TensorId::Embedding => NewArtifactTensor::Quantized(quantize(&values, architecture.hidden_size, embedding, packed)),
            _ => NewArtifactTensor::Dense(values),
        };
        (stored, tensor)
    };
    let folder = tempfile::tempdir().unwrap();
    let tensors = Family::stored(architecture).into_iter().map(quantized).collect();
    let (config, input_rounding) = (checkpoint.config(), rounds(architecture));
    NewArtifact { architecture, config, dense_dtype: Dtype::F32, scale_dtype: Dtype::F32, tensors, input_rounding }
        .write(folder.path())
        .unwrap();
    folder
}

#[test]
fn a_model_from_bytes_gives_the_bits_of_its_folder() {
    let tokens = Golden::read("llama").input_ids;
    let artifact = artifact("llama", Scheme { bits: 4, group_size: Some(16), symmetric: true }, packed, REAL);
    for folder in [golden_folder("llama"), artifact.path().to_owned()] {
        let config = fs_err::read(folder.join("config.json")).unwrap();
        let weights = fs_err::read(folder.join("model.safetensors")).unwrap();
        for kernels in Kernels::available() {
            let options = Options { kernels: Some(kernels), threads: Some(1), ..Options::default() };
            let opened = all_logits(&Engine::open(&folder, options).unwrap(), &tokens);
            let read = all_logits(&Engine::from_bytes(&config, weights.clone(), options).unwrap(), &tokens);
            let bits = |logits: &[f32]| logits.iter().map(|logit| logit.to_bits()).collect::<Vec<u32>>();
            assert!(bits(&read) == bits(&opened), "{}, {}", folder.display(), kernels.name());
        }
        let cut = weights[..weights.len() - 1].to_vec();
        let expected = format!(
            "model.safetensors: its {} bytes are not what the header says: the file is cut short or has a tail",
            cut.len()
        );
        assert_eq!(Engine::from_bytes(&config, cut, Options::default()).unwrap_err().to_string(), expected);
    }
}

#[test]
fn an_artifact_gives_the_logits_of_its_dequantized_weights() {
    let int4 = |group_size, symmetric| Scheme { bits: 4, group_size, symmetric };
    let int8 = |group_size, symmetric| Scheme { bits: 8, group_size, symmetric };
    let schemes = [int4(Some(32), true), int4(Some(16), false), int4(None, true), int8(None, false), int8(Some(32), true)];
    for name in ["llama", "gpt2", "qwen2", "qwen3"] {
        let tokens = Golden::read(name).input_ids;
        for scheme in schemes {
            let folder = artifact(name, scheme, packed, REAL);
            let model = Model::open(folder.path()).unwrap();
            let architecture = model.architecture().clone();
            let values = architecture.tensors().into_iter().map(|id| (id, model.values(id).unwrap())).collect();
            let dense = Weights::new(architecture, serde_json::json!({}), values);
            let expected = all_logits(&Engine::from_weights(&dense, Options::default()).unwrap(), &tokens);
            for kernels in Kernels::available() {
                let engine = Engine::load(&model, weight_only(kernels)).unwrap();
                let mut cache = engine.cache(0);
                let single = tokens.iter().flat_map(|token| engine.forward(&mut cache, &[*token], Logits::Last).unwrap());
                for logits in [all_logits(&engine, &tokens), single.collect()] {
                    let worst = worst_difference(&logits, &expected);
                    assert!(worst <= WORST_LOGIT_DIFFERENCE, "{name}, {scheme}, {}: {worst}", kernels.name());
                }
            }
        }
    }
}

/// Codebooks of the values between the smallest and the largest of some rows, and the nearest of them for each value.
fn cluster(values: &[f32], columns: usize, codebooks: Codebooks, dtype: Dtype) -> CodebookMatrix {
    let rows = values.len() / columns;
    let (mut centroids, mut integers) = (Vec::new(), Vec::new());
    for values in values.chunks(codebooks.rows.unwrap_or(rows) * columns) {
        let (low, high) = values.iter().fold((0f32, 0f32), |(low, high), value| (low.min(*value), high.max(*value)));
        let last = codebooks.centroids() - 1;
        let step = (high - low) / last as f32;
        centroids.extend((0..=last).map(|index| dtype.nearest(low + index as f32 * step).unwrap()));
        integers.extend(values.iter().map(|value| ((value - low) / step) as usize as u8));
    }
    let half = 1u8 << (codebooks.bits - 1);
    let integers: Vec<i8> = integers.into_iter().map(|index| index.wrapping_sub(half) as i8).collect();
    let indices: Vec<u8> = integers.chunks(columns).flat_map(|row| pack(row, codebooks.bits)).collect();
    let shape = vec![codebooks.count(rows), codebooks.centroids()];
    let centroids = TensorSlice { dtype, shape, bytes: dtype.from_f32(&centroids).unwrap().into() };
    CodebookMatrix { rows, columns, codebooks, indices: WeightBytes::Owned(indices.into()), centroids }
}

#[test]
fn codebooks_give_the_bits_of_the_dense_weights_that_they_stand_for() {
    let mut compared = 0;
    for name in ["llama", "gpt2", "qwen3"] {
        let tokens = Golden::read(name).input_ids;
        let checkpoint = Checkpoint::open(&golden_folder(name)).unwrap();
        let architecture = checkpoint.architecture();
        for (bits, rows, dtype) in [(4, None, Dtype::F16), (4, Some(2), Dtype::F32), (8, Some(4), Dtype::Bf16)] {
            let codebooks = Codebooks { bits, rows };
            let tensors = Family::stored(architecture).into_iter().map(|stored| {
                let values: Vec<f32> = stored.parts.iter().flat_map(|part| checkpoint.tensor(*part).unwrap()).collect();
                let id = stored.parts[0];
                let tensor = match id.is_projection() {
                    true => NewArtifactTensor::Codebooks(cluster(&values, architecture.shape(id)[1], codebooks, dtype)),
                    false => NewArtifactTensor::Dense(values),
                };
                (stored, tensor)
            });
            let (folder, config, tensors) = (tempfile::tempdir().unwrap(), checkpoint.config(), tensors.collect());
            NewArtifact {
                architecture,
                config,
                dense_dtype: Dtype::F32,
                scale_dtype: dtype,
                tensors,
                input_rounding: InputRounding::None,
            }
            .write(folder.path())
            .unwrap();
            let model = Model::open(folder.path()).unwrap();
            let values = architecture.tensors().into_iter().map(|id| (id, model.values(id).unwrap())).collect();
            let dense = Weights::new(architecture.clone(), serde_json::json!({}), values);
            for kernels in Kernels::available() {
                let options = Options { threads: Some(2), kernels: Some(kernels), ..Options::default() };
                let (engine, expected) = (Engine::load(&model, options).unwrap(), Engine::from_weights(&dense, options).unwrap());
                let single = |engine: &Engine| -> Vec<f32> {
                    let mut cache = engine.cache(0);
                    tokens.iter().flat_map(|token| engine.forward(&mut cache, &[*token], Logits::Last).unwrap()).collect()
                };
                assert!(
                    all_logits(&engine, &tokens) == all_logits(&expected, &tokens),
                    "{name}, {codebooks}, {}",
                    kernels.name()
                );
                assert!(single(&engine) == single(&expected), "{name}, {codebooks}, {}", kernels.name());
                compared += 1;
            }
            // Written out as the type that the centroids have.
            let engine = Engine::load(&model, Options::default()).unwrap();
            let projections = architecture.tensors().into_iter().filter(|id| id.is_projection());
            let weights: usize = projections.map(|id| architecture.shape(id).iter().product::<usize>()).sum();
            let as_f32 = Engine::from_weights(&dense, Options::default()).unwrap().memory_bytes();
            assert_eq!(engine.memory_bytes(), as_f32 - weights * (4 - dtype.bytes()));
        }
    }
    assert_eq!(compared, 9 * Kernels::available().len());
}

#[test]
fn int8_activations_are_rounded_token_by_token() {
    /// Keeps what goes into the MLP of the first layer and what its down projection gets.
    #[derive(Default)]
    struct Mlp {
        input: Vec<f32>,
        channels: Vec<f32>,
    }
    impl Observer for Mlp {
        fn observe(&mut self, layer: usize, place: Place, activations: &[f32]) {
            match place {
                Place::MlpInput if layer == 0 => self.input = activations.to_vec(),
                Place::DownInput if layer == 0 => self.channels = activations.to_vec(),
                _ => {}
            }
        }
    }
    let tokens = Golden::read("llama").input_ids;
    let symmetric = |bits, group_size| Scheme { bits, group_size, symmetric: true };
    // In integers where the file has signed bytes with one scale a row, through f32 for anything else.
    let stored: [(Scheme, Pack); 3] =
        [(symmetric(8, None), signed), (symmetric(8, None), packed), (symmetric(4, Some(16)), packed)];
    for (scheme, storage) in stored {
        let folder = artifact("llama", scheme, storage, PER_TOKEN);
        let model = Model::open(folder.path()).unwrap();
        let weight = |tensor: fn(Part) -> LayerTensor| model.values(TensorId::Layer(0, tensor(Part::Weight))).unwrap();
        let (gate, up) = (weight(LayerTensor::Gate), weight(LayerTensor::Up));
        let LayerShape { intermediate_size, .. } = model.architecture().layers[0];
        let hidden_size = model.architecture().hidden_size;
        let mut mlp = Mlp::default();
        let engine = Engine::load(&model, weight_only(Kernels::best())).unwrap();
        engine.forward_observed(&mut engine.cache(0), &tokens, Logits::Last, &mut mlp).unwrap();
        assert_eq!(mlp.channels.len(), tokens.len() * intermediate_size);
        for (x, channels) in mlp.input.chunks(hidden_size).zip(mlp.channels.chunks(intermediate_size)) {
            let scale = x.iter().fold(0f32, |largest, x| largest.max(x.abs())) / 127.5;
            let rounded: Vec<f64> =
                x.iter().map(|x| f64::from((x / scale).clamp(-128.0, 127.0).round_ties_even()) * f64::from(scale)).collect();
            let product = |matrix: &[f32], row: usize| -> f64 {
                matrix[row * hidden_size..][..hidden_size].iter().zip(&rounded).map(|(w, x)| f64::from(*w) * x).sum()
            };
            for (row, channel) in channels.iter().enumerate() {
                let gate = product(&gate, row);
                let expected = gate / (1.0 + (-gate).exp()) * product(&up, row);
                assert!((f64::from(*channel) - expected).abs() < 1e-5, "{scheme}: {channel} {expected}");
            }
        }
    }
}

/// A Llama in f64, one token and one number after the other, as the papers write it. `multiplied` sees what each projection multiplies.
///
/// Returns the logits of every position.
fn plain_llama(model: &Model, tokens: &[u32], multiplied: &dyn Fn(TensorId, &mut [f64])) -> Vec<f32> {
    use LayerTensor::{AttentionNorm, Down, Gate, Key, MlpNorm, Output, Query, Up, Value};
    let architecture = model.architecture();
    let Positions::Rotary { theta, .. } = architecture.positions else { panic!("a Llama has rotary positions") };
    let (width, head_dim) = (architecture.hidden_size, architecture.head_dim);
    let LayerShape { heads, kv_heads, .. } = architecture.layers[0];
    let values = |id| -> Vec<f64> { model.values(id).unwrap().into_iter().map(f64::from).collect() };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let norm = |id, x: &[f64]| -> Vec<f64> {
        let root = (dot(x, x) / x.len() as f64 + architecture.norm.epsilon).sqrt();
        values(id).iter().zip(x).map(|(weight, x)| x / root * weight).collect()
    };
    let project = |id: TensorId, x: &[f64]| -> Vec<f64> {
        let mut x = x.to_vec();
        multiplied(id, &mut x);
        values(id).chunks(x.len()).map(|row| dot(row, &x)).collect()
    };
    let rotated = |x: &[f64], position: usize| -> Vec<f64> {
        let half = head_dim / 2;
        let turned = |head: &[f64], at: usize| {
            let angle = position as f64 / theta.powf(2.0 * (at % half) as f64 / head_dim as f64);
            let other = if at < half { -head[at + half] } else { head[at - half] };
            head[at] * angle.cos() + other * angle.sin()
        };
        x.chunks(head_dim).flat_map(|head| (0..head_dim).map(|at| turned(head, at)).collect::<Vec<f64>>()).collect()
    };
    let embedding = values(TensorId::Embedding);
    let mut cache = vec![(Vec::new(), Vec::new()); architecture.layers.len()];
    let mut logits = Vec::new();
    for (position, token) in tokens.iter().enumerate() {
        let mut x = embedding[*token as usize * width..][..width].to_vec();
        for (index, (keys, seen)) in cache.iter_mut().enumerate() {
            let weight = |tensor: fn(Part) -> LayerTensor| TensorId::Layer(index, tensor(Part::Weight));
            let input = norm(weight(AttentionNorm), &x);
            let query = rotated(&project(weight(Query), &input), position);
            keys.push(rotated(&project(weight(Key), &input), position));
            seen.push(project(weight(Value), &input));
            let mut attended = Vec::new();
            for (head, query) in query.chunks(head_dim).enumerate() {
                let at = head / (heads / kv_heads) * head_dim..(head / (heads / kv_heads) + 1) * head_dim;
                let part = |key: &Vec<f64>| (dot(query, &key[at.clone()]) / (head_dim as f64).sqrt()).exp();
                let parts: Vec<f64> = keys.iter().map(part).collect();
                let all: f64 = parts.iter().sum();
                attended.extend(at.map(|at| parts.iter().zip(&*seen).map(|(part, value)| part / all * value[at]).sum::<f64>()));
            }
            x.iter_mut().zip(project(weight(Output), &attended)).for_each(|(x, added)| *x += added);
            let input = norm(weight(MlpNorm), &x);
            let gate = project(weight(Gate), &input).into_iter().map(|gate| gate / (1.0 + (-gate).exp()));
            let channels: Vec<f64> = gate.zip(project(weight(Up), &input)).map(|(gate, up)| gate * up).collect();
            x.iter_mut().zip(project(weight(Down), &channels)).for_each(|(x, added)| *x += added);
        }
        let x = norm(TensorId::FinalNorm(Part::Weight), &x);
        logits.extend(embedding.chunks(width).map(|row| dot(row, &x) as f32));
    }
    logits
}

#[test]
fn static_scales_round_and_cut_what_every_projection_multiplies() {
    let golden = Golden::read("llama");
    // The second implementation is one: on the dense model it computes what Transformers does.
    let dense = plain_llama(&Model::open(&golden_folder("llama")).unwrap(), &golden.input_ids, &|_, _| {});
    assert!(worst_difference(&dense, &golden.logits) <= WORST_LOGIT_DIFFERENCE);
    let scheme = Scheme { bits: 8, group_size: None, symmetric: true };
    for storage in [signed, packed] as [Pack; 2] {
        let folder = artifact("llama", scheme, storage, STATIC);
        let model = Model::open(folder.path()).unwrap();
        let Model::Artifact(read) = &model else { panic!("it was written as an artifact") };
        let (cut, seen) = (Cell::new(0), Cell::new(0));
        let expected = plain_llama(&model, &golden.input_ids, &|id, x| {
            let scale = read.input_scale(id).unwrap();
            for x in x {
                let steps = *x as f32 / scale;
                cut.set(cut.get() + usize::from(!(-128.5..=127.5).contains(&steps)));
                seen.set(seen.get() + 1);
                *x = f64::from(steps.round_ties_even().clamp(-128.0, 127.0) * scale);
            }
        });
        let part_cut = f64::from(cut.get() as u32) / f64::from(seen.get() as u32);
        assert!((0.01..0.2).contains(&part_cut), "{} of {} inputs are cut", cut.get(), seen.get());
        let real = plain_llama(&model, &golden.input_ids, &|_, _| {});
        let moved = worst_difference(&expected, &real);
        assert!(moved > 1000.0 * WORST_LOGIT_DIFFERENCE, "rounding moves the logits by {moved} alone");
        for kernels in Kernels::available() {
            let engine = Engine::load(&model, weight_only(kernels)).unwrap();
            let worst = worst_difference(&all_logits(&engine, &golden.input_ids), &expected);
            assert!(worst <= WORST_LOGIT_DIFFERENCE, "{}: {worst}", kernels.name());
        }
    }
}

/// Weight-only artifacts are dequantized exactly, so only the order of sums differs; the logits are of size 0.5.
const WORST_WEIGHT_ONLY_DIFFERENCE: f32 = 2e-6;

/// The largest element of a token stands at exactly ±127.5 of its scale, where the last bit decides between −127 and −128: sums in
/// another order move whole steps. Computing the reference itself in f64 moves these logits by 1.7e-3.
const WORST_W8A8_DIFFERENCE: f32 = 2e-3;

#[test]
fn artifacts_of_llm_compressor_give_the_logits_of_transformers() {
    let Some(folder) = std::env::var_os("COMPRESSOR_SAMPLES").map(PathBuf::from) else {
        println!("skipped: COMPRESSOR_SAMPLES is not set");
        return;
    };
    let golden: serde_json::Value = serde_json::from_slice(&fs_err::read(folder.join("golden.json")).unwrap()).unwrap();
    let numbers =
        |value: &serde_json::Value| value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect::<Vec<f64>>();
    let tokens: Vec<u32> = numbers(&golden["input_ids"]).into_iter().map(|id| id as u32).collect();
    for (name, logits) in golden["logits_last"].as_object().unwrap() {
        let expected: Vec<f32> = numbers(logits).into_iter().map(|logit| logit as f32).collect();
        let limit = if name == "int8-w8a8-dynamic" { WORST_W8A8_DIFFERENCE } else { WORST_WEIGHT_ONLY_DIFFERENCE };
        for kernels in Kernels::available() {
            let engine = Engine::open(&folder.join(name), weight_only(kernels)).unwrap();
            let whole = engine.forward(&mut engine.cache(0), &tokens, Logits::Last).unwrap();
            let mut cache = engine.cache(0);
            let single = tokens.iter().map(|token| engine.forward(&mut cache, &[*token], Logits::Last).unwrap());
            for logits in [whole, single.last().unwrap()] {
                let worst = worst_difference(&logits, &expected);
                println!("{name}, {}: logits differ by at most {worst:e}", kernels.name());
                assert!(worst <= limit, "{name}: {worst}");
            }
        }
    }
    assert_eq!(golden["logits_last"].as_object().unwrap().len(), 5, "new sample? see its limit above");
}

#[test]
fn a_real_model_continues_as_in_pytorch() {
    let Some(folder) = std::env::var_os("COMPRESSOR_ASSETS").map(PathBuf::from) else {
        println!("skipped: COMPRESSOR_ASSETS is not set");
        return;
    };
    // "The capital of France is"
    let continuation = greedy(&open(&folder.join("smollm2-135m")), &[504, 3575, 282, 4649, 314], 12, &[]).unwrap();
    assert_eq!(continuation, [7042, 30, 198, 198, 504, 2988, 314, 42, 216, 34, 32, 33]);
}

/// Keeps what is seen of one layer.
#[derive(Default)]
struct Seen {
    layer: usize,
    places: Vec<(Place, Vec<f32>)>,
}

impl Observer for Seen {
    fn observe(&mut self, layer: usize, place: Place, activations: &[f32]) {
        if layer == self.layer {
            self.places.push((place, activations.to_vec()));
        }
    }
}

#[test]
fn a_block_goes_through_the_places_of_the_forward_pass() {
    for name in GOLDEN {
        let (folder, golden) = (golden_folder(name), Golden::read(name));
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let engine = open(&folder);
        let window = golden.input_ids.len() / 2;
        let tokens = &golden.input_ids[..2 * window];
        let blocks = Blocks::new(&checkpoint, Options::default()).unwrap();
        let mut x = blocks.embed(tokens, window).unwrap();
        for layer in 0..checkpoint.architecture().layers.len() {
            let mut windows = Vec::new();
            for tokens in tokens.chunks(window) {
                let mut seen = Seen { layer, ..Seen::default() };
                engine.forward_observed(&mut engine.cache(0), tokens, Logits::Last, &mut seen).unwrap();
                windows.push(seen.places);
            }
            let close = |place: Place, found: &[f32]| {
                let both = windows.iter().flat_map(|places| &places.iter().find(|(seen, _)| *seen == place).unwrap().1);
                let expected: Vec<f32> = both.copied().collect();
                assert_eq!(found.len(), expected.len());
                let worst = worst_difference(found, &expected);
                assert!(worst < 1e-4, "{}, layer {layer}, {place:?}: {worst}", folder.display());
            };
            let block = blocks.block(layer).unwrap();
            close(Place::LayerInput, &x);
            let input = block.attention_input(&x);
            close(Place::AttentionInput, &input);
            let attended = block.output_input(input, window);
            close(Place::OutputInput, &attended);
            block.add_output(&mut x, attended);
            let input = block.mlp_input(&x);
            close(Place::MlpInput, &input);
            let activated = block.down_input(input);
            close(Place::DownInput, &activated);
            block.add_down(&mut x, activated);
            close(Place::LayerOutput, &x);
        }
    }
}
