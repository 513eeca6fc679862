//! Makes the files that fuzzing starts from: `cargo run --locked --example seeds -- CORPUS [TARGET …]`.
//!
//! Small models of every family as this project writes them, its recipes and datasets, and the golden files that other programs
//! wrote. Small ones, because a fuzzer that changes one byte in a thousand weights learns nothing.

use std::path::{Path, PathBuf};

use compressor_format::{
    Check, Checkpoint, Dtype, Family, FileHash, InputRounding, Limit, Machine, Manifest, Measured, NewArtifact, NewArtifactTensor, OpensIn,
    QuantizedMatrix, REPORT_VERSION, Reference, Report, Scheme, StageReport, Threshold, Tokenizer, Tool, Values, WeightBytes,
    Weights, pack,
};
use serde_json::{Value, json};

const TARGETS: [&str; 17] = [
    "artifact",
    "chat",
    "checkpoint",
    "config",
    "dataset",
    "delta",
    "entropy",
    "gguf",
    "manifest",
    "model",
    "prompt_cache",
    "recipe",
    "report",
    "safetensors",
    "shards",
    "tokenizer",
    "vocabulary",
];

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let corpus = PathBuf::from(arguments.next().expect("the folder to write to"));
    let wanted: Vec<_> = arguments.collect();
    for target in TARGETS {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == target) {
            continue;
        }
        let seeds = seeds(target);
        let folder = corpus.join(target);
        fs_err::create_dir_all(&folder).expect("a folder for the seeds");
        println!("{target}: {} seeds", seeds.len());
        for (number, seed) in seeds.into_iter().enumerate() {
            fs_err::write(folder.join(format!("seed-{number}")), seed).expect("a file in that folder");
        }
    }
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "safetensors" => checkpoints().into_iter().chain(artifacts()).map(|(_, weights)| weights).collect(),
        "shards" => shards(),
        "checkpoint" => checkpoints().into_iter().map(joined).collect(),
        "artifact" => artifacts().into_iter().map(joined).collect(),
        // Its input is no file: lengths that `arbitrary` divides into choices.
        "model" | "prompt_cache" => (1..12).map(|step| (0..120u32).map(|at| (at * step * 37 % 251) as u8).collect()).collect(),
        "gguf" => [ggufs(), files("tests/golden/gguf/llama_cpp", "gguf"), vec![split_gguf()]].concat(),
        "vocabulary" => ggufs(),
        "config" => {
            let golden = Family::ALL.map(|family| golden(&format!("models/{}/config.json", family.model_type())));
            let others = ["llama3-rope", "llama-head-dim"].map(golden_config);
            golden.into_iter().chain(others).chain(artifacts().into_iter().map(|(config, _)| config)).collect()
        }
        "recipe" => {
            let changes = "seed=9\nstage.1.train.steps=50\nbudget.artifact_bytes=1000000\nmodel.path=elsewhere";
            files("recipes", "toml").into_iter().map(|recipe| joined((recipe, changes.into()))).collect()
        }
        "dataset" => datasets(),
        "delta" => vec![delta()],
        "entropy" => artifacts().into_iter().flat_map(|(_, weights)| [coded(&weights), tagged(1, &weights)]).collect(),
        "tokenizer" => tokenizers(),
        "chat" => chats(),
        "manifest" => vec![manifest()],
        "report" => vec![report()],
        other => unreachable!("{other} is in TARGETS"),
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn golden(path: &str) -> Vec<u8> {
    fs_err::read(root().join("tests/golden").join(path)).expect("a golden file")
}

fn golden_config(model: &str) -> Vec<u8> {
    golden(&format!("models/{model}/config.json"))
}

/// The files of a folder of this repository that end like this, by name.
fn files(folder: &str, ending: &str) -> Vec<Vec<u8>> {
    let entries = fs_err::read_dir(root().join(folder)).expect("a folder of this repository");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == ending));
    paths.sort();
    paths.into_iter().map(|path| fs_err::read(path).expect("a file of this repository")).collect()
}

