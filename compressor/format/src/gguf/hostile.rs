//! Tests of the head: what is in a sound file reads back, and every way of lying in one is refused.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::sample::{Sample, read};
use super::{GgufFile, Value};

/// A file with one value of every type and two tensors, the last of which ends with the file.
fn every_value() -> Sample {
    Sample::default()
        .text("general.architecture", "llama")
        .value("u8", 0, &[200])
        .value("i8", 1, &[0xff])
        .value("u16", 2, &500u16.to_le_bytes())
        .value("i16", 3, &(-500i16).to_le_bytes())
        .u32("u32", 70_000)
        .value("i32", 5, &(-70_000i32).to_le_bytes())
        .f32("f32", 1e-5)
        .flag("bool", true)
        .texts("texts", &["a", "", "ü"])
        .floats("floats", &[0.5, -1.0])
        .integers("integers", &[3, -4])
        .value("u64", 10, &u64::MAX.to_le_bytes())
        .value("i64", 11, &(-1i64).to_le_bytes())
        .value("f64", 12, &0.1f64.to_le_bytes())
        .tensor("row", &[3], 0, &[1.0f32, 2.0, 3.0].map(f32::to_le_bytes).concat())
        .tensor("matrix", &[32, 2], 8, &[1; 68])
}

fn message(bytes: &[u8]) -> String {
    read(bytes).unwrap_err().to_string()
}

#[test]
fn every_value_type_reads_back() {
    let file = read(&every_value().bytes()).unwrap();
    assert_eq!(file.unsigned("u8").unwrap(), Some(200));
    assert_eq!(file.unsigned("u16").unwrap(), Some(500));
    assert_eq!(file.unsigned("u32").unwrap(), Some(70_000));
    assert_eq!(file.unsigned("u64").unwrap(), Some(u64::MAX));
    assert!(matches!(file.metadata["i8"], Value::Signed(-1)));
    assert!(matches!(file.metadata["i16"], Value::Signed(-500)));
    assert!(matches!(file.metadata["i32"], Value::Signed(-70_000)));
    assert!(matches!(file.metadata["i64"], Value::Signed(-1)));
    assert_eq!(file.float("f32").unwrap(), Some(1e-5), "not 9.999999747378752e-6");
    assert_eq!(file.float("f64").unwrap(), Some(0.1));
    assert_eq!(file.flag("bool").unwrap(), Some(true));
    assert_eq!(file.list("texts").unwrap().unwrap().texts().unwrap(), ["a", "", "ü"]);
    assert_eq!(file.list("floats").unwrap().unwrap().floats().unwrap(), [0.5, -1.0]);
    assert_eq!(file.list("integers").unwrap().unwrap().integers().unwrap(), [3, -4]);
    assert_eq!(file.text("missing").unwrap(), None);
    let error = file.unsigned("i64").unwrap_err().to_string();
    assert_eq!(error, "sample.gguf: `i64` is a whole number, expected a whole number of 0 or more");
}

#[test]
fn shapes_are_outermost_first_and_bytes_lie_on_the_alignment() {
    let file = read(&every_value().bytes()).unwrap();
    assert_eq!(file.tensors().len(), 2);
    assert_eq!(file.tensor("matrix").unwrap().shape, [2, 32]);
    assert_eq!(file.tensor_f32("row").unwrap(), [1.0, 2.0, 3.0]);
    assert_eq!(file.tensor("matrix").unwrap().bytes.len(), 68);
    assert_eq!(file.tensor_f32("none").unwrap_err().to_string(), "sample.gguf: there is no tensor `none`");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = every_value().bytes();
    assert_eq!(message(b""), "sample.gguf: is empty: copy or download it again");
    for length in 1..bytes.len() {
        let error = message(&bytes[..length]);
        let expected = if length < 4 { "is not a GGUF file" } else { "truncated: " };
        assert!(error.starts_with(&format!("sample.gguf: {expected}")), "cut to {length}: {error}");
    }
    let cut = bytes.len() - 1;
    assert_eq!(
        message(&bytes[..cut]),
        format!(
            "sample.gguf: truncated: tensor `matrix` takes 68 bytes from offset 32 of the tensors, which begin at byte {}, \
             and the file has {cut}",
            bytes.len() - 68 - 32
        )
    );
    assert_eq!(
        message(&bytes[..20]),
        "sample.gguf: truncated: the number of metadata values takes 8 bytes from byte 16, and the file has 20"
    );
}

