//! `export` as a person sees it.

use serde_json::{Value, json};

use crate::command::{Bench, root};

/// The golden Llama of 96 tokens in INT8, with a tokenizer of single letters.
pub(crate) fn quantized(bench: &Bench, scale_dtype: &str) {
    dense(bench);
    let int8 = ["--bits", "8", "--group-size", "32", "--scale-dtype", scale_dtype];
    bench.run(&[["quantize", "dense", "artifact"].as_slice(), &int8].concat()).expect(0);
}

/// The same as it is.
pub(crate) fn dense(bench: &Bench) {
    let golden = root().join("tests/golden/models/llama");
    fs_err::create_dir(bench.path("dense")).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs_err::copy(golden.join(name), bench.path("dense").join(name)).unwrap();
    }
    let vocab: serde_json::Map<String, Value> = ('a'..='z').enumerate().map(|(id, letter)| (letter.into(), id.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true },
        "post_processor": null, "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true },
        "model": { "type": "BPE", "vocab": vocab, "merges": [] }
    });
    bench.write("dense/tokenizer.json", &tokenizer.to_string());
}

#[test]
fn an_exported_artifact_answers_the_same() {
    let bench = Bench::new();
    quantized(&bench, "f16");
    let ran = bench.run(&["export", "artifact", "model.gguf"]).expect(0);
    let bytes = fs_err::metadata(bench.path("model.gguf")).unwrap().len();
    assert_eq!(ran.stdout(), format!("tensors  5 F32, 15 Q8_0\nbytes    {bytes}\n"));
    assert_eq!(ran.stderr(), "written to model.gguf\n");
    let json: Value =
        serde_json::from_str(&bench.run(&["export", "artifact", "model.gguf", "--json"]).expect(0).stdout()).unwrap();
    let expected = json!({
        "output": "model.gguf", "bytes": bytes, "tensors": { "F32": 5, "Q8_0": 15 }, "minima": 0, "rounded_minima": 0
    });
    assert_eq!(json, expected);
    let answer = |model: &str| {
        let asked = ["-p", "compressor", "-n", "20", "--ids", "--ignore-end", "--activations", "f32"];
        bench.run(&[&["generate", model], asked.as_slice()].concat()).expect(0).stdout()
    };
    assert_eq!(answer("model.gguf"), answer("artifact"));
}

#[test]
fn what_is_not_exported_is_refused_with_the_way_out() {
    let bench = Bench::new();
    quantized(&bench, "f32");
    let refused = |model: &str| bench.run(&["export", model, "model.gguf"]).expect(2).stderr();
    assert_eq!(refused("dense"), "error: dense: holds dense weights, and only artifacts are exported: quantize it first\n");
    let text = refused("artifact");
    let beginning =
        "error: artifact: tensor `model.embed_tokens.weight` can't be written as GGUF: the scale of row 0, group 0 is 0.";
    let end = ", which is no f16, and ggml has no others; quantize with scale_dtype = \"f16\"\n";
    assert!(text.starts_with(beginning) && text.ends_with(end), "{text}");
    assert!(!bench.path("model.gguf").exists());
}