fn joined((first, second): (Vec<u8>, Vec<u8>)) -> Vec<u8> {
    [first, vec![0], second].concat()
}

/// A small model of a family: one layer, and sizes that are all different.
fn weights(family: Family) -> Weights {
    let config = match family {
        Family::Gpt2 => json!({
            "model_type": "gpt2", "vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "n_inner": 10
        }),
        _ => json!({
            "model_type": family.model_type(), "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "head_dim": 6,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 10, "max_position_embeddings": 16,
            "tie_word_embeddings": family != Family::Llama
        }),
    };
    let architecture = Family::read(&config, Path::new("config.json")).expect("a sound configuration");
    Weights::random(architecture, 5)
}

/// `config.json` and `model.safetensors` of a folder that `write` fills.
fn written(write: impl FnOnce(&Path)) -> (Vec<u8>, Vec<u8>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write(folder.path());
    let file = |name: &str| fs_err::read(folder.path().join(name)).expect("it was written");
    let config: Value = serde_json::from_slice(&file("config.json")).expect("it was written as JSON");
    (config.to_string().into_bytes(), file("model.safetensors"))
}

fn checkpoints() -> Vec<(Vec<u8>, Vec<u8>)> {
    let dtypes = [Dtype::F32, Dtype::F16, Dtype::Bf16].into_iter().cycle();
    let write = |(family, dtype)| written(|folder| weights(family).write(folder, dtype).expect("a model can be written"));
    Family::ALL.into_iter().zip(dtypes).map(write).collect()
}

fn artifacts() -> Vec<(Vec<u8>, Vec<u8>)> {
    let scheme = |bits, group_size, symmetric| Scheme { bits, group_size, symmetric };
    let schemes = [
        (Family::Llama, scheme(4, Some(2), true), true, false),
        (Family::Llama, scheme(4, Some(2), false), true, false),
        (Family::Qwen2, scheme(8, None, true), false, false),
        (Family::Qwen2, scheme(8, None, true), false, true),
        (Family::Qwen3, scheme(8, Some(2), false), true, false),
        (Family::Gpt2, scheme(8, None, true), true, false),
    ];
    schemes.into_iter().map(|(family, scheme, packed, is_static)| artifact(family, scheme, packed, is_static)).collect()
}

/// A model whose matrices hold integers that count upwards, and everything else zeros.
fn artifact(family: Family, scheme: Scheme, packed: bool, inputs_are_static: bool) -> (Vec<u8>, Vec<u8>) {
    let weights = weights(family);
    let architecture = weights.architecture();
    let (least, most) = scheme.range();
    let integers = |count: usize| (0..count).map(|at| (least + (at as i32) % (most - least + 1)) as i8).collect::<Vec<i8>>();
    let tensors = Family::stored(architecture).into_iter().map(|stored| {
        let mut shape = stored.shape(architecture);
        if stored.transposed {
            shape.reverse();
        }
        if !stored.parts[0].is_projection() {
            return (stored, NewArtifactTensor::Dense(vec![0.5; shape.iter().product()]));
        }
        let (rows, columns) = (shape[0], shape[1]);
        let groups = scheme.groups(columns);
        let values = match packed {
            true => Values::Packed(WeightBytes::Owned(
                (0..rows).flat_map(|_| pack(&integers(columns), scheme.bits)).collect::<Vec<u8>>().into(),
            )),
            false => Values::Signed(WeightBytes::Owned(
                integers(rows * columns).into_iter().map(|integer| integer as u8).collect::<Vec<u8>>().into(),
            )),
        };
        let zero_points = (!scheme.symmetric).then(|| integers(rows * groups));
        let scales = vec![0.01; rows * groups].into();
        let matrix = QuantizedMatrix { rows, columns, scheme, values, scales, zero_points };
        (stored, NewArtifactTensor::Quantized(matrix))
    });
    let tensors = tensors.collect();
    let config = json!({});
    let (dense_dtype, scale_dtype) = (Dtype::F32, Dtype::F16);
    let projections = Family::stored(architecture).into_iter().filter(|stored| stored.parts[0].is_projection());
    let input_rounding = match (packed, inputs_are_static) {
        (true, _) => InputRounding::None,
        (false, false) => InputRounding::PerToken,
        (false, true) => InputRounding::Static(projections.map(|stored| (stored.name, 0.25)).collect()),
    };
    let new = NewArtifact { architecture, config: &config, dense_dtype, scale_dtype, tensors, input_rounding };
    written(|folder| new.write(folder).expect("an artifact can be written"))
}