#[test]
fn other_files_and_versions_are_named() {
    assert!(message(b"PK\x03\x04 zip").starts_with("sample.gguf: is a zip archive, as PyTorch writes its pickles"));
    assert_eq!(message(b"ggml"), "sample.gguf: is not a GGUF file: it does not begin with the bytes `GGUF`");
    assert_eq!(
        message(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"),
        "sample.gguf: is a pointer of Git LFS, not the file of 7 bytes that it stands for: run `git lfs pull` in its folder"
    );
    assert_eq!(
        message(b"GGUF\x01\0\0\0"),
        "sample.gguf: is a GGUF file of version 1, and versions 2 and 3 are read: convert the model again"
    );
    assert_eq!(
        message(b"GGUF\0\0\0\x03"),
        "sample.gguf: is a big-endian GGUF file, and only little-endian ones are read: convert the model again"
    );
    assert!(read(&every_value().version(2).bytes()).is_ok());
}

#[test]
fn hostile_counts_and_lengths_are_refused() {
    let head = |tensors: u64, values: u64| {
        [b"GGUF\x03\0\0\0".to_vec(), tensors.to_le_bytes().to_vec(), values.to_le_bytes().to_vec()].concat()
    };
    assert_eq!(
        message(&head(0, u64::MAX)),
        "sample.gguf: truncated: the length of key 0 of 18446744073709551615 takes 8 bytes from byte 24, and the file has 24"
    );
    assert_eq!(
        message(&head(u64::MAX, 0)),
        "sample.gguf: truncated: the length of the name of tensor 0 of 18446744073709551615 takes 8 bytes from byte 24, \
         and the file has 24"
    );
    let long_key = [head(0, 1), u64::MAX.to_le_bytes().to_vec()].concat();
    assert_eq!(
        message(&long_key),
        "sample.gguf: truncated: key 0 of 1 takes 18446744073709551615 bytes from byte 32, and the file has 32"
    );
    let list = |kind: u32, count: u64| {
        Sample::default().value("k", 9, &[kind.to_le_bytes().to_vec(), count.to_le_bytes().to_vec()].concat())
    };
    assert_eq!(
        message(&list(4, u64::MAX / 2).bytes()),
        "sample.gguf: truncated: `k` with its 9223372036854775807 items takes 18446744073709551615 bytes from byte 49, \
         and the file has 49"
    );
    assert_eq!(
        message(&list(8, u64::MAX).bytes()),
        "sample.gguf: truncated: the length of an item of `k` takes 8 bytes from byte 49, and the file has 49"
    );
    assert_eq!(message(&list(9, 1).bytes()), "sample.gguf: `k` is a list of lists, which no model uses (at byte 49)");
}

#[test]
fn unknown_types_and_wrong_values_are_refused() {
    let value = |kind, bytes| message(&Sample::default().value("k", kind, bytes).bytes());
    assert_eq!(value(13, &[]), "sample.gguf: the type of `k` is 13, and value types go from 0 to 12 (at byte 37)");
    assert_eq!(value(7, &[2]), "sample.gguf: the value of `k` is a bool of 2, not 0 or 1 (at byte 38)");
    assert_eq!(value(8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]), "sample.gguf: the value of `k` is not UTF-8 (at byte 45)");
    assert_eq!(
        message(&Sample::default().u32("k", 1).u32("k", 2).bytes()),
        "sample.gguf: the key `k` stands there twice (at byte 58)"
    );
    let alignment = |value| message(&Sample::default().u32("general.alignment", value).bytes());
    assert_eq!(alignment(0), "sample.gguf: `general.alignment` is 0, expected a power of two");
    assert_eq!(alignment(48), "sample.gguf: `general.alignment` is 48, expected a power of two");
}

