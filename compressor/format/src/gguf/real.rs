//! Reads a real file: SmolLM2-135M-Instruct in Q4_1, and beside it the same model as a Hugging Face folder.
//!
//! Both stand in the folder that the environment variable COMPRESSOR_ASSETS names; without it these tests say that they were skipped.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use tokenizers::Tokenizer;

use super::GgufFile;
use crate::Family;

/// The folder of real models, if there is one.
fn assets() -> Option<PathBuf> {
    let folder = std::env::var_os("COMPRESSOR_ASSETS");
    if folder.is_none() {
        eprintln!("skipped: COMPRESSOR_ASSETS is not set");
    }
    folder.map(PathBuf::from)
}

fn smollm2(assets: &std::path::Path) -> GgufFile {
    GgufFile::open(assets.join("SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap()
}

/// Hashes of gguf-py's values, printed by `tests/golden/hash_smollm2_gguf.py`.
#[test]
fn weights_are_those_of_gguf_py_bit_for_bit() {
    let Some(assets) = assets() else { return };
    let file = smollm2(&assets);
    assert_eq!(file.tensors().len(), 272);
    for (name, shape, hash) in [
        ("model.embed_tokens.weight", [49152, 576], "fbf8a06885a1da3a74d883a282c4bab03edc008201973acb719239900e78930e"),
        (
            "model.layers.0.self_attn.q_proj.weight",
            [576, 576],
            "64a705d64e84671d6db817257c3a4616c7c9f17f84d9cd5fc62417df416831c0",
        ),
        (
            "model.layers.29.self_attn.k_proj.weight",
            [192, 576],
            "232fcbb45b41c2ba241c4d6acce6512135f0ff2341ff1332daee240845db0b7f",
        ),
        ("model.layers.17.mlp.down_proj.weight", [576, 1536], "91ea77d1dc8a95b491d79d1405cc7270b7364fcfdf887008851615ecb6b9634b"),
    ] {
        assert_eq!(file.canonical_shape(name).unwrap(), shape);
        let values = file.canonical_f32(name).unwrap();
        assert_eq!(blake3::hash(bytemuck::cast_slice(&values)).to_hex().as_str(), hash, "{name}");
    }
}

#[test]
fn the_configuration_is_that_of_the_folder() {
    let Some(assets) = assets() else { return };
    let found = smollm2(&assets).config().unwrap();
    let folder = fs_err::read(assets.join("smollm2-135m/config.json")).unwrap();
    let folder: serde_json::Value = serde_json::from_slice(&folder).unwrap();
    let mut compared = 0;
    for (key, value) in found.as_object().unwrap() {
        if let Some(expected) = folder.get(key) {
            assert_eq!(value, expected, "{key}");
            compared += 1;
        }
    }
    assert_eq!(compared, 19, "every key but `rope_parameters`, which is Transformers 5's way to say `rope_theta`");
}

#[test]
fn every_tensor_of_the_architecture_is_there_in_its_shape() {
    let Some(assets) = assets() else { return };
    let file = smollm2(&assets);
    let architecture = Family::read(&file.config().unwrap(), file.path()).unwrap();
    assert_eq!(architecture.parameters(), 134_515_008);
    let tensors = architecture.tensors();
    assert_eq!(tensors.len(), 272);
    for tensor in tensors {
        assert_eq!(file.canonical_shape(&tensor.to_string()).unwrap(), architecture.shape(tensor), "{tensor}");
    }
}

#[test]
fn the_tokenizer_encodes_as_the_folders_does() {
    let Some(assets) = assets() else { return };
    let tokenizer = smollm2(&assets).tokenizer().unwrap();
    let ids = |text: &str| tokenizer.encode(text, true).unwrap().get_ids().to_vec();
    assert_eq!(ids("The capital of France is"), [504, 3575, 282, 4649, 314], "from Transformers; no BOS in front");

    let folder = assets.join("smollm2-135m");
    let expected = Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    // The chat template (prose and special tokens) and the vocabulary itself (every word, number and script there is).
    let template = smollm2(&assets).text("tokenizer.chat_template").unwrap().unwrap().to_owned();
    let vocabulary: String = fs_err::read_to_string(folder.join("tokenizer.json")).unwrap().chars().take(300_000).collect();
    for text in
        [template.as_str(), &vocabulary, "naïve 日本語 🙂\r\n\t x  y 12345 I'LL don't", "<|im_start|>user\nHi<|im_end|>\n"]
    {
        let expected = expected.encode(text, true).unwrap();
        assert_eq!(ids(text), expected.get_ids());
        assert_eq!(tokenizer.decode(expected.get_ids(), false).unwrap(), text);
    }
}