/// What `arbitrary` reads as the first or second variant of two, with these bytes in it.
fn tagged(variant: u8, bytes: &[u8]) -> Vec<u8> {
    [&[variant * 0xff; 4], bytes].concat()
}

/// A `model.entropy`.
fn coded(weights: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [decoded, coded] = ["model.safetensors", "model.entropy"].map(|name| folder.path().join(name));
    fs_err::write(&decoded, weights).expect("a file in a temporary folder");
    compressor_format::write_entropy(&decoded, &coded).expect("a sound file");
    tagged(0, &fs_err::read(coded).expect("just written"))
}

/// From the old folder of the target, in which a text changes.
fn delta() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [old, new, delta] = ["old", "new", "delta"].map(|name| folder.path().join(name));
    for (folder, text) in [(&old, "a text, "), (&new, "a text, changed")] {
        fs_err::create_dir(folder).expect("a folder in a temporary folder");
        fs_err::write(folder.join("text"), text.repeat(40)).expect("a file in it");
        fs_err::write(folder.join("same"), [7; 300]).expect("a file in it");
    }
    compressor_format::write_delta(&old, &new, &delta).expect("two folders");
    fs_err::read(delta).expect("just written")
}

fn shards() -> Vec<Vec<u8>> {
    let (_, weights) = checkpoints().swap_remove(0);
    [r#"{"weight_map": {"model.norm.weight": "a"}}"#, r#"{"weight_map": {"x": "a", "y": "b"}}"#]
        .map(|index| joined((index.into(), weights.clone())))
        .into()
}

fn datasets() -> Vec<Vec<u8>> {
    let jsonl = "{\"prompt\": \"turn it off\", \"completion\": \"off\"}\n{\"prompt\": \"and on\", \"completion\": \"on\"}\n";
    let other_columns = "{\"id\": 1, \"text\": \"a\", \"meta\": {\"n\": [1, null]}}\r\n\u{feff}{\"text\": null, \"txt\": \"b\"}\n";
    let grammar = r#"[grammar]
train_rows = 5
valid_rows = 1
test_rows = 1
valid_share = 0.2
test_share = 0.2
noise = 0.1
chance = { opening = 0.2, closing = 0.2, time = 0.2, second = 0.2, aside = 0.1, taken_back = 0.1, corrected = 0.2 }
wording = { openings = ["please"], closings = ["thanks"], joins = ["and"], corrections = ["no wait"] }
[grammar.slots]
room = { living = ["living room", "lounge"], study = ["study"] }
minute = { 5 = ["five minutes"], 9 = ["nine minutes"] }
[[grammar.action]]
command = "on {room}"
phrases = ["light the [whole|] {room}", "make the {room} bright", "lamps on in the {room}", "{room} light"]
[[grammar.action]]
command = "off; lock"
phrases = ["good night", "we are leaving"]
timed = false
[[grammar.time]]
command = "in {minute}"
phrases = ["in {minute}", "{minute} from now"]
[grammar.aside]
phrases = ["it is dark"]
"#;
    vec![
        joined(("[text]\ntrain = \"data\"\ntest = \"data\"\n".into(), "Once upon a time there was a lamp. ".repeat(20).into())),
        joined(("[jsonl]\ntrain = \"data\"\nsha256.train = \"00\"\n".into(), jsonl.into())),
        joined(("[jsonl]\nvalid = \"data\"\n".into(), jsonl.into())),
        joined((
            "[text]\ntrain = \"data\"\nvalid_fraction = 0.2\ntest_fraction = 0.3\n".into(),
            "\u{feff}Once upon a time\r\nthere was a lamp. ".repeat(9).into(),
        )),
        joined(("[jsonl]\ntrain = \"data\"\nvalid_fraction = 0.5\n".into(), other_columns.into())),
        joined(("[jsonl]\ntrain = \"data\"\n".into(), "[{\"text\": \"a\"}, {\"text\": \"b\"}]".into())),
        joined((grammar.into(), Vec::new())),
    ]
}

/// A trained tokenizer, and those inside the golden GGUF file and another one.
fn tokenizers() -> Vec<Vec<u8>> {
    let texts = std::iter::repeat_n("low low lower lowest newest newer wide wider".to_owned(), 3);
    let trained = Tokenizer::train_bpe(texts, 262).expect("room for the bytes").json().to_vec();
    let sentencepiece = compressor_format::GgufFile::open(root().join("tests/golden/gguf/sentencepiece.gguf"))
        .and_then(|file| file.tokenizer())
        .expect("a golden file")
        .to_string(false)
        .expect("a tokenizer is JSON");
    let short = json!({
        "version": "1.0", "added_tokens": [{"id": 2, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true}], "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "\\p{N}"}, "behavior": "Isolated", "invert": false},
        "post_processor": null, "decoder": {"type": "Fuse"}, "truncation": null, "padding": null,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 3}, "merges": ["a b"], "unk_token": "a"}
    });
    let space = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": false});
    let unigram = json!({
        "version": "1.0", "added_tokens": [], "truncation": null, "padding": null,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}, {"type": "Prepend", "prepend": "x"}
        ]},
        "pre_tokenizer": space, "decoder": {"type": "Sequence", "decoders": [
            {"type": "ByteFallback"}, {"type": "Replace", "pattern": {"String": "x"}, "content": " "}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 1}
        ]},
        "post_processor": {"type": "TemplateProcessing", "pair": [], "special_tokens": {"s": {"id": "s", "ids": [1], "tokens": ["s"]}},
            "single": [{"SpecialToken": {"id": "s", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]},
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": true,
            "vocab": [["?", 0.0], ["s", 0.0], ["\u{2581}", -2.0], ["\u{2581}low", -1.5], ["e", -3.0], ["<0x41>", -9.0]]}
    });
    let wordpiece = json!({
        "added_tokens": [], "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
        "strip_accents": null, "lowercase": true}, "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["b", 1], "cls": ["a", 0]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "vocab": {"a": 0, "b": 1, "##b": 2}, "unk_token": "a", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100}
    });
    let others = [short, unigram, wordpiece].map(|json| json.to_string().into_bytes());
    let jsons = [trained, sentencepiece.into_bytes()].into_iter().chain(others);
    jsons.into_iter().map(|json| joined((json, "a lowest, wider é 12\n".into()))).collect()
}