#[test]
fn hostile_tensors_are_refused() {
    let tensor = |sizes: &[u64], kind, bytes: &[u8]| message(&Sample::default().tensor("t", sizes, kind, bytes).bytes());
    assert_eq!(
        tensor(&[256], 10, &[]),
        "sample.gguf: tensor `t` is Q2_K, which can't be read; these can: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K"
    );
    assert_eq!(tensor(&[1], 99, &[]), "sample.gguf: tensor `t` has a type that ggml does not define (at byte 49)");
    assert_eq!(tensor(&[1, 1, 1, 1, 1], 0, &[]), "sample.gguf: tensor `t` has 5 dimensions, at most 4 are possible (at byte 37)");
    assert_eq!(
        tensor(&[48, 2], 8, &[]),
        "sample.gguf: tensor `t` has shape [48, 2] (innermost first); sizes of Q8_0 are above 0 and the first a multiple of 32 (at byte 65)"
    );
    assert_eq!(
        tensor(&[32, 0], 0, &[]),
        "sample.gguf: tensor `t` has shape [32, 0] (innermost first); sizes of F32 are above 0 and the first a multiple of 1 (at byte 65)"
    );
    assert_eq!(
        tensor(&[1 << 40, 1 << 40], 0, &[]),
        "sample.gguf: tensor `t` has shape [1099511627776, 1099511627776], more elements than can be counted (at byte 65)"
    );
    let twice = Sample::default().tensor("t", &[1], 0, &[0; 4]).tensor("t", &[1], 0, &[0; 4]).bytes();
    assert_eq!(message(&twice), "sample.gguf: the tensor `t` stands there twice (at byte 90)");

    let overlapping = Sample::default().tensor("t", &[16], 0, &[0; 64]).tensor("u", &[1], 0, &[0; 4]).offset(32).bytes();
    assert_eq!(message(&overlapping), "sample.gguf: tensors `t` and `u` overlap");

    let at = |offset| message(&Sample::default().tensor("t", &[1], 0, &[0; 4]).offset(offset).bytes());
    assert_eq!(at(4), "sample.gguf: tensor `t` begins at offset 4, not a multiple of the alignment 32");
    assert_eq!(
        at(u64::MAX - 31),
        "sample.gguf: truncated: tensor `t` takes 4 bytes from offset 18446744073709551584 of the tensors, which begin at byte 64, \
         and the file has 68"
    );
}

/// Asks a file that opened for everything it can give; any answer will do, as long as there is one.
fn ask_everything(file: &GgufFile) {
    let _ = file.config();
    let _ = file.tokenizer();
    let _ = file.adds_bos();
    for tensor in file.tensors() {
        assert!(file.tensor_f32(&tensor.name).is_ok());
    }
    for name in ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.v_proj.bias"] {
        let _ = file.canonical_f32(name);
        let _ = file.canonical_shape(name);
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), head in any::<bool>()) {
        let bytes = if head { [b"GGUF\x03\0\0\0".as_slice(), &bytes].concat() } else { bytes };
        if let Ok(file) = read(&bytes) {
            ask_everything(&file);
        }
    }

    #[test]
    fn mutated_files_never_panic(
        which in 0usize..4,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let mut bytes = match which {
            0 => every_value().bytes(),
            1 => Sample::llama().bytes(),
            2 => Sample::gpt2().bytes(),
            _ => Sample::sentencepiece().bytes(),
        };
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(file) = read(&bytes) {
            ask_everything(&file);
        }
    }
}