/// Templates with what real ones use, and what they must not do.
fn chats() -> Vec<Vec<u8>> {
    let templates = [
        "{% for message in messages %}<|{{ message.role }}|>\r\n{{ message['content'] | trim }}</s>{% endfor %}{{ bos_token }}",
        "{% set n = namespace(x=[1]) %}{% for i in range(9) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x | length }}",
        "{% set n = namespace() %}{% set n.a = n %}{{ n | tojson }}",
        "{%- macro m(x, depth=3) -%}{{ x | tojson(indent=2) }}{% if depth %}{{ m([x], depth - 1) }}{% endif %}{%- endmacro -%}{{ m(1) }}",
        "{{ '%30d' | format(1) }}{{ 'a' * 20 }}{{ messages[::-1] | map(attribute='content') | join(', ') }}{{ strftime_now('%Y') }}",
        "{% generation %}{{ raise_exception('no') if messages | length > 3 else 'x'.split('x') }}{% endgeneration %}",
    ];
    templates.map(|template| joined((template.into(), "Where is Lisbon?".into()))).into()
}

fn manifest() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs_err::write(folder.path().join("model.safetensors"), "abc").expect("a file in a temporary folder");
    let manifest = Manifest {
        format_version: Manifest::FORMAT_VERSION,
        tool: Tool { name: "compressor".to_owned(), version: "0.1.0".to_owned() },
        files: Vec::new(),
        inputs: vec![FileHash { name: "teacher/config.json".to_owned(), bytes: 3, blake3: "0".repeat(64) }],
        recipe: json!({"name": "small", "seed": 7}),
        opens_in: vec![OpensIn { program: "compressor".to_owned(), opens: true, reason: "wrote it".to_owned() }],
        reference: Reference { name: "student".to_owned(), dtype: Dtype::F32, bytes: 1000 },
        dense_tensors: Vec::new(),
    };
    manifest.write(folder.path()).expect("a folder of one file");
    fs_err::read(folder.path().join("manifest.json")).expect("just written")
}

fn report() -> Vec<u8> {
    let measured = Some(Measured { value: 4.25, sample_size: 100 });
    let report = Report {
        format_version: REPORT_VERSION,
        tool_version: "0.1.0".to_owned(),
        name: "small".to_owned(),
        recipe: json!({"name": "small"}),
        reference: None,
        machine: Machine { processor: "a processor".to_owned(), threads: 2, platform: "linux".to_owned() },
        stages: vec![StageReport {
            name: "1-train".to_owned(),
            fingerprint: "00".to_owned(),
            parameters: 10,
            bytes: 40,
            stored_as: "f32".to_owned(),
            compression_ratio: 1.0,
            perplexity: measured,
            score: None,
            seconds: 1.5,
            peak_memory_bytes: Some(1 << 20),
            details: json!({"loss": 2.5}),
        }],
        checks: vec![Check::new("kl_mean", 0.05, "nats/token", Some(Threshold::AtMost(0.1)), 100, Some([0.04, 0.06]))],
        passed: Some(true),
    };
    assert_eq!(report.checks[0].limit, Some(Limit::AtMost));
    serde_json::to_vec_pretty(&report).expect("plain numbers and texts")
}

/// A GGUF file with zeros for weights.
struct Gguf {
    values: Vec<Vec<u8>>,
    tensors: Vec<(&'static str, Vec<u64>)>,
}

impl Gguf {
    fn text(mut self, key: &str, text: &str) -> Self {
        self.values.push([string(key), 8u32.to_le_bytes().into(), string(text)].concat());
        self
    }

    fn whole(mut self, key: &str, number: u32) -> Self {
        self.values.push([string(key), 4u32.to_le_bytes().into(), number.to_le_bytes().into()].concat());
        self
    }

    fn float(mut self, key: &str, number: f32) -> Self {
        self.values.push([string(key), 6u32.to_le_bytes().into(), number.to_le_bytes().into()].concat());
        self
    }

    fn texts(mut self, key: &str, texts: &[&str]) -> Self {
        let head = [9u32.to_le_bytes(), 8u32.to_le_bytes()].concat();
        let items = texts.iter().flat_map(|text| string(text)).collect();
        self.values.push([string(key), head, (texts.len() as u64).to_le_bytes().into(), items].concat());
        self
    }

    /// `sizes` are outermost first.
    fn tensor(mut self, name: &'static str, sizes: &[u64]) -> Self {
        self.tensors.push((name, sizes.iter().rev().copied().collect()));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let counts = [self.tensors.len(), self.values.len()].map(|count| (count as u64).to_le_bytes());
        let mut file = [b"GGUF\x03\0\0\0".as_slice(), &counts.concat(), &self.values.concat()].concat();
        let mut offset = 0u64;
        for (name, sizes) in &self.tensors {
            file.extend(string(name));
            file.extend((sizes.len() as u32).to_le_bytes());
            sizes.iter().for_each(|size| file.extend(size.to_le_bytes()));
            file.extend(0u32.to_le_bytes());
            file.extend(offset.to_le_bytes());
            offset = (offset + 4 * sizes.iter().product::<u64>()).next_multiple_of(32);
        }
        file.resize(file.len().next_multiple_of(32) + offset as usize, 0);
        file
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn ggufs() -> Vec<Vec<u8>> {
    [files("tests/golden/gguf", "gguf"), vec![llama_gguf(), gpt2_gguf()]].concat()
}

/// Both parts of a model, one after the other.
fn split_gguf() -> Vec<u8> {
    ["00001", "00002"].map(|number| golden(&format!("gguf/llama_cpp/split-{number}-of-00002.gguf"))).concat()
}

fn llama_gguf() -> Vec<u8> {
    let file = Gguf { values: Vec::new(), tensors: Vec::new() }
        .text("general.architecture", "llama")
        .whole("llama.block_count", 1)
        .whole("llama.context_length", 64)
        .whole("llama.embedding_length", 8)
        .whole("llama.feed_forward_length", 12)
        .whole("llama.attention.head_count", 2)
        .whole("llama.attention.head_count_kv", 1)
        .float("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "llama-bpe")
        .texts("tokenizer.ggml.tokens", &["a", "b", "ab", "I", "'s"])
        .texts("tokenizer.ggml.merges", &["a b"])
        .whole("tokenizer.ggml.bos_token_id", 1)
        .tensor("token_embd.weight", &[5, 8])
        .tensor("blk.0.attn_norm.weight", &[8])
        .tensor("blk.0.attn_q.weight", &[8, 8])
        .tensor("blk.0.attn_k.weight", &[4, 8])
        .tensor("blk.0.attn_v.weight", &[4, 8])
        .tensor("blk.0.attn_output.weight", &[8, 8])
        .tensor("blk.0.ffn_norm.weight", &[8])
        .tensor("blk.0.ffn_gate.weight", &[12, 8])
        .tensor("blk.0.ffn_up.weight", &[12, 8])
        .tensor("blk.0.ffn_down.weight", &[8, 12])
        .tensor("output_norm.weight", &[8])
        .bytes();
    checked(file)
}

fn gpt2_gguf() -> Vec<u8> {
    let file = Gguf { values: Vec::new(), tensors: Vec::new() }
        .text("general.architecture", "gpt2")
        .whole("gpt2.block_count", 1)
        .whole("gpt2.context_length", 6)
        .whole("gpt2.embedding_length", 4)
        .whole("gpt2.feed_forward_length", 12)
        .whole("gpt2.attention.head_count", 2)
        .float("gpt2.attention.layer_norm_epsilon", 1e-5)
        .tensor("token_embd.weight", &[5, 4])
        .tensor("position_embd.weight", &[6, 4])
        .tensor("blk.0.attn_norm.weight", &[4])
        .tensor("blk.0.attn_norm.bias", &[4])
        .tensor("blk.0.attn_qkv.weight", &[12, 4])
        .tensor("blk.0.attn_qkv.bias", &[12])
        .tensor("blk.0.attn_output.weight", &[4, 4])
        .tensor("blk.0.attn_output.bias", &[4])
        .tensor("blk.0.ffn_norm.weight", &[4])
        .tensor("blk.0.ffn_norm.bias", &[4])
        .tensor("blk.0.ffn_up.weight", &[12, 4])
        .tensor("blk.0.ffn_up.bias", &[12])
        .tensor("blk.0.ffn_down.weight", &[4, 12])
        .tensor("blk.0.ffn_down.bias", &[4])
        .tensor("output_norm.weight", &[4])
        .tensor("output_norm.bias", &[4])
        .bytes();
    checked(file)
}

/// A seed that is refused at once would teach the fuzzer little.
fn checked(file: Vec<u8>) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("seed.gguf");
    fs_err::write(&path, &file).expect("a file in a temporary folder");
    Checkpoint::open(&path).expect("a sound file");
    file
}
